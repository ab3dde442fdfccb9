import lpips
import pytest
import torch
from torch import Tensor

from v2f import losses


def picture(*values: float) -> Tensor:
    return torch.tensor(values).reshape(1, 1, 1, -1)


def test_pixel_losses_by_hand() -> None:
    a, b = torch.cat([picture(1, -1, 0.5), picture(0, 0, 0)]), torch.cat([picture(0, 0, 0), picture(0, 0, 0.3)])
    torch.testing.assert_close(losses.mse(a, b), torch.tensor([2.25 / 3, 0.09 / 3]))
    torch.testing.assert_close(losses.l1(a, b), torch.tensor([2.5 / 3, 0.1]))


def test_perceptual_by_hand() -> None:
    # two layers; at each place a vector of two channels is brought to length one
    def net(x: Tensor) -> list[Tensor]:
        return [x, x[..., :1]]

    a = torch.tensor([[[[3.0, 0.0]], [[4.0, 2.0]]]])  # unit vectors (.6, .8) and (0, 1)
    b = torch.tensor([[[[1.0, 5.0]], [[0.0, 0.0]]]])  # (1, 0) and (1, 0)
    first = ((0.4**2 + 0.8**2) + (1 + 1)) / 2
    second = 0.4**2 + 0.8**2
    torch.testing.assert_close(losses.perceptual(net, a, b), torch.tensor([first + second]), rtol=1e-5, atol=0)


def test_perceptual_normalises_as_lpips_does() -> None:
    x, y = torch.randn(2, 7, 5, 5), torch.randn(2, 7, 5, 5)
    expected = (lpips.normalize_tensor(x) - lpips.normalize_tensor(y)).square().sum(1).mean((1, 2))
    torch.testing.assert_close(losses.perceptual(lambda z: [z], x, y), expected, rtol=1e-5, atol=0)


def test_perceptual_has_a_gradient_where_a_feature_is_zero() -> None:
    x = torch.zeros(1, 3, 4, 4, requires_grad=True)
    losses.perceptual(lambda z: [z], x, torch.ones(1, 3, 4, 4)).sum().backward()
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
    box = losses.face_box(torch.stack([rows, rows.T])[None])
    assert box.shape == (1, 2, 188, 188)
    assert box[0, 0, :, 0].tolist() == list(range(35, 223))
    assert box[0, 1, 0].tolist() == list(range(32, 220))
    assert losses.face_box(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 47, 47)


@pytest.mark.parametrize("name", ["mse", "l1", "perceptual", "identity", "w_norm", "style"])
def test_one_value_a_sample_and_no_gradient_to_the_reference(name: str) -> None:
    torch.manual_seed(0)
    shape = (3, 4, 5) if name in ("w_norm", "style") else (3, 2, 6, 6)
    output = torch.randn(shape, requires_grad=True)
    reference = torch.randn(shape, requires_grad=name != "w_norm")
    if name == "perceptual":
        value = losses.perceptual(lambda x: [x], output, reference)
    elif name == "identity":
        value = losses.identity(lambda x: x.flatten(1), output, reference)
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
