"""Rolling back: a resumed run repeats the steps after its checkpoint, so the points of those steps are set aside."""

import json
from pathlib import Path

from v2f.storage import local as files
from v2f.storage import store
from v2f.tracking.spool import ROLLED_BACK, SPOOL, parse_line
from v2f.tracking.state import Channel, delivered_bytes, mark_at, read_state, write_state

_CHANNELS: tuple[Channel, ...] = ("points", "pictures")


def roll_back(folder: str, step: int) -> int:
    """Move the lines after ``step`` from the spool to ``rolled-back.jsonl``; return how many.

    Call it before you make a :class:`~v2f.tracking.tracker.Tracker` for ``folder``, a local path. A kill in the middle
    can leave a line in both files; the next call removes it from the spool. The marks (how far MLflow has received the
    spool) move accordingly, so that the remaining lines that were not delivered yet still will be.
    """
    spool, rolled_back_file = Path(folder, SPOOL), Path(folder, ROLLED_BACK)
    if not spool.exists():
        return 0
    with files.opened(spool) as lines:
        moved = [raw for raw in lines if _is_after(raw, step)]
    if not moved:
        return 0
    before = rolled_back_file.read_bytes().splitlines(keepends=True) if rolled_back_file.exists() else []
    known = set(before)
    store.write_bytes(str(rolled_back_file), b"".join([*before, *(raw for raw in moved if raw not in known)]))
    state = read_state(folder)
    old = {channel: delivered_bytes(spool, state, channel) for channel in _CHANNELS}
    new = dict.fromkeys(_CHANNELS, 0)
    delivered_samples = []  # of the moved lines: MLflow has them already
    with store.replacing(str(spool)) as temporary, open(temporary, "wb") as kept, files.opened(spool) as lines:
        position = 0
        for raw in lines:
            position += len(raw)
            if not _is_after(raw, step):
                kept.write(raw)
                new = {channel: new[channel] + len(raw) * (position <= size) for channel, size in old.items()}
            elif position <= max(old.values()):
                delivered_samples.append(json.loads(raw)["samples"])
    if state:
        ranges = state.get("rolled_back", [])
        if delivered_samples:
            ranges = [*ranges, [min(delivered_samples), max(delivered_samples)]]
        marks = {channel: mark_at(spool, size) for channel, size in new.items()}
        write_state(folder, state | {"marks": marks, "rolled_back": ranges})
    return len(moved)


def _is_after(raw: bytes, step: int) -> bool:
    line = parse_line(raw) if raw.endswith(b"\n") else None
    return line is not None and bool(line["step"] > step)


def outdated_pictures(folder: str) -> set[str]:
    """The pictures, as paths within a run's folder or prefix, that only rolled-back steps have drawn."""
    return _pictures_in(store.join(folder, ROLLED_BACK)) - _pictures_in(store.join(folder, SPOOL))


def _pictures_in(path: str) -> set[str]:
    lines = map(parse_line, store.read_bytes(path).splitlines()) if store.exists(path) else ()
    return {str(line["picture"]) for line in lines if line is not None and "picture" in line}
