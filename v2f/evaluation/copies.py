"""Copies of training samples: are outputs nearer to them than held-out samples are?

A generator that repeats what it was trained on makes outputs that look or sound real. Held-out samples say how near to
a training sample a new one usually is, so an output is called a copy if it is nearer than half of their median.

Shape letters: M outputs, N held-out samples, B training samples at once, P features.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from v2f.metrics.arrays import distances

NEAR = 0.5
"""The ratio below which an output is a copy."""
AT_ONCE = 512
"""Training samples that are read at once."""
MOST = 50_000
"""Training samples that are looked at, from the first one on."""

Features = Mapping[str, NDArray[np.float32]]
"""Observer -> features."""


def from_training(trained: Iterable[Features], made: Features, held: Features) -> dict[str, NDArray[np.float64]]:
    """Observer -> distance of each output to the nearest training sample, relative to the median of the held-out
    samples' distances [M]; NaN if that median is 0.

    ``trained``: features [B,P] of the training samples, in parts; ``made`` [M,P] and ``held`` [N,P]. Features are
    scaled by the standard deviation of the held-out ones.
    """
    scale = {who: _scale(held_NP) for who, held_NP in held.items()}
    rows = {who: (made[who] / scale[who], held[who] / scale[who]) for who in held}
    nearest = {who: (np.full(len(made[who]), np.inf), np.full(len(held[who]), np.inf)) for who in held}
    for part in trained:
        for who, (made_MP, held_NP) in rows.items():
            part_BP = part[who] / scale[who]
            near_M, near_N = nearest[who]
            np.minimum(near_M, distances(made_MP, part_BP).min(1), out=near_M)
            np.minimum(near_N, distances(held_NP, part_BP).min(1), out=near_N)
    found = {}
    for who, (near_M, near_N) in nearest.items():
        usual = float(np.median(near_N))
        found[who] = near_M / usual if 0 < usual < np.inf else np.full(len(near_M), np.nan)
    return found


def _scale(held_NP: NDArray[np.float32]) -> NDArray[np.float64]:
    scale_P = held_NP.std(0, dtype=np.float64)
    return np.where(scale_P > 1e-6, scale_P, np.inf)
