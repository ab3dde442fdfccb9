"""Protocols: how a kind of task is judged. One file a protocol, one line in the table; a system names its own.

    split of a data set, system, observers --measure--> numbers by each observer, each person's share
                                           --show-----> tables;  metrics --> v2f compare

Shape letters: N people or pictures, M clips, Q queries, D embedding width, P features.
"""

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from v2f.data.manifest import Dataset
from v2f.evaluation.observers import Observer
from v2f.metrics import Interval
from v2f.runs.run import Run
from v2f.system import System

Measured = tuple[dict[str, Any], dict[str, Any]]
"""Of one split: all numbers; and the people, with each one's share in those of the run itself."""


@dataclass(frozen=True)
class Metric:
    """A number of ``eval.json`` that is compared. ``better``: 1 where higher is, -1 where lower is, 0 where neither."""

    key: str
    title: str
    better: int
    by: str
    """Who tells it: see :data:`v2f.evaluation.observers.BY`."""
    net: str = ""
    """What it depends on beside the people: the net ``referee``, ``identity`` or ``perceptual``; empty: no net."""
    scale: float = 1.0
    digits: int = 2
    of_pictures: bool = False
    """Whether it depends on the size of the pictures, too."""

    def shown(self, value: float | None, sign: bool = False) -> str:
        if value is None or not math.isfinite(value):
            return "–"
        text = f"{round(self.scale * value, self.digits) + 0.0:{'+' if sign else ''}.{self.digits}f}"
        return text.replace("-", "−")

    def interval(self, value: Interval, sign: bool = False) -> str:
        if not (math.isfinite(value.low) and math.isfinite(value.high)):
            return self.shown(value.value, sign)
        between = f"{self.shown(value.low, sign)} to {self.shown(value.high, sign)}"
        return f"{self.shown(value.value, sign)} ({between})"


@dataclass(frozen=True)
class Job:
    """What is measured, and with what."""

    run: Run
    dataset: Dataset
    system: System
    observers: Sequence[Observer]
    limit: int | None
    """Samples of each split, or people where a protocol measures one picture a person; None: all."""
    console: Console


class Protocol(abc.ABC):
    """How one kind of task is judged. Its numbers of a split, in ``eval.json``::

    {"what", "people", "left_out": {"samples", "first"}, "notes", "verdict",
     "by": {observer: {"lines": {line: {number: value or interval}}, ...}}, ...}
    """

    own: ClassVar[str]
    """The line that is the run's own, of all protocols in ``lines`` of this one alone."""
    compared: ClassVar[tuple[Metric, ...]]
    """What ``v2f compare`` compares, in the order of :data:`v2f.evaluation.observers.BY`."""
    explained: ClassVar[str]
    """What the columns are, in a sentence below the tables."""

    @abc.abstractmethod
    def splits(self, dataset: Dataset) -> list[str]:
        """Which splits are measured; none: there is nothing to measure."""

    @abc.abstractmethod
    def measure(self, job: Job, name: str) -> Measured:
        """All numbers of the split ``name``; V2FError where none can be had."""

    @abc.abstractmethod
    def show(self, name: str, result: Mapping[str, Any], console: Console) -> None:
        """Print the tables of a split."""

    @abc.abstractmethod
    def title(self, line: str, told: Mapping[str, Any]) -> str:
        """What a line of the tables is, in words; ``told``: the observer's numbers in which it stands."""


SPLITS = {"test": "unseen people", "seen": "seen people, unseen clips"}
MEASURED = SPLITS | {"valid": "held-out samples"}
"""All splits that some protocol measures, and what is in them."""


def of_each(people: list[int], each: Mapping[Any, dict[str, NDArray[np.float64]]]) -> dict[str, Any]:
    """The people, by their numbers in the manifest, and their shares in each number, by each observer."""
    shares = {by: {name: share_N.tolist() for name, share_N in own.items()} for by, own in each.items()}
    return {"people": people, "shares": shares}


def tell(split: dict[str, Any], console: Console) -> None:
    """What was left out, the notes and the verdict, below the table of a split."""
    left_out = split["left_out"]
    if left_out["samples"]:
        console.print(f"left out: {left_out['samples']} samples that cannot be used, the first: {left_out['first'][0]}")
    for note in split["notes"]:
        console.print(f"note: {note}")
    if split["verdict"]:
        console.print(split["verdict"], style="bold red")


def percent(interval: dict[str, float] | None) -> str:
    """A share with its interval, in percent."""
    if interval is None:
        return "-"
    return f"{100 * interval['value']:.1f} ({100 * interval['low']:.0f}-{100 * interval['high']:.0f})"


def number(value: float | None, digits: int) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"
