"""Raw bytes of samples: read by merged ranges, ahead of their use, and checked against what was packed.

    slots --order--> blocks --store (whole, one request a run of adjacent samples)--> raw members, CRC-32 checked

Shape letters: N samples of the split, n samples of one read, b batch of a rank.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import numpy.typing as npt

from v2f import store
from v2f.data.manifest import Split
from v2f.data.order import Order
from v2f.errors import V2FError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """One batch of a rank: its samples (numbered in the split) and their slots."""

    sample_b: Ints
    slot_b: Ints


@dataclass(frozen=True)
class Span:
    """Adjacent samples of one shard, read at once: ``number_n`` sorted, sample i at bytes [start_n[i], stop_n[i])."""

    number_n: Ints
    start_n: Ints
    stop_n: Ints
    content: bytes


class Reader:
    """Reads samples of a split by merged byte ranges, checks each against its CRC-32, counts what it asks for."""

    def __init__(self, split: Split):
        self._split = split
        index, rows = split.dataset.index, slice(split.first, split.first + split.samples)
        self._shard_N, self._offset_N = index.shard[rows], index.offset[rows]
        self._length_N, self._crc32_N = index.length[rows], index.crc32[rows]
        self._lock = threading.Lock()
        self.bytes_read = 0
        self.requests = 0

    def spans(self, number_n: Ints) -> list[Span]:
        """The samples of ``number_n`` in as few ranged reads as they lie in, with nothing between them."""
        number_n = np.unique(number_n)
        if not len(number_n):
            return []
        shard, offset = self._shard_N[number_n], self._offset_N[number_n]
        end = offset + self._length_N[number_n]
        breaks = np.flatnonzero((shard[1:] != shard[:-1]) | (offset[1:] != end[:-1])) + 1
        spans = []
        for group in np.split(np.arange(len(number_n)), breaks):
            first, last = group[0], group[-1]
            length = int(end[last] - offset[first])
            path = self._split.dataset.shard_path(self._split.first + int(number_n[first]))
            with self._lock:
                self.bytes_read += length
                self.requests += 1
            content = store.read_range(path, int(offset[first]), length)
            start = offset[group] - offset[first]
            spans.append(Span(number_n[group], start, start + self._length_N[number_n[group]], content))
        return spans

    def check(self, number: int, raw: memoryview) -> memoryview:
        """``raw`` if it is what was packed as this sample."""
        if crc32(raw) != self._crc32_N[number]:
            raise V2FError(
                f"{self._split.where(number)}: its checksum differs, the shard was damaged after packing; "
                "`v2f shards verify` lists all damage; restore the shard or pack the data set anew"
            )
        return raw

    def checked(self, number_n: Ints) -> list[memoryview]:
        """The raw members of the samples, in the order of ``number_n``."""
        found = _by_number(self.spans(number_n))
        return [self.check(number, found[number]) for number in number_n.tolist()]


def _by_number(spans: Sequence[Span]) -> dict[int, memoryview]:
    found = {}
    for span in spans:
        view = memoryview(span.content)
        for number, start, stop in zip(
            span.number_n.tolist(), span.start_n.tolist(), span.stop_n.tolist(), strict=True
        ):
            found[number] = view[start:stop]
    return found


BlockId = tuple[int, int, int]  # epoch, partition, block


class Blocks:
    """Raw bytes of the order's blocks: read whole, the next one of a partition when half of the current is used,
    dropped when its partition has moved on."""

    def __init__(self, reader: Reader, order: Order):
        self._reader, self._order = reader, order
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="v2f-read")
        self._held: dict[BlockId, Future[dict[int, memoryview]]] = {}

    def fetch(self, task: Task) -> list[memoryview]:
        """The checked raw members of a task's samples. Tasks come in the order of their slots."""
        places = self._order.places(task.slot_b)
        ids: list[BlockId] = list(
            zip(places.epoch_S.tolist(), places.partition_S.tolist(), places.block_S.tolist(), strict=True)
        )
        for block in dict.fromkeys(ids):
            self._want(block)
        raws = []
        for block, rank, number in zip(ids, places.rank_S.tolist(), task.sample_b.tolist(), strict=True):
            raws.append(self._reader.check(number, self._held[block].result()[number]))
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
            number_n = self._order.block_samples(*block)
            self._held[block] = self._pool.submit(lambda: _by_number(self._reader.spans(number_n)))
