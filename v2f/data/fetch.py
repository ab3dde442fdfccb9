"""Raw bytes of samples: read by merged ranges, ahead of their use, and checked against what was packed.

    slots --order--> blocks --cache, store (whole, one request a run of adjacent samples)--> CRC-32 --> raw members
                                       | an error, or another checksum
                                       v
                      once more, past the cache, sample by sample --> raw members, or Bad with the reason

Nothing is raised for a sample that cannot be had: what is wrong with it stands in its place, and whoever asked decides.
A data set that is not there at all is an error: a store that is away has damaged no sample.

Shape letters: N samples of the split, n samples of one read, b batch of a rank.
"""

import threading
import time
from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from isal.isal_zlib import crc32  # the same as zlib's, ten times as fast: every sample passes it

from v2f.data.manifest import MANIFEST, Ints, Samples
from v2f.data.mix import MixOrder
from v2f.data.order import Order
from v2f.data.quarantine import Bad, Raw
from v2f.errors import V2FError
from v2f.storage import store
from v2f.storage.cache import Cache

# A shard that is not there, or whose failing reads have taken so long, is not asked for again for a while: a store
# that is away must not cost its whole patience for each block.
LOST_AFTER_S = 60.0
LOST_FOR_S = 600.0


@dataclass(frozen=True)
class BatchPlan:
    """One batch of a rank: its samples (numbered in the split) and their slots."""

    sample_b: Ints
    slot_b: Ints


@dataclass
class _Trouble:
    """What reads of one shard have run into: the seconds they cost, and until when it is not asked for again."""

    reason: str = ""
    seconds: float = 0.0
    until: float = 0.0


class Reader:
    """Reads samples of a split by merged byte ranges, checks each against its CRC-32, counts what it asks for.

    ``cache``: where the ranges are looked for before the store is asked, and kept for the other ranks of the node.
    Safe with any number of threads.
    """

    def __init__(self, split: Samples, cache: Cache | None = None):
        self._split, self._cache = split, cache
        self._at = split.extents
        self._lock = threading.Lock()
        self._trouble: dict[int, _Trouble] = {}
        self.bytes_read = 0
        self.requests = 0

    def read(self, number_n: Ints) -> dict[int, Raw]:
        """The raw members of the samples, in as few ranged reads as they lie in, with nothing between them."""
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
        """Why the shard of a sample is not asked for at the moment, or None."""
        with self._lock:
            trouble = self._trouble.get(int(self._at.shard[number]))
            return trouble.reason if trouble is not None and time.monotonic() < trouble.until else None

    def _run(self, number_n: Ints) -> dict[int, Raw]:
        """Adjacent samples of one shard, with a second look where the first one fails."""
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
        """Samples of one shard that could not be had together, straight from the store: some may be good.

        ``reason``: why they could not, where the store said so.
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
        """A shard is missing: an error where the manifest beside it is, too."""
        root = self._split.root(number)
        if not store.exists(store.join(root, MANIFEST)):
            raise V2FError(f"{root}: the data set is not there any more; bring it back and resume") from error

    def _extent(self, number_n: Ints) -> tuple[str, int, int]:
        """Path, offset and length of adjacent samples of one shard."""
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
        """The samples that ``content`` holds one behind the other; Bad in the place of what is not as packed."""
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
        """Note a failing read, and whether its shard is now taken for lost."""
        with self._lock:
            trouble = self._trouble.setdefault(int(self._at.shard[number_n[0]]), _Trouble())
            trouble.reason = _said(error, self._split.shard_path(int(number_n[0])))
            trouble.seconds += time.monotonic() - started
            if lost or trouble.seconds > LOST_AFTER_S:
                trouble.seconds, trouble.until = 0.0, time.monotonic() + LOST_FOR_S


def _said(error: V2FError, path: str) -> str:
    """An error of the store without the path, which is named where the reason is shown."""
    return str(error).removeprefix(f"{path}: ")


BlockId = tuple[int, int, int]  # epoch, partition, block


class Blocks:
    """Raw bytes of the order's blocks: read whole, the next one of a partition when half of the current is used,
    dropped when its partition has moved on. Samples in ``quarantine`` are not asked for."""

    def __init__(self, reader: Reader, order: Order | MixOrder, quarantine: Container[int] = ()):
        self._reader, self._order, self._quarantine = reader, order, quarantine
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="v2f-read")
        self._held: dict[BlockId, Future[dict[int, Raw]]] = {}

    def fetch(self, plan: BatchPlan) -> list[Raw]:
        """The raw members of a plan's samples, or what is wrong with them. Plans come in the order of their slots."""
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
    """Fetches a plan's samples by themselves, without an order to read ahead in."""

    def fetch(plan: BatchPlan) -> list[Raw]:
        found = reader.read(plan.sample_b)
        return [found[number] for number in plan.sample_b.tolist()]

    return fetch
