"""Each foreign layout: a file of random numbers loads strictly; broken in five ways it is refused in one line."""

import argparse
import copy
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import facenet_pytorch
import pytest
import torch
from torch import nn

from v2f.config import build
from v2f.errors import V2FError
from v2f.nn.stylegan2 import Generator
from v2f.weights import (
    ECAPAWeights,
    FaceNetWeights,
    GE2EWeights,
    IRSE50Weights,
    LPIPSWeights,
    PSPDecoderWeights,
    PSPEncoderWeights,
    ResNet50Weights,
    StyleGAN2Weights,
    UserWeights,
    WenGeneratorWeights,
    WenWeights,
    load_mtcnn,
    load_psp,
    locate,
    read,
)

LAYOUTS: dict[str, tuple[type[UserWeights], dict[str, Any], str, str | None, str]] = {
    # configuration, file, where the state_dict lies in it, a tensor of it
    "stylegan2": (
        StyleGAN2Weights,
        {"net": "stylegan2"},
        "stylegan2-ffhq-config-f.pt",
        "g_ema",
        "convs.3.conv.modulation.weight",
    ),
    "psp decoder": (PSPDecoderWeights, {"net": "psp"}, "psp_ffhq_encode.pt", "state_dict", "decoder.to_rgbs.2.bias"),
    "psp encoder": (
        PSPEncoderWeights,
        {"net": "psp"},
        "psp_ffhq_encode.pt",
        "state_dict",
        "encoder.styles.9.convs.4.weight",
    ),
    "ir_se50": (
        IRSE50Weights,
        {"net": "ir_se50", "channels": "bgr"},
        "model_ir_se50.pth",
        None,
        "body.7.res_layer.5.fc1.weight",
    ),
    "facenet": (
        FaceNetWeights,
        {"net": "facenet"},
        "20180402-114759-vggface2.pt",
        None,
        "repeat_2.4.branch1.1.conv.weight",
    ),
    "ge2e": (GE2EWeights, {"net": "ge2e"}, "pretrained.pt", "model_state", "lstm.weight_hh_l1"),
    "lpips alex": (LPIPSWeights, {"net": "lpips"}, "alexnet-owt-7be5be79.pth", None, "features.6.weight"),
    "lpips vgg": (LPIPSWeights, {"net": "lpips", "backbone": "vgg"}, "vgg16-397923af.pth", None, "features.14.bias"),
    "lpips squeeze": (
        LPIPSWeights,
        {"net": "lpips", "backbone": "squeeze"},
        "squeezenet1_1-b8a52dc0.pth",
        None,
        "features.4.expand3x3.weight",
    ),
    "resnet50": (
        ResNet50Weights,
        {"net": "torchvision_resnet50"},
        "resnet50-0676ba61.pth",
        None,
        "layer3.4.bn2.running_var",
    ),
    "ecapa": (
        ECAPAWeights,
        {"net": "ecapa"},
        "embedding_model.ckpt",
        None,
        "blocks.2.res2net_block.blocks.5.norm.norm.running_mean",
    ),
    "wen": (WenWeights, {"net": "wen"}, "voice_embedding.pth", None, "model.7.running_var"),
    "wen generator": (WenGeneratorWeights, {"net": "wen_generator"}, "generator.pth", None, "model.6.weight"),
}
LAYOUT = pytest.mark.parametrize("name", LAYOUTS)


def net_of(name: str) -> UserWeights:
    kind, values, *_ = LAYOUTS[name]
    return build(kind, values, "test")


def state_in(content: Any, name: str) -> dict[str, torch.Tensor]:
    inside = LAYOUTS[name][3]
    return content if inside is None else content[inside]


@LAYOUT
def test_a_file_of_the_layout_loads_with_every_tensor_in_its_place(random_weights: Path, name: str) -> None:
    _, _, file, _, tensor = LAYOUTS[name]
    net = net_of(name)
    path = locate(str(random_weights), net)
    assert path == str(random_weights / file)
    loaded, digest = read(net, path)
    assert len(digest) == 64
    assert not any(value.is_meta for value in loaded.state_dict().values())
    wanted = state_in(torch.load(path, weights_only=True), name)[tensor]
    assert any(torch.equal(value, wanted) for value in loaded.state_dict().values() if value.shape == wanted.shape)


class Evil:
    """What runs a command when an ordinary unpickler meets it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def missing(state: dict[str, Any], tensor: str, marker: Path) -> None:
    del state[tensor]


def extra(state: dict[str, Any], tensor: str, marker: Path) -> None:
    state[tensor + "_2"] = torch.zeros(3)


def misshapen(state: dict[str, Any], tensor: str, marker: Path) -> None:
    state[tensor] = torch.zeros(5, *state[tensor].shape)


def of_another_type(state: dict[str, Any], tensor: str, marker: Path) -> None:
    state[tensor] = state[tensor].half()


def with_code(state: dict[str, Any], tensor: str, marker: Path) -> None:
    state["options"] = Evil(marker)


BREAKS: dict[Callable[[dict[str, Any], str, Path], None], str] = {
    missing: r"the tensor '{0}' is missing",
    extra: r"the tensor '{0}_2' is unknown",
    misshapen: r"'{0}' has the shape \[5, .*\], expected \[",
    of_another_type: r"'{0}' is float16, expected float32",
    with_code: r"refused, and no code in it was run: contains (posix|nt)\.system",
}


@pytest.mark.parametrize("damage", BREAKS, ids=lambda damage: damage.__name__)
@LAYOUT
def test_a_broken_file_is_refused_in_one_line_and_nothing_runs(
    random_weights: Path, tmp_path: Path, name: str, damage: Callable[[dict[str, Any], str, Path], None]
) -> None:
    _, _, file, _, tensor = LAYOUTS[name]
    content = torch.load(random_weights / file, weights_only=True)
    content = copy.copy(content)
    state = dict(state_in(content, name))
    damage(state, tensor, tmp_path / "ran")
    if LAYOUTS[name][3] is None:
        content = state
    else:
        content[LAYOUTS[name][3]] = state
    path = tmp_path / file
    torch.save(content, path)
    shown = {"stylegan2": f"g_ema.{tensor}", "ge2e": f"model_state.{tensor}"}.get(name, tensor)
    with pytest.raises(V2FError, match=BREAKS[damage].format(shown.replace(".", r"\."))) as caught:
        read(net_of(name), str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def without_numbers(state: dict[str, Any], tensor: str) -> None:
    state[tensor] = state[tensor].to("meta")


def sparse(state: dict[str, Any], tensor: str) -> None:
    state[tensor] = torch.zeros(state[tensor].shape).to_sparse()


def not_finite(state: dict[str, Any], tensor: str) -> None:
    state[tensor] = torch.full(state[tensor].shape, float("nan"))


@pytest.mark.parametrize("damage", [without_numbers, sparse, not_finite])
@LAYOUT
def test_tensors_without_usable_numbers_are_refused(
    random_weights: Path, tmp_path: Path, name: str, damage: Callable[[dict[str, Any], str], None]
) -> None:
    _, _, file, inside, tensor = LAYOUTS[name]
    content = torch.load(random_weights / file, weights_only=True)
    state = dict(state_in(content, name))
    damage(state, tensor)
    torch.save(state if inside is None else {**content, inside: state}, tmp_path / file)
    with pytest.raises(V2FError, match=r"is not a plain array of numbers|contains numbers that are not fin") as caught:
        read(net_of(name), str(tmp_path / file))
    assert tensor in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [None, 3, 2.5, True, "text", b"bytes", torch.zeros(3), ["g_ema", "state_dict"], {"g_ema": [1]}, {}, {1: 2}],
    ids=str,
)
@LAYOUT
def test_a_file_that_holds_something_else_is_one_line(tmp_path: Path, name: str, content: Any) -> None:
    path = tmp_path / LAYOUTS[name][2]
    torch.save(content, path)
    with pytest.raises(V2FError) as caught:
        read(net_of(name), str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_under_the_name_of_weights_runs_nothing(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model_ir_se50.pth"
    path.write_bytes(pickle.dumps(Evil(tmp_path / "ran"), protocol=protocol))
    with pytest.raises(V2FError, match=rf"{path}: ") as caught:
        read(net_of("ir_se50"), str(path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_file_of_weights_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model_ir_se50.pth"
    path.write_bytes(content)
    with pytest.raises(V2FError, match=rf"{path}: ") as caught:
        read(net_of("ir_se50"), str(path))
    assert "\n" not in str(caught.value)


def test_a_cut_download_is_one_line(random_weights: Path, tmp_path: Path) -> None:
    whole = (random_weights / "squeezenet1_1-b8a52dc0.pth").read_bytes()
    path = tmp_path / "squeezenet1_1-b8a52dc0.pth"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(V2FError, match="truncated, or not written by torch"):
        read(net_of("lpips squeeze"), str(path))


def test_the_options_that_training_scripts_keep_beside_their_weights_do_no_harm(
    random_weights: Path, tmp_path: Path
) -> None:
    content = torch.load(random_weights / "stylegan2-ffhq-config-f.pt", weights_only=True)
    path = tmp_path / "checkpoint.pt"
    torch.save(content | {"args": argparse.Namespace(size=1024, lr=0.002)}, path)
    generator, _ = read(net_of("stylegan2"), str(path))
    assert isinstance(generator, Generator)


def test_a_generator_takes_its_mean_style_from_the_file_or_else_draws_it(random_weights: Path, tmp_path: Path) -> None:
    content = torch.load(random_weights / "stylegan2-ffhq-config-f.pt", weights_only=True)
    generator, _ = read(net_of("stylegan2"), str(random_weights / "stylegan2-ffhq-config-f.pt"))
    assert isinstance(generator, Generator)
    torch.testing.assert_close(generator.latent_avg, content["latent_avg"])
    path = tmp_path / "without.pt"
    torch.save({"g_ema": content["g_ema"]}, path)
    drawn, _ = read(net_of("stylegan2"), str(path))
    assert isinstance(drawn, Generator)
    with torch.no_grad():
        w = generator.mapping(torch.randn(2000, 512, generator=torch.Generator().manual_seed(7)))
    torch.testing.assert_close(drawn.latent_avg, w.mean(0), rtol=0, atol=6 * w.std().item() / 2000**0.5)


def test_a_generator_of_another_size_than_the_recipe_says_is_refused(random_weights: Path) -> None:
    net = StyleGAN2Weights(net="stylegan2", size=256)
    with pytest.raises(V2FError, match=r"holds a generator of 1024 px, but system\.frozen\.generator\.size is 256"):
        read(net, str(random_weights / "stylegan2-ffhq-config-f.pt"))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (torch.tensor(0.1), r"latent_avg is \[\] torch\.float32, expected \[512\] torch\.float32"),
        (torch.zeros(512, dtype=torch.float64), r"latent_avg is \[512\] torch\.float64"),
        (torch.full((512,), float("nan")), "latent_avg is not an array of finite numbers"),
        (torch.zeros(512, device="meta"), "latent_avg is not an array of finite numbers"),
        ([0.0] * 512, "latent_avg is list"),
    ],
)
def test_a_mean_style_that_cannot_be_meant_is_refused(
    random_weights: Path, tmp_path: Path, value: Any, told: str
) -> None:
    content = torch.load(random_weights / "stylegan2-ffhq-config-f.pt", weights_only=True)
    torch.save(content | {"latent_avg": value}, tmp_path / "g.pt")
    with pytest.raises(V2FError, match=told):
        read(net_of("stylegan2"), str(tmp_path / "g.pt"))


@pytest.mark.parametrize("kind", [dict, lambda **values: argparse.Namespace(**values)])
def test_a_psp_of_another_kind_says_so_itself(random_weights: Path, tmp_path: Path, kind: Callable[..., Any]) -> None:
    content = torch.load(random_weights / "psp_ffhq_encode.pt", weights_only=True)
    others = {"start_from_latent_avg": False, "learn_in_w": True, "encoder_type": "BackboneEncoderUsingLastLayerIntoW"}
    for name, value in others.items():
        torch.save(content | {"opts": kind(**{name: value})}, tmp_path / "psp.pt")
        with pytest.raises(V2FError, match=rf"this pSp was trained with {name}="):
            read(PSPEncoderWeights(net="psp"), str(tmp_path / "psp.pt"))


def test_a_psp_that_is_taken_for_a_generator_says_what_it_is(random_weights: Path) -> None:
    with pytest.raises(V2FError, match=r"not a StyleGAN2 file; if it is a pSp file, set generator\.net to psp"):
        read(net_of("stylegan2"), str(random_weights / "psp_ffhq_encode.pt"))


def test_a_folder_gives_the_psp_that_is_asked_for(random_weights: Path, tmp_path: Path) -> None:
    shutil.copyfile(random_weights / "psp_ffhq_encode.pt", tmp_path / "psp_ffhq_encode.pt")
    assert load_psp(str(tmp_path), model="encode")[1] == load_psp(str(random_weights), model="encode")[1]
    with pytest.raises(V2FError, match=r"contains none of psp_ffhq_frontalization\.pt; get psp-ffhq-frontalization"):
        load_psp(str(tmp_path))


def test_psp_gives_its_encoder_its_mean_styles_and_the_generator_inside(random_weights: Path) -> None:
    psp, digest = load_psp(str(random_weights))
    assert len(digest) == 64
    content = torch.load(random_weights / "psp_ffhq_frontalization.pt", weights_only=True)
    torch.testing.assert_close(psp.latent_avg, content["latent_avg"])
    assert sum(p.numel() for p in psp.encoder.parameters()) == 267_136_704
    assert sum(p.numel() for p in psp.decoder.parameters()) == 30_370_060
    torch.testing.assert_close(psp.decoder.latent_avg, content["latent_avg"].mean(0))
    assert not any(p.requires_grad for p in psp.parameters())


def test_the_mean_styles_of_psp_are_checked_too(random_weights: Path, tmp_path: Path) -> None:
    content = torch.load(random_weights / "psp_ffhq_encode.pt", weights_only=True)
    path = tmp_path / "psp.pt"
    torch.save({key: value for key, value in content.items() if key != "latent_avg"}, path)
    with pytest.raises(V2FError, match=r"psp\.pt: has no 'latent_avg'; it contains state_dict"):
        read(PSPEncoderWeights(net="psp"), str(path))
    torch.save(content | {"latent_avg": torch.zeros(14, 512)}, path)
    with pytest.raises(V2FError, match=r"psp\.pt: latent_avg is \[14, 512\] torch\.float32, expected \[18, 512\]"):
        read(PSPEncoderWeights(net="psp"), str(path))


def test_identity_nets_are_called_as_their_weights_were_trained(random_weights: Path) -> None:
    picture = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    path = str(random_weights / "model_ir_se50.pth")

    @torch.no_grad()
    def embed(channels: str, crop: bool, picture: torch.Tensor) -> torch.Tensor:
        net: nn.Module = read(build(IRSE50Weights, {"net": "ir_se50", "channels": channels, "crop": crop}, "t"), path)[
            0
        ]
        embedding: torch.Tensor = net.eval()(picture)
        return embedding

    as_psp = embed("rgb", True, picture)
    assert as_psp.shape == (1, 512)
    torch.testing.assert_close(as_psp.norm(dim=1), torch.ones(1))
    torch.testing.assert_close(embed("bgr", True, picture.flip(1)), as_psp)
    torch.testing.assert_close(embed("rgb", False, picture[:, :, 35:223, 32:220]), as_psp)
    assert (embed("bgr", True, picture) - as_psp).norm() > 0.01
    assert (embed("rgb", False, picture) - as_psp).norm() > 0.01


@pytest.fixture
def mtcnn(tmp_path: Path) -> Path:
    """A folder with MTCNN's three files, copied from the package that publishes them."""
    inside = Path(facenet_pytorch.__file__).parent / "data"
    for part in ("pnet", "rnet", "onet"):
        shutil.copyfile(inside / f"{part}.pt", tmp_path / f"{part}.pt")
    return tmp_path


def test_mtcnn_comes_from_a_folder_or_else_from_its_package(mtcnn: Path) -> None:
    content = torch.load(mtcnn / "rnet.pt", weights_only=True)
    content["dense4.bias"] += 1
    torch.save(content, mtcnn / "rnet.pt")
    brought, checksums = load_mtcnn(str(mtcnn))
    inside, none = load_mtcnn()
    assert sorted(checksums) == ["onet.pt", "pnet.pt", "rnet.pt"]
    assert none == {}
    torch.testing.assert_close(brought.rnet.dense4.bias, inside.rnet.dense4.bias + 1)
    torch.testing.assert_close(brought.onet.conv1.weight, inside.onet.conv1.weight)
    assert not any(p.requires_grad for p in brought.parameters())


@pytest.mark.parametrize("damage", BREAKS, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize(
    ("part", "tensor"), [("pnet", "conv4_2.weight"), ("rnet", "dense5_1.bias"), ("onet", "prelu3.weight")]
)
def test_a_broken_mtcnn_is_refused_in_one_line_and_nothing_runs(
    mtcnn: Path, part: str, tensor: str, damage: Callable[[dict[str, Any], str, Path], None]
) -> None:
    path = mtcnn / f"{part}.pt"
    content = dict(torch.load(path, weights_only=True))
    damage(content, tensor, mtcnn / "ran")
    torch.save(content, path)
    with pytest.raises(V2FError, match=BREAKS[damage].format(tensor.replace(".", r"\."))) as caught:
        load_mtcnn(str(mtcnn))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert not (mtcnn / "ran").exists()
