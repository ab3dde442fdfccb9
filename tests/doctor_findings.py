"""What tests of the doctor ask of the findings of a check."""

from typing import Any

from v2f.doctor.findings import Finding


def lines(found: Any) -> list[Finding]:
    return [each for each in found if isinstance(each, Finding)]


def of(found: Any, verdict: str) -> list[Finding]:
    return [line for line in lines(found) if line.verdict == verdict]
