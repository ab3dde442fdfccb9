"""What ``eval.json`` holds: the numbers of each split, by each observer."""

from typing import Any, Literal

from v2f.storage.records import Record


class _LeftOut(Record):
    samples: int = 0
    first: list[str] = []


class _HeldEqual(Record):
    factor: str
    gallery: int
    lines: dict[str, dict[str, Any]]
    chance: dict[str, float | None]


class _Told(Record):
    """The numbers of a split by one observer; a number stands alone or with its interval."""

    lines: dict[str, dict[str, float | dict[str, float | None] | None]]
    meters: dict[str, float | None] = {}
    held_equal: _HeldEqual | None = None
    strongest_factor: str | None = None


class _Split(Record):
    """The numbers of a split, by each observer."""

    by: dict[Literal["referee", "judge", "pixels", "spectra"], _Told] = {}
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
