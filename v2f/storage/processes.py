"""Unique identities of processes, and waiting for the end of one.

A process id is not enough: it is reused, and means something else in another container or on another machine; and
psutil's creation time moves with the wall clock.
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

_LOOK_S = 1.0  # between looks, where the system cannot wait for a process that is not a child


@cache
def boot() -> str:
    """A name of this boot of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return platform.node()


@cache
def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return "pid"


def uptime() -> float:
    """Seconds that do not depend on the wall clock; on Linux since the boot, so that all processes agree."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def age(pid: int) -> float:
    """Seconds since a process started. psutil.NoSuchProcess if it does not exist."""
    try:
        return uptime() - int(_stat(pid)[19]) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return time.time() - psutil.Process(pid).create_time()


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; the name before it may contain any character."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def identity(pid: int) -> str | None:
    """``PID:START:BOOT:NAMESPACE`` of a process on this machine, which is unique; None if it has ended.

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
    """Whether the process of an :func:`identity` has ended; None if it belongs to another machine or container."""
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
    """The process id of the launcher that started this process, directly or through shells; None without a launcher.

    Also None for a rank of torch elastic (``TORCHELASTIC_RUN_ID``) whose launcher has already ended.
    """
    above = psutil.Process().parents()
    for process in above:
        with contextlib.suppress(psutil.Error):
            if _program(process.cmdline()) in _LAUNCHERS:
                return process.pid
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    # A custom launcher. A process that adopts a rank whose launcher has ended, such as init, does not run torch.
    return next((process.pid for process in above if _runs_torch(process.pid)), None)


def _runs_torch(pid: int) -> bool:
    try:
        return b"libtorch" in Path(f"/proc/{pid}/maps").read_bytes()
    except OSError:
        return not os.path.exists("/proc/self/maps")  # not Linux: unknown


def _program(command: list[str]) -> str:
    """The program that a command line runs; for Python, the script or module."""
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
    """Call ``act`` in a thread when the process of an :func:`identity` ends; immediately, if it has ended already.

    PR_SET_PDEATHSIG would not do: it watches only the parent, not a grandparent behind a shell, and fires when the
    thread that forked ends.
    """
    gone = is_gone(known)
    if gone is None:
        return
    descriptor = None
    with contextlib.suppress(OSError, AttributeError):  # it has ended, or the system lacks pidfd_open
        descriptor = os.pidfd_open(int(known.partition(":")[0]))
    if gone or is_gone(known):  # checked again: the id may have been reused before it was opened
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
