"""Attribute agreement: does a face look like people of its speaker's group, whoever they are?

The five people of the gallery whose photos are nearest to a face, the speaker left out, vote for their group::

    agrees(q, j) = 1 / t if the group of person j is one of the t most frequent groups of the five people nearest to
                   face q other than j, else 0
    agreement    = mean over people, and of each over their faces, of agrees(face, its speaker)
    chance       = the same mean of agrees(face, anybody): the same faces, dealt to the speakers at random

Leaving the speaker out keeps agreement apart from retrieval: a face that finds its person gains nothing by it. Chance
knows what the faces look like, so a generator that draws one face for everyone, or only the most frequent group, agrees
exactly as often as by chance. For one group alone, both are means over its people.

Shape letters: N people, Q faces, D embedding width, P people with faces, G groups, K neighbors and one more.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from v2f.errors import V2FError
from v2f.metrics.arrays import Numbers, integers, unit_rows
from v2f.metrics.people import mean_of_each

NEIGHBORS = 5
"""People who vote."""

LEAST = 2 * NEIGHBORS
"""People of known group that an agreement needs; fewer are hardly anybody's nearest."""

_AT_ONCE = 4096  # faces whose cosines with all people are in memory


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How often faces agree with their speakers in one attribute."""

    each_P: NDArray[np.float64]
    """Each person's agreement, the mean over their faces."""
    person_P: NDArray[np.int64]
    """The people, in the order of their numbers: those of known group who have a face."""
    chance_G: NDArray[np.float64]
    """Of each group: agreement of the same faces with speakers of that group, dealt at random."""
    people_G: NDArray[np.int64]
    """People of each group in the gallery."""

    @property
    def value(self) -> float:
        return float(self.each_P.mean())

    @property
    def chance(self) -> float:
        return float(self.chance_G @ self.people_G / self.people_G.sum())


def agreement(
    query_QD: Numbers, gallery_ND: Numbers, person_Q: Numbers, groups: Mapping[str, NDArray[np.int64]]
) -> dict[str, Agreement]:
    """Attribute -> the agreement of faces with their speakers in it (see the module docstring).

    ``gallery_ND[n]`` is the photo of person n, ``person_Q[q]`` the speaker of face q, and ``groups`` the group of each
    person [N] by attribute: 0 to G - 1, each with a person, or -1 for people of unknown group, who take no part.
    V2FError if an attribute is known of fewer than :data:`LEAST` people.
    """
    query, gallery, person = unit_rows(query_QD), unit_rows(gallery_ND), integers(person_Q)
    found: dict[str, Agreement] = {}
    for names, known_N in _known_alike(groups):
        number_N = np.cumsum(known_N) - 1  # among those who take part
        asked_Q = known_N[person]
        mine_Q = number_N[person[asked_Q]]
        near_QK = _nearest(query[asked_Q], gallery[known_N])
        for name in names:
            found[name] = _agreement(near_QK, mine_Q, groups[name][known_N], np.flatnonzero(known_N))
    return {name: found[name] for name in groups}


def _known_alike(groups: Mapping[str, NDArray[np.int64]]) -> Iterator[tuple[list[str], NDArray[np.bool_]]]:
    """The attributes that are known of the same people [N], which have the same neighbors."""
    alike: dict[bytes, list[str]] = {}
    for name, group_N in groups.items():
        if (group_N >= 0).sum() < LEAST:
            raise V2FError(f"{name}: it is known of {(group_N >= 0).sum()} people, agreement needs at least {LEAST}")
        alike.setdefault((group_N >= 0).tobytes(), []).append(name)
    for names in alike.values():
        yield names, groups[names[0]] >= 0


def _nearest(query_QD: NDArray[np.float64], gallery_ND: NDArray[np.float64]) -> NDArray[np.int64]:
    """The people nearest to each face, the nearest first: one more than vote, in case the speaker is one of them."""
    parts = []
    for start in range(0, len(query_QD), _AT_ONCE):
        cosine_QN = query_QD[start : start + _AT_ONCE] @ gallery_ND.T
        near_QK = np.argpartition(-cosine_QN, NEIGHBORS, axis=1)[:, : NEIGHBORS + 1]
        order_QK = np.argsort(-np.take_along_axis(cosine_QN, near_QK, 1), axis=1, kind="stable")
        parts.append(np.take_along_axis(near_QK, order_QK, 1))
    return np.concatenate(parts).astype(np.int64)


def _agreement(
    near_QK: NDArray[np.int64], speaker_Q: NDArray[np.int64], group_N: NDArray[np.int64], people_N: NDArray[np.int64]
) -> Agreement:
    """Agreement in one attribute. ``people_N``: the numbers that the people have outside."""
    count_G = np.bincount(group_N)
    vote_QKG = np.eye(len(count_G))[group_N[near_QK]]
    five_QG, six_QG = vote_QKG[:, :NEIGHBORS].sum(1), vote_QKG.sum(1)
    agrees_QG = _credit(five_QG)
    row_Q = np.arange(len(near_QK))
    own_Q = agrees_QG[row_Q, group_N[speaker_Q]]
    # Everybody as the speaker: those who are not among the five change no vote, each of the five is replaced.
    anybody_QG = agrees_QG * (count_G - five_QG)
    for place in range(NEIGHBORS):
        gone_QG = vote_QKG[:, place]
        credit_QG = _credit(six_QG - gone_QG)
        anybody_QG += credit_QG * gone_QG
        is_speaker_Q = near_QK[:, place] == speaker_Q
        own_Q = np.where(is_speaker_Q, credit_QG[row_Q, group_N[speaker_Q]], own_Q)
    weight_Q = 1.0 / np.bincount(speaker_Q)[speaker_Q]  # every person has the same weight
    return Agreement(
        each_P=mean_of_each(own_Q, speaker_Q),
        person_P=people_N[np.unique(speaker_Q)],
        chance_G=weight_Q @ anybody_QG / weight_Q.sum() / count_G,
        people_G=count_G,
    )


def _credit(vote_QG: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each group gets from a vote: 1 for the most frequent, divided among those that are equally frequent."""
    most_QG = vote_QG == vote_QG.max(1, keepdims=True)
    return most_QG / most_QG.sum(1, keepdims=True)
