"""Fetching the raw bytes of samples: merged range reads, ahead of use, checked against the index.

    slots --order--> blocks --cache, store (one request per run of adjacent samples)--> CRC-32 --> raw members
                                       | an error, or a wrong checksum
                                       v
                      again, without the cache, sample by sample --> raw members, or Bad with the reason

A sample that cannot be fetched raises nothing: a :class:`Bad` with the reason takes its place, and the caller decides.
A data set that is missing altogether is an error, because an unreachable store does not mean damaged samples.

Shape letters: N samples of the split, n samples of one read, b batch of a rank.
"""

import threading
import time
from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from isal.isal_zlib import crc32  # the same result as zlib's, ten times as fast; every sample is checked

from v2f.data.manifest import MANIFEST, Ints, Samples
from v2f.data.mix import MixOrder
from v2f.data.order import Order
from v2f.data.quarantine import Bad, Raw
from v2f.errors import V2FError
from v2f.storage import store
from v2f.storage.cache import Cache

# A shard that is missing, or whose failing reads took this long, is not requested again for a while. Otherwise an
# unreachable store would cost its full retry time for every block.
LOST_AFTER_S = 60.0
LOST_FOR_S = 600.0


@dataclass(frozen=True)
class BatchPlan:
    """What one batch of a rank consists of: its samples (numbers in the split) and their slots."""

    sample_b: Ints
    slot_b: Ints


@dataclass
class _Trouble:
    """Failed reads of one shard: the last reason, the seconds they took, and until when not to request it again."""

    reason: str = ""
    seconds: float = 0.0
    until: float = 0.0


class Reader:
    """Reads samples of a split by merged byte ranges, checks each against its CRC-32, and counts its requests.

    ``cache``: consulted before the store, and shared with the other ranks of the node. Thread-safe.
    """

    def __init__(self, split: Samples, cache: Cache | None = None):
        self._split, self._cache = split, cache
        self._at = split.extents
        self._lock = threading.Lock()
        self._trouble: dict[int, _Trouble] = {}
        self.bytes_read = 0
        self.requests = 0

    def read(self, number_n: Ints) -> dict[int, Raw]:
        """The raw members of the samples, with one range read per run of adjacent samples."""
        number_n = np.unique(number_n)
        if not len(number_n):
            return {}
        shard, offset = self._at.shard[number_n], self._at.offset[number_n]
        end = offset + self._at.length[number_n]
        breaks = np.flatnonzero((shard[1:] != shard[:-1]) | (offset[1:] != end[:-1])) + 1
        found: dict[int, Raw] = {}
        for run_n in np.split(number_n, breaks):
            found |= self._run(run_n)
        return found

    def lost(self, number: int) -> str | None:
        """Why the shard of a sample is not requested at the moment; None: it is."""
        with self._lock:
            trouble = self._trouble.get(int(self._at.shard[number]))
            return trouble.reason if trouble is not None and time.monotonic() < trouble.until else None

    def _run(self, number_n: Ints) -> dict[int, Raw]:
        """Read adjacent samples of one shard; retry one by one if that fails."""
        reason = self.lost(int(number_n[0]))
        if reason is not None:
            return dict.fromkeys(number_n.tolist(), Bad(reason))
        path, offset, length = self._extent(number_n)
        started = time.monotonic()
        try:
            content = self._ask(path, offset, length, self._cache)
        except V2FError as error:
            self._failed(number_n, error, started)
            return self._one_by_one(number_n, _said(error, path))
        found = self._checked(number_n, content)
        wrong_n = np.array([number for number, raw in found.items() if isinstance(raw, Bad)], dtype=np.int64)
        if len(wrong_n):
            if self._cache is not None:
                self._cache.forget(path, offset, length, fingerprint=self._split.fingerprint)
            found |= self._one_by_one(wrong_n)
        return found

    def _one_by_one(self, number_n: Ints, reason: str = "") -> dict[int, Raw]:
        """Read samples of one shard that could not be read together, without the cache: some may be good.

        ``reason``: the store's error, if it gave one.
        """
        path = self._split.shard_path(int(number_n[0]))
        started = time.monotonic()
        try:
            there = store.size(path)
        except V2FError as error:
            self._failed(number_n, error, started, lost=True)
            self._look_for_the_rest(int(number_n[0]), error)
            return dict.fromkeys(number_n.tolist(), Bad(reason or _said(error, path)))
        found: dict[int, Raw] = {}
        for number in number_n.tolist():
            one_n = np.array([number])
            _, offset, length = self._extent(one_n)
            hopeless = self.lost(number)
            if hopeless is None and offset + length > there:
                hopeless = f"its shard ends at byte {there}, before the sample does: it was cut or replaced"
            if hopeless is not None:
                found[number] = Bad(hopeless)
                continue
            started = time.monotonic()
            try:
                found |= self._checked(one_n, self._ask(path, offset, length))
            except V2FError as error:
                self._failed(one_n, error, started)
                found[number] = Bad(_said(error, path))
        return found

    def _look_for_the_rest(self, number: int, error: V2FError) -> None:
        """A shard is missing: raise an error if the manifest beside it is missing, too."""
        root = self._split.root(number)
        if not store.exists(store.join(root, MANIFEST)):
            raise V2FError(f"{root}: the data set has disappeared; restore it and resume") from error

    def _extent(self, number_n: Ints) -> tuple[str, int, int]:
        """Path, offset and total length of adjacent samples of one shard."""
        first, last = int(number_n[0]), int(number_n[-1])
        offset = int(self._at.offset[first])
        return self._split.shard_path(first), offset, int(self._at.offset[last] + self._at.length[last]) - offset

    def _ask(self, path: str, offset: int, length: int, cache: Cache | None = None) -> bytes:
        def fetch() -> bytes:
            with self._lock:
                self.bytes_read += length
                self.requests += 1
            return store.read_range(path, offset, length)

        return (
            fetch() if cache is None else cache.read(path, offset, length, fetch, fingerprint=self._split.fingerprint)
        )

    def _checked(self, number_n: Ints, content: bytes) -> dict[int, Raw]:
        """Split ``content`` into its adjacent samples, with Bad in place of those that differ from the index."""
        view, start = memoryview(content), int(self._at.offset[number_n[0]])
        found: dict[int, Raw] = {}
        for number in number_n.tolist():
            at = int(self._at.offset[number]) - start
            raw = view[at : at + int(self._at.length[number])]
            if crc32(raw) != self._at.crc32[number]:
                found[number] = Bad("its checksum differs, the shard was damaged after packing")
                continue
            try:
                found[number] = memoryview(self._split.in_our_schema(number, raw))
            except V2FError as error:
                found[number] = Bad(str(error))
        return found

    def _failed(self, number_n: Ints, error: V2FError, started: float, lost: bool = False) -> None:
        """Record a failed read, and mark the shard as lost if it failed for too long."""
        with self._lock:
            trouble = self._trouble.setdefault(int(self._at.shard[number_n[0]]), _Trouble())
            trouble.reason = _said(error, self._split.shard_path(int(number_n[0])))
            trouble.seconds += time.monotonic() - started
            if lost or trouble.seconds > LOST_AFTER_S:
                trouble.seconds, trouble.until = 0.0, time.monotonic() + LOST_FOR_S


def _said(error: V2FError, path: str) -> str:
    """The message of a store's error without the path, which is shown with the reason anyway."""
    return str(error).removeprefix(f"{path}: ")


BlockId = tuple[int, int, int]  # epoch, partition, block


class Blocks:
    """Raw bytes of the order's blocks. A block is read as a whole, when half of the one before it in its partition is
    used, and dropped when the partition has moved on. Samples in ``quarantine`` are not read."""

    def __init__(self, reader: Reader, order: Order | MixOrder, quarantine: Container[int] = ()):
        self._reader, self._order, self._quarantine = reader, order, quarantine
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="v2f-read")
        self._held: dict[BlockId, Future[dict[int, Raw]]] = {}

    def fetch(self, plan: BatchPlan) -> list[Raw]:
        """The raw members of the batch's samples, or Bad. Call it in the order of the slots."""
        places = self._order.places(plan.slot_b)
        ids: list[BlockId] = list(
            zip(places.epoch_S.tolist(), places.partition_S.tolist(), places.block_S.tolist(), strict=True)
        )
        for block in dict.fromkeys(ids):
            self._want(block)
        raws: list[Raw] = []
        for block, rank, number in zip(ids, places.rank_S.tolist(), plan.sample_b.tolist(), strict=True):
            raws.append(Bad("in quarantine") if number in self._quarantine else self._held[block].result()[number])
            if rank >= self._order.window // 2:
                following = self._order.next_block(*block)
                if following is not None:
                    self._want(following)
        current = {partition: (epoch, partition, number) for epoch, partition, number in ids}
        for block in [b for b in self._held if b[1] in current and b < current[b[1]]]:
            del self._held[block]
        return raws

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _want(self, block: BlockId) -> None:
        if block not in self._held:
            numbers = self._order.block_samples(*block).tolist()
            wanted_n = np.array([number for number in numbers if number not in self._quarantine], dtype=np.int64)
            self._held[block] = self._pool.submit(self._reader.read, wanted_n)


def fetch_directly(reader: Reader) -> Callable[[BatchPlan], list[Raw]]:
    """A function that fetches just the samples of a batch, without reading ahead."""

    def fetch(plan: BatchPlan) -> list[Raw]:
        found = reader.read(plan.sample_b)
        return [found[number] for number in plan.sample_b.tolist()]

    return fetch
