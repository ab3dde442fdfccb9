"""Several draws for one voice: their mean, the one in their middle, and how far they spread.

Shape letters: K draws, N voices, D width.
"""

import numpy as np
from numpy.typing import NDArray


def mean_embedding(emb_KND: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean over draws of embeddings of length 1, scaled to length 1: [N,D]."""
    return unit(unit(emb_KND).mean(axis=0)).astype(np.float32)


def nearest_draw(emb_KND: NDArray[np.float32], wanted_ND: NDArray[np.float32]) -> NDArray[np.int64]:
    """The number of the draw with the highest cosine to what is wanted: [N]."""
    cosine_KN = (unit(emb_KND) * unit(wanted_ND)).sum(axis=2)
    return np.asarray(cosine_KN.argmax(axis=0), np.int64)


def spread(emb_KND: NDArray[np.float32]) -> NDArray[np.float64]:
    """The mean of 1 - cos over the pairs of draws: [N]; 0 if all are one face. Needs two draws."""
    count = len(emb_KND)
    assert count > 1, "one draw has no pairs"
    total_ND = unit(emb_KND).sum(axis=0)
    return np.asarray(1 - ((total_ND**2).sum(axis=1) - count) / (count * (count - 1)), np.float64)


def unit(emb: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows, along the last axis, scaled to length 1, in float64."""
    emb = np.asarray(emb, np.float64)
    return np.asarray(emb / np.maximum(np.linalg.norm(emb, axis=-1, keepdims=True), 1e-12), np.float64)
