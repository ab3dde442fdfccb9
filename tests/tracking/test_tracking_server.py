"""Tracking by HTTP (promise 6): servers that refuse, fail, hang, or are killed; and no secret in what is written.

``mlflow server`` with SQLite behind it is the real one; the others answer every request alike, on loopback.
"""

import base64
import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from certificates import serving
from mlflow_server import MlflowServer, until
from PIL import Image
from ports import free_port

from v2f.errors import V2FError
from v2f.tracking import delivery, mlflow_client
from v2f.tracking.state import read_state
from v2f.tracking.tracker import Tracker


def start(folder: Path, uri: str, run_id: str | None = None, patience_s: float = 60.0) -> Tracker:
    what: dict[str, Any] = {"experiment": "tests", "name": "a-run", "parameters": {"seed": 0}, "tags": {}}
    return Tracker(str(folder), uri=uri, run_id=run_id, patience_s=patience_s, **what)


@contextlib.contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server on loopback that does ``answer`` with every request; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_POST = do_PATCH = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def with_code(code: int, content: str = "no") -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content.encode())

    return answer


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        (401, "it responds with HTTP 401; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (403, "it responds with HTTP 403; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (500, "it responds with HTTP 500"),
        (507, "it responds with HTTP 507"),
        (200, "the response body was not in a valid JSON format"),  # somebody else's server
    ],
)
def test_a_server_that_refuses_or_is_full_is_said_once_and_stops_nothing(tmp_path, monkeypatch, caplog, code, shown):
    monkeypatch.setattr(delivery, "RETRY_S", 0.01)
    asked = 0

    def answer(request: BaseHTTPRequestHandler) -> None:
        nonlocal asked
        asked += 1
        with_code(code)(request)

    with answering(answer) as uri, caplog.at_level(logging.WARNING):
        with start(tmp_path, uri) as tracker:
            for step in range(1, 101):
                tracker.log(step, step, {"loss": 1.0})
            until(lambda: asked > 3)
    assert [record.name for record in caplog.records] == ["v2f", "v2f"]
    away, rest = (record.message for record in caplog.records)
    assert shown in away
    assert "they are kept and sent later" in away
    assert f"`v2f track {tmp_path}`" in rest
    assert len((tmp_path / "metrics.jsonl").read_bytes().splitlines()) == 100


def test_a_server_that_hangs_is_given_up_and_asked_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(delivery, "RETRY_S", 0.01)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    over, asked = threading.Event(), 0

    def hang(request: BaseHTTPRequestHandler) -> None:
        nonlocal asked
        asked += 1
        over.wait(60)

    with answering(hang) as uri, caplog.at_level(logging.WARNING):
        tracker = start(tmp_path, uri, patience_s=0.1)
        tracker.log(1, 1, {"loss": 1.0})
        until(lambda: asked > 1)
        begun = time.perf_counter()
        tracker.close()
        assert time.perf_counter() - begun < 10
        assert tracker.seconds < 1
        over.set()
    assert "does not accept points (it does not respond in time)" in caplog.records[0].message
    assert len(caplog.records) == 2


def test_an_address_where_nobody_listens_is_said_in_few_words(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), start(tmp_path, f"http://127.0.0.1:{free_port()}") as tracker:
        tracker.log(1, 1, {"loss": 1.0})
    assert caplog.records[0].message == (
        "tracking: MLflow does not accept points (the connection failed); they are kept and sent later"
    )


SECRETS = {
    "MLFLOW_TRACKING_USERNAME": "somebody-planted",
    "MLFLOW_TRACKING_PASSWORD": "planted-password-1",
    "AWS_SECRET_ACCESS_KEY": "planted-key-2/with+signs=",
    "AWS_SESSION_TOKEN": "planted-token-3",
}
TRACKED = """
import logging, sys
from v2f.config import flatten
from v2f.runs.config import load_config
from v2f.tracking.tracker import Tracker
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
config = load_config(sys.argv[3], [f"tracking.uri={sys.argv[2]}"])
what = dict(experiment="tests", name="a-run", parameters=flatten(config), tags={"v2f.data": config.data.path})
with Tracker(sys.argv[1], uri=config.tracking.uri, run_id=None, **what) as tracker:
    for step in range(1, 4):
        tracker.log(step, step, {"loss": 1.0})
        tracker.log_system(step, step)
print("told", tracker.run_id)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["sqlite", "a server that answers with what it was sent"])
def test_no_secret_of_the_environment_is_written_or_said(tmp_path, where):
    """The second server is one that repeats the request's Authorization in its answer, as a bad proxy's page does."""
    recipe = Path(__file__).resolve().parents[2] / "launch" / "recipes" / "quickstart.yaml"

    def repeat(request: BaseHTTPRequestHandler) -> None:
        authorization = request.headers["Authorization"]
        assert base64.b64decode(authorization.split()[1]) == b"somebody-planted:planted-password-1"
        with_code(400, f'{{"error_code": "WEIRD", "message": "{authorization} {" ".join(SECRETS.values())}"}}')(request)

    with answering(repeat) as server:
        uri = server if where != "sqlite" else f"sqlite:///{tmp_path}/mlflow.db"
        told = subprocess.run(
            [sys.executable, "-c", TRACKED, str(tmp_path / "run"), uri, str(recipe)],
            env=os.environ | SECRETS,
            capture_output=True,
            timeout=120,
        )
    assert told.returncode == 0, told.stderr.decode()
    assert (b"does not accept points" in told.stderr) == (where != "sqlite")
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert (tmp_path / "run" / "tracking.json") in written
    hidden = [secret.encode() for name, secret in SECRETS.items() if name != "MLFLOW_TRACKING_USERNAME"]
    hidden.append(base64.b64encode(b"somebody-planted:planted-password-1"))
    for place, content in [*written.items(), ("stderr", told.stderr), ("stdout", told.stdout)]:
        for secret in hidden:
            assert secret not in content, f"{secret!r} in {place}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    served = MlflowServer(tmp_path)
    served.start()
    try:
        yield served
    finally:
        served.kill()


@pytest.mark.slow
def test_a_real_server_that_is_killed_and_started_again_holds_every_point_once(tmp_path, server, monkeypatch, caplog):
    monkeypatch.setattr(delivery, "RETRY_S", 0.2)
    monkeypatch.setattr(delivery, "PACE_S", 0.05)
    folder = tmp_path / "run"
    tracker = start(folder, server.uri)

    def train(tracker: Tracker, first: int, last: int) -> None:
        for step in range(first, last + 1):
            tracker.log(step, step * 4, {"loss": 1.0 / step, "rate": 0.5})
            tracker.log(step, step * 4, {"valid/margin": 2.0 * step}, "validation")
            if step % 10 == 0:
                Image.new("RGB", (8, 8)).save(folder / f"{step}.png")
                tracker.picture(step, step * 4, str(folder / f"{step}.png"), "samples")

    with caplog.at_level(logging.WARNING):
        train(tracker, 1, 20)
        until(lambda: read_state(str(folder)).get("marks", {}).get("pictures"))
        server.kill()
        train(tracker, 21, 40)
        until(lambda: caplog.records)
        server.start()
        train(tracker, 41, 60)
        tracker.close()
        run_id = read_state(str(folder))["run_id"]
        # A fresh node: nothing but the checkpoint's run id. It repeats the steps from 51 on.
        folder = tmp_path / "fresh"
        with start(folder, server.uri, run_id) as fresh:
            train(fresh, 51, 70)

    assert [record.name for record in caplog.records] == ["v2f", "v2f"]
    assert "does not accept points (" in caplog.records[0].message
    assert caplog.records[1].message == "tracking: MLflow accepts points again"
    client = mlflow_client.connect(server.uri)
    values = {
        "loss": lambda step: 1.0 / step,
        "rate": lambda step: 0.5,
        "step": lambda step: step,
        "valid/margin": lambda step: 2.0 * step,
    }
    assert client.get_run(run_id).data.metrics.keys() == values.keys()
    for name, value in values.items():
        points = sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))
        assert points == [(step * 4, value(step)) for step in range(1, 71)]
    pictures = [file.path for file in client.list_artifacts(run_id, "images") if file.path.endswith("webp")]
    assert sorted(int(path.split("+")[2]) for path in pictures) == [step * 4 for step in range(10, 71, 10)]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "0"}


def test_a_certificate_that_is_not_trusted_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    variables = "MLFLOW_TRACKING_SERVER_CERT_PATH or REQUESTS_CA_BUNDLE"
    said = f"its certificate is not trusted; set {variables} to the file of its CA"
    with serving(tmp_path) as (address, certificate):
        with pytest.raises(V2FError, match=f"^{address}: MLflow cannot be reached: {said}"):
            mlflow_client.round_trip(address)
        for name in names[:2]:
            monkeypatch.setenv(name, str(tmp_path / "none.pem"))
            with pytest.raises(V2FError, match=f"the file named by {variables} is missing or holds no certificate"):
                mlflow_client.round_trip(address)
            monkeypatch.setenv(name, certificate)
            with pytest.raises(V2FError, match="it responds with HTTP 404"):
                mlflow_client.round_trip(address)
            monkeypatch.delenv(name)
