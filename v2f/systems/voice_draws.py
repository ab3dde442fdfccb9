"""Voice to faces by chance: each draw is one plausible face, and the draws together say what the voice leaves open.

    voice [B,T] -> encoder -> maps --mean and maximum over time--> condition [B,C] (and the embedding of a head)
    noise [B,K] --flow, given the condition--> components [B,K] -> w+ [B,L,D] -> frozen generator -> face [B,3,H,H]

A loss in pixels or codes averages what a voice does not tell: half a pair of glasses on every face. Here a flow
(:mod:`v2f.nn.flow`) learns the distribution of the photos' codes w+ given the voice, and draws from it. The codes are
those of a picture encoder, from the shards (``v2f shards precompute``) or computed in the step; the flow works in their
whitened principal components (:mod:`v2f.nn.components`), which the first steps fit. The generator is in no step.

The encoder, and a head that makes an embedding of its maps, may be those of a ``voice_identity`` run, frozen (``net:
run``); or the encoder is trained with the flow, from the start or from ``init_from``.

Shape letters: B batch, T waveform samples, C condition, K components, P pairs, L styles, D style width, E embedding.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f import config, encoders, metrics, weights
from v2f.config import MayChange
from v2f.data.transforms import NoiseVector, Photo, StoredCodes, StoredEmbedding, UniformVector, Waveform
from v2f.encoders import EncoderOrRunConfig
from v2f.encoders.changes import VoiceChanges
from v2f.errors import V2FError
from v2f.nn.components import Components
from v2f.nn.flow import FlowNet, Solver, on_the_way
from v2f.nn.stylegan2 import picture
from v2f.nn.voice_head import VoiceHead, pooled, pooled_width
from v2f.nn.waveform import WaveformEncoder
from v2f.system import (
    Batch,
    Judged,
    Kind,
    Losses,
    Noise,
    Optimizer,
    Phase,
    Picture,
    Sound,
    Styled,
    SystemConfig,
    Transform,
    freeze,
    to_picture,
    weighted,
)
from v2f.weights import FrozenConfig, Precomputed, Requirements, RunModule
from v2f.weights.runs import read_module


class FlowConfig(config.Config):
    """The sizes of the flow, and how it is trained."""

    components: int = Field(64, ge=1, description="principal components of w+ that are drawn; the rest is the mean")
    fit: int = Field(1024, ge=2, description="codes that the components are fitted to: those of the first samples")
    width: int = Field(768, ge=1, description="of the hidden layers")
    blocks: int = Field(3, ge=1, description="residual blocks")
    pairs: int = Field(4, ge=1, description="pairs of noise and time that a sample is seen with in a step")
    drop: float = Field(0.1, ge=0, lt=1, description="how often the condition is left out, for guidance")


class Drawing(config.Config):
    """How a face is drawn; it may change after the training."""

    steps: MayChange[int] = Field(12, ge=1, description="steps of the integration")
    solver: MayChange[Solver] = Field("euler", description="euler, or heun: two velocities a step, smaller errors")
    guidance: MayChange[float] = Field(
        1.0, ge=0, description="1: as the voice says; above: more so, and with less variety; 0: any face"
    )


class CodeFlow(nn.Module):
    """The trained part: the components of codes, and the velocity in them."""

    def __init__(self, config: FlowConfig, codes: int, condition: int) -> None:
        super().__init__()
        self.components = Components(codes, config.components, config.fit)
        self.net = FlowNet(config.components, condition, config.width, config.blocks)


class VoiceDraws(Styled, Judged):
    """The whole system: one phase, which trains the flow and, unless it is frozen, the encoder."""

    protocol = "faces_of_voices"

    class Config(SystemConfig):
        name: Literal["voice_draws"]
        seconds: float = Field(6.0, gt=0, description="length of the encoder's input; shorter clips are repeated")
        sample_rate: int = Field(16_000, gt=0)
        image_size: int = Field(256, gt=0, description="the generator's picture is average-pooled to this")
        encoder: EncoderOrRunConfig = WaveformEncoder.Config()
        head: RunModule | None = Field(
            None, description="a voice_identity run's head, whose embedding is a condition, too; with encoder.net run"
        )
        flow: FlowConfig = FlowConfig()
        draw: Drawing = Drawing()
        frozen: FrozenConfig = FrozenConfig()
        augment: VoiceChanges = VoiceChanges()
        optimizer: Optimizer = Field(
            default_factory=lambda given: Optimizer(lr=dict.fromkeys(_trained(given["encoder"]), 1e-3))
        )
        ema: int | None = Field(None, gt=0, description="half-life of the moving average of the weights, in samples")

        @property
        def nets(self) -> FrozenConfig:
            return self.frozen

        def requirements(self, with_referee: bool = False) -> Requirements:
            required = encoders.with_encoder(super().requirements(with_referee), self.encoder)
            if self.head is None:
                return required
            return replace(required, run_modules={**required.run_modules, "head": self.head})

        @model_validator(mode="after")
        def _fits(self) -> "VoiceDraws.Config":
            encoders.check_rate(self.encoder, self.sample_rate)
            self.optimizer.check(_trained(self.encoder))
            if self.frozen.codes is None:
                raise ValueError("the flow learns the codes of photos: set frozen.codes")
            if self.head is not None and not isinstance(self.encoder, RunModule):
                raise ValueError("head belongs to the encoder of its run: set encoder.net to run, or head to null")
            return self

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        nets = weights.load(config.frozen)
        self.generator, self.identity = freeze(nets.generator), freeze(nets.identity)
        self.perceptual = freeze(nets.perceptual)
        self.codes = None if nets.codes is None else freeze(nets.codes)
        if self.generator.size % config.image_size:
            raise V2FError(
                f"system.image_size: {config.image_size} does not divide the generator's {self.generator.size} px"
            )
        built = encoders.build(config.encoder, config.frozen.path)
        self.encoder = built.encoder
        self.stand_ins, self.weights = nets.stand_ins, {**nets.sha256, **built.checksums}
        condition = pooled_width(self.encoder.channels)
        self.head: VoiceHead | None = None
        if config.head is not None:
            self.head = self._read_head(config.head)
            condition += self.head.embedding
        self.codes_shape = self.generator.n_latent, self.generator.style_dim
        self.flow = CodeFlow(config.flow, self.codes_shape[0] * self.codes_shape[1], condition)

    def _read_head(self, config: RunModule) -> VoiceHead:
        module, digest = read_module(config, "system.head")
        if not isinstance(module, VoiceHead):
            raise V2FError(
                f"system.head: {config.module} of {config.path} is a {type(module).__name__}, not the head of a voice; "
                "name the module `head` of a voice_identity run"
            )
        self.weights = {**self.weights, "head": digest}
        return freeze(module)

    def phases(self) -> list[Phase]:
        own = {} if isinstance(self.config.encoder, RunModule) else self.encoder.trained()
        modules: dict[str, nn.Module] = {**own, "flow": self.flow}
        return [Phase(name="supervised", modules=modules, optimizer=self.config.optimizer, ema=self.config.ema)]

    @classmethod
    def misfit(cls, config: "VoiceDraws.Config", shapes: Mapping[str, Sequence[int]]) -> str | None:
        own = {n.removeprefix("encoder."): shape for n, shape in shapes.items() if n.startswith("encoder.")}
        return None if isinstance(config.encoder, RunModule) else encoders.misfit(config.encoder, own)

    def transforms(self) -> dict[str, Transform]:
        c = self.config
        read: dict[str, Transform] = {
            "wav": c.augment.of(Waveform(c.seconds, c.sample_rate)),
            "image": Photo(c.image_size),
            "noise": NoiseVector(c.flow.components),
            "noises": NoiseVector(c.flow.pairs * c.flow.components),
            "uniform": UniformVector(1 + c.flow.pairs),
        }
        if isinstance(c.frozen.codes, Precomputed):
            read["codes"] = StoredCodes(*self.codes_shape, draws_as="image")
        if c.frozen.embeddings is not None:
            net = weights.described("identity", c.frozen.identity, self.weights.get("identity"))
            read["embedding"] = StoredEmbedding(net, draws_as="image")
        return read

    def streams(self) -> dict[str, dict[str, Transform]]:
        read = self.transforms()
        voice = encoders.reads(self.encoder, read.pop("wav"), self.weights.get("encoder"), self.config.seconds)
        if "codes" in read and "embedding" in read:
            del read["image"]
        return {"": voice | read}

    def asks(self) -> Mapping[str, Kind]:
        voice = Sound(self.config.sample_rate, self.config.seconds, voice=True)
        return {"wav": voice, "noise": Noise(self.config.flow.components)}

    def makes(self) -> Mapping[str, Kind]:
        return {"face": Picture(self.config.image_size)}

    def condition(self, batch: Batch) -> Tensor:
        """What the flow hears of voices: [B,C]."""
        maps = encoders.maps_of(self.encoder, batch)
        parts = [pooled(maps)] if self.head is None else [pooled(maps), self.head(maps)]
        return torch.cat(parts, dim=1)

    def drawn(self, condition_BC: Tensor, noise_BK: Tensor) -> Tensor:
        """The w+ [B,L,D] that noises draw under conditions."""
        how = self.config.draw
        x_BK = self.flow.net.draw(noise_BK, condition_BC, how.steps, how.solver, how.guidance)
        return self.flow.components.up(x_BK).unflatten(1, self.codes_shape)

    def styles(self, batch: Batch) -> Tensor:
        return self.drawn(self.condition(batch), batch["noise"])

    def face(self, w_BLD: Tensor, size: int | None = None) -> Tensor:
        return picture(self.generator, w_BLD, self.config.image_size if size is None else size)

    @property
    def inverts(self) -> bool:
        return self.codes is not None

    @torch.no_grad()
    def invert(self, img_B3HW: Tensor) -> Tensor:
        assert self.codes is not None, "check inverts first"
        w_BLD: Tensor = self.codes(img_B3HW)
        return w_BLD

    def reference_codes(self, batch: Batch, reference_B3HW: Tensor) -> Tensor | None:
        codes: Tensor | None = batch.get("codes")
        return super().reference_codes(batch, reference_B3HW) if codes is None else codes

    def _codes(self, batch: Batch) -> Tensor:
        """The photos' w+ [B,L,D], from the shards or from the net."""
        if "codes" in batch:
            stored: Tensor = batch["codes"]
            return stored
        return self.invert(self._photo(batch))

    def _photo(self, batch: Batch) -> Tensor:
        return to_picture(batch["image"], like=self.generator.latent_avg)

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        c, flow = self.config.flow, self.flow
        uniform = batch["uniform"]
        sample_BK = flow.components(self._codes(batch).flatten(1), batch["slot"], batch["weight"])
        noise_BPK = batch["noises"].unflatten(1, (c.pairs, c.components))
        t_BP1 = ((torch.arange(c.pairs).to(uniform) + uniform[:, :1]) / c.pairs)[..., None]  # a time in each P-th part
        x_BPK, wanted_BPK = on_the_way(noise_BPK, sample_BK[:, None], t_BP1)
        heard_BW = flow.net.heard(self.condition(batch))
        left_out_BP1 = (uniform[:, 1:] < c.drop)[..., None]
        heard_BPW = torch.where(left_out_BP1, flow.net.nothing.to(heard_BW), heard_BW[:, None])
        found = flow.net(x_BPK.flatten(0, 1), t_BP1.flatten(), heard_BPW.flatten(0, 1)).view_as(wanted_BPK)
        return {"total": weighted((found - wanted_BPK).square().mean(dim=(1, 2)), batch["weight"])}

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        pictures = {"face": self.face(self.styles(batch)).clamp(-1, 1)}
        if "image" in batch:
            pictures["reference"] = self._photo(batch)
        return pictures

    @torch.no_grad()
    def meters(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Of one face for each voice: those of :func:`v2f.metrics.collapse_meters`."""
        face, reference, w, codes, person = [], [], [], [], []
        for batch in batches:
            w.append(self.styles(batch))
            face.append(self.identity(self.face(w[-1]).clamp(-1, 1)))
            stored = batch.get("embedding")
            reference.append(self.identity(self._photo(batch)) if stored is None else stored)
            codes.append(self._codes(batch))
            person.append(batch["identity"])
        return metrics.collapse_meters(
            face=torch.cat(face),
            reference=torch.cat(reference),
            identity=torch.cat(person),
            w=torch.cat(w),
            codes=torch.cat(codes),
            mean_w=self.generator.latent_avg,
        )

    def verdict(self, meters: Mapping[str, float], history: Mapping[str, Sequence[float]]) -> str | None:
        return metrics.collapse_verdict(meters)


def _trained(encoder: encoders.AnyConfig | RunModule) -> tuple[str, ...]:
    """The names of the modules that training changes."""
    return *encoders.trained(encoder), "flow"
