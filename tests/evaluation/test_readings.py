"""What a classifier reads in pictures made from labels, on a system and a classifier whose numbers are known.

A picture of class k has the tone of k, and its code is a stripe that the class does not change.
"""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from fakes import Plain
from PIL import Image
from torch import Tensor

from v2f.cli import main
from v2f.config import build
from v2f.data.encoding import encode
from v2f.data.shards import write_manifest, write_shard
from v2f.data.transforms import ClassNumber, NoiseVector, Photo, Transform
from v2f.errors import V2FError
from v2f.evaluation import readings
from v2f.evaluation.compare import compare
from v2f.evaluation.evaluate import evaluate
from v2f.evaluation.subjects import gather
from v2f.keyed import keyed_rng
from v2f.roles import PictureReader, Reading, Restyling
from v2f.runs.config import RunConfig
from v2f.runs.run import Run
from v2f.system import Kind, Label, Noise, Picture, SystemConfig, to_picture
from v2f.systems import SYSTEMS
from v2f.training.trainer import fit

TONES = ("dark", "middle", "light")
SIDE = 8


def painted(tone_B: Tensor, stripe_B: Tensor) -> Tensor:
    """Pictures [B,1,8,8]: seven rows of the class's tone, and a row of the code."""
    picture = (0.8 * (tone_B.float() - 1))[:, None, None, None].expand(-1, 1, SIDE, SIDE).clone()
    picture[:, :, -1] = stripe_B[:, None, None].clamp(-1, 1)
    return picture


class Painter(Plain, Restyling):
    """``wrong``: the share of classes that it mixes up; ``forgets``: its codes say nothing."""

    protocol = "labelled_pictures"

    class Config(SystemConfig):
        name: Literal["painter"]
        wrong: bool = False
        forgets: bool = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.net = config, torch.nn.Linear(1, 1)

    def asks(self) -> dict[str, Kind]:
        return {"tone": Label(TONES), "z": Noise(1)}

    def makes(self) -> dict[str, Kind]:
        return {"picture": Picture(SIDE, channels=1)}

    def transforms(self) -> dict[str, Transform]:
        return {"tone": ClassNumber("tone", TONES), "z": NoiseVector(1), "image": Photo(SIDE, channels=1)}

    def posterior(self, img_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        code_B1 = img_BCHW[:, 0, -1, :1]
        return (code_B1 * 0 if self.config.forgets else code_B1), torch.full_like(code_B1, -2.0)

    def decode(self, code_BZ: Tensor, label_B: Tensor) -> Tensor:
        return painted((label_B + 1) % 3 if self.config.wrong else label_B, code_BZ[:, 0])

    def sample(self, batch: Any) -> dict[str, Tensor]:
        return {"picture": self.decode(batch["z"], batch["tone"])}


class Eye(Plain, PictureReader):
    """Reads the tone, whether the stripe is bright, the tone as a factor, and the stripe as another."""

    protocol = "labels_of_pictures"

    class Config(SystemConfig):
        name: Literal["eye"]
        share: float = 1.0
        names: list[str] = ["light", "middle", "dark"]  # in another order

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.net = config, torch.nn.Linear(1, 1)

    @property
    def labels(self) -> dict[str, list[str]]:
        return {"tone": self.config.names, "stripe": ["off", "on"]}

    @property
    def factors(self) -> tuple[str, ...]:
        return ("tone", "stripe")

    def asks(self) -> dict[str, Kind]:
        return {"image": Picture(SIDE, channels=1, share=self.config.share)}

    def makes(self) -> dict[str, Kind]:
        return {label: Label(tuple(names)) for label, names in self.labels.items()}

    def transforms(self) -> dict[str, Transform]:
        return {"image": Photo(SIDE, self.config.share, channels=1)}

    def read(self, img_BCHW: Tensor) -> Reading:
        tone_B, stripe_B = img_BCHW[:, 0, 0, 0], img_BCHW[:, 0, -1, 0]
        tones = [-(tone_B - 0.8 * (1 - n)).abs() for n in range(3)]
        scores = {"tone": torch.stack(tones, 1), "stripe": torch.stack([-stripe_B, stripe_B], 1)}
        return Reading(scores=scores, factors=torch.stack([tone_B, stripe_B], 1), features=img_BCHW.flatten(1))

    def sample(self, batch: Any) -> dict[str, Tensor]:
        return dict(self.read(to_picture(batch["image"])).scores)


@pytest.fixture(autouse=True)
def _systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SYSTEMS, "painter", Painter)
    monkeypatch.setitem(SYSTEMS, "eye", Eye)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    root, rows = str(tmp_path_factory.mktemp("tones")), []
    for split, count in (("train", 60), ("test", 48)):
        samples = []
        for number in range(count):
            tone = number % 3
            stripe = torch.from_numpy(keyed_rng(4, count, number).uniform(-1, 1, 1))
            img = painted(torch.tensor([tone]), stripe)[0].permute(1, 2, 0)
            pixels = ((img.numpy() + 1) * 127.5 + 0.5).astype(np.uint8)
            key = f"{split}-{number:03d}"
            extra = {"tone": TONES[tone], "stripe": "on" if float(stripe) > 0 else "off"}
            about: dict[str, Any] = {"identity": key, "split": split, "source": "tones", "extra": extra}
            samples.append((key, key, encode(key, photos_HWC=[pixels], **about)))
        rows.append(write_shard(root, f"{split}-00000.tar", split, samples))
    write_manifest(root, rows, {"recipe": {"source": "tones"}})
    return root


@pytest.fixture
def trained(data: str, tmp_path: Path) -> Callable[..., str]:
    def make(name: str, out: str = "", **system: Any) -> str:
        values = {
            "name": out or name,
            "out": str(tmp_path / (out or name)),
            "system": {"name": name, **system},
            "data": {"path": data, "valid": None, "batch": 4, "workers": 0, "window": 8, "partitions": 4},
            "train": {"steps": 1, "threads": 1},
            "tracking": {"uri": None},
        }
        return fit(build(RunConfig, values, "test"))

    return make


def of(result: dict[str, Any], by: str = "classifier") -> dict[str, Any]:
    line: dict[str, Any] = result["splits"]["test"]["by"][by]["lines"]["labelled"]
    return line


def test_a_painter_that_does_what_it_is_asked_is_read_right_and_keeps_the_rest(
    trained: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    run, eye = trained("painter"), trained("eye")
    assert main(["eval", run, "--classifier", eye]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    result = json.loads(Path(run, "eval.json").read_text())
    found = of(result)
    assert found["agreement"]["value"] == found["restyled"]["value"] == found["kept_labels"]["value"] == 1
    assert found["kept_factors"]["value"] == pytest.approx(1, abs=1e-3)
    assert result["splits"]["test"]["by"]["classifier"]["lines"]["trained"]["agreement"]["value"] == 1
    assert of(result, "codes")["restored_error"]["value"] < 1e-4
    mean = of(result, "codes")["code_nats"]["value"]
    assert 0.5 * (np.exp(-2) + 1) < mean < 0.5 * (np.exp(-2) + 2)  # of the stripe's square, a third on average
    assert result["classifier"]["run"] == "eye"
    assert "the classifier reads the label of 100.0 % of the real held-out pictures right" in printed
    notes = " ".join(result["splits"]["test"]["notes"])
    assert "stripe 1.00" in notes
    assert "tone" not in notes.partition("correlation with the original")[2]  # the label says it


def test_mixed_up_classes_and_codes_that_say_nothing_are_seen(trained: Callable[..., str]) -> None:
    eye = trained("eye")
    wrong = evaluate(Run.open(trained("painter", "wrong", wrong=True)), classifier=eye, progress=False, device="cpu")
    assert of(wrong)["agreement"]["value"] == of(wrong)["restyled"]["value"] == 0
    assert of(wrong)["kept_factors"]["value"] == pytest.approx(1, abs=1e-3)
    empty = evaluate(Run.open(trained("painter", "empty", forgets=True)), classifier=eye, progress=False, device="cpu")
    assert of(empty)["agreement"]["value"] == 1
    assert of(empty)["kept_factors"] is None  # the stripe does not vary
    assert of(empty)["kept_labels"]["value"] < 0.8
    assert of(empty, "codes")["restored_error"]["value"] > 0.02
    runs = gather([str(Path(eye).parent / name) for name in ("wrong", "empty")])
    outcome = next(each for each in compare(runs).outcomes if each.metric.key == "agreement")
    assert outcome.larger
    assert outcome.direction == 1  # the second is better


@pytest.mark.parametrize(
    ("system", "told"),
    [
        (
            {"share": 0.5},
            "it sees 0.5 of a photo's side, these pictures show 1; train a classifier with system.share=1",
        ),
        ({"names": ["light", "dark"]}, "it reads the labels tone, stripe, but not the class 'middle' of 'tone'"),
    ],
)
def test_a_classifier_that_does_not_fit_is_one_clear_line(
    trained: Callable[..., str], system: dict[str, Any], told: str
) -> None:
    run, eye = trained("painter"), trained("eye", **system)
    with pytest.raises(V2FError, match=told):
        evaluate(Run.open(run), classifier=eye, progress=False, device="cpu")
    with pytest.raises(V2FError, match="this run reads no labels of pictures"):
        evaluate(Run.open(run), classifier=run, progress=False, device="cpu")
    with pytest.raises(V2FError, match="makes nothing from labels that could be read; leave out --classifier"):
        evaluate(Run.open(eye), classifier=eye, progress=False, device="cpu")


def test_factors_that_the_label_determines_are_left_out() -> None:
    rng, class_N = keyed_rng(2), np.arange(300) % 3
    says, free = class_N + 0.1 * rng.normal(size=300), rng.normal(size=300)
    assert readings.free_factors(np.stack([says, free], 1), class_N) == [1]


def test_runs_that_make_the_same_labels_are_one_table(trained: Callable[..., str], tmp_path: Path) -> None:
    runs = [trained("painter"), trained("painter", "wrong", wrong=True)]
    for run in runs:
        evaluate(Run.open(run), progress=False, device="cpu")
    page = str(tmp_path / "compare.html")
    assert main(["compare", *runs, "-o", page]) == 0
    text = Path(page).read_text()
    assert "The same labels" in text
    rows = re.findall(r"<tr><td>(dark|middle|light)</td>(.*?)</tr>", text, re.DOTALL)
    assert [name for name, _ in rows] == list(TONES)
    for name, row in rows:
        tones = []
        for content in re.findall(r"data:image/png;base64,([^\"]+)", row):
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("L"))
            tones.append(int(np.rint((pixels[0, 0] / 127.5 - 1) / 0.8)) + 1)
        own = TONES.index(name)
        assert tones == [own] * 10 + [(own + 1) % 3] * 5  # real ones, the first run, the second run
