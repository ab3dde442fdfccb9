"""Several data sets mixed by weight: the order of their samples, a pure function of (data, seed) and the slot.

    slot --chunk--> partition p, its k-th slot --pattern--> source i, its m-th slot in p --Order i--> sample

1. Slots are dealt to P partitions in chunks, as in :mod:`v2f.data.order`.
2. A pattern of R entries, r_i of them for source i, says which source the k-th slot of a partition reads; each
   partition starts at a different entry.
3. The m-th slot of source i in partition p is slot m P + p of the source's own order, whose chunk is one. So each
   source has its own epochs, in which every sample occurs once, and a rank that owns whole partitions reads disjoint
   parts of every source.

Legend: P partitions, R entries of the pattern, S slots asked for at once, N samples.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from v2f.data.manifest import Dataset, Extents, Samples, Split
from v2f.data.order import Ints, Order, Places, deal, raw_bits
from v2f.errors import V2FError

GRAIN = 1000  # weights are rounded to multiples of 1 / GRAIN of their sum

_PATTERN = 0x313C  # what a key draws, so that no two draws of one seed share a stream


class MixOrder:
    """The order of several sources, whose samples are numbered consecutively. Same interface as :class:`Order`."""

    def __init__(
        self,
        shard_sizes: Sequence[Sequence[int]],
        weights: Sequence[float],
        *,
        seed: int,
        batch: int,
        partitions: int = 8,
        window: int = 256,
        data: Sequence[str] = (),
    ):
        """``shard_sizes``, ``weights`` and ``data`` (fingerprints) have one entry per source. As in
        :meth:`Order.for_batches`, a global batch consists of one chunk of every partition."""
        if len(shard_sizes) != len(weights) or not weights:
            raise V2FError(
                f"a mix has a weight for each source, got {len(shard_sizes)} sources, {len(weights)} weights"
            )
        self.partitions = math.gcd(batch, partitions)
        self.chunk = batch // self.partitions
        self.window = window
        named = list(data) or [""] * len(weights)
        self.orders = [
            Order(sizes, seed=seed, partitions=self.partitions, chunk=1, window=window, data=name)
            for sizes, name in zip(shard_sizes, named, strict=True)
        ]
        self.shares = _shares(weights)
        self.samples = sum(order.samples for order in self.orders)
        self.firsts = np.concatenate([[0], np.cumsum([order.samples for order in self.orders])]).astype(np.int64)
        self._pattern_R = _pattern(self.shares)
        # _had_RI[j, i]: the number of entries of source i before entry j of the pattern
        taken_RI = self._pattern_R[:, None] == np.arange(len(self.shares))
        self._had_RI = np.cumsum(taken_RI, axis=0) - taken_RI
        self._shift_P = (raw_bits(self.partitions, _PATTERN, seed) % np.uint64(len(self._pattern_R))).astype(np.int64)
        text = "|".join([f"mix 1|{self.shares}|{self.chunk}", *(order.fingerprint for order in self.orders)])
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def sample_numbers(self, start: int, stop: int) -> Ints:
        """The samples of the slots [start, stop), int64 [S]."""
        return self.places(np.arange(start, stop, dtype=np.int64)).sample_S

    def places(self, slot_S: Ints) -> Places:
        """The place of each slot. Partition p of source i has the number i P + p; epochs are those of the source."""
        partition_S = slot_S // self.chunk % self.partitions
        entry_S = deal(partition_S, slot_S, self.partitions, self.chunk) + self._shift_P[partition_S]
        rounds_S, at_S = np.divmod(entry_S, len(self._pattern_R))
        source_S = self._pattern_R[at_S]
        shares_I = np.asarray(self.shares, dtype=np.int64)
        had_S = rounds_S * shares_I[source_S] + self._had_RI[at_S, source_S]
        own_S = had_S - self._had_RI[self._shift_P[partition_S], source_S]
        columns = {name: np.empty_like(slot_S) for name in ("epoch", "partition", "block", "rank", "sample")}
        for i, order in enumerate(self.orders):
            mine = source_S == i
            found = order.places(own_S[mine] * self.partitions + partition_S[mine])
            columns["epoch"][mine], columns["block"][mine], columns["rank"][mine] = (
                found.epoch_S,
                found.block_S,
                found.rank_S,
            )
            columns["partition"][mine] = found.partition_S + i * self.partitions
            columns["sample"][mine] = found.sample_S + self.firsts[i]
        return Places(**{f"{name}_S": column for name, column in columns.items()})

    def block_samples(self, epoch: int, partition: int, block: int) -> Ints:
        """A block's samples in stored order (adjacent, except at the ends of shards), int64 [<= window]."""
        i, own = divmod(partition, self.partitions)
        return self.orders[i].block_samples(epoch, own, block) + self.firsts[i]

    def next_block(self, epoch: int, partition: int, block: int) -> tuple[int, int, int] | None:
        """The next block of the same partition, if it has slots in this epoch of its source or the next."""
        i, own = divmod(partition, self.partitions)
        following = self.orders[i].next_block(epoch, own, block)
        return None if following is None else (following[0], i * self.partitions + following[1], following[2])


class Union:
    """Several splits as one, numbered consecutively as in :class:`MixOrder`; see :class:`v2f.data.manifest.Samples`.

    Identities of different data sets count as different people, even with equal names.
    """

    def __init__(self, splits: Sequence[Split]):
        self.splits = tuple(splits)
        self._firsts = np.concatenate([[0], np.cumsum([split.samples for split in self.splits])]).astype(np.int64)
        self.samples = int(self._firsts[-1])
        self.name = " + ".join(f"{split.dataset.root}/{split.name}" for split in self.splits)
        self.fingerprint = union_fingerprint([split.fingerprint for split in self.splits])

    @cached_property
    def identity_N(self) -> Ints:
        """Number of each sample's person in :func:`identities`, int64 [N]."""
        before: dict[str, int] = {}  # a data set may give several splits
        people = 0
        for split in self.splits:
            if split.dataset.fingerprint not in before:
                before[split.dataset.fingerprint] = people
                people += len(split.dataset.manifest.identities)
        return np.concatenate([split.identity_N + before[split.dataset.fingerprint] for split in self.splits])

    @cached_property
    def extents(self) -> Extents:
        found = [split.extents for split in self.splits]
        return Extents(
            shard=np.concatenate([e.shard + i * (1 << 32) for i, e in enumerate(found)]),
            offset=np.concatenate([e.offset for e in found]),
            length=np.concatenate([e.length for e in found]),
            crc32=np.concatenate([e.crc32 for e in found]),
        )

    @property
    def datasets(self) -> Sequence[Dataset]:
        return [split.dataset for split in self.splits]

    def key(self, sample: int) -> str:
        split, own = self._own(sample)
        return split.key(own)

    def root(self, sample: int) -> str:
        split, own = self._own(sample)
        return split.root(own)

    def shard_path(self, sample: int) -> str:
        split, own = self._own(sample)
        return split.shard_path(own)

    def byte(self, sample: int) -> int:
        return int(self.extents.offset[sample])

    def where(self, sample: int) -> str:
        split, own = self._own(sample)
        return split.where(own)

    def in_our_schema(self, sample: int, raw: bytes | memoryview) -> bytes | memoryview:
        split, own = self._own(sample)
        return split.in_our_schema(own, raw)

    def _own(self, sample: int) -> tuple[Split, int]:
        i = int(np.searchsorted(self._firsts, sample, side="right")) - 1
        return self.splits[i], sample - int(self._firsts[i])


def identities(samples: Samples) -> list[str]:
    """The names that ``samples.identity_N`` indexes: those of each data set once, one data set after the other."""
    datasets = {dataset.fingerprint: dataset for dataset in samples.datasets}
    return [name for dataset in datasets.values() for name in dataset.manifest.identities]


def union_fingerprint(splits: Sequence[str]) -> str:
    """The fingerprint of several splits as one, from their fingerprints."""
    return hashlib.sha256("|".join(["union 1", *splits]).encode()).hexdigest()


def _shares(weights: Sequence[float]) -> tuple[int, ...]:
    """The smallest whole numbers in exact proportion to the weights; if they would add up to more than ``GRAIN``, the
    nearest ones that add up to about ``GRAIN``."""
    total = sum(weights)
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise V2FError(f"the weights of a mix are above zero, got {', '.join(map(str, weights))}")
    for whole in range(len(weights), GRAIN + 1):
        exact = [whole * weight / total for weight in weights]
        shares = [round(share) for share in exact]
        if all(abs(share - wanted) < 1e-9 * wanted for share, wanted in zip(shares, exact, strict=True)):
            break
    if not all(shares):
        least = min(weights) / total
        raise V2FError(f"a weight of a mix is below one {GRAIN}th of the whole ({least:.2g}): leave it out")
    return tuple(shares)


def _pattern(shares: Sequence[int]) -> Ints:
    """The source of each of the R entries of the pattern, spread as evenly as possible: int64 [R]."""
    length = sum(shares)
    given = [0] * len(shares)
    pattern = []
    for at in range(length):
        behind = [share * (at + 1) - had * length for share, had in zip(shares, given, strict=True)]
        source = behind.index(max(behind))
        given[source] += 1
        pattern.append(source)
    return np.array(pattern, dtype=np.int64)
