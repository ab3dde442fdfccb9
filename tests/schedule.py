"""Several writers in one test process, interleaved store operation by store operation, with a clock that a test moves.

    with World(store) as world:
        one = world.start("one", lambda: remove(root, ["ada"]))      # a thread that stops before each operation
        world.play([("run", 0, 7), ("pause", 0, 0), ...], watch)     # who goes on, is killed, paused for long, woken
        world.finish()                                               # all go on, those that were paused last

A writer that is killed does nothing more to the store. The lease of one that lives is renewed as the clock moves, that
of one that is paused is not. ``store``: "disk"; "s3", objects in memory, with conditions on writes as AWS has them; or
"swift", which ignores ``If-Match``, and looks and then writes where ``If-None-Match`` is asked. Against a pause between
such a store's look and the one request after it there is nothing, so nobody is paused for long right there.
"""

import contextlib
import fcntl
import hashlib
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from v2f.storage import disk, lease, s3, store

STORES = ("disk", "s3", "swift")
LAPSE_S = lease.EXPIRY_S + 15
_READS = ("names", "exists", "size", "read_bytes", "read_range", "read_tagged")
_WRITES = ("create", "renew", "remove", "replacing")


class Killed(BaseException):
    """What a process cannot catch."""


class Busy(BaseException):
    """The lease cannot be renewed at this moment: its process holds what that takes."""


class Process:
    """A writer: ``result`` or ``error`` once it is over, ``waited``: seconds until it first had a lease."""

    def __init__(self, world: "World", name: str, act: Callable[[], Any]) -> None:
        self.world, self.name, self._act = world, name, act
        self.go, self.killed, self.paused, self.over, self.blocked = threading.Semaphore(0), False, False, False, False
        self.until = self.began = world.now
        self.inside, self.writing = 0, False
        self.waited: float | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.leases: list[lease.Lease] = []
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        self.go.acquire()
        try:
            if self.killed:
                raise Killed
            self.result = self._act()
        except BaseException as error:
            self.error = error
        self.over = True
        self.world.back.release()

    @property
    def ready(self) -> bool:
        return not (self.over or self.paused or self.blocked) and self.until <= self.world.now


class World:
    def __init__(self, kind: str, prefix: str) -> None:
        self.kind, self.root = kind, prefix
        self.now, self.steps = 1000.0, 0
        self.back = threading.Semaphore(0)
        self.processes: list[Process] = []
        self.objects: dict[str, bytes] = {}
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> "World":
        world, patch = self, self._patch

        class FakeClock(lease.Clock):
            def now(self) -> float:
                return world.now

            def pause(self, seconds: float) -> None:
                world.stop("read", world.now + seconds)

        def begun(self: lease.Lease, renewing: bool) -> lease.Lease:
            me = world.current()
            if me is not None:
                me.leases.append(self)
                me.waited = me.waited if me.waited is not None else world.now - me.began
            return self

        locking = lease.Lease._locking

        @contextlib.contextmanager
        def inside(self: lease.Lease) -> Iterator[bool]:
            me = world.current() or SimpleNamespace(inside=0)
            me.inside += 1
            try:
                with locking(self) as outermost:
                    yield outermost
            finally:
                me.inside -= 1

        dates = itertools.cycle([0.0, 4e9, 1e9])
        patch.setattr("time.time", lambda: next(dates))  # the date jumps all the time, which nothing may notice
        patch.setattr(lease, "Clock", FakeClock)
        patch.setattr(lease.Lease, "_begun", begun)
        patch.setattr(lease.Lease, "_locking", inside)
        if self.kind == "disk":
            lock = SimpleNamespace(LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB, flock=self._flock)
            patch.setattr(lease, "fcntl", lock)
            patch.setattr("os.fsync", lambda handle: None)
            for name in (*_READS, *_WRITES):
                patch.setattr(store, name, self._stopping(getattr(store, name), name))
            patch.setattr(disk.Disk, "_commit", self._stopping(disk.Disk._commit, "_commit"))
        else:
            for name in ("page", "get", "read", "size", "put", "create", "delete"):
                patch.setattr(s3, name, getattr(self, f"_s3_{name}"))
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            self.kill(process)
        self._patch.undo()

    # ------------------------------------------------------------------------------------------- what a test does

    def start(self, name: str, act: Callable[[], Any]) -> Process:
        process = Process(self, name, act)
        self.processes.append(process)
        process.thread.start()
        return process

    def alone(self, name: str, act: Callable[[], Any]) -> Process:
        """Run it to its end."""
        process = self.start(name, act)
        self.finish()
        return process

    def play(self, actions: Sequence[tuple[str, int, int]], watch: Callable[[], None] = lambda: None) -> None:
        """(what, number of the process, number of operations): run, kill, pause, wake one, or let it become late."""
        for what, number, count in actions:
            process = self.processes[number % len(self.processes)]
            if what == "run":
                for _ in range(count):
                    if process.ready:
                        self._step(process)
            elif what == "kill":
                self.kill(process)
            elif what == "pause":
                process.paused = process.paused or not self._unguarded(process)
            elif what == "wake":
                process.paused = False
            elif not any(self._unguarded(each) for each in self.processes if not (each.over or each.paused)):
                self._advance(self.now + LAPSE_S)
            watch()

    def finish(self, watch: Callable[[], None] = lambda: None) -> None:
        """Until all are over; who is paused is woken, late by then, when nobody else goes on, or they wait for it."""
        turn, began = 0, self.now
        while alive := [process for process in self.processes if not process.over]:
            ready = [process for process in alive if process.ready]
            if ready:
                turn += 1
                self._step(ready[turn % len(ready)])
            elif self.now < began + 2 * LAPSE_S and (
                sleeping := [p.until for p in alive if not p.paused and p.until > self.now]
            ):
                self._advance(min(sleeping))
            else:
                began = math.inf
                self._advance(self.now + LAPSE_S)
                watch()
                for process in alive:
                    process.paused = process.blocked = False
            assert self.steps < 100_000, "they come to no end"
        watch()

    def go_on(self, process: Process) -> None:
        """Let it make one more request; where it waits, time passes."""
        if process.over or process.paused or process.blocked:
            self._advance(self.now + lease.RENEW_S)
            process.blocked = False
            return
        self._advance(process.until)
        self._step(process)

    def kill(self, process: Process) -> None:
        process.killed = True
        while not process.over:
            process.go.release()
            self.back.acquire()

    # ------------------------------------------------------------------------------------------- what goes on here

    def current(self) -> Process | None:
        here = threading.current_thread()
        return next((process for process in self.processes if process.thread is here), None)

    def stop(self, kind: str, until: float = 0.0) -> None:
        """Called by a writer: here another may go on."""
        me = self.current()
        if me is None:
            return
        me.until, me.writing = max(until, self.now), kind == "write"
        if not me.killed:
            self.back.release()
            me.go.acquire()
        if me.killed:
            raise Killed

    def _unguarded(self, process: Process) -> bool:
        """Whether it stands where its store has nothing against a long pause."""
        return self.kind == "swift" and not process.over and (process.inside > 0 or process.writing)

    def _step(self, process: Process) -> None:
        self.steps += 1
        process.go.release()
        self.back.acquire()
        if not process.blocked:
            for each in self.processes:
                each.blocked = False

    def _advance(self, until: float) -> None:
        while self.now < until:
            self.now = min(until, self.now + lease.RENEW_S)
            for process in self.processes:
                if not (process.over or process.paused):
                    for each in process.leases:
                        self._renew(each)

    def _renew(self, held: lease.Lease) -> None:
        if held._over.is_set() or held._renewing.locked():
            return
        if self.kind == "disk":
            if not held._held.acquire(blocking=False):
                return
            held._held.release()
        with contextlib.suppress(Busy, lease.V2FError):
            held.renew()

    def _flock(self, handle: int, how: int) -> None:
        me = self.current()
        while True:
            try:
                fcntl.flock(handle, how | fcntl.LOCK_NB)
                if me is not None:
                    me.blocked = False
                return
            except BlockingIOError:
                if how & fcntl.LOCK_NB:
                    raise
                if me is None:
                    raise Busy from None
                me.blocked = True
                self.stop("read")

    def _stopping(self, act: Callable[..., Any], name: str) -> Callable[..., Any]:
        kind = "read" if name in _READS else "write"

        def stopping(*values: Any, **named: Any) -> Any:
            self.stop(kind)
            return act(*values, **named)

        return stopping

    # ------------------------------------------------------------------------------------------- objects in memory

    def _tag(self, path: str) -> str:
        return hashlib.md5(self.objects[path]).hexdigest()

    def _content(self, path: str) -> bytes:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path]

    def _s3_page(self, path: str, token: str | None, limit: int = 1000, deep: bool = False) -> tuple[list[str], None]:
        self.stop("read")
        below = [name[len(path) + 1 :] for name in self.objects if name.startswith(f"{path.rstrip('/')}/")]
        return sorted({name if deep else name.split("/")[0] for name in below})[:limit], None

    def _s3_get(self, path: str, offset: int, stop: int | None, etag: str | None) -> s3.Answer:
        self.stop("read")
        content = self._content(path)
        if etag is not None and etag != self._tag(path):
            raise s3.ExistsError("it was replaced while it was being read")
        if offset >= len(content):
            raise s3.BeyondEndError("HTTP 416")
        return s3.Answer(len(content), self._tag(path), content[offset:stop])

    def _s3_read(self, path: str) -> tuple[bytes, str]:
        self.stop("read")
        return self._content(path), self._tag(path)

    def _s3_size(self, path: str) -> int:
        self.stop("read")
        return len(self._content(path))

    def _s3_put(self, path: str, body: bytes, *, match: str | None = None) -> str:
        self.stop("write")
        if match is not None and self.kind == "s3" and self._content(path) is not None and self._tag(path) != match:
            raise s3.ExistsError("it is another")
        self.objects[path] = body
        return self._tag(path)

    def _s3_create(self, path: str, body: bytes) -> bool:
        self.stop("write")
        if path in self.objects:
            return False
        if self.kind == "swift":
            self.stop("write")
        self.objects[path] = body
        return True

    def _s3_delete(self, path: str) -> None:
        self.stop("write")
        self.objects.pop(path, None)
