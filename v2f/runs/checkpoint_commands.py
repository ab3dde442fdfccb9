"""``v2f checkpoint``: what a run's checkpoints hold, whether they are whole, and one of them for others to use.

    RUN/checkpoints -> show: a table | verify: problems, a line each
                    -> export: DIR/{model.safetensors, README.md, DATA.md, config.yaml}, which is again a RUN;
                       and, where one is asked for, a graph beside them: model.pt2 or model.onnx

An export is made to be given away: no absolute path, no address and no credential of the site is in it.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from v2f.config import build, dump_yaml
from v2f.data.manifest import open_dataset
from v2f.errors import V2FError
from v2f.runs import checkpoint, datacard, graphs
from v2f.runs.checkpoint import COMMIT, Entry
from v2f.runs.run import MODEL, NOTES, Run, RunConfig, told_source, what_is
from v2f.storage import store
from v2f.weights import RunModule, UserWeights

CARD = "README.md"
_TOLD = ("name", "system", "fingerprint", "stand_ins", "weights", "code", "versions")  # of run.json, to strangers
_LOADED = {
    "model.pt2": "`torch.export.load('model.pt2').module()` is the graph, for this torch or a newer one.",
    "model.onnx": "`onnxruntime.InferenceSession('model.onnx')` runs the graph.",
}
_METRICS = 4  # columns of the table, where the configuration names no meter of its own


# --------------------------------------------------------------------------------------------------------- show


def show(target: str) -> None:
    """Print the committed checkpoints of a run, or what one of them, named by its folder, holds."""
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
    run.checkpoint()  # there is one
    return checkpoint.committed(store.join(run.path, "checkpoints"))


def _why(run: Run, folders: list[str]) -> list[str]:
    """Why each of a run's checkpoints, the oldest first, outlives the next save."""
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
        reasons.append(", ".join(text for text, holds in why.items() if holds) or "goes with the next save")
    return reasons


@dataclass
class _Group:
    tensors: int = 0
    numbers: int = 0
    bytes: int = 0
    dtypes: tuple[str, ...] = ()

    def add(self, entry: Entry) -> None:
        self.tensors += 1
        self.numbers += _product(entry.shape)
        self.bytes += entry.bytes
        self.dtypes = tuple(sorted({*self.dtypes, entry.dtype}))


def _show_one(folder: str, console: Console) -> None:
    record = checkpoint.read_state(folder)
    groups: dict[str, _Group] = {}
    for part in record["parts"]:
        for name, entry in checkpoint.read_header(store.join(folder, part["name"]))[0].items():
            groups.setdefault(group_of(name), _Group()).add(entry)
            groups.setdefault("all", _Group()).add(entry)
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
    """Where a tensor of a checkpoint belongs: ``model/MODULE``, ``ema/MODULE``, ``optim/PHASE/MODULE SLOT``."""
    kind, *between, last = name.split("/")
    if kind == "optim":
        return f"{kind}/{between[0]}/{between[1].split('.', 1)[0]} {last}"
    return f"{kind}/{last.split('.', 1)[0]}"


def _facts(record: Mapping[str, Any]) -> dict[str, str]:
    """What the state of a checkpoint tells, one line each."""
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
    """The epoch of a slot, where the run has one data set and that can be read here."""
    data = config.get("data", {})
    if not data.get("path"):
        return ""
    try:
        return f" (epoch {slot / open_dataset(data['path']).split(data['split']).samples:.2f})"
    except V2FError:
        return ""


# ------------------------------------------------------------------------------------------------------- verify


def verify(target: str) -> list[str]:
    """All problems of a run's committed checkpoints, or of one, named by its folder; printed one a line."""
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
                yield f"{where}: {name} is in another part, too"
            if tensor.is_floating_point() and not tensor.isfinite().all():
                bad = int((~tensor.isfinite()).sum())
                yield f"{where}: {name} holds {bad} numbers that are not finite; its training has diverged"
            shapes[name] = tuple(tensor.shape)
        del tensors  # before the next part comes
    if whole:
        yield from (f"{folder}: {problem}" for problem in misfits(shapes))


def misfits(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """What does not fit together in the names and shapes of a checkpoint.

    Averages and moments are of weights that are there and shaped like them; a module that has some has all.
    """
    weights = {name.removeprefix("model/"): shape for name, shape in shapes.items() if name.startswith("model/")}
    averages = {name.removeprefix("ema/"): shape for name, shape in shapes.items() if name.startswith("ema/")}
    if not weights:
        yield "no weights (model/...) are in it"
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
            yield f"{name} is nothing that a checkpoint holds"


# ------------------------------------------------------------------------------------------------------- export


def export(
    name: str,
    out: str,
    which: str | int = "latest",
    *,
    raw: bool = False,
    format: Literal["safetensors"] | graphs.Format = "safetensors",
) -> None:
    """Write one checkpoint of the run ``name`` for inference: weights in one file, configuration, model and data card.

    The weights are the moving averages, where they are kept, or with ``raw`` those that were trained. The
    configuration comes last: without it nothing opens the folder. Another ``format`` than safetensors adds the graph
    that the system exports (:meth:`System.exports`); V2FError where it exports none.
    """
    run = Run.open(name)
    folder = run.checkpoint(which)
    if store.names(out):
        raise V2FError(f"{out}: something is there already; name a new folder")
    graph = None if format == "safetensors" else _graph(run, which, raw, format)
    tensors, state = checkpoint.load(folder, lambda name: name.startswith(("model/", "ema/")))
    averaged = not raw and any(name.startswith("ema/") for name in tensors)
    weights = {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")}
    if averaged:
        weights |= {n.removeprefix("ema/"): t for n, t in tensors.items() if n.startswith("ema/")}
    trained = build(RunConfig, state["config"], folder) if "config" in state else run.config
    config = portable(trained)
    about = {key: run.info[key] for key in _TOLD if key in run.info} | {
        "step": checkpoint.step_of(folder),
        "samples": state.get("slot"),
        "averaged": averaged,
        "init_from": _last_parts(state.get("init_from", [])),
        "metrics": state.get("metrics", {}),
    }
    notes = {"format": "pt", NOTES: json.dumps(about)}
    digest = checkpoint.write_tensors(store.join(out, MODEL), weights, notes)["sha256"]
    if graph is not None:
        store.write_bytes(store.join(out, graph.name), graph.content)
    card = _card(config, about, weights, digest, _evaluated(run, about["step"]), graph)
    store.write_bytes(store.join(out, CARD), card.encode())
    store.write_bytes(store.join(out, datacard.CARD), datacard.card(trained, about.get("fingerprint")).encode())
    store.write_bytes(store.join(out, "config.yaml"), dump_yaml(config).encode())
    kind = "the moving averages of the weights" if averaged else "the weights"
    print(f"{out}: {kind} of step {about['step']}, {len(weights)} tensors, SHA-256 {digest[:16]}...")
    if graph is not None:
        print(f"{store.join(out, graph.name)}: {graph.about}")


@dataclass(frozen=True)
class _Graph:
    name: str
    content: bytes
    about: str


def _graph(run: Run, which: str | int, raw: bool, format: graphs.Format) -> _Graph:
    exported = run.system(ema=not raw, which=which).exports()
    if exported is None:
        raise V2FError(f"--format {format}: the system {run.config.system.name} exports no graph; leave the format out")
    return _Graph(graphs.FILES[format], graphs.content(exported, format), exported.about)


def portable(config: RunConfig) -> RunConfig:
    """The configuration without what holds for one site: every absolute path and address becomes its last part."""
    values = _last_parts(config.model_dump(mode="json"))
    values["out"] = None
    values["tracking"]["uri"] = None
    values["data"]["cache"] = None
    return build(RunConfig, values, "the configuration to export")


def _last_parts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _last_parts(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_last_parts(each) for each in value]
    if isinstance(value, str) and (value.startswith(("/", "~")) or "://" in value):
        return re.split(r"[/@]", value.rstrip("/"))[-1] or "data"
    return value


def _evaluated(run: Run, step: int) -> dict[str, Any]:
    """``eval.json`` of the run, if it is of this step."""
    found = run.evaluated or {}
    return found if found.get("step") == step else {}


def _card(
    config: RunConfig,
    about: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    digest: str,
    evaluated: dict[str, Any],
    graph: _Graph | None = None,
) -> str:
    """The model card."""
    system = config.system.name
    numbers = sum(tensor.numel() for tensor in weights.values())
    frozen = config.system.nets
    brought: dict[str, UserWeights | RunModule] = {}
    if frozen is not None:
        brought = {**frozen.user_weights(), **frozen.run_modules()}
    lines = [
        f"# {config.name}",
        "",
        what_is(system),
        "",
        f"- System `{system}` of v2f, step {about['step']:,} of {config.train.steps:,}"
        + (f" ({about['samples']:,} samples seen)." if about["samples"] is not None else "."),
        f"- `{MODEL}`: {len(weights)} tensors, {numbers:,} numbers, "
        + ("moving averages of the weights" if about["averaged"] else "the weights as they were trained")
        + f"; SHA-256 `{digest}`. It holds what was trained, and none of the frozen nets.",
        *([] if graph is None else [f"- `{graph.name}`: {graph.about}"]),
        f"- Trained on data with the fingerprint `{about.get('fingerprint', 'unknown')}`, by v2f at "
        f"`{about.get('code', 'unknown')}`; [{datacard.CARD}]({datacard.CARD}) tells of them.",
        *(f"- It started from trained weights: {told_source(record)}." for record in about["init_from"]),
        "",
        "## Numbers",
        "",
        *_numbers(about, evaluated),
        "",
        "## Frozen nets",
        "",
        *_nets(about, brought),
        "",
        "## What the pictures are not",
        "",
        "They are made by a program: none is a photograph, and none is meant to show a person who exists. A",
        "face that is estimated from a voice shows what voices of this kind go with in the training data, with all its",
        "biases; it is no likeness of the speaker. Do not use it to identify, find, accuse, classify or judge anybody,",
        "to impersonate anybody, or with a voice whose owner did not agree. Whom the training data do not show (by",
        "age, origin, language, health), it estimates badly, and nothing in the picture says so. Keep the notes that",
        "v2f writes into every picture.",
        "",
        "## Licence",
        "",
        "v2f is under Apache-2.0. These weights were made from data and frozen nets whose own terms go on to hold for",
        "them; who publishes them states a licence here that those terms allow.",
        "",
        "## How to load it",
        "",
        "```sh",
        "v2f generate THIS_FOLDER voice.wav -o face.png   # for a system that hears a voice",
        "```",
        "```python",
        "from v2f.runs.run import Run",
        "",
        'system = Run.open("THIS_FOLDER").system()  # in eval mode; pictures = system.sample(batch)',
        "```",
        f"Without v2f, `safetensors.torch.load_file` reads `{MODEL}`: names are `MODULE.PARAMETER`.",
        *([] if graph is None else [_LOADED[graph.name]]),
    ]
    return "\n".join(lines) + "\n"


def _numbers(about: Mapping[str, Any], evaluated: Mapping[str, Any]) -> list[str]:
    lines = []
    if about["metrics"]:
        lines += [
            f"The newest validation when step {about['step']:,} was saved:",
            "",
            "| meter | value |",
            "| --- | ---: |",
            *(f"| {name} | {_number(value)} |" for name, value in sorted(about["metrics"].items())),
        ]
    for name, split in evaluated.get("splits", {}).items():
        told = {by: own["lines"].get("voice", {}) for by, own in split["by"].items()}
        shares = {by: {k: v for k, v in own.items() if k.startswith("R@") and v} for by, own in told.items()}
        names = list(dict.fromkeys(k for own in shares.values() for k in own))
        if names:
            chance = split.get("chance") or {}
            data = evaluated.get("data", {}).get("fingerprint")
            where = "the same data" if data == about.get("fingerprint") else f"the data `{data}`"
            lines += [
                *([""] if lines else []),
                f"`v2f eval` of this step on {where}: {split.get('what', name)}, gallery of {split.get('gallery')}. "
                "No loss has seen the referee; the judge is what the losses look at.",
                "",
                f"| | {' | '.join(f'this run, by the {by}' for by in shares)} | chance |",
                f"| --- |{' ---: |' * (len(shares) + 1)}",
                *(
                    f"| {k} | {' | '.join(_percent(own.get(k)) for own in shares.values())} "
                    f"| {100 * chance.get(k, 0):.1f} % |"
                    for k in names
                ),
            ]
    return lines or ["Nothing was measured before this checkpoint; measure it with `v2f eval`."]


def _nets(about: Mapping[str, Any], brought: Mapping[str, UserWeights | RunModule]) -> list[str]:
    lines = []
    stand_ins = about.get("stand_ins", "none")
    if stand_ins != "none":
        lines.append(
            f"Stand-ins: {stand_ins}. These small nets come with v2f and know the synthetic world only, so that all "
            "numbers and pictures hold for that world."
        )
    for role, net in brought.items():
        digest = about.get("weights", {}).get(role, "unknown")
        lines.append(
            f"- {role}: {net.published.what}, not in this folder ({net.published.licence}). Put it where `config.yaml` "
            f"looks for it (`system.frozen`); SHA-256 `{digest}`."
        )
    return lines or ["None."]


def _percent(share: Mapping[str, float] | None) -> str:
    return "-" if share is None else f"{100 * share['value']:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _product(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count:,} B"
