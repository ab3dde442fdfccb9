"""Retrieval: a face made from a voice looks for its person in a gallery of people.

This follows SF2F (Bai et al., MM 2022, section 4.2). Faces are compared by the cosine of identity
embeddings; R@K is the share of queries whose person is among the first K.

Shape letters: N people, Q queries, D width, P people who are asked for, G gallery.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2f.errors import V2FError
from v2f.metrics.arrays import Numbers, floats, integers, unit_rows
from v2f.metrics.people import Interval, mean_of_each, over_people

KS = (1, 5, 10)
"""The K of R@K that are reported."""

GALLERY = 100
"""People in a gallery. R@K depends on this size, so results can only be compared at the same one."""

HELD_EQUAL = 20
"""People in a gallery of people who are alike in something: few, so that they are really alike."""


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """R@K of one way to make faces, among ``gallery`` people."""

    recall: dict[int, Interval]
    median_rank: float
    """Median over queries of the expected rank in a gallery; 1 is best, (gallery + 1) / 2 is chance."""
    gallery: int
    people: int
    queries: int
    each: dict[int, NDArray[np.float64]] = field(repr=False, compare=False)
    """K -> R@K of each person who has a query, in the order of their numbers."""

    def as_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {f"R@{k}": interval.as_dict() for k, interval in self.recall.items()}
        return values | {"median_rank": self.median_rank, "people": self.people, "queries": self.queries}


def chance(gallery: int, ks: Sequence[int] = KS) -> dict[int, float]:
    """R@K of a random guess: K / gallery."""
    return {k: min(1.0, k / gallery) for k in ks}


def retrieval(
    query_QD: Numbers,
    gallery_ND: Numbers,
    person_Q: Numbers,
    *,
    gallery: int = GALLERY,
    ks: Sequence[int] = KS,
    seed: int = 0,
) -> Retrieval:
    """The expected R@K over *all* galleries of ``gallery`` people that contain the query's person; exact, no sampling.

    ``gallery_ND[n]`` is the reference of person n; ``person_Q[q]`` in [0, N) is the person of query q.
    A gallery is the query's person and ``gallery - 1`` of the other N - 1, drawn without replacement. Let b of those
    N - 1 be nearer to the query than its own person is. The number of them that are drawn into the gallery is
    hypergeometric, and the query's person is among the first K if at most K - 1 are::

        R@K(q) = P[X <= K - 1],   X ~ Hypergeometric(N - 1, b, gallery - 1)

    If t other people are exactly as near as the query's own, ties are broken at random: R@K(q) is the mean over
    b, ..., b + t, so a constant query has an R@K of exactly K / gallery. Every person has the same weight, however many
    clips they have. The interval runs from the 2.5 % to the 97.5 % quantile of 2,000 bootstrap samples of the *people*
    whose queries count (a person's queries are not independent); the gallery people stay the same.
    V2FError unless 2 <= gallery <= N.
    """
    query, reference, person = unit_rows(query_QD), unit_rows(gallery_ND), integers(person_Q)
    people = len(reference)
    _check(gallery, people)
    nearer_Q, tied_Q = _nearer(query, reference, person)
    each = {k: mean_of_each(_hits(nearer_Q, tied_Q, people, gallery, k), person) for k in ks}
    # E[X] = (gallery - 1) b / (N - 1); half of the ties rank before the query's own person
    rank_Q = 1 + (gallery - 1) * (nearer_Q + tied_Q / 2) / (people - 1)
    return Retrieval(
        recall={k: over_people(each_P, seed) for k, each_P in each.items()},
        median_rank=float(np.median(rank_Q)),
        gallery=gallery,
        people=len(np.unique(person)),
        queries=len(query),
        each=each,
    )


def retrieval_held_equal(
    query_QD: Numbers,
    gallery_ND: Numbers,
    person_Q: Numbers,
    factor_N: Numbers,
    *,
    gallery: int = HELD_EQUAL,
    ks: Sequence[int] = KS,
    seed: int = 0,
) -> Retrieval:
    """R@K among people who are alike in one factor: the query's person and the ``gallery - 1`` nearest in that factor.

    The literature does this for sex (Kim et al. 2018: 1:2 matching with sex held equal); here the factor is a number. A
    system that knows only that factor falls to about chance, K / gallery. Ties and intervals as in :func:`retrieval`.
    """
    query, reference, person = unit_rows(query_QD), unit_rows(gallery_ND), integers(person_Q)
    factor = floats(factor_N)
    people = len(reference)
    _check(gallery, people)
    apart_NN = np.abs(factor[:, None] - factor[None, :])
    np.fill_diagonal(apart_NN, -1.0)  # the person first, even if somebody else has the same number
    alike_NG = np.argsort(apart_NN, axis=1, kind="stable")[:, :gallery]
    near_QG = np.take_along_axis(query @ reference.T, alike_NG[person], axis=1)
    nearer_Q = (near_QG[:, 1:] > near_QG[:, :1]).sum(1)
    tied_Q = (near_QG[:, 1:] == near_QG[:, :1]).sum(1)
    each = {k: mean_of_each(_hits(nearer_Q, tied_Q, gallery, gallery, k), person) for k in ks}
    return Retrieval(
        recall={k: over_people(each_P, seed) for k, each_P in each.items()},
        median_rank=float(np.median(1 + nearer_Q + tied_Q / 2)),
        gallery=gallery,
        people=len(np.unique(person)),
        queries=len(query),
        each=each,
    )


def recall_in_groups(
    query_QD: Numbers,
    gallery_ND: Numbers,
    person_Q: Numbers,
    group_N: Numbers,
    *,
    gallery: int = HELD_EQUAL,
    ks: Sequence[int] = KS,
) -> dict[int, NDArray[np.float64]]:
    """K -> R@K of each person, in galleries of people of the person's own group, [P].

    :func:`retrieval` in each group of ``gallery`` people or more, one after the other; smaller groups, and people of no
    group (a negative number), take no part. A system that knows nothing of people but their group is at chance,
    K / gallery.
    """
    person, group = integers(person_Q), integers(group_N)
    query, reference = unit_rows(query_QD), unit_rows(gallery_ND)
    each: dict[int, list[NDArray[np.float64]]] = {k: [np.empty(0)] for k in ks}
    for number in np.unique(group[group >= 0]):
        members = np.flatnonzero(group == number)
        rows = np.flatnonzero(np.isin(person, members))
        if len(members) >= gallery and len(rows):
            within = np.searchsorted(members, person[rows])
            _check(gallery, len(members))
            counts = _nearer(query[rows], reference[members], within)
            for k in ks:
                each[k].append(mean_of_each(_hits(*counts, len(members), gallery, k), within))
    return {k: np.concatenate(own) for k, own in each.items()}


def _check(gallery: int, people: int) -> None:
    """V2FError unless a gallery of that many people can be drawn."""
    if not 2 <= gallery <= people:
        raise V2FError(f"a gallery of {gallery} needs at least 2 and at most all people, and there are {people}")


def _nearer(
    query: NDArray[np.float64], reference: NDArray[np.float64], person_Q: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many other people are nearer to each query than its own person, and how many exactly as near."""
    cosine_QN = query @ reference.T
    own_Q1 = cosine_QN[np.arange(len(query)), person_Q][:, None]
    return (cosine_QN > own_Q1).sum(1), (cosine_QN == own_Q1).sum(1) - 1


def _hits(
    nearer_Q: NDArray[np.int64], tied_Q: NDArray[np.int64], people: int, gallery: int, k: int
) -> NDArray[np.float64]:
    """Each query's probability that its own person is among the first k; ties broken at random."""
    # P[X <= k - 1] for every possible number of nearer people; ``min`` because a gallery has gallery - 1 others
    from scipy.stats import hypergeom  # here, because it imports for a second, and `v2f generate` does not need it

    table = hypergeom.cdf(min(k, gallery) - 1, people - 1, np.arange(people), gallery - 1)
    running = np.concatenate([[0.0], np.cumsum(table)])
    mean_Q = (running[nearer_Q + tied_Q + 1] - running[nearer_Q]) / (tied_Q + 1)
    return np.where(tied_Q == 0, table[nearer_Q], mean_Q)
