"""Statistics over the samples of a step: collected by forwards, added up over ranks, committed once.

A forward sees one micro-batch of one rank, it may run twice (activation checkpointing), and its step may be skipped.
So a module that keeps something of the samples it saw (the running statistics of batch norm, a codebook that follows
its vectors) is a :class:`Keeps`. Whoever owns the step does with all of them::

    begin(module, turn)        # before the first micro-batch
    ...                        # the forwards collect
    sums = collect(module)     # a flat float64 tensor for each
    all_reduce(sums)           # sum over ranks
    commit(module, sums)       # or discard(module) for a step that is skipped

Sums do not depend on how a global batch is cut into ranks and micro-batches, but for rounding. Where a sum is not
enough (k-means that starts a codebook, the revival of dead codes), :class:`Drawn` picks single vectors by a key.

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
_SLOTS, _PLACES = 0x536C6F74, 0x506C6163  # streams of :class:`Drawn`


def recomputing() -> bool:
    """Whether this forward runs inside a backward, as activation checkpointing does a second time."""
    return bool(torch._C._current_graph_task_id() != -1)  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A step of a phase, as all ranks know it before it begins."""

    seed: int
    step: int
    slot: int
    """The first slot of the global batch; of several streams, of the first one's."""
    slots: int
    """How many slots it has; they are consecutive."""
    streams: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """``slot`` and ``slots`` of each stream, where there are several."""

    def of(self: AnyTurn, stream: str) -> AnyTurn:
        """The same step as a stream counts it, whose batches may be of another size: for what sees samples of it alone,
        such as a :class:`Drawn`. KeyError where there is none of that name."""
        slot, slots = self.streams[stream]
        return replace(self, slot=slot, slots=slots)

    def rng(self, purpose: int) -> np.random.Generator:
        """A generator keyed by (purpose, seed, slot): the same on all ranks, and after a resume."""
        return keyed_rng(purpose, self.seed, self.slot)


class Keeps(nn.Module, abc.ABC):
    """A module that keeps statistics over samples, in buffers; a forward collects where :attr:`collecting` says so.

    Everything but the forward is called on all ranks alike. What it depends on must be alike there, too: buffers,
    the turn, reduced sums.
    """

    @property
    def collecting(self) -> bool:
        """Whether this forward counts: one of a training, and no second one of the same samples."""
        return self.training and not recomputing()

    def begin(self, turn: Turn) -> None:
        """A step begins, and nothing is collected yet; a module that draws slots does it here (of the stream whose
        samples it sees, by :meth:`Turn.of`)."""

    @abc.abstractmethod
    def sums(self) -> Tensor:
        """What was collected since the last commit or discard: flat, float64, on the module's device; zeros for
        nothing. As many numbers on all ranks, and such that those of two ranks may be added."""

    @abc.abstractmethod
    def commit(self, sums: Tensor) -> None:
        """Move the buffers by the :meth:`sums` of all ranks, added up, and forget what was collected."""

    @abc.abstractmethod
    def discard(self) -> None:
        """Forget what was collected: the step is skipped, or its statistics are not wanted."""


class Drawn:
    """Single vectors of a step's global batch, the same whatever ranks and micro-batches: their slots are keyed.

    Slots are drawn without repetition, from the beginning again where more are wanted than there are; and so are the
    vectors of a slot. ``purpose``: one number for each use, so that two do not draw alike.
    """

    def __init__(self, width: int, purpose: int) -> None:
        self.width, self._purpose = width, purpose
        self._seed = self._count = 0
        self._rows: dict[int, list[int]] = {}  # slot -> rows of _found
        self._found: Tensor | None = None  # [K, 1+D]: 1 and the vector, or zeros

    def begin(self, turn: Turn, count: int) -> None:
        """Draw ``count`` vectors of this step; 0 draws none, and then they cost nothing."""
        self._seed, self._count, self._found, self._rows = turn.seed, count, None, {}
        if count:
            rng = keyed_rng(_SLOTS, self._purpose, turn.seed, turn.slot)
            slots = (turn.slot + rng.permutation(turn.slots)).tolist()
            for row in range(count):
                self._rows.setdefault(slots[row % turn.slots], []).append(row)

    @torch.no_grad()
    def collect(self, x_BND: Tensor, slot_B: Tensor, weight_B: Tensor) -> None:
        """Take the drawn vectors that are in this micro-batch; not those of a slot of weight 0 (promise 2)."""
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
        """For :meth:`Keeps.sums`, flat: K (1 + D) numbers. A vector is on one rank, so that the sum is exact."""
        found = self._nothing(device) if self._found is None else self._found
        return found.flatten()

    def read(self, sums: Tensor) -> Tensor:
        """The vectors [K', D] in float64 of the added :meth:`sums`, in the order in which they were drawn. There are
        fewer than were wanted where slots weigh 0, or a sample has too few."""
        found_KE = sums.view(-1, 1 + self.width)
        return found_KE[found_KE[:, 0] > 0, 1:]

    def discard(self) -> None:
        """Forget the vectors and the draw."""
        self._count, self._found, self._rows = 0, None, {}

    def _nothing(self, device: torch.device) -> Tensor:
        return torch.zeros(self._count, 1 + self.width, dtype=torch.float64, device=device)


def keepers(module: nn.Module) -> dict[str, Keeps]:
    """The modules of a tree that keep statistics, by name: each once, in the order of definition (on all ranks)."""
    return {name: m for name, m in module.named_modules() if isinstance(m, Keeps)}


def begin(module: nn.Module, turn: Turn) -> None:
    """A step begins: what a step that was broken off has left is forgotten."""
    for keeper in keepers(module).values():
        keeper.discard()
        keeper.begin(turn)


def collect(module: nn.Module) -> dict[str, Tensor]:
    """What each of them has collected on this rank, to be added up over the ranks."""
    return {name: keeper.sums() for name, keeper in keepers(module).items()}


def commit(module: nn.Module, sums: Mapping[str, Tensor]) -> None:
    """Commit what :func:`collect` has given, added up over the ranks."""
    with torch.no_grad():
        for name, keeper in keepers(module).items():
            keeper.commit(sums[name])


def discard(module: nn.Module) -> None:
    """Forget what all of them have collected."""
    for keeper in keepers(module).values():
        keeper.discard()
