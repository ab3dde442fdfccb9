"""A run's whole configuration, and the way from RUN (a folder, an s3:// prefix, an MLflow run id) to its parts.

Data flow: recipe.yaml + overrides -> :class:`RunConfig` -> ``OUT/config.yaml`` (resolved) beside
``OUT/run.json`` (what identifies the run), ``OUT/checkpoints/``, ``OUT/metrics.jsonl``, ``OUT/starts.jsonl`` (when,
from which step, on how many ranks it was started) and ``OUT/eval.json``. An export of ``v2f checkpoint export`` is a
run, too: ``config.yaml`` and the weights of one checkpoint, ``model.safetensors``.
"""

import contextlib
import functools
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field, SerializeAsAny, field_validator, model_validator
from torch import nn

from v2f.config import (
    Config,
    Place,
    build,
    flatten,
    override,
    parse_yaml,
    read_yaml,
)
from v2f.errors import V2FError
from v2f.runs import checkpoint, pretrained
from v2f.runs.pretrained import Pretrained
from v2f.storage import records, store
from v2f.storage.credentials import without_credentials
from v2f.storage.records import Record, problem_of
from v2f.system import System, SystemConfig, trained
from v2f.systems import SYSTEMS
from v2f.tracking.tracker import folder_of
from v2f.weights.runs import MODULE as MODULE_NAME
from v2f.weights.runs import RunModule, Which, read_by

MODEL = "model.safetensors"
EVALUATION = "eval.json"
NOTES = "v2f"  # what identifies an exported run, in the notes that its weights carry
_CONFIG_LOST = "restore it: the record of each checkpoint holds the configuration, too (state.config)"
_OF_STREAM = re.compile(r"^data\.streams\.[^.]+\.(?=path|mix)")
_MLFLOW_ID = re.compile(r"[0-9a-f]{32}")


# What may differ when a run goes on: it changes neither the function that is trained nor its order. Weights that the
# user brings may lie elsewhere; their checksums are compared.
FREE = (
    "out",
    "data.path",
    "data.mix",  # what it changes is in the order's fingerprint
    "data.cache",
    "data.max_bad_fraction",
    "system.frozen.path",
    "system.frozen.referee",  # it looks on; no loss sees it
    *(
        f"system.frozen.{role}.{key}"
        for role in ("generator", "identity", "perceptual", "codes")
        for key in ("file", "sha256", "path", "which")
    ),
    "data.workers",
    "tracking.",
    "train.threads",
    "train.strategy",
    "train.micro_batch",
    "train.log_every",
    "train.validate_",
    "train.checkpoint_every",
    "train.keep",
    "train.best",
    "train.max_skipped",
    "train.watchdog_minutes",
    "train.sample_log",
)


class SourceConfig(Config):
    """One data set of a mix."""

    path: Place = Field(description="the data set's folder or s3:// prefix")
    weight: float = Field(1.0, gt=0, description="its share of the slots, relative to the others")
    split: str | None = Field(None, description="null: data.split")


class CacheConfig(Config):
    """A cache of what is read, shared by all ranks of a node. It pays where several of them read the same block."""

    path: Place = Field(description="a folder on a local disk")
    gb: float = Field(gt=0, description="its largest size")

    @property
    def bytes(self) -> int:
        return round(self.gb * 1e9)


class StreamConfig(Config):
    """What one of a system's streams is read from; what is null is that of ``data``."""

    path: Place | None = Field(None, description="the data set's folder or s3:// prefix")
    mix: list[SourceConfig] | None = Field(None, min_length=1, description="instead of path: several data sets")
    split: str | None = None
    batch: int | None = Field(None, gt=0, description="samples of this stream in a global batch")


class DataConfig(Config):
    """Which shards, in which order. The order is a pure function of these, the seed and the data's fingerprint."""

    path: Place | None = Field(None, description="the data set's folder or s3:// prefix")
    mix: list[SourceConfig] | None = Field(None, min_length=1, description="instead of path: several data sets")
    split: str = "train"
    valid: str | None = Field("valid", description="split of the meters and the sample grid; null: none")
    batch: int = Field(gt=0, description="global batch size, in slots")
    workers: int = Field(1, ge=0, description="decoding processes of each rank; 0 decodes in the rank itself")
    partitions: int = Field(8, gt=0, description="canonical partitions of the order; a multiple of the nodes")
    window: int = Field(256, gt=0, description="samples of a partition that are read, and shuffled, together")
    cache: CacheConfig | None = Field(None, description="null: every rank reads for itself")
    max_bad_fraction: float = Field(
        0.01, ge=0, le=1, description="the run stops when more of the split's samples than this cannot be used"
    )
    streams: dict[str, StreamConfig] | None = Field(
        None, min_length=1, description="of a system that reads several streams of samples, each by its name"
    )

    @model_validator(mode="before")
    @classmethod
    def _counted(cls, values: Any) -> Any:
        """Without a batch of its own, ``data`` has that of the first stream, by which samples are counted."""
        if isinstance(values, dict) and values.get("batch") is None and isinstance(values.get("streams"), dict):
            first = next(iter(values["streams"].values()), None)
            if isinstance(first, dict) and first.get("batch") is not None:
                return values | {"batch": first["batch"]}
        return values

    @model_validator(mode="after")
    def _one_source(self) -> "DataConfig":
        own_place = self.path is not None, self.mix is not None
        for name, own in self.by_stream().items():
            if all(own_place) or (own.path is None) == (own.mix is None):
                where = f"data.streams.{name}" if name else "data"
                raise ValueError(f"{where} wants either path, one data set, or mix, several")
        return self

    @property
    def home(self) -> str:
        """The data set that the meters and an evaluation read: that of ``path``, or the first of the mix; of the first
        stream, where ``data`` itself names neither."""
        if self.path is None and self.mix is None and self.streams:
            return next(iter(self.by_stream().values())).home
        return self.mix[0].path if self.mix else str(self.path)

    @property
    def sources(self) -> list[SourceConfig]:
        """Every data set that is trained on, with its split."""
        if self.streams is not None:
            return [source for own in self.by_stream().values() for source in own.sources]
        if self.mix is None:
            return [SourceConfig(path=str(self.path), split=self.split)]
        return [source.model_copy(update={"split": source.split or self.split}) for source in self.mix]

    def by_stream(self) -> dict[str, "DataConfig"]:
        """Of each stream what its ``data`` would be if it were the only one; under "" these, where there are none."""
        if self.streams is None:
            return {"": self}
        found = {}
        for name, own in self.streams.items():
            place = own if own.path is not None or own.mix is not None else self
            values = {"path": place.path, "mix": place.mix, "split": own.split or self.split}
            found[name] = self.model_copy(update=values | {"batch": own.batch or self.batch, "streams": None})
        return found


class BestConfig(Config):
    """What makes a checkpoint the best one."""

    metric: str = Field(description="a meter or loss of the validation, as in metrics.jsonl; valid/ may be left out")
    mode: Literal["min", "max"] = "max"

    @field_validator("metric")
    @classmethod
    def _without_prefix(cls, value: str) -> str:
        return value.removeprefix("valid/")


class TrainConfig(Config):
    """How long, in which precision, cut how."""

    steps: int = Field(gt=0, description="optimizer steps of the first phase, in all")
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp64"] = Field(
        "fp32",
        description="auto: bf16 where all devices have it, else fp32; tf32: as fp32, but a GPU rounds what it "
        "multiplies to 10 bits of mantissa",
    )
    strategy: Literal["auto", "ddp", "zero1", "zero2"] = Field("auto", description="auto: as the launcher says, or DDP")
    micro_batch: int | None = Field(None, gt=0, description="most samples of one forward pass; null: all a rank has")
    threads: int | None = Field(None, gt=0, description="CPU threads of each rank; null leaves torch's choice")
    log_every: int = Field(10, gt=0)
    validate_every: int = Field(200, gt=0)
    validate_samples: int = Field(64, gt=1)
    validate_pictures: int = Field(16, gt=0, description="of these samples, those that a validation draws")
    checkpoint_every: int = Field(500, gt=0)
    keep: int = Field(2, ge=2, description="newest checkpoints kept; 1 would leave none while the next is written")
    keep_every: int | None = Field(None, gt=0, description="also every checkpoint whose step this divides")
    best: BestConfig | None = Field(None, description="also the best checkpoint by a meter or loss of the validation")
    max_skipped: int = Field(10, gt=0, description="steps skipped in a row for their numbers that stop the run")
    spike_sigma: float | None = Field(
        None, gt=0, description="skip a step whose gradient norm is so many deviations above its mean of 128 steps"
    )
    watchdog_minutes: float | None = Field(30.0, gt=0, description="leave when no step ends for so long; null: never")
    sample_log: bool = Field(False, description="write into slots/ beside metrics.jsonl which sample each slot was")


class TrackingConfig(Config):
    """Where MLflow is. ``uri: null`` keeps the points in the run's folder only."""

    uri: Place | None = "sqlite:///runs/mlflow.db"
    experiment: str = "v2f"


class InitFrom(Config):
    """A module of this run that starts from weights that exist: of another run, of an export, or of a file."""

    run: Place | None = Field(None, description="a run or an export: a folder, an s3:// prefix or an MLflow run id")
    file: Place | None = Field(None, description="instead of run: a .safetensors, .pt or .pth file of tensors")
    key: str | None = Field(None, description="of a .pt that holds more than a state_dict: where that stands")
    module: str | None = Field(None, pattern=MODULE_NAME, description="its name there; null: all of the file")
    into: str | None = Field(None, pattern=MODULE_NAME, description="the module here; null: it is called as there")
    which: Which = Field("latest", description="of the run's checkpoints: latest, best or a step")
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="of the file, or of the run's module as the run.json of a run says"
    )

    @model_validator(mode="after")
    def _one_source(self) -> "InitFrom":
        if (self.run is None) == (self.file is None):
            raise ValueError("init_from wants either run or file")
        if self.module is None and (self.run is not None or self.into is None):
            raise ValueError("init_from wants module, the name there, or, of a file that is one, into, the name here")
        if self.run is not None and self.key is not None:
            raise ValueError("init_from.key is for a file")
        if self.file is not None and self.which != "latest":
            raise ValueError("init_from.which is for a run")
        return self

    @property
    def target(self) -> str:
        """The module here."""
        return self.into or str(self.module)


class RunConfig(Config):
    """One whole run: what a recipe under ``launch/recipes`` spells."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    out: Place | None = Field(None, description="the run's folder; null: runs/NAME")
    seed: int = Field(0, ge=0)
    system: SerializeAsAny[SystemConfig]
    data: DataConfig
    train: TrainConfig
    tracking: TrackingConfig = TrackingConfig()
    init_from: list[InitFrom] = Field([], description="modules that start from weights that exist, not from the seed")

    @model_validator(mode="after")
    def _each_module_once(self) -> "RunConfig":
        targets = sorted(f"{source.target}." for source in self.init_from)
        for one, next_one in pairwise(targets):
            if next_one.startswith(one):
                raise ValueError(f"init_from fills {next_one[:-1]} twice")
        return self

    @field_validator("system", mode="before")
    @classmethod
    def _system(cls, value: Any) -> Any:
        if isinstance(value, SystemConfig):
            return value
        if not isinstance(value, dict) or "name" not in value:
            raise ValueError(f"a system is a group with a name, one of: {', '.join(sorted(SYSTEMS))}")
        return build(_system_class(value["name"]).Config, value, "", under="system.")

    @property
    def folder(self) -> str:
        return self.out or f"runs/{self.name}"


def _system_class(name: Any) -> type[System]:
    if name not in SYSTEMS:
        raise V2FError(f"system.name: there is no system {name!r}; there are: {', '.join(sorted(SYSTEMS))}")
    return SYSTEMS[name]


def what_is(system: str) -> str:
    """A system of the table in one line: the first of its module's docstring."""
    return (sys.modules[_system_class(system).__module__].__doc__ or system).strip().splitlines()[0]


def load_config(path: str, assignments: Sequence[str] = ()) -> RunConfig:
    """The configuration of a recipe file with ``dotted.key=value`` overrides."""
    where = path if not assignments else f"{path} with overrides"
    return _from_values(override(read_yaml(path), assignments), where)


def _from_values(values: Any, where: str) -> RunConfig:
    try:
        return build(RunConfig, values, where)
    except V2FError as error:  # one that a system's own configuration raised does not know the file
        message = str(error)
        raise V2FError(message if message.startswith(where) else f"{where}: {message.removeprefix(': ')}") from error


def changes(before: RunConfig, now: RunConfig) -> list[str]:
    """How the function that is trained differs: ``key: old -> new``, a key each."""
    old, new = flatten(before), flatten(now)
    keys = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    keys = [k for k in keys if not _OF_STREAM.sub("data.", k).startswith(FREE)]
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in keys]


def config_of(folder: str) -> RunConfig:
    """What the checkpoint in ``folder`` was trained with."""
    config = checkpoint.needed(checkpoint.read_state(folder)["state"], "config", folder)
    return _from_values(config, f"the configuration in {folder}")


def build_system(config: RunConfig) -> System:
    """The system with freshly initialised weights: a function of the seed alone."""
    with torch.random.fork_rng(devices=[]), reading_runs(config.tracking.uri):
        torch.manual_seed(config.seed)
        return _system_class(config.system.name)(config.system)  # type: ignore[call-arg]  # each class takes its own


def reading_runs(tracking_uri: str | None = None) -> contextlib.AbstractContextManager[None]:
    """Inside, frozen nets may be modules of runs; ``tracking_uri``: where MLflow knows those that are named by id."""
    return read_by(functools.partial(_module_of_run, tracking_uri=tracking_uri))


def _module_of_run(net: RunModule, tracking_uri: str | None) -> tuple[nn.Module, str]:
    run = Run.open(net.path, tracking_uri)
    found = run.pretrained(net.module, net.which)
    return pretrained.put(build_system(run.config), net.module, found), found.sha256


def start_from(config: RunConfig, system: System, peers: checkpoint.Peers) -> list[dict[str, Any]]:
    """Fill the modules of a fresh ``system`` that ``config.init_from`` names; gives from what, plain JSON. Collective.

    Rank 0 reads, and sends the others what the system then holds.
    """
    if not config.init_from:
        return []
    taken = checkpoint.alike(peers, lambda: _filled(config, system) if peers.rank == 0 else [])[0]
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
            told = V2FError(f"init_from.{number}: {error}")
            told.again = error.again
            raise told from error
        taken.append({"source": source.file or source.run, "into": source.target, **found.about})
    return taken


def _put(config: RunConfig, system: System, into: str, found: Pretrained) -> None:
    """Says of weights that do not fit what the system knows of it."""
    try:
        pretrained.put(system, into, found)
    except V2FError:
        if into in trained(system):
            shapes = {f"{into}.{name}": tensor.shape for name, tensor in found.tensors.items()}
            check_shapes(config, shapes, found.where)
        raise


def told_source(record: Mapping[str, Any]) -> str:
    """A line for what :func:`start_from` gives of a module."""
    step = "" if record["step"] is None else f", step {record['step']}"
    averages = ", the moving averages" if record["averaged"] else ""
    what = f"{record['module']} of " if record["module"] else ""
    source = without_credentials(record["source"])
    return f"{record['into']} from {what}{source}{step}{averages} (SHA-256 {record['sha256'][:16]}...)"


def streams_of(config: RunConfig, system: System) -> dict[str, DataConfig]:
    """What each stream that the system asks for is read from, in the system's order; V2FError where ``data.streams``
    has others."""
    asked, given, name = list(system.streams()), config.data.by_stream(), config.system.name  # type: ignore[attr-defined]
    if asked == [""] and config.data.streams is not None:
        raise V2FError(
            f"data.streams: {', '.join(given)}: the system {name} reads one stream; leave it out, and give data.path "
            "and data.batch"
        )
    if set(asked) != set(given):
        raise V2FError(
            f"data.streams: {', '.join(filter(None, given)) or 'null'}: the system {name} asks for the streams "
            f"{', '.join(asked)}; give each of them and no other"
        )
    batch = given[asked[0]].batch
    if batch != config.data.batch:
        raise V2FError(
            f"data.batch: {config.data.batch}: samples are counted by {asked[0]}, the first stream of the system "
            f"{name}; set data.batch={batch}"
        )
    return {stream: given[stream] for stream in asked}


def check_weights(system: System, state: Mapping[str, Any], where: str) -> None:
    """V2FError if a frozen net is not the one that the checkpoint ``where`` with ``state`` was trained against."""
    for role, before in state.get("weights", {}).items():
        now = system.weights.get(role)
        if now != before:
            raise V2FError(
                f"system.frozen.{role}: its file has the SHA-256 {now[:16] + '...' if now else '(none)'}, {where} was "
                f"trained against {before[:16]}...; bring the same weights (of a run: that step, or an export of it)"
            )


def check_shapes(config: RunConfig, shapes: Mapping[str, Sequence[int]], where: str) -> None:
    """V2FError if the system knows why weights of these shapes, by ``MODULE.tensor``, are not those of ``config``."""
    why = _system_class(config.system.name).misfit(config.system, shapes)
    if why is not None:
        raise V2FError(f"{where}: {why}")


@contextlib.contextmanager
def _explained(config: RunConfig, where: str) -> Iterator[None]:
    """Says of weights that do not fit what the system knows of it."""
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


class _LeftOut(Record):
    samples: int = 0
    first: list[str] = []


class _HeldEqual(Record):
    factor: str
    gallery: int
    lines: dict[str, dict[str, Any]]
    chance: dict[str, float | None]


class _Told(Record):
    """The numbers of a split by one observer; a number stands alone or with its interval."""

    lines: dict[str, dict[str, float | dict[str, float | None] | None]]
    meters: dict[str, float | None] = {}
    held_equal: _HeldEqual | None = None
    strongest_factor: str | None = None


class _Split(Record):
    """The numbers of a split, by each observer."""

    by: dict[Literal["referee", "judge", "pixels", "spectra"], _Told] = {}
    people: int | None = None
    clips: int | None = None
    gallery: int | None = None
    chance: dict[str, float | None] | None = None
    left_out: _LeftOut = _LeftOut()
    verdict: str | None = None
    notes: list[str] = []


class _Data(Record):
    fingerprint: str
    path: str | None = None


class _People(Record):
    sha256: str


class _Evaluated(Record):
    """What ``eval.json`` holds."""

    data: _Data
    splits: dict[str, _Split]
    referee: dict[str, Any] = {}
    step: int | None = None
    weights: dict[str, str | None] = {}
    stand_ins: list[str] = []
    seconds: float | None = None
    device: str | None = None
    threads: int | None = None
    versions: dict[str, str] = {}
    people: _People | None = None


@dataclass(frozen=True)
class Run:
    """A run that exists: its folder or prefix, and what lies there."""

    path: str

    @classmethod
    def open(cls, run: str, tracking_uri: str | None = None) -> "Run":
        """The run that ``run`` names: a folder, an ``s3://`` prefix, or an MLflow run id (32 hex digits)."""
        path = run.rstrip("/")
        if _MLFLOW_ID.fullmatch(path) and not store.exists(store.join(path, "config.yaml")):
            path = folder_of(path, tracking_uri or TrackingConfig().uri)
        if not store.exists(store.join(path, "config.yaml")):
            raise V2FError(f"{run}: no run there (no config.yaml); name a run's folder, s3:// prefix or MLflow run id")
        return cls(path)

    @cached_property
    def config(self) -> RunConfig:
        where = store.join(self.path, "config.yaml")
        try:
            text = store.read_bytes(where).decode()
        except UnicodeDecodeError:
            raise V2FError(f"{where}: it is damaged, no text in UTF-8; {_CONFIG_LOST}") from None
        values = parse_yaml(text, where)
        if not isinstance(values, dict):
            raise V2FError(f"{where}: it is damaged, it holds {type(values).__name__}; {_CONFIG_LOST}")
        return _from_values(values, where)

    @cached_property
    def info(self) -> dict[str, Any]:
        """What identifies the run: code version, data fingerprint, stand-ins; of an export also its step."""
        where = store.join(self.path, "run.json")
        if store.exists(where):
            return records.read_record(where, _Info, "restore it, or remove it to go on without it")
        if not self.exported:
            return {}
        try:
            found: Any = json.loads(checkpoint.read_header(self._model)[1].get(NOTES, "{}"))
        except (ValueError, RecursionError):
            found = None
        problem = problem_of(_Info, found)
        if problem is not None:
            raise V2FError(f"{self._model}: its notes are damaged, {problem}; copy it or export it anew")
        return dict(found)

    @property
    def evaluated(self) -> dict[str, Any] | None:
        """What ``v2f eval`` has measured; None where nothing was."""
        where = store.join(self.path, EVALUATION)
        if not store.exists(where):
            return None
        way_out = f"measure the run anew with `v2f eval {self.path}`"
        found = records.read_record(where, _Evaluated, way_out)
        if not all(split.get("by") for split in found["splits"].values()):
            raise V2FError(f"{where}: an older v2f wrote it, which knew no referee; {way_out}")
        return found

    @cached_property
    def exported(self) -> bool:
        """Whether this is an export: the weights of one checkpoint, and no folder of checkpoints."""
        return store.exists(self._model)

    @property
    def step(self) -> int | None:
        """The step of the newest committed checkpoint, or that of an export."""
        if self.exported:
            return self.info.get("step")
        found = checkpoint.latest(self._checkpoints)
        return checkpoint.step_of(found) if found else None

    def checkpoint(self, which: str | int = "latest") -> str:
        """The folder of a committed checkpoint: ``latest``, ``best`` (by ``train.best``) or that of a step."""
        if self.exported:
            raise V2FError(f"{self.path}: an export holds the weights of one checkpoint and nothing to choose from")
        folders = {checkpoint.step_of(folder): folder for folder in checkpoint.committed(self._checkpoints)}
        if not folders:
            raise V2FError(f"{self.path}: no committed checkpoint yet; train it first: v2f/train.py --config ...")
        if which == "latest":
            return folders[max(folders)]
        if which == "best":
            best = self.config.train.best
            if best is None:
                raise V2FError(f"{self.path}: its train.best names no meter that a checkpoint could be the best by")
            found, what = checkpoint.best(self._checkpoints, best.metric, best.mode), f"with a meter {best.metric!r}"
        else:
            found, what = folders.get(int(which)), f"of step {which}"
        if found is None:
            steps = ", ".join(map(str, folders))
            raise V2FError(f"{self.path}: there is no checkpoint {what}, but those of step {steps}")
        return found

    def step_of(self, which: str | int = "latest") -> int | None:
        """The step of a committed checkpoint (see :meth:`checkpoint`), or that of an export."""
        return self.step if self.exported else checkpoint.step_of(self.checkpoint(which))

    def system(self, ema: bool = True, which: str | int = "latest") -> System:
        """The trained system of a committed checkpoint (see :meth:`checkpoint`), in eval mode; with ``ema`` the
        moving-average weights, where they are kept. An export has but one kind."""
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
        """The weights of a module of it, by its name (``encoder``, ``encoder.stem``), for others to start from; of a
        committed checkpoint (see :meth:`checkpoint`) the moving averages, where they are kept."""
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
