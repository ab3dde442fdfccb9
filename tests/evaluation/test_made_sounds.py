"""What a classifier hears in sounds made from labels, and whether they repeat training sounds, on known numbers.

A sound of class k is a tone of (k + 1) x 200 Hz; its level is its own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from fakes import Plain
from torch import Tensor

from v2f.cli import main
from v2f.config import build
from v2f.data.encoding import encode
from v2f.data.shards import write_manifest, write_shard
from v2f.data.transforms import ClassNumber, NoiseVector, Transform, Waveform
from v2f.errors import V2FError
from v2f.evaluation import copies
from v2f.evaluation.evaluate import evaluate
from v2f.keyed import keyed_rng
from v2f.roles import Reading, SoundReader
from v2f.runs.config import RunConfig
from v2f.runs.run import Run
from v2f.system import Kind, Label, Noise, Sound, System, SystemConfig
from v2f.systems import SYSTEMS
from v2f.training.trainer import fit

NAMES = ("low", "middle", "high")
RATE, SECONDS = 4000, 0.2


def tone(class_: int, level: float, rate: int = RATE) -> Tensor:
    return level * torch.sin(2 * torch.pi * 200 * (class_ + 1) * torch.arange(round(rate * SECONDS)) / rate)


def level_of(split: str, number: int) -> float:
    return float(keyed_rng(9, len(split), number).uniform(0.3, 0.9))


class Singer(Plain, System):
    """``wrong``: it mixes up the classes; ``copies``: its levels are those of training sounds."""

    protocol = "labelled_sounds"

    class Config(SystemConfig):
        name: Literal["singer"]
        wrong: bool = False
        copies: bool = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.net = config, torch.nn.Linear(1, 1)

    def asks(self) -> dict[str, Kind]:
        return {"pitch": Label(NAMES), "z": Noise(1)}

    def makes(self) -> dict[str, Kind]:
        return {"sound": Sound(RATE, SECONDS)}

    def transforms(self) -> dict[str, Transform]:
        return {"pitch": ClassNumber("pitch", NAMES), "z": NoiseVector(1)}

    def sample(self, batch: Any) -> dict[str, Tensor]:
        made = []
        for number, (class_, z) in enumerate(zip(batch["pitch"].tolist(), batch["z"][:, 0].tolist(), strict=True)):
            level = level_of("train", class_ + 3 * number) if self.config.copies else 0.6 + 0.1 * z
            made.append(tone((class_ + 1) % 3 if self.config.wrong else class_, min(max(level, 0.3), 0.9)))
        return {"sound": torch.stack(made)[:, None]}


class Ear(Plain, SoundReader):
    """Hears, at 8 kHz, which of the three tones is the loudest."""

    protocol = "labels_of_sounds"

    class Config(SystemConfig):
        name: Literal["ear"]
        names: list[str] = ["high", "middle", "low"]  # in another order

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.net = config, torch.nn.Linear(1, 1)

    @property
    def labels(self) -> dict[str, list[str]]:
        return {"pitch": self.config.names}

    @property
    def factors(self) -> tuple[str, ...]:
        return ()

    def asks(self) -> dict[str, Kind]:
        return {"wav": Sound(8000, SECONDS)}

    def makes(self) -> dict[str, Kind]:
        return {"pitch": Label(tuple(self.config.names))}

    def transforms(self) -> dict[str, Transform]:
        return {"wav": Waveform(SECONDS, 8000)}

    def read(self, rows: Tensor) -> Reading:
        heard = [(rows * tone(2 - number, 1.0, 8000)).mean(1) for number in range(3)]
        features = torch.stack(heard, 1)
        return Reading(scores={"pitch": features}, factors=features[:, :0], features=features)

    def sample(self, batch: Any) -> dict[str, Tensor]:
        return dict(self.read(batch["wav"]).scores)


@pytest.fixture(autouse=True)
def _systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SYSTEMS, "singer", Singer)
    monkeypatch.setitem(SYSTEMS, "ear", Ear)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    root, rows = str(tmp_path_factory.mktemp("tones")), []
    for split, count in (("train", 120), ("test", 30)):
        samples = []
        for number in range(count):
            key = f"{split}-{number:03d}"
            about: dict[str, Any] = {"identity": key, "split": split, "source": "tones"}
            about["extra"] = {"pitch": NAMES[number % 3]}
            samples.append((key, key, encode(key, tone(number % 3, level_of(split, number)).numpy(), RATE, **about)))
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


def test_sounds_are_read_as_asked_and_memorized_ones_are_found(
    trained: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    ear, found = trained("ear"), {}
    for name, how in (("right", {}), ("wrong", {"wrong": True}), ("copies", {"copies": True})):
        run = Run.open(trained("singer", name, **how))
        split = evaluate(run, classifier=ear, device="cpu")["splits"]["test"]
        found[name] = {by: split["by"][by]["lines"]["sounded"] for by in ("classifier", "spectra")}
        assert "the classifier reads the label of 100.0 % of the real held-out sounds right" in split["notes"][-1]
        assert split["by"]["classifier"]["lines"]["trained"]["agreement"]["value"] == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "from training" in printed
    assert "copied, %" in printed
    assert found["right"]["classifier"]["agreement"]["value"] == 1
    assert found["wrong"]["classifier"]["agreement"]["value"] == 0
    assert found["right"]["classifier"]["picture"]["recall"] > 0.5
    assert found["copies"]["classifier"]["copied"]["value"] == 1
    assert found["copies"]["classifier"]["from_training"] < 0.1  # 16 bits of a FLAC remain
    assert found["right"]["classifier"]["copied"]["value"] < 0.6
    assert found["right"]["classifier"]["from_training"] > 0.4


def test_an_ear_is_measured_itself(trained: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", trained("ear")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "100.0 (100-100)" in printed
    assert "pitch: rows are true" in printed


def test_a_classifier_that_does_not_fit_is_one_clear_line(trained: Callable[..., str]) -> None:
    run = Run.open(trained("singer"))
    with pytest.raises(V2FError, match="it reads the labels pitch, but not the class 'middle' of 'pitch'"):
        evaluate(run, classifier=trained("ear", names=["high", "low"]), progress=False, device="cpu")
    with pytest.raises(V2FError, match="this run reads no labels of sounds; name one of sound_recognition"):
        evaluate(run, classifier=trained("singer", "deaf"), progress=False, device="cpu")


def test_the_distance_to_training_is_relative_to_that_of_held_out_samples() -> None:
    rng = np.random.default_rng(0)
    train, held = rng.normal(size=(200, 3)).astype(np.float32), rng.normal(size=(50, 3)).astype(np.float32)
    made = np.concatenate([train[:5], train[5:10] + 100])
    found = copies.from_training([{"x": train[:120]}, {"x": train[120:]}], {"x": made}, {"x": held})["x"]
    assert (found[:5] < 1e-3).all()
    assert (found[5:] > 10).all()
    again = copies.from_training([{"x": train}], {"x": held}, {"x": held})["x"]
    assert np.median(again) == pytest.approx(1)
    nothing = copies.from_training([{"x": held}], {"x": made}, {"x": held})["x"]
    assert np.isnan(nothing).all()  # held-out samples that are in training measure nothing
