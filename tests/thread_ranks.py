"""Ranks that are threads of one process."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch

from v2f.errors import V2FError


class Thread:
    """A rank of ``world_size`` that are threads of this process."""

    def __init__(self, rank: int, world_size: int, meeting: Barrier, board: list[Any]) -> None:
        self.rank, self.world_size, self._meeting, self._board = rank, world_size, meeting, board

    def gather(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._meeting.wait()
        values = list(self._board)
        self._meeting.wait()
        return values

    def broadcast(self, tensors: Sequence[torch.Tensor], source: int) -> None:
        for here, there in zip(tensors, self.gather(tensors)[source], strict=True):
            assert (here.shape, here.dtype) == (there.shape, there.dtype)
            here.copy_(there)


def on_ranks(world_size: int, act: Callable[[Thread], Any]) -> list[Any]:
    """What ``act`` gives on every rank, or the error that it raises there."""
    meeting, board = Barrier(world_size, timeout=30), [None] * world_size

    def of(rank: int) -> Any:
        try:
            return act(Thread(rank, world_size, meeting, board))
        except (V2FError, OSError) as error:
            return error

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(of, range(world_size)))
