"""The contract between mathematics and machinery: System, Phase, Losses.

A system says what is trained and what the loss is; the trainer owns backward, precision, accumulation,
clipping, freezing and time. One file a system under ``v2f/systems``, one line in its table, one recipe.

Shape letters: B batch, T waveform samples, H W picture, L styles, D width.
"""

import abc
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f.config import Config
from v2f.nn.statistics import Turn
from v2f.weights import Judges

M = TypeVar("M", bound=nn.Module)

Batch = dict[str, Any]
"""``{transform's name: [B, ...], "slot": int64 [B], "weight": float32 [B], "identity": int64 [B], "key": [str]}``; of a
system that reads several streams ``{stream: such a batch}``, each with its own B."""

Losses = dict[str, Tensor]
"""``{"total": scalar, part: scalar, ...}``; each is sum(weight * loss per sample) / B (promise 2)."""


class Schedule(Config):
    """A factor on the learning rate as a pure function of samples seen: hold, linear warm-up, decay.

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

        The first step of a warm-up is not at rate zero: it would move nothing.
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
    clip: float | None = Field(None, gt=0, description="largest L2 norm of the phase's gradient")
    schedule: Schedule = Schedule()


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One optimizer's turn: a supervised system has one, a GAN two. Order in the list is order of execution."""

    name: str
    modules: Mapping[str, nn.Module]
    optimizer: Optimizer
    every: int = 1
    ema: int | None = None
    """Half-life of the moving average of the weights, in samples; None keeps none."""


class SystemConfig(Config):
    """What the configuration of every system has."""

    name: str

    @property
    def nets(self) -> Judges | None:
        """The frozen nets that it names; None: it names none."""
        return None


# What goes in and comes out. In a batch an input has the shape that its transform gives it, with B in front.


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
    """Of a photo's side, kept around its middle, as an input."""


@dataclass(frozen=True)
class Video:
    """Frames, uint8 [B,F,3,H,H], spread evenly over the video."""

    size: int
    frames: int


@dataclass(frozen=True)
class Label:
    """int64 [B] as an input, scores [B,K] as an output: one of ``names``."""

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
    """float32 [B,Z], N(0, 1): nobody is asked for it, it is drawn."""

    width: int


Kind = Sound | Picture | Video | Label | Embedding | Tokens | Noise
K = TypeVar("K")


def of_kind(kinds: Mapping[str, Kind], kind: type[K]) -> list[tuple[str, K]]:
    """Those inputs or outputs (:meth:`System.asks`, :meth:`System.makes`) that are of one kind, in their order."""
    return [(name, each) for name, each in kinds.items() if isinstance(each, kind)]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A part of a system for programs without v2f: a graph of tensors."""

    graph: nn.Module
    """Takes ``inputs`` in their order and gives one tensor, the batch in front of all of them."""
    inputs: Mapping[str, Tensor]
    """Name -> an example, of a batch of at least two; all axes but the batch are fixed."""
    makes: str
    """The name of what comes out."""
    about: str
    """What goes in and what comes out, with shapes and units, in one sentence of the model card."""


class Transform(Protocol):
    """Reads one array from a decoded sample; ``rng`` is keyed by (seed, slot), or None for the fixed view."""

    def __call__(self, sample: Any, rng: Any) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Stepped(Turn):
    """A step that all ranks have taken: its turn (seed, step, slots), and what they have added up in it."""

    statistics: Mapping[str, Tensor]
    """``MODULE.path`` of each :class:`~v2f.nn.statistics.Keeps` that the phase trains -> its sums over all ranks and
    micro-batches, flat, float64."""


class System(nn.Module, abc.ABC):
    """What is trained. Abstract: final classes only below it.

    Submodules named in a phase are trained, wrapped and saved; every other one is frozen and stays outside
    the engine, the optimizer and the checkpoint.
    """

    Config: ClassVar[type[SystemConfig]]
    protocol: ClassVar[str | None] = None
    """Name of the protocol by which it is judged (:mod:`v2f.evaluation.protocols`); None: there is none yet."""
    stand_ins: Sequence[str] = ()
    """Names of the frozen nets that are the synthetic world's, because no weights were named."""
    weights: Mapping[str, str] = {}
    """Role -> SHA-256 of the file that the user brought for a frozen net."""

    @abc.abstractmethod
    def phases(self) -> list[Phase]:
        """The phases, in order of execution."""

    @abc.abstractmethod
    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        """The losses of one micro-batch: pure, no backward, no logging."""

    def after_step(self, phase: str, stepped: Stepped) -> None:
        """Called on all ranks after each optimizer step that was not skipped, without gradients.

        It may move buffers, never parameters (a strategy holds copies of them), by what ``stepped`` and the buffers
        say alone: all ranks must come to the same.
        """

    @abc.abstractmethod
    def asks(self) -> Mapping[str, Kind]:
        """What :meth:`sample` needs, by its name in the batch; nothing else of a batch is looked at for its result."""

    @abc.abstractmethod
    def makes(self) -> Mapping[str, Kind]:
        """What :meth:`sample` makes of that, by name; the first one is what the system is for."""

    @abc.abstractmethod
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """What the system makes of a batch, as :meth:`makes` declares it; of one from a data set also what it is to be
        held against, under other names."""

    @abc.abstractmethod
    def meters(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Numbers that show in minutes whether it collapses (promise 7), from the validation batches."""

    def verdict(self, meters: Mapping[str, float], history: Mapping[str, Sequence[float]]) -> str | None:
        """What is wrong with the training, in one line that begins with the trouble's name; None: nothing is seen.

        ``meters`` are those of :meth:`meters`; ``history`` holds what the run has logged by name, oldest first, the
        last 200 points at most: means over ``train.log_every`` steps, such as ``loss/PHASE/total``.
        """
        return None

    def exports(self) -> Exported | None:
        """The graph that ``v2f checkpoint export --format onnx`` (or ``torch-export``) writes; None: there is none."""
        return None

    @classmethod
    def misfit(cls, config: Any, shapes: Mapping[str, Sequence[int]]) -> str | None:
        """Why weights of these shapes, by ``MODULE.tensor``, are not those of a system of ``config``, and the way out;
        None: nothing is known but the first tensor that does not fit."""
        return None

    @abc.abstractmethod
    def transforms(self) -> dict[str, Transform]:
        """What it reads of a sample: name in the batch -> transform. Of a system that reads several streams, what it
        reads where samples come one by one (evaluation, generation), what its first stream reads among it."""

    def streams(self) -> dict[str, dict[str, Transform]]:
        """What training and validation read of each stream of samples: stream -> name in its batch -> transform.

        The one stream without a name is what most systems read: its batch is *the* batch. Streams with names are drawn
        independently of each other, each from its whole set and in an order of its own (``data.streams``): :meth:`loss`
        and :meth:`meters` then get ``batch["voice"]["wav"]``, :meth:`sample` the batch of a single stream, the first.
        All streams stand at one position, the step; a step, a schedule and every axis count the samples of the first.
        ``identity`` is one number for a name in all streams. Loss terms are means over the B of the stream that they
        are about, by its own ``weight``.
        """
        return {"": self.transforms()}


def by_stream(batch: Batch) -> dict[str, Batch]:
    """The batch of each stream, in the system's order; of a system that reads one, the batch itself under ""."""
    return {"": batch} if "slot" in batch else batch


def first_stream(batch: Batch) -> Batch:
    """The batch of the first stream, whose samples count."""
    return next(iter(by_stream(batch).values()))


def part_of(batch: Batch, number: int, parts: int) -> Batch:
    """The ``number``-th of ``parts`` equal stretches of the slots of every stream."""
    if "slot" not in batch:
        return {stream: part_of(own, number, parts) for stream, own in batch.items()}
    size, rest = divmod(len(batch["slot"]), parts)
    assert not rest, f"{len(batch['slot'])} slots are not cut into {parts} equal parts"
    return {name: values[number * size : (number + 1) * size] for name, values in batch.items()}


class Judged(System):
    """A system whose own frozen nets, ``identity`` and ``perceptual``, look at pictures [B,3,H,W] in [-1,1]."""

    identity: nn.Module
    perceptual: Any

    def embed(self, img_B3HW: Tensor) -> Tensor:
        """Whose face: identity embeddings [B,E] of length one."""
        embedding_BE: Tensor = self.identity(img_B3HW)
        return embedding_BE

    def maps(self, img_B3HW: Tensor) -> Sequence[Tensor]:
        """What is there: feature maps [B,C,h,w] of a perceptual net."""
        maps: Sequence[Tensor] = self.perceptual(img_B3HW)
        return maps


class Styled(System):
    """A system around a generator of styles."""

    @abc.abstractmethod
    def styles(self, wav_BT: Tensor) -> Tensor:
        """w+ [B,L,D] of what it hears."""

    @abc.abstractmethod
    def face(self, w_BLD: Tensor, size: int | None = None) -> Tensor:
        """Pictures [B,3,S,S] of w+; ``size`` None: that of the training."""

    @property
    def inverts(self) -> bool:
        """Whether a net of this run gives the w+ of a photo."""
        return False

    def invert(self, img_B3HW: Tensor) -> Tensor:
        """w+ of real photos in [-1,1], where :attr:`inverts` says so."""
        raise NotImplementedError

    def reference_codes(self, batch: Batch, reference_B3HW: Tensor) -> Tensor | None:
        """w+ of a batch's photos, from its shards or by :meth:`invert`; None where neither has them."""
        return self.invert(reference_B3HW) if self.inverts else None


def trained(system: System) -> dict[str, nn.Module]:
    """Every module that some phase trains, by name; a name stands for one module in all phases."""
    modules: dict[str, nn.Module] = {}
    for phase in system.phases():
        for name, module in phase.modules.items():
            assert modules.setdefault(name, module) is module, f"two modules are called {name!r}"
    return modules


def device_of(system: System) -> torch.device:
    """Where a system's nets are."""
    return next(system.parameters(), torch.empty(0)).device


def freeze(module: M) -> M:
    """``module`` in eval mode for ever, without gradients for its own parameters (they still pass through it)."""
    module.eval().requires_grad_(False)
    module.train = _stay  # type: ignore[method-assign, assignment]
    return module


def _stay(mode: bool = True) -> None:
    """A frozen module's ``train``: nothing changes, whoever walks over it."""


def weighted(loss_B: Tensor, weight_B: Tensor) -> Tensor:
    """sum(w l) / B: a quarantined slot (weight 0) keeps its place in the mean (promise 2)."""
    return (loss_B * weight_B.to(loss_B.dtype)).sum() / loss_B.shape[0]


def to_picture(img: Tensor, like: Tensor | None = None) -> Tensor:
    """uint8 pictures as floats in [-1, 1], in ``like``'s dtype and on its device."""
    dtype = like.dtype if like is not None else torch.float32
    device = like.device if like is not None else img.device
    return img.to(device=device, dtype=dtype) / 127.5 - 1
