"""The ranks that read a checkpoint together, or check together where they write it."""

import secrets
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from v2f.errors import V2FError, unexpected
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
        """Every rank's ``value``, on all of them."""

    def broadcast(self, tensors: Sequence[Tensor], source: int) -> None:
        """Overwrite ``tensors`` by those of the rank ``source``, which are as many and alike in shape and kind."""


class _Alone:
    rank, world_size = 0, 1

    def gather(self, value: T) -> list[T]:
        return [value]

    def broadcast(self, tensors: Sequence[Tensor], source: int) -> None:
        """There is nobody to send them to."""


ALONE = _Alone()


def alike(peers: Peers, act: Callable[[], T]) -> list[T]:
    """What ``act`` gives on every rank; collective. An error of one is raised on all, as of the same kind, so that none
    waits for it."""
    own: T | None = None
    error: Exception | None = None
    try:
        own = act()
    except Exception as raised:
        error = raised
    kind = type(error) if isinstance(error, V2FError) else V2FError
    failed = None if error is None else (kind, line_of(error), getattr(error, "again", True))
    everyones = peers.gather((own, failed))
    if error is not None:
        raise error
    for rank, (_, other) in enumerate(everyones):
        if other is not None:
            elsewhere = other[0](f"rank {rank}: {other[1]}")
            elsewhere.again = other[2]
            raise elsewhere
    return [value for value, _ in everyones]  # type: ignore[misc]


def check_shared(root: str, *, rank: int, gather: Callable[[Any], list[Any]], patience_s: float = 60.0) -> None:
    """Refuse, on all ranks alike, a folder that not all of them see and can write; collective.

    Each writes a file, and looks for everyone's for ``patience_s``: a network file system may show them late.
    """
    attempt = gather(secrets.token_hex(4))[0]
    own, failure = store.join(root, f".shared-{attempt}-{rank}"), None
    try:
        store.write_bytes(own, socket.gethostname().encode())
    except V2FError as error:
        failure = str(error), error.again
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
    for name in listed if rank == 0 else []:
        if name.startswith(".shared-") and not name.startswith(f".shared-{attempt}-"):  # a start was killed here
            store.remove(store.join(root, name))
    for other, told in enumerate(failures):
        if told:
            kind = PassingError if told[1] else V2FError
            raise kind(f"rank {other} cannot write where the run is to be: {told[0]}")
    for other, (host, missing) in enumerate(seen):
        if missing:
            raise V2FError(
                f"{root}: not one folder for all ranks: rank {other} on {host} does not see what rank {missing[0]} on "
                f"{seen[missing[0]][0]} writes there; set out= to a shared folder or an s3:// prefix"
            )


def line_of(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] if isinstance(error, V2FError) else unexpected(error)
