"""Samples that cannot be used: which ones, and why. None is lost silently (promise 2, docs/architecture.md).

    fetch: bytes or Bad --decode--> arrays, bad rows --rank--> substitutes, weight 0, Quarantine --> run, checkpoint

Fetching returns :class:`Bad` in place of bytes that it cannot get. Decoding adds the samples that it cannot decode, and
returns the bad rows with their reasons beside a batch's arrays. The rank fills those rows from the *substitute*: the
split's first valid sample, decoded with the row's own
randomness. An error that is not the fault of one sample (a
transform that raises anything but a :class:`V2FError`, or returns another shape) stays an error.
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
Substitute = Callable[[], tuple[str, bytes]]  # key and raw members of the substitute; V2FError if no sample verifies


@dataclass(frozen=True)
class QuarantinedSample:
    """One sample in quarantine: its number in the split, its place, the reason, and the slot that needed it first."""

    number: int
    shard: str
    key: str
    byte: int
    reason: str
    slot: int

    def __str__(self) -> str:
        return f"{self.shard}: sample {self.key} at byte {self.byte}: {self.reason}"


class Quarantine:
    """The samples of ``split`` that turned out to be unusable so far; it only grows.

    A sample is added when the batch with its slot is handed out, not when it is read ahead, so that its content is a
    function of the slots consumed; checkpoints rely on that. ``numbers`` come from an earlier checkpoint.
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
        """Add a sample, unless it is already in quarantine."""
        if number not in self._numbers:
            self._numbers.add(number)
            split = self._split
            reason = reason.removeprefix(f"sample {split.key(number)}: ")
            self._news.append(
                QuarantinedSample(number, split.shard_path(number), split.key(number), split.byte(number), reason, slot)
            )

    def news(self) -> list[QuarantinedSample]:
        """The samples added since the last call, in the order of their slots."""
        news, self._news = self._news, []
        return news

    def adopt(self, entries: Iterable[QuarantinedSample]) -> None:
        """Add what other ranks found, without listing it in :meth:`news`."""
        self._numbers.update(entry.number for entry in entries)
