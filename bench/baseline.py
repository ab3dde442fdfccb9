"""The thesis's training step as its author could have written it in 2022, to measure ours against.

    Baseline(system)        its own nets, with the weights of our VoiceStyledFace, copied by name; .losses(...)
    Steps(baseline, ...)    two Adams and clipping: .step(wave, picture)
    Files(folder, ...)      one sound file and one picture a sample, for a torch DataLoader

It is the function of ``v2f/systems/voice_styled_face.py``, written in the plain way: float32, eager, ``Conv1d`` on
[B,C,T], ordinary batch norm over the whole batch, a mapping net per style, StyleGAN2's modulation as one grouped
convolution with a weight per sample (Karras et al. 2020, arXiv 1912.04958, appendix B), NCHW, every feature of the
reference computed anew in each step. What is left out is what the public StyleGAN2 port compiles at import: its fused
filter and activation. Here they are torch's own operations. Equality with ours (batch norm over the same groups) is
tested in tests/test_step_benchmark.py.

Letters: B batch, T samples or frames, C/I/O channels, H/W pixels, K kernel taps, L styles, D style width.
"""

import contextlib
import math
import tarfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from v2f.nn import at_least_float32, face_box, feature_distance
from v2f.nn.frozen import LPIPS, FaceIdentity
from v2f.nn.irse import IRSE50, IRSE50Trunk
from v2f.nn.mapping import StyleMapping
from v2f.nn.psp import COARSE, MIDDLE, SIDE, TAPS, PSPCodeEncoder
from v2f.nn.waveform import WaveformEncoder
from v2f.systems.voice_styled_face import VoiceStyledFace

# ------------------------------------------------------------------------------------------------ encoder and mapping


def activation(name: str, channels: int) -> nn.Module:
    return nn.PReLU(channels) if name == "prelu" else nn.LeakyReLU(0.25)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)


class Block(nn.Module):
    """Residual block [B,I,T] -> [B,O,T / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int, c: WaveformEncoder.Config) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm1d(inputs),
            conv(inputs, outputs, c.kernel, bias=c.conv_bias),
            activation(c.block_activation, outputs),
            conv(outputs, outputs, c.kernel, stride, bias=c.conv_bias),
            nn.BatchNorm1d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride, c.conv_bias), nn.BatchNorm1d(outputs))
        elif stride > 1:
            self.shortcut = nn.MaxPool1d(stride, ceil_mode=True)
        self.residual_scale = c.residual_scale

    def forward(self, x_BIT: Tensor) -> Tensor:
        x_BOT: Tensor = self.shortcut(x_BIT) + self.residual_scale * self.body(x_BIT)
        return x_BOT


class Encoder(nn.Module):
    """Waves [B,T] -> three maps [B,C,T_i], shallow ones first."""

    def __init__(self, c: WaveformEncoder.Config) -> None:
        super().__init__()
        width = c.channels[0]
        self.stem = nn.Sequential(
            conv(1, width, c.stem_kernel, c.stem_stride, c.conv_bias),
            nn.BatchNorm1d(width),
            activation(c.stem_activation, width),
        )
        self.stages = nn.ModuleList()
        for channels, blocks, stride in zip(c.channels, c.blocks, c.strides, strict=True):
            own = [Block(width, channels, stride, c), *(Block(channels, channels, 1, c) for _ in range(blocks - 1))]
            self.stages.append(nn.Sequential(*own))
            width = channels
        shallow, middle, deep = c.channels[-3:]
        out = c.out_channels
        self.lateral_deep = nn.Identity() if deep == out else nn.Conv1d(deep, out, 1)
        self.lateral_middle = nn.Conv1d(middle, out, 1)
        self.lateral_shallow = nn.Conv1d(shallow, out, 1)

    def forward(self, wav_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem(wav_BT[:, None])
        depths = []
        for stage in self.stages:
            x = stage(x)
            depths.append(x)
        deep = self.lateral_deep(depths[-1])
        middle = _plus_stretched(self.lateral_middle(depths[-2]), deep)
        return _plus_stretched(self.lateral_shallow(depths[-3]), middle), middle, deep


def _plus_stretched(x_BCT: Tensor, deeper_BCt: Tensor) -> Tensor:
    return x_BCT + F.interpolate(deeper_BCt, size=x_BCT.shape[-1], mode="linear", align_corners=True)


class EqualLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = 1 / math.sqrt(inputs)

    def forward(self, x_BI: Tensor) -> Tensor:
        return F.linear(x_BI, self.weight * self.scale, self.bias)


class Vec2Style(nn.Module):
    """One style [B,D] from one map [B,C,T]."""

    def __init__(self, channels: int, width: int, style_dim: int, c: StyleMapping.Config) -> None:
        super().__init__()
        widths = [channels, *[width] * c.convs]
        self.convs = nn.ModuleList(conv(i, o, c.kernel, c.stride, bias=True) for i, o in pairwise(widths))
        self.linear = EqualLinear(widths[-1], style_dim)

    def forward(self, x_BCT: Tensor) -> Tensor:
        for each in self.convs:
            x_BCT = F.leaky_relu(each(x_BCT), 0.01)
        w_BD: Tensor = self.linear(F.adaptive_max_pool1d(x_BCT, 1).flatten(1))
        return w_BD


class Mapping(nn.Module):
    """Maps -> styles [B,L,D], one net after another."""

    def __init__(self, c: StyleMapping.Config, channels: Sequence[int], n_styles: int, style_dim: int) -> None:
        super().__init__()
        self.reads = [c.map_of(style, len(channels)) for style in range(n_styles)]
        self.styles = nn.ModuleList(
            Vec2Style(channels[read], c.width or channels[read], style_dim, c) for read in self.reads
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return torch.stack([style(maps[read]) for style, read in zip(self.styles, self.reads, strict=True)], dim=1)


# ------------------------------------------------------------------------------------------------ generator


def filtered(x_BCHW: Tensor, kernel_KK: Tensor, before: int, after: int) -> Tensor:
    """Each channel padded and convolved with the filter."""
    channels = x_BCHW.shape[1]
    kernel = kernel_KK.flip(0, 1).expand(channels, 1, *kernel_KK.shape)
    return F.conv2d(F.pad(x_BCHW, (before, after, before, after)), kernel, groups=channels)


class Filter(nn.Module):
    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.zeros(4, 4))


class Blur(Filter):
    """[B,C,2H+1,2W+1] -> [B,C,2H,2W]."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return filtered(x_BCHW, self.kernel, 1, 1)


class Upsample(Filter):
    """[B,C,H,W] -> [B,C,2H,2W]: a zero after each pixel in both directions, then the filter."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        B, C, H, W = x_BCHW.shape
        spread = F.pad(x_BCHW.reshape(B, C, H, 1, W, 1), (0, 1, 0, 0, 0, 1)).reshape(B, C, 2 * H, 2 * W)
        return filtered(spread, self.kernel, 2, 1)


class ModulatedConv(nn.Module):
    """A weight for each sample, ``w'' = s w / |s w|``, and one convolution with a group for each sample."""

    def __init__(self, inputs: int, outputs: int, kernel: int, style_dim: int, up: bool, demodulate: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, outputs, inputs, kernel, kernel))
        self.modulation = EqualLinear(style_dim, inputs)
        self.scale = 1 / math.sqrt(inputs * kernel**2)
        self.up, self.demodulate = up, demodulate
        if up:
            self.blur = Blur()

    def forward(self, x_BIHW: Tensor, w_BD: Tensor) -> Tensor:
        B, inputs, H, W = x_BIHW.shape
        weight_BOIKK = self.scale * self.weight * self.modulation(w_BD).view(B, 1, inputs, 1, 1)
        if self.demodulate:
            weight_BOIKK = weight_BOIKK * torch.rsqrt(weight_BOIKK.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        outputs, kernel = weight_BOIKK.shape[1], weight_BOIKK.shape[-1]
        x = x_BIHW.reshape(1, B * inputs, H, W)
        if not self.up:
            weight = weight_BOIKK.reshape(B * outputs, inputs, kernel, kernel)
            return F.conv2d(x, weight, padding=kernel // 2, groups=B).view(B, outputs, H, W)
        weight = weight_BOIKK.transpose(1, 2).reshape(B * inputs, outputs, kernel, kernel)
        x = F.conv_transpose2d(x, weight, stride=2, groups=B)
        x_BOHW: Tensor = self.blur(x.view(B, outputs, *x.shape[-2:]))
        return x_BOHW


class Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class Activation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))


class StyledConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, style_dim: int, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, style_dim, up, demodulate=True)
        self.noise, self.activate = Noise(), Activation(outputs)

    def forward(self, x_BIHW: Tensor, w_BD: Tensor, noise_11HW: Tensor) -> Tensor:
        x = self.conv(x_BIHW, w_BD) + self.noise.weight * noise_11HW
        return F.leaky_relu(x + self.activate.bias.view(1, -1, 1, 1), 0.2) * math.sqrt(2)


class ToRGB(nn.Module):
    def __init__(self, inputs: int, style_dim: int, up: bool = True) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, 3, 1, style_dim, up=False, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        if up:
            self.upsample = Upsample()

    def forward(self, x_BIHW: Tensor, w_BD: Tensor, skip_B3HW: Tensor | None) -> Tensor:
        rgb_B3HW: Tensor = self.conv(x_BIHW, w_BD) + self.bias
        return rgb_B3HW if skip_B3HW is None else rgb_B3HW + self.upsample(skip_B3HW)


class Generator(nn.Module):
    """w+ [B,L,D] -> picture [B,3,H,W], with the widths and the weights of another one of the public layout."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        state = other.state_dict()
        widths = [state["to_rgb1.conv.weight"].shape[2]]
        self.sides = 1
        while f"to_rgbs.{self.sides - 1}.conv.weight" in state:
            widths.append(state[f"to_rgbs.{self.sides - 1}.conv.weight"].shape[2])
            self.sides += 1
        style_dim = state["conv1.conv.modulation.weight"].shape[1]
        self.input = nn.Module()
        self.input.input = nn.Parameter(torch.empty(1, widths[0], 4, 4))
        self.conv1 = StyledConv(widths[0], widths[0], style_dim)
        self.to_rgb1 = ToRGB(widths[0], style_dim, up=False)
        self.convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        for below, here in pairwise(widths):
            self.convs.append(StyledConv(below, here, style_dim, up=True))
            self.convs.append(StyledConv(here, here, style_dim))
            self.to_rgbs.append(ToRGB(here, style_dim))
        self.noises = nn.Module()
        for i in range(2 * self.sides - 1):
            self.noises.register_buffer(f"noise_{i}", torch.empty_like(state[f"noises.noise_{i}"]))
        copied(self, state)

    def forward(self, w_BLD: Tensor) -> Tensor:
        noise = [self.noises.get_buffer(f"noise_{i}") for i in range(2 * self.sides - 1)]
        x = self.input.input.repeat(len(w_BLD), 1, 1, 1)
        x = self.conv1(x, w_BLD[:, 0], noise[0])
        picture: Tensor = self.to_rgb1(x, w_BLD[:, 1], None)
        for i, to_rgb in enumerate(self.to_rgbs):
            x = self.convs[2 * i](x, w_BLD[:, 2 * i + 1], noise[2 * i + 1])
            x = self.convs[2 * i + 1](x, w_BLD[:, 2 * i + 2], noise[2 * i + 2])
            picture = to_rgb(x, w_BLD[:, 2 * i + 3], picture)
        return picture


def copied(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy the weights by name; each that the module has must be in ``state``, in the same shape."""
    own = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    missing = module.load_state_dict({name: state[name] for name in own}, strict=False).missing_keys
    assert all(name.endswith("num_batches_tracked") for name in missing), missing


# ------------------------------------------------------------------------------------------------ frozen nets


class Identity(nn.Module):
    """IR-SE50 on pSp's face box, in NCHW; the stand-in as it is."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.other = other

    def forward(self, img_B3HW: Tensor) -> Tensor:
        other = self.other
        if not (isinstance(other, FaceIdentity) and isinstance(other.net, IRSE50)):
            embedding: Tensor = other(img_B3HW)
            return embedding
        img_B3HW = F.adaptive_avg_pool2d(face_box(img_B3HW) if other.crop else img_B3HW, other.size)
        if other.channels == "bgr":
            img_B3HW = img_B3HW.flip(1)
        net = other.net
        return F.normalize(at_least_float32(net.output_layer(net.body(net.input_layer(img_B3HW)))), dim=1)


class Perceptual(nn.Module):
    """LPIPS of two pictures [B], in NCHW; the stand-in as it is."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.other = other

    def forward(self, output_B3HW: Tensor, reference_B3HW: Tensor) -> Tensor:
        other = self.other
        if not isinstance(other, LPIPS):
            distance: Tensor = other.distance(output_B3HW, reference_B3HW)
            return distance
        weights = [other.get_buffer(f"weight_{layer}") for layer in range(other.layers)]
        maps, target = (list(other.features(other.scaling(img))) for img in (output_B3HW, reference_B3HW))
        return feature_distance(maps, target, weights)


class Codes(nn.Module):
    """pSp's codes [B,L,D] of pictures of 256 px, in NCHW; the stand-in as it is."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.other = other

    def forward(self, img_B3HW: Tensor) -> Tensor:
        other = self.other
        if not isinstance(other, PSPCodeEncoder):
            w_BLD: Tensor = other(img_B3HW)
            return w_BLD
        encoder: Any = other.encoder
        shallow, middle, deep = _depths(encoder, F.interpolate(img_B3HW, (SIDE, SIDE), mode="bilinear"))
        middle = _resized(deep, middle) + encoder.latlayer1(middle)
        shallow = _resized(middle, shallow) + encoder.latlayer2(shallow)
        read = [deep if i < COARSE else middle if i < MIDDLE else shallow for i in range(len(encoder.styles))]
        styles = [style(map_BCHW) for style, map_BCHW in zip(encoder.styles, read, strict=True)]
        return torch.stack(styles, dim=1) + other.latent_avg


def _depths(trunk: IRSE50Trunk, x: Tensor) -> list[Tensor]:
    x, found = trunk.input_layer(x), []
    for number, unit in enumerate(trunk.body):
        x = unit(x)
        if number in TAPS:
            found.append(x)
    return found


def _resized(deeper_BChw: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(deeper_BChw, size=like.shape[-2:], mode="bilinear", align_corners=True)


# ------------------------------------------------------------------------------------------------ the step


class Baseline(nn.Module):
    """The nets and the loss. ``system``: ours, whose configuration and weights it takes (a copy; frozen judges are
    shared, since nothing changes them)."""

    def __init__(self, system: VoiceStyledFace) -> None:
        super().__init__()
        self.config = c = system.config
        assert isinstance(c.encoder, WaveformEncoder.Config)
        assert isinstance(c.mapping, StyleMapping.Config)
        self.encoder = Encoder(c.encoder)
        n_styles, style_dim = system.generator.n_latent, system.generator.style_dim
        self.mapping = Mapping(c.mapping, system.encoder.channels, n_styles, style_dim)
        copied(self.encoder, system.encoder.state_dict())
        copied(self.mapping, system.mapping.state_dict())
        self.generator = Generator(system.generator).requires_grad_(False)
        self.register_buffer("latent_avg", system.generator.latent_avg.clone())
        self.latent_avg: Tensor
        self.identity, self.perceptual = Identity(system.identity), Perceptual(system.perceptual)
        self.codes = None if system.codes is None else Codes(system.codes)

    def losses(self, wav_BT: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """The terms of the configuration and their sum, ``total``. ``reference``: [B,3,H,W] in [-1,1]."""
        c, t = self.config, self.config.losses
        w = self.mapping(self.encoder(wav_BT))
        if c.mean_style == "add":
            w = w + self.latent_avg
        face = F.adaptive_avg_pool2d(self.generator(w), c.image_size) if t.look_at_the_face else reference
        parts: dict[str, Tensor] = {}
        if t.mse:
            parts["mse"] = F.mse_loss(face, reference)
        if t.l1:
            parts["l1"] = F.l1_loss(face, reference)
        if t.lpips:
            parts["lpips"] = self.perceptual(face, reference).mean()
        if t.id:
            with torch.no_grad():
                embedding_BE = self.identity(reference)
            parts["id"] = (1 - F.cosine_similarity(self.identity(face), embedding_BE)).mean()
        if t.w_norm:
            parts["w_norm"] = (w - self.latent_avg).flatten(1).norm(dim=1).mean()
        if t.mse_crop:
            parts["mse_crop"] = F.mse_loss(face_box(face), face_box(reference))
        if t.lpips_crop:
            parts["lpips_crop"] = self.perceptual(face_box(face), face_box(reference)).mean()
        if t.style:
            assert self.codes is not None
            with torch.no_grad():
                codes_BLD = self.codes(reference)
            parts["style"] = F.mse_loss(w, codes_BLD)
        total = sum((getattr(t, name) * value for name, value in parts.items()), w.new_zeros(()))
        return {"total": total, **parts}

    def trained(self) -> list[nn.Parameter]:
        return [*self.encoder.parameters(), *self.mapping.parameters()]


class Steps:
    """A step of the thesis's training: an Adam for the encoder, one for the mapping, and clipping."""

    def __init__(self, baseline: Baseline, device: torch.device, bf16: bool = False) -> None:
        o = baseline.config.optimizer
        self.baseline, self.device, self.bf16, self.clip = baseline, device, bf16, o.clip
        betas = (o.betas[0], o.betas[1])
        self.optimizers = [
            torch.optim.Adam(module.parameters(), o.lr[name], betas, o.eps, o.weight_decay)
            for name, module in (("encoder", baseline.encoder), ("mapping", baseline.mapping))
        ]

    def step(self, wav_BT: Tensor, reference: Tensor) -> float:
        """One step; the loss."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext():
            total = self.baseline.losses(wav_BT, reference)["total"]
        total.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.baseline.trained(), self.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        return total.item()


# ------------------------------------------------------------------------------------------------ data


class Files(Dataset[tuple[Tensor, Tensor]]):
    """(wave [T] in [-1,1], picture [3,S,S] in [-1,1]) of each pair of files in a folder."""

    def __init__(self, folder: Path, seconds: float, size: int, sample_rate: int = 16_000) -> None:
        self.sounds = sorted(path for path in folder.iterdir() if path.suffix in (".wav", ".flac"))
        self.photos = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))
        assert len(self.sounds) == len(self.photos) > 0, f"{folder}: no pairs of a sound and a picture"
        self.frames, self.size = round(seconds * sample_rate), size

    def __len__(self) -> int:
        return len(self.sounds)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        wav_T, _ = soundfile.read(self.sounds[number], dtype="float32")
        if len(wav_T) < self.frames:
            wav_T = np.resize(wav_T, self.frames)
        start = int(torch.randint(len(wav_T) - self.frames + 1, ()))
        with Image.open(self.photos[number]) as opened:
            photo = opened.convert("RGB")
        if photo.size != (self.size, self.size):
            photo = photo.resize((self.size, self.size), Image.Resampling.LANCZOS)
        img_3HW = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() / 127.5 - 1
        return torch.from_numpy(wav_T[start : start + self.frames]), img_3HW

    def batches(self, batch: int, workers: int, pinned: bool) -> Iterator[list[Tensor]]:
        """Shuffled batches, epoch after epoch."""
        loader = DataLoader(
            self,
            batch,
            shuffle=True,
            num_workers=workers,
            pin_memory=pinned,
            drop_last=True,
            persistent_workers=workers > 0,
        )
        while True:
            yield from loader


def unpacked(shards: Path, folder: Path) -> Path:
    """The samples of the split train as files, which are the members of its shards; returns their folder."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for shard in sorted(shards.glob("train-*.tar")):
            with tarfile.open(shard) as tar:
                tar.extractall(folder, filter="data")
    return folder
