"""Consistency over a speaker's clips, against the definition pair by pair."""

from itertools import combinations

import numpy as np
import pytest

from v2f.keyed import keyed_rng
from v2f.metrics import Consistency, consistency


def drawn(spread: float, clips: tuple[int, ...] = (3, 2, 1, 4, 2)) -> tuple[np.ndarray, np.ndarray]:
    """Faces of people with so many clips each, ``spread`` around a face of their own."""
    rng = keyed_rng(0xC0)
    person_Q = np.repeat(np.arange(len(clips)) + 7, clips)
    return rng.normal(size=(20, 16))[person_Q] + spread * rng.normal(size=(len(person_Q), 16)), person_Q


def measured(spread: float) -> Consistency:
    found = consistency(*drawn(spread))
    assert found is not None
    return found


def test_it_is_the_difference_of_two_means_over_pairs() -> None:
    emb_QD, person_Q = drawn(0.5)
    unit_QD = emb_QD / np.linalg.norm(emb_QD, axis=1, keepdims=True)
    cosines: dict[bool, list[float]] = {True: [], False: []}
    for one, other in combinations(range(len(person_Q)), 2):
        cosines[bool(person_Q[one] == person_Q[other])].append(float(unit_QD[one] @ unit_QD[other]))
    found = measured(0.5)
    assert found.same == pytest.approx(np.mean(cosines[True]))
    assert found.different == pytest.approx(np.mean(cosines[False]))
    assert found.margin.value == pytest.approx(found.same - found.different)
    assert found.margin.low < found.margin.value < found.margin.high


def test_a_share_is_what_the_number_changes_by_without_the_person() -> None:
    emb_QD, person_Q = drawn(0.5)
    found = measured(0.5)
    for place, person in enumerate(np.unique(person_Q)):
        rest = consistency(emb_QD[person_Q != person], person_Q[person_Q != person])
        assert rest is not None
        share = 5 * found.margin.value - 4 * rest.margin.value
        assert found.each_N[place] == pytest.approx(share)


def test_faces_that_do_not_depend_on_the_clip_are_consistent_and_random_ones_are_not() -> None:
    assert measured(0.0).same == pytest.approx(1.0)
    assert measured(0.0).margin.value > 0.5
    assert measured(0.3).margin.value > measured(3.0).margin.value
    one = consistency(np.ones((8, 4)), np.arange(8) // 2)
    assert one is not None
    assert one.margin.value == pytest.approx(0.0)  # one face for everyone


@pytest.mark.parametrize("person_Q", [[0, 1, 2, 3], [0, 0, 1, 1], [0, 0, 1, 2], []])
def test_too_few_people_or_clips_have_none(person_Q: list[int]) -> None:
    assert consistency(np.ones((len(person_Q), 4)), np.array(person_Q, int)) is None
