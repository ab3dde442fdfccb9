"""Tracking (promise 6): every point is in the spool, reaches MLflow once, and nothing of it can stop a training."""

import json
import logging
from pathlib import Path

import pytest

from v2f import tracking
from v2f.errors import V2FError
from v2f.tracking import Tracker


def start(folder: Path, uri: str | None, run_id: str | None = None) -> Tracker:
    folder.mkdir(exist_ok=True)
    return Tracker(
        str(folder),
        uri=uri,
        experiment="tests",
        name="a-run",
        parameters={"seed": 0, "long": "x" * 10_000, **{f"p{i}": i for i in range(150)}},
        tags={"v2f.fingerprint": "abc"},
        run_id=run_id,
    )


def spooled(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.mark.slow
def test_a_resumed_run_goes_on_under_its_id_and_no_point_is_doubled(tmp_path, database):
    folder = tmp_path / "run"
    first = start(folder, database)
    for step in range(1, 11):
        first.log(step, step * 4, {"loss": 1.0 / step})
    first.close()
    run_id = tracking.read_state(str(folder))["run_id"]

    second = start(folder, database, run_id)  # a resume repeats the steps after its checkpoint
    for step in range(6, 16):
        second.log(step, step * 4, {"loss": 1.0 / step})
    second.close()

    client = tracking._client(database)
    assert second.run_id == run_id
    history = client.get_metric_history(run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [(s, 1.0 / s) for s in range(1, 16)]
    run = client.get_run(run_id)
    assert run.data.params["p149"] == "149"
    assert len(run.data.params["long"]) == 6000
    assert run.data.tags["v2f.fingerprint"] == "abc"
    assert run.info.status == "FINISHED"
    assert tracking.folder_of(run_id, database) == str(folder)


@pytest.mark.slow
def test_what_a_server_missed_is_delivered_by_the_next_start(tmp_path, database, monkeypatch, caplog):
    folder = tmp_path / "run"
    with monkeypatch.context() as away, caplog.at_level(logging.WARNING, "v2f"):
        away.setattr(tracking, "_RETRY_S", 0.01)

        def refuse(uri: str):
            raise ConnectionError("nobody there")

        away.setattr(tracking, "_client", refuse)
        first = start(folder, database)
        for step in range(1, 4):
            first.log(step, step, {"loss": float(step)})
        first.close()
    assert [line["step"] for line in spooled(folder)] == [1, 2, 3]
    assert [r.message for r in caplog.records] == [
        "tracking: MLflow does not answer (ConnectionError: nobody there); points are kept, retrying"
    ]
    second = start(folder, database)
    second.log(4, 4, {"loss": 4.0})
    second.close()
    history = tracking._client(database).get_metric_history(second.run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [(s, float(s)) for s in range(1, 5)]


@pytest.mark.slow
def test_a_run_that_fails_is_called_failed(tmp_path, database):
    def fail() -> None:
        with start(tmp_path / "run", database) as tracker:
            tracker.log(1, 1, {"loss": 1.0})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    run_id = tracking.read_state(str(tmp_path / "run"))["run_id"]
    assert tracking._client(database).get_run(run_id).info.status == "FAILED"


def test_what_a_step_logs_after_its_losses_is_not_lost_when_a_kill_comes_between(tmp_path):
    first = start(tmp_path, None)
    first.log(1, 1, {"loss": 1.0})
    first.close()
    second = start(tmp_path, None)
    second.log(1, 1, {"loss": 1.0})
    second.log(1, 1, {"valid/margin": 0.5}, "validation")
    second.close()
    assert [line["metrics"] for line in spooled(tmp_path)] == [{"loss": 1.0}, {"valid/margin": 0.5}]


def test_a_line_cut_by_a_kill_is_dropped_and_its_step_logged_again(tmp_path):
    first = start(tmp_path, None)
    first.log(1, 1, {"loss": 1.0})
    first.log(2, 2, {"loss": 2.0})
    first.close()
    spool = tmp_path / "metrics.jsonl"
    spool.write_bytes(spool.read_bytes()[:-9])
    second = start(tmp_path, None)
    second.log(2, 2, {"loss": 2.0})
    second.close()
    assert [(line["step"], line["metrics"]["loss"]) for line in spooled(tmp_path)] == [(1, 1.0), (2, 2.0)]


def test_a_full_disk_is_said_once_and_stops_nothing(tmp_path, caplog):
    tracker = start(tmp_path, None)

    class Full:
        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            pass

    tracker._spool.close()
    tracker._spool = Full()
    with caplog.at_level(logging.WARNING, "v2f"):
        for step in range(1, 4):
            tracker.log(step, step, {"loss": 0.0})
    tracker.close()
    assert len(caplog.records) == 1
    assert "No space left on device; training goes on" in caplog.records[0].message


def test_an_mlflow_id_without_a_server_is_one_clear_line():
    with pytest.raises(V2FError, match="set MLFLOW_TRACKING_URI"):
        tracking.folder_of("0" * 32, None)
