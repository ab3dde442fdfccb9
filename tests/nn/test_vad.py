"""Voice activity detection by energy: which frames are kept, and in which order."""

import torch
from torch import Tensor

from v2f.nn.spectrogram import standardized
from v2f.nn.vad import HANGOVER, repeated, speech

DB = torch.log(torch.tensor(10.0)) / 10


def log_mel(level_BF: Tensor, bands: int = 4) -> Tensor:
    """Bands of equal power; ``level_BF``: of each frame, in dB."""
    return (DB * level_BF)[:, None].expand(-1, bands, -1)


def test_a_frame_is_speech_if_one_near_it_is_loud_enough() -> None:
    level_BF = torch.full((2, 60), -80.0)
    level_BF[0, 20], level_BF[0, 40] = -10.0, -44.9  # the loudest, and one 34.9 dB below
    level_BF[1, 30], level_BF[1, 50] = 0.0, -35.1
    found = speech(log_mel(level_BF), below=35.0)
    expected = torch.zeros(2, 60, dtype=torch.bool)
    expected[0, 20 - HANGOVER : 21 + HANGOVER] = expected[0, 40 - HANGOVER : 41 + HANGOVER] = True
    expected[1, 30 - HANGOVER : 31 + HANGOVER] = True
    assert torch.equal(found, expected)
    assert torch.equal(found[1:], speech(log_mel(level_BF[1:]), below=35.0)), "a clip does not depend on its batch"
    assert torch.equal(found, speech(log_mel(level_BF - 30), below=35.0)), "nor on how loud it is"


def test_a_silent_clip_is_kept_whole() -> None:
    assert speech(log_mel(torch.full((1, 9), -90.0)), below=35.0).all()
    assert speech(log_mel(torch.linspace(-90, 0, 30)[None]), below=float("inf")).all()


def test_speech_is_repeated_in_its_order_to_the_old_length() -> None:
    x_B1F = torch.arange(7.0).expand(2, 1, 7)
    speech_BF = torch.tensor([[0, 1, 0, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    assert repeated(x_B1F, speech_BF)[:, 0].tolist() == [[1, 4, 5, 1, 4, 5, 1], [0, 1, 2, 3, 4, 5, 6]]


def test_bands_are_normalized_over_speech_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    x_BMF = 3 + 2 * torch.randn(2, 5, 50, generator=generator)
    speech_BF = torch.rand(2, 50, generator=generator) < 0.6
    found = standardized(x_BMF, speech_BF)
    for row in range(2):
        only = x_BMF[row][:, speech_BF[row]]
        wanted = (only - only.mean(1, keepdim=True)) / only.std(1, correction=0, keepdim=True)
        torch.testing.assert_close(found[row][:, speech_BF[row]], wanted, atol=1e-5, rtol=1e-5)
    whole = torch.ones(2, 50, dtype=torch.bool)
    torch.testing.assert_close(standardized(x_BMF, whole), standardized(x_BMF), atol=1e-5, rtol=1e-5)


def test_a_clip_that_is_normalized_as_a_whole_keeps_the_levels_of_its_bands() -> None:
    generator = torch.Generator().manual_seed(1)
    level_M1 = torch.tensor([[0.0], [1.0], [5.0]])
    x_BMF = 3 + level_M1 + 2 * torch.randn(2, 3, 50, generator=generator)
    speech_BF = torch.rand(2, 50, generator=generator) < 0.6
    found = standardized(x_BMF, speech_BF, each_band=False)
    for row in range(2):
        only = x_BMF[row][:, speech_BF[row]]
        wanted = (only - only.mean()) / only.std(correction=0)
        torch.testing.assert_close(found[row][:, speech_BF[row]], wanted, atol=1e-5, rtol=1e-5)
    whole = torch.ones(2, 50, dtype=torch.bool)
    plain = standardized(x_BMF, each_band=False)
    torch.testing.assert_close(standardized(x_BMF, whole, each_band=False), plain, atol=1e-5, rtol=1e-5)
