"""``v2f exec LAUNCHER ...``: run a launcher, hand its ranks the wish to stop, and leave with the code that they meant.

It is what a scheduler should start, and signal. SIGTERM, SIGUSR1, SIGHUP and Ctrl-C reach the ranks of this node as
SIGUSR1, past the launcher, which would otherwise kill them half a minute later; they save and agree to leave. A second
Ctrl-C ends all at once. SIGUSR2 reaches the ranks as it is: they profile their next steps. Launcher and ranks end with
it, however it ends, and it leaves as by SIGTERM when launch/again.sh, which started it, is gone. Codes: see
:mod:`v2f.training.stopping`.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from types import FrameType

import psutil

from v2f import processes
from v2f.errors import V2FError
from v2f.training.stopping import (
    BROKEN,
    DONE,
    EXEC,
    HUNG,
    MISTAKE,
    STARTED,
    STATUS,
    STOPPED,
    UPTIME,
    heard_signals,
    outlive_the_terminal,
    reports,
    tell,
)

REJOINED = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""torchrun's agents of torch 2.11 share the rendezvous' store with their ranks and keep its first address: an agent in
a lost one's place could not join, and one that becomes the first dies."""
STARTER = "V2F_STARTER"
"""Which process launch/again.sh is, as :func:`v2f.processes.identity` writes it."""

_LOOK_S = 1.0
_PR_SET_PDEATHSIG = 1


def supervise(command: Sequence[str]) -> int:
    """Run ``command`` to its end; the exit code that its ranks meant."""
    if not command:
        raise V2FError("v2f exec: which launcher? For example: v2f exec torchrun --nproc_per_node 8 v2f/train.py ...")
    outlive_the_terminal()
    folder = tempfile.mkdtemp(prefix="v2f-status-")
    asked: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def stop(number: int, frame: FrameType | None = None) -> None:
        if number == signal.SIGINT and number in asked:
            raise KeyboardInterrupt
        asked.append(number)  # before it is told: whoever reads that may press again at once
        if number == signal.SIGINT:
            tell("v2f exec: Ctrl-C: the ranks save and leave; once more ends them at once")
        if process is not None:
            _stop(folder, process)

    def profile(number: int, frame: FrameType | None) -> None:
        _tell(folder, signal.SIGUSR2)

    before = {number: signal.signal(number, stop) for number in heard_signals()}
    before[signal.SIGUSR2] = signal.signal(signal.SIGUSR2, profile)
    starter = os.environ.get(STARTER)
    try:
        process = _start(command, folder)
        if asked:  # while it was being started
            _stop(folder, process)
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(_LOOK_S)
                break
            if asked:  # ranks that the launcher has started since have not heard it
                _tell(folder, signal.SIGUSR1)
            elif starter and processes.is_gone(starter):
                tell("v2f exec: the script that started it is gone: the ranks save and leave")
                stop(signal.SIGTERM)
        return _meant(code, [each["code"] for each in reports(folder)], bool(asked))
    finally:
        if process is not None:
            _end(folder, process)
        for number, handler in before.items():
            signal.signal(number, handler)
        shutil.rmtree(folder, ignore_errors=True)


def _start(command: Sequence[str], folder: str) -> "subprocess.Popen[bytes]":
    """Start the launcher, in a session of its own: Ctrl-C and a closed terminal are then heard here alone."""
    own, known = os.getpid(), processes.identity(os.getpid())
    told = {STATUS: folder, EXEC: known or ""}
    environment = {name: value for name, value in os.environ.items() if name != STARTER}
    if STARTED not in environment:
        age = processes.age(own)
        environment |= {STARTED: f"{psutil.Process().create_time():.3f}"}
        environment |= {UPTIME: f"{processes.boot()}:{processes.uptime() - age:.2f}"}
    # A scheduler may signal every process of a job: the launcher must not die of what its ranks understand.
    # Ignored signals stay ignored in the program that is started; the ranks set handlers of their own.
    kept = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        return subprocess.Popen(
            list(command),
            env=REJOINED | environment | told,
            start_new_session=True,
            preexec_fn=_dying_with(own),
        )
    except OSError as error:
        raise V2FError(f"v2f exec: {command[0]} cannot be started ({error.strerror})") from error
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _dying_with(parent: int) -> Callable[[], None] | None:
    """For a child between fork and exec: be killed when ``parent``, whose only thread has forked it, ends."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def die() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it ended just now
            os._exit(BROKEN)

    return die


def _end(folder: str, launcher: "subprocess.Popen[bytes]") -> None:
    """Nobody stays: not a launcher that has not ended, with the shells around it, and not a rank that has lost it."""
    if launcher.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
    _tell(folder, signal.SIGKILL)


def _tell(folder: str, number: int) -> int:
    """Send a signal to the ranks of this node that run; how many there are."""
    running = 0
    for each in reports(folder):
        known = each["process"]
        if each["code"] is None and known and processes.is_gone(known) is False:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(known.partition(":")[0]), number)
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
    tell(f"v2f exec: the launcher left with {code}")
    return BROKEN
