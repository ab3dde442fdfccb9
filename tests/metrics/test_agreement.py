"""Attribute agreement against a plain count of votes, and on faces whose agreement is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from v2f import metrics
from v2f.errors import V2FError
from v2f.keyed import keyed_rng
from v2f.metrics import agreement
from v2f.metrics.agreement import LEAST, NEIGHBORS


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def crowd(people: int, groups: int, seed: int = 0, apart: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Photos [N,16], ``apart`` between groups, and each person's group; the last group is twice as large."""
    rng = keyed_rng(seed, 7)
    group_N = rng.permutation(np.minimum(np.arange(people) % (groups + 1), groups - 1))
    return unit(rng.normal(size=(people, 16)) + apart * 40 * np.eye(16)[group_N]), group_N


def credit(group_N: np.ndarray, cosine_N: np.ndarray, speaker: int) -> float:
    """What a face agrees with a speaker, by the definition."""
    others = [n for n in np.argsort(-cosine_N, kind="stable") if n != speaker][:NEIGHBORS]
    groups, votes = np.unique(group_N[others], return_counts=True)
    first = groups[votes == votes.max()]
    return float(group_N[speaker] in first) / len(first)


@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 20), people=st.integers(LEAST, 30), groups=st.integers(1, 5), unknown=st.booleans())
def test_it_is_the_count_of_votes(seed: int, people: int, groups: int, unknown: bool) -> None:
    gallery_ND, group_N = crowd(people + 4, groups, seed)
    if unknown:
        group_N = np.where(np.arange(people + 4) < 4, -1, group_N)
        group_N[4 : 4 + groups] = np.arange(groups)
    rng = keyed_rng(seed, 1)
    person_Q = rng.integers(0, people + 4, 25)
    person_Q[0] = people + 3  # at least one of known group
    query_QD = unit(rng.normal(size=(25, 16)))
    found = agreement(query_QD, gallery_ND, person_Q, {"a": group_N, "all": np.zeros(people + 4, np.int64)})
    known = np.flatnonzero(group_N >= 0)
    cosine_QN = query_QD @ gallery_ND[known].T
    of = {int(n): at for at, n in enumerate(known)}
    own: dict[int, list[float]] = {}
    anybody: dict[int, list[list[float]]] = {}
    for q, person in enumerate(person_Q.tolist()):
        if person in of:
            own.setdefault(person, []).append(credit(group_N[known], cosine_QN[q], of[person]))
            anybody.setdefault(person, []).append([credit(group_N[known], cosine_QN[q], j) for j in range(len(known))])
    assert found["a"].person_P.tolist() == sorted(own)
    assert found["a"].each_P.tolist() == pytest.approx([np.mean(own[person]) for person in sorted(own)])
    dealt_N = np.mean([np.mean(anybody[person], 0) for person in own], 0)
    assert found["a"].chance_G.tolist() == pytest.approx(
        [dealt_N[group_N[known] == group].mean() for group in range(len(found["a"].people_G))]
    )
    assert found["a"].chance == pytest.approx(dealt_N.mean())
    assert found["all"].value == 1
    assert found["all"].chance == pytest.approx(1)


def test_a_face_of_the_speakers_kind_agrees_whoever_it_is() -> None:
    """Where groups are apart, the true photos agree always, and so does anybody of the same group; chance stays."""
    gallery_ND, group_N = crowd(90, 3, apart=1.0)
    everyone = np.arange(90)
    someone = np.array([np.flatnonzero(group_N == group_N[n])[-1] for n in everyone])
    for shown in (everyone, someone):
        found = agreement(gallery_ND[shown], gallery_ND, everyone, {"a": group_N})["a"]
        assert found.each_P.tolist() == [1.0] * 90
        assert found.chance == pytest.approx((np.bincount(group_N) / 90) @ (np.bincount(group_N) / 90), abs=0.01)


def test_finding_the_person_alone_gains_nothing() -> None:
    """Where no group looks alike, even the true photo agrees as often as by chance, though R@1 is 1."""
    gallery_ND, group_N = crowd(400, 2)
    everyone = np.arange(400)
    found = agreement(gallery_ND, gallery_ND, everyone, {"a": group_N})["a"]
    assert metrics.retrieval(gallery_ND, gallery_ND, everyone).recall[1].value == 1
    assert found.value == pytest.approx(found.chance, abs=0.06)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_coin_is_chance_and_its_interval_holds_it(share: float) -> None:
    """A generator that draws a person of a group that a coin chose; groups are unequal."""
    group_N = (np.arange(300) >= share * 300).astype(np.int64)
    gallery_ND = unit(keyed_rng(1).normal(size=(300, 16)) + 9 * np.eye(16)[group_N])
    covered, values = 0, []
    for seed in range(20):
        coin_N = keyed_rng(2, seed).integers(0, 300, 300)
        found = agreement(gallery_ND[coin_N], gallery_ND, np.arange(300), {"sex": group_N})["sex"]
        interval = metrics.over_people(found.each_P)
        covered += interval.low <= found.chance <= interval.high
        values.append(found.value - found.chance)
    assert covered >= 17
    assert np.mean(values) == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_one_face_for_everyone_is_exactly_chance(seed: int) -> None:
    """In every group, though it agrees with everybody of the group that it looks like."""
    gallery_ND, group_N = crowd(60, 3, seed, apart=1.0)
    person_Q = np.repeat(np.arange(60), 1 + np.arange(60) % 3)
    face = gallery_ND[np.flatnonzero(group_N == 0)[0]]
    found = agreement(np.tile(face, (len(person_Q), 1)), gallery_ND, person_Q, {"a": group_N})["a"]
    assert found.value == pytest.approx(found.chance, abs=1e-12)
    assert found.chance == pytest.approx(np.mean(group_N == 0))
    for group in range(3):
        assert found.each_P[group_N == group].mean() == pytest.approx(found.chance_G[group]) == (group == 0)


def test_people_of_unknown_group_take_no_part() -> None:
    gallery_ND, group_N = crowd(40, 2, apart=1.0)
    unknown_N = np.where(np.arange(40) % 4 == 0, -1, group_N)
    query = gallery_ND.copy()
    query[unknown_N < 0] = np.nan_to_num(gallery_ND[unknown_N < 0])[::-1]  # what they are given changes nothing
    found = agreement(query, gallery_ND, np.arange(40), {"a": unknown_N, "b": group_N})
    assert found["a"].person_P.tolist() == np.flatnonzero(unknown_N >= 0).tolist()
    assert found["a"].each_P.tolist() == [1.0] * 30
    assert found["a"].people_G.sum() == 30
    with pytest.raises(V2FError, match=f"age: it is known of 9 people, agreement needs at least {LEAST}"):
        agreement(query, gallery_ND, np.arange(40), {"age": np.where(np.arange(40) < 9, 0, -1)})


def test_intervals_of_columns_are_those_of_each_alone() -> None:
    value_PC = keyed_rng(5).random((37, 4))
    for column, found in enumerate(metrics.each_over_people(value_PC)):
        alone = metrics.over_people(value_PC[:, column])
        assert found.as_dict() == pytest.approx(alone.as_dict(), abs=1e-12)
