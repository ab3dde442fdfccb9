"""Decoding any recording to a mono waveform, for packing and generation.

    bytes, or a span of an open video --> float32 [C, T] --> mono --> resampled --> [T] (--> speech only --> loudness)

Shape letters: C channels, T samples, F windows of 30 ms, B windows of 400 ms, L samples of a window.
"""

import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soundfile

from v2f.data import whole
from v2f.data.sample import MAX_SECONDS
from v2f.errors import V2FError, first_line

SILENCE = 1e-4  # -80 dB: a recording with no louder sample counts as silent

_MAX_FRAMES = 3600 * 48_000  # a small compressed file can decode to more than fits into memory
_MAX_VALUES = 2 * _MAX_FRAMES  # of all channels
_RATES = (1000, 768_000)  # of a recording; any other rate means damage, and would need filters of any length
_LOUDEST = 4.0  # 12 dB above full scale: no codec overshoots that far, so the samples are integers, or damaged
_MAX_CLIPPED = 0.05  # share of samples above full scale, which would be clipped
_UNKNOWN = 1 << 62  # libsndfile reports about twice this where the header does not give the number of frames
HARDLY_SPEECH = 0.4  # with a smaller share of speech, a clip is hardly speech
_STEADY_DB = 1.5  # the level of speech varies by 3 to 16 dB between windows, that of noise and tones by less than 1
_AUDIBLE_DB = 40.0  # below the loudest window; softer windows are pauses
_WINDOW_S = 0.03  # the longest window that WebRTC's detector accepts
_VAD_RATES = (8000, 16000, 32000, 48000)
_PREROLL_S = 0.5  # decoded before a span and dropped: after a seek, a codec needs some frames to recover
_SHORT_S = 0.25  # may be missing at the end of a span, because files are cut at whole packets

Keep = Literal["speech", "span"]


class UnusableError(Exception):
    """An input cannot be used: the ``reason`` may be shared by many inputs, the ``detail`` belongs to this one."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail


@contextmanager
def decoding(reason: str, detail: str = "") -> Iterator[None]:
    """Turn any exception of a decoder into an :class:`UnusableError` for ``reason``: a damaged file can make a decoder
    raise anything. ``detail`` defaults to the decoder's message."""
    try:
        yield
    except (UnusableError, V2FError):
        raise
    except Exception as error:
        said = first_line(error)
        named = said if isinstance(error, OSError | ValueError) and said else f"{type(error).__name__}: {said}"
        raise UnusableError(reason, detail or named.removesuffix(": ")) from error


def decode_voice(
    content: bytes, *, sample_rate: int, min_seconds: float, max_seconds: float = MAX_SECONDS
) -> npt.NDArray[np.float32]:
    """Decode a recording to mono float32 [T] in [-1, 1] at ``sample_rate``.

    Reads every format that libsndfile or FFmpeg reads, and the sound of a video. Averages the channels and resamples
    other rates (:func:`resample`). Raises :class:`UnusableError` for a recording that is empty, silent or shorter than
    ``min_seconds``, that is longer than ``max_seconds`` (before it fills the memory), that is truncated or has another
    one appended (``whole.py``), or whose samples lie far outside [-1, 1].
    """
    if not content:
        raise UnusableError("audio is empty")
    wrong = whole.wrong(content)
    if wrong:
        raise UnusableError(f"audio {wrong}")
    found = _by_libsndfile(content, max_seconds)
    wav_CT, rate = _by_ffmpeg(content, max_seconds) if found is None else found
    del found
    wav_T = _mono(wav_CT, rate, min_seconds)
    del wav_CT  # resampling a long recording needs the memory
    return resample(wav_T, rate, sample_rate)


def decode_span(
    container: Any, start: float, end: float, *, sample_rate: int, min_seconds: float
) -> npt.NDArray[np.float32]:
    """Decode the sound of an open PyAV container from second ``start`` to ``end``, as :func:`decode_voice` does."""
    wav_CT, rate = _span(container, start, end)
    if wav_CT.shape[1] < (end - start - _SHORT_S) * rate:
        there = f"{wav_CT.shape[1] / rate:.2f} s of {end - start:.2f} s"
        raise UnusableError("the sound ends before the segment does", there)
    return resample(_mono(wav_CT, rate, min_seconds), rate, sample_rate)


def _mono(wav_CT: npt.NDArray[np.float32], rate: int, min_seconds: float) -> npt.NDArray[np.float32]:
    """The mean of the channels; :class:`UnusableError` where it cannot be a voice."""
    if not wav_CT.size:
        raise UnusableError("audio is empty")
    if not _RATES[0] <= rate <= _RATES[1]:
        raise UnusableError("audio has a rate that cannot be meant", f"{rate} Hz")
    if not np.isfinite(wav_CT).all():
        raise UnusableError("audio is not finite")
    wav_T: npt.NDArray[np.float32] = wav_CT.mean(axis=0)
    seconds = len(wav_T) / rate
    if seconds < min_seconds:
        raise UnusableError("audio is too short", f"{seconds:.2f} s of at least {min_seconds:g} s")
    level_T = np.abs(wav_T)
    peak, clipped = float(level_T.max()), float((level_T > 1).mean())
    if peak < SILENCE:
        raise UnusableError("audio is silent")
    if not peak <= _LOUDEST or clipped > _MAX_CLIPPED:
        detail = f"its peak is {peak:.3g}, {100 * clipped:.0f} % of it would be clipped; scale it to -1 to 1"
        raise UnusableError("audio is beyond full scale", detail)
    return wav_T


def resample(wav_T: npt.NDArray[np.float32], rate: int, sample_rate: int) -> npt.NDArray[np.float32]:
    """A waveform of ``rate`` at ``sample_rate``, float32 [T']: the one resampler of packing, training and generation.

    SciPy's polyphase filter (a Kaiser window, beta 5) keeps frequencies up to 0.8 of the lower Nyquist frequency within
    0.1 dB and attenuates those above 1.2 of it by more than 50 dB.
    """
    if rate == sample_rate:
        return wav_T
    from scipy.signal import resample_poly  # imported late: it is slow to import, and most audio needs no resampling

    divisor = int(np.gcd(rate, sample_rate))
    return np.asarray(resample_poly(wav_T, sample_rate // divisor, rate // divisor), dtype=np.float32)


# ------------------------------------------------------------------------------------------------ speech


def only_speech(
    wav_T: npt.NDArray[np.float32], sample_rate: int, *, mode: int, margin: float, keep: Keep
) -> npt.NDArray[np.float32]:
    """The parts of ``wav_T`` that WebRTC's voice activity detector takes for speech, with ``margin`` seconds around
    each.

    ``mode`` is the detector's aggressiveness: 0 keeps the most, 3 the least. ``keep``: "speech" joins the parts, "span"
    keeps everything from the first part to the last.
    """
    # The detector misses quiet voices, so it gets every recording at broadcast loudness.
    rate = _vad_rate(sample_rate)
    heard_T = to_loudness(resample(wav_T, sample_rate, rate), rate, lufs=-23.0, max_gain=20.0, peak=1.0)
    speech_F = _speech(heard_T, rate, mode)
    if not speech_F.any():
        raise UnusableError("no speech was found", f"in {len(wav_T) / sample_rate:.2f} s")
    at_F = np.flatnonzero(speech_F)
    if keep == "span":
        at_F = np.arange(at_F[0], at_F[-1] + 1)
    kept_T = np.zeros(len(wav_T), bool)
    for first, last in _runs(at_F):
        low = round((first * _WINDOW_S - margin) * sample_rate)
        kept_T[max(0, low) : round(((last + 1) * _WINDOW_S + margin) * sample_rate)] = True
    speech_T: npt.NDArray[np.float32] = wav_T[kept_T]
    return speech_T


@dataclass(frozen=True)
class Likeness:
    """How much a clip resembles speech; code that generates a face from it must show :attr:`doubt`."""

    share: float
    """Share of 30 ms windows that WebRTC's detector, at its strictest, takes for speech: 0.7 to 0.9 for continuous
    speech, near 0 for knocks and beats, but 1 for a steady tone or noise."""
    swing: float
    """Standard deviation of the windows' level in dB, near 0 for steady tones and noise."""

    @property
    def steady(self) -> bool:
        return self.swing < _STEADY_DB

    @property
    def doubt(self) -> str:
        """Why the clip is hardly speech, as text; empty if nothing suggests that."""
        if self.share < HARDLY_SPEECH:
            return f"hardly speech: {100 * self.share:.0f} % of it, by WebRTC's voice activity detector"
        if self.steady:
            return f"hardly speech: as steady as noise or a tone, its level varies by {self.swing:.1f} dB"
        return ""


def likeness(wav_T: npt.NDArray[np.float32], sample_rate: int) -> Likeness:
    """Measure how much a mono clip resembles speech."""
    window = min(round(_WINDOW_S * sample_rate), len(wav_T))
    windows_FL = wav_T[: len(wav_T) // window * window].reshape(-1, window).astype(np.float64)
    level_F = 10 * np.log10(np.maximum((windows_FL**2).mean(axis=1), 1e-12))
    audible_F = level_F >= level_F.max() - _AUDIBLE_DB
    # Broadcast loudness by power alone: BS.1770's filters would cost `v2f generate` a second of imports.
    power_F = 10 ** (level_F / 10)
    power_F = power_F[power_F > power_F.mean() / 10]  # BS.1770's relative gate
    heard_T = _amplified(wav_T, float(_lufs(power_F.mean())), lufs=-23.0, max_gain=20.0, peak=1.0)
    return Likeness(float(_speech(heard_T, sample_rate, mode=3).mean()), float(level_F[audible_F].std()))


def _speech(wav_T: npt.NDArray[np.float32], sample_rate: int, mode: int) -> npt.NDArray[np.bool_]:
    """Whether each window is speech, bool [F]; the last window is padded with silence."""
    import webrtcvad

    rate = _vad_rate(sample_rate)
    heard_T = resample(wav_T, sample_rate, rate)
    pcm_T = np.round(np.clip(heard_T, -1.0, 1.0) * 32767.0).astype("<i2")
    window = round(rate * _WINDOW_S)
    pcm_T = np.pad(pcm_T, (0, -len(pcm_T) % window))
    detector = webrtcvad.Vad(mode)  # it has a state, so each recording gets its own
    return np.array([detector.is_speech(pcm_L.tobytes(), rate) for pcm_L in pcm_T.reshape(-1, window)], bool)


def _vad_rate(sample_rate: int) -> int:
    return sample_rate if sample_rate in _VAD_RATES else 16000


def _runs(numbers_N: npt.NDArray[np.intp]) -> list[tuple[int, int]]:
    """The first and the last of each run of adjacent numbers."""
    parts = np.split(numbers_N, np.flatnonzero(np.diff(numbers_N) > 1) + 1)
    return [(int(part[0]), int(part[-1])) for part in parts]


# ---------------------------------------------------------------------------------------------- loudness


def to_loudness(
    wav_T: npt.NDArray[np.float32], sample_rate: int, *, lufs: float, max_gain: float, peak: float
) -> npt.NDArray[np.float32]:
    """Scale ``wav_T`` to the loudness ``lufs``, by at most ``max_gain`` dB and so that no sample exceeds ``peak``."""
    return _amplified(wav_T, loudness(wav_T, sample_rate), lufs, max_gain, peak)


def _amplified(
    wav_T: npt.NDArray[np.float32], level: float, lufs: float, max_gain: float, peak: float
) -> npt.NDArray[np.float32]:
    gain = 10 ** (min(lufs - level, max_gain) / 20)
    louder_T: npt.NDArray[np.float32] = wav_T * np.float32(min(gain, peak / max(float(np.abs(wav_T).max()), SILENCE)))
    return louder_T


def loudness(wav_T: npt.NDArray[np.float32], sample_rate: int) -> float:
    """The integrated loudness of a mono recording in LUFS (ITU-R BS.1770-4); -inf if all of it is below the gate.

    A recording shorter than 0.4 s is one window.
    """
    from scipy.signal import lfilter

    for b, a in _k_weighting(sample_rate):
        wav_T = lfilter(b, a, np.asarray(wav_T, np.float64))
    window = min(round(0.4 * sample_rate), len(wav_T))
    wav_BL = np.lib.stride_tricks.sliding_window_view(wav_T, window)[:: max(1, window // 4)]
    power_B = (wav_BL.astype(np.float64) ** 2).mean(axis=1)
    with np.errstate(divide="ignore"):
        for gate in (-70.0, None):  # the absolute gate, then the relative one, 10 LU below the mean
            gate = _lufs(power_B.mean()) - 10.0 if gate is None else gate
            power_B = power_B[_lufs(power_B) > gate]
            if not power_B.size:
                return -np.inf
        return float(_lufs(power_B.mean()))


def _lufs(power: Any) -> Any:
    return -0.691 + 10.0 * np.log10(power)


def _k_weighting(rate: int) -> list[tuple[list[float], list[float]]]:
    """BS.1770's two filters, a shelf for the head and a high pass, as coefficients b and a at any rate: the analog
    filters whose bilinear transform at 48 kHz gives the standard's table."""
    k, q = np.tan(np.pi * 1681.974450955533 / rate), 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    band = high**0.4996667741545416
    a0 = 1 + k / q + k * k
    shelf = [(high + band * k / q + k * k) / a0, 2 * (k * k - high) / a0, (high - band * k / q + k * k) / a0]
    poles = [1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0]
    k, q = np.tan(np.pi * 38.13547087602444 / rate), 0.5003270373238773
    a0 = 1 + k / q + k * k
    return [(shelf, poles), ([1.0, -2.0, 1.0], [1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0])]


# ---------------------------------------------------------------------------------------------- decoders


def _by_libsndfile(content: bytes, max_seconds: float) -> tuple[npt.NDArray[np.float32], int] | None:
    """float32 [C, T] and the sample rate; None if libsndfile cannot read the file or does not know its length."""
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if not 0 < file.frames < _UNKNOWN:
                return None
            _check_length(file.frames, file.channels, file.samplerate, max_seconds)
            wav_CT: npt.NDArray[np.float32] = file.read(dtype="float32", always_2d=True).T
            slack = _SHORT_S * file.samplerate if file.format == "MP3" else 0  # where the number is an estimate
            if wav_CT.shape[1] < file.frames - slack:
                raise UnusableError("audio is cut")
            return wav_CT, file.samplerate
    except UnusableError:
        raise
    except Exception:  # soundfile raises more than its own error class
        return None


def _check_length(frames: int, channels: int, rate: int, max_seconds: float) -> None:
    if frames > max_seconds * rate:
        raise UnusableError("audio is too long", f"{frames / rate:.1f} s of at most {max_seconds:g} s")
    if frames > _MAX_FRAMES or frames * channels > _MAX_VALUES:
        raise UnusableError("audio is too long", f"{frames} frames of {channels} channels, at {rate} Hz")


def _by_ffmpeg(content: bytes, max_seconds: float) -> tuple[npt.NDArray[np.float32], int]:
    import av

    # A playlist (ffconcat) names other files; without any protocol FFmpeg can neither read nor fetch them.
    alone = {"protocol_whitelist": "none"}
    with (
        decoding("audio cannot be decoded", "neither libsndfile nor FFmpeg can read it"),
        av.open(io.BytesIO(content), "r", metadata_errors="ignore", options=alone) as container,
    ):
        return _span(container, 0.0, None, max_seconds)


def _span(
    container: Any, start: float, end: float | None, max_seconds: float = MAX_SECONDS
) -> tuple[npt.NDArray[np.float32], int]:
    """The sound from ``start`` seconds to ``end`` (None: to the end of the file) as float32 [C, T], and its sample
    rate.

    Uses the time of the first frame only, because containers round the time of each frame to milliseconds.
    """
    import av

    if not container.streams.audio:
        raise UnusableError("audio cannot be decoded", "the file has no sound")
    rate = int(container.streams.audio[0].rate)
    resampler = av.AudioResampler(format="fltp", rate=rate)
    origin = (container.start_time or 0) / av.time_base
    if end is not None:  # the container may have been read elsewhere before
        container.seek(int(max(0.0, start - _PREROLL_S) * av.time_base) + (container.start_time or 0))
    skip: int | None = None if end is not None else 0  # samples before the span
    parts: list[npt.NDArray[np.float32]] = []
    frames = 0
    for frame in itertools.chain(container.decode(audio=0), [None]):  # None flushes the resampler
        if skip is None and frame is not None:
            skip = round((start - ((frame.time or 0.0) - origin)) * rate)
        parts += [planar.to_ndarray().astype(np.float32) for planar in resampler.resample(frame)]
        frames += frame.samples if frame is not None else 0
        if end is not None and frames >= (skip or 0) + (end - start) * rate:
            break
        _check_length(frames, len(parts[0]) if parts else 1, rate, max_seconds)
    wav_CT = np.concatenate(parts, axis=1) if parts else np.zeros((1, 0), np.float32)
    length = None if end is None else round((end - start) * rate)
    if (skip or 0) < 0:  # the sound starts within the span
        wav_CT, skip = np.pad(wav_CT, ((0, 0), (min(-(skip or 0), length or 0), 0))), 0
    return wav_CT[:, skip or 0 :][:, :length], rate
