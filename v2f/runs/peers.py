"""The ranks of a job as they read a checkpoint together, and the check that they share one folder."""

import secrets
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from v2f.errors import V2FError, first_line, unexpected
from v2f.storage import store
from v2f.storage.local import PassingError

T = TypeVar("T")


class Peers(Protocol):
    """The ranks that read a checkpoint together; both calls are collective."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def gather(self, value: T) -> list[T]:
        """Every rank's ``value``, on all ranks."""

    def broadcast(self, tensors: Sequence[Tensor], source: int) -> None:
        """Overwrite ``tensors`` with those of the rank ``source``, of the same number, shapes and dtypes."""


class _Alone:
    rank, world_size = 0, 1

    def gather(self, value: T) -> list[T]:
        return [value]

    def broadcast(self, tensors: Sequence[Tensor], source: int) -> None:
        """Nothing to do: there is no other rank."""


ALONE = _Alone()


def alike(peers: Peers, act: Callable[[], T]) -> list[T]:
    """What ``act`` returns on every rank; collective. An error on one rank is raised on all, with the same type, so
    that no rank waits for another."""
    own: T | None = None
    error: Exception | None = None
    try:
        own = act()
    except Exception as raised:
        error = raised
    kind = type(error) if isinstance(error, V2FError) else V2FError
    failed = None if error is None else (kind, line_of(error), error.retryable if isinstance(error, V2FError) else True)
    everyones = peers.gather((own, failed))
    if error is not None:
        raise error
    for rank, (_, other) in enumerate(everyones):
        if other is not None:
            elsewhere = other[0](f"rank {rank}: {other[1]}")
            elsewhere.retryable = other[2]
            raise elsewhere
    return [value for value, _ in everyones]  # type: ignore[misc]


def check_shared(root: str, *, rank: int, gather: Callable[[Any], list[Any]], patience_s: float = 60.0) -> None:
    """V2FError, on all ranks, if not all of them see and can write one folder ``root``; collective.

    Each rank writes a file and looks for the files of all ranks for ``patience_s`` seconds: a network file system may
    show them late.
    """
    attempt = gather(secrets.token_hex(4))[0]
    own, failure = store.join(root, f".shared-{attempt}-{rank}"), None
    try:
        store.write_bytes(own, socket.gethostname().encode())
    except V2FError as error:
        failure = str(error), error.retryable
    failures = gather(failure)
    absent: list[int] = []
    listed: list[str] = []
    if not any(failures):
        deadline = time.monotonic() + patience_s
        while True:
            listed = store.names(root)
            absent = [other for other in range(len(failures)) if f".shared-{attempt}-{other}" not in listed]
            if not absent or time.monotonic() >= deadline:
                break
            time.sleep(0.5)
    seen = gather((socket.gethostname(), absent))
    if failure is None:
        store.remove(own)
    for name in listed if rank == 0 else []:  # what a start left that was killed here
        if name.startswith(".shared-") and not name.startswith(f".shared-{attempt}-"):
            store.remove(store.join(root, name))
    for other, failed in enumerate(failures):
        if failed:
            why, retryable = failed
            kind = PassingError if retryable else V2FError
            raise kind(f"rank {other} cannot write to the run's folder: {why}")
    for other, (host, missing) in enumerate(seen):
        if missing:
            raise V2FError(
                f"{root}: the ranks do not share one folder: rank {other} on {host} does not see what rank "
                f"{missing[0]} on {seen[missing[0]][0]} writes there; set out= to a shared folder or an s3:// prefix"
            )


def line_of(error: Exception) -> str:
    return first_line(error) if isinstance(error, V2FError) else unexpected(error)
