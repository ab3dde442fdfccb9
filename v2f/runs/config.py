"""The configuration of a whole run, as a recipe spells it; :data:`MayChange` marks what a resumed run may set anew.

Weights that the user brings may lie elsewhere when a run resumes: their checksums are compared.
"""

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from v2f.config import (
    Config,
    MayChange,
    Place,
    build,
    fixed_on_resume,
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
    """A cache of the data, shared by all ranks of a node. It pays off if several of them read the same block."""

    path: Place = Field(description="a folder on a local disk")
    gb: float = Field(gt=0, description="its largest size")

    @property
    def bytes(self) -> int:
        return round(self.gb * 1e9)


class StreamConfig(Config):
    """Where a stream of a system is read from; null takes the value of ``data``."""

    path: MayChange[Place | None] = Field(None, description="the data set's folder or s3:// prefix")
    mix: MayChange[list[SourceConfig] | None] = Field(
        None, min_length=1, description="instead of path: several data sets"
    )
    split: str | None = None
    batch: int | None = Field(None, gt=0, description="samples of this stream in a global batch")


class DataConfig(Config):
    """Which shards, in which order. The order is a pure function of this group, the seed and the data's fingerprint."""

    path: MayChange[Place | None] = Field(None, description="the data set's folder or s3:// prefix")
    mix: MayChange[list[SourceConfig] | None] = Field(
        None, min_length=1, description="instead of path: several data sets"
    )
    split: str = "train"
    valid: str | Annotated[list[str], Field(min_length=1)] | None = Field(
        "valid", description="split, or list of splits, for the meters and the sample grid; null: none"
    )
    batch: int = Field(gt=0, description="global batch size, in slots")
    workers: MayChange[int] = Field(
        1, ge=0, description="decoding processes of each rank; 0 decodes in the rank itself"
    )
    partitions: int = Field(8, gt=0, description="canonical partitions of the order; a multiple of the nodes")
    window: int = Field(256, gt=0, description="samples of a partition that are read and shuffled together")
    cache: MayChange[CacheConfig | None] = Field(None, description="null: every rank reads for itself")
    max_bad_fraction: MayChange[float] = Field(
        0.01, ge=0, le=1, description="the run stops when more of the split's samples than this cannot be used"
    )
    streams: dict[str, StreamConfig] | None = Field(
        None, min_length=1, description="for a system that reads several streams of samples: each by its name"
    )

    @model_validator(mode="before")
    @classmethod
    def _counted(cls, values: Any) -> Any:
        """Without its own batch, ``data`` takes that of the first stream, by which samples are counted."""
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
                raise ValueError(f"{where} needs either path (one data set) or mix (several)")
        return self

    @property
    def home(self) -> str:
        """The data set that meters and evaluation read: ``path``, or the first of the mix; that of the first stream
        where ``data`` itself has neither."""
        if self.path is None and self.mix is None and self.streams:
            return next(iter(self.by_stream().values())).home
        return self.mix[0].path if self.mix else str(self.path)

    @property
    def held_out(self) -> list[str]:
        """The splits that validation reads."""
        return [self.valid] if isinstance(self.valid, str) else self.valid or []

    @property
    def sources(self) -> list[SourceConfig]:
        """All data sets of the training, each with its split."""
        if self.streams is not None:
            return [source for own in self.by_stream().values() for source in own.sources]
        if self.mix is None:
            return [SourceConfig(path=str(self.path), split=self.split)]
        return [source.model_copy(update={"split": source.split or self.split}) for source in self.mix]

    def by_stream(self) -> dict[str, "DataConfig"]:
        """Stream -> the ``data`` that describes it alone; without streams ``{"": self}``."""
        if self.streams is None:
            return {"": self}
        found = {}
        for name, own in self.streams.items():
            place = own if own.path is not None or own.mix is not None else self
            values = {"path": place.path, "mix": place.mix, "split": own.split or self.split}
            found[name] = self.model_copy(update=values | {"batch": own.batch or self.batch, "streams": None})
        return found


class BestConfig(Config):
    """The metric that makes a checkpoint the best one."""

    metric: str = Field(description="a meter or loss of the validation, as in metrics.jsonl; valid/ may be left out")
    mode: Mode = "max"

    @field_validator("metric")
    @classmethod
    def _without_prefix(cls, value: str) -> str:
        return value.removeprefix("valid/")


class TrainConfig(Config):
    """How long to train, in which precision, and how often to log, validate and save."""

    steps: int = Field(gt=0, description="optimizer steps of the first phase, in total")
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp64"] = Field(
        "fp32",
        description="auto: bf16 if all devices support it, else fp32; tf32: as fp32, but a GPU rounds the "
        "factors of products to 10 bits of mantissa",
    )
    strategy: MayChange[Literal["auto", "ddp", "zero1", "zero2"]] = Field(
        "auto", description="auto: as the launcher says, or DDP"
    )
    micro_batch: MayChange[int | None] = Field(
        None, gt=0, description="most samples in one forward pass; null: all of a rank's"
    )
    threads: MayChange[int | None] = Field(None, gt=0, description="CPU threads of each rank; null: torch decides")
    log_every: MayChange[int] = Field(10, gt=0)
    validate_every: MayChange[int] = Field(200, gt=0)
    validate_samples: MayChange[int] = Field(64, gt=1)
    validate_pictures: MayChange[int] = Field(16, gt=0, description="how many of these samples a validation draws")
    checkpoint_every: MayChange[int] = Field(500, gt=0)
    keep: MayChange[int] = Field(
        2, ge=2, description="newest checkpoints kept; 1 would leave none while the next is written"
    )
    keep_every: MayChange[int | None] = Field(None, gt=0, description="also every checkpoint whose step this divides")
    best: MayChange[BestConfig | None] = Field(
        None, description="also the best checkpoint by a meter or loss of the validation"
    )
    max_skipped: MayChange[int] = Field(
        10, gt=0, description="stop after this many steps in a row were skipped for their numbers"
    )
    spike_sigma: float | None = Field(
        None, gt=0, description="skip a step whose gradient norm is this many deviations above the mean of 128 steps"
    )
    watchdog_minutes: MayChange[float | None] = Field(
        30.0, gt=0, description="exit when no step ends for this long; null: never"
    )
    sample_log: MayChange[bool] = Field(
        False, description="record in slots/ beside metrics.jsonl which sample filled each slot"
    )


class TrackingConfig(Config):
    """Where MLflow is. With ``uri: null`` the metrics stay in the run's folder."""

    uri: Place | None = "sqlite:///runs/mlflow.db"
    experiment: str = "v2f"


class InitFrom(Config):
    """A module of this run that starts from existing weights: of another run, an export or a file."""

    run: Place | None = Field(None, description="a run or an export: a folder, an s3:// prefix or an MLflow run id")
    file: Place | None = Field(None, description="instead of run: a .safetensors, .pt or .pth file of tensors")
    key: str | None = Field(None, description="where the state_dict is in a .pt file that holds more")
    module: str | None = Field(
        None, pattern=MODULE_NAME, description="the module's name in the source; null: the whole file"
    )
    into: str | None = Field(
        None, pattern=MODULE_NAME, description="the module's name in this run; null: as in the source"
    )
    which: Which = Field("latest", description="which checkpoint of the run: latest, best or a step")
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="of the file, or of the run's module, as in run.json"
    )

    @model_validator(mode="after")
    def _one_source(self) -> "InitFrom":
        if (self.run is None) == (self.file is None):
            raise ValueError("init_from needs either run or file")
        if self.module is None and (self.run is not None or self.into is None):
            raise ValueError("init_from needs module (its name in the source), or into if the whole file is one module")
        if self.run is not None and self.key is not None:
            raise ValueError("init_from.key applies to a file only")
        if self.file is not None and self.which != "latest":
            raise ValueError("init_from.which applies to a run only")
        return self

    @property
    def target(self) -> str:
        """The name of the module in this run."""
        return self.into or str(self.module)


class RunConfig(Config):
    """One whole run, as a recipe under ``launch/recipes`` spells it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    out: MayChange[Place | None] = Field(None, description="the run's folder; null: runs/NAME")
    seed: int = Field(0, ge=0)
    system: SerializeAsAny[SystemConfig]
    data: DataConfig
    train: TrainConfig
    tracking: MayChange[TrackingConfig] = TrackingConfig()
    init_from: list[InitFrom] = Field([], description="modules that start from existing weights instead of the seed")

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
            raise ValueError(f"the system must be a group with a name, one of: {', '.join(sorted(SYSTEMS))}")
        return build(system_class(value["name"]).Config, value, "", under="system.")

    @property
    def folder(self) -> str:
        return self.out or f"runs/{self.name}"


def system_class(name: Any) -> type[System]:
    if name not in SYSTEMS:
        raise V2FError(f"system.name: there is no system {name!r}; there are: {', '.join(sorted(SYSTEMS))}")
    return SYSTEMS[name]


def what_is(system: str) -> str:
    """A system in one line: the first line of its module's docstring."""
    return (sys.modules[system_class(system).__module__].__doc__ or system).strip().splitlines()[0]


def load_config(path: str, assignments: Sequence[str] = ()) -> RunConfig:
    """The configuration of a recipe file with ``dotted.key=value`` overrides."""
    where = path if not assignments else f"{path} with overrides"
    return config_from(override(read_yaml(path), assignments), where)


def config_from(values: Any, where: str) -> RunConfig:
    try:
        return build(RunConfig, values, where)
    except V2FError as error:  # a system's own configuration does not know the file
        message = str(error)
        raise V2FError(message if message.startswith(where) else f"{where}: {message.removeprefix(': ')}") from error


def changes(before: RunConfig, now: RunConfig) -> list[str]:
    """How the trained function differs: a line ``key: old -> new`` for each key that may not change."""
    old, new = fixed_on_resume(before), fixed_on_resume(now)
    keys = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in keys]
