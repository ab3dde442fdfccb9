"""Splitting by person, from a hash of the identity, so that a person's split depends neither on the order of the files
nor on other people. The split ``seen`` has held-out clips of the people in train."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from pydantic import Field, model_validator

from v2f.config import Config
from v2f.data.sample import SPLITS
from v2f.errors import V2FError
from v2f.prepare import Item, Plan, share


class Shares(Config):
    """Shares of the people in each split, if nothing else determines the splits."""

    train: float = Field(0.9, gt=0.0, le=1.0)
    valid: float = Field(0.05, ge=0.0, lt=1.0)
    test: float = Field(0.05, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _adds_up(self) -> "Shares":
        if abs(self.train + self.valid + self.test - 1.0) > 1e-6:
            raise ValueError("the shares of train, valid and test add up to 1")
        return self

    def without_test(self) -> "Shares":
        """The shares for people who are not in the test set of a corpus that defines one."""
        train = self.train / (self.train + self.valid)
        return Shares(train=train, valid=1.0 - train, test=0.0)


def deal(
    clips: Mapping[str, Collection[str]], people: Shares, seen: float, seed: int, tested: Collection[str] | None = None
) -> dict[tuple[str, str], str]:
    """The split of each (identity, clip), from the clips of each identity.

    ``tested``: the people in the corpus's own test set; all others are dealt to train and valid. None: everybody is
    dealt by ``people``. The share ``seen`` of the clips of each person in train is held out.
    """
    shares = people if tested is None else people.without_test()
    split_of: dict[tuple[str, str], str] = {}
    for identity, names in clips.items():
        place = share(str(seed), "person", identity)
        split = "train" if place < shares.train else "valid" if place < shares.train + shares.valid else "test"
        if tested is not None:
            split = "test" if identity in tested else "train" if split == "train" else "valid"
        split_of.update(((identity, name), split) for name in names)
        if split == "train":
            ranked = sorted(names, key=lambda name: share(str(seed), "clip", identity, name))
            split_of.update(((identity, name), "seen") for name in ranked[: int(len(ranked) * seen)])
    return split_of


class Subset(Config):
    """A part of the training data; ``valid`` and ``test`` stay whole, so that runs on subsets of different sizes are
    evaluated on the same people. Depends on the seed and on names alone; a larger subset includes each smaller one.

    The subset is chosen before anything is decoded, so inputs that cannot be used are missing from it.
    """

    people: int | None = Field(None, ge=1, description="so many of the people of train (and seen); null: all")
    clips_per_person: int | None = Field(None, ge=1, description="of each of them in train, at most; null: all")

    def of(self, items: Sequence[Item], seed: int) -> list[Item]:
        """The ``items`` in the subset, in their order."""
        clips: dict[str, list[Item]] = defaultdict(list)
        for item in items:
            if item.split == "train":
                clips[item.identity].append(item)
        if self.people is not None and self.people > len(clips):
            raise V2FError(f"subset.people: {self.people}, but only {len(clips)} people would be trained on")
        chosen = sorted(clips, key=lambda identity: share(str(seed), "subset person", identity))[: self.people]
        kept = set()
        for identity in chosen:
            ranked = sorted(clips[identity], key=lambda item: share(str(seed), "subset clip", identity, item.key))
            kept |= {item.key for item in ranked[: self.clips_per_person]}
        people = set(chosen)
        out = {"train": lambda item: item.key in kept, "seen": lambda item: item.identity in people}
        return [item for item in items if item.split not in out or out[item.split](item)]

    def within(self, plan: Plan, seed: int) -> Plan:
        """The plan with only the items in the subset; if there is a limit, it says how much of train was taken."""
        if self.people is None and self.clips_per_person is None:
            return plan
        items = self.of(plan.items, seed)
        before, after = ([item for item in some if item.split == "train"] for some in (plan.items, items))
        people = [len({item.identity for item in some}) for some in (after, before)]
        taken = f"{people[0]:,} of {people[1]:,} people to train on, {len(after):,} of {len(before):,} clips"
        return replace(plan, items=items, taken=taken)


class RowWithSplit(Protocol):
    """A row of a CSV with a column ``split``."""

    @property
    def number(self) -> int: ...

    @property
    def identity(self) -> str: ...

    @property
    def split(self) -> str: ...


AnyRow = TypeVar("AnyRow", bound=RowWithSplit)


def check_column(rows: list[AnyRow], path: str) -> list[AnyRow]:
    """Check that the column ``split`` puts each person into one split; returns the rows."""
    first: dict[str, AnyRow] = {}
    for row in rows:
        if row.split not in SPLITS:
            raise V2FError(f"{path}: line {row.number}: the split {row.split!r} is none of {', '.join(SPLITS)}")
        if row.split == "seen":
            continue
        other = first.setdefault(row.identity, row)
        if other.split != row.split:
            raise V2FError(
                f"{path}: {row.identity!r} is in {other.split} (line {other.number}) and in {row.split} "
                f"(line {row.number}): splits are by person; held-out clips of people in train belong to 'seen'"
            )
    for row in rows:
        if row.split == "seen" and (row.identity not in first or first[row.identity].split != "train"):
            raise V2FError(
                f"{path}: line {row.number}: {row.identity!r} is in 'seen', which holds clips of people in "
                "train, but has no row in train"
            )
    return rows
