"""Reading the CSV files that users bring: UTF-8, tidied fields, line numbers for messages."""

import csv
import io
from collections.abc import Iterator

from v2f.errors import V2FError
from v2f.prepare.names import tidy


def read_rows(text: bytes, path: str, *, strict: bool = True) -> Iterator[tuple[int, list[str]]]:
    """The line number and the fields of each row that is not blank, without the blanks around a field.

    ``strict``: whether a misplaced quote is an error; ``path`` names the file in the error. V2FError where ``text`` is
    not CSV in UTF-8.
    """
    try:
        reader = csv.reader(io.StringIO(text.decode("utf-8-sig"), newline=""), strict=strict)
        for fields in reader:
            row = [tidy(field) for field in fields]
            if any(row):
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise V2FError(f"{path}: this is not a CSV file in UTF-8 ({error}); save it as CSV in UTF-8") from error


def without_empty_end(fields: list[str]) -> list[str]:
    """The fields up to the last one with text; spreadsheets leave commas behind it."""
    filled = max((number for number, field in enumerate(fields, start=1) if field), default=0)
    return fields[:filled]
