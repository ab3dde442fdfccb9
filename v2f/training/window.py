"""What the trainer measures between two logged points, and over a run's whole life with all its starts."""

import contextlib
import json
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import model_validator

from v2f.console import say
from v2f.data.streams import Streams
from v2f.engine import StepResult
from v2f.errors import V2FError
from v2f.storage import local as files
from v2f.storage import store
from v2f.storage.records import Record, problem_of
from v2f.system import Batch, by_stream

_SPIKE_STEPS = 128  # gradient norms that a spike is measured against (as in OLMo-core), once a quarter of them is there


class Window:
    """Means since the last logged point: losses, gradient norm, rates, throughput, the share of time spent waiting."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, int] = {}
        self._stepped = 0.0
        self.restart()

    def restart(self) -> None:
        """Start the clock anew, so that a validation or a save does not count as training time."""
        self._clock, self._slots, self._waited = time.perf_counter(), 0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self._stepped = time.perf_counter() - before

    def count(self, slots: int) -> float:
        """A step has used ``slots``; how many seconds it took."""
        self._slots += slots
        return self._stepped

    def add(self, phase: str, result: StepResult) -> None:
        """A step that was skipped for what is not finite counts in ``skipped/`` alone: one would blank all the means.

        Ranks skip alike, so that they have means of the same names.
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
        """The means, and a new window. Tensors become numbers only here: nothing waits for a GPU in between."""
        seconds = max(time.perf_counter() - self._clock, 1e-9)
        numbers = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        numbers["speed/samples_per_second"] = self._slots / seconds
        numbers["speed/data_wait_share"] = self._waited / seconds
        numbers["data/bytes_read_per_rank"] = float(loader.bytes_read)
        numbers["data/requests_per_rank"] = float(loader.requests)
        numbers["data/retries_per_rank"] = float(store.statistics().retries)
        self._sums, self._counts = {}, {}
        self.restart()
        return numbers


class Clock:
    """Goodput: the share of a run's life, from its first start on, that went into steps which count.

    Steps after the checkpoint from which a run went on were lost and do not count; nor do waiting for data, saving,
    validating, being away and starting again.
    """

    def __init__(self, state: Mapping[str, Any] | None, starts: int = 1) -> None:
        """``state``: the checkpoint's; ``starts``: as many as are known of, those that came to no checkpoint, too."""
        now = time.time()
        self._first = state["first_start"] if state else now
        self._starts = max(starts, state["starts"] + 1 if state else 1)
        self._productive = state["step_seconds"] if state else 0.0
        self._saved: float | None = state["saved"] if state else None
        self._restart_seconds: float | None = None

    def step(self, seconds: float) -> None:
        self._productive += seconds
        if self._saved is not None and self._restart_seconds is None:
            self._restart_seconds = time.time() - self._saved

    def numbers(self) -> dict[str, float]:
        """``time/restart_seconds``: from the checkpoint that this start went on from to the end of its first step."""
        alive = max(time.time() - self._first, 1e-9)
        found = {"time/goodput": min(1.0, self._productive / alive), "time/starts": float(self._starts)}
        return found if self._restart_seconds is None else found | {"time/restart_seconds": self._restart_seconds}

    def state(self) -> dict[str, Any]:
        first, now = self._first, time.time()
        return {"first_start": first, "starts": self._starts, "step_seconds": self._productive, "saved": now}


class Norms:
    """The last gradient norms of each phase; one that is ``sigma`` deviations above their mean is a spike.

    The same on all ranks, and part of a checkpoint: a resumed run skips what the undisturbed one would.
    """

    def __init__(self, sigma: float | None, past: Mapping[str, Sequence[float]]) -> None:
        self._sigma = sigma
        self._past = {phase: deque(norms, maxlen=_SPIKE_STEPS) for phase, norms in past.items()}

    def limit(self, phase: str) -> float | None:
        """The largest norm that is no spike; None while too little is known, or without ``sigma``."""
        past = self._past.get(phase, ())
        if self._sigma is None or len(past) < _SPIKE_STEPS // 4:
            return None
        return statistics.fmean(past) + self._sigma * statistics.stdev(past)

    def add(self, phase: str, norm: float) -> None:
        """Spikes are among them, so that a lasting change of level is followed."""
        if self._sigma is not None and abs(norm) < float("inf"):
            self._past.setdefault(phase, deque(maxlen=_SPIKE_STEPS)).append(norm)

    @property
    def past(self) -> dict[str, list[float]]:
        return {phase: list(norms) for phase, norms in self._past.items()}


class SlotLog:
    """Which sample each slot of each step was: ``RUN/slots/ATTEMPT-rank-N.jsonl``, a line a step (and stream, with its
    name, where there are several).

    A full disk does not end a training: it is said once, and when there is room again, a line without slots tells which
    steps are not in the log: ``"lost": [FIRST, LAST]``. V2FError where there can be no log, for another reason.
    """

    def __init__(self, folder: Path, attempt: str, rank: int) -> None:
        self.path = folder / "slots" / f"{attempt}-rank-{rank:05d}.jsonl"
        self._lines: files.Lines | None = None
        self._lost: list[int] = []
        self._said = False
        try:
            self._open()
        except files.PassingError as error:
            self._say(error)

    def write(self, step: int, batch: Batch) -> None:
        written = b""
        for stream, own in by_stream(batch).items():
            line = {"step": step, "slot": own["slot"].tolist(), "key": list(own["key"])}
            written += json.dumps(line | ({"stream": stream} if stream else {})).encode() + b"\n"
        try:
            lines = self._open()
            with files.explained(self.path):
                if self._lost:
                    gap = {"step": self._lost[1], "slot": [], "key": [], "lost": self._lost}
                    lines.write(json.dumps(gap).encode() + b"\n")
                    say(f"{self.path} is written again; steps {self._lost[0]} to {self._lost[1]} are not in it")
                    self._lost, self._said = [], False
                lines.write(written)
        except V2FError as error:
            self._say(error)
            self._lost = [self._lost[0] if self._lost else step, step]

    def close(self) -> None:
        if self._lost:
            say(f"{self.path}: steps {self._lost[0]} to {self._lost[1]} are not in it")
        if self._lines is not None:
            self._lines.close()

    def _open(self) -> files.Lines:
        if self._lines is None:
            with files.explained(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._lines = files.Lines(self.path)
        return self._lines

    def _say(self, error: V2FError) -> None:
        if not self._said:
            say(f"{error}; training goes on, its steps are missing in this log")
        self._said = True


def read_slots(folder: str, stream: str = "") -> list[tuple[int, int, str]]:
    """``(step, slot, key)`` of every step that counts, sorted: what a later start did again, it did instead.
    ``stream``: of which one, where there are several.

    Steps that a log has lost are not among them.
    """
    starts = _records(Path(folder, "starts.jsonl"), _Start)
    found = []
    for i, start in enumerate(starts):
        end = min((later["step"] for later in starts[i + 1 :]), default=float("inf"))
        for path in sorted(Path(folder, "slots").glob(f"{start['attempt']}-rank-*.jsonl")):
            for line in _records(path, _Slots):
                if line["step"] < end and line.get("stream", "") == stream:
                    found += [(line["step"], *pair) for pair in zip(line["slot"], line["key"], strict=True)]
    return sorted(found)


class _Start(Record):
    attempt: str
    step: int


class _Slots(Record):
    step: int
    slot: list[int]
    key: list[str]

    @model_validator(mode="after")
    def _pairs(self) -> "_Slots":
        if len(self.slot) != len(self.key):
            raise ValueError("there are not as many keys as slots")
        return self


def _records(path: Path, record: type[Record]) -> list[dict[str, Any]]:
    """The whole lines of a file: a kill may have cut the last one."""
    found = []
    for number, line in enumerate(store.read_bytes(str(path)).splitlines(keepends=True), start=1):
        if line.endswith(b"\n"):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                raise V2FError(f"{path}: line {number} is damaged, not valid JSON; remove the line") from None
            problem = problem_of(record, value)
            if problem is not None:
                raise V2FError(f"{path}: line {number} is damaged, {problem}; remove the line")
            found.append(value)
    return found
