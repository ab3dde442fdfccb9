"""Face GAN: small faces from noise, by a generator and a discriminator that play against each other.

    z [B,Z] -> generator -> picture [B,C,H,H] -> augment -> discriminator -> logit [B]
                              photo [B,C,H,H] -> augment -> discriminator -> logit [B]

After *Generisanje lica koriscenjem GAN neuronskih mreza* (2020), a DCGAN on faces of 28 px, which shows two failures of
adversarial training: a generator that produces only a few faces, and a discriminator that wins. Both are detected and
named here (:func:`v2f.metrics.gan_verdict`). What keeps a run from them is a key each: spectral norm of the
discriminator, the gradient penalty R1, augmentation of all that the discriminator sees, a moving average of the
generator.

Shape letters: B batch, Z noise, C channels, H side of the picture, N people.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from v2f import metrics, weights
from v2f.data.transforms import NoiseVector, Photo, UniformVector
from v2f.nn import adversarial
from v2f.nn.dcgan import KERNEL, DCGANDiscriminator, DCGANGenerator, Norm, Side
from v2f.nn.diffaugment import NUMBERS, Policy, diffaugment
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
        image_size: Side = Field(28, description="side of the pictures in pixels: 4 to 7 times a power of two")
        channels: Literal[1, 3] = Field(3, description="1: gray pictures, 3: color")
        share: float = Field(1.0, gt=0, le=1, description="share of a photo's side, kept around its center")
        noise: int = Field(100, gt=0, description="width of z")
        width: int = Field(64, gt=0, description="channels of the largest maps")
        kernel: int = Field(KERNEL, ge=2, description="side of all kernels, odd or even")
        norm: Norm = Field("batch", description="the discriminator's: batch, spectral, or none")
        generator_norm: Literal["batch", "none"] = Field("batch", description="none: it may collapse to one picture")
        bn_group: int = Field(16, gt=0, description="samples in each mean of batch norm")
        loss: Literal["non_saturating", "minimax"] = Field(
            "non_saturating", description="the generator maximizes log D(G(z)), or minimizes log(1 - D(G(z)))"
        )
        smooth: float = Field(0.0, ge=0, lt=0.5, description="the discriminator's target for photos is 1 - smooth")
        r1: float = Field(0.0, ge=0, description="gamma of the gradient penalty R1; 0: none")
        r1_every: int = Field(1, gt=0, description="R1 is added every that many steps, and counts as often")
        augment: list[Policy] = Field([], description="of photos and generated pictures before the discriminator")
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

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        nets = weights.load_judges(config.frozen)
        self.identity, self.perceptual = freeze(nets.identity), freeze(nets.perceptual)
        self.stand_ins, self.weights = nets.stand_ins, nets.sha256
        size, width, group = config.image_size, config.width, config.bn_group
        self.generator = DCGANGenerator(
            config.noise,
            size,
            width,
            group,
            channels=config.channels,
            kernel=config.kernel,
            norm=config.generator_norm,
        )
        self.discriminator = DCGANDiscriminator(
            size, width, group, channels=config.channels, kernel=config.kernel, norm=config.norm
        )

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
        read: dict[str, Transform] = {
            "image": Photo(c.image_size, c.share, c.channels),
            "noise": NoiseVector(c.noise),
        }
        if c.augment:
            read |= {"augment_real": UniformVector(NUMBERS), "augment_made": UniformVector(NUMBERS)}
        return read

    def asks(self) -> Mapping[str, Kind]:
        return {"noise": Noise(self.config.noise)}

    def makes(self) -> Mapping[str, Kind]:
        return {"face": Picture(self.config.image_size, self.config.channels, self.config.share)}

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        return self._discriminate(batch, step) if phase == "discriminator" else self._deceive(batch)

    def _discriminate(self, batch: Batch, step: int) -> Losses:
        """- log D(x) - log(1 - D(G(z))), and the shares of photos and generated pictures that D classifies correctly.

        R1 is added to the total in every ``r1_every``-th step, that many times (lazy regularization: Karras et al.
        2020, arXiv 1912.04958, appendix B). Photos and generated pictures pass D separately, so that batch norm sees
        one kind at a time.
        """
        c, weight = self.config, batch["weight"]
        with torch.no_grad():
            made = self.generator(batch["noise"])
        photo = to_picture(batch["image"], like=batch["noise"])
        penalty: Losses = {}
        if c.r1 and step % c.r1_every == 0:
            real_B, slope_B = adversarial.with_r1(lambda img: self._logits(img, batch, "real"), photo)
            penalty["r1"] = weighted(c.r1 / 2 * slope_B, weight)
        else:
            real_B = self._logits(photo, batch, "real")
        made_B = self._logits(made, batch, "made")
        real = weighted(adversarial.real(real_B, c.smooth), weight)
        fake = weighted(adversarial.fake(made_B), weight)
        return {
            "total": real + fake + c.r1_every * penalty.get("r1", 0.0),
            "real": real,
            "fake": fake,
            **penalty,
            "accuracy_real": weighted(adversarial.called_real(real_B), weight),
            "accuracy_fake": weighted(1 - adversarial.called_real(made_B), weight),
        }

    def _deceive(self, batch: Batch) -> Losses:
        logit_B = self._logits(self.generator(batch["noise"]), batch, "made")
        return {"total": weighted(adversarial.deceive(logit_B, self.config.loss == "minimax"), batch["weight"])}

    def _logits(self, img_BCHH: Tensor, batch: Batch, kind: Literal["real", "made"]) -> Tensor:
        """The discriminator's logits [B] of pictures, which are augmented before, if the configuration says so."""
        if self.config.augment:
            img_BCHH = diffaugment(img_BCHH, batch[f"augment_{kind}"], self.config.augment)
        logit_B: Tensor = self.discriminator(img_BCHH)
        return logit_B

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
                # a net that judges sees gray as three equal channels
                made_identity.append(self.embed(made[-1].expand(-1, 3, -1, -1)))
                photo_identity.append(self.embed(photos[-1].expand(-1, 3, -1, -1)))
        return metrics.variety_meters(
            made=torch.cat(made).flatten(1),
            real=torch.cat(photos).flatten(1),
            made_identity=torch.cat(made_identity),
            real_identity=torch.cat(photo_identity),
        )

    def verdict(self, meters: Mapping[str, float], history: Mapping[str, Sequence[float]]) -> str | None:
        return metrics.gan_verdict(meters, history, least=adversarial.least_loss(self.config.smooth))
