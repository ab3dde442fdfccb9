"""A run belongs to one start at a time, and a commit of a start that was superseded is never taken up."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interleaving import FakeS3, Interleaved, Time, on_a_disk

from v2f import checkpoint, lease, train
from v2f.config import build
from v2f.errors import V2FError
from v2f.fencing import Fences, inherited, taken_up
from v2f.lease import HeldError, Lease, LostError
from v2f.run import RunConfig
from v2f.stopping import BROKEN, DONE, STOPPED
from v2f.system import System
from v2f.trainer import fit


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become hundredths."""
    for name in ("EXPIRY_S", "RENEW_S", "_LOOK_S"):
        monkeypatch.setattr(lease, name, getattr(lease, name) / 100)


def holder(folder: str, **more: Any) -> Lease:
    return Lease.take(f"{folder}/checkpoints", "a training", note=inherited, **more)


class Lapsed(lease.Clock):
    """Everything that is looked at has not changed for a minute."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        self.seconds += 60
        return self.seconds

    def pause(self, seconds: float) -> None:
        pass


def steps(folder: str) -> list[int]:
    return [checkpoint.step_of(each) for each in checkpoint.committed(f"{folder}/checkpoints")]


def as_a_command(values: dict[str, Any], folder: Path, *more: str) -> int | None:
    """What the training leaves with."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--debug", action="store_true")
    train.arguments(parser)
    return train.run(train.parsed(parser, ["--config", str(folder / "recipe.yaml"), *more]))


def test_a_second_start_says_who_has_the_run_waits_and_leaves_with_75(run_values, tmp_path, hurried, capsys):
    values = run_values(steps=1)
    with holder(values["out"]):
        assert as_a_command(values, tmp_path, "--resume", "auto") == STOPPED
        said = capsys.readouterr().err
        assert f"a training (process {os.getpid()} on " in said
        assert "waiting up to" in said
        assert not Path(values["out"], "config.yaml").exists()
    assert as_a_command(values, tmp_path, "--resume", "auto") == DONE
    assert steps(values["out"]) == [1]


def test_a_start_takes_over_from_one_that_left_no_word(run_values, hurried):
    values = run_values(steps=1)
    gone = holder(values["out"], renewing=False)
    folder = fit(build(RunConfig, values, "test"), resume="auto")
    assert steps(folder) == [1]
    with pytest.raises(LostError, match=r"a training .* has taken it over"):
        gone.check()


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], Any]) -> None:
    """Call ``act`` once in the midst of a training, before its step ``step`` (from 0)."""
    from v2f.systems.voice_styled_face import VoiceStyledFace

    real = VoiceStyledFace.loss

    left = [act]

    def loss(self: System, phase: str, batch: Any, number: int) -> Any:
        if number == step and left:
            left.pop()()
        return real(self, phase, batch, number)

    monkeypatch.setattr(VoiceStyledFace, "loss", loss)


def test_a_start_that_was_superseded_commits_nothing_more_and_ends(run_values, tmp_path, monkeypatch, capsys):
    values = run_values(steps=6, checkpoint_every=2)
    folder = values["out"]
    others: list[Lease] = []

    def supersede() -> None:
        other = holder(folder, clock=Lapsed(), renewing=False)
        other.keep(taken_up(other.note, checkpoint.step_of(checkpoint.latest(f"{folder}/checkpoints") or "-0")))
        others.append(other)

    at_step(monkeypatch, 3, supersede)
    assert as_a_command(values, tmp_path) == STOPPED
    assert "has taken it over" in capsys.readouterr().err
    assert steps(folder) == [2]
    others[0].end()
    assert as_a_command(values, tmp_path, "--resume", "auto") == DONE
    assert steps(folder) == [4, 6]
    points = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    losses = [point["step"] for point in points if any(name.startswith("loss/") for name in point.get("metrics", {}))]
    assert sorted(losses) == sorted(set(losses)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_a_run_whose_folder_is_gone_ends_as_broken_and_says_so(run_values, tmp_path, monkeypatch, capsys, how):
    values = run_values(steps=4, checkpoint_every=100)
    folder = Path(values["out"])
    lose = {"removed": lambda: shutil.rmtree(folder), "renamed": lambda: folder.rename(tmp_path / "elsewhere")}[how]
    at_step(monkeypatch, 3, lose)
    assert as_a_command(values, tmp_path) == BROKEN
    assert f"{folder}/checkpoints: it was removed or renamed while a training" in capsys.readouterr().err


def test_a_refused_start_leaves_the_run_to_the_next(run_values):
    values = run_values(steps=1)
    folder = fit(build(RunConfig, values, "test"))
    with pytest.raises(V2FError, match="a run is there already"):
        fit(build(RunConfig, values, "test"))
    began = time.monotonic()
    assert fit(build(RunConfig, values, "test"), resume="auto") == folder
    assert time.monotonic() - began < lease.EXPIRY_S


# ------------------------------------------------------------------------------------------ which commits count


def test_what_counts_is_told_by_the_highest_term():
    first = lease.Term(1, "a", "", None, "", "", 0, 0, note=taken_up(inherited(None), 0))
    second = lease.Term(2, "b", "", None, "", "", 0, 0, note=taken_up(inherited(first), 20))
    crashed = lease.Term(3, "c", "", None, "", "", 0, 0, note=inherited(second))  # before it had taken anything up
    fourth = lease.Term(4, "d", "", None, "", "", 0, 0, note=taken_up(inherited(crashed), 50))
    fences = Fences.of(fourth)
    assert [step for step in (10, 20, 30) if fences.counts(step, (1, "a"))] == [10, 20]
    assert [step for step in (30, 50, 60) if fences.counts(step, (2, "b"))] == [30, 50]
    assert fences.counts(1000, (4, "d"))
    assert not fences.counts(10, (4, "another that created the same number"))
    assert not fences.counts(10, None)
    assert Fences.of(first).counts(1000, (1, "a"))
    assert Fences.of(None).counts(1000, None)


def test_commits_of_an_earlier_version_or_another_run_are_taken_up_and_stay(run_values, monkeypatch):
    values = run_values(steps=2, checkpoint_every=1)
    folder = fit(build(RunConfig, values, "test"))
    shutil.rmtree(f"{folder}/checkpoints/lease")  # as if they had been copied here
    at_step(monkeypatch, 3, lambda: (_ for _ in ()).throw(RuntimeError("an accident")))
    longer = build(RunConfig, values | {"train": values["train"] | {"steps": 4}}, "test")
    with pytest.raises(RuntimeError, match="an accident"):
        fit(longer, resume="auto", allow_changes=True)
    assert steps(folder) == [2, 3]


MOMENTS = (r"create.*checkpoint\.json", r"(remove|delete).*checkpoint\.json", r"(renew|put).*lease", "part-")
"""Where it matters that a writer is paused or killed just then."""


class _Inline:
    """A thread that has ended when it was started: what a Saver does stays in its writer's."""

    def __init__(self, target: Callable[..., Any], args: tuple[Any, ...] = (), **_: Any) -> None:
        self._target, self._args = target, args

    def start(self) -> None:
        self._target(*self._args)

    def join(self, timeout: float | None = None) -> None:
        pass

    def is_alive(self) -> bool:
        return False


class Trainings:
    """Starts of one run that save after every step; a checkpoint holds which term has trained each step up to it."""

    def __init__(self, root: str, writers: Interleaved) -> None:
        self.root, self.writers, self.time = root, writers, Time(writers)
        self.taken_up: dict[int, list[int]] = {}  # term -> what it went on from

    def history(self, folder: str | None) -> list[int]:
        return [] if folder is None else checkpoint.load(folder)[0]["model/terms"].tolist()

    def train(self, count: int, attempt: str) -> int:
        with Lease.take(self.root, "a training", note=inherited, clock=self.time, renewing=False) as mine:
            terms = self.history(checkpoint.latest(self.root))
            mine.keep(taken_up(mine.note, len(terms)))
            self.taken_up[mine.number] = list(terms)
            saver = checkpoint.Saver(
                self.root, rank=0, world_size=1, attempt=attempt, keep=2, lease=mine, patience_s=0.0
            )
            for _ in range(count):
                terms = [*terms, mine.number]
                mine.renew()
                tensors = {"model/terms": torch.tensor(terms)}
                saver.start(len(terms), [list(tensors)], tensors, {"step": len(terms)})
                if mine.lost:
                    raise mine.lost
        return len(terms)


@pytest.mark.parametrize("where", ["disk", "s3", "swift"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    schedule=st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.sampled_from([0, 1, 2, 5, 13, 34, 89, *MOMENTS]),
            st.booleans(),
        ),
        min_size=3,
        max_size=16,
    )
)
def test_no_resume_takes_what_a_superseded_start_committed(where, schedule, tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(checkpoint, "threading", SimpleNamespace(Thread=_Inline, Event=threading.Event))
        writers = Interleaved()
        if where == "disk":
            root = str(tmp_path_factory.mktemp("run") / "checkpoints")
        else:
            FakeS3(writers, monkeypatch, locks=where == "s3")
            root = "s3://bucket/run/checkpoints"
        runs = Trainings(root, writers)
        for name in "abc":
            writers.start(name, lambda name=name: runs.train(4, name))
        if where == "disk":
            on_a_disk(writers, monkeypatch)
        for name, how, asleep in schedule:
            if asleep:  # all of them, for so long that every lease lapses
                runs.time.seconds += 1.5 * lease.EXPIRY_S
            writers.advance(name, how)
            monkeypatch.setattr(time, "time", lambda: 0.0)  # the machine's clock jumps; nobody may mind
        for name in "ab":
            writers.kill(name)
        writers.finish()
        allowed = (HeldError, LostError)
        for writer in writers.writers.values():
            assert writer.error is None or isinstance(writer.error, allowed), repr(writer.error)
        # Whoever starts now takes over within a minute, and goes on from what counts.
        writers.start("d", lambda: runs.train(2, "d"))
        began = runs.time.seconds
        while writers.step("d") and len(runs.taken_up) and max(runs.taken_up) not in runs.taken_up:
            pass
        writers.finish()
        assert writers.writers["d"].error is None
        assert runs.time.seconds - began <= 60
        # One line of terms, each going on from where the one before it was when it was superseded.
        final = runs.history(checkpoint.latest(root))
        assert len(final) == writers.writers["d"].result
        for number in sorted(runs.taken_up):
            before = runs.taken_up[number]
            assert final[: len(before)] == before
        assert final == sorted(final)
        for folder in checkpoint.committed(root):
            terms = runs.history(folder)
            assert terms == final[: len(terms)]
