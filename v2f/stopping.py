"""Being stopped: signals, a time limit, a watchdog, and the exit code that reaches the scheduler.

    scheduler -- SIGTERM --> v2f exec -- SIGUSR1 --> ranks: the wish rides on the next step's reduction, all save
    scheduler <-- 75 -- v2f exec <-- rank-0.json: 75 -- ranks leave with 0, so that no launcher starts them again

A launcher (torchrun, accelerate launch) turns every exit code that is not 0 into 1. So each rank writes what it left
with into a folder that ``v2f exec`` names in ``V2F_STATUS``, and ``v2f exec`` leaves with that.
"""

import contextlib
import ctypes
import faulthandler
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

import psutil

from v2f.errors import V2FError

DONE, BROKEN, HUNG, STOPPED, MISTAKE = 0, 1, 70, 75, 78
"""Exit codes: the run is complete; it broke, starting again may help; no step ended for too long; stopped as asked
and saved, start again with ``--resume auto``; a mistake that starting again would repeat."""

STATUS = "V2F_STATUS"
STARTED = "V2F_STARTED"
"""Seconds since 1970 at which this job was started, for ``--max-time``: ranks that a launcher starts anew keep it."""
REASONS = {1: "--max-time is over", 2: "SIGUSR1", 3: "SIGTERM"}
TAKEN = 4
"""More urgent than these: the run is no more this start's, so that it must not even save."""
_SIGNALS = {signal.SIGUSR1: 2, signal.SIGTERM: 3}
_PR_SET_PDEATHSIG = 1
_PATIENCE_S = 5.0  # with each file of a process that hangs
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?")


class Stopped(Exception):
    """A run that was asked to stop has saved and is over, before its last step."""


class GivenUpError(V2FError):
    """A mistake that all ranks have found together, each after its last collective: none waits for another."""


class Wish:
    """What this process was asked: 0, go on, or a key of :data:`REASONS`. As a context it listens to the signals.

    ``max_seconds`` count from the job's start (:data:`STARTED`), else from the launcher's, else from this process's.
    """

    def __init__(self, max_seconds: float | None) -> None:
        self._deadline = None if max_seconds is None else _started() + max_seconds
        self._signalled = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Wish":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._heard) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self._signalled = max(self._signalled, _SIGNALS[signal.Signals(number)])

    def __int__(self) -> int:
        over = self._deadline is not None and time.time() >= self._deadline
        return max(self._signalled, int(over))


def _started() -> float:
    told = os.environ.get(STARTED)
    if told:
        try:
            return float(told)
        except ValueError:
            raise V2FError(f"{STARTED}={told!r}: seconds since 1970 are wanted there; unset it") from None
    own = psutil.Process()
    agent = own.parent() if "TORCHELASTIC_RUN_ID" in os.environ else None
    return (agent or own).create_time()


def seconds_of(text: str) -> float:
    """Seconds of a duration such as ``23h``, ``1h30m``, ``90m`` or ``3600s``."""
    found = _DURATION.fullmatch(text.strip())
    if not found or not any(found.groups()):
        raise V2FError(f"{text!r} is no duration; write 23h, 1h30m, 90m or 3600s")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24.0 + hours) * 60 + minutes) * 60 + seconds


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
    """Under torchrun: be killed when the agent that started this rank dies, however it dies.

    Else the rank would train on alone, hold its GPU, and write beside those that the scheduler starts in its place;
    the other agents would not learn that one is lost.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it died just now
        os.kill(os.getpid(), signal.SIGKILL)


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
    line = {"pid": os.getpid(), "born": psutil.Process().create_time(), "start": start, "code": code}
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # no code for the scheduler is worth no checkpoint
        temporary.write_text(json.dumps(line))
        temporary.replace(path)
    return DONE if code == STOPPED or together else code


def reports(folder: str) -> list[dict[str, Any]]:
    """What the ranks of the newest start have told: ``pid``, ``born``, ``start``, ``code`` (None: it runs)."""
    found = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("rank-*.json"))]
    newest = max((each["start"] for each in found), default=0)
    return [each for each in found if each["start"] == newest]
