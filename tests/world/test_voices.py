"""The synthetic voices: the same bytes in any batch, and each factor heard as what it is named after."""

from typing import Any

import numpy as np
import pytest

from v2f.errors import V2FError
from v2f.world.people import CLIP, VOICE
from v2f.world.voices import render_voices

RATE = 16000


def render(keys: list[int], seconds: float = 2.0, sample_rate: int = RATE, **values: float) -> np.ndarray:
    """Clips of one person: 0 in every column but the named ones."""
    voice_NV = np.tile(np.array([values.get(name, 0.0) for name in VOICE], np.float32), (len(keys), 1))
    clip_NC = np.tile(np.array([values.get(name, 0.0) for name in CLIP], np.float32), (len(keys), 1))
    return render_voices(voice_NV, clip_NC, np.array(keys, dtype=np.int64), seconds, sample_rate)


def loud_frames(wav_T: np.ndarray, size: int = 1024, hop: int = 160) -> np.ndarray:
    """Frames within 12 dB of the loudest tenth: vowels. [F,size]"""
    cut = np.lib.stride_tricks.sliding_window_view(wav_T, size)[::hop]
    power = np.mean(cut**2, axis=1)
    return cut[power > np.quantile(power, 0.9) / 16.0]


def correlation(frames: np.ndarray) -> np.ndarray:
    """Normalized autocorrelation of Hann frames, the window's own divided out (Boersma 1993): [F,lags]."""
    window = np.hanning(frames.shape[1])

    def lags(x: np.ndarray) -> np.ndarray:
        power = np.abs(np.fft.rfft(x, 2 * frames.shape[1])) ** 2
        return np.fft.irfft(power)[..., : RATE // 60]

    out = lags(frames * window) / lags(window)
    return out / out[:, :1]


def pitch(wav_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f0 in Hz of the voiced frames, and how periodic they are (1: wholly)."""
    out = correlation(loud_frames(wav_T))
    low = RATE // 450
    # The shortest of the lags that are about as good: two periods fit as well as one.
    fits = out[:, low:] > 0.93 * out[:, low:].max(axis=1, keepdims=True)
    first = low + fits.argmax(axis=1)
    lag = np.array([i + row[i : i + 12].argmax() for i, row in zip(first, out, strict=True)])
    return RATE / lag, out[np.arange(len(lag)), lag]


def spectrum_db(wav_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean log power spectrum of the vowels of all clips and its frequencies in Hz."""
    frames = np.concatenate([loud_frames(wav_T) for wav_T in wav_NT])
    power = np.abs(np.fft.rfft(frames * np.hanning(frames.shape[1]))) ** 2
    return 10 * np.log10(power + 1e-12).mean(axis=0), np.fft.rfftfreq(frames.shape[1], 1 / RATE)


def level_db(wav_T: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(wav_T.astype(np.float64) ** 2)))


def syllables(wav_T: np.ndarray) -> int:
    """How often the loudness rises through a third of its largest after having been below a sixth."""
    envelope = np.sqrt(np.convolve(wav_T**2, np.ones(240) / 240, "same"))[::16]
    envelope = envelope / np.quantile(envelope, 0.95)
    count, quiet = 0, True
    for value in envelope:
        if quiet and value > 0.33:
            count, quiet = count + 1, False
        elif value < 0.17:
            quiet = True
    return count


def people(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    voice_NV = np.clip(rng.standard_normal((count, 6)), -2.2, 2.2).astype(np.float32)
    return voice_NV, rng.standard_normal((count, 6)).astype(np.float32), np.arange(count) * 7


def test_a_clip_has_the_same_bytes_alone_and_in_any_batch() -> None:
    voice_NV, clip_NC, keys_N = people(6)
    whole = render_voices(voice_NV, clip_NC, keys_N, 0.7)
    back = render_voices(voice_NV[::-1], clip_NC[::-1], keys_N[::-1], 0.7)[::-1]
    assert whole.tobytes() == np.ascontiguousarray(back).tobytes()
    for n in range(6):
        row = slice(n, n + 1)
        assert render_voices(voice_NV[row], clip_NC[row], keys_N[row], 0.7).tobytes() == whole[n].tobytes()


def test_the_key_alone_decides_what_is_said() -> None:
    one, other = render([1, 2])
    assert np.array_equal(one, render([1])[0])
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.3


@pytest.mark.parametrize(("seconds", "rate"), [(0.05, 16000), (1.2345, 16000), (1.0, 8000), (0.5, 24000), (3.0, 48000)])
def test_length_type_and_level_at_any_rate(seconds: float, rate: int) -> None:
    wav = render([3, 4], seconds, rate)
    assert wav.shape == (2, round(seconds * rate))
    assert wav.dtype == np.float32
    if seconds >= 0.5:
        assert all(-23.0 < level_db(wav_T) < -21.0 for wav_T in wav)


def test_no_rows_give_no_clips() -> None:
    assert render([], 1.0).shape == (0, RATE)


@pytest.mark.parametrize("end", [-2.2, 2.2])
@pytest.mark.parametrize("factor", VOICE)
def test_the_ends_of_each_factor_stay_in_range(factor: str, end: float) -> None:
    values: Any = {factor: end, "loudness": float(np.sign(end))}
    wav = render([5], 1.0, **values)
    assert np.isfinite(wav).all()
    assert 0.05 < np.abs(wav).max() <= 1.0


def test_the_ends_of_all_factors_and_nuisances_together_stay_in_range() -> None:
    sign = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T.astype(np.float32)
    wav = render_voices(2.2 * sign, 4.0 * sign[::-1], np.arange(len(sign)), 0.3)
    assert np.isfinite(wav).all()
    assert np.abs(wav).max() <= 1.0
    assert np.abs(wav).max(axis=1).min() > 0.01


@pytest.mark.parametrize("value", [-2.0, -1.0, 0.0, 1.0, 2.0])
def test_pitch_is_f0(value: float) -> None:
    wav_NT = render([1, 2, 3], pitch=value, liveliness=-2.0, breathiness=-1.0)
    assert np.median(np.concatenate([pitch(wav_T)[0] for wav_T in wav_NT])) == pytest.approx(
        155.0 * np.exp(0.3 * value), rel=0.04
    )


def test_a_long_tract_lowers_all_formants() -> None:
    keys = list(range(12))
    short_db, freq = spectrum_db(render(keys, tract=-2.0, breathiness=2.0, noise=-4.0))
    long_db, _ = spectrum_db(render(keys, tract=2.0, breathiness=2.0, noise=-4.0))
    # On a logarithmic axis a scaled spectrum is a shifted one: find the shift at which the two agree best.
    octave = np.linspace(np.log2(900), np.log2(5000), 400)

    def bumps(db: np.ndarray, shift: float) -> np.ndarray:
        line = np.interp(2.0 ** (octave + shift), freq, np.convolve(db, np.ones(15) / 15, "same"))
        return line - np.polyval(np.polyfit(octave, line, 3), octave)

    shifts = np.linspace(-0.8, 0.8, 161)
    fit = [np.corrcoef(bumps(short_db, shift / 2), bumps(long_db, -shift / 2))[0, 1] for shift in shifts]
    assert shifts[np.argmax(fit)] == pytest.approx(4 * 0.085 / np.log(2), abs=0.08)


def test_breathiness_is_noise_between_the_harmonics() -> None:
    def periodic(value: float) -> float:
        wav_NT = render([1, 2, 3], breathiness=value, liveliness=-2.0)
        # The difference lifts the high harmonics, which the noise covers first.
        return float(np.median(np.concatenate([pitch(np.diff(wav_T))[1] for wav_T in wav_NT])))

    clear, middle, breathy = periodic(-2.0), periodic(0.0), periodic(2.0)
    assert clear > 0.84 > middle > 0.6 > 0.4 > breathy, (clear, middle, breathy)


def test_tilt_is_the_slope_of_the_spectrum() -> None:
    keys = list(range(6))
    dark_db, freq = spectrum_db(render(keys, tilt=-1.0, noise=-4.0))
    bright_db, _ = spectrum_db(render(keys, tilt=1.0, noise=-4.0))
    band = (freq > 300) & (freq < 5000)
    slope = np.polyfit(np.log2(freq[band]), (bright_db - dark_db)[band], 1)[0]
    assert slope == pytest.approx(4.8, abs=0.6)  # dB per octave


def test_liveliness_is_the_range_of_the_melody() -> None:
    def spread(value: float) -> float:
        f0 = [np.log2(pitch(wav_T)[0]) * 12 for wav_T in render([1, 2, 3, 4], liveliness=value, breathiness=-1.0)]
        return float(np.mean([np.quantile(tone, 0.9) - np.quantile(tone, 0.1) for tone in f0]))

    still, middle, lively = spread(-2.0), spread(0.0), spread(2.0)
    assert still < 1.3 < 1.8 < middle < 4.0 < 5.0 < lively, (still, middle, lively)


def test_rate_is_syllables_a_second() -> None:
    def count(value: float) -> float:
        return float(np.mean([syllables(wav_T) for wav_T in render(list(range(8)), 4.0, rate=value)])) / 4.0

    slow, middle, fast = count(-2.0), count(0.0), count(2.0)
    # Pauses take a quarter to a third of the time, the rate within words is 2.1, 3.7 and 6.5.
    assert 1.1 < slow < 2.1
    assert 2.0 < middle < 3.7
    assert 3.5 < fast < 6.5


def test_there_are_pauses_between_words() -> None:
    wav_T = render([1], 4.0, noise=-4.0)[0]
    power = np.convolve(wav_T**2, np.ones(800) / 800, "valid")[::160]
    assert 10 * np.log10(np.quantile(power, 0.08) / np.quantile(power, 0.9)) < -30.0


def test_no_harmonic_folds_back_from_above_nyquist() -> None:
    ends: Any = {"liveliness": -2.2, "breathiness": -2.2, "tilt": 2.2, "rate": -2.0, "noise": -8.0, "room": -8.0}
    wav_NT = render([1, 2, 3], pitch=2.0, **ends)
    # What folds back is no multiple of f0 and breaks the period; differences twice weigh the highest harmonics most.
    periodic = np.concatenate([pitch(np.diff(wav_T, 2))[1] for wav_T in wav_NT])
    assert np.median(periodic) > 0.88


def test_loudness_and_background_are_the_clips() -> None:
    quiet, loud = (level_db(render([1], loudness=x)[0]) for x in (-1.0, 1.0))
    assert loud - quiet == pytest.approx(4.0, abs=0.1)

    def floor(value: float) -> float:
        power = np.convolve(render([1], 4.0, noise=value)[0] ** 2, np.ones(800) / 800, "valid")
        return float(10 * np.log10(np.quantile(power, 0.05)))

    assert floor(1.0) - floor(-1.0) > 5.0


def test_mood_moves_the_pitch_less_than_a_person_does() -> None:
    low, high = (np.median(pitch(render([2], mood=x, liveliness=-2.0)[0])[0]) for x in (-2.0, 2.0))
    assert 1.05 < high / low < 1.16


def test_room_and_microphone_and_effort_are_heard() -> None:
    plain = render([1], room=-8.0)[0]
    for name, value in (("room", 2.0), ("microphone", 2.0), ("effort", 2.0)):
        values: Any = {"room": -8.0, name: value}
        change = render([1], **values)[0] - plain
        assert -30.0 < level_db(change) - level_db(plain) < -2.0, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"voice_NV": np.zeros((2, 5))}, r"voice_NV has shape \(2, 5\); pass \[N,6\]: pitch"),
        ({"clip_NC": np.zeros(6)}, r"clip_NC has shape \(6,\); pass \[N,6\]: loudness"),
        ({"clip_NC": np.zeros((3, 6))}, "pass as many rows of each"),
        ({"voice_NV": np.full((2, 6), np.nan)}, "voice_NV has a value outside -4..4"),
        ({"clip_NC": np.full((2, 6), 9.0)}, "clip_NC has a value outside -8..8"),
        ({"keys_N": np.array([1, -1])}, "keys_N has other values than non-negative integers"),
        ({"keys_N": np.array([1.0, 2.0])}, "keys_N has other values than non-negative integers"),
        ({"sample_rate": 22050}, "sample_rate is 22050; pass a multiple of 1000 Hz"),
        ({"seconds": 0.0}, "seconds is 0.0; pass 0.05 to 600"),
        ({"seconds": float("nan")}, "seconds is nan; pass 0.05 to 600"),
    ],
)
def test_what_cannot_be_rendered_is_one_clear_error(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "voice_NV": np.zeros((2, 6)),
        "clip_NC": np.zeros((2, 6)),
        "keys_N": np.arange(2),
        "seconds": 0.1,
    }
    with pytest.raises(V2FError, match=message):
        render_voices(**(good | change))
