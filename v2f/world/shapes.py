"""Primitive monochrome pictures: digits drawn as strokes, with a class and factors that are independent of it.

A picture is a number; its class and its factors are pure functions of (seed, number). Every stroke is a distance to a
line segment, so a picture is the same drawing at any size, with smooth edges.

Factors and pixels are computed in float64 with +, -, *, /, square roots, minima and maxima only, which IEEE 754 defines
to the bit: the pictures are the same on all machines. This world has its own version, :data:`VERSION`, and a hash of
what it draws.

Shapes: N pictures, F factors, H = W = size. Places are in picture widths, x to the right and y down, 0 in the middle.
"""

import functools
import hashlib
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from v2f.errors import V2FError
from v2f.world.people import Factor, split_mix

VERSION = "1"
"""Changes whenever a picture, a class or a factor changes; :data:`OUTPUT_HASHES` has each version's hash."""

OUTPUT_HASHES: dict[str, str] = {
    "1": "62b8693e34bbafac9f50dfc8597cdb22445249be12251d8dddc737736c872e37",
}
"""Version -> hash of its outputs (:func:`outputs_hash`). New outputs need a new version."""

CLASSES = tuple("0123456789")
"""The names of the classes; picture n is of class n modulo 10."""

FACTORS: tuple[Factor, ...] = (
    Factor("x", "shape", "left", "right"),
    Factor("y", "shape", "up", "down"),
    Factor("size", "shape", "small", "large"),
    Factor("turn", "shape", "turned left", "turned right"),
    Factor("slant", "shape", "leaning left", "leaning right"),
    Factor("stroke", "shape", "thin", "thick"),
    Factor("gray", "shape", "dark", "light"),
)
"""What a picture varies in besides its class: independent numbers, uniform in (-1, 1)."""

NAMES = tuple(factor.name for factor in FACTORS)
_AT_ONCE = 1 << 18  # pixels that are drawn together

Points = tuple[tuple[float, float], ...]


def _ring(x: float, y: float, rx: float, ry: float) -> Points:
    """A closed line around an ellipse, in twelve steps."""
    half, most = 0.5, 0.8660254037844386
    turn = ((1.0, 0.0), (most, half), (half, most), (0.0, 1.0), (-half, most), (-most, half))
    whole = (*turn, *((-u, -v) for u, v in turn), turn[0])
    return tuple((x + rx * u, y + ry * v) for u, v in whole)


_SIX: Points = (
    (0.20, -0.46), (0.00, -0.40), (-0.20, -0.15), (-0.27, 0.15), (-0.20, 0.40), (0.00, 0.50), (0.20, 0.42),
    (0.27, 0.20), (0.20, 0.00), (0.00, -0.08), (-0.20, 0.02), (-0.26, 0.20),
)  # fmt: skip
_LINES: tuple[tuple[Points, ...], ...] = (
    (_ring(0.0, 0.0, 0.28, 0.48),),
    (((-0.16, -0.30), (0.05, -0.50), (0.05, 0.50)),),
    (
        (
            (-0.26, -0.25), (-0.20, -0.42), (0.00, -0.50), (0.20, -0.42), (0.26, -0.24), (0.20, -0.05), (-0.28, 0.50),
            (0.28, 0.50),
        ),
    ),
    (
        (
            (-0.24, -0.40), (-0.05, -0.50), (0.15, -0.47), (0.24, -0.32), (0.20, -0.12), (0.00, -0.03), (0.20, 0.06),
            (0.27, 0.26), (0.17, 0.44), (-0.03, 0.50), (-0.27, 0.40),
        ),
    ),
    (((0.10, 0.50), (0.10, -0.50), (-0.28, 0.18), (0.28, 0.18)),),
    (
        (
            (0.25, -0.50), (-0.20, -0.50), (-0.24, -0.06), (0.00, -0.12), (0.20, -0.02), (0.27, 0.20), (0.17, 0.42),
            (-0.02, 0.50), (-0.26, 0.40),
        ),
    ),
    (_SIX,),
    (((-0.27, -0.50), (0.27, -0.50), (-0.08, 0.50)),),
    (_ring(0.0, -0.25, 0.20, 0.25), _ring(0.0, 0.24, 0.26, 0.26)),
    (tuple((-x, -y) for x, y in _SIX),),
)  # fmt: skip
"""The strokes of each class, in a box one high."""


def classes(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The class of each of the pictures ``ids`` [N], as its number in :data:`CLASSES`: int64 [N]."""
    return np.asarray(ids % len(CLASSES), np.int64)


def factors(ids: NDArray[np.int64], seed: int = 0) -> NDArray[np.float64]:
    """The factors of the pictures ``ids`` [N], in the order of :data:`FACTORS`: float64 [N,F] in (-1, 1)."""
    if ids.size and int(ids.min()) < 0:
        raise V2FError("pictures are numbered by non-negative integers; pass an array of them")
    state_N = split_mix(split_mix(np.full(1, 0x5348, np.uint64) ^ np.uint64(seed)) ^ ids.astype(np.uint64))
    state_NF = split_mix(state_N[:, None] ^ np.arange(len(FACTORS), dtype=np.uint64))
    return ((state_NF >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-52 - 1.0


def render_shapes(class_N: NDArray[np.int64], factor_NF: NDArray[np.float64], size: int = 28) -> NDArray[np.uint8]:
    """Gray pictures of the classes ``class_N`` with the factors ``factor_NF``: uint8 [N,size,size,1], light on black.

    Row i depends on row i of the arguments only. V2FError if the shapes do not fit or the size is below 16 px.
    """
    class_N, factor_NF = np.asarray(class_N), np.asarray(factor_NF, np.float64)
    if factor_NF.shape != (len(class_N), len(FACTORS)):
        raise V2FError(
            f"render_shapes takes classes [N] and factors [N,{len(FACTORS)}] of the same N; got {list(class_N.shape)} "
            f"and {list(factor_NF.shape)}"
        )
    if size < 16:
        raise V2FError(f"a picture of {size} pixels is too small to show a digit; pass a size of 16 or more")
    out = np.empty((len(class_N), size, size, 1), np.uint8)
    step = max(1, _AT_ONCE // size**2)
    for number, lines in enumerate(_LINES):
        rows = np.flatnonzero(class_N == number)
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            out[some, :, :, 0] = _drawn(lines, factor_NF[some], size)
    return out


def _drawn(lines: tuple[Points, ...], factor_NF: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """Pictures [N,H,W] of one class."""
    x, y, scale, turn, slant, stroke, gray = (factor_NF[:, i, None, None] for i in range(len(FACTORS)))
    height = 0.56 + 0.08 * scale
    half = 0.18 * turn  # the tangent of half the angle, at most 20 degrees
    cos, sin = (1.0 - half * half) / (1.0 + half * half), 2.0 * half / (1.0 + half * half)

    def placed(point: tuple[float, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        u, v = height * (point[0] - 0.30 * slant * point[1]), height * point[1]
        return 0.5 + 0.08 * x + (u * cos - v * sin), 0.5 + 0.08 * y + (u * sin + v * cos)

    axis = (np.arange(size) + 0.5) / size
    px, py = axis[None, None, :], axis[None, :, None]
    nearest = np.full((len(factor_NF), size, size), 4.0)  # squared distance
    for line in lines:
        for (ax, ay), (bx, by) in pairwise(map(placed, line)):
            dx, dy = bx - ax, by - ay
            along = ((px - ax) * dx + (py - ay) * dy) / (dx * dx + dy * dy)
            along = np.minimum(np.maximum(along, 0.0), 1.0)
            ex, ey = px - ax - along * dx, py - ay - along * dy
            nearest = np.minimum(nearest, ex * ex + ey * ey)
    inside = (0.036 + 0.014 * stroke - np.sqrt(nearest)) * size + 0.5
    ink = np.minimum(np.maximum(inside, 0.0), 1.0) * (0.75 + 0.25 * gray)
    return np.asarray(ink * 255.0 + 0.5, np.uint8)


def outputs_hash() -> str:
    """SHA-256 (hex) of the version, the names and what is drawn for some pictures; nothing is rounded, since nothing
    differs between machines."""
    digest = hashlib.sha256(repr((VERSION, CLASSES, NAMES)).encode())
    for values in _outputs():
        digest.update(f"\0{values.dtype.str} {values.shape}\0".encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _outputs() -> Iterator[NDArray[np.float64] | NDArray[np.uint8]]:
    for seed, size in ((0, 28), (7, 45)):
        ids = np.concatenate([np.arange(20), np.array([12_345, 9_000_003])])
        factor_NF = factors(ids, seed)
        yield factor_NF
        yield render_shapes(classes(ids), factor_NF, size)


def recorded_hash() -> str:
    """The hash of this version, without drawing anything: for a reader that only compares."""
    return OUTPUT_HASHES[VERSION]


@functools.cache
def shapes_hash() -> str:
    """:func:`recorded_hash`, once the outputs are verified: for code that makes pictures. V2FError if the outputs are
    not those of the version."""
    found = outputs_hash()
    if found != OUTPUT_HASHES.get(VERSION):
        raise V2FError(
            f"v2f/world/shapes.py does not draw the outputs recorded for version {VERSION}: undo the change, or set "
            f'shapes.VERSION to a new number and add "NUMBER": "{found}" to its OUTPUT_HASHES'
        )
    return recorded_hash()
