"""What a check finds, what it is asked, and the words in which both are told."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from v2f.errors import V2FError
from v2f.storage.credentials import without_credentials
from v2f.storage.local import scratch

GIB, MIB = 1 << 30, 1 << 20

Verdict = Literal["ok", "look", "wrong"]
"""``look``: a run would work, slower or with a risk that the line names; ``wrong``: it would not."""


@dataclass(frozen=True)
class Line:
    """One finding. ``do`` is empty where there is nothing to do."""

    check: str
    verdict: Verdict
    found: str
    do: str = ""


@dataclass(frozen=True)
class Asked:
    """What the user named, and, once the recipe is read, what it says of places."""

    recipe: str | None = None
    overrides: Sequence[str] = ()
    store: str | None = None
    tracking: str | None = None
    weights: str | None = None
    out: str = "runs"
    """The run's folder or prefix."""
    cache: str | None = None
    scratch: str = field(default_factory=scratch)


Step = Line | str
"""What a check yields: a finding, or what it does next, which is told where it does not come back from it."""


def of_error(check: str, error: V2FError, where: str = "") -> Line:
    """An error's line is written what; what to do."""
    found, _, do = str(error).partition("; ")
    return Line(check, "wrong", f"{where}{found}", do)


def first_line(error: BaseException) -> str:
    return without_credentials((str(error).splitlines() or [""])[0])[:200]


def dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def some(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def existing(path: str) -> str:
    """``path``, or the nearest folder above it that there is."""
    here = os.path.abspath(path)
    while not os.path.isdir(here):
        here = os.path.dirname(here)
    return here
