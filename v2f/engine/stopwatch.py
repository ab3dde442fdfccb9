"""How long a rank computes, without the time it waits for others."""

import time
from typing import Any

import torch


class Stopwatch:
    """Seconds spent inside its ``with`` blocks. On a GPU, read them only after synchronizing with its stream."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        self._seconds = 0.0
        self._events: list[Any] = []

    def seconds(self) -> float:
        return self._seconds + sum(start.elapsed_time(end) for start, end in self._events) / 1000

    def __enter__(self) -> None:
        self._start = self._now()

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            self._events.append((self._start, self._now()))
        else:
            self._seconds += self._now() - self._start

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
