"""Saving checkpoints in the background.

    training thread: tensors of this rank -> its Saver's thread: part, then receipt (bytes, SHA-256) -> the store
                     rank 0's thread: the store lists all receipts -> checkpoint.json -> older checkpoints are removed

The threads run no collectives: the ranks meet in the store only.
"""

import contextlib
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import safetensors.torch
from torch import Tensor

from v2f.errors import V2FError
from v2f.runs import checkpoint
from v2f.runs.checkpoint import COMMIT, Mode, step_of
from v2f.runs.peers import line_of
from v2f.storage import records, store
from v2f.storage.lease import Lease, LostError
from v2f.storage.records import Record

log = logging.getLogger("v2f")

Best = tuple[str, Mode]
_LONGEST_PAUSE_S = 2.0  # between two listings of the other ranks' parts
_MOST_TROUBLES = 4  # named in one warning


class _Receipt(Record):
    """What a rank has written, or why it failed."""

    bytes: int = 0
    sha256: str = ""
    failed: str = ""


def deal(sizes: Mapping[str, int], parts: int) -> list[list[str]]:
    """The names, dealt to ``parts`` lists of about equal bytes: the largest first, each to the emptiest list.

    A pure function of the names and sizes, so that every rank finds its share without communication.
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

    Every file name contains the number of the save and ``attempt``, a token that all ranks of this start share and no
    other start has. So files that a killed start left are never mistaken for parts of this save, and a step that was
    committed before stays whole until it is committed again. A Saver keeps the newest ``keep`` checkpoints (at least
    2), every step that ``keep_every`` divides, and the best one by ``best`` among those measured at their own step.
    :meth:`take_failures` reports failed saves; they are never raised. Rank 0 waits ``patience_s`` seconds for the parts
    of the other ranks, which is less than the watchdog of the training run allows.

    ``lease``: rank 0's lease on ``root``. A Saver commits and removes files only while it holds the lease. Each commit
    records the lease's number, by which readers recognize the commits of a superseded owner.
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
        self._warned: set[str] = set()

    @property
    def busy(self) -> bool:
        """Whether this rank is saving."""
        return self._thread is not None and self._thread.is_alive()

    def start(
        self,
        step: int,
        shares: Sequence[Sequence[str]],
        mine: Mapping[str, Tensor],
        state: Mapping[str, Any],
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """Save ``mine`` as this rank's share of all tensors; returns at once.

        Every rank calls this for the same saves. ``mine``: CPU tensors that nothing modifies any more. ``state``: plain
        JSON; rank 0's is saved. Rank 0's thread calls ``before_commit``; an exception there fails the save.
        """
        assert not self.busy, "one save at a time"
        assert mine.keys() == set(shares[self._rank]), "the tensors are not this rank's share"
        self._count += 1
        text = json.dumps(state) if self._rank == 0 else ""
        self._thread = threading.Thread(
            target=self._save, args=(step, mine, text, before_commit), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until the current save has failed or written this rank's part (on rank 0: committed the checkpoint)."""
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, patience_s: float = 30.0) -> None:
        """Give the current save ``patience_s`` seconds to finish, then abandon it: it is never committed."""
        if self._thread is not None:
            self._thread.join(patience_s)
            self._given_up.set()
            self._thread.join(_LONGEST_PAUSE_S)

    def take_failures(self) -> list[str]:
        """One line for each save of this rank that failed since the last call."""
        taken, self._failures = self._failures, []
        return taken

    def take_committed(self) -> list[str]:
        """The folders committed since the last call; empty on every rank but rank 0."""
        taken, self._committed = self._committed, []
        return taken

    # The saving thread -------------------------------------------------------------------------------------------

    def _save(self, step: int, mine: Mapping[str, Tensor], state: str, before_commit: Callable[[], None]) -> None:
        folder = store.join(self._root, f"step-{step:08d}")
        try:
            if self._rank == 0:
                self._tidy(but=folder)  # the remains of failed saves must not fill the disk
            own = store.join(folder, self._part(self._rank))
            try:
                receipt = write_tensors(own, mine)
                store.write_bytes(own + ".json", json.dumps(receipt).encode())
            except Exception as error:
                with contextlib.suppress(Exception):  # so that rank 0 need not wait
                    store.write_bytes(own + ".json", json.dumps({"failed": line_of(error)}).encode())
                raise
            if self._rank == 0:
                parts = self._parts(folder)
                with self._holding():
                    before_commit()
                write_record(folder, step, parts, json.loads(state), self._lease)
                self._committed.append(folder)
                self._known.pop(folder, None)
                self._tidy()
        except Exception as error:  # no failed save stops the training
            self._failures.append(f"step {step} is not saved: {line_of(error)}")

    def _holding(self) -> contextlib.AbstractContextManager[None]:
        return self._lease.holding() if self._lease is not None else contextlib.nullcontext()

    def _part(self, rank: int) -> str:
        return f"part-{rank:05d}-{self._attempt}-{self._count}.safetensors"

    def _parts(self, folder: str) -> list[dict[str, Any]]:
        """Name and receipt of every rank's part, once the store lists them all."""
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
            missing = (
                f"{folder}: no part came from rank {', '.join(map(str, absent[:8]))}{' ...' if absent[8:] else ''}"
            )
            if self._lease is not None and self._lease.lost is not None:
                raise self._lease.lost
            if time.monotonic() >= deadline:
                raise V2FError(
                    f"{missing} for {self._patience_s:.0f} s; check whether it is running and can write there"
                )
            if self._given_up.wait(pause):
                raise V2FError(f"{missing} until the run ended")
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _tidy(self, but: str | None = None) -> None:
        """Remove all checkpoints that are not to be kept and all files of no checkpoint, except in ``but``, the current
        save's folder.

        A folder that cannot be read or removed stays; the others are removed all the same.
        """
        troubles: list[str] = []
        try:
            found = checkpoint.files_by_folder(self._root)
            folders = checkpoint.not_superseded(
                self._root, [folder for folder, files in found.items() if COMMIT in files]
            )
            kept = set(folders[-self._keep :]) | {but}
            kept |= {folder for folder in folders if self._keep_every and step_of(folder) % self._keep_every == 0}
            if self._best is not None:
                for folder in folders:
                    if folder not in self._known:
                        with _noted(troubles, folder):
                            self._known[folder] = checkpoint.measured(folder, self._best[0])
                kept.add(checkpoint.best_of({folder: self._known.get(folder) for folder in folders}, self._best[1]))
                kept |= {folder for folder in folders if folder not in self._known}  # any of them may be the best
            for folder in found:
                if folder not in kept:
                    with _noted(troubles, folder), self._holding():
                        # half a folder must not pass for a checkpoint; remove only what was listed
                        there = {name.partition("/")[0] for name in found[folder]}
                        store.remove_folder(folder, first=COMMIT, only=there)
            for folder in folders[-1:] if but is None else []:  # a killed start may have written to it
                with _noted(troubles, folder), self._holding():
                    parts = [part["name"] for part in checkpoint.read_state(folder)["parts"]]
                    for name in found[folder] - {COMMIT, *parts, *(part + ".json" for part in parts)}:
                        if "/" not in name:  # a subfolder is not ours
                            store.remove(store.join(folder, name))
        except Exception as error:
            troubles.append(line_of(error))
        new = [trouble for trouble in troubles if trouble not in self._warned]
        if new:
            more = f"; and {len(new) - _MOST_TROUBLES} more" if new[_MOST_TROUBLES:] else ""
            shown = "; ".join(new[:_MOST_TROUBLES])
            log.warning("%s: kept what cannot be removed or read: %s%s", self._root, shown, more)
        self._warned.update(new)


def write_tensors(path: str, tensors: Mapping[str, Tensor], notes: dict[str, str] | None = None) -> dict[str, Any]:
    """Write tensors as one safetensors file, atomically; returns its receipt: bytes, SHA-256, number of tensors."""
    digest, size = hashlib.sha256(), 0
    with store.replacing(path) as temporary:
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, notes)
        with open(temporary, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest(), "tensors": len(tensors)}


@contextlib.contextmanager
def _noted(troubles: list[str], folder: str) -> Iterator[None]:
    """Note an error of this folder as a line; a store that does not answer, or a lost lease, concerns all folders."""
    try:
        yield
    except (store.UnreachableError, LostError):
        raise
    except Exception as error:
        line = line_of(error)
        troubles.append(line if folder in line else f"{folder}: {line}")


def write_record(
    folder: str, step: int, parts: list[dict[str, Any]], state: Mapping[str, Any], lease: Lease | None = None
) -> None:
    """Commit a checkpoint whose parts are all written, under the ``lease`` on its run; LostError if another start has
    taken over the run."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record = {"format": checkpoint.FORMAT, "step": step, "saved": now, "parts": parts, "state": dict(state)}
    if lease is not None:
        record["lease"] = [lease.number, lease.owner]
    record["sha256"] = checkpoint.checksum_of(record)
    path, content = store.join(folder, COMMIT), json.dumps(record, indent=1).encode()
    if lease is None:
        store.write_bytes(path, content)
        return
    with lease.holding():
        if not store.create(path, content):  # already committed, by this owner or an earlier one
            other = checkpoint.sound_record(folder)
            if other is not None and (checkpoint.owner_of(other) or (0, ""))[0] > lease.number:
                raise LostError(
                    f"{folder}: a later start of this run has already committed this step; this start must end"
                )
            store.write_bytes(path, content)
