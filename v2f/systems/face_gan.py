"""Face GAN: small faces from noise, by a generator and a discriminator that play against each other.

    z [B,Z] -> generator -> picture [B,3,H,H] -> discriminator -> logit [B] <- discriminator <- photo [B,3,H,H]

After *Generisanje lica koriscenjem GAN neuronskih mreza* (2020), a DCGAN on faces of 28 px, which shows two failures of
adversarial training: a generator that produces only a few faces, and a discriminator that wins. Both are detected and
named here (:func:`v2f.metrics.gan_verdict`).

Shape letters: B batch, Z noise, H side of the picture, N people.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from v2f import metrics, weights
from v2f.data.transforms import NoiseVector, Photo
from v2f.errors import V2FError
from v2f.nn import adversarial
from v2f.nn.dcgan import DCGANDiscriminator, DCGANGenerator, doublings
from v2f.system import (
    Batch,
    Judged,
    Kind,
    Losses,
    Noise,
    Optimizer,
    Phase,
    Picture,
    SystemConfig,
    Transform,
    freeze,
    to_picture,
    weighted,
)
from v2f.weights import JudgeConfig


def _adam(module: str) -> Optimizer:
    """DCGAN's optimizer (section 4)."""
    return Optimizer(lr={module: 2e-4}, betas=[0.5, 0.999])


class FaceGAN(Judged):
    """The whole system: two phases, the discriminator's and the generator's."""

    protocol = "pictures_from_noise"

    class Config(SystemConfig):
        name: Literal["face_gan"]
        image_size: int = Field(28, description="side of the pictures in pixels: 4 to 7 times a power of two")
        share: float = Field(1.0, gt=0, le=1, description="share of a photo's side, kept around its center")
        noise: int = Field(100, gt=0, description="width of z")
        width: int = Field(64, gt=0, description="channels of the largest maps")
        bn_group: int = Field(16, gt=0, description="samples in each mean of batch norm")
        loss: Literal["non_saturating", "minimax"] = Field(
            "non_saturating", description="the generator maximizes log D(G(z)), or minimizes log(1 - D(G(z)))"
        )
        smooth: float = Field(0.0, ge=0, lt=0.5, description="the discriminator's target for photos is 1 - smooth")
        every: int = Field(1, gt=0, description="discriminator steps per generator step")
        frozen: JudgeConfig = Field(
            JudgeConfig(), description="what looks at pictures for meters and evaluation; no loss does"
        )
        discriminator: Optimizer = _adam("discriminator")
        generator: Optimizer = _adam("generator")
        ema: int | None = Field(None, gt=0, description="half-life of the generator's moving average, in samples")

        @property
        def nets(self) -> JudgeConfig:
            return self.frozen

        @field_validator("image_size")
        @classmethod
        def _has_a_net(cls, value: int) -> int:
            try:
                doublings(value)
            except V2FError as error:
                raise ValueError(str(error)) from error
            return value

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        nets = weights.load_judges(config.frozen)
        self.identity, self.perceptual = freeze(nets.identity), freeze(nets.perceptual)
        self.stand_ins, self.weights = nets.stand_ins, nets.sha256
        self.generator = DCGANGenerator(config.noise, config.image_size, config.width, config.bn_group)
        self.discriminator = DCGANDiscriminator(config.image_size, config.width, config.bn_group)

    def phases(self) -> list[Phase]:
        c = self.config
        return [
            Phase(name="discriminator", modules={"discriminator": self.discriminator}, optimizer=c.discriminator),
            Phase(
                name="generator",
                modules={"generator": self.generator},
                optimizer=c.generator,
                every=c.every,
                ema=c.ema,
            ),
        ]

    def transforms(self) -> dict[str, Transform]:
        c = self.config
        return {"image": Photo(c.image_size, c.share), "noise": NoiseVector(c.noise)}

    def asks(self) -> Mapping[str, Kind]:
        return {"noise": Noise(self.config.noise)}

    def makes(self) -> Mapping[str, Kind]:
        return {"face": Picture(self.config.image_size, share=self.config.share)}

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        return self._discriminate(batch) if phase == "discriminator" else self._deceive(batch)

    def _discriminate(self, batch: Batch) -> Losses:
        """- log D(x) - log(1 - D(G(z))), and the shares of photos and generated pictures that D classifies correctly.

        Photos and generated pictures pass D separately, so that batch norm sees one kind at a time.
        """
        with torch.no_grad():
            made = self.generator(batch["noise"])
        weight = batch["weight"]
        real_B = self.discriminator(to_picture(batch["image"], like=batch["noise"]))
        made_B = self.discriminator(made)
        real = weighted(adversarial.real(real_B, self.config.smooth), weight)
        fake = weighted(adversarial.fake(made_B), weight)
        return {
            "total": real + fake,
            "real": real,
            "fake": fake,
            "accuracy_real": weighted(adversarial.called_real(real_B), weight),
            "accuracy_fake": weighted(1 - adversarial.called_real(made_B), weight),
        }

    def _deceive(self, batch: Batch) -> Losses:
        logit_B = self.discriminator(self.generator(batch["noise"]))
        return {"total": weighted(adversarial.deceive(logit_B, self.config.loss == "minimax"), batch["weight"])}

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        pictures = {"face": self.generator(batch["noise"])}
        if "image" in batch:
            pictures["photo"] = to_picture(batch["image"], like=batch["noise"])
        return pictures

    @torch.no_grad()
    def meters(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Meters of as many generated pictures as there are people to compare them with."""
        made, photos, made_identity, photo_identity = [], [], [], []
        seen: set[int] = set()
        for batch in batches:
            people = batch["identity"].tolist()
            new = [row for row, person in enumerate(people) if person not in seen and person not in people[:row]]
            seen.update(people)
            if new:
                made.append(self.generator(batch["noise"])[new])
                photos.append(to_picture(batch["image"], like=batch["noise"])[new])
                made_identity.append(self.identity(made[-1]))
                photo_identity.append(self.identity(photos[-1]))
        return metrics.variety_meters(
            made=torch.cat(made).flatten(1),
            real=torch.cat(photos).flatten(1),
            made_identity=torch.cat(made_identity),
            real_identity=torch.cat(photo_identity),
        )

    def verdict(self, meters: Mapping[str, float], history: Mapping[str, Sequence[float]]) -> str | None:
        return metrics.gan_verdict(meters, history, least=adversarial.least_loss(self.config.smooth))
