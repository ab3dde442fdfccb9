"""StyleGAN2's generator, written from the papers, with the parameter names of the public weights.

    z [B,D] -> mapping -> w [B,D] -> one copy a layer, w+ [B,L,D] -> synthesis -> picture [B,3,H,W], about [-1,1]
    state_dict of the public layout -> Generator.fitting -> the generator of that size and width, with these weights

Karras, Laine, Aila 2019 (arXiv 1812.04948, "StyleGAN") and Karras et al. 2020 (arXiv 1912.04958, "StyleGAN2").
A ``state_dict`` has the keys and shapes of the widespread PyTorch port (``style.1.weight``,
``convs.0.conv.blur.kernel``, ``noises.noise_0``, ...), so its FFHQ weights load with ``strict=True``.

Letters: B batch, D style width, L styles a picture, C/I/O channels, H/W pixels, K kernel taps.
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2f.errors import V2FError
from v2f.nn.strict import fill

SLOPE = 0.2  # of the leaky ReLU, everywhere
GAIN = math.sqrt(2.0)  # keeps the variance after that leaky ReLU
TAPS = (1.0, 3.0, 3.0, 1.0)  # the resampling filter (StyleGAN2, appendix B)
EPS = 1e-8


class PixelNorm(nn.Module):
    """Scales each latent to a mean square of one (StyleGAN, appendix C; Karras et al. 2018, section 4.2)."""

    def forward(self, z_BD: Tensor) -> Tensor:
        return z_BD * torch.rsqrt(z_BD.square().mean(dim=1, keepdim=True) + EPS)


class EqualLinear(nn.Module):
    """A linear layer with equalized learning rate (Karras et al. 2018, section 4.1).

    The stored weight is N(0, 1) / lr_mul and is scaled by ``lr_mul / sqrt(inputs)`` when used, so that Adam moves
    every layer at the same relative rate, times ``lr_mul``. It is excluded from autocast: styles are small tensors, and
    the eight bits of bfloat16 would be visible in the picture.
    """

    def __init__(
        self, inputs: int, outputs: int, lr_mul: float = 1.0, bias_init: float = 0.0, activate: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_mul)
        self.bias = nn.Parameter(torch.full((outputs,), float(bias_init)))
        self.scale = lr_mul / math.sqrt(inputs)
        self.lr_mul = lr_mul
        self.activate = activate

    def forward(self, x_BI: Tensor) -> Tensor:
        with torch.autocast(x_BI.device.type, enabled=False):
            x_BO = F.linear(x_BI.to(self.weight.dtype), self.weight * self.scale, self.bias * self.lr_mul)
            return F.leaky_relu(x_BO, SLOPE) * GAIN if self.activate else x_BO


def fir_kernel(gain: float) -> Tensor:
    """The separable low-pass filter [4,4] with the sum ``gain`` (4 if zeros were inserted between the pixels)."""
    taps = torch.tensor(TAPS)
    return torch.outer(taps, taps) * (gain / taps.sum() ** 2)


def upfirdn(x_BCHW: Tensor, kernel_KK: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Upsample, pad (or crop, if negative), filter, downsample (appendix B).

    ``up - 1`` zeros are inserted after each pixel, ``pad`` is (before, after) in both directions, the filter is
    convolved (not correlated) with each channel. H -> ``(H up + before + after - K) // down + 1``. It runs in the
    precision of ``x`` even under autocast, because the sum over resolutions passes through here.
    """
    channels, taps = x_BCHW.shape[1], kernel_KK.shape[0]
    with torch.autocast(x_BCHW.device.type, enabled=False):
        kernel_KK = kernel_KK.to(x_BCHW.dtype)
        if up == 1:
            even = max(min(pad), 0)  # the convolution's own padding costs no copy
            x_BCHW = _framed(x_BCHW, pad[0] - even, pad[1] - even)
            kernel = kernel_KK.flip(0, 1).expand(channels, 1, taps, taps)
            return F.conv2d(x_BCHW, kernel, stride=down, padding=even, groups=channels)
        # a transposed convolution returns every place that the filter touches; crop (or pad) to those requested
        before, after = pad[0] - taps + 1, pad[1] - taps + up
        even = max(-max(before, after), 0)
        kernel = kernel_KK.expand(channels, 1, taps, taps)
        x_BCHW = F.conv_transpose2d(x_BCHW, kernel, stride=up, padding=even, groups=channels)
        return _framed(x_BCHW, before + even, after + even)[:, :, ::down, ::down]


def _framed(x_BCHW: Tensor, before: int, after: int) -> Tensor:
    """Pad a picture with zeros, or crop it if negative."""
    return F.pad(x_BCHW, (before, after) * 2) if before or after else x_BCHW


class Blur(nn.Module):
    """The low-pass filter after a transposed convolution: [B,C,2H+1,2W+1] -> [B,C,2H,2W]."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", fir_kernel(4.0))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return upfirdn(x_BCHW, self.kernel, pad=(1, 1))


class Upsample(nn.Module):
    """Doubles a picture: inserts zeros between the pixels, then filters. [B,C,H,W] -> [B,C,2H,2W]."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", fir_kernel(4.0))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return upfirdn(x_BCHW, self.kernel, up=2, pad=(2, 1))


class ModulatedConv(nn.Module):
    """Convolution whose weight is scaled by each sample's style (StyleGAN2, section 2.2, eq. 1 to 3).

    ``w'_oik = s_i w_oik``, then ``w''_oik = w'_oik / sqrt(sum_ik w'_oik^2 + eps)``. A convolution is linear, so
    ``s`` may scale the input's channels and ``1 / sqrt(...)`` the output's: one dense convolution with the shared
    weight for the whole batch instead of one group per sample. :meth:`forward` leaves the second factor to its caller,
    which merges it with another multiplication.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, style_dim: int, up: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, kernel, kernel))
        self.modulation = EqualLinear(style_dim, inputs, bias_init=1.0)
        if up:
            self.blur = Blur()
        self.up = up
        self.scale = 1 / math.sqrt(inputs * kernel**2)
        self.padding = kernel // 2

    def demodulation(self, style_BI: Tensor) -> Tensor:
        """``1 / sqrt(sum_ik (s_i w_oik)^2 + eps)``: [B,I] -> [B,O]."""
        power_OI = (self.weight[0] * self.scale).square().sum(dim=(2, 3))
        return torch.rsqrt(F.linear(style_BI.square(), power_OI) + EPS)

    def forward(self, x_BIHW: Tensor, style_BI: Tensor) -> Tensor:
        """[B,I,H,W] with its style -> [B,O,H,W], or [B,O,2H,2W] with ``up``; not demodulated."""
        x_BIHW = x_BIHW * style_BI.to(x_BIHW.dtype)[:, :, None, None]
        weight = self.weight[0] * self.scale
        if self.up:
            x_BOHW: Tensor = self.blur(F.conv_transpose2d(x_BIHW, weight.transpose(0, 1), stride=2))
            return x_BOHW
        return F.conv2d(x_BIHW, weight, padding=self.padding)


class NoiseStrength(nn.Module):
    """One learned strength of the noise, for all channels (StyleGAN2, section 2.1 and figure 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class ChannelBias(nn.Module):
    """A bias for each channel, added before the leaky ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU times sqrt(2) (StyleGAN2, figure 2c and d)."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, style_dim, up)
        self.noise = NoiseStrength()
        self.activate = ChannelBias(outputs)

    def forward(self, x_BIHW: Tensor, w_BD: Tensor, noise_B1HW: Tensor) -> Tensor:
        style_BI = self.conv.modulation(w_BD)
        with torch.autocast(x_BIHW.device.type, enabled=False):
            # a positive gain commutes with the leaky ReLU, so it is applied where the tensors are small
            gain_BO = self.conv.demodulation(style_BI) * GAIN
            offset = (self.noise.weight * noise_B1HW + self.activate.bias[:, None, None]) * GAIN
        x_BOHW = self.conv(x_BIHW, style_BI)
        gain = gain_BO.to(x_BOHW.dtype)[:, :, None, None]
        return F.leaky_relu_(torch.addcmul(offset.to(x_BOHW.dtype), x_BOHW, gain), SLOPE)


class ToRGB(nn.Module):
    """A resolution's part of the picture: modulated 1x1 convolution, not demodulated (StyleGAN2, section 4.1)."""

    def __init__(self, inputs: int, style_dim: int, up: bool = True) -> None:
        super().__init__()
        if up:
            self.upsample = Upsample()
        self.conv = ModulatedConv(inputs, 3, 1, style_dim)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x_BIHW: Tensor, w_BD: Tensor, skip_B3HW: Tensor | None) -> Tensor:
        rgb_B3HW: Tensor = self.conv(x_BIHW, self.conv.modulation(w_BD))
        rgb_B3HW = rgb_B3HW.to(self.bias.dtype) + self.bias  # the sum over resolutions stays in full precision
        return rgb_B3HW if skip_B3HW is None else rgb_B3HW + self.upsample(skip_B3HW)


class ConstantInput(nn.Module):
    """The learned 4x4 input of every picture (StyleGAN, section 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))


def channels_at(resolution: int, channel_multiplier: float, channel_max: int | None) -> int:
    """Channels of a resolution's layers: 512 up to 32 px, then ``16384 multiplier / resolution``.

    With ``channel_max`` the second rule applies to every resolution, bounded by ``channel_max``, which tapers a narrow
    generator from its first layers on.
    """
    tapered = int(16384 * channel_multiplier) // resolution
    if channel_max is None:
        return 512 if resolution <= 32 else tapered
    return min(channel_max, tapered)


def _deduced(state: Mapping[str, Tensor], where: str, prefix: str) -> dict[str, Any]:
    """The arguments of the :class:`Generator` whose ``state_dict`` has these names and shapes.

    Size, style width and layers of the mapping network are read off; the channels must follow :func:`channels_at`.
    ``lr_mlp`` cannot be deduced; it is 0.01 in every public generator. Errors as for ``Generator.fitting``.
    """
    wrong = f"{where}: these are not the weights of a StyleGAN2 generator:"

    def shape(name: str, expected: str) -> torch.Size:
        if name not in state:
            raise V2FError(f"{wrong} the tensor {prefix + name!r} is missing")
        found = state[name].shape
        if len(found) != expected.count(",") + 1 or 0 in found:
            raise V2FError(f"{wrong} {prefix + name!r} has the shape {list(found)}, expected {expected}")
        return found

    def highest(pattern: str) -> int:
        """The highest number in a matching name, so that gaps are reported as missing; 0 if none matches."""
        return max((int(found[1]) for name in state if (found := re.match(pattern, name))), default=0)

    names = ["to_rgb1", *(f"to_rgbs.{i}" for i in range(highest(r"to_rgbs\.(\d)\.") + 1))]
    widths = {4 * 2**i: shape(f"{name}.conv.weight", "[1, 3, C, 1, 1]")[2] for i, name in enumerate(names)}
    for channel_max, tapering in ((None, [r for r in widths if r > 32]), (max(widths.values()), list(widths))):
        # the largest product is the smallest base that explains all widths, if any base does
        base = max((widths[r] * r for r in tapering), default=2 * 16384)
        rule = {r: channels_at(r, base / 16384, channel_max) for r in widths}
        if rule == widths:
            break
    else:
        r = next(r for r in widths if rule[r] != widths[r])
        name = f"{names[r.bit_length() - 3]}.conv.weight"
        found = f"{prefix + name!r} has {widths[r]} channels"
        raise V2FError(f"{wrong} {found}, expected {rule[r]} from the channels of the other resolutions")
    return {
        "size": max(widths),
        "style_dim": shape("conv1.conv.modulation.weight", "[C, D]")[1],
        "n_mlp": highest(r"style\.(\d\d?)\."),
        "channel_multiplier": base / 16384,
        "channel_max": channel_max,
    }


class Generator(nn.Module):
    """StyleGAN2's generator with skip connections (configuration F of the paper's table 1).

    ``size`` is the side in pixels, a power of two from 8 on. 1024 px at ``channel_multiplier`` 2 has 30,370,060
    parameters, 18 styles and 17 noise maps; 256 px has 30,034,338 and 14. ``channel_max`` below the multiplier's
    own width makes a narrow generator (see :func:`channels_at`).

    ``latent_avg`` [D], the mean style, moves with the module but is not part of its ``state_dict``: public files store
    it beside the ``state_dict``, and the loading code must set it.
    """

    latent_avg: Tensor

    def __init__(
        self,
        size: int,
        style_dim: int = 512,
        n_mlp: int = 8,
        channel_multiplier: float = 2,
        channel_max: int | None = None,
        lr_mlp: float = 0.01,
    ) -> None:
        super().__init__()
        if size < 8 or size & (size - 1):
            raise V2FError(f"generator: size {size} is not a power of two from 8 up; use 64, 256 or 1024, for example")
        log_size = size.bit_length() - 1
        resolutions = [2**i for i in range(2, log_size + 1)]
        width = {r: channels_at(r, channel_multiplier, channel_max) for r in resolutions}
        if min(width.values()) < 1:
            raise V2FError(f"generator: channel_multiplier {channel_multiplier} leaves no channel at {size} px")
        self.size = size
        self.style_dim = style_dim
        self.n_latent = 2 * log_size - 2
        self.n_noises = 2 * log_size - 3
        layers = [EqualLinear(style_dim, style_dim, lr_mlp, activate=True) for _ in range(n_mlp)]
        self.style = nn.Sequential(PixelNorm(), *layers)
        self.input = ConstantInput(width[4])
        self.conv1 = StyledConv(width[4], width[4], style_dim)
        self.to_rgb1 = ToRGB(width[4], style_dim, up=False)
        self.convs = nn.ModuleList()
        self.to_rgbs = nn.ModuleList()
        self.register_buffer("latent_avg", torch.zeros(style_dim), persistent=False)
        self.noises = nn.Module()
        self.noises.register_buffer("noise_0", torch.randn(1, 1, 4, 4))
        for below, here in pairwise(resolutions):
            self.convs.append(StyledConv(width[below], width[here], style_dim, up=True))
            self.convs.append(StyledConv(width[here], width[here], style_dim))
            self.to_rgbs.append(ToRGB(width[here], style_dim))
        for i in range(1, self.n_noises):
            side = 2 ** ((i + 5) // 2)
            self.noises.register_buffer(f"noise_{i}", torch.randn(1, 1, side, side))

    @classmethod
    def fitting(cls, state: Mapping[str, Tensor], where: str, prefix: str = "") -> "Generator":
        """The generator that fits a float32 ``state_dict``, with a copy of its tensors; ``latent_avg`` stays zero.

        A one-line :class:`V2FError`, which begins with ``where``, reports the first name that is missing, unknown, or
        of another shape or dtype. ``prefix``: prefix of the names in the file.
        """
        with torch.device("meta"):  # skips drawing random weights that would be replaced
            generator = cls(**_deduced(state, where, prefix))
        fill(generator, state, where, f"a StyleGAN2 generator of {generator.size} px", prefix)
        generator.latent_avg = torch.zeros(generator.style_dim, device=generator.input.input.device)
        return generator

    def mapping(self, z_BD: Tensor) -> Tensor:
        """The style of a latent: z [B,D] -> w [B,D] (StyleGAN, section 2)."""
        w_BD: Tensor = self.style(z_BD)
        return w_BD

    def expand(self, w_BD: Tensor) -> Tensor:
        """The same style for every layer: w [B,D] -> w+ [B,L,D]."""
        return w_BD[:, None].expand(-1, self.n_latent, -1)

    def fixed_noise(self) -> list[Tensor]:
        """The registered noise maps, [1,1,H,W] each, starting at 4 px."""
        return [self.noises.get_buffer(f"noise_{i}") for i in range(self.n_noises)]

    def random_noise(self, batch: int, generator: torch.Generator | None = None) -> list[Tensor]:
        """New noise maps [B,1,H,W], drawn on the device of ``generator`` and moved to that of the weights."""
        device = generator.device if generator is not None else None
        return [
            torch.randn(batch, *n.shape[1:], generator=generator, device=device, dtype=n.dtype).to(n.device)
            for n in self.fixed_noise()
        ]

    def synthesis(self, w: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """The picture of w+ [B,L,D], or of w [B,D] for every layer: [B,3,H,W], about [-1,1] and not clipped.

        ``noise``: one [1 or B,1,H,W] map per layer; None: the registered maps, so that the same styles give the same
        picture.
        """
        w_BLD = self.expand(w) if w.ndim == 2 else w
        if w_BLD.ndim != 3 or w_BLD.shape[1:] != (self.n_latent, self.style_dim):
            raise V2FError(
                f"generator: {self.size} px takes styles [batch, {self.n_latent}, {self.style_dim}] or "
                f"[batch, {self.style_dim}], got {list(w.shape)}"
            )
        maps = self.fixed_noise() if noise is None else list(noise)
        if len(maps) != self.n_noises:
            raise V2FError(f"generator: {self.size} px takes {self.n_noises} noise maps, got {len(maps)}")
        x = self.input.input.expand(len(w_BLD), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        x = self.conv1(x, w_BLD[:, 0], maps[0])
        picture: Tensor = self.to_rgb1(x, w_BLD[:, 1], None)
        for i, to_rgb in enumerate(self.to_rgbs):
            x = self.convs[2 * i](x, w_BLD[:, 2 * i + 1], maps[2 * i + 1])
            x = self.convs[2 * i + 1](x, w_BLD[:, 2 * i + 2], maps[2 * i + 2])
            picture = to_rgb(x, w_BLD[:, 2 * i + 3], picture)
        return picture

    def forward(self, z_BD: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """The picture of a latent: z [B,D] -> [B,3,H,W]."""
        return self.synthesis(self.mapping(z_BD), noise)

    @torch.no_grad()
    def mean_w(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """The mean style [D] of ``n`` latents z ~ N(0, I): the center for truncation and for W-norm."""
        device = generator.device if generator is not None else None
        total = torch.zeros(self.style_dim, dtype=torch.float64)
        for start in range(0, n, 4096):
            z_BD = torch.randn(min(4096, n - start), self.style_dim, generator=generator, device=device)
            total += self.mapping(z_BD.to(self.input.input)).double().sum(dim=0).cpu()
        return (total / n).to(self.input.input)


def truncate(w: Tensor, mean: Tensor, psi: float) -> Tensor:
    """Styles moved towards the mean style: ``mean + psi (w - mean)`` (StyleGAN, appendix B)."""
    return torch.lerp(mean.expand_as(w), w, psi)


def picture(generator: Any, w_BLD: Tensor, size: int) -> Tensor:
    """Pictures [B,3,size,size] of styles, average-pooled from the generator's own size; V2FError if ``size`` does not
    divide that."""
    if size > generator.size or generator.size % size:
        raise V2FError(
            f"a generator of {generator.size} px cannot draw a picture of {size} px; use a divisor of its size"
        )
    return F.adaptive_avg_pool2d(generator.synthesis(w_BLD), size)
