"""Statistical tests of differences: noise of people, noise of training, and the correction for many tests.

This module does not know what is compared; :mod:`v2f.evaluation.compare` says what each test is used for.

Shape letters: N people, T tests, D draws.
"""

import math
from collections.abc import Sequence

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from v2f.keyed import keyed_rng
from v2f.metrics import Interval

ALPHA = 0.05  # probability of any false positive in a comparison
_CHUNK = 2_000  # draws at once


def sign_flips(difference_NT: NDArray[np.float64], draws: int) -> NDArray[np.float64]:
    """Two-sided p-values [T] of the hypothesis that each person's difference could equally well have the other sign.

    A p-value is the share of random sign assignments under which the mean is at least as far from zero as the observed
    one. The observed signs are included (Phipson and Smyth 2010), so it is never zero. All tests use the same signs, so
    the order of neither the runs nor the metrics matters.
    """
    people, tests = difference_NT.shape
    least_T = np.abs(difference_NT.sum(0)) - 1e-9 * np.abs(difference_NT).sum(0)  # a tie stays a tie despite rounding
    rng, reached_T = keyed_rng(0x666C6970, people), np.zeros(tests)
    for start in range(0, draws, _CHUNK):
        sign_DN = 2.0 * rng.integers(0, 2, size=(min(_CHUNK, draws - start), people), dtype=np.int8) - 1.0
        reached_T += (np.abs(sign_DN @ difference_NT) >= least_T).sum(0)
    return (1 + reached_T) / (1 + draws)


def with_training(
    difference_N: NDArray[np.float64], seeds: tuple[int, int], variance: float, freedom: int
) -> tuple[Interval, float]:
    """The interval and the two-sided p-value of a mean difference, including the noise of people and of training.

    ``variance``: between the seeds of a recipe, estimated with ``freedom`` degrees of freedom; ``seeds``: the number of
    seeds on each side. Satterthwaite (1946), "An approximate distribution of estimates of variance components".
    """
    value, count = float(difference_N.mean()), len(difference_N)
    people = float(difference_N.var(ddof=1)) / count if count > 1 else math.inf
    training = variance * (1 / seeds[0] + 1 / seeds[1])
    whole = people + training
    if not math.isfinite(whole):
        return Interval(value=value, low=math.nan, high=math.nan), 1.0
    if whole == 0:
        return Interval(value=value, low=value, high=value), float(value == 0)
    degrees = whole**2 / (people**2 / (count - 1) + training**2 / freedom)
    half = float(scipy.stats.t.ppf(1 - ALPHA / 2, degrees)) * math.sqrt(whole)
    p = 2 * float(scipy.stats.t.sf(abs(value) / math.sqrt(whole), degrees))
    return Interval(value=value, low=value - half, high=value + half), p


def holm(p: Sequence[float]) -> list[float]:
    """The p-values after Holm's (1979) step-down correction for multiple tests, in the given order."""
    order = sorted(range(len(p)), key=lambda number: p[number])
    corrected, least = [1.0] * len(p), 0.0
    for rank, number in enumerate(order):
        least = max(least, min(1.0, (len(p) - rank) * p[number]))
        corrected[number] = least
    return corrected
