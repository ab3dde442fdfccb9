"""Opening a run by its folder, s3:// prefix or MLflow run id, and building the system of its configuration.

Data flow: recipe.yaml + overrides -> :class:`RunConfig` -> ``OUT/config.yaml`` (resolved) beside
``OUT/run.json`` (what identifies the run), ``OUT/checkpoints/``, ``OUT/metrics.jsonl``, ``OUT/starts.jsonl`` (a line
for each start: when, from which step, on how many ranks) and ``OUT/eval.json``. An export of ``v2f checkpoint export``
is a run as well: ``config.yaml`` and the weights of one checkpoint, ``model.safetensors``.
"""

import contextlib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from v2f.config import parse_yaml
from v2f.errors import V2FError
from v2f.runs import checkpoint, pretrained
from v2f.runs.config import DataConfig, RunConfig, TrackingConfig, config_from, system_class
from v2f.runs.evaluated import Evaluated
from v2f.runs.peers import Peers, alike
from v2f.runs.pretrained import Pretrained
from v2f.storage import records, store
from v2f.storage.credentials import without_credentials
from v2f.storage.records import Record, problem_of
from v2f.system import System, trained
from v2f.tracking.mlflow_client import run_folder
from v2f.weights.runs import RunModule, read_by

MODEL = "model.safetensors"
EVALUATION = "eval.json"
NOTES = "v2f"  # in the notes of exported weights, the key of what identifies the run
_CONFIG_LOST = "restore it: the record of each checkpoint also holds the configuration (state.config)"
_MLFLOW_ID = re.compile(r"[0-9a-f]{32}")


def config_of(folder: str) -> RunConfig:
    """The configuration that the checkpoint in ``folder`` was trained with."""
    config = checkpoint.needed(checkpoint.read_state(folder)["state"], "config", folder)
    return config_from(config, f"the configuration in {folder}")


def build_system(config: RunConfig) -> System:
    """The system with newly initialized weights, a function of the seed alone."""
    with torch.random.fork_rng(devices=[]), reading_runs(config.tracking.uri):
        torch.manual_seed(config.seed)
        return system_class(config.system.name)(config.system)  # type: ignore[call-arg]  # each class takes its own


def reading_runs(tracking_uri: str | None = None) -> contextlib.AbstractContextManager[None]:
    """A context in which frozen nets may be modules of runs; ``tracking_uri``: where MLflow resolves run ids."""
    return read_by(functools.partial(_module_of_run, tracking_uri=tracking_uri))


def _module_of_run(net: RunModule, tracking_uri: str | None) -> tuple[nn.Module, str]:
    run = Run.open(net.path, tracking_uri)
    found = run.pretrained(net.module, net.which)
    return pretrained.put(build_system(run.config), net.module, found), found.sha256


def start_from(config: RunConfig, system: System, peers: Peers) -> list[dict[str, Any]]:
    """Fill the modules of a new ``system`` that ``config.init_from`` names; returns their sources as plain JSON.

    Collective: rank 0 reads the weights and sends the whole system to the others.
    """
    if not config.init_from:
        return []
    taken = alike(peers, lambda: _filled(config, system) if peers.rank == 0 else [])[0]
    tensors = list(checkpoint.module_tensors(system).values())
    sent = [tensor.detach().contiguous() for tensor in tensors]
    peers.broadcast(sent, 0)
    for tensor, whole in zip(tensors, sent, strict=True):
        tensor.data.copy_(whole)
    return taken


def _filled(config: RunConfig, system: System) -> list[dict[str, Any]]:
    taken = []
    for number, source in enumerate(config.init_from):
        try:
            if source.file is not None:
                found = pretrained.of_file(source.file, source.module or "", source.key, source.sha256)
            else:
                found = Run.open(str(source.run), config.tracking.uri).pretrained(str(source.module), source.which)
            if source.sha256 not in (None, found.sha256):
                raise V2FError(f"{found.where}: the SHA-256 of its {found.module} is {found.sha256}, not the one named")
            _put(config, system, source.target, found)
        except V2FError as error:
            raise error.at(f"init_from.{number}") from error
        taken.append({"source": source.file or source.run, "into": source.target, **found.about})
    return taken


def _put(config: RunConfig, system: System, into: str, found: Pretrained) -> None:
    """Fill a module; if the weights do not fit, the error says why, where the system knows."""
    try:
        pretrained.put(system, into, found)
    except V2FError:
        if into in trained(system):
            shapes = {f"{into}.{name}": tensor.shape for name, tensor in found.tensors.items()}
            check_shapes(config, shapes, found.where)
        raise


def source_line(record: Mapping[str, Any]) -> str:
    """One line about a source that :func:`start_from` returned."""
    step = "" if record["step"] is None else f", step {record['step']}"
    averages = ", the moving averages" if record["averaged"] else ""
    what = f"{record['module']} of " if record["module"] else ""
    source = without_credentials(record["source"])
    return f"{record['into']} from {what}{source}{step}{averages} (SHA-256 {record['sha256'][:16]}...)"


def streams_of(config: RunConfig, system: System) -> dict[str, DataConfig]:
    """Stream -> its data, in the system's order; V2FError unless ``data.streams`` has exactly the system's streams."""
    asked, given, name = list(system.streams()), config.data.by_stream(), config.system.name  # type: ignore[attr-defined]
    if asked == [""] and config.data.streams is not None:
        raise V2FError(
            f"data.streams: {', '.join(given)}: the system {name} reads one stream; remove it, and set data.path "
            "and data.batch"
        )
    if set(asked) != set(given):
        raise V2FError(
            f"data.streams: {', '.join(filter(None, given)) or 'null'}: the system {name} asks for the streams "
            f"{', '.join(asked)}; configure each of them and no other"
        )
    batch = given[asked[0]].batch
    if batch != config.data.batch:
        raise V2FError(
            f"data.batch: {config.data.batch}: samples are counted by {asked[0]}, the first stream of the system "
            f"{name}; set data.batch={batch}"
        )
    return {stream: given[stream] for stream in asked}


def check_weights(system: System, state: Mapping[str, Any], where: str) -> None:
    """V2FError if a frozen net is not the one with which the checkpoint ``where`` of this ``state`` was trained."""
    for role, before in state.get("weights", {}).items():
        now = system.weights.get(role)
        if now != before:
            role, _, beside = role.partition(".")
            key = f"system.{role}" if role in ("encoder", "head", "backbone") else f"system.frozen.{role}"
            what = f"the {beside} beside its file have" if beside else "its file has"
            raise V2FError(
                f"{key}: {what} the SHA-256 {now[:16] + '...' if now else '(none)'}, {where} was "
                f"trained against {before[:16]}...; bring the same weights (of a run: that step, or an export of it)"
            )


def check_shapes(config: RunConfig, shapes: Mapping[str, Sequence[int]], where: str) -> None:
    """V2FError if the system knows why weights of these shapes, by ``MODULE.tensor``, do not fit ``config``."""
    why = system_class(config.system.name).misfit(config.system, shapes)
    if why is not None:
        raise V2FError(f"{where}: {why}")


@contextlib.contextmanager
def _explained(config: RunConfig, where: str) -> Iterator[None]:
    """A context that explains a MisfitError, where the system knows why the weights do not fit."""
    try:
        yield
    except checkpoint.MisfitError as error:
        check_shapes(config, error.shapes, where)
        raise


class _Info(Record):
    """What identifies a run."""

    fingerprint: str | None = None
    code: str | None = None
    data: str | None = None
    stand_ins: str | None = None
    step: int | None = None
    weights: dict[str, str | None] = {}
    versions: dict[str, str] = {}
    metrics: dict[str, float | None] = {}
    init_from: list[dict[str, Any]] = []
    averaged: bool = False


@dataclass(frozen=True)
class Run:
    """A run that exists: its folder or prefix and their contents."""

    path: str

    @classmethod
    def open(cls, run: str, tracking_uri: str | None = None) -> "Run":
        """The run that ``run`` names: a folder, an ``s3://`` prefix, or an MLflow run id (32 hex digits)."""
        path = run.rstrip("/")
        if _MLFLOW_ID.fullmatch(path) and not store.exists(store.join(path, "config.yaml")):
            path = run_folder(path, tracking_uri or TrackingConfig().uri)
        if not store.exists(store.join(path, "config.yaml")):
            raise V2FError(f"{run}: no run there (no config.yaml); name a run's folder, s3:// prefix or MLflow run id")
        return cls(path)

    @cached_property
    def config(self) -> RunConfig:
        where = store.join(self.path, "config.yaml")
        try:
            text = store.read_bytes(where).decode()
        except UnicodeDecodeError:
            raise V2FError(f"{where}: it is damaged, not a UTF-8 text; {_CONFIG_LOST}") from None
        values = parse_yaml(text, where)
        if not isinstance(values, dict):
            raise V2FError(f"{where}: it is damaged, it holds {type(values).__name__}; {_CONFIG_LOST}")
        return config_from(values, where)

    @cached_property
    def info(self) -> dict[str, Any]:
        """What identifies the run: code version, data fingerprint, stand-ins; for an export also its step."""
        where = store.join(self.path, "run.json")
        if store.exists(where):
            return records.read_record(where, _Info, "restore it, or remove it to continue without it")
        if not self.exported:
            return {}
        try:
            found: Any = json.loads(checkpoint.read_header(self._model)[1].get(NOTES, "{}"))
        except (ValueError, RecursionError):
            found = None
        problem = problem_of(_Info, found)
        if problem is not None:
            raise V2FError(f"{self._model}: its notes are damaged, {problem}; copy it or export it again")
        return dict(found)

    @property
    def name(self) -> str:
        """Its name in its configuration."""
        return self.config.name

    @property
    def kind(self) -> str:
        """The name of its system."""
        return self.config.system.name

    @property
    def evaluated(self) -> dict[str, Any] | None:
        """What ``v2f eval`` has measured; None if nothing."""
        where = store.join(self.path, EVALUATION)
        if not store.exists(where):
            return None
        way_out = f"measure the run again with `v2f eval {self.path}`"
        found = records.read_record(where, Evaluated, way_out)
        if not all(split.get("by") for split in found["splits"].values()):
            raise V2FError(f"{where}: it was written by an older v2f that had no referee; {way_out}")
        return found

    @cached_property
    def exported(self) -> bool:
        """Whether this is an export: the weights of one checkpoint instead of a folder of checkpoints."""
        return store.exists(self._model)

    @property
    def step(self) -> int | None:
        """The step of the newest committed checkpoint, or that of an export."""
        if self.exported:
            return self.info.get("step")
        found = checkpoint.latest(self._checkpoints)
        return checkpoint.step_of(found) if found else None

    def checkpoint(self, which: str | int = "latest") -> str:
        """The folder of a committed checkpoint: ``latest``, ``best`` (by ``train.best``) or of a step."""
        if self.exported:
            raise V2FError(f"{self.path}: an export holds one checkpoint only; there is none to choose")
        folders = {checkpoint.step_of(folder): folder for folder in checkpoint.committed(self._checkpoints)}
        if not folders:
            raise V2FError(f"{self.path}: no committed checkpoint yet; train it first: v2f/train.py --config ...")
        if which == "latest":
            return folders[max(folders)]
        if which == "best":
            best = self.config.train.best
            if best is None:
                raise V2FError(f"{self.path}: its configuration does not set train.best; name a step, or latest")
            found, what = checkpoint.best(self._checkpoints, best.metric, best.mode), f"with a meter {best.metric!r}"
        else:
            found, what = folders.get(int(which)), f"of step {which}"
        if found is None:
            steps = ", ".join(map(str, folders))
            raise V2FError(f"{self.path}: there is no checkpoint {what}; the steps with one are {steps}")
        return found

    def step_of(self, which: str | int = "latest") -> int | None:
        """The step of a committed checkpoint (see :meth:`checkpoint`), or that of an export."""
        return self.step if self.exported else checkpoint.step_of(self.checkpoint(which))

    def system(self, ema: bool = True, which: str | int = "latest") -> System:
        """The trained system of a committed checkpoint (see :meth:`checkpoint`), in eval mode; with ``ema`` its moving
        averages, if it has them. An export has one kind of weights only."""
        if self.exported:
            if which != "latest":
                self.checkpoint(which)
            system = build_system(self.config)
            check_weights(system, self.info, self.path)
            with _explained(self.config, self.path):
                checkpoint.restore_export(self._model, system)
            return system.eval()
        found = self.checkpoint(which)
        system = build_system(self.config)
        check_weights(system, checkpoint.read_state(found)["state"], found)
        with _explained(self.config, found):
            checkpoint.restore_weights(found, system, ema=ema)
        return system.eval()

    def pretrained(self, module: str, which: str | int = "latest") -> Pretrained:
        """The weights of a module (``encoder``, ``encoder.stem``) of a committed checkpoint (see :meth:`checkpoint`) as
        a start for other runs; its moving averages, if it has them."""
        if not self.exported:
            return pretrained.of_checkpoint(self.checkpoint(which), module)
        if which != "latest":
            self.checkpoint(which)
        return pretrained.of_export(self._model, module, self.step, bool(self.info.get("averaged")))

    @property
    def _checkpoints(self) -> str:
        return store.join(self.path, "checkpoints")

    @property
    def _model(self) -> str:
        return store.join(self.path, MODEL)
