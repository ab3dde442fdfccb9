"""Stopping a training run: signals, a time limit, a watchdog, and the exit code that reaches the scheduler.

    scheduler -- SIGTERM --> v2f exec -- SIGUSR1 --> ranks: the next step's reduction spreads the request, all save
    scheduler <-- 75 -- v2f exec <-- rank-0.json: 75 -- ranks exit with 0, so that no launcher restarts them

A launcher (torchrun, accelerate launch) turns every exit code other than 0 into 1. Therefore each rank writes its exit
code to a folder that ``v2f exec`` names in ``V2F_STATUS``, and ``v2f exec`` exits with that code. A rank does not
outlive its launcher, nor the ``v2f exec`` that ``V2F_EXEC`` names.
"""

import contextlib
import faulthandler
import io
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from v2f.errors import V2FError
from v2f.storage import processes

DONE, BROKEN, HUNG, STOPPED, MISTAKE = 0, 1, 70, 75, 78
"""Exit codes: the run is complete; it failed, and another start may succeed; no step ended for too long; it was stopped
on request and saved, to be resumed with ``--resume auto``; a mistake that another start would repeat."""

STATUS = "V2F_STATUS"
EXEC = "V2F_EXEC"
"""The environment variable with the process of ``v2f exec``, as :func:`v2f.storage.processes.identity` writes it."""
STARTED = "V2F_STARTED"
"""When this job was started, in seconds since 1970, for ``--max-time``; ranks that a launcher restarts keep it."""
UPTIME = "V2F_STARTED_UPTIME"
"""The same moment as ``BOOT:SECONDS`` since the machine's start. It is used if it is known, because setting the wall
clock must not change a time limit."""
REASONS = {1: "--max-time is over", 2: "SIGUSR1", 3: "SIGTERM", 4: "SIGHUP", 5: "Ctrl-C"}
TAKEN_OVER = 6
"""More urgent than these: the run now belongs to another start, so this one must not even save."""
_SIGNALS = {signal.SIGUSR1: 2, signal.SIGTERM: 3, signal.SIGHUP: 4, signal.SIGINT: 5}
_PATIENCE_S = 5.0  # for each file that a hung process writes
_DURATION = re.compile(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?")


class Stopped(Exception):
    """The run was asked to stop, and has saved, before its last step."""


class GivenUpError(V2FError):
    """A mistake that all ranks found together, after their last collective, so that none waits for another."""


class StopRequest:
    """Whether this process was asked to stop: as an int 0, or a key of :data:`REASONS`. Inside its context it handles
    the signals.

    Ctrl-C and SIGHUP count unless the process was started with them ignored (nohup); a second Ctrl-C interrupts.
    ``max_seconds`` are counted from the start of the job (:data:`STARTED`) or, if that is unknown, of the launcher or
    of this process.
    """

    def __init__(self, max_seconds: float | None) -> None:
        self._deadline = None if max_seconds is None else processes.uptime() + max_seconds - _since_start()
        self._signaled = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._heard) for number in heard_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signaled == _SIGNALS[signal.SIGINT]:
            raise KeyboardInterrupt
        self._signaled = max(self._signaled, _SIGNALS[signal.Signals(number)])
        if number == signal.SIGINT:  # counted before it is printed: a reader may press Ctrl-C again at once
            tell("v2f: Ctrl-C: will save after this step and exit; press it again to exit at once")

    def __int__(self) -> int:
        over = self._deadline is not None and processes.uptime() >= self._deadline
        return max(self._signaled, int(over))


def heard_signals() -> list[signal.Signals]:
    """The signals that request a save and an exit.

    SIGHUP and SIGINT stay ignored if nohup or a shell's background job has ignored them. A scheduler's signals always
    count, even SIGUSR1, which ``v2f exec`` makes its launcher ignore.
    """
    by_hand = (signal.SIGHUP, signal.SIGINT)
    return [each for each in _SIGNALS if each not in by_hand or signal.getsignal(each) != signal.SIG_IGN]


def _since_start() -> float:
    """Seconds since the job began. The wall clock is used, once, only if the start is unknown on this boot's clock."""
    told, uptime = os.environ.get(STARTED), os.environ.get(UPTIME)
    boot, _, began = (uptime or "").rpartition(":")
    if boot == processes.boot():
        return max(0.0, processes.uptime() - _number(UPTIME, began, "seconds since the machine's start"))
    if told:
        return max(0.0, time.time() - _number(STARTED, told, "seconds since 1970"))
    agent = processes.launcher() if "TORCHELASTIC_RUN_ID" in os.environ else None
    return processes.age(agent or os.getpid())


def _number(name: str, text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise V2FError(f"{name}={text!r}: not a number; it must be {what}: unset it") from None


def seconds_of(text: str) -> float:
    """Seconds of a duration such as ``23h``, ``1h30m``, ``90m`` or ``3600s``; a number alone is seconds."""
    text = text.strip()
    found = _DURATION.fullmatch(f"{text}s" if text.isascii() and text.isdigit() else text)
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    total = ((days * 24.0 + hours) * 60 + minutes) * 60 + seconds
    if not total:
        raise V2FError(
            f"{text!r} is not a duration; write 23h, 1h30m, 90m or 3600s: whole numbers above 0, each with its unit"
        )
    return total


class Watchdog:
    """Ends a process in which no step ends: a hung collective or store could block its GPUs for days.

    Before it exits with :data:`HUNG`, it writes the stacks of all threads to stderr and to ``folder``, and NCCL's last
    collectives to the place that the settings of launch/nccl name.
    """

    def __init__(self, minutes: float | None, folder: str, rank: int, leave: Callable[[int], None] = os._exit) -> None:
        self._seconds = None if minutes is None else minutes * 60
        self._path = Path(folder) / f"stacks-rank-{rank}.txt"
        self._rank = rank
        self._leave = leave
        self._last = time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._seconds is not None:
            self._last = time.monotonic()
            threading.Thread(target=self._watch, args=(self._seconds,), name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def alive(self) -> None:
        """To be called after each step, validation and save."""
        self._last = time.monotonic()

    def _watch(self, seconds: float) -> None:
        while not self._over.wait(max(0.0, self._last + seconds - time.monotonic())):
            if time.monotonic() - self._last < seconds:
                continue
            print(
                f"v2f: rank {self._rank}: no step has ended for {seconds / 60:g} minutes (train.watchdog_minutes); "
                f"exiting with {HUNG}; the stacks of all threads follow and are in {self._path}",
                file=sys.stderr,
                flush=True,
            )
            faulthandler.dump_traceback(sys.stderr.fileno(), all_threads=True)
            report(HUNG)
            for write in (self._write_stacks, self._write_collectives):
                thread = threading.Thread(target=write, daemon=True)
                thread.start()
                thread.join(_PATIENCE_S)  # the disk may be what hangs
            self._leave(HUNG)
            return

    def _write_stacks(self) -> None:
        with contextlib.suppress(OSError), self._path.open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)

    def _write_collectives(self) -> None:
        """Write what NCCL would write at its own timeout, which comes after the watchdog's."""
        path, nccl = os.environ.get("TORCH_FR_DUMP_TEMP_FILE"), sys.modules.get("torch._C._distributed_c10d")
        if path and nccl is not None and hasattr(nccl, "_dump_nccl_trace"):
            with contextlib.suppress(OSError, RuntimeError):
                Path(f"{path}{self._rank}").write_bytes(nccl._dump_nccl_trace())


def die_with_launcher() -> None:
    """End this rank when its launcher or ``v2f exec`` ends, however that ended, and even with shells between them.

    Otherwise the rank would continue alone, occupy its GPU, and write beside the ranks that the scheduler starts in its
    place, and torchrun's other agents would not learn that it is lost. If ``accelerate launch`` of one process dies of
    a SIGTERM, its rank handles that signal: it saves. A training run started by hand from a shell is not ended.
    """

    def end() -> None:
        tell(f"v2f: rank {os.environ.get('RANK', '0')} exits, because its launcher or v2f exec is gone")
        os.kill(os.getpid(), signal.SIGKILL)

    if os.environ.get(EXEC):
        processes.when_gone(os.environ[EXEC], end)
    elastic = "TORCHELASTIC_RUN_ID" in os.environ
    launcher = processes.launcher()
    if launcher is None and not elastic:
        return
    # `v2f exec` ends a rank that has lost its launcher; one that has lost both must not start to save.
    act = end if elastic or os.environ.get(EXEC) else lambda: os.kill(os.getpid(), signal.SIGTERM)
    known = None if launcher is None else processes.identity(launcher)
    if known is None:  # it was killed while this rank started
        act()
    else:
        processes.when_gone(known, act)


# --------------------------------------------------------------------------------------------- a terminal that is gone


def tell(line: str) -> None:
    """Print one line on stderr, if there still is a terminal; safe in a signal's handler."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


class _Lenient(io.FileIO):
    """A file that ignores failed writes."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def outlive_the_terminal() -> None:
    """From here on, failed writes to stdout and stderr are ignored, even when the process flushes them at its end: a
    closed terminal (EIO), a dead ``| tee`` (EPIPE) or a log on a full disk does not end a training run."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue  # replaced by someone else, such as a test
        with contextlib.suppress(OSError):
            stream.flush()
        lenient = io.BufferedWriter(_Lenient(number, "w", closefd=False))
        lines = name == "stderr" or stream.line_buffering
        setattr(sys, name, io.TextIOWrapper(lenient, stream.encoding, stream.errors, line_buffering=lines))


# ---------------------------------------------------------------------------------------- what a rank reports


def _own_file() -> Path | None:
    folder = os.environ.get(STATUS)
    return Path(folder) / f"rank-{os.environ.get('RANK', '0')}.json" if folder else None


def report(code: int | None, *, together: bool = False) -> int | None:
    """Report to ``v2f exec`` that this rank is running (None), or its exit code; returns the code to exit with.

    Under ``v2f exec``, a rank that was stopped and has saved exits with 0, because torch elastic would restart a failed
    one; so do ranks that exit ``together``, all with the same ``code``.
    """
    path = _own_file()
    if path is None:
        return code
    start = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    line = {"process": processes.identity(os.getpid()), "start": start, "code": code}
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # a checkpoint matters more than the scheduler's exit code
        temporary.write_text(json.dumps(line))
        temporary.replace(path)
    return DONE if code == STOPPED or together else code


def reports(folder: str) -> list[dict[str, Any]]:
    """The reports of the newest start's ranks: ``process`` (its :func:`~v2f.storage.processes.identity`), ``start``,
    and ``code`` (None: it is running)."""
    found = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("rank-*.json"))]
    newest = max((each["start"] for each in found), default=0)
    return [each for each in found if each["start"] == newest]
