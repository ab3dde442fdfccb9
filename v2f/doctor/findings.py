"""What a check examines, what it finds, and how a finding is worded."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from v2f.errors import V2FError, first_line
from v2f.storage.credentials import without_credentials
from v2f.storage.local import scratch

GIB, MIB = 1 << 30, 1 << 20

Verdict = Literal["ok", "look", "wrong"]
"""``look``: a run would work, but slower or with the risk that the finding names; ``wrong``: it would not."""


@dataclass(frozen=True)
class Finding:
    """``found``: what is there, or what is wrong; ``advice``: what to do about it, empty if nothing is to be done."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""

    def record(self) -> dict[str, str]:
        """The finding as ``v2f doctor --json`` prints it, where the advice has the key ``do``."""
        return {"check": self.check, "verdict": self.verdict, "found": self.found, "do": self.advice}


@dataclass(frozen=True)
class Setup:
    """What the checks examine: what the user named and, once the recipe is read, the places that it names."""

    recipe: str | None = None
    overrides: Sequence[str] = ()
    store: str | None = None
    tracking: str | None = None
    weights: str | None = None
    out: str = "runs"
    """The run's folder or prefix."""
    cache: str | None = None
    scratch: str = field(default_factory=scratch)


Step = Finding | str
"""What a check yields: a finding, or what it does next, which the report names if the check hangs or crashes there."""


def finding_of(check: str, error: V2FError, where: str = "") -> Finding:
    """The finding of an error, whose message has the form ``what is wrong; what to do``."""
    found, _, advice = str(error).partition("; ")
    return Finding(check, "wrong", f"{where}{found}", advice)


def shown_reason(error: BaseException) -> str:
    return without_credentials(first_line(error))[:200]


def dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def some(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def existing(path: str) -> str:
    """``path``, or the nearest parent folder that exists."""
    here = os.path.abspath(path)
    while not os.path.isdir(here):
        here = os.path.dirname(here)
    return here
