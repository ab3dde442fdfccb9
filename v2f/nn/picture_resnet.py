"""Residual networks of pictures, whose batch norm is that of fixed groups: picture -> features.

    picture [B,C,H,H] -> stem -> stages of residual blocks, each halving the side -> mean over each cell -> [B,F]

He et al. 2016, "Deep residual learning for image recognition" (arXiv 1512.03385): the small one has the blocks of two
convolutions of section 3.3; the large one is the ResNet-50 of table 1, as torchvision builds it. The small one averages
over a grid of cells instead of the whole map, so that its features say where something is. A ResNet-50 with published
weights keeps their statistics instead of ghost norms.

Letters: B batch, C channels, H side of the picture, F features.
"""

import contextlib
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from v2f.config import Config
from v2f.nn.batchnorm import GhostBatchNorm
from v2f.nn.strict import fill

RESNET50_FEATURES = 2048
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0,1], by torchvision


class SmallResNet(Config):
    """Blocks of two 3x3 convolutions."""

    net: Literal["small"] = "small"
    width: int = Field(32, gt=0, description="channels of the first stage; each later one has twice as many")
    blocks: list[int] = Field([1, 1, 1], min_length=1, description="blocks of each stage; a stage halves the side")
    grid: int = Field(4, gt=0, description="cells a side over which the last map is averaged; 1: the whole map")


class ResNet50(Config):
    """ResNet-50: 23,508,032 parameters without a head."""

    net: Literal["resnet50"]


class Backbone(nn.Module):
    """Pictures [B,C,H,H] in [-1,1] -> features [B,F]; ``features`` is F."""

    def __init__(self, body: nn.Module, features: int, grid: int | None = None) -> None:
        super().__init__()
        self.body, self.features, self._grid = body, features, grid

    def forward(self, img_BCHH: Tensor) -> Tensor:
        x = self.body(img_BCHH.contiguous(memory_format=torch.channels_last))
        if self._grid is not None:
            x = F.adaptive_avg_pool2d(x, self._grid)
        features_BF: Tensor = x.flatten(1)
        return features_BF


class Block(nn.Module):
    """Two convolutions and a shortcut, which is a 1x1 convolution because channels and side change or, without a
    stride, the input itself."""

    def __init__(self, inputs: int, outputs: int, stride: int, group: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = GhostBatchNorm(outputs, group)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = GhostBatchNorm(outputs, group)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), GhostBatchNorm(outputs, group)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def build(config: SmallResNet | ResNet50, channels: int, bn_group: int) -> Backbone:
    """A network of pictures of ``channels`` channels with new weights; ``bn_group``: samples in each mean of batch
    norm."""
    if isinstance(config, ResNet50):
        from torchvision.models import resnet50  # imported late: it takes a second

        net = resnet50(norm_layer=partial(GhostBatchNorm, group=bn_group))
        if channels != 3:
            net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        net.fc = nn.Identity()
        return Backbone(net, RESNET50_FEATURES)
    widths = [config.width * 2**stage for stage in range(len(config.blocks))]
    layers: list[nn.Module] = [
        nn.Conv2d(channels, config.width, 3, padding=1, bias=False),
        GhostBatchNorm(config.width, bn_group),
        nn.ReLU(),
    ]
    for (inputs, outputs), count in zip(pairwise([config.width, *widths]), config.blocks, strict=True):
        layers.append(Block(inputs, outputs, 2, bn_group))
        layers += [Block(outputs, outputs, 1, bn_group) for _ in range(count - 1)]
    return Backbone(nn.Sequential(*layers), widths[-1] * config.grid**2, config.grid)


class KeptNorm(GhostBatchNorm):
    """Batch norm that computes as in evaluation, also in training: it keeps the statistics that it was given."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, group=1)
        self.train()

    def train(self, mode: bool = True) -> "KeptNorm":
        super().train(False)
        return self


class ImageNetScale(nn.Module):
    """Pictures in [-1,1] -> the range in which torchvision's networks were trained."""

    def forward(self, img_B3HH: Tensor) -> Tensor:
        mean_311, deviation_311 = (img_B3HH.new_tensor(each)[:, None, None] for each in (_MEAN, _DEVIATION))
        return (img_B3HH * 0.5 + 0.5 - mean_311) / deviation_311


def published(state: Mapping[str, Tensor] | None = None, where: str = "") -> Backbone:
    """torchvision's ResNet-50 with the weights ``state`` of a file ``where``, or without a file with random ones, which
    start as an identity in every block.

    V2FError unless every tensor but those of ``fc``, the head, has torchvision's name, shape and type, and no other is
    there. The counters ``num_batches_tracked``, which older files lack, are ignored.
    """
    from torchvision.models import resnet50  # imported late: it takes a second

    with torch.device("meta") if state is not None else contextlib.nullcontext():  # a file says everything
        net = resnet50(norm_layer=KeptNorm, zero_init_residual=True)
    net.fc = nn.Identity()
    if state is not None:
        own = {
            name: tensor
            for name, tensor in state.items()
            if not name.startswith("fc.") and not name.endswith(".num_batches_tracked")
        }
        fill(net, own, where, "torchvision's resnet50")
    return Backbone(nn.Sequential(ImageNetScale(), net), RESNET50_FEATURES)
