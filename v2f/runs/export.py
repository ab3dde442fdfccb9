"""``v2f checkpoint export``: one checkpoint of a run for others to use.

    RUN/checkpoints -> DIR/{model.safetensors, README.md, DATA.md, config.yaml}, which is a RUN again;
                       with --format also a graph: model.pt2 or model.onnx

An export is made to be given away: it contains no absolute path, address or credential of this site.
"""

import json
import re
from typing import Any, Literal

from v2f.config import build, dump_yaml
from v2f.errors import V2FError
from v2f.runs import checkpoint, datacard, graphs, modelcard
from v2f.runs.config import RunConfig
from v2f.runs.modelcard import GraphFile
from v2f.runs.run import MODEL, NOTES, Run
from v2f.runs.saver import write_tensors
from v2f.storage import store

_PUBLIC = ("name", "system", "fingerprint", "stand_ins", "weights", "code", "versions")  # of run.json


def export(
    name: str,
    out: str,
    which: str | int = "latest",
    *,
    raw: bool = False,
    format: Literal["safetensors"] | graphs.Format = "safetensors",
) -> None:
    """Write one checkpoint of the run ``name`` for inference: weights in one file, configuration, model and data card.

    The weights are the moving averages, if the checkpoint has them, or with ``raw`` the trained weights. The
    configuration is written last: without it nothing opens the folder. Any ``format`` but safetensors adds the graph
    that the system exports (:meth:`System.exports`); V2FError if it exports none.
    """
    run = Run.open(name)
    folder = run.checkpoint(which)
    if store.names(out):
        raise V2FError(f"{out}: the folder is not empty; name a new one")
    graph = None if format == "safetensors" else _graph(run, which, raw, format)
    tensors, state = checkpoint.load(folder, lambda name: name.startswith(("model/", "ema/")))
    averaged = not raw and any(name.startswith("ema/") for name in tensors)
    weights = {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")}
    if averaged:
        weights |= {n.removeprefix("ema/"): t for n, t in tensors.items() if n.startswith("ema/")}
    trained = build(RunConfig, state["config"], folder) if "config" in state else run.config
    config = portable(trained)
    about = {key: run.info[key] for key in _PUBLIC if key in run.info} | {
        "step": checkpoint.step_of(folder),
        "samples": state.get("slot"),
        "averaged": averaged,
        "init_from": _last_parts(state.get("init_from", [])),
        "metrics": state.get("metrics", {}),
    }
    notes = {"format": "pt", NOTES: json.dumps(about)}
    digest = write_tensors(store.join(out, MODEL), weights, notes)["sha256"]
    if graph is not None:
        store.write_bytes(store.join(out, graph.name), graph.content)
    card = modelcard.card(config, about, weights, digest, _evaluated(run, about["step"]), graph)
    store.write_bytes(store.join(out, modelcard.CARD), card.encode())
    store.write_bytes(store.join(out, datacard.CARD), datacard.card(trained, about.get("fingerprint")).encode())
    store.write_bytes(store.join(out, "config.yaml"), dump_yaml(config).encode())
    kind = "the moving averages of the weights" if averaged else "the weights"
    print(f"{out}: {kind} of step {about['step']}, {len(weights)} tensors, SHA-256 {digest[:16]}...")
    if graph is not None:
        print(f"{store.join(out, graph.name)}: {graph.about}")


def _graph(run: Run, which: str | int, raw: bool, format: graphs.Format) -> GraphFile:
    exported = run.system(ema=not raw, which=which).exports()
    if exported is None:
        raise V2FError(f"--format {format}: the system {run.config.system.name} exports no graph; leave --format out")
    return GraphFile(graphs.FILES[format], graphs.content(exported, format), exported.about)


def portable(config: RunConfig) -> RunConfig:
    """The configuration without what is specific to this site: absolute paths and addresses become their last parts."""
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
    """``eval.json`` of the run, if it measured this step."""
    found = run.evaluated or {}
    return found if found.get("step") == step else {}
