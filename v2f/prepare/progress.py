"""The progress of a pack: samples done and, if pSp redraws or encodes photos, how many of them a second.

In a terminal that is a progress line; in a log, a line for each shard, and only if pSp is used.
"""

import time
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Counts the samples and pictures of one part; ``psp``: whether pSp processes the photos."""

    def __init__(self, samples: int, what: str, *, psp: bool) -> None:
        self.pictures = 0
        self._what, self._psp, self._start = what, psp, time.monotonic()
        self._bar = tqdm(total=samples, unit="sample", desc=f"packing {what}", disable=None, smoothing=0.05)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def add(self, samples: int = 1, pictures: int = 0) -> None:
        """Count ``samples`` that are done, for which pSp processed ``pictures``."""
        self.pictures += pictures
        if self._psp:
            self._bar.set_postfix_str(self._pace(), refresh=False)
        self._bar.update(samples)

    def wrote(self, shard: str) -> None:
        """Say in a log, which has no progress line, that a shard was written."""
        if self._psp and self._bar.disable:
            print(f"{self._what}: {shard} written; pSp: {self.pictures:,} pictures so far, {self._pace()}", flush=True)

    def summary(self) -> str:
        """What pSp did since the start, in a line."""
        seconds = time.monotonic() - self._start
        return f"{self._what}: pSp processed {self.pictures:,} pictures in {seconds:,.0f} s, {self._pace()}"

    def _pace(self) -> str:
        return f"{self.pictures / max(time.monotonic() - self._start, 1e-9):.3g} pictures a second"
