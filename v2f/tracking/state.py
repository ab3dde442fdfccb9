"""``OUT/tracking.json``: the run at MLflow, and how much of the spool has been delivered to it (the marks)."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from v2f.errors import V2FError
from v2f.storage import local as files
from v2f.storage import records, store
from v2f.storage.records import Record

STATE = "tracking.json"
_CHECKED_BYTES = 4096  # before a mark; their checksum identifies the spool

Channel = Literal["points", "pictures"]


class _Mark(Record):
    bytes: int = Field(ge=0)
    crc: int | None


class _Dataset(Record):
    name: str
    digest: str
    source: str
    profile: dict[str, Any]


class _State(Record):
    id: str = ""
    run_id: str | None = None
    status: str | None = None
    uri: str = ""
    experiment: str = ""
    name: str = ""
    parameters: dict[str, str] = {}
    tags: dict[str, str] = {}
    marks: dict[str, _Mark] = {}
    datasets: list[_Dataset] = []


def read_state(folder: str) -> dict[str, Any]:
    """The content of ``tracking.json`` in a folder or prefix: ``run_id``, ``uri``, the run's description, the marks.

    {} if the file is missing or damaged: the checkpoint has the ``run_id``, too, and MLflow knows what it received.
    """
    try:
        return records.read_record(store.join(folder, STATE), _State, "remove it")
    except V2FError:
        return {}


def write_state(folder: str, state: Mapping[str, Any]) -> None:
    """Write ``tracking.json``; V2FError or OSError if that fails."""
    store.write_bytes(store.join(folder, STATE), json.dumps(state, indent=1).encode())


def delivered_bytes(spool: Path, state: Mapping[str, Any], channel: Channel) -> int:
    """How many bytes of the spool have been delivered; 0 if the mark belongs to another spool."""
    mark = state.get("marks", {}).get(channel, {"bytes": 0, "crc": 0})
    return int(mark["bytes"]) if _checksum(spool, mark["bytes"]) == mark["crc"] else 0


def mark_at(spool: Path, size: int) -> dict[str, Any]:
    """The mark that says that the first ``size`` bytes of the spool have been delivered."""
    return {"bytes": size, "crc": _checksum(spool, size)}


def _checksum(spool: Path, size: int) -> int | None:
    """The checksum of the last bytes before position ``size``; None if the spool is shorter."""
    if size == 0:
        return 0
    if not spool.exists() or spool.stat().st_size < size:
        return None
    start = max(0, size - _CHECKED_BYTES)
    with files.opened(spool) as file:
        file.seek(start)
        return zlib.crc32(file.read(size - start))
