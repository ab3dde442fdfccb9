"""How a training run proceeds: means between two logged points, goodput over all starts, usual gradient norms."""

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from v2f.data.streams import Streams
from v2f.engine import StepResult
from v2f.storage import store

_SPIKE_STEPS = 128  # gradient norms that a spike is measured against (as in OLMo-core), once a quarter of them is there


class StepMeans:
    """Means since the last logged point: losses, gradient norms, rates, throughput, the share of time spent waiting."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, int] = {}
        self._step_seconds = 0.0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Start the clock anew, so that a validation or a save does not count as training time."""
        self._since, self._slots, self._waited = time.perf_counter(), 0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a batch."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """Around a step."""
        before = time.perf_counter()
        yield
        self._step_seconds = time.perf_counter() - before

    def count(self, slots: int) -> float:
        """Count the step just taken, which used ``slots``; returns how many seconds it took."""
        self._slots += slots
        return self._step_seconds

    def add(self, phase: str, result: StepResult) -> None:
        """Add one phase's step. One that was skipped for a number that is not finite counts under ``skipped/`` alone,
        because that number would make the means NaN.

        Ranks skip the same steps, so their means have the same names.
        """
        values: dict[str, Any] = {f"rate/{phase}/{k}": v for k, v in result.rate.items()}
        values |= {f"skipped/{phase}": float(bool(result.skipped)), "time/forward_seconds": result.forward_seconds}
        if result.skipped not in ("loss", "gradient"):
            values |= {f"loss/{phase}/{k}": v for k, v in result.losses.items()}
            values |= {f"grad_norm/{phase}": result.grad_norm}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self, loader: Streams) -> dict[str, float]:
        """The means so far; then start over. Only here do tensors become numbers, so no step waits for a GPU."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        numbers = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        numbers["speed/samples_per_second"] = self._slots / seconds
        numbers["speed/data_wait_share"] = self._waited / seconds
        numbers["data/bytes_read_per_rank"] = float(loader.bytes_read)
        numbers["data/requests_per_rank"] = float(loader.requests)
        numbers["data/retries_per_rank"] = float(store.statistics().retries)
        self._sums, self._counts = {}, {}
        self.restart_clock()
        return numbers


def over_ranks(by_rank: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each number over the ranks, and how far the ranks are apart."""
    numbers = {name: statistics.fmean(rank[name] for rank in by_rank) for name in by_rank[0]}
    forward = [rank["time/forward_seconds"] for rank in by_rank]
    if len(by_rank) > 1:
        numbers["skew/forward_slowest_over_median"] = max(forward) / max(statistics.median(forward), 1e-9)
        numbers["skew/slowest_rank"] = float(forward.index(max(forward)))
        numbers["skew/data_wait_most"] = max(rank["speed/data_wait_share"] for rank in by_rank)
    return numbers


class Goodput:
    """The share of a run's life, from its first start on, that went into steps that count.

    Not counted are steps after the checkpoint that a start resumed from, because they were lost, nor the time spent
    waiting for data, saving, validating, being stopped, and starting.
    """

    def __init__(self, state: Mapping[str, Any] | None, starts: int = 1) -> None:
        """``state`` is the checkpoint's; ``starts`` counts all known starts, even those that saved no checkpoint."""
        now = time.time()
        self._first = state["first_start"] if state else now
        self._starts = max(starts, state["starts"] + 1 if state else 1)
        self._productive = state["step_seconds"] if state else 0.0
        self._saved: float | None = state["saved"] if state else None
        self._restart_seconds: float | None = None

    def step(self, seconds: float) -> None:
        """Count a step that took ``seconds``."""
        self._productive += seconds
        if self._saved is not None and self._restart_seconds is None:
            self._restart_seconds = time.time() - self._saved

    def numbers(self) -> dict[str, float]:
        """What is logged. ``time/restart_seconds``: from the checkpoint to the end of the first step after it."""
        alive = max(time.time() - self._first, 1e-9)
        found = {"time/goodput": min(1.0, self._productive / alive), "time/starts": float(self._starts)}
        return found if self._restart_seconds is None else found | {"time/restart_seconds": self._restart_seconds}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, plain JSON."""
        first, now = self._first, time.time()
        return {"first_start": first, "starts": self._starts, "step_seconds": self._productive, "saved": now}


class GradientNorms:
    """The last gradient norms of each phase; a norm ``sigma`` standard deviations above their mean is a spike.

    The same on all ranks, and saved in checkpoints, so that a resumed run skips the steps it would have skipped anyway.
    """

    def __init__(self, sigma: float | None, past: Mapping[str, Sequence[float]]) -> None:
        self._sigma = sigma
        self._past = {phase: deque(norms, maxlen=_SPIKE_STEPS) for phase, norms in past.items()}

    def limit(self, phase: str) -> float | None:
        """The largest norm that is not a spike; None without ``sigma``, or while there are too few norms."""
        past = self._past.get(phase, ())
        if self._sigma is None or len(past) < _SPIKE_STEPS // 4:
            return None
        return statistics.fmean(past) + self._sigma * statistics.stdev(past)

    def add(self, phase: str, norm: float) -> None:
        """Add a norm, even that of a spike, so that the limit follows a lasting change."""
        if self._sigma is not None and abs(norm) < float("inf"):
            self._past.setdefault(phase, deque(maxlen=_SPIKE_STEPS)).append(norm)

    @property
    def past(self) -> dict[str, list[float]]:
        return {phase: list(norms) for phase, norms in self._past.items()}
