"""What a run has logged, drawn: the curves of one run, or those of several over each other.

metrics.jsonl -> Curves -> a chart for each name -> SVG paths over samples seen
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from v2f.storage import store
from v2f.web.page import number

WIDTH, HEIGHT = 320, 110
_BINS = 200  # of a long curve, each drawn by its least and its greatest point

Points = Sequence[tuple[int, float]]
"""(samples seen, value), in order."""
Curves = Mapping[str, Points]
"""Name -> its points."""


@dataclass(frozen=True)
class Line:
    """One run's curve in a chart. ``run``: its place among the runs, from 0, which gives it colour and dashes."""

    run: int
    path: str
    last: str


@dataclass(frozen=True)
class Chart:
    """Curves in a box of WIDTH x HEIGHT, and the words around it."""

    title: str
    lines: list[Line]
    low: str
    """Of the axis, as ``high``."""
    high: str
    end: str
    log: bool


def read_curves(path: str) -> dict[str, list[tuple[int, float]]]:
    """The points of ``metrics.jsonl``; of none where there is no such file. A line that was cut is left out."""
    curves: dict[str, list[tuple[int, float]]] = {}
    if not store.exists(path):
        return curves
    for line in store.read_bytes(path).decode("utf-8", "replace").splitlines():
        try:
            point = json.loads(line)
            for name, value in point.get("metrics", {}).items():
                if value is not None:
                    curves.setdefault(name, []).append((int(point["samples"]), float(value)))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            continue  # the last line of a run that was killed
    return curves


def charts(runs: Sequence[Curves], *families: str) -> list[Chart]:
    """The charts of all curves of some families, those of one name over each other; a curve's first part names its
    family and is not shown."""
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


def chart(title: str, points: Mapping[int, Points]) -> Chart:
    """The curves of some runs over samples seen, on common axes. The axis holds zero, so that a meter that stays near
    zero looks so; it is logarithmic where positive values span more than a factor of 30."""
    arrays = {run: np.array(of, float).T for run, of in points.items()}
    every = np.concatenate([y for _, y in arrays.values()])
    log = bool(every.min() > 0 and every.max() > 30 * every.min())
    first, end = (f(x[at] for x, _ in arrays.values()) for f, at in ((min, 0), (max, -1)))
    low, high = float(every.min()), float(every.max())
    low, high = (math.log(low), math.log(high)) if log else (min(low, 0.0), max(high, 0.0))
    lines = []
    for run, (x, y) in arrays.items():
        kept = _thinned(y)
        across = (x[kept] - first) / max(end - first, 1)
        drawn = np.log(y[kept]) if log else y[kept]
        up = (drawn - low) / (high - low) if high > low else np.full(len(drawn), 0.5)
        path = " L".join(f"{WIDTH * a:.1f} {HEIGHT * (1 - b):.1f}" for a, b in zip(across, up, strict=True))
        lines.append(Line(run, "M" + path, number(float(y[-1]))))
    return Chart(
        title=title,
        lines=lines,
        low=number(math.exp(low) if log else low),
        high=number(math.exp(high) if log else high),
        end=f"{int(end):,}",
        log=log,
    )


def _thinned(y: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Which points to draw: all, or of a long curve the ends and the least and the greatest of each bin."""
    if len(y) <= 2 * _BINS:
        return np.arange(len(y))
    kept = {0, len(y) - 1}
    for part in np.array_split(np.arange(len(y)), _BINS):
        kept |= {int(part[y[part].argmin()]), int(part[y[part].argmax()])}
    return np.array(sorted(kept))
