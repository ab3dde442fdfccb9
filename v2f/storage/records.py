"""Small JSON files that the program writes, and their validation when they are read back."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from v2f.errors import V2FError
from v2f.storage import store


class Record(BaseModel):
    """Base class for the fields that must be valid in a file of ours; further fields are accepted."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


def problem_of(record: type[Record], value: Any) -> str | None:
    """Why ``value`` is not a valid ``record``, in a few words; None if it is."""
    if not isinstance(value, dict):
        return f"it holds {type(value).__name__} instead of a mapping"
    try:
        record.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    return None


def read_record(path: str, record: type[Record], way_out: str) -> dict[str, Any]:
    """The JSON mapping in a file of ours, validated by ``record``; V2FError, ending with ``way_out``, if the file is
    truncated, damaged or was edited wrongly."""
    content = store.read_bytes(path)
    try:
        value: Any = json.loads(content)
    except (ValueError, RecursionError):
        raise V2FError(f"{path}: it is damaged, not valid JSON; {way_out}") from None
    problem = problem_of(record, value)
    if problem is not None:
        raise V2FError(f"{path}: it is damaged, {problem}; {way_out}")
    found: dict[str, Any] = value
    return found


def parse_line(line: bytes | str, record: type[Record]) -> dict[str, Any] | None:
    """One line of JSON as ``record`` wants it, or None where a kill or a crash left something else."""
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if problem_of(record, value) is None else None


def read_lines(path: str, record: type[Record], *, strict: bool = False) -> list[dict[str, Any]]:
    """The records in a file of JSON lines, without a last line that a kill has cut.

    Any other line that is no such record is left out, too, and a missing file counts as empty; if ``strict``, each of
    the two is a V2FError.
    """
    if not strict and not store.exists(path):
        return []
    found = []
    for number, line in enumerate(store.read_bytes(path).splitlines(keepends=True), start=1):
        value = parse_line(line, record)
        if value is not None and (line.endswith(b"\n") or not strict):
            found.append(value)
        elif strict and line.endswith(b"\n"):
            raise V2FError(f"{path}: line {number} is damaged, {_damage(line, record)}; remove the line")
    return found


def _damage(line: bytes, record: type[Record]) -> str | None:
    try:
        return problem_of(record, json.loads(line))
    except (ValueError, RecursionError):
        return "not valid JSON"
