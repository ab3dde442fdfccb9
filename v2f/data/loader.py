"""Batches for one rank: fetches raw bytes in the given order, checks and decodes them, ahead of training.

    slots --order--> samples --fetch (this process; whole blocks, CRC-32)--> raw bytes --decode workers--> batches
                                                     | a sample that cannot be used
                                                     v
                        keeps its slot and its key, with weight 0 and the substitute's arrays --> quarantine

The batches of a rank are a function of (data, order, seed, batch, rank, world size); they depend neither on the number
of workers nor on where reading starts.

Shape letters: B global batch, b batch of a rank; arrays are [b, ...].
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from v2f.data import worker
from v2f.data.farm import Farm, Inline, Work
from v2f.data.fetch import BatchPlan, Blocks, Reader, fetch_directly
from v2f.data.manifest import Ints, Samples
from v2f.data.mix import MixOrder
from v2f.data.order import Order
from v2f.data.quarantine import Bad, BadRows, Quarantine
from v2f.data.sample import Sample
from v2f.data.transforms import Checking, Transform, bound
from v2f.errors import V2FError
from v2f.storage.cache import Cache

Batch = dict[str, Any]

RESERVED = ("slot", "weight", "identity", "key")
_TRIES = 100  # if so many samples with a correct checksum cannot be decoded, the transforms are at fault


class Loader:
    """An endless iterator over a rank's batches of ``split``, from ``start_slot`` on.

    A global batch is ``batch`` slots; rank r gets the slots start_slot + g*B + [r*b, (r+1)*b) of batch g, with
    b = B / world_size. A batch is a dict: each transform's output stacked to a tensor [b, ...], and ``slot`` int64
    [b], ``weight`` float32 [b], ``identity`` int64 [b] (numbers of the manifest's identities, or those that
    ``identity_N`` gives for each sample), ``key`` list[str]. To resume, start at the first slot after the last global
    batch that was used.

    A sample that cannot be fetched or decoded, or that is in ``quarantine`` (numbers from a checkpoint), keeps its
    slot, identity and key, and gets weight 0; its arrays are those of the split's first sample that verifies, decoded
    with the slot's own randomness. It stays in :attr:`quarantine`.

    Reads go through ``cache``. ``workers`` processes decode (0: this process does). Each iteration starts at
    ``start_slot`` and owns its workers; they end with :meth:`close`, with the ``with`` block, or with the iterator.

    Holds the raw bytes of at most two blocks (of the order's window) per partition that the rank reads.
    """

    def __init__(
        self,
        split: Samples,
        order: Order | MixOrder,
        transforms: Mapping[str, Transform],
        *,
        batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        bn_group: int = 1,
        start_slot: int = 0,
        workers: int = 0,
        cache: Cache | None = None,
        quarantine: Iterable[int] = (),
        identity_N: Ints | None = None,
    ):
        check_batch(batch, world_size, bn_group)
        if order.samples != split.samples:
            raise V2FError(f"this order is over {order.samples} samples, the split {split.name} has {split.samples}")
        if not 0 <= rank < world_size:
            raise V2FError(f"rank {rank} is not one of the {world_size} ranks")
        if start_slot < 0 or workers < 0:
            raise V2FError(f"start_slot and workers are at least 0, got {start_slot} and {workers}")
        transforms = _checked(split, transforms, workers)
        self.split, self.order, self.transforms, self.seed = split, order, dict(transforms), seed
        self.batch, self.rank, self.world_size = batch, rank, world_size
        self.start_slot, self.workers = start_slot, workers
        self.quarantine = Quarantine(split, quarantine)
        self._identity_N = identity_N
        self._reader = Reader(split, cache)
        self._substitute = _Substitute(split, self._reader, self.transforms)
        self._running: weakref.WeakSet[_Batches] = weakref.WeakSet()

    @property
    def bytes_read(self) -> int:
        """Bytes that this rank has requested from the store so far."""
        return self._reader.bytes_read

    @property
    def requests(self) -> int:
        """Reads that this rank has requested from the store so far."""
        return self._reader.requests

    def __iter__(self) -> Iterator[Batch]:
        blocks = Blocks(self._reader, self.order, self.quarantine)
        work = Work(self.split, self._plans(), blocks.fetch, self.transforms, self.seed, self._substitute)
        batches = _Batches(work, self.workers, self.quarantine, blocks.close, self._identity_N)
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

    def _plans(self) -> Iterator[BatchPlan]:
        share = self.batch // self.world_size
        start = self.start_slot + self.rank * share
        while True:
            slot_b = np.arange(start, start + share, dtype=np.int64)
            yield BatchPlan(self.order.places(slot_b).sample_S, slot_b)
            start += self.batch


def read_split(
    split: Samples,
    transforms: Mapping[str, Transform],
    batch: int,
    *,
    limit: int | None = None,
    samples: Sequence[int] | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Each sample once, in the manifest's order, without randomness (rng None): for evaluation.

    ``limit`` stops after so many samples; ``samples`` are the numbers to read, in their order (for example a rank's
    share). Batches are as in :class:`Loader`, with ``slot`` as the sample's number in the split; the last one may be
    smaller. A sample that cannot be used is a :class:`V2FError` that names it.
    """
    transforms = _checked(split, transforms, workers)
    plans = iter([BatchPlan(part, part) for part in _parts(split, batch, samples, limit)])
    return _Batches(Work(split, plans, fetch_directly(Reader(split)), dict(transforms), seed=None), workers)


def read_usable(
    split: Samples,
    transforms: Mapping[str, Transform],
    batch: int,
    left_out: list[str],
    *,
    limit: int | None = None,
    samples: Sequence[int] | None = None,
    identity_N: Ints | None = None,
) -> Iterator[Batch]:
    """Like :func:`read_split`, in this process, but skips samples that cannot be used and adds a line about each to
    ``left_out``. There is no substitute, so batches may be smaller; empty ones are skipped. ``identity_N``: as in
    :class:`Loader`."""
    transforms = _checked(split, transforms, 0)
    reader = Reader(split)
    for part in _parts(split, batch, samples, limit):
        raws = reader.read(part)
        usable: dict[int, memoryview] = {}
        for number in part.tolist():
            raw = raws[number]
            if isinstance(raw, Bad):
                left_out.append(f"{split.where(number)}: {raw.reason}")
            else:
                usable[number] = raw
        while usable:
            numbers = list(usable)
            try:
                keys = [split.key(number) for number in numbers]
                arrays, _ = worker.decode(keys, list(usable.values()), numbers, None, transforms)
            except worker.DecodeError as error:
                number = numbers[error.row]
                left_out.append(f"{split.where(number)}: {str(error).removeprefix(f'sample {split.key(number)}: ')}")
                del usable[number]
            else:
                number_b = np.array(numbers, dtype=np.int64)
                yield _batch(split, BatchPlan(number_b, number_b), arrays, identity_N)
                break


def _parts(split: Samples, batch: int, samples: Sequence[int] | None, limit: int | None) -> list[Ints]:
    if batch < 1:
        raise V2FError(f"a batch has at least one sample, got {batch}")
    number_N = np.arange(split.samples, dtype=np.int64) if samples is None else np.asarray(samples, dtype=np.int64)
    if len(number_N) and not 0 <= number_N.min() <= number_N.max() < split.samples:
        raise V2FError(f"the split {split.name} has the samples 0 to {split.samples - 1}, but others were requested")
    number_N = number_N[:limit]
    return [number_N[at : at + batch] for at in range(0, len(number_N), batch)]


def check_batch(batch: int, world_size: int, bn_group: int, stream: str = "") -> None:
    """V2FError for a number of processes that would change the order of samples or the gradient (promises 1 and 3,
    docs/architecture.md); names the numbers that would not.

    ``stream``: name of the stream, if there are several.
    """
    of = f"data.streams.{stream}: " if stream else ""
    if min(batch, world_size, bn_group) < 1:
        raise V2FError(f"batch, world size and bn_group are at least 1, got {batch}, {world_size} and {bn_group}")
    if batch % bn_group:
        raise V2FError(
            f"{of}the batch of {batch} is not a multiple of {bn_group}, the samples of a group (batch norm's bn_group, "
            "a contrastive loss's group): change one of the two"
        )
    if batch % (world_size * bn_group):
        groups = batch // bn_group
        valid = [str(n) for n in range(1, groups + 1) if groups % n == 0]
        raise V2FError(
            f"{of}a batch of {batch} in groups of {bn_group} cannot be dealt to {world_size} processes; "
            f"valid numbers of processes: {', '.join(valid)}"
        )


def micro_batch_of(share: int, most: int | None, bn_group: int, others: Sequence[int] = ()) -> int | None:
    """Samples of a forward pass: the largest divisor of a rank's ``share`` that is at most ``most`` and consists of
    whole groups; None: all at once.

    So one value in a recipe works for every number of processes. V2FError if ``most`` is smaller than a group.
    ``others``: the rank's shares of further streams, which are split into equally many parts, also of whole groups.
    """
    if most is None or most >= share:
        return None
    if most < bn_group:
        raise V2FError(f"train.micro_batch: {most} is less than a group of {bn_group}; raise it")
    sizes = [size for size in range(bn_group, most + 1, bn_group) if share % size == 0]
    sizes = [size for size in sizes if all(other % (share // size * bn_group) == 0 for other in others)]
    if not sizes:
        raise V2FError(
            f"train.micro_batch: no {most} or fewer of a rank's {share} samples cut its "
            f"{' and '.join(map(str, others))} of other streams alike, in groups of {bn_group}; raise it, "
            "or take batches with more common divisors"
        )
    return max(sizes)


def _checked(split: Samples, transforms: Mapping[str, Transform], workers: int) -> dict[str, Transform]:
    """The transforms, bound to the split's data sets; :class:`V2FError` if one cannot read them."""
    for name, transform in transforms.items():
        if name in RESERVED:
            raise V2FError(f"a transform cannot be called {name!r}: every batch has that already")
        if workers and type(transform).__module__ == "__main__":
            raise V2FError(
                f"the transform {name!r} is defined in the script that runs; decode workers need it in a module"
            )
        if isinstance(transform, Checking):
            for dataset in split.datasets:
                transform.check(dataset.root, dataset.manifest.provenance)
    return bound(transforms, split.datasets)


class _Substitute:
    """The split's first sample that verifies: its checksum is correct and everything in it can be decoded. It is
    searched for on first use, and depends on the data alone."""

    def __init__(self, split: Samples, reader: Reader, transforms: Mapping[str, Transform]):
        self._split, self._reader, self._transforms = split, reader, transforms
        self._found: tuple[str, bytes] | None = None

    def __call__(self) -> tuple[str, bytes]:
        if self._found is None:
            self._found = self._look()
        return self._found

    def _look(self) -> tuple[str, bytes]:
        split, shard_N = self._split, self._split.extents.shard
        number, count, undecodable, first = 0, 1, 0, ""
        while number < split.samples and undecodable < _TRIES:
            shard_n = shard_N[number : number + count]
            run_n = number + np.flatnonzero(shard_n == shard_n[0])
            for at, raw in sorted(self._reader.read(run_n).items()):
                try:
                    if not isinstance(raw, Bad):
                        return self._verified(split.key(at), raw)
                    reason = raw.reason
                except V2FError as error:
                    reason = str(error).removeprefix(f"sample {split.key(at)}: ")
                    undecodable += 1
                first = first or f"{split.where(at)}: {reason}"
                if undecodable == _TRIES:
                    break
            number, count = int(run_n[-1]) + 1, min(2 * count, 64)
            while number < split.samples and self._reader.lost(number) is not None:
                number += int(np.argmax(shard_N[number:] != shard_N[number])) or split.samples
        raise V2FError(f"found no usable sample of {split.name}; the first problem: {first}")

    def _verified(self, key: str, raw: memoryview) -> tuple[str, bytes]:
        worker.decode([key], [raw], [0], None, self._transforms)
        Sample.from_tar(key, raw).check()  # any of its photos may be read
        return key, bytes(raw)


class _Batches(Iterator[Batch]):
    """The batches of ``work``, in order, decoded in this process or ahead of time by worker processes."""

    def __init__(
        self,
        work: Work,
        workers: int,
        quarantine: Quarantine | None = None,
        also_close: Callable[[], None] | None = None,
        identity_N: Ints | None = None,
    ):
        self._work, self._quarantine, self._identity_N = work, quarantine, identity_N
        self._decoder = Farm(work, workers) if workers else Inline(work)
        # Also runs when the iterator is garbage collected and at exit, so it must not refer to self.
        self._closing = weakref.finalize(self, _close, self._decoder, also_close)

    def __next__(self) -> Batch:
        try:
            plan, arrays, bad = self._decoder.next()
            batch = _batch(self._work.split, plan, arrays, self._identity_N)
            if self._quarantine is not None:
                self._set_aside(plan, arrays, bad, batch["weight"], self._quarantine)
        except BaseException:
            self.close()
            raise
        return batch

    def _set_aside(
        self, plan: BatchPlan, arrays: worker.Arrays, bad: BadRows, weight_b: torch.Tensor, quarantine: Quarantine
    ) -> None:
        """Set weight 0 and quarantine the sample of each bad row. A quarantined sample stays bad even if it can be read
        now."""
        numbers, slots = plan.sample_b.tolist(), plan.slot_b.tolist()
        for row, reason in sorted(bad.items()):
            quarantine.add(numbers[row], slots[row], reason)
        for row, number in enumerate(numbers):
            if number in quarantine:
                weight_b[row] = 0.0
                if row not in bad:  # read ahead before it was quarantined
                    self._work.stand_in(row, plan, arrays)

    def close(self) -> None:
        """End the workers; the next batch is a StopIteration."""
        self._closing()


def _batch(split: Samples, plan: BatchPlan, arrays: worker.Arrays, identity_N: Ints | None) -> Batch:
    batch: Batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    batch["slot"] = torch.from_numpy(plan.slot_b.copy())
    batch["weight"] = torch.ones(len(plan.sample_b))
    batch["identity"] = torch.from_numpy((split.identity_N if identity_N is None else identity_N)[plan.sample_b])
    batch["key"] = [split.key(number) for number in plan.sample_b.tolist()]
    return batch


def _close(decoder: "Inline | Farm", also_close: Callable[[], None] | None) -> None:
    decoder.close()
    if also_close is not None:
        also_close()
