"""Making samples in several processes: distributes chunks of items, and returns the results in the order of the
items."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Literal

from v2f.errors import V2FError
from v2f.prepare import Converter, Item, LeftOut, Made

CHUNK = 32  # items per task
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Make = Callable[[Sequence[Item]], Iterator[Made | LeftOut]]


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def maker(converter: Converter, workers: int) -> Iterator[Make]:
    """A function from items to their results, in the same order; it runs here (one worker) or in ``workers``
    processes."""
    if workers == 1:
        yield lambda items: (made for part in _chunks(items) for made in converter.make(part))
        return
    with pool(workers) as processes:
        yield lambda items: _in_order(processes, converter, items, 3 * workers)


@contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that start on demand and use one thread each, because together they use all cores already."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    context = multiprocessing.get_context("spawn")
    processes = ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent)
    try:
        yield processes
    except BrokenProcessPool as error:
        raise V2FError(
            "a packing process died, probably for lack of memory; start it again with fewer `workers`"
        ) from error
    finally:
        processes.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _die_with_parent() -> None:
    """Exit when the parent process is gone, however it was killed; otherwise this one would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs only in a child process"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run networks on a CPU in one thread: the last bits of their results, and so a pack's bytes, depend on the number
    of threads."""
    import torch  # imported late, because packing processes that run no network start faster without it

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def inference(batch: int, key: str) -> Iterator[None]:
    """Run networks deterministically on ``batch`` photos at once; ``key`` names that setting in an error."""
    import torch

    try:
        # cuDNN's transposed convolutions sum in any order by default
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            yield
    except torch.OutOfMemoryError as error:
        raise V2FError(
            f"{key}: the GPU's memory is too small for {batch} photos at once in each process; lower it, or workers"
        ) from error


def torch_device(wanted: Literal["auto", "cpu", "cuda"], key: str) -> str:
    """cpu or cuda; ``key`` names the setting in an error."""
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise V2FError(f"{key}: there is no GPU here that torch can use; set it to cpu or auto")
    return "cuda" if there and wanted != "cpu" else "cpu"


def _in_order(
    pool: ProcessPoolExecutor, converter: Converter, items: Sequence[Item], ahead: int
) -> Iterator[Made | LeftOut]:
    waiting: deque[tuple[Item, Future[list[Made | LeftOut]]]] = deque()
    for part in _chunks(items):
        waiting.append((part[0], pool.submit(converter.make, part)))
        if len(waiting) > ahead:
            yield from _result(*waiting.popleft())
    while waiting:
        yield from _result(*waiting.popleft())


def _result(first: Item, made: Future[list[Made | LeftOut]]) -> list[Made | LeftOut]:
    try:
        return made.result()
    except BrokenProcessPool as error:
        raise V2FError(
            f"a packing process died at {first.name} or at one of the inputs behind it, probably for lack of memory; "
            "start it again with fewer `workers`, or without that input"
        ) from error


def _chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[at : at + CHUNK] for at in range(0, len(items), CHUNK))
