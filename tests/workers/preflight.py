"""A pre-flight with faulty ranks, which the arguments name.

``RANK:slow`` computes each product ``TIMES`` times, ``RANK:wrong`` gets one entry of every large product wrong,
``RANK:stuck`` never finishes its copy; ``hosts`` gives each rank its own host name. ``--`` ends these arguments.
"""

import dataclasses
import os
import sys
import threading
from collections.abc import Callable

import torch

from v2f.preflight import command, workloads

# Small workloads, so that even a busy machine measures each many times, and the median is stable.
workloads.SIDE_N["cpu"], workloads.COPIED["cpu"] = 256, 1 << 20
TIMES = 60


def slow() -> None:
    real = workloads.matmul

    def longer(device: torch.device) -> workloads.Workload:
        workload = real(device)
        return dataclasses.replace(workload, run=lambda: [workload.run() for _ in range(TIMES)][-1])

    workloads.matmul = longer


def wrong() -> None:
    real = torch.Tensor.__matmul__

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        c = real(a, b)
        if c.ndim == 2 and len(c) == workloads.SIDE_N["cpu"]:
            c[17, 5] += 1
        return c

    torch.Tensor.__matmul__ = product  # type: ignore[method-assign]


def stuck() -> None:
    def never(_: torch.device) -> workloads.Workload:
        threading.Event().wait()
        raise AssertionError

    workloads.memory = never


def main(*arguments: str) -> int:
    rank = os.environ["RANK"]
    end = arguments.index("--")
    happens: dict[str, Callable[[], None]] = {f"{rank}:slow": slow, f"{rank}:wrong": wrong, f"{rank}:stuck": stuck}
    for name in arguments[:end]:
        if name == "hosts":
            command.socket.gethostname = lambda: f"host-{rank}"
        elif name in happens:
            happens[name]()
    return command.main(arguments[end + 1 :])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
