"""SIGUSR2 profiles the next steps, reports where the profile is, and never stops a training run."""

import gzip
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from v2f.training import profiling
from v2f.training.profiling import STEPS, Profiler


@pytest.fixture
def profiler(tmp_path) -> Iterator[Profiler]:
    made = Profiler(str(tmp_path), rank=3)
    made.install()
    yield made
    made.close()


def train(profiler: Profiler, steps: range) -> None:
    weight = torch.ones(8, 8, requires_grad=True)
    for n in steps:
        (weight @ weight).sum().backward()
        profiler.step(n)


def marks(trace: Path) -> list[str]:
    with gzip.open(trace, "rt") as file:
        events = json.load(file)["traceEvents"]
    assert any("mm" in event["name"] for event in events), "the trace holds no operation of the step"
    return sorted(event["name"] for event in events if event.get("cat") == "user_annotation")


def test_a_signal_profiles_the_steps_that_follow_and_reports_where(profiler, tmp_path, capsys):
    train(profiler, range(1, 4))
    assert not (tmp_path / "profiles").exists()
    os.kill(os.getpid(), signal.SIGUSR2)
    train(profiler, range(4, 12))
    stem = tmp_path / "profiles" / "step-00000005-rank-0003"
    assert marks(Path(f"{stem}.json.gz")) == ["step 5", "step 6", "step 7"]
    assert "aten::mm" in stem.with_suffix(".txt").read_text()
    assert sorted(path.name for path in stem.parent.iterdir()) == [f"{stem.name}.json.gz", f"{stem.name}.txt"]
    assert f"step 7: profiled {STEPS} steps of rank 3: {stem}.json.gz" in capsys.readouterr().err


def test_it_can_be_requested_again_and_a_signal_during_a_profile_requests_nothing_new(profiler, tmp_path):
    os.kill(os.getpid(), signal.SIGUSR2)
    train(profiler, range(1, 3))
    os.kill(os.getpid(), signal.SIGUSR2)
    train(profiler, range(3, 10))
    assert len(list((tmp_path / "profiles").glob("*.json.gz"))) == 1
    os.kill(os.getpid(), signal.SIGUSR2)
    train(profiler, range(10, 15))
    found = sorted(path.name for path in (tmp_path / "profiles").glob("*.json.gz"))
    assert found == ["step-00000002-rank-0003.json.gz", "step-00000011-rank-0003.json.gz"]


def test_a_profile_that_cannot_be_written_is_reported_once_and_training_continues(profiler, tmp_path, caplog):
    (tmp_path / "profiles").write_text("a file where the folder should be")
    for start in (1, 10):
        os.kill(os.getpid(), signal.SIGUSR2)
        train(profiler, range(start, start + 9))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["profile"]
    (tmp_path / "profiles").unlink()
    os.kill(os.getpid(), signal.SIGUSR2)
    train(profiler, range(20, 29))  # the next one is written as soon as the disk has room again
    assert len(list((tmp_path / "profiles").glob("*.json.gz"))) == 1


def test_a_profiler_that_does_not_start_does_not_stop_the_training(profiler, monkeypatch, caplog):
    def taken(**_: object) -> None:
        raise RuntimeError("another profiler is running")

    monkeypatch.setattr(profiling, "profile", taken)
    os.kill(os.getpid(), signal.SIGUSR2)
    train(profiler, range(1, 9))
    assert [r.getMessage() for r in caplog.records] == [
        "profile: step 1: RuntimeError: another profiler is running; training continues"
    ]


def test_closing_drops_a_profile_in_progress_and_restores_the_handler(tmp_path):
    before = signal.getsignal(signal.SIGUSR2)
    profiler = Profiler(str(tmp_path), rank=0)
    profiler.install()
    os.kill(os.getpid(), signal.SIGUSR2)
    train(profiler, range(1, 3))
    profiler.close()
    assert signal.getsignal(signal.SIGUSR2) == before
    assert not (tmp_path / "profiles").exists()
    with torch.profiler.profile(acc_events=True):  # nothing holds the profiler any more
        pass
