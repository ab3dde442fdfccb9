"""Voice-to-face GAN: a generator draws a face from a voice, a discriminator and a classifier of people judge it.

    voice [B,T] -> encoder, frozen -> embedding [B,E] of unit length -> (noise) -> generator -> face [B,3,H,H]
    photo [B,3,H,H] or face -> trunk -> feature -> discriminator -> logit [B]
                                               \\-> classifier of people (and of labels) -> logits [B,N]

After a Ukrainian document (2022) that follows Wen, Raj, Singh (NeurIPS 2019, arXiv 1905.10604). Voices and photos are
drawn independently, each from its whole data set: no voice comes with a photo. What the generator learns of a voice's
owner, it learns from the classifier, which knows the owner's photos. Where the document and Wen's published code
differ, a key decides: ``step``, ``trunk.kernel``, ``last``.

Shape letters: B batch, T waveform samples, E embedding, H side of the picture, N people.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f import config, encoders, metrics, weights
from v2f.config import default_net
from v2f.data.augment import AddNoise, Augment, Flip, Stutters
from v2f.data.transforms import ClassNumber, NoiseVector, PersonNumber, Photo, Waveform
from v2f.encoders import FrozenEncoderConfig
from v2f.encoders.wen import WenConfig
from v2f.nn import adversarial, at_least_float32
from v2f.nn.dcgan import Side
from v2f.nn.wen import FaceGenerator, FaceTrunk, ResidualTrunk, keep_variance
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
    SystemConfig,
    Transform,
    freeze,
    to_picture,
    weighted,
)
from v2f.weights import JudgeConfig, Requirements

PERSON = "person"  # the classifier's head that tells people apart, and the transform of their numbers
_TAKEN = {
    PERSON,
    "wav",
    "noise",
    "grain",
    "image",
    "total",
    "adversarial",
    "real",
    "fake",
}  # in batches or among the losses
Step = Literal["joint", "alternating"]


class PlainTrunk(config.Config):
    """Wen's convolutions (:class:`v2f.nn.wen.FaceTrunk`)."""

    net: Literal["plain"] = "plain"
    width: int = Field(32, gt=0, description="channels of the first map; they double where the side halves")
    kernel: Literal[3, 4] = Field(4, description="of the convolutions of stride 2: 3 in the document, 4 in Wen's code")


class ResNetTrunk(config.Config):
    """A residual network (:class:`v2f.nn.wen.ResidualTrunk`)."""

    net: Literal["resnet"]
    width: int = Field(32, gt=0, description="channels of the first map; they double where the side halves")
    blocks: int = Field(1, gt=0, description="residual blocks at each side")


class Terms(config.Config):
    """The coefficients of what the generator is to be taken for; that of a real picture is 1."""

    person: float = Field(1.0, ge=0, description="the speaker, by the classifier")
    labels: float = Field(1.0, ge=0, description="the speaker's value of each of `labels`")


class Chances(config.Config):
    """How often a sample is changed in training, a probability each."""

    noise: float = Field(0.0, ge=0, le=1, description="noise is added to the voice, 5 to 30 dB below it")
    stutters: float = Field(0.0, ge=0, le=1, description="short pieces of the voice are repeated")
    flip: float = Field(0.5, ge=0, le=1, description="the photo is mirrored")


def _modules(step: Step) -> dict[str, tuple[str, ...]]:
    """Phase -> the modules that it trains."""
    if step == "joint":
        return {"discriminator": ("trunk", "discriminator", "classifier"), "generator": ("generator",)}
    return {
        "discriminator": ("trunk", "discriminator"),
        "classifier": ("trunk", "classifier"),
        "generator": ("generator",),
    }


def _adam(phase: str, step: Step) -> Optimizer:
    """Wen's optimizer of a phase."""
    return Optimizer(lr=dict.fromkeys(_modules(step)[phase], 2e-4), betas=[0.5, 0.999])


class VoiceGAN(Judged):
    """The whole system: the phases of the critics, one or two, and that of the generator."""

    protocol = "faces_of_voices"

    class Config(SystemConfig):
        name: Literal["voice_gan"]
        people: int = Field(ge=2, description="classes: at least the people seen in training, in voices and photos")
        labels: dict[str, Annotated[list[str], Field(min_length=2)]] = Field(
            {}, description="label of the samples, such as gender -> its values: classified as well"
        )
        seconds: float = Field(6.0, gt=0, description="length of the encoder's input; shorter clips are repeated")
        sample_rate: int = Field(16_000, gt=0)
        image_size: Side = Field(64, description="side of the pictures in pixels: 4 to 7 times a power of two")
        encoder: Annotated[FrozenEncoderConfig, default_net("wen")] = WenConfig(net="wen")
        noise: float = Field(0.05, ge=0, description="standard deviation of the noise on each number of the embedding")
        sample_noise: bool = Field(False, description="whether a face that is sampled has that noise, too")
        width: int = Field(
            64, gt=0, description="channels of the generator's last map; they double where the side halves"
        )
        extra: int = Field(0, ge=0, description="3x3 convolutions behind each layer of the generator: a deeper one")
        last: Literal["linear", "tanh"] = Field(
            "linear", description="the generator's end; linear, as in Wen's code: limited to [-1,1] only when sampled"
        )
        trunk: Annotated[Annotated[PlainTrunk | ResNetTrunk, Field(discriminator="net")], default_net("plain")] = (
            PlainTrunk()
        )
        features: int = Field(64, gt=0, description="width of the trunk's output, which both heads read")
        init: Literal["torch", "he"] = Field(
            "torch",
            description="initial weights of generator and plain trunk: torch, as in Wen's code, or he, with which the "
            "first faces depend on the voice (He et al. 2015)",
        )
        step: Step = Field(
            "joint",
            description="joint: one step trains trunk, discriminator and classifier (Wen's code); alternating: the "
            "discriminator, then the classifier, each with the trunk (the document); not under ZeRO",
        )
        every: int = Field(1, gt=0, description="steps of the critics per generator step")
        smooth: float = Field(0.0, ge=0, lt=0.5, description="the discriminator's target for photos is 1 - smooth")
        label_smoothing: float = Field(
            0.0, ge=0, lt=1, description="share of the classifier's target for photos that all classes have in common"
        )
        picture_noise: float = Field(
            0.0, ge=0, description="standard deviation of the noise on each value of the pictures that the critics see"
        )
        terms: Terms = Terms()
        augment: Chances = Chances()
        frozen: JudgeConfig = Field(
            JudgeConfig(), description="what looks at pictures for meters and evaluation; no loss does"
        )
        discriminator: Optimizer = Field(default_factory=lambda given: _adam("discriminator", given["step"]))
        classifier: Optimizer | None = Field(
            default_factory=lambda given: None if given["step"] == "joint" else _adam("classifier", given["step"]),
            description="of the classifier's phase; null where step is joint",
        )
        generator: Optimizer = Field(default_factory=lambda given: _adam("generator", given["step"]))
        ema: int | None = Field(None, gt=0, description="half-life of the generator's moving average, in samples")

        @property
        def nets(self) -> JudgeConfig:
            return self.frozen

        def requirements(self, with_referee: bool = False) -> Requirements:
            return encoders.with_encoder(super().requirements(with_referee), self.encoder)

        @model_validator(mode="after")
        def _fits(self) -> "VoiceGAN.Config":
            encoders.check_rate(self.encoder, self.sample_rate)
            encoders.check_frozen(self.encoder)
            taken = sorted(self.labels.keys() & _TAKEN)
            if taken:
                raise ValueError(f"labels: {taken[0]!r} is the name of something else here; rename this label")
            if self.classifier is not None and self.step == "joint":
                raise ValueError("classifier is trained with the discriminator where step is joint: set it to null")
            for phase, modules in _modules(self.step).items():
                own: Optimizer | None = getattr(self, phase)
                if own is None:
                    raise ValueError(f"{phase} needs an optimizer where step is {self.step}")
                own.check(modules, phase)
            return self

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        nets = weights.load_judges(config.frozen)
        self.identity, self.perceptual = freeze(nets.identity), freeze(nets.perceptual)
        built = encoders.frozen(config.encoder, config.frozen.path)
        self.encoder = built.encoder
        self.stand_ins, self.weights = nets.stand_ins, {**nets.sha256, **built.checksums}
        self._last: tuple[Tensor, int, Tensor] | None = None
        self.width = self.encoder.channels[-1]
        size, features = config.image_size, config.features
        self.generator = FaceGenerator(self.width, size, config.width, config.last, config.extra)
        self.trunk: nn.Module
        if isinstance(config.trunk, PlainTrunk):
            self.trunk = FaceTrunk(size, config.trunk.width, config.trunk.kernel, features)
        else:
            self.trunk = ResidualTrunk(size, config.trunk.width, config.trunk.blocks, features)
        if config.init == "he":
            for net in (self.generator, self.trunk):
                if isinstance(net, FaceGenerator | FaceTrunk):
                    keep_variance(net)
        self.discriminator = nn.Linear(features, 1, bias=False)
        heads = {PERSON: config.people} | {name: len(values) for name, values in config.labels.items()}
        self.classifier = nn.ModuleDict(
            {name: nn.Linear(features, classes, bias=False) for name, classes in heads.items()}
        )

    def phases(self) -> list[Phase]:
        c = self.config
        modules = {
            phase: {name: cast(nn.Module, getattr(self, name)) for name in names}
            for phase, names in _modules(c.step).items()
        }
        critics = {"discriminator": c.discriminator, "classifier": c.classifier}
        found = [Phase(name=n, modules=modules[n], optimizer=own) for n, own in critics.items() if own is not None]
        last = Phase(name="generator", modules=modules["generator"], optimizer=c.generator, every=c.every, ema=c.ema)
        return [*found, last]

    # ------------------------------------------------------------------------------------------------ data

    def _of_both(self) -> dict[str, Transform]:
        """What voices and photos are labeled with."""
        labels = {name: ClassNumber(name, tuple(values)) for name, values in self.config.labels.items()}
        return {PERSON: PersonNumber(most=self.config.people), **labels}

    def streams(self) -> dict[str, dict[str, Transform]]:
        c = self.config
        changes = (AddNoise(chance=c.augment.noise), Stutters(chance=c.augment.stutters))
        voice: dict[str, Transform] = {
            "wav": Augment(Waveform(c.seconds, c.sample_rate), tuple(each for each in changes if each.chance)),
            "noise": NoiseVector(self.width),
        }
        face: dict[str, Transform] = {"image": Augment(Photo(c.image_size), (Flip(chance=c.augment.flip),))}
        grain: dict[str, Transform] = {"grain": NoiseVector(3 * c.image_size**2)} if c.picture_noise else {}
        return {"voice": voice | self._of_both() | grain, "face": face | self._of_both() | grain}

    def transforms(self) -> dict[str, Transform]:
        read = self.streams()
        return read["face"] | read["voice"]

    def asks(self) -> Mapping[str, Kind]:
        c = self.config
        asked: dict[str, Kind] = {"wav": Sound(c.sample_rate, c.seconds, voice=True)}
        return asked | ({"noise": Noise(self.width)} if c.sample_noise else {})

    def makes(self) -> Mapping[str, Kind]:
        return {"face": Picture(self.config.image_size)}

    # ---------------------------------------------------------------------------------------------- losses

    def embedding(self, wav_BT: Tensor, noise_BE: Tensor | None = None) -> Tensor:
        """The embeddings [B,E] of voices, of unit length; with noise, if it is given, and then of unit length again."""
        with torch.no_grad():
            embedding_BE = self._heard(wav_BT)
            if noise_BE is None or not self.config.noise:
                return embedding_BE
            return F.normalize(embedding_BE + self.config.noise * noise_BE)

    def _heard(self, wav_BT: Tensor) -> Tensor:
        """The embeddings without noise. In training, those of the last waves are kept: each phase of a step hears the
        same ones, and the frozen encoder is the larger part of a phase."""
        key = (wav_BT, wav_BT._version) if self.training else None
        if key is not None and self._last is not None and self._last[0] is key[0] and self._last[1] == key[1]:
            return self._last[2]
        embedding_BE = F.normalize(at_least_float32(self.encoder(wav_BT)[-1]).mean(dim=2))
        self._last = None if key is None else (*key, embedding_BE)
        return embedding_BE

    def made(self, batch: Batch) -> Tensor:
        """The faces of a batch of voices as the critics see them, not limited to [-1,1]."""
        picture: Tensor = self.generator(self.embedding(batch["wav"], batch["noise"]))
        return picture

    def _features(self, img_B3HH: Tensor, batch: Batch) -> Tensor:
        """The trunk's features [B,E] of pictures, which get the batch's noise first: with it, a classifier reads large
        shapes rather than single pixels, by which a generator could deceive it (instance noise: Sonderby et al. 2017,
        arXiv 1610.04490, section 3.4)."""
        if self.config.picture_noise:
            img_B3HH = img_B3HH + self.config.picture_noise * batch["grain"].view_as(img_B3HH).to(img_B3HH.dtype)
        feature_BE: Tensor = self.trunk(img_B3HH)
        return feature_BE

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        """The losses of a phase, and the accuracies of discriminator (``real``, ``fake``) and classifier.

        Joint step: the discriminator's ``adversarial`` plus the classifier's ``person`` and labels, on photos.
        Samples of people who are not numbered (-1), which only validation reads, have the weight 0 in ``person``.
        """
        voice, face = batch["voice"], batch["face"]
        if phase == "generator":
            return self._deceive(voice)
        feature_BE = self._features(to_picture(face["image"], like=voice["noise"]), face)
        losses: Losses = {}
        if phase == "discriminator":
            losses |= self._discriminate(feature_BE, voice, face["weight"])
        if phase == "classifier" or self.config.step == "joint":
            losses |= self._classify(feature_BE, face, self.config.label_smoothing)
        terms = [name for name in ("adversarial", *self.classifier) if name in losses]
        return {"total": torch.stack([losses[name] for name in terms]).sum(), **losses}

    def _discriminate(self, feature_BE: Tensor, voice: Batch, weight_B: Tensor) -> Losses:
        """- log D(photo) - log(1 - D(G(voice))), from the features of the photos."""
        with torch.no_grad():
            made = self.made(voice)
        real_B, made_B = (self.discriminator(each).squeeze(1) for each in (feature_BE, self._features(made, voice)))
        real = weighted(adversarial.real(real_B, self.config.smooth), weight_B)
        fake = weighted(adversarial.fake(made_B), voice["weight"])
        return {
            "adversarial": real + fake,
            "real": real,
            "fake": fake,
            "accuracy_real": weighted(adversarial.called_real(real_B), weight_B),
            "accuracy_fake": weighted(1 - adversarial.called_real(made_B), voice["weight"]),
        }

    def _classify(self, feature_BE: Tensor, labeled: Batch, smoothing: float = 0.0) -> Losses:
        """The cross-entropy of each head with the labels of a batch (smoothed: Szegedy et al. 2016, arXiv 1512.00567,
        section 7), and its accuracy."""
        losses: Losses = {}
        for name, head in self.classifier.items():
            logit_BN, class_B = at_least_float32(head(feature_BE)), labeled[name]
            weight_B = labeled["weight"] * (class_B >= 0)
            class_B = class_B.clamp(min=0)
            losses[name] = weighted(
                F.cross_entropy(logit_BN, class_B, reduction="none", label_smoothing=smoothing), weight_B
            )
            right_B = (logit_BN.argmax(dim=1) == class_B).to(logit_BN.dtype)
            losses[f"accuracy_{name}"] = weighted(right_B, weight_B)
        return losses

    def _deceive(self, voice: Batch) -> Losses:
        """- log D(G(voice)), and the cross-entropies of the classifier with the speaker's labels."""
        feature_BE = self._features(self.made(voice), voice)
        deceive = weighted(adversarial.deceive(self.discriminator(feature_BE).squeeze(1)), voice["weight"])
        losses, terms = self._classify(feature_BE, voice), self.config.terms
        total = deceive + terms.person * losses[PERSON]
        for name in self.config.labels:
            total = total + terms.labels * losses[name]
        return {"total": total, "adversarial": deceive, **losses}

    # --------------------------------------------------------------------------------- samples and meters

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        noise = batch["noise"] if self.config.sample_noise else None
        pictures = {"face": at_least_float32(self.generator(self.embedding(batch["wav"], noise))).clamp(-1, 1)}
        if "image" in batch:
            pictures["photo"] = to_picture(batch["image"], like=pictures["face"])
        return pictures

    @torch.no_grad()
    def meters(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The meters of a collapse to one face, of people who are in both streams, and those of pictures that repeat,
        of one face and one photo of each person."""
        parts: dict[str, list[Tensor]] = {name: [] for name in ("made", "face", "speaker", "photo", "real", "person")}
        for batch in batches:
            voice, face = batch["voice"], batch["face"]
            made, photo = self.sample(voice)["face"], to_picture(face["image"], like=voice["wav"])
            own = {"made": made, "face": self.identity(made), "speaker": voice["identity"]}
            own |= {"photo": photo, "real": self.identity(photo), "person": face["identity"]}
            for name, value in own.items():
                parts[name].append(value)
        return _meters(**{name: torch.cat(values) for name, values in parts.items()})

    def verdict(self, meters: Mapping[str, float], history: Mapping[str, Sequence[float]]) -> str | None:
        losses = {  # the classifier's part left out
            f"loss/{phase}/total": history[f"loss/{phase}/adversarial"]
            for phase in ("discriminator", "generator")
            if f"loss/{phase}/adversarial" in history
        }
        game = metrics.gan_verdict(meters, {**history, **losses}, least=adversarial.least_loss(self.config.smooth))
        return "; ".join(filter(None, (metrics.collapse_verdict(meters), game))) or None


def _meters(
    made: Tensor, face: Tensor, speaker: Tensor, photo: Tensor, real: Tensor, person: Tensor
) -> dict[str, float]:
    """Meters of faces and of photos, their identity embeddings, and whose they are; they are of different samples."""
    ours, theirs = _first_rows(speaker), _first_rows(person)
    both = [row for row, number in enumerate(speaker.tolist()) if number in theirs]
    if both:
        reference = real[[theirs[number] for number in speaker[both].tolist()]]
        found = metrics.collapse_meters(face=face[both], reference=reference, identity=speaker[both])
    else:
        distance = metrics.identity_distance(face, speaker)
        ratio = metrics.ratio(distance, metrics.identity_distance(real, person))
        found = {"identity_distance": distance, "identity_distance_ratio": ratio}
    count = min(len(ours), len(theirs))
    some, others = ([*rows.values()][:count] for rows in (ours, theirs))
    return found | metrics.variety_meters(
        made=made[some].flatten(1),
        real=photo[others].flatten(1),
        made_identity=face[some],
        real_identity=real[others],
    )


def _first_rows(people: Tensor) -> dict[int, int]:
    """Person -> their first row."""
    rows: dict[int, int] = {}
    for row, number in enumerate(people.tolist()):
        rows.setdefault(number, row)
    return rows
