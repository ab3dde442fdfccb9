"""Error rates of verification against cases worked out by hand, systems that are known, and their invariances."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from v2f.keyed import keyed_rng
from v2f.metrics import Trials, det_curve, draw_trials, equal_error_rate, min_dcf, operating_points, verification


def eer(scores: list[float], same: list[int]) -> float:
    return equal_error_rate(*operating_points(scores, same))


def dcf(scores: list[float], same: list[int], p_target: float) -> float:
    return min_dcf(*operating_points(scores, same), p_target)


def test_the_operating_points_are_those_counted_by_hand() -> None:
    miss_K, alarm_K = operating_points([0.1, 0.4, 0.4, 0.8], [0, 1, 0, 1])
    # accept all; from 0.4 on, where both kinds tie; from 0.8 on; reject all
    np.testing.assert_array_equal(miss_K, [0, 0, 0.5, 1])
    np.testing.assert_array_equal(alarm_K, [1, 0.5, 0, 0])


@pytest.mark.parametrize(
    ("scores", "same", "expected"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 0.0),
        ([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0], 1.0),
        ([0.5, 0.5, 0.5, 0.5, 0.5], [0, 1, 0, 1, 1], 0.5),
        ([0.1, 0.4, 0.4, 0.8], [0, 1, 0, 1], 0.25),  # between (0, 1/2) and (1/2, 0)
        ([1, 2, 3, 4, 5, 6], [0, 0, 1, 0, 1, 1], 1 / 3),  # the point (1/3, 1/3) itself
        ([1, 2, 3, 4, 5], [0, 1, 0, 1, 1], 1 / 3),  # between (1/3, 1/2) and (1/3, 0): a step of the false alarms
    ],
)
def test_the_equal_error_rate_is_that_of_the_straight_line(scores, same, expected) -> None:
    assert eer(scores, same) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("p_target", "expected"),
    [
        # points (miss, false alarm): (0, 1) (0, 2/3) (0, 1/3) (1/2, 1/3) (1/2, 0) (1, 0)
        (0.5, 1 / 3),  # accepting from the third on: 0.5 / 3 of at most 0.5
        (0.05, 0.5),  # no false alarm: 0.05 / 2 of at most 0.05
        (0.01, 0.5),
        (0.9, 1 / 3),  # 0.1 / 3 of at most 0.1
    ],
)
def test_the_detection_cost_is_that_worked_out_by_hand(p_target, expected) -> None:
    assert dcf([1, 2, 3, 4, 5], [0, 0, 1, 0, 1], p_target) == pytest.approx(expected)


def test_the_det_curve_lies_on_the_lines_between_the_operating_points() -> None:
    points = operating_points([1, 2, 3, 4, 5], [0, 0, 1, 0, 1])  # (0, 1/3) (1/2, 1/3) (1/2, 0)
    curve = det_curve(*points)
    assert (curve["false_alarm"][0], curve["false_alarm"][-1]) == pytest.approx((0.001, 0.6))
    expected = [0.5 if alarm < 1 / 3 else 0.0 for alarm in curve["false_alarm"]]
    assert curve["miss"] == pytest.approx(expected)
    slanted = det_curve(*operating_points([0.5] * 5, [0, 1, 0, 1, 1]))  # scores that tell nothing: miss = 1 - alarm
    assert slanted["miss"] == pytest.approx([1 - alarm for alarm in slanted["false_alarm"]], abs=2e-6)


def test_costs_that_differ_weigh_misses_and_false_alarms() -> None:
    points = operating_points([1, 2, 3, 4, 5], [0, 0, 1, 0, 1])
    assert min_dcf(*points, 0.5, c_miss=10) == pytest.approx(1 / 3)  # (0, 1/3): 0.5 / 3 of at most 0.5
    assert min_dcf(*points, 0.5, c_fa=10) == pytest.approx(0.5)  # (1/2, 0): 0.25 of at most 0.5


def test_a_perfect_system_a_coin_and_a_constant() -> None:
    rng, same = keyed_rng(1), np.arange(4000) % 2
    assert eer(list(same + 0.5 * rng.random(4000)), list(same)) == 0
    assert dcf(list(same + 0.5 * rng.random(4000)), list(same), 0.01) == 0
    assert eer(list(rng.random(4000)), list(same)) == pytest.approx(0.5, abs=0.02)
    assert dcf(list(rng.random(4000)), list(same), 0.01) == pytest.approx(1, abs=0.01)
    assert eer([0.3] * 4000, list(same)) == 0.5
    assert dcf([0.3] * 4000, list(same), 0.05) == 1


rated = st.lists(st.tuples(st.integers(-20, 20), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({same for _, same in rows}) == 2
)


@given(rated)
def test_only_the_order_of_the_scores_matters(rows) -> None:
    scores, same = [score for score, _ in rows], [int(each) for _, each in rows]
    before = eer(scores, same), dcf(scores, same, 0.05)
    for mapped in (lambda x: 2.0 * x + 1, lambda x: float(x**3), lambda x: np.exp(x / 10), lambda x: np.arctan(x)):
        other = [mapped(score) for score in scores]
        assert (eer(other, same), dcf(other, same, 0.05)) == before


@given(rated)
def test_turning_scores_and_labels_around_changes_nothing_and_all_rates_are_rates(rows) -> None:
    scores, same = [score for score, _ in rows], [int(each) for _, each in rows]
    assert eer([-s for s in scores], [1 - each for each in same]) == pytest.approx(eer(scores, same))
    assert eer([-s for s in scores], same) == pytest.approx(1 - eer(scores, same))
    assert 0 <= eer(scores, same) <= 1
    assert 0 <= dcf(scores, same, 0.01) <= 1


# ------------------------------------------------------------------------------------------------ trials


def pairs_of(trials: Trials) -> list[tuple[int, int]]:
    return [tuple(sorted(ends)) for ends in zip(trials.one_T.tolist(), trials.other_T.tolist(), strict=True)]  # type: ignore[misc]


def test_all_pairs_are_drawn_if_there_are_no_more() -> None:
    person_M = [5, 3, 5, 9, 3, 5]
    trials = draw_trials(person_M)
    assert sorted(pairs_of(trials)) == list(itertools.combinations(range(6), 2))
    assert trials.same_T.tolist() == [person_M[one] == person_M[other] for one, other in pairs_of(trials)]
    assert trials.same_T.sum() == 3 + 1
    assert trials.complete


def test_of_more_pairs_so_many_are_drawn_without_a_repetition_and_alike_each_time() -> None:
    person_M = keyed_rng(2).integers(0, 40, 300)
    trials = draw_trials(person_M, most=200)
    assert (trials.same_T.sum(), (~trials.same_T).sum()) == (200, 200)
    assert len(set(pairs_of(trials))) == 400
    assert all(
        (person_M[a] == person_M[b]) == same for (a, b), same in zip(pairs_of(trials), trials.same_T, strict=True)
    )
    assert pairs_of(draw_trials(person_M, most=200)) == pairs_of(trials)
    assert pairs_of(draw_trials(person_M, most=200, seed=1)) != pairs_of(trials)


def test_every_pair_is_as_likely_as_any_other() -> None:
    person_M = [0, 0, 0, 0, 1, 1, 2]  # 7 pairs of the same person, 14 of different people
    counts: dict[tuple[int, int], int] = {}
    for seed in range(600):
        for pair in pairs_of(draw_trials(person_M, most=2, seed=seed)):
            counts[pair] = counts.get(pair, 0) + 1
    assert len(counts) == 21
    for (one, other), count in counts.items():
        expected = 600 * 2 / (7 if person_M[one] == person_M[other] else 14)
        assert abs(count - expected) < 5 * expected**0.5


@pytest.mark.parametrize("person_M", [[], [1], [1, 1], [1, 2, 3]])
def test_without_pairs_of_both_kinds_there_is_nothing_to_measure(person_M) -> None:
    assert not draw_trials(person_M).complete


def test_the_score_is_the_cosine() -> None:
    trials = draw_trials([0, 0, 1])
    scores = dict(zip(pairs_of(trials), trials.scores([[2.0, 0.0], [3.0, 3.0], [0.0, -1.0]]), strict=True))
    assert scores == pytest.approx({(0, 1): 2**-0.5, (0, 2): 0.0, (1, 2): -(2**-0.5)})


# ------------------------------------------------------------------------------------------------ intervals


def voices(people: int, clips: int, seed: int, noise: float = 1.3) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings around a center for each person."""
    rng = keyed_rng(0x5EED, seed)
    center = np.repeat(rng.normal(size=(people, 8)), clips, axis=0)
    return center + noise * rng.normal(size=center.shape), np.repeat(np.arange(people), clips)


def test_the_interval_covers_the_population_and_has_the_width_of_other_samples() -> None:
    emb, person = voices(1000, 3, 99)
    whole = draw_trials(person)
    truth = equal_error_rate(*operating_points(whole.scores(emb), whole.same_T))
    values, widths, shares, covered = [], [], [], 0
    for seed in range(12):
        emb, person = voices(30, 3, seed)
        trials = draw_trials(person)
        found = verification(trials.scores(emb), trials, person)
        values.append(found.eer.value)
        widths.append(found.eer.high - found.eer.low)
        shares.append(found.each["eer"].std(ddof=1) / 30**0.5)
        covered += found.eer.low <= truth <= found.eer.high
    assert covered >= 9
    assert np.mean(widths) == pytest.approx(4 * np.std(values), rel=0.4)
    assert np.mean(shares) == pytest.approx(np.std(values), rel=0.4)


def test_a_perfect_system_has_no_doubt_and_each_person_a_share() -> None:
    emb, person = voices(10, 3, 1, noise=0.0)
    trials = draw_trials(person)
    found = verification(trials.scores(emb), trials, person)
    assert (found.eer.value, found.eer.low, found.eer.high) == (0, 0, 0)
    assert found.min_dcf[0.01].value == 0
    assert all((share_N == 0).all() and share_N.shape == (10,) for share_N in found.each.values())


def test_a_person_who_is_confused_has_the_largest_share() -> None:
    emb, person = voices(20, 3, 1, noise=0.2)
    emb[person == 7] = keyed_rng(3).normal(size=(3, 8))
    trials = draw_trials(person)
    found = verification(trials.scores(emb), trials, person)
    assert found.each["eer"].argmax() == 7
    again = verification(trials.scores(emb), trials, person)
    assert again.eer == found.eer
