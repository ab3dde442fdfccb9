"""The voice encoder of the voice-styled-face system: a 1-D ResNet on the raw wave with maps at three depths, as in pSp.

    wave [B,T] -> stem -> stages of residual blocks -> three maps [B,C,T_i], shallow (long), middle, deep (short)

*Voice Styled Face* (a master's thesis, 2022) names the parts, and its two parameter counts allow only one architecture.
Table 5.1 gives 37,511,616 parameters for the 32 blocks. The whole system has 101,138,892, which is 199,424 more than
the table's sum: the stem (1,792) and the laterals (197,632). ``bench/encoder_split.py`` searches all architectures. The
defaults of :class:`WaveformEncoder.Config` are this encoder, with 37,711,040 parameters; its strides are reconstructed.
A forward pass over 6 s then takes 182 GFLOP (a multiply-add counts as 2; ``torch.utils.flop_counter``):

- stem: convolution of 25 taps without bias, batch norm, PReLU with a slope for each channel;
- stages of 11, 9, 6, 6 blocks with 64, 128, 256, 512 channels, 9 taps, convolutions without bias;
- block: batch norm, convolution, PReLU with a slope for each channel, convolution (this one has the stride, as in
  ArcFace's improved residual block), batch norm; times ``residual_scale``; plus the shortcut;
- shortcut: convolution of 1 tap with the stride, and batch norm, where the channels change; else max-pool by the
  stride; nothing where neither changes;
- maps are taken after the last three stages. The deepest already has the output width and needs no lateral; 1x1
  laterals *with* bias bring 256 and 128 channels to 512. Each deeper map is stretched to the next length and added.

Letters: B batch, T samples or frames, C/I/O channels. Inside, a signal is [B,C,1,T] with channels last, in which the
CPU's and the GPU's convolutions are fastest (up to twice as fast as [B,C,T] on a CPU).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

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
SLOPE = 0.25  # of the leaky ReLU: the initial slope of PReLU (He et al. 2015, arXiv 1502.01852, section 2.1)


class Conv(nn.Conv1d):
    """``Conv1d`` with "same" padding for [B,C,1,T]; its parameters are those of ``Conv1d``."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)

    def forward(self, x_BI1T: Tensor) -> Tensor:
        return F.conv2d(x_BI1T, self.weight[:, :, None], self.bias, (1, *self.stride), (0, self.kernel_size[0] // 2))


class PReLU(nn.PReLU):
    """PReLU with a slope for each channel, in the precision of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.weight.to(x.dtype))


def activation(name: Activation, channels: int) -> nn.Module:
    """PReLU with a slope for each channel, or a leaky ReLU without parameters (ten times as fast on a CPU)."""
    return PReLU(channels) if name == "prelu" else nn.LeakyReLU(SLOPE)


class Block(nn.Module):
    """Residual block [B,I,1,T] -> [B,O,1,ceil(T / stride)], scaled by a constant before the addition.

    The scaling is from Szegedy et al. 2016 (arXiv 1602.07261, section 3.3). According to the thesis it "did not help
    much" by itself; gradients stopped exploding only with L2 and clipping as well.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, config: "WaveformEncoder.Config") -> None:
        super().__init__()
        group, kernel, bias = config.bn_group, config.kernel, config.conv_bias
        self.body = nn.Sequential(
            GhostBatchNorm(inputs, group),
            Conv(inputs, outputs, kernel, bias=bias),
            activation(config.block_activation, outputs),
            Conv(outputs, outputs, kernel, stride, bias=bias),
            GhostBatchNorm(outputs, group),
        )
        self.shortcut: nn.Module
        if inputs != outputs:
            self.shortcut = nn.Sequential(Conv(inputs, outputs, 1, stride, bias=bias), GhostBatchNorm(outputs, group))
        elif stride > 1:
            self.shortcut = nn.MaxPool2d((1, stride), ceil_mode=True)
        else:
            self.shortcut = nn.Identity()
        self.residual_scale = config.residual_scale

    def forward(self, x_BI1T: Tensor) -> Tensor:
        return torch.add(self.shortcut(x_BI1T), self.body(x_BI1T), alpha=self.residual_scale)


class WaveformEncoder(VoiceEncoder):
    """wave [B,T] in [-1,1] -> three maps (shallow, middle, deep), each [B,C,T_i].

    With the defaults and 6 s at 16 kHz: T = 96,000, T_i = 6,000 / 3,000 / 1,500 and C = 512.
    """

    class Config(Config):
        """The defaults are the thesis's final encoder; ``stem_stride`` and ``strides`` are reconstructed."""

        net: Literal["waveform"] = "waveform"
        channels: Annotated[list[int], Field(min_length=3)] = [64, 128, 256, 512]
        blocks: list[Annotated[int, Field(ge=1)]] = [11, 9, 6, 6]
        strides: list[Annotated[int, Field(ge=1)]] = [2, 2, 2, 2]  # of the first block of each stage
        kernel: int = 9
        stem_kernel: int = 25
        stem_stride: Annotated[int, Field(ge=1)] = 4
        stem_activation: Activation = "prelu"
        block_activation: Activation = "prelu"
        residual_scale: Annotated[float, Field(gt=0, le=1)] = 0.2
        out_channels: Annotated[int, Field(ge=1)] = 512
        conv_bias: bool = False
        bn_group: Annotated[int, Field(ge=1)] = 4

        @model_validator(mode="after")
        def _fits(self) -> "WaveformEncoder.Config":
            if not len(self.channels) == len(self.blocks) == len(self.strides):
                raise ValueError("channels, blocks and strides need one entry per stage")
            if self.kernel % 2 == 0 or self.stem_kernel % 2 == 0:
                raise ValueError("kernel and stem_kernel must be odd, so that a convolution keeps the length")
            return self

    def __init__(self, config: "WaveformEncoder.Config") -> None:
        super().__init__()
        self.config = config
        width = config.channels[0]
        self.stem = nn.Sequential(
            Conv(1, width, config.stem_kernel, config.stem_stride, bias=config.conv_bias),
            GhostBatchNorm(width, config.bn_group),
            activation(config.stem_activation, width),
        )
        stages = []
        for channels, blocks, stride in zip(config.channels, config.blocks, config.strides, strict=True):
            stages.append(
                nn.Sequential(
                    Block(width, channels, stride, config),
                    *(Block(channels, channels, 1, config) for _ in range(blocks - 1)),
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

    def forward(self, wav_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if wav_BT.ndim != 2:
            raise V2FError(f"encoder: expected waves of shape [batch, samples], got {list(wav_BT.shape)}")
        x = self.stem(_channels_last(wav_BT))
        depths = []
        for stage in self.stages:
            x = stage(x)
            depths.append(x)
        deep = self.lateral_deep(depths[-1])
        middle = upsample_add(self.lateral_middle(depths[-2]), deep)
        shallow = upsample_add(self.lateral_shallow(depths[-3]), middle)
        return shallow.squeeze(2), middle.squeeze(2), deep.squeeze(2)


class Split(NamedTuple):
    """The part of an encoder's architecture that the thesis does not state, derived from its parameter counts."""

    blocks: tuple[int, ...]
    kernel: int
    stem: Activation

    def __str__(self) -> str:
        return f"blocks {'/'.join(map(str, self.blocks))}, kernel {self.kernel} and {self.stem} in the stem"


def other_split(config: WaveformEncoder.Config, shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Why an encoder with these tensor shapes, by name, does not fit ``config``, and what to do; None if both have the
    same split, or if the tensors are not an encoder's."""
    weight = shapes.get("stages.0.0.body.1.weight")
    if not weight:
        return None
    places = {each.groups() for each in map(re.compile(r"stages\.(\d+)\.(\d+)\.").match, shapes) if each}
    blocks = Counter(int(stage) for stage, _ in places)
    stem: Activation = "prelu" if "stem.2.weight" in shapes else "leaky_relu"
    found = Split(tuple(blocks[stage] for stage in sorted(blocks)), weight[-1], stem)
    expected = Split(tuple(config.blocks), config.kernel, config.stem_activation)
    if found == expected:
        return None
    corrected = found[1:] == (7, "leaky_relu") and expected[1:] == (9, "prelu")
    why = " (the split of launch/recipes/thesis-*.yaml was corrected from the one to the other)" if corrected else ""
    return (
        f"its encoder has {found}, this configuration has {expected}{why}; use the config.yaml of its run (also in a "
        "checkpoint's record: state.config), or start a new run under another name"
    )


def _channels_last(wav_BT: Tensor) -> Tensor:
    """[B,T] -> [B,1,1,T] with channels-last strides, set explicitly: with one channel the usual conversion does
    nothing, and all later layers would use the slow layout."""
    if torch.compiler.is_exporting():  # a graph has no memory layout, and ONNX no strides
        return wav_BT[:, None, None]
    samples = wav_BT.shape[1]
    return wav_BT.contiguous().as_strided((len(wav_BT), 1, 1, samples), (samples, 1, samples, 1))
