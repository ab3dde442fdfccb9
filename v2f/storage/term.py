"""The terms of a lease: one numbered file for each owner, which says who it is and that it lives.

ROOT/lease/00000007.json   the seventh term, as :class:`Term` describes it
"""

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from v2f.storage import processes, store
from v2f.storage.records import Record, problem_of

FOLDER = "lease"
_SUFFIX = ".json"


@dataclass(frozen=True)
class Term:
    """The content of a term's file.

    ``what`` the owner does, in words for messages. ``process``: the owner's, by :func:`v2f.storage.processes.identity`.
    ``beat`` grows while the owner lives. ``note``: what the owner stores with it.
    """

    number: int
    owner: str
    what: str
    share: str | None
    host: str
    process: str
    beat: int = 0
    ended: bool = False
    member: str | None = None
    note: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.what} (process {self.process.partition(':')[0]} on {self.host})"

    def process_gone(self) -> bool:
        """Whether its process ran on this machine and has ended; False if that cannot be known."""
        return processes.is_gone(self.process) is True

    def compatible(self, share: str | None, member: str | None = None) -> bool:
        """Whether an owner with ``share`` may hold the lease at the same time, as another member."""
        return share is not None and share == self.share and (member is None or member != self.member)


class _TermFile(Record):
    """The fields of a term's file that must be valid."""

    owner: str
    share: str | None
    process: str
    beat: int
    ended: bool
    member: str | None
    note: dict[str, Any]


def highest_term(root: str) -> Term | None:
    """The highest term of ``root``, whether it has ended or not; None if there has never been one."""
    numbers = term_numbers(root)
    return read_term(root, numbers[-1]) if numbers else None


def term_numbers(root: str) -> list[int]:
    """The numbers of all terms of ``root``, sorted."""
    names = store.names(store.join(root, FOLDER))
    stems = (name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def possible_owners(root: str, numbers: list[int]) -> list[Term]:
    """The terms that may still be in force, the highest first.

    An exclusive term, or one of another share, supersedes all terms below it.
    """
    found: list[Term] = []
    for number in reversed(numbers):
        term = read_term(root, number)
        if term is None:
            continue
        if found and not term.compatible(found[0].share):
            break
        if all(term.compatible(other.share, other.member) for other in found):  # else its member has a newer term
            found.append(term)
        if term.share is None:
            break
    return found


def term_path(root: str, number: int) -> str:
    """The file of a term."""
    return store.join(root, FOLDER, f"{number:08d}{_SUFFIX}")


def term_content(term: Term) -> bytes:
    """What the file of ``term`` holds."""
    return json.dumps(asdict(term)).encode()


def read_term(root: str, number: int) -> Term | None:
    """A term; None if it does not exist."""
    return read_tagged_term(root, number)[0]


def read_tagged_term(root: str, number: int) -> tuple[Term | None, str | None]:
    """A term, None if it does not exist; and the ETag of this content, if the store has ETags."""
    content, tag = store.read_tagged(term_path(root, number))
    if content is None:
        return None, None
    try:
        fields = json.loads(content)
        if problem_of(_TermFile, fields) is not None:
            raise ValueError
        term = Term(**fields)
    except (ValueError, TypeError, RecursionError):
        # Damaged, or written by another version: an owner of whom nothing is known, and whose term expires.
        term = Term(number, content.decode(errors="replace"), "an unknown writer", None, "an unknown machine", "")
    return replace(term, number=number), tag
