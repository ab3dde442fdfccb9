"""Protects the served page from the network: few routes, small request bodies, a rate limit per client, strict headers.

Gradio serves many routes; only the few that the page needs are let through. A call names the file that it is about: it
may name a file that was uploaded to this page, but no other file and no URL to fetch.
"""

import json
import os
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CALL_BYTES = 64 * 1024  # limit for a call, which contains the name of an upload and little else
_FORM_BYTES = 4 * 1024  # what a form adds to the file in it
_CLIENTS = 4096  # clients whose requests are counted
_WAITING = 64  # uploads that have not been read yet
_READ = (
    r"/|/healthz|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(static|assets|svelte)/.*|/login_check/?"
    r"|/logout|/gradio_api/(theme\.css|queue/data|upload_progress|startup-events|heartbeat/[^/]+|app_id/?"
    r"|login_check/?|user/?|token/?)"
)
_FILE = "/gradio_api/file="
_WRITE = r"/login/?|/gradio_api/(upload|queue/join|cancel|reset/?)"

HEADERS = {
    # Whatever the page contains, it loads nothing from elsewhere and sends nothing there.
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


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits per clip and per client."""

    max_seconds: float = 30.0
    max_mb: float = 20.0
    per_minute: int = 12
    """Clips per client."""

    @property
    def max_bytes(self) -> int:
        return round(self.max_mb * 1e6)


class Rate:
    """A limit of ``most`` events per client in ``seconds``; only the most recent clients are remembered."""

    def __init__(self, most: int, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.seconds, self._clock = most, seconds, clock
        self._seen: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, client: str) -> float:
        """Count an event and return 0; if it is one too many, do not count it and return the seconds to wait."""
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
    """ASGI middleware in front of Gradio. ``folder``: where uploads are; ``max_bytes``: the largest upload; ``rate``:
    of uploads, calls and login attempts together."""

    def __init__(self, app: ASGIApp, *, folder: str, max_bytes: int, rate: Rate) -> None:
        self._app, self._folder, self._max_bytes, self._rate = app, os.path.realpath(folder), max_bytes, rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # WebSocket connections are refused

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
        """A refusal or None, and how to receive the body, part of which may have been read here."""
        path = request.url.path
        if request.method in ("GET", "HEAD"):
            served = path.startswith(_FILE) and _inside(self._folder, path[len(_FILE) :])
            return (None if served or re.fullmatch(_READ, path) else _refusal(404, "not found")), receive
        if request.method != "POST" or not re.fullmatch(_WRITE, path):
            return _refusal(404, "not found"), receive
        upload = path.endswith("/upload")
        length = Headers(scope=request.scope).get("content-length", "")
        most = self._max_bytes + _FORM_BYTES if upload else CALL_BYTES
        if not length.isdecimal():
            return _refusal(411, "a Content-Length header is required"), receive
        if int(length) > most:
            return _refusal(413, f"the body has {int(length):,} bytes; the limit is {most:,}"), receive
        if path.endswith(("/upload", "/join", "/login", "/login/")):
            wait = self._rate.take(client_of(request))
            if wait:
                whole = int(wait) + 1
                refusal = _refusal(429, f"too many requests; wait {whole} s, then try again")
                refusal.headers["retry-after"] = str(whole)
                return refusal, receive
        if upload and len(os.listdir(self._folder)) >= _WAITING:
            return _refusal(503, "too many clips are waiting to be processed; try again in a minute"), receive
        if path.endswith("/join"):
            body = await request.body()
            if not _names_uploads_only(body, self._folder):
                return _refusal(400, "a call may name only files uploaded to this page"), receive
            return None, _replay(body, receive)
        return None, receive


class RootPath:
    """ASGI middleware of a page whose public path is ``root``, such as ``/voice``: it works both with a proxy that
    strips ``root`` from the path and with one that does not."""

    def __init__(self, app: ASGIApp, *, root: str) -> None:
        self._app, self._root = app, root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path == self._root:  # the page's links need the trailing slash
            await RedirectResponse(f"{self._root}/", 308)(scope, receive, send)
            return
        if path.startswith(f"{self._root}/"):
            behind = path[len(self._root) :]
            scope = {**scope, "path": behind, "raw_path": quote(behind).encode()}
        await self._app(scope, receive, send)


def client_of(request: Any) -> str:
    """The client's address; behind a proxy on this machine, the address that the proxy gives."""
    return request.client.host if request.client else "unknown"


def sweep(folder: str, seconds: float, now: float) -> None:
    """Remove uploads, and empty folders, that are older than ``seconds``: those that no call has used."""
    for at in sorted(Path(folder).rglob("*"), reverse=True):  # a folder's contents come before the folder
        try:
            if now - at.stat().st_mtime >= seconds:
                at.rmdir() if at.is_dir() else at.unlink()
        except OSError:  # it has been removed in the meantime, or is a folder with files
            continue


def _refusal(status: int, why: str) -> Response:
    return JSONResponse({"detail": why, "error": why}, status)


def _inside(folder: str, path: str) -> bool:
    return os.path.realpath(path).startswith(folder + os.sep)


def _names_uploads_only(body: bytes, folder: str) -> bool:
    try:
        call = json.loads(body)
    except ValueError:
        return False
    return all(
        isinstance(each["path"], str) and _inside(folder, each["path"]) for each in _dicts_in(call) if "path" in each
    )


def _dicts_in(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from _dicts_in(each)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            yield from _dicts_in(each)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Replay a body that has already been read."""
    sent = False

    async def once() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once
