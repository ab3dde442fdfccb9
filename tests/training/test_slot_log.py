"""The log of slots: which samples were used, over all starts, and what a full disk leaves out."""

import errno
import json
import resource

import pytest

from v2f.errors import V2FError
from v2f.storage import local as files
from v2f.training.slot_log import SlotLog, read_slots


def test_the_slots_that_count_are_those_of_the_last_start_that_made_a_step(tmp_path):
    def start(attempt: str, first: int, steps: int, ranks: int) -> None:
        with (tmp_path / "starts.jsonl").open("a") as file:
            file.write(json.dumps({"attempt": attempt, "step": first}) + "\n")
        for rank in range(ranks):
            log, share = SlotLog(tmp_path, attempt, rank), 4 // ranks
            for step in range(first, first + steps):
                slots = [4 * step + rank * share + i for i in range(share)]
                log.write(step, {"slot": _Slots(slots), "key": [f"{attempt}{slot}" for slot in slots]})

    start("a", 0, 5, 2)
    start("b", 2, 1, 4)
    start("c", 2, 4, 1)
    with next((tmp_path / "slots").glob("c-*")).open("a") as file:
        file.write('{"step": 6, "slot": [24')  # a kill cut it
    found = read_slots(str(tmp_path))
    assert [(step, slot) for step, slot, _ in found] == [(slot // 4, slot) for slot in range(24)]
    assert [key[0] for _, _, key in found] == ["a"] * 8 + ["c"] * 16


def test_a_full_disk_is_reported_once_and_the_log_records_its_gap(tmp_path, capsys):
    def write(step: int) -> None:
        log.write(step, {"slot": _Slots([2 * step, 2 * step + 1]), "key": ["a", "b"]})

    (tmp_path / "starts.jsonl").write_text(json.dumps({"attempt": "x", "step": 0}) + "\n")
    log = SlotLog(tmp_path, "x", 0)
    write(0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 9, before[1]))
    try:
        for step in (1, 2, 3):
            write(step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"{log.path}: cannot write it, ")
    assert "training continues, but its steps are missing from this log" in told
    write(4)
    log.close()
    assert capsys.readouterr().err == f"{log.path}: writing again; steps 1 to 3 are missing from it\n"
    told = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line.get("lost") for line in told] == [None, [1, 3], None]
    assert [step for step, _, _ in read_slots(str(tmp_path))] == [0, 0, 4, 4]


def test_a_log_that_is_never_written_reports_what_is_missing(tmp_path, capsys, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files, "opened", full)
    log = SlotLog(tmp_path, "x", 0)
    for step in (7, 8):
        log.write(step, {"slot": _Slots([0]), "key": ["a"]})
    log.close()
    first, last = capsys.readouterr().err.splitlines()
    assert "the disk is full" in first
    assert last == f"{log.path}: steps 7 to 8 are missing from it"


def test_a_log_whose_folder_is_a_file_is_refused(tmp_path):
    (tmp_path / "slots").write_bytes(b"")
    with pytest.raises(V2FError, match=f"the file {tmp_path}/slots is in the way"):
        SlotLog(tmp_path, "x", 0)


class _Slots(list):
    def tolist(self) -> list[int]:
        return list(self)
