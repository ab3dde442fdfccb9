"""A system of each kind, in one file and one line: it trains, resumes, is measured, makes and is served."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from ports import free_ports
from toys import TOYS
from toys.data import make_data
from toys.toy import LABELS, RATE

import v2f
from v2f.cli import main
from v2f.config import build, dump_yaml
from v2f.errors import V2FError
from v2f.evaluation.compare import compare
from v2f.evaluation.evaluate import evaluate
from v2f.evaluation.subjects import gather
from v2f.generate import generate
from v2f.given import Given
from v2f.runs import checkpoint
from v2f.runs.config import RunConfig
from v2f.runs.run import Run
from v2f.systems import SYSTEMS
from v2f.training.trainer import fit
from v2f.web.maker import Maker
from v2f.web.report import report

TOY = pytest.mark.parametrize("name", TOYS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("toys") / "shards")
    make_data(root)
    return root


@pytest.fixture
def config(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    for name, toy in TOYS.items():
        monkeypatch.setitem(SYSTEMS, name, toy)

    def make(name: str, out: str = "run", **train: Any) -> RunConfig:
        values = {
            "name": name.replace("_", "-"),
            "out": str(tmp_path / out),
            "seed": 3,
            "system": {"name": name},
            "data": {"path": data, "batch": 8, "workers": 0, "window": 8, "partitions": 4},
            "train": {"steps": 6, "threads": 1, "validate_every": 3, "validate_samples": 6} | train,
            "tracking": {"uri": None},
        }
        return build(RunConfig, values, "test")

    return make


@TOY
def test_it_trains_and_goes_on_bit_for_bit(config: Callable[..., RunConfig], name: str) -> None:
    folder = fit(config(name, checkpoint_every=3))
    whole, _ = checkpoint.load(checkpoint.latest(f"{folder}/checkpoints") or "")
    points = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    held_out = [each["metrics"] for each in points if "valid/loss/all/total" in each.get("metrics", {})]
    assert len(held_out) == 2
    shutil.rmtree(checkpoint.latest(f"{folder}/checkpoints") or "")
    fit(config(name, checkpoint_every=3), resume="auto")
    again, _ = checkpoint.load(checkpoint.latest(f"{folder}/checkpoints") or "")
    assert whole.keys() == again.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in whole.items())
    sheets = sorted(path.suffix for path in Path(folder, "samples").glob("*")) if name != "voice_label" else []
    made = type(next(iter(Run.open(folder).system().makes().values()))).__name__
    assert sheets == {"Picture": [".png", ".png"], "Sound": [".html", ".html"]}.get(made, [])


def files(folder: Path) -> dict[str, str]:
    """A recording, a photo and a video, by the option that takes each."""
    from corpora import write_video

    tone = 0.4 * np.sin(2 * np.pi * 500 * np.arange(2 * RATE) / RATE)
    soundfile.write(folder / "a.wav", tone, RATE)
    Image.new("RGB", (20, 30), (200, 80, 40)).save(folder / "p.jpg")
    write_video(folder / "v.mp4", None, [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in range(0, 250, 10)])
    return {"voice": str(folder / "a.wav"), "photo": str(folder / "p.jpg"), "video": str(folder / "v.mp4")}


@pytest.mark.parametrize(
    ("name", "given", "suffix"),
    [
        ("voice_picture", ["voice"], ".png"),
        ("voice_noise_picture", ["voice"], ".png"),
        ("noise_picture", [], ".png"),
        ("label_picture", ["label"], ".png"),
        ("label_sound", ["label"], ".wav"),
        ("photo_sound", ["photo"], ".wav"),
        ("voice_label", ["voice"], ".json"),
        ("voice_embedding", ["voice"], ".json"),
    ],
)
def test_it_makes_what_it_declares_and_says_what_it_is(
    config: Callable[..., RunConfig], tmp_path: Path, name: str, given: list[str], suffix: str
) -> None:
    folder, there = fit(config(name, steps=1, validate_every=1)), files(tmp_path) | {"label": "dog"}
    recording, others = there["voice"] if "voice" in given else None, {e: there[e] for e in given if e != "voice"}
    output = str(tmp_path / f"out{suffix}")
    command = ["generate", folder, "-o", output]
    for each in given:
        command += [f"--{each}", there[each]]
    assert main(command) == 0
    run = Run.open(folder)
    if suffix == ".png":
        notes = Image.open(output).info
    elif suffix == ".wav":
        with soundfile.SoundFile(output) as file:
            notes = json.loads(file.comment)
            assert (file.samplerate, file.frames) == (RATE, round(0.1 * RATE))
            assert file.title == notes["Title"]
    else:
        notes = json.loads(Path(output).read_text())["about"]
    assert notes["Run"] == run.config.name
    assert notes["Title"].startswith("A ")
    assert ", not a " in notes["Title"]
    before = Path(output).read_bytes()
    with pytest.raises(V2FError, match=r"name the output something\.(png|wav|json)"):
        generate(run, recording, str(tmp_path / "out.txt"), **others)
    spare = next(each for each in ("label", "photo", "video") if each not in given)
    with pytest.raises(V2FError, match=r"does not (see|know)|and nothing else"):
        generate(run, recording, output, **others, **{spare: there[spare]})
    if given:
        with pytest.raises(V2FError, match=r"asks for .*: give the|makes a face from a voice: give"):
            generate(run, None, output)
    assert Path(output).read_bytes() == before


def test_a_sound_is_put_under_the_video_that_it_was_made_for(tmp_path: Path) -> None:
    import av

    from v2f.data import media

    video = Path(files(tmp_path)["video"]).read_bytes()
    sound_T = (0.5 * np.sin(2 * np.pi * 440 * np.arange(4000) / 4000)).astype(np.float32)
    with av.open(io.BytesIO(video)) as source:
        media.mux(source, str(tmp_path / "out.mp4"), ".mp4", sound_T, 4000, {"Title": "t", "Run": "r"})
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert json.loads(container.metadata["comment"]) == {"Title": "t", "Run": "r"}
        assert len(list(container.decode(video=0))) == 25
    with av.open(str(tmp_path / "out.mp4")) as container:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert np.abs(np.fft.rfft(heard[:16000])).argmax() == pytest.approx(440, abs=2)


@pytest.mark.parametrize("name", ["noise_picture", "voice_noise_picture"])
def test_the_same_seed_draws_the_same_and_another_one_another(
    config: Callable[..., RunConfig], tmp_path: Path, name: str
) -> None:
    run = Run.open(fit(config(name, steps=1, validate_every=1)))
    voice = files(tmp_path)["voice"] if "voice" in name else None
    pixels = []
    for seed in (0, 0, 1):
        generate(run, voice, str(tmp_path / "out.png"), seed=seed)
        pixels.append(np.asarray(Image.open(tmp_path / "out.png")))
    assert np.array_equal(pixels[0], pixels[1])
    assert not np.array_equal(pixels[0], pixels[2])


@pytest.mark.parametrize("name", [name for name, toy in TOYS.items() if toy.protocol is not None])
def test_it_is_measured_compared_and_shown(config: Callable[..., RunConfig], tmp_path: Path, name: str) -> None:
    folder = fit(config(name, steps=60, validate_every=60))
    measured = evaluate(Run.open(folder), device="cpu", progress=False)
    (split,) = measured["splits"].values()
    assert measured["protocol"] == TOYS[name].protocol
    if "label" in name:
        by = {"label_picture": "pixels", "label_sound": "spectra"}[name]
        told = split["by"][by]["lines"]
        (own,) = (line for line in told if line != "trained")
        assert told["trained"]["accuracy"]["value"] > 0.9
        assert told[own]["accuracy"]["value"] > 2 * split["chance"]["accuracy"]
    page = Path(report(folder)).read_text()
    assert run_title(name) in page
    other = fit(config(name, out="other", steps=1, validate_every=1))
    evaluate(Run.open(other), device="cpu", progress=False)
    found = compare(gather([folder, other]))
    assert [outcome for outcome in found.outcomes if outcome.p is not None]
    assert found.splits == list(measured["splits"])


def test_the_sheet_of_a_system_that_makes_sounds_is_players_in_the_run_and_in_mlflow(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    values = config("label_sound", steps=2, validate_every=2, validate_pictures=3).model_dump(mode="json")
    values["tracking"] = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "experiment": "e"}
    folder = fit(build(RunConfig, values, "test"))
    page = Path(folder, "samples", "step-00000002.html").read_text()
    assert page.count("<audio controls") == 3
    assert "A sound made from a label, not a recording" in page
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=values["tracking"]["uri"])
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert [file.path for file in client.list_artifacts(run.info.run_id, "samples")] == ["samples/step-00000002.html"]
    assert "valid/loss/all/total" in run.data.metrics


def run_title(name: str) -> str:
    return name.replace("_", "-")


def test_a_system_without_a_protocol_says_so_and_has_a_page(config: Callable[..., RunConfig]) -> None:
    folder = fit(config("photo_sound", steps=1, validate_every=1))
    with pytest.raises(
        V2FError, match=r"no protocol judges this system; set System\.protocol to one of faces_of_voices"
    ):
        evaluate(Run.open(folder), device="cpu", progress=False)
    assert "A sound made from a photo, not a recording" in Path(report(folder)).read_text()


@pytest.mark.parametrize(
    ("name", "given", "kind"),
    [
        ("noise_picture", {"seed": 4}, "picture"),
        ("label_picture", {"label": "owl", "seed": 1}, "picture"),
        ("label_sound", {"label": "cat"}, "sound"),
        ("photo_sound", {"photo": "p.jpg"}, "sound"),
        ("voice_label", {"voice": "a.wav"}, "label"),
    ],
)
def test_a_page_has_the_widgets_that_fit(
    config: Callable[..., RunConfig], tmp_path: Path, name: str, given: dict[str, Any], kind: str
) -> None:
    files(tmp_path)
    maker = Maker(Run.open(fit(config(name, steps=1, validate_every=1))))
    assert set(given) == set(maker.asked)
    there = {each: str(tmp_path / value) if each in ("photo", "voice") else value for each, value in given.items()}
    (thing,) = maker.make(Given(**there)).things
    assert thing.kind == kind
    if kind == "label":
        assert {label for label, _ in thing.scores} == set(LABELS)
        assert sum(share for _, share in thing.scores) == pytest.approx(1)
    else:
        assert thing.uri.startswith({"picture": "data:image/png", "sound": "data:audio/wav"}[kind])


@pytest.mark.parametrize("name", ["tokens_tokens", "voice_embedding"])
def test_what_no_page_can_ask_for_or_show_is_one_line(config: Callable[..., RunConfig], name: str) -> None:
    run = Run.open(fit(config(name, steps=1, validate_every=1)))
    with pytest.raises(V2FError, match=r"which no page (offers|can show)"):
        Maker(run)


def test_nothing_asks_a_system_what_it_has() -> None:
    """What it can do is declared; see the head of ``v2f/system.py``."""
    root = Path(v2f.__file__).parent
    asked = [f"{word}({what}" for word in ("hasattr", "getattr") for what in ("system", "self.system", "transform")]
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in sorted(root.rglob("*.py"))
        for line in path.read_text().splitlines()
        if any(each in line for each in asked)
    ]
    assert found == []


@pytest.mark.slow
def test_two_ranks_train_the_same(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    recipes = []
    for name, port in zip(TOYS, free_ports(len(TOYS)), strict=True):
        recipes.append(f"{tmp_path / name}.yaml:{port}")
        (tmp_path / f"{name}.yaml").write_text(dump_yaml(config(name, out=f"{name}-two", precision="fp64")))
    tests = Path(__file__).resolve().parent.parent
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(tests / "workers" / "toys.py"), *recipes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in TOYS:
        fit(config(name, out=f"{name}-one", precision="fp64"))
        one, two = (
            checkpoint.load(checkpoint.latest(str(tmp_path / f"{name}-{ranks}" / "checkpoints")) or "")[0]
            for ranks in ("one", "two")
        )
        assert one.keys() == two.keys()
        for key, tensor in one.items():
            torch.testing.assert_close(two[key], tensor, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: name + text)
