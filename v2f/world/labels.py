"""Labels of the people of the synthetic world: bands of their face factors, far enough apart to be told by eye.

A person whose factor lies between two bands has no such label. Which bands there are is part of what a data set with
labels depends on: its manifest records them (:func:`bands`).

Shapes: N people, F face factors.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from v2f.world.people import FACE, LIMIT

Label = Literal["glasses", "hair", "age"]


class Band(NamedTuple):
    """A label: the people whose factor is from ``low`` to ``high``."""

    name: str
    low: float
    high: float


_BANDS: dict[Label, tuple[str, tuple[Band, ...]]] = {
    "glasses": ("glasses", (Band("none", -LIMIT, 0.20), Band("worn", 0.50, LIMIT))),
    "hair": ("hair_tone", (Band("black", -LIMIT, -0.80), Band("brown", -0.30, 0.50), Band("fair", 1.00, LIMIT))),
    "age": ("age", (Band("young", -LIMIT, -0.70), Band("middle", -0.10, 0.60), Band("old", 1.20, LIMIT))),
}
"""Label -> the face factor that it is read from, and its bands."""


def classes(label: Label) -> tuple[str, ...]:
    """The names that a label can have, in the order of its factor."""
    return tuple(band.name for band in _BANDS[label][1])


def bands(label: Label) -> dict[str, list[float]]:
    """Name -> lowest and highest value of the factor."""
    return {band.name: [band.low, band.high] for band in _BANDS[label][1]}


def labels_of(label: Label, face_NF: NDArray[np.float32]) -> list[str | None]:
    """The label of people with the face factors ``face_NF``; None for those between two bands."""
    factor, own = _BANDS[label]
    found: list[str | None] = []
    for value in face_NF[:, FACE.index(factor)].tolist():
        found.append(next((band.name for band in own if band.low <= value <= band.high), None))
    return found
