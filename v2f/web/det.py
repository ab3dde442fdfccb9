"""The DET curve of speaker verification: miss rate over false-alarm rate, on axes where normal scores give a line.

Martin et al. 1997, "The DET curve in assessment of detection task performance": both axes are the quantiles of the
standard normal distribution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

SIDE = 300
LEAST, MOST = 0.001, 0.6  # of both axes
_TICKS = (0.001, 0.01, 0.05, 0.2, 0.4)


@dataclass(frozen=True)
class Det:
    """A curve in a box of SIDE x SIDE, the ticks of both axes, and where both errors are equal."""

    path: str
    """Without points above the box."""
    ticks: list[tuple[float, str]]
    """Distance from the origin, and label."""
    equal: float
    """Distance of the equal error rate from the origin, on both axes."""


def det(curve: Mapping[str, Sequence[float]], eer: float) -> Det:
    """The drawing of a ``curve`` as ``eval.json`` has it: ``false_alarm`` and ``miss``, shares of the trials."""
    points = [
        f"{_place(alarm):.1f} {SIDE - _place(miss):.1f}"
        for alarm, miss in zip(curve["false_alarm"], curve["miss"], strict=True)
        if miss <= MOST
    ]
    return Det(
        path="M" + "L".join(points) if points else "",
        ticks=[(_place(tick), f"{100 * tick:g}") for tick in _TICKS],
        equal=_place(eer),
    )


def _place(share: float) -> float:
    """The distance of a share from the origin of an axis."""
    low, at, high = (NormalDist().inv_cdf(min(max(value, LEAST), MOST)) for value in (LEAST, share, MOST))
    return SIDE * (at - low) / (high - low)
