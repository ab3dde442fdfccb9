"""Augment: a function of (seed, slot), nothing in evaluation; each change does what it says, and no more."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from v2f.data.augment import AddNoise, Augment, Codec, Color, Crop, Flip, Gain, Gaps, Reverb, Shift, Stutters
from v2f.data.encoding import encode
from v2f.data.loader import Loader, read_split
from v2f.data.order import Order
from v2f.data.sample import Sample
from v2f.data.shards import write_manifest, write_shard
from v2f.data.transforms import Photo, StoredCodes, Waveform
from v2f.errors import V2FError
from v2f.keyed import keyed_rng

RATE = 16000
SOUND = (AddNoise(), Gaps(), Stutters(), Codec(), Reverb(), Gain(), Shift())
PICTURE = (Flip(), Color(), Crop((0.5, 0.9)))
ALL = [*SOUND, *PICTURE]
ABOUT = {"identity": "ada", "split": "train", "source": "test"}


def tone(hertz: float = 440.0, seconds: float = 0.5) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    return (0.4 * np.sin(2 * np.pi * hertz * t)).astype(np.float32)


def sample(key: str = "k", photos: int = 3) -> Sample:
    rng = keyed_rng(1, 0)
    pictures = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(photos)]
    codes_PLD = np.arange(photos, dtype=np.float32)[:, None, None] * np.ones((1, 2, 2))
    return Sample(key, encode(key, tone(), RATE, pictures, codes_PLD=codes_PLD, **ABOUT))  # type: ignore[arg-type]


def values_of(change: Any) -> np.ndarray:
    return tone() if change.kind == "sound" else keyed_rng(2).integers(0, 256, (3, 48, 40), dtype=np.uint8)


@settings(max_examples=30)
@given(slot=st.integers(0, 1 << 40), seed=st.integers(0, 99), sound=st.booleans())
def test_it_is_a_function_of_seed_and_slot(slot: int, seed: int, sound: bool) -> None:
    of: Any = Waveform(0.2) if sound else Photo(16)
    augment = Augment(of, SOUND if sound else PICTURE)
    before, plain = sample(), of(sample(), keyed_rng(seed, slot))
    for some in (before, sample()):
        for transform in (augment, copy.deepcopy(augment)):
            found = transform(some, keyed_rng(seed, slot))
            assert np.array_equal(found, augment(before, keyed_rng(seed, slot)))
            assert (found.shape, found.dtype) == (plain.shape, plain.dtype)
    assert np.abs(found).max() <= (1 if sound else 255)
    assert np.array_equal(augment(before, None), of(before, None))
    never = Augment(of, tuple(replace(change, chance=0.0) for change in augment.changes))
    assert np.array_equal(never(before, keyed_rng(seed, slot)), plain)


@pytest.mark.parametrize("change", ALL, ids=lambda change: type(change).__name__)
def test_other_slots_are_changed_otherwise_and_what_is_given_stays(change: Any) -> None:
    values = values_of(change)
    before = values.copy()
    found = {change(values, keyed_rng(0, slot), RATE).tobytes() for slot in range(8)}
    assert len(found) == (1 if isinstance(change, Flip) else 2 if isinstance(change, Codec) else 8)
    assert before.tobytes() not in found
    assert np.array_equal(values, before)
    of: Any = Waveform(0.2) if change.kind == "sound" else Photo(16)
    plain = of(sample(), None)
    often = Augment(Fixed(of), (replace(change, chance=0.5),), RATE)
    changed = [not np.array_equal(often(sample(), keyed_rng(1, slot)), plain) for slot in range(60)]
    assert 15 <= sum(changed) <= 45


class Fixed:
    """What a transform reads in evaluation, always."""

    def __init__(self, of: Any):
        self.of = of

    def __call__(self, sample: Sample, rng: Any) -> np.ndarray:
        return self.of(sample, None)


@pytest.mark.parametrize("snr", [-5.0, 10.0, 40.0])
@pytest.mark.parametrize("color", ["white", "pink"])
def test_noise_has_the_ratio_and_the_color_that_it_says(snr: float, color: Any) -> None:
    wav_T = tone(seconds=2.0)
    noisy_T = AddNoise((snr, snr), (color,))(wav_T, keyed_rng(0, 1), RATE)
    # what was added, whatever the whole was turned down by
    scale = float(noisy_T @ wav_T / (wav_T @ wav_T))
    rest_T = noisy_T / scale - wav_T
    assert 10 * np.log10((wav_T**2).mean() / (rest_T**2).mean()) == pytest.approx(snr, abs=0.3)
    power_F = np.abs(np.fft.rfft(rest_T)) ** 2
    low, high = power_F[200:400].mean(), power_F[6400:12800].mean()
    assert low / high == pytest.approx(32 if color == "pink" else 1, rel=0.4)
    assert np.abs(noisy_T).max() <= 1
    silent = AddNoise()(np.zeros(100, np.float32), keyed_rng(0), RATE)
    assert not silent.any()


def test_gaps_are_silent_and_nothing_else_changes() -> None:
    wav_T = tone() + 0.5
    broken_T = Gaps((2, 2), (0.05, 0.05))(wav_T, keyed_rng(0, 2), RATE)
    assert set(np.unique(broken_T[broken_T != wav_T])) == {0.0}
    assert 800 <= (broken_T == 0).sum() <= 1600


def test_a_stutter_is_heard_twice() -> None:
    wav_T = np.arange(8000, dtype=np.float32) / 8000
    twice_T = Stutters((1, 1), (0.05, 0.05))(wav_T, keyed_rng(0, 3), RATE)
    (back,) = np.flatnonzero(np.diff(twice_T) < 0) + 1
    assert np.array_equal(twice_T[:back], wav_T[:back])
    assert np.array_equal(twice_T[back:], wav_T[back - 800 : 8000 - 800])


def test_a_codec_keeps_what_a_telephone_does() -> None:
    heard = {hertz: Codec(mu_law=0.0)(tone(hertz), keyed_rng(0), RATE) for hertz in (1000, 6000)}
    assert np.sqrt((heard[1000] ** 2).mean() / (tone() ** 2).mean()) == pytest.approx(1, abs=0.02)
    assert np.abs(heard[6000][400:-400]).max() < 0.01
    wav_T = np.linspace(-1, 1, 90001, dtype=np.float32)
    coded_T = Codec((RATE,), mu_law=1.0)(wav_T, keyed_rng(0), RATE)
    assert len(np.unique(coded_T)) == 255
    assert np.abs(coded_T - wav_T).max() < 0.03
    soft = np.abs(wav_T) < 0.01
    assert np.abs(coded_T - wav_T)[soft].max() < 5e-4


def test_a_room_falls_by_60_dB_in_its_time() -> None:
    click_T = np.zeros(RATE, np.float32)
    click_T[0] = 0.5
    wet_T = Reverb((0.5, 0.5), (0.0, 0.0))(click_T, keyed_rng(0, 1), RATE).astype(float)
    assert (wet_T[1:] ** 2).sum() / wet_T[0] ** 2 == pytest.approx(1, rel=0.01)
    level_B = 10 * np.log10((wet_T[: RATE // 2] ** 2).reshape(-1, 800).mean(axis=1))[1:-1]
    assert np.polyfit(np.arange(len(level_B)) * 0.05, level_B, 1)[0] == pytest.approx(-120, rel=0.05)  # dB a second
    assert not wet_T[RATE // 2 + 1 :].round(4).any()


def test_pictures_are_flipped_colored_and_cropped() -> None:
    image = values_of(Flip())
    assert np.array_equal(Flip()(image, keyed_rng(0), 0), image[..., ::-1])
    one, gray = (1.0, 1.0), np.full((1, 4, 4), 100, np.uint8)
    assert np.array_equal(Color(one, one, one)(image, keyed_rng(0), 0), image)
    assert (Color((0.5, 0.5), one, one)(gray, keyed_rng(0), 0) == 50).all()
    pale = Color(one, one, (0.0, 0.0))(image, keyed_rng(0), 0)
    assert (pale == pale[:1]).all()
    assert len(np.unique(Color(one, (0.0, 0.0), one)(image, keyed_rng(0), 0))) == 1
    assert np.array_equal(Crop(one)(image, keyed_rng(0), 0), image)
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8) * 4, (1, 64, 64))
    half = Crop((0.5, 0.5))(ramp, keyed_rng(0, 1), 0)
    assert half.shape == ramp.shape
    assert 100 <= int(half.max()) - int(half.min()) <= 140


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AddNoise(snr=(30.0, 5.0)), r"AddNoise: snr is a range"),
        (lambda: AddNoise(colors=("brown",)), "colors are white and pink"),  # type: ignore[arg-type]
        (lambda: Crop(share=(0.0, 1.0)), "Crop: share is a range"),
        (lambda: Flip(chance=1.5), "a chance is from 0 to 1"),
        (lambda: Codec(rates=()), "Codec: rates"),
        (lambda: Augment(Waveform(1.0), (Flip(),)), "Flip changes a picture, Waveform gives none"),
        (lambda: Augment(Photo(16), (Gaps(),)), "Gaps changes a sound, Photo gives none"),
        (lambda: Augment(Fixed(Waveform(1.0)), (Gaps(),)), "Gaps needs the sample rate"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(V2FError, match=message):
        make()


def test_it_reads_as_what_it_wraps_in_workers_too(tmp_path: Path) -> None:
    """The photo that codes belong to, the words for what a data set lacks, the same bits in another process."""
    samples = [
        (f"s{n}", "ada", encode(f"s{n}", photos_HWC=[np.full((16, 16, 3), n, np.uint8)], **ABOUT)) for n in range(8)
    ]  # type: ignore[arg-type]
    dataset = write_manifest(str(tmp_path), [write_shard(str(tmp_path), "train-00000.tar", "train", samples)], {})
    split = dataset.split("train")
    with pytest.raises(V2FError, match="audio is needed, but not every sample has it"):
        next(read_split(split, {"wav": Augment(Waveform(1.0), SOUND)}, 4))
    order = Order.for_batches([8], seed=0, batch=4, partitions=2, window=4, data=split.fingerprint)
    seen = []
    for workers in (0, 1):
        with Loader(split, order, {"image": Augment(Photo(8), PICTURE)}, batch=4, seed=1, workers=workers) as loader:
            batches = iter(loader)
            seen.append([next(batches)["image"] for _ in range(4)])
    assert all(np.array_equal(a, b) for a, b in zip(*seen, strict=True))
    for slot in range(20):
        chosen = Augment(Photo(16), PICTURE).of(sample(), keyed_rng(0, slot))
        number = int(StoredCodes(2, 2)(sample(), keyed_rng(0, slot))[0, 0])
        assert np.array_equal(chosen.transpose(1, 2, 0), sample().photo(number))
    assert Augment(StoredCodes(2, 2), ()).draws_as == "image"
    assert not hasattr(Augment(Photo(8), ()), "draws_as")


def test_a_gain_is_a_level_and_a_shift_loses_nothing() -> None:
    found = [Gain((-6.0, -3.0))(tone(), keyed_rng(0, slot), RATE) for slot in range(20)]
    level = [20 * np.log10(np.abs(each).max() / np.abs(tone()).max()) for each in found]
    assert -6.0 <= min(level) < -5.0 < -4.0 < max(level) <= -3.0
    assert np.abs(Gain((40.0, 40.0))(tone(), keyed_rng(0), RATE)).max() == pytest.approx(1.0)
    ramp_T = np.arange(1000, dtype=np.float32)
    for slot in range(20):
        moved_T = Shift((0.0, 0.01))(ramp_T, keyed_rng(0, slot), RATE)
        assert 0 <= np.flatnonzero(moved_T == 0)[0] <= 160
        assert np.array_equal(np.sort(moved_T), ramp_T)
