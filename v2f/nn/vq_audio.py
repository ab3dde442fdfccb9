"""VQ-VAE-2 on sound: an encoder, one or two codebooks, a decoder (Razavi et al. 2019, arXiv 1906.00446, section 3.1).

    signal [B,I,T] -> encoder, stride 2^n -> h -> encoder, stride 2^m -> top codes [B,T/2^(n+m)]
                                             h, decoded top codes     -> bottom codes [B,T/2^n]
    top and bottom codes -> decoder -> signal [B,I,T]

The work that this follows describes a network on the raw wave at 4 kHz: three convolutions of stride 2 to the bottom
codes, two more to the top codes, *between* the convolutions a block of seven residual convolutions whose dilation and
padding are 1, 2, 3, 6, 9, 18, 27 (so their kernel is 3), a mirrored decoder with transposed convolutions, two codebooks
of 2,048 x 32, 580,641 parameters. It tells neither widths nor the kernels of the other layers. The defaults here
have exactly this count: 48 channels, kernel 2 for all convolutions of stride 2, a block in each of the four gaps of the
encoder and of the decoder, codes that are parameters. ``bench/vq_audio_split.py`` finds one other network with this
count, with other kernels at the ends of the decoders. Without top codes, it is a flat VQ-VAE.

Letters: B batch, I channels of the signal, C channels, T frames, N codes of a level, D width of a code.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from v2f.config import Config
from v2f.nn import codebook
from v2f.nn.codebook import CodebookConfig, EMACodebook, GradientCodebook, Quantized

TOP, BOTTOM = "top", "bottom"
_PURPOSES = {TOP: 0x546F70, BOTTOM: 0x426F74}  # of the vectors that each codebook draws
Quantize = Callable[[str, Tensor], Tensor]
"""Turns a level's vectors [B,N,D] into its codes [B,N,D]."""
Channels = Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1)]


class LevelConfig(Config):
    """The keys of a level of codes."""

    channels: Channels = Field(description="channels after each convolution of stride 2 that leads to this level")
    codes: int = Field(2048, ge=2, le=65536, description="codes of its codebook")


class NetConfig(Config):
    """The keys of the network; the defaults are the document's, 580,641 parameters."""

    bottom: LevelConfig = LevelConfig(channels=[48, 48, 48])
    top: LevelConfig | None = Field(LevelConfig(channels=[48, 48]), description="null: a flat VQ-VAE")
    kernel: int = Field(2, ge=2, le=64, description="of the convolutions of stride 2")
    dilations: list[Annotated[int, Field(ge=1)]] = Field(
        [1, 2, 3, 6, 9, 18, 27], min_length=1, description="of the residual convolutions in each block"
    )
    codebook: CodebookConfig = CodebookConfig(learned="gradient")

    @property
    def strides(self) -> dict[str, int]:
        """Level -> frames of the signal for each of its codes, coarse to fine."""
        fine = int(2 ** len(self.bottom.channels))
        return ({TOP: fine * int(2 ** len(self.top.channels))} if self.top else {}) | {BOTTOM: fine}

    @property
    def levels(self) -> dict[str, LevelConfig]:
        """The levels, coarse to fine."""
        return ({TOP: self.top} if self.top else {}) | {BOTTOM: self.bottom}

    def padded(self, frames: int) -> int:
        """The frames that are coded: the next multiple of the coarsest stride."""
        most = max(self.strides.values())
        return -(-frames // most) * most


@dataclass(frozen=True)
class Coded:
    """What the network makes of a signal in training."""

    signal_BIT: Tensor
    levels: Mapping[str, Quantized]


class VQVAE2(nn.Module):
    """The network; ``signals``: channels of the signal. A signal whose length no stride divides is padded with zeros,
    and decoded to that longer length."""

    def __init__(self, config: NetConfig, signals: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, signals)
        self.codebooks = nn.ModuleDict(
            {
                name: codebook.build(config.codebook, level.codes, _PURPOSES[name])
                for name, level in config.levels.items()
            }
        )
        self.decoder = Decoder(config, signals)

    def forward(self, signal_BIT: Tensor, slot_B: Tensor, weight_B: Tensor) -> Coded:
        levels: dict[str, Quantized] = {}

        def quantize(level: str, z_BND: Tensor) -> Tensor:
            levels[level] = self.codebooks[level](z_BND, slot_B, weight_B)
            return levels[level].code_BND

        found = self.encoder(self._padded(signal_BIT), quantize)
        signal = self.decoder({level: code_BND.to(signal_BIT.dtype) for level, code_BND in found.items()})
        return Coded(signal[..., : signal_BIT.shape[2]], levels)

    def encode(self, signal_BIT: Tensor) -> dict[str, Tensor]:
        """Level -> the numbers of its codes [B,N], coarse to fine."""
        numbers: dict[str, Tensor] = {}

        def quantize(level: str, z_BND: Tensor) -> Tensor:
            codes_KD = self.codes(level)
            numbers[level] = codebook.nearest(z_BND, codes_KD)
            return codes_KD[numbers[level]]

        self.encoder(self._padded(signal_BIT), quantize)
        return numbers

    def decode(self, numbers: Mapping[str, Tensor]) -> Tensor:
        """The signal [B,I,T] of the codes [B,N] of every level; the number of bottom codes decides T."""
        signal: Tensor = self.decoder({level: self.codes(level)[numbers[level]] for level in self.config.levels})
        return signal

    def codes(self, level: str) -> Tensor:
        """All codes [K,D] of a level."""
        found = self.codebooks[level]
        assert isinstance(found, GradientCodebook | EMACodebook)
        return found.codes_KD

    def _padded(self, signal_BIT: Tensor) -> Tensor:
        frames = signal_BIT.shape[2]
        return F.pad(signal_BIT, (0, self.config.padded(frames) - frames))


class Encoder(nn.Module):
    """The signal's vectors at each level: what the codebooks quantize."""

    def __init__(self, config: NetConfig, signals: int) -> None:
        super().__init__()
        width, own = config.codebook.width, config.bottom.channels
        self.fine = nn.Sequential(*_down([signals, *own], config))
        self.coarse = self.to_top = self.from_top = None
        if config.top is not None:
            more = [own[-1], *config.top.channels]
            self.coarse = nn.Sequential(Block(own[-1], config), *_down(more, config))
            self.to_top = Conv(more[-1], width)
            self.from_top = nn.Sequential(Conv(width, more[-1]), *_up([*more[:0:-1], width], config))
        self.to_bottom = Conv(own[-1] + (width if config.top else 0), width)

    def forward(self, signal_BIT: Tensor, quantize: Quantize) -> dict[str, Tensor]:
        """The codes [B,N,D] of each level. ``quantize`` turns a level's vectors [B,N,D] into its codes; the bottom's
        vectors depend on the top's codes."""
        fine_BC1N = self.fine(_as_picture(signal_BIT))
        if self.coarse is None or self.to_top is None or self.from_top is None:
            return {BOTTOM: quantize(BOTTOM, _as_rows(self.to_bottom(fine_BC1N)))}
        top_BND = quantize(TOP, _as_rows(self.to_top(self.coarse(fine_BC1N))))
        seen_BD1N = self.from_top(_of_rows(top_BND.to(fine_BC1N.dtype)))
        bottom_BND = quantize(BOTTOM, _as_rows(self.to_bottom(torch.cat([fine_BC1N, seen_BD1N], dim=1))))
        return {TOP: top_BND, BOTTOM: bottom_BND}


class Decoder(nn.Module):
    """codes [B,N,D] of each level -> signal [B,I,T]; the top codes are stretched to the length of the bottom codes."""

    def __init__(self, config: NetConfig, signals: int) -> None:
        super().__init__()
        width, own = config.codebook.width, config.bottom.channels
        top = len(config.top.channels) if config.top else 0
        self.stretch = nn.Sequential(*(Up(width, width, config.kernel) for _ in range(top)))
        self.net = nn.Sequential(
            Conv(2 * width if top else width, own[-1], 3),
            Block(own[-1], config),
            *_up([*own[::-1], own[0]], config),
            nn.ReLU(),
            Conv(own[0], signals, 3),
        )
        self.levels = list(config.levels)

    def forward(self, codes: Mapping[str, Tensor]) -> Tensor:
        found = _of_rows(codes[BOTTOM])
        if TOP in self.levels:
            found = torch.cat([self.stretch(_of_rows(codes[TOP])), found], dim=1)
        signal_BI1T: Tensor = self.net(found)
        return signal_BI1T[:, :, 0]


class Conv(nn.Conv1d):
    """``Conv1d`` that keeps the length, for [B,C,1,T] with channels last, in which a CPU is up to twice as fast."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation)

    def forward(self, x_BC1T: Tensor) -> Tensor:
        padding, dilation = (0, int(self.padding[0])), (1, self.dilation[0])
        return F.conv2d(x_BC1T, self.weight[:, :, None], self.bias, padding=padding, dilation=dilation)


class Down(nn.Conv1d):
    """``Conv1d`` of stride 2 that halves the even length of [B,C,1,T]."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, 2, padding=(kernel - 1) // 2)

    def forward(self, x_BC1T: Tensor) -> Tensor:
        padding = (0, int(self.padding[0]))
        return F.conv2d(x_BC1T, self.weight[:, :, None], self.bias, stride=(1, 2), padding=padding)


class Up(nn.ConvTranspose1d):
    """``ConvTranspose1d`` of stride 2 that doubles the length of [B,C,1,T]."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, 2, padding=(kernel - 1) // 2, output_padding=kernel % 2)

    def forward(self, x_BC1T: Tensor, output_size: list[int] | None = None) -> Tensor:
        padding, more = (0, int(self.padding[0])), (0, int(self.output_padding[0]))
        return F.conv_transpose2d(x_BC1T, self.weight[:, :, None], self.bias, (1, 2), padding, more)


class Block(nn.Module):
    """Residual convolutions of kernel 3, each with its own dilation: x + conv(ReLU(x))."""

    def __init__(self, channels: int, config: NetConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Conv(channels, channels, 3, dilation) for dilation in config.dilations)

    def forward(self, x_BC1T: Tensor) -> Tensor:
        for layer in self.layers:
            x_BC1T = x_BC1T + layer(F.relu(x_BC1T))
        return x_BC1T


def _down(channels: Sequence[int], config: NetConfig) -> list[nn.Module]:
    """Convolutions of stride 2 with a block between each two of them."""
    made: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise(channels)):
        made += [Block(inputs, config)] if number else []
        made.append(Down(inputs, outputs, config.kernel))
    return made


def _up(channels: Sequence[int], config: NetConfig) -> list[nn.Module]:
    """Transposed convolutions of stride 2 with a block between each two of them."""
    made: list[nn.Module] = []
    steps = list(pairwise(channels))
    for number, (inputs, outputs) in enumerate(steps, 1):
        made.append(Up(inputs, outputs, config.kernel))
        made += [Block(outputs, config)] if number < len(steps) else []
    return made


def _as_picture(x_BCT: Tensor) -> Tensor:
    return x_BCT[:, :, None].contiguous(memory_format=torch.channels_last)


def _as_rows(x_BD1N: Tensor) -> Tensor:
    return x_BD1N[:, :, 0].transpose(1, 2)


def _of_rows(x_BND: Tensor) -> Tensor:
    return x_BND.transpose(1, 2)[:, :, None]
