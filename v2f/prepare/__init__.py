"""From raw recordings to shards. A converter plans items and makes samples of them; ``pack`` does the rest."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # the help of `v2f shards` imports this package
    from v2f.data.sample import Members


@dataclass(frozen=True)
class Item:
    """One sample that is planned: its key, where it goes, and what its converter makes it from (picklable)."""

    key: str
    split: str
    identity: str
    name: str  # what a message calls it
    what: Any = None


@dataclass(frozen=True)
class LeftOut:
    """One input that is not in the data set: ``reason`` counts it, ``detail`` says more about this one; ``samples``:
    how many it would have made, so that a person without photos is one line and not a thousand. ``photos``: how many
    it is, where it is photos of nobody's sample."""

    name: str
    identity: str
    reason: str
    detail: str = ""
    samples: int = 1
    photos: int = 0

    def __post_init__(self) -> None:
        from v2f.prepare.names import printable

        for text in ("name", "identity", "detail"):  # they go into reports, which are UTF-8
            object.__setattr__(self, text, printable(getattr(self, text)))

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Made:
    """One sample that was made; ``rejected``: photos that were tried for it in vain."""

    item: Item
    members: "Members"
    seconds: float
    rejected: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a converter will make, what it leaves out already, and what else the content depends on."""

    items: list[Item]
    left_out: list[LeftOut] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)


class Converter(Protocol):
    """Picklable: ``make`` is called in other processes, with any part of the plan's items."""

    def plan(self) -> Plan: ...

    def make(self, items: Sequence[Item]) -> list[Made | LeftOut]: ...

    def inputs(self, item: Item) -> list[str]:
        """The files that an item is made from."""
        ...


def share(*words: str) -> float:
    """A number in [0, 1) that depends on the words alone: what splits people and mixes samples, whatever the order."""
    return int.from_bytes(sha256("\0".join(words).encode()).digest()[:7], "big") / 2**56
