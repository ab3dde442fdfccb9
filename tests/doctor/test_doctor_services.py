"""The doctor's round trips find what is wrong with a store, an MLflow and their clocks, and tell no secret."""

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from doctor_findings import lines
from faults import faulty
from mlflow_server import MlflowServer

from v2f.doctor import services
from v2f.doctor.findings import Finding, Setup
from v2f.doctor.processes import examine
from v2f.storage import store

SECRET = "hush-hush"


# ------------------------------------------------------------------------------------------------ store


def test_a_round_trip_to_a_store_leaves_nothing(s3_root: str, swift: Any) -> None:
    found = lines(services.storage(Setup(store=s3_root)))
    assert [line.verdict for line in found] == ["ok"], found
    assert f"{s3_root} at {swift.endpoint}, credentials of the environment: 6 MiB written" in found[0].found
    assert "with the same CRC-32, listed, removed" in found[0].found
    assert store.tree(s3_root) == []
    assert swift.secret_key not in found[0].found


def test_a_store_that_refuses_says_why(
    s3_root: str, swift: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def told(root: str = s3_root) -> Finding:
        (line,) = lines(services.storage(Setup(store=root)))
        assert line.verdict == "wrong"
        return line

    assert told(s3_root.replace(swift.bucket, "nobodys-bucket")).found.endswith("there is no such bucket")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET + "-0123")
    line = told()
    assert "access is denied (HTTP 403 SignatureDoesNotMatch)" in line.found
    assert line.advice == "check your permissions and credentials"
    assert SECRET not in str(line)
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name)
    line = told()
    assert line.found.endswith("credentials none")
    assert "AWS_PROFILE" in line.advice
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id={swift.access_key}\naws_secret_access_key={swift.secret_key}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    (line,) = lines(services.storage(Setup(store=s3_root)))
    assert (line.verdict, "credentials of the credentials file" in line.found) == ("ok", True)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "AWS_PROFILE" in told().found


def test_a_store_behind_a_bad_network_is_to_be_looked_at_or_wrong(
    s3_root: str, swift: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty(swift.endpoint, seed=3, share=0.0) as faults:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faults.endpoint)
        faults.kinds, faults.share = ["slow_down"], 1.0
        (line,) = lines(services.storage(Setup(store=s3_root)))
        assert (line.verdict, "HTTP 503 SlowDown" in line.found) == ("wrong", True)
        before = store.statistics().retries
        faults.share = 0.0
        seen: set[str] = set()

        def once(method: str, path: str) -> bool:  # the first answer to each request is lost
            fresh = f"{method} {path}" not in seen and method != "HEAD"
            seen.add(f"{method} {path}")
            return fresh

        faults.may, faults.share = once, 1.0
        (line,) = lines(services.storage(Setup(store=s3_root)))
        assert line.verdict == "look"
        assert f"{store.statistics().retries - before} requests had to be repeated" in line.found
        faults.share = 0.0
        assert store.tree(s3_root) == []
        faults.may, faults.kinds, faults.share = lambda method, path: True, ["stall"], 1.0
        found = examine("storage", services.storage, Setup(store=s3_root), 8)
        assert found[-1].found.startswith("not finished within 8 s while ")


def test_a_store_that_gives_other_bytes_or_lists_nothing_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = Setup(store=str(tmp_path))
    assert [line.verdict for line in lines(services.storage(setup))] == ["ok"]
    with monkeypatch.context() as patch:
        real = store.read_bytes
        patch.setattr(store, "read_bytes", lambda path: real(path)[:-1] + b"x")
        (line,) = lines(services.storage(setup))
        assert f"{tmp_path}: the bytes read are not the bytes written" in line.found
    with monkeypatch.context() as patch:
        patch.setattr(store, "names", lambda path: [])
        (line,) = lines(services.storage(setup))
        assert "a written object is not listed" in line.found
    with monkeypatch.context() as patch:
        patch.setattr(store, "remove_folder", lambda path, first: None)
        (line,) = lines(services.storage(setup))
        assert "a removed object is still listed" in line.found
    (line,) = lines(services.storage(Setup(store=str(tmp_path / "none"))))
    assert line.found.endswith("this folder does not exist")
    (line,) = lines(services.storage(Setup(store=f"s3://key:{SECRET}@bucket/x")))
    assert line.verdict == "wrong"
    assert SECRET not in str(line)


# ------------------------------------------------------------------------------------------------ MLflow, clocks


@contextlib.contextmanager
def answering(status: int, *, late_s: float = 0.0, silent: bool = False) -> Iterator[str]:
    """A server that gives one answer to everything, dated so many seconds from now, or none at all."""
    done = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            if silent:
                done.wait(60)
                return
            self.send_response_only(status)
            self.send_header("Date", formatdate(time.time() + late_s, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = do_HEAD = _answer

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        done.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("late_s", "verdict", "told"), [(3700, "wrong", "behind"), (-100, "look", "ahead of"), (5, None, "")]
)
def test_a_clock_that_is_wrong_is_told_with_how_much(late_s: float, verdict: str | None, told: str) -> None:
    with answering(403, late_s=late_s) as address:
        found = list(services._clock("storage", address))
    assert [line.verdict for line in found] == ([verdict] if verdict else [])
    if verdict:
        assert f" s {told} the server's" in found[0].found
        assert abs(float(found[0].found.split()[4]) - abs(late_s)) < 10
    assert list(services._clock("storage", address)) == []  # it is away now: the round trip will say so


@pytest.mark.slow
def test_a_round_trip_to_mlflow_deletes_what_it_made(tmp_path: Path) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    server = MlflowServer(tmp_path)
    server.start()
    try:
        found = lines(services.mlflow(Setup(tracking=server.uri)))
        assert [line.verdict for line in found] == ["ok"], found
        assert "a run with a metric and an image was created, read back and deleted" in found[0].found
        client = MlflowClient(server.uri)
        experiment = client.get_experiment_by_name("v2f-doctor")
        assert experiment is not None
        assert client.search_runs([experiment.experiment_id]) == []
        assert len(client.search_runs([experiment.experiment_id], run_view_type=ViewType.DELETED_ONLY)) == 1
    finally:
        server.kill()
    (line,) = lines(services.mlflow(Setup(tracking=server.uri)))
    assert (line.verdict, "the connection failed" in line.found) == ("wrong", True)


def test_an_mlflow_that_refuses_or_is_silent_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    for status, told in (
        (401, "it responds with HTTP 401; set MLFLOW_TRACKING_USERNAME"),
        (403, "HTTP 403"),
        (500, "500"),
    ):
        with answering(status) as uri:
            (line,) = lines(services.mlflow(Setup(tracking=uri)))
        assert line.verdict == "wrong"
        assert told in f"{line.found}; {line.advice}"
        assert line.found.startswith(f"{uri}: MLflow cannot be reached")
    with answering(200, silent=True) as uri:
        (line,) = lines(services.mlflow(Setup(tracking=uri)))
        assert "it does not respond in time" in line.found
    (line,) = lines(services.mlflow(Setup(tracking=f"http://ada:{SECRET}@127.0.0.1:1")))
    assert line.verdict == "wrong"
    assert "an address must not contain credentials" in line.found
    assert "MLFLOW_TRACKING_PASSWORD" in line.advice
    assert SECRET not in str(line)
    (line,) = lines(services.mlflow(Setup(tracking=f"sqlite:///{tmp_path}/none/mlflow.db")))
    assert (line.verdict, line.found.endswith("not there yet, the first run creates it")) == ("ok", True)
    assert list(tmp_path.iterdir()) == []
