"""The runs of a comparison: what was measured of each, and which of them are the same recipe.

    RUN, RUN, ... --gather--> subjects A, B, ... --recipes--> groups that differ only in their seed

Shape letters: N people.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2f import metrics
from v2f.config import fixed_on_resume, flatten
from v2f.errors import V2FError
from v2f.evaluation import evaluate, protocols
from v2f.evaluation.observers import first_observer
from v2f.evaluation.protocol import Metric
from v2f.metrics import Interval
from v2f.runs.run import Run
from v2f.storage import store
from v2f.storage.records import Record, read_lines

LETTERS = "ABCDEFGH"
"""The names of the runs. Nobody could tell more curves apart on one chart."""

METRICS: dict[str, tuple[Metric, ...]] = {each.own: each.compared for each in protocols.PROTOCOLS.values()}
"""The run's own line in ``eval.json`` -> the metrics that are compared, those of the referee first."""


@dataclass(frozen=True)
class Subject:
    """One of the compared runs, and what was measured of it."""

    letter: str
    run: Run

    @property
    def name(self) -> str:
        return self.run.config.name

    @property
    def title(self) -> str:
        return f"{self.letter} {self.name}"

    @cached_property
    def step(self) -> int | None:
        return self.run.step

    @cached_property
    def evaluated(self) -> dict[str, Any] | None:
        return self.run.evaluated

    @cached_property
    def people(self) -> dict[str, Any]:
        """Split -> the people and their shares; empty if the file is missing or belongs to another evaluation."""
        kept = (self.evaluated or {}).get("people")
        path = store.join(self.run.path, evaluate.PEOPLE_FILE)
        if kept is None or not store.exists(path):
            return {}
        content = store.read_bytes(path)
        if hashlib.sha256(content).hexdigest() != kept["sha256"]:
            return {}
        splits: dict[str, Any] = json.loads(content)["splits"]
        return splits

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """The records of ``starts.jsonl``; empty for an export."""
        return read_lines(store.join(self.run.path, "starts.jsonl"), _Start)

    def measured(self, split: str) -> tuple[str, dict[str, Any]] | None:
        """The name of the run's own line in a split, and the split's numbers; None if the split was not measured."""
        numbers = (self.evaluated or {"splits": {}})["splits"].get(split)
        if numbers is None:
            return None
        lines = first_observer(numbers)[1]["lines"]
        own = next((line for line in METRICS if line in lines), None)
        return None if own is None else (own, numbers)

    def value(self, split: str, metric: Metric) -> Interval | None:
        """The number with its interval over people; the interval is NaN if the people's shares were not kept."""
        found = self.measured(split)
        if found is None:
            return None
        line, numbers = found
        observed = numbers["by"].get(metric.by)
        if observed is None:
            return None
        value = number_of(observed["lines"][line] | {"margin": observed.get("meters", {}).get("margin")}, metric)
        shares_N = self.shares(split, metric)
        if value is None or shares_N is None or math.isfinite(value.low):
            return value
        drawn = metrics.over_people(shares_N)
        return Interval(value=value.value, low=drawn.low, high=drawn.high)

    def shares(self, split: str, metric: Metric) -> NDArray[np.float64] | None:
        """Each person's share [N] in the number; None if the shares are unknown or undefined."""
        found = self.people.get(split, {"shares": {}})["shares"].get(metric.by, {}).get(metric.key)
        return None if found is None or None in found else np.array(found, np.float64)

    def ground(self, split: str, metric: Metric) -> dict[str, Any] | str:
        """What two runs must have in common for this number to be comparable, by name; or the reason why it cannot be
        compared: empty if the system does not have this number."""
        found = self.measured(split)
        if self.evaluated is None or found is None:
            return f"{self.letter} was not measured: v2f eval {self.run.path}"
        if metric not in METRICS[found[0]]:
            return ""
        if metric.by not in found[1]["by"]:
            return f"{self.letter} was measured without a {metric.by}: v2f eval {self.run.path}"
        if split not in self.people:
            return f"{self.letter} was measured without keeping each person’s share: v2f eval {self.run.path}"
        if metric.key not in self.people[split]["shares"].get(metric.by, {}):
            return ""
        if self.shares(split, metric) is None:
            return f"some numbers are not defined for {self.letter}: too few people"
        ground: dict[str, Any] = {"people": (self.evaluated["data"]["fingerprint"], self.people[split]["people"])}
        ground["trials"] = found[1].get("trials")
        if metric.key.startswith("R@"):
            ground["gallery"] = found[1].get("gallery")
        values = flatten(self.run.config)
        if metric.net == "referee":
            ground["judge"] = self.evaluated["referee"]
        elif metric.net == "classifier":
            ground["judge"] = self.evaluated.get("classifier", {}).get("sha256")
        elif metric.net:
            net = f"system.frozen.{metric.net}."
            options = {k: v for k, v in fixed_on_resume(self.run.config).items() if k.startswith(net)}
            ground["judge"] = (options, self.evaluated["weights"].get(metric.net))
        if metric.of_pictures:
            ground["pictures"] = (values.get("system.image_size"), values.get("system.share"))
        return ground


def number_of(line: Mapping[str, Any], metric: Metric) -> Interval | None:
    """A number of a line of ``eval.json``, with its interval if it has one (else NaN)."""
    value = line.get(metric.key, (line.get("picture") or {}).get(metric.key))
    if value is None or isinstance(value, Mapping):
        return None if value is None else Interval(**value)
    return Interval(value=value, low=math.nan, high=math.nan)


class _Start(Record):
    changed: list[str] = []


def gather(names: Sequence[str]) -> list[Subject]:
    """Open the runs ``names`` (folders, ``s3://`` prefixes, MLflow ids, exports); V2FError unless there are 2 to 8."""
    if len(names) < 2:
        raise V2FError(f"a comparison needs at least two runs, got {', '.join(names) or 'none'}")
    if len(names) > len(LETTERS):
        raise V2FError(f"{len(names)} runs: at most {len(LETTERS)} fit on one page; leave some out")
    subjects = [Subject(letter, Run.open(name)) for letter, name in zip(LETTERS, names, strict=False)]
    places: dict[str, str] = {}
    for subject, name in zip(subjects, names, strict=True):
        local = store.local_path(subject.run.path)
        place = subject.run.path if local is None else os.path.realpath(local)
        if place in places:
            raise V2FError(f"{places[place]} and {name} are the same run; name different runs")
        places[place] = name
    return subjects


@dataclass(frozen=True)
class Recipe:
    """Runs that differ only in their seed."""

    subjects: tuple[Subject, ...]

    @property
    def letters(self) -> str:
        return "+".join(subject.letter for subject in self.subjects)

    @property
    def title(self) -> str:
        first = self.subjects[0]
        if len(self.subjects) == 1:
            return first.title
        return f"{self.letters} {first.name} (seeds {', '.join(str(s.run.config.seed) for s in self.subjects)})"


def recipes(subjects: Sequence[Subject]) -> list[Recipe]:
    """Group the runs by what was trained: the same configuration, data, code, and step of the evaluation.

    Two runs with the same seed are not two draws of the noise of training, so the second one is a recipe of its own.
    """
    grouped: dict[tuple[Any, ...], list[list[Subject]]] = {}
    for subject in subjects:
        own = {key: value for key, value in fixed_on_resume(subject.run.config).items() if key not in ("name", "seed")}
        info = subject.run.info
        facts = {key: info.get(key) for key in ("fingerprint", "code", "weights", "stand_ins")}
        step = (subject.evaluated or {}).get("step", subject.step)
        alike = grouped.setdefault((json.dumps([own, facts], sort_keys=True), step), [])
        seed = subject.run.config.seed
        free = next((group for group in alike if seed not in {s.run.config.seed for s in group}), None)
        if free is None:
            alike.append([subject])
        else:
            free.append(subject)
    found = [Recipe(tuple(group)) for alike in grouped.values() for group in alike]
    return sorted(found, key=lambda recipe: recipe.letters)
