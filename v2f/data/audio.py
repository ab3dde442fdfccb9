"""Any recording as a mono waveform: what packing and generation hear of a file that somebody brings.

Shape letters: C channels, T samples.
"""

import io
import itertools

import numpy as np
import numpy.typing as npt
import soundfile

from v2f.data.sample import MAX_SECONDS

SILENCE = 1e-4  # a recording whose loudest sample is below this (-80 dB) says nothing

Floats = npt.NDArray[np.float32]


class UnusableError(Exception):
    """Why an input cannot be used: a ``reason`` that many inputs may share, and the ``detail`` of this one."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail


def decode_voice(content: bytes, *, sample_rate: int, min_seconds: float) -> Floats:
    """A recording as mono float32 [T] in [-1, 1] at ``sample_rate``; :class:`UnusableError` if it holds no voice.

    Reads what libsndfile or FFmpeg reads, the sound of a video included. Channels are averaged; other rates are
    resampled by torchaudio's windowed sinc.
    """
    if not content:
        raise UnusableError("audio is empty")
    wav_CT, rate = _by_libsndfile(content)
    if not wav_CT.size:
        raise UnusableError("audio is empty")
    if not np.isfinite(wav_CT).all():
        raise UnusableError("audio is not finite")
    wav_T: Floats = wav_CT.mean(axis=0)
    seconds = len(wav_T) / rate
    if seconds < min_seconds:
        raise UnusableError("audio is too short", f"{seconds:.2f} s of at least {min_seconds:g} s")
    if np.abs(wav_T).max() < SILENCE:
        raise UnusableError("audio is silent")
    if rate == sample_rate:
        return wav_T
    import torch  # here, because most audio has the rate already, and packing processes should start fast
    from torchaudio.functional import resample

    resampled: Floats = resample(torch.from_numpy(wav_T), rate, sample_rate).numpy()
    return resampled


def _by_libsndfile(content: bytes) -> tuple[Floats, int]:
    """float32 [C, T] and samples a second."""
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if file.frames > MAX_SECONDS * file.samplerate:
                raise UnusableError("audio is too long", f"{file.frames / file.samplerate:.0f} s")
            return file.read(dtype="float32", always_2d=True).T, file.samplerate
    except soundfile.SoundFileError:
        return _by_ffmpeg(content)


def _by_ffmpeg(content: bytes) -> tuple[Floats, int]:
    import av

    try:
        with av.open(io.BytesIO(content), "r", metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise UnusableError("audio cannot be decoded", "the file has no sound")
            rate = int(container.streams.audio[0].rate)
            resampler = av.AudioResampler(format="fltp", rate=rate)
            parts: list[Floats] = []
            frames = 0
            for frame in itertools.chain(container.decode(audio=0), [None]):  # None: what the resampler still holds
                parts += [planar.to_ndarray().astype(np.float32) for planar in resampler.resample(frame)]
                frames += frame.samples if frame is not None else 0
                if frames > MAX_SECONDS * rate:
                    raise UnusableError("audio is too long", f"more than {MAX_SECONDS:.0f} s")
    except (av.error.FFmpegError, ValueError, IndexError, EOFError) as error:
        raise UnusableError("audio cannot be decoded", "neither libsndfile nor FFmpeg can read it") from error
    return (np.concatenate(parts, axis=1) if parts else np.zeros((1, 0), np.float32)), rate
