"""What the trainer measures: spikes, goodput, which samples were used."""

import errno
import json
import math
import resource
from types import SimpleNamespace

import pytest
import torch

from v2f.engine import StepResult
from v2f.errors import V2FError
from v2f.storage import local as files
from v2f.training.window import Clock, Norms, SlotLog, Window, read_slots


def test_a_spike_is_measured_against_the_norms_before_it_and_a_resumed_run_knows_them():
    norms = Norms(6.0, {})
    for i in range(31):
        norms.add("g", 1.0 + 0.1 * (-1) ** i)
    assert norms.limit("g") is None  # too few
    norms.add("g", 1.1)
    limit = norms.limit("g")
    assert limit == pytest.approx(1.0 + 6 * 0.1, abs=0.05)
    assert Norms(6.0, json.loads(json.dumps(norms.past))).limit("g") == limit
    assert norms.limit("d") is None
    norms.add("g", math.nan)
    norms.add("g", math.inf)
    assert norms.limit("g") == limit
    for _ in range(128):  # another level is no spike for ever
        norms.add("g", 10.0)
    assert norms.limit("g") == pytest.approx(10.0)
    assert len(norms.past["g"]) == 128


def test_a_step_that_is_not_finite_takes_nothing_from_the_means_of_the_others():
    reader = SimpleNamespace(bytes_read=0, requests=0)
    window = Window()
    for loss, norm, skipped in [
        (1.0, 2.0, ""),
        (math.nan, math.nan, "loss"),
        (5.0, math.inf, "gradient"),
        (3.0, 4, ""),
    ]:
        window.add("g", StepResult({"total": torch.tensor(loss)}, norm, {"g": 0.1}, skipped, 0, 0.0))
    numbers = window.take(reader)
    assert (numbers["loss/g/total"], numbers["grad_norm/g"], numbers["skipped/g"]) == (2.0, 3.0, 0.5)
    window.add("g", StepResult({"total": torch.tensor(9.0)}, 9.0, {"g": 0.1}, "spike", 0, 0.0))
    assert window.take(reader)["loss/g/total"] == 9.0
    window.add("g", StepResult({"total": torch.tensor(math.nan)}, math.nan, {"g": 0.1}, "loss", 0, 0.0))
    numbers = window.take(reader)
    assert "loss/g/total" not in numbers
    assert numbers["skipped/g"] == 1.0


def test_without_a_sigma_nothing_is_a_spike():
    norms = Norms(None, {})
    for _ in range(200):
        norms.add("g", 1.0)
    assert norms.limit("g") is None
    assert norms.past == {}


def test_goodput_counts_steps_that_are_kept_over_all_starts(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("v2f.training.window.time.time", lambda: now[0])
    first = Clock(None)
    now[0] += 10
    first.step(6.0)
    assert first.numbers() == {"time/goodput": 0.6, "time/starts": 1.0}
    state = json.loads(json.dumps(first.state()))
    now[0] += 5
    first.step(5.0)  # after the save: lost
    now[0] += 85
    second = Clock(state)
    assert second.numbers() == {"time/goodput": 0.06, "time/starts": 2.0}
    now[0] += 20
    second.step(6.0)
    now[0] += 1
    second.step(1.0)
    assert second.numbers() == {"time/goodput": 13 / 121, "time/starts": 2.0, "time/restart_seconds": 110.0}


def test_starts_that_came_to_no_checkpoint_are_counted():
    state = Clock(None).state()
    assert Clock(state, 1).numbers()["time/starts"] == 2
    assert Clock(state, 5).numbers()["time/starts"] == 5
    assert Clock(Clock(state, 5).state(), 1).numbers()["time/starts"] == 6


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


def test_a_full_disk_under_the_log_is_said_once_and_the_log_tells_of_its_gap(tmp_path, capsys):
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
    assert "training goes on" in told
    write(4)
    log.close()
    assert capsys.readouterr().err == f"{log.path} is written again; steps 1 to 3 are not in it\n"
    told = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line.get("lost") for line in told] == [None, [1, 3], None]
    assert [step for step, _, _ in read_slots(str(tmp_path))] == [0, 0, 4, 4]


def test_a_log_that_is_never_written_says_what_is_missing(tmp_path, capsys, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files, "opened", full)
    log = SlotLog(tmp_path, "x", 0)
    for step in (7, 8):
        log.write(step, {"slot": _Slots([0]), "key": ["a"]})
    log.close()
    first, last = capsys.readouterr().err.splitlines()
    assert "the disk is full" in first
    assert last == f"{log.path}: steps 7 to 8 are not in it"


def test_a_log_in_whose_place_something_else_is_is_refused(tmp_path):
    (tmp_path / "slots").write_bytes(b"")
    with pytest.raises(V2FError, match=f"the file {tmp_path}/slots is in the way"):
        SlotLog(tmp_path, "x", 0)


class _Slots(list):
    def tolist(self) -> list[int]:
        return list(self)
