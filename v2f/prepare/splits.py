"""Who goes where: splits by person, from a hash of the identity, so that neither the order of the files nor other
people change where a person goes. ``seen`` are clips of trained people that are held out."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from pydantic import Field, model_validator

from v2f.config import Config
from v2f.data.sample import SPLITS
from v2f.errors import V2FError
from v2f.prepare import Item, share


class Shares(Config):
    """Shares of the people, where nothing else says who goes where."""

    train: float = Field(0.9, gt=0.0, le=1.0)
    valid: float = Field(0.05, ge=0.0, lt=1.0)
    test: float = Field(0.05, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _adds_up(self) -> "Shares":
        if abs(self.train + self.valid + self.test - 1.0) > 1e-6:
            raise ValueError("the shares of train, valid and test add up to 1")
        return self

    def without_test(self) -> "Shares":
        """For people of whom a corpus says already that they are none to be tested on."""
        train = self.train / (self.train + self.valid)
        return Shares(train=train, valid=1.0 - train, test=0.0)


def deal(
    clips: Mapping[str, Collection[str]], people: Shares, seen: float, seed: int, tested: Collection[str] | None = None
) -> dict[tuple[str, str], str]:
    """The split of each (identity, clip); ``clips``: those of each identity.

    ``tested``: the people whom the corpus itself holds out; the others are dealt to train and valid. None: all are
    dealt by their shares. Of a trained person the share ``seen`` of the clips is held out.
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
    """A part of what would be trained on; ``valid`` and ``test`` stay whole, so that runs on parts of several sizes are
    judged by the same people. A function of the seed and of names alone; a larger one holds each smaller one.

    It is chosen before anything is decoded: what cannot be used is missing in it.
    """

    people: int | None = Field(None, ge=1, description="so many of the people of train (and seen); null: all")
    clips_per_person: int | None = Field(None, ge=1, description="of each of them in train, at most; null: all")

    def of(self, items: Sequence[Item], seed: int) -> list[Item]:
        """Those of ``items`` that are in it, in their order."""
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


class RowWithSplit(Protocol):
    """A row of a CSV that says in which split its person is."""

    @property
    def number(self) -> int: ...

    @property
    def identity(self) -> str: ...

    @property
    def split(self) -> str: ...


AnyRow = TypeVar("AnyRow", bound=RowWithSplit)


def check_column(rows: list[AnyRow], path: str) -> list[AnyRow]:
    """The rows, if their column ``split`` keeps people apart."""
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
                f"(line {row.number}): splits are by person; held-out clips of trained people are called 'seen'"
            )
    for row in rows:
        if row.split == "seen" and (row.identity not in first or first[row.identity].split != "train"):
            raise V2FError(
                f"{path}: line {row.number}: {row.identity!r} is in 'seen', which are clips of trained people, "
                "but has no row in train"
            )
    return rows
