"""Runs all checks, and prints what they find as a table or JSON.

    recipe --> the places it names --> checks, each in its own process --> findings --> table or JSON, exit code

A check that hangs (a store, a driver, a mount) or crashes (a library built for another machine) costs its time limit
and yields one finding; the other checks still run. Checks do what a run does: a round trip to the store and to MLflow,
an all-reduce, a write with fsync. No output contains a credential (:mod:`v2f.storage.credentials`).
"""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from v2f.doctor import devices, installed, machine, recipe, services
from v2f.doctor.findings import Finding, Setup, Verdict
from v2f.doctor.processes import Check, examine

LIMIT_S = 20.0
_LOADING = 3  # multiplies the limit of a check that imports torch or MLflow, which is slow from a cold disk
_PARALLEL = 4

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
"""Name -> the check, and whether it imports torch or MLflow. In the order of the report."""


def doctor(setup: Setup, *, limit_s: float = LIMIT_S, as_json: bool = False, console: Console | None = None) -> int:
    """Run all checks, print their findings, and return how many have the verdict ``wrong``."""
    console = console or Console()
    findings: list[Finding] = []
    with console.status("checking") if console.is_terminal and not as_json else contextlib.nullcontext():
        if setup.recipe is not None:
            if setup.weights:
                setup = replace(setup, overrides=[*setup.overrides, f"system.frozen.path={setup.weights}"])
            for found in examine("recipe", recipe.recipe, setup, _LOADING * limit_s):
                if isinstance(found, Finding):
                    findings.append(found)
                else:
                    setup = replace(setup, **found)
            if any(finding.verdict == "wrong" for finding in findings):
                setup = replace(setup, recipe=None)  # so that its mistake is reported only once

        def one(name: str) -> list[Finding]:
            check, loading = CHECKS[name]
            return examine(name, check, setup, limit_s * (_LOADING if loading else 1))

        chosen = [name for name in CHECKS if name != "recipe" or setup.recipe is not None]
        with ThreadPoolExecutor(min(_PARALLEL, len(os.sched_getaffinity(0)))) as pool:
            for each in pool.map(one, chosen):
                findings += each
    counts = Counter(finding.verdict for finding in findings)
    if as_json:
        worst: Verdict = "wrong" if counts["wrong"] else "look" if counts["look"] else "ok"
        print(json.dumps({"verdict": worst, "lines": [finding.record() for finding in findings]}, indent=1))
    else:
        _print(findings, console)
        rest = f", {counts['look']} to look at" if counts["look"] else ""
        console.print(f"{counts['wrong'] or 'nothing is'} wrong{rest}", soft_wrap=True, highlight=False)
    return counts["wrong"]


def _print(findings: Sequence[Finding], console: Console) -> None:
    if not console.is_terminal:
        for finding in findings:
            advice = f"; {finding.advice}" if finding.advice else ""
            console.print(
                escape(f"{finding.verdict:5} {finding.check}: {finding.found}{advice}"), soft_wrap=True, highlight=False
            )
        return
    colors = {"ok": "green", "look": "yellow", "wrong": "bold red"}
    table = Table(pad_edge=False, box=None, show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    before = None
    for finding in findings:
        name, before = "" if finding.check == before else finding.check, finding.check
        advice = f"\n[italic]→ {escape(finding.advice)}[/]" if finding.advice else ""
        table.add_row(f"[{colors[finding.verdict]}]{finding.verdict}[/]", name, f"{escape(finding.found)}{advice}")
    console.print(table)
