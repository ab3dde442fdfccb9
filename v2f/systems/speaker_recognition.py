"""Speaker recognition: whose voice is it, among the people seen in training; its encoder is a start for other systems.

    voice [B,T] -> encoder -> maps [B,C_i,T_i] -> heads: mean over time -> linear, activation -> linear -> logits [B,N]
                                                                     \\-> embedding [B,E] of unit length

The thesis *Voice Styled Face* (2022) pre-trains its encoder like this, with one head of two linear layers at the last
depth and the cross-entropy. Heads at all depths train the shallow maps as well, which the mapping to styles also reads.
``init_from: [{run: runs/speaker-pretrain, module: encoder}]`` takes the encoder into another run.

Shape letters: B batch, T waveform samples, N people, W hidden width, E embedding width.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f import config, encoders, metrics
from v2f.config import MayChange, Place
from v2f.data.transforms import PersonNumber, Waveform
from v2f.encoders import EncoderConfig
from v2f.nn.speaker_head import Activation, SpeakerHead, with_margin
from v2f.nn.waveform import WaveformEncoder
from v2f.system import (
    Batch,
    Embedding,
    Exported,
    Kind,
    Losses,
    Optimizer,
    Phase,
    Recognizer,
    Sound,
    SystemConfig,
    Transform,
    weighted,
)
from v2f.weights import Requirements

_POINTS = 10  # logged points that the verdict on the accuracy looks at


class Softmax(config.Config):
    """Softmax and cross-entropy."""

    kind: Literal["softmax"] = "softmax"


class ArcFace(config.Config):
    """Cross-entropy of scaled cosines with an angular margin (Deng et al. 2019, arXiv 1801.07698, eq. 3)."""

    kind: Literal["arcface"]
    scale: float = Field(30.0, gt=0, description="s: the logits are s times the cosines")
    margin: float = Field(0.2, ge=0, lt=1.5, description="m, in radians")


class VoiceToEmbedding(nn.Module):
    """Waves [B,T] -> embeddings [B,E] of unit length: the hidden vectors of all heads, each of length one, side by side
    and scaled, so that a cosine is the mean of the heads' cosines."""

    def __init__(self, encoder: nn.Module, heads: nn.ModuleList) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, heads

    def forward(self, wav_BT: Tensor) -> Tensor:
        return joined(hidden_of(self.encoder, self.heads, wav_BT))


def hidden_of(encoder: nn.Module, heads: nn.ModuleList, wav_BT: Tensor) -> list[Tensor]:
    """The hidden vectors [B,W] of the heads, which are those of the last maps, shallow ones first."""
    maps = encoder(wav_BT)[-len(heads) :]
    return [cast(SpeakerHead, head).embed(each) for head, each in zip(heads, maps, strict=True)]


def joined(hidden: Sequence[Tensor]) -> Tensor:
    """The embedding [B,E] of the heads' hidden vectors [B,W]."""
    return torch.cat([F.normalize(each) for each in hidden], dim=1) / len(hidden) ** 0.5


class SpeakerRecognition(Recognizer):
    """The whole system: one phase, which trains the encoder and the heads."""

    protocol = "speakers"

    class Config(SystemConfig):
        name: Literal["speaker_recognition"]
        people: int = Field(ge=2, description="classes: at least the people seen in training; further ones stay unused")
        seconds: float = Field(6.0, gt=0, description="length of the encoder's input; shorter clips are repeated")
        sample_rate: int = Field(16_000, gt=0)
        encoder: EncoderConfig = WaveformEncoder.Config()
        path: MayChange[Place] = Field("weights", description="where the files of a foreign encoder are")
        heads: Literal["last", "all"] = Field("last", description="the maps that have a head: the last, or every one")
        width: int | None = Field(
            512,
            gt=0,
            description="of the hidden layer of a head, and so of its embedding; null: no such layer, the embedding is "
            "the mean of the map",
        )
        activation: Activation = Field("relu", description="between the two layers of a head")
        loss: Softmax | ArcFace = Field(Softmax(), discriminator="kind")
        optimizer: Optimizer = Field(
            default_factory=lambda given: Optimizer(lr=dict.fromkeys(_trained(given["encoder"]), 1e-3))
        )
        ema: int | None = Field(None, gt=0, description="half-life of the moving average of the weights, in samples")

        def requirements(self, with_referee: bool = False) -> Requirements:
            return encoders.with_encoder(Requirements(self.path), self.encoder)

        @model_validator(mode="after")
        def _fits(self) -> "SpeakerRecognition.Config":
            encoders.check_rate(self.encoder, self.sample_rate)
            self.optimizer.check(_trained(self.encoder))
            return self

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        built = encoders.build(config.encoder, config.path)
        self.encoder = built.encoder
        self.weights = built.checksums
        channels = self.encoder.channels if config.heads == "all" else self.encoder.channels[-1:]
        cosine = isinstance(config.loss, ArcFace)
        self.head = nn.ModuleList(
            SpeakerHead(each, config.width, config.people, config.activation, cosine) for each in channels
        )

    def phases(self) -> list[Phase]:
        modules = {**self.encoder.trained(), "head": self.head}
        return [Phase(name="supervised", modules=modules, optimizer=self.config.optimizer, ema=self.config.ema)]

    @classmethod
    def misfit(cls, config: "SpeakerRecognition.Config", shapes: Mapping[str, Sequence[int]]) -> str | None:
        own = {n.removeprefix("encoder."): shape for n, shape in shapes.items() if n.startswith("encoder.")}
        return encoders.misfit(config.encoder, own)

    def transforms(self) -> dict[str, Transform]:
        c = self.config
        return {"wav": Waveform(c.seconds, c.sample_rate), "person": PersonNumber(most=c.people)}

    def asks(self) -> Mapping[str, Kind]:
        return {"wav": Sound(self.config.sample_rate, self.config.seconds, voice=True)}

    def makes(self) -> Mapping[str, Kind]:
        return {"embedding": Embedding(self._width)}

    @property
    def _width(self) -> int:
        """Of the embedding: that of all heads together."""
        return sum(cast(SpeakerHead, head).width for head in self.head)

    def exports(self) -> Exported:
        c = self.config
        samples, width = round(c.seconds * c.sample_rate), self._width
        return Exported(
            graph=VoiceToEmbedding(self.encoder, self.head),
            inputs={"wav": torch.zeros(2, samples)},
            makes="embedding",
            about=f"Encoder and heads: `wav`, float32 [B, {samples}] in [-1, 1], speech of {c.seconds:g} s at "
            f"{c.sample_rate} Hz (a shorter clip is repeated to that length), to `embedding`, float32 [B, {width}] of "
            "unit length: the cosine of two says how likely the speaker is the same; B is free.",
        )

    def _hidden(self, wav_BT: Tensor) -> list[Tensor]:
        return hidden_of(self.encoder, self.head, wav_BT)

    def _logits(self, hidden: Sequence[Tensor], person_B: Tensor | None = None) -> list[Tensor]:
        """The logits [B,N] of each head; with the margin of the loss for the people ``person_B``, if they are given."""
        loss, found = self.config.loss, [head(each) for head, each in zip(self.head, hidden, strict=True)]
        if not isinstance(loss, ArcFace):
            return found
        if person_B is not None:
            found = [with_margin(each, person_B, loss.margin) for each in found]
        return [loss.scale * each for each in found]

    def scores(self, wav_BT: Tensor) -> Tensor:
        """The mean of the heads' log-probabilities of each person, without a margin: [B,N]."""
        return _mean_log(self._logits(self._hidden(wav_BT)))

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        """The mean of the heads' cross-entropies, ``depth_i`` of each if there are several, and the accuracy.

        Samples of people who are not numbered (-1), which only validation reads, have the weight 0.
        """
        weight_B = batch["weight"] * (batch["person"] >= 0)
        person_B = batch["person"].clamp(min=0)
        hidden = self._hidden(batch["wav"])
        each = [
            weighted(F.cross_entropy(logit_BN, person_B, reduction="none"), weight_B)
            for logit_BN in self._logits(hidden, person_B)
        ]
        parts: Losses = {f"depth_{depth}": value for depth, value in enumerate(each)} if len(each) > 1 else {}
        with torch.no_grad():
            right_B = _mean_log(self._logits(hidden)).argmax(dim=1) == person_B
        return {"total": torch.stack(each).mean(), **parts, "accuracy": weighted(right_B.float(), weight_B)}

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        return {"embedding": joined(self._hidden(batch["wav"])).float()}

    @torch.no_grad()
    def meters(self, batches: Iterable[Batch]) -> dict[str, float]:
        """``accuracy`` and ``cross_entropy`` on held-out clips of people seen in training, ``eer`` (the equal error
        rate) on people not seen, ``distance`` (mean 1 - cos between people). What the batches cannot tell is left
        out."""
        found: dict[str, list[Tensor]] = {name: [] for name in ("embedding", "identity", "person", "right", "loss")}
        for batch in batches:
            hidden, person_B = self._hidden(batch["wav"]), batch["person"].clamp(min=0)
            log_BN = _mean_log(self._logits(hidden))
            own = {"embedding": joined(hidden), "identity": batch["identity"], "person": batch["person"]}
            own |= {"right": log_BN.argmax(1) == person_B, "loss": F.nll_loss(log_BN, person_B, reduction="none")}
            for name, value in own.items():
                found[name].append(value.cpu())
        whole = {name: torch.cat(values) for name, values in found.items()}
        known_M = whole["person"] >= 0
        meters = {"distance": metrics.identity_distance(whole["embedding"], whole["identity"])}
        if known_M.any():
            meters["accuracy"] = float(whole["right"][known_M].double().mean())
            meters["cross_entropy"] = float(whole["loss"][known_M].double().mean())
        trials = metrics.draw_trials(whole["identity"][~known_M])
        if trials.complete:
            points = metrics.operating_points(trials.scores(whole["embedding"][~known_M]), trials.same_T)
            meters["eer"] = metrics.equal_error_rate(*points)
        return {name: value for name, value in meters.items() if value == value}

    def verdict(self, meters: Mapping[str, float], history: Mapping[str, Sequence[float]]) -> str | None:
        if meters.get("distance", 1.0) < 0.001:
            return f"COLLAPSED: one embedding for every voice (mean distance between people {meters['distance']:.4f})"
        recent = list(history.get("loss/supervised/accuracy", ()))[-_POINTS:]
        accuracy = sum(recent) / max(1, len(recent))
        if len(recent) == _POINTS and accuracy <= 2 / self.config.people:
            return (
                f"AT CHANCE: {100 * accuracy:.2g} % of the training clips are recognized, a guess is right in "
                f"{100 / self.config.people:.2g} %; nothing has been learned yet"
            )
        return None


def _trained(encoder: encoders.AnyConfig) -> tuple[str, ...]:
    """The names of the modules that training changes."""
    return (*encoders.trained(encoder), "head")


def _mean_log(logits: Sequence[Tensor]) -> Tensor:
    """The mean of the heads' log-probabilities, [B,N]."""
    return torch.stack([each.log_softmax(dim=1) for each in logits]).mean(dim=0)
