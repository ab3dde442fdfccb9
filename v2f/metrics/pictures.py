"""How far generated pictures are from real ones, as sets of features.

Shape letters: M and N pictures, D width.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from v2f.metrics.arrays import Numbers, distances, floats, ratio
from v2f.metrics.people import jackknife_shares

_NEAREST = 3  # k of precision and recall, as in their paper
_NUMBERS = ("nearest", "energy", "precision", "recall")


@dataclass(frozen=True, kw_only=True)
class PictureDistance:
    """How far pictures are from real ones in the features of a perceptual net; see :func:`picture_distance`."""

    nearest: float
    energy: float
    precision: float
    recall: float
    each: dict[str, NDArray[np.float64]] = field(repr=False, compare=False)
    """Each generated picture's share in the numbers; NaN where it is undefined."""

    def as_dict(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in _NUMBERS}


def picture_distance(made_MD: Numbers, real_ND: Numbers) -> PictureDistance:
    """Four numbers that compare a set of generated pictures with a set of real ones, on pooled perceptual features.

    ``nearest``: the mean Euclidean distance from a generated picture to the nearest real one, divided by that from a
    real picture to the nearest other real one. 1 is as near as real pictures are to each other; ghosts and blur are
    above 1. It does not show a lack of variety (the identity distance does).
    ``energy``: the normalized energy distance (Szekely and Rizzo 2013, "Energy statistics", eq. 2 and section 2.5)
    H = (2 E|X-Y| - E|X-X'| - E|Y-Y'|) / (2 E|X-Y|), with unbiased sums: about 0 for equal distributions, at most 1. It
    shows both, so it is above 0 even for exact mean faces: compare it with that of the upper bound U1.

    ``precision``: the share of generated pictures that are as near to some real picture as its third nearest real one:
    how many look real. ``recall``: the share of real pictures that are as near to some generated picture as its third
    nearest generated one: how much of what is real is generated, too (Kynkaanniemi et al. 2019, arXiv 1904.06991,
    eq. 1 to 3, k = 3). Blurred pictures can be precise; a collapsed generator has no recall. NaN if a set has fewer
    than four pictures. Both depend on the number of pictures: compare them with those of as many other real ones.

    This is not the Frechet distance, which needs a D x D covariance: a few hundred people give one of rank N, which
    changes with N (Binkowski et al. 2018, section 4). Features are scaled by the standard deviation of the real ones.
    No picture may be in both sets. NaN if a set has fewer than two pictures.
    """
    made, real = floats(made_MD), floats(real_ND)
    if len(made) < 2 or len(real) < 2:
        each = dict.fromkeys(_NUMBERS, np.full(len(made), np.nan))
        return PictureDistance(**dict.fromkeys(_NUMBERS, float("nan")), each=each)
    scale_D = real.std(0)
    scale_D = np.where(scale_D > 1e-6 * np.abs(real).max(0), scale_D, np.inf)  # a constant feature says nothing
    made, real = made / scale_D, real / scale_D
    cross_MN, within_MM, within_NN = distances(made, real), distances(made, made), distances(real, real)
    np.fill_diagonal(within_MM, 0.0)  # rounding leaves them slightly above zero
    np.fill_diagonal(within_NN, 0.0)
    count = len(made)
    across_M, sum_M = cross_MN.mean(1), within_MM.sum(1)
    pairs_real = within_NN.sum() / (len(real) * (len(real) - 1))

    def energy(across: NDArray[np.float64], pairs_made: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(across > 0, (2 * across - pairs_made - pairs_real) / np.where(across > 0, 2 * across, 1.0), 0.0)

    whole = float(energy(across_M.mean(), sum_M.sum() / (count * (count - 1))))
    np.fill_diagonal(within_NN, np.inf)
    nearest_M, nearest_real = cross_MN.min(1), float(within_NN.min(1).mean())
    each = {"nearest": nearest_M / nearest_real if nearest_real > 0 else np.full(count, np.nan)}
    each["energy"] = np.full(count, np.nan)
    if count > 2:
        without_M = (across_M.sum() - across_M) / (count - 1), (sum_M.sum() - 2 * sum_M) / ((count - 1) * (count - 2))
        each["energy"] = jackknife_shares(whole, energy(*without_M))
    np.fill_diagonal(within_MM, np.inf)
    precise_M = np.where(_covered(within_NN, cross_MN.T).any(0), 1.0, 0.0) * _defined(within_NN)
    recall = float(_covered(within_MM, cross_MN).any(0).mean()) * _defined(within_MM)
    each |= {"precision": precise_M, "recall": _recall_shares(recall, within_MM, cross_MN)}
    return PictureDistance(
        nearest=ratio(float(nearest_M.mean()), nearest_real),
        energy=whole,
        precision=float(precise_M.mean()),
        recall=recall,
        each=each,
    )


def _defined(within_MM: NDArray[np.float64]) -> float:
    """1 if there are enough pictures for a third nearest, else NaN."""
    return 1.0 if len(within_MM) > _NEAREST else float("nan")


def _covered(within_MM: NDArray[np.float64], cross_MN: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether picture n of another set is as near to picture m as m's third nearest of its own set: [M, N]."""
    radius_M1 = np.partition(within_MM, min(_NEAREST, len(within_MM)) - 1, axis=1)[:, _NEAREST - 1 : _NEAREST]
    covered_MN: NDArray[np.bool_] = cross_MN <= (radius_M1 if radius_M1.size else -np.inf)
    return covered_MN


def _recall_shares(recall: float, within_MM: NDArray[np.float64], cross_MN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each generated picture's share in the recall; NaN with fewer than five of them."""
    count = len(within_MM)
    if count <= _NEAREST + 1:
        return np.full(count, np.nan)
    near_M4 = np.argsort(within_MM, axis=1, kind="stable")[:, : _NEAREST + 1]
    radius_M2 = np.take_along_axis(within_MM, near_M4, 1)[:, -2:]
    covered_MN, wider_MN = cross_MN <= radius_M2[:, :1], cross_MN <= radius_M2[:, 1:]
    times_N = covered_MN.sum(0)
    without_M = np.empty(count)
    for left_out in range(count):
        # those that had it among their three nearest now reach as far as their fourth
        others = (near_M4[:, :_NEAREST] == left_out).any(1)
        now_N = times_N - covered_MN[left_out] + (wider_MN[others].sum(0) - covered_MN[others].sum(0))
        without_M[left_out] = (now_N > 0).mean()
    return jackknife_shares(recall, without_M)


def frechet_distance(made_MD: Numbers, real_ND: Numbers) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of the means and covariances of two sets (Heusel et al. 2017, eq. 6).

    It falls with the number of rows, so compare it with the distance of as many other real pictures (Binkowski et al.
    2018, section 4). NaN if a set has fewer than two rows.
    """
    made, real = floats(made_MD), floats(real_ND)
    if len(made) < 2 or len(real) < 2:
        return float("nan")
    one, other = np.cov(made, rowvar=False), np.cov(real, rowvar=False)
    # the trace of (C C')^(1/2) is the sum of the singular values of C^(1/2) C'^(1/2)
    crossed = np.linalg.svd(_root(one) @ _root(other), compute_uv=False).sum()
    apart = ((made.mean(0) - real.mean(0)) ** 2).sum()
    return max(0.0, float(apart + np.trace(one) + np.trace(other) - 2 * crossed))


def _root(covariance_DD: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(covariance_DD)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
