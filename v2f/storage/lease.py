"""One writer at a time: a run's checkpoints or a data set have one owner, whose lease must be renewed.

    ROOT/lease/00000007.json   the seventh term (:mod:`v2f.storage.term`)
    take:    the highest term has ended -> create the next number, which must not exist yet -> is it mine, and highest?
    renew:   every RENEW_S the owner rewrites its term, and checks whether there is a higher one
    commit:  with lease.holding(): check once more, then write; what is committed contains the number

A term ends when its owner ends it; when its content has not changed for EXPIRY_S on the monotonic clock of whoever
waits (the clock of another machine is never read); or when its process is known to have ended on this machine. An owner
whose term expired but was not taken over continues. Numbers only grow, so a commit shows whether its owner had been
superseded; readers ignore such commits (:mod:`v2f.runs.checkpoint`).

Terms with the same ``share`` and different ``member`` are held together, for example by the parts of one pack. Any
other writer waits, and then fails.

On a disk, and on S3 with ``If-None-Match``, only one of two contenders can create a number. Some stores check the
condition without a lock (OpenStack Swift), so on a store the number is read back after SETTLE_S. On a disk, a check and
the write that depends on it run under a file lock, so an owner that is paused between the two cannot be superseded
meanwhile. On a store it can be, and its write can arrive late: :meth:`Lease.put` makes that request conditional on the
content that was read, if the store supports ``If-Match``; otherwise nothing protects against a pause of EXPIRY_S at
exactly this point.
"""

import contextlib
import fcntl
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NoReturn

from v2f.errors import V2FError
from v2f.storage import processes, store
from v2f.storage.term import (
    FOLDER,
    Term,
    possible_owners,
    read_tagged_term,
    read_term,
    term_content,
    term_numbers,
    term_path,
)

EXPIRY_S = 45.0
RENEW_S = 10.0
SETTLE_S = 2.0  # on a store, between creating a number and reading it back
_LOOK_S = 1.0
_LOCK = "lock"


class HeldError(V2FError):
    """Another owner, which is alive, has the lease."""

    retryable = True


class LostError(V2FError):
    """This owner has lost the lease: another one has taken over, or (``gone``) the folder no longer exists."""

    retryable = True

    def __init__(self, message: str, *, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone


class Clock:
    """Monotonic time; tests replace it."""

    def now(self) -> float:
        return time.monotonic()

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)


class Lease:
    """The exclusive or shared ownership of ``root``, from :meth:`take` to the end of the ``with`` block."""

    def __init__(self, root: str, term: Term, tag: str | None, lasting: bool, clock: Clock | None = None) -> None:
        self._root, self._term, self._tag, self._lasting = root, term, tag, lasting
        self._clock = clock or Clock()
        self._looked = self._clock.now()
        self._lost: LostError | None = None
        self._renewing = threading.Lock()
        self._held, self._depth = threading.RLock(), 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def take(
        cls,
        root: str,
        what: str,
        *,
        share: str | None = None,
        member: str | None = None,
        note: Callable[[Term | None], dict[str, Any]] = lambda before: {},
        say: Callable[[str], None] = lambda line: None,
        interrupted: Callable[[], bool] = lambda: False,
        clock: Clock | None = None,
        renewing: bool = True,
        lasting: bool = True,
    ) -> "Lease":
        """Become the owner of ``root``; :class:`HeldError` if an owner that is alive does not finish within EXPIRY_S.

        Args:
            what: what the owner does, for messages.
            share, member: owners with the same share and different members may hold the lease together.
            note: returns what the new term stores, given the highest term before it.
            say: called with a message if there is an owner to wait for.
            interrupted: whether to stop waiting.
            renewing: renew in a thread; otherwise the caller has to call :meth:`renew`.
            lasting: keep the number when the lease ends, so that the next one is higher; otherwise nothing is kept.
        """
        clock = clock or Clock()
        began = clock.now()
        watched: dict[int, tuple[Term, float]] = {}
        changed, announced = -math.inf, False
        while True:
            numbers = term_numbers(root)
            terms = possible_owners(root, numbers)
            now = clock.now()
            for term in terms:
                before = watched.get(term.number)
                if before is None or before[0] != term:
                    watched[term.number] = term, now
                    changed = changed if before is None else now
            alive = [t for t in terms if not t.ended and not t.process_gone() and now - watched[t.number][1] < EXPIRY_S]
            others = [term for term in alive if not term.compatible(share, member)]
            if not others:
                lease = cls._next(root, numbers, what, share, member, note, clock, lasting)
                if lease is not None:
                    return lease._begun(renewing)
            elif not announced:
                say(f"{root}: in use by {others[0]}; waiting up to {EXPIRY_S:g} s for it to finish")
                announced = True
            holder = others[0] if others else "another process that is starting"
            if interrupted():
                raise HeldError(f"{root}: in use by {holder}, and the wait for it was interrupted; start again")
            # An owner that has just renewed had time enough to finish; one that has stopped renewing may still expire.
            waited, renewed = now - began, bool(others) and now - changed < RENEW_S + 2 * _LOOK_S
            # Many members that start together compete for numbers, so the slowest of them gets more time.
            if waited >= EXPIRY_S * (1 if renewed else 3 if others or share is None else 6):
                way_out = "wait for it to finish, stop it, or choose another folder"
                raise HeldError(f"{root}: in use by {holder}, which is running; {way_out}")
            clock.pause(_LOOK_S if others else _LOOK_S / 3)

    @classmethod
    def _next(
        cls,
        root: str,
        numbers: list[int],
        what: str,
        share: str | None,
        member: str | None,
        note: Callable[[Term | None], dict[str, Any]],
        clock: Clock,
        lasting: bool,
    ) -> "Lease | None":
        """A lease with the number after ``numbers``; None if another contender was faster."""
        term = Term(
            number=numbers[-1] + 1 if numbers else 1,
            owner=secrets.token_hex(8),
            what=what,
            share=share,
            host=socket.gethostname(),
            process=processes.identity(os.getpid()) or "",
            member=member,
            note=note(read_term(root, numbers[-1]) if numbers else None),
        )
        path = term_path(root, term.number)
        with _locked(root) as free:
            if not free or not store.create(path, term_content(term)):
                return None
        if store.local_path(root) is None:
            clock.pause(SETTLE_S)
        # A store without locks may let two contenders create one number, and one that was paused before creating its
        # number may find higher ones.
        numbers_now = term_numbers(root)
        mine, tag = read_tagged_term(root, term.number)
        if mine is None or mine.owner != term.owner:
            return None
        above = [read_term(root, number) for number in numbers_now if number > term.number]
        if any(other is not None and not other.compatible(share, member) for other in above):
            store.remove(path)
            return None
        for number in numbers:  # ended for good, since a higher number exists; except those of the same share
            before = read_term(root, number) if share is not None else None
            if before is None or not before.compatible(share, member):
                store.remove(term_path(root, number))
        return cls(root, term, tag, lasting, clock)

    def __reduce__(self) -> tuple[Any, ...]:
        """For the owner's other processes, which may commit but neither renew nor end the lease."""
        return Lease, (self._root, self._term, None, self._lasting)

    @property
    def number(self) -> int:
        return self._term.number

    @property
    def owner(self) -> str:
        return self._term.owner

    @property
    def note(self) -> dict[str, Any]:
        return self._term.note

    @property
    def lost(self) -> LostError | None:
        """Why this owner must stop, if it is known already; makes no request."""
        return self._lost

    def keep(self, note: dict[str, Any]) -> None:
        """Store ``note`` in the lease; :class:`LostError` if another owner has taken over."""
        self._term = replace(self._term, note=note)
        self.renew()

    def renew(self) -> None:
        """Show that the owner is alive; :class:`LostError` if another owner has taken over."""
        # On a disk under the lock: otherwise an owner that was paused here would overwrite the term of a later owner.
        # Not on a store: there a commit can be a long upload, during which the lease must be renewed.
        with self._locking() if store.local_path(self._root) is not None else contextlib.nullcontext():
            with self._renewing:
                self._renew()

    def _renew(self) -> None:
        self._check()
        path, term = term_path(self._root, self.number), replace(self._term, beat=self._term.beat + 1)
        try:
            self._tag = store.renew(path, term_content(term), self._tag)
        except store.ConflictError:
            self._check()  # passes if it was this very request, made again because its answer was lost
            self._tag = read_tagged_term(self._root, self.number)[1]
        except FileNotFoundError:
            self._lose(self._gone(), gone=True)
        self._term = term

    def look(self) -> None:
        """Like :meth:`check`, but only if the last check is old, as after a pause of the process: cheap enough for
        every step."""
        if self._lost is not None:
            raise self._lost
        if self._clock.now() - self._looked > 2 * RENEW_S:
            with contextlib.suppress(store.UnreachableError):
                self.check()

    def check(self) -> None:
        """Raise :class:`LostError` if another owner has taken over, or the folder no longer exists."""
        with self._renewing:
            self._check()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """A block that commits: it is checked that this owner has the lease when the block begins; on a disk no other
        can take it until the block ends."""
        with self._locking() as outermost:
            if outermost:
                self.check()
            yield

    @contextlib.contextmanager
    def _locking(self) -> Iterator[bool]:
        """Lets one thread of this owner in at a time, on a disk under the file lock; False for a nested block."""
        with self._held:
            if self._depth:
                yield False
                return
            with _locked(self._root, wait=True):
                self._depth = 1
                try:
                    yield True
                finally:
                    self._depth = 0

    def put(self, path: str, data: bytes) -> None:
        """Write a small file that every owner writes under the same name; :class:`LostError` if another has taken over.

        If the store supports ``If-Match``, a superseded owner cannot replace what its successor has written.
        """
        while True:
            content, tag = store.read_tagged(path)
            if content == data:
                return
            with self.holding():
                if store.local_path(path) is not None:
                    store.write_bytes(path, data)
                    return
                if content is None:
                    if store.create(path, data):
                        return
                    continue
                with contextlib.suppress(store.ConflictError):
                    store.renew(path, data, tag)
                    return

    def settle(self) -> None:
        """On a store, which may let two writers create one object: wait until one of the two has prevailed."""
        if store.local_path(self._root) is None:
            self._clock.pause(SETTLE_S)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Give up the lease; if the store does not respond, it expires by itself."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(RENEW_S)
        with contextlib.suppress(V2FError):
            if self._lasting:
                self._term = replace(self._term, ended=True)
                self.renew()
                return
            with self._locking():
                self.check()
                store.remove(term_path(self._root, self.number))
                _clear(self._root)

    def _begun(self, renewing: bool) -> "Lease":
        if renewing:
            self._thread = threading.Thread(target=self._renew_on, name="lease", daemon=True)
            self._thread.start()
        return self

    def _renew_on(self) -> None:
        while not self._over.wait(RENEW_S):
            try:
                self.renew()
            except LostError:
                return
            except V2FError:
                continue  # the store does not respond: nobody else can take the lease either

    def _check(self) -> None:
        if self._lost is not None:
            raise self._lost
        # A store's listing can lag (Swift's does), so the next number and our own are read by name.
        above = {number for number in term_numbers(self._root) if number > self.number} | {self.number + 1}
        for number in sorted(above, reverse=True):
            other = read_term(self._root, number)
            if other is not None and not other.compatible(self._term.share, self._term.member):
                self._lose(f"{self._root}: {other} has taken over from {self._term}, which stops without writing more")
        self._looked = self._clock.now()
        mine = read_term(self._root, self.number)
        if mine is None:
            self._lose(self._gone(), gone=True)
        if mine.owner != self.owner:
            self._lose(f"{self._root}: the lease belongs to {mine}, not to {self._term}, which stops")

    def _gone(self) -> str:
        return (
            f"{self._root}: it was removed or renamed while {self._term} was using it, and what was not saved is lost; "
            "restore it or start anew"
        )

    def _lose(self, why: str, *, gone: bool = False) -> NoReturn:
        self._lost = LostError(why, gone=gone)
        raise self._lost


def _clear(root: str) -> None:
    """Remove the folder of leases if it has no terms, under its lock; a store has no folders."""
    local = store.local_path(root)
    if local is not None and not term_numbers(root):
        folder = os.path.join(local, FOLDER)
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                if name == _LOCK or name.startswith(".writing-"):  # left by an owner that was killed
                    os.unlink(os.path.join(folder, name))
            os.rmdir(folder)


@contextlib.contextmanager
def _locked(root: str, wait: bool = False) -> Iterator[bool]:
    """On a disk, the file lock under which a lease is checked and used; False if it is taken. Some file systems have no
    locks."""
    local = store.local_path(root)
    if local is None:
        yield True
        return
    folder = os.path.join(local, FOLDER)
    path = os.path.join(folder, _LOCK)
    with contextlib.ExitStack() as opened:
        while True:
            try:
                if not wait:
                    os.makedirs(folder, exist_ok=True)
                handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError:
                break  # the folder is gone or not writable: the write that follows reports it
            opened.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            except OSError:
                break
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    break
            # The last owner removed the file before it was locked here; others may hold a new one.
        yield True
