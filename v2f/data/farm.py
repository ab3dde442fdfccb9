"""Decoding batches, in this process or ahead of time in worker processes.

plans --fetch--> raw members --workers--> arrays and bad rows --substitutes, here--> batches in the order of the plans

A sample that cannot be fetched or decoded is not an error if there is a substitute: workers report its row, the
substitute fills the row when the batch is taken, and the reason goes with the batch.
"""

import collections
import contextlib
import json
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from v2f.data import worker
from v2f.data.fetch import BatchPlan
from v2f.data.manifest import Samples
from v2f.data.quarantine import Bad, BadRows, Raw, Substitute
from v2f.data.transforms import Transform
from v2f.errors import V2FError

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from v2f.data.worker import main; main(int(sys.argv[1]))"
)
_FOR_THE_TRAINER = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_CLOSING_SECONDS = 5.0  # a worker that has not exited by then is killed
_WAITING = 2  # batches at a worker: the one being decoded, and the next
_LENT = 2  # trays of a worker that the consumer may hold

Decoded = tuple[BatchPlan, worker.Arrays, BadRows]


@dataclass(frozen=True)
class Work:
    """What to decode: batch plans over ``split``, how to fetch one, the transforms to apply, and the substitute for
    samples that cannot be used."""

    split: Samples
    plans: Iterator[BatchPlan]
    fetch: Callable[[BatchPlan], Sequence[Raw]]
    transforms: dict[str, Transform]
    seed: int | None
    substitute: Substitute | None = None

    def next(self) -> tuple[BatchPlan, list[memoryview | None], BadRows]:
        """The next plan, its raw members (None for those that could not be fetched), and the reasons by row; V2FError
        for a bad sample if there is no substitute."""
        plan = next(self.plans)
        raws = self.fetch(plan)
        bad = {row: raw.reason for row, raw in enumerate(raws) if isinstance(raw, Bad)}
        if bad and self.substitute is None:
            row = min(bad)
            raise V2FError(f"{self.split.where(int(plan.sample_b[row]))}: {bad[row]}")
        return plan, [None if isinstance(raw, Bad) else raw for raw in raws], bad

    def keys(self, plan: BatchPlan) -> list[str]:
        return [self.split.key(number) for number in plan.sample_b.tolist()]

    def filled(self, plan: BatchPlan, arrays: worker.Arrays, bad: BadRows) -> "Decoded":
        """The batch, with its bad rows filled from the substitute."""
        for row in bad:
            self.stand_in(row, plan, arrays)
        return plan, arrays, bad

    def stand_in(self, row: int, plan: BatchPlan, arrays: worker.Arrays) -> None:
        """Put the substitute, decoded with the slot's own randomness, into a row of ``arrays``, which are created if
        they are missing."""
        assert self.substitute is not None, "bad rows come with a substitute"
        key, raw = self.substitute()
        try:
            made, _ = worker.decode([key], [raw], [int(plan.slot_b[row])], self.seed, self.transforms)
        except V2FError as error:
            other = self.split.key(int(plan.sample_b[row]))
            raise V2FError(f"{error}; it was to stand in for sample {other}, which cannot be used either") from error
        try:
            worker.put({name: array[0] for name, array in made.items()}, key, row, len(plan.sample_b), arrays)
        except worker.DecodeError as error:
            raise _named(self.split, plan, str(error), row) from error


def _named(split: Samples, plan: BatchPlan, error: str, row: int | None) -> V2FError:
    if row is None:
        return V2FError(error)
    number = int(plan.sample_b[row])
    return V2FError(f"{split.shard_path(number)}: {error} (at byte {split.byte(number)} of the shard)")


class Inline:
    """Decodes in this process."""

    def __init__(self, work: Work):
        self._work = work
        self._closed = False

    def next(self) -> Decoded:
        """The next plan, its arrays, and its bad rows, which are filled from the substitute."""
        if self._closed:
            raise StopIteration
        work = self._work
        plan, raws, bad = work.next()
        slots, tolerant = plan.slot_b.tolist(), work.substitute is not None
        try:
            arrays, undecoded = worker.decode(work.keys(plan), raws, slots, work.seed, work.transforms, tolerant)
        except worker.DecodeError as error:
            raise _named(work.split, plan, str(error), error.row) from error
        return work.filled(plan, arrays, bad | undecoded)

    def close(self) -> None:
        self._closed = True


@dataclass(frozen=True)
class _Fetched:
    """A batch to decode: its number in the sequence, its raw members, and the rows without any."""

    number: int
    plan: BatchPlan
    raws: list[memoryview | None]
    bad: BadRows


@dataclass(frozen=True)
class _Asked:
    """A batch in a tray of a worker, with the request to the worker."""

    number: int
    plan: BatchPlan
    bad: BadRows
    tray: worker.Tray
    request: dict[str, Any]


class Farm:
    """Decodes in worker processes: one thread fetches ahead, and one thread per worker feeds it and takes its results.

    At most two batches are at a worker, and ``2 * workers + 2`` are in progress in all. Results are handed out in the
    order of the plans; an error is raised when its turn comes.

    Arrays are views of trays. A tray returns to its worker when nothing refers to it any more; the consumer may hold
    two of a worker's four trays, and further arrays are copied. Arrays stay valid as long as they are referenced, even
    after the farm is closed. A tray takes as much memory as a batch, raw and decoded; it is not in a file system, so
    the size of /dev/shm does not limit it.
    """

    def __init__(self, work: Work, workers: int):
        self._work = work
        self._budget = threading.Semaphore(2 * workers + 2)
        self._requests: queue.SimpleQueue[_Fetched | None] = queue.SimpleQueue()
        self._results: dict[int, Decoded | BaseException] = {}
        self._changed = threading.Condition()
        self._next = 0
        self._closed = False
        self._workers = _start_workers(workers, work.transforms)
        self._threads = [threading.Thread(target=self._fetch_ahead, daemon=True, name="v2f-fetch")]
        self._threads += [
            threading.Thread(target=self._drive, args=(w,), daemon=True, name=f"v2f-decode-{i}")
            for i, w in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    def next(self) -> Decoded:
        """The next plan, its arrays, and its bad rows, which are filled from the substitute."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._next in self._results)
            if self._closed:
                raise StopIteration
            result = self._results.pop(self._next)
            self._next += 1
        self._budget.release()
        if isinstance(result, BaseException):
            try:
                raise result
            finally:
                del result  # else error and frame refer to each other and keep the workers' memory alive
        return self._work.filled(*result)

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
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(2 * _CLOSING_SECONDS)
        self._results.clear()

    def _deliver(self, number: int, result: Decoded | BaseException) -> None:
        with self._changed:
            self._results[number] = result
            self._changed.notify_all()

    def _fetch_ahead(self) -> None:
        number = 0
        try:
            while True:
                self._budget.acquire()
                if self._closed:
                    return
                self._requests.put(_Fetched(number, *self._work.next()))
                number += 1
        except BaseException as error:  # StopIteration, too: each is raised when the consumer gets there
            self._deliver(number, error)

    def _drive(self, w: "Worker") -> None:
        """Keep one worker busy until the farm closes or the worker dies; then end it."""
        waiting: collections.deque[_Asked] = collections.deque()
        fetched: _Fetched | None = None
        try:
            w.greet()
            while True:
                while len(waiting) < _WAITING:
                    try:
                        fetched = self._requests.get(block=not waiting)
                    except queue.Empty:
                        break
                    if fetched is None:
                        return
                    waiting.append(self._asked(fetched, w.free_tray()))
                    w.ask(waiting[-1], fetched.raws)
                    fetched = None  # else it would keep the blocks of its bytes in memory until the next batch comes
                asked = waiting[0]
                result = w.result(self._work.split, asked)
                waiting.popleft()
                self._deliver(asked.number, result)
                del result  # else it would hold the tray
        except BaseException as error:
            if not self._closed:
                self._fail(w, error, {batch.number for batch in (*waiting, fetched) if batch is not None})
        finally:
            w.end()

    def _asked(self, fetched: _Fetched, tray: worker.Tray) -> _Asked:
        request = {
            "tray": tray.descriptor,
            "keys": self._work.keys(fetched.plan),
            "lengths": [None if raw is None else len(raw) for raw in fetched.raws],
            "slots": fetched.plan.slot_b.tolist(),
            "seed": self._work.seed,
            "tolerant": self._work.substitute is not None,
        }
        return _Asked(fetched.number, fetched.plan, fetched.bad, tray, request)

    def _fail(self, w: "Worker", error: BaseException, numbers: set[int]) -> None:
        """A worker died: deliver the error in place of the batches that it had, or of the next one if it had none."""
        lost = isinstance(error, OSError | EOFError)
        reason = WorkerLostError(f"a decode worker died ({w.fate()}) {_fate_hint(w)}") if lost else error
        if not numbers:
            fetched = self._requests.get()
            if fetched is None:
                return
            numbers = {fetched.number}
        for number in numbers:
            self._deliver(number, reason)


class WorkerLostError(V2FError):
    """A decode worker died."""

    retryable = True


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes started inside ignore the signals that a terminal or a scheduler sends to a whole job: the trainer
    handles them, saves, and closes the sockets of its workers. A child process inherits blocked signals."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_TRAINER)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Worker:
    """One worker process, our end of its socket, and the trays shared with it."""

    def __init__(self, transforms: bytes):
        self._transforms = transforms
        self._lent = 0
        # its put is reentrant, as a finalizer needs
        self._returned: queue.SimpleQueue[worker.Tray] = queue.SimpleQueue()
        self.socket, theirs = socket.socketpair()
        self._files = [_nameless_file() for _ in range(_WAITING + _LENT)]
        self._free = [worker.Tray(file.fileno()) for file in self._files]
        with theirs:
            path = [os.path.abspath(entry) for entry in sys.path]
            threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            try:
                with _deaf():
                    self.process = subprocess.Popen(
                        [sys.executable, "-c", _BOOT, str(theirs.fileno()), json.dumps(path)],
                        pass_fds=[theirs.fileno(), *(file.fileno() for file in self._files)],
                        stdin=subprocess.DEVNULL,
                        env={**os.environ, **threads},
                    )
            except OSError as error:
                self._close()
                raise V2FError(
                    f"cannot start a decode worker ({error.strerror}); lower the number of workers"
                ) from error

    def greet(self) -> None:
        """Send the transforms and wait until the worker has loaded them."""
        worker.send(self.socket, {"trays": [file.fileno() for file in self._files]}, [self._transforms])
        header = self._hear()
        if "failure" in header:
            raise RuntimeError(header["failure"])

    def ask(self, asked: _Asked, raws: Sequence[memoryview | None]) -> None:
        """Request the decoding of a batch with the raw members ``raws``."""
        asked.tray.put([raw for raw in raws if raw is not None])
        worker.send(self.socket, asked.request)

    def result(self, split: Samples, asked: _Asked) -> Decoded | BaseException:
        """The answer to the oldest request; EOFError or OSError if the worker is gone."""
        header = self._hear()
        if "arrays" in header:
            arrays = self._taken_out(asked.tray, header["arrays"], header["size"])
            return asked.plan, arrays, asked.bad | {int(row): reason for row, reason in header["bad"].items()}
        self._free.append(asked.tray)
        if "error" in header:
            return _named(split, asked.plan, header["error"], header["row"])
        return RuntimeError(header["failure"])

    def free_tray(self) -> worker.Tray:
        """A tray that neither the consumer nor the worker holds, the last used one first, so that unneeded trays are
        never touched and take no memory."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._free.append(self._returned.get_nowait())
                self._lent -= 1
        return self._free.pop()

    def _taken_out(self, tray: worker.Tray, described: dict[str, Any], size: int) -> worker.Arrays:
        """The arrays in a tray: as views, which hold the tray until the last of them is gone; or as copies, if the
        consumer holds too many trays."""
        whole = tray.whole(size)
        arrays = {name: worker.array_in(whole, *where) for name, where in described.items()}
        if self._lent < _LENT:
            self._lent += 1
            weakref.finalize(whole, self._returned.put, tray).atexit = False
            return arrays
        self._free.append(tray)
        return {name: array.copy() for name, array in arrays.items()}

    def fate(self) -> str:
        try:
            code = self.process.wait(_CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            return f"process {self.process.pid} closed its socket"
        return f"process {self.process.pid}, " + (f"signal {-code}" if code < 0 else f"exit code {code}")

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):  # may be closed already
            self.socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """End the worker. Only for the thread that talks to it, which alone knows when the trays are no longer
        written."""
        self.hang_up()
        try:
            self.process.wait(_CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._close()

    def _close(self) -> None:
        self.socket.close()
        self._free.clear()
        for file in self._files:
            file.close()

    def _hear(self) -> dict[str, Any]:
        message = worker.receive(self.socket)
        if message is None:
            raise EOFError
        return message[0]


def _fate_hint(w: Worker) -> str:
    if w.process.returncode == -9:
        return "probably for lack of memory: lower the number of workers or the batch"
    return "see its message above; with 0 workers decoding runs in this process and shows where"


def _nameless_file() -> IO[bytes]:
    """An anonymous file in memory, or on disk if the system has no such files; it disappears with its last
    descriptor."""
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # forbidden in some sandboxes
            return os.fdopen(os.memfd_create("v2f-tray"), "r+b")
    return tempfile.TemporaryFile()


def _start_workers(count: int, transforms: dict[str, Transform]) -> list[Worker]:
    pickled = pickle.dumps(transforms, protocol=5)
    workers: list[Worker] = []
    try:
        for _ in range(count):
            workers.append(Worker(pickled))
    except BaseException:
        for w in workers:
            w.end()
        raise
    return workers
