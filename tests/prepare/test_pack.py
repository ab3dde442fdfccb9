"""`v2f shards pack` as a user meets it: repeatable, started again, refusing what it must not overwrite."""

import itertools
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from v2f.config import build
from v2f.data.manifest import Dataset, open_dataset
from v2f.errors import V2FError
from v2f.prepare import Item, LeftOut, Made
from v2f.prepare.pack import PackConfig, load_recipe, pack
from v2f.prepare.synthetic import Synthetic
from v2f.prepare.verify import verify

SMALL = {"train": {"people": 40, "clips": 2}, "test": {"people": 3}, "seen": {"people": 5}, "seconds": 0.3, "size": 32}


def recipe(out: Path, synthetic: dict[str, Any] | None = None, **kinds: Any) -> PackConfig:
    values = {
        "out": str(out),
        "source": "synthetic",
        "synthetic": {**SMALL, **(synthetic or {})},
        "workers": 1,
        **kinds,
    }
    return build(PackConfig, values, "the test")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return pack(recipe(tmp_path_factory.mktemp("pack") / "one", shard_mb=0.2))


def test_the_summary_says_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = pack(recipe(tmp_path / "d"))
    said = capsys.readouterr().out
    assert "88 samples of 43 people, 0.01 hours" in said
    assert "train: 80 samples of 40 people" in said
    assert "seen: 5 samples of 5 people" in said
    assert "left out: nothing" in said
    assert dataset.fingerprint in said
    assert (tmp_path / "d" / "left_out.jsonl").read_text() == ""
    assert not (tmp_path / "d" / "packing.json").exists()


def test_shards_have_about_the_size_asked_for_and_mix_people(packed: Dataset) -> None:
    train = packed.split("train")
    assert len(train.shards) > 3
    assert all(0.2e6 < shard.bytes < 0.35e6 for shard in train.shards[:-1])
    keys = [train.key(i) for i in range(train.samples)]
    neighbors = sum(a.split("-")[0] == b.split("-")[0] for a, b in itertools.pairwise(keys))
    assert neighbors < 8
    assert verify(packed.root) == []


def test_a_second_pack_elsewhere_and_in_parallel_is_the_same_data_set(packed: Dataset, tmp_path: Path) -> None:
    again = pack(recipe(tmp_path / "deeper" / "two", shard_mb=0.2, workers=2))
    assert again.fingerprint == packed.fingerprint
    assert again.manifest == packed.manifest
    other = pack(recipe(tmp_path / "three", {"world": {"seed": 1}}, shard_mb=0.2))
    assert other.fingerprint != packed.fingerprint


@pytest.fixture
def copy(packed: Dataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed.root, tmp_path / "copy"))


def test_the_same_recipe_does_nothing(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in copy.iterdir()}
    pack(recipe(copy, shard_mb=0.2, workers=2))
    assert {path.name: path.stat().st_mtime_ns for path in copy.iterdir()} == before
    assert "packed already from this recipe, nothing to do" in capsys.readouterr().out


def test_another_recipe_is_refused_and_the_difference_named(copy: Path) -> None:
    with pytest.raises(V2FError, match=r"another recipe is there \(synthetic\.seconds differ\); choose another `out`"):
        pack(recipe(copy, {"seconds": 0.4}, shard_mb=0.2))
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(V2FError, match=r"cannot be used .*; choose another `out`"):
        pack(recipe(copy, shard_mb=0.2))


def old_recipe(copy: Path, change: dict[str, Any]) -> None:
    """The data set as if a version had packed it whose recipes had other keys."""
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    group = manifest["provenance"]["recipe"]["synthetic"]
    for name, value in change.items():
        group.pop(name) if value is None else group.update({name: value})
    path.write_text(json.dumps(manifest))


def test_a_key_that_is_newer_than_a_data_set_makes_no_other_recipe_of_it(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old_recipe(copy, {"photo": None, "photos": None})
    pack(recipe(copy, shard_mb=0.2))
    assert "packed already from this recipe" in capsys.readouterr().out
    with pytest.raises(V2FError, match=r"another recipe is there \(synthetic\.photo, synthetic\.photos differ\)"):
        pack(recipe(copy, {"photo": "jpg", "photos": 2}, shard_mb=0.2))
    old_recipe(copy, {"hats": 3})
    with pytest.raises(V2FError, match=r"another recipe is there \(.*synthetic\.hats.* differ\)"):
        pack(recipe(copy, shard_mb=0.2))


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.pdf").write_text("years of work")
    with pytest.raises(V2FError, match=r"it is not empty \(thesis\.pdf\) and holds no data set"):
        pack(recipe(tmp_path))
    (tmp_path / "thesis.pdf").rename(tmp_path / "train-00000.tar")
    with pytest.raises(V2FError, match=r"it is not empty \(train-00000\.tar\)"):
        pack(recipe(tmp_path))


def test_a_pack_that_was_killed_is_no_data_set_and_starts_again(
    packed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after some shards; then other settings want fewer shards: none of the old ones may stay."""
    out, calls, make = tmp_path / "d", [], Synthetic.make

    def killed(self: Synthetic, items: Sequence[Item]) -> list[Made | LeftOut]:
        calls.append(items)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return make(self, items)

    monkeypatch.setattr(Synthetic, "make", killed)
    with pytest.raises(KeyboardInterrupt):
        pack(recipe(out, shard_mb=0.05))
    monkeypatch.undo()
    assert list(out.glob("train-*.tar"))
    with pytest.raises(V2FError, match="packing was not finished here; run the same"):
        open_dataset(str(out))
    assert pack(recipe(out, shard_mb=0.2)).fingerprint == packed.fingerprint
    assert verify(str(out)) == []


def test_what_is_left_out_is_said_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Person 0 loses all its training clips: then its held-out clip cannot be `seen`."""
    make = Synthetic.make

    def choosy(self: Synthetic, items: Sequence[Item]) -> list[Made | LeftOut]:
        return [
            LeftOut(made.item.name, made.item.identity, "too ugly", "really")
            if isinstance(made, Made) and made.item.identity == "p0000000" and made.item.split == "train"
            else made
            for made in make(self, items)
        ]

    monkeypatch.setattr(Synthetic, "make", choosy)
    dataset = pack(recipe(tmp_path / "d"))
    said = capsys.readouterr().out.splitlines()
    assert "left out: person 0, clip 0: too ugly (really)" in said
    assert "left out: person 0, clip 1: too ugly (really)" in said
    assert "left out: person 0, clip 2: nothing of this person is left in train" in said
    assert "  yield: 85 of 88 samples (96.6%), of 42 people" in said
    assert "    left out: 2 too ugly" in said
    assert "    people of whom nothing is left: 1" in said
    report = json.loads((tmp_path / "d" / "yield.json").read_text())
    assert report["people"]["p0000000"]["kept"] == 0
    assert report["people"]["p0000001"] == {"kept": 3, "left_out": {}}
    lines = [json.loads(line) for line in (tmp_path / "d" / "left_out.jsonl").read_text().splitlines()]
    assert (lines[0].pop("samples"), lines[0].pop("photos")) == (1, 0)
    assert lines[0] == {"name": "person 0, clip 0", "identity": "p0000000", "reason": "too ugly", "detail": "really"}
    assert dataset.split("seen").samples == 4
    assert dataset.manifest.splits["train"].people == 39


def test_nothing_left_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Synthetic, "make", lambda self, items: [LeftOut(i.name, i.identity, "no") for i in items])
    with pytest.raises(V2FError, match="all of the 88 inputs were left out"):
        pack(recipe(tmp_path / "d"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "pairs"}, "the group 'synthetic' does not belong here"),
        ({"synthetic": None}, "the group 'synthetic' is missing"),
        (
            {"source": "syntetic"},
            "source: input should be 'synthetic', 'pairs', 'voxceleb', 'avspeech', 'folder', 'shapes' or 'things'",
        ),
        ({"shard_gb": 1}, "unknown key 'shard_gb'; did you mean 'shard_mb'"),
        ({"synthetic": {**SMALL, "second": 1.0}}, "unknown key 'synthetic.second'; did you mean 'synthetic.seconds'"),
    ],
)
def test_a_wrong_recipe_is_one_clear_line(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(V2FError, match=message):
        build(PackConfig, {"out": str(tmp_path), "source": "synthetic", "synthetic": SMALL, **values}, "the test")


@pytest.mark.parametrize("name", ["synthetic", "quickstart", "pairs", "voxceleb", "voxceleb2", "avspeech"])
def test_the_recipes_that_ship_can_be_read(name: str) -> None:
    path = Path(__file__).parents[2] / "shards" / f"{name}.yaml"
    assert load_recipe(str(path), ["workers=3"]).workers == 3


PACKS = """
import os, sys
from v2f.prepare.processes import pool

with pool(2) as processes:
    print(*{processes.submit(os.getpid).result() for _ in range(20)}, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_packing_processes_outlive_no_parent(number: int) -> None:
    command = [sys.executable, "-c", PACKS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert workers
        parent.send_signal(number)
    assert psutil.wait_procs(workers, timeout=60)[1] == []
