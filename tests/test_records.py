"""Every file that the program reads back, damaged in every way: one line that names it, or the rest is read."""

import contextlib
import dataclasses
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from v2f.config import build, dump_yaml
from v2f.data.encoding import encode
from v2f.data.manifest import open_dataset
from v2f.data.shards import write_manifest, write_shard
from v2f.errors import V2FError, unexpected
from v2f.evaluation.differences import facts_of
from v2f.evaluation.subjects import Subject
from v2f.prepare import parts, verify
from v2f.prepare.parts import Packing, Part, PartRecord, ShardRecord
from v2f.runs import checkpoint, inspect
from v2f.runs.config import RunConfig
from v2f.runs.folder import RunFolder
from v2f.runs.run import Run, config_of
from v2f.runs.saver import Saver
from v2f.storage import store
from v2f.storage.lease import Lease
from v2f.tracking.delivery import deliver
from v2f.tracking.state import read_state
from v2f.tracking.tracker import Tracker
from v2f.training import quarantine
from v2f.training.slot_log import read_slots
from v2f.web import curves, dataset

CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "binary": lambda content: random.Random(0).randbytes(300),
    "not UTF-8": lambda content: content[:12] + b"\xff\xfe\x80" + content[15:],
    "a list": lambda content: b"[]\n",
    "a mapping": lambda content: b"{}\n",
    "a number": lambda content: b"17\n",
    "null": lambda content: b"null\n",
    "too deep": lambda content: b"[" * 100_000 + b"\n",
}
VALUES: list[Any] = [None, 17, "x", [17], {"x": 17}]


def damages(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The content damaged as a whole; and, of a JSON, with each of its values, three levels deep, of another kind."""
    for name, change in CONTENTS.items():
        yield name, change(content)
    try:
        first, *others = content.splitlines() if content.startswith(b'{"') else [content]
        value = json.loads(first)
    except ValueError:
        return
    for path in _paths(value, 3):
        for other in (*VALUES, "gone"):
            changed = json.loads(first)
            holder = changed
            for part in path[:-1]:
                holder = holder[part]
            if other == "gone":
                del holder[path[-1]]
            elif type(other) is type(holder[path[-1]]) and other != 17:
                continue
            else:
                holder[path[-1]] = other
            yield f"{path}: {other!r}", b"\n".join([json.dumps(changed).encode(), *others]) + b"\n"


def _paths(value: Any, depth: int) -> Iterator[tuple[Any, ...]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for name, part in parts:
        yield (name,)
        if depth > 1:
            yield from ((name, *rest) for rest in _paths(part, depth - 1))


def check(path: Path, *readers: Callable[[], object], names: bool = True) -> None:
    """Each reader gets along with each damage, or raises one line, which names the file."""
    sound = path.read_bytes()
    for reader in readers:
        reader()
    wrong = []
    for what, content in damages(sound):
        path.write_bytes(content)
        for reader in readers:
            try:
                reader()
            except V2FError as error:
                if "\n" in str(error) or (names and not any(part in str(error) for part in path.parts[-2:])):
                    wrong.append(f"{what}: {error}")
            except Exception as error:
                wrong.append(f"{what}: {unexpected(error)}")
    path.write_bytes(sound)
    assert wrong == []


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("data") / "shards", np.random.default_rng(0)
    said = {"identity": "ada", "split": "train", "source": "test"}
    photo_HWC = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    members = encode("s0", rng.uniform(-1, 1, 400), 16000, [photo_HWC], **said)
    rows = write_shard(str(root), "train-00000.tar", "train", [("s0", "ada", members)])
    write_manifest(str(root), [rows], {"recipe": {"source": "test"}})
    report = {"kept": {"samples": 1}, "left_out": {"reasons": {"x": 1}}, "rejected_photos": {"y": 2}}
    (root / "yield.json").write_text(json.dumps(report))
    (root / "left_out.jsonl").write_text(json.dumps({"name": "n", "identity": "bob", "reason": "r"}) + "\n")
    return root


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as training and ``v2f eval`` leave it, with a checkpoint of one tensor."""
    from systems.small import SMALL

    folder = tmp_path_factory.mktemp("runs") / "run"
    values = {"name": "tiny", "seed": 1, "system": SMALL["face_gan"], "tracking": {"uri": None}}
    values |= {"data": {"path": str(shards), "batch": 8}, "train": {"steps": 4}}
    config = build(RunConfig, values, "test")
    store.write_bytes(str(folder / "config.yaml"), dump_yaml(config).encode())
    state = {"step": 4, "slot": 32, "fingerprint": "f", "order": "o", "quarantine": [1], "weights": {"identity": None}}
    state |= {"config": {"name": "tiny"}, "run_id": None, "versions": {"torch": "2"}, "measured_at": 4}
    state |= {"metrics": {"margin": 0.5}, "precision": "fp32", "norms": {"g": [1.0]}}
    state["clock"] = {"first_start": 1.0, "starts": 1, "step_seconds": 1.0, "saved": 2.0}
    tensors = {"model/a": torch.zeros(2)}
    with Saver(str(folder / "checkpoints"), rank=0, world_size=1, attempt="x", keep=2) as saver:
        saver.start(4, [list(tensors)], tensors, state)
        saver.wait()
    assert saver.take_failures() == []
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    split = {"people": 2, "clips": 2, "gallery": 2, "chance": {"R@10": 0.5}, "verdict": None, "notes": ["n"]}
    told = {"lines": {"voice": {"R@10": interval, "picture": {"nearest": 1.0}}}, "meters": {"margin": 0.1}}
    split |= {"by": {"referee": told, "judge": told}, "left_out": {}}
    evaluated = {"step": 4, "data": {"path": "d", "fingerprint": "f"}, "splits": {"test": split}, "weights": {}}
    info = {"name": "tiny", "fingerprint": "f", "weights": {}, "versions": {"torch": "2"}, "world_size": 1}
    mark = {"points": {"bytes": 0, "crc": 0}}
    state = {"id": "a", "marks": mark, "run_id": None, "uri": "file:///nowhere", "experiment": "e", "name": "n"}
    start = {"attempt": "x", "step": 0, "time": 1.0, "world_size": 1, "strategy": "ddp", "changed": []}
    point = {"kind": "training", "step": 1, "samples": 8, "time": 1.0, "metrics": {"loss/g/total": 1.0}}
    entry = {"number": 1, "shard": "s", "key": "k", "byte": 0, "reason": "r", "slot": 3}
    for name, lines in {
        "eval.json": [evaluated],
        "run.json": [info],
        "tracking.json": [state | {"parameters": {}, "tags": {}, "status": None}],
        "starts.jsonl": [start, start],
        "metrics.jsonl": [point, point | {"step": 2}],
        "quarantine.jsonl": [entry],
        "slots/x-rank-00000.jsonl": [{"step": 0, "slot": [0], "key": ["k"]}, {"step": 2, "slot": [], "key": []}],
    }.items():
        store.write_bytes(str(folder / name), "".join(json.dumps(line) + "\n" for line in lines).encode())
    return folder


def test_the_record_of_a_checkpoint(run: Path) -> None:
    folder = str(run / "checkpoints" / "step-00000004")
    check(
        run / "checkpoints" / "step-00000004" / "checkpoint.json",
        lambda: checkpoint.load(folder),
        lambda: inspect.verify(folder),
        lambda: inspect.show(str(run)),
    )
    with pytest.raises(V2FError, match=r"checkpoint.json: damaged \('parts': .*; there is no older checkpoint"):
        _changed(Path(folder) / "checkpoint.json", {"parts": []}, lambda: checkpoint.read_state(folder))
    with pytest.raises(V2FError, match=r"checkpoint.json: damaged \('state': "):
        _changed(Path(folder) / "checkpoint.json", {"state": None}, lambda: config_of(folder))


def _changed(path: Path, change: dict[str, Any], read: Callable[[], object]) -> None:
    sound = path.read_bytes()
    record = json.loads(sound) | change
    path.write_text(json.dumps(record | {"sha256": checkpoint.checksum_of(record)}))
    try:
        read()
    finally:
        path.write_bytes(sound)


def test_what_a_run_says_of_itself(run: Path) -> None:
    def differences() -> None:
        facts_of(Subject("A", Run(str(run))))

    for name in ("run.json", "eval.json", "starts.jsonl"):
        check(run / name, differences)
    check(run / "config.yaml", lambda: Run(str(run)).config)


def test_what_grows_while_a_run_goes_on(run: Path, tmp_path: Path) -> None:
    def track() -> None:
        with Tracker(str(run), uri=None, experiment="e", name="n", parameters={}, tags={}, run_id=None) as tracker:
            tracker.log(0, 0, {"x": 1.0})

    sound = (run / "metrics.jsonl").read_bytes()
    check(run / "metrics.jsonl", track, lambda: curves.read_curves(str(run / "metrics.jsonl")))
    (run / "metrics.jsonl").write_bytes(sound)
    check(run / "quarantine.jsonl", lambda: quarantine.roll_back_list(run, {"": [1]}))
    for name in ("starts.jsonl", "slots/x-rank-00000.jsonl"):
        check(run / name, lambda: read_slots(str(run)))
    check(run / "tracking.json", lambda: read_state(str(run)))
    (tmp_path / "written-by").write_bytes(b"\xff\xfe")
    folder = RunFolder("memory://records/run")
    folder.local, folder.remote = tmp_path, True
    folder.fetch("now")


def test_a_tracking_state_that_is_damaged_counts_as_none(run: Path, tmp_path: Path) -> None:
    state = json.loads((run / "tracking.json").read_text())
    for change in ({"marks": {"points": {"bytes": "x", "crc": 0}}}, {"run_id": 5}, {"datasets": [{"name": "n"}]}):
        (tmp_path / "tracking.json").write_text(json.dumps(state | change))
        assert read_state(str(tmp_path)) == {}
        with pytest.raises(V2FError, match=r"tracking\.json is missing or damaged"):
            deliver(str(tmp_path))


def test_what_lies_beside_the_shards(shards: Path, tmp_path: Path) -> None:
    root = tmp_path / "shards"
    shutil.copytree(shards, root)
    for name in ("manifest.json", "index.npz"):
        check(root / name, lambda: open_dataset(str(root)))
    sound = open_dataset(str(root))
    check(root / "yield.json", lambda: dataset._left_out(sound))
    for name in ("yield.json", "left_out.jsonl"):
        check(root / name, lambda: list(verify._problems(sound, ["bob"], _Bar())), names=False)


class _Bar:
    def update(self, _: int) -> None:
        pass


def test_what_a_pack_goes_on_from(shards: Path, tmp_path: Path) -> None:
    out, part = str(tmp_path), Part(0, 1)
    rows = write_shard(out, "train-00000.tar", "train", [("s0", "ada", {"json": b"{}"})])
    with Lease.take(out, "packing", lasting=False) as owner:
        parts.write_record(owner, out, "packing.json", Packing(parts=1, plan="p", provenance={}))
        parts.write_record(owner, out, "train-00000.rows.json", ShardRecord.of(rows, [], 1, []))
        parts.write_record(owner, out, part.record, PartRecord(shards=["train-00000.tar"], left_out=[]))
    check(tmp_path / "packing.json", lambda: parts.read_packing(out))
    check(tmp_path / "train-00000.rows.json", lambda: parts.recover(out, part))
    check(tmp_path / part.record, lambda: parts.read_part_record(out, part))


def test_the_header_of_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = {"__metadata__": {"v2f": "{}"}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    (tmp_path / "config.yaml").write_text("name: x\n")
    exported = Run(str(tmp_path))
    for _, text in damages(json.dumps(header).encode()):
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
        for read in (lambda: checkpoint.read_header(str(path)), lambda: dataclasses.replace(exported).info):
            with contextlib.suppress(V2FError):
                read()
    path.write_bytes(bytes(8))
    with pytest.raises(V2FError, match=r"model\.safetensors: not a safetensors file; it was cut or damaged"):
        checkpoint.read_header(str(path))
