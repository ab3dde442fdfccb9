"""Each loss against numbers computed by hand."""

from collections.abc import Callable

import lpips
import pytest
import torch
from torch import Tensor, nn

from v2f.nn import face_box, losses, perceptual_distance
from v2f.nn.frozen import FaceIdentity


def picture(*values: float) -> Tensor:
    return torch.tensor(values).reshape(1, 1, 1, -1)


def test_pixel_losses_by_hand() -> None:
    a, b = torch.cat([picture(1, -1, 0.5), picture(0, 0, 0)]), torch.cat([picture(0, 0, 0), picture(0, 0, 0.3)])
    torch.testing.assert_close(losses.mse(a, b), torch.tensor([2.25 / 3, 0.09 / 3]))
    torch.testing.assert_close(losses.l1(a, b), torch.tensor([2.5 / 3, 0.1]))


class Maps:
    """A perceptual net whose maps are what a function makes of the picture."""

    def __init__(self, maps: Callable[[Tensor], list[Tensor]], weights: list[Tensor] | None = None) -> None:
        self.maps = maps
        self.weights = weights

    def distance(self, output: Tensor, reference: Tensor) -> Tensor:
        return perceptual_distance(self.maps, output, reference, self.weights)


@pytest.mark.parametrize("weighted", [False, True])
def test_perceptual_by_hand(weighted: bool) -> None:
    # two layers; at each place a vector of two channels is brought to length one
    a = torch.tensor([[[[3.0, 0.0]], [[4.0, 2.0]]]])  # unit vectors (.6, .8) and (0, 1)
    b = torch.tensor([[[[1.0, 5.0]], [[0.0, 0.0]]]])  # (1, 0) and (1, 0)
    # each weight multiplies a squared difference
    u, v, p, q = (0.5, 2.0, 0.0, 3.0) if weighted else (1.0, 1.0, 1.0, 1.0)
    first = ((u * 0.4**2 + v * 0.8**2) + (u * 1 + v * 1)) / 2
    second = p * 0.4**2 + q * 0.8**2
    net = Maps(lambda x: [x, x[..., :1]], [torch.tensor([u, v]), torch.tensor([p, q])] if weighted else None)
    torch.testing.assert_close(losses.perceptual(net, a, b), torch.tensor([first + second]), rtol=1e-5, atol=0)


def test_perceptual_normalizes_as_lpips_does() -> None:
    x, y = torch.randn(2, 7, 5, 5), torch.randn(2, 7, 5, 5)
    expected = (lpips.normalize_tensor(x) - lpips.normalize_tensor(y)).square().sum(1).mean((1, 2))
    torch.testing.assert_close(losses.perceptual(Maps(lambda z: [z]), x, y), expected, rtol=1e-5, atol=0)


def test_perceptual_has_a_gradient_where_a_feature_is_zero() -> None:
    x = torch.zeros(1, 3, 4, 4, requires_grad=True)
    losses.perceptual(Maps(lambda z: [z]), x, torch.ones(1, 3, 4, 4)).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_identity_by_hand() -> None:
    embed = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    other = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, -1.0]])
    torch.testing.assert_close(losses.identity(lambda x: x, embed, other), torch.tensor([0.0, 1.0, 2.0]))


def test_w_norm_by_hand() -> None:
    mean = torch.tensor([1.0, 0.0])
    w_BLD = torch.tensor([[[4.0, 0.0], [1.0, 4.0]], [[1.0, 0.0], [1.0, 0.0]]])
    torch.testing.assert_close(losses.w_norm(w_BLD, mean), torch.tensor([5.0, 0.0]))  # not squared
    torch.testing.assert_close(losses.w_norm(w_BLD, mean.expand(2, 2)), torch.tensor([5.0, 0.0]))


def test_w_norm_is_over_all_styles_together() -> None:
    w_BLD = torch.ones(1, 18, 512)
    torch.testing.assert_close(losses.w_norm(w_BLD, torch.zeros(512)), torch.tensor([96.0]))  # sqrt(18 * 512)


def test_w_norm_has_a_gradient_at_the_mean_style() -> None:
    w_BLD = torch.zeros(1, 2, 3, requires_grad=True)
    losses.w_norm(w_BLD, torch.zeros(3)).sum().backward()
    assert w_BLD.grad is not None
    assert torch.isfinite(w_BLD.grad).all()


def test_style_by_hand() -> None:
    w_BLD, codes = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]]), torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    torch.testing.assert_close(losses.style(w_BLD, codes), torch.tensor([2.0, 1.0]))


def test_the_face_box_is_psps() -> None:
    rows = torch.arange(256.0)[:, None].expand(256, 256)
    box = face_box(torch.stack([rows, rows.T])[None])
    assert box.shape == (1, 2, 188, 188)
    assert box[0, 0, :, 0].tolist() == list(range(35, 223))
    assert box[0, 1, 0].tolist() == list(range(32, 220))
    assert face_box(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 47, 47)


def test_cropped_losses_by_hand() -> None:
    reference = torch.zeros(1, 3, 256, 256)
    outside, inside = reference.clone(), reference.clone()
    outside[:, :, :35] = outside[:, :, 223:] = outside[..., :32] = outside[..., 220:] = 1.0
    inside[0, 1, 35:39, 219] = 0.5  # four pixels in the box's upper right corner
    assert losses.mse(face_box(outside), face_box(reference)).item() == 0
    torch.testing.assert_close(
        losses.mse(face_box(inside), face_box(reference)), torch.tensor([4 * 0.25 / (3 * 188 * 188)])
    )
    net = Maps(lambda x: [x + 1])  # unit vectors of (1, 1, 1) and, at the four pixels, (1, 1.5, 1)
    unit = 4.25**-0.5
    apart = 2 * (unit - 3**-0.5) ** 2 + (1.5 * unit - 3**-0.5) ** 2
    torch.testing.assert_close(
        losses.perceptual(net, face_box(inside), face_box(reference)),
        torch.tensor([4 * apart / 188**2]),
        rtol=1e-3,
        atol=0,
    )


def test_identity_sees_the_face_box_at_112_px() -> None:
    output, reference = torch.zeros(1, 3, 256, 256), torch.zeros(1, 3, 256, 256)
    output[0, 0, 35:37, 32:34] = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    reference[0, 0, 35:37, 32:34] = 1.0
    reference[0, 2, 222, 219] = 4.0
    net = FaceIdentity(nn.Flatten(), size=112, crop=True, channels="rgb")
    small, small_reference = pooled(output), pooled(reference)
    cosine = (small * small_reference).sum() / (small.norm() * small_reference.norm())
    torch.testing.assert_close(losses.identity(net, output, net(reference)), (1 - cosine)[None])
    output[:, :, :35] = output[..., :32] = 7.0  # hair and background have no say
    torch.testing.assert_close(losses.identity(net, output, net(reference)), (1 - cosine)[None])


def pooled(img: Tensor) -> Tensor:
    """The face box [3,188,188] at 112 px: a pixel of the result is the mean of the pixels that its area touches."""
    matrix = torch.zeros(112, 188)
    for i in range(112):
        touched = slice(i * 188 // 112, -(-(i + 1) * 188 // 112))
        matrix[i, touched] = 1 / (touched.stop - touched.start)
    return matrix @ img[0, :, 35:223, 32:220] @ matrix.T


@pytest.mark.parametrize("name", ["mse", "l1", "perceptual", "identity", "w_norm", "style"])
def test_one_value_a_sample_and_no_gradient_to_the_reference(name: str) -> None:
    torch.manual_seed(0)
    shape = (3, 4, 5) if name in ("w_norm", "style") else (3, 2, 6, 6)
    output = torch.randn(shape, requires_grad=True)
    reference = torch.randn(shape, requires_grad=name != "w_norm")
    if name == "perceptual":
        value = losses.perceptual(Maps(lambda x: [x]), output, reference)
    elif name == "identity":
        value = losses.identity(lambda x: x.flatten(1), output, reference.flatten(1))
    else:
        value = getattr(losses, name)(output, reference[0, 0] if name == "w_norm" else reference)
    assert value.shape == (3,)
    value[1].backward()
    assert output.grad is not None
    assert output.grad.flatten(1).any(dim=1).tolist() == [False, True, False]
    assert reference.grad is None


def test_bfloat16_is_averaged_in_float32() -> None:
    a = torch.full((1, 1, 64, 64), 0.5, dtype=torch.bfloat16)
    assert losses.mse(a, torch.zeros_like(a)).dtype == torch.float32
