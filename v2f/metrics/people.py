"""A number over people: its bootstrap interval, and each person's share in it.

A person's *share* in a number is the jackknife's pseudo-value (Efron and Stein 1981)::

    share(p) = N t - (N - 1) t(without p)

of a number t over N people. For a mean over people, it is the person's own value. For a mean over pairs of people, it
counts each pair for both of its people; the mean of a person's own pairs would not, and would make the number look more
certain than it is. The mean of the shares is t (up to the jackknife's bias correction); their spread is the uncertainty
of t.

Shape letters: N people, P people, Q queries, C numbers, E draws.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from v2f.keyed import keyed_rng


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number with its 95 % interval over people."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def over_people(value_P: NDArray[np.float64], seed: int = 0, draws: int = 2000) -> Interval:
    """The mean over people with its 95 % percentile bootstrap interval over people."""
    chosen = keyed_rng(seed, 0x526563).integers(len(value_P), size=(draws, len(value_P)))
    low, high = np.quantile(value_P[chosen].mean(1), [0.025, 0.975])
    return Interval(value=float(value_P.mean()), low=float(low), high=float(high))


def each_over_people(value_PC: NDArray[np.float64], seed: int = 0, draws: int = 2000) -> list[Interval]:
    """:func:`over_people` of each column, up to rounding, with the same draws of people for all of them."""
    people = len(value_PC)
    chosen = keyed_rng(seed, 0x526563).integers(people, size=(draws, people))
    times_EP = np.bincount((chosen + people * np.arange(draws)[:, None]).ravel(), minlength=draws * people)
    mean_EC = times_EP.reshape(draws, people) @ value_PC / people
    low_C, high_C = np.quantile(mean_EC, [0.025, 0.975], axis=0)
    return [
        Interval(value=float(value), low=float(low), high=float(high))
        for value, low, high in zip(value_PC.mean(0), low_C, high_C, strict=True)
    ]


def mean_of_each(value_Q: NDArray[np.float64], person_Q: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each person's mean over their queries, in the order of the people's numbers."""
    _, index_Q = np.unique(person_Q, return_inverse=True)
    return np.bincount(index_Q, value_Q) / np.bincount(index_Q)


def jackknife_shares(whole: float, without_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each person's share in a number, from the number computed without that person (see the module docstring)."""
    return len(without_N) * whole - (len(without_N) - 1) * without_N
