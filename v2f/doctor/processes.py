"""A check in a process of its own, and what it reports on the way.

start(function, arguments) -- JSON, standard input --> inside(): function(**arguments) -- JSON lines --> examine()
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from v2f.doctor.findings import Finding, Setup, finding_of, shown_reason
from v2f.errors import V2FError
from v2f.storage.credentials import without_credentials

Check = Callable[..., Iterator[Any]]

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from v2f.doctor.processes import inside; inside()"
_ENDING_S = 2.0


def start(name: str, function: Check, arguments: Mapping[str, Any], **more: Any) -> "subprocess.Popen[str]":
    """A process that runs a function of this package. Its arguments go through its standard input, since every
    user of the machine may read the arguments of a process."""
    path = json.dumps([os.path.abspath(entry) for entry in sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", _BOOT, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:  # it has ended already; its exit code says why
        job = {"check": name, "module": function.__module__, "name": function.__name__, "arguments": arguments}
        json.dump(job, process.stdin)
    process.stdin = None
    return process


def inside() -> None:
    """Runs in the process. JSON lines go to the real standard output, what libraries print to standard error."""
    job = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    arguments = job["arguments"]
    if "setup" in arguments:
        arguments["setup"] = Setup(**arguments["setup"])
    function: Check = getattr(importlib.import_module(job["module"]), job["name"])
    for step in steps(job["check"], lambda: function(**arguments)):
        out.write(json.dumps(asdict(step) if isinstance(step, Finding) else step) + "\n")


def steps(name: str, check: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """What a check yields; an error that it raises becomes its last finding."""
    try:
        yield from check()
    except V2FError as error:
        yield finding_of(name, error)
    except Exception as error:  # a broken library, or a bug in the check
        yield Finding(name, "wrong", f"this check crashed: {type(error).__name__}: {shown_reason(error)}")


def examine(name: str, check: Check, setup: Setup, limit_s: float) -> list[Any]:
    """What a check found (findings and, for the recipe, facts), in a process that is killed after ``limit_s``."""
    process = start(name, check, {"setup": asdict(setup)}, start_new_session=True)
    late = False
    try:
        output, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        late = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and the processes that it started
        try:
            output, errors = process.communicate(timeout=_ENDING_S)
        except subprocess.TimeoutExpired as stuck:  # in a system call that no signal ends, such as on a lost mount
            output, errors = (stuck.output or b"").decode(errors="replace"), ""
    found: list[Any] = []
    doing = "starting"
    for raw in output.splitlines():
        with contextlib.suppress(ValueError):  # a truncated last line
            step = json.loads(raw)
            if isinstance(step, str):
                doing = step
            else:
                found.append(Finding(**step) if "verdict" in step else step)
    if late:
        advice = "find out what blocks it; --limit sets a longer limit"
        found.append(Finding(name, "wrong", f"not finished within {limit_s:g} s while {doing}", advice))
    elif process.returncode:
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"code {process.returncode}"
        found.append(Finding(name, "wrong", f"it crashed ({how}) while {doing}: {last_line(errors)}"))
    return [_clean(each) if isinstance(each, Finding) else each for each in found]


def last_line(text: str) -> str:
    return without_credentials((text.strip().splitlines() or ["no error output"])[-1])[:200]


def _clean(finding: Finding) -> Finding:
    return Finding(
        finding.check, finding.verdict, without_credentials(finding.found), without_credentials(finding.advice)
    )
