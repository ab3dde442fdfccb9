"""A run's whole configuration: what a recipe spells, and how it may differ when the run goes on."""

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from v2f.config import (
    Config,
    MayChange,
    Place,
    build,
    fixed,
    override,
    read_yaml,
)
from v2f.errors import V2FError
from v2f.runs.checkpoint import Mode
from v2f.system import System, SystemConfig
from v2f.systems import SYSTEMS
from v2f.weights.runs import MODULE as MODULE_NAME
from v2f.weights.runs import Which


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

    path: MayChange[Place | None] = Field(None, description="the data set's folder or s3:// prefix")
    mix: MayChange[list[SourceConfig] | None] = Field(
        None, min_length=1, description="instead of path: several data sets"
    )
    split: str | None = None
    batch: int | None = Field(None, gt=0, description="samples of this stream in a global batch")


class DataConfig(Config):
    """Which shards, in which order. The order is a pure function of these, the seed and the data's fingerprint."""

    path: MayChange[Place | None] = Field(None, description="the data set's folder or s3:// prefix")
    mix: MayChange[list[SourceConfig] | None] = Field(
        None, min_length=1, description="instead of path: several data sets"
    )
    split: str = "train"
    valid: str | None = Field("valid", description="split of the meters and the sample grid; null: none")
    batch: int = Field(gt=0, description="global batch size, in slots")
    workers: MayChange[int] = Field(
        1, ge=0, description="decoding processes of each rank; 0 decodes in the rank itself"
    )
    partitions: int = Field(8, gt=0, description="canonical partitions of the order; a multiple of the nodes")
    window: int = Field(256, gt=0, description="samples of a partition that are read, and shuffled, together")
    cache: MayChange[CacheConfig | None] = Field(None, description="null: every rank reads for itself")
    max_bad_fraction: MayChange[float] = Field(
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
    mode: Mode = "max"

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
    strategy: MayChange[Literal["auto", "ddp", "zero1", "zero2"]] = Field(
        "auto", description="auto: as the launcher says, or DDP"
    )
    micro_batch: MayChange[int | None] = Field(
        None, gt=0, description="most samples of one forward pass; null: all a rank has"
    )
    threads: MayChange[int | None] = Field(
        None, gt=0, description="CPU threads of each rank; null leaves torch's choice"
    )
    log_every: MayChange[int] = Field(10, gt=0)
    validate_every: MayChange[int] = Field(200, gt=0)
    validate_samples: MayChange[int] = Field(64, gt=1)
    validate_pictures: MayChange[int] = Field(16, gt=0, description="of these samples, those that a validation draws")
    checkpoint_every: MayChange[int] = Field(500, gt=0)
    keep: MayChange[int] = Field(
        2, ge=2, description="newest checkpoints kept; 1 would leave none while the next is written"
    )
    keep_every: MayChange[int | None] = Field(None, gt=0, description="also every checkpoint whose step this divides")
    best: MayChange[BestConfig | None] = Field(
        None, description="also the best checkpoint by a meter or loss of the validation"
    )
    max_skipped: MayChange[int] = Field(
        10, gt=0, description="steps skipped in a row for their numbers that stop the run"
    )
    spike_sigma: float | None = Field(
        None, gt=0, description="skip a step whose gradient norm is so many deviations above its mean of 128 steps"
    )
    watchdog_minutes: MayChange[float | None] = Field(
        30.0, gt=0, description="leave when no step ends for so long; null: never"
    )
    sample_log: MayChange[bool] = Field(
        False, description="write into slots/ beside metrics.jsonl which sample each slot was"
    )


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
    out: MayChange[Place | None] = Field(None, description="the run's folder; null: runs/NAME")
    seed: int = Field(0, ge=0)
    system: SerializeAsAny[SystemConfig]
    data: DataConfig
    train: TrainConfig
    tracking: MayChange[TrackingConfig] = TrackingConfig()
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
        return build(system_class(value["name"]).Config, value, "", under="system.")

    @property
    def folder(self) -> str:
        return self.out or f"runs/{self.name}"


def system_class(name: Any) -> type[System]:
    if name not in SYSTEMS:
        raise V2FError(f"system.name: there is no system {name!r}; there are: {', '.join(sorted(SYSTEMS))}")
    return SYSTEMS[name]


def what_is(system: str) -> str:
    """A system of the table in one line: the first of its module's docstring."""
    return (sys.modules[system_class(system).__module__].__doc__ or system).strip().splitlines()[0]


def load_config(path: str, assignments: Sequence[str] = ()) -> RunConfig:
    """The configuration of a recipe file with ``dotted.key=value`` overrides."""
    where = path if not assignments else f"{path} with overrides"
    return config_from(override(read_yaml(path), assignments), where)


def config_from(values: Any, where: str) -> RunConfig:
    try:
        return build(RunConfig, values, where)
    except V2FError as error:  # one that a system's own configuration raised does not know the file
        message = str(error)
        raise V2FError(message if message.startswith(where) else f"{where}: {message.removeprefix(': ')}") from error


def changes(before: RunConfig, now: RunConfig) -> list[str]:
    """How the function that is trained differs: ``key: old -> new``, a key each."""
    old, new = fixed(before), fixed(now)
    keys = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in keys]
