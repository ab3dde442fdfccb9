"""What ``eval.json`` holds: the numbers of each split, by each observer."""

from typing import Annotated, Any

from pydantic import AfterValidator, model_validator

from v2f.storage.records import Record

BY = {
    "referee": "by the referee, which no loss ever saw",
    "judge": "by the judge, the nets that losses and meters use",
    "classifier": "by the classifier, which was trained on real samples",
    "pixels": "in pixels, by no net",
    "spectra": "in log-mel spectra, by no net",
    "waves": "in sound waves, by no net",
    "trials": "by the cosine of the system's own embeddings",
    "classes": "among the people seen in training",
    "labels": "by the labels of the samples",
    "codes": "by the system's own codes",
    "likelihood": "by the probabilities of the codes",
}
"""What may measure a number, the referee first, and its title."""


def _observer(name: str) -> str:
    if name not in BY:
        raise ValueError(f"{name!r} is not an observer; the observers are {', '.join(BY)}")
    return name


class _LeftOut(Record):
    samples: int = 0
    first: list[str] = []


class _HeldEqual(Record):
    factor: str
    gallery: int
    lines: dict[str, dict[str, Any]]
    chance: dict[str, float | None]


class _Slice(Record):
    """The numbers of one group of people."""

    people: int
    agreement: dict[str, float]
    chance: float


class _GroupHeldEqual(Record):
    """R@K among people of the speaker's own group."""

    gallery: int
    people: int
    chance: dict[str, float]


class _Attribute(Record):
    agreement: dict[str, dict[str, float]]
    chance: float
    held_equal: _GroupHeldEqual | None = None
    slices: dict[str, _Slice]


class _Known(Record):
    """What is known of an attribute: where from, and the people of each group."""

    source: str
    groups: dict[str, int]
    unknown: int = 0
    edges: list[float] = []


class _Consistency(Record):
    """How alike faces made from several clips of one speaker are."""

    same: float
    different: float
    margin: dict[str, float | None]


class _Draws(Record):
    """How far several draws for one voice spread, beside people with the same voice."""

    count: int
    spread: float
    possible: float | None = None


class _Numbers(Record):
    """The numbers of a split by one observer, each alone or with its interval."""

    lines: dict[str, dict[str, float | dict[str, float | None] | None]]
    meters: dict[str, float | None] = {}
    held_equal: _HeldEqual | None = None
    strongest_factor: str | None = None
    consistency: _Consistency | None = None
    draws: _Draws | None = None
    attributes: dict[str, _Attribute] = {}


class _Split(Record):
    """The numbers of a split, by each observer."""

    by: dict[Annotated[str, AfterValidator(_observer)], _Numbers] = {}
    people: int | None = None
    clips: int | None = None
    gallery: int | None = None
    chance: dict[str, float | None] | None = None
    attributes: dict[str, _Known] = {}
    left_out: _LeftOut = _LeftOut()
    verdict: str | None = None
    notes: list[str] = []

    @model_validator(mode="after")
    def _attributes_are_described(self) -> "_Split":
        unknown = {name for numbers in self.by.values() for name in numbers.attributes} - self.attributes.keys()
        if unknown:
            raise ValueError(
                f"it has numbers of {', '.join(sorted(unknown))}, but does not say who belongs to which group"
            )
        return self


class _Data(Record):
    fingerprint: str
    path: str | None = None


class _People(Record):
    sha256: str


class Evaluated(Record):
    """What ``eval.json`` holds."""

    data: _Data
    splits: dict[str, _Split]
    referee: dict[str, Any] = {}
    classifier: dict[str, Any] = {}
    step: int | None = None
    weights: dict[str, str | None] = {}
    stand_ins: list[str] = []
    seconds: float | None = None
    device: str | None = None
    threads: int | None = None
    versions: dict[str, str] = {}
    people: _People | None = None
