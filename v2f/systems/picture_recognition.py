"""Picture recognition: the labels of a picture, several at once, and on request the known factors of a synthetic one.

    picture [B,C,H,H] -> backbone -> features [B,F] -> heads: a linear layer for each label -> scores [B,K]
                                               \\-> a linear layer -> factors [B,G]

It judges systems that make pictures from labels (``v2f eval RUN --classifier RUN``): do their pictures show the label
that was asked for, and do restyled pictures keep what the label does not say?

Shape letters: B batch, C channels, H side, F features, K classes of a label, G factors.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f.data.transforms import ClassNumber, Factors, Photo
from v2f.nn import picture_resnet
from v2f.nn.picture_resnet import ResNet50, SmallResNet
from v2f.roles import PictureReader, Reading
from v2f.system import (
    Batch,
    Kind,
    Label,
    Losses,
    Optimizer,
    Phase,
    Picture,
    SystemConfig,
    Transform,
    to_picture,
    weighted,
)
from v2f.world import people, shapes

_POINTS = 10  # logged points that the verdict on the accuracy looks at
_FACTORS: dict[str, tuple[str, ...]] = {"shape": shapes.NAMES, "face": people.FACE}


class PictureRecognition(PictureReader):
    """The whole system: one phase, which trains the backbone and the heads."""

    protocol = "labels_of_pictures"

    class Config(SystemConfig):
        name: Literal["picture_recognition"]
        image_size: int = Field(gt=0, description="side of the pictures in pixels")
        share: float = Field(1.0, gt=0, le=1, description="share of a picture's side, kept around its center")
        channels: Literal[1, 3] = Field(3, description="1: gray")
        labels: dict[str, list[str]] = Field(
            min_length=1, description="label, by its name in the shards -> its classes, in this order"
        )
        factors: Literal["shape", "face"] | None = Field(
            None, description="known factors of synthetic pictures that it estimates, too"
        )
        factor_weight: float = Field(1.0, ge=0, description="weight of their mean squared error")
        backbone: Annotated[SmallResNet | ResNet50, Field(discriminator="net")] = SmallResNet()
        bn_group: int = Field(16, gt=0, description="samples in each mean of batch norm")
        optimizer: Optimizer = Optimizer(lr={"backbone": 1e-3, "heads": 1e-3})
        ema: int | None = Field(None, gt=0, description="half-life of the moving average of the weights, in samples")

        @model_validator(mode="after")
        def _has_classes(self) -> "PictureRecognition.Config":
            for label, names in self.labels.items():
                if len(names) < 2 or len(set(names)) < len(names):
                    raise ValueError(f"labels.{label} needs at least two classes, each once; got {', '.join(names)}")
            self.optimizer.check(["backbone", "heads"])
            return self

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = picture_resnet.build(config.backbone, config.channels, config.bn_group)
        outputs = [*map(len, config.labels.values()), *([len(self.factors)] if config.factors else [])]
        self.heads = nn.ModuleList(nn.Linear(self.backbone.features, each) for each in outputs)

    @property
    def labels(self) -> Mapping[str, Sequence[str]]:
        return self.config.labels

    @property
    def factors(self) -> Sequence[str]:
        return _FACTORS[self.config.factors] if self.config.factors else ()

    def phases(self) -> list[Phase]:
        modules = {"backbone": self.backbone, "heads": self.heads}
        return [Phase(name="supervised", modules=modules, optimizer=self.config.optimizer, ema=self.config.ema)]

    def transforms(self) -> dict[str, Transform]:
        c = self.config
        reads: dict[str, Transform] = {"image": Photo(c.image_size, c.share, c.channels)}
        reads |= {f"label_{label}": ClassNumber(label, tuple(names)) for label, names in c.labels.items()}
        return reads | ({"factors": Factors(c.factors)} if c.factors else {})

    def asks(self) -> Mapping[str, Kind]:
        c = self.config
        return {"image": Picture(c.image_size, c.channels, c.share)}

    def makes(self) -> Mapping[str, Kind]:
        return {label: Label(tuple(names)) for label, names in self.labels.items()}

    def read(self, img_BCHW: Tensor) -> Reading:
        features_BF = self.backbone(img_BCHW)
        found = [head(features_BF) for head in self.heads]
        scores = dict(zip(self.labels, found, strict=False))  # factors, if any, are the last
        factors_BG = found[-1] if self.config.factors else features_BF[:, :0]
        return Reading(scores=scores, factors=factors_BG, features=features_BF)

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        """The sum over the labels of their cross-entropies, plus the weighted squared error of the factors."""
        weight_B = batch["weight"]
        found = self.read(to_picture(batch["image"], like=weight_B))
        parts: Losses = {}
        for label, score_BK in found.scores.items():
            parts[label] = weighted(F.cross_entropy(score_BK, batch[f"label_{label}"], reduction="none"), weight_B)
        total = torch.stack(list(parts.values())).sum()
        if self.config.factors:
            apart_B = (found.factors - batch["factors"].to(found.factors)).square().mean(1)
            parts["factors"] = weighted(apart_B, weight_B)
            total = total + self.config.factor_weight * parts["factors"]
        with torch.no_grad():
            right = [score_BK.argmax(1) == batch[f"label_{label}"] for label, score_BK in found.scores.items()]
            accuracy = weighted(torch.stack(right).to(total).mean(0), weight_B)
        return {"total": total, **parts, "accuracy": accuracy}

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        image = batch["image"]
        like = next(self.parameters())
        return {label: score_BK.float() for label, score_BK in self.read(to_picture(image, like=like)).scores.items()}

    @torch.no_grad()
    def meters(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The accuracy of each label and their mean; of the factors the share of their variance that is explained."""
        right: dict[str, list[Tensor]] = {label: [] for label in self.labels}
        estimated, true = [], []
        for batch in batches:
            found = self.read(to_picture(batch["image"], like=next(self.parameters())))
            for label, score_BK in found.scores.items():
                right[label].append((score_BK.argmax(1) == batch[f"label_{label}"]).double())
            if self.config.factors:
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
            f"in {100 * chance:.0f} %; check that `labels` fit the pictures, or lower the learning rate"
        )
