"""One writer at a time: a run's checkpoints and a data set belong to one owner, by a lease that the owner renews.

    ROOT/lease/00000007.json   the seventh term: who, where, what for, and a count that grows while the owner lives
    take:    the highest term is over -> create the next number, where nothing may be yet -> is it mine, and highest?
    renew:   every RENEW_S the owner of a term writes it anew, and looks whether there is a higher one
    commit:  with lease.holding(): look once more, then write; the number goes into what is committed

A term is over once its owner has ended it, once its content has not changed for EXPIRY_S on the monotonic clock of
whoever waits (no clock of another machine is ever read), or once its process is known to be gone from this machine. An
owner whose term lapsed, but was not taken, goes on. Numbers only grow, so that a commit tells whether its owner had
been superseded: readers leave those out (:mod:`v2f.runs.checkpoint`).

Terms with the same ``share`` hold together, one for each ``member``: the parts of one pack. Every other writer waits,
and is refused.

Where a number can only be created once (a disk; S3 with ``If-None-Match``) that decides between two contenders. Some
stores check it without a lock (OpenStack Swift), so on a store it is read back after SETTLE_S. On a disk, checks and
what they are for run under a file lock: an owner that was paused between the two cannot be superseded in there. On a
store it can, and its one request may come late: :meth:`Lease.put` makes that request depend on what was there, where
the store compares (``If-Match``); elsewhere nothing guards against a pause of EXPIRY_S right there.
"""

import contextlib
import fcntl
import json
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NoReturn

from v2f import processes
from v2f.errors import V2FError
from v2f.storage import store
from v2f.storage.records import Record, problem_of

FOLDER = "lease"
EXPIRY_S = 45.0
RENEW_S = 10.0
SETTLE_S = 2.0  # on a store, between creating a number and believing it
_LOOK_S = 1.0
_SUFFIX = ".json"
_LOCK = "lock"


class HeldError(V2FError):
    """Somebody else who lives has it."""

    again = True


class LostError(V2FError):
    """It is this owner's no more: another one has taken over, or (``gone``) the folder is not there any more."""

    again = True

    def __init__(self, message: str, *, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone


class Clock:
    """The time of this machine that no setting of the date moves."""

    def now(self) -> float:
        return time.monotonic()

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True)
class Term:
    """What a lease's file says. ``process``: its owner's, by :func:`v2f.processes.identity`; ``note``: what the owner
    keeps beside it."""

    number: int
    owner: str
    what: str
    share: str | None
    host: str
    process: str
    beat: int = 0
    ended: bool = False
    member: str | None = None
    note: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.what} (process {self.process.partition(':')[0]} on {self.host})"

    def gone(self) -> bool:
        """Whether its process ran on this machine and is no more; False where that cannot be known."""
        return processes.is_gone(self.process) is True

    def together(self, share: str | None, member: str | None = None) -> bool:
        return share is not None and share == self.share and (member is None or member != self.member)


class _Told(Record):
    """What of a term's file is relied on."""

    owner: str
    share: str | None
    process: str
    beat: int
    ended: bool
    member: str | None
    note: dict[str, Any]


class Lease:
    """An owner's hold on ``root``, from :meth:`take` to the end of the ``with`` block."""

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
        """Own ``root``, in order to do ``what``; :class:`HeldError` if a living owner does not end within EXPIRY_S.

        ``note``: what the new term carries, given the highest one before it. ``say`` is told for whom it waits,
        ``interrupted`` whether to go on waiting. ``renewing``: in a thread, else :meth:`renew` is the caller's.
        ``lasting``: the number stays when the lease ends, so that the next is higher; else nothing stays.
        """
        clock = clock or Clock()
        began = clock.now()
        watched: dict[int, tuple[Term, float]] = {}
        changed, told = -math.inf, False
        while True:
            numbers, terms = _standing(root)
            now = clock.now()
            for term in terms:
                before = watched.get(term.number)
                if before is None or before[0] != term:
                    watched[term.number] = term, now
                    changed = changed if before is None else now
            living = [t for t in terms if not t.ended and not t.gone() and now - watched[t.number][1] < EXPIRY_S]
            others = [term for term in living if not term.together(share, member)]
            if not others:
                lease = cls._next(root, numbers, what, share, member, note, clock, lasting)
                if lease is not None:
                    return lease._begun(renewing)
            elif not told:
                say(f"{root}: {others[0]} has it; waiting up to {EXPIRY_S:g} s for its end")
                told = True
            whose = others[0] if others else "another process that is about to write"
            if interrupted():
                raise HeldError(f"{root}: {whose} has it, and waiting for its end was interrupted")
            # An owner that renewed it a moment ago has had its time to end; one that was seen no more may yet lapse.
            waited, lives = now - began, bool(others) and now - changed < RENEW_S + 2 * _LOOK_S
            # Of many that start together and may hold together, the slowest at creating a number is not refused for it.
            if waited >= EXPIRY_S * (1 if lives else 3 if others or share is None else 6):
                raise HeldError(
                    f"{root}: {whose} has it, and lives; wait for its end, stop it, or choose another folder"
                )
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
        """The term after ``numbers``, if no other contender was faster."""
        term = Term(
            number=numbers[-1] + 1 if numbers else 1,
            owner=secrets.token_hex(8),
            what=what,
            share=share,
            host=socket.gethostname(),
            process=processes.identity(os.getpid()) or "",
            member=member,
            note=note(_read(root, numbers[-1]) if numbers else None),
        )
        path = _path(root, term.number)
        with _locked(root) as free:
            if not free or not store.create(path, _content(term)):
                return None
        if store.local_path(root) is None:
            clock.pause(SETTLE_S)
        # A store that does not lock may have let two create one number; and whoever was paused before creating its own
        # may find higher ones.
        there = _numbers(root)
        mine, tag = _tagged(root, term.number)
        if mine is None or mine.owner != term.owner:
            return None
        above = [_read(root, number) for number in there if number > term.number]
        if any(other is not None and not other.together(share, member) for other in above):
            store.remove(path)
            return None
        for number in numbers:  # over for ever, since this number is there; those that are shared count on
            before = _read(root, number) if share is not None else None
            if before is None or not before.together(share, member):
                store.remove(_path(root, number))
        return cls(root, term, tag, lasting, clock)

    def __reduce__(self) -> tuple[Any, ...]:
        """For the owner's other processes: there it can be held, but is neither renewed nor to be ended."""
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
        """Why this owner must stop, once that was seen; no request is made."""
        return self._lost

    def keep(self, note: dict[str, Any]) -> None:
        """Have ``note`` stand in the lease from now on; :class:`LostError` if it is another's by now."""
        self._term = replace(self._term, note=note)
        self.renew()

    def renew(self) -> None:
        """Show that the owner lives; :class:`LostError` if it is another's by now."""
        # On a disk under the lock, else who was paused here would write over the number of a later owner. On a store
        # not: there the block may be a long upload, and the owner of it lives.
        with self._locking() if store.local_path(self._root) is not None else contextlib.nullcontext():
            with self._renewing:
                self._renew()

    def _renew(self) -> None:
        self._check()
        path, term = _path(self._root, self.number), replace(self._term, beat=self._term.beat + 1)
        try:
            self._tag = store.renew(path, _content(term), self._tag)
        except store.ConflictError:
            self._check()  # else it was this very request, made again after its answer was lost
            self._tag = _tagged(self._root, self.number)[1]
        except FileNotFoundError:
            self._lose(self._gone(), gone=True)
        self._term = term

    def look(self) -> None:
        """:meth:`check`, but only if nobody has for a while: for what happens often, after a process was paused."""
        if self._lost is not None:
            raise self._lost
        if self._clock.now() - self._looked > 2 * RENEW_S:
            with contextlib.suppress(store.UnreachableError):
                self.check()

    def check(self) -> None:
        """:class:`LostError` if another owner has taken over, or what was owned is no longer there."""
        with self._renewing:
            self._check()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """A block that commits: it is this owner's when it begins, and on a disk until it ends."""
        with self._locking() as outermost:
            if outermost:
                self.check()
            yield

    @contextlib.contextmanager
    def _locking(self) -> Iterator[bool]:
        """One thread of the owner at a time, on a disk under the lock; whether it is no block within such a block."""
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
        """Have ``data`` stand in a small file whose name all owners use; :class:`LostError` if it is another's by now.

        Where the store compares, an owner that was superseded cannot replace what its successor has written.
        """
        while True:
            there, tag = store.read_tagged(path)
            if there == data:
                return
            with self.holding():
                if store.local_path(path) is not None:
                    store.write_bytes(path, data)
                    return
                if there is None:
                    if store.create(path, data):
                        return
                    continue
                with contextlib.suppress(store.ConflictError):
                    store.renew(path, data, tag)
                    return

    def settle(self) -> None:
        """On a store that may let two create one object: wait until what was created stays as it is."""
        if store.local_path(self._root) is None:
            self._clock.pause(SETTLE_S)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Leave it to the next owner; what cannot be told will lapse."""
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
                store.remove(_path(self._root, self.number))
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
                continue  # a store that is away: nobody else can take it there either

    def _check(self) -> None:
        if self._lost is not None:
            raise self._lost
        # A store's listing may be late (Swift's is): the next number, and its own, are asked for by name.
        above = {number for number in _numbers(self._root) if number > self.number} | {self.number + 1}
        for number in sorted(above, reverse=True):
            other = _read(self._root, number)
            if other is not None and not other.together(self._term.share, self._term.member):
                self._lose(
                    f"{self._root}: {other} has taken it over from {self._term}, which stops without another word"
                )
        self._looked = self._clock.now()
        mine = _read(self._root, self.number)
        if mine is None:
            self._lose(self._gone(), gone=True)
        if mine.owner != self.owner:
            self._lose(f"{self._root}: {mine} owns it, not {self._term}, which stops")

    def _gone(self) -> str:
        return (
            f"{self._root}: it was removed or renamed while {self._term} worked in it; what was not saved before is "
            "lost: restore it or start anew"
        )

    def _lose(self, why: str, *, gone: bool = False) -> NoReturn:
        self._lost = LostError(why, gone=gone)
        raise self._lost


def highest_term(root: str) -> Term | None:
    """The highest term of ``root``, whether it is over or not; None where there never was one."""
    numbers = _numbers(root)
    return _read(root, numbers[-1]) if numbers else None


def _standing(root: str) -> tuple[list[int], list[Term]]:
    """All numbers, and the terms that may live, the highest first: below one that was taken alone, or by others, none
    does."""
    numbers = _numbers(root)
    found: list[Term] = []
    for number in reversed(numbers):
        term = _read(root, number)
        if term is None:
            continue
        if found and not term.together(found[0].share):
            break
        if all(term.together(other.share, other.member) for other in found):  # else its part was begun anew
            found.append(term)
        if term.share is None:
            break
    return numbers, found


def _numbers(root: str) -> list[int]:
    names = store.names(store.join(root, FOLDER))
    stems = (name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def _path(root: str, number: int) -> str:
    return store.join(root, FOLDER, f"{number:08d}{_SUFFIX}")


def _content(term: Term) -> bytes:
    return json.dumps(asdict(term)).encode()


def _read(root: str, number: int) -> Term | None:
    return _tagged(root, number)[0]


def _tagged(root: str, number: int) -> tuple[Term | None, str | None]:
    """A term and what its store knows this very content by; None where it is not there."""
    path = _path(root, number)
    content, tag = store.read_tagged(path)
    if content is None:
        return None, None
    try:
        told = json.loads(content)
        if problem_of(_Told, told) is not None:
            raise ValueError
        term = Term(**told)
    except (ValueError, TypeError, RecursionError):
        # Not written by this version, or damaged: somebody whom nothing is known of, and who lapses.
        term = Term(number, content.decode(errors="replace"), "somebody", None, "an unknown machine", "")
    return replace(term, number=number), tag


def _clear(root: str) -> None:
    """Remove the empty folder of leases, under its lock; on a store there is none."""
    local = store.local_path(root)
    if local is not None and not _numbers(root):
        folder = os.path.join(local, FOLDER)
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                if name == _LOCK or name.startswith(".writing-"):  # half a number of an owner that was killed
                    os.unlink(os.path.join(folder, name))
            os.rmdir(folder)


@contextlib.contextmanager
def _locked(root: str, wait: bool = False) -> Iterator[bool]:
    """On a disk, the lock under which a lease is checked and used; whether it was free. Some file systems have none."""
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
                break  # the folder is gone, or not to be written to: what comes next says so
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
            # It was removed by the last owner before it was locked here: others may hold a new one.
        yield True
