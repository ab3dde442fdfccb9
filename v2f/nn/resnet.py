"""Residual networks with maps at three depths, as in pSp: what the voice encoders that we train have in common.

    wave [B,T] -> signal [B,I,F,T'] -> stem -> stages of residual blocks
      -> three maps [B,C,T_i], shallow (long), middle, deep (short)

- stem: convolution, batch norm, activation;
- block: batch norm, convolution, activation, convolution (this one has the stride, as in ArcFace's improved residual
  block), batch norm; times ``residual_scale``; plus the shortcut;
- shortcut: convolution of 1 tap with the stride, and batch norm, where the channels change; else max-pool by the
  stride; nothing where neither changes;
- maps are taken after the last three stages and averaged over F. 1x1 laterals *with* bias bring them to the output
  width; the deepest needs none if it already has it. Each deeper map is stretched to the next length and added.

Letters: B batch, T samples or frames, F frequencies (1 if there are none), C/I/O channels. A signal is [B,C,F,T] with
channels last, in which the CPU's and the GPU's convolutions are fastest (up to twice as fast as [B,C,T] on a CPU).
"""

import abc
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f.config import Config
from v2f.errors import V2FError
from v2f.nn import upsample_add
from v2f.nn.batchnorm import GhostBatchNorm
from v2f.nn.voice import VoiceEncoder

Activation = Literal["prelu", "leaky_relu"]
Dims = Literal[1, 2]
"""The axes that a network convolves over: time, or frequencies and time."""
SLOPE = 0.25  # of the leaky ReLU: the initial slope of PReLU (He et al. 2015, arXiv 1502.01852, section 2.1)


class Conv(nn.Conv1d):
    """``Conv1d`` with "same" padding for [B,C,1,T]; its parameters are those of ``Conv1d``."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)

    def forward(self, x_BI1T: Tensor) -> Tensor:
        return F.conv2d(x_BI1T, self.weight[:, :, None], self.bias, (1, *self.stride), (0, self.kernel_size[0] // 2))


def convolution(dims: Dims, inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Module:
    """A convolution of [B,C,F,T] with "same" padding: over time, or a square one with the stride in both axes."""
    if dims == 1:
        return Conv(inputs, outputs, kernel, stride, bias)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)


class PReLU(nn.PReLU):
    """PReLU with a slope for each channel, in the precision of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.weight.to(x.dtype))


def activation(name: Activation, channels: int, slope: float = SLOPE) -> nn.Module:
    """PReLU with a slope for each channel, or a leaky ReLU without parameters (ten times as fast on a CPU)."""
    return PReLU(channels) if name == "prelu" else nn.LeakyReLU(slope)


class ResNetConfig(Config):
    """The keys of every encoder here; ``strides`` are those of the first block of each stage."""

    net: str
    channels: Annotated[list[int], Field(min_length=3)] = [64, 128, 256, 512]
    blocks: list[Annotated[int, Field(ge=1)]] = [11, 9, 6, 6]
    strides: list[Annotated[int, Field(ge=1)]]
    kernel: int = 9
    stem_kernel: int
    stem_stride: Annotated[int, Field(ge=1)]
    stem_activation: Activation = "prelu"
    block_activation: Activation = "prelu"
    residual_scale: Annotated[float, Field(gt=0, le=1)] = 0.2
    out_channels: Annotated[int, Field(ge=1)] = 512
    conv_bias: bool = False
    bn_group: Annotated[int, Field(ge=1)] = 4

    @model_validator(mode="after")
    def _fits(self) -> "ResNetConfig":
        if not len(self.channels) == len(self.blocks) == len(self.strides):
            raise ValueError("channels, blocks and strides need one entry per stage")
        if self.kernel % 2 == 0 or self.stem_kernel % 2 == 0:
            raise ValueError("kernel and stem_kernel must be odd, so that a convolution keeps the length")
        return self


class Block(nn.Module):
    """Residual block [B,I,F,T] -> [B,O,F',ceil(T / stride)], scaled by a constant before the addition.

    F' is F in 1-D and ceil(F / stride) in 2-D. The scaling is from Szegedy et al. 2016 (arXiv 1602.07261, section 3.3).
    According to the thesis it "did not help much" by itself; gradients stopped exploding only with L2 and clipping as
    well.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, config: ResNetConfig, dims: Dims = 1) -> None:
        super().__init__()
        group, kernel, bias = config.bn_group, config.kernel, config.conv_bias
        self.body = nn.Sequential(
            GhostBatchNorm(inputs, group),
            convolution(dims, inputs, outputs, kernel, bias=bias),
            activation(config.block_activation, outputs),
            convolution(dims, outputs, outputs, kernel, stride, bias=bias),
            GhostBatchNorm(outputs, group),
        )
        self.shortcut: nn.Module
        if inputs != outputs:
            self.shortcut = nn.Sequential(
                convolution(dims, inputs, outputs, 1, stride, bias=bias), GhostBatchNorm(outputs, group)
            )
        elif stride > 1:
            self.shortcut = nn.MaxPool2d((stride if dims == 2 else 1, stride), ceil_mode=True)
        else:
            self.shortcut = nn.Identity()
        self.residual_scale = config.residual_scale

    def forward(self, x_BIFT: Tensor) -> Tensor:
        return torch.add(self.shortcut(x_BIFT), self.body(x_BIFT), alpha=self.residual_scale)


class ResNetEncoder(VoiceEncoder):
    """wave [B,T] in [-1,1] -> three maps (shallow, middle, deep), each [B,C,T_i].

    Abstract: encoders differ in the signal that the stem receives.
    """

    def __init__(self, config: ResNetConfig, inputs: int, dims: Dims = 1) -> None:
        """``inputs``: channels of the signal."""
        super().__init__()
        width = config.channels[0]
        self.stem = nn.Sequential(
            convolution(dims, inputs, width, config.stem_kernel, config.stem_stride, bias=config.conv_bias),
            GhostBatchNorm(width, config.bn_group),
            activation(config.stem_activation, width),
        )
        stages = []
        for channels, blocks, stride in zip(config.channels, config.blocks, config.strides, strict=True):
            stages.append(
                nn.Sequential(
                    Block(width, channels, stride, config, dims),
                    *(Block(channels, channels, 1, config, dims) for _ in range(blocks - 1)),
                )
            )
            width = channels
        self.stages = nn.ModuleList(stages)
        shallow, middle, deep = config.channels[-3:]
        out = config.out_channels
        self.lateral_deep = nn.Identity() if deep == out else Conv(deep, out, 1, bias=True)
        self.lateral_middle = Conv(middle, out, 1, bias=True)
        self.lateral_shallow = Conv(shallow, out, 1, bias=True)
        self.channels = (out, out, out)

    @abc.abstractmethod
    def signal(self, wav_BT: Tensor) -> Tensor:
        """What the stem receives: [B,I,F,T'], channels last (:func:`channels_last`)."""

    def forward(self, wav_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if wav_BT.ndim != 2:
            raise V2FError(f"encoder: expected waves of shape [batch, samples], got {list(wav_BT.shape)}")
        x = self.stem(self.signal(wav_BT))
        depths = []
        for stage in self.stages:
            x = stage(x)
            depths.append(x)
        shallow, middle, deep = (_over_time(x) for x in depths[-3:])
        deep = self.lateral_deep(deep)
        middle = upsample_add(self.lateral_middle(middle), deep)
        shallow = upsample_add(self.lateral_shallow(shallow), middle)
        return shallow.squeeze(2), middle.squeeze(2), deep.squeeze(2)


def _over_time(x_BCFT: Tensor) -> Tensor:
    """The mean over frequencies, [B,C,1,T]."""
    return x_BCFT if x_BCFT.shape[2] == 1 else x_BCFT.mean(dim=2, keepdim=True)


def channels_last(x_BCFT: Tensor) -> Tensor:
    """The signal with channels-last strides, set explicitly: with one channel the usual conversion does nothing, and
    all later layers would use the slow layout."""
    if torch.compiler.is_exporting():  # a graph has no memory layout, and ONNX no strides
        return x_BCFT
    _, channels, frequencies, frames = x_BCFT.shape
    strides = (channels * frequencies * frames, 1, channels * frames, channels)
    x_BCFT = x_BCFT.contiguous(memory_format=torch.channels_last)
    return x_BCFT.as_strided(x_BCFT.shape, strides) if channels == 1 else x_BCFT
