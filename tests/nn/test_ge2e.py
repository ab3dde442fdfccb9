"""GE2E computes what the package resemblyzer computes, which bench/ge2e_vectors.py recorded; each clip by itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.ge2e_vectors import QUIET, SECONDS, sounds
from bench.random_weights import ge2e
from v2f.nn.ge2e import GE2E, RATE, partials, raised
from v2f.weights import GE2EWeights, read
from v2f.weights.catalogue import CATALOGUE

RECORDED = np.load(Path(__file__).parent / "ge2e.npz")
LEVEL = -30.0


def waves(seconds: float, count: int = 3) -> Tensor:
    return 0.1 * torch.randn(count, round(seconds * RATE), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def small() -> GE2E:
    torch.manual_seed(0)
    net = GE2E(width=12, embedding=6)
    nn.init.uniform_(net.linear.bias, 0.1, 1.0)
    return net.eval()


@pytest.fixture(scope="module")
def published() -> GE2E:
    """With the weights inside the package."""
    entry = CATALOGUE["ge2e-resemblyzer"]
    path = entry.installed()
    if path is None:
        pytest.skip(f"no weights: pip install --no-deps {entry.package}")
    net, digest = read(GE2EWeights(net="ge2e"), path)
    assert digest == entry.sha256
    assert isinstance(net, GE2E)
    return net


def test_it_has_the_published_count() -> None:
    assert sum(p.numel() for p in GE2E().parameters()) == 1_423_616


@pytest.mark.parametrize("seconds", SECONDS)
def test_its_vectors_are_those_of_the_package(published: GE2E, seconds: float) -> None:
    wav_NT = raised(torch.from_numpy(sounds(seconds)), LEVEL)
    with torch.no_grad():
        found = {"vectors NE": published(wav_NT), "partials NPE": published.parts(wav_NT)}
    for name, value in found.items():
        theirs = RECORDED[f"{seconds} s: {name}"]
        assert value.shape == theirs.shape
        np.testing.assert_allclose(value.numpy(), theirs, rtol=0, atol=1e-4)
    one, other, noise, quiet_one = found["vectors NE"]
    assert one @ quiet_one > one @ other > one @ noise


def test_its_mel_is_that_of_the_package(small: GE2E) -> None:
    wav_NT = torch.from_numpy(sounds(SECONDS[0]))
    theirs_FM = RECORDED["mel FM"]
    np.testing.assert_allclose(small.mel(wav_NT[:1])[0].numpy(), theirs_FM, rtol=1e-3, atol=1e-6 * theirs_FM.max())


@pytest.mark.parametrize("seconds", SECONDS)
def test_its_partials_are_those_of_the_package(seconds: float) -> None:
    assert [160 * start for start in partials(round(seconds * RATE))] == RECORDED[f"{seconds} s: starts P"].tolist()


def test_a_file_of_the_layout_is_one_lstm_of_three_layers(tmp_path: Path) -> None:
    torch.save(ge2e(), tmp_path / "pretrained.pt")
    net, _ = read(GE2EWeights(net="ge2e"), str(tmp_path / "pretrained.pt"))
    assert isinstance(net, GE2E)
    lstm, state = nn.LSTM(40, 256, 3, batch_first=True), ge2e()["model_state"]
    lstm.load_state_dict({name.removeprefix("lstm."): t for name, t in state.items() if name.startswith("lstm.")})
    wav_BT = waves(1.6)
    with torch.no_grad():
        mel_BFM = net.mel(wav_BT)
        top_BFH, (last_LBH, _) = lstm(mel_BFM[:, :160])
        torch.testing.assert_close(net.states(wav_BT)[-1][:, :160], top_BFH)
        raw_BE = F.relu(last_LBH[-1] @ state["linear.weight"].T + state["linear.bias"])
        torch.testing.assert_close(net(wav_BT), raw_BE / raw_BE.norm(dim=1, keepdim=True))


def test_a_vector_has_unit_length_and_no_negative_numbers_and_silence_has_one(small: GE2E) -> None:
    vector_BE = small(torch.cat([waves(2.3), torch.zeros(1, round(2.3 * RATE))]))
    torch.testing.assert_close(vector_BE.norm(dim=1), torch.ones(4))
    assert vector_BE.min() >= 0
    with torch.no_grad():
        small.linear.bias.fill_(-9.0)  # the ReLU leaves nothing
    assert torch.equal(small(waves(1.0)), torch.zeros(3, 6))


def test_a_clip_does_not_depend_on_the_others(small: GE2E) -> None:
    wav_BT = waves(2.3)
    both = [small(wav_BT), *small.states(wav_BT)]
    alone = [small(wav_BT[1:2]), *small.states(wav_BT[1:2])]
    for of_batch, own in zip(both, alone, strict=True):
        torch.testing.assert_close(of_batch[1:2], own)


def test_a_short_clip_is_padded_with_zeros_and_the_rest_after_the_last_partial_is_left_out(small: GE2E) -> None:
    short_BT = waves(0.9)
    torch.testing.assert_close(small(short_BT), small(F.pad(short_BT, (0, round(0.7 * RATE)))))
    wav_BT = waves(1.9)
    assert partials(wav_BT.shape[1]) == [0]
    changed_BT = wav_BT.clone()
    changed_BT[:, round(1.7 * RATE) :] = 0
    assert torch.equal(small(wav_BT), small(changed_BT))


def test_quiet_waves_are_raised_loud_ones_and_silence_stay() -> None:
    voice_T = torch.from_numpy(sounds(0.9)[0])
    wav_BT = torch.stack([voice_T, QUIET * voice_T, torch.zeros_like(voice_T)])
    loud, quiet, silent = raised(wav_BT, LEVEL)
    assert torch.equal(loud, voice_T)
    torch.testing.assert_close(20 * quiet.square().mean().sqrt().log10(), torch.tensor(LEVEL))
    torch.testing.assert_close(quiet / quiet.norm(), voice_T / voice_T.norm())
    assert torch.equal(silent, torch.zeros_like(voice_T))


def test_it_computes_in_float64_and_under_autocast(small: GE2E) -> None:
    wav_BT = waves(2.3)
    vector_BE, states = small(wav_BT), small.states(wav_BT)
    with torch.autocast("cpu", torch.bfloat16):
        rough_BE, rough = small(wav_BT), small.states(wav_BT)
    assert rough_BE.dtype == torch.float32
    torch.testing.assert_close(rough_BE, vector_BE, rtol=0, atol=0.02)
    torch.testing.assert_close(rough[-1].float(), states[-1], rtol=0, atol=0.02)
    exact_BE = small.double()(wav_BT.double())
    assert exact_BE.dtype == torch.float64
    torch.testing.assert_close(exact_BE.float(), vector_BE, rtol=0, atol=1e-5)
