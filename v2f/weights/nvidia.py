"""NVIDIA's StyleGAN2 pickles (stylegan2-ada-pytorch, and stylegan3's ``stylegan2-*``), read as data and renamed.

    file -> instructions -> inert records -> G_ema's tensors, checked -> rosinality's names -> safetensors

A pickle is a program for a stack machine, and Python's unpickler runs what it asks for. Here :class:`_Machine`, which
has no way to import, call or set anything, reads the instructions: a global is its name and nothing else, a call is a
record of a name and arguments, and names and instructions outside the short lists below are refused. NVIDIA's modules
carry their own source code; here that is a string that nobody looks at. Tensors are offsets into the file until they
are asked for, so that the other networks of a file (G, D, the augmentation) take no memory but the file's own.
"""

import hashlib
import io
import json
import math
import pickletools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import numpy as np
import safetensors.torch
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from v2f.errors import V2FError
from v2f.nn.stylegan2 import Generator, fir_kernel
from v2f.storage import store

LARGEST_FILE = 2**31  # bytes; a pickle of 1024 px has 380 million
MOST_INSTRUCTIONS = 1_000_000  # a pickle of 1024 px has 66,000; bounds what small instructions make large
LARGEST_SIDE = 4096  # pixels
MOST_LAYERS = 64  # of the mapping network
LARGEST_HEADER = 4096  # bytes before the numbers of a storage; it is about 250
LAYOUT = "stylegan2-rosinality"
WAY_OUT = "use an unconditional StyleGAN2 with skip connections, noise, leaky ReLU and the filter [1, 3, 3, 1]"

_MODULE = "torch_utils.persistence._reconstruct_persistent_obj"
_PARAMETER = "torch._utils._rebuild_parameter"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_BYTES = "torch.storage._load_from_bytes"
_DICTS = frozenset({"collections.OrderedDict", "dnnlib.util.EasyDict"})
# what a number or an array of NumPy is pickled by; before and since NumPy 2
_NUMPY = frozenset(
    f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")
)
_NUMPY |= {"numpy.dtype", "numpy.ndarray"}
_NAMES = _DICTS | _NUMPY | {_MODULE, _PARAMETER, _TENSOR, _BYTES, "builtins.set"}
# storages, and the bytes of a number in them
_WIDTHS = {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "Half": 2, "BFloat16": 2, "Short": 2, "Char": 1, "Byte": 1}
_STORAGES = {f"torch.{kind}Storage": width for kind, width in (_WIDTHS | {"Bool": 1}).items()}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_ARGUMENTS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"})
_BLOBS = {"BINBYTES": 5, "SHORT_BINBYTES": 2}  # bytes from the instruction to what it holds


class _Name(NamedTuple):
    """A global that the pickle names, ``module.name``."""

    text: str


@dataclass(frozen=True, eq=False)
class _Call:
    """What the pickle would have called."""

    name: str
    args: tuple[Any, ...]


class _Blob(NamedTuple):
    """Bytes of the file."""

    start: int
    end: int


class _Storage(NamedTuple):
    """The numbers of a tensor: their kind (``torch.FloatStorage``), and where they lie in the file."""

    kind: str
    length: int
    start: int
    end: int


class _Refused(Exception):
    """What the pickle holds that a StyleGAN2 pickle has no use for."""


class _Machine:
    """The stack machine of a pickle, without everything in it that could do more than build data.

    Whatever it makes is None, bool, int, float, str, tuple, list, dict with str keys, or one of the records above.
    ``_Refused`` says what is not allowed; ValueError, TypeError, KeyError and IndexError mean that nothing well formed
    is there. Containers may hold themselves: only follow paths whose length is known.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.left = MOST_INSTRUCTIONS

    def read(self, file: io.BytesIO, names: Collection[str], persistent: bool = False) -> Any:
        """The next pickle of ``file``; it may use the globals ``names``, and persistent ids where that is said."""
        stack: list[Any] = []
        marks: list[int] = []  # heights of the stack
        memo: dict[int, Any] = {}

        def take(count: int) -> list[Any]:
            if not 0 <= count <= len(stack):
                raise IndexError("not so much is on the stack")
            taken = stack[len(stack) - count :]
            del stack[len(stack) - count :]
            return taken

        def to_mark() -> list[Any]:
            return take(len(stack) - marks.pop())

        argument: Any
        for instruction, argument, position in pickletools.genops(file):
            self.left -= 1
            if self.left < 0:
                raise _Refused(f"has more than {MOST_INSTRUCTIONS:,} instructions")
            operation = instruction.name
            if operation in _ARGUMENTS:
                stack.append(argument)
            elif operation in _CONSTANTS:
                stack.append(_CONSTANTS[operation])
            elif operation in _BLOBS:
                start = (position or 0) + _BLOBS[operation]
                stack.append(_Blob(start, start + len(argument)))
            elif operation == "EMPTY_DICT":
                stack.append({})
            elif operation in ("EMPTY_LIST", "EMPTY_SET"):  # a set of unknown things might take forever to hash
                stack.append([])
            elif operation == "MARK":
                marks.append(len(stack))
            elif operation == "TUPLE":
                stack.append(tuple(to_mark()))
            elif operation in ("TUPLE1", "TUPLE2", "TUPLE3"):
                stack.append(tuple(take(int(operation[-1]))))
            elif operation in ("APPEND", "APPENDS", "ADDITEMS"):
                items = take(1) if operation == "APPEND" else to_mark()
                _of(list, stack[-1]).extend(items)
            elif operation in ("SETITEM", "SETITEMS"):
                items = take(2) if operation == "SETITEM" else to_mark()
                pairs = zip(items[::2], items[1::2], strict=True)
                _of(dict, stack[-1]).update({_of(str, key): value for key, value in pairs})
            elif operation in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif operation == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif operation in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif operation in ("GLOBAL", "STACK_GLOBAL"):
                parts = argument.split(" ", 1) if operation == "GLOBAL" else take(2)
                name = ".".join(_of(str, part) for part in parts)
                if name not in names:
                    raise _Refused(f"asks for {_shown(name)}")
                stack.append(_Name(name))
            elif operation in ("REDUCE", "NEWOBJ"):
                called, args = take(2)
                stack.append(self.call(_of(_Name, called).text, _of(tuple, args)))
            elif operation == "BUILD":  # a state; NumPy's formats of numbers have one
                take(1)
                if _of(_Call, stack[-1]).name not in _NUMPY:
                    raise _Refused(f"sets the state of {stack[-1].name}")
            elif operation == "BINPERSID" and persistent:
                pass  # the id itself is what is wanted
            elif operation == "STOP":
                return take(1)[0]
            elif operation not in ("PROTO", "FRAME"):
                raise _Refused(f"has the instruction {operation}")
        raise ValueError("no end")

    def call(self, name: str, args: tuple[Any, ...]) -> Any:
        """What stands in the place of a call's result."""
        if name in _DICTS:
            if args:
                raise ValueError("a dict is filled by later instructions")
            return {}
        if name == _BYTES:
            (blob,) = args
            return self.storage(_of(_Blob, blob))
        return _Call(name, args)

    def storage(self, blob: _Blob) -> _Storage:
        """The storage in what ``torch.save`` wrote, in its format of before version 1.6: five pickles, then numbers."""
        file = io.BytesIO(self.data[blob.start : min(blob.end, blob.start + LARGEST_HEADER)])
        magic, version, system = (self.read(file, frozenset()) for _ in range(3))
        if (magic, version) != (0x1950A86A20F9469CFC6C, 1001) or _of(dict, system).get("little_endian") is not True:
            raise ValueError("not the format of a storage")
        tag, kind, key, _, count, view = _of(tuple, self.read(file, _STORAGES, persistent=True))
        keys = _of(list, self.read(file, frozenset()))
        written = int.from_bytes(file.read(8), "little")
        start = blob.start + file.tell()
        if tag != "storage" or len(keys) != 1 or keys[0] != _of(str, key) or view is not None:
            raise ValueError("not one storage")
        if written != _of(int, count) or start + count * _STORAGES[_of(_Name, kind).text] != blob.end:
            raise ValueError("a storage of another length")
        return _Storage(kind.text, count, start, blob.end)


@dataclass(frozen=True)
class _Layout:
    """What one of NVIDIA's modules has to be; ``tensors`` by their number of dimensions."""

    kind: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, int] = field(default_factory=dict)
    modules: Mapping[str, "_Layout"] = field(default_factory=dict)


def _layout(size: int, layers: int) -> _Layout:
    """NVIDIA's generator of ``size`` px with ``layers`` layers in its mapping."""

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
    """Where NVIDIA's code clamps the output of every convolution (a guard for float16); None: nowhere."""
    tensors: dict[str, Tensor]
    """Float32, by NVIDIA's names: ``mapping.fc0.weight``, ``synthesis.b4.const``, ..."""


def read_pickle(data: bytes, where: str) -> NvidiaGenerator:
    """The generator ``G_ema`` of a pickle, which is read without running any of it.

    ``where`` names the file in errors. :class:`V2FError` says in one line what keeps it from being an unconditional
    StyleGAN2 generator of NVIDIA's PyTorch code: a global or an instruction that has no business there, damage, another
    architecture, or the first tensor that is missing, unknown or not float32, or has another number of dimensions.
    """
    if data[:1] != b"\x80":
        raise V2FError(
            f"{where}: this is no pickle; only NVIDIA's .pkl files are converted, others are used as they are"
        )
    try:
        content = _Machine(data).read(io.BytesIO(data), _NAMES)
    except _Refused as refused:
        if "dnnlib.tflib" in str(refused):
            raise V2FError(
                f"{where}: a TensorFlow pickle; convert it with legacy.py of NVIDIA's stylegan3 first, or take the "
                "PyTorch one of the same name"
            ) from None
        raise V2FError(
            f"{where}: refused, nothing of it was run: the pickle {refused}, which has no place in a StyleGAN2 of "
            "NVIDIA's; take the file from its authors"
        ) from None
    except (ValueError, TypeError, KeyError, IndexError):
        raise V2FError(f"{where}: the pickle is cut or damaged, or no file of NVIDIA's; copy it anew") from None
    if not isinstance(content, dict) or "G_ema" not in content:
        raise V2FError(f"{where}: holds no G_ema, the generator of NVIDIA's pickles; take one of their stylegan2 files")
    return _Reader(data, where).generator(content["G_ema"])


class _Reader:
    """Takes the tensors out of the records of a pickle, along the paths of a :class:`_Layout` and no others."""

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
            self.fail("G_ema is a StyleGAN3 generator; only StyleGAN2 ones are drawn here: take a stylegan2-*.pkl")
        size = state.get("img_resolution")
        layers = self.state(mapping, "G_ema.mapping", "MappingNetwork").get("num_layers")
        if type(size) is not int or size not in _resolutions(LARGEST_SIDE)[1:]:
            self.fail(f"G_ema.img_resolution is {_shown(size)}, a power of two from 8 to {LARGEST_SIDE} is wanted")
        if type(layers) is not int or not 1 <= layers <= MOST_LAYERS:
            self.fail(f"G_ema.mapping.num_layers is {_shown(layers)}, 1 to {MOST_LAYERS} are wanted")
        self.walk(value, "G_ema", _layout(size, layers))
        for name, tensor in self.tensors.items():
            if name.endswith("resample_filter") and not _is_filter(tensor):
                self.fail(f"G_ema.{name} is another filter; {WAY_OUT}")
        return NvidiaGenerator(size, layers, min(self.clamps, default=None), self.tensors)

    def walk(self, value: Any, path: str, layout: _Layout) -> None:
        """Put the tensors of a module into ``self.tensors``; it has all that ``layout`` has, and no more."""
        state = self.state(value, path, layout.kind)
        for name, wanted in layout.attributes.items():
            if type(state.get(name)) not in (int, float, str, bool) or state[name] != wanted:
                self.fail(f"{path}.{name} is {_shown(state.get(name))}, {wanted!r} is wanted; {WAY_OUT}")
        clamp = state.get("conv_clamp")
        if clamp is not None:
            if type(clamp) not in (int, float) or not 0 < clamp < 2**40:
                self.fail(f"{path}.conv_clamp is {_shown(clamp)}, a positive number is wanted")
            self.clamps.append(float(clamp))
        tensors = {n: v for part in ("_parameters", "_buffers") for n, v in _part(state, part).items() if v is not None}
        modules = _part(state, "_modules")
        for found, known in ((tensors, layout.tensors), (modules, layout.modules)):
            for name in known:
                if name not in found:
                    self.fail(f"{path}.{name} is missing; {WAY_OUT}")
            for name in found:
                if name not in known:
                    self.fail(f"{path} has the unknown {_shown(name)}; {WAY_OUT}")
        for name, dimensions in layout.tensors.items():
            at = f"{path}.{name}"
            self.tensors[at.removeprefix("G_ema.")] = self.tensor(tensors[name], at, dimensions)
        for name, module in layout.modules.items():
            self.walk(modules[name], f"{path}.{name}", module)

    def state(self, value: Any, path: str, kind: str) -> dict[str, Any]:
        """The attributes of a module whose class is called ``kind``."""
        meta = value.args[0] if isinstance(value, _Call) and value.name == _MODULE and len(value.args) == 1 else None
        if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
            self.fail(f"{path} is no module of NVIDIA's code; {WAY_OUT}")
        if meta.get("class_name") != kind:
            self.fail(f"{path} is of the class {_shown(meta.get('class_name'))}, {kind} is wanted; {WAY_OUT}")
        state: dict[str, Any] = meta["state"]
        return state

    def tensor(self, value: Any, path: str, dimensions: int) -> Tensor:
        """A float32 tensor, with memory of its own; every element lies inside its storage."""
        if isinstance(value, _Call) and value.name == _PARAMETER and value.args:
            value = value.args[0]
        if not isinstance(value, _Call) or value.name != _TENSOR or len(value.args) < 4:
            self.fail(f"{path} is no tensor")
        storage, offset, shape, strides = value.args[:4]
        if type(storage) is not _Storage or not _naturals((offset,)) or not _naturals(shape) or not _naturals(strides):
            self.fail(f"{path} is damaged; copy the file anew")
        if storage.kind != "torch.FloatStorage":
            self.fail(f"{path} is {storage.kind}, float32 numbers (torch.FloatStorage) are wanted")
        if len(shape) != dimensions or len(strides) != dimensions:
            self.fail(f"{path} is {list(shape[:8])}, {dimensions} dimensions are wanted")
        last = offset + sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True))
        self.left -= 4 * math.prod(shape)  # or a small file could ask for one large storage again and again
        if 0 in shape or last >= storage.length or self.left < 0:
            self.fail(f"{path} does not fit its storage; copy the file anew")
        numbers = np.frombuffer(self.data, "<f4", storage.length - offset, storage.start + 4 * offset)
        steps = [4 * stride for stride in strides]
        return torch.from_numpy(np.array(as_strided(numbers, shape, steps), np.float32, order="C"))

    def fail(self, problem: str) -> NoReturn:
        raise V2FError(f"{self.where}: {problem}")


def to_rosinality(generator: NvidiaGenerator) -> dict[str, Tensor]:
    """The tensors under rosinality's names and in its shapes, with the mean style as ``latent_avg`` [D].

    No value changes but the resampling filters': NVIDIA's have the sum 1, and the gain of 4 (of the zeros between the
    pixels) lies in its code; rosinality's have the sum 4. Both hold the weight of an upsampling convolution as the
    transposed convolution takes it, so that nothing is flipped.
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
    """Write the generator of a pickle as safetensors, under rosinality's names and ``latent_avg`` beside them.

    Paths may be remote. ``target`` is there whole or not at all, and only if a :class:`Generator` takes all of it; the
    same pickle gives the same bytes. Returns what the new file says of itself: its format, the source's name and
    SHA-256, the generator's size, and ``conv_clamp`` (see :class:`NvidiaGenerator`; our generator clamps nowhere).
    Errors as for :func:`read_pickle`, and for shapes that do not fit each other.
    """
    if not target.endswith(".safetensors"):
        raise V2FError(f"{target}: what is written is safetensors; let the name end in .safetensors")
    if store.size(source) > LARGEST_FILE:
        raise V2FError(f"{source}: more than {LARGEST_FILE // 2**30} GiB; StyleGAN2's pickles are far smaller")
    data = store.read_bytes(source)
    generator = read_pickle(data, source)
    state = to_rosinality(generator)
    width = Generator.fitting({n: tensor for n, tensor in state.items() if n != "latent_avg"}, source).style_dim
    if len(state["latent_avg"]) != width:
        raise V2FError(f"{source}: G_ema.mapping.w_avg is {list(state['latent_avg'].shape)}, {[width]} is wanted")
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
    """A safetensors file with its metadata sorted: the library shuffles them, and no two files would be the same."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers behind it stay aligned
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


def _of(kind: type, value: Any) -> Any:
    """``value``, which is to be a ``kind`` exactly: a record is a tuple too, and a bool an int."""
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} in place of {kind.__name__}")
    return value


def _shown(value: Any) -> str:
    """A value of a file that nobody trusts, as a short piece of one line."""
    if isinstance(value, str):
        return ascii(value[:80])[1:-1] + ("..." if len(value) > 80 else "")
    return repr(value)[:80] if value is None or isinstance(value, (bool, int, float)) else type(value).__name__
