"""Processes told apart: a name for one that no other process ever gets, and what to do once it is gone.

A number alone does not do: it is given away again, it means something else in another container and on another machine,
and psutil's time of creation moves with the wall clock.
"""

import contextlib
import os
import platform
import select
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psutil

_LOOK_S = 1.0  # where the system cannot wait for a process that is not its own child


@cache
def boot() -> str:
    """What tells this start of this machine from every other."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # another system than Linux
        return platform.node()


@cache
def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return "pid"


def uptime() -> float:
    """Seconds that no change of the wall clock moves, the same in all processes of a boot where the system has them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def age(pid: int) -> float:
    """Seconds since a process was started. psutil.NoSuchProcess if there is none."""
    try:
        return uptime() - int(_stat(pid)[19]) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return time.time() - psutil.Process(pid).create_time()


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; what stands before may hold any character."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def identity(pid: int) -> str | None:
    """``PID:START:BOOT:NAMESPACE`` of a process that runs here, which is never that of another; None: it has ended.

    launch/again.sh writes the same.
    """
    try:
        fields = _stat(pid)
        state, start = fields[0], fields[19]
    except (FileNotFoundError, ProcessLookupError):
        if os.path.exists("/proc/self/stat"):
            return None
        try:
            process = psutil.Process(pid)
            state, start = process.status(), f"{process.create_time():.2f}"
        except psutil.NoSuchProcess:
            return None
    return None if state in ("Z", "X", psutil.STATUS_ZOMBIE) else f"{pid}:{start}:{boot()}:{_namespace()}"


def is_gone(known: str) -> bool | None:
    """Whether the process of an :func:`identity` has ended; None for one of another machine or container."""
    pid, _, rest = known.partition(":")
    if not rest.endswith(f":{boot()}:{_namespace()}") or not pid.isascii() or not pid.isdigit():
        return None
    return identity(int(pid)) != known


_LAUNCHERS = {"torchrun", "accelerate", "accelerate-launch", "deepspeed"} | {
    "torch.distributed.run",
    "torch.distributed.launch",
    "accelerate.commands.launch",
    "accelerate.commands.accelerate_cli",
    "deepspeed.launcher.launch",
}


def launcher() -> int | None:
    """The launcher that started this process, at once or through shells; None where it was started by hand.

    None as well for a rank of torch elastic (``TORCHELASTIC_RUN_ID``) that looks when its launcher is gone already.
    """
    above = psutil.Process().parents()
    for process in above:
        with contextlib.suppress(psutil.Error):
            if _program(process.cmdline()) in _LAUNCHERS:
                return process.pid
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    # A launcher of somebody's own. Who adopts a rank that has lost it, the machine's first process for example, does
    # not run torch.
    return next((process.pid for process in above if _runs_torch(process.pid)), None)


def _runs_torch(pid: int) -> bool:
    try:
        return b"libtorch" in Path(f"/proc/{pid}/maps").read_bytes()
    except OSError:
        return not os.path.exists("/proc/self/maps")  # another system than Linux: nobody can tell


def _program(command: list[str]) -> str:
    """What a command line runs: of Python's, the script or module."""
    words = iter(command)
    program = Path(next(words, "")).name
    if not program.startswith("python"):
        return program
    for word in words:
        if word == "-m":
            return next(words, "")
        if word in ("-X", "-W"):
            next(words, "")
        elif not word.startswith("-"):
            return Path(word).name
    return program


def when_gone(known: str, act: Callable[[], None]) -> None:
    """Call ``act`` in a thread once the process of an :func:`identity` has ended, or at once, here, if it has.

    Not by PR_SET_PDEATHSIG, which knows parents only, no grandparent behind a shell, and takes the end of the thread
    that forked for the end of the parent.
    """
    gone = is_gone(known)
    if gone is None:
        return
    descriptor = None
    with contextlib.suppress(OSError, AttributeError):  # gone, or a system without
        descriptor = os.pidfd_open(int(known.partition(":")[0]))
    if gone or is_gone(known):  # looked at once more: by now the number may be another's
        if descriptor is not None:
            os.close(descriptor)
        act()
        return

    def watch() -> None:
        if descriptor is not None:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll()
            os.close(descriptor)
        else:
            while not is_gone(known):
                time.sleep(_LOOK_S)
        act()

    threading.Thread(target=watch, name="when-gone", daemon=True).start()
