"""R1: the squared gradient at real pictures, by hand and by finite differences, with and without a graph."""

import pytest
import torch
from torch import Tensor, nn

from v2f.nn import adversarial
from v2f.nn.dcgan import DCGANDiscriminator, Norm


def test_r1_of_a_quadratic_discriminator_is_the_one_computed_by_hand() -> None:
    """D(x) = a sum x^2 has the gradient 2 a x, R1's square is 4 a^2 |x|^2, and its derivative by a is 8 a |x|^2."""
    a = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    logit_B, slope_B = adversarial.with_r1(lambda img: a * img.square().sum((1, 2, 3)), x)
    square_B = x.square().sum((1, 2, 3))
    torch.testing.assert_close(logit_B, 1.5 * square_B)
    torch.testing.assert_close(slope_B, 4 * 1.5**2 * square_B)
    slope_B.sum().backward()
    assert a.grad is not None
    torch.testing.assert_close(a.grad, 8 * 1.5 * square_B.sum())
    assert not x.requires_grad


@pytest.mark.parametrize("norm", ["batch", "none", "spectral"])
def test_r1_of_a_discriminator_is_that_of_finite_differences(norm: Norm) -> None:
    torch.manual_seed(0)
    net = DCGANDiscriminator(8, 4, bn_group=4, channels=1, norm=norm).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)

    def slopes() -> Tensor:
        return adversarial.with_r1(net, x)[1]

    found = slopes()
    gradient = torch.zeros_like(x)
    with torch.no_grad():
        for at in range(x.numel()):
            ends = []
            for sign in (1, -1):
                moved = x.clone()
                moved.view(-1)[at] += sign * 1e-6
                ends.append(net(moved).sum())
            gradient.view(-1)[at] = (ends[0] - ends[1]) / 2e-6
    torch.testing.assert_close(found.detach(), gradient.square().sum((1, 2, 3)), rtol=1e-4, atol=1e-8)

    weight = net.convs[0].weight
    (second,) = torch.autograd.grad(found.sum(), weight)
    with torch.no_grad():
        direction = torch.randn_like(weight)
        ends = []
        for sign in (1, -1):
            weight.add_(direction, alpha=sign * 1e-6)
            ends.append(slopes().sum())
            weight.sub_(direction, alpha=sign * 1e-6)
        wanted = (ends[0] - ends[1]) / 2e-6
    torch.testing.assert_close((second * direction).sum(), wanted, rtol=1e-4, atol=1e-8)


def test_r1_without_gradients_has_the_same_values_and_no_graph() -> None:
    torch.manual_seed(0)
    net = DCGANDiscriminator(8, 4, bn_group=2).eval()
    x = torch.randn(4, 3, 8, 8)
    wanted = adversarial.with_r1(net, x)
    with torch.no_grad():
        found = adversarial.with_r1(net, x)
    for one, other in zip(found, wanted, strict=True):
        assert not one.requires_grad
        assert other.requires_grad
        torch.testing.assert_close(one, other)


def test_r1_under_bf16_is_near_float32s_and_float32_itself() -> None:
    torch.manual_seed(0)
    net = DCGANDiscriminator(16, 8, bn_group=4)
    x = torch.randn(8, 3, 16, 16)
    _, exact_B = adversarial.with_r1(net, x)
    with torch.autocast("cpu", torch.bfloat16):
        _, slope_B = adversarial.with_r1(net, x)
    assert slope_B.dtype == torch.float32
    torch.testing.assert_close(slope_B, exact_B, rtol=0.1, atol=0)
    slope_B.sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in net.convs.parameters())
