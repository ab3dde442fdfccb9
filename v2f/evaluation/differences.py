"""What differs between runs: keys of their configuration, and facts such as data, code and versions."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from v2f.config import fixed_on_resume, flatten
from v2f.evaluation.subjects import Subject

_ABSENT = "–"


@dataclass(frozen=True)
class ComparedKey:
    """A key of the configuration or the name of a fact, and its value in each run."""

    key: str
    values: tuple[str, ...]

    @property
    def known(self) -> list[str]:
        """Its different values; an export lacks some facts."""
        return [value for value in dict.fromkeys(self.values) if value != _ABSENT]


@dataclass(frozen=True, kw_only=True)
class Differences:
    """What differs between the runs; ``alike`` are the facts that do not (not keys of the configuration)."""

    config: dict[str, list[ComparedKey]]
    """Group of the configuration -> keys that all runs have and that affect training."""
    some: list[ComparedKey]
    """Keys that only some runs have, such as those of another system."""
    free: list[ComparedKey]
    """Keys that do not affect training."""
    facts: list[ComparedKey]
    alike: list[ComparedKey]


def differences(subjects: Sequence[Subject]) -> Differences:
    """What differs between the runs."""
    flat = [flatten(subject.run.config) for subject in subjects]
    keys = [key for key in dict.fromkeys(itertools.chain(*flat)) if key not in ("name", "out")]
    rows = [ComparedKey(key, tuple(_formatted(of[key]) if key in of else _ABSENT for of in flat)) for key in keys]
    trained = {key for subject in subjects for key in fixed_on_resume(subject.run.config)}
    config: dict[str, list[ComparedKey]] = {}
    some, free = [], []
    for row in rows:
        if len(set(row.values)) == 1:
            continue
        if row.key not in trained:
            free.append(row)
        elif all(row.key in of for of in flat):
            config.setdefault(row.key.partition(".")[0] if "." in row.key else "run", []).append(row)
        else:
            some.append(row)
    tables = [facts_of(subject) for subject in subjects]
    names = dict.fromkeys(itertools.chain(*tables))
    facts = [ComparedKey(name, tuple(table.get(name, _ABSENT) for table in tables)) for name in names]
    return Differences(
        config=config,
        some=some,
        free=free,
        facts=[row for row in facts if len(row.known) > 1],
        alike=[row for row in facts if len(row.known) == 1],
    )


def facts_of(subject: Subject) -> dict[str, str]:
    """What the run was made from and with, besides its configuration: name -> value."""
    info, measured = subject.run.info, subject.evaluated or {}
    data, stand_ins = measured.get("data", {}), info.get("stand_ins")
    facts: dict[str, Any] = {
        "step": subject.step,
        "measured at step": measured.get("step"),
        "data": info.get("data"),
        "data: fingerprint": info.get("fingerprint"),
        "measured on": data.get("path"),
        "measured on: fingerprint": data.get("fingerprint"),
        "measured on: version of the world": data.get("world_version"),
        "seconds heard": measured.get("seconds"),
        "code": info.get("code"),
        "device": info.get("device"),
        "world size": info.get("world_size"),
        "strategy": info.get("strategy"),
        "stand-ins": stand_ins,
        **{f"weights: {role}": digest for role, digest in (info.get("weights") or {}).items()},
        **{f"version of {package}": number for package, number in (info.get("versions") or {}).items()},
    }
    if not subject.run.exported:
        sizes = [f"{start.get('world_size')} at step {start.get('step')}" for start in subject.starts]
        changed = [f"{each} at step {s.get('step')}" for s in subject.starts for each in s.get("changed") or []]
        facts |= {"starts": len(subject.starts), "ranks of each start": ", ".join(sizes) or None}
        facts["changed over resumes"] = "; ".join(changed) or "nothing"
    return {name: _formatted(value) for name, value in facts.items() if value is not None}


def _formatted(value: Any) -> str:
    """A value as the tables show it: text as it is, anything else as JSON."""
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
