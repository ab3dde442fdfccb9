"""Collective operations among the ranks of a job."""

import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

_BUCKET = 64 << 20  # bytes that are broadcast together


class Ranks:
    """All ranks of a job, seen from the one numbered ``rank``; every method is collective."""

    def __init__(self, rank: int, world_size: int, device: torch.device) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = device

    def gather(self, value: T) -> list[T]:
        """Every rank's ``value`` (small, picklable), in the order of the ranks, on all of them."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, tensors: Sequence[Tensor], source: int) -> None:
        """Overwrite ``tensors``, contiguous and on the CPU, with those of the rank ``source``.

        ``source`` must pass as many tensors, of the same shapes and types. Uses up to 64 MiB of memory on the CPU and
        on the device.
        """
        if self.world_size == 1:
            return
        pieces = [piece for t in tensors if t.numel() for piece in t.reshape(-1).view(torch.uint8).split(_BUCKET)]
        while pieces:
            count = _fitting(pieces)
            some, pieces = pieces[:count], pieces[count:]
            bucket = torch.cat(some).to(self._wire)
            dist.broadcast(bucket, source)
            if self.rank != source:
                for piece, sent in zip(some, bucket.cpu().split([len(piece) for piece in some]), strict=True):
                    piece.copy_(sent)

    def maximum(self, values: Tensor) -> Tensor:
        """The element-wise maximum over the ranks; may overwrite ``values``."""
        if self.world_size > 1:
            values = values.to(self._wire)
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    @property
    def _wire(self) -> torch.device:
        """The device that a tensor must be on to be sent."""
        return self.device if dist.get_backend() == "nccl" else torch.device("cpu")


def _fitting(pieces: Sequence[Tensor]) -> int:
    """How many pieces, from the first on, fit into one bucket together. Each piece fits by itself."""
    filled = itertools.accumulate(len(piece) for piece in pieces)
    return sum(1 for _ in itertools.takewhile(lambda size: size <= _BUCKET, filled))
