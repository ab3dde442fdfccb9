"""Checkpoints (promise 4): one format for any world size, committed by the last file, never a half one."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from thread_ranks import Thread, on_ranks

from v2f.errors import V2FError
from v2f.runs import checkpoint
from v2f.runs.config import TrainConfig
from v2f.runs.peers import check_shared
from v2f.runs.saver import Saver, deal, write_record
from v2f.storage import store

Tensors = dict[str, torch.Tensor]


def some_tensors() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    shapes = {"model/a.weight": (64, 32), "model/a.bias": (64,), "optim/p/a.weight/step": (), "ema/a.weight": (64, 32)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


class Ranks:
    """The savers of all ranks of a job, each on a thread of its own."""

    def __init__(self, root: str, world_size: int = 1, attempt: str = "a", keep: int = 2, **settings: Any) -> None:
        self.savers = [
            Saver(root, rank=rank, world_size=world_size, attempt=attempt, keep=keep, **settings)
            for rank in range(world_size)
        ]

    def start(self, step: int, only: list[int] | None = None, **state: Any) -> None:
        whole = some_tensors()
        shares = deal({name: t.nbytes for name, t in whole.items()}, len(self.savers))
        for rank in range(len(self.savers)) if only is None else only:
            mine = {name: whole[name] for name in shares[rank]}
            self.savers[rank].start(step, shares, mine, {"step": step, **state})

    def save(self, step: int, **state: Any) -> str:
        """The folder, committed."""
        self.start(step, **state)
        self.wait()
        assert self.failures() == []
        (folder,) = self.savers[0].take_committed()
        return folder

    def wait(self) -> None:
        for saver in self.savers:
            saver.wait()

    def failures(self) -> list[str]:
        return [failure for saver in self.savers for failure in saver.take_failures()]


def steps(root: str) -> list[int]:
    return [checkpoint.step_of(folder) for folder in checkpoint.committed(root)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_what_any_number_of_ranks_wrote_is_read_alike(tmp_path: Path, world_size: int) -> None:
    folder = Ranks(str(tmp_path), world_size).save(7, slot=70)
    assert folder == checkpoint.latest(str(tmp_path))
    tensors, state = checkpoint.load(folder)
    assert same(tensors, some_tensors())
    assert state == {"step": 7, "slot": 70}
    assert len(checkpoint.read_state(folder)["parts"]) == world_size


def test_a_checkpoint_in_an_object_store_is_like_one_on_a_disk(s3_root: str) -> None:
    ranks = Ranks(s3_root, 2)
    for step in (1, 2, 3):
        folder = ranks.save(step)
    assert folder == checkpoint.latest(s3_root)
    assert same(checkpoint.load(folder)[0], some_tensors())
    assert steps(s3_root) == [2, 3]
    assert len(store.tree(s3_root)) == 2 * (2 + 2 + 1)  # parts, receipts, the record


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 10**9), max_size=40), st.integers(1, 9))
def test_every_tensor_is_dealt_to_one_rank_and_the_shares_are_even(sizes: dict[str, int], parts: int) -> None:
    shares = deal(sizes, parts)
    assert len(shares) == parts
    assert sorted(name for share in shares for name in share) == sorted(sizes)
    filled = [sum(sizes[name] for name in share) for share in shares]
    assert max(filled) - min(filled) <= max(sizes.values(), default=0)


# ------------------------------------------------------------------------------------------- in the background


def test_training_goes_on_while_a_slow_store_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_again, asked, real = Event(), Event(), store.replacing

    def slow(path: str) -> Any:
        asked.set()
        assert open_again.wait(30)
        return real(path)

    monkeypatch.setattr(store, "replacing", slow)
    ranks, state = Ranks(str(tmp_path)), {"quarantine": [1]}
    ranks.start(1, **state)
    assert asked.wait(30)
    assert ranks.savers[0].busy
    assert checkpoint.latest(str(tmp_path)) is None
    state["quarantine"].append(2)  # what the run learns meanwhile is not in this checkpoint
    open_again.set()
    ranks.wait()
    assert not ranks.savers[0].busy
    assert checkpoint.read_state(checkpoint.latest(str(tmp_path)) or "")["state"]["quarantine"] == [1]


def test_a_save_that_fails_is_told_and_the_next_one_clears_it_away(tmp_path: Path) -> None:
    ranks = Ranks(str(tmp_path))
    first = ranks.save(1)
    (tmp_path / "step-00000002").write_text("a file where the folder should be")
    ranks.start(2)
    ranks.wait()
    (failure,) = ranks.failures()
    assert failure.startswith("step 2 is not saved: ")
    assert ranks.savers[0].take_committed() == []
    assert checkpoint.latest(str(tmp_path)) == first
    (tmp_path / "step-00000002").unlink()
    (tmp_path / "step-00000002").mkdir()
    ranks.save(3)
    assert store.names(str(tmp_path)) == ["step-00000001", "step-00000003"]


def test_what_has_to_be_there_before_the_commit_is_asked_for_by_rank_0_and_may_fail(tmp_path: Path) -> None:
    root, seen, (saver,) = str(tmp_path), [], Ranks(str(tmp_path)).savers
    whole = some_tensors()

    def refuse() -> None:
        raise V2FError("s3://lab/run: cannot write it")

    saver.start(1, [list(whole)], whole, {}, lambda: seen.append(checkpoint.latest(root)))
    saver.wait()
    assert (seen, steps(root)) == ([None], [1])
    saver.start(2, [list(whole)], whole, {}, refuse)
    saver.wait()
    assert saver.take_failures() == ["step 2 is not saved: s3://lab/run: cannot write it"]
    assert steps(root) == [1]


def test_rank_0_learns_at_once_that_another_rank_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = store.replacing

    def full(path: str) -> Any:
        if path.endswith(".safetensors") and "part-00001" in path:
            raise V2FError(f"{path}: cannot write it (the disk is full)")
        return real(path)

    monkeypatch.setattr(store, "replacing", full)
    ranks = Ranks(str(tmp_path), 2)
    ranks.start(1)
    ranks.wait()  # far less than a saver's patience
    here, there = ranks.failures()
    assert "rank 1 could not write its part" in here
    assert "the disk is full" in here
    assert "the disk is full" in there
    assert checkpoint.latest(str(tmp_path)) is None


def test_rank_0_learns_at_once_that_another_rank_cannot_write_its_receipt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = store.replacing, Event()

    def failing_once(path: str) -> Any:
        if path.endswith(".json") and "part-00001" in path and not refused.is_set():
            refused.set()
            raise V2FError(f"{path}: cannot write it (Input/output error)")
        return real(path)

    monkeypatch.setattr(store, "replacing", failing_once)
    ranks = Ranks(str(tmp_path), 2, patience_s=10.0)
    ranks.start(1)
    ranks.wait()
    here, there = ranks.failures()
    assert "rank 1 could not write its part" in here
    assert "Input/output error" in here
    assert "Input/output error" in there
    assert checkpoint.latest(str(tmp_path)) is None


def test_a_saver_gives_up_before_the_watchdog_ends_the_training() -> None:
    patience_s = inspect.signature(Saver).parameters["patience_s"].default
    assert patience_s < 60 * TrainConfig.model_fields["watchdog_minutes"].default


def test_a_rank_whose_part_never_comes_is_named(tmp_path: Path) -> None:
    ranks = Ranks(str(tmp_path), 3, patience_s=0.0)
    ranks.start(1, only=[0])
    ranks.wait()
    (told,) = ranks.failures()
    assert "no part came from rank 1, 2 for 0 s" in told
    assert checkpoint.latest(str(tmp_path)) is None


def test_a_run_that_ends_gives_up_the_save_that_waits_for_a_lost_rank(tmp_path: Path) -> None:
    ranks = Ranks(str(tmp_path), 2)
    ranks.start(1, only=[0])
    ranks.savers[0].close(patience_s=0.0)
    ranks.wait()
    assert "no part came from rank 1 until the run ended" in ranks.failures()[0]
    assert checkpoint.latest(str(tmp_path)) is None


# ------------------------------------------------------------------------------------------------------ killed


def test_a_part_of_a_killed_attempt_is_never_taken_for_one_of_this(tmp_path: Path) -> None:
    root = str(tmp_path)
    killed = Ranks(root, 2, attempt="a")
    killed.start(1, only=[1])  # rank 1 has written all that it had to
    killed.savers[1].wait()
    again = Ranks(root, 2, attempt="b", patience_s=0.0)
    again.start(1, only=[0])
    again.savers[0].wait()
    assert "no part came from rank 1" in again.failures()[0]
    assert checkpoint.latest(root) is None
    folder = Ranks(root, 3, attempt="c").save(1)
    assert len(store.names(folder)) == 2 * 3 + 1  # nothing of either is left


def test_a_step_that_is_saved_again_stays_whole_until_it_is_committed_again(tmp_path: Path) -> None:
    root = str(tmp_path)
    folder = Ranks(root, 2, attempt="a").save(1, n=1)
    lost = Ranks(root, 2, attempt="b", patience_s=0.0)
    lost.start(1, only=[0], n=2)
    lost.savers[0].wait()
    assert checkpoint.load(folder)[1]["n"] == 1
    assert Ranks(root, 1, attempt="c").save(1, n=3) == folder
    assert checkpoint.load(folder)[1]["n"] == 3
    assert len(store.names(folder)) == 3


def killed_saves(root: str) -> list[dict[str, Any]]:
    repository = Path(__file__).resolve().parents[2]
    command = [sys.executable, str(repository / "tests" / "workers" / "killed_saves.py"), root]
    environment = os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    killed: list[dict[str, Any]] = json.loads(done.stdout)
    return killed


@pytest.mark.slow
def test_a_kill_at_any_deed_leaves_the_previous_checkpoint_whole(tmp_path: Path) -> None:
    killed = killed_saves(str(tmp_path / "checkpoints"))
    assert len([each for each in killed if not each["cut"]]) >= 15
    assert len([each for each in killed if each["cut"]]) >= 10
    assert {each["committed"] for each in killed} == {False, True}  # also while the oldest was being removed


@pytest.mark.slow
def test_a_kill_at_any_request_leaves_the_previous_checkpoint_whole(s3_root: str) -> None:
    killed = killed_saves(s3_root)
    assert len(killed) >= 15
    assert {each["committed"] for each in killed} == {False, True}


# -------------------------------------------------------------------------------------------------------- kept


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    ranks = Ranks(str(tmp_path))
    for step in range(1, 6):
        ranks.save(step)
    assert steps(str(tmp_path)) == [4, 5]
    assert store.names(str(tmp_path)) == ["step-00000004", "step-00000005"]


def test_every_nth_and_the_best_are_kept_too(tmp_path: Path) -> None:
    root, ranks = str(tmp_path), Ranks(str(tmp_path), keep_every=4, best=("margin", "max"))
    ranks.save(1)  # not measured
    for step, margin in enumerate([0.1, 0.5, 0.2, float("nan"), 0.5, 0.4, 0.3, 0.05], start=2):
        ranks.save(step, metrics={"margin": margin})
    assert steps(root) == [3, 4, 8, 9]
    assert checkpoint.best(root, "margin", "max") == f"{root}/step-00000003"  # the older of equals
    assert checkpoint.best(root, "margin", "min") == f"{root}/step-00000009"
    assert checkpoint.best(root, "loss", "min") is None
    again = Ranks(root, attempt="b", keep_every=4, best=("margin", "min"))
    for step in (10, 11):
        again.save(step, metrics={"margin": 1.0})
    assert steps(root) == [4, 8, 9, 10, 11]


def test_a_number_that_an_earlier_step_measured_makes_none_the_best(tmp_path: Path) -> None:
    root, ranks = str(tmp_path), Ranks(str(tmp_path), best=("margin", "max"))
    ranks.save(1, metrics={"margin": 0.5}, measured_at=1)
    ranks.save(2, metrics={"margin": 0.9}, measured_at=1)
    ranks.save(3, metrics={}, measured_at=None)
    ranks.save(4, metrics={"margin": 0.9}, measured_at=3)
    assert steps(root) == [1, 3, 4]
    assert checkpoint.best(root, "margin", "max") == f"{root}/step-00000001"
    ranks.save(5, metrics={"margin": 0.7}, measured_at=5)
    ranks.save(6, metrics={"margin": 0.7}, measured_at=5)
    ranks.save(7, metrics={"margin": 0.7}, measured_at=5)
    assert steps(root) == [5, 6, 7]


def test_what_cannot_be_removed_does_not_undo_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def denied(path: str, **_: object) -> None:
        raise V2FError(f"{path}: cannot remove it, access is denied")

    ranks = Ranks(str(tmp_path))
    monkeypatch.setattr(store, "remove_folder", denied)
    for step in (1, 2, 3):
        ranks.save(step)
    assert steps(str(tmp_path)) == [1, 2, 3]
    assert f"kept what cannot be removed or read: {tmp_path}/step-00000001: cannot remove it" in caplog.text


def test_a_folder_in_an_old_checkpoint_keeps_neither_its_bytes_nor_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ranks = Ranks(str(tmp_path))
    inner = Path(ranks.save(1)) / "@eaDir"  # as a NAS makes them
    inner.mkdir()
    (inner / "index").touch()
    for step in (2, 3, 4, 5):
        ranks.save(step)
    assert store.names(str(tmp_path)) == ["step-00000001", "step-00000004", "step-00000005"]
    assert store.tree(f"{tmp_path}/step-00000001") == ["@eaDir/index"]
    assert steps(str(tmp_path)) == [4, 5]
    (told,) = caplog.messages  # once, not at every save
    assert f"{inner}: cannot remove it" in told


def test_a_folder_in_the_newest_checkpoint_is_left_and_the_rest_of_a_killed_attempt_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "step-00000001"
    (folder / "@eaDir").mkdir(parents=True)
    for name in ("@eaDir/index", "part-00000-killed-1.safetensors"):
        (folder / name).touch()
    Ranks(str(tmp_path)).save(1)
    assert store.names(str(folder)) == [
        "@eaDir",
        "checkpoint.json",
        "part-00000-a-1.safetensors",
        "part-00000-a-1.safetensors.json",
    ]
    assert (folder / "@eaDir" / "index").exists()
    assert caplog.messages == []


def test_a_file_with_a_checkpoint_s_name_stays_and_the_others_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "step-00000001").write_text("a note")
    ranks = Ranks(str(tmp_path))
    for step in (2, 3, 4):
        ranks.save(step)
    assert store.names(str(tmp_path)) == ["step-00000001", "step-00000003", "step-00000004"]
    assert (tmp_path / "step-00000001").read_text() == "a note"
    (told,) = caplog.messages
    assert f"{tmp_path}/step-00000001: cannot remove it, it is a file, not a folder" in told


def test_an_unreadable_record_stays_while_the_best_is_kept_and_the_others_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = str(tmp_path)
    ranks = Ranks(root, attempt="a", best=("margin", "max"))
    for step, margin in ((1, 0.1), (2, 0.9)):
        ranks.save(step, metrics={"margin": margin})
    spoil(f"{root}/step-00000001", "record")
    again = Ranks(root, attempt="b", best=("margin", "max"))  # which has read neither yet
    for step in (3, 4, 5):
        again.save(step, metrics={"margin": 0.2})
    assert steps(root) == [1, 2, 4, 5]
    (told,) = caplog.messages
    assert f"{root}/step-00000001/checkpoint.json: damaged (it is not a JSON record)" in told
    with pytest.raises(V2FError, match=r"step-00000001/checkpoint\.json: damaged"):  # who asks for the best is told
        checkpoint.best(root, "margin", "max")


def test_a_store_that_is_away_is_not_asked_for_every_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def away(path: str, **_: object) -> None:
        asked.append(path)
        raise store.UnreachableError(f"{path}: cannot remove it, 10 attempts in 45 s failed")

    for step in (1, 2, 3):
        (tmp_path / f"step-{step:08d}").mkdir()
    monkeypatch.setattr(store, "remove_folder", away)
    ranks = Ranks(str(tmp_path))
    ranks.save(4)
    assert asked == [f"{tmp_path}/step-00000001"] * 2  # before the save and after it
    assert len(caplog.messages) == 1


# ------------------------------------------------------------------------------------------------------ damage


def spoil(folder: str, how: str) -> None:
    (part,) = Path(folder).glob("part-*.safetensors")
    payload = bytearray(part.read_bytes())
    payload[-1] ^= 1
    if how == "flipped":
        part.write_bytes(payload)
    elif how == "cut":
        part.write_bytes(payload[:-1])
    elif how == "gone":
        part.unlink()
    else:
        Path(folder, checkpoint.COMMIT).write_text('{"format"')


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("flipped", r"part-00000-a-3\.safetensors: damaged \(its SHA-256 does not match\)"),
        ("cut", r"damaged \(it has \d+ bytes instead of \d+\)"),
        ("gone", r"damaged \(it is missing\)"),
        ("record", r"checkpoint\.json: damaged \(it is not a JSON record\)"),
    ],
)
def test_damage_is_found_and_the_older_ones_are_named(tmp_path: Path, how: str, why: str) -> None:
    ranks = Ranks(str(tmp_path), keep=3)
    for step in (1, 2, 3):
        folder = ranks.save(step)
    spoil(folder, how)
    way = r"; remove it to resume from step-00000002 \(older still: step-00000001\)$"
    with pytest.raises(V2FError, match=why + way):
        checkpoint.load(folder)
    assert same(checkpoint.load(checkpoint.committed(str(tmp_path))[1])[0], some_tensors())


def test_of_one_damaged_checkpoint_it_is_said_that_there_is_no_other(tmp_path: Path) -> None:
    folder = Ranks(str(tmp_path)).save(1)
    spoil(folder, "flipped")
    with pytest.raises(V2FError, match=r"there is no older checkpoint$"):
        checkpoint.load(folder)


def test_of_a_damaged_copy_under_another_name_no_older_one_is_named(tmp_path: Path) -> None:
    folder = Ranks(str(tmp_path)).save(1)
    spoil(folder, "flipped")
    copy = Path(folder).rename(tmp_path / "mybest")
    with pytest.raises(V2FError, match=r"mybest/part-00000-a-1\.safetensors: damaged .*; copy it again$"):
        checkpoint.load(str(copy))


def test_older_ones_are_named_from_inside_the_damaged_folder_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = Ranks(str(tmp_path))
    ranks.save(1)
    folder = ranks.save(2)
    spoil(folder, "flipped")
    for inside, name in ((folder, "."), (str(tmp_path), "step-00000002")):
        monkeypatch.chdir(inside)
        with pytest.raises(V2FError, match=r"; remove it to resume from step-00000001$"):
            checkpoint.load(name)


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Ranks(str(tmp_path)).save(1)
    record = checkpoint.read_state(folder)
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    write_record(folder, 1, record["parts"], {})
    monkeypatch.undo()
    with pytest.raises(V2FError, match="checkpoint format 99, this version of v2f reads 1"):
        checkpoint.load(folder)


STATE = {
    "slot": 160,
    "config": {"data": {"batch": 8}, "train": {"steps": 24}},
    "metrics": {"margin": float("nan"), "other": None, "third": 1e-7},
    "measured_at": 20,
    "norms": {"p": [0.1, 3.0]},
    "clock": {"first_start": 1.5, "starts": 1, "step_seconds": 2, "saved": 3.5},
    "quarantine": [3, 7],
    "run_id": None,
}


def as_before_checksums(folder: str) -> dict[str, Any]:
    """The record as an older version wrote it."""
    record = checkpoint.read_state(folder)
    del record["sha256"]
    return record


def test_no_flipped_bit_of_a_record_goes_unseen(tmp_path: Path) -> None:
    folder = Ranks(str(tmp_path)).save(20, slot=160, config=STATE["config"])
    path = Path(folder, checkpoint.COMMIT)
    content, whole = path.read_bytes(), json.dumps(checkpoint.read_state(folder), sort_keys=True)
    told, taken = set(), set()
    for bit in range(0, 8 * len(content), 3):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            taken.add(json.dumps(checkpoint.read_state(folder), sort_keys=True))
        except V2FError as error:
            told.add(str(error).partition(" (")[0])
    assert told == {f"{folder}/checkpoint.json: damaged"}
    assert taken <= {whole}  # what says the same in other bytes


def test_a_record_without_a_checksum_is_one_that_an_older_version_wrote(tmp_path: Path) -> None:
    folder = Ranks(str(tmp_path)).save(20, **STATE)
    record, path = as_before_checksums(folder), Path(folder, checkpoint.COMMIT)
    path.write_text(json.dumps(record))
    assert same(checkpoint.load(folder)[0], some_tensors())
    path.write_text(json.dumps(record | {"sha25v": "0"}))
    with pytest.raises(V2FError, match="its checksum is missing"):
        checkpoint.read_state(folder)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda r: r.update(step=24), "it says both step 24 and step 20"),
        (lambda r: (r.update(step=24), r["state"].update(step=24)), "step 24 of batches of 8 is not slot 160"),
        (lambda r: r["state"].update(slot=161), "step 20 of batches of 8 is not slot 161"),
        (lambda r: r["state"]["config"]["data"].update(batch=4), "step 20 of batches of 4 is not slot 160"),
        (lambda r: r.pop("state"), "'state': field required"),
        (lambda r: r.update(state=[]), "'state': "),
        (lambda r: r.update(parts=[]), "'parts': list should have at least 1 item"),
        (lambda r: r.update(parts=3), "'parts': "),
        (lambda r: r["parts"][0].pop("sha256"), r"'parts\.0\.sha256': field required"),
        (lambda r: r["parts"][0].update(name="../part"), r"'parts\.0\.name': "),
        (lambda r: r["parts"][0].update(bytes="12"), r"'parts\.0\.bytes': input should be a valid integer"),
        (lambda r: r.update(step="20"), "'step': input should be a valid integer"),
        (lambda r: r.update(step=True), "'step': input should be a valid integer"),
        (lambda r: r["state"].update(metrics=[1]), r"'state\.metrics': "),
        (lambda r: r["state"].update(norms={"p": ["x"]}), r"'state\.norms\.p\.0': "),
        (lambda r: r["state"].update(quarantine=None), r"'state\.quarantine': "),
        (lambda r: r["state"].update(config={"data": None}), r"'state\.config\.data': "),
    ],
)
@pytest.mark.parametrize("checksum", [False, True])
def test_a_record_that_cannot_be_one_is_refused_in_one_line(
    tmp_path: Path, change: Any, why: str, checksum: bool
) -> None:
    ranks = Ranks(str(tmp_path))
    ranks.save(12, slot=96)
    folder = ranks.save(20, **STATE)
    record = as_before_checksums(folder)
    change(record)
    if checksum:
        record["sha256"] = checkpoint.checksum_of(record)
    Path(folder, checkpoint.COMMIT).write_text(json.dumps(record))
    with pytest.raises(V2FError, match=rf"^[^\n]*step-00000020/checkpoint\.json: damaged \({why}[^\n]*$") as raised:
        checkpoint.load(folder)
    assert str(raised.value).endswith("; remove it to resume from step-00000012")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"null", b"[" * 100_000, b"3"])
def test_what_is_no_record_at_all_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    folder = Ranks(str(tmp_path)).save(1)
    Path(folder, checkpoint.COMMIT).write_bytes(content)
    with pytest.raises(
        V2FError, match=r"checkpoint\.json: damaged \(it is not a JSON record\); there is no older checkpoint$"
    ):
        checkpoint.read_state(folder)


def test_a_folder_is_named_after_the_step_of_its_record_or_by_a_name_of_its_own(tmp_path: Path) -> None:
    folder = Ranks(str(tmp_path)).save(20, **STATE)
    for name in ("mybest", "step-20"):
        shutil.copytree(folder, tmp_path / name)
        assert same(checkpoint.load(str(tmp_path / name))[0], some_tensors())
    shutil.copytree(folder, tmp_path / "step-00000024")
    newest = checkpoint.latest(str(tmp_path)) or ""
    with pytest.raises(V2FError, match=r"its record belongs to step 20; name the folder step-00000020, or remove it"):
        checkpoint.load(newest)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("model/a.bias"), "'model/a.bias' is missing"),
        (lambda t: t.update({"model/x": torch.zeros(1)}), "'model/x' is not part of this system"),
        (lambda t: t.update({"model/a.bias": torch.zeros(3)}), r"'model/a.bias' has shape \[3\], this system \[64\]"),
    ],
)
def test_filling_is_strict(change: Any, told: str) -> None:
    source = some_tensors()
    change(source)
    with pytest.raises(V2FError, match=told):
        checkpoint.fill(some_tensors(), source, "here")


# ----------------------------------------------------------------------------------------------- read together


@pytest.mark.parametrize("wrote", [1, 2, 3, 5])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_read_every_byte_of_a_checkpoint_once_and_each_gets_it_whole(
    tmp_path: Path, wrote: int, world_size: int
) -> None:
    folder = Ranks(str(tmp_path), wrote).save(7, slot=70)
    size = sum(Path(folder, part["name"]).stat().st_size for part in checkpoint.read_state(folder)["parts"])
    before = store.statistics().bytes_read
    found = on_ranks(world_size, lambda rank: checkpoint.load(folder, peers=rank))
    assert store.statistics().bytes_read - before == size + Path(folder, checkpoint.COMMIT).stat().st_size
    for tensors, state in found:
        assert same(tensors, some_tensors())
        assert {name: t.dtype for name, t in tensors.items()} == {name: t.dtype for name, t in some_tensors().items()}
        assert state == {"step": 7, "slot": 70}
    wanted = on_ranks(world_size, lambda rank: checkpoint.load(folder, lambda n: n.startswith("ema/"), rank)[0])
    assert [list(tensors) for tensors in wanted] == [["ema/a.weight"]] * world_size


@pytest.mark.parametrize("how", ["flipped", "gone", "record", "away", "unexpected"])
def test_what_fails_on_one_rank_fails_on_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    ranks = Ranks(str(tmp_path), 5, keep=2)
    ranks.save(1)
    folder = ranks.save(2)
    (part,) = Path(folder).glob("part-00003-*.safetensors")  # read in the second round of three, by rank 0
    name = part.name
    if how == "flipped":
        part.write_bytes(part.read_bytes()[:-1] + b"\0")
    elif how == "gone":
        part.unlink()
    elif how == "record":
        name = checkpoint.COMMIT
        Path(folder, name).write_text("{")
    else:
        real, error = store.read_bytes, store.UnreachableError if how == "away" else OSError
        monkeypatch.setattr(store, "read_bytes", lambda path: real(path) if name not in path else raised(error(path)))
    first, *others = on_ranks(3, lambda rank: checkpoint.load(folder, peers=rank))
    assert isinstance(first, OSError if how == "unexpected" else V2FError)
    assert name in str(first)
    told = {f"rank 0: {'unexpected OSError: ' if how == 'unexpected' else ''}{first}"}
    assert {str(other) for other in others} == told
    assert all(isinstance(other, V2FError) for other in others)
    assert {other.retryable for other in others} == {how in ("away", "unexpected")}
    if how in ("flipped", "gone", "record"):
        assert str(first).endswith("; remove it to resume from step-00000001")


def raised(error: Exception) -> bytes:
    raise error


# ---------------------------------------------------------------------------------------------- a shared folder


def look(roots: list[str], patience_s: float) -> list[str | None]:
    """What ``check_shared`` tells each rank, each with its own idea of the folder."""

    def shared(rank: Thread) -> None:
        check_shared(roots[rank.rank], rank=rank.rank, gather=rank.gather, patience_s=patience_s)

    return [told if told is None else str(told) for told in on_ranks(len(roots), shared)]


def test_a_folder_that_all_ranks_share_is_taken_and_left_clean(tmp_path: Path) -> None:
    (tmp_path / ".shared-dead-0").touch()  # a start that was killed here
    assert look([str(tmp_path)] * 3, 30.0) == [None] * 3
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_ones_own_is_refused_on_all_ranks(tmp_path: Path) -> None:
    told = look([f"{tmp_path}/one", f"{tmp_path}/one", f"{tmp_path}/two"], 0.0)
    assert len({text and text.split(": ", 1)[1] for text in told}) == 1
    assert "the ranks do not share one folder: rank 0 on" in str(told[0])
    assert "does not see what rank 2 on" in str(told[0])
    assert "set out= to a shared folder or an s3:// prefix" in str(told[0])
    assert list(tmp_path.glob("*/*")) == []


def test_a_rank_that_cannot_write_is_named_on_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = look([f"{tmp_path}/one", f"{tmp_path}/file"], 0.0)
    assert told[0] == told[1]
    assert "rank 1 cannot write to the run's folder" in str(told[0])
