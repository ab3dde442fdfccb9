"""The order of training samples: a pure function of (data, seed), independent of ranks, workers and time (promise 1,
docs/architecture.md).

The data model in six lines:

1. Training data is an endless stream of *slots*. Epoch e is the slots [eN, (e+1)N), with each of the N samples once.
2. Slots are dealt to P *partitions* in chunks of C: p = (slot // C) mod P, the same in every epoch.
3. Each epoch permutes the shards, concatenates their samples to a ring with a random start, and cuts the ring into P
   contiguous runs; run p is as long as partition p has slots in this epoch.
4. Each run is cut into blocks of W samples (the *window*), and each block is permuted.
5. The position is one integer, the number of slots consumed; finding a slot's sample takes the same time everywhere.
6. A rank whose share of the batch is whole partitions reads only their runs: disjoint byte ranges that add up to one
   data set per epoch for the whole job, in requests of W adjacent samples.

Legend: N samples, P partitions, C chunk, W window, S slots asked for at once.
"""

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from v2f.errors import V2FError
from v2f.keyed import keyed_rng

Ints = npt.NDArray[np.int64]

_SHARDS, _CUT, _BLOCK = 0x5A4D, 0xC007, 0xB10C  # what a key draws, so that no two draws of one seed share a stream


@dataclass(frozen=True)
class Places:
    """The places of S slots: for each its epoch, partition, block of the run, rank in the block, and sample."""

    epoch_S: Ints
    partition_S: Ints
    block_S: Ints
    rank_S: Ints
    sample_S: Ints


@dataclass(frozen=True)
class _Epoch:
    """The ring of one epoch: shard k of the permutation has the ring positions [starts[k], starts[k+1])."""

    starts: Ints
    firsts: Ints  # number of the first sample of shard k of the permutation
    cut: int  # the ring position at which the first run starts
    run_starts_P: Ints
    run_lengths_P: Ints


class Order:
    """The order in which the samples of one split are trained on.

    ``shard_sizes`` are the samples per shard, in the manifest's order; samples are numbered consecutively, 0 to N-1.
    ``data`` is the fingerprint of the split: it is part of :attr:`fingerprint` and does not affect the order.
    """

    def __init__(
        self, shard_sizes: Sequence[int], *, seed: int, partitions: int, chunk: int, window: int, data: str = ""
    ):
        self.shard_sizes = tuple(int(size) for size in shard_sizes)
        self.samples = sum(self.shard_sizes)
        self.seed, self.partitions, self.chunk, self.window = seed, partitions, chunk, window
        if self.samples < 1 or min(self.shard_sizes) < 0:
            raise V2FError("an order needs at least one sample")
        if min(partitions, chunk, window) < 1 or seed < 0:
            raise V2FError(
                f"an order needs partitions, chunk and window of at least 1 and a seed of at least 0, "
                f"got {partitions}, {chunk}, {window} and {seed}"
            )
        text = f"order 1|{data}|{self.shard_sizes}|{seed}|{partitions}|{chunk}|{window}"
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self._sizes = np.asarray(self.shard_sizes, dtype=np.int64)
        self._epoch = functools.lru_cache(maxsize=4)(self._make_epoch)
        self._block = functools.lru_cache(maxsize=4 * partitions + 4)(self._make_block)

    @classmethod
    def for_batches(
        cls,
        shard_sizes: Sequence[int],
        *,
        seed: int,
        batch: int,
        partitions: int = 8,
        window: int = 256,
        data: str = "",
    ) -> "Order":
        """The order in which one global batch consists of one chunk of every partition.

        So with any world size that divides the number of partitions, ranks own whole partitions. If ``partitions``
        does not divide the batch, their greatest common divisor is used.
        """
        partitions = math.gcd(batch, partitions)
        return cls(shard_sizes, seed=seed, partitions=partitions, chunk=batch // partitions, window=window, data=data)

    def sample_numbers(self, start: int, stop: int) -> Ints:
        """The samples of the slots [start, stop), int64 [S]."""
        return self.places(np.arange(start, stop, dtype=np.int64)).sample_S

    def places(self, slot_S: Ints) -> Places:
        """The place of each slot (non-negative, in any order)."""
        epoch_S = slot_S // self.samples
        partition_S = slot_S // self.chunk % self.partitions
        run_index_S = self._count(partition_S, slot_S) - self._count(partition_S, epoch_S * self.samples)
        block_S, rank_S = run_index_S // self.window, run_index_S % self.window
        sample_S = np.empty_like(slot_S)
        keys = np.stack([epoch_S, partition_S, block_S], axis=1)
        blocks, owner_S = np.unique(keys, axis=0, return_inverse=True)
        for i, (epoch, partition, block) in enumerate(blocks.tolist()):
            mine = owner_S.reshape(-1) == i
            stored, permutation = self._block(epoch, partition, block)
            sample_S[mine] = stored[permutation[rank_S[mine]]]
        return Places(epoch_S, partition_S, block_S, rank_S, sample_S)

    def block_samples(self, epoch: int, partition: int, block: int) -> Ints:
        """A block's samples in stored order (adjacent, except at the ends of shards), int64 [<= W]."""
        return self._block(epoch, partition, block)[0]

    def next_block(self, epoch: int, partition: int, block: int) -> tuple[int, int, int] | None:
        """The next block of the same partition, if it has slots in this epoch or the next."""
        if (block + 1) * self.window < self._epoch(epoch).run_lengths_P[partition]:
            return epoch, partition, block + 1
        return (epoch + 1, partition, 0) if self._epoch(epoch + 1).run_lengths_P[partition] else None

    def _count(self, partition: Ints, slot: Ints | np.int64) -> Ints:
        return deal(partition, slot, self.partitions, self.chunk)

    def _make_epoch(self, epoch: int) -> _Epoch:
        shards = _permutation(len(self._sizes), _SHARDS, self.seed, epoch)
        firsts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])[shards]
        partition_P = np.arange(self.partitions, dtype=np.int64)
        first_slot = np.int64(epoch * self.samples)
        lengths_P = self._count(partition_P, first_slot + self.samples) - self._count(partition_P, first_slot)
        return _Epoch(
            starts=np.concatenate([[0], np.cumsum(self._sizes[shards])]),
            firsts=firsts,
            cut=int(raw_bits(1, _CUT, self.seed, epoch)[0] % np.uint64(self.samples)),
            run_starts_P=np.concatenate([[0], np.cumsum(lengths_P)[:-1]]),
            run_lengths_P=lengths_P,
        )

    def _make_block(self, epoch: int, partition: int, block: int) -> tuple[Ints, Ints]:
        """A block's samples in stored order, and the permutation in which its slots use them."""
        ring = self._epoch(epoch)
        length = min(self.window, int(ring.run_lengths_P[partition]) - block * self.window)
        if length < 1:
            raise ValueError(f"partition {partition} has no block {block} in epoch {epoch}")
        start = ring.cut + int(ring.run_starts_P[partition]) + block * self.window
        position = np.arange(start, start + length, dtype=np.int64) % self.samples
        shard = np.searchsorted(ring.starts, position, side="right") - 1
        stored = ring.firsts[shard] + position - ring.starts[shard]
        return stored, _permutation(length, _BLOCK, self.seed, epoch, partition, block)


def deal(partition: Ints, slot: Ints | np.int64, partitions: int, chunk: int) -> Ints:
    """The number of slots below ``slot`` that belong to ``partition``, with slots dealt in chunks."""
    rounds, rest = np.divmod(slot, partitions * chunk)
    return rounds * chunk + np.clip(rest - partition * chunk, 0, chunk)


def raw_bits(count: int, *key: int) -> npt.NDArray[np.uint64]:
    """Uniform 64-bit integers from the raw stream, which NumPy guarantees for all versions, unlike the results of
    ``Generator``'s methods (NEP 19): a run resumes in the same order under a newer NumPy."""
    return np.asarray(keyed_rng(*key).bit_generator.random_raw(count))


def _permutation(length: int, *key: int) -> Ints:
    return np.argsort(raw_bits(length, *key), kind="stable")
