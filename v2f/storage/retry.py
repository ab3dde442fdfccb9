"""Counting and retrying requests to a store.

A request is retried until ATTEMPTS attempts in a row have failed without progress. The pauses between them grow and are
random, so that the ranks of a job do not all retry at the same moment.
"""

import logging
import random
import threading
import time
from dataclasses import asdict, dataclass

from v2f.errors import V2FError
from v2f.storage import s3
from v2f.storage.credentials import redacted

log = logging.getLogger("v2f")

ATTEMPTS = 10
BACKOFF_S = 0.25  # the longest pause after the first failure; it doubles with each further one
LONGEST_BACKOFF_S = 30.0  # so a request fails after about 45 s of pauses on average
SAID_AT = 4  # the number of failures in a row after which a warning explains the delay


class UnreachableError(V2FError):
    """The store failed at every attempt, so nothing is known about the object."""

    retryable = True


@dataclass(frozen=True)
class Statistics:
    """The requests of this process to files and stores since it started. ``requests`` includes ``retries``; bytes count
    once, however often they were requested."""

    bytes_read: int = 0
    bytes_written: int = 0
    requests: int = 0
    retries: int = 0


_counting = threading.Lock()
_counted = Statistics()


def statistics() -> Statistics:
    """The statistics of this process so far."""
    return _counted


def count(**more: int) -> None:
    """Add to the fields of :class:`Statistics`."""
    global _counted
    with _counting:
        _counted = Statistics(**{name: value + more.get(name, 0) for name, value in asdict(_counted).items()})


class Attempts:
    """Counts the attempts at one request and pauses after each failure. ``verb`` names the request in messages."""

    def __init__(self, path: str, verb: str) -> None:
        self._path, self._verb = path, verb
        self._started = time.monotonic()
        self._made = 0
        self._failures = 0  # in a row, without progress

    def begin(self) -> None:
        """Count an attempt; call it before each."""
        self._made += 1
        count(requests=1, retries=int(self._made > 1))

    def failed(self, error: Exception, *, progress: bool = False) -> None:
        """Pause before the next attempt; :class:`UnreachableError` after the last. ``progress``: bytes have arrived."""
        self._failures = 1 if progress else self._failures + 1
        reason = str(error) if isinstance(error, s3.S3Error) else type(error).__name__
        if self._failures >= ATTEMPTS:
            seconds = time.monotonic() - self._started
            raise UnreachableError(
                f"{redacted(self._path)}: cannot {self._verb} it, {self._made} attempts in {seconds:.0f} s failed "
                f"(the last: {reason}); check the endpoint, the network and the store"
            ) from None
        if self._failures == SAID_AT:
            log.warning("%s: cannot %s it yet (%s); trying again", redacted(self._path), self._verb, reason)
        # Full jitter. It needs no seed, because it changes only the timing.
        time.sleep(random.uniform(0, min(LONGEST_BACKOFF_S, BACKOFF_S * 2 ** (self._failures - 1))))
