"""Requests to a store, counted, and made again while that can help.

A request that fails is made again, up to ATTEMPTS times in a row without progress, after pauses that grow and are
random, so that the ranks of a job do not all come back at once.
"""

import logging
import random
import threading
import time
from dataclasses import asdict, dataclass

from v2f.errors import V2FError
from v2f.storage import s3
from v2f.storage.credentials import shown

log = logging.getLogger("v2f")

ATTEMPTS = 10
BACKOFF_S = 0.25  # the longest pause after a first failure; twice as long after each that follows
LONGEST_BACKOFF_S = 30.0  # with the above: about 45 s of pauses on average before a request is given up
SAID_AT = 4  # the failure in a row at which the user is told why nothing happens


class UnreachableError(V2FError):
    """The store failed at every attempt: of the object itself nothing is known."""

    again = True


@dataclass(frozen=True)
class Statistics:
    """What this process has asked of files and stores since it started. ``retries`` are among the ``requests``;
    bytes count once, however often they were asked for."""

    bytes_read: int = 0
    bytes_written: int = 0
    requests: int = 0
    retries: int = 0


_counting = threading.Lock()
_counted = Statistics()


def statistics() -> Statistics:
    """What this process has asked for so far."""
    return _counted


def count(**more: int) -> None:
    """Add to the fields of :class:`Statistics`."""
    global _counted
    with _counting:
        _counted = Statistics(**{name: value + more.get(name, 0) for name, value in asdict(_counted).items()})


class Attempts:
    """How often one request may fail, and the pause after each failure. ``verb``: what the request is to do."""

    def __init__(self, path: str, verb: str) -> None:
        self._path, self._verb = path, verb
        self._started = time.monotonic()
        self._made = 0
        self._failures = 0  # in a row, without progress

    def begin(self) -> None:
        """Count an attempt that is about to be made."""
        self._made += 1
        count(requests=1, retries=int(self._made > 1))

    def failed(self, error: Exception, *, progress: bool = False) -> None:
        """Wait before the next attempt; :class:`UnreachableError` after the last. ``progress``: some bytes arrived."""
        self._failures = 1 if progress else self._failures + 1
        reason = str(error) if isinstance(error, s3.S3Error) else type(error).__name__
        if self._failures >= ATTEMPTS:
            seconds = time.monotonic() - self._started
            raise UnreachableError(
                f"{shown(self._path)}: cannot {self._verb} it, {self._made} attempts in {seconds:.0f} s failed "
                f"(the last: {reason}); check the endpoint, the network and the store"
            ) from None
        if self._failures == SAID_AT:
            log.warning("%s: cannot %s it yet (%s); trying again", shown(self._path), self._verb, reason)
        # Full jitter, not keyed by anything: it changes nothing but time.
        time.sleep(random.uniform(0, min(LONGEST_BACKOFF_S, BACKOFF_S * 2 ** (self._failures - 1))))
