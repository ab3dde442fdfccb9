"""Samples that cannot be used: why, and which ones (promise 2).

    fetch: bytes or Bad --decode--> arrays, bad rows --the rank--> stand-ins, weight 0, Quarantine --> run, checkpoint

What fetching cannot give is a :class:`Bad` in the place of the bytes. What decodes adds what cannot be decoded: it
hands out, beside a batch's arrays, the bad rows with their reasons. The rank fills those rows from the *substitute*,
the split's first sample that verifies, decoded with the row's own slot. A mistake that is not one sample's (a transform
that raises something else than a :class:`V2FError`, or gives another shape) stays an error.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from v2f.data.manifest import Samples
from v2f.errors import V2FError


@dataclass(frozen=True)
class Bad:
    """A sample that cannot be used, with the reason in one line."""

    reason: str


Raw = memoryview | Bad
BadRows = dict[int, str]  # row of a batch -> reason
Substitute = Callable[[], tuple[str, bytes]]  # key and raw members of what stands in; V2FError where nothing verifies


@dataclass(frozen=True)
class QuarantinedSample:
    """One sample in quarantine: its number in the split, where it lies, why, and the slot at which it was met."""

    number: int
    shard: str
    key: str
    byte: int
    reason: str
    slot: int

    def __str__(self) -> str:
        return f"{self.shard}: sample {self.key} at byte {self.byte}: {self.reason}"


class Quarantine:
    """The samples of ``split`` that were met and cannot be used; it only grows.

    A sample goes in when the batch that has its slot is handed out, not when it is read ahead: so what is in here is
    a function of the slots consumed, as a checkpoint wants it. ``numbers`` are those of an earlier checkpoint.
    """

    def __init__(self, split: Samples, numbers: Iterable[int] = ()):
        self._split = split
        self._numbers = set(numbers)
        if self._numbers and not 0 <= min(self._numbers) <= max(self._numbers) < split.samples:
            raise V2FError(f"a quarantine of other samples than the {split.samples} of {split.name}")
        self._news: list[QuarantinedSample] = []

    def __contains__(self, number: object) -> bool:
        return number in self._numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def numbers(self) -> list[int]:
        """The samples' numbers in the split, sorted."""
        return sorted(self._numbers)

    def add(self, number: int, slot: int, reason: str) -> None:
        """Put a sample in, unless it is in already."""
        if number not in self._numbers:
            self._numbers.add(number)
            split = self._split
            reason = reason.removeprefix(f"sample {split.key(number)}: ")
            self._news.append(
                QuarantinedSample(number, split.shard_path(number), split.key(number), split.byte(number), reason, slot)
            )

    def news(self) -> list[QuarantinedSample]:
        """What was put in since this was last asked, in the order of the slots."""
        news, self._news = self._news, []
        return news

    def adopt(self, entries: Iterable[QuarantinedSample]) -> None:
        """Put in what other ranks have met."""
        self._numbers.update(entry.number for entry in entries)
