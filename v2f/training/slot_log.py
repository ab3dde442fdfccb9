"""Which sample each slot of each step was: written while a run trains, and read to check that none was lost."""

import json
from pathlib import Path

from pydantic import model_validator

from v2f.errors import V2FError
from v2f.storage import local as files
from v2f.storage.records import Record, read_lines
from v2f.system import Batch, by_stream
from v2f.tracking.console import say


class SlotLog:
    """One rank's log of its slots: ``RUN/slots/ATTEMPT-rank-N.jsonl``, a line per step, and per stream, which the line
    names, if there are several.

    A full disk does not stop the training: it is reported once, and when there is room again, a line without slots
    records which steps are missing: ``"lost": [FIRST, LAST]``. V2FError if the log cannot be opened for another reason.
    """

    def __init__(self, folder: Path, attempt: str, rank: int) -> None:
        self.path = folder / "slots" / f"{attempt}-rank-{rank:05d}.jsonl"
        self._lines: files.Lines | None = None
        self._lost: list[int] = []
        self._reported = False
        try:
            self._open()
        except files.PassingError as error:
            self._report(error)

    def write(self, step: int, batch: Batch) -> None:
        written = b""
        for stream, own in by_stream(batch).items():
            line = {"step": step, "slot": own["slot"].tolist(), "key": list(own["key"])}
            written += json.dumps(line | ({"stream": stream} if stream else {})).encode() + b"\n"
        try:
            lines = self._open()
            with files.explained(self.path):
                if self._lost:
                    gap = {"step": self._lost[1], "slot": [], "key": [], "lost": self._lost}
                    lines.write(json.dumps(gap).encode() + b"\n")
                    say(f"{self.path}: writing again; steps {self._lost[0]} to {self._lost[1]} are missing from it")
                    self._lost, self._reported = [], False
                lines.write(written)
        except V2FError as error:
            self._report(error)
            self._lost = [self._lost[0] if self._lost else step, step]

    def close(self) -> None:
        if self._lost:
            say(f"{self.path}: steps {self._lost[0]} to {self._lost[1]} are missing from it")
        if self._lines is not None:
            self._lines.close()

    def _open(self) -> files.Lines:
        if self._lines is None:
            with files.explained(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._lines = files.Lines(self.path)
        return self._lines

    def _report(self, error: V2FError) -> None:
        if not self._reported:
            say(f"{error}; training continues, but its steps are missing from this log")
        self._reported = True


def read_slots(folder: str, stream: str = "") -> list[tuple[int, int, str]]:
    """``(step, slot, key)`` of every step of the run in ``folder`` that counts, sorted; of one ``stream``.

    Steps that a later start repeated count as that start trained them. Steps that a log has lost are left out.
    """
    starts = read_lines(str(Path(folder, "starts.jsonl")), _Start, strict=True)
    found = []
    for i, start in enumerate(starts):
        end = min((later["step"] for later in starts[i + 1 :]), default=float("inf"))
        for path in sorted(Path(folder, "slots").glob(f"{start['attempt']}-rank-*.jsonl")):
            for line in read_lines(str(path), _Slots, strict=True):
                if line["step"] < end and line.get("stream", "") == stream:
                    found += [(line["step"], *pair) for pair in zip(line["slot"], line["key"], strict=True)]
    return sorted(found)


class _Start(Record):
    attempt: str
    step: int


class _Slots(Record):
    step: int
    slot: list[int]
    key: list[str]

    @model_validator(mode="after")
    def _pairs(self) -> "_Slots":
        if len(self.slot) != len(self.key):
            raise ValueError("there are not as many keys as slots")
        return self
