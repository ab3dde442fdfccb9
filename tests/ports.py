"""Ports of loopback for the servers that tests start.

The kernel gives a port of its ephemeral range to every connection and to every ``bind`` to port 0, so a port of that
range that was free when a test chose it may be taken when its server starts. These come from below that range."""

import contextlib
import os
import random
import socket
from pathlib import Path

_FIRST = 10_000
_draws = random.Random(os.getpid())


def free_port() -> int:
    """A port on which nothing listens."""
    return free_ports(1)[0]


def free_ports(count: int, least: int = _FIRST, end: int | None = None) -> list[int]:
    """``count`` ports in a row on which nothing listens, from ``least`` to below ``end`` (None: those it may take)."""
    last = min(_first_ephemeral(), end or 1 << 16) - count
    while True:
        first = _draws.randint(least, last)
        ports = list(range(first, first + count))
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in ports:
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return ports


def _first_ephemeral() -> int:
    """The first port that the kernel gives out by itself; 32768, where the system does not say it."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    return 32_768
