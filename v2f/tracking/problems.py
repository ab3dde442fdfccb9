"""Warnings about problems that last: each is logged once, not at every attempt."""

import logging

log = logging.getLogger("v2f")


class Problems:
    """Logs each problem when it first occurs, and once more when it is resolved."""

    def __init__(self) -> None:
        self._open: set[str] = set()

    def report(self, problem: str, message: str) -> None:
        """Log ``message`` unless ``problem`` has been reported and not been resolved since."""
        if problem not in self._open:
            self._open.add(problem)
            log.warning("tracking: %s", message)

    def resolve(self, problem: str, message: str) -> None:
        """Log ``message`` if ``problem`` was reported."""
        if problem in self._open:
            self._open.discard(problem)
            log.warning("tracking: %s", message)
