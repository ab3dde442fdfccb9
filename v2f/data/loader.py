"""Batches for one rank: fetch raw bytes by the order, check them, decode them, in order, ahead of the training.

    slots --order--> samples --fetch (this process; whole blocks, CRC-32)--> raw bytes --decode workers--> batches

What a rank gets is a function of (data, order, seed, batch, rank, world size); the number of workers and the
position at which it starts change nothing else.

Shape letters: B global batch, b batch of a rank; arrays are [b, ...].
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from v2f.data.farm import Farm, Inline
from v2f.data.fetch import Blocks, Reader, Task
from v2f.data.manifest import Split
from v2f.data.order import Order
from v2f.data.transforms import Transform
from v2f.errors import V2FError

Batch = dict[str, Any]

RESERVED = ("slot", "weight", "identity", "key")


class Loader:
    """An endless iterator over a rank's batches of ``split``, from ``start_slot`` on.

    A global batch is ``batch`` slots; of batch g, rank r has the slots start_slot + g*B + [r*b, (r+1)*b), with
    b = B / world_size. A batch is a dict: each transform's output stacked to a tensor [b, ...], and ``slot`` int64
    [b], ``weight`` float32 [b], ``identity`` int64 [b] (numbers of the manifest's identities), ``key`` list[str].
    The position to resume at is the first slot after the last global batch that was used.

    ``workers`` processes decode (0: in this process). Each iteration starts at ``start_slot`` anew and owns its
    workers; :meth:`close`, or leaving a ``with`` block, ends them, and so does dropping the iterator.

    Raw bytes held: at most two blocks (of the order's window) of each partition that the rank touches.
    """

    def __init__(
        self,
        split: Split,
        order: Order,
        transforms: Mapping[str, Transform],
        *,
        batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        bn_group: int = 1,
        start_slot: int = 0,
        workers: int = 0,
    ):
        check_batch(batch, world_size, bn_group)
        if order.samples != split.samples:
            raise V2FError(f"this order is over {order.samples} samples, the split {split.name} has {split.samples}")
        if not 0 <= rank < world_size:
            raise V2FError(f"rank {rank} is none of the {world_size} ranks")
        if start_slot < 0 or workers < 0:
            raise V2FError(f"start_slot and workers are at least 0, got {start_slot} and {workers}")
        _check_transforms(transforms, workers)
        self.split, self.order, self.transforms, self.seed = split, order, dict(transforms), seed
        self.batch, self.rank, self.world_size = batch, rank, world_size
        self.start_slot, self.workers = start_slot, workers
        self._reader = Reader(split)
        self._running: weakref.WeakSet[_Batches] = weakref.WeakSet()

    @property
    def bytes_read(self) -> int:
        """Bytes asked of the store so far by this rank."""
        return self._reader.bytes_read

    @property
    def requests(self) -> int:
        """Reads asked of the store so far by this rank."""
        return self._reader.requests

    def __iter__(self) -> Iterator[Batch]:
        blocks = Blocks(self._reader, self.order)
        batches = _Batches(
            self.split, self._tasks(), blocks.fetch, self.transforms, self.seed, self.workers, blocks.close
        )
        self._running.add(batches)
        return batches

    def close(self) -> None:
        """End all iterations and their workers."""
        for batches in list(self._running):
            batches.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tasks(self) -> Iterator[Task]:
        share = self.batch // self.world_size
        start = self.start_slot + self.rank * share
        while True:
            slot_b = np.arange(start, start + share, dtype=np.int64)
            yield Task(self.order.places(slot_b).sample_S, slot_b)
            start += self.batch


def read_split(
    split: Split,
    transforms: Mapping[str, Transform],
    batch: int,
    *,
    limit: int | None = None,
    samples: Sequence[int] | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Each sample once, in the manifest's order, without randomness (rng None): for evaluation.

    ``limit`` takes the first so many; ``samples`` takes those numbers in their order (a rank's share, say). The
    batches are those of :class:`Loader`, ``slot`` being the sample's number in the split; the last may be smaller.
    """
    if batch < 1:
        raise V2FError(f"a batch has at least one sample, got {batch}")
    _check_transforms(transforms, workers)
    number_N = np.arange(split.samples, dtype=np.int64) if samples is None else np.asarray(samples, dtype=np.int64)
    if len(number_N) and not 0 <= number_N.min() <= number_N.max() < split.samples:
        raise V2FError(f"the split {split.name} has the samples 0 to {split.samples - 1}, others were asked for")
    number_N = number_N[:limit]
    parts = [number_N[at : at + batch] for at in range(0, len(number_N), batch)]
    reader = Reader(split)
    tasks = iter([Task(part, part) for part in parts])
    return _Batches(split, tasks, lambda task: reader.checked(task.sample_b), dict(transforms), None, workers)


def check_batch(batch: int, world_size: int, bn_group: int) -> None:
    """Refuse a world size that would change the mathematics, and name those that would not (promises 1 and 3)."""
    if min(batch, world_size, bn_group) < 1:
        raise V2FError(f"batch, world size and bn_group are at least 1, got {batch}, {world_size} and {bn_group}")
    if batch % bn_group:
        raise V2FError(f"the batch of {batch} is no multiple of bn_group {bn_group}: change one of the two")
    if batch % (world_size * bn_group):
        groups = batch // bn_group
        valid = [str(n) for n in range(1, groups + 1) if groups % n == 0]
        raise V2FError(
            f"a batch of {batch} in batch-norm groups of {bn_group} cannot be dealt to {world_size} processes; "
            f"valid numbers of processes: {', '.join(valid)}"
        )


def _check_transforms(transforms: Mapping[str, Transform], workers: int) -> None:
    for name, transform in transforms.items():
        if name in RESERVED:
            raise V2FError(f"a transform cannot be called {name!r}: every batch has that already")
        if workers and type(transform).__module__ == "__main__":
            raise V2FError(
                f"the transform {name!r} is defined in the script that runs; decode workers need it in a module"
            )


class _Batches(Iterator[Batch]):
    """The batches of ``tasks``, in order; decoded here or by worker processes that work ahead."""

    def __init__(
        self,
        split: Split,
        tasks: Iterator[Task],
        fetch: Callable[[Task], list[memoryview]],
        transforms: dict[str, Transform],
        seed: int | None,
        workers: int,
        also_close: Callable[[], None] | None = None,
    ):
        self._split = split
        self._identity_N = split.identity_N
        self._decoder: Inline | Farm
        if workers == 0:
            self._decoder = Inline(split, tasks, fetch, transforms, seed)
        else:
            self._decoder = Farm(split, tasks, fetch, transforms, seed, workers)
        # Also runs when the iterator is dropped and when the interpreter ends; it must not refer to self.
        self._closing = weakref.finalize(self, _close, self._decoder, also_close)

    def __next__(self) -> Batch:
        try:
            task, arrays = self._decoder.next()
        except BaseException:
            self.close()
            raise
        count = len(task.sample_b)
        batch: Batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        batch["slot"] = torch.from_numpy(task.slot_b.copy())
        batch["weight"] = torch.ones(count)
        batch["identity"] = torch.from_numpy(self._identity_N[task.sample_b])
        batch["key"] = [self._split.key(number) for number in task.sample_b.tolist()]
        return batch

    def close(self) -> None:
        """End the workers; further batches are a StopIteration."""
        self._closing()


def _close(decoder: "Inline | Farm", also_close: Callable[[], None] | None) -> None:
    decoder.close()
    if also_close is not None:
        also_close()
