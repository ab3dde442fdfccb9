"""Mapping networks of the voice-styled-face system: a voice encoder's maps -> a style for each layer of the generator.

    maps [B,C_i,T_i], shallow ones first -> MappingNetwork -> w [B,L,D], an offset from the generator's mean style

Letters: B batch, C channels, T frames, L styles, D style width.
"""

import abc
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from v2f.config import Config
from v2f.errors import V2FError
from v2f.nn.resnet import Conv
from v2f.nn.stylegan2 import EqualLinear

SLOPE = 0.01  # of the leaky ReLU, as in pSp's map2style (Richardson et al. 2021, arXiv 2008.00951, section 3)
InitGain = Annotated[
    float, Field(gt=0, description="factor on the last layers' initial weights; if small, all faces start as the mean")
]


class Groups(Config):
    """Which map each style reads, as in pSp: coarse styles read the deepest one, fine styles the shallowest."""

    coarse: Annotated[int, Field(ge=0)] = 3  # styles from the deep map
    middle: Annotated[int, Field(ge=0)] = 4  # styles from the middle map; the others read the shallow one

    def map_of(self, style: int, maps: int) -> int:
        """The number of the map that a style reads. The middle one of an even number is the deeper of two."""
        if style < self.coarse:
            return maps - 1
        return maps // 2 if style < self.coarse + self.middle else 0


def last_layer(inputs: int, outputs: int, init_gain: float) -> EqualLinear:
    """StyleGAN's equalised linear layer, whose initial weights are multiplied by ``init_gain``."""
    linear = EqualLinear(inputs, outputs)
    with torch.no_grad():
        linear.weight.mul_(init_gain)
    return linear


class MappingNetwork(nn.Module, abc.ABC):
    """Maps [B,C_i,T_i] -> styles w [B,L,D]."""

    @abc.abstractmethod
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The styles."""


class Vec2Style(nn.Module):
    """One style from one map: [B,C,T] -> ``convs`` times (Conv1d, leaky ReLU) -> the maximum over time -> [B,D].

    The first convolution brings C channels to ``width``. The last layer is StyleGAN's equalized linear layer. Two
    convolutions of 512 channels and 3 taps and a style width of 512 have 1,836,544 parameters.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        style_dim: int,
        convs: int,
        kernel: int,
        stride: int,
        init_gain: float = 1.0,
    ) -> None:
        super().__init__()
        widths = [channels, *[width] * convs]
        self.convs = nn.ModuleList(
            Conv(inputs, outputs, kernel, stride, bias=True) for inputs, outputs in pairwise(widths)
        )
        self.linear = last_layer(widths[-1], style_dim, init_gain)

    def forward(self, x_BCT: Tensor) -> Tensor:
        x = x_BCT[:, :, None]
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
        # Equal results; ONNX has no adaptive pooling, and amax has another gradient for ties.
        loudest_BC = x.amax((2, 3)) if torch.compiler.is_exporting() else F.adaptive_max_pool2d(x, 1).flatten(1)
        w_BD: Tensor = self.linear(loudest_BC)
        return w_BD


class StyleMapping(MappingNetwork):
    """The thesis's mapping: a :class:`Vec2Style` for each style, on the map of its group (:class:`Groups`).

    18 full-size styles on maps of 512 channels have 33,057,792 parameters. The styles run one after another: grouped
    convolutions were not faster, on one core or two.
    """

    class Config(Groups):
        """The defaults are the thesis's final mapping; ``stride`` is reconstructed."""

        net: Literal["vec2style"] = "vec2style"
        convs: Annotated[int, Field(ge=0)] = 2
        kernel: Annotated[int, Field(ge=1)] = 3
        stride: Annotated[int, Field(ge=1)] = 2
        width: int | None = Field(None, gt=0, description="channels of the convolutions; null: those of the map")
        init_gain: InitGain = 1.0

    def __init__(self, config: "StyleMapping.Config", channels: Sequence[int], n_styles: int, style_dim: int) -> None:
        super().__init__()
        if config.kernel % 2 == 0:
            raise V2FError(f"mapping: kernel {config.kernel} is even; set an odd one, which keeps the length")
        self._reads = [config.map_of(style, len(channels)) for style in range(n_styles)]
        self.styles = nn.ModuleList(
            Vec2Style(
                channels[read],
                channels[read] if config.width is None else config.width,
                style_dim,
                config.convs,
                config.kernel,
                config.stride,
                config.init_gain,
            )
            for read in self._reads
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return torch.stack([style(maps[read]) for style, read in zip(self.styles, self._reads, strict=True)], dim=1)
