"""NVIDIA's StyleGAN2 pickles (stylegan2-ada-pytorch, and stylegan3's ``stylegan2-*``) in rosinality's layout.

file -> records (:mod:`v2f.weights.pickles`) -> G_ema's tensors, checked -> rosinality's names -> safetensors
"""

import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import safetensors.torch
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from v2f.errors import V2FError
from v2f.nn.stylegan2 import Generator, fir_kernel
from v2f.storage import store
from v2f.weights.pickles import MODULE, NAMES, PARAMETER, TENSOR, Call, RefusedError, StackMachine, Storage, preview

LARGEST_FILE = 2**31  # bytes; the pickle of a 1024 px generator has 380 million
LARGEST_SIDE = 4096  # pixels
MOST_LAYERS = 64  # of the mapping network
LAYOUT = "stylegan2-rosinality"
SUPPORTED = "use an unconditional StyleGAN2 with skip connections, noise, leaky ReLU and the filter [1, 3, 3, 1]"


@dataclass(frozen=True)
class _Layout:
    """What one of NVIDIA's modules must contain; ``tensors``: name -> number of dimensions."""

    kind: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, int] = field(default_factory=dict)
    modules: Mapping[str, "_Layout"] = field(default_factory=dict)


def _layout(size: int, layers: int) -> _Layout:
    """NVIDIA's generator of ``size`` px with ``layers`` layers in its mapping network."""

    def linear(activation: str, lr_mul: float) -> _Layout:
        return _Layout("FullyConnectedLayer", {"activation": activation, "bias_gain": lr_mul}, {"weight": 2, "bias": 1})

    def conv(up: int) -> _Layout:
        tensors = {"weight": 4, "bias": 1, "noise_strength": 0, "noise_const": 2, "resample_filter": 2}
        return _Layout("SynthesisLayer", {"activation": "lrelu", "use_noise": True, "up": up}, tensors, affine)

    def block(resolution: int) -> _Layout:
        tensors = {"resample_filter": 2} | ({"const": 3} if resolution == 4 else {})
        modules = ({} if resolution == 4 else {"conv0": conv(2)}) | {"conv1": conv(1), "torgb": rgb}
        return _Layout("SynthesisBlock", {"architecture": "skip"}, tensors, modules)

    affine = {"affine": linear("linear", 1)}
    rgb = _Layout("ToRGBLayer", {}, {"weight": 4, "bias": 1}, affine)
    mapping = {f"fc{i}": linear("lrelu", 0.01) for i in range(layers)}
    blocks = {f"b{resolution}": block(resolution) for resolution in _resolutions(size)}
    return _Layout(
        "Generator",
        {"c_dim": 0, "img_channels": 3},
        {},
        {
            "mapping": _Layout("MappingNetwork", {"c_dim": 0}, {"w_avg": 1}, mapping),
            "synthesis": _Layout("SynthesisNetwork", {}, {}, blocks),
        },
    )


@dataclass(frozen=True)
class NvidiaGenerator:
    """G_ema of a pickle."""

    size: int
    layers: int
    """Of the mapping network."""
    conv_clamp: float | None
    """Bound to which NVIDIA's code clamps every convolution's output (a guard for float16); None: no clamping."""
    tensors: dict[str, Tensor]
    """Float32, by NVIDIA's names: ``mapping.fc0.weight``, ``synthesis.b4.const``, ..."""


def read_pickle(data: bytes, where: str) -> NvidiaGenerator:
    """The generator ``G_ema`` of a pickle; no code in the pickle is run.

    ``where`` names the file in errors. A one-line :class:`V2FError` says why it is not an unconditional StyleGAN2
    generator of NVIDIA's PyTorch code: a global or an opcode that does not belong there, damage, another
    architecture, or the first tensor that is missing, unknown, not float32 or has another number of dimensions.
    """
    if data[:1] != b"\x80":
        raise V2FError(f"{where}: not a pickle; convert only NVIDIA's .pkl files, other files are used as they are")
    try:
        content = StackMachine(data).read(io.BytesIO(data), NAMES)
    except RefusedError as refused:
        if "dnnlib.tflib" in str(refused):
            raise V2FError(
                f"{where}: a TensorFlow pickle; convert it with legacy.py of NVIDIA's stylegan3 first, or use the "
                "PyTorch file of the same name"
            ) from None
        raise V2FError(
            f"{where}: refused, and no code in it was run: the pickle {refused}, which does not belong in an "
            "NVIDIA StyleGAN2 pickle; get the file from its authors"
        ) from None
    except (ValueError, TypeError, KeyError, IndexError):
        raise V2FError(f"{where}: the pickle is truncated or damaged, or not NVIDIA's; copy it again") from None
    if not isinstance(content, dict) or "G_ema" not in content:
        raise V2FError(
            f"{where}: contains no G_ema, the generator of NVIDIA's pickles; use one of their stylegan2 files"
        )
    return _Reader(data, where).generator(content["G_ema"])


class _Reader:
    """Takes tensors from the records of a pickle, following only the paths of a :class:`_Layout`."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data = data
        self.left = len(data)
        self.where = where
        self.tensors: dict[str, Tensor] = {}
        self.clamps: list[float] = []

    def generator(self, value: Any) -> NvidiaGenerator:
        state = self.state(value, "G_ema", "Generator")
        mapping, synthesis = (_part(state, "_modules").get(name) for name in ("mapping", "synthesis"))
        blocks = self.state(synthesis, "G_ema.synthesis", "SynthesisNetwork")
        if "input" in _part(blocks, "_modules"):
            self.fail("G_ema is a StyleGAN3 generator, but only StyleGAN2 is supported; use a stylegan2-*.pkl")
        size = state.get("img_resolution")
        layers = self.state(mapping, "G_ema.mapping", "MappingNetwork").get("num_layers")
        if type(size) is not int or size not in _resolutions(LARGEST_SIDE)[1:]:
            self.fail(f"G_ema.img_resolution is {preview(size)}, expected a power of two from 8 to {LARGEST_SIDE}")
        if type(layers) is not int or not 1 <= layers <= MOST_LAYERS:
            self.fail(f"G_ema.mapping.num_layers is {preview(layers)}, expected 1 to {MOST_LAYERS}")
        self.walk(value, "G_ema", _layout(size, layers))
        for name, tensor in self.tensors.items():
            if name.endswith("resample_filter") and not _is_filter(tensor):
                self.fail(f"G_ema.{name} is a different filter; {SUPPORTED}")
        return NvidiaGenerator(size, layers, min(self.clamps, default=None), self.tensors)

    def walk(self, value: Any, path: str, layout: _Layout) -> None:
        """Put the tensors of a module into ``self.tensors``; the module must match ``layout`` exactly."""
        state = self.state(value, path, layout.kind)
        for name, expected in layout.attributes.items():
            if type(state.get(name)) not in (int, float, str, bool) or state[name] != expected:
                self.fail(f"{path}.{name} is {preview(state.get(name))}, expected {expected!r}; {SUPPORTED}")
        clamp = state.get("conv_clamp")
        if clamp is not None:
            if type(clamp) not in (int, float) or not 0 < clamp < 2**40:
                self.fail(f"{path}.conv_clamp is {preview(clamp)}, expected a positive number")
            self.clamps.append(float(clamp))
        tensors = {n: v for part in ("_parameters", "_buffers") for n, v in _part(state, part).items() if v is not None}
        modules = _part(state, "_modules")
        for found, known in ((tensors, layout.tensors), (modules, layout.modules)):
            for name in known:
                if name not in found:
                    self.fail(f"{path}.{name} is missing; {SUPPORTED}")
            for name in found:
                if name not in known:
                    self.fail(f"{path} has the unknown entry {preview(name)}; {SUPPORTED}")
        for name, dimensions in layout.tensors.items():
            at = f"{path}.{name}"
            self.tensors[at.removeprefix("G_ema.")] = self.tensor(tensors[name], at, dimensions)
        for name, module in layout.modules.items():
            self.walk(modules[name], f"{path}.{name}", module)

    def state(self, value: Any, path: str, kind: str) -> dict[str, Any]:
        """The attributes of a module whose class is named ``kind``."""
        meta = value.args[0] if isinstance(value, Call) and value.name == MODULE and len(value.args) == 1 else None
        if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
            self.fail(f"{path} is not a module of NVIDIA's code; {SUPPORTED}")
        if meta.get("class_name") != kind:
            self.fail(f"{path} has the class {preview(meta.get('class_name'))}, expected {kind}; {SUPPORTED}")
        state: dict[str, Any] = meta["state"]
        return state

    def tensor(self, value: Any, path: str, dimensions: int) -> Tensor:
        """A float32 tensor that owns its memory; every element lies inside its storage."""
        if isinstance(value, Call) and value.name == PARAMETER and value.args:
            value = value.args[0]
        if not isinstance(value, Call) or value.name != TENSOR or len(value.args) < 4:
            self.fail(f"{path} is not a tensor; {SUPPORTED}")
        storage, offset, shape, strides = value.args[:4]
        if type(storage) is not Storage or not _naturals((offset,)) or not _naturals(shape) or not _naturals(strides):
            self.fail(f"{path} is damaged; copy the file again")
        if storage.kind != "torch.FloatStorage":
            self.fail(f"{path} is {storage.kind}, expected float32 numbers (torch.FloatStorage); {SUPPORTED}")
        if len(shape) != dimensions or len(strides) != dimensions:
            self.fail(f"{path} has the shape {list(shape[:8])}, expected {dimensions} dimensions; {SUPPORTED}")
        last = offset + sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True))
        self.left -= 4 * math.prod(shape)  # a small file must not request one large storage many times
        if 0 in shape or last >= storage.length or self.left < 0:
            self.fail(f"{path} does not fit its storage; copy the file again")
        numbers = np.frombuffer(self.data, "<f4", storage.length - offset, storage.start + 4 * offset)
        steps = [4 * stride for stride in strides]
        return torch.from_numpy(np.array(as_strided(numbers, shape, steps), np.float32, order="C"))

    def fail(self, problem: str) -> NoReturn:
        raise V2FError(f"{self.where}: {problem}")


def to_rosinality(generator: NvidiaGenerator) -> dict[str, Tensor]:
    """The tensors under rosinality's names and in its shapes, with the mean style as ``latent_avg`` [D].

    Only the resampling filters change value: NVIDIA's sum to 1, with the gain of 4 (for the zeros between the pixels)
    in its code; rosinality's sum to 4. Both store the weight of an upsampling convolution as the transposed convolution
    takes it, so nothing is flipped.
    """
    given = generator.tensors
    state = {"latent_avg": given["mapping.w_avg"], "input.input": given["synthesis.b4.const"][None]}
    for i in range(generator.layers):
        for name in ("weight", "bias"):
            state[f"style.{i + 1}.{name}"] = given[f"mapping.fc{i}.{name}"]

    def modulated(theirs: str, ours: str) -> None:
        state[f"{ours}.conv.weight"] = given[f"{theirs}.weight"][None]
        for name in ("weight", "bias"):
            state[f"{ours}.conv.modulation.{name}"] = given[f"{theirs}.affine.{name}"]

    def styled(theirs: str, ours: str, layer: int) -> None:
        modulated(theirs, ours)
        state[f"{ours}.noise.weight"] = given[f"{theirs}.noise_strength"][None]
        state[f"{ours}.activate.bias"] = given[f"{theirs}.bias"]
        state[f"noises.noise_{layer}"] = given[f"{theirs}.noise_const"][None, None]

    for level, resolution in enumerate(_resolutions(generator.size)):
        block, rgb = f"synthesis.b{resolution}", "to_rgb1" if level == 0 else f"to_rgbs.{level - 1}"
        modulated(f"{block}.torgb", rgb)
        state[f"{rgb}.bias"] = given[f"{block}.torgb.bias"][None, :, None, None]
        if level == 0:
            styled(f"{block}.conv1", "conv1", 0)
            continue
        state[f"{rgb}.upsample.kernel"] = given[f"{block}.resample_filter"] * 4
        for i, conv in ((2 * level - 2, "conv0"), (2 * level - 1, "conv1")):
            styled(f"{block}.{conv}", f"convs.{i}", i + 1)
        state[f"convs.{2 * level - 2}.conv.blur.kernel"] = given[f"{block}.conv0.resample_filter"] * 4
    return state


def convert(source: str, target: str) -> dict[str, str]:
    """Write the generator of a pickle as safetensors, under rosinality's names, together with ``latent_avg``.

    Paths may be remote. ``target`` is written atomically, and only if a :class:`Generator` accepts all of it; the same
    pickle gives the same bytes. Returns the new file's metadata: its format, the source's name and SHA-256, the
    generator's size, and ``conv_clamp`` (see :class:`NvidiaGenerator`; our generator does not clamp). Errors as for
    :func:`read_pickle`, and for shapes that contradict each other.
    """
    if not target.endswith(".safetensors"):
        raise V2FError(f"{target}: the output is a safetensors file; choose a name that ends in .safetensors")
    if store.size(source) > LARGEST_FILE:
        raise V2FError(
            f"{source}: larger than {LARGEST_FILE // 2**30} GiB, but StyleGAN2 pickles are far smaller; check the path"
        )
    data = store.read_bytes(source)
    generator = read_pickle(data, source)
    state = to_rosinality(generator)
    width = Generator.fitting({n: tensor for n, tensor in state.items() if n != "latent_avg"}, source).style_dim
    if len(state["latent_avg"]) != width:
        raise V2FError(
            f"{source}: G_ema.mapping.w_avg has the shape {list(state['latent_avg'].shape)}, expected {[width]}"
        )
    about = {
        "format": LAYOUT,
        "source_name": source.rstrip("/").rsplit("/", 1)[-1],
        "source_sha256": hashlib.sha256(data).hexdigest(),
        "size": str(generator.size),
        "conv_clamp": str(generator.conv_clamp),
    }
    store.write_bytes(target, _sorted_header(safetensors.torch.save(state, about)))
    return about


def _sorted_header(data: bytes) -> bytes:
    """A safetensors file with sorted metadata: the library shuffles them, so files with equal content would differ."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensor data after it aligned
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(data)[8 + length :]))


def _resolutions(size: int) -> list[int]:
    return [2**i for i in range(2, size.bit_length())]


def _is_filter(tensor: Tensor) -> bool:
    return tensor.shape == (4, 4) and torch.allclose(tensor, fir_kernel(1.0), rtol=0, atol=1e-6)


def _naturals(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value < 2**40 for value in values)


def _part(state: dict[str, Any], name: str) -> dict[str, Any]:
    part = state.get(name)
    return part if isinstance(part, dict) else {}
