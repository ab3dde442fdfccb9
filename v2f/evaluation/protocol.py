"""The interface of a protocol: how a kind of task is judged. :mod:`v2f.evaluation.protocols` is the table of all.

    split of a data set, system, observers --measure--> numbers by each observer, each person's share
                                           --show-----> tables

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
from v2f.errors import V2FError
from v2f.evaluation.observers import Observer
from v2f.evaluation.people_table import PeopleTable
from v2f.evaluation.readings import Classifier
from v2f.metrics import Interval
from v2f.runs.run import Run
from v2f.system import System

Measured = tuple[dict[str, Any], dict[str, Any]]
"""All numbers of a split; and its people, with each person's share in the run's own numbers."""


@dataclass(frozen=True)
class Metric:
    """A number of ``eval.json`` that ``v2f compare`` compares."""

    key: str
    title: str
    better: int
    """1 if higher is better, -1 if lower is, 0 if neither is."""
    by: str
    """The observer that measures it: see :data:`v2f.evaluation.observers.BY`."""
    net: str = ""
    """The net that it depends on: ``referee``, ``identity`` or ``perceptual``; empty: none."""
    scale: float = 1.0
    digits: int = 2
    of_pictures: bool = False
    """Whether it also depends on the size of the pictures."""

    def shown(self, value: float | None, sign: bool = False) -> str:
        """A value as tables show it, scaled and rounded; ``sign``: with a plus sign."""
        if value is None or not math.isfinite(value):
            return "–"
        text = f"{round(self.scale * value, self.digits) + 0.0:{'+' if sign else ''}.{self.digits}f}"
        return text.replace("-", "−")

    def interval(self, value: Interval, sign: bool = False) -> str:
        """As :meth:`shown`, followed by the interval if there is one."""
        if not (math.isfinite(value.low) and math.isfinite(value.high)):
            return self.shown(value.value, sign)
        between = f"{self.shown(value.low, sign)} to {self.shown(value.high, sign)}"
        return f"{self.shown(value.value, sign)} ({between})"


@dataclass(frozen=True)
class Job:
    """What is evaluated, and with what."""

    run: Run
    dataset: Dataset
    system: System
    observers: Sequence[Observer]
    limit: int | None
    """Samples of each split, or people if a protocol measures one picture per person; None: all."""
    console: Console
    people: PeopleTable | None = None
    """What the user knows about people, for a protocol that :attr:`Protocol.groups_people`."""
    trained: bool = False
    """Whether the run is known to have been trained on the data set."""
    trials: str | None = None
    """A file that lists trials, for a protocol that takes one."""
    classifier: Classifier | None = None
    """What reads the labels of pictures, for a protocol that takes it."""
    draws: int = 1
    """Faces of each clip, for a system that asks for noise."""


class Protocol(abc.ABC):
    """How one kind of task is judged. The numbers of a split in ``eval.json``::

    {"what", "people", "left_out": {"samples", "first"}, "notes", "verdict",
     "by": {observer: {"lines": {line: {number: value or interval}}, ...}}, ...}
    """

    own: ClassVar[str]
    """The run's own line; no other protocol has a line of this name."""
    compared: ClassVar[tuple[Metric, ...]]
    """What ``v2f compare`` compares, in the order of :data:`v2f.evaluation.observers.BY`."""
    explained: ClassVar[str]
    """What the columns mean; printed below the tables."""
    groups_people: ClassVar[bool] = False
    """Whether it has numbers for groups of speakers, by their attributes."""
    observed: ClassVar[bool] = True
    """Whether frozen nets look at what the system makes."""
    takes_trials: ClassVar[bool] = False
    """Whether it measures a list of trials (``v2f eval --trials``)."""

    takes_classifier: ClassVar[bool] = False
    """Whether a classifier may read what the system makes (``v2f eval --classifier``)."""

    @abc.abstractmethod
    def splits(self, dataset: Dataset) -> list[str]:
        """The splits that are measured; may be empty."""

    @abc.abstractmethod
    def measure(self, job: Job, name: str) -> Measured:
        """All numbers of the split ``name``; V2FError if nothing can be measured."""

    @abc.abstractmethod
    def show(self, name: str, result: Mapping[str, Any], console: Console) -> None:
        """Print the tables of a split."""

    @abc.abstractmethod
    def title(self, line: str, observed: Mapping[str, Any]) -> str:
        """The title of a line of the tables; ``observed``: the numbers of the observer whose table it is."""


HELD_OUT = ("test", "valid")
"""Splits of samples that no training saw, whoever they are of; the first that a data set has is measured."""

SPLITS = {"test": "unseen people", "seen": "seen people, unseen clips"}
MEASURED = SPLITS | {"valid": "held-out samples"}
"""Every split that some protocol measures, and what it holds."""


def of_each(people: list[int], each: Mapping[Any, dict[str, NDArray[np.float64]]]) -> dict[str, Any]:
    """The people, by their numbers in the manifest, and their shares: observer -> metric -> [N]."""
    shares = {by: {name: share_N.tolist() for name, share_N in own.items()} for by, own in each.items()}
    return {"people": people, "shares": shares}


def no_usable_sample(root: str, split: str, left_out: list[str]) -> V2FError:
    """The error to raise if all samples of a split were left out."""
    return V2FError(f"{root}: no sample of {split} can be used; the first problem: {left_out[0]}")


def summary_of(left_out: list[str]) -> dict[str, Any]:
    """What ``eval.json`` holds about samples that were left out: their number and the first reasons."""
    return {"samples": len(left_out), "first": left_out[:5]}


def print_remarks(split: dict[str, Any], console: Console) -> None:
    """Print what was left out, the notes and the verdict below the tables of a split."""
    left_out = split["left_out"]
    if left_out["samples"]:
        console.print(f"left out: {left_out['samples']} unusable samples, the first: {left_out['first'][0]}")
    for note in split["notes"]:
        console.print(f"note: {note}")
    if split["verdict"]:
        console.print(split["verdict"], style="bold red")


def percent(interval: dict[str, float] | None) -> str:
    """A share and its interval, in percent."""
    if interval is None:
        return "-"
    return f"{100 * interval['value']:.1f} ({100 * interval['low']:.0f}-{100 * interval['high']:.0f})"


def share(value: float | None) -> str:
    """A share without an interval, in percent; "-" if it is None or not finite."""
    return number(None if value is None else 100 * value, 0)


def number(value: float | None, digits: int) -> str:
    """A number with ``digits`` decimals; "-" if it is None or not finite."""
    return "-" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"
