"""Pickles of the structure of NVIDIA's StyleGAN2 ones, made without its code, and the formulas of its generator.

``persistence`` and ``easydict`` stand in for the two modules whose names are in those pickles. A module reduces to a
call with a dict of its source, its class and its attributes, as there.
"""

import contextlib
import math
import pickle
import sys
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SOURCE = "raise RuntimeError('this source was run')"


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> Any:
    raise RuntimeError("a pickle was run")


class EasyDict(dict):
    """A dict whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
EasyDict.__module__ = "dnnlib.util"


@contextlib.contextmanager
def names() -> Iterator[None]:
    """``torch_utils.persistence`` and ``dnnlib.util`` can be imported, which the pickler asks for."""
    modules = {
        name: types.ModuleType(name) for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    }
    vars(modules["torch_utils.persistence"])["_reconstruct_persistent_obj"] = _reconstruct_persistent_obj
    vars(modules["dnnlib.util"])["EasyDict"] = EasyDict
    with mock.patch.dict(sys.modules, modules):
        yield


class Net(nn.Module):
    """A module of NVIDIA's class ``kind`` with these attributes: tensors, modules and plain values."""

    def __init__(self, kind: str, *, buffers: tuple[str, ...] = (), **attributes: Any) -> None:
        super().__init__()
        self.__dict__["kind"] = kind
        for name, value in attributes.items():
            if isinstance(value, Tensor) and name in buffers:
                self.register_buffer(name, value)
            else:
                setattr(self, name, nn.Parameter(value, requires_grad=False) if isinstance(value, Tensor) else value)

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in self.__dict__.items() if name != "kind"}
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.kind, "state": state}
        return (_reconstruct_persistent_obj, (meta,), None)


def fir() -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / 64


def linear(inputs: int, outputs: int, activation: str = "linear", lr_mul: float = 1, bias: float = 1) -> Net:
    return Net(
        "FullyConnectedLayer",
        activation=activation,
        weight=torch.randn(outputs, inputs) / lr_mul,
        bias=(bias + 0.3 * torch.randn(outputs)) / lr_mul,
        weight_gain=lr_mul / np.sqrt(inputs),  # a number of NumPy's, as there
        bias_gain=lr_mul,
    )


def conv(inputs: int, outputs: int, width: int, resolution: int, up: int) -> Net:
    return Net(
        "SynthesisLayer",
        buffers=("resample_filter", "noise_const"),
        resolution=resolution,
        up=up,
        use_noise=True,
        activation="lrelu",
        conv_clamp=None,
        resample_filter=fir(),
        act_gain=np.sqrt(2),
        affine=linear(width, inputs),
        # half of the published layers lie in memory with the channels last
        weight=torch.randn(outputs, inputs, 3, 3).to(memory_format=torch.channels_last),
        noise_const=torch.randn(resolution, resolution),
        noise_strength=torch.randn([]),
        bias=torch.randn(outputs),
    )


def block(inputs: int, outputs: int, width: int, resolution: int) -> Net:
    first = resolution == 4
    rgb = Net(
        "ToRGBLayer",
        conv_clamp=None,
        affine=linear(width, outputs),
        weight=torch.randn(3, outputs, 1, 1),
        bias=torch.randn(3),
        weight_gain=1 / np.sqrt(outputs),
    )
    return Net(
        "SynthesisBlock",
        buffers=("resample_filter",),
        in_channels=inputs,
        resolution=resolution,
        architecture="skip",
        resample_filter=fir(),
        **({"const": torch.randn(outputs, 4, 4)} if first else {"conv0": conv(inputs, outputs, width, resolution, 2)}),
        conv1=conv(outputs, outputs, width, resolution, 1),
        torgb=rgb,
    )


def generator(size: int = 16, width: int = 6, layers: int = 2, base: int = 128, most: int = 12, seed: int = 0) -> Net:
    """A generator of ``size`` px with ``min(most, base // resolution)`` channels."""
    torch.manual_seed(seed)
    resolutions = [2**i for i in range(2, size.bit_length())]
    channels = {r: min(most, base // r) for r in resolutions}
    blocks = {f"b{r}": block(channels.get(r // 2, 0), channels[r], width, r) for r in resolutions}
    fully = {f"fc{i}": linear(width, width, "lrelu", 0.01, bias=0) for i in range(layers)}
    mapping = Net(
        "MappingNetwork", buffers=("w_avg",), z_dim=width, c_dim=0, num_layers=layers, w_avg=torch.randn(width), **fully
    )
    synthesis = Net("SynthesisNetwork", img_resolution=size, block_resolutions=resolutions, **blocks)
    shape = {"z_dim": width, "c_dim": 0, "w_dim": width, "img_resolution": size, "img_channels": 3}
    return Net("Generator", _init_kwargs=EasyDict(shape), **shape, synthesis=synthesis, mapping=mapping).eval()


def discriminator() -> Net:
    """Another network in the file; it holds what a generator does not: other formats of numbers, an array."""
    return Net(
        "Discriminator",
        buffers=("indices", "halves"),
        conv=Net("Conv2dLayer", weight=torch.randn(4, 3, 3, 3), bias=None, conv_clamp=256),
        indices=torch.arange(4),
        halves=torch.zeros(3, dtype=torch.float16),
        array=np.arange(3.0),
        blur={"a", "b"},
    )


def pickled(g_ema: Any, protocol: int = 4, **others: Any) -> bytes:
    """The file that NVIDIA's training writes."""
    content = {
        "G": generator(8, seed=1),
        "D": discriminator(),
        "G_ema": g_ema,
        "augment_pipe": None,
        "training_set_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset", resolution=16, xflip=True),
    }
    with names():
        return pickle.dumps(content | others, protocol=protocol)


# --- the formulas ------------------------------------------------------------------------------------------------


def dense(layer: Any, x: Tensor) -> Tensor:
    x = x @ (layer.weight * layer.weight_gain).T + layer.bias * layer.bias_gain
    return leaky(x) if layer.activation == "lrelu" else x


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)


def zeros_between(x: Tensor) -> Tensor:
    out = torch.zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    out[:, :, ::2, ::2] = x
    return out


def filtered(x: Tensor, kernel: Tensor, before: int, after: int) -> Tensor:
    """The filter with the gain of two in each direction that makes up for the zeros."""
    flat = F.pad(x, (before, after, before, after)).flatten(0, 1)[:, None]
    return F.conv2d(flat, 4 * kernel[None, None])[:, 0].unflatten(0, x.shape[:2])


def modulated(layer: Any, x: Tensor, style: Tensor, up: bool, demodulate: bool) -> Tensor:
    """Zeros between the pixels, a convolution with the modulated weight (mirrored there, as a transposed convolution
    has it), the filter; a sample at a time."""
    weight = layer.weight[None] * style[:, None, :, None, None]
    if demodulate:
        weight = weight / torch.sqrt(weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
    if up:
        x, weight = F.pad(zeros_between(x), (2, 1, 2, 1)), weight.flip(3, 4)
    padding = 0 if up else layer.weight.shape[-1] // 2
    x = torch.cat([F.conv2d(a[None], w, padding=padding) for a, w in zip(x, weight, strict=True)])
    return filtered(x, layer.resample_filter, 1, 1) if up else x


def styles(g: Any, z: Tensor) -> Tensor:
    w = z / torch.sqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)
    for i in range(g.mapping.num_layers):
        w = dense(getattr(g.mapping, f"fc{i}"), w)
    return w


def picture(g: Any, w: Tensor) -> Tensor:
    """The picture of one style w [B,D] for all layers, with the stored noise."""
    x, image = g.synthesis.b4.const.repeat(len(w), 1, 1, 1), None
    for resolution in g.synthesis.block_resolutions:
        here = getattr(g.synthesis, f"b{resolution}")
        for layer in ([here.conv0] if resolution > 4 else []) + [here.conv1]:
            x = modulated(layer, x, dense(layer.affine, w), layer.up == 2, demodulate=True)
            x = leaky(x + layer.noise_const * layer.noise_strength + layer.bias[:, None, None])
        rgb = here.torgb
        colors = modulated(rgb, x, dense(rgb.affine, w) * rgb.weight_gain, False, demodulate=False)
        colors = colors + rgb.bias[:, None, None]
        image = colors if image is None else colors + filtered(zeros_between(image), here.resample_filter, 2, 1)
    assert image is not None
    return image
