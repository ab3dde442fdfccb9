"""Mapping networks that make all styles from one vector of the voice, such as a speaker embedding.

    deepest map [B,E,T] -> one vector [B,E] -> a small net for each style, or one matrix for all -> w [B,L,D]

Letters: B batch, E width of the vector, T frames, C channels, N positions along the vector, L styles, D style width.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f.config import Config
from v2f.errors import V2FError
from v2f.nn import at_least_float32
from v2f.nn.mapping import SLOPE, InitGain, MappingNetwork, last_layer
from v2f.nn.resnet import Activation, Conv, activation

Pool = Literal["none", "mean", "max"]


class VectorConfig(Config):
    """The keys of every mapping here."""

    net: str
    init_gain: InitGain = 1.0


class VectorCascade(MappingNetwork):
    """The thesis's mapping of an ECAPA-TDNN embedding (section 5.4.4), a small convolutional network for each style.

    The vector is a signal of one channel and E = 192 positions. A cascade of strided convolutions reduces it to one
    position and 512 channels. "A few adjustments", which the thesis does not name, make the style of them: here
    StyleGAN's equalised linear layer, as in :class:`v2f.nn.mapping.Vec2Style`. In the thesis, 18 such networks on a
    frozen encoder soon gave one face for every voice.
    """

    class Config(VectorConfig):
        """The thesis tells of the layers only where they begin and end; the defaults between are ours. They bring any
        vector of up to 256 numbers to one position, and have 1,134,208 parameters for each style of width 512."""

        net: Literal["vector_cascade"] = "vector_cascade"
        channels: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [32, 64, 128, 256, 512]
        strides: list[Annotated[int, Field(ge=1)]] = [4, 4, 4, 2, 2]
        kernel: Annotated[int, Field(ge=1)] = 5
        activation: Activation = "leaky_relu"
        pool: Pool = Field("none", description="over the positions that the strides leave, if they leave several")

        @model_validator(mode="after")
        def _fits(self) -> "VectorCascade.Config":
            if len(self.channels) != len(self.strides):
                raise ValueError("channels and strides need one entry per layer")
            if self.kernel % 2 == 0:
                raise ValueError(f"kernel {self.kernel} is even; set an odd one, which keeps the length")
            return self

        def positions(self, width: int) -> int:
            """What the strides leave of a vector of this width."""
            for stride in self.strides:
                width = -(-width // stride)
            return width

    def __init__(self, config: "VectorCascade.Config", channels: Sequence[int], n_styles: int, style_dim: int) -> None:
        """V2FError if the strides leave several positions and ``pool`` is none."""
        super().__init__()
        left = config.positions(channels[-1])
        if left > 1 and config.pool == "none":
            raise V2FError(
                f"system.mapping: the strides leave {left} positions of the encoder's vector of {channels[-1]}, and "
                "pool is none; set larger strides, more layers, or pool: mean (or max)"
            )
        self.config = config
        self.styles = nn.ModuleList(_Cascade(config, style_dim) for _ in range(n_styles))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """V2FError if the deepest map has several frames."""
        frames = maps[-1].shape[2]
        if frames != 1:
            raise V2FError(
                f"system.mapping: vector_cascade takes one vector, but the encoder's deepest map has {frames} frames; "
                "set system.encoder.output=vector if the encoder has that key, else system.mapping.net=linear"
            )
        vector_B11E = maps[-1].transpose(1, 2)[:, None]
        return torch.stack([style(vector_B11E) for style in self.styles], dim=1)


class _Cascade(nn.Module):
    """One style from the vector: [B,1,1,E] -> convolutions [B,C,1,N] -> [B,C] -> [B,D]."""

    def __init__(self, config: VectorCascade.Config, style_dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for (inputs, outputs), stride in zip(pairwise([1, *config.channels]), config.strides, strict=True):
            layers += [
                Conv(inputs, outputs, config.kernel, stride, bias=True),
                activation(config.activation, outputs, SLOPE),
            ]
        self.convs = nn.Sequential(*layers)
        self.pool = config.pool
        self.linear = last_layer(config.channels[-1], style_dim, config.init_gain)

    def forward(self, vector_B11E: Tensor) -> Tensor:
        x_BC1N = self.convs(vector_B11E)
        pooled_BC = x_BC1N.amax((2, 3)) if self.pool == "max" else at_least_float32(x_BC1N).mean((2, 3))
        w_BD: Tensor = self.linear(pooled_BC)
        return w_BD


class LinearMapping(MappingNetwork):
    """All styles from one vector by StyleGAN's equalised linear layer; a deepest map of several frames is averaged.

    The smallest mapping (ours), to compare the others with. It has 1,778,688 parameters for a vector of 192 numbers and
    18 styles of 512.
    """

    class Config(VectorConfig):
        net: Literal["linear"] = "linear"

    def __init__(self, config: "LinearMapping.Config", channels: Sequence[int], n_styles: int, style_dim: int) -> None:
        super().__init__()
        self.linear = last_layer(channels[-1], n_styles * style_dim, config.init_gain)
        self._shape = (n_styles, style_dim)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        w_BLD: Tensor = self.linear(at_least_float32(maps[-1]).mean(dim=2)).unflatten(1, self._shape)
        return w_BLD
