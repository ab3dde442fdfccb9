"""Heads that recognize speakers: ArcFace's margin by its equation, and float32 under autocast."""

import math

import pytest
import torch

from v2f.nn.speaker_head import SpeakerHead, with_margin


def test_the_margin_enlarges_the_angle_of_the_own_person_alone() -> None:
    angle_B = torch.linspace(0.01, math.pi - 0.3, 50, dtype=torch.float64)
    cosine_BN = torch.stack([angle_B.cos(), torch.full_like(angle_B, 0.3)], dim=1)
    own_B = torch.zeros(50, dtype=torch.int64)
    found_BN = with_margin(cosine_BN, own_B, 0.25)
    torch.testing.assert_close(found_BN[:, 0], (angle_B + 0.25).cos(), rtol=0, atol=1e-12)
    assert torch.equal(found_BN[:, 1], cosine_BN[:, 1])
    assert torch.equal(with_margin(cosine_BN, own_B, 0.0), cosine_BN)


def test_a_larger_angle_never_has_a_larger_value() -> None:
    angle_B = torch.linspace(0, math.pi, 1001, dtype=torch.float64)
    value_B = with_margin(angle_B.cos()[:, None], torch.zeros(1001, dtype=torch.int64), 0.5)[:, 0]
    assert (value_B.diff() < 0).all()


@pytest.mark.parametrize("cosine", [1.0, 1.0 + 1e-7, 0.9999999, 0.0, -0.9999999, -1.0 - 1e-7])
def test_gradients_are_finite_at_every_angle(cosine: float) -> None:
    value = torch.tensor([[cosine, 0.1]], requires_grad=True)
    logit_BN = 30 * with_margin(value, torch.tensor([0]), 0.3)
    torch.nn.functional.cross_entropy(logit_BN, torch.tensor([0])).backward()
    assert value.grad is not None
    assert value.grad.isfinite().all()


@pytest.mark.parametrize("cosine", [False, True])
def test_a_head_computes_in_float32_under_autocast(cosine: bool) -> None:
    torch.manual_seed(0)
    head, map_BCT = SpeakerHead(6, 8, 5, "prelu", cosine), torch.randn(4, 6, 30)
    wanted = head(head.embed(map_BCT))
    with torch.autocast("cpu", torch.bfloat16):
        hidden = head.embed(map_BCT)
        assert torch.equal(head(hidden), wanted)
        assert head(head.embed(map_BCT.bfloat16())).dtype == torch.float32
    assert wanted.shape == (4, 5)
    assert (wanted.abs().max() <= 1 + 1e-6) == cosine or not cosine


def test_cosine_logits_know_neither_length_nor_bias() -> None:
    torch.manual_seed(0)
    head = SpeakerHead(6, 8, 5, "none", True)
    hidden = torch.randn(3, 8)
    torch.testing.assert_close(head(hidden), head(7 * hidden))
    assert head.people.bias is None
    assert not head(torch.zeros(1, 8)).isnan().any()
