"""Speaker verification: are two clips of the same person? Trials, their error rates, and intervals over people.

A *trial* is a pair of clips with a score; a threshold t accepts it if its score is at least t::

    miss(t)         share of same-person trials with a score below t
    false_alarm(t)  share of different-person trials with a score of t or more

All numbers depend on the order of the scores alone.

Shape letters: M clips, T trials, K operating points, D draws, N people, W embedding width.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2f.keyed import keyed_rng
from v2f.metrics.arrays import Numbers, floats, integers, unit_rows
from v2f.metrics.people import Interval, jackknife_shares

P_TARGETS = (0.01, 0.05)
"""Probabilities of a same-person trial at which the detection cost is measured (NIST SRE 2016 and 2019)."""

MOST_TRIALS = 20_000
"""Same-person trials that are drawn at most, and different-person trials."""

_DRAWS = 1000  # of the bootstrap
_AT_ONCE = 1 << 21  # weights of trials in memory

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Trials:
    """Pairs of clips: the position of either clip, int64 [T], and whether both are of the same person, bool [T]."""

    one_T: Ints
    other_T: Ints
    same_T: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.same_T)

    @property
    def complete(self) -> bool:
        """Whether there are trials of both kinds, without which there are no error rates."""
        return bool(self.same_T.any() and not self.same_T.all())

    def scores(self, emb_MW: Numbers) -> Floats:
        """The cosine of both clips' embeddings, [T]; V2FError if an embedding is not finite."""
        emb = unit_rows(emb_MW)
        parts = [
            np.einsum("tw,tw->t", emb[one], emb[other])
            for one, other in zip(*(_parts(end, 4096) for end in (self.one_T, self.other_T)), strict=True)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)


def draw_trials(person_M: Numbers, most: int = MOST_TRIALS, seed: int = 0) -> Trials:
    """Trials of clips whose people are ``person_M``: ``most`` pairs of the same person and ``most`` of different
    people, each drawn without replacement among all pairs of its kind; all of them if there are no more.

    The pairs depend on ``person_M``, ``most`` and ``seed`` alone.
    """
    person = integers(person_M)
    order_M = np.argsort(person, kind="stable")
    _, first_N, count_N = np.unique(person[order_M], return_index=True, return_counts=True)
    end_M = np.repeat(first_N + count_N, count_N)  # in this order, a person's clips end here
    place_M = np.arange(len(person))
    kinds = []
    for kind, (start_M, stop_M) in enumerate(((place_M + 1, end_M), (end_M, np.full(len(person), len(person))))):
        total_M = np.cumsum(stop_M - start_M)  # pairs of this kind whose first clip is one of the first so many
        pairs = int(total_M[-1]) if len(person) else 0
        rng = keyed_rng(0x747269, seed, kind)
        number_T = np.arange(pairs) if pairs <= most else np.sort(rng.choice(pairs, most, replace=False))
        one_T = np.searchsorted(total_M, number_T, side="right")
        other_T = stop_M[one_T] - (total_M[one_T] - number_T)
        kinds.append((order_M[one_T], order_M[other_T]))
    (one, other), (one_apart, other_apart) = kinds
    same_T = np.arange(len(one) + len(one_apart)) < len(one)
    return Trials(np.concatenate([one, one_apart]), np.concatenate([other, other_apart]), same_T)


def operating_points(score_T: Numbers, same_T: Numbers) -> tuple[Floats, Floats]:
    """Miss and false-alarm rates, each [K], at the corners of the ROC: straight lines between them are the whole curve.

    The first point accepts every trial (0, 1), the last one rejects every trial (1, 0).
    """
    score, same = floats(score_T), integers(same_T).astype(bool)
    miss_1K, alarm_1K = _Ranked(score, same).rates(np.ones((1, len(score))))
    return miss_1K[0], alarm_1K[0]


def equal_error_rate(miss_K: Numbers, alarm_K: Numbers) -> float:
    """Where miss and false-alarm rate are equal on the straight lines between the operating points (linear
    interpolation of the ROC). 0: perfect; 0.5: scores that tell nothing, such as equal ones."""
    return float(_eer(floats(miss_K)[None], floats(alarm_K)[None])[0])


def min_dcf(miss_K: Numbers, alarm_K: Numbers, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """The smallest detection cost over all thresholds, relative to the better system that hears nothing::

        cost(t) = c_miss p_target miss(t) + c_fa (1 - p_target) false_alarm(t)
        minDCF  = min over t of cost(t) / min(c_miss p_target, c_fa (1 - p_target))

    NIST 2016 Speaker Recognition Evaluation Plan, section 3.1. 0: perfect; 1: as good as always the same answer.
    """
    return float(_dcf(floats(miss_K)[None], floats(alarm_K)[None], p_target, c_miss, c_fa)[0])


def det_curve(miss_K: Numbers, alarm_K: Numbers, least: float = 0.001, points: int = 101) -> dict[str, list[float]]:
    """``false_alarm`` from ``least`` to 0.6, at equal distances of the standard normal quantile, and the ``miss`` rates
    there, on the straight lines between the operating points: what a DET curve shows (Martin et al. 1997)."""
    normal = NormalDist()
    alarm = [normal.cdf(at) for at in np.linspace(normal.inv_cdf(least), normal.inv_cdf(0.6), points).tolist()]
    miss = np.interp(alarm, floats(alarm_K)[::-1], floats(miss_K)[::-1])
    return {"false_alarm": [round(each, 6) for each in alarm], "miss": [round(each, 6) for each in miss.tolist()]}


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How well scores tell same-person trials from different-person trials."""

    eer: Interval
    min_dcf: Mapping[float, Interval]
    """By the probability of a same-person trial."""
    miss_K: Floats = field(repr=False)
    alarm_K: Floats = field(repr=False)
    each: Mapping[str, Floats] = field(repr=False)
    """``eer``, ``min_dcf_0.01``, ... -> each person's share [N], in the order of their numbers."""


def verification(score_T: Numbers, trials: Trials, person_M: Numbers, seed: int = 0) -> Verification:
    """The error rates of ``trials`` with their intervals over people; ``person_M``: the person of each clip.

    The interval is from the 2.5 % to the 97.5 % quantile of 1,000 bootstrap draws of the *people*, because the trials
    of one person are not independent (the subsets bootstrap: Bolle, Ratha, Pankanti 2004, "Error analysis of pattern
    recognition systems"). A person who is drawn c times enters c times; so does a trial of two people c c' times.
    Shares are those of :mod:`v2f.metrics.people`. Needs trials of both kinds (:attr:`Trials.complete`).
    """
    assert trials.complete, "without trials of both kinds there are no error rates"
    person = integers(person_M)
    ends_2T = np.stack([person[trials.one_T], person[trials.other_T]])
    people_N, index_2T = np.unique(ends_2T, return_inverse=True)
    one_T, other_T = index_2T.reshape(2, -1)
    ranked = _Ranked(floats(score_T), trials.same_T)
    one_T, other_T, same_T = one_T[ranked.order_T], other_T[ranked.order_T], trials.same_T[ranked.order_T]
    miss_1K, alarm_1K = ranked.rates(np.ones((1, len(trials))))
    count = len(people_N)
    chosen_DN = keyed_rng(0x737062, seed).integers(count, size=(_DRAWS, count))
    times_DN = np.stack([np.bincount(row_N, minlength=count) for row_N in chosen_DN]).astype(np.float64)
    without_NN = 1.0 - np.eye(count)

    def measured(times_XN: Floats) -> dict[str, Floats]:
        """Each number for people who enter so many times, [X]."""
        found: dict[str, list[Floats]] = {name: [] for name in _NUMBERS}
        for part_XN in _parts(times_XN, max(1, _AT_ONCE // len(trials))):
            one_XT, other_XT = part_XN[:, one_T], part_XN[:, other_T]
            rates = ranked.rates(np.where(same_T, one_XT, one_XT * other_XT))
            for name, number in _NUMBERS.items():
                found[name].append(number(*rates))
        return {name: np.concatenate(values) for name, values in found.items()}

    drawn, without = measured(times_DN), measured(without_NN)
    whole = {name: float(number(miss_1K, alarm_1K)[0]) for name, number in _NUMBERS.items()}
    intervals = {name: _interval(whole[name], drawn[name]) for name in whole}
    return Verification(
        eer=intervals["eer"],
        min_dcf={p: intervals[f"min_dcf_{p}"] for p in P_TARGETS},
        miss_K=miss_1K[0],
        alarm_K=alarm_1K[0],
        each={name: jackknife_shares(whole[name], without[name]) for name in whole},
    )


class _Ranked:
    """Trials in the order of their scores, cut into steps of the ROC: runs of trials of one kind, which lie on a
    straight line, and trials of both kinds with equal scores, which change together."""

    def __init__(self, score_T: Floats, same_T: NDArray[np.bool_]) -> None:
        self.order_T = np.argsort(score_T, kind="stable")
        ranked_T, self._same_T = score_T[self.order_T], same_T[self.order_T]
        first_G = np.flatnonzero(np.append(True, ranked_T[1:] != ranked_T[:-1]))  # groups of equal scores
        share_G = np.add.reduceat(self._same_T.astype(np.float64), first_G) / np.diff(np.append(first_G, len(ranked_T)))
        kind_G = np.where(np.isin(share_G, (0, 1)), share_G, 2)
        self._first_S = first_G[np.append(True, (kind_G[1:] != kind_G[:-1]) | (kind_G[1:] == 2))]

    def rates(self, weight_DT: Floats) -> tuple[Floats, Floats]:
        """Miss and false-alarm rates [D,K] of trials in this order with these weights; NaN where all trials of a kind
        have the weight 0."""
        whole_DS = np.add.reduceat(weight_DT, self._first_S, axis=1)
        same_DS = np.add.reduceat(np.where(self._same_T, weight_DT, 0.0), self._first_S, axis=1)
        same_DK, apart_DK = (
            np.pad(np.cumsum(of_DS, axis=1), ((0, 0), (1, 0))) for of_DS in (same_DS, whole_DS - same_DS)
        )
        with np.errstate(invalid="ignore"):
            return same_DK / same_DK[:, -1:], 1.0 - apart_DK / apart_DK[:, -1:]


def _eer(miss_DK: Floats, alarm_DK: Floats) -> Floats:
    gap_DK = miss_DK - alarm_DK  # rises from -1 to 1
    after_D1 = np.argmax(gap_DK >= 0, axis=1)[:, None]
    before_D1 = np.maximum(after_D1 - 1, 0)
    (gap, next_gap), (miss, next_miss) = (
        [np.take_along_axis(of, at, axis=1)[:, 0] for at in (before_D1, after_D1)] for of in (gap_DK, miss_DK)
    )
    with np.errstate(invalid="ignore"):
        return miss - gap / (next_gap - gap) * (next_miss - miss)


def _dcf(miss_DK: Floats, alarm_DK: Floats, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> Floats:
    of_miss, of_alarm = c_miss * p_target, c_fa * (1 - p_target)
    lowest_D: Floats = (of_miss * miss_DK + of_alarm * alarm_DK).min(axis=1) / min(of_miss, of_alarm)
    return lowest_D


def _dcf_at(p_target: float) -> Callable[[Floats, Floats], Floats]:
    return lambda miss_DK, alarm_DK: _dcf(miss_DK, alarm_DK, p_target)


_NUMBERS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "eer": _eer,
    **{f"min_dcf_{p}": _dcf_at(p) for p in P_TARGETS},
}


def _interval(value: float, drawn_D: Floats) -> Interval:
    known_D = drawn_D[np.isfinite(drawn_D)]  # a draw may lack trials of a kind
    low, high = np.quantile(known_D, [0.025, 0.975]) if len(known_D) else (np.nan, np.nan)
    return Interval(value=value, low=float(low), high=float(high))


def _parts(rows: NDArray[Any], size: int) -> Iterator[NDArray[Any]]:
    for at in range(0, len(rows), size):
        yield rows[at : at + size]
