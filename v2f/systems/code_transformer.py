"""Codes of sounds from a class or from coarser codes: one level of the codes of a VQ-VAE-2, drawn one after the other.

    class ------> encoder-decoder Transformer -> top codes [B,T]
    top codes --> another one of the same kind -> bottom codes [B,T]

The document (2024, after Im2Wav, arXiv 2211.03089) trains two such Transformers of equal size apart, on the codes that
a coder of sounds has stored in the shards (``v2f shards precompute --tokens RUN``). Which of the two this is, ``level``
and ``classes`` say; with ``level: bottom`` and classes, it draws the codes of a flat VQ-VAE from a class.

Shape letters: B batch, S condition, T codes, V vocabulary.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from v2f.data.codes import StoredTokens
from v2f.data.transforms import ClassNumber, NoiseVector, UniformVector
from v2f.nn.code_transformer import Decoding, TokenTransformer
from v2f.nn.sampling import Sampling, pick
from v2f.roles import CodePredictor, CodeScores
from v2f.system import Batch, Kind, Label, Losses, Noise, Optimizer, Phase, SystemConfig, Tokens, Transform, weighted

_POINTS = 10  # logged points before there is a verdict
_OVERFIT = 0.5  # nats a code
_ROWS = 8  # sequences that are scored at once: their logits take 0.24 GB at 3,600 codes
_BELOW_1 = 1 - 2**-24  # the largest float32 below 1


class CodeTransformer(CodePredictor):
    """The whole system: one phase, which trains the Transformer."""

    protocol = "codes"

    class Config(SystemConfig):
        name: Literal["code_transformer"]
        level: Literal["top", "bottom"] = Field(description="the codes that it draws")
        length: int = Field(gt=0, description="codes of a sound in this level")
        top: int | None = Field(None, gt=0, description="for bottom codes from top codes: the top codes of a sound")
        label: str = Field("class", min_length=1, description="the label of the condition, by its name in the shards")
        classes: list[str] | None = Field(
            None, min_length=2, description="the condition is a class, one of these; null: the top codes"
        )
        vocabulary: int = Field(2048, gt=1, description="entries of the coder's codebook")
        width: int = Field(100, gt=0, description="of a token's vector")
        heads: int = Field(4, gt=0, description="of each attention")
        layers: list[int] = Field([6, 12], min_length=2, max_length=2, description="of encoder and decoder")
        ff: int = Field(1024, gt=0, description="width of the feed-forward layers")
        norm_first: bool = Field(False, description="norms before attention and feed-forward, not after each sum")
        aligned: bool = Field(
            False, description="the encoder's output at the same place in time is added to the decoder's input"
        )
        shared: bool = Field(True, description="encoder and decoder have one embedding, as in the document")
        masked: float = Field(
            0.0, ge=0, lt=1, description="share of the codes that the decoder reads as MASKED in training, by slot"
        )
        dropout: float = Field(0.0, description="only 0; see masked")
        sampling: Sampling = Field(Sampling(), description="how samples are drawn: validation, v2f generate")
        optimizer: Optimizer = Optimizer(lr={"transformer": 1e-3}, betas=[0.9, 0.98])
        ema: int | None = Field(None, gt=0, description="half-life of the moving average of the weights, in samples")

        @model_validator(mode="after")
        def _fits(self) -> "CodeTransformer.Config":
            if self.width % self.heads or self.width % 2:
                raise ValueError(f"width {self.width} is not an even multiple of the {self.heads} heads")
            if min(self.layers) < 1:
                raise ValueError(f"layers are {self.layers}; encoder and decoder need at least one each")
            if self.dropout:
                raise ValueError(
                    f"dropout is {self.dropout:g}, but its masks would not belong to a slot, so a step would depend on "
                    "ranks; set it to 0, and masked, whose choices are keyed"
                )
            self._check_condition()
            self.optimizer.check(["transformer"])
            return self

        def _check_condition(self) -> None:
            if (self.classes is None) == (self.top is None):
                raise ValueError("set either classes, for codes from a class, or top, for codes from top codes")
            if self.top is not None and (self.level == "top" or self.length % self.top):
                raise ValueError(
                    f"{self.length} {self.level} codes from {self.top} top codes: only bottom codes can be drawn from "
                    "top codes, a whole number for each"
                )
            if self.classes is not None and len(set(self.classes)) < len(self.classes):
                raise ValueError("classes names a class twice; remove one")
            if self.classes is not None and len(self.classes) > self.vocabulary:
                raise ValueError(f"{len(self.classes)} classes need a vocabulary of as many, it is {self.vocabulary}")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.transformer = TokenTransformer(
            config.vocabulary,
            config.top,
            config.length,
            width=config.width,
            heads=config.heads,
            layers=(config.layers[0], config.layers[1]),
            ff=config.ff,
            norm_first=config.norm_first,
            aligned=config.aligned,
            shared=config.shared,
        )

    @property
    def _condition(self) -> str:
        return "top" if self.config.classes is None else "label"

    def phases(self) -> list[Phase]:
        c, modules = self.config, {"transformer": self.transformer}
        return [Phase(name="supervised", modules=modules, optimizer=c.optimizer, ema=c.ema)]

    def transforms(self) -> dict[str, Transform]:
        c = self.config
        reads: dict[str, Transform] = {
            c.level: StoredTokens(c.level, c.length, c.vocabulary),
            "noise": NoiseVector(c.length),
        }
        if c.classes is not None:
            reads["label"] = ClassNumber(c.label, tuple(c.classes))
        if c.top is not None:
            reads["top"] = StoredTokens("top", c.top, c.vocabulary)
        if c.masked:
            reads["keep"] = UniformVector(c.length)
        return reads

    def asks(self) -> Mapping[str, Kind]:
        c = self.config
        condition: Kind = Tokens(c.top or 0, c.vocabulary) if c.classes is None else Label(tuple(c.classes))
        return {self._condition: condition, "noise": Noise(c.length)}

    def makes(self) -> Mapping[str, Kind]:
        return {self.config.level: self.target}

    @property
    def target(self) -> Tokens:
        return Tokens(self.config.length, self.config.vocabulary)

    # --------------------------------------------------------------------------------------------- training

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        """The mean cross-entropy in nats of all codes and END, and of the codes alone."""
        code_BT, net = batch[self.config.level], self.transformer
        read_BT = code_BT
        if self.training and self.config.masked:
            read_BT = code_BT.where(batch["keep"] >= self.config.masked, net.masked)
        logits_BTV = net(self._conditions(batch), F.pad(read_BT, (1, 0), value=net.begin))
        wanted_BT = F.pad(code_BT, (0, 1), value=net.end)
        nats_BT = F.cross_entropy(logits_BTV.transpose(1, 2), wanted_BT, reduction="none")
        weight_B = batch["weight"]
        return {
            "total": weighted(nats_BT.mean(1), weight_B),
            "codes": weighted(nats_BT[:, :-1].mean(1).detach(), weight_B),
        }

    def _conditions(self, batch: Batch) -> Tensor:
        """[B,S]: the classes or the top codes of a batch."""
        condition: Tensor = batch[self._condition]
        return condition[:, None] if self.config.classes is not None else condition

    @torch.no_grad()
    def score(self, condition_BS: Tensor, code_BT: Tensor) -> CodeScores:
        nats, rank = [], []
        for condition, code in zip(condition_BS.split(_ROWS), code_BT.split(_ROWS), strict=True):
            read = F.pad(code[:, :-1], (1, 0), value=self.transformer.begin)
            logits = self.transformer(condition, read).float()
            own = logits.gather(2, code[..., None])
            nats.append((logits.logsumexp(2, keepdim=True) - own)[..., 0])
            rank.append((logits > own).sum(2))
        return CodeScores(nats=torch.cat(nats), rank=torch.cat(rank))

    @torch.no_grad()
    def meters(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Of held-out codes: nats a code and perplexity, the share that was thought likeliest or among the five
        likeliest, and the perplexity of their frequencies, which a net reaches that ignores what it reads."""
        nats, rank, codes = [], [], []
        for batch in batches:
            found = self.score(self._conditions(batch), batch[self.config.level])
            nats.append(found.nats.double().flatten())
            rank.append(found.rank.flatten())
            codes.append(batch[self.config.level].flatten())
        cross_entropy = torch.cat(nats).mean()
        share_V = torch.cat(codes).bincount().double() / sum(map(len, codes))
        return {
            "cross_entropy": float(cross_entropy),
            "perplexity": float(cross_entropy.exp()),
            "accuracy": float((torch.cat(rank) < 1).double().mean()),
            "accuracy_5": float((torch.cat(rank) < 5).double().mean()),
            "perplexity_of_frequencies": float(torch.special.entr(share_V).sum().exp()),
        }

    def verdict(self, meters: Mapping[str, float], history: Mapping[str, Sequence[float]]) -> str | None:
        """Whether held-out codes are predicted no better than by their frequencies, or much worse than those of
        training, after ten logged points."""
        logged = [*history.get("loss/supervised/codes", ())]
        if len(logged) < _POINTS:
            return None
        if meters["perplexity"] >= meters["perplexity_of_frequencies"]:
            return (
                f"NOT LEARNING: the perplexity of held-out codes is {meters['perplexity']:.4g}, that of their "
                f"frequencies alone {meters['perplexity_of_frequencies']:.4g}; train longer, or change the rate"
            )
        ahead = meters["cross_entropy"] - sum(logged[-_POINTS:]) / _POINTS
        if ahead <= _OVERFIT:
            return None
        return (
            f"OVERFITTING: held-out codes take {ahead:.2f} nats more than those of training; stop earlier, use more "
            "data, a smaller width, or a larger system.masked"
        )

    # ---------------------------------------------------------------------------------------------- drawing

    @torch.no_grad()
    def draw(self, condition_BS: Tensor, uniform_BT: Tensor, how: Sampling) -> Tensor:
        net, (batch, length) = self.transformer, uniform_BT.shape
        assert length == self.config.length, f"{length} numbers for {self.config.length} codes"
        decoding = Decoding(net, condition_BS)
        token_B = torch.full((batch,), net.begin, device=condition_BS.device)
        drawn = []
        for uniform_B in uniform_BT.unbind(1):
            token_B = pick(decoding.step(token_B)[:, : net.codes], uniform_B, how)
            drawn.append(token_B)
        return torch.stack(drawn, 1)

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """The numbers that decide are the normal distribution's shares below the noise."""
        uniform_BT = torch.special.ndtr(batch["noise"].double()).clamp(max=_BELOW_1)
        return {self.config.level: self.draw(self._conditions(batch), uniform_BT, self.config.sampling)}
