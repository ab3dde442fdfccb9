"""Being stopped: signals, a time limit, a watchdog, and the exit code that reaches the scheduler.

    scheduler -- SIGTERM --> v2f exec -- SIGUSR1 --> ranks: the wish rides on the next step's reduction, all save
    scheduler <-- 75 -- v2f exec <-- rank-0.json: 75 -- ranks leave with 0, so that no launcher starts them again

A launcher (torchrun, accelerate launch) turns every exit code that is not 0 into 1. So each rank writes what it left
with into a folder that ``v2f exec`` names in ``V2F_STATUS``, and ``v2f exec`` leaves with that. A rank does not outlive
who started it: its launcher, and the ``v2f exec`` that ``V2F_EXEC`` names.
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

from v2f import processes
from v2f.errors import V2FError

DONE, BROKEN, HUNG, STOPPED, MISTAKE = 0, 1, 70, 75, 78
"""Exit codes: the run is complete; it broke, starting again may help; no step ended for too long; stopped as asked
and saved, start again with ``--resume auto``; a mistake that starting again would repeat."""

STATUS = "V2F_STATUS"
EXEC = "V2F_EXEC"
"""Which process ``v2f exec`` is, as :func:`v2f.processes.identity` writes it."""
STARTED = "V2F_STARTED"
"""Seconds since 1970 at which this job was started, for ``--max-time``: ranks that a launcher starts anew keep it."""
UPTIME = "V2F_STARTED_UPTIME"
"""The same moment as ``BOOT:SECONDS`` since the machine's start, which counts wherever it is known: a wall clock that
is set makes no time limit shorter or longer."""
REASONS = {1: "--max-time is over", 2: "SIGUSR1", 3: "SIGTERM", 4: "SIGHUP", 5: "Ctrl-C"}
TAKEN_OVER = 6
"""More urgent than these: the run is no more this start's, so that it must not even save."""
_SIGNALS = {signal.SIGUSR1: 2, signal.SIGTERM: 3, signal.SIGHUP: 4, signal.SIGINT: 5}
_PATIENCE_S = 5.0  # with each file of a process that hangs
_DURATION = re.compile(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?")


class Stopped(Exception):
    """A run that was asked to stop has saved and is over, before its last step."""


class GivenUpError(V2FError):
    """A mistake that all ranks have found together, each after its last collective: none waits for another."""


class StopRequest:
    """What this process was asked: 0, go on, or a key of :data:`REASONS`. As a context it listens to the signals.

    Ctrl-C and SIGHUP are heard unless whoever started this process has had them ignored (nohup); a second Ctrl-C
    interrupts. ``max_seconds`` count from the job's start (:data:`STARTED`), else from the launcher's, else from this
    process's.
    """

    def __init__(self, max_seconds: float | None) -> None:
        self._deadline = None if max_seconds is None else processes.uptime() + max_seconds - _since_start()
        self._signalled = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._heard) for number in heard_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signalled == _SIGNALS[signal.SIGINT]:
            raise KeyboardInterrupt
        self._signalled = max(self._signalled, _SIGNALS[signal.Signals(number)])
        if number == signal.SIGINT:  # it counts before it is told: whoever reads that may press again at once
            tell("v2f: Ctrl-C: saves after this step and leaves; once more ends it at once")

    def __int__(self) -> int:
        over = self._deadline is not None and processes.uptime() >= self._deadline
        return max(self._signalled, int(over))


def heard_signals() -> list[signal.Signals]:
    """The signals that ask for a save. nohup, or a shell that starts something in the background, has some ignored, and
    means it; a scheduler's are always heard: ``v2f exec`` has its launcher ignore SIGUSR1."""
    by_hand = (signal.SIGHUP, signal.SIGINT)
    return [each for each in _SIGNALS if each not in by_hand or signal.getsignal(each) != signal.SIG_IGN]


def _since_start() -> float:
    """Seconds since the job began. The wall clock is asked once, and only where no clock of this boot knows it."""
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
        raise V2FError(f"{name}={text!r}: {what} are wanted there; unset it") from None


def seconds_of(text: str) -> float:
    """Seconds of a duration such as ``23h``, ``1h30m``, ``90m`` or ``3600s``; a number alone is seconds."""
    text = text.strip()
    found = _DURATION.fullmatch(f"{text}s" if text.isascii() and text.isdigit() else text)
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    total = ((days * 24.0 + hours) * 60 + minutes) * 60 + seconds
    if not total:
        raise V2FError(
            f"{text!r} is no duration; write 23h, 1h30m, 90m or 3600s: whole numbers above 0, each with its unit"
        )
    return total


class Watchdog:
    """Ends a process in which no step ends: a hung collective or storage would hold its GPUs for days.

    Before it leaves with :data:`HUNG` it writes the stacks of all threads to stderr and to ``folder``, and NCCL's
    last collectives to where launch/nccl's settings say.
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
        """A step, a validation or a save has ended."""
        self._last = time.monotonic()

    def _watch(self, seconds: float) -> None:
        while not self._over.wait(max(0.0, self._last + seconds - time.monotonic())):
            if time.monotonic() - self._last < seconds:
                continue
            print(
                f"v2f: rank {self._rank}: no step has ended for {seconds / 60:g} minutes (train.watchdog_minutes); "
                f"the stacks of all threads follow, and in {self._path}; leaving with {HUNG}",
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
        """What NCCL's own timeout, which comes after this one, would have written."""
        path, nccl = os.environ.get("TORCH_FR_DUMP_TEMP_FILE"), sys.modules.get("torch._C._distributed_c10d")
        if path and nccl is not None and hasattr(nccl, "_dump_nccl_trace"):
            with contextlib.suppress(OSError, RuntimeError):
                Path(f"{path}{self._rank}").write_bytes(nccl._dump_nccl_trace())


def die_with_launcher() -> None:
    """End when the launcher that started this rank, or ``v2f exec``, ends, however it died and whatever shells stand
    between.

    Else the rank would train on alone, hold its GPU, and write beside those that the scheduler starts in its place;
    the other agents of torchrun would not learn that one is lost. ``accelerate launch`` of one process dies of the
    SIGTERM that is meant for its rank: here the rank hears it, and saves. What a shell started by hand stays.
    """

    def end() -> None:
        tell(f"v2f: what started rank {os.environ.get('RANK', '0')} is gone (v2f exec, or the launcher): it ends, too")
        os.kill(os.getpid(), signal.SIGKILL)

    if os.environ.get(EXEC):
        processes.when_gone(os.environ[EXEC], end)
    elastic = "TORCHELASTIC_RUN_ID" in os.environ
    launcher = processes.launcher()
    if launcher is None and not elastic:
        return
    # `v2f exec` ends what has lost its launcher; what has lost both must not begin to save.
    act = end if elastic or os.environ.get(EXEC) else lambda: os.kill(os.getpid(), signal.SIGTERM)
    known = None if launcher is None else processes.identity(launcher)
    if known is None:  # it was killed while this rank was being started
        act()
    else:
        processes.when_gone(known, act)


# --------------------------------------------------------------------------------------------- a terminal that is gone


def tell(line: str) -> None:
    """One line on stderr, from a signal's handler, too; a terminal that is gone is no reason to fail."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


class _Deaf(io.FileIO):
    """A file of which it does not matter whether it takes what is written."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def outlive_the_terminal() -> None:
    """From here on no write to stdout or stderr fails, and none at the end of the process changes its exit code: a
    terminal that is closed (EIO), a ``| tee`` that died of that (EPIPE) or a log on a full disk ends no training."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue  # somebody's own
        with contextlib.suppress(OSError):
            stream.flush()
        deaf = io.BufferedWriter(_Deaf(number, "w", closefd=False))
        lines = name == "stderr" or stream.line_buffering
        setattr(sys, name, io.TextIOWrapper(deaf, stream.encoding, stream.errors, line_buffering=lines))


# ------------------------------------------------------------------------------------------- what a rank tells


def _own_file() -> Path | None:
    folder = os.environ.get(STATUS)
    return Path(folder) / f"rank-{os.environ.get('RANK', '0')}.json" if folder else None


def report(code: int | None, *, together: bool = False) -> int | None:
    """Tell ``v2f exec`` that this rank runs (None) or what it leaves with; the code to leave with under the launcher.

    Who was stopped and has saved leaves a supervised launcher with 0, since torch elastic would start a failed rank
    again; so do ranks that leave ``together``, all with the same ``code``.
    """
    path = _own_file()
    if path is None:
        return code
    start = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    line = {"process": processes.identity(os.getpid()), "start": start, "code": code}
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # no code for the scheduler is worth no checkpoint
        temporary.write_text(json.dumps(line))
        temporary.replace(path)
    return DONE if code == STOPPED or together else code


def reports(folder: str) -> list[dict[str, Any]]:
    """What the ranks of the newest start have told: ``process`` (its :func:`~v2f.processes.identity`), ``start``,
    ``code`` (None: it runs)."""
    found = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("rank-*.json"))]
    newest = max((each["start"] for each in found), default=0)
    return [each for each in found if each["start"] == newest]
