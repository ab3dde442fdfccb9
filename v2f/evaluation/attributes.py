"""The groups that the people of a split belong to, by attribute: sex, age, origin, or a factor of synthetic people.

    metadata in the samples (VoxCeleb's gender, nationality) --\\
    a table of the user: identity,sex,age,...                ---+--> Attribute: the group of each person
    factors of synthetic people, in thirds                   --/

Nothing is guessed from a voice or a photo: what is not written down is unknown. Only `v2f eval` and its pages use this;
systems, training, `v2f generate` and the served page cannot import it (a contract of import-linter).

Shape letters: N people, F factors.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from v2f.evaluation.clips import Clips
from v2f.evaluation.people_table import PeopleTable
from v2f.metrics.agreement import LEAST
from v2f.prepare.names import tidy
from v2f.world.people import FACE, VOICE

FEW = 20
"""Groups with fewer people are marked: their intervals are wide, and single people show through their numbers."""

AGES = (13, 18, 40, 60)
"""Years at which a column ``age`` of numbers is divided."""

THIRDS = ("low", "middle", "high")

_MOST_GROUPS = 60  # an attribute with more is a name, not a group
_MOST_CATEGORIES = 10  # numbers with more different values are divided into thirds; Monk's scale of skin tones has 10


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One attribute of the people of a split."""

    name: str
    source: str
    """``metadata``, ``table`` or ``world``."""
    groups: tuple[str, ...]
    group_N: NDArray[np.int64]
    """The number of each person's group; -1: unknown."""
    edges: tuple[float, ...] = ()
    """Where numbers were divided: a number that equals an edge belongs to the group above it."""

    @property
    def people(self) -> list[int]:
        """The number of people of each group."""
        return np.bincount(self.group_N[self.group_N >= 0], minlength=len(self.groups)).tolist()


def attributes_of(
    clips: Clips, identities: Sequence[str], table: PeopleTable | None
) -> tuple[list[Attribute], list[str]]:
    """The attributes that are known of a split's people, and a note for each that is left out, incomplete, or has
    groups with few people. ``identities``: the people's names, in the order of ``clips``."""
    found = {each.name: each for each in _all(clips, identities, table)}  # what the table says counts
    usable, notes = [], []
    for each in found.values():
        people, known = each.people, int((each.group_N >= 0).sum())
        if known == 0:
            continue
        if known < LEAST:
            notes.append(f"{each.name} is known of {known} people, too few to say anything about it")
        elif len(people) == 1:
            notes.append(f"{each.name} is {each.groups[0]} for everybody of whom it is known; nothing can differ in it")
        elif len(people) > _MOST_GROUPS:
            notes.append(f"{each.name} has {len(people)} values, more than {_MOST_GROUPS}: it is not a group of people")
        else:
            usable.append(each)
            if known < len(each.group_N):
                unknown = len(each.group_N) - known
                notes.append(
                    f"{each.name} is unknown for {unknown} of {len(each.group_N)} people; they are left out of it"
                )
            few = [f"{group}: {count}" for group, count in zip(each.groups, people, strict=True) if count < FEW]
            if few:
                some = ", ".join(few[:6]) + (", ..." if len(few) > 6 else "")
                notes.append(
                    f"{each.name}: {len(few)} of {len(people)} groups have fewer than {FEW} people ({some}); their "
                    "numbers say little"
                )
    return usable, notes


def _all(clips: Clips, identities: Sequence[str], table: PeopleTable | None) -> Iterator[Attribute]:
    if clips.built_N:
        yield from _factors(np.stack(clips.built_N), np.stack(clips.voice_N))
    for name, told_N in clips.told_N.items():
        yield _categories(name, "metadata", told_N)
    for name in table.columns if table is not None else ():
        assert table is not None
        value_N = table.values_of(name, list(identities))
        number_N = _numbers(value_N)
        if number_N is not None and name.casefold() == "age":
            yield _ages(name, number_N)
        elif number_N is not None and len(np.unique(number_N[np.isfinite(number_N)])) > _MOST_CATEGORIES:
            yield _thirds(name, "table", number_N)
        else:
            yield _categories(name, "table", value_N)


def _factors(built_NF: NDArray[np.float32], voice_NF: NDArray[np.float32]) -> Iterator[Attribute]:
    """The factors of synthetic faces, and those of their voices that no face factor equals."""
    for at, name in enumerate(FACE):
        yield _thirds(name, "world", built_NF[:, at].astype(np.float64))
    for at, name in enumerate(VOICE):
        if not (built_NF == voice_NF[:, at, None]).all(0).any():
            yield _thirds(name, "world", voice_NF[:, at].astype(np.float64))


# ------------------------------------------------------------------------------------------------ groups


def _categories(name: str, source: str, value_N: Sequence[str]) -> Attribute:
    """A group for each value; upper and lower case are the same, and the first spelling is the title."""
    titles: dict[str, str] = {}
    key_N = [tidy(value).casefold() for value in value_N]
    for key, value in zip(key_N, value_N, strict=True):
        if key:
            titles.setdefault(key, tidy(value))
    numbers = _numbers(list(titles)) if titles else None
    order = sorted(titles) if numbers is None else [key for _, key in sorted(zip(numbers, titles, strict=True))]
    number = {key: at for at, key in enumerate(order)}
    group_N = np.array([number.get(key, -1) for key in key_N], np.int64)
    return Attribute(name=name, source=source, groups=tuple(titles[key] for key in order), group_N=group_N)


def _thirds(name: str, source: str, number_N: NDArray[np.float64]) -> Attribute:
    """Three groups, divided at the quantiles 1/3 and 2/3 of the people of whom the number is known."""
    known = number_N[np.isfinite(number_N)]
    low, high = np.quantile(known, [1 / 3, 2 / 3]).tolist()
    return _divided(name, source, number_N, (low, high), THIRDS)


def _ages(name: str, years_N: NDArray[np.float64]) -> Attribute:
    between = [f"{low} to {high - 1}" for low, high in itertools.pairwise(AGES)]
    titles = (f"under {AGES[0]}", *between, f"{AGES[-1]} and over")
    return _divided(name, "table", years_N, AGES, titles)


def _divided(
    name: str, source: str, number_N: NDArray[np.float64], edges: Sequence[float], titles: Sequence[str]
) -> Attribute:
    """Groups of numbers between edges; NaN is unknown, and groups without people are left out."""
    known_N = np.isfinite(number_N)
    place_N = np.searchsorted(np.asarray(edges), np.where(known_N, number_N, 0.0), side="right")
    there, renumbered = np.unique(place_N[known_N], return_inverse=True)
    group_N = np.full(len(number_N), -1, np.int64)
    group_N[known_N] = renumbered
    groups = tuple(titles[at] for at in there)
    return Attribute(name=name, source=source, groups=groups, group_N=group_N, edges=tuple(map(float, edges)))


def _numbers(value_N: Sequence[str]) -> NDArray[np.float64] | None:
    """The values as numbers, NaN where one is empty; None if one is no finite number, or all are empty."""
    found = []
    for value in value_N:
        try:
            found.append(float(value) if value else math.nan)
        except ValueError:
            return None
        if value and not math.isfinite(found[-1]):
            return None
    return np.array(found) if np.isfinite(found).any() else None
