"""DiffAugment: what each policy does to a picture, that gradients pass, and that its numbers alone decide."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from v2f.nn.diffaugment import NUMBERS, POLICIES, color, cutout, diffaugment, translation

SIDE = 16


def pictures(count: int = 4, channels: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return 2 * torch.rand(count, channels, SIDE, SIDE, generator=rng, dtype=torch.float64) - 1


def numbers(count: int = 4) -> Tensor:
    return torch.rand(count, NUMBERS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def of(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_without_a_policy_it_is_the_same_tensor() -> None:
    img = pictures()
    assert diffaugment(img, numbers(), []) is img


def test_brightness_saturation_and_contrast_are_those_of_the_formula() -> None:
    img, half = pictures(2), of(0.5, 0.5)
    torch.testing.assert_close(color(img, half, half, half), img)
    torch.testing.assert_close(color(img, of(0, 1), half, half), img + of(-0.5, 0.5).view(2, 1, 1, 1))
    gray = color(img, half, of(0, 0), half)  # without saturation
    torch.testing.assert_close(gray, img.mean(1, keepdim=True).expand_as(img))
    pale = color(img, half, half, of(0, 0))
    mean = img.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(pale, mean + 0.5 * (img - mean))
    torch.testing.assert_close(color(img, half, half, of(1, 1)), mean + 1.5 * (img - mean))


def test_a_gray_picture_has_no_saturation() -> None:
    img, half = pictures(2, channels=1), of(0.5, 0.5)
    for saturation in (of(0, 0), of(0.9, 0.2)):
        torch.testing.assert_close(color(img, half, saturation, half), img)


def test_a_translation_is_of_whole_pixels_and_leaves_zeros() -> None:
    img = pictures(3)
    most = SIDE // 8
    torch.testing.assert_close(translation(img, of(0.5, 0.5, 0.5), of(0.5, 0.5, 0.5)), img)
    moved = translation(img, of(0, 0.5, 0.999), of(0.5, 0.999, 0))
    torch.testing.assert_close(moved[0, :, most:], img[0, :, :-most])
    assert (moved[0, :, :most] == 0).all()
    torch.testing.assert_close(moved[1, :, :, :-most], img[1, :, :, most:])
    assert (moved[1, :, :, -most:] == 0).all()
    torch.testing.assert_close(moved[2, :, :-most, most:], img[2, :, most:, :-most])


def test_a_cutout_is_a_square_of_half_the_side_that_may_leave_the_picture() -> None:
    img = torch.ones(3, 1, SIDE, SIDE)
    cut = cutout(img, torch.tensor([0.5, 0.0, 0.999]), torch.tensor([0.5, 0.0, 0.5])) == 0
    rows = [torch.nonzero(one[0].any(1)).flatten().tolist() for one in cut]
    columns = [torch.nonzero(one[0].any(0)).flatten().tolist() for one in cut]
    assert rows == [[*range(4, 12)], [*range(4)], [*range(12, 16)]]
    assert columns == [[*range(4, 12)], [*range(4)], [*range(4, 12)]]
    assert cut.sum().item() == 64 + 16 + 32


@given(st.lists(st.sampled_from(POLICIES), unique=True), st.integers(0, 2**31), st.sampled_from([1, 3]))
def test_a_picture_depends_on_its_own_numbers_and_on_nothing_else(chosen: list, seed: int, channels: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    img, uniform = pictures(4, channels), torch.rand(4, NUMBERS, generator=rng)
    whole = diffaugment(img, uniform, chosen)
    parts = [diffaugment(img[row : row + 1], uniform[row : row + 1], chosen) for row in range(4)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole, diffaugment(img, uniform, chosen[::-1]))
    assert whole.shape == img.shape


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_of_first_and_second_order_pass(policy: str) -> None:
    img = pictures(2)[..., :SIDE].requires_grad_()
    uniform = numbers(2)
    assert torch.autograd.gradcheck(lambda x: diffaugment(x, uniform, [policy]), (img,), fast_mode=True)
    gradient = torch.autograd.grad(diffaugment(img, uniform, [policy]).square().sum(), img, create_graph=True)[0]
    gradient.square().sum().backward()
    assert img.grad is not None
    assert float(img.grad.abs().sum()) > 0
