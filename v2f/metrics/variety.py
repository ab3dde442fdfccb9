"""How much generated pictures differ from each other, relative to as many real ones.

Shape letters: M and N pictures, D width, P pixels.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from v2f.metrics.arrays import Numbers, distances, floats, ratio
from v2f.metrics.collapse import identity_distance, identity_distance_shares
from v2f.metrics.people import jackknife_shares


def variety_meters(*, made: Numbers, real: Numbers, made_identity: Numbers, real_identity: Numbers) -> dict[str, float]:
    """:func:`pixel_variety`, and :func:`identity_variety` as ``variety_identity``.

    ``made`` and ``real``: pixels [M, P]; ``made_identity`` and ``real_identity``: identity embeddings [M, D].
    """
    return pixel_variety(made, real) | {"variety_identity": identity_variety(made_identity, real_identity)}


def pixel_variety(made: Numbers, real: Numbers) -> dict[str, float]:
    """How much M generated pictures [M, P] differ, relative to M real ones of different people.

    ``variety`` is the ratio of mean distances in pixels. It is high even for a generator that knows only a few
    pictures; ``variety_nearest``, the ratio of mean distances to the *nearest other* picture, shows that they repeat.
    1 is as varied as real pictures; NaN with fewer than two pictures.
    """
    if len(made) < 2:  # type: ignore[arg-type]
        return dict.fromkeys(("variety", "variety_nearest"), float("nan"))
    made_mean, made_nearest = _spread(floats(made))
    real_mean, real_nearest = _spread(floats(real))
    return {"variety": ratio(made_mean, real_mean), "variety_nearest": ratio(made_nearest, real_nearest)}


def identity_variety(made: Numbers, real: Numbers) -> float:
    """The ratio of mean 1 - cos of identity embeddings [M, D]: 1 if generated people differ as much as real ones."""
    return ratio(identity_distance(made), identity_distance(real))


def pixel_variety_shares(made: Numbers, real: Numbers) -> dict[str, NDArray[np.float64]]:
    """Each generated picture's share in the numbers of :func:`pixel_variety`; NaN with fewer than three."""
    rows_MP, count = floats(made), len(made)  # type: ignore[arg-type]
    if count < 3:
        return dict.fromkeys(("variety", "variety_nearest"), np.full(count, np.nan))
    apart_MM = distances(rows_MP, rows_MP)
    np.fill_diagonal(apart_MM, 0.0)
    sum_M = apart_MM.sum(1)
    mean_M = (sum_M.sum() - 2 * sum_M) / ((count - 1) * (count - 2))
    np.fill_diagonal(apart_MM, np.inf)
    next_M2 = np.partition(apart_MM, 1, axis=1)[:, :2]
    is_nearest_MM = apart_MM.argmin(1)[:, None] == np.arange(count)  # [m, n]: n is nearest to m
    # without a picture, the pictures that it was nearest to fall back on their second nearest
    nearest_M = (next_M2[:, 0].sum() - next_M2[:, 0] + (next_M2[:, 1] - next_M2[:, 0]) @ is_nearest_MM) / (count - 1)
    (mean, nearest), (real_mean, real_nearest) = _spread(rows_MP), _spread(floats(real))
    with np.errstate(divide="ignore", invalid="ignore"):  # all photos equal: undefined, as the meters are
        return {
            "variety": jackknife_shares(mean, mean_M) / real_mean,
            "variety_nearest": jackknife_shares(nearest, nearest_M) / real_nearest,
        }


def identity_variety_shares(made: Numbers, real: Numbers) -> NDArray[np.float64]:
    """Each generated picture's share in :func:`identity_variety`; NaN with fewer than three."""
    shares_M = identity_distance_shares(made, np.arange(len(made)))  # type: ignore[arg-type]
    with np.errstate(divide="ignore", invalid="ignore"):
        return shares_M / identity_distance(real)


def _spread(rows_MD: NDArray[np.float64]) -> tuple[float, float]:
    """Mean Euclidean distance between two rows, and from a row to the nearest other row."""
    apart_MM = distances(rows_MD, rows_MD)
    np.fill_diagonal(apart_MM, np.inf)
    return float(apart_MM[np.isfinite(apart_MM)].mean()), float(apart_MM.min(1).mean())


def mode_collapse_verdict(meters: Mapping[str, float]) -> str | None:
    """A sentence if, by the meters of :func:`variety_meters`, the pictures hardly differ or repeat; else None."""
    variety, nearest = (meters.get(name, float("nan")) for name in ("variety", "variety_nearest"))
    people = meters.get("variety_identity", float("nan"))
    alike = [
        f"{100 * value:.0f} % of the distance {what}"
        for value, limit, what in (
            (variety, 0.1, "in pixels"),
            (people, 0.15, "between people"),
            (
                nearest,
                0.25 * variety,
                "to the nearest other",
            ),  # relative to variety: some are equal, rather than all pale
        )
        if value < limit
    ]
    return (
        f"MODE COLLAPSE: the generated pictures repeat themselves ({', '.join(alike)} of real ones)" if alike else None
    )
