"""From raw recordings to shards: a converter plans items and makes samples of them; ``pack`` does the rest."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # the help of `v2f shards` imports this package
    from v2f.data.tar import Members


@dataclass(frozen=True)
class Item:
    """One planned sample: its key, split and identity, and what its converter needs to make it (picklable)."""

    key: str
    split: str
    identity: str
    name: str  # for messages
    what: Any = None


@dataclass(frozen=True)
class LeftOut:
    """One input that is left out of the data set. Reports count by ``reason``; ``detail`` is specific to this input.
    ``samples``: the number of samples lost, so that a person without photos is one line, not a thousand. ``photos``:
    the number of photos, for photos that belong to no sample."""

    name: str
    identity: str
    reason: str
    detail: str = ""
    samples: int = 1
    photos: int = 0

    def __post_init__(self) -> None:
        from v2f.prepare.names import printable

        for text in ("name", "identity", "detail"):  # they go into reports in UTF-8
            object.__setattr__(self, text, printable(getattr(self, text)))

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Made:
    """One finished sample; ``rejected``: photos that were tried for it and could not be used; ``through_psp``: the
    number of photos that pSp processed for it."""

    item: Item
    members: "Members"
    seconds: float
    rejected: tuple[LeftOut, ...] = ()
    through_psp: int = 0


@dataclass(frozen=True)
class Plan:
    """The items that a converter will make, the inputs that it leaves out, and what else the content depends on.
    ``taken``: how much of train a subset took, in words; empty without one."""

    items: list[Item]
    left_out: list[LeftOut] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    taken: str = ""


class Converter(Protocol):
    """Plans and makes the samples of one kind of corpus. Picklable: other processes call ``make`` with parts of the
    plan."""

    def plan(self) -> Plan: ...

    def make(self, items: Sequence[Item]) -> list[Made | LeftOut]: ...

    def inputs(self, item: Item) -> list[str]:
        """The input files of an item."""
        ...


def share(*words: str) -> float:
    """A number in [0, 1) from a hash of the words: it splits people and shuffles samples independently of their
    order."""
    return int.from_bytes(sha256("\0".join(words).encode()).digest()[:7], "big") / 2**56
