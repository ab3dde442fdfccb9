"""Checkpoints: named tensors and a state, as safetensors parts that their last file commits (promise 4).

    training thread: tensors of this rank -> its Saver's thread: part, then receipt (bytes, SHA-256) -> the store
                     rank 0's thread: the store lists all receipts -> checkpoint.json -> older ones are removed

``ROOT/step-00000040/part-00000-ATTEMPT.safetensors ... checkpoint.json``. Whole tensors are dealt to the ranks by
bytes; any world size reads every other's, each part once, by the rank that sends it to the others. A folder without
``checkpoint.json`` is no checkpoint. Names: ``model/MODULE.PARAMETER``, ``ema/MODULE.PARAMETER``,
``optim/PHASE/MODULE.PARAMETER/SLOT``. Nothing here knows what a system is, beyond the modules that it trains; loading
runs no code.
"""

import contextlib
import functools
import hashlib
import json
import logging
import math
import operator
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, Protocol, TypeVar

import safetensors
import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor

from v2f.errors import V2FError, unexpected
from v2f.storage import records, store
from v2f.storage.fencing import Fences
from v2f.storage.lease import Lease, LostError
from v2f.storage.local import PassingError
from v2f.storage.records import Record, problem_of
from v2f.storage.term import highest_term
from v2f.system import System, trained

log = logging.getLogger("v2f")

FORMAT = 1
COMMIT = "checkpoint.json"
Best = tuple[str, Literal["min", "max"]]
T = TypeVar("T")
_STEP = re.compile(r"step-(\d{8,})")
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit
_LONGEST_PAUSE_S = 2.0  # between two looks for the other ranks' parts
_TROUBLES = 4  # in one warning


def deal(sizes: Mapping[str, int], parts: int) -> list[list[str]]:
    """Names dealt to ``parts`` lists of about equal bytes: the largest first, each to the emptiest.

    A pure function of the names and sizes, so that every rank finds its own share without talking.
    """
    shares: list[list[str]] = [[] for _ in range(parts)]
    filled = [0] * parts
    for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
        emptiest = filled.index(min(filled))
        shares[emptiest].append(name)
        filled[emptiest] += sizes[name]
    return shares


class Saver:
    """Writes checkpoints under ``root`` in the background, one at a time; every rank has one.

    The thread does no collectives: ranks meet in the store only. Every name that it writes carries ``attempt``, a
    token that all ranks share and that no other start has, and the number of the save: what a killed attempt left is
    never taken for a part of this one, and a step that was committed before stays whole until it is committed anew.
    Kept are the newest ``keep`` (at least 2), every step that ``keep_every`` divides, and the best by ``best`` among
    those that were measured at their own step. A save that fails is told by :meth:`take_failures`, never raised; rank 0
    waits ``patience_s`` for the others' parts, which is less than the training's watchdog waits.

    ``lease``: rank 0's on ``root``. Each commit is made, and each file removed, only while it is this run's; the commit
    carries its number, so that a reader can tell those of an owner that was superseded.
    """

    def __init__(
        self,
        root: str,
        *,
        rank: int,
        world_size: int,
        attempt: str,
        keep: int,
        keep_every: int | None = None,
        best: Best | None = None,
        patience_s: float = 1200.0,
        lease: Lease | None = None,
    ) -> None:
        assert keep >= 2, "1 would leave none while the next is written"
        assert re.fullmatch(r"[0-9A-Za-z-]+", attempt), attempt
        self._root, self._rank, self._world_size, self._attempt = root, rank, world_size, attempt
        self._keep, self._keep_every, self._best = keep, keep_every, best
        self._patience_s, self._lease = patience_s, lease
        self._count = 0
        self._thread: threading.Thread | None = None
        self._given_up = threading.Event()
        self._failures: list[str] = []
        self._committed: list[str] = []
        self._known: dict[str, float | None] = {}
        self._told: set[str] = set()

    @property
    def busy(self) -> bool:
        """Whether a save is under way here."""
        return self._thread is not None and self._thread.is_alive()

    def start(
        self,
        step: int,
        shares: Sequence[Sequence[str]],
        mine: Mapping[str, Tensor],
        state: Mapping[str, Any],
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """Save ``mine``, CPU tensors that nobody writes to any more, as this rank's share of all; returns at once.

        Every rank calls it for the same saves. ``state`` (rank 0's counts) is plain JSON. ``before_commit`` is called
        by rank 0's thread, and what it raises fails the save.
        """
        assert not self.busy, "one save at a time"
        assert mine.keys() == set(shares[self._rank]), "not what was dealt"
        self._count += 1
        text = json.dumps(state) if self._rank == 0 else ""
        self._thread = threading.Thread(
            target=self._save, args=(step, mine, text, before_commit), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until the save under way is over: this rank's part is written, on rank 0 all is committed; or it failed."""
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, patience_s: float = 30.0) -> None:
        """Leave the save under way ``patience_s`` to end, then give it up: it will be no checkpoint."""
        if self._thread is not None:
            self._thread.join(patience_s)
            self._given_up.set()
            self._thread.join(_LONGEST_PAUSE_S)

    def take_failures(self) -> list[str]:
        """One line for each save of this rank that failed since the last call."""
        taken, self._failures = self._failures, []
        return taken

    def take_committed(self) -> list[str]:
        """The folders that were committed since the last call; on rank 0 only."""
        taken, self._committed = self._committed, []
        return taken

    # The saving thread -------------------------------------------------------------------------------------------

    def _save(self, step: int, mine: Mapping[str, Tensor], state: str, before_commit: Callable[[], None]) -> None:
        folder = store.join(self._root, f"step-{step:08d}")
        try:
            if self._rank == 0:
                self._tidy(but=folder)  # what failed saves left must not fill the disk
            own = store.join(folder, self._part(self._rank))
            try:
                receipt = write_tensors(own, mine)
                store.write_bytes(own + ".json", json.dumps(receipt).encode())
            except Exception as error:
                with contextlib.suppress(Exception):  # rank 0 need not wait for it
                    store.write_bytes(own + ".json", json.dumps({"failed": _line(error)}).encode())
                raise
            if self._rank == 0:
                parts = self._parts(folder)
                with self._holding():
                    before_commit()
                write_record(folder, step, parts, json.loads(state), self._lease)
                self._committed.append(folder)
                self._known.pop(folder, None)
                self._tidy()
        except Exception as error:  # whatever it is, training goes on
            self._failures.append(f"step {step} is not saved: {_line(error)}")

    def _holding(self) -> contextlib.AbstractContextManager[None]:
        return self._lease.holding() if self._lease is not None else contextlib.nullcontext()

    def _part(self, rank: int) -> str:
        return f"part-{rank:05d}-{self._attempt}-{self._count}.safetensors"

    def _parts(self, folder: str) -> list[dict[str, Any]]:
        """Name and receipt of every rank's part, as soon as the store lists them all."""
        names = [self._part(rank) for rank in range(self._world_size)]
        receipts: dict[str, dict[str, Any]] = {}
        deadline, pause = time.monotonic() + self._patience_s, 0.01
        while True:
            listed = set(store.names(folder))
            for rank, name in enumerate(names):
                if name not in receipts and name + ".json" in listed:
                    receipts[name] = records.read_record(
                        store.join(folder, name + ".json"), _Receipt, "look at the disk and the store"
                    )
                    if "failed" in receipts[name]:
                        raise V2FError(f"rank {rank} could not write its part ({receipts[name]['failed']})")
            absent = [rank for rank, name in enumerate(names) if name not in receipts or name not in listed]
            if not absent:
                return [{"name": name, **receipts[name]} for name in names]
            told = f"{folder}: no part came from rank {', '.join(map(str, absent[:8]))}{' ...' if absent[8:] else ''}"
            if self._lease is not None and self._lease.lost is not None:
                raise self._lease.lost
            if time.monotonic() >= deadline:
                raise V2FError(f"{told} for {self._patience_s:.0f} s; look there whether it lives and can write")
            if self._given_up.wait(pause):
                raise V2FError(f"{told} until the run ended")
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _tidy(self, but: str | None = None) -> None:
        """Remove the checkpoints that are not kept and all that belongs to none, ``but`` the one under way.

        A folder that cannot be read or removed is kept, and the others go all the same.
        """
        troubles: list[str] = []
        try:
            found = _listed(self._root)
            folders = _counting(self._root, [folder for folder, files in found.items() if COMMIT in files])
            kept = set(folders[-self._keep :]) | {but}
            kept |= {folder for folder in folders if self._keep_every and step_of(folder) % self._keep_every == 0}
            if self._best is not None:
                for folder in folders:
                    if folder not in self._known:
                        with _noted(troubles, folder):
                            self._known[folder] = _metric(folder, self._best[0])
                kept.add(_best({folder: self._known.get(folder) for folder in folders}, self._best[1]))
                kept |= {folder for folder in folders if folder not in self._known}  # any may be the best
            for folder in found:
                if folder not in kept:
                    with _noted(troubles, folder), self._holding():
                        # half a folder must not pass for a checkpoint; and only what was there at the look
                        there = {name.partition("/")[0] for name in found[folder]}
                        store.remove_folder(folder, first=COMMIT, only=there)
            for folder in folders[-1:] if but is None else []:  # a killed attempt may have come as far as this
                with _noted(troubles, folder), self._holding():
                    parts = [part["name"] for part in read_state(folder)["parts"]]
                    for name in found[folder] - {COMMIT, *parts, *(part + ".json" for part in parts)}:
                        if "/" not in name:  # a folder in it is none of ours
                            store.remove(store.join(folder, name))
        except Exception as error:
            troubles.append(_line(error))
        new = [trouble for trouble in troubles if trouble not in self._told]
        if new:
            more = f"; and {len(new) - _TROUBLES} more" if new[_TROUBLES:] else ""
            log.warning("%s: kept what cannot be removed or read: %s%s", self._root, "; ".join(new[:_TROUBLES]), more)
        self._told.update(new)


def write_tensors(path: str, tensors: Mapping[str, Tensor], notes: dict[str, str] | None = None) -> dict[str, Any]:
    """Write tensors as one safetensors file, there whole or not at all; gives its receipt, of what was written."""
    digest, size = hashlib.sha256(), 0
    with store.replacing(path) as temporary:
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, notes)
        with open(temporary, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest(), "tensors": len(tensors)}


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] if isinstance(error, V2FError) else unexpected(error)


@contextlib.contextmanager
def _noted(troubles: list[str], folder: str) -> Iterator[None]:
    """A folder's own trouble becomes a line; a store that does not answer would not for the next one either."""
    try:
        yield
    except (store.UnreachableError, LostError):
        raise
    except Exception as error:
        line = _line(error)
        troubles.append(line if folder in line else f"{folder}: {line}")


def committed(root: str) -> list[str]:
    """The folders of all committed checkpoints that count, oldest first."""
    return _counting(root, [folder for folder, files in _listed(root).items() if COMMIT in files])


def _counting(root: str, folders: Sequence[str]) -> list[str]:
    """Those of committed ``folders`` that no superseded owner of the run has committed."""
    fences = Fences.of(highest_term(root))
    if fences.trivial:
        return list(folders)
    with ThreadPoolExecutor(16) as pool:  # each record is a round trip where the run is remote
        return [
            folder
            for folder, counts in zip(folders, pool.map(functools.partial(_counts, fences), folders), strict=True)
            if counts
        ]


def _counts(fences: Fences, folder: str) -> bool:
    if fences.trivial:
        return True
    record = _sound(folder)
    # Whoever reads one that is damaged is told; it must not be passed over.
    return record is None or fences.counts(step_of(folder), _lease_of(record))


def _sound(folder: str) -> dict[str, Any] | None:
    """The record of a checkpoint, if it has its own checksum, or none of an earlier version."""
    try:
        record = json.loads(store.read_tagged(store.join(folder, COMMIT))[0] or b"")
    except (ValueError, RecursionError):
        return None
    if problem_of(_Commit, record) is not None:
        return None
    return record if record.get("sha256") in (None, _checksum(record)) else None


def _lease_of(record: Mapping[str, Any]) -> tuple[int, str] | None:
    """The owner in whose name a checkpoint was committed: number and token; None where the record does not say."""
    lease = record.get("lease")
    return (lease[0], lease[1]) if lease else None


def _listed(root: str) -> dict[str, set[str]]:
    """All folders of checkpoints, the oldest first, committed or not, and their files; one listing however many."""
    files: dict[str, set[str]] = {}
    for path in store.tree(root):
        folder, _, name = path.partition("/")
        files.setdefault(folder, set()).add(name)
    if store.local_path(root) is not None:  # which has empty folders, too
        files |= {name: set() for name in store.names(root) if name not in files}
    steps = sorted((int(m[1]), name) for name in files if (m := _STEP.fullmatch(name)))
    return {store.join(root, name): files[name] for _, name in steps}


def latest(root: str) -> str | None:
    """The folder of the newest committed checkpoint that counts, or None."""
    steps = sorted((int(m[1]), name) for name in store.names(root) if (m := _STEP.fullmatch(name)))
    fences = Fences.of(highest_term(root))
    for _, name in reversed(steps):
        folder = store.join(root, name)
        if store.exists(store.join(folder, COMMIT)):
            if _counts(fences, folder):
                return folder
            log.warning("%s: left out, it was committed by a start that another one had superseded", folder)
    return None


def best(root: str, metric: str, mode: Literal["min", "max"]) -> str | None:
    """The folder of the committed checkpoint with the best ``metric``, measured at its step; the oldest of equals."""
    return _best({folder: _metric(folder, metric) for folder in committed(root)}, mode)


def _best(values: Mapping[str, float | None], mode: Literal["min", "max"]) -> str | None:
    known = {folder: value for folder, value in values.items() if value is not None and math.isfinite(value)}
    # The oldest of equals: where nothing tells when it was measured, later ones may only carry its number on.
    return (min if mode == "min" else max)(known, key=lambda folder: known[folder], default=None)


def _metric(folder: str, name: str) -> float | None:
    """What was measured of this checkpoint itself: a number that an earlier step left in its state is not of it."""
    record = read_state(folder)
    state = record["state"]
    value = state.get("metrics", {}).get(name)
    own = state.get("measured_at", record["step"]) == record["step"]
    return float(value) if own and value is not None else None


def step_of(folder: str) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(folder.rstrip("/").rsplit("-", 1)[1])


def step_named(folder: str) -> int | None:
    """The same of any folder: None where a checkpoint was copied under a name of its own."""
    match = _STEP.fullmatch(_whole(folder).rpartition("/")[2])
    return int(match[1]) if match else None


def _whole(folder: str) -> str:
    """The path as it ends in the folder's name, which ``.`` does not tell."""
    local = store.local_path(folder)
    return folder.rstrip("/") if local is None else os.path.abspath(local)


class _Part(Record):
    name: str = Field(pattern=r"^[^/]+$")
    bytes: int = Field(ge=0)
    sha256: str
    tensors: int = 0


class _Receipt(Record):
    """What a rank has written; or why it could not."""

    bytes: int = 0
    sha256: str = ""
    failed: str = ""


class _Data(Record):
    batch: int | None = Field(None, gt=0)
    path: str | None = None
    split: str = ""


class _Config(Record):
    data: _Data = _Data()


class _Clock(Record):
    first_start: float
    starts: int
    step_seconds: float
    saved: float


class _State(Record):
    """What a run goes on from. Who saves less than a training does leaves out what it has not."""

    step: int | None = None
    slot: int | None = None
    fingerprint: str = ""
    order: str = ""
    quarantine: list[int] = []
    quarantines: dict[str, list[int]] = {}
    weights: dict[str, str | None] = {}
    config: _Config = _Config()
    run_id: str | None = None
    versions: dict[str, str] = {}
    precision: str = ""
    metrics: dict[str, float | None] = {}
    measured_at: int | None = None
    clock: _Clock | None = None
    norms: dict[str, list[float]] = {}
    init_from: list[dict[str, Any]] = []


class _Commit(Record):
    lease: list[int | str] | None = Field(None, min_length=2, max_length=2)
    step: int = Field(ge=0)
    saved: str = ""
    parts: list[_Part] = Field(min_length=1)
    state: _State


_BEFORE_CHECKSUMS = {"format", "step", "saved", "parts", "state"}  # the keys of a record that has none


def write_record(
    folder: str, step: int, parts: list[dict[str, Any]], state: Mapping[str, Any], lease: Lease | None = None
) -> None:
    """Commit a checkpoint, all of whose parts are there, in the name of the ``lease`` on its run; LostError if another
    start has the run by now."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record = {"format": FORMAT, "step": step, "saved": now, "parts": parts, "state": dict(state)}
    if lease is not None:
        record["lease"] = [lease.number, lease.owner]
    record["sha256"] = _checksum(record)
    path, content = store.join(folder, COMMIT), json.dumps(record, indent=1).encode()
    if lease is None:
        store.write_bytes(path, content)
        return
    with lease.holding():
        if not store.create(path, content):  # the step was committed before: by this owner, or one before it
            other = _sound(folder)
            if other is not None and (_lease_of(other) or (0, ""))[0] > lease.number:
                raise LostError(f"{folder}: a later start of this run has committed it, and goes on")
            store.write_bytes(path, content)


def read_state(folder: str) -> dict[str, Any]:
    """The record of a checkpoint: its step, parts and state. Every reader comes through here.

    V2FError, with the way out, if it is not what was written: its own checksum differs, or its step, slot and batch
    contradict each other. A folder that is named after a step holds the checkpoint of that step.
    """
    content = store.read_bytes(store.join(folder, COMMIT))
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise _damaged(folder, COMMIT, "it is no JSON record")
    if "sha256" in record:
        if record["sha256"] != _checksum(record):
            raise _damaged(folder, COMMIT, "its own checksum differs")
    elif record.keys() - _BEFORE_CHECKSUMS:
        raise _damaged(folder, COMMIT, "its own checksum is missing")
    if record.get("format") != FORMAT:
        known = record.get("format")
        raise V2FError(f"{folder}: checkpoint format {known!r}, this version of v2f reads {FORMAT}")
    problem = problem_of(_Commit, record)
    if problem is not None:
        raise _damaged(folder, COMMIT, problem)
    known = _Commit.model_validate(record)
    step, slot, batch = known.step, known.state.slot, known.state.config.data.batch
    if known.state.step not in (None, step):
        raise _damaged(folder, COMMIT, f"it says both step {step} and step {known.state.step}")
    if slot is not None and batch is not None and slot != step * batch:
        raise _damaged(folder, COMMIT, f"step {step} of batches of {batch} is not slot {slot}")
    if step_named(folder) not in (None, step):
        raise V2FError(f"{folder}: its record is that of step {step}; name the folder step-{step:08d}, or remove it")
    return record


def needed(state: Mapping[str, Any], key: str, folder: str) -> Any:
    """What the state of the checkpoint in ``folder`` holds under ``key``, which no run can go on without."""
    if key not in state:
        raise _damaged(folder, COMMIT, f"its state has no {key!r}")
    return state[key]


def _checksum(record: Mapping[str, Any]) -> str:
    """The SHA-256 of a record without its checksum, however it is spaced and sorted in the file."""
    rest = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Peers(Protocol):
    """The ranks that read a checkpoint together; both calls are collective."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def gather(self, value: T) -> list[T]:
        """Every rank's ``value``, on all of them."""

    def broadcast(self, tensors: Sequence[Tensor], source: int) -> None:
        """Overwrite ``tensors`` by those of the rank ``source``, which are as many and alike in shape and kind."""


class _Alone:
    rank, world_size = 0, 1

    def gather(self, value: T) -> list[T]:
        return [value]

    def broadcast(self, tensors: Sequence[Tensor], source: int) -> None:
        """There is nobody to send them to."""


_ALONE = _Alone()


def load(
    folder: str, wanted: Callable[[str], bool] = lambda name: True, peers: Peers = _ALONE
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All ``wanted`` tensors of a committed checkpoint, on the CPU, and its state. Checksums are verified.

    Collective over ``peers``: each part is read from the store once, by one of them, and sent to the others; what
    fails on one fails on all. Above the tensors this takes the memory of about one part.
    """
    rank, world_size = peers.rank, peers.world_size
    record = alike(peers, lambda: read_state(folder) if rank == 0 else {})[0]
    tensors: dict[str, Tensor] = {}
    for first in range(0, len(record["parts"]), world_size):
        some = record["parts"][first : first + world_size]
        mine: dict[str, Tensor] = {}

        def read(own: Sequence[Mapping[str, Any]], found: dict[str, Tensor]) -> dict[str, tuple[Any, ...]]:
            for part in own:
                found |= {name: t for name, t in read_tensors(folder, part).items() if wanted(name)}
            return {name: (tuple(t.shape), t.dtype) for name, t in found.items()}

        everyones = alike(peers, functools.partial(read, some[rank : rank + 1], mine))
        for source, kinds in enumerate(everyones[: len(some)]):
            whole = mine if source == rank else {n: torch.empty(shape, dtype=d) for n, (shape, d) in kinds.items()}
            peers.broadcast([whole[name] for name in kinds], source)
            tensors |= whole
    return tensors, record["state"]


def alike(peers: Peers, act: Callable[[], T]) -> list[T]:
    """What ``act`` gives on every rank; collective. An error of one is raised on all, as of the same kind, so that none
    waits for it."""
    own: T | None = None
    error: Exception | None = None
    try:
        own = act()
    except Exception as raised:
        error = raised
    kind = type(error) if isinstance(error, V2FError) else V2FError
    failed = None if error is None else (kind, _line(error), getattr(error, "again", True))
    everyones = peers.gather((own, failed))
    if error is not None:
        raise error
    for rank, (_, other) in enumerate(everyones):
        if other is not None:
            elsewhere = other[0](f"rank {rank}: {other[1]}")
            elsewhere.again = other[2]
            raise elsewhere
    return [value for value, _ in everyones]  # type: ignore[misc]


def read_tensors(folder: str, part: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a part that a record names, on the CPU; errors as of :func:`read_part`."""
    return _decoded(folder, part, read_part(folder, part))


def _decoded(folder: str, part: Mapping[str, Any], payload: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(payload)
    except safetensors.SafetensorError:
        raise _damaged(folder, part["name"], "it is no safetensors file") from None


def read_part(folder: str, part: Mapping[str, Any]) -> bytes:
    """The content of a part that a record names; V2FError, with the way out, if it is not what was written."""
    path = store.join(folder, part["name"])
    try:
        payload = store.read_bytes(path)
    except store.UnreachableError:
        raise
    except V2FError:
        if store.exists(path):
            raise
        raise _damaged(folder, part["name"], "it is not there") from None
    if len(payload) != part["bytes"]:
        raise _damaged(folder, part["name"], f"it has {len(payload)} bytes of {part['bytes']}")
    if hashlib.sha256(payload).hexdigest() != part["sha256"]:
        raise _damaged(folder, part["name"], "its SHA-256 differs")
    return payload


@dataclass(frozen=True)
class Entry:
    """What a file says of one tensor of it."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int


def read_header(path: str) -> tuple[dict[str, Entry], dict[str, str]]:
    """What is in a safetensors file, and the notes that it carries, without reading the tensors."""
    length = int.from_bytes(store.read_range(path, 0, 8), "little")
    try:
        if length > _LARGEST_HEADER:
            raise ValueError(length)
        header = json.loads(store.read_range(path, 8, length))
        notes = {str(name): str(text) for name, text in header.pop("__metadata__", {}).items()}
        entries = {
            name: Entry(
                str(about["dtype"]),
                tuple(map(operator.index, about["shape"])),
                operator.index(about["data_offsets"][1]) - operator.index(about["data_offsets"][0]),
            )
            for name, about in header.items()
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise V2FError(f"{path}: no safetensors file; it was cut or damaged, copy it anew") from None
    return entries, notes


def shapes_of(folder: str) -> dict[str, Sequence[int]]:
    """The shapes of the weights in a committed checkpoint, by ``MODULE.tensor``, from the heads of its parts."""
    heads = [read_header(store.join(folder, part["name"]))[0] for part in read_state(folder)["parts"]]
    return _of_model({name: entry.shape for head in heads for name, entry in head.items()})


def _of_model(shapes: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    return {n.removeprefix("model/"): shape for n, shape in shapes.items() if n.startswith("model/")}


def _damaged(folder: str, name: str, why: str) -> V2FError:
    own = step_named(folder)
    if own is None:
        return V2FError(f"{folder}/{name}: damaged ({why}); copy it anew")
    root = _whole(folder).rpartition("/")[0]
    older = [each.rsplit("/", 1)[1] for each in committed(root) if step_of(each) < own]
    way = f"remove it to go on from {older[-1]}" if older else "there is no older one"
    more = f" (older still: {', '.join(reversed(older[:-1]))})" if len(older) > 1 else ""
    return V2FError(f"{folder}/{name}: damaged ({why}); {way}{more}")


def check_shared(root: str, *, rank: int, gather: Callable[[Any], list[Any]], patience_s: float = 60.0) -> None:
    """Refuse, on all ranks alike, a folder that not all of them see and can write; collective.

    Each writes a file, and looks for everyone's for ``patience_s``: a network file system may show them late.
    """
    attempt = gather(secrets.token_hex(4))[0]
    own, failure = store.join(root, f".shared-{attempt}-{rank}"), None
    try:
        store.write_bytes(own, socket.gethostname().encode())
    except V2FError as error:
        failure = str(error), error.again
    failures = gather(failure)
    absent: list[int] = []
    listed: list[str] = []
    if not any(failures):
        deadline = time.monotonic() + patience_s
        while True:
            listed = store.names(root)
            absent = [other for other in range(len(failures)) if f".shared-{attempt}-{other}" not in listed]
            if not absent or time.monotonic() >= deadline:
                break
            time.sleep(0.5)
    seen = gather((socket.gethostname(), absent))
    if failure is None:
        store.remove(own)
    for name in listed if rank == 0 else []:
        if name.startswith(".shared-") and not name.startswith(f".shared-{attempt}-"):  # a start was killed here
            store.remove(store.join(root, name))
    for other, told in enumerate(failures):
        if told:
            kind = PassingError if told[1] else V2FError
            raise kind(f"rank {other} cannot write where the run is to be: {told[0]}")
    for other, (host, missing) in enumerate(seen):
        if missing:
            raise V2FError(
                f"{root}: not one folder for all ranks: rank {other} on {host} does not see what rank {missing[0]} on "
                f"{seen[missing[0]][0]} writes there; set out= to a shared folder or an s3:// prefix"
            )


def module_tensors(system: System, prefix: str = "model") -> dict[str, Tensor]:
    """Parameters and persistent buffers of what the system trains, by name; the frozen nets are not among them."""
    return {
        f"{prefix}/{name}.{key}": tensor
        for name, module in trained(system).items()
        for key, tensor in module.state_dict(keep_vars=True).items()
    }


def restore_weights(folder: str, system: System, *, ema: bool) -> None:
    """Load what the system trains, strictly: a tensor that is missing, extra or misshapen is an error.

    With ``ema``, the moving averages where the checkpoint keeps them, else the weights themselves.
    """
    tensors, _ = load(folder, lambda name: name.startswith(("model/", "ema/")))
    fill(module_tensors(system), {n: t for n, t in tensors.items() if n.startswith("model/")}, folder)
    if ema:
        averages = {"model/" + n.removeprefix("ema/"): t for n, t in tensors.items() if n.startswith("ema/")}
        targets = module_tensors(system)
        fill({name: targets[name] for name in averages}, averages, folder)


def restore_export(path: str, system: System) -> None:
    """Load what the system trains from one file of ``v2f checkpoint export``, as strictly."""
    try:
        tensors = safetensors.torch.load(store.read_bytes(path))
    except safetensors.SafetensorError:
        raise V2FError(f"{path}: no safetensors file; it was cut or damaged, copy it anew") from None
    fill(module_tensors(system), {f"model/{name}": tensor for name, tensor in tensors.items()}, path)


class MisfitError(V2FError):
    """Weights that are not those wanted; ``shapes``: what they are, by ``MODULE.tensor``."""

    def __init__(self, message: str, shapes: Mapping[str, Sequence[int]] | None = None) -> None:
        super().__init__(message)
        self.shapes = shapes or {}


def fill(targets: Mapping[str, Tensor], source: Mapping[str, Tensor], where: str) -> None:
    """Copy ``source`` into ``targets`` in place; MisfitError unless names and shapes agree."""
    shapes = _of_model({name: tensor.shape for name, tensor in source.items()})
    if targets.keys() != source.keys():
        name = sorted(targets.keys() ^ source.keys())[0]
        lack = "missing" if name in targets else "not part of this system"
        raise MisfitError(f"{where}: the tensor {name!r} is {lack}", shapes)
    for name, tensor in targets.items():
        if tensor.shape != source[name].shape:
            line = f"{where}: {name!r} has shape {list(source[name].shape)}, this system {list(tensor.shape)}"
            raise MisfitError(line, shapes)
        tensor.data.copy_(source[name])
