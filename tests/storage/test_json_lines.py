"""Files of JSON lines as a kill may have left them."""

from pathlib import Path

import pytest

from v2f.errors import V2FError, first_line
from v2f.storage.records import Record, parse_line, read_lines


class Point(Record):
    step: int


def test_a_cut_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "more": [3]}\n{"st')
    assert read_lines(str(path), Point) == read_lines(str(path), Point, strict=True)
    assert read_lines(str(path), Point) == [{"step": 1}, {"step": 2, "more": [3]}]
    assert read_lines(str(tmp_path / "none.jsonl"), Point) == []
    with pytest.raises(V2FError, match=r"none.jsonl: cannot read it, there is no such file"):
        read_lines(str(tmp_path / "none.jsonl"), Point, strict=True)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "it holds list instead of a mapping"),
        (b'{"step": "1"}', "'step': input should be a valid integer"),
    ],
)
def test_a_damaged_line_is_left_out_or_named(tmp_path: Path, line: bytes, why: str) -> None:
    path = tmp_path / "points.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    assert parse_line(line, Point) is None
    assert read_lines(str(path), Point) == [{"step": 1}, {"step": 3}]
    with pytest.raises(V2FError, match=f"points.jsonl: line 2 is damaged, {why}; remove the line"):
        read_lines(str(path), Point, strict=True)


def test_the_first_line_of_a_text() -> None:
    assert first_line(ValueError("\n  what\nmore")) == "what"
    assert first_line(ValueError(), "nothing") == "nothing"
