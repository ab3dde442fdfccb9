"""Several writers at once, taken apart at each of their requests to a store, in an order that a test chooses.

    writers = Interleaved()
    writers.start("a", function)
    writers.step("a")        # until its next request, or its end; nobody else runs meanwhile
    writers.kill("a")        # it never makes another one: what kill -9 leaves

Each writer is a thread that waits for its turn before every request (:meth:`Interleaved.point`), so that a schedule is
a list of names and a failure comes again. Time is the writers' own (:class:`Time`): it passes only where one of them
pauses, or where the test says so.
"""

import contextlib
import fcntl
import os
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from v2f import lease, s3, store

_DISK = ("names", "exists", "create", "read_tagged", "read_bytes", "renew", "write_bytes", "remove", "tree")
_FAR = 200  # requests
PATIENCE_S = 60.0  # of this machine, for a writer that hangs: a defect of a test


class Killed(BaseException):
    """Ends a writer where it stands; nothing that catches errors catches it."""


class _Writer:
    def __init__(self, name: str, function: Callable[[], Any]) -> None:
        self.name, self.result, self.error = name, None, None
        self.go, self.there = threading.Semaphore(0), threading.Semaphore(0)
        self.killed = self.over = False
        self.thread = threading.Thread(target=self._run, args=(function,), name=f"writer-{name}", daemon=True)

    def _run(self, function: Callable[[], Any]) -> None:
        self.go.acquire()
        try:
            if not self.killed:
                self.result = function()
        except Killed:
            pass
        except Exception as error:
            self.error = error
        finally:
            self.over = True
            self.there.release()

    error: Exception | None
    result: Any
    pending = ""  # the request that it is about to make


class Interleaved:
    """The writers of one test, by name."""

    def __init__(self) -> None:
        self.writers: dict[str, _Writer] = {}
        self._of: dict[threading.Thread, _Writer] = {}

    def start(self, name: str, function: Callable[[], Any]) -> None:
        writer = _Writer(name, function)
        self.writers[name] = self._of[writer.thread] = writer
        writer.thread.start()

    def point(self, request: str = "") -> None:
        """Called before each request: a writer waits here for its turn; who is none goes on."""
        writer = self._of.get(threading.current_thread())
        if writer is None:
            return
        if not writer.killed:
            writer.pending = request
            writer.there.release()
            writer.go.acquire()
        if writer.killed:
            raise Killed

    def step(self, name: str) -> bool:
        """Let a writer go on to its next request; whether it has one."""
        writer = self.writers[name]
        if not writer.over:
            writer.go.release()
            assert writer.there.acquire(timeout=PATIENCE_S), f"{name} hangs between two requests"
        return not writer.over

    def kill(self, name: str) -> None:
        writer = self.writers[name]
        writer.killed = True
        self.step(name)
        writer.thread.join(PATIENCE_S)

    def advance(self, name: str, how: int | str) -> None:
        """Let a writer take so many steps; 0 kills it. A pattern: until it is about to make a request like that, but
        for the one that is pending."""
        if how == 0:
            self.kill(name)
        elif isinstance(how, int):
            for _ in range(how):
                self.step(name)
        else:
            for _ in range(_FAR):  # it may wait for one that is paused
                if not self.step(name) or re.search(how, self.writers[name].pending):
                    break

    def finish(self) -> None:
        """Let all that live run to their end, in turn."""
        while living := [name for name, writer in self.writers.items() if not writer.over]:
            for name in living:
                self.step(name)


class Time(lease.Clock):
    """The clock of all writers of a test."""

    def __init__(self, writers: Interleaved) -> None:
        self.seconds, self._writers = 1000.0, writers

    def now(self) -> float:
        return self.seconds

    def pause(self, seconds: float) -> None:
        self._writers.point()
        self.seconds += seconds


def on_a_disk(writers: Interleaved, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each call of the store a point, and a lock that is waited for, too."""
    for name in _DISK:
        monkeypatch.setattr(store, name, _pointed(writers, getattr(store, name)))
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # no test pulls the plug
    flock = fcntl.flock

    def patient(handle: int, how: int) -> None:
        while not how & fcntl.LOCK_NB:
            try:
                return flock(handle, how | fcntl.LOCK_NB)
            except BlockingIOError:
                writers.point()
        flock(handle, how)

    monkeypatch.setattr(lease.fcntl, "flock", patient)


def _pointed(writers: Interleaved, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*values: Any, **named: Any) -> Any:
        writers.point(f"{function.__name__} {values[0]}")
        return function(*values, **named)

    return call


class FakeS3:
    """An S3 of one process in place of :mod:`v2f.s3`: each request is a point, and acts at once when its turn comes.

    ``locks``: whether ``If-None-Match`` and the write are one act; in Swift they are two.
    """

    def __init__(self, writers: Interleaved, monkeypatch: pytest.MonkeyPatch, *, locks: bool) -> None:
        self.objects: dict[str, bytes] = {}
        self._writers, self._locks = writers, locks
        for name in ("page", "get", "read", "put", "create", "size", "delete"):
            monkeypatch.setattr(s3, name, getattr(self, name))

    def page(self, path: str, token: str | None, limit: int = 1000, deep: bool = False) -> tuple[list[str], None]:
        self._writers.point(f"page {path}")
        prefix = path.rstrip("/") + "/"
        below = [key.removeprefix(prefix) for key in self.objects if key.startswith(prefix)]
        return sorted(set(below if deep else [key.split("/")[0] for key in below])), None

    def get(self, path: str, offset: int, stop: int | None, etag: str | None) -> Any:
        self._writers.point(f"get {path}")
        content = self._content(path)
        if offset >= len(content):
            raise s3.BeyondEndError("HTTP 416")
        return contextlib.nullcontext(s3.Answer(len(content), None, iter([content[offset:stop]])))

    def read(self, path: str) -> tuple[bytes, str | None]:
        self._writers.point(f"read {path}")
        return self._content(path), None

    def size(self, path: str) -> int:
        self._writers.point(f"size {path}")
        return len(self._content(path))

    def put(self, path: str, body: bytes, *, match: str | None = None) -> str | None:
        self._writers.point(f"put {path}")
        self.objects[path] = bytes(body)
        return None

    def create(self, path: str, body: bytes) -> bool:
        self._writers.point(f"create {path}")
        if path in self.objects:
            return False
        if not self._locks:
            self._writers.point(f"create, having looked, {path}")
        self.objects[path] = bytes(body)
        return True

    def delete(self, path: str) -> None:
        self._writers.point(f"delete {path}")
        self.objects.pop(path, None)

    def _content(self, path: str) -> bytes:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path]
