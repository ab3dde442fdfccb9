"""Conversions and distances that all metrics share; they compute in float64 whatever the caller passes.

Shape letters: M and N rows, D width.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from v2f.errors import V2FError

Numbers = ArrayLike | Tensor
"""What every metric accepts."""


def floats(values: Numbers) -> NDArray[np.float64]:
    values = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values
    return np.asarray(values, dtype=np.float64)


def integers(values: Numbers) -> NDArray[np.int64]:
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return np.asarray(values, dtype=np.int64)


def unit_rows(values: Numbers) -> NDArray[np.float64]:
    """The rows scaled to length 1. A row of zeros stays zero (its cosine is 0); V2FError if a number is not finite."""
    rows = floats(values)
    if not np.isfinite(rows).all():
        raise V2FError("an identity embedding is not finite: the system's pictures are broken (NaN or infinite)")
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)


def distances(a_MD: NDArray[np.float64], b_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean distances [M, N] between the rows of two sets."""
    square = (a_MD**2).sum(1)[:, None] + (b_ND**2).sum(1)[None, :] - 2 * a_MD @ b_ND.T
    return np.sqrt(np.maximum(square, 0.0))


def ratio(value: float, reference: float) -> float:
    """``value`` / ``reference``; NaN unless the reference is above zero."""
    return value / reference if reference > 0 else float("nan")
