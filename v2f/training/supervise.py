"""``v2f exec LAUNCHER ...``: run a launcher, pass stop requests to its ranks, and exit with the code they reported.

A scheduler should start and signal this command. It passes SIGTERM, SIGUSR1, SIGHUP and Ctrl-C to the ranks of this
node as SIGUSR1, bypassing the launcher, which would kill them half a minute later; the ranks agree on a step, save and
exit. A second Ctrl-C ends everything at once. SIGUSR2 is passed on as it is, and makes the ranks profile their next
steps. However this command ends, launcher and ranks end with it; if it was started by launch/again.sh and that script
is gone, it acts as on SIGTERM. For the exit codes, see :mod:`v2f.training.stopping`.
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

from v2f.errors import V2FError
from v2f.storage import processes
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
"""In torch 2.11, torchrun's agents share the rendezvous' store with their ranks and keep its first address, so that an
agent that replaces a lost one cannot join, and one that becomes the first dies."""
STARTER = "V2F_STARTER"
"""The environment variable with the process of launch/again.sh, as :func:`v2f.storage.processes.identity` writes it."""

_LOOK_S = 1.0
_PR_SET_PDEATHSIG = 1


def supervise(command: Sequence[str]) -> int:
    """Run ``command`` to its end; returns the exit code that its ranks reported."""
    if not command:
        raise V2FError(
            "v2f exec: no launcher given; for example: v2f exec torchrun --nproc_per_node 8 v2f/train.py ..."
        )
    outlive_the_terminal()
    folder = tempfile.mkdtemp(prefix="v2f-status-")
    asked: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def stop(number: int, frame: FrameType | None = None) -> None:
        if number == signal.SIGINT and number in asked:
            raise KeyboardInterrupt
        asked.append(number)  # before it is printed: a reader may press Ctrl-C again at once
        if number == signal.SIGINT:
            tell("v2f exec: Ctrl-C: the ranks will save and exit; press it again to end them at once")
        if process is not None:
            _stop(folder, process)

    def profile(number: int, frame: FrameType | None) -> None:
        _tell(folder, signal.SIGUSR2)

    before = {number: signal.signal(number, stop) for number in heard_signals()}
    before[signal.SIGUSR2] = signal.signal(signal.SIGUSR2, profile)
    starter = os.environ.get(STARTER)
    try:
        process = _start(command, folder)
        if asked:  # while the launcher was starting
            _stop(folder, process)
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(_LOOK_S)
                break
            if asked:  # ranks that the launcher has started since then do not know it
                _tell(folder, signal.SIGUSR1)
            elif starter and processes.is_gone(starter):
                tell("v2f exec: the script that started it is gone: the ranks will save and exit")
                stop(signal.SIGTERM)
        return _exit_code(code, [each["code"] for each in reports(folder)], bool(asked))
    finally:
        if process is not None:
            _end(folder, process)
        for number, handler in before.items():
            signal.signal(number, handler)
        shutil.rmtree(folder, ignore_errors=True)


def _start(command: Sequence[str], folder: str) -> "subprocess.Popen[bytes]":
    """Start the launcher in a session of its own, so that Ctrl-C and a closed terminal signal only this process."""
    own, known = os.getpid(), processes.identity(os.getpid())
    told = {STATUS: folder, EXEC: known or ""}
    environment = {name: value for name, value in os.environ.items() if name != STARTER}
    if STARTED not in environment:
        age = processes.age(own)
        environment |= {STARTED: f"{psutil.Process().create_time():.3f}"}
        environment |= {UPTIME: f"{processes.boot()}:{processes.uptime() - age:.2f}"}
    # A scheduler may signal every process of a job, and the launcher must not die of the ranks' signals.
    # A started program inherits ignored signals; the ranks install handlers of their own.
    kept = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        return subprocess.Popen(
            list(command),
            env=REJOINED | environment | told,
            start_new_session=True,
            preexec_fn=_dying_with(own),
        )
    except OSError as error:
        raise V2FError(
            f"v2f exec: {command[0]} cannot be started ({error.strerror}); check that it is installed"
        ) from error
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _dying_with(parent: int) -> Callable[[], None] | None:
    """A function for a child to call between fork and exec: it will be killed when ``parent`` ends."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def die() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it has just ended
            os._exit(BROKEN)

    return die


def _end(folder: str, launcher: "subprocess.Popen[bytes]") -> None:
    """Kill what is left: the launcher with the shells around it, and ranks that have lost it."""
    if launcher.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
    _tell(folder, signal.SIGKILL)


def _tell(folder: str, number: int) -> int:
    """Send a signal to the running ranks of this node; returns how many there are."""
    running = 0
    for each in reports(folder):
        known = each["process"]
        if each["code"] is None and known and processes.is_gone(known) is False:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(known.partition(":")[0]), number)
                running += 1
    return running


def _all_exited(codes: Sequence[int | None]) -> bool:
    """Whether all ranks of this node have exited properly: their run is complete, or saved."""
    return bool(codes) and set(codes) <= {DONE, STOPPED}


def _stop(folder: str, launcher: "subprocess.Popen[bytes]") -> None:
    """Ask the ranks of this node to save and exit. Before there are any, end the launcher: nothing is lost.

    Once they have exited, do nothing: torchrun's agents wait for each other, and those of other nodes would wait
    minutes for one that was killed.
    """
    if not _tell(folder, signal.SIGUSR1) and not _all_exited([each["code"] for each in reports(folder)]):
        with contextlib.suppress(ProcessLookupError):
            launcher.send_signal(signal.SIGTERM)


def _exit_code(code: int, codes: list[int | None], asked: bool) -> int:
    """One exit code from the launcher's ``code`` and the ``codes`` of its newest start's ranks."""
    if MISTAKE in codes:
        return MISTAKE
    if code == 0 or _all_exited(codes):
        return STOPPED if STOPPED in codes else DONE
    if HUNG in codes:
        return HUNG
    if asked and not any(codes):  # stopped before the first step, or killed by the launcher: resume from the last save
        return STOPPED
    tell(f"v2f exec: the launcher exited with {code}")
    return BROKEN
