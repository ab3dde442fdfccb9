"""Pictures with a label as condition: a cVAE, a cGAN and a cVAE-GAN, which share encoder, decoder and discriminator.

    photo [B,C,H,H], label -> encoder -> mean, log-variance -> code [B,Z] --\\
                                               noise [B,Z] from N(0, 1) -----+- label -> decoder -> picture [B,C,H,H]
    photo or picture, label -> discriminator -> logit [B], activations of its layers

``cvae`` trains encoder and decoder on likeness in pixels and the divergence of the codes from N(0, 1) (Kingma and
Welling 2014, arXiv 1312.6114; Sohn, Lee, Yan 2015). ``cgan`` trains the decoder, which is its generator, against the
discriminator, which takes k steps for each of the decoder's (Goodfellow et al. 2014, arXiv 1406.2661, algorithm 1;
Mirza and Osindero 2014, arXiv 1411.1784). ``cvae_gan`` follows Larsen et al. 2016, "Autoencoding beyond pixels using a
learned similarity metric" (arXiv 1512.09300, algorithm 1), with D the discriminator and D_l its activations in layer
l::

    L_prior = KL(N(mean, variance), N(0, 1))
    L_llike = 1/2 |D_l(x) - D_l(dec(enc(x)))|^2
    L_GAN   = ln D(x) + ln(1 - D(dec(z))) + ln(1 - D(dec(enc(x))))

    the encoder       minimizes L_prior + L_llike
    the decoder       minimizes gamma L_llike, and has its pictures taken for real
    the discriminator maximizes L_GAN: it tells real pictures from made ones

The slides print what the last two descend as gamma L_llike - L_GAN and L_GAN, by which the discriminator would learn to
take made pictures for real. Their words say the opposite, and the words count. The discriminator never minimizes
L_llike, or all activations would become equal, and the encoder gets no gradient of L_GAN. ``gamma`` weighs content
(high) against style.

A cGAN whose generator starts from a trained cVAE: ``init_from: [{run: runs/shapes-cvae, module: decoder}]``.

Shape letters: B batch, C channels, H side of the picture, Z width of a code.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f import metrics
from v2f.config import Config as BaseConfig
from v2f.data.transforms import ClassNumber, NoiseVector, Photo
from v2f.nn import adversarial
from v2f.nn.conditional import ConditionalDecoder, ConditionalDiscriminator, ConditionalEncoder
from v2f.nn.dcgan import Side, doublings
from v2f.nn.variational import kl_to_normal, reparametrized, unlikeness
from v2f.roles import Restyling
from v2f.system import (
    Batch,
    Kind,
    Label,
    Losses,
    Noise,
    Optimizer,
    Phase,
    Picture,
    SystemConfig,
    Transform,
    to_picture,
    weighted,
)

_POINTS = 10  # logged points before there is a verdict
_NO_CODE = 0.1  # nats: a code that says less says nothing


def _adam(rate: float, *modules: str, betas: tuple[float, float] = (0.9, 0.999)) -> Optimizer:
    return Optimizer(lr=dict.fromkeys(modules, rate), betas=list(betas))


def _dcgan(module: str) -> Optimizer:
    """DCGAN's optimizer (Radford et al. 2016, section 4)."""
    return _adam(2e-4, module, betas=(0.5, 0.999))


class _Adversarial(BaseConfig):
    """The keys of the kinds with a discriminator."""

    loss: Literal["non_saturating", "minimax"] = Field(
        "non_saturating", description="the decoder maximizes ln D of its pictures, or minimizes ln(1 - D)"
    )
    smooth: float = Field(0.0, ge=0, lt=0.5, description="the discriminator's target for photos is 1 - smooth")
    every: int = Field(1, gt=0, description="k: discriminator steps per step of the other modules")


class CVAE(BaseConfig):
    """Conditional variational autoencoder."""

    kind: Literal["cvae"]
    beta: float = Field(1.0, ge=0, description="weight of the codes' divergence from N(0, 1)")
    optimizer: Optimizer = _adam(1e-3, "encoder", "decoder")


class CGAN(_Adversarial):
    """Conditional GAN; its generator is the decoder."""

    kind: Literal["cgan"]
    generator: Optimizer = _dcgan("decoder")
    discriminator: Optimizer = _dcgan("discriminator")


class CVAEGAN(_Adversarial):
    """Autoencoder and GAN with one decoder; likeness is measured in a layer of the discriminator."""

    kind: Literal["cvae_gan"]
    beta: float = Field(1.0, ge=0, description="weight of the codes' divergence from N(0, 1)")
    gamma: float = Field(1e-3, ge=0, description="weight of likeness against deceiving in the decoder's loss")
    layer: int = Field(1, ge=1, description="l: the discriminator's layer in which pictures are compared; 1: the first")
    encoder: Optimizer = _dcgan("encoder")
    decoder: Optimizer = _dcgan("decoder")
    discriminator: Optimizer = _dcgan("discriminator")


class Conditional(Restyling):
    """The whole family: one phase for the cVAE, two for the cGAN, three for the cVAE-GAN."""

    protocol = "labelled_pictures"

    class Config(SystemConfig):
        name: Literal["conditional"]
        model: Annotated[CVAE | CGAN | CVAEGAN, Field(discriminator="kind")]
        label: str = Field("label", min_length=1, description="the label of the condition, by its name in the shards")
        classes: list[str] = Field(min_length=2, description="the classes of that label, in this order")
        image_size: Side = Field(28, description="side of the pictures in pixels: 4 to 7 times a power of two")
        share: float = Field(1.0, gt=0, le=1, description="share of a photo's side, kept around its center")
        channels: Literal[1, 3] = Field(1, description="1: gray, 3: RGB")
        noise: int = Field(16, gt=0, description="width of a code")
        width: int = Field(32, gt=0, description="channels of the largest maps")
        bn_group: int = Field(16, gt=0, description="samples in each mean of batch norm")
        ema: int | None = Field(
            None, gt=0, description="half-life of the moving averages of encoder and decoder, in samples"
        )

        @model_validator(mode="after")
        def _fits(self) -> "Conditional.Config":
            if len(set(self.classes)) < len(self.classes):
                raise ValueError("classes names a class twice; remove one")
            model = self.model
            if isinstance(model, CVAE):
                model.optimizer.check(["encoder", "decoder"])
            elif isinstance(model, CGAN):
                model.generator.check(["decoder"])
                model.discriminator.check(["discriminator"])
            else:
                for name in ("encoder", "decoder", "discriminator"):
                    getattr(model, name).check([name])
                layers = doublings(self.image_size) + 1
                if model.layer > layers:
                    raise ValueError(
                        f"model.layer is {model.layer}, but the discriminator of {self.image_size} px has {layers} "
                        "layers"
                    )
            return self

    encoder: ConditionalEncoder
    discriminator: ConditionalDiscriminator

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        picture = (config.image_size, config.channels, config.width, config.bn_group)
        classes = len(config.classes)
        self.decoder = ConditionalDecoder(config.noise, classes, *picture)
        if not isinstance(config.model, CGAN):
            self.encoder = ConditionalEncoder(config.noise, classes, *picture)
        if not isinstance(config.model, CVAE):
            self.discriminator = ConditionalDiscriminator(classes, *picture)

    def phases(self) -> list[Phase]:
        model, ema = self.config.model, self.config.ema
        if isinstance(model, CVAE):
            both: dict[str, nn.Module] = {"encoder": self.encoder, "decoder": self.decoder}
            return [Phase(name="autoencoder", modules=both, optimizer=model.optimizer, ema=ema)]
        judge: dict[str, nn.Module] = {"discriminator": self.discriminator}
        discriminate = Phase(name="discriminator", modules=judge, optimizer=model.discriminator)
        if isinstance(model, CGAN):
            maker: dict[str, Any] = {"modules": {"decoder": self.decoder}, "every": model.every, "ema": ema}
            return [discriminate, Phase(name="generator", optimizer=model.generator, **maker)]
        return [
            Phase(
                name="encoder", modules={"encoder": self.encoder}, optimizer=model.encoder, every=model.every, ema=ema
            ),
            Phase(
                name="decoder", modules={"decoder": self.decoder}, optimizer=model.decoder, every=model.every, ema=ema
            ),
            discriminate,
        ]

    def transforms(self) -> dict[str, Transform]:
        c = self.config
        reads: dict[str, Transform] = {
            "image": Photo(c.image_size, c.share, c.channels),
            "label": ClassNumber(c.label, tuple(c.classes)),
            "noise": NoiseVector(c.noise),
        }
        return reads | ({"posterior_noise": NoiseVector(c.noise)} if self.restyles else {})

    def asks(self) -> Mapping[str, Kind]:
        return {"label": Label(tuple(self.config.classes)), "noise": Noise(self.config.noise)}

    def makes(self) -> Mapping[str, Kind]:
        c = self.config
        return {"picture": Picture(c.image_size, c.channels, c.share)}

    # --------------------------------------------------------------------------------------------- losses

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        losses = {
            "autoencoder": self._restore,
            "generator": self._deceive,
            "encoder": self._encode,
            "decoder": self._decode,
            "discriminator": self._discriminate,
        }
        return losses[phase](batch, to_picture(batch["image"], like=batch["noise"]))

    def _restored(self, batch: Batch, img_BCHH: Tensor) -> tuple[Tensor, Tensor]:
        """The pictures dec(enc(x)), and the divergence [B] of their codes from N(0, 1)."""
        mean_BZ, log_variance_BZ = self.encoder(img_BCHH, batch["label"])
        code_BZ = reparametrized(mean_BZ, log_variance_BZ, batch["posterior_noise"])
        return self.decoder(code_BZ, batch["label"]), kl_to_normal(mean_BZ, log_variance_BZ)

    def _layer(self, img_BCHH: Tensor) -> Tensor:
        """D_l, the activations in the layer in which pictures are compared."""
        model = self.config.model
        assert isinstance(model, CVAEGAN)
        return self.discriminator.activations(img_BCHH)[model.layer - 1]

    def _restore(self, batch: Batch, img_BCHH: Tensor) -> Losses:
        """The cVAE: likeness in pixels, and the divergence."""
        model, weight = self.config.model, batch["weight"]
        assert isinstance(model, CVAE)
        restored, divergence_B = self._restored(batch, img_BCHH)
        likeness = weighted(unlikeness(restored, img_BCHH), weight)
        prior = weighted(divergence_B, weight)
        return {"total": likeness + model.beta * prior, "likeness": likeness, "prior": prior}

    def _encode(self, batch: Batch, img_BCHH: Tensor) -> Losses:
        """L_prior + L_llike."""
        model, weight = self.config.model, batch["weight"]
        assert isinstance(model, CVAEGAN)
        restored, divergence_B = self._restored(batch, img_BCHH)
        with torch.no_grad():
            wanted = self._layer(img_BCHH)
        likeness = weighted(unlikeness(self._layer(restored), wanted), weight)
        prior = weighted(divergence_B, weight)
        return {"total": model.beta * prior + likeness, "prior": prior, "likeness": likeness}

    def _decode(self, batch: Batch, img_BCHH: Tensor) -> Losses:
        """gamma L_llike, and the decoder's side of L_GAN: - ln D of what it makes, or ln(1 - D)."""
        model, weight, label_B = self.config.model, batch["weight"], batch["label"]
        assert isinstance(model, CVAEGAN)
        with torch.no_grad():
            mean_BZ, log_variance_BZ = self.encoder(img_BCHH, label_B)
            wanted = self._layer(img_BCHH)
        code_BZ = reparametrized(mean_BZ, log_variance_BZ, batch["posterior_noise"])
        layers = self.discriminator.activations(self.decoder(code_BZ, label_B))
        likeness = weighted(unlikeness(layers[model.layer - 1], wanted), weight)
        restored_B = self.discriminator.judge(layers[-1], label_B)
        made_B = self.discriminator(self.decoder(batch["noise"], label_B), label_B)
        minimax = model.loss == "minimax"
        gan = weighted(adversarial.deceive(restored_B, minimax) + adversarial.deceive(made_B, minimax), weight)
        return {"total": model.gamma * likeness + gan, "likeness": likeness, "gan": gan}

    def _discriminate(self, batch: Batch, img_BCHH: Tensor) -> Losses:
        """- L_GAN, and the shares of photos and made pictures that D classifies correctly.

        Photos, pictures from noise and restored photos pass D separately, so that batch norm sees one kind at a time.
        """
        model, weight, label_B = self.config.model, batch["weight"], batch["label"]
        assert not isinstance(model, CVAE)
        with torch.no_grad():
            made = [self.decoder(batch["noise"], label_B)]
            if self.restyles:
                made.append(self._restored(batch, img_BCHH)[0])
        real_B = self.discriminator(img_BCHH, label_B)
        fakes = [self.discriminator(each, label_B) for each in made]
        parts: Losses = {"real": weighted(adversarial.real(real_B, model.smooth), weight)}
        for name, logit_B in zip(("fake", "restored"), fakes, strict=False):
            parts[name] = weighted(adversarial.fake(logit_B), weight)
        right_B = torch.stack([1 - adversarial.called_real(each) for each in fakes]).mean(0)
        return {
            "total": torch.stack(list(parts.values())).sum(),
            **parts,
            "accuracy_real": weighted(adversarial.called_real(real_B), weight),
            "accuracy_fake": weighted(right_B, weight),
        }

    def _deceive(self, batch: Batch, img_BCHH: Tensor) -> Losses:
        """The cGAN's generator."""
        model, label_B = self.config.model, batch["label"]
        assert isinstance(model, CGAN)
        logit_B = self.discriminator(self.decoder(batch["noise"], label_B), label_B)
        return {"total": weighted(adversarial.deceive(logit_B, model.loss == "minimax"), batch["weight"])}

    # -------------------------------------------------------------------------------------------- pictures

    @property
    def restyles(self) -> bool:
        return not isinstance(self.config.model, CGAN)

    def posterior(self, img_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.encoder(img_BCHW, label_B)
        return found

    def decode(self, code_BZ: Tensor, label_B: Tensor) -> Tensor:
        picture_BCHH: Tensor = self.decoder(code_BZ, label_B)
        return picture_BCHH

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        pictures = {"picture": self.decode(batch["noise"], batch["label"])}
        if "image" in batch:
            pictures["photo"] = img = to_picture(batch["image"], like=batch["noise"])
            if self.restyles:
                pictures["restored"] = self.decode(self.posterior(img, batch["label"])[0], batch["label"])
        return pictures

    @torch.no_grad()
    def meters(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The variety of pictures from noise; with an encoder also the mean squared error of restored pixels and the
        nats that a code holds."""
        made, photos, errors, nats = [], [], [], []
        for batch in batches:
            found = self.sample(batch)
            made.append(found["picture"].flatten(1))
            photos.append(found["photo"].flatten(1))
            if self.restyles:
                errors.append((found["restored"] - found["photo"]).square().flatten(1).mean(1))
                nats.append(kl_to_normal(*self.posterior(found["photo"], batch["label"])))
        meters = metrics.pixel_variety(torch.cat(made), torch.cat(photos))
        if errors:
            meters |= {"restored_error": float(torch.cat(errors).mean()), "code_nats": float(torch.cat(nats).mean())}
        return meters

    def verdict(self, meters: Mapping[str, float], history: Mapping[str, Sequence[float]]) -> str | None:
        """Posterior collapse, and what goes wrong between decoder and discriminator."""
        model = self.config.model
        if len(history.get(f"loss/{self.phases()[0].name}/total", ())) < _POINTS:
            return None
        nats = meters.get("code_nats", _NO_CODE)
        if nats < _NO_CODE:
            return f"POSTERIOR COLLAPSE: a code holds {nats:.2g} nats of its picture; lower model.beta, or train longer"
        if isinstance(model, CVAE):
            return metrics.mode_collapse_verdict(meters)
        if isinstance(model, CVAEGAN):  # the same game with one more kind of made pictures
            real, fake = (history.get(f"loss/discriminator/{name}", ()) for name in ("real", "fake"))
            both = [one + other for one, other in zip(real, fake, strict=True)]
            deceived = [value / 2 for value in history.get("loss/decoder/gan", ())]
            history = {**history, "loss/generator/total": deceived, "loss/discriminator/total": both}
        return metrics.gan_verdict(meters, history, least=adversarial.least_loss(model.smooth))
