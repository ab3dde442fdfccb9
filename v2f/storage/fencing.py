"""Which commits of a run are valid: those of each owner, up to the step from which the next owner resumed.

    term 3 started at step 0 and committed 10, 20, 30 | term 4 resumed from step 20 -> 10 and 20 are valid; 30 is not,
    no matter when it was written: term 3 was superseded, and term 4 trains these steps again

The highest term of the lease (:mod:`v2f.storage.lease`) stores this:
``{"from": 20, "foreign": 0, "before": [[3, OWNER, 0, 20]]}``. A commit without a term of this lease, from an earlier
version or copied from another run, is ``foreign``, and valid up to the lowest step from which any owner resumed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from v2f.storage.term import Term


@dataclass(frozen=True)
class Fences:
    """The last valid step of each owner (number, token); ``foreign``: of commits by anybody else."""

    upto: Mapping[tuple[int, str], float]
    foreign: float = math.inf

    @classmethod
    def of(cls, term: Term | None) -> "Fences":
        """The fences in the highest term of a lease; without a term, all commits are valid."""
        if term is None:
            return cls({})
        try:
            upto = {(number, owner): _limit(last) for number, owner, _, last in term.note.get("before", [])}
        except (TypeError, ValueError):  # damaged by an edit: it is unknown who was superseded
            return cls({})
        return cls(upto | {(term.number, term.owner): math.inf}, _limit(term.note.get("foreign")))

    @property
    def trivial(self) -> bool:
        """Whether all commits are valid."""
        return self.foreign == math.inf and set(self.upto.values()) <= {math.inf}

    def counts(self, step: int, lease: tuple[int, str] | None) -> bool:
        """Whether a commit of ``step`` under the term ``lease`` is valid (None: the commit names no term)."""
        return step <= (self.foreign if lease is None else self.upto.get(lease, self.foreign))


def inherited(before: Term | None) -> dict[str, Any]:
    """The note of a new term: what was valid ``before`` stays valid until the new owner resumes the run."""
    if before is None:
        return {"before": [], "foreign": None}
    fences = list(before.note.get("before", []))
    if "from" in before.note:  # otherwise it never resumed, and has committed nothing
        fences.append([before.number, before.owner, before.note["from"], None])
    return {"before": fences, "foreign": before.note.get("foreign")}


def taken_up(note: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The note of a term whose owner resumes from the commit of ``step`` (0: it starts anew)."""
    fences = [[number, owner, first, min(_limit(last), step)] for number, owner, first, last in note["before"]]
    kept = [fence for fence in fences if fence[3] > fence[2]]  # the others have no valid commit
    return {"from": step, "foreign": min(_limit(note["foreign"]), step), "before": kept}


def _limit(step: float | None) -> float:
    return math.inf if step is None else step
