"""NVIDIA's pickles: the picture of their generator by its own formulas, what is refused, and that nothing is run."""

import copy
import copyreg
import io
import os
import pickle
import pickletools
import random
import struct
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_nvidia as fake
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from v2f.errors import V2FError
from v2f.nn.stylegan2 import Generator
from v2f.weights import nvidia, pickles
from v2f.weights.nvidia import convert, read_pickle, to_rosinality


def converted(g: fake.Net, **how: Any) -> Generator:
    state = to_rosinality(read_pickle(fake.pickled(g, **how), "a.pkl"))
    mean = state.pop("latent_avg")
    generator = Generator.fitting(state, "a.pkl")
    generator.latent_avg.copy_(mean)
    return generator


@pytest.fixture(scope="module")
def good() -> bytes:
    return fake.pickled(fake.generator())


# --- what is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "base", "most"), [(8, 128, 12), (32, 128, 12), (64, 512, 8)])
def test_the_picture_is_the_one_of_nvidias_formulas(size: int, base: int, most: int) -> None:
    g = fake.generator(size, base=base, most=most)
    generator = converted(g)
    assert generator.size == size
    z = torch.randn(2, 6)
    with torch.no_grad():
        w = fake.styles(g, z)
        picture = fake.picture(g, w)
        assert picture.std() > 0.3
        torch.testing.assert_close(generator.mapping(z), w, rtol=0, atol=1e-5)
        torch.testing.assert_close(generator(z), picture, rtol=0, atol=1e-4 * picture.abs().max().item())
    assert torch.equal(generator.latent_avg, g.mapping.w_avg)


def test_every_tensor_keeps_its_values_under_its_new_name() -> None:
    g = fake.generator(16)
    state = to_rosinality(read_pickle(fake.pickled(g), "a.pkl"))
    theirs = g.synthesis
    pairs = {
        "input.input": theirs.b4.const.reshape(1, 12, 4, 4),
        "style.1.weight": g.mapping.fc0.weight,
        "style.2.bias": g.mapping.fc1.bias,
        "conv1.noise.weight": theirs.b4.conv1.noise_strength.reshape(1),
        "noises.noise_0": theirs.b4.conv1.noise_const.reshape(1, 1, 4, 4),
        "noises.noise_1": theirs.b8.conv0.noise_const.reshape(1, 1, 8, 8),
        "noises.noise_4": theirs.b16.conv1.noise_const.reshape(1, 1, 16, 16),
        "convs.0.conv.weight": theirs.b8.conv0.weight.reshape(1, 12, 12, 3, 3),
        "convs.2.conv.weight": theirs.b16.conv0.weight.reshape(1, 8, 12, 3, 3),
        "convs.3.activate.bias": theirs.b16.conv1.bias,
        "convs.3.conv.modulation.bias": theirs.b16.conv1.affine.bias,
        "to_rgb1.conv.weight": theirs.b4.torgb.weight.reshape(1, 3, 12, 1, 1),
        "to_rgbs.1.bias": theirs.b16.torgb.bias.reshape(1, 3, 1, 1),
        "to_rgbs.1.conv.modulation.weight": theirs.b16.torgb.affine.weight,
        "convs.2.conv.blur.kernel": 4 * fake.fir(),
        "to_rgbs.0.upsample.kernel": 4 * fake.fir(),
        "latent_avg": g.mapping.w_avg,
    }
    for name, tensor in pairs.items():
        assert torch.equal(state[name], tensor), name
    assert len(state) == 1 + len(Generator(16, 6, 2, channel_multiplier=1 / 128, channel_max=12).state_dict())
    memory = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    assert len(memory) == len(state)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_protocol_gives_the_same_tensors(protocol: int, good: bytes) -> None:
    discriminator = fake.discriminator()
    if protocol == 5:
        del discriminator.array  # StyleGAN2's networks hold none
    data = fake.pickled(fake.generator(), protocol, D=discriminator)
    again, first = read_pickle(data, "a.pkl").tensors, read_pickle(good, "a.pkl").tensors
    assert list(again) == list(first)
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_storages_that_hold_more_than_their_tensor() -> None:
    g, plain = fake.generator(), fake.generator()
    pool = torch.randn(40)
    g.mapping.w_avg = pool[7:19:2]
    g.mapping.fc0.weight = nn.Parameter(plain.mapping.fc0.weight.T.contiguous().T, requires_grad=False)
    tensors = read_pickle(fake.pickled(g), "a.pkl").tensors
    assert torch.equal(tensors["mapping.w_avg"], pool[7:19:2])
    assert torch.equal(tensors["mapping.fc0.weight"], plain.mapping.fc0.weight)


def test_the_clamp_is_told() -> None:
    assert read_pickle(fake.pickled(fake.generator(8)), "a.pkl").conv_clamp is None
    g = fake.generator(8)
    g.synthesis.b8.conv1.conv_clamp = 256
    assert read_pickle(fake.pickled(g), "a.pkl").conv_clamp == 256


def test_convert_writes_a_file_that_is_the_same_every_time(tmp_path: Path) -> None:
    source, target = tmp_path / "ffhq.pkl", tmp_path / "out.safetensors"
    source.write_bytes(fake.pickled(fake.generator(32)))
    contents = set()
    for _ in range(4):
        about = convert(str(source), str(target))
        contents.add(target.read_bytes())
    assert len(contents) == 1
    with safetensors.safe_open(target, "pt") as file:
        assert file.metadata() == about
    assert (about["format"], about["source_name"], about["size"]) == ("stylegan2-rosinality", "ffhq.pkl", "32")
    assert about["source_sha256"] == nvidia.hashlib.sha256(source.read_bytes()).hexdigest()
    state = safetensors.torch.load_file(target)
    wanted = to_rosinality(read_pickle(source.read_bytes(), "a.pkl"))
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    assert state.pop("latent_avg").shape == (6,)
    Generator(32, 6, 2, channel_multiplier=1 / 128, channel_max=12).load_state_dict(state, strict=True)


# --- files that do not fit ---------------------------------------------------------------------------------------


def without(module: nn.Module, name: str) -> None:
    delattr(module, name)


def as_half(module: nn.Module, name: str) -> None:
    setattr(module, name, nn.Parameter(getattr(module, name).half(), requires_grad=False))


def set_to(**values: Any) -> Callable[[nn.Module], None]:
    def change(module: nn.Module) -> None:
        for name, value in values.items():
            setattr(module, name, value)

    return change


CHANGES: list[tuple[str, Callable[[Any], None], str]] = [
    ("mapping.fc1", lambda m: without(m, "bias"), r"G_ema\.mapping\.fc1\.bias is missing"),
    ("synthesis.b8.conv0", lambda m: without(m, "noise_const"), r"G_ema\.synthesis\.b8\.conv0\.noise_const is missing"),
    ("synthesis", lambda m: without(m, "b8"), r"G_ema\.synthesis\.b8 is missing"),
    ("mapping", set_to(extra=nn.Parameter(torch.zeros(2))), r"G_ema\.mapping has the unknown entry extra"),
    ("mapping", set_to(embed=fake.linear(2, 6)), r"G_ema\.mapping has the unknown entry embed"),
    (
        "synthesis.b8.conv1",
        set_to(bias=nn.Parameter(torch.zeros(1, 12))),
        r"b8\.conv1\.bias has the shape \[1, 12\], expected 1 dimensions",
    ),
    (
        "synthesis.b8.conv1",
        lambda m: as_half(m, "weight"),
        r"conv1\.weight is torch\.HalfStorage, expected float32",
    ),
    ("synthesis.b8.conv1", set_to(noise_strength=None), r"b8\.conv1\.noise_strength is missing"),
    ("", set_to(c_dim=3), r"G_ema\.c_dim is 3, expected 0"),
    ("", set_to(img_channels=1), r"G_ema\.img_channels is 1, expected 3"),
    ("", set_to(img_resolution=48), r"G_ema\.img_resolution is 48, expected a power of two"),
    ("", set_to(img_resolution=2**20), r"G_ema\.img_resolution is 1048576"),
    ("mapping", set_to(num_layers=10**9), r"num_layers is 1000000000, expected 1 to 64"),
    ("mapping.fc0", set_to(bias_gain=0.1), r"fc0\.bias_gain is 0\.1, expected 0\.01"),
    ("mapping.fc0", set_to(activation="relu"), r"fc0\.activation is relu, expected 'lrelu'"),
    ("synthesis.b8", set_to(architecture="resnet"), r"b8\.architecture is resnet, expected 'skip'"),
    ("synthesis.b8.conv0", set_to(up=1), r"b8\.conv0\.up is 1, expected 2"),
    ("synthesis.b8.conv0", set_to(use_noise=False), r"b8\.conv0\.use_noise is False"),
    ("synthesis.b8.conv0", set_to(activation="swish"), r"b8\.conv0\.activation is swish"),
    ("synthesis.b8", set_to(resample_filter=torch.ones(4, 4) / 16), r"b8\.resample_filter is a different filter"),
    ("synthesis.b8.conv0", set_to(conv_clamp=10**600), r"conv_clamp is 10000"),
    (
        "synthesis.b4",
        set_to(kind="SynthesisBlockNoUp\n"),
        r"b4 has the class SynthesisBlockNoUp\\n, expected SynthesisBlock",
    ),
    (
        "synthesis",
        set_to(input=fake.Net("SynthesisInput", size=np.array([36, 36]))),
        "a StyleGAN3 generator, but only StyleGAN2",
    ),
]


@pytest.mark.parametrize(("path", "change", "message"), CHANGES, ids=[message for _, _, message in CHANGES])
def test_another_architecture_is_named(path: str, change: Callable[[Any], None], message: str) -> None:
    g = fake.generator(8)
    module = g.get_submodule(path)
    change(module)
    with pytest.raises(V2FError, match=message) as caught:
        read_pickle(fake.pickled(g), "a.pkl")
    assert str(caught.value).startswith("a.pkl: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight", torch.zeros(12, 12, 3, 5), r"conv1\.conv\.weight"),
        ("noise_const", torch.zeros(5, 4), r"noises\.noise_0"),
        ("noise_const", torch.zeros(8, 8), r"noises\.noise_0"),
    ],
)
def test_misshapen_tensors_leave_no_file(name: str, value: torch.Tensor, message: str, tmp_path: Path) -> None:
    g, source = fake.generator(8), tmp_path / "a.pkl"
    layer = g.synthesis.b4.conv1
    setattr(layer, name, value if name == "noise_const" else nn.Parameter(value))
    source.write_bytes(fake.pickled(g))
    with pytest.raises(V2FError, match=message):
        convert(str(source), str(tmp_path / "out.safetensors"))
    assert os.listdir(tmp_path) == ["a.pkl"]


def test_a_mean_style_of_another_width_is_refused(tmp_path: Path) -> None:
    g, source = fake.generator(8), tmp_path / "a.pkl"
    g.mapping.w_avg = torch.zeros(5)
    source.write_bytes(fake.pickled(g))
    with pytest.raises(V2FError, match=r"w_avg has the shape \[5\], expected \[6\]"):
        convert(str(source), str(tmp_path / "out.safetensors"))


def test_files_and_names_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(V2FError, match=r"choose a name that ends in \.safetensors"):
        convert(str(tmp_path / "a.pkl"), str(tmp_path / "out.pt"))
    with pytest.raises(V2FError, match="no such file"):
        convert(str(tmp_path / "a.pkl"), str(tmp_path / "out.safetensors"))
    saved = io.BytesIO()
    torch.save({"g_ema": {}}, saved)
    for content in (saved.getvalue(), b"", b"<html>", b"cos\nsystem\n(S'true'\ntR."):
        with pytest.raises(V2FError, match=r"a\.pkl: not a pickle"):
            read_pickle(content, "a.pkl")
    for content in ({"G": 1}, [1], None, 3):
        with pytest.raises(V2FError, match="contains no G_ema"):
            read_pickle(pickle.dumps(content), "a.pkl")
    for inside in (None, 5, {}, torch.zeros(2)):
        with pytest.raises(V2FError, match="G_ema is not a module of NVIDIA's"):
            read_pickle(fake.pickled(inside), "a.pkl")
    with pytest.raises(V2FError, match=r"TensorFlow pickle; convert it with legacy\.py"):
        read_pickle(b"\x80\x03cdnnlib.tflib.network\nNetwork\n)\x81}q\x00b.", "a.pkl")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.pkl", "wb") as file:
        file.truncate(nvidia.LARGEST_FILE + 1)  # a hole: it takes no space
    with pytest.raises(V2FError, match="larger than 2 GiB"):
        convert(str(tmp_path / "a.pkl"), str(tmp_path / "out.safetensors"))


# --- files that would do something -------------------------------------------------------------------------------


class Deed:
    """Pickled, it makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def refused(data: bytes, marker: Path, message: str = "refused, and no code in it was run") -> None:
    """Reading ``data`` is refused in one line, and what it would do has not been done."""
    with pytest.raises(V2FError, match=message) as caught:
        read_pickle(data, "a.pkl")
    assert not marker.exists()
    assert str(caught.value).startswith("a.pkl: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_call_is_refused_and_not_made(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "done"
    data = pickle.dumps(Deed(marker), protocol=protocol)
    refused(data, marker, r"asks for (posix|os|nt)\.mkdir")
    pickle.loads(data)  # noqa: S301  # that it would have been made
    assert marker.exists()


@pytest.mark.parametrize("place", ["top", "G_ema", "attribute", "D", "training_set_kwargs", "behind"])
def test_a_call_is_refused_wherever_it_lies(place: str, tmp_path: Path) -> None:
    marker = tmp_path / "done"
    deed, g = Deed(marker), fake.generator(8)
    others: dict[str, Any] = {}
    if place == "attribute":
        g.synthesis.b8.conv1.deed = deed
    elif place == "G_ema":
        g = deed
    elif place == "D":
        others["D"] = fake.discriminator()
        others["D"].conv.deed = deed
    elif place == "training_set_kwargs":
        others[place] = fake.EasyDict(path=deed)
    else:
        others["zzz" if place == "behind" else "G"] = deed
    refused(fake.pickled(g, **others), marker, "asks for")


def test_the_source_in_a_pickle_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "done"
    monkeypatch.setattr(fake, "SOURCE", f"import os\nos.mkdir({str(marker)!r})\nclass Generator: pass")
    g = fake.generator(8)
    data = fake.pickled(g)
    assert str(marker).encode() in data
    assert torch.equal(read_pickle(data, "a.pkl").tensors["mapping.w_avg"], g.mapping.w_avg)
    assert not marker.exists()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


NAMES = [
    ("builtins", "eval"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("__builtin__", "eval"),
    ("os", "system"),
    ("subprocess", "Popen"),
    ("torch", "load"),
    ("torch.storage", "_load_from_bytes.__globals__"),
    ("torch.storage", "torch.load"),
    ("collections", "OrderedDict.fromkeys"),
    ("collections", "OrderedDict.__class__"),
    ("collections", "namedtuple"),
    ("collections.OrderedDict", "__subclasses__"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("torch_utils.persistence", "_src_to_module"),
    ("dnnlib.util", "call_func_by_name"),
    ("dnnlib.util", "EasyDict.__init__.__globals__"),
    ("numpy", "load"),
    ("numpy.core.multiarray", "scalar.__self__"),
    ("copyreg", "_reconstructor"),
    ("v2f.weights.pickles", "StackMachine"),
    ("torch", "FloatStorage"),  # inside a storage only
    ("codecs", "decode"),
    ("os\x1b[2J", "system\r\x07" + 500 * "A"),
]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_names_outside_the_list_are_refused(module: str, name: str, tmp_path: Path) -> None:
    call = text(str(tmp_path / "done")) + b"\x85R."
    refused(b"\x80\x04" + text(module) + text(name) + b"\x93" + call, tmp_path / "done", "asks for")
    refused(b"\x80\x02c" + f"{module}\n{name}\n".encode() + call, tmp_path / "done", "asks for")


INSTRUCTIONS = {
    "EXT1": b"\x82\x05",
    "EXT2": b"\x83\x05\x00",
    "EXT4": b"\x84\x05\x00\x00\x00",
    "PERSID": b"Pposix.system\n",
    "BINPERSID": text("storage") + b"Q",
    "INST": b"(" + text("true") + b"ios\nsystem\n",
    "OBJ": b"(ccollections\nOrderedDict\no",
    "NEWOBJ_EX": b"ccollections\nOrderedDict\n)}\x92",
    "NEXT_BUFFER": b"\x97",
    "DUP": b"}2",
    "POP": b"}0",
    "LONG4": b"\x8b\x01\x00\x00\x00\x01",
    "BINBYTES8": b"\x8e" + struct.pack("<Q", 2**40),
}


@pytest.mark.parametrize("instruction", [name for name in INSTRUCTIONS if name != "BINBYTES8"])
def test_instructions_outside_the_list_are_refused(instruction: str, tmp_path: Path) -> None:
    refused(b"\x80\x04" + INSTRUCTIONS[instruction] + b".", tmp_path / "done", f"has the instruction {instruction}")


def test_a_registered_extension_is_not_reached(tmp_path: Path) -> None:
    marker = tmp_path / "done"
    data = b"\x80\x02\x82\xf1" + text(str(marker)) + b"\x85R."
    copyreg.add_extension("os", "mkdir", 0xF1)
    try:
        pickle.loads(b"\x80\x02\x82\xf1.")  # noqa: S301  # now Python has it at hand, and asks no find_class
        refused(data, marker, "has the instruction EXT1")
        pickle.loads(data)  # noqa: S301
        assert marker.exists()
    finally:
        copyreg.remove_extension("os", "mkdir", 0xF1)


STATES = {
    "a function of the list": b"ctorch._utils\n_rebuild_tensor_v2\n",
    "a class of the list": b"ccollections\nOrderedDict\n",
    "a dict": b"ccollections\nOrderedDict\n)R",
    "a module": b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}\x85R",
    "a number": b"K\x01",
    "a text": text("x"),
}


@pytest.mark.parametrize("thing", STATES)
def test_no_state_is_set(thing: str, tmp_path: Path) -> None:
    state = b"N}" + text("__code__") + text("x") + b"s\x86b."
    before = vars(OrderedDict).copy(), vars(torch._utils._rebuild_tensor_v2).copy()
    refused(b"\x80\x02" + STATES[thing] + state, tmp_path / "done", "refused|truncated or damaged")
    assert (dict(vars(OrderedDict)), vars(torch._utils._rebuild_tensor_v2)) == before


def test_numpys_states_are_dropped() -> None:
    g = fake.generator(8)
    g.table = {"numbers": np.arange(5), "one": np.float32(3)}
    assert read_pickle(fake.pickled(g), "a.pkl").size == 8


class Bytes:
    """Stands for a storage whose bytes are these."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.storage._load_from_bytes, (self.data,)


class Tensors:
    """Stands for a tensor with these arguments."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.args


def storage(values: int = 6, edit: Callable[[bytes], bytes] = lambda header: header) -> bytes:
    """What PyTorch writes of a storage of float32, its header edited."""
    file = io.BytesIO()
    torch.save(torch.zeros(values)._typed_storage(), file, _use_new_zipfile_serialization=False)
    whole = file.getvalue()
    return edit(whole[: -4 * values]) + whole[len(whole) - 4 * values :]


def mean_style(value: Any) -> bytes:
    """A pickle whose mean style, a buffer of G_ema, is ``value``."""
    g = fake.generator(8)
    g.mapping._buffers["w_avg"] = value
    return fake.pickled(g)


def test_a_storage_by_hand_is_read() -> None:
    tensor = Tensors(Bytes(storage()), 0, (6,), (1,), False, OrderedDict())
    assert torch.equal(read_pickle(mean_style(tensor), "a.pkl").tensors["mapping.w_avg"], torch.zeros(6))


@pytest.mark.parametrize("place", ["G_ema", "D"])
def test_code_in_the_bytes_of_a_storage_is_refused(place: str, tmp_path: Path) -> None:
    marker = tmp_path / "done"
    deed = pickle.dumps(Deed(marker), protocol=2)
    zipped = io.BytesIO()
    torch.save({"a": Deed(marker)}, zipped)
    kind = b"ctorch\nFloatStorage\n"
    assert kind in storage()
    hostile = [
        deed,
        storage(edit=lambda header: deed + header),
        storage(edit=lambda header: header.replace(kind, deed[2:-1])),
        storage(edit=lambda header: header.replace(kind, b"cposix\nsystem\n")),
        storage(edit=lambda header: header.replace(kind, b"ctorch\nload\n")),
        zipped.getvalue(),
    ]
    for content in hostile:
        tensor = Tensors(Bytes(content), 0, (6,), (1,), False, OrderedDict())
        data = mean_style(tensor) if place == "G_ema" else fake.pickled(fake.generator(8), D={"x": tensor})
        refused(data, marker, "refused, and no code in it was run|truncated or damaged")


@pytest.mark.parametrize(
    "edit",
    [
        lambda header: header[:-8] + struct.pack("<q", 7),
        lambda header: header[:-8] + struct.pack("<q", 5),
        lambda header: header[:-8] + struct.pack("<q", -1),
        lambda header: header.replace(b"K\x06Nt", b"K\x07Nt"),
        lambda header: header.replace(b"K\x06Nt", b"K\x06)t"),
        lambda header: header.replace(b"ctorch\nFloatStorage\n", b"ctorch\nDoubleStorage\n"),
        lambda header: header.replace(b"ctorch\nFloatStorage\n", text("torch.FloatStorage")),
        lambda header: header.replace(b"little_endian", b"middle_endian"),
        lambda header: b"\x80\x02K\x01." + header,
        lambda header: header.replace(b"storage", b"Storage"),
        lambda header: header.replace(b"M\xe9\x03.", b"M\xea\x03."),
        lambda header: header[:40],
        lambda header: header + b"\0",
        lambda header: b"",
    ],
)
def test_a_storage_has_to_be_whole(edit: Callable[[bytes], bytes]) -> None:
    assert storage(edit=edit) != storage()
    data = mean_style(Tensors(Bytes(storage(edit=edit)), 0, (6,), (1,), False, OrderedDict()))
    with pytest.raises(V2FError, match="truncated or damaged"):
        read_pickle(data, "a.pkl")


BLOB = Bytes(storage())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((BLOB, 0, (7,), (1,)), "does not fit its storage"),
        ((BLOB, 1, (6,), (1,)), "does not fit its storage"),
        ((BLOB, 0, (2,), (6,)), "does not fit its storage"),
        ((BLOB, 2**39, (1,), (1,)), "does not fit its storage"),
        ((BLOB, 0, (0,), (1,)), "does not fit its storage"),
        ((BLOB, 0, (2**39,), (0,)), "does not fit its storage"),
        ((BLOB, -1, (6,), (1,)), "is damaged"),
        ((BLOB, 5, (6,), (-1,)), "is damaged"),
        ((BLOB, 0, (2**70,), (0,)), "is damaged"),
        ((BLOB, 0, (True,), (1,)), "is damaged"),
        ((BLOB, 0, [6], [1]), "is damaged"),
        ((BLOB, 0, ("6",), (1,)), "is damaged"),
        ((BLOB, 0.0, (6,), (1,)), "is damaged"),
        ((b"bytes", 0, (6,), (1,)), "is damaged"),
        ((None, 0, (6,), (1,)), "is damaged"),
        ((BLOB, 0, (6,), ()), r".*, expected 1 dimensions"),
        ((BLOB, 0, (1,) * 5000, (1,) * 5000), r".*, expected 1 dimensions"),
        ((BLOB, 0), "is not a tensor"),
        ((), "is not a tensor"),
    ],
)
def test_a_tensor_stays_inside_its_storage(args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(V2FError, match=r"a\.pkl: G_ema\.mapping\.w_avg " + message):
        read_pickle(mean_style(Tensors(*args)), "a.pkl")


def test_the_memory_that_one_storage_gives_is_bounded() -> None:
    g = fake.generator(8)
    one = Tensors(Bytes(storage(50_000)), 0, (1, 1, 1, 50_000), (0, 0, 0, 1), False, OrderedDict())
    for block in (g.synthesis.b4, g.synthesis.b8):
        for layer in (block.conv1, block.torgb):
            layer._parameters["weight"] = one
    with fake.names(), pytest.raises(V2FError, match="does not fit its storage"):
        read_pickle(pickle.dumps({"G_ema": g}), "a.pkl")


def nested(opening: bytes, times: int, closing: bytes = b"") -> bytes:
    return b"\x80\x04" + opening * times + closing + b"."


BOMBS = {
    "a memo of four thousand million places": b"\x80\x04}r\xff\xff\xff\xff.",
    "bytes of four thousand million, not there": b"\x80\x04B\xff\xff\xff\xffabc.",
    "text of four thousand million, not there": b"\x80\x04X\xff\xff\xff\xffabc.",
    "bytes of 2^40, not there": b"\x80\x04" + INSTRUCTIONS["BINBYTES8"] + b"abc.",
    "a frame of 2^60, not there": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.",
    "a deep tuple": nested(b"", 0, b")" + b"\x85" * 30_000),
    "a deep list": nested(b"]", 30_000, b"a" * 29_999),
    "a deep dict": nested(b"}" + text("G_ema"), 30_000, b"}" + b"s" * 30_000),
    "a deep module": nested(
        b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n", 20_000, b"}" + b"\x85R" * 20_000
    ),
    "a tuple of 2^200 as a key": b"\x80\x04})" + b"q\x00h\x00\x86" * 200 + b"Ns.",
    "a set of a tuple of 2^200": b"\x80\x04\x8f()" + 200 * b"q\x00h\x00\x86" + b"\x90.",
    "a tuple of 2^200 as G_ema": b"\x80\x04}" + text("G_ema") + b")" + 200 * b"q\x00h\x00\x86" + b"s.",
    "a tuple of 2^200 as a class": b"\x80\x04}"
    + text("G_ema")
    + b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}"
    + text("state")
    + b"}s"
    + text("class_name")
    + b")"
    + 200 * b"q\x00h\x00\x86"
    + b"s\x85Rs.",
    "a dict that holds itself": b"\x80\x04}q\x00" + text("G_ema") + b"h\x00s.",
    "a name without an end": b"\x80\x04c" + b"a" * 300_000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_small_files_stay_small(bomb: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(V2FError, match=r"^a\.pkl: .*") as caught:
            read_pickle(BOMBS[bomb], "a.pkl")
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 400


def test_the_number_of_instructions_is_bounded(good: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MOST_INSTRUCTIONS", 1000)
    with pytest.raises(V2FError, match="has more than 1,000 instructions"):
        read_pickle(good, "a.pkl")
    outside = sum(1 for _ in pickletools.genops(good))
    monkeypatch.setattr(pickles, "MOST_INSTRUCTIONS", outside)
    with pytest.raises(V2FError, match="has more than"):  # those inside the storages count too
        read_pickle(good, "a.pkl")


def test_a_cut_file_is_named_and_read_no_further(good: bytes) -> None:
    chance = random.Random(0)
    for end in [1, 2, 3, len(good) - 1, *(chance.randrange(len(good)) for _ in range(40))]:
        with pytest.raises(V2FError, match=r"a\.pkl: the pickle is truncated or damaged"):
            read_pickle(good[:end], "a.pkl")


def test_damage_gives_an_error_of_one_line_or_other_numbers(good: bytes) -> None:
    chance, errors = random.Random(0), []
    structure = [i for i, byte in enumerate(good) if 0x20 <= byte < 0x7F or byte >= 0x80]
    for _ in range(150):
        data = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            data[chance.choice(structure)] = chance.choice(
                [0, 0x28, 0x2E, 0x52, 0x62, 0x81, 0xFF, chance.randrange(256)]
            )
        try:
            to_rosinality(read_pickle(bytes(data), "a.pkl"))
        except V2FError as error:
            errors.append(str(error))
    assert all(error.isprintable() for error in errors)
    assert 20 < len(errors) < 150


def test_reading_changes_nothing_in_what_it_is_given(good: bytes) -> None:
    before = copy.copy(good)
    first = read_pickle(good, "a.pkl").tensors
    first["mapping.w_avg"].zero_()
    assert good == before
    assert read_pickle(good, "a.pkl").tensors["mapping.w_avg"].any()
