"""What identifies a run and its starts: ``run.json``, ``starts.jsonl``, and the head of its page in MLflow."""

import json
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from v2f.config import flatten
from v2f.data.streams import Streams
from v2f.engine import Engine
from v2f.runs.config import RunConfig, what_is
from v2f.runs.folder import RunFolder
from v2f.runs.run import source_line
from v2f.storage import local as files
from v2f.storage import store
from v2f.system import System, trained
from v2f.tracking.console import say
from v2f.tracking.mlflow_run import NOTE
from v2f.tracking.rollback import roll_back
from v2f.tracking.spool import ROLLED_BACK
from v2f.tracking.state import read_state
from v2f.tracking.tracker import Tracker

_NO_PARAMETER = ("name", "out", "tracking.")  # MLflow has them as the run's name, tag and experiment


def record_start(folder: RunFolder, attempt: str, engine: Engine, step: int, changed: Sequence[str]) -> int:
    """Add this start, which resumes at ``step``, to ``starts.jsonl``; returns how many starts there are.

    What earlier starts logged after ``step`` is rolled back. ``changed``: differences of the configuration.
    """
    for difference in changed:
        say(f"changed and allowed: {difference}")
    if lines := roll_back(str(folder.local), step):
        say(f"steps after {step} are trained again: what was logged of them ({lines} lines) is now in {ROLLED_BACK}")
    facts = {"attempt": attempt, "step": step, "time": time.time(), "world_size": engine.world_size}
    facts |= {"strategy": engine.strategy, "changed": list(changed)}
    path = folder.local / "starts.jsonl"
    files.append_line(path, json.dumps(facts))
    return store.read_bytes(str(path)).count(b"\n")


def write_run_info(
    config: RunConfig,
    folder: RunFolder,
    engine: Engine,
    system: System,
    fingerprint: str,
    init_from: list[dict[str, Any]],
) -> dict[str, Any]:
    """Write ``run.json``, and return its content."""
    info = {
        "name": config.name,
        "system": config.system.name,
        "fingerprint": fingerprint,
        "data": ", ".join(dict.fromkeys(source.path for source in config.data.sources)),
        "stand_ins": ", ".join(system.stand_ins) or "none",
        "weights": dict(system.weights),
        "init_from": init_from,
        "code": _code_version(),
        "world_size": engine.world_size,
        "strategy": engine.strategy,
        "precision": engine.precision,
        "device": _device_name(engine.device),
        "versions": package_versions(),
    }
    store.write_bytes(store.join(folder.path, "run.json"), json.dumps(info, indent=1).encode())
    return info


def start_tracker(
    config: RunConfig, folder: RunFolder, system: System, loader: Streams, info: dict[str, Any], run_id: str | None
) -> Tracker:
    """The run's tracker. ``info`` is the content of ``run.json``; ``run_id`` is MLflow's, if a checkpoint knows it."""
    tags = {f"v2f.{k}": v for k, v in info.items() if isinstance(v, str)}
    if info["init_from"]:
        tags["v2f.init_from"] = "; ".join(map(source_line, info["init_from"]))
    tags["v2f.out"] = folder.path if folder.remote else str(folder.local.resolve())
    tags |= {"mlflow.source.git.commit": info["code"].split("+")[0], NOTE: _description(config, system, loader)}
    return Tracker(
        str(folder.local),
        uri=config.tracking.uri,
        experiment=config.tracking.experiment,
        name=config.name,
        parameters={key: value for key, value in flatten(config).items() if not key.startswith(_NO_PARAMETER)},
        tags=tags,
        datasets=[
            {
                "name": _last_part(dataset.root),
                "digest": dataset.fingerprint[:32],  # MLflow's limit; a tag has all of it
                "source": dataset.root,
                "profile": {name: size.model_dump() for name, size in dataset.manifest.splits.items()},
            }
            for dataset in {d.root: d for own in loader.loaders.values() for d in own.split.datasets}.values()
        ],
        run_id=read_state(str(folder.local)).get("run_id") or run_id,
    )


def _description(config: RunConfig, system: System, loader: Streams) -> str:
    """The head of the run's page in MLflow, in Markdown."""
    train, batch = config.train, config.data.batch
    epochs = []
    for own in loader.loaders.values():
        data = ", ".join(f"`{_last_part(dataset.root)}`" for dataset in own.split.datasets)
        count = own.split.samples
        epochs.append(f"{train.steps * own.batch / count:.1f} epochs of the {count:,} of {data}")
    nets = f"Stand-ins ({', '.join(system.stand_ins)}): its numbers and faces hold for the synthetic world only."
    lines = [
        f"**{what_is(config.system.name)}**",
        f"{count_parameters(system):,} trained parameters; {train.steps:,} steps of {batch}: "
        f"{train.steps * batch:,} samples seen, {', and '.join(epochs)}.",
        *([nets] if system.stand_ins else []),
        "The axis of every curve here is samples seen, whatever it is called; `step` is the optimizer's.",
        "A face estimated from a voice is no photograph and no evidence: do not use it to identify or to judge anyone.",
    ]
    return "\n\n".join(lines)


def count_parameters(system: System) -> int:
    """How many parameters are trained."""
    return sum(p.numel() for module in trained(system).values() for p in module.parameters())


def package_versions() -> dict[str, str]:
    """The versions of Python and of the packages that a run depends on."""
    return {
        "python": platform.python_version(),
        **{p: version(p) for p in ("v2f", "torch", "accelerate", "deepspeed", "webdataset", "numpy")},
    }


def _code_version() -> str:
    """The commit of the source tree, with ``+dirty`` if it has uncommitted changes; without git, the package's version.

    git takes no lock: a training run killed just then would leave the lock behind and block its owner's next commit.
    """
    here = Path(__file__).parents[1]
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(
            ["git", "--no-optional-locks", "status", "--porcelain", "--", "."],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return f"v2f-{version('v2f')}"
    return commit.stdout.strip() + ("+dirty" if dirty.stdout.strip() else "")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def _last_part(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]
