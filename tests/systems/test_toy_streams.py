"""A system of two streams: it trains from two data sets, goes on bit for bit, and is the same on two ranks."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from systems.toy_streams import ToyStreams

from v2f.config import build, override
from v2f.data.manifest import open_dataset
from v2f.errors import V2FError
from v2f.evaluation.evaluate import trained_on
from v2f.runs import checkpoint
from v2f.runs.config import RunConfig, changes
from v2f.runs.run import Run
from v2f.systems import SYSTEMS
from v2f.training.slot_log import read_slots
from v2f.training.trainer import fit

TESTS = Path(__file__).resolve().parent.parent
Values = dict[str, Any]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A second data set: some of the people of the tiny shards and others, photos of its own."""
    from v2f.prepare.pack import load_recipe, pack

    out = str(tmp_path_factory.mktemp("faces") / "shards")
    people = ["train.people=30", "train.clips=1", "valid.people=6", "test.people=1", "seen.people=0", "seconds=0.1"]
    people += ["labels=[glasses,hair,age]"]  # which leaves out the same people as in the tiny shards
    recipe = str(TESTS.parent / "shards" / "quickstart.yaml")
    pack(load_recipe(recipe, [f"out={out}", "synthetic.size=32", *(f"synthetic.{p}" for p in people)]))
    return out


@pytest.fixture
def values(faces: str, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Values]:
    monkeypatch.setitem(SYSTEMS, "toy_streams", ToyStreams)

    def make(**train: Any) -> Values:
        streams = {"voice": {"path": tiny_shards, "batch": 8}, "face": {"path": faces, "batch": 4}}
        return {
            "name": "toy",
            "out": str(tmp_path / "run"),
            "seed": 3,
            "system": {"name": "toy_streams"},
            "data": {"streams": streams, "workers": 0, "window": 8, "partitions": 4},
            "train": {"steps": 6, "threads": 1, "log_every": 1, "validate_samples": 6, "sample_log": True} | train,
            "tracking": {"uri": None},
        }

    return make


def config(values: Values, *overrides: str) -> RunConfig:
    return build(RunConfig, override(values, overrides), "test")


def final(folder: str) -> tuple[dict[str, torch.Tensor], Values]:
    return checkpoint.load(checkpoint.latest(f"{folder}/checkpoints") or "")


def logged(folder: str) -> list[Values]:
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def test_a_run_of_two_streams_goes_on_bit_for_bit_with_other_workers(
    values: Callable[..., Values], faces: str, tiny_shards: str
) -> None:
    folder = fit(config(values(checkpoint_every=3, validate_every=3)))
    whole, state = final(folder)
    points = logged(folder)
    shutil.rmtree(checkpoint.latest(f"{folder}/checkpoints") or "")
    fit(config(values(checkpoint_every=3, validate_every=3), "data.workers=1"), resume="auto")
    again, _ = final(folder)
    assert whole.keys() == again.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())

    assert (state["slot"], state["config"]["data"]["batch"]) == (48, 8)
    assert state["quarantines"] == {"voice": [], "face": []}
    assert {line["samples"] for line in points if "loss/generator/total" in line.get("metrics", {})} == {
        *range(8, 49, 8)
    }
    (valid, *_) = [line["metrics"] for line in points if "valid/voices" in line.get("metrics", {})]
    assert (valid["valid/voices"], valid["valid/faces"]) == (6, 3)
    assert valid["valid/known"] == 3  # the worlds are one: the first people to validate have the same names in both
    for stream, batch, path in (("voice", 8, tiny_shards), ("face", 4, faces)):
        found = read_slots(folder, stream)
        assert [(step, slot) for step, slot, _ in found] == [(slot // batch, slot) for slot in range(6 * batch)]
        keys = [key for _, _, key in found]
        split = open_dataset(path).split("train")
        assert len(set(keys)) == min(len(keys), split.samples)
    run = Run.open(folder)
    assert run.info["data"] == f"{tiny_shards}, {faces}"
    data = open_dataset(faces)
    assert data.fingerprint in trained_on(run, data)
    assert changes(run.config, config(values(checkpoint_every=3), "data.streams.face.path=elsewhere")) == []
    with pytest.raises(V2FError, match=r"data\.streams\.face\.batch: 4 -> 8"):
        fit(config(values(), "data.streams.face.batch=8"), resume="auto")
    with pytest.raises(V2FError, match="the data's fingerprint is"):
        fit(config(values(), f"data.streams.face.path={tiny_shards}"), resume="auto")


def test_a_validation_sees_all_samples_of_the_first_stream(values: Callable[..., Values]) -> None:
    more = ["train.micro_batch=4", "train.validate_samples=5", "train.steps=1"]  # voices come as 4 and 1, faces as 2
    points = [line["metrics"] for line in logged(fit(config(values(), *more))) if line["kind"] == "validation"]
    assert [(point["valid/voices"], point["valid/faces"]) for point in points] == [(5, 2)]


def test_what_is_bad_in_one_stream_is_kept_under_its_name(
    values: Callable[..., Values], faces: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(faces, copy)
    split = open_dataset(str(copy)).split("train")
    with open(split.shard_path(7), "r+b") as file:
        file.seek(split.byte(7) + 600)
        file.write(b"damage")
    asked = [f"data.streams.face.path={copy}", "data.max_bad_fraction=0.1"]
    folder = fit(config(values(steps=8, checkpoint_every=4), *asked))  # 32 slots of 30 faces
    whole, state = final(folder)
    assert (state["quarantine"], state["quarantines"]) == ([], {"voice": [], "face": [7]})
    (entry,) = [json.loads(line) for line in Path(folder, "quarantine.jsonl").read_text().splitlines()]
    assert (entry["stream"], entry["number"]) == ("face", 7)
    shutil.rmtree(checkpoint.latest(f"{folder}/checkpoints") or "")
    fit(config(values(steps=8, checkpoint_every=4), *asked), resume="auto")
    assert all(torch.equal(whole[name], tensor) for name, tensor in final(folder)[0].items())
    strict = config(values(steps=8), asked[0], f"out={folder}-2")
    with pytest.raises(V2FError, match=r"1 of the 30 samples of train cannot be used, more than"):
        fit(strict)


def test_a_bad_batch_names_the_samples_of_both_streams(
    values: Callable[..., Values], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ToyStreams.loss
    monkeypatch.setattr(ToyStreams, "loss", lambda *a: {"total": real(*a)["total"] * float("nan")})
    with pytest.raises(V2FError, match="step 0, phase discriminator: the loss is not finite for 1 steps"):
        fit(config(values(max_skipped=1)))
    (found,) = json.loads((Path(values()["out"]) / "bad-batch-step-00000000.json").read_text())["ranks"]
    assert {stream: own["slot"] for stream, own in found.items()} == {"voice": [*range(8)], "face": [*range(4)]}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.streams=null", "data.path=HERE", "data.batch=8"],
            "asks for the streams voice, face; configure each of them and no other",
        ),
        (
            ["data.streams.photo={batch: 4, path: HERE}"],
            "data.streams: voice, face, photo: the system toy_streams asks",
        ),
        (["data.batch=4"], "data.batch: 4: samples are counted by voice, the first .* set data.batch=8"),
        (
            ["data.streams.face.batch=5"],
            r"data\.streams\.face: the batch of 5 is not a multiple of 2, the samples of a group",
        ),
        (["train.micro_batch=2"], "train.micro_batch: no 2 or fewer of a rank's 8 samples cut its 4 of other streams"),
        (["data.streams.face.path=null"], r"data\.streams\.face needs either path \(one data set\) or mix \(several\)"),
        (["data.streams.face.pth=x"], r"unknown key 'data\.streams\.face\.pth'; did you mean 'data\.streams\.face\.p"),
        (["data.streams={}"], "the key 'data.batch' is missing"),
    ],
)
def test_streams_that_do_not_fit_the_system_are_one_line(
    values: Callable[..., Values], tiny_shards: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(V2FError, match=message) as caught:
        fit(config(values(), *(each.replace("HERE", tiny_shards) for each in overrides)))
    assert "\n" not in str(caught.value)


def test_a_system_of_one_stream_refuses_several(values: Callable[..., Values], run_values: Callable[..., Values]):
    several = run_values() | {"data": values()["data"]}
    with pytest.raises(V2FError, match=r"data\.streams: voice, face: the system voice_styled_face reads one stream"):
        fit(config(several))


def test_streams_take_from_data_what_they_do_not_say(values: Callable[..., Values], tiny_shards: str) -> None:
    data = {"path": tiny_shards, "batch": 16, "split": "seen", "streams": {"voice": {}, "face": {"split": "train"}}}
    voice, face = config(values() | {"data": data}).data.by_stream().values()
    assert (voice.path, voice.batch, voice.split) == (tiny_shards, 16, "seen")
    assert (face.path, face.batch, face.split) == (tiny_shards, 16, "train")


@pytest.mark.slow
def test_two_ranks_and_accumulation_train_the_same(values: Callable[..., Values], tmp_path: Path) -> None:
    def recipe(name: str, **train: Any) -> Values:
        return values(precision="fp64", **train) | {"out": str(tmp_path / name)}

    (tmp_path / "two.yaml").write_text(yaml.safe_dump(recipe("two"), sort_keys=False))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(TESTS / "workers" / "toy.py"), str(tmp_path / "two.yaml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    fit(config(recipe("one")))
    fit(config(recipe("parts", micro_batch=4)))
    found = {name: final(str(tmp_path / name))[0] for name in ("one", "two", "parts")}
    for name in ("two", "parts"):
        for key, tensor in found["one"].items():
            torch.testing.assert_close(found[name][key], tensor, rtol=1e-9, atol=1e-10, msg=f"{name}: {key}")
    assert read_slots(str(tmp_path / "two"), "face") == read_slots(str(tmp_path / "one"), "face")
