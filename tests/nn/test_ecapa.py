"""ECAPA-TDNN and its front end against numbers of SpeechBrain, which ``bench/ecapa_reference.py`` has written."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from bench.ecapa_reference import REFERENCE, SMALL, ours, waves
from bench.random_weights import ecapa
from v2f.errors import V2FError
from v2f.nn.ecapa import ECAPA, Widths
from v2f.nn.fbank import LogMel
from v2f.nn.strict import misfit

PARTS = {  # parameters of the published net
    "blocks.0": 412_672,
    "blocks.1": 2_713_344,
    "blocks.2": 2_713_344,
    "blocks.3": 2_713_344,
    "mfa": 9_446_400,
    "asp": 1_576_320,
    "asp_bn": 12_288,
    "fc": 1_179_840,
}


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    with np.load(REFERENCE) as kept:
        return {name: torch.from_numpy(kept[name]) for name in kept}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_the_published_net_has_its_parameters_and_its_keys() -> None:
    with torch.device("meta"):
        net = ECAPA(ECAPA.Config())
    assert {name: sum(p.numel() for p in net.get_submodule(name).parameters()) for name in PARTS} == PARTS
    assert sum(p.numel() for p in net.parameters()) == 20_767_552
    assert len(net.state_dict()) == 231
    assert misfit(net.state_dict(), ecapa()) is None


def test_the_front_end_is_speechbrains(reference: dict[str, Tensor]) -> None:
    close(LogMel()(waves(0.1)), reference["level"])
    close(LogMel()(waves(0.1).float()), reference["level"])


def test_the_net_is_speechbrains(reference: dict[str, Tensor]) -> None:
    net = ours(SMALL)
    close(torch.stack(net.blocks.maps(reference["level"])), reference["maps"])
    close(net(reference["level"]), reference["vector"])


def test_the_front_end_does_not_know_the_batch_the_precision_or_autocast() -> None:
    front, wav = LogMel(), waves(0.5).float()
    alone = torch.cat([front(one[None]) for one in wav])
    assert alone.dtype == torch.float32
    assert alone.shape == (3, 80, 51)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(front(wav), alone)
    assert torch.equal(front.to(torch.bfloat16)(wav), alone)
    assert front(wav.double()).dtype == torch.float64
    assert front(wav.bfloat16()).dtype == torch.float32


def test_the_front_end_hears_loudness_only_as_far_as_silence_and_the_range_reach() -> None:
    front, wav = LogMel(), 0.1 * waves(0.5)[:1]
    torch.testing.assert_close(front(2 * wav), front(wav), rtol=0, atol=1e-9)
    assert torch.equal(front(torch.zeros(1, 1600)), torch.zeros(1, 80, 11))
    assert float(front(waves(0.5)[2:]).std(dim=2).max()) > 20  # silence, then noise: cut at 80 dB, not at 100
    spread = front(waves(0.5)[2:])
    assert float(spread.amax() - spread.amin()) <= 2 * 80


def test_a_clip_shorter_than_the_kernels_reach_is_one_line() -> None:
    net = ours(SMALL)
    assert net(torch.randn(1, 80, 5)).shape == (1, 12)
    with pytest.raises(V2FError, match=r"ECAPA-TDNN: its kernels need 5 frames, got 4; use longer clips"):
        net(torch.randn(1, 80, 4))
    wide = ECAPA(SMALL.model_copy(update={"kernels": [1, 1, 1, 1, 11]})).eval()
    with pytest.raises(V2FError, match="its kernels need 6 frames, got 5"):
        wide(torch.randn(1, 80, 5))
    with pytest.raises(V2FError, match=r"expected waves of shape \[batch, samples\], got \[1, 0\]"):
        LogMel()(torch.zeros(1, 0))


def test_one_constant_value_in_all_frames_has_a_finite_gradient() -> None:
    net = ours(SMALL)
    level = torch.zeros(1, 80, 9, requires_grad=True)
    net(level).sum().backward()
    assert level.grad is not None
    assert level.grad.isfinite().all()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"kernels": [5, 3, 3, 1]}, "kernels has 4 entries, dilations 5: one per layer"),
        ({"kernels": [5, 4, 3, 3, 1]}, "kernels must be odd"),
        ({"channels": 20}, "channels 20 is not a multiple of scale 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Widths.model_validate(sizes)
