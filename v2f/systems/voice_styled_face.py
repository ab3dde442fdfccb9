"""Voice Styled Face: from speech to a face that shares what the voice reveals.

    waveform [B,1,T] -> encoder -> 3 maps -> a mapping per style -> w+ [B,L,D] -> frozen StyleGAN2 -> picture

After a master's thesis (2022) that connects a 1-D residual network to StyleGAN2 in the manner of pSp (Richardson et al.
2021, "Encoding in Style"). Encoder and mapping are trained; generator, identity net, perceptual net and code encoder
are frozen: weights that the user provides (``frozen``), or the stand-ins of the synthetic world, which are labeled as
stand-ins wherever the run is shown.

Shape letters: B batch, T waveform samples, L styles, D style width, E embedding, H W picture.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f import config, encoders, metrics, weights
from v2f.data.transforms import Photo, StoredCodes, StoredEmbedding, Waveform
from v2f.encoders import EncoderConfig
from v2f.errors import V2FError
from v2f.nn import face_box, losses
from v2f.nn.mapping import MappingNetwork, StyleMapping
from v2f.nn.mappings import MappingConfig, build_mapping
from v2f.nn.stylegan2 import picture
from v2f.nn.voice import VoiceEncoder
from v2f.nn.waveform import WaveformEncoder
from v2f.system import (
    Batch,
    Exported,
    Judged,
    Kind,
    Losses,
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
from v2f.weights import LEAST_SIDE, FrozenConfig, LPIPSWeights, Precomputed, Requirements, StyleGAN2Weights


class Terms(config.Config):
    """The coefficient of each loss, L = sum of lambda_i L_i; a term with the coefficient 0 is not computed."""

    mse: float = Field(1.0, ge=0)
    l1: float = Field(0.0, ge=0)
    lpips: float = Field(1.0, ge=0, description="perceptual distance")
    id: float = Field(0.1, ge=0, description="1 - cos of identity embeddings")
    w_norm: float = Field(0.0005, ge=0, description="Frobenius norm of w+ minus the mean style")
    mse_crop: float = Field(0.0, ge=0, description="mse over pSp's face box")
    lpips_crop: float = Field(0.0, ge=0, description="lpips over pSp's face box")
    style: float = Field(0.0, ge=0, description="mean squared difference of w+ to the reference's codes (frozen.codes)")

    @property
    def look_at_the_face(self) -> bool:
        """Whether a loss needs the picture; w_norm and style do not need the generator."""
        return any((self.mse, self.l1, self.lpips, self.id, self.mse_crop, self.lpips_crop))


def _trained(encoder: EncoderConfig) -> tuple[str, ...]:
    """The names of the modules that the system trains with this encoder."""
    return *encoders.trained(encoder), "mapping"


class VoiceToStyles(nn.Module):
    """Waves [B,T] -> w+ [B,L,D]: the mapping of the voice, plus the generator's mean style if that is added."""

    def __init__(self, encoder: VoiceEncoder, mapping: MappingNetwork, mean_style: Tensor) -> None:
        super().__init__()
        self.encoder, self.mapping = encoder, mapping
        self.register_buffer("mean_style", mean_style)
        self.mean_style: Tensor

    def forward(self, wav_BT: Tensor) -> Tensor:
        w_BLD: Tensor = self.mean_style + self.mapping(self.encoder(wav_BT))
        return w_BLD


class VoiceStyledFace(Styled, Judged):
    """The whole system."""

    protocol = "faces_of_voices"

    class Config(SystemConfig):
        name: Literal["voice_styled_face"]
        seconds: float = Field(6.0, gt=0, description="length of the encoder's input; shorter clips are repeated")
        sample_rate: int = Field(16_000, gt=0)
        image_size: int = Field(256, gt=0, description="the generator's picture is average-pooled to this")
        encoder: EncoderConfig = WaveformEncoder.Config()
        mapping: MappingConfig = StyleMapping.Config()
        mean_style: Literal["add", "none"] = Field(
            "add", description="add: w+ is the generator's mean style plus the mapping (pSp); none: the mapping alone"
        )
        frozen: FrozenConfig = FrozenConfig()
        losses: Terms = Terms()
        optimizer: Optimizer = Field(
            default_factory=lambda given: Optimizer(lr=dict.fromkeys(_trained(given["encoder"]), 1e-3))
        )
        ema: int | None = Field(None, gt=0, description="half-life of the moving average of the weights, in samples")

        @property
        def nets(self) -> FrozenConfig:
            return self.frozen

        def requirements(self, with_referee: bool = False) -> Requirements:
            return encoders.with_encoder(super().requirements(with_referee), self.encoder)

        @model_validator(mode="after")
        def _fits(self) -> "VoiceStyledFace.Config":
            encoders.check_rate(self.encoder, self.sample_rate)
            self.optimizer.check(_trained(self.encoder))
            if self.losses.style and self.frozen.codes is None:
                raise ValueError("losses.style needs the reference's codes: set frozen.codes, or set losses.style to 0")
            generator, perceptual, side = self.frozen.generator, self.frozen.perceptual, self.image_size
            if isinstance(generator, StyleGAN2Weights) and generator.size % side:
                raise ValueError(f"image_size {side} does not divide the generator's {generator.size} px")
            if self.losses.lpips_crop:
                side = face_box(torch.empty(1, 1, side, side, device="meta")).shape[-1]
            least = LEAST_SIDE[perceptual.backbone] if isinstance(perceptual, LPIPSWeights) else 1
            if side < least:
                raise ValueError(
                    f"image_size {self.image_size}: LPIPS would see {side} px, its backbone needs {least}; set a "
                    "larger image_size, or use the stand-in"
                )
            return self

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        nets = weights.load(config.frozen)
        self.generator, self.identity = freeze(nets.generator), freeze(nets.identity)
        self.perceptual = freeze(nets.perceptual)
        self.codes = None if nets.codes is None else freeze(nets.codes)
        self.stand_ins, self.weights = nets.stand_ins, nets.sha256
        if self.generator.size % config.image_size:
            raise V2FError(
                f"system.image_size: {config.image_size} does not divide the generator's {self.generator.size} px"
            )
        styles, width = self.generator.n_latent, self.generator.style_dim
        built = encoders.build(config.encoder, config.frozen.path)
        self.encoder = built.encoder
        self.weights = {**self.weights, **built.checksums}
        self.mapping = build_mapping(config.mapping, self.encoder.channels, styles, width)

    def phases(self) -> list[Phase]:
        modules = {**self.encoder.trained(), "mapping": self.mapping}
        return [Phase(name="supervised", modules=modules, optimizer=self.config.optimizer, ema=self.config.ema)]

    @classmethod
    def misfit(cls, config: "VoiceStyledFace.Config", shapes: Mapping[str, Sequence[int]]) -> str | None:
        own = {n.removeprefix("encoder."): shape for n, shape in shapes.items() if n.startswith("encoder.")}
        return encoders.misfit(config.encoder, own)

    def transforms(self) -> dict[str, Transform]:
        c = self.config
        read: dict[str, Transform] = {"wav": Waveform(c.seconds, c.sample_rate), "image": Photo(c.image_size)}
        if isinstance(c.frozen.codes, Precomputed):
            read["codes"] = StoredCodes(self.generator.n_latent, self.generator.style_dim, draws_as="image")
        if c.frozen.embeddings is not None and c.losses.id:
            net = weights.described("identity", c.frozen.identity, self.weights.get("identity"))
            read["embedding"] = StoredEmbedding(net, draws_as="image")
        return read

    def streams(self) -> dict[str, dict[str, Transform]]:
        read = self.transforms()
        voice = encoders.reads(self.encoder, read.pop("wav"), self.weights.get("encoder"), self.config.seconds)
        return {"": voice | read}

    def asks(self) -> Mapping[str, Kind]:
        return {"wav": Sound(self.config.sample_rate, self.config.seconds, voice=True)}

    def makes(self) -> Mapping[str, Kind]:
        return {"face": Picture(self.config.image_size)}

    def exports(self) -> Exported:
        c, width = self.config, self.generator.style_dim
        samples = round(c.seconds * c.sample_rate)
        return Exported(
            graph=VoiceToStyles(self.encoder, self.mapping, self._mean_style),
            inputs={"wav": torch.zeros(2, samples)},
            makes="w",
            about="Encoder and mapping"
            + (" with the generator's mean style: " if c.mean_style == "add" else ": ")
            + f"`wav`, float32 [B, {samples}] in [-1, 1], speech of {c.seconds:g} s at {c.sample_rate} Hz (a shorter "
            "clip is repeated to that length), to `w`, float32 "
            f"[B, {self.generator.n_latent}, {width}], the codes w+ that the generator draws; B is free.",
        )

    @property
    def _mean_style(self) -> Tensor:
        """What is added to the mapping's result: the generator's mean style, or zero."""
        mean: Tensor = self.generator.latent_avg
        return mean if self.config.mean_style == "add" else torch.zeros_like(mean)

    def styles(self, batch: Batch) -> Tensor:
        """w+ [B, L, D] of voices, or of features that the shards hold: the mapping of the encoder's maps, plus the mean
        style if ``mean_style`` is add."""
        return self._mean_style + self.mapping(encoders.maps_of(self.encoder, batch))

    def face(self, w_BLD: Tensor, size: int | None = None) -> Tensor:
        """Pictures [B, 3, S, S] of w+, average-pooled to ``size``; None: ``image_size``."""
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

    def reference_embedding(self, batch: Batch, reference: Tensor) -> Tensor:
        """The reference's identity embedding [B, E]: from the shards, or from the net."""
        if "embedding" in batch:
            embedding: Tensor = batch["embedding"]
            return embedding
        with torch.no_grad():
            return self.identity(reference)

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        w = self.styles(batch)
        t, weight = self.config.losses, batch["weight"]
        face = self.face(w) if t.look_at_the_face else w.new_empty(0)
        reference = to_picture(batch["image"], like=self.generator.latent_avg)
        parts: Losses = {}
        if t.mse:
            parts["mse"] = weighted(losses.mse(face, reference), weight)
        if t.l1:
            parts["l1"] = weighted(losses.l1(face, reference), weight)
        if t.lpips:
            parts["lpips"] = weighted(losses.perceptual(self.perceptual, face, reference), weight)
        if t.id:
            embedding = self.reference_embedding(batch, reference)
            parts["id"] = weighted(losses.identity(self.identity, face, embedding), weight)
        if t.w_norm:
            parts["w_norm"] = weighted(losses.w_norm(w, self.generator.latent_avg), weight)
        if t.mse_crop or t.lpips_crop:
            cropped, cropped_reference = face_box(face), face_box(reference)
            if t.mse_crop:
                parts["mse_crop"] = weighted(losses.mse(cropped, cropped_reference), weight)
            if t.lpips_crop:
                parts["lpips_crop"] = weighted(losses.perceptual(self.perceptual, cropped, cropped_reference), weight)
        if t.style:
            codes = self.reference_codes(batch, reference)
            assert codes is not None, "the configuration requires codes if losses.style is set"
            parts["style"] = weighted(losses.style(w, codes), weight)
        total = sum((getattr(t, name) * value for name, value in parts.items()), w.new_zeros(()))
        return {"total": total, **parts}

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        pictures = {"face": self.face(self.styles(batch)).clamp(-1, 1)}
        if "image" in batch:
            pictures["reference"] = to_picture(batch["image"], like=self.generator.latent_avg)
        return pictures

    @torch.no_grad()
    def meters(self, batches: Iterable[Batch]) -> dict[str, float]:
        face, reference, w, person = [], [], [], []
        codes: list[Tensor] = []
        for batch in batches:
            w.append(self.styles(batch))
            photo = to_picture(batch["image"], like=self.generator.latent_avg)
            face.append(self.identity(self.face(w[-1]).clamp(-1, 1)))
            reference.append(self.identity(photo))
            own = self.reference_codes(batch, photo)
            codes += [] if own is None else [own]
            person.append(batch["identity"])
        return metrics.collapse_meters(
            face=torch.cat(face),
            reference=torch.cat(reference),
            identity=torch.cat(person),
            w=torch.cat(w),
            codes=torch.cat(codes) if codes else None,
            mean_w=self.generator.latent_avg,
        )

    def verdict(self, meters: Mapping[str, float], history: Mapping[str, Sequence[float]]) -> str | None:
        return metrics.collapse_verdict(meters)
