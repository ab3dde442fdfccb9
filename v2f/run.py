"""A run's whole configuration, and the way from RUN (a folder, an s3:// prefix, an MLflow run id) to its parts.

Data flow: recipe.yaml + overrides -> :class:`RunConfig` -> ``OUT/config.yaml`` (resolved) beside
``OUT/run.json`` (what identifies the run), ``OUT/checkpoints/``, ``OUT/metrics.jsonl``, ``OUT/starts.jsonl`` (when,
from which step, on how many ranks it was started) and ``OUT/eval.json``. An export of ``v2f checkpoint export`` is a
run, too: ``config.yaml`` and the weights of one checkpoint, ``model.safetensors``.
"""

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import Field, SerializeAsAny, field_validator, model_validator

from v2f import checkpoint, store
from v2f.config import Config, Place, Record, build, flatten, override, parse_yaml, problem_of, read_yaml
from v2f.errors import V2FError
from v2f.system import System
from v2f.systems import SYSTEMS
from v2f.tracking import folder_of

MODEL = "model.safetensors"
EVALUATION = "eval.json"
NOTES = "v2f"  # what identifies an exported run, in the notes that its weights carry
_CONFIG_LOST = "restore it: the record of each checkpoint holds the configuration, too (state.config)"
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
        for key in ("file", "sha256")
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

    @model_validator(mode="after")
    def _one_source(self) -> "DataConfig":
        if (self.path is None) == (self.mix is None):
            raise ValueError("data wants either path, one data set, or mix, several")
        return self

    @property
    def home(self) -> str:
        """The data set that the meters and an evaluation read: that of ``path``, or the first of the mix."""
        return self.mix[0].path if self.mix else str(self.path)


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


class RunConfig(Config):
    """One whole run: what a recipe under ``launch/recipes`` spells."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    out: Place | None = Field(None, description="the run's folder; null: runs/NAME")
    seed: int = Field(0, ge=0)
    system: SerializeAsAny[Config]
    data: DataConfig
    train: TrainConfig
    tracking: TrackingConfig = TrackingConfig()

    @field_validator("system", mode="before")
    @classmethod
    def _system(cls, value: Any) -> Any:
        if isinstance(value, Config):
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
    keys = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k) and not k.startswith(FREE)]
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in keys]


def config_of(folder: str) -> RunConfig:
    """What the checkpoint in ``folder`` was trained with."""
    config = checkpoint.needed(checkpoint.read_state(folder)["state"], "config", folder)
    return _from_values(config, f"the configuration in {folder}")


def build_system(config: RunConfig) -> System:
    """The system with freshly initialised weights: a function of the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _system_class(config.system.name)(config.system)  # type: ignore[attr-defined, call-arg]


def check_weights(system: System, state: Mapping[str, Any], where: str) -> None:
    """V2FError if a frozen net is not the one that the checkpoint ``where`` with ``state`` was trained against."""
    for role, before in state.get("weights", {}).items():
        now = system.weights.get(role)
        if now != before:
            raise V2FError(
                f"system.frozen.{role}: its file has the SHA-256 {now[:16] + '...' if now else '(none)'}, {where} was "
                f"trained against {before[:16]}...; bring the same weights"
            )


def check_shapes(config: RunConfig, shapes: Mapping[str, Sequence[int]], where: str) -> None:
    """V2FError if the system knows why weights of these shapes, by ``MODULE.tensor``, are not those of ``config``."""
    why = _system_class(config.system.name).misfit(config.system, shapes)  # type: ignore[attr-defined]
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

    by: dict[Literal["referee", "judge", "pixels"], _Told] = {}
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
            return store.read_record(where, _Info, "restore it, or remove it to go on without it")
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
        found = store.read_record(where, _Evaluated, way_out)
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

    @property
    def _checkpoints(self) -> str:
        return store.join(self.path, "checkpoints")

    @property
    def _model(self) -> str:
        return store.join(self.path, MODEL)
