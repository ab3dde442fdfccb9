"""What ``eval.json`` holds: the numbers of each split, by each observer."""

from typing import Annotated, Any

from pydantic import AfterValidator

from v2f.storage.records import Record

BY = {
    "referee": "by the referee, which no loss ever saw",
    "judge": "by the judge, the nets that losses and meters use",
    "pixels": "in pixels, by no net",
    "spectra": "in log-mel spectra, by no net",
    "trials": "by the cosine of the system's own embeddings",
    "classes": "among the people seen in training",
}
"""What may measure a number, the referee first, and its title."""


def _observer(name: str) -> str:
    if name not in BY:
        raise ValueError(f"{name!r} is no observer; the observers are {', '.join(BY)}")
    return name


class _LeftOut(Record):
    samples: int = 0
    first: list[str] = []


class _HeldEqual(Record):
    factor: str
    gallery: int
    lines: dict[str, dict[str, Any]]
    chance: dict[str, float | None]


class _Numbers(Record):
    """The numbers of a split by one observer, each alone or with its interval."""

    lines: dict[str, dict[str, float | dict[str, float | None] | None]]
    meters: dict[str, float | None] = {}
    held_equal: _HeldEqual | None = None
    strongest_factor: str | None = None


class _Split(Record):
    """The numbers of a split, by each observer."""

    by: dict[Annotated[str, AfterValidator(_observer)], _Numbers] = {}
    people: int | None = None
    clips: int | None = None
    gallery: int | None = None
    chance: dict[str, float | None] | None = None
    left_out: _LeftOut = _LeftOut()
    verdict: str | None = None
    notes: list[str] = []


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
    step: int | None = None
    weights: dict[str, str | None] = {}
    stand_ins: list[str] = []
    seconds: float | None = None
    device: str | None = None
    threads: int | None = None
    versions: dict[str, str] = {}
    people: _People | None = None
