"""Consistency over a speaker's clips: do faces made from several clips of one person show one person?

    same      = mean cosine of two faces from different clips of the same person
    different = mean cosine of two faces of different people
    margin    = same - different

A generator that draws one face for everyone has ``same`` near 1, and a margin of 0. One that draws a new face for each
clip has a margin of 0 as well. No photo is needed, so the margin says nothing of likeness.

Shape letters: N people, Q faces, D embedding width.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2f.metrics.arrays import Numbers, integers, unit_rows
from v2f.metrics.people import Interval, jackknife_shares, over_people


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """The two means and their difference."""

    same: float
    different: float
    margin: Interval
    """With its 95 % interval over people."""
    each_N: NDArray[np.float64] = field(repr=False)
    """Each person's share in the margin, in the order of their numbers."""

    def as_dict(self) -> dict[str, Any]:
        return {"same": self.same, "different": self.different, "margin": self.margin.as_dict()}


def consistency(face_QD: Numbers, person_Q: Numbers) -> Consistency | None:
    """The consistency of faces, by their identity embeddings and the speakers of their clips (any integers).

    None unless there are at least three people, two of them with several clips: with fewer there are no shares.
    """
    emb_QD = unit_rows(face_QD)
    _, index_Q = np.unique(integers(person_Q), return_inverse=True)
    count_N = np.bincount(index_Q).astype(np.float64)
    if len(count_N) < 3 or (count_N > 1).sum() < 2:
        return None
    sum_ND = np.zeros((len(count_N), emb_QD.shape[1]))
    np.add.at(sum_ND, index_Q, emb_QD)
    # sums of cosines over ordered pairs: of a person's own faces, and of them with all others
    own_N = (sum_ND**2).sum(1) - np.bincount(index_Q, (emb_QD**2).sum(1))
    other_N = (sum_ND * (sum_ND.sum(0) - sum_ND)).sum(1)
    own_pairs_N, other_pairs_N = count_N * (count_N - 1), count_N * (len(emb_QD) - count_N)
    same, different = own_N.sum() / own_pairs_N.sum(), other_N.sum() / other_pairs_N.sum()
    same_N = (own_N.sum() - own_N) / (own_pairs_N.sum() - own_pairs_N)  # without the person
    different_N = (other_N.sum() - 2 * other_N) / (other_pairs_N.sum() - 2 * other_pairs_N)
    each_N = jackknife_shares(float(same - different), same_N - different_N)
    drawn = over_people(each_N)
    margin = Interval(value=float(same - different), low=drawn.low, high=drawn.high)
    return Consistency(same=float(same), different=float(different), margin=margin, each_N=each_N)
