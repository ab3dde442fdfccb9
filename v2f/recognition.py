"""What the systems that read labels have in common: a backbone, heads on its features, their loss and meters.

    picture or sound -> backbone -> features [B,F] -> heads: a linear layer for each label -> scores [B,K]
                                                 \\-> a linear layer -> factors [B,G]

Shape letters: B batch, F features, K classes of a label, G factors.
"""

import abc
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f.roles import Reader, Reading
from v2f.system import Batch, Kind, Label, Losses, Optimizer, Phase, SystemConfig, weighted
from v2f.world import people, shapes, things

_POINTS = 10  # logged points that the verdict on the accuracy looks at
_FACTORS: dict[str, tuple[str, ...]] = {
    "shape": shapes.NAMES,
    "face": people.FACE,
    "voice": people.VOICE,
    "picture": things.PICTURE,
    "sound": things.SOUND,
}


class RecognitionConfig(SystemConfig):
    """The keys of a system that reads labels."""

    labels: dict[str, list[str]] = Field(
        min_length=1, description="label, by its name in the shards -> its classes, in this order"
    )
    factors: str | None = Field(None, description="known factors of synthetic samples that it estimates, too")
    factor_weight: float = Field(1.0, ge=0, description="weight of their mean squared error")
    bn_group: int = Field(16, gt=0, description="samples in each mean of batch norm")
    optimizer: Optimizer = Optimizer(lr={"backbone": 1e-3, "heads": 1e-3})
    ema: int | None = Field(None, gt=0, description="half-life of the moving average of the weights, in samples")

    @property
    def trained(self) -> tuple[str, ...]:
        """The names of the modules that training changes."""
        return ("backbone", "heads")

    @model_validator(mode="after")
    def _has_classes(self) -> "RecognitionConfig":
        for label, names in self.labels.items():
            if len(names) < 2 or len(set(names)) < len(names):
                raise ValueError(f"labels.{label} needs at least two classes, each once; got {', '.join(names)}")
        self.optimizer.check(self.trained)
        return self


class Recognition(Reader):
    """A system of one phase that trains the heads and, if so configured, the backbone. Subclasses are final."""

    config: RecognitionConfig
    backbone: nn.Module
    heads: nn.ModuleList

    @abc.abstractmethod
    def reading(self, batch: Batch) -> Reading:
        """What it reads in the pictures or sounds of a batch."""

    def new_heads(self, features: int) -> nn.ModuleList:
        """A linear layer for each label and, if they are estimated, one for the factors."""
        outputs = [*map(len, self.labels.values()), *([len(self.factors)] if self.factors else [])]
        return nn.ModuleList(nn.Linear(features, each) for each in outputs)

    def read_off(self, features_BF: Tensor) -> Reading:
        """What the heads say of features."""
        found = [head(features_BF) for head in self.heads]
        scores = dict(zip(self.labels, found, strict=False))  # factors, if any, are the last
        factors_BG = found[-1] if self.factors else features_BF[:, :0]
        return Reading(scores=scores, factors=factors_BG, features=features_BF)

    @property
    def labels(self) -> Mapping[str, Sequence[str]]:
        return self.config.labels

    @property
    def factors(self) -> Sequence[str]:
        return _FACTORS[self.config.factors] if self.config.factors else ()

    def phases(self) -> list[Phase]:
        modules = {name: getattr(self, name) for name in self.config.trained}
        return [Phase(name="supervised", modules=modules, optimizer=self.config.optimizer, ema=self.config.ema)]

    def makes(self) -> Mapping[str, Kind]:
        return {label: Label(tuple(names)) for label, names in self.labels.items()}

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        """The sum over the labels of their cross-entropies, plus the weighted squared error of the factors."""
        weight_B = batch["weight"]
        found = self.reading(batch)
        parts: Losses = {}
        for label, score_BK in found.scores.items():
            parts[label] = weighted(F.cross_entropy(score_BK, batch[f"label_{label}"], reduction="none"), weight_B)
        total = torch.stack(list(parts.values())).sum()
        if self.factors:
            apart_B = (found.factors - batch["factors"].to(found.factors)).square().mean(1)
            parts["factors"] = weighted(apart_B, weight_B)
            total = total + self.config.factor_weight * parts["factors"]
        with torch.no_grad():
            right = [score_BK.argmax(1) == batch[f"label_{label}"] for label, score_BK in found.scores.items()]
            accuracy = weighted(torch.stack(right).to(total).mean(0), weight_B)
        return {"total": total, **parts, "accuracy": accuracy}

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        return {label: score_BK.float() for label, score_BK in self.reading(batch).scores.items()}

    @torch.no_grad()
    def meters(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The accuracy of each label and their mean; of the factors the share of their variance that is explained."""
        right: dict[str, list[Tensor]] = {label: [] for label in self.labels}
        estimated, true = [], []
        for batch in batches:
            found = self.reading(batch)
            for label, score_BK in found.scores.items():
                right[label].append((score_BK.argmax(1) == batch[f"label_{label}"]).double())
            if self.factors:
                estimated.append(found.factors.double())
                true.append(batch["factors"].double())
        meters = {f"accuracy_{label}": float(torch.cat(parts).mean()) for label, parts in right.items()}
        meters["accuracy"] = sum(meters.values()) / len(meters)
        if true:
            true_NG, found_NG = torch.cat(true), torch.cat(estimated)
            rest = (found_NG - true_NG).square().sum() / (true_NG - true_NG.mean(0)).square().sum()
            meters["factors_explained"] = float(1 - rest)
        return meters

    def verdict(self, meters: Mapping[str, float], history: Mapping[str, Sequence[float]]) -> str | None:
        """Whether the training accuracy is no better than a guess after ten logged points."""
        logged = [*history.get("loss/supervised/accuracy", ())]
        chance = sum(1 / len(names) for names in self.labels.values()) / len(self.labels)
        if len(logged) < _POINTS or max(logged[-_POINTS:]) > 1.5 * chance:
            return None
        return (
            f"NOT LEARNING: the labels are right in {100 * sum(logged[-_POINTS:]) / _POINTS:.0f} % of cases, a guess "
            f"in {100 * chance:.0f} %; check that `labels` fit the samples, or lower the learning rate"
        )
