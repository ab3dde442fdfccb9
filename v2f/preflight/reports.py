"""What one rank reports of its device, and what some ranks measured of the network between them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

_NAMED = 8  # places in a message, before "and N more"


@dataclass
class RankReport:
    """What one rank measured. ``kind``: the model of its device; equal kinds must give equal ``answers``."""

    rank: int
    host: str
    device: str
    kind: str
    versions: dict[str, str]
    rates: dict[str, float] = field(default_factory=dict)
    """By workload and unit; more is better."""
    answers: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    """By stage: what failed on this rank, independently of the others."""

    @property
    def where(self) -> str:
        return f"{self.host} {self.device} (rank {self.rank})"


@dataclass
class Link:
    """An all-reduce among some ranks. ``rates``: by MiB, the bus bandwidth of the slowest of them in GB/s."""

    scope: str
    hosts: list[str]
    ranks: list[int]
    rates: dict[float, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.rates[max(self.rates)]


def named(places: Sequence[str], ranks: int) -> str:
    """The places of a message, shortened; ``ranks``: how many ranks there are."""
    if len(places) == ranks > 1:
        return f"all {ranks} ranks"
    more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
    return "; ".join(places[:_NAMED]) + more
