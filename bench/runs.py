"""Runs of a study: trained and evaluated by the command line, each once; one that was stopped is resumed."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from v2f.runs.run import Run

REPOSITORY = Path(__file__).resolve().parent.parent


def finished(
    recipe: str,
    name: str,
    steps: int,
    changes: Mapping[str, str],
    *,
    data: str | None = None,
    judged_with: Sequence[str] = (),
) -> str:
    """Train ``recipe`` to step ``steps`` as the run ``name`` on one thread, and evaluate it; its folder.
    ``judged_with``: options of `v2f eval`.

    A run that is evaluated at that step already is left as it is, if it was trained on ``data`` (where that is given);
    of other data under its name, `v2f train` says that the data differ.
    """
    run = str(REPOSITORY / "runs" / name)
    done = Path(run, "eval.json").exists() and evaluated(run)["step"] == steps
    if done and data in (None, Run.open(run).config.data.home):
        return run
    values = {"name": name, "train.steps": str(steps), "train.threads": "1", "tracking.uri": "null", **changes}
    if data is not None:
        values["data.path"] = data
    v2f("train", "--config", recipe, "--resume", "auto", *(f"{key}={value}" for key, value in values.items()))
    v2f("eval", run, *judged_with)
    return run


def v2f(*arguments: str) -> None:
    """Run a command of v2f from this clone, on one thread."""
    paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-m", "v2f.cli", *arguments], check=True, cwd=REPOSITORY, env=environment)


def evaluated(run: str) -> dict[str, Any]:
    """The ``eval.json`` of a run."""
    found: dict[str, Any] = json.loads(Path(run, "eval.json").read_text())
    return found


def write(out: Path, found: Mapping[str, Any]) -> None:
    """Write the results of a study as JSON; paths in this clone become relative to it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1).replace(f"{REPOSITORY}/", "") + "\n")
