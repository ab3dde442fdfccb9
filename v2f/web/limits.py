"""What stands between the network and the page to speak into: few doors, small bodies, a rate a client, strict headers.

Gradio serves many routes; the page needs a few of them, and only those are let through. Its uploads are named by
whoever calls: a call may name a file that was uploaded here, never another one and never an address to fetch.
"""

import json
import os
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CALL_BYTES = 64 * 1024  # of a call: the name of an upload and little else
_FORM_BYTES = 4 * 1024  # what a form adds to the file in it
_CLIENTS = 4096  # remembered
_WAITING = 64  # uploads that lie there and were not heard yet
_READ = (
    r"/|/healthz|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(static|assets|svelte)/.*|/login_check/?"
    r"|/logout|/gradio_api/(theme\.css|queue/data|upload_progress|startup-events|heartbeat/[^/]+|app_id/?"
    r"|login_check/?|user/?|token/?)"
)
_FILE = "/gradio_api/file="
_WRITE = r"/login/?|/gradio_api/(upload|queue/join|cancel|reset/?)"

HEADERS = {
    # Whatever is in the page: it loads nothing from elsewhere, and sends nothing elsewhere.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "permissions-policy": "microphone=(self), camera=(), geolocation=(), display-capture=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Rate:
    """At most ``most`` events of one client in ``seconds``, for the clients that came last."""

    def __init__(self, most: int, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.seconds, self._clock = most, seconds, clock
        self._seen: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, client: str) -> float:
        """Count an event; 0, or the seconds to wait where it is one too many (which does not count)."""
        now = self._clock()
        with self._lock:
            seen = self._seen.setdefault(client, deque())
            self._seen.move_to_end(client)
            while len(self._seen) > _CLIENTS:
                self._seen.popitem(last=False)
            while seen and now - seen[0] >= self.seconds:
                seen.popleft()
            if len(seen) >= self.most:
                return self.seconds - (now - seen[0])
            seen.append(now)
            return 0.0


class Gate:
    """ASGI middleware before Gradio. ``folder``: where uploads lie; ``max_bytes``: of one of them; ``rate``: of
    uploads, calls and tries to log in together."""

    def __init__(self, app: ASGIApp, *, folder: str, max_bytes: int, rate: Rate) -> None:
        self._app, self._folder, self._max_bytes, self._rate = app, os.path.realpath(folder), max_bytes, rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # a web socket is closed

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name.encode() for name in HEADERS}
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in own]
                message["headers"] = kept + [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        try:
            refusal, receive = await self._judge(Request(scope, receive), receive)
        except ClientDisconnect:
            return
        await (refusal or self._app)(scope, receive, with_headers)

    async def _judge(self, request: Request, receive: Receive) -> tuple[Response | None, Receive]:
        """A refusal, or how to receive the body that was looked at."""
        path = request.url.path
        if request.method in ("GET", "HEAD"):
            served = path.startswith(_FILE) and _inside(self._folder, path[len(_FILE) :])
            return (None if served or re.fullmatch(_READ, path) else _no(404, "there is nothing here")), receive
        if request.method != "POST" or not re.fullmatch(_WRITE, path):
            return _no(404, "there is nothing here"), receive
        upload = path.endswith("/upload")
        length = Headers(scope=request.scope).get("content-length", "")
        most = self._max_bytes + _FORM_BYTES if upload else CALL_BYTES
        if not length.isdecimal():
            return _no(411, "say how long the body is"), receive
        if int(length) > most:
            return _no(413, f"the body has {int(length):,} bytes, at most {most:,} are taken"), receive
        if path.endswith(("/upload", "/join", "/login", "/login/")):
            wait = self._rate.take(client_of(request))
            if wait:
                refusal = _no(429, f"too many clips in a minute; wait {wait:.0f} s")
                refusal.headers["retry-after"] = str(int(wait) + 1)
                return refusal, receive
        if upload and len(os.listdir(self._folder)) >= _WAITING:
            return _no(503, "too many clips wait to be heard; try again in a minute"), receive
        if path.endswith("/join"):
            body = await request.body()
            if not _names_uploads_only(body, self._folder):
                return _no(400, "a call may name a file that was uploaded here, and nothing else"), receive
            return None, _again(body, receive)
        return None, receive


class Under:
    """ASGI middleware of a page that the world sees under ``root``, such as ``/voice``: whether a proxy takes that off
    the path or leaves it there, what comes behind is the same."""

    def __init__(self, app: ASGIApp, *, root: str) -> None:
        self._app, self._root = app, root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path == self._root:  # links of the page are relative to the slash
            await RedirectResponse(f"{self._root}/", 308)(scope, receive, send)
            return
        if path.startswith(f"{self._root}/"):
            behind = path[len(self._root) :]
            scope = {**scope, "path": behind, "raw_path": quote(behind).encode()}
        await self._app(scope, receive, send)


def client_of(request: Any) -> str:
    """Who calls: the address, of a proxy on this machine the one that it names."""
    return request.client.host if request.client else "unknown"


def sweep(folder: str, seconds: float, now: float) -> None:
    """Remove uploads that nobody asked an answer for, ``seconds`` after they were written, and folders left empty."""
    for at in sorted(Path(folder).rglob("*"), reverse=True):  # what is inside of a folder before it
        try:
            if now - at.stat().st_mtime >= seconds:
                at.rmdir() if at.is_dir() else at.unlink()
        except OSError:  # gone meanwhile, or a folder that is not empty
            continue


def _no(status: int, why: str) -> Response:
    return JSONResponse({"detail": why, "error": why}, status)


def _inside(folder: str, path: str) -> bool:
    return os.path.realpath(path).startswith(folder + os.sep)


def _names_uploads_only(body: bytes, folder: str) -> bool:
    try:
        call = json.loads(body)
    except ValueError:
        return False
    return all(
        isinstance(each["path"], str) and _inside(folder, each["path"]) for each in _groups(call) if "path" in each
    )


def _groups(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from _groups(each)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            yield from _groups(each)


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, to be read once more."""
    sent = False

    async def once() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once
