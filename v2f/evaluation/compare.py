"""What differs between runs, and which differences of their numbers are larger than noise.

    RUN, RUN, ... -> configuration, data, code, versions, starts -> what differs, a row a key
                  -> eval.json + eval-people.json -> each metric with its interval
                                                  -> each difference of two recipes, tested person by person

Runs of one *recipe* differ in their seed alone. A difference of two recipes B - A is the mean over people of B's share
less A's (:mod:`v2f.metrics`), so what makes a person easy or hard for both falls out of it; each recipe's share is the
mean over its seeds. Two things are noise:

1. *Other people would have been met.* The interval is a bootstrap over people, the p-value that of a sign-flip test:
   if A and B are alike, each person's difference could as well have had the other sign.
2. *Another seed would have been drawn.* The intervals over people do not contain this. Where a recipe was trained with
   several seeds, the variance between seeds (pooled over all recipes that have some, as in an analysis of variance) is
   added to that over people, with Satterthwaite's degrees of freedom, and the larger of both p-values counts. Where no
   recipe was, that is said.

All p-values of a comparison together are corrected by Holm (1979): the probability that any difference is called larger
than noise and is not, is at most 5 %. What was not measured on the same people by the same nets is not tested.

Shape letters: N people, T tests.
"""

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from v2f import metrics
from v2f.config import fixed, flatten
from v2f.errors import V2FError
from v2f.evaluation import evaluate, protocols
from v2f.evaluation.observers import BY, told_first
from v2f.evaluation.protocol import MEASURED, Metric
from v2f.evaluation.significance import ALPHA, holm, sign_flips, with_training
from v2f.metrics import Interval
from v2f.runs.run import Run
from v2f.storage import store
from v2f.storage.records import Record, problem_of

LETTERS = "ABCDEFGH"
"""What the runs are called; more curves over each other nobody can tell apart."""
_DRAWS = 10_000  # sign flips, at least
_DRAWS_A_TEST = 200  # more of them for more tests: Holm's smallest level must be within reach


METRICS: dict[str, tuple[Metric, ...]] = {each.own: each.compared for each in protocols.PROTOCOLS.values()}
"""By the line of ``eval.json`` that is the run's own, in the table's order: what the referee tells first."""


# ------------------------------------------------------------------------------------------------- the runs


@dataclass(frozen=True)
class Subject:
    """One of the runs, and what was measured of it."""

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
        return evaluate.read(self.run)

    @cached_property
    def people(self) -> dict[str, Any]:
        """Split -> the people and their shares; empty where they were not kept, or are of another measurement."""
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
        """A line of ``starts.jsonl`` each; empty for an export."""
        path = store.join(self.run.path, "starts.jsonl")
        if not store.exists(path):
            return []
        lines = store.read_bytes(path).decode("utf-8", "replace").splitlines()
        return [start for start in map(_parsed, lines) if start]

    def measured(self, split: str) -> tuple[str, dict[str, Any]] | None:
        """The run's own line of a split, by its name, and the split's numbers."""
        numbers = (self.evaluated or {"splits": {}})["splits"].get(split)
        if numbers is None:
            return None
        lines = told_first(numbers)[1]["lines"]
        own = next((line for line in METRICS if line in lines), None)
        return None if own is None else (own, numbers)

    def value(self, split: str, metric: Metric) -> Interval | None:
        """The number with its interval over people, or without (NaN), where the people were not kept."""
        found = self.measured(split)
        if found is None:
            return None
        line, numbers = found
        told = numbers["by"].get(metric.by)
        if told is None:
            return None
        value = _number(told["lines"][line] | {"margin": told.get("meters", {}).get("margin")}, metric)
        shares_N = self.shares(split, metric)
        if value is None or shares_N is None or math.isfinite(value.low):
            return value
        drawn = metrics.over_people(shares_N)
        return Interval(value=value.value, low=drawn.low, high=drawn.high)

    def shares(self, split: str, metric: Metric) -> NDArray[np.float64] | None:
        """Each person's share in the number; None where it is not known or not defined."""
        found = self.people.get(split, {"shares": {}})["shares"].get(metric.by, {}).get(metric.key)
        return None if found is None or None in found else np.array(found, np.float64)

    def ground(self, split: str, metric: Metric) -> dict[str, Any] | str:
        """What two numbers must share to be comparable, by what it is called; or why this one cannot be compared, with
        no words where its system has no such number."""
        found = self.measured(split)
        if self.evaluated is None or found is None:
            return f"{self.letter} was not measured: v2f eval {self.run.path}"
        if metric not in METRICS[found[0]]:
            return ""
        if metric.by not in found[1]["by"]:
            return f"{self.letter} was measured without a {metric.by}: v2f eval {self.run.path}"
        if split not in self.people:
            return f"{self.letter} was measured without keeping each person’s share: v2f eval {self.run.path}"
        if self.shares(split, metric) is None:
            return f"it is not defined for {self.letter}: too few people"
        ground: dict[str, Any] = {"people": (self.evaluated["data"]["fingerprint"], self.people[split]["people"])}
        if metric.key.startswith("R@"):
            ground["gallery"] = found[1].get("gallery")
        values = flatten(self.run.config)
        if metric.net == "referee":
            ground["judge"] = self.evaluated["referee"]
        elif metric.net:
            net = f"system.frozen.{metric.net}."
            options = {k: v for k, v in fixed(self.run.config).items() if k.startswith(net)}
            ground["judge"] = (options, self.evaluated["weights"].get(metric.net))
        if metric.of_pictures:
            ground["pictures"] = (values.get("system.image_size"), values.get("system.share"))
        return ground


_APART = {
    "people": "measured on different people: name one data set, v2f eval RUN --data PATH",
    "gallery": "measured with galleries of different size",
    "judge": "measured by different nets",
    "pictures": "measured on pictures of different size",
}


def _number(line: Mapping[str, Any], metric: Metric) -> Interval | None:
    """A number of a line of ``eval.json``, with its interval where it holds one."""
    value = line.get(metric.key, (line.get("picture") or {}).get(metric.key))
    if value is None or isinstance(value, Mapping):
        return None if value is None else Interval(**value)
    return Interval(value=value, low=math.nan, high=math.nan)


class _Start(Record):
    changed: list[str] = []


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # cut by a kill
        return None
    return value if problem_of(_Start, value) is None else None


def gather(names: Sequence[str]) -> list[Subject]:
    """The runs that ``names`` name (folders, ``s3://`` prefixes, MLflow ids, exports); V2FError unless 2 to 8."""
    if len(names) < 2:
        raise V2FError(f"a comparison needs at least two runs, got {', '.join(names) or 'none'}")
    if len(names) > len(LETTERS):
        raise V2FError(f"{len(names)} runs: at most {len(LETTERS)} can be told apart on one page; leave some out")
    subjects = [Subject(letter, Run.open(name)) for letter, name in zip(LETTERS, names, strict=False)]
    places: dict[str, str] = {}
    for subject, name in zip(subjects, names, strict=True):
        local = store.local_path(subject.run.path)
        place = subject.run.path if local is None else os.path.realpath(local)
        if place in places:
            raise V2FError(f"{places[place]} and {name} are the same run; a comparison needs different ones")
        places[place] = name
    return subjects


@dataclass(frozen=True)
class Recipe:
    """Runs that differ in their seed alone."""

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
    """The runs by what was trained: one function, on the same data, by the same code, as long, and measured at the end.

    A seed that stands twice is no second draw of the noise of training, and so a recipe of its own.
    """
    grouped: dict[tuple[Any, ...], list[list[Subject]]] = {}
    for subject in subjects:
        own = {key: value for key, value in fixed(subject.run.config).items() if key not in ("name", "seed")}
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


# --------------------------------------------------------------------------------------------- what differs


@dataclass(frozen=True)
class Row:
    """One key, and its value in each run."""

    key: str
    values: tuple[str, ...]

    @property
    def known(self) -> list[str]:
        """What stands in it, each once; an export does not tell everything."""
        return [value for value in dict.fromkeys(self.values) if value != _ABSENT]


@dataclass(frozen=True, kw_only=True)
class Differences:
    """What differs, as rows; ``alike`` are the facts (not the keys of the configuration) that do not, where told."""

    config: dict[str, list[Row]]
    """Group of the configuration -> the keys that all runs have and that change what is trained."""
    some: list[Row]
    """Keys that only some runs have, as those of another system."""
    free: list[Row]
    """Keys that change nothing of what is trained."""
    facts: list[Row]
    alike: list[Row]


_ABSENT = "–"


def differences(subjects: Sequence[Subject]) -> Differences:
    """What differs between the runs."""
    flat = [flatten(subject.run.config) for subject in subjects]
    keys = [key for key in dict.fromkeys(itertools.chain(*flat)) if key not in ("name", "out")]
    rows = [Row(key, tuple(_shown(of[key]) if key in of else _ABSENT for of in flat)) for key in keys]
    trained = {key for subject in subjects for key in fixed(subject.run.config)}
    config: dict[str, list[Row]] = {}
    some, free = [], []
    for row in rows:
        if len(set(row.values)) == 1:
            continue
        if row.key not in trained:
            free.append(row)
        elif all(row.key in of for of in flat):
            config.setdefault(row.key.partition(".")[0] if "." in row.key else "run", []).append(row)
        else:
            some.append(row)
    tables = [_facts(subject) for subject in subjects]
    names = dict.fromkeys(itertools.chain(*tables))
    facts = [Row(name, tuple(table.get(name, _ABSENT) for table in tables)) for name in names]
    return Differences(
        config=config,
        some=some,
        free=free,
        facts=[row for row in facts if len(row.known) > 1],
        alike=[row for row in facts if len(row.known) == 1],
    )


def _facts(subject: Subject) -> dict[str, str]:
    """What the run was made from and by, beside its configuration."""
    info, measured = subject.run.info, subject.evaluated or {}
    data, stand_ins = measured.get("data", {}), info.get("stand_ins")
    facts: dict[str, Any] = {
        "step": subject.step,
        "measured at step": measured.get("step"),
        "data": info.get("data"),
        "data: fingerprint": info.get("fingerprint"),
        "measured on": data.get("path"),
        "measured on: fingerprint": data.get("fingerprint"),
        "measured on: version of the world": data.get("world_version"),
        "seconds heard": measured.get("seconds"),
        "code": info.get("code"),
        "device": info.get("device"),
        "world size": info.get("world_size"),
        "strategy": info.get("strategy"),
        "stand-ins": stand_ins,
        **{f"weights: {role}": digest for role, digest in (info.get("weights") or {}).items()},
        **{f"version of {package}": number for package, number in (info.get("versions") or {}).items()},
    }
    if not subject.run.exported:
        sizes = [f"{start.get('world_size')} at step {start.get('step')}" for start in subject.starts]
        changed = [f"{each} at step {s.get('step')}" for s in subject.starts for each in s.get("changed") or []]
        facts |= {"starts": len(subject.starts), "ranks of each start": ", ".join(sizes) or None}
        facts["changed over resumes"] = "; ".join(changed) or "nothing"
    return {name: _shown(value) for name, value in facts.items() if value is not None}


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


# ----------------------------------------------------------------------------------------- larger than noise?


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a metric differs between two recipes: ``other`` less ``one``."""

    split: str
    metric: Metric
    one: Recipe
    other: Recipe
    difference: Interval | None = None
    p: float | None = None
    """Corrected by Holm for all tests of the comparison."""
    training: bool = False
    """Whether the noise of training is in it."""
    why_not: str | None = None
    """Why it is not tested; empty where the system of one has no such number."""

    @property
    def larger(self) -> bool:
        """Than noise."""
        return self.p is not None and self.p < ALPHA

    @property
    def direction(self) -> int:
        """1 where ``other`` is better, -1 where ``one`` is, 0 where neither or where the difference may be noise."""
        if not self.larger or self.difference is None:
            return 0
        return self.metric.better * (1 if self.difference.value > 0 else -1)

    def told(self) -> str:
        """In words, of one that is larger than noise."""
        assert self.difference is not None
        d, m = self.difference, self.metric
        high, low = (self.other, self.one) if d.value > 0 else (self.one, self.other)
        ends = sorted((abs(d.low), abs(d.high)))
        judged = {1: f"; {high.letters} is better", -1: f"; {low.letters} is better"}.get(m.better, "")
        by = f"{m.shown(abs(d.value))} ({m.shown(ends[0])} to {m.shown(ends[1])})"
        if m.shown(abs(d.value)) == m.shown(0.0):
            by = f"less than {10.0**-m.digits:g}"
        who = f" by the {m.by}" if m.net else ""
        return f"{m.title}{who}: {high.letters} is above {low.letters} by {by}{judged}"


@dataclass(frozen=True)
class Comparison:
    """All that a comparison says in numbers and words; its page and its table say the same."""

    subjects: list[Subject]
    recipes: list[Recipe]
    differences: Differences
    outcomes: list[Outcome]

    @property
    def splits(self) -> list[str]:
        return [split for split in MEASURED if any(subject.measured(split) for subject in self.subjects)]

    def metrics(self, split: str) -> list[Metric]:
        """Those that some run has, in the table's order."""
        measured = [found for found in (subject.measured(split) for subject in self.subjects) if found]
        lines, told = {line for line, _ in measured}, {by for _, numbers in measured for by in numbers["by"]}
        found = [metric for line, row in METRICS.items() if line in lines for metric in row if metric.by in told]
        return sorted(dict.fromkeys(found), key=lambda metric: list(BY).index(metric.by))

    def told(self, split: str) -> dict[str, list[int]]:
        """Who tells the metrics of a split, in the order of :data:`BY`, with their places in :meth:`metrics`."""
        places: dict[str, list[int]] = {}
        for at, metric in enumerate(self.metrics(split)):
            places.setdefault(metric.by, []).append(at)
        return places

    def references(self, split: str) -> list[tuple[str, list[Interval | None]]]:
        """Chance and what is known of the people, to hold the numbers against: by title, in the order of
        :meth:`metrics`. Only where all runs that were measured were so on the same people by the same nets."""
        chosen = self.metrics(split)
        measured = [subject for subject in self.subjects if subject.measured(split)]
        first, *others = [[subject.ground(split, metric) for metric in chosen] for subject in measured]
        if any(other != first for other in others):
            return []
        found = measured[0].measured(split)
        assert found is not None
        by, chance = found[1]["by"], found[1].get("chance")
        told = told_first(found[1])[1]
        protocol = next(each for each in protocols.PROTOCOLS.values() if each.own == found[0])
        shown = [line for line in ("strongest", "U1", "trained") if line in told["lines"]]
        rows = [
            (
                protocol.title(line, told),
                [_number(by[m.by]["lines"][line], m) if line in by[m.by]["lines"] else None for m in chosen],
            )
            for line in shown
        ]
        if chance:
            known = [
                Interval(value=chance[m.key], low=math.nan, high=math.nan) if m.key in chance else None for m in chosen
            ]
            rows.insert(0, ("chance", known))
        return rows

    def of(self, split: str) -> list[tuple[Recipe, Recipe, list[Outcome]]]:
        """Each pair of recipes of which something was tested, with its outcomes in the order of :meth:`metrics`; why
        nothing was of the others is in :attr:`notes`."""
        rows = []
        for one, other in itertools.combinations(self.recipes, 2):
            own = [o for o in self.outcomes if (o.split, o.one, o.other) == (split, one, other)]
            if any(outcome.p is not None for outcome in own):
                rows.append((one, other, own))
        return rows

    def spread(self, split: str) -> list[tuple[Recipe, list[Interval | None]]]:
        """Of each recipe with several seeds, each metric's mean over them with the least and the most."""
        rows = []
        for recipe in self.recipes:
            measured = [subject for subject in recipe.subjects if subject.measured(split)]
            if len(measured) > 1:
                rows.append((recipe, [_range(measured, split, metric) for metric in self.metrics(split)]))
        return rows

    @property
    def tests(self) -> int:
        return sum(outcome.p is not None for outcome in self.outcomes)

    @property
    def larger(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.larger]

    @property
    def notes(self) -> list[str]:
        """What stands in the way of comparing, and what the noise holds; a sentence each."""
        notes = list(dict.fromkeys(outcome.why_not for outcome in self.outcomes if outcome.why_not))
        for subject in self.subjects:
            measured = subject.evaluated
            if measured is None:
                notes.append(f"{subject.letter} was not measured: v2f eval {subject.run.path}")
            elif subject.step is not None and measured.get("step") not in (None, subject.step):
                notes.append(
                    f"{subject.letter} was measured at step {measured['step']} and is at {subject.step} now: "
                    f"v2f eval {subject.run.path}"
                )
        notes = list(dict.fromkeys(notes))
        seen = {
            s.letter: step * s.run.config.data.batch for s in self.subjects if (step := (s.evaluated or {}).get("step"))
        }
        if len(set(seen.values())) > 1:
            told = ", ".join(f"{letter} {samples:,}" for letter, samples in seen.items())
            notes.append(f"the runs had seen different numbers of samples when they were measured: {told}")
        tested = [outcome for outcome in self.outcomes if outcome.p is not None]
        if len(self.recipes) == 1:
            notes.append(
                "these runs are one recipe, they differ in their seed alone: what differs between them is the noise of "
                "training itself, and there is nothing to test it against"
            )
        elif tested and not any(outcome.training for outcome in tested):
            notes.append(
                "each recipe was trained once: how much another seed would change is not known, and no interval over "
                "people contains it; train one recipe with two or three seeds to know"
            )
        elif tested:
            several = ", ".join(recipe.letters for recipe in self.recipes if len(recipe.subjects) > 1)
            notes.append(
                f"the noise of training is that between the seeds of {several}, taken to be alike for all recipes; "
                "with few seeds it is known roughly, and so only large differences stand out"
            )
        return [note[:1].upper() + note[1:] for note in notes]


def _range(subjects: Sequence[Subject], split: str, metric: Metric) -> Interval | None:
    values = [found.value for found in (subject.value(split, metric) for subject in subjects) if found is not None]
    if len(values) < len(subjects):
        return None
    return Interval(value=float(np.mean(values)), low=min(values), high=max(values))


def compare(subjects: Sequence[Subject]) -> Comparison:
    """Compare the runs; see the head of this file."""
    groups = recipes(subjects)
    plain = Comparison(list(subjects), groups, differences(subjects), [])
    wanted = [
        (split, metric, one, other)
        for split in plain.splits
        for one, other in itertools.combinations(groups, 2)
        for metric in plain.metrics(split)
    ]
    return Comparison(plain.subjects, groups, plain.differences, list(_test(wanted, groups)))


_Wanted = tuple[str, Metric, Recipe, Recipe]


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """A test before the correction."""

    shares_N: NDArray[np.float64]
    seeds: tuple[int, int]
    variance: float
    """Between seeds; with ``freedom`` 0 it is not known."""
    freedom: int


def _test(wanted: Sequence[_Wanted], groups: Sequence[Recipe]) -> Iterator[Outcome]:
    tried = [_try(*each, groups) for each in wanted]
    tests = [each for each in tried if isinstance(each, _Tried)]
    draws = max(_DRAWS, _DRAWS_A_TEST * len(tests)) - 1
    people: list[float] = [math.nan] * len(tests)
    for count in sorted({len(test.shares_N) for test in tests}):
        alike = [number for number, test in enumerate(tests) if len(test.shares_N) == count]
        found_T = sign_flips(np.stack([tests[number].shares_N for number in alike], 1), draws)
        for number, p in zip(alike, found_T.tolist(), strict=True):
            people[number] = p
    intervals, both = [], []
    for test, p in zip(tests, people, strict=True):
        interval, other = metrics.over_people(test.shares_N), 0.0
        if test.freedom:
            interval, other = with_training(test.shares_N, test.seeds, test.variance, test.freedom)
        intervals.append(interval)
        both.append(max(p, other))
    done = zip(tests, intervals, holm(both), strict=True)
    for (split, metric, one, another), each in zip(wanted, tried, strict=True):
        if isinstance(each, str):
            yield Outcome(split=split, metric=metric, one=one, other=another, why_not=each)
        else:
            test, interval, p = next(done)
            yield Outcome(
                split=split,
                metric=metric,
                one=one,
                other=another,
                difference=interval,
                p=p,
                training=test.freedom > 0,
            )


def _try(split: str, metric: Metric, one: Recipe, other: Recipe, groups: Sequence[Recipe]) -> _Tried | str:
    """What a test needs, or why there can be none."""
    found = {subject.letter: subject.ground(split, metric) for recipe in groups for subject in recipe.subjects}
    pair = [*one.subjects, *other.subjects]
    for subject in pair:
        reason = found[subject.letter]
        if isinstance(reason, str):
            return reason
    ground = found[pair[0].letter]
    for subject in pair[1:]:
        own = found[subject.letter]
        assert isinstance(ground, dict)
        assert isinstance(own, dict)
        apart = next((what for what in _APART if ground.get(what) != own.get(what)), None)
        if apart is not None:
            return f"{one.letters} and {other.letters} were {_APART[apart]}"
    means = [np.mean([_known(s.shares(split, metric)) for s in recipe.subjects], 0) for recipe in (one, other)]
    squares, freedom = 0.0, 0
    for recipe in groups:
        values = [_known(s.shares(split, metric)).mean() for s in recipe.subjects if found[s.letter] == ground]
        if len(values) > 1:
            squares += float(np.var(values) * len(values))
            freedom += len(values) - 1
    return _Tried(
        shares_N=means[1] - means[0],
        seeds=(len(one.subjects), len(other.subjects)),
        variance=squares / freedom if freedom else 0.0,
        freedom=freedom,
    )


def _known(shares_N: NDArray[np.float64] | None) -> NDArray[np.float64]:
    assert shares_N is not None, "a ground was found, so there are shares"
    return shares_N


# ------------------------------------------------------------------------------------------------ the table


def show(comparison: Comparison, console: Console) -> None:
    """Print what the page says, without its curves and pictures."""

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    for subject in comparison.subjects:
        say(f"{subject.title}: {subject.run.path}, step {subject.step}, seed {subject.run.config.seed}", "bold")
    different = comparison.differences
    rows = [*itertools.chain(*different.config.values()), *different.some]
    for heading, chosen in (("what differs in the configuration", rows), ("and elsewhere", different.facts)):
        if chosen:
            table = _table(heading, "", [subject.letter for subject in comparison.subjects])
            for row in chosen:
                table.add_row(*map(Text, (row.key, *row.values)))
            console.print(table)
    if not rows:
        say("nothing differs in the configuration")
    if different.free:
        say(f"and what changes nothing of what is trained: {', '.join(row.key for row in different.free)}")
    for split in comparison.splits:
        _show_split(comparison, split, console)
    if comparison.tests:
        say(
            f"* larger than noise: {len(comparison.larger)} of {comparison.tests} differences (Holm, together at most "
            f"{100 * ALPHA:.0f} % chance of a false one)"
        )
    for outcome in comparison.larger:
        say(f"{outcome.split}, {outcome.told()}", "bold")
    for note in comparison.notes:
        say(f"note: {note}")


def _show_split(comparison: Comparison, split: str, console: Console) -> None:
    chosen = comparison.metrics(split)
    references = comparison.references(split)
    columns = [*(subject.title for subject in comparison.subjects), *(title for title, _ in references)]
    for by, places in comparison.told(split).items():
        what = f"{split}: {MEASURED[split]}, {BY[by]}"
        table = _table(f"{what} (95 % interval over people)", "", columns)
        for at in places:
            metric = chosen[at]
            values = [subject.value(split, metric) for subject in comparison.subjects]
            shown = ["–" if value is None else metric.interval(value) for value in values]
            against = [reference[at] for _, reference in references]
            shown += ["–" if value is None else metric.interval(value) for value in against]
            table.add_row(metric.title, *map(Text, shown))
        console.print(table)
        for heading, rows in (
            (
                f"{what}, differences; * larger than noise",
                [
                    (f"{other.letters} − {one.letters}", [_marked(outcomes[at]) for at in places])
                    for one, other, outcomes in comparison.of(split)
                ],
            ),
            (
                f"{what}, the same recipe with other seeds: least to most",
                [
                    (recipe.letters, [_ranged(chosen[at], ranges[at]) for at in places])
                    for recipe, ranges in comparison.spread(split)
                ],
            ),
        ):
            if rows:
                table = _table(heading, "", [chosen[at].title for at in places])
                for name, cells in rows:
                    table.add_row(name, *map(Text, cells))
                console.print(table)


def _ranged(metric: Metric, least_to_most: Interval | None) -> str:
    if least_to_most is None:
        return "–"
    return f"{metric.shown(least_to_most.low)} to {metric.shown(least_to_most.high)}"


def _marked(outcome: Outcome) -> str:
    if outcome.difference is None:
        return "–"
    return outcome.metric.shown(outcome.difference.value, sign=True) + (" *" if outcome.larger else "")


def _table(heading: str, first: str, columns: Sequence[str]) -> Table:
    table = Table(title=Text(heading), title_justify="left")
    table.add_column(first)
    for column in columns:
        table.add_column(Text(column), justify="right", overflow="fold")
    return table
