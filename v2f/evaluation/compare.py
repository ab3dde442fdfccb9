"""Which differences between runs are larger than noise.

    subjects -> configuration, data, code, versions, starts -> what differs (:mod:`v2f.evaluation.differences`)
             -> eval.json + eval-people.json -> each metric with its interval
                                             -> each difference of two recipes, tested person by person

Runs of one *recipe* differ only in their seed. A difference of two recipes B - A is the mean over people of B's share
minus A's (:mod:`v2f.metrics.people`), so whatever makes a person easy or hard for both cancels out. The share in a
recipe is the mean over its seeds. There are two kinds of noise:

1. *Other people could have been sampled.* The interval is a bootstrap over people, and the p-value is that of a
   sign-flip test: if A and B are equally good, each person's difference could just as well have had the other sign.
2. *Another seed could have been drawn.* The intervals over people do not include this. If a recipe was trained with
   several seeds, the variance between seeds (pooled over all such recipes, as in an analysis of variance) is added to
   that over people, with Satterthwaite's degrees of freedom, and the larger of both p-values counts. If none was, a
   note says so.

All p-values of a comparison are corrected together by Holm (1979): the probability that any difference is wrongly
called larger than noise is at most 5 %. Numbers that were not measured on the same people by the same nets are not
tested.

Shape letters: N people, T tests.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from v2f import metrics
from v2f.evaluation import protocols
from v2f.evaluation.compared_groups import Groups, groups_of
from v2f.evaluation.differences import Differences, differences
from v2f.evaluation.observers import BY, first_observer
from v2f.evaluation.protocol import MEASURED, Metric
from v2f.evaluation.significance import ALPHA, holm, sign_flips, with_training
from v2f.evaluation.subjects import METRICS, Recipe, Subject, number_of, recipes
from v2f.metrics import Interval

_LEAST_DRAWS = 10_000  # of signs
_DRAWS_PER_TEST = 200  # the smallest p-value must be below Holm's smallest level, which falls with the number of tests

_NOT_COMPARABLE = {
    "people": "measured on different people: name one data set, v2f eval RUN --data PATH",
    "trials": "measured on different trials",
    "gallery": "measured with galleries of different sizes",
    "judge": "measured by different nets",
    "pictures": "measured on pictures of different sizes",
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a metric differs between two recipes: ``other`` minus ``one``."""

    split: str
    metric: Metric
    one: Recipe
    other: Recipe
    difference: Interval | None = None
    p: float | None = None
    """Corrected by Holm over all tests of the comparison."""
    training: bool = False
    """Whether the interval and ``p`` include the noise of training."""
    why_not: str | None = None
    """Why the metric is not tested; empty if a system does not have this number."""

    @property
    def larger(self) -> bool:
        """Whether the difference is larger than noise."""
        return self.p is not None and self.p < ALPHA

    @property
    def direction(self) -> int:
        """1 if ``other`` is better, -1 if ``one`` is, 0 if neither is or the difference may be noise."""
        if not self.larger or self.difference is None:
            return 0
        return self.metric.better * (1 if self.difference.value > 0 else -1)

    def sentence(self) -> str:
        """An outcome that is larger than noise, in words."""
        assert self.difference is not None
        difference, metric = self.difference, self.metric
        high, low = (self.other, self.one) if difference.value > 0 else (self.one, self.other)
        ends = sorted((abs(difference.low), abs(difference.high)))
        better = {1: f"; {high.letters} is better", -1: f"; {low.letters} is better"}.get(metric.better, "")
        size = f"{metric.shown(abs(difference.value))} ({metric.shown(ends[0])} to {metric.shown(ends[1])})"
        if metric.shown(abs(difference.value)) == metric.shown(0.0):
            size = f"less than {10.0**-metric.digits:g}"
        observer = f" by the {metric.by}" if metric.net else ""
        return f"{metric.title}{observer}: {high.letters} is above {low.letters} by {size}{better}"


@dataclass(frozen=True)
class Comparison:
    """All numbers and sentences of a comparison; its page and its tables show the same."""

    subjects: list[Subject]
    recipes: list[Recipe]
    differences: Differences
    outcomes: list[Outcome]

    @property
    def splits(self) -> list[str]:
        return [split for split in MEASURED if any(subject.measured(split) for subject in self.subjects)]

    def metrics(self, split: str) -> list[Metric]:
        """The metrics that at least one run has, in the order of the tables."""
        measured = [found for found in (subject.measured(split) for subject in self.subjects) if found]
        lines, observers = {line for line, _ in measured}, {by for _, numbers in measured for by in numbers["by"]}
        found = [metric for line, own in METRICS.items() if line in lines for metric in own if metric.by in observers]
        return sorted(dict.fromkeys(found), key=lambda metric: list(BY).index(metric.by))

    def by_observer(self, split: str) -> dict[str, list[int]]:
        """Observer, in the order of :data:`BY` -> the positions of its metrics in :meth:`metrics`."""
        places: dict[str, list[int]] = {}
        for at, metric in enumerate(self.metrics(split)):
            places.setdefault(metric.by, []).append(at)
        return places

    def references(self, split: str) -> list[tuple[str, list[Interval | None]]]:
        """What to compare the numbers with, chance and upper bounds: titles and values in the order of :meth:`metrics`.
        Empty unless all measured runs were measured on the same people by the same nets."""
        chosen = self.metrics(split)
        measured = [subject for subject in self.subjects if subject.measured(split)]
        first, *others = [[subject.ground(split, metric) for metric in chosen] for subject in measured]
        if any(other != first for other in others):
            return []
        found = measured[0].measured(split)
        assert found is not None
        by, chance = found[1]["by"], found[1].get("chance")
        observed = first_observer(found[1])[1]
        protocol = next(each for each in protocols.PROTOCOLS.values() if each.own == found[0])
        shown = [line for line in ("strongest", "U1", "trained") if line in observed["lines"]]
        rows = [
            (
                protocol.title(line, observed),
                [number_of(by[m.by]["lines"][line], m) if line in by[m.by]["lines"] else None for m in chosen],
            )
            for line in shown
        ]
        if chance:
            known = [
                Interval(value=chance[m.key], low=math.nan, high=math.nan) if m.key in chance else None for m in chosen
            ]
            rows.insert(0, ("chance", known))
        return rows

    def pairs(self, split: str) -> list[tuple[Recipe, Recipe, list[Outcome]]]:
        """The pairs of recipes with at least one test, and their outcomes in the order of :meth:`metrics`. The reasons
        why other pairs have none are in :attr:`notes`."""
        rows = []
        for one, other in itertools.combinations(self.recipes, 2):
            own = [o for o in self.outcomes if (o.split, o.one, o.other) == (split, one, other)]
            if any(outcome.p is not None for outcome in own):
                rows.append((one, other, own))
        return rows

    def spread(self, split: str) -> list[tuple[Recipe, list[Interval | None]]]:
        """For each recipe with several seeds: each metric's mean, minimum and maximum over the seeds."""
        rows = []
        for recipe in self.recipes:
            measured = [subject for subject in recipe.subjects if subject.measured(split)]
            if len(measured) > 1:
                rows.append((recipe, [_mean_and_range(measured, split, metric) for metric in self.metrics(split)]))
        return rows

    def groups(self, split: str) -> Groups | None:
        """Numbers of groups of speakers; they are not tested."""
        return groups_of(self.subjects, split)

    @property
    def tests(self) -> int:
        return sum(outcome.p is not None for outcome in self.outcomes)

    @property
    def larger(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.larger]

    @property
    def notes(self) -> list[str]:
        """Why something was not compared, and what the noise includes; a sentence each."""
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
            samples_seen = ", ".join(f"{letter} {samples:,}" for letter, samples in seen.items())
            notes.append(f"the runs had seen different numbers of samples when they were measured: {samples_seen}")
        tested = [outcome for outcome in self.outcomes if outcome.p is not None]
        if len(self.recipes) == 1:
            notes.append(
                "these runs are one recipe and differ only in their seed: their differences are the noise of training "
                "itself, and there is nothing to test them against"
            )
        elif tested and not any(outcome.training for outcome in tested):
            notes.append(
                "each recipe was trained once: how much another seed would change is not known, and the intervals over "
                "people do not include it; train one recipe with two or three seeds to find out"
            )
        elif tested:
            several = ", ".join(recipe.letters for recipe in self.recipes if len(recipe.subjects) > 1)
            notes.append(
                f"the noise of training is estimated from the seeds of {several} and assumed to be the same for all "
                "recipes; with few seeds the estimate is rough, so only large differences stand out"
            )
        return [note[:1].upper() + note[1:] for note in notes]


def _mean_and_range(subjects: Sequence[Subject], split: str, metric: Metric) -> Interval | None:
    values = [found.value for found in (subject.value(split, metric) for subject in subjects) if found is not None]
    if len(values) < len(subjects):
        return None
    return Interval(value=float(np.mean(values)), low=min(values), high=max(values))


def compare(subjects: Sequence[Subject]) -> Comparison:
    """Compare the runs (see the module docstring)."""
    groups = recipes(subjects)
    untested = Comparison(list(subjects), groups, differences(subjects), [])
    questions = [
        (split, metric, one, other)
        for split in untested.splits
        for one, other in itertools.combinations(groups, 2)
        for metric in untested.metrics(split)
    ]
    return Comparison(untested.subjects, groups, untested.differences, list(_answers(questions, groups)))


_Question = tuple[str, Metric, Recipe, Recipe]
"""Whether a metric of a split differs between two recipes."""


@dataclass(frozen=True, kw_only=True)
class _Test:
    """What a test needs."""

    shares_N: NDArray[np.float64]
    seeds: tuple[int, int]
    variance: float
    """Between seeds; unknown if ``freedom`` is 0."""
    freedom: int


def _answers(questions: Sequence[_Question], groups: Sequence[Recipe]) -> Iterator[Outcome]:
    """The outcome of each question; p-values are corrected over all of them."""
    prepared = [_test_of(*question, groups) for question in questions]
    tests = [each for each in prepared if isinstance(each, _Test)]
    draws = max(_LEAST_DRAWS, _DRAWS_PER_TEST * len(tests)) - 1
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
    for (split, metric, one, another), each in zip(questions, prepared, strict=True):
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


def _test_of(split: str, metric: Metric, one: Recipe, other: Recipe, groups: Sequence[Recipe]) -> _Test | str:
    """What a test needs, or the reason why the question cannot be tested."""
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
        apart = next((what for what in _NOT_COMPARABLE if ground.get(what) != own.get(what)), None)
        if apart is not None:
            return f"{one.letters} and {other.letters} were {_NOT_COMPARABLE[apart]}"
    means = [np.mean([_known(s.shares(split, metric)) for s in recipe.subjects], 0) for recipe in (one, other)]
    squares, freedom = 0.0, 0
    for recipe in groups:
        values = [_known(s.shares(split, metric)).mean() for s in recipe.subjects if found[s.letter] == ground]
        if len(values) > 1:
            squares += float(np.var(values) * len(values))
            freedom += len(values) - 1
    return _Test(
        shares_N=means[1] - means[0],
        seeds=(len(one.subjects), len(other.subjects)),
        variance=squares / freedom if freedom else 0.0,
        freedom=freedom,
    )


def _known(shares_N: NDArray[np.float64] | None) -> NDArray[np.float64]:
    assert shares_N is not None, "a ground was found, so there are shares"
    return shares_N
