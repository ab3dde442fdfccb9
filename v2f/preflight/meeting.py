"""What the ranks exchange through the launcher's store, and the alarm that names the ranks that are behind."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist

from v2f.preflight.reports import named
from v2f.tracking.console import say

_POLL_S = 0.02
_START = 3  # times the limit, for the first stage: machines do not start at the same time


class Meeting:
    """Stages that all ranks begin together, and the values that they exchange in them.

    A stage may take ``limit_s`` beyond ``work_s``, the seconds for which a rank may measure before the others see it
    again.
    """

    def __init__(self, limit_s: float, work_s: float = 0.0) -> None:
        self.store: Any = dist.HashStore()
        self.rank, self.world_size = 0, 1
        if "RANK" in os.environ:
            self.store, self.rank, self.world_size = next(dist.rendezvous("env://"))
        self._alarm_store = self.store.clone()  # a client serves one thread at a time, and may be blocked in a stage
        self._limit_s, self._work_s = limit_s, work_s
        self._stage = 0

    @contextlib.contextmanager
    def stage(self, name: str, where: str) -> Iterator[None]:
        """Begin a stage together, in the same order on all ranks. If it outlasts the limit, the process ends."""
        self._stage += 1
        self.store.set(f"at/{self.rank}", f"{self._stage:04d}|{name}|{where}")
        # work_s counts in every stage: a rank whose measurement failed waits for the others in the next one.
        limit_s = self._limit_s * (_START if self._stage == 1 else 1) + self._work_s
        alarm = threading.Timer(limit_s, self._give_up, [limit_s])
        alarm.daemon = True
        alarm.start()
        try:
            self._all_here(f"begin/{self._stage}")
            yield
        finally:
            alarm.cancel()

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks (anything that JSON can hold), on each of them; call it within a stage."""
        self.store.set(f"value/{self._stage}/{self.rank}", json.dumps(value))
        self._all_here(f"values/{self._stage}")
        return [json.loads(self.store.get(f"value/{self._stage}/{rank}")) for rank in range(self.world_size)]

    def close(self) -> None:
        """Leave; rank 0, which may hold the store, waits until all others have left."""
        self.store.add("left", 1)
        while self.rank == 0 and self.store.add("left", 0) < self.world_size:
            time.sleep(_POLL_S)

    def _all_here(self, key: str) -> None:
        """Poll instead of waiting in the store, which has a time limit of its own."""
        if self.store.add(key, 1) == self.world_size:
            self.store.set(f"{key}/all", "")
        while not self.store.check([f"{key}/all"]):
            time.sleep(_POLL_S)

    def _give_up(self, waited_s: float) -> None:
        marks = {}
        for rank in range(self.world_size):
            here = self._alarm_store.check([f"at/{rank}"])
            marks[rank] = self._alarm_store.get(f"at/{rank}").decode() if here else f"0000|the start|rank {rank}"
        number, name, _ = max(marks.values()).split("|")
        behind = {rank: mark.split("|") for rank, mark in marks.items() if not mark.startswith(number)}
        if self._alarm_store.add("given up", 1) == 1:  # only one rank reports
            who = named([f"{where} in {stage}" for _, stage, where in behind.values()], self.world_size)
            say(
                f"preflight: {name} does not end, waited {waited_s:.0f} s: "
                + (f"behind: {who}" if behind else "all ranks are in it; look at the network, with NCCL_DEBUG=INFO")
            )
        os._exit(1)
