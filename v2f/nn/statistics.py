"""Statistics over the samples of a step: collected in forward passes, summed over ranks, committed once.

A forward pass sees one micro-batch of one rank, may run twice (activation checkpointing), and its step may be skipped.
A module with statistics of the samples it saw (the running statistics of batch norm, a codebook that follows its
vectors) is therefore a :class:`KeepsStatistics`. The owner of the step calls, for all of them::

    begin(module, turn)        # before the first micro-batch
    ...                        # the forward passes collect
    sums = collect(module)     # a flat float64 tensor for each
    all_reduce(sums)           # sum over ranks
    commit(module, sums)       # or discard(module) if the step is skipped

Except for rounding, sums do not depend on how a global batch is split into ranks and micro-batches. Where a sum is not
enough (k-means that initializes a codebook, the revival of dead codes), :class:`KeyedVectorSample` picks single vectors
by a key.

Letters: B micro-batch, N vectors of a sample, D width, K drawn vectors.
"""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from v2f.keyed import keyed_rng

AnyTurn = TypeVar("AnyTurn", bound="Turn")
_SLOTS, _PLACES = 0x536C6F74, 0x506C6163  # streams of :class:`KeyedVectorSample`


def recomputing() -> bool:
    """Whether this forward pass runs inside a backward pass, which is how activation checkpointing recomputes."""
    return bool(torch._C._current_graph_task_id() != -1)  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A step of a phase, as all ranks know it before it starts."""

    seed: int
    step: int
    slot: int
    """The first slot of the global batch; with several streams, of the first stream's."""
    slots: int
    """Number of its slots, which are consecutive."""
    streams: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """``slot`` and ``slots`` of each stream, if there are several."""

    def of(self: AnyTurn, stream: str) -> AnyTurn:
        """The same step in the slots of one stream, whose batches may have another size: for modules that see only its
        samples, such as a :class:`KeyedVectorSample`. KeyError if there is no such stream."""
        slot, slots = self.streams[stream]
        return replace(self, slot=slot, slots=slots)

    def rng(self, purpose: int) -> np.random.Generator:
        """A generator keyed by (purpose, seed, slot): the same on all ranks, and after a resume."""
        return keyed_rng(purpose, self.seed, self.slot)


class KeepsStatistics(nn.Module, abc.ABC):
    """A module that keeps statistics over samples in buffers; a forward pass collects if :attr:`collecting`.

    All methods but the forward pass are called on all ranks alike and may depend only on values that are equal there:
    buffers, the turn, reduced sums.
    """

    @property
    def collecting(self) -> bool:
        """Whether this forward pass counts: in training, and not a recomputation of the same samples."""
        return self.training and not recomputing()

    def begin(self, turn: Turn) -> None:
        """Called when a step starts, with nothing collected yet; a module that draws slots draws them here, those of
        the stream whose samples it sees (:meth:`Turn.of`)."""

    @abc.abstractmethod
    def sums(self) -> Tensor:
        """The values collected since the last commit or discard: flat, float64, on the module's device; zeros if there
        are none. All ranks return equally many numbers, which may be added."""

    @abc.abstractmethod
    def commit(self, sums: Tensor) -> None:
        """Update the buffers by the total of :meth:`sums` over all ranks, and reset the collected values."""

    @abc.abstractmethod
    def discard(self) -> None:
        """Reset the collected values: the step is skipped, or its statistics are not needed."""


class KeyedVectorSample:
    """Single vectors of a step's global batch, independent of ranks and micro-batches: their slots are keyed.

    Slots are drawn without repetition; if more are requested than there are, the sequence starts again. So are the
    vectors of a slot. ``purpose``: a number for each use, so that two uses draw differently.
    """

    def __init__(self, width: int, purpose: int) -> None:
        self.width, self._purpose = width, purpose
        self._seed = self._count = 0
        self._rows: dict[int, list[int]] = {}  # slot -> rows of _found
        self._found: Tensor | None = None  # [K, 1+D]: 1 and the vector, or zeros

    def begin(self, turn: Turn, count: int) -> None:
        """Draw ``count`` vectors of this step; 0 draws none, at no cost."""
        self._seed, self._count, self._found, self._rows = turn.seed, count, None, {}
        if count:
            rng = keyed_rng(_SLOTS, self._purpose, turn.seed, turn.slot)
            slots = (turn.slot + rng.permutation(turn.slots)).tolist()
            for row in range(count):
                self._rows.setdefault(slots[row % turn.slots], []).append(row)

    @torch.no_grad()
    def collect(self, x_BND: Tensor, slot_B: Tensor, weight_B: Tensor) -> None:
        """Store the drawn vectors of this micro-batch, except those of a quarantined slot, whose weight is 0."""
        if not self._rows:
            return
        samples, places, rows = [], [], []
        for sample, (slot, weight) in enumerate(zip(slot_B.tolist(), weight_B.tolist(), strict=True)):
            own = self._rows.get(slot, []) if weight else []
            if own:
                order = keyed_rng(_PLACES, self._purpose, self._seed, slot).permutation(x_BND.shape[1])[: len(own)]
                samples += [sample] * len(order)
                places += order.tolist()
                rows += own[: len(order)]
        if rows:
            if self._found is None:
                self._found = self._nothing(x_BND.device)
            self._found[rows, 0] = 1
            self._found[rows, 1:] = x_BND[samples, places].double()

    def sums(self, device: torch.device) -> Tensor:
        """For :meth:`KeepsStatistics.sums`, flat: K (1 + D) numbers. A vector is on one rank only, so the sum is
        exact."""
        found = self._nothing(device) if self._found is None else self._found
        return found.flatten()

    def read(self, sums: Tensor) -> Tensor:
        """The vectors [K', D] in float64 from the total of :meth:`sums`, in the order of the draw. There are fewer than
        requested if slots have the weight 0 or a sample has too few vectors."""
        found_KE = sums.view(-1, 1 + self.width)
        return found_KE[found_KE[:, 0] > 0, 1:]

    def discard(self) -> None:
        """Reset the vectors and the draw."""
        self._count, self._found, self._rows = 0, None, {}

    def _nothing(self, device: torch.device) -> Tensor:
        return torch.zeros(self._count, 1 + self.width, dtype=torch.float64, device=device)


def keepers(module: nn.Module) -> dict[str, KeepsStatistics]:
    """Name -> module that keeps statistics, without duplicates, in the order of definition (on all ranks)."""
    return {name: m for name, m in module.named_modules() if isinstance(m, KeepsStatistics)}


def begin(module: nn.Module, turn: Turn) -> None:
    """Start a step; values left by an interrupted step are discarded."""
    for keeper in keepers(module).values():
        keeper.discard()
        keeper.begin(turn)


def collect(module: nn.Module) -> dict[str, Tensor]:
    """The values that each module has collected on this rank, to be summed over ranks."""
    return {name: keeper.sums() for name, keeper in keepers(module).items()}


def commit(module: nn.Module, sums: Mapping[str, Tensor]) -> None:
    """Commit the values of :func:`collect`, summed over ranks."""
    with torch.no_grad():
        for name, keeper in keepers(module).items():
            keeper.commit(sums[name])


def discard(module: nn.Module) -> None:
    """Discard the collected values of all modules."""
    for keeper in keepers(module).values():
        keeper.discard()
