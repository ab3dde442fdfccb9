"""The spool: every point and picture of a run as one line of JSON, in ``OUT/metrics.jsonl``.

``{"kind", "step", "time", "samples", "metrics": {name: value}}`` or
``{"kind": "picture", "step", "time", "samples", "picture": file, "name"}``.
"""

import contextlib
import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from v2f.storage import local as files
from v2f.storage import records
from v2f.storage.records import Record

SPOOL, ROLLED_BACK = "metrics.jsonl", "rolled-back.jsonl"
QUEUED_LINES = 10_000  # kept in memory while the disk is full


class _Line(Record):
    step: int
    samples: int
    time: float


class _Points(_Line):
    kind: str
    metrics: dict[str, float]


class _Picture(_Line):
    picture: str
    name: str


def parse_line(raw: bytes) -> dict[str, Any] | None:
    """A line of the spool; None if it is damaged, for example after a crash of the machine."""
    return records.parse_line(raw, _Points) or records.parse_line(raw, _Picture)


class Spool:
    """``metrics.jsonl`` of ``folder``, open for appending; an incomplete last line is removed by the next append.

    A step is written once for each kind of line. ``lost_lines``: how many lines were dropped because the disk stayed
    full.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / SPOOL
        self.lost_lines = 0
        self._queue: deque[bytes] = deque()
        self._lines: files.Lines | None = None
        self._last_steps: dict[str, int] = {}
        with files.explained(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self._lines = files.Lines(self.path)
                self._last_steps = _last_steps(self.path)

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line after the queued ones; if that fails, queue it and raise OSError."""
        kind, step = _kind(line), line["step"]
        if step <= self._last_steps.get(kind, -1):
            return
        self._last_steps[kind] = step
        self._queue.append(json.dumps(line).encode() + b"\n")
        if len(self._queue) > QUEUED_LINES:
            self._queue.popleft()
            self.lost_lines += 1
        self._flush()

    def close(self) -> None:
        """Write what is queued; what still cannot be written is lost."""
        with contextlib.suppress(OSError):
            self._flush()
        if self._lines is not None:
            self._lines.close()
        self.lost_lines += len(self._queue)

    def _flush(self) -> None:
        while self._queue:
            if self._lines is None:
                self._lines = files.Lines(self.path)
            self._lines.write(self._queue[0])
            self._queue.popleft()


def _last_steps(path: Path) -> dict[str, int]:
    """The last step of each kind of line."""
    steps: dict[str, int] = {}
    with files.opened(path) as lines:
        for raw in lines:
            line = parse_line(raw) if raw.endswith(b"\n") else None
            if line is not None:
                steps[_kind(line)] = max(steps.get(_kind(line), -1), line["step"])
    return steps


def _kind(line: Mapping[str, Any]) -> str:
    return f"picture {line['name']}" if "picture" in line else str(line["kind"])
