"""What the gate before the page lets through: the page's own routes, small bodies, its own uploads, a limited rate."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the page to speak into needs v2f[serve]")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from v2f.web.limits import CALL_BYTES, HEADERS, Gate, Rate, sweep


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    return uploads


def client(folder: Path, most: int = 100, max_bytes: int = 1000) -> TestClient:
    """The gate before an application that answers everything with what it was sent."""

    async def echo(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await request.body() or b"in", headers={"x-frame-options": "ALLOWALL"})

    app = Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST", "PUT", "DELETE"])])
    app.add_middleware(Gate, folder=str(folder), max_bytes=max_bytes, rate=Rate(most, clock=Clock()))
    return TestClient(app)


@pytest.fixture
def gate(folder: Path) -> Iterator[TestClient]:
    with client(folder) as found:
        yield found


@pytest.mark.parametrize("path", ["/", "/healthz", "/config", "/theme.css", "/assets/a.js", "/static/img/a.svg"])
def test_the_pages_own_routes_are_open_and_carry_the_headers(gate: TestClient, path: str) -> None:
    answer = gate.get(path)
    assert (answer.status_code, answer.text) == (200, "in")
    for name, value in HEADERS.items():
        assert answer.headers.get_list(name) == [value]  # the application's own is replaced


@pytest.mark.parametrize(("method", "path"), [
    ("GET", "/gradio_api/info"),
    ("GET", "/gradio_api/openapi.json"),
    ("GET", "/gradio_api/proxy=https://example.org/"),
    ("GET", "/gradio_api/file=/etc/passwd"),
    ("GET", "/monitoring"),
    ("GET", "/gradio_api/runs"),
    ("POST", "/gradio_api/run/asked"),
    ("POST", "/gradio_api/call/asked"),
    ("POST", "/gradio_api/vibe-edit"),
    ("POST", "/gradio_api/component_server"),
    ("POST", "/gradio_api/process_recording"),
    ("PUT", "/gradio_api/upload"),
    ("DELETE", "/"),
])  # fmt: skip
def test_every_other_route_is_closed(gate: TestClient, method: str, path: str) -> None:
    answer = gate.request(method, path, content=b"{}" if method == "POST" else None)
    assert answer.status_code == 404
    assert "content-security-policy" in answer.headers


def test_a_file_is_given_only_from_the_folder_of_uploads(gate: TestClient, folder: Path) -> None:
    (folder / "a.wav").write_bytes(b"a")
    (folder / "link.wav").symlink_to("/etc/hostname")
    assert gate.get(f"/gradio_api/file={folder}/a.wav").status_code == 200
    assert gate.get(f"/gradio_api/file={folder}/../uploads-of-others/a.wav").status_code == 404
    assert gate.get(f"/gradio_api/file={folder}/link.wav").status_code == 404
    assert gate.get(f"/gradio_api/file={folder}").status_code == 404


def test_bodies_are_bounded_before_they_are_read(gate: TestClient) -> None:
    assert gate.post("/gradio_api/upload", content=b"x" * 1000).status_code == 200
    assert gate.post("/gradio_api/upload", content=b"x" * 10_000).status_code == 413
    assert gate.post("/gradio_api/queue/join", content=b"x" * (CALL_BYTES + 1)).status_code == 413
    assert gate.post("/gradio_api/upload", content=iter([b"x" * 10])).status_code == 411  # of unknown length


def call(path: Any) -> bytes:
    data = [{"path": path, "url": "http://127.0.0.1/x", "meta": {"_type": "gradio.FileData"}}]
    return json.dumps({"data": data, "fn_index": 0, "session_hash": "s"}).encode()


def test_a_call_names_uploads_of_this_page_and_nothing_else(gate: TestClient, folder: Path) -> None:
    good = call(f"{folder}/abc/a.wav")
    answer = gate.post("/gradio_api/queue/join", content=good)
    assert (answer.status_code, answer.content) == (200, good)  # the body arrives, though it was looked at
    for path in ("http://192.0.2.1/secret", "/etc/passwd", f"{folder}/../x", str(folder), 7, None, ["/etc/passwd"]):
        assert gate.post("/gradio_api/queue/join", content=call(path)).status_code == 400
    assert gate.post("/gradio_api/queue/join", content=b"not json").status_code == 400
    nested = json.dumps({"data": [[{"deep": [{"path": "/etc/passwd"}]}]]})
    assert gate.post("/gradio_api/queue/join", content=nested).status_code == 400


def test_one_client_is_slowed_down_and_told_for_how_long(folder: Path) -> None:
    with client(folder, most=2) as gate:
        codes = [gate.post("/gradio_api/upload", content=b"x").status_code for _ in range(3)]
        assert codes == [200, 200, 429]
        refused = gate.post("/gradio_api/upload", content=b"x")
        assert refused.headers["retry-after"] == "61"
        assert refused.json()["error"] == "too many requests; wait 61 s, then try again"
        assert gate.post("/login", content=b"x").status_code == 429  # who guesses passwords is slowed down, too
        assert gate.get("/").status_code == 200


def test_no_more_uploads_than_can_be_heard(gate: TestClient, folder: Path) -> None:
    for number in range(64):
        (folder / str(number)).mkdir()
    assert gate.post("/gradio_api/upload", content=b"x").status_code == 503


def test_a_rate_is_of_each_client_and_of_the_last_minute() -> None:
    clock = Clock()
    rate = Rate(2, 60.0, clock)
    assert [rate.take("a"), rate.take("a")] == [0, 0]
    clock.now = 10.0
    assert rate.take("a") == 50.0
    assert rate.take("b") == 0
    clock.now = 60.0
    assert [rate.take("a"), rate.take("a")] == [0, 0]  # what was refused did not count
    assert rate.take("a") == 60.0


def test_a_rate_remembers_a_bounded_number_of_clients() -> None:
    rate = Rate(1, 60.0, Clock())
    for number in range(10_000):
        rate.take(str(number))
    assert len(rate._seen) < 5000
    assert rate.take("9999") == 60.0


def test_forgotten_uploads_are_swept_with_their_folders(folder: Path) -> None:
    for name, age in (("old", 100.0), ("new", 10.0)):
        (folder / name).mkdir()
        (folder / name / "a.wav").write_bytes(b"a")
        for path in (folder / name / "a.wav", folder / name):
            os.utime(path, (1000.0 - age, 1000.0 - age))
    sweep(str(folder), 60.0, now=1000.0)
    assert not (folder / "old" / "a.wav").exists()
    assert (folder / "new" / "a.wav").exists()
    sweep(str(folder), 60.0, now=2e10)  # a removal made the folder new again
    assert list(folder.iterdir()) == []
