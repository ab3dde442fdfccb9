"""Charts of what runs logged: the curves of one run, or those of several runs over each other.

metrics.jsonl -> Curves -> a chart for each name -> SVG paths over samples seen
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from v2f.metrics.adversarial import GUESS
from v2f.storage.records import Record, read_lines
from v2f.web.page import number

WIDTH, HEIGHT = 320, 110
_DUEL = ("discriminator/real", "discriminator/fake", "generator/total")
_BINS = 200  # of a long curve; each is drawn by its lowest and highest point

Points = Sequence[tuple[int, float]]
"""(samples seen, value), in order."""
Curves = Mapping[str, Points]
"""Name -> its points."""


@dataclass(frozen=True)
class Trace:
    """One run's curve in a chart. ``run``: its number among the runs, from 0, which selects its color and dashes."""

    run: int
    path: str
    last: str


@dataclass(frozen=True)
class Chart:
    """Curves in a box of WIDTH x HEIGHT, and its labels."""

    title: str
    traces: list[Trace]
    low: str
    """Of the axis, as ``high``."""
    high: str
    end: str
    log: bool
    mark: float | None = None
    """Height of a dashed line across the box, from its top, if there is one."""


class _Point(Record):
    samples: int
    metrics: dict[str, float | None] = {}


def read_curves(path: str) -> dict[str, list[tuple[int, float]]]:
    """The points of ``metrics.jsonl``; empty if there is no such file. A truncated line is left out."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for point in read_lines(path, _Point):
        for name, value in point.get("metrics", {}).items():
            if value is not None:
                curves.setdefault(name, []).append((point["samples"], float(value)))
    return curves


def charts(runs: Sequence[Curves], *families: str) -> list[Chart]:
    """The charts of all curves whose names start with one of ``families``; curves of one name share a chart."""
    found = []
    for name in dict.fromkeys(name for curves in runs for name in curves if name.startswith(families)):
        drawn = {}
        for run, curves in enumerate(runs):
            finite = [(x, y) for x, y in curves.get(name, ()) if math.isfinite(y)]
            if len(finite) >= 2:
                drawn[run] = finite
        if drawn:
            words = name.split("/")[1:] if not name.startswith(("rate/", "grad_norm/")) else name.split("/")
            found.append(chart(" / ".join(words).replace("_", " "), drawn))
    return found


def duel(curves: Curves) -> dict[str, Chart]:
    """The losses of the ``discriminator`` (without penalties; a line marks that of a guess) and of the ``generator``.

    The axes include zero and are never logarithmic, so that a loss that vanishes is seen to vanish, and one that swings
    to swing. Empty if a run has no such losses."""
    real, fake, deceive = (curves.get(f"loss/{name}", ()) for name in _DUEL)
    both = [(x, one + other) for (x, one), (_, other) in zip(real, fake, strict=False)]
    if min(len(both), len(deceive)) < 2 or not all(math.isfinite(y) for _, y in [*both, *deceive]):
        return {}
    return {
        "discriminator": chart("the discriminator's loss", {0: both}, linear=True, mark=GUESS),
        "generator": chart("the generator's loss", {0: deceive}, linear=True),
    }


def chart(title: str, points: Mapping[int, Points], *, linear: bool = False, mark: float | None = None) -> Chart:
    """The curves of some runs over samples seen, on common axes. The vertical axis includes zero, so that a meter near
    zero looks near zero; it is logarithmic if all values are positive and span more than a factor of 30, unless
    ``linear``. ``mark``: a value that the axis includes, where a dashed line is drawn."""
    arrays = {run: np.array(of, float).T for run, of in points.items()}
    every = np.concatenate([y for _, y in arrays.values()])
    log = bool(not linear and every.min() > 0 and every.max() > 30 * every.min())
    first, end = (f(x[at] for x, _ in arrays.values()) for f, at in ((min, 0), (max, -1)))
    low, high = float(every.min()), float(every.max())
    low, high = (math.log(low), math.log(high)) if log else (min(low, 0.0), max(high, mark or 0.0, 0.0))
    traces = []
    for run, (x, y) in arrays.items():
        kept = _thinned(y)
        across = (x[kept] - first) / max(end - first, 1)
        drawn = np.log(y[kept]) if log else y[kept]
        up = (drawn - low) / (high - low) if high > low else np.full(len(drawn), 0.5)
        path = " L".join(f"{WIDTH * a:.1f} {HEIGHT * (1 - b):.1f}" for a, b in zip(across, up, strict=True))
        traces.append(Trace(run, "M" + path, number(float(y[-1]))))
    return Chart(
        title=title,
        traces=traces,
        low=number(math.exp(low) if log else low),
        high=number(math.exp(high) if log else high),
        end=f"{int(end):,}",
        log=log,
        mark=None if mark is None else HEIGHT * (1 - (mark - low) / (high - low)),
    )


def _thinned(y: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Which points to draw: all; of a long curve the ends, and the lowest and highest of each bin."""
    if len(y) <= 2 * _BINS:
        return np.arange(len(y))
    kept = {0, len(y) - 1}
    for part in np.array_split(np.arange(len(y)), _BINS):
        kept |= {int(part[y[part].argmin()]), int(part[y[part].argmax()])}
    return np.array(sorted(kept))
