"""``v2f doctor``: is everything here that a run needs? A verdict a line, what was found, and what to do.

    recipe --> what it says of places --> checks, each in a process of its own --> lines --> table or JSON, exit code

A check that hangs (a store, a driver, a mount) or dies (a library built for another machine) costs its time limit and
one line, never the doctor. Checks do what a run does: a round trip to the store and to MLflow, an all-reduce, a write
that is synced. Nothing that is printed holds a credential (:func:`v2f.config.without_credentials`).
"""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from v2f.doctor import devices, installed, machine, recipe, services
from v2f.doctor.findings import Asked, Line, Verdict
from v2f.doctor.processes import Check, examined

LIMIT_S = 20.0
_LOADING = 3  # times the limit for a check that loads torch or MLflow first: from a cold disk that takes its time
_AT_ONCE = 4

CHECKS: dict[str, tuple[Check, bool]] = {
    "python": (installed.python, False),
    "packages": (installed.packages, False),
    "torch": (devices.torch_and_gpus, True),
    "all-reduce": (devices.all_reduce, True),
    "machine": (machine.machine, False),
    "network": (machine.network, False),
    "disk": (machine.disk, False),
    "storage": (services.storage, False),
    "mlflow": (services.mlflow, True),
    "recipe": (recipe.weights_and_data, True),
}
"""Name -> what checks it, and whether it loads torch or MLflow first. In the order of the report."""


def doctor(asked: Asked, *, limit_s: float = LIMIT_S, as_json: bool = False, console: Console | None = None) -> int:
    """Make all checks, print what they found, and count what is wrong."""
    console = console or Console()
    lines: list[Line] = []
    with console.status("looking") if console.is_terminal and not as_json else contextlib.nullcontext():
        if asked.recipe is not None:
            if asked.weights:
                asked = replace(asked, overrides=[*asked.overrides, f"system.frozen.path={asked.weights}"])
            for found in examined("recipe", recipe.recipe, asked, _LOADING * limit_s):
                if isinstance(found, Line):
                    lines.append(found)
                else:
                    asked = replace(asked, **found)
            if any(line.verdict == "wrong" for line in lines):
                asked = replace(asked, recipe=None)  # its mistake is told once

        def one(name: str) -> list[Line]:
            check, loading = CHECKS[name]
            return examined(name, check, asked, limit_s * (_LOADING if loading else 1))

        chosen = [name for name in CHECKS if name != "recipe" or asked.recipe is not None]
        with ThreadPoolExecutor(min(_AT_ONCE, len(os.sched_getaffinity(0)))) as pool:
            for each in pool.map(one, chosen):
                lines += each
    counts = Counter(line.verdict for line in lines)
    if as_json:
        worst: Verdict = "wrong" if counts["wrong"] else "look" if counts["look"] else "ok"
        print(json.dumps({"verdict": worst, "lines": [asdict(line) for line in lines]}, indent=1))
    else:
        _print(lines, console)
        rest = f", {counts['look']} to look at" if counts["look"] else ""
        console.print(f"{counts['wrong'] or 'nothing is'} wrong{rest}", soft_wrap=True, highlight=False)
    return counts["wrong"]


def _print(lines: Sequence[Line], console: Console) -> None:
    if not console.is_terminal:
        for line in lines:
            do = f"; {line.do}" if line.do else ""
            console.print(escape(f"{line.verdict:5} {line.check}: {line.found}{do}"), soft_wrap=True, highlight=False)
        return
    colours = {"ok": "green", "look": "yellow", "wrong": "bold red"}
    table = Table(pad_edge=False, box=None, show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    before = None
    for line in lines:
        name, before = "" if line.check == before else line.check, line.check
        do = f"\n[italic]→ {escape(line.do)}[/]" if line.do else ""
        table.add_row(f"[{colours[line.verdict]}]{line.verdict}[/]", name, f"{escape(line.found)}{do}")
    console.print(table)
