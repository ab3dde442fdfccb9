"""What goes wrong between a generator and a discriminator, from the losses that a run has logged."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from v2f.metrics.variety import mode_collapse_verdict

GUESS = 2 * math.log(2)  # the loss of a discriminator that guesses
_RECENT = 20  # points that the verdict looks at; it needs at least half of them
_SWING = 0.25  # of oscillation, above which the generator's loss swings


def gan_verdict(
    meters: Mapping[str, float], history: Mapping[str, Sequence[float]], *, least: float = 0.0
) -> str | None:
    """What goes wrong between a generator and a discriminator, in a sentence; None if nothing does.

    ``meters``: those of :func:`~v2f.metrics.variety_meters`; ``history``: the logged means of ``loss/generator/total``
    and of ``loss/discriminator/{real,fake,accuracy_real,accuracy_fake}`` (without ``real`` and ``fake``, their sum is
    ``total``, which may hold more); ``least``: the loss of a perfect discriminator, above zero with smoothed labels.
    *Mode collapse*: the pictures hardly differ, or repeat, or the generator's loss swings, as it does when all pictures
    move from one mode to the next. *Not converging*: the discriminator tells everything apart, so that the generator
    learns nothing from it, or is worse than a random guess (2 log 2). The first points are ignored, because every
    generator starts with one gray picture. On healthy runs of the synthetic world, the discriminator's loss stayed
    above 0.13 and the swing below 0.1.
    """
    deceive = _recent(history, "generator/total")
    right_real, right_fake = (_recent(history, f"discriminator/accuracy_{kind}") for kind in ("real", "fake"))
    if "loss/discriminator/real" in history:
        discriminate = _recent(history, "discriminator/real") + _recent(history, "discriminator/fake")
    else:
        discriminate = _recent(history, "discriminator/total")
    if any(len(values) < _RECENT // 2 for values in (deceive, discriminate, right_real, right_fake)):
        return None
    troubles = []
    swing, low, high = oscillation(deceive), deceive.min(), deceive.max()
    swings = f"the generator's loss swings between {low:.2g} and {high:.2g}"
    collapse = mode_collapse_verdict(meters)
    if collapse:
        troubles.append(f"{collapse}; {swings}" if swing > _SWING else collapse)
    elif swing > _SWING:
        troubles.append(f"MODE COLLAPSE threatens: {swings}, though the pictures still differ")
    half = _RECENT // 2
    loss = discriminate[-half:].mean() - least
    shares = right_real[-half:].mean(), right_fake[-half:].mean()
    if loss < 0.05 and min(shares) > 0.98:
        grown = history["loss/generator/total"][0], deceive[-half:].mean()
        above = " above the least there is" if least else ""
        troubles.append(
            f"NOT CONVERGING: the discriminator has won (its loss is {loss:.2g}{above}; right on "
            f"{100 * shares[0]:.0f} % of the photos and {100 * shares[1]:.0f} % of the generated pictures)"
            + (f", the generator's loss grew from {grown[0]:.2g} to {grown[1]:.2g}" if grown[1] > grown[0] else "")
        )
    elif discriminate[-half:].mean() > 1.1 * GUESS:
        troubles.append(
            f"NOT CONVERGING: the discriminator is worse than a guess (its loss is {discriminate[-half:].mean():.2g}, "
            "a guess has 1.4); the rates are too high, or the generator's is too high for it"
        )
    return "; ".join(troubles) or None


def _recent(history: Mapping[str, Sequence[float]], name: str) -> NDArray[np.float64]:
    return np.array([*history.get(f"loss/{name}", ())][-_RECENT:], np.float64)


def oscillation(values: NDArray[np.float64]) -> float:
    """How much a curve swings: the length of its path minus its net change, per point, relative to its mean absolute
    value; 0 if it is monotone."""
    path = np.abs(np.diff(values)).sum() - abs(values[-1] - values[0])
    return float(path / (len(values) * np.abs(values).mean())) if np.abs(values).any() else 0.0
