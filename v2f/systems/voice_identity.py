"""Voice to identity: a voice is placed among face identities, without a generator. Stage one of "align, then generate".

    voice [B,T] -> encoder -> maps --mean and maximum over time, two linear layers--> embedding [B,E] of unit length
                                \\-> mapping (if losses.style) -> w+ [B,L,D]

The targets are what frozen nets say of the person's photo: its identity embedding and, if asked for, its codes w+. Both
come from the shards (``v2f shards precompute``), or are computed in the step. That a voice is first aligned to face
identities, and a face made of it second, follows Choi et al. 2020 ("From inference to generation", arXiv 2004.05830).
``init_from: [{run: runs/align, module: encoder}, {run: runs/align, module: mapping}]`` takes the parts into a
``voice_styled_face``; ``voice_draws`` names them as modules of the run.

Shape letters: B batch, T waveform samples, E embedding, L styles, D style width.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f import config, encoders, metrics, weights
from v2f.data.transforms import Photo, StoredCodes, StoredEmbedding, Waveform
from v2f.encoders import EncoderConfig
from v2f.encoders.changes import VoiceChanges
from v2f.nn import losses
from v2f.nn.contrastive import InfoNCE
from v2f.nn.mapping import StyleMapping
from v2f.nn.mappings import MappingConfig, build_mapping
from v2f.nn.voice import VoiceEncoder
from v2f.nn.voice_head import VoiceHead
from v2f.nn.waveform import WaveformEncoder
from v2f.system import (
    Batch,
    Embedding,
    Exported,
    Judged,
    Kind,
    Losses,
    Optimizer,
    Phase,
    Sound,
    SystemConfig,
    Transform,
    freeze,
    to_picture,
    weighted,
)
from v2f.weights import FrozenConfig, Precomputed, Requirements


class Terms(config.Config):
    """The coefficient of each loss; a term with the coefficient 0 is not computed."""

    cosine: float = Field(1.0, ge=0, description="1 - cos of the voice's embedding and the photo's")
    contrast: float = Field(0.3, ge=0, description="InfoNCE of voices and photos, over groups (system.contrast)")
    style: float = Field(
        0.0,
        ge=0,
        description="mean squared difference of w+ to the photo's codes (frozen.codes); above 0: trains mapping",
    )


class Contrast(config.Config):
    """The contrastive loss (:class:`v2f.nn.contrastive.InfoNCE`)."""

    group: int = Field(64, ge=2, description="samples that are told apart; a rank's micro-batch holds whole groups")
    temperature: float = Field(0.1, gt=0)
    both_ways: bool = Field(True, description="each photo is to find its voice, too")


class VoiceToIdentity(nn.Module):
    """Waves [B,T] -> embeddings [B,E] of unit length."""

    def __init__(self, encoder: VoiceEncoder, head: VoiceHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, wav_BT: Tensor) -> Tensor:
        embedding_BE: Tensor = self.head(self.encoder(wav_BT))
        return embedding_BE


class VoiceIdentity(Judged):
    """The whole system: one phase, which trains the encoder, the head and, with ``losses.style``, the mapping."""

    protocol = "identities_of_voices"

    class Config(SystemConfig):
        name: Literal["voice_identity"]
        seconds: float = Field(6.0, gt=0, description="length of the encoder's input; shorter clips are repeated")
        sample_rate: int = Field(16_000, gt=0)
        image_size: int = Field(256, gt=0, description="side of the photos that the identity net sees, in pixels")
        encoder: EncoderConfig = WaveformEncoder.Config()
        width: int = Field(512, gt=0, description="of the head's hidden layer")
        mapping: MappingConfig = Field(StyleMapping.Config(), description="from the maps to w+; with losses.style")
        frozen: FrozenConfig = FrozenConfig()
        losses: Terms = Terms()
        contrast: Contrast = Contrast()
        augment: VoiceChanges = VoiceChanges()
        optimizer: Optimizer = Field(
            default_factory=lambda given: Optimizer(lr=dict.fromkeys(_trained(given["encoder"], given["losses"]), 1e-3))
        )
        ema: int | None = Field(None, gt=0, description="half-life of the moving average of the weights, in samples")

        @property
        def nets(self) -> FrozenConfig:
            return self.frozen

        def requirements(self, with_referee: bool = False) -> Requirements:
            return encoders.with_encoder(super().requirements(with_referee), self.encoder)

        @model_validator(mode="after")
        def _fits(self) -> "VoiceIdentity.Config":
            encoders.check_rate(self.encoder, self.sample_rate)
            self.optimizer.check(_trained(self.encoder, self.losses))
            if not (self.losses.cosine or self.losses.contrast):
                raise ValueError("losses.cosine and losses.contrast are 0, so the embedding is not trained; set one")
            if self.losses.style and self.frozen.codes is None:
                raise ValueError("losses.style needs the photo's codes: set frozen.codes, or set losses.style to 0")
            return self

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        nets = weights.load(config.frozen)
        self.identity, self.perceptual = freeze(nets.identity), freeze(nets.perceptual)
        self.codes = None if nets.codes is None else freeze(nets.codes)
        built = encoders.build(config.encoder, config.frozen.path)
        self.encoder = built.encoder
        self.stand_ins, self.weights = nets.stand_ins, {**nets.sha256, **built.checksums}
        with torch.no_grad():
            width = self.identity(torch.zeros(1, 3, config.image_size, config.image_size)).shape[1]
        c = config.contrast
        contrast = InfoNCE(c.group, c.temperature, c.both_ways) if config.losses.contrast else None
        self.head = VoiceHead(self.encoder.channels, config.width, width, contrast)
        self.codes_shape = nets.generator.n_latent, nets.generator.style_dim
        self.mapping = None
        if config.losses.style:
            self.mapping = build_mapping(config.mapping, self.encoder.channels, *self.codes_shape)
        self.register_buffer("mean_style", nets.generator.latent_avg.detach().clone(), persistent=False)
        self.mean_style: Tensor

    def phases(self) -> list[Phase]:
        modules: dict[str, nn.Module] = {**self.encoder.trained(), "head": self.head}
        if self.mapping is not None:
            modules["mapping"] = self.mapping
        return [Phase(name="supervised", modules=modules, optimizer=self.config.optimizer, ema=self.config.ema)]

    @classmethod
    def misfit(cls, config: "VoiceIdentity.Config", shapes: Mapping[str, Sequence[int]]) -> str | None:
        own = {n.removeprefix("encoder."): shape for n, shape in shapes.items() if n.startswith("encoder.")}
        return encoders.misfit(config.encoder, own)

    def transforms(self) -> dict[str, Transform]:
        c = self.config
        read: dict[str, Transform] = {"wav": c.augment.of(Waveform(c.seconds, c.sample_rate))}
        read["image"] = Photo(c.image_size)
        if c.frozen.embeddings is not None:
            net = weights.described("identity", c.frozen.identity, self.weights.get("identity"))
            read["embedding"] = StoredEmbedding(net, draws_as="image")
        if self.mapping is not None and isinstance(c.frozen.codes, Precomputed):
            read["codes"] = StoredCodes(*self.codes_shape, draws_as="image")
        return read

    def streams(self) -> dict[str, dict[str, Transform]]:
        read = self.transforms()
        voice = encoders.reads(self.encoder, read.pop("wav"), self.weights.get("encoder"), self.config.seconds)
        if "embedding" in read and ("codes" in read or self.mapping is None):
            del read["image"]
        return {"": voice | read}

    def asks(self) -> Mapping[str, Kind]:
        return {"wav": Sound(self.config.sample_rate, self.config.seconds, voice=True)}

    def makes(self) -> Mapping[str, Kind]:
        return {"embedding": Embedding(self.head.embedding)}

    def exports(self) -> Exported:
        c, width = self.config, self.head.embedding
        samples = round(c.seconds * c.sample_rate)
        return Exported(
            graph=VoiceToIdentity(self.encoder, self.head),
            inputs={"wav": torch.zeros(2, samples)},
            makes="embedding",
            about=f"Encoder and head: `wav`, float32 [B, {samples}] in [-1, 1], speech of {c.seconds:g} s at "
            f"{c.sample_rate} Hz (a shorter clip is repeated to that length), to `embedding`, float32 [B, {width}] of "
            "unit length, beside those that the identity net gives photos: a cosine says how likely voice and face "
            "belong together; B is free.",
        )

    def _reference(self, batch: Batch) -> Tensor:
        """The identity embeddings [B,E] of the photos, from the shards or from the net."""
        if "embedding" in batch:
            stored: Tensor = batch["embedding"]
            return stored
        with torch.no_grad():
            found: Tensor = self.identity(to_picture(batch["image"], like=self.mean_style))
            return found

    def _reference_codes(self, batch: Batch) -> Tensor:
        """The photos' w+ [B,L,D], from the shards or from the net."""
        if self.codes is None:
            stored: Tensor = batch["codes"]
            return stored
        with torch.no_grad():
            found: Tensor = self.codes(to_picture(batch["image"], like=self.mean_style))
            return found

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        t, weight_B = self.config.losses, batch["weight"]
        maps = encoders.maps_of(self.encoder, batch)
        voice_BE, face_BE = self.head(maps), self._reference(batch)
        parts: Losses = {}
        if t.cosine:
            parts["cosine"] = weighted(1 - torch.cosine_similarity(voice_BE, face_BE, dim=1), weight_B)
        if self.head.contrast is not None:
            parts["contrast"] = weighted(self.head.contrast(voice_BE, face_BE, batch["identity"], weight_B), weight_B)
        if self.mapping is not None:
            w_BLD = self.mean_style + self.mapping(maps)
            parts["style"] = weighted(losses.style(w_BLD, self._reference_codes(batch)), weight_B)
        total = sum((getattr(t, name) * value for name, value in parts.items()), voice_BE.new_zeros(()))
        return {"total": total, **parts}

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        return {"embedding": self.head(encoders.maps_of(self.encoder, batch)).float()}

    @torch.no_grad()
    def meters(self, batches: Iterable[Batch]) -> dict[str, float]:
        """``identity_distance`` and ``margin`` of the voices' embeddings, as of faces (:mod:`v2f.metrics.collapse`)."""
        voice, face, person = [], [], []
        for batch in batches:
            voice.append(self.head(encoders.maps_of(self.encoder, batch)))
            face.append(self._reference(batch))
            person.append(batch["identity"])
        return metrics.collapse_meters(face=torch.cat(voice), reference=torch.cat(face), identity=torch.cat(person))

    def verdict(self, meters: Mapping[str, float], history: Mapping[str, Sequence[float]]) -> str | None:
        apart = meters.get("identity_distance_ratio", float("nan"))
        if apart < 0.1:
            return f"COLLAPSED: one embedding for every voice ({100 * apart:.0f} % of the distance of real faces)"
        if meters.get("margin", float("nan")) < 0.01:
            return "the embeddings do not follow the voice: none is nearer to its own person than to others"
        return None


def _trained(encoder: encoders.AnyConfig, terms: Terms) -> tuple[str, ...]:
    """The names of the modules that training changes."""
    return (*encoders.trained(encoder), "head", *("mapping",) * bool(terms.style))
