"""A run belongs to one start at a time, and a commit of a start that was superseded is never taken up."""

import functools
import itertools
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
from schedule import LAPSE_S, STORES, Killed, World

from v2f.config import build
from v2f.errors import V2FError
from v2f.runs import checkpoint
from v2f.runs.config import RunConfig
from v2f.runs.saver import Saver
from v2f.storage import lease
from v2f.storage.fencing import Fences, inherited, taken_up
from v2f.storage.lease import HeldError, Lease, LostError
from v2f.storage.term import Term
from v2f.system import System
from v2f.training import command as train
from v2f.training.stopping import BROKEN, DONE, STOPPED
from v2f.training.trainer import fit


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become hundredths."""
    for name in ("EXPIRY_S", "RENEW_S", "_LOOK_S"):
        monkeypatch.setattr(lease, name, getattr(lease, name) / 100)


def holder(folder: str, **more: Any) -> Lease:
    return Lease.take(f"{folder}/checkpoints", "a training run", note=inherited, **more)


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
        assert f"a training run (process {os.getpid()} on " in said
        assert "waiting up to" in said
        assert not Path(values["out"], "config.yaml").exists()
    assert as_a_command(values, tmp_path, "--resume", "auto") == DONE
    assert steps(values["out"]) == [1]


def test_a_start_takes_over_from_one_that_left_no_word(run_values, hurried):
    values = run_values(steps=1)
    gone = holder(values["out"], renewing=False)
    folder = fit(build(RunConfig, values, "test"), resume="auto")
    assert steps(folder) == [1]
    with pytest.raises(LostError, match=r"a training run .* has taken over"):
        gone.check()


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], Any]) -> None:
    """Call ``act`` once in the midst of a training run, before its step ``step`` (from 0)."""
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
    assert "has taken over" in capsys.readouterr().err
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
    assert f"{folder}/checkpoints: it was removed or renamed while a training run" in capsys.readouterr().err


def test_a_refused_start_leaves_the_run_to_the_next(run_values):
    values = run_values(steps=1)
    folder = fit(build(RunConfig, values, "test"))
    with pytest.raises(V2FError, match="there is already a run here"):
        fit(build(RunConfig, values, "test"))
    began = time.monotonic()
    assert fit(build(RunConfig, values, "test"), resume="auto") == folder
    assert time.monotonic() - began < lease.EXPIRY_S


# ------------------------------------------------------------------------------------------ which commits count


def test_what_counts_is_told_by_the_highest_term():
    first = Term(1, "a", "", None, "", "", note=taken_up(inherited(None), 0))
    second = Term(2, "b", "", None, "", "", note=taken_up(inherited(first), 20))
    crashed = Term(3, "c", "", None, "", "", note=inherited(second))  # before it had taken anything up
    fourth = Term(4, "d", "", None, "", "", note=taken_up(inherited(crashed), 50))
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


class TrainingRuns:
    """Starts of one run that save after every step; a checkpoint holds which term has trained each step up to it."""

    def __init__(self, world: World) -> None:
        self.world, self.root = world, world.root
        self.taken_up: dict[tuple[int, str], list[int]] = {}  # term -> what it went on from
        self.attempts = itertools.count()

    def history(self, folder: str | None) -> list[int]:
        return [] if folder is None else checkpoint.load(folder)[0]["model/terms"].tolist()

    def train(self, count: int = 4) -> int:
        with Lease.take(self.root, "a training run", note=inherited, renewing=False) as mine:
            terms = self.history(checkpoint.latest(self.root))
            mine.keep(taken_up(mine.note, len(terms)))
            self.taken_up[mine.number, mine.owner] = list(terms)
            attempt = str(next(self.attempts))
            saver = Saver(self.root, rank=0, world_size=1, attempt=attempt, keep=2, patience_s=0.0, lease=mine)
            for _ in range(count):
                terms = [*terms, mine.number]
                tensors = {"model/terms": torch.tensor(terms)}
                saver.start(len(terms), [list(tensors)], tensors, {"step": len(terms)})
                failures = saver.take_failures()
                if failures:  # only for somebody else who has the run by now
                    mine.check()
                assert not failures
        return len(terms)

    def watch(self) -> None:
        """What any reader sees at any time is one line of terms: none beside that of the newest checkpoint."""
        final = self.history(checkpoint.latest(self.root))
        assert final == sorted(final)
        for folder in checkpoint.committed(self.root):
            assert self.history(folder) == final[: checkpoint.step_of(folder)]

    def check(self) -> None:
        """And whoever starts now takes over within a minute, and goes on from what all owners before went on from."""
        for process in self.world.processes:
            assert process.error is None or isinstance(process.error, (HeldError, LostError, Killed)), process.error
        again = self.world.alone("again", lambda: self.train(2))
        assert again.error is None
        assert again.waited is not None
        assert again.waited <= 60
        self.watch()
        final = self.history(checkpoint.latest(self.root))
        assert len(final) == again.result
        owners = sorted(self.taken_up)
        *_, last = (before for owner, before in self.taken_up.items() if owner[0] == owners[-1][0])
        assert final[: len(last)] == last


@pytest.fixture
def worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], World]:
    """New worlds of a kind, each with a folder or prefix of its own."""
    monkeypatch.setattr("v2f.runs.saver.threading", SimpleNamespace(Thread=_Inline, Event=threading.Event))
    number = itertools.count()
    return lambda kind: World(kind, str(tmp_path / f"r{next(number)}") if kind == "disk" else "s3://bucket/run")


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", STORES)
def test_wherever_a_start_is_paused_it_spoils_nothing_of_the_one_that_takes_over(worlds, kind, every):
    """Paused for a minute after each number of requests, then woken: the middle of a take, a save, a removal."""
    for requests in itertools.count(1, every):
        with worlds(kind) as world:
            runs = TrainingRuns(world)
            one = world.start("one", functools.partial(runs.train, 3))
            for _ in range(requests):
                world.go_on(one)
            if one.over:
                break
            world.play([("pause", 0, 0), ("late", 0, 0)])
            two = world.start("two", functools.partial(runs.train, 3))
            while not two.over and world.now < two.began + 2 * LAPSE_S:
                world.go_on(two)
            world.play([("wake", 0, 0)], runs.watch)
            world.finish(runs.watch)
            runs.check()
    assert requests > 60


@pytest.mark.parametrize("kind", STORES)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["run", "run", "run", "run", "pause", "wake", "late", "kill"]),
            st.integers(0, 2),
            st.integers(1, 90),
        ),
        max_size=16,
    )
)
def test_whatever_happens_to_three_starts_no_superseded_commit_is_taken_up(worlds, kind, actions):
    with worlds(kind) as world:
        runs = TrainingRuns(world)
        for name in ("one", "two", "three"):
            world.start(name, runs.train)
        world.play(actions, runs.watch)
        world.finish(runs.watch)
        runs.check()
