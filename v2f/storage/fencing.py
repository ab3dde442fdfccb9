"""Which commits of a run count: each owner's, up to the step at which the next one took the run up.

    term 3 took up at step 0, committed 10, 20, 30 | term 4 took up at step 20 -> 10 and 20 count; 30 does not, whenever
    it was written: term 3 was superseded, and term 4 trains these steps again

The highest term of the lease (:mod:`v2f.storage.lease`) carries it all:
``{"from": 20, "foreign": 0, "before": [[3, OWNER, 0, 20]]}``. A commit that names no term of this lease, of an earlier
version or copied from another run, is ``foreign``, and counts up to the lowest step at which any of these owners took
up.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from v2f.storage.term import Term


@dataclass(frozen=True)
class Fences:
    """How far the commits of each owner (number, token) count; ``foreign``: those of anybody else."""

    upto: Mapping[tuple[int, str], float]
    foreign: float = math.inf

    @classmethod
    def of(cls, term: Term | None) -> "Fences":
        """As the highest term of a lease tells it; without one all commits count."""
        if term is None:
            return cls({})
        try:
            upto = {(number, owner): _limit(last) for number, owner, _, last in term.note.get("before", [])}
        except (TypeError, ValueError):  # damaged by hand: nobody knows any more who was superseded
            return cls({})
        return cls(upto | {(term.number, term.owner): math.inf}, _limit(term.note.get("foreign")))

    @property
    def trivial(self) -> bool:
        """Whether all commits count, whoever made them."""
        return self.foreign == math.inf and set(self.upto.values()) <= {math.inf}

    def counts(self, step: int, lease: tuple[int, str] | None) -> bool:
        """Whether a commit of ``step`` counts that was made under ``lease`` (None: it says nothing)."""
        return step <= (self.foreign if lease is None else self.upto.get(lease, self.foreign))


def inherited(before: Term | None) -> dict[str, Any]:
    """The note of a new term: all that counted ``before`` counts until the new owner has taken the run up."""
    if before is None:
        return {"before": [], "foreign": None}
    fences = list(before.note.get("before", []))
    if "from" in before.note:  # else it took nothing up, and so has committed nothing
        fences.append([before.number, before.owner, before.note["from"], None])
    return {"before": fences, "foreign": before.note.get("foreign")}


def taken_up(note: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The note of a term whose owner goes on from the commit of ``step`` (0: it starts)."""
    fences = [[number, owner, first, min(_limit(last), step)] for number, owner, first, last in note["before"]]
    kept = [fence for fence in fences if fence[3] > fence[2]]  # the others have no commit that counts
    return {"from": step, "foreign": min(_limit(note["foreign"]), step), "before": kept}


def _limit(step: float | None) -> float:
    return math.inf if step is None else step
