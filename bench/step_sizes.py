"""What bench/step.py measures: sizes, arms, and how one arm takes a step.

A size is a recipe with overrides; its foreign nets (StyleGAN2, IR-SE50, LPIPS' backbone, pSp) are built with the usual
start values of their layers, for nobody's weights are needed to measure speed or memory; pictures are noise.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.baseline import Baseline, Steps
from bench.parts import Clock, Parts, Work, counted, fake, fake_batch
from v2f import standins, weights
from v2f.engine import Engine
from v2f.nn import float32_products
from v2f.nn.batchnorm import ghost_norms
from v2f.nn.frozen import LPIPS, FaceIdentity
from v2f.nn.irse import IRSE50
from v2f.nn.psp import PSP, GradualStyleEncoder, PSPCodeEncoder
from v2f.nn.stylegan2 import Generator
from v2f.runs.config import RunConfig, load_config
from v2f.system import Batch, device_of, to_picture
from v2f.systems.voice_styled_face import VoiceStyledFace
from v2f.weights import FrozenConfig, Precomputed, StandInWeights
from v2f.weights.nets import FrozenNets

REPOSITORY = Path(__file__).resolve().parent.parent
PHASE = "supervised"


@dataclass(frozen=True)
class Arm:
    """``stored``: the reference's codes and embedding come with the batch, as from shards after `v2f shards
    precompute`; else every step computes them."""

    ours: bool
    precision: str
    stored: bool = False
    batch: int | None = None

    @property
    def kind(self) -> str:
        """Arms of one kind do the same operations."""
        return ("ours" if self.ours else "baseline") + (", stored" if self.stored else "")

    @property
    def bf16(self) -> bool:
        return self.precision == "bf16"

    def __str__(self) -> str:
        return f"{self.kind} {self.precision}" + ("" if self.batch is None else f" batch {self.batch}")


@dataclass(frozen=True)
class Size:
    recipe: str
    overrides: tuple[str, ...]
    arms: tuple[Arm, ...]
    """In the order of the first round: what is wanted most comes first."""
    people: int
    """Samples of the data set."""
    photo: str = "jpg"
    untimed: int = 1
    timed: int = 3
    """Steps of an arm in a round."""
    workers: int = 1
    """Processes that read."""
    channel_max: int | None = None
    """A bound of the generator's channels, for a size that only shows that all runs."""

    def config(self) -> RunConfig:
        return load_config(str(REPOSITORY / self.recipe), ["data.path=.", *self.overrides])


BASELINE = Arm(False, "fp32")
ON_CPU = (BASELINE, Arm(True, "fp32"), Arm(False, "bf16"), Arm(True, "bf16"))
ON_GPU = (
    Arm(True, "bf16"),
    Arm(False, "bf16"),
    BASELINE,
    Arm(True, "fp32"),
    Arm(False, "tf32"),
    Arm(True, "tf32"),
    Arm(True, "bf16", stored=True),
    Arm(True, "bf16", stored=True, batch=64),
)
FINAL = "launch/recipes/thesis-final.yaml"
NO_CODES = ("system.frozen.codes=null", "system.losses.style=0")
TINY = (
    "system.losses.style=0",
    "system.encoder={channels: [4, 6, 8, 8], blocks: [1, 2, 1, 1], out_channels: 8, kernel: 3, bn_group: 2}",
    "system.seconds=0.25",
    "system.image_size=64",
    "system.frozen={generator: {net: stylegan2, size: 64, file: none}, perceptual: {net: lpips}, codes: null}",
    "data.batch=4",
)
SIZES = {
    "quickstart": Size(
        "launch/recipes/quickstart.yaml", (), (*ON_CPU, Arm(True, "bf16", stored=True)), people=128, photo="png"
    ),
    # 2 s and a batch of 4, because a step takes half a minute on two cores as it is
    "middle": Size(
        FINAL,
        (*NO_CODES, "system.frozen.generator.size=256", "system.seconds=2", "data.batch=4"),
        ON_CPU,
        people=32,
        untimed=0,
        timed=1,
    ),
    "final": Size(FINAL, (), ON_GPU, people=128, untimed=2, timed=4, workers=8),
    "tiny": Size(FINAL, TINY, ON_CPU, people=8, timed=1, channel_max=8),
}


# ------------------------------------------------------------------------------------------------ nets


def build(config: RunConfig, device: torch.device, channel_max: int | None = None) -> VoiceStyledFace:
    """The system of a configuration on a device, without any file of weights; ``meta`` for shapes alone."""

    def load(frozen: FrozenConfig) -> FrozenNets:
        return nets(frozen, channel_max)

    with torch.random.fork_rng(devices=[]), torch.device(device), mock.patch.object(weights, "load", load):
        torch.manual_seed(config.seed)
        assert isinstance(config.system, VoiceStyledFace.Config)
        system = VoiceStyledFace(config.system)
    return system.to(device).train()


def nets(frozen: FrozenConfig, channel_max: int | None = None) -> FrozenNets:
    """The frozen nets with the start values of their layers; stand-ins with their own weights."""
    roles: dict[str, Any] = {
        role: standins.load(role) if isinstance(getattr(frozen, role), StandInWeights) else None  # type: ignore[arg-type]
        for role in ("generator", "identity", "perceptual", "codes")
    }
    g: Any = frozen.generator
    generator = roles["generator"] or Generator(g.size, channel_max=channel_max)
    i: Any = frozen.identity
    identity = roles["identity"] or FaceIdentity(IRSE50(), size=112, crop=i.crop, channels=i.channels)
    codes = roles["codes"]
    if codes is None and frozen.codes is not None and not isinstance(frozen.codes, Precomputed):
        mean_LD = torch.zeros(generator.n_latent, generator.style_dim)
        codes = PSPCodeEncoder(PSP(GradualStyleEncoder(generator.n_latent), generator, mean_LD))
    perceptual = roles["perceptual"] or _lpips(frozen.perceptual)
    found = FrozenNets(identity, perceptual, [], {}, generator, codes)
    for net in (generator, identity, perceptual, codes):
        if net is not None:
            net.eval().requires_grad_(False)
    return found


def _lpips(config: Any) -> LPIPS:
    perceptual = LPIPS(config.backbone)  # its features have no memory yet
    perceptual.features.to_empty(device=torch.empty(0).device)
    for module in perceptual.features.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return perceptual


def baseline_of(system: VoiceStyledFace) -> Baseline:
    """The baseline with the weights of ours, on its device."""
    with torch.random.fork_rng(devices=[]), torch.device(device_of(system)):
        return Baseline(system).train()


def parts_of(system: VoiceStyledFace | Baseline) -> Parts:
    """Watch a system's parts. A system is watched once."""
    ours = isinstance(system, VoiceStyledFace)
    watched = {
        "encoder": (system.encoder, "forward"),
        "mapping": (system.mapping, "forward"),
        "generator": (system.generator, "synthesis" if ours else "forward"),
        "perceptual": (system.perceptual, "distance" if ours else "forward"),
        "identity": (system.identity, "forward"),
    }
    if system.codes is not None:
        watched["codes"] = (system.codes, "forward")
    return Parts(watched, (system, "loss" if ours else "losses"))


def owned_bytes(system: nn.Module, trained: list[nn.Parameter]) -> int:
    """Bytes of the weights, and of Adam's two moments."""
    tensors = {id(t): t for t in [*system.parameters(), *system.buffers()]}
    return sum(t.nbytes for t in tensors.values()) + 2 * sum(p.nbytes for p in trained)


# ------------------------------------------------------------------------------------------------ steps


@dataclass
class Taken:
    """Steps of an arm in one round."""

    seconds: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    """Seconds of each step by part and direction."""
    peak_bytes: int | None = None
    """On a GPU: allocated at the most, what lay there already left out, this arm's weights and moments put in."""


class Runner:
    """Takes the steps of the arms of one size, on batches that lie on the device."""

    def __init__(self, system: VoiceStyledFace, batches: Mapping[int | None, Batch], clock: Clock) -> None:
        self.system, self.clock, self.device = system, clock, clock.device
        self.baseline = baseline_of(system)
        self.batches = {batch: self._placed(content) for batch, content in batches.items()}
        self._stored: dict[int | None, Batch] = {}
        self._engines: dict[tuple[str, int | None], Engine] = {}
        self._steps: dict[str, Steps] = {}
        self._taken = 0
        self._watched: dict[bool, Parts] = {}

    def watch(self) -> None:
        """Look at the parts from now on; copies of the nets have to be made before."""
        self._watched = {True: parts_of(self.system), False: parts_of(self.baseline)}

    def _placed(self, batch: Batch) -> Batch:
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def batch_of(self, arm: Arm) -> Batch:
        batch = self.batches[arm.batch]
        if not arm.stored:
            return batch
        if arm.batch not in self._stored:
            self._stored[arm.batch] = stored(self.system, batch)
        return batch | self._stored[arm.batch]

    def losses(self) -> dict[str, float]:
        """The loss of both, before any step, with batch norm over the same groups: the whole batch."""
        batch = self.batches[None]
        norms = ghost_norms(self.system)
        groups = [norm.group for norm in norms]
        float32_products(tf32=False)
        try:
            for norm in norms:
                norm.group = len(batch["wav"])
            with torch.no_grad():
                ours = float(self.system.loss(PHASE, batch, 0)["total"])
                theirs = float(self.baseline.losses(batch["wav"], to_picture(batch["image"]))["total"])
        finally:
            for norm, group in zip(norms, groups, strict=True):
                norm.group = group
                norm.discard()
        return {"ours": ours, "baseline": theirs, "apart": abs(ours - theirs) / abs(theirs)}

    def take(self, arm: Arm, untimed: int, timed: int) -> Taken:
        """Steps of an arm, one after another; the untimed ones first."""
        step, clock, found = self._step(arm), self.clock, Taken()
        # Where the author asked for TF32 and for bf16, convolutions outside of autocast ran in TF32.
        float32_products(tf32=arm.precision == "tf32" or (arm.bf16 and not arm.ours))
        for number in range(untimed + timed):
            with contextlib.ExitStack() as stack:
                at_rest = self._begin_memory()
                clock.wait()
                if self._watched:
                    stack.enter_context(self._watched[arm.ours].recording(clock))
                begun = clock.now()
                step()
                ended = clock.now()
                clock.wait()
            if number >= untimed:
                found.seconds.append(clock.seconds(begun, ended))
                if self._watched:
                    spent = self._watched[arm.ours].spent
                    found.parts.append({" ".join(label).strip(): s for label, s in spent.items()})
                if at_rest is not None:
                    found.peak_bytes = torch.cuda.max_memory_allocated() - at_rest + self.owned(arm)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # for the next arm
        return found

    def owned(self, arm: Arm) -> int:
        if arm.ours:
            trained = [p for module in (self.system.encoder, self.system.mapping) for p in module.parameters()]
            return owned_bytes(self.system, trained)
        return owned_bytes(self.baseline, self.baseline.trained())

    def _begin_memory(self) -> int | None:
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())

    def prime(self, arm: Arm) -> None:
        """Give Adam its moments, as after a first step."""
        optimizers = [self._engine(arm)._phases[PHASE].adam] if arm.ours else self._thesis(arm).optimizers
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            optimizer.zero_grad()

    def _engine(self, arm: Arm) -> Engine:
        key = arm.precision, arm.batch
        if key not in self._engines:
            self._engines[key] = Engine(arm.precision, "ddp")  # type: ignore[arg-type]
            self._engines[key].wrap(self.system, share=len(self.batches[arm.batch]["wav"]), micro_batch=None)
        return self._engines[key]

    def _thesis(self, arm: Arm) -> Steps:
        if arm.precision not in self._steps:
            self._steps[arm.precision] = Steps(self.baseline, self.device, arm.bf16)
        return self._steps[arm.precision]

    def _step(self, arm: Arm) -> Callable[[], object]:
        batch = self.batch_of(arm)
        self._taken += 1
        if not arm.ours:
            picture = to_picture(batch["image"])  # a DataLoader's worker has scaled it
            return lambda: self._thesis(arm).step(batch["wav"], picture)
        engine, (phase,) = self._engine(arm), self.system.phases()

        def step() -> None:
            result = engine.step(phase, batch, self._taken, micro_batch=None, seen=0, total=10**6)
            assert not result.skipped, f"the step was skipped: {result.skipped}"

        return step


class Twins:
    """Copies of both without memory, on which the work of an arm is counted."""

    def __init__(self, system: VoiceStyledFace, baseline: Baseline, batch: Batch, device: str = "cpu") -> None:
        """``system`` and ``baseline``: not watched yet; they may be on the device ``meta``. ``batch``: as training has
        it, without what an arm adds. ``device``: of the copies; ``cuda`` needs no GPU."""
        self._mode = FakeTensorMode()
        self.ours, self.baseline = (fake(each, self._mode, device) for each in (system, baseline))
        self._batch = fake_batch(batch, self._mode, device)
        self._parts = {True: parts_of(self.ours), False: parts_of(self.baseline)}
        self._work: dict[tuple[str, bool], dict[str, Work]] = {}

    def run(self, arm: Arm) -> None:
        """The loss, whose value nobody knows. A tensor on the wrong device is an error, as it is on a real one."""
        total = self._total(arm)
        with self._mode:
            total()

    def work(self, arm: Arm) -> dict[str, Work]:
        """What the arm's step does by part and direction, without the optimizer: for the whole batch."""
        key = arm.kind, arm.bf16
        if key not in self._work:
            found = counted(self._parts[arm.ours], self._mode, self._total(arm), arm.bf16)
            self._work[key] = {" ".join(label): work for label, work in found.items()}
        return self._work[key]

    def _total(self, arm: Arm) -> Callable[[], Tensor]:
        batch = self._batch
        if arm.stored:
            with self._mode:
                batch = batch | stored(self.ours, batch)
        if arm.ours:
            return lambda: self.ours.loss(PHASE, batch, 0)["total"]
        return lambda: self.baseline.losses(batch["wav"], to_picture(batch["image"]))["total"]


@torch.no_grad()
def stored(system: VoiceStyledFace, batch: Batch) -> Batch:
    """What shards hold after `v2f shards precompute`."""
    reference = to_picture(batch["image"])
    found: Batch = {"embedding": system.identity(reference)}
    if system.codes is not None:
        found["codes"] = system.codes(reference)
    return found
