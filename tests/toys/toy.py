"""What the toys share: one linear net, one phase, the mean squared error to a target. Each toy is a kind of system."""

import abc
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2f.system import Batch, Judged, Losses, Optimizer, Phase, System, SystemConfig, weighted

RATE, SECONDS, SIDE = 4000, 0.1, 8
FRAMES = round(RATE * SECONDS)
LABELS = ("cat", "dog", "owl")


class ToyConfig(SystemConfig):
    name: Literal[
        "voice_picture", "voice_noise_picture", "noise_picture", "label_picture", "label_sound", "photo_sound",
        "voice_label",
        "voice_embedding", "tokens_tokens",
    ]  # fmt: skip


class Toy(System):
    """Abstract: a toy defines what its net reads (:meth:`inputs`) and what it should output (:meth:`target`)."""

    Config = ToyConfig
    sizes: tuple[int, int]

    def __init__(self, config: SystemConfig) -> None:
        super().__init__()
        inputs, outputs = self.sizes
        self.net = nn.Linear(inputs, outputs)

    @abc.abstractmethod
    def inputs(self, batch: Batch) -> Tensor:
        """[B, inputs]."""

    @abc.abstractmethod
    def target(self, batch: Batch) -> Tensor:
        """[B, outputs] in [-1, 1]."""

    def phases(self) -> list[Phase]:
        return [Phase(name="all", modules={"net": self.net}, optimizer=Optimizer(lr={"net": 3e-2}), ema=32)]

    def made(self, batch: Batch) -> Tensor:
        return torch.tanh(self.net(self.inputs(batch)))

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        apart_B = (self.made(batch) - self.target(batch)).square().mean(1)
        return {"total": weighted(apart_B, batch["weight"])}

    def meters(self, batches: Iterable[Batch]) -> dict[str, float]:
        return {"spread": float(torch.cat([self.made(batch) for batch in batches]).std(0).mean())}


class Seeing(Judged):
    """Its judge sees pixels, so every number is a function of the picture alone."""

    def embed(self, img_B3HW: Tensor) -> Tensor:
        return F.normalize(F.adaptive_avg_pool2d(img_B3HW, 4).flatten(1) + 1e-3)

    def maps(self, img_B3HW: Tensor) -> list[Tensor]:
        return [img_B3HW]
