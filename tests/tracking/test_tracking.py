"""Tracking (promise 6): every point is in the spool, reaches MLflow once, and nothing in it can stop a training run.

Most tests deliver to an MLflow in memory, which keeps whatever it is sent: a point that is sent twice is there twice.
"""

import contextlib
import errno
import json
import logging
import math
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mlflow_server import until
from PIL import Image

from v2f.cli import main
from v2f.config import Config, build, override
from v2f.errors import V2FError
from v2f.runs.config import load_config
from v2f.storage import store
from v2f.tracking import delivery, mlflow_client, mlflow_run, spool
from v2f.tracking import tracker as tracker_module
from v2f.tracking.delivery import deliver
from v2f.tracking.mlflow_run import NOTE
from v2f.tracking.rollback import outdated_pictures, roll_back
from v2f.tracking.state import read_state
from v2f.tracking.tracker import Tracker

REPOSITORY = Path(__file__).resolve().parents[2]


def start(folder: Path, uri: str | None = "memory", run_id: str | None = None, **more: Any) -> Tracker:
    what = {"parameters": {"seed": 0}, "tags": {"v2f.fingerprint": "abc"}, "patience_s": 120.0} | more
    return Tracker(str(folder), uri=uri, experiment="tests", name="a-run", run_id=run_id, **what)


def train(tracker: Tracker, first: int, last: int) -> None:
    """What a training run logs in steps ``first`` to ``last``: two kinds of points a step; values tell the step."""
    with tracker:
        for step in range(first, last + 1):
            tracker.log(step, step * 4, {"loss": 1.0 / step, "rate": 0.5})
            tracker.log(step, step * 4, {"valid/margin": 2.0 * step}, "validation")


def all_of(last: int) -> list[tuple[str, int, float]]:
    """What MLflow has to hold after ``last`` steps of 4 samples, each once, at the samples seen."""
    values: dict[str, Callable[[int], float]] = {
        "loss": lambda step: 1.0 / step,
        "rate": lambda step: 0.5,
        "step": lambda step: step,
        "valid/margin": lambda step: 2.0 * step,
    }
    return sorted((name, step * 4, value(step)) for name, value in values.items() for step in range(1, last + 1))


def spooled(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Memory:
    """As much of an MLflow client as tracking uses. ``before`` and ``after`` are called around each request."""

    def __init__(self) -> None:
        self.points: list[tuple[str, int, float]] = []
        self.runs: dict[str, SimpleNamespace] = {}
        self.images: list[str] = []
        self.inputs: list[tuple[str, str, str]] = []
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name.startswith(("_", "sent")) or not callable(found) or name in ("before", "after"):
            return found

        def request(*arguments: Any, **named: Any) -> Any:
            self.before()
            answer = found(*arguments, **named)
            self.after()
            return answer

        return request

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="1")

    def search_runs(self, experiments: list[str], query: str, max_results: int) -> list[Any]:
        return [run for run in self.runs.values() if repr(run.data.tags["v2f.id"]) in query]

    def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
        run_id = f"{len(self.runs):032x}"
        data = SimpleNamespace(params={}, tags=dict(tags), to_proto=lambda: SimpleNamespace(metrics=self._newest()))
        info = SimpleNamespace(run_id=run_id, lifecycle_stage="active", status="RUNNING")
        self.runs[run_id] = SimpleNamespace(info=info, data=data)
        return self.runs[run_id]

    def _newest(self) -> list[Any]:
        newest = {name: max(s for n, s, _ in self.points if n == name) for name, _, _ in self.points}
        return [SimpleNamespace(key=name, step=step) for name, step in newest.items()]

    def get_run(self, run_id: str) -> Any:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

        if run_id not in self.runs:
            raise MlflowException(f"no run {run_id}", RESOURCE_DOES_NOT_EXIST)
        return self.runs[run_id]

    def get_metric_history(self, run_id: str, name: str) -> list[Any]:
        return [SimpleNamespace(step=step) for n, step, _ in self.points if n == name]

    def log_batch(self, run_id: str, metrics: list = (), params: list = (), tags: list = ()) -> None:
        self.points += [(metric.key, metric.step, metric.value) for metric in metrics]
        self.runs[run_id].data.params |= {param.key: param.value for param in params}
        self.runs[run_id].data.tags |= {tag.key: tag.value for tag in tags}

    def log_inputs(self, run_id: str, datasets: list[Any]) -> None:
        found = [each.dataset for each in datasets]
        self.inputs = sorted({*self.inputs, *((run_id, data.name, data.digest) for data in found)})

    def list_artifacts(self, run_id: str, path: str) -> list[Any]:
        return [SimpleNamespace(path=name) for name in self.images]

    def log_image(self, run_id: str, picture: Image.Image, key: str, step: int) -> None:
        stem = f"{key.replace('/', '~')}+step+{step}+timestamp+0+{len(self.images)}"
        self.images += [f"images/{stem}.png", f"images/{stem}+compressed.webp"]

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id].info.status = status

    set_terminated = update_run


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    server = Memory()
    report = threading.excepthook
    # sys.exit() stands for a kill of the delivering thread.
    monkeypatch.setattr(threading, "excepthook", lambda what: what.exc_type is SystemExit or report(what))
    monkeypatch.setattr(os, "fsync", lambda file: None)  # nobody pulls the plug here
    monkeypatch.setattr(mlflow_client, "connect", lambda uri: server)
    monkeypatch.setattr(delivery, "RETRY_S", 0.001)
    monkeypatch.setattr(delivery, "PACE_S", 0.0)
    monkeypatch.setattr(mlflow_client, "POINTS_PER_REQUEST", 5)
    return server


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING, "v2f"):
        yield lambda: [record.message for record in caplog.records]


# -------------------------------------------------------------------------------- once, whatever happens


def test_a_resumed_run_repeats_steps_and_doubles_no_point(tmp_path, memory):
    train(start(tmp_path), 1, 6)
    first = read_state(str(tmp_path))["run_id"]
    train(start(tmp_path), 3, 9)
    assert sorted(memory.points) == all_of(9)
    assert list(memory.runs) == [first]
    assert memory.runs[first].info.status == "FINISHED"


def again(folder: Path, first: int, last: int, uri: str | None = "memory") -> None:
    """A start that trains steps anew, with other values."""
    roll_back(str(folder), first - 1)
    with start(folder, uri) as tracker:
        for step in range(first, last + 1):
            tracker.log(step, step * 4, {"loss": -1.0, "rate": 0.25})
            tracker.log(step, step * 4, {"valid/margin": -2.0}, "validation")


def rates(path: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["step"], line["metrics"]["rate"]) for line in lines if line["kind"] == "training"]


def test_steps_that_are_trained_again_have_the_points_of_the_newest_start_and_none_is_lost(tmp_path, memory):
    train(start(tmp_path), 1, 6)
    before = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    again(tmp_path, 4, 8)
    assert rates(tmp_path / "metrics.jsonl") == [*((s, 0.5) for s in (1, 2, 3)), *((s, 0.25) for s in range(4, 9))]
    assert (tmp_path / "rolled-back.jsonl").read_bytes().splitlines() == before[6:]
    # MLflow cannot forget a point, and doubles none: its first of each step stays, and a tag names them.
    (run,) = memory.runs.values()
    assert {(name, seen) for name, seen, _ in memory.points} == {(name, seen) for name, seen, _ in all_of(8)}
    assert len(memory.points) == len(all_of(8))
    assert [value for name, _, value in memory.points if name == "rate"] == [0.5] * 6 + [0.25] * 2
    assert run.data.tags["v2f.rolled_back"] == (
        "samples 16 to 24: points of an earlier start; metrics.jsonl has the current ones"
    )
    again(tmp_path, 2, 2)
    assert rates(tmp_path / "metrics.jsonl") == [(1, 0.5), (2, 0.25)]
    assert len(memory.points) == len(all_of(8))
    assert run.data.tags["v2f.rolled_back"].startswith("samples 16 to 24, 8 to 32: ")
    assert len((tmp_path / "rolled-back.jsonl").read_bytes().splitlines()) == 2 * (3 + 7)


def test_what_mlflow_had_not_got_before_a_step_was_trained_again_it_never_gets(tmp_path, memory):
    train(start(tmp_path, None), 1, 6)
    again(tmp_path, 4, 6)
    assert [value for name, _, value in memory.points if name == "rate"] == [0.5] * 3 + [0.25] * 3
    assert len(memory.points) == len(all_of(6))
    assert "v2f.rolled_back" not in next(iter(memory.runs.values())).data.tags


def test_what_stays_of_a_spool_is_not_compared_with_mlflow_anew(tmp_path, memory, monkeypatch):
    train(start(tmp_path), 1, 6)
    sent: list[int] = []
    monkeypatch.setattr(
        mlflow_run.MlflowRun, "send_points", lambda self, lines: sent.extend(line["step"] for line in lines)
    )
    again(tmp_path, 4, 6)
    assert sorted(set(sent)) == [4, 5, 6]


def test_nothing_is_rolled_back_where_nothing_stands_after_the_step(tmp_path):
    assert roll_back(str(tmp_path), 0) == 0
    train(start(tmp_path, None), 1, 3)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert roll_back(str(tmp_path), 3) == 0
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert not (tmp_path / "rolled-back.jsonl").exists()


def test_a_kill_while_rolling_back_loses_and_doubles_no_line(tmp_path, memory, monkeypatch):
    real = store.replacing
    for kill_at in (1, 2, 3, 4):
        folder = tmp_path / str(kill_at)
        memory.__init__()
        train(start(folder), 1, 6)
        with (folder / "metrics.jsonl").open("ab") as spool:
            spool.write(b'{"kind": "training", "st')  # the kill before cut a line
        before = (folder / "metrics.jsonl").read_bytes().splitlines()
        left = kill_at

        @contextlib.contextmanager
        def killed(path: str) -> Iterator[str]:
            nonlocal left
            with real(path) as temporary:
                yield temporary
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt  # before it takes its place

        with monkeypatch.context() as patch:
            patch.setattr(store, "replacing", killed)
            with pytest.raises(KeyboardInterrupt) if kill_at < 4 else contextlib.nullcontext():
                roll_back(str(folder), 3)
        roll_back(str(folder), 3)
        assert (folder / "metrics.jsonl").read_bytes().splitlines() == before[:6] + before[-1:]
        assert (folder / "rolled-back.jsonl").read_bytes().splitlines() == before[6:-1]
        again(folder, 4, 7)
        assert len(memory.points) == len(all_of(7))
        assert rates(folder / "metrics.jsonl")[2:] == [(3, 0.5), *((step, 0.25) for step in range(4, 8))]


def test_a_picture_that_only_a_rolled_back_start_has_drawn_is_known(tmp_path):
    for first, steps in ((1, (2, 4, 5)), (3, (4,))):
        roll_back(str(tmp_path), first - 1)
        with start(tmp_path, None) as tracker:
            for step in steps:
                tracker.picture(step, step * 4, str(tmp_path / "samples" / f"step-{step}.png"), "samples")
    assert outdated_pictures(str(tmp_path)) == {"samples/step-5.png"}


def test_a_fresh_node_that_knows_only_the_run_id_goes_on_and_doubles_no_point(tmp_path, memory):
    train(start(tmp_path / "lost"), 1, 6)  # the checkpoint was written at step 3
    run_id = read_state(str(tmp_path / "lost"))["run_id"]
    train(start(tmp_path / "fresh", run_id=run_id), 4, 9)
    assert sorted(memory.points) == all_of(9)
    assert list(memory.runs) == [run_id]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_in_any_request_doubles_no_point_and_no_run(tmp_path, memory, when):
    """After: MLflow has done what was asked, and nobody knows."""
    requests = 0

    def count() -> None:
        nonlocal requests
        requests += 1

    memory.before = count
    train(start(tmp_path / "undisturbed"), 1, 6)
    assert requests > 10  # several batches of points among them

    for kill_at in range(1, requests + 1):
        memory.__init__()
        left = kill_at

        def kill() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                sys.exit()  # ends the delivering thread without a word

        setattr(memory, when, kill)
        folder = tmp_path / f"killed-{kill_at}"
        train(start(folder), 1, 6)
        train(start(folder), 4, 9)
        assert sorted(memory.points) == all_of(9)
        assert len(memory.runs) == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_server_that_fails_at_any_request_gets_every_point_once(tmp_path, memory, when, said):
    """After: the request was carried out, and the answer was lost."""
    for fail_at in range(1, 14):
        memory.__init__()
        left = fail_at

        def fail() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise ConnectionError("lost")

        setattr(memory, when, fail)
        folder = tmp_path / f"failed-{fail_at}"
        train(start(folder), 1, 6)
        setattr(memory, when, lambda: None)
        deliver(str(folder))  # the rest, where it failed at the last moment
        assert sorted(memory.points) == all_of(6)
        assert len(memory.runs) == 1


def test_a_spool_cut_at_any_byte_or_lost_doubles_no_point(tmp_path, memory):
    train(start(tmp_path), 1, 1)
    spool, mark = (tmp_path / "metrics.jsonl").read_bytes(), (tmp_path / "tracking.json").read_bytes()
    delivered = list(memory.points)
    for length in range(len(spool) + 1):
        (tmp_path / "metrics.jsonl").write_bytes(spool[:length])
        (tmp_path / "tracking.json").write_bytes(mark)
        memory.points = list(delivered)
        train(start(tmp_path), 1, 2)
        assert sorted(memory.points) == all_of(2)
        assert [(line["kind"], line["step"]) for line in spooled(tmp_path)] == [
            (kind, step) for step in (1, 2) for kind in ("training", "validation")
        ]


def test_a_mark_cut_at_any_byte_doubles_no_point(tmp_path, memory):
    train(start(tmp_path), 1, 2)
    mark = (tmp_path / "tracking.json").read_bytes()
    delivered, run_id = list(memory.points), read_state(str(tmp_path))["run_id"]
    for length in range(0, len(mark), 3):
        (tmp_path / "tracking.json").write_bytes(mark[:length])
        memory.points = list(delivered)
        train(start(tmp_path, run_id=run_id), 2, 3)
        assert sorted(memory.points) == all_of(3)
        spool = (tmp_path / "metrics.jsonl").read_bytes()
        (tmp_path / "metrics.jsonl").write_bytes(b"".join(spool.splitlines(keepends=True)[:4]))
    assert list(memory.runs) == [run_id]


def test_another_spool_of_the_same_length_is_not_taken_for_the_delivered_one(tmp_path, memory):
    train(start(tmp_path), 1, 4)
    mark = (tmp_path / "tracking.json").read_bytes()
    memory.points.clear()
    (tmp_path / "metrics.jsonl").unlink()
    train(start(tmp_path, uri=None), 1, 6)
    (tmp_path / "tracking.json").write_bytes(mark)
    train(start(tmp_path), 7, 8)
    assert sorted(memory.points) == all_of(8)


def test_what_mlflow_has_lost_in_between_is_delivered_with_a_lost_mark(tmp_path, memory):
    train(start(tmp_path), 1, 6)
    memory.points = [point for point in memory.points if point[0] == "step" or point[1] not in (8, 12)]
    run_id = read_state(str(tmp_path))["run_id"]
    (tmp_path / "tracking.json").unlink()
    train(start(tmp_path, run_id=run_id), 6, 7)
    assert sorted(memory.points) == all_of(7)


def test_what_a_step_logs_after_its_losses_is_not_lost_when_a_kill_comes_between(tmp_path):
    first = start(tmp_path, None)
    first.log(1, 1, {"loss": 1.0})
    first.close()
    second = start(tmp_path, None)
    second.log(1, 1, {"loss": 1.0})
    second.log(1, 1, {"valid/margin": 0.5}, "validation")
    second.close()
    assert [line["metrics"] for line in spooled(tmp_path)] == [{"loss": 1.0}, {"valid/margin": 0.5}]


def test_a_line_that_a_crash_has_made_unreadable_keeps_no_other(tmp_path, memory):
    train(start(tmp_path, None), 1, 2)
    with (tmp_path / "metrics.jsonl").open("ab") as spool:
        spool.write(b'{"kind": "training", "st\0\0\0\n[1]\n')
    train(start(tmp_path), 3, 4)
    assert sorted(memory.points) == all_of(4)


def test_a_picture_is_delivered_once_and_one_that_is_gone_is_left_out(tmp_path, memory, said):
    for step in (1, 2):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{step}.png")
    with start(tmp_path) as tracker:
        for step in (1, 2, 3):
            tracker.picture(step, step * 4, str(tmp_path / f"{step}.png"), "samples/test")
    run_id = read_state(str(tmp_path))["run_id"]
    (tmp_path / "tracking.json").unlink()
    train(start(tmp_path, run_id=run_id), 1, 1)
    assert [name for name in memory.images if name.endswith("webp")] == [
        "images/samples~test+step+4+timestamp+0+0+compressed.webp",
        "images/samples~test+step+8+timestamp+0+2+compressed.webp",
    ]
    assert said() == [f"tracking: {tmp_path}/3.png is missing or damaged, so MLflow does not get it"] * 2  # each start
    assert sorted(memory.points) == all_of(1)


def test_points_of_runs_with_other_batch_sizes_lie_on_one_axis_of_samples_seen(tmp_path, memory):
    """Step 8 of 4 samples and step 2 of 16 stand at the same place; the step itself is a metric."""
    for batch, points in ((4, [("loss", 32, 0.25), ("step", 32, 8)]), (16, [("loss", 32, 0.0625), ("step", 32, 2)])):
        memory.__init__()
        with start(tmp_path / str(batch)) as tracker:
            tracker.log(32 // batch, 32, {"loss": 1.0 / batch})
        assert memory.points == points


def test_what_the_machinery_does_stands_apart_from_what_is_trained(tmp_path, memory):
    for _ in range(2):  # the second start finds what there is
        with start(tmp_path) as tracker:
            tracker.log(1, 4, {"loss/total": 1.0, "speed/samples_per_second": 7.0, "data/quarantined": 0.0})
        (tmp_path / "tracking.json").write_text(json.dumps({"run_id": tracker.run_id}))
    assert sorted(memory.points) == [
        ("loss/total", 4, 1.0),
        ("step", 4, 1),
        ("system/data/quarantined", 4, 0.0),
        ("system/speed/samples_per_second", 4, 7.0),
    ]
    assert spooled(tmp_path)[0]["metrics"].keys() == {"loss/total", "speed/samples_per_second", "data/quarantined"}


def test_what_a_run_is_stands_at_mlflow_and_an_edited_description_stays(tmp_path, memory):
    data = {"name": "voices", "digest": "abc", "source": "s3://bucket/voices", "profile": {"train": {"samples": 7}}}
    what = {"tags": {NOTE: "made by v2f", "v2f.code": "old"}, "datasets": [data]}
    train(start(tmp_path, **what), 1, 1)
    (run,) = memory.runs.values()
    assert run.data.tags[NOTE] == "made by v2f"
    assert memory.inputs == [(run.info.run_id, "voices", "abc")]
    run.data.tags[NOTE] = "the good one"
    train(start(tmp_path, **what | {"tags": what["tags"] | {"v2f.code": "new"}}), 2, 2)
    assert run.data.tags[NOTE] == "the good one"
    assert run.data.tags["v2f.code"] == "new"
    assert memory.inputs == [(run.info.run_id, "voices", "abc")]


def test_whose_run_it_is_stands_at_mlflow(tmp_path, memory, monkeypatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "USER"):
        monkeypatch.setenv(name, f"by-{name}")
        train(start(tmp_path / name), 1, 1)
        monkeypatch.delenv(name)
    monkeypatch.delenv("USER", raising=False)  # as in a container
    train(start(tmp_path / "nobody"), 1, 1)
    assert [run.data.tags.get("mlflow.user") for run in memory.runs.values()] == [
        "by-MLFLOW_TRACKING_USERNAME",
        "by-USER",
        None,
    ]


# -------------------------------------------------------------------------------- away, full, refusing


def test_a_server_that_never_answers_costs_the_training_nothing_and_close_is_bounded(tmp_path, memory, said):
    answers = threading.Event()
    memory.before = lambda: answers.wait(60) and None
    tracker = start(tmp_path, patience_s=0.1)
    for step in range(1, 501):
        tracker.log(step, step * 4, {"loss": 1.0 / step, "rate": 0.5})
        tracker.log(step, step * 4, {"valid/margin": 2.0 * step}, "validation")
    assert tracker.seconds < 10.0  # a thousand lines; to wait for one answer alone would take longer
    begun = time.perf_counter()
    tracker.close()
    assert time.perf_counter() - begun < 10.0
    assert said() == [
        f"tracking: MLflow did not receive everything; `v2f track {tmp_path}` or the next start sends the rest"
    ]
    assert len(spooled(tmp_path)) == 1000
    state = read_state(str(tmp_path))
    assert state["status"] == "FINISHED"
    memory.before = lambda: sys.exit() if threading.current_thread() is tracker._delivery else None
    answers.set()
    tracker._delivery.join()  # it never came further; in life the process would have ended with it

    deliver(str(tmp_path))
    assert sorted(memory.points) == all_of(500)
    assert memory.runs[read_state(str(tmp_path))["run_id"]].info.status == "FINISHED"


def test_a_server_that_is_away_is_said_once_however_its_error_reads_and_gets_everything_later(tmp_path, memory, said):
    away, tries = True, 0

    def refuse() -> None:
        nonlocal tries
        tries += 1
        if away:
            raise ConnectionError(f"<connection object at 0x{tries:x}>")

    memory.before = refuse
    tracker = start(tmp_path)
    tracker.log(1, 4, {"loss": 1.0, "rate": 0.5})
    tracker.log(1, 4, {"valid/margin": 2.0}, "validation")
    until(lambda: tries > 5)
    away = False
    until(lambda: len(memory.points) == 4)
    tracker.close()
    assert sorted(memory.points) == all_of(1)
    assert len(said()) == 2
    assert "does not accept points (ConnectionError: <connection object at 0x1>); they are kept" in said()[0]
    assert said()[1] == "tracking: MLflow accepts points again"


def test_an_artifact_store_that_fails_keeps_no_point(tmp_path, memory, said):
    def broken(*_: Any, **__: Any) -> None:
        raise PermissionError("no access to the artifacts")

    memory.log_image = broken
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    tracker = start(tmp_path)
    tracker.picture(1, 4, str(tmp_path / "1.png"), "samples")
    train(tracker, 1, 3)
    assert sorted(memory.points) == all_of(3)
    assert "does not accept pictures (PermissionError: no access to the artifacts)" in said()[0]
    assert "v2f track" in said()[1]


def test_what_was_missed_by_a_run_that_died_is_delivered_by_hand(tmp_path, memory):
    memory.before = lambda: sys.exit()
    with contextlib.suppress(RuntimeError), start(tmp_path) as tracker:
        tracker.log(1, 4, {"loss": 1.0, "rate": 0.5})
        tracker.log(1, 4, {"valid/margin": 2.0}, "validation")
        raise RuntimeError
    memory.before = lambda: None
    deliver(str(tmp_path))
    assert sorted(memory.points) == all_of(1)
    (run,) = memory.runs.values()
    assert run.info.status == "FAILED"
    deliver(str(tmp_path))
    assert sorted(memory.points) == all_of(1)


def test_the_verb_track_delivers_and_says_in_one_line_what_is_in_the_way(tmp_path, memory, capsys):
    (tmp_path / "config.yaml").touch()  # what makes it a run
    memory.before = lambda: sys.exit()
    train(start(tmp_path), 1, 2)
    assert main(["track", str(tmp_path)]) == 1
    assert (
        capsys.readouterr().err
        == f"v2f: memory: MLflow did not receive everything of {tmp_path}; try again once it responds\n"
    )
    memory.before = lambda: None
    assert main(["track", str(tmp_path)]) == 0
    assert sorted(memory.points) == all_of(2)
    assert main(["track", str(tmp_path / "absent")]) == 1
    assert "no run there" in capsys.readouterr().err
    assert not (tmp_path / "absent").exists()


def test_delivering_by_hand_says_what_is_in_the_way(tmp_path, memory):
    with pytest.raises(V2FError, match=r"trained with tracking\.uri=null"):
        deliver(str(tmp_path))
    memory.before = lambda: math.log(0)
    train(start(tmp_path), 1, 1)
    with pytest.raises(V2FError, match=r"memory: MLflow did not receive everything of .*; try again once it responds"):
        deliver(str(tmp_path))


@contextlib.contextmanager
def full_disk(largest: int) -> Iterator[None]:
    """No file can grow beyond ``largest`` bytes: the kernel takes what fits of a write, and refuses the next."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("room", [0, 1, 100, 170])
def test_a_full_disk_is_said_once_and_its_points_wait_for_room(tmp_path, said, room):
    tracker = start(tmp_path, None)
    tracker.log(1, 4, {"loss": 1.0})
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with full_disk(size + room):
        for step in range(2, 5):
            tracker.log(step, step * 4, {"loss": 1.0 / step})
    assert len(said()) == 1
    reasons = "|".join(map(os.strerror, (errno.EFBIG, errno.ENOSPC)))  # none of a line was taken, or a part
    assert re.search(rf"cannot write {tmp_path}/metrics\.jsonl: ({reasons}); training continues", said()[0])
    tracker.log(5, 20, {"loss": 0.2})
    tracker.close()
    assert [(line["step"], line["metrics"]) for line in spooled(tmp_path)] == [
        (step, {"loss": 1.0 / step}) for step in range(1, 6)
    ]
    assert len(said()) == 2


def test_a_disk_that_stays_full_loses_the_oldest_points_that_wait_and_says_how_many(tmp_path, said, monkeypatch):
    monkeypatch.setattr(spool, "QUEUED_LINES", 3)
    tracker = start(tmp_path, None)
    with full_disk(0):
        for step in range(1, 6):
            tracker.log(step, step * 4, {"loss": 1.0})
        tracker.close()
    assert said()[1] == f"tracking: 5 lines could not be written to {tmp_path}/metrics.jsonl and are lost"


def test_a_mark_that_cannot_be_written_costs_no_point(tmp_path, memory, said):
    tracker = start(tmp_path)
    until(lambda: (tmp_path / "tracking.json").exists())
    with full_disk(300):  # less than tracking.json, more than the spool
        tracker.log(1, 4, {"loss": 1.0, "rate": 0.5})
        until(lambda: ("loss", 4, 1.0) in memory.points)
        until(lambda: len(said()) == 1)
    assert "cannot write" in said()[0]
    train(tracker, 1, 3)
    assert sorted(memory.points) == all_of(3)


# -------------------------------------------------------------------------------- what is measured


def test_what_the_machine_does_is_logged_and_what_cannot_be_measured_stops_nothing(tmp_path, monkeypatch, said):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 16 << 30)
    monkeypatch.setattr(torch.cuda, "utilization", lambda: 97)
    monkeypatch.setattr(tracker_module, "MEASURE_S", 0.0)
    tracker = start(tmp_path, None)
    tracker.log_system(1, 4)

    def absent() -> int:
        raise ModuleNotFoundError("pynvml")

    def broken() -> tuple[int, int]:
        raise RuntimeError("the driver is gone")

    monkeypatch.setattr(torch.cuda, "utilization", absent)
    tracker.log_system(2, 8)
    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    tracker.log_system(3, 12)
    tracker.close()
    one, two = (line["metrics"] for line in spooled(tmp_path))
    assert one["system/gpu_memory_gib"] == 20
    assert one["system/gpu_memory_percent"] == 25
    assert one["system/gpu_allocated_peak_gib"] == 16
    assert one["system/gpu_percent"] == 97
    assert one.keys() - two.keys() == {"system/gpu_percent"}
    assert 0 < one["system/process_memory_gib"] < 1000
    assert said() == ["tracking: cannot measure CPU, memory and GPU use (RuntimeError); training continues"]


def test_the_machine_is_not_measured_at_every_step(tmp_path):
    tracker = start(tmp_path, None)
    for step in range(1, 4):
        tracker.log_system(step, step * 4)
    tracker.close()
    assert [line["step"] for line in spooled(tmp_path)] == [1]


def test_numbers_that_are_not_finite_stay_in_the_spool(tmp_path, memory):
    with start(tmp_path) as tracker:
        tracker.log(1, 4, {"loss": math.nan, "rate": torch.tensor(0.5)})
    assert math.isnan(spooled(tmp_path)[0]["metrics"]["loss"])
    assert memory.points == [("rate", 4, 0.5), ("step", 4, 1)]


# -------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tracking.uri", "https://somebody:hunter2hunter2@mlflow.example.org"),
        ("tracking.uri", "https://hunter2hunter2@mlflow.example.org"),
        ("tracking.uri", "postgresql://somebody:hunter2hunter2@db/mlflow"),
        ("tracking.uri", "postgresql://db/mlflow?user=somebody&password=hunter2hunter2"),
        ("data.path", "s3://KEY:hunter2hunter2@bucket/shards"),
        ("out", "https://store/run?X-Amz-Signature=hunter2hunter2"),
        ("data.mix", "[{path: 's3://KEY:hunter2hunter2@bucket/shards'}]"),
        ("tracking", "'https://somebody:hunter2hunter2@mlflow.example.org'"),
    ],
)
def test_credentials_in_an_address_are_refused_in_one_line_that_does_not_show_them(key, value):
    recipe = str(REPOSITORY / "launch" / "recipes" / "quickstart.yaml")
    with pytest.raises(V2FError, match=r"must not contain credentials.*MLFLOW_TRACKING_PASSWORD.*AWS_SECRET") as found:
        load_config(recipe, [f"{key}={value}"])
    assert key in str(found.value)
    assert "hunter2" not in str(found.value)


def test_addresses_without_a_secret_are_taken():
    class Place(Config):
        uri: str

    for uri in ("postgresql://mlflow@db/mlflow", "http://127.0.0.1:5000", "sqlite:////a/b@c.db", "me@example.org"):
        assert build(Place, {"uri": uri}, "here").uri == uri


def test_an_override_that_is_wrong_does_not_show_its_secret():
    with pytest.raises(V2FError, match=r"\*\*\*@mlflow") as found:
        override({"tracking": 1}, ["tracking.uri=https://somebody:hunter2hunter2@mlflow"])
    assert "hunter2" not in str(found.value)


# -------------------------------------------------------------------------------- MLflow itself, on SQLite


def of(client: Any, run_id: str) -> list[tuple[str, int, float]]:
    """What MLflow holds of a run's points."""
    names = client.get_run(run_id).data.metrics
    return sorted((m.key, m.step, m.value) for name in names for m in client.get_metric_history(run_id, name))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.mark.slow
def test_a_run_goes_on_at_mlflow_with_other_parameters_and_on_a_fresh_node(tmp_path, database, said):
    many = {"long": "x" * 10_000, **{f"p{i}": i for i in range(150)}}
    train(start(tmp_path / "run", database, parameters=many | {"workers": 1}, tags={"v2f.code": "old"}), 1, 10)
    run_id = read_state(str(tmp_path / "run"))["run_id"]
    client = mlflow_client.connect(database)
    assert client.get_run(run_id).info.status == "FINISHED"

    def refuse(name: str) -> None:
        tracker = start(
            tmp_path / name, database, run_id, parameters={"workers": 3, "new (": 1}, tags={"v2f.code": "b"}
        )
        tracker.log(7, 28, {"loss (all)": 1.0, "fine": 2.0}, "names")
        train(tracker, 8, 15 if name == "run" else 20)

    refuse("run")
    refuse("fresh")
    assert of(client, run_id) == sorted([*all_of(20), ("fine", 28, 2.0)])
    run = client.get_run(run_id)
    assert run.data.params["p149"] == "149"
    assert len(run.data.params["long"]) == 6000
    assert run.data.params["workers"] == "1"
    assert run.data.tags["v2f.resumed_with"] == "workers: 3"
    assert run.data.tags["v2f.code"] == "b"
    assert mlflow_client.run_folder(run_id, database) == str(tmp_path / "fresh")
    assert [line.split("(")[0] for line in said()] == [
        "tracking: MLflow rejects 'new ",
        "tracking: MLflow rejects 'loss ",
    ] * 2


@pytest.mark.slow
def test_a_run_that_was_deleted_at_mlflow_goes_on_as_a_new_one_with_all_its_points(tmp_path, database, said):
    train(start(tmp_path, database), 1, 3)
    client, old = mlflow_client.connect(database), read_state(str(tmp_path))["run_id"]
    client.delete_run(old)
    train(start(tmp_path, database), 4, 5)
    new = read_state(str(tmp_path))["run_id"]
    assert new != old
    assert of(client, new) == all_of(5)
    assert said() == [f"tracking: MLflow has no run {old}, or it was deleted there; a new MLflow run continues it"]


@pytest.mark.slow
def test_how_a_run_ended_stands_at_mlflow(tmp_path, database):
    def failing() -> None:
        with start(tmp_path / "failed", database) as tracker:
            tracker.log(1, 1, {"loss": 1.0})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    with start(tmp_path / "stopped", database) as tracker:
        tracker.log(1, 1, {"loss": 1.0})
        tracker.status = "SCHEDULED"
    client = mlflow_client.connect(database)
    for name, status in (("failed", "FAILED"), ("stopped", "SCHEDULED")):
        assert client.get_run(read_state(str(tmp_path / name))["run_id"]).info.status == status


KILLED_AFTER_A_BATCH = """
import os, signal, sys
from v2f.tracking.delivery import Delivery
from v2f.tracking.tracker import Tracker
save = Delivery._save
def kill(self):
    if self._state["marks"]:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self)
Delivery._save = kill
tracker = Tracker(sys.argv[1], uri=sys.argv[2], experiment="tests", name="a-run", parameters={}, tags={}, run_id=None)
for step in (1, 2, 3):
    tracker.log(step, step * 4, {"loss": 1.0 / step, "rate": 0.5})
    tracker.log(step, step * 4, {"valid/margin": 2.0 * step}, "validation")
tracker.close()
"""


@pytest.mark.slow
def test_a_real_kill_between_a_delivery_and_its_mark_doubles_nothing(tmp_path, database):
    done = subprocess.run([sys.executable, "-c", KILLED_AFTER_A_BATCH, str(tmp_path), database], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert read_state(str(tmp_path))["marks"] == {}
    client, run_id = mlflow_client.connect(database), read_state(str(tmp_path))["run_id"]
    before = of(client, run_id)
    assert before
    train(start(tmp_path, database), 2, 5)
    assert of(client, run_id) == all_of(5)
    assert set(before) <= set(all_of(5))


def test_an_mlflow_id_without_a_server_is_one_clear_line():
    with pytest.raises(V2FError, match="set MLFLOW_TRACKING_URI"):
        mlflow_client.run_folder("0" * 32, None)
