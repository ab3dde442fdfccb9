"""Saving checkpoints: every rank writes its part in a thread of its own, rank 0's thread commits the whole."""

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
_LONGEST_PAUSE_S = 2.0  # between two looks for the other ranks' parts
_TROUBLES = 4  # in one warning


class _Receipt(Record):
    """What a rank has written; or why it could not."""

    bytes: int = 0
    sha256: str = ""
    failed: str = ""


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
        except Exception as error:  # whatever it is, training goes on
            self._failures.append(f"step {step} is not saved: {line_of(error)}")

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
                kept |= {folder for folder in folders if folder not in self._known}  # any may be the best
            for folder in found:
                if folder not in kept:
                    with _noted(troubles, folder), self._holding():
                        # half a folder must not pass for a checkpoint; and only what was there at the look
                        there = {name.partition("/")[0] for name in found[folder]}
                        store.remove_folder(folder, first=COMMIT, only=there)
            for folder in folders[-1:] if but is None else []:  # a killed attempt may have come as far as this
                with _noted(troubles, folder), self._holding():
                    parts = [part["name"] for part in checkpoint.read_state(folder)["parts"]]
                    for name in found[folder] - {COMMIT, *parts, *(part + ".json" for part in parts)}:
                        if "/" not in name:  # a folder in it is none of ours
                            store.remove(store.join(folder, name))
        except Exception as error:
            troubles.append(line_of(error))
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


@contextlib.contextmanager
def _noted(troubles: list[str], folder: str) -> Iterator[None]:
    """A folder's own trouble becomes a line; a store that does not answer would not for the next one either."""
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
    """Commit a checkpoint, all of whose parts are there, in the name of the ``lease`` on its run; LostError if another
    start has the run by now."""
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
        if not store.create(path, content):  # the step was committed before: by this owner, or one before it
            other = checkpoint.sound_record(folder)
            if other is not None and (checkpoint.owner_of(other) or (0, ""))[0] > lease.number:
                raise LostError(f"{folder}: a later start of this run has committed it, and goes on")
            store.write_bytes(path, content)
