"""The numbers of groups of speakers of several runs beside each other: agreement, and R@10 of each group.

They are shown, not tested: there are so many that correcting for them all would hide the differences of the whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from v2f.evaluation.agreement import OWN
from v2f.evaluation.observers import first_observer
from v2f.evaluation.subjects import METRICS, Subject
from v2f.metrics import Interval

RECALL = "R@10"


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """Agreement in an attribute or, of one of its groups, R@10."""

    attribute: str
    group: str | None
    """None: the attribute itself."""
    people: int
    values: list[Interval]
    """Of each run that was measured, in their order."""
    chances: list[float]
    """Of each run; for a group, that of a random guess is the same for all and is not repeated here."""

    @property
    def title(self) -> str:
        return f"{self.attribute}: agreement, %" if self.group is None else f"{self.group} ({self.people}): {RECALL}, %"


@dataclass(frozen=True)
class Groups:
    """The rows of a split, by one observer; ``letters``: of the runs that were measured."""

    by: str
    letters: list[str]
    rows: list[GroupRow]


def groups_of(subjects: Sequence[Subject], split: str) -> Groups | None:
    """The rows of the attributes that all measured runs have in common; None without any, or unless they were measured
    on the same people by the same net."""
    found = [(subject, numbers[1]) for subject in subjects if (numbers := subject.measured(split)) is not None]
    if not found:
        return None
    first = found[0][1]
    by = first_observer(first)[0]
    metric = next((each for each in METRICS[OWN] if each.by == by and each.key == RECALL), None)
    grounds = [subject.ground(split, metric) for subject, _ in found] if metric is not None else [""]
    if not isinstance(grounds[0], dict) or any(ground != grounds[0] for ground in grounds):
        return None
    observed = [numbers["by"][by].get("attributes", {}) for _, numbers in found]
    rows: list[GroupRow] = []
    for attribute, known in first.get("attributes", {}).items():
        if all(numbers.get("attributes", {}).get(attribute) == known for _, numbers in found):
            rows += _rows(attribute, [own[attribute] for own in observed if attribute in own])
    return Groups(by, [subject.letter for subject, _ in found], rows) if rows else None


def _rows(attribute: str, numbers: Sequence[dict[str, Any]]) -> list[GroupRow]:
    """A row of agreement, and one for each group."""
    agreed = [Interval(**each["agreement"][OWN]) for each in numbers]
    people = sum(own["people"] for own in numbers[0]["slices"].values())
    chances = [each["chance"] for each in numbers]
    rows = [GroupRow(attribute=attribute, group=None, people=people, values=agreed, chances=chances)]
    for group, own in numbers[0]["slices"].items():
        found = [Interval(**each["slices"][group][RECALL]) for each in numbers]
        rows.append(GroupRow(attribute=attribute, group=group, people=own["people"], values=found, chances=[]))
    return rows
