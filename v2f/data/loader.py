"""Batches for one rank: fetch raw bytes by the order, check them, decode them, in order, ahead of the training.

    slots --order--> samples --fetch (this process; whole blocks, CRC-32)--> raw bytes --decode workers--> batches

What a rank gets is a function of (data, order, seed, batch, rank, world size); the number of workers and the
position at which it starts change nothing else.

Shape letters: B global batch, b batch of a rank; arrays are [b, ...].
"""

import collections
import contextlib
import json
import os
import pickle
import queue
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch

from v2f import store
from v2f.data import worker
from v2f.data.manifest import Split
from v2f.data.order import Order
from v2f.data.transforms import Transform
from v2f.errors import V2FError

Batch = dict[str, Any]
Ints = npt.NDArray[np.int64]

RESERVED = ("slot", "weight", "identity", "key")
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from v2f.data.worker import main; main(int(sys.argv[1]))"
)
_CLOSING_SECONDS = 5.0  # what a worker has to leave by itself before it is killed


@dataclass(frozen=True)
class _Task:
    """One batch of a rank: its samples (numbered in the split) and their slots."""

    sample_b: Ints
    slot_b: Ints


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
        self._reader = _Reader(split)
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
        blocks = _Blocks(self._reader, self.order)
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

    def _tasks(self) -> Iterator[_Task]:
        share = self.batch // self.world_size
        start = self.start_slot + self.rank * share
        while True:
            slot_b = np.arange(start, start + share, dtype=np.int64)
            yield _Task(self.order.places(slot_b).sample_S, slot_b)
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
    reader = _Reader(split)
    tasks = iter([_Task(part, part) for part in parts])
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


# ------------------------------------------------------------------------------------------------- fetch


@dataclass(frozen=True)
class _Span:
    """Adjacent samples of one shard, read at once: ``number_n`` sorted, sample i at bytes [start_n[i], stop_n[i])."""

    number_n: Ints
    start_n: Ints
    stop_n: Ints
    content: bytes


class _Reader:
    """Reads samples of a split by merged byte ranges, checks each against its CRC-32, counts what it asks for."""

    def __init__(self, split: Split):
        self._split = split
        index, rows = split.dataset.index, slice(split.first, split.first + split.samples)
        self._shard_N, self._offset_N = index.shard[rows], index.offset[rows]
        self._length_N, self._crc32_N = index.length[rows], index.crc32[rows]
        self._lock = threading.Lock()
        self.bytes_read = 0
        self.requests = 0

    def spans(self, number_n: Ints) -> list[_Span]:
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
            spans.append(_Span(number_n[group], start, start + self._length_N[number_n[group]], content))
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


def _by_number(spans: Sequence[_Span]) -> dict[int, memoryview]:
    found = {}
    for span in spans:
        view = memoryview(span.content)
        for number, start, stop in zip(
            span.number_n.tolist(), span.start_n.tolist(), span.stop_n.tolist(), strict=True
        ):
            found[number] = view[start:stop]
    return found


_BlockId = tuple[int, int, int]  # epoch, partition, block


class _Blocks:
    """Raw bytes of the order's blocks: read whole, the next one of a partition when half of the current is used,
    dropped when its partition has moved on."""

    def __init__(self, reader: _Reader, order: Order):
        self._reader, self._order = reader, order
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="v2f-read")
        self._held: dict[_BlockId, Future[dict[int, memoryview]]] = {}

    def fetch(self, task: _Task) -> list[memoryview]:
        """The checked raw members of a task's samples. Tasks come in the order of their slots."""
        places = self._order.places(task.slot_b)
        ids: list[_BlockId] = list(
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

    def _want(self, block: _BlockId) -> None:
        if block not in self._held:
            number_n = self._order.block_samples(*block)
            self._held[block] = self._pool.submit(lambda: _by_number(self._reader.spans(number_n)))


# ------------------------------------------------------------------------------------------------ decode


class _Batches(Iterator[Batch]):
    """The batches of ``tasks``, in order; decoded here or by worker processes that work ahead."""

    def __init__(
        self,
        split: Split,
        tasks: Iterator[_Task],
        fetch: Callable[[_Task], list[memoryview]],
        transforms: dict[str, Transform],
        seed: int | None,
        workers: int,
        also_close: Callable[[], None] | None = None,
    ):
        self._split = split
        self._identity_N = split.identity_N
        self._decoder: _Inline | _Farm
        if workers == 0:
            self._decoder = _Inline(split, tasks, fetch, transforms, seed)
        else:
            self._decoder = _Farm(split, tasks, fetch, transforms, seed, workers)
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


def _close(decoder: "_Inline | _Farm", also_close: Callable[[], None] | None) -> None:
    decoder.close()
    if also_close is not None:
        also_close()


def _named(split: Split, task: _Task, error: str, row: int) -> V2FError:
    number = int(task.sample_b[row])
    index = split.first + number
    dataset = split.dataset
    return V2FError(f"{dataset.shard_path(index)}: {error} (at byte {dataset.index.offset[index]} of the shard)")


class _Inline:
    """Decoding in this process."""

    def __init__(
        self,
        split: Split,
        tasks: Iterator[_Task],
        fetch: Callable[[_Task], list[memoryview]],
        transforms: dict[str, Transform],
        seed: int | None,
    ):
        self._split, self._tasks, self._fetch, self._transforms, self._seed = split, tasks, fetch, transforms, seed
        self._closed = False

    def next(self) -> tuple[_Task, worker.Arrays]:
        if self._closed:
            raise StopIteration
        task = next(self._tasks)
        raws = self._fetch(task)
        keys = [self._split.key(number) for number in task.sample_b.tolist()]
        try:
            return task, worker.decode(keys, raws, task.slot_b.tolist(), self._seed, self._transforms)
        except worker.DecodeError as error:
            raise _named(self._split, task, str(error), error.row) from error

    def close(self) -> None:
        self._closed = True


class _Farm:
    """Decoding in worker processes: one thread fetches ahead, one thread a worker feeds it and takes its results.

    At most two batches wait at a worker and ``2 * workers + 2`` are under way in all. Results are handed out in
    the order of the tasks; an error waits for its turn and is raised there.
    """

    def __init__(
        self,
        split: Split,
        tasks: Iterator[_Task],
        fetch: Callable[[_Task], list[memoryview]],
        transforms: dict[str, Transform],
        seed: int | None,
        workers: int,
    ):
        self._split, self._seed = split, seed
        self._budget = threading.Semaphore(2 * workers + 2)
        self._requests: queue.SimpleQueue[tuple[int, _Task, list[memoryview]] | None] = queue.SimpleQueue()
        self._results: dict[int, tuple[_Task, worker.Arrays] | BaseException] = {}
        self._changed = threading.Condition()
        self._next = 0
        self._closed = False
        self._workers = _start_workers(workers, transforms)
        self._threads = [threading.Thread(target=self._fetch_ahead, args=(tasks, fetch), daemon=True, name="v2f-fetch")]
        self._threads += [
            threading.Thread(target=self._drive, args=(w,), daemon=True, name=f"v2f-decode-{i}")
            for i, w in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    def next(self) -> tuple[_Task, worker.Arrays]:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._next in self._results)
            if self._closed:
                raise StopIteration
            result = self._results.pop(self._next)
            self._next += 1
        self._budget.release()
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._budget.release()
        for _ in self._workers:
            self._requests.put(None)
        for w in self._workers:
            w.hang_up()
        for w in self._workers:
            w.end()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_CLOSING_SECONDS)
        self._results.clear()

    def _deliver(self, number: int, result: tuple[_Task, worker.Arrays] | BaseException) -> None:
        with self._changed:
            self._results[number] = result
            self._changed.notify_all()

    def _fetch_ahead(self, tasks: Iterator[_Task], fetch: Callable[[_Task], list[memoryview]]) -> None:
        number = 0
        try:
            while True:
                self._budget.acquire()
                if self._closed:
                    return
                task = next(tasks)
                self._requests.put((number, task, fetch(task)))
                number += 1
        except BaseException as error:  # StopIteration, too: each is raised where the consumer arrives at it
            self._deliver(number, error)

    def _drive(self, w: "_Worker") -> None:
        waiting: collections.deque[tuple[int, _Task]] = collections.deque()
        try:
            w.greet()
            while True:
                while len(waiting) < 2:
                    try:
                        request = self._requests.get(block=not waiting)
                    except queue.Empty:
                        break
                    if request is None:
                        return
                    number, task, raws = request
                    waiting.append((number, task))
                    keys = [self._split.key(n) for n in task.sample_b.tolist()]
                    worker.send(w.socket, {"keys": keys, "slots": task.slot_b.tolist(), "seed": self._seed}, raws)
                result = w.result(self._split, waiting[0][1])
                number, task = waiting.popleft()
                self._deliver(number, result if isinstance(result, BaseException) else (task, result))
        except BaseException as error:
            if not self._closed:
                self._fail(w, error, [number for number, _ in waiting])

    def _fail(self, w: "_Worker", error: BaseException, numbers: list[int]) -> None:
        """A worker is lost: the batches that it had, or the next one if it had none, become the error."""
        lost = isinstance(error, OSError | EOFError)
        reason = V2FError(f"a decode worker died ({w.fate()}) {_fate_hint(w)}") if lost else error
        if not numbers:
            request = self._requests.get()
            if request is None:
                return
            numbers = [request[0]]
        for number in numbers:
            self._deliver(number, reason)


class _Worker:
    """One worker process and our end of its socket."""

    def __init__(self, transforms: bytes):
        self.socket, theirs = socket.socketpair()
        with theirs:
            path = [os.path.abspath(entry) for entry in sys.path]
            threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", _BOOT, str(theirs.fileno()), json.dumps(path)],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **threads},
                )
            except OSError as error:
                self.socket.close()
                raise V2FError(
                    f"cannot start a decode worker ({error.strerror}); lower the number of workers"
                ) from error
        self._transforms = transforms

    def greet(self) -> None:
        """Send the transforms and wait until the worker has loaded them."""
        worker.send(self.socket, {}, [self._transforms])
        header = worker.receive_header(self.socket)
        if header is None:
            raise EOFError
        if "failure" in header:
            raise RuntimeError(header["failure"])

    def result(self, split: Split, task: _Task) -> "worker.Arrays | BaseException":
        """The answer to the oldest request; EOFError or OSError where the worker is gone."""
        header = worker.receive_header(self.socket)
        if header is None:
            raise EOFError
        if "error" in header:
            return _named(split, task, header["error"], header["row"])
        if "failure" in header:
            return RuntimeError(header["failure"])
        arrays: worker.Arrays = {}
        for (name, (dtype, shape)), length in zip(header["arrays"].items(), header["bytes"], strict=True):
            arrays[name] = np.empty(shape, dtype)
            if length:
                worker.receive_payload(self.socket, length, worker.as_bytes(arrays[name]))
        return arrays

    def fate(self) -> str:
        try:
            code = self.process.wait(_CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            return f"process {self.process.pid} closed its socket"
        return f"process {self.process.pid}, " + (f"signal {-code}" if code < 0 else f"exit code {code}")

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):  # it may be closed already
            self.socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        try:
            self.process.wait(_CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.socket.close()


def _fate_hint(w: _Worker) -> str:
    if w.process.returncode == -9:
        return "probably for lack of memory: lower the number of workers or the batch"
    return "see its message above; with 0 workers decoding runs in this process and shows where"


def _start_workers(count: int, transforms: dict[str, Transform]) -> list[_Worker]:
    pickled = pickle.dumps(transforms, protocol=5)
    workers: list[_Worker] = []
    try:
        for _ in range(count):
            workers.append(_Worker(pickled))
    except BaseException:
        for w in workers:
            w.hang_up()
            w.end()
        raise
    return workers
