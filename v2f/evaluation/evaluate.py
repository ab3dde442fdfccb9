"""``v2f eval``: how good a run is on each split, by each observer, next to what is possible at best.

For each split (such as ``test``: unseen people, and ``seen``: unseen clips of people seen in training), the
system's protocol (:mod:`v2f.evaluation.protocols`) makes lines of numbers::

    split --protocol, observers--> lines of numbers -> eval.json, tables, MLflow
                                   each person's share in the run's own -> eval-people.json -> v2f compare

Two observers measure every number that needs a net. The *referee*, an identity net that no loss and no meter has seen,
comes first, because training has learned to please the *judge*, the run's own frozen nets
(:mod:`v2f.evaluation.referee`).

The nets always see batches of the same size, and everything after them is computed in float64 over whole sets, so the
results depend only on the run and the data, not on how the data were read.
"""

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console

from v2f.data.manifest import Dataset, open_dataset, read_manifest
from v2f.data.mix import union_fingerprint
from v2f.data.streams import joint_fingerprint
from v2f.errors import V2FError
from v2f.evaluation import labelled, protocols
from v2f.evaluation.observers import observers_of
from v2f.evaluation.people_table import read_people
from v2f.evaluation.protocol import Job, Protocol
from v2f.evaluation.readings import Classifier
from v2f.generate import is_face_of_voice
from v2f.nn import float32_products
from v2f.runs.run import EVALUATION as FILE
from v2f.runs.run import Run
from v2f.storage import store
from v2f.system import Noise, Sound, System, of_kind
from v2f.tracking.mlflow_client import log_metrics

PEOPLE_FILE = "eval-people.json"
_BOUNDS = ("U1", "U2", "U3", "U4")  # lines that are logged to MLflow besides the run's own


def evaluate(
    run: Run,
    data: str | None = None,
    *,
    trials: str | None = None,
    limit: int | None = None,
    progress: bool = True,
    system: System | None = None,
    device: str | None = None,
    attributes: str | None = None,
    classifier: str | None = None,
    draws: int = 1,
) -> dict[str, Any]:
    """Measure ``run`` on its own data set, or on ``data``; print the tables and write ``eval.json`` into the run.

    ``eval-people.json``, next to it and written before it, is what ``v2f compare`` needs to compare runs person by
    person: people by their numbers in the manifest (no names), and each person's share in the run's numbers.

    ``limit``: only the first samples of each split; None: all. ``system``: the run's system, if it is already loaded.
    ``device``: None uses the GPU if there is one. ``attributes``: a CSV that says to which groups people belong
    (:mod:`v2f.evaluation.people_table`). ``trials``: a list of trials for a system that recognizes speakers
    (:mod:`v2f.evaluation.trials`), instead of those that are drawn from the split test. ``classifier``: a run that
    reads the labels from which this system makes pictures or sounds (:mod:`v2f.evaluation.readings`). ``draws``: faces
    of each clip, for a system that draws them by chance; their mean embedding and their spread are measured, too.
    Samples that cannot be read or decoded are left out, counted and named. A split with fewer than 100 people is
    measured with a smaller gallery, and a note says so; with fewer than two people, nothing is retrieved. V2FError if
    the data set has no split to measure, a split has no usable sample, or the protocol has no use for ``trials``,
    ``attributes``, ``classifier`` or ``draws``.
    """
    console = Console(quiet=not progress, width=None if sys.stdout.isatty() else 132)  # a log is not a narrow terminal
    dataset = open_dataset(data or run.config.data.home)
    system = run.system() if system is None else system
    protocol = protocols.of(system)
    splits = protocol.splits(dataset)
    _check(system, dataset, splits, trials, attributes, classifier, draws)
    people_table = None if attributes is None else read_people(attributes, dataset)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    float32_products(tf32=False)
    system = system.to(device).eval()
    observers, second = observers_of(run, system) if protocol.observed else ([], {})
    trained = dataset.fingerprint in trained_on(run, dataset)
    reads = None if classifier is None else _classifier(classifier, protocol, system, device)
    about = {} if reads is None else {"classifier": reads.about}
    result = _about(run, dataset, system, device) | {"referee": second, **about, "splits": {}}
    if people_table is not None:
        result["attributes"] = {"file": people_table.path, "sha256": people_table.sha256}
    job = Job(run, dataset, system, observers, limit, console, people_table, trained, trials, reads, draws)
    if second.get("net") == "stand_in":
        result["stand_ins"] = [*result["stand_ins"], "referee"]
    people: dict[str, Any] = {}
    if result["stand_ins"]:
        nets = ", ".join(result["stand_ins"])
        console.print(f"these nets are stand-ins, so the numbers hold for the synthetic world only: {nets}")
    if second.get("why_not"):
        console.print(f"no referee: {second['why_not']}", style="bold red")
    if not trained:
        several = run.config.data.mix or run.config.data.streams
        which = "known to be one of the data sets" if several else "the data set"
        console.print(f"note: {dataset.root} is not {which} that {run.config.name} was trained on")
    for name in splits:
        result["splits"][name], people[name] = protocol.measure(job, name)
        protocol.show(name, result, console)
    console.print(protocol.explained, style="dim")
    shares = json.dumps(_finite({"splits": people}), allow_nan=False).encode()
    store.write_bytes(store.join(run.path, PEOPLE_FILE), shares)
    result["people"] = {"file": PEOPLE_FILE, "sha256": hashlib.sha256(shares).hexdigest()}
    text = json.dumps(_finite(result), indent=1, ensure_ascii=False, allow_nan=False)
    store.write_bytes(store.join(run.path, FILE), text.encode() + b"\n")
    console.print(f"written: {store.join(run.path, FILE)}")
    _to_mlflow(run, result, console)
    return cast(dict[str, Any], json.loads(text))


def _classifier(path: str, protocol: Protocol, system: System, device: str) -> Classifier:
    assert isinstance(protocol, labelled.Labelled), "no other protocol takes a classifier"
    asked, _, made = labelled.asked_and_made(system, protocol.kind)
    return Classifier.of(path, system, asked, made, device)


def _check(
    system: System,
    dataset: Dataset,
    splits: list[str],
    trials: str | None,
    attributes: str | None,
    classifier: str | None,
    draws: int,
) -> None:
    """V2FError if the system's protocol cannot measure the data set, or has no use for what was given."""
    protocol = protocols.of(system)
    if trials is not None and not (protocol.takes_trials and "test" in splits):
        why = f"{dataset.root} has no split test" if protocol.takes_trials else "this system recognizes no speakers"
        raise V2FError(f"{trials}: {why}, so it cannot be measured on a list of trials; leave out --trials")
    if classifier is not None and not protocol.takes_classifier:
        raise V2FError(
            f"{classifier}: this system makes nothing from labels that could be read; leave out --classifier"
        )
    if draws < 1 or (draws > 1 and not (is_face_of_voice(system) and of_kind(system.asks(), Noise))):
        raise V2FError(f"{draws} draws: only a system that makes faces of voices and noise draws several; leave it out")
    if not splits:
        raise V2FError(
            f"{dataset.root}: no split to evaluate; it has {', '.join(dataset.splits)}, but not test or seen"
        )
    if attributes is not None and not protocol.groups_people:
        raise V2FError(
            f"{attributes}: the protocol {system.protocol} has no numbers for groups of people; leave it out"
        )


def points(result: Mapping[str, Any]) -> dict[str, float]:
    """The run's own numbers under their MLflow names ``eval/SPLIT/OBSERVER/NUMBER``, such as
    ``eval/test/referee/recall_at_10``, and those of the upper bounds (``.../U1_recall_at_10``)."""
    found = {}
    for split, numbers in result["splits"].items():
        for by, observed in numbers["by"].items():
            for line, own in observed["lines"].items():
                is_own = line == protocols.PROTOCOLS[result["protocol"]].own
                if not is_own and line not in _BOUNDS:
                    continue
                values = own | (own.get("picture") or {}) | (observed.get("meters", {}) if is_own else {})
                for key, value in values.items():
                    value = value["value"] if isinstance(value, Mapping) and "value" in value else value
                    if isinstance(value, float) and np.isfinite(value):
                        name = key.replace("R@", "recall_at_")
                        name = name if is_own else f"{line}_{name}"
                        found[f"eval/{split}/{by}/{name}"] = value
    return found


def _to_mlflow(run: Run, result: Mapping[str, Any], console: Console) -> None:
    """Log the numbers to the MLflow run of ``run``, if it is tracked; an error there is printed, not raised."""
    samples = (result["step"] or 0) * run.config.data.batch
    try:
        if log_metrics(run.path, points(result), samples):
            console.print("and logged to the run's MLflow as eval/...")
    except V2FError as error:
        console.print(f"not logged to MLflow: {error}")


def trained_on(run: Run, dataset: Dataset) -> list[str]:
    """Fingerprints of the data sets that ``run`` was trained on. For a mix or for streams, a run keeps only one joint
    fingerprint, so these are the fingerprints of the data sets that are there now, if they still give the joint one.
    If nothing is known, that of ``dataset``."""
    data, kept = run.config.data, run.info.get("fingerprint", dataset.fingerprint)
    if (data.mix is None and data.streams is None) or kept == dataset.fingerprint:
        return [kept]
    try:
        there = {source.path: read_manifest(source.path).fingerprint for source in data.sources}
    except V2FError:
        return []
    streams = {}
    for name, own in data.by_stream().items():
        splits = [f"{there[source.path]}/{source.split}" for source in own.sources]
        streams[name] = there[own.home] if own.mix is None else union_fingerprint(splits)
    return list(there.values()) if joint_fingerprint(streams) == kept else []


def _about(run: Run, dataset: Dataset, system: System, device: str) -> dict[str, Any]:
    """What was measured, on which data, and with what; without this, a number means nothing."""
    provenance = dataset.manifest.provenance
    return {
        "run": run.config.name,
        "step": run.step,
        "protocol": system.protocol,
        "stand_ins": list(system.stand_ins),
        "weights": dict(system.weights),
        "data": {
            "path": dataset.root,
            "fingerprint": dataset.fingerprint,
            "trained_on": run.info.get("fingerprint"),
            "world_version": provenance.get("world_version"),
            "world_hash": provenance.get("world_hash"),
        },
        "seconds": next((sound.seconds for _, sound in of_kind(system.asks(), Sound)), None),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("torch", "numpy", "scipy")}},
    }


def _finite(value: Any) -> Any:
    """``value`` with null instead of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
