"""What a system reads of a sample."""

import subprocess
import sys

import numpy as np
import pytest

from v2f.data.encoding import encode
from v2f.data.sample import Sample
from v2f.data.transforms import Factors, Photo, StoredCodes, Waveform, square
from v2f.errors import V2FError
from v2f.keyed import keyed_rng

RAMP = np.linspace(-0.9, 0.9, 1600)


def sample(frames: int = 1600, rate: int = 16000, size: tuple[int, int] = (8, 8), photos: int = 3) -> Sample:
    photos_HWC = [np.full((*size, 3), 50 * i, dtype=np.uint8) for i in range(photos)]
    extra = {"factors": {"voice": {"pitch": 0.5, "age": -1.0}, "face": {"nose": 2.0}}}
    codes_PLD = np.broadcast_to(np.arange(photos, dtype=np.float32)[:, None, None], (photos, 4, 6))
    about = {"identity": "a", "split": "train", "source": "test"}
    return Sample("k", encode("k", RAMP[:frames], rate, photos_HWC, extra=extra, codes_PLD=codes_PLD, **about))


def test_a_longer_clip_gives_a_random_window_in_evaluation_the_middle() -> None:
    wav = sample().waveform()
    transform = Waveform(0.05)
    assert np.array_equal(transform(sample(), None), wav[400:1200])
    windows = [transform(sample(), keyed_rng(0, slot)) for slot in range(20)]
    assert np.array_equal(windows[3], transform(sample(), keyed_rng(0, 3)))
    starts = [int(np.searchsorted(wav, window[0])) for window in windows]
    assert len(set(starts)) > 15
    assert all(np.array_equal(window, wav[start : start + 800]) for start, window in zip(starts, windows, strict=True))


def test_a_shorter_clip_is_repeated() -> None:
    wav = sample(frames=300).waveform()
    for rng in (None, keyed_rng(0, 1)):
        padded = Waveform(0.05)(sample(frames=300), rng)
        assert np.array_equal(padded, np.concatenate([wav, wav, wav[:200]]))


def test_another_rate_is_resampled() -> None:
    """A tone keeps its pitch and its height."""
    t = np.arange(8000) / 8000
    tone = 0.5 * np.sin(2 * np.pi * 440 * t)
    photo = np.zeros((4, 4, 3), np.uint8)
    members = encode("k", tone, 8000, [photo], identity="a", split="train", source="test")
    wav_T = Waveform(0.5)(Sample("k", members), None)
    assert wav_T.shape == (8000,)
    spectrum = np.abs(np.fft.rfft(wav_T * np.hanning(8000)))
    assert spectrum.argmax() * 16000 / 8000 == 440
    assert np.abs(wav_T[1000:-1000]).max() == pytest.approx(0.5, rel=0.02)


def test_a_photo_is_chosen_by_the_slot_in_evaluation_the_first() -> None:
    assert Photo(8)(sample(), None).max() == 0
    assert Photo(8)(sample(), None).shape == (3, 8, 8)
    chosen = {int(Photo(8)(sample(), keyed_rng(0, slot)).max()) for slot in range(30)}
    assert chosen == {0, 50, 100}


def test_codes_are_those_of_the_photo_that_the_same_generator_chooses() -> None:
    assert StoredCodes(4, 6)(sample(), None).tolist() == [[0.0] * 6] * 4
    for slot in range(30):
        codes_LD = StoredCodes(4, 6)(sample(), keyed_rng(0, slot))
        assert (codes_LD.shape, codes_LD.dtype) == ((4, 6), np.float32)
        assert (50 * codes_LD == Photo(8)(sample(), keyed_rng(0, slot)).max()).all()


def test_codes_of_another_generator_or_none_are_refused() -> None:
    with pytest.raises(V2FError, match=r"sample k: its codes have 4 styles x 6, the generator takes 18 x 512; pack it"):
        StoredCodes(18)(sample(), None)
    members = encode("k", RAMP, 16000, [np.zeros((8, 8, 3), np.uint8)], identity="a", split="train", source="test")
    with pytest.raises(V2FError, match=r"sample k: it has no codes"):
        StoredCodes(18)(Sample("k", members), None)


def test_photos_are_cut_to_their_middle_and_resized() -> None:
    photo_HWC = np.zeros((8, 24, 3), np.uint8)
    photo_HWC[:, 8:16] = 200
    assert (square(photo_HWC, 8) == 200).all()
    assert (square(photo_HWC, 4) == 200).all()
    assert square(photo_HWC, 4).shape == (4, 4, 3)


def test_factors_come_in_the_worlds_order() -> None:
    assert Factors("voice")(sample(), None).tolist() == [0.5, -1.0]
    with pytest.raises(V2FError, match="sample k: its JSON has no clip factors"):
        Factors("clip")(sample(), None)


def test_the_modules_that_workers_import_are_free_of_torch() -> None:
    code = "import sys, v2f.data.worker, v2f.data.order, v2f.data.manifest; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
