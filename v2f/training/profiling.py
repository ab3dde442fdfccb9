"""Profiling a training run: SIGUSR2 to one of its processes profiles that rank's next steps.

The signal's handler only sets a flag. ``step``, which the trainer calls after every step, sees the flag, records the
next ``STEPS`` steps, and writes to ``FOLDER/profiles/``::

    step-00001200-rank-0003.json.gz    a Chrome trace, for https://ui.perfetto.dev or chrome://tracing
    step-00001200-rank-0003.txt        the most expensive operations, as a table
    step-00001200-rank-0003.pickle     on a GPU: all allocations and who made them, for https://pytorch.org/memory_viz

A profile that fails (the disk is full, or another tool is profiling) is reported once and never stops the training.
Recording slows the steps down, and the other ranks wait the seconds that writing takes.
"""

import contextlib
import logging
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from v2f.errors import V2FError, first_line
from v2f.storage import local as files
from v2f.tracking.console import say

STEPS = 3
_ROWS = 30
_ALLOCATIONS = 30_000  # newest entries of the allocator's history; with its stack, each takes kilobytes

log = logging.getLogger("v2f")


class Profiler:
    """Records the next steps of this rank when SIGUSR2 requests it."""

    def __init__(self, folder: str, rank: int) -> None:
        self._folder = Path(folder, "profiles")
        self._rank = rank
        self._requested = False
        self._left = 0
        self._running: profile | None = None
        self._mark: record_function | None = None
        self._failed = False
        self._before: Any = None

    def install(self) -> None:
        """Handle SIGUSR2. Python lets only the main thread set handlers; in another thread this does nothing."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGUSR2, self._on_signal)

    def step(self, n: int) -> None:
        """To be called after step ``n`` of the training. Costs nothing unless a profile was requested."""
        if self._running is None and not self._requested:
            return
        try:
            if self._running is None:
                self._start(n)
            else:
                self._next(n)
        except Exception as error:  # whatever the profiler, the driver or the disk raises
            self._abandon()
            if not self._failed:
                self._failed = True
                name = "" if isinstance(error, V2FError) else f"{type(error).__name__}: "
                log.warning("profile: step %d: %s%s; training continues", n, name, _first_line(error))

    def close(self) -> None:
        """Restore the signal's handler; a profile in progress is dropped."""
        self._abandon()
        if self._before is not None:
            signal.signal(signal.SIGUSR2, self._before)
            self._before = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._requested = True

    def _start(self, n: int) -> None:
        self._requested, self._left = False, STEPS
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=_ALLOCATIONS)
        recorder = profile(activities=activities, acc_events=True)  # one cycle, so there is nothing to clear
        recorder.start()
        self._running = recorder
        self._enter(n + 1)

    def _next(self, n: int) -> None:
        assert self._running is not None
        self._leave()
        self._left -= 1
        if self._left:
            self._enter(n + 1)
            return
        recorder = self._running
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # else the trace lacks kernels that are still queued
        recorder.stop()
        self._running = None
        with files.explained(self._folder):
            self._write(recorder, n)
        self._requested = False  # signals received meanwhile are answered by this profile

    def _write(self, recorder: profile, n: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        stem = self._folder / f"step-{n - STEPS + 1:08d}-rank-{self._rank:04d}"
        recorder.export_chrome_trace(f"{stem}.json.gz")
        cost = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = recorder.key_averages().table(sort_by=cost, row_limit=_ROWS)
        stem.with_suffix(".txt").write_text(table + "\n", encoding="utf-8")
        if torch.cuda.is_available():
            torch.cuda.memory._dump_snapshot(f"{stem}.pickle")
            torch.cuda.memory._record_memory_history(enabled=None)
        say(f"step {n}: profiled {STEPS} steps of rank {self._rank}: {stem}.json.gz and the files beside it")

    def _enter(self, n: int) -> None:
        self._mark = record_function(f"step {n}")
        self._mark.__enter__()

    def _leave(self) -> None:
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None

    def _abandon(self) -> None:
        """Stop recording, so that a failed profile does not slow down the later steps."""
        recorder, self._running = self._running, None
        with contextlib.suppress(Exception):
            self._leave()
            if recorder is not None:
                recorder.stop()
        if torch.cuda.is_available():
            with contextlib.suppress(Exception):
                torch.cuda.memory._record_memory_history(enabled=None)


def _first_line(error: Exception) -> str:
    return first_line(error)[:200]
