"""The frozen nets that users bring, on random weights: preparation of the picture, LPIPS' number, gradients."""

import warnings
from collections.abc import Callable

import lpips
import pytest
import torch
import torch.nn.functional as F
from facenet_pytorch import InceptionResnetV1, fixed_image_standardization
from torch import Tensor, nn

from bench import random_weights
from v2f.errors import V2FError
from v2f.nn.frozen import LPIPS, Backbone, FaceIdentity
from v2f.nn.irse import IRSE50
from v2f.nn.standin_nets import PerceptualNet

BACKBONES: dict[Backbone, Callable[[], dict[str, Tensor]]] = {
    "alex": random_weights.alexnet,
    "vgg": random_weights.vgg16,
    "squeeze": random_weights.squeezenet,
}
CHANNELS: dict[Backbone, list[int]] = {
    "alex": [64, 192, 384, 256, 256],
    "vgg": [64, 128, 256, 512, 512],
    "squeeze": [64, 128, 256, 384, 384, 512, 512],
}


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def on_meta(build: Callable[[], nn.Module], state: dict[str, Tensor]) -> nn.Module:
    with torch.device("meta"):
        net = build()
    net.load_state_dict(state, assign=True)
    return net.eval().requires_grad_(False)


def facenet() -> nn.Module:
    state = random_weights.facenet(classes=10)
    return on_meta(InceptionResnetV1, {n: t for n, t in state.items() if not n.startswith("logits.")})


# --- identity ----------------------------------------------------------------------------------------------------


def slow_pool(img: Tensor, size: int) -> Tensor:
    """Each pixel of the result is the mean of the pixels that its area touches."""
    side = img.shape[-1]
    edges = [(i * side // size, -(-(i + 1) * side // size)) for i in range(size)]
    rows = torch.stack([img[:, :, a:b].mean(dim=2) for a, b in edges], dim=2)
    return torch.stack([rows[..., a:b].mean(dim=3) for a, b in edges], dim=3)


class Probe(nn.Module):
    """In the place of a net: keeps the picture and gives its pixels back as an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.empty(0)

    def forward(self, img: Tensor) -> Tensor:
        self.seen = img
        return img.flatten(1)


def test_the_picture_is_cropped_pooled_turned_and_scaled():
    img = pictures(2, 3, 256, 256)
    box = slow_pool(img[:, :, 35:223, 32:220], 112)
    for channels, order in (("rgb", [0, 1, 2]), ("bgr", [2, 1, 0])):
        net = Probe()
        embedding = FaceIdentity(net, size=112, crop=True, channels=channels, scale=0.5)(img)
        torch.testing.assert_close(net.seen, box[:, order] * 0.5)
        torch.testing.assert_close(embedding, F.normalize(box[:, order].flatten(1), dim=1))
    net = Probe()
    FaceIdentity(net, size=64, crop=False, channels="rgb")(img)
    torch.testing.assert_close(net.seen, slow_pool(img, 64))


def test_facenet_sees_pixels_as_its_package_prepares_them():
    pixels = torch.randint(0, 256, (2, 3, 160, 160), generator=torch.Generator().manual_seed(0)).float()
    net = facenet()
    wanted = net(fixed_image_standardization(pixels))
    embedding = FaceIdentity(net, size=160, crop=False, channels="rgb", scale=127.5 / 128)(pixels / 127.5 - 1)
    torch.testing.assert_close(embedding, wanted, rtol=0, atol=1e-5)


def test_an_embedding_under_autocast_has_length_one_in_float32():
    net = FaceIdentity(facenet(), size=160, crop=True, channels="rgb", scale=127.5 / 128)
    with torch.autocast("cpu", torch.bfloat16):
        embedding = net(pictures(2, 3, 64, 64))
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("which", ["ir_se50", "facenet"])
def test_a_gradient_reaches_the_face_box_through_a_frozen_identity_net(which: str):
    if which == "ir_se50":
        net = FaceIdentity(on_meta(IRSE50, random_weights.ir_se50()), size=112, crop=True, channels="rgb")
    else:
        net = FaceIdentity(facenet(), size=160, crop=True, channels="rgb", scale=127.5 / 128)
    img = pictures(1, 3, 256, 256).requires_grad_()
    (1 - net(img) @ net(pictures(1, 3, 256, 256, seed=1)).T).sum().backward()
    assert img.grad is not None
    assert img.grad.isfinite().all()
    touched = (img.grad[0] != 0).any(dim=0)
    assert touched[35:223, 32:220].float().mean() > 0.95  # facenet's unpadded convolutions leave an edge out
    outside = touched.clone()
    outside[35:223, 32:220] = False
    assert not outside.any()
    assert all(p.grad is None for p in net.parameters())


# --- LPIPS -------------------------------------------------------------------------------------------------------


def loaded(backbone: Backbone, state: dict[str, Tensor] | None = None) -> LPIPS:
    net = LPIPS(backbone)
    net.load_backbone(BACKBONES[backbone]() if state is None else state, "file.pth")
    return net.eval().requires_grad_(False)


def package(backbone: Backbone, state: dict[str, Tensor]) -> nn.Module:
    """The package's own net with this backbone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.device("meta"):
            net = lpips.LPIPS(net=backbone, pretrained=False, pnet_rand=True, verbose=False)
        folder = lpips.__path__[0]
    net.scaling_layer = lpips.ScalingLayer()
    learned = torch.load(f"{folder}/weights/v0.1/{backbone}.pth", map_location="cpu", weights_only=True)
    net.load_state_dict(learned, strict=False, assign=True)
    net.net.load_state_dict({n: state[f"features.{n.partition('.')[2]}"] for n in net.net.state_dict()}, assign=True)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_distance_is_the_packages(backbone: Backbone):
    state = BACKBONES[backbone]()
    a, b = pictures(2, 3, 64, 64), pictures(2, 3, 64, 64, seed=1)
    wanted = package(backbone, state)(a, b).flatten()
    assert (wanted > 0.01).all()
    torch.testing.assert_close(loaded(backbone, state).distance(a, b), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_maps_are_those_of_the_papers_layers(backbone: Backbone):
    maps = loaded(backbone)(pictures(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == CHANNELS[backbone]


def test_nothing_is_downloaded_printed_or_warned_of(monkeypatch, capsys):
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = loaded("squeeze")
    said = capsys.readouterr()
    assert said.out == said.err == ""
    assert not any(tensor.is_meta for tensor in net.state_dict().values())


def test_a_gradient_reaches_the_output_only():
    net = loaded("alex")
    output, reference = pictures(2, 3, 64, 64).requires_grad_(), pictures(2, 3, 64, 64, seed=1).requires_grad_()
    net.distance(output, reference)[1].backward()
    assert output.grad is not None
    assert reference.grad is None
    assert output.grad.isfinite().all()
    assert (output.grad[0] == 0).all()
    assert (output.grad[1, :, 8:-8, 8:-8] != 0).float().mean() > 0.99
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("bias", [-1.5, -100.0])
def test_where_a_map_is_zero_the_distance_is_the_packages_and_has_a_gradient(bias: float):
    state = random_weights.alexnet()
    state["features.0.bias"] = torch.full_like(state["features.0.bias"], bias)  # some places, or all, are dead
    output, reference = pictures(1, 3, 64, 64).requires_grad_(), pictures(1, 3, 64, 64, seed=1)
    output.data *= torch.linspace(0, 2, 64)
    net = loaded("alex", state)
    dead = (net(output)[0] == 0).all(dim=1).float().mean()
    assert 0.1 < dead < 0.9 if bias > -100 else dead == 1
    distance = net.distance(output, reference)
    wanted = package("alex", state)(output, reference).flatten()
    torch.testing.assert_close(distance, wanted, rtol=1e-4, atol=1e-6)
    distance.sum().backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()


def test_equal_pictures_are_at_distance_zero_with_a_gradient():
    output = pictures(1, 3, 64, 64).requires_grad_()
    distance = loaded("alex").distance(output, output.detach())
    distance.sum().backward()
    assert distance.item() == 0
    assert output.grad is not None
    assert output.grad.isfinite().all()


def test_the_backbone_is_a_copy_and_may_come_without_its_classifier():
    state = {name: tensor.clone() for name, tensor in random_weights.alexnet().items() if name.startswith("features.")}
    net = loaded("alex", state)
    a, b = pictures(1, 3, 64, 64), pictures(1, 3, 64, 64, seed=1)
    before = net.distance(a, b)
    for tensor in state.values():
        tensor.zero_()
    assert torch.equal(net.distance(a, b), before)
    assert torch.equal(loaded("alex").distance(a, b), before)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("features.3.bias"), "features.3.bias"),
        (lambda s: s.update({"features.3.bias": torch.zeros(191)}), "features.3.bias"),
        (lambda s: s.update({"features.3.bias": torch.zeros(192).double()}), "features.3.bias"),
        (lambda s: s.pop("classifier.6.weight"), "classifier.6.weight"),
        (lambda s: s.update({"classifier.6.bias": torch.zeros(10)}), "classifier.6.bias"),
        (lambda s: s.update({"extra": torch.zeros(1)}), "extra"),
    ],
)
def test_other_weights_are_refused_by_the_name_of_the_tensor(change: Callable[[dict[str, Tensor]], object], named: str):
    state = random_weights.alexnet()
    change(state)
    with pytest.raises(V2FError, match=rf"^file\.pth: .*alexnet.*{named}") as caught:
        LPIPS("alex").load_backbone(state, "file.pth")
    assert "\n" not in str(caught.value)


def test_another_backbones_weights_are_refused():
    with pytest.raises(V2FError, match="alexnet"):
        LPIPS("alex").load_backbone(random_weights.squeezenet(), "file.pth")


def test_the_stand_in_answers_to_the_same_calls():
    torch.manual_seed(0)
    net = PerceptualNet([4, 6, 8, 8], factors=3)
    output, reference = pictures(2, 3, 64, 64).requires_grad_(), pictures(2, 3, 64, 64, seed=1).requires_grad_()
    distance = net.distance(output, reference)
    unit = [[F.normalize(m, dim=1) for m in net(img)] for img in (output, reference)]
    wanted = sum((f - g).square().sum(dim=1).mean(dim=(1, 2)) for f, g in zip(*unit, strict=True))
    torch.testing.assert_close(distance, wanted, rtol=1e-4, atol=1e-6)
    distance.sum().backward()
    assert output.grad is not None
    assert reference.grad is None
