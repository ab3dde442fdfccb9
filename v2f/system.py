"""The contract between a system and the trainer: System, Phase, Losses.

A system defines the modules to train and the loss; the trainer owns backward, precision, accumulation, clipping,
freezing and time. A system takes one file under ``v2f/systems``, one line in its table and one recipe.

Shape letters: B batch, T waveform samples, H W picture, L styles, D width.
"""

import abc
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f.config import Config
from v2f.nn import freeze as freeze  # part of the contract
from v2f.nn.statistics import Turn
from v2f.weights import JudgeConfig, Requirements

Batch = dict[str, Any]
"""``{transform: [B, ...], "slot": int64 [B], "weight": float32 [B], "identity": int64 [B], "key": [str]}``; for a
system of several streams ``{stream: such a batch}``, each with its own B."""

Losses = dict[str, Tensor]
"""``{"total": scalar, part: scalar, ...}``; each is sum(weight * loss per sample) / B (promise 2,
docs/architecture.md)."""


class Schedule(Config):
    """A factor on the learning rate, as a pure function of the samples seen: hold, linear warm-up, decay.

    The thesis's warm-up: tens of thousands of steps at a small rate (``hold`` at ``start``), a slow rise (``warmup``),
    a slow decay. ``exponential`` multiplies by ``factor`` every ``every`` samples (the thesis: x0.95 an epoch);
    ``cosine`` falls to ``factor`` at the end of training; ``constant`` stays.
    """

    hold: int = Field(0, ge=0, description="samples at the factor `start`, before the warm-up")
    start: float = Field(0.0, ge=0, le=1, description="factor from which the warm-up rises")
    warmup: int = Field(0, ge=0, description="samples of linear warm-up from `start` to 1")
    decay: Literal["constant", "cosine", "exponential"] = "constant"
    factor: float = Field(1.0, gt=0, le=1, description="exponential: per `every` samples; cosine: at the end")
    every: int | None = Field(None, gt=0, description="samples, for exponential")

    @model_validator(mode="after")
    def _moves(self) -> "Schedule":
        if self.hold and not self.start:
            raise ValueError("schedule.hold at the factor 0 would train nothing; set schedule.start")
        return self

    def at(self, seen: int, total: int) -> float:
        """The factor for the step that starts when ``seen`` of ``total`` samples have been used.

        The first step of a warm-up has a rate above zero; otherwise it would change nothing.
        """
        if seen < self.hold:
            return self.start
        risen = min(1.0, (seen - self.hold + 1) / self.warmup) if self.warmup else 1.0
        warm = self.start + (1 - self.start) * risen
        before = self.hold + self.warmup
        after = max(0, seen - before)
        if self.decay == "exponential":
            return warm * self.factor ** (after / (self.every or max(1, total)))
        if self.decay == "cosine":
            done = min(1.0, after / max(1, total - before))
            return warm * (self.factor + (1 - self.factor) * 0.5 * (1 + math.cos(math.pi * done)))
        return warm


class Optimizer(Config):
    """Adam (Kingma & Ba 2015); ``weight_decay`` is the thesis's L2 term, added to the gradient."""

    lr: dict[str, float] = Field(description="learning rate of each module that the phase trains, by its name")
    betas: list[float] = Field([0.9, 0.999], min_length=2, max_length=2)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    clip: float | None = Field(None, gt=0, description="null: the gradient is not clipped")
    clip_by: Literal["norm", "value"] = Field(
        "norm", description="norm: clip is the largest L2 norm of the phase's gradient; value: of each of its numbers"
    )
    schedule: Schedule = Schedule()
    schedules: dict[str, Schedule] = Field({}, description="modules that have a schedule of their own, by name")

    def rates(self, seen: int, total: int) -> dict[str, float]:
        """The learning rate of each module for the step that starts when ``seen`` of ``total`` samples were used."""
        return {name: lr * self.schedules.get(name, self.schedule).at(seen, total) for name, lr in self.lr.items()}

    def check(self, trained: Collection[str], key: str = "optimizer") -> None:
        """ValueError if ``lr`` names another module than those that are ``trained``; ``key``: where this is set."""
        unknown = sorted(self.lr.keys() - set(trained))
        if unknown:
            raise ValueError(
                f"{key}.lr names {unknown[0]}, which this configuration does not train; it trains "
                f"{' and '.join(sorted(trained))}"
            )

    @model_validator(mode="after")
    def _knows_its_modules(self) -> "Optimizer":
        unknown = sorted(self.schedules.keys() - self.lr.keys())
        if unknown:
            raise ValueError(f"schedules names {unknown[0]}, which has no learning rate in lr")
        return self


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One optimizer's part of a step: a supervised system has one phase, a GAN two. They run in list order."""

    name: str
    modules: Mapping[str, nn.Module]
    optimizer: Optimizer
    every: int = 1
    ema: int | None = None
    """Half-life of the moving average of the weights, in samples; None: no average."""


class SystemConfig(Config):
    """The keys that the configuration of every system has."""

    name: str

    @property
    def nets(self) -> JudgeConfig | None:
        """The frozen nets that the configuration names; None if it names none."""
        return None

    def requirements(self, with_referee: bool = False) -> Requirements:
        """The weights from outside the package that training needs; ``with_referee``: those of evaluation as well."""
        return Requirements() if self.nets is None else self.nets.requirements(with_referee)


# Kinds of inputs and outputs. In a batch, an input has the shape that its transform gives it, with B in front.


@dataclass(frozen=True)
class Sound:
    """float32 [B,T] in [-1,1] as an input, [B,1,T] as an output. ``voice``: a person's speech."""

    rate: int
    """Samples a second."""
    seconds: float
    """T is ``round(seconds * rate)``."""
    voice: bool = False

    @property
    def frames(self) -> int:
        return round(self.seconds * self.rate)


@dataclass(frozen=True)
class Picture:
    """uint8 [B,C,H,H] as an input, float32 [B,C,H,H] in [-1,1] as an output."""

    size: int
    channels: int = 3
    share: float = 1.0
    """Share of a photo's side that an input keeps, around its center."""


@dataclass(frozen=True)
class Video:
    """Frames, uint8 [B,F,3,H,H], spread evenly over the video."""

    size: int
    frames: int


@dataclass(frozen=True)
class Label:
    """One of ``names``: int64 [B] as an input, scores [B,K] as an output."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Embedding:
    """float32 [B,E]."""

    width: int


@dataclass(frozen=True)
class Tokens:
    """int64 [B,T] below ``vocabulary``."""

    length: int
    vocabulary: int


@dataclass(frozen=True)
class Noise:
    """float32 [B,Z] from N(0, 1): v2f draws it; users do not provide it."""

    width: int


Kind = Sound | Picture | Video | Label | Embedding | Tokens | Noise
K = TypeVar("K")


def of_kind(kinds: Mapping[str, Kind], kind: type[K]) -> list[tuple[str, K]]:
    """Those inputs or outputs (:meth:`System.asks`, :meth:`System.makes`) that are of one kind, in their order."""
    return [(name, each) for name, each in kinds.items() if isinstance(each, kind)]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A part of a system for programs without v2f, as a graph of tensors."""

    graph: nn.Module
    """Takes ``inputs`` in order and returns one tensor; the first axis of all of them is the batch."""
    inputs: Mapping[str, Tensor]
    """Name -> an example with a batch of at least two; all other axes are fixed."""
    makes: str
    """The name of the output."""
    about: str
    """Inputs and output with shapes and units, as one sentence of the model card."""


class Transform(Protocol):
    """Reads one array from a decoded sample; ``rng`` is keyed by (seed, slot), or None for the fixed view."""

    def __call__(self, sample: Any, rng: Any) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Stepped(Turn):
    """A step that all ranks have taken: its turn (seed, step, slots) and the statistics that they summed."""

    statistics: Mapping[str, Tensor]
    """``MODULE.path`` of each :class:`~v2f.nn.statistics.KeepsStatistics` that the phase trains -> its sums over all
    ranks and micro-batches, flat, float64."""


class Generative(nn.Module, abc.ABC):
    """What makes outputs from inputs and declares both by kind: a system, or several joined (:mod:`v2f.pipeline`)."""

    stand_ins: Sequence[str] = ()
    """Names of the frozen nets that are stand-ins of the synthetic world, because no weights were configured."""

    @abc.abstractmethod
    def asks(self) -> Mapping[str, Kind]:
        """The inputs of :meth:`sample`, by name in the batch; its outputs depend on nothing else in the batch."""

    @abc.abstractmethod
    def makes(self) -> Mapping[str, Kind]:
        """The outputs of :meth:`sample`, by name; the first one is the purpose."""

    @abc.abstractmethod
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """The outputs for a batch, as :meth:`makes` declares them; for a batch from a data set also the references to
        compare them with, under other names."""


class System(Generative):
    """A trainable system. Abstract; subclasses are final.

    Submodules named in a phase are trained, wrapped and saved; all others are frozen and stay outside the engine, the
    optimizer and the checkpoint.
    """

    Config: ClassVar[type[SystemConfig]]
    protocol: ClassVar[str | None] = None
    """Name of its evaluation protocol (:mod:`v2f.evaluation.protocols`); None: it has none yet."""
    weights: Mapping[str, str] = {}
    """Role -> SHA-256 of the file that the user provided for a frozen net."""

    @abc.abstractmethod
    def phases(self) -> list[Phase]:
        """The phases, in execution order."""

    @abc.abstractmethod
    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        """The losses of one micro-batch; a pure function without backward or logging."""

    def after_step(self, phase: str, stepped: Stepped) -> None:
        """Called on all ranks, without gradients, after each optimizer step that was not skipped.

        It may change buffers, never parameters (strategies hold copies of them), and may depend on ``stepped`` and the
        buffers only: all ranks must reach the same result.
        """

    @abc.abstractmethod
    def meters(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Numbers from the validation batches that show within minutes whether training collapses (promise 7,
        docs/architecture.md)."""

    def verdict(self, meters: Mapping[str, float], history: Mapping[str, Sequence[float]]) -> str | None:
        """What is wrong with the training, in one line that begins with the problem's name; None if nothing is.

        ``meters``: the result of :meth:`meters`. ``history``: the logged values of the run by name, oldest first, at
        most the last 200: means over ``train.log_every`` steps, such as ``loss/PHASE/total``.
        """
        return None

    def exports(self) -> Exported | None:
        """The graph that ``v2f checkpoint export --format onnx`` (or ``torch-export``) writes, or None."""
        return None

    @classmethod
    def misfit(cls, config: Any, shapes: Mapping[str, Sequence[int]]) -> str | None:
        """Why weights of these shapes, by ``MODULE.tensor``, do not fit a system of ``config``, and what to do; None if
        the system knows no reason."""
        return None

    @abc.abstractmethod
    def transforms(self) -> dict[str, Transform]:
        """What the system reads from a sample: name in the batch -> transform. For a system of several streams: what it
        reads where samples come one by one (evaluation, generation), including all that its first stream reads."""

    def streams(self) -> dict[str, dict[str, Transform]]:
        """What training and validation read from each stream of samples: stream -> name in its batch -> transform.

        Most systems read one stream without a name; its batch is *the* batch. Named streams are drawn independently,
        each from its whole data set and in its own order (``data.streams``): :meth:`loss` and :meth:`meters` then get
        ``batch["voice"]["wav"]``; :meth:`sample` gets the batch of the first stream only. All streams are at the same
        step; steps, schedules and axes count the samples of the first stream. An identity has the same number in all
        streams. Each loss term is a mean over the B of its stream, weighted by that stream's ``weight``.
        """
        return {"": self.transforms()}


def by_stream(batch: Batch) -> dict[str, Batch]:
    """The batch of each stream, in the system's order; ``{"": batch}`` if the system reads one unnamed stream."""
    return {"": batch} if "slot" in batch else batch


def first_stream(batch: Batch) -> Batch:
    """The batch of the first stream, by which samples are counted."""
    return next(iter(by_stream(batch).values()))


def part_of(batch: Batch, number: int, parts: int) -> Batch:
    """The ``number``-th of ``parts`` equal slices of every stream's slots."""
    if "slot" not in batch:
        return {stream: part_of(own, number, parts) for stream, own in batch.items()}
    size, rest = divmod(len(batch["slot"]), parts)
    assert not rest, f"{len(batch['slot'])} slots do not split into {parts} equal parts"
    return {name: values[number * size : (number + 1) * size] for name, values in batch.items()}


class Judged(System):
    """A system whose own frozen nets, ``identity`` and ``perceptual``, look at pictures [B,3,H,W] in [-1,1]."""

    identity: nn.Module
    perceptual: Any

    def embed(self, img_B3HW: Tensor) -> Tensor:
        """Identity embeddings [B,E] of unit length."""
        embedding_BE: Tensor = self.identity(img_B3HW)
        return embedding_BE

    def maps(self, img_B3HW: Tensor) -> Sequence[Tensor]:
        """Feature maps [B,C,h,w] of the perceptual net."""
        maps: Sequence[Tensor] = self.perceptual(img_B3HW)
        return maps


class Styled(System):
    """A system around a style-based generator."""

    @abc.abstractmethod
    def styles(self, batch: Batch) -> Tensor:
        """The w+ [B,L,D] of what the system asks for, a voice and perhaps noise."""

    @abc.abstractmethod
    def face(self, w_BLD: Tensor, size: int | None = None) -> Tensor:
        """Pictures [B,3,S,S] from w+; ``size`` None: the size of the training."""

    @property
    def inverts(self) -> bool:
        """Whether a net of this run computes the w+ of a photo."""
        return False

    def invert(self, img_B3HW: Tensor) -> Tensor:
        """The w+ of real photos in [-1,1], if :attr:`inverts`."""
        raise NotImplementedError

    def reference_codes(self, batch: Batch, reference_B3HW: Tensor) -> Tensor | None:
        """The w+ of a batch's photos, from its shards or by :meth:`invert`; None if neither has them."""
        return self.invert(reference_B3HW) if self.inverts else None


class Recognizer(System):
    """A system that recognizes the voices of the people seen in training, in the numbering of
    :class:`v2f.data.transforms.PersonNumber`."""

    @abc.abstractmethod
    def scores(self, wav_BT: Tensor) -> Tensor:
        """A score [B,N] for each of the N people; the highest is the answer."""


def trained(system: System) -> dict[str, nn.Module]:
    """All modules that any phase trains, by name; a name means the same module in all phases."""
    modules: dict[str, nn.Module] = {}
    for phase in system.phases():
        for name, module in phase.modules.items():
            assert modules.setdefault(name, module) is module, f"two modules are called {name!r}"
    return modules


def device_of(system: Generative) -> torch.device:
    """The device of a system's nets."""
    return next(system.parameters(), torch.empty(0)).device


def weighted(loss_B: Tensor, weight_B: Tensor) -> Tensor:
    """sum(w l) / B: a quarantined slot (weight 0) still counts in B (promise 2, docs/architecture.md)."""
    return (loss_B * weight_B.to(loss_B.dtype)).sum() / loss_B.shape[0]


def to_picture(img: Tensor, like: Tensor | None = None) -> Tensor:
    """uint8 pictures as floats in [-1, 1], with the dtype and device of ``like``."""
    dtype = like.dtype if like is not None else torch.float32
    device = like.device if like is not None else img.device
    return img.to(device=device, dtype=dtype) / 127.5 - 1
