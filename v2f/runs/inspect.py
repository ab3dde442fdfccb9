"""``v2f checkpoint show`` and ``verify``: what a run's checkpoints hold, and whether they are whole."""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from v2f.data.manifest import open_dataset
from v2f.errors import V2FError
from v2f.runs import checkpoint
from v2f.runs.checkpoint import COMMIT, TensorInfo
from v2f.runs.run import Run
from v2f.storage import store

_METRICS = 4  # columns of the table, if the configuration does not name a metric


# --------------------------------------------------------------------------------------------------------- show


def show(target: str) -> None:
    """Print the committed checkpoints of a run, or the contents of one checkpoint, named by its folder."""
    console = Console(width=None if sys.stdout.isatty() else 132)
    if store.exists(store.join(target, COMMIT)):
        _show_one(target.rstrip("/"), console)
    else:
        _show_all(Run.open(target), console)


def _show_all(run: Run, console: Console) -> None:
    folders = _folders(run)
    records = {folder: checkpoint.read_state(folder) for folder in folders}
    best = run.config.train.best
    meters = {name: None for record in records.values() for name in record["state"].get("metrics", {})}
    shown = [best.metric] if best else list(meters)[:_METRICS]
    table = Table(title=f"{run.path}: {len(folders)} committed checkpoints", title_justify="left")
    for heading in ("step", "saved", "parts", "size", *shown):
        table.add_column(heading, justify="right")
    table.add_column("kept because")
    for folder, why in zip(folders, _why(run, folders), strict=True):
        record = records[folder]
        metrics = record["state"].get("metrics", {})
        values = [f"{metrics[name]:.4g}" if metrics.get(name) is not None else "-" for name in shown]
        size = _bytes(sum(part["bytes"] for part in record["parts"]))
        table.add_row(str(record["step"]), record.get("saved", "-"), str(len(record["parts"])), size, *values, why)
    console.print(table)


def _folders(run: Run) -> list[str]:
    run.checkpoint()  # raises if there is none
    return checkpoint.committed(store.join(run.path, "checkpoints"))


def _why(run: Run, folders: list[str]) -> list[str]:
    """Why each of a run's checkpoints, oldest first, is kept at the next save."""
    train = run.config.train
    root = store.join(run.path, "checkpoints")
    best = checkpoint.best(root, train.best.metric, train.best.mode) if train.best else None
    reasons = []
    for folder in folders:
        why = {
            "the newest": folder == folders[-1],
            f"of the newest {train.keep}": folder in folders[-train.keep : -1],
            f"every {train.keep_every}": train.keep_every and checkpoint.step_of(folder) % train.keep_every == 0,
            f"the best {train.best.metric if train.best else ''}": folder == best,
        }
        reasons.append(", ".join(text for text, holds in why.items() if holds) or "removed at the next save")
    return reasons


@dataclass
class _Group:
    tensors: int = 0
    numbers: int = 0
    bytes: int = 0
    dtypes: tuple[str, ...] = ()

    def add(self, tensor: TensorInfo) -> None:
        self.tensors += 1
        self.numbers += _product(tensor.shape)
        self.bytes += tensor.bytes
        self.dtypes = tuple(sorted({*self.dtypes, tensor.dtype}))


def _show_one(folder: str, console: Console) -> None:
    record = checkpoint.read_state(folder)
    groups: dict[str, _Group] = {}
    for part in record["parts"]:
        for name, tensor in checkpoint.read_header(store.join(folder, part["name"]))[0].items():
            groups.setdefault(group_of(name), _Group()).add(tensor)
            groups.setdefault("all", _Group()).add(tensor)
    table = Table(title=folder, title_justify="left")
    table.add_column("what")
    for heading in ("tensors", "numbers", "size", "kind"):
        table.add_column(heading, justify="right")
    for name, group in sorted(groups.items(), key=lambda item: (item[0] == "all", item[0])):
        table.add_row(name, f"{group.tensors:,}", f"{group.numbers:,}", _bytes(group.bytes), ", ".join(group.dtypes))
    console.print(table)
    for name, text in _facts(record).items():
        console.print(f"{name}: {text}", soft_wrap=True, highlight=False, markup=False)


def group_of(name: str) -> str:
    """The group of a checkpoint's tensor: ``model/MODULE``, ``ema/MODULE``, ``optim/PHASE/MODULE SLOT``."""
    kind, *between, last = name.split("/")
    if kind == "optim":
        return f"{kind}/{between[0]}/{between[1].split('.', 1)[0]} {last}"
    return f"{kind}/{last.split('.', 1)[0]}"


def _facts(record: Mapping[str, Any]) -> dict[str, str]:
    """Facts in the state of a checkpoint: name -> text."""
    state = record["state"]
    config = state.get("config", {})
    canonical = json.dumps(config, sort_keys=True).encode()
    facts = {
        "step": f"{record['step']:,}",
        "slot": f"{state['slot']:,}{_epoch(config, state['slot'])}" if "slot" in state else "unknown",
        "saved": record.get("saved", "unknown"),
        "data fingerprint": state.get("fingerprint", "unknown"),
        "MLflow run": state.get("run_id") or "none",
        "configuration": f"SHA-256 {hashlib.sha256(canonical).hexdigest()[:16]}...",
        "in quarantine": f"{len(state.get('quarantine', []))} samples",
        "versions": ", ".join(f"{name} {version}" for name, version in state.get("versions", {}).items()) or "unknown",
    }
    return facts | {f"metric {name}": f"{value:.6g}" for name, value in state.get("metrics", {}).items()}


def _epoch(config: Mapping[str, Any], slot: int) -> str:
    """The epoch of a slot, if the run has one data set and it can be read here."""
    data = config.get("data", {})
    if not data.get("path"):
        return ""
    try:
        return f" (epoch {slot / open_dataset(data['path']).split(data['split']).samples:.2f})"
    except V2FError:
        return ""


# ------------------------------------------------------------------------------------------------------- verify


def verify(target: str) -> list[str]:
    """Print and return all problems of a run's committed checkpoints, or of one checkpoint, named by its folder."""
    one = store.exists(store.join(target, COMMIT))
    folders = [target.rstrip("/")] if one else _folders(Run.open(target))
    problems = []
    for folder in folders:
        for problem in _problems(folder):
            print(problem)
            problems.append(problem)
    if problems:
        print(f"{target}: {len(problems)} problems in {len(folders)} committed checkpoints")
    else:
        print(f"{target}: {len(folders)} committed checkpoints are as they were written, whole and finite")
    return problems


def _problems(folder: str) -> Iterator[str]:
    try:
        record = checkpoint.read_state(folder)
    except V2FError as error:
        yield str(error)
        return
    shapes: dict[str, tuple[int, ...]] = {}
    whole = True
    for part in record["parts"]:
        where = store.join(folder, part["name"])
        try:
            tensors = checkpoint.read_tensors(folder, part)
        except V2FError as error:
            yield str(error)
            whole = False
            continue
        if "tensors" in part and len(tensors) != part["tensors"]:
            yield f"{where}: {len(tensors)} tensors, {part['tensors']} were written"
        for name, tensor in tensors.items():
            if name in shapes:
                yield f"{where}: {name} is in another part as well"
            if tensor.is_floating_point() and not tensor.isfinite().all():
                bad = int((~tensor.isfinite()).sum())
                yield f"{where}: {name} holds {bad} numbers that are not finite; its training has diverged"
            shapes[name] = tuple(tensor.shape)
        del tensors  # before the next part is read
    if whole:
        yield from (f"{folder}: {problem}" for problem in misfits(shapes))


def misfits(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Contradictions in the names and shapes of a checkpoint.

    Averages and moments need a weight of the same name and shape; a module with some of them must have all.
    """
    weights = {name.removeprefix("model/"): shape for name, shape in shapes.items() if name.startswith("model/")}
    averages = {name.removeprefix("ema/"): shape for name, shape in shapes.items() if name.startswith("ema/")}
    if not weights:
        yield "it holds no weights (model/...)"
    averaged = {name.split(".", 1)[0] for name in averages}
    for name in weights:
        if name.split(".", 1)[0] in averaged and name not in averages:
            yield f"ema/{name} is missing"
    for name in averages.keys() - weights.keys():
        yield f"ema/{name} is the average of nothing: there is no model/{name}"
    for name in averages.keys() & weights.keys():
        if averages[name] != weights[name]:
            yield f"ema/{name} has shape {list(averages[name])}, model/{name} {list(weights[name])}"
    moments: dict[str, dict[str, dict[str, tuple[int, ...]]]] = {}
    for name, shape in shapes.items():
        if name.startswith("optim/"):
            _, phase, parameter, slot = name.split("/")
            moments.setdefault(phase, {}).setdefault(parameter, {})[slot] = shape
    for phase, parameters in moments.items():
        slots = {slot for own in parameters.values() for slot in own}
        for parameter, own in parameters.items():
            for slot in slots - own.keys():
                yield f"optim/{phase}/{parameter}/{slot} is missing"
            for slot, shape in own.items():
                if shape not in ((), weights.get(parameter)):
                    yield f"optim/{phase}/{parameter}/{slot} has shape {list(shape)}, which no weight here has"
    for name in shapes:
        if not name.startswith(("model/", "ema/", "optim/")):
            yield f"{name} does not belong in a checkpoint"


def _product(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count:,} B"
