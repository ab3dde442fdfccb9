"""Numbers of restored sounds, where arithmetic gives the answer."""

import numpy as np
import pytest
import torch

from v2f import metrics

RATE = 4000
BIT = 20 * np.log10(2)  # dB


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal((3, 7200))


@pytest.mark.parametrize("bits", [0.25, 1.0, 1.71875])
def test_white_noise_has_6_db_a_bit(noise, bits):
    flat = metrics.rate_distortion(np.ones((1, 64)), bits)
    assert flat[0] == pytest.approx(6.0206 * bits, abs=1e-4)
    assert flat[0] == pytest.approx(BIT * bits)
    found = metrics.rate_distortion(metrics.power_spectra(noise, RATE), bits)
    assert found == pytest.approx(np.full(3, BIT * bits), abs=0.1)


def test_water_fills_the_strongest_frequencies_first():
    # one frequency of power 4, three of 1: two bits for the four lower the strong one to 1, and the others are left
    found = metrics.rate_distortion([[4.0, 1.0, 1.0, 1.0], [1.0, 4.0, 1.0, 1.0]], 0.25)
    assert found == pytest.approx([10 * np.log10(7 / 4)] * 2)
    # half the band is silent: its bits go to the other half, which has two for each of the one
    half = metrics.rate_distortion([[1.0] * 8 + [0.0] * 8], 1.0)
    assert half[0] == pytest.approx(2 * BIT, abs=1e-3)
    assert metrics.rate_distortion([[3.0, 1.0, 1.0, 1.0]], 0.0) == pytest.approx([0.0])
    level = np.random.default_rng(1).uniform(0.1, 9.0, (5, 50))
    assert np.diff([metrics.rate_distortion(level, bits) for bits in (0.1, 0.5, 1, 2)], axis=0).min() > 0


def test_si_sdr_is_the_power_ratio_whatever_the_loudness(noise):
    error = np.random.default_rng(2).standard_normal(noise.shape)
    error -= (error * noise).sum(1, keepdims=True) / (noise**2).sum(1, keepdims=True) * noise
    error *= np.sqrt((noise**2).sum(1) / (error**2).sum(1))[:, None] / 10
    for loudness in (1.0, 0.3, 4.0):
        found = metrics.si_sdr(loudness * (noise + error), noise)
        assert found == pytest.approx([20.0] * 3)
    assert metrics.si_sdr(torch.from_numpy(noise), noise).min() == 100
    assert metrics.si_sdr(np.zeros_like(noise), noise).max() == -100


def test_log_mel_distance_of_another_loudness_is_that_loudness(noise):
    wav = torch.from_numpy(noise).float()
    assert metrics.log_mel_distance(wav, wav, RATE) == pytest.approx([0.0] * 3)
    assert metrics.log_mel_distance(wav / 2, wav, RATE) == pytest.approx([BIT] * 3, abs=0.05)


def test_the_perplexity_of_codes_is_the_number_of_equally_used_ones():
    assert metrics.perplexity(metrics.code_counts([[0, 1], [2, 3]], 16)) == pytest.approx(4)
    assert metrics.perplexity([8, 4, 4, 0]) == pytest.approx(2**1.5)
    assert metrics.perplexity([0, 0]) == 0
    assert metrics.used(metrics.code_counts(torch.tensor([5, 5, 7]), 8)) == pytest.approx(0.25)
