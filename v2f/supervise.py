"""``v2f exec LAUNCHER ...``: run a launcher, hand its ranks the wish to stop, and leave with the code that they meant.

It is what a scheduler should start, and signal. SIGTERM or SIGUSR1 reach the ranks of this node as SIGUSR1, past the
launcher, which would otherwise kill them half a minute later; they save and agree to leave. SIGUSR2 reaches them as it
is: they profile their next steps. Codes: see :mod:`v2f.stopping`.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from types import FrameType

import psutil

from v2f.errors import V2FError
from v2f.stopping import BROKEN, DONE, HUNG, MISTAKE, STARTED, STATUS, STOPPED, reports

REJOINED = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""torchrun's agents of torch 2.11 share the rendezvous' store with their ranks and keep its first address: an agent in
a lost one's place could not join, and one that becomes the first dies."""

_LOOK_S = 1.0


def supervise(command: Sequence[str]) -> int:
    """Run ``command`` to its end; the exit code that its ranks meant."""
    if not command:
        raise V2FError("v2f exec: which launcher? For example: v2f exec torchrun --nproc_per_node 8 v2f/train.py ...")
    folder = tempfile.mkdtemp(prefix="v2f-status-")
    asked: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if process is not None:
            _stop(folder, process)

    def profile(number: int, frame: FrameType | None) -> None:
        _tell(folder, signal.SIGUSR2)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    before[signal.SIGUSR2] = signal.signal(signal.SIGUSR2, profile)
    try:
        # A scheduler may signal every process of a job: the launcher must not die of what its ranks understand.
        # Ignored signals stay ignored in the program that is started; the ranks set handlers of their own.
        kept = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGUSR1, signal.SIGUSR2)}
        try:
            started = {STARTED: f"{psutil.Process().create_time():.3f}"}
            process = subprocess.Popen(list(command), env=REJOINED | started | os.environ | {STATUS: folder})
        except OSError as error:
            raise V2FError(f"v2f exec: {command[0]} cannot be started ({error.strerror})") from error
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)
        if asked:  # while it was being started
            _stop(folder, process)
        while True:
            # Ctrl-C reaches the launcher, too, and that ends its ranks.
            with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
                code = process.wait(_LOOK_S)
                break
            if asked:  # ranks that the launcher has started since have not heard it
                _tell(folder, signal.SIGUSR1)
        return _meant(code, [each["code"] for each in reports(folder)], bool(asked))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        shutil.rmtree(folder, ignore_errors=True)


def _tell(folder: str, number: int) -> int:
    """Send a signal to the ranks of this node that run; how many there are."""
    running = 0
    for each in reports(folder):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if each["code"] is None and psutil.Process(each["pid"]).create_time() == each["born"]:
                os.kill(each["pid"], number)
                running += 1
    return running


def _over(codes: Sequence[int | None]) -> bool:
    """Whether the ranks of this node have left as they should: their run is complete, or saved."""
    return bool(codes) and set(codes) <= {DONE, STOPPED}


def _stop(folder: str, launcher: "subprocess.Popen[bytes]") -> None:
    """Ask the ranks of this node to save and leave; before there are any, end the launcher: nothing is lost.

    Once they are over, nothing more: torchrun's agents wait for each other, and those of the other nodes would wait
    minutes for one that was ended.
    """
    if not _tell(folder, signal.SIGUSR1) and not _over([each["code"] for each in reports(folder)]):
        with contextlib.suppress(ProcessLookupError):
            launcher.send_signal(signal.SIGTERM)


def _meant(code: int, codes: list[int | None], asked: bool) -> int:
    """The launcher's exit code and what the ranks of its newest start left with, as one code."""
    if MISTAKE in codes:
        return MISTAKE
    if code == 0 or _over(codes):
        return STOPPED if STOPPED in codes else DONE
    if HUNG in codes:
        return HUNG
    if asked and not any(codes):  # stopped before the first step, or killed by the launcher: go on from the last save
        return STOPPED
    print(f"v2f exec: the launcher left with {code}", file=sys.stderr)
    return BROKEN
