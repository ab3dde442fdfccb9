"""Decoding of batches: in this process, or in worker processes that work ahead.

tasks --fetch--> raw members --workers--> arrays, handed out in the order of the tasks
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
from collections.abc import Callable, Iterator

import numpy as np

from v2f.data import worker
from v2f.data.fetch import Task
from v2f.data.manifest import Split
from v2f.data.transforms import Transform
from v2f.errors import V2FError

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from v2f.data.worker import main; main(int(sys.argv[1]))"
)
_CLOSING_SECONDS = 5.0  # what a worker has to leave by itself before it is killed


def _named(split: Split, task: Task, error: str, row: int) -> V2FError:
    number = int(task.sample_b[row])
    index = split.first + number
    dataset = split.dataset
    return V2FError(f"{dataset.shard_path(index)}: {error} (at byte {dataset.index.offset[index]} of the shard)")


class Inline:
    """Decoding in this process."""

    def __init__(
        self,
        split: Split,
        tasks: Iterator[Task],
        fetch: Callable[[Task], list[memoryview]],
        transforms: dict[str, Transform],
        seed: int | None,
    ):
        self._split, self._tasks, self._fetch, self._transforms, self._seed = split, tasks, fetch, transforms, seed
        self._closed = False

    def next(self) -> tuple[Task, worker.Arrays]:
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


class Farm:
    """Decoding in worker processes: one thread fetches ahead, one thread a worker feeds it and takes its results.

    At most two batches wait at a worker and ``2 * workers + 2`` are under way in all. Results are handed out in
    the order of the tasks; an error waits for its turn and is raised there.
    """

    def __init__(
        self,
        split: Split,
        tasks: Iterator[Task],
        fetch: Callable[[Task], list[memoryview]],
        transforms: dict[str, Transform],
        seed: int | None,
        workers: int,
    ):
        self._split, self._seed = split, seed
        self._budget = threading.Semaphore(2 * workers + 2)
        self._requests: queue.SimpleQueue[tuple[int, Task, list[memoryview]] | None] = queue.SimpleQueue()
        self._results: dict[int, tuple[Task, worker.Arrays] | BaseException] = {}
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

    def next(self) -> tuple[Task, worker.Arrays]:
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

    def _deliver(self, number: int, result: tuple[Task, worker.Arrays] | BaseException) -> None:
        with self._changed:
            self._results[number] = result
            self._changed.notify_all()

    def _fetch_ahead(self, tasks: Iterator[Task], fetch: Callable[[Task], list[memoryview]]) -> None:
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

    def _drive(self, w: "Worker") -> None:
        waiting: collections.deque[tuple[int, Task]] = collections.deque()
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

    def _fail(self, w: "Worker", error: BaseException, numbers: list[int]) -> None:
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


class Worker:
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

    def result(self, split: Split, task: Task) -> "worker.Arrays | BaseException":
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


def _fate_hint(w: Worker) -> str:
    if w.process.returncode == -9:
        return "probably for lack of memory: lower the number of workers or the batch"
    return "see its message above; with 0 workers decoding runs in this process and shows where"


def _start_workers(count: int, transforms: dict[str, Transform]) -> list[Worker]:
    pickled = pickle.dumps(transforms, protocol=5)
    workers: list[Worker] = []
    try:
        for _ in range(count):
            workers.append(Worker(pickled))
    except BaseException:
        for w in workers:
            w.hang_up()
            w.end()
        raise
    return workers
