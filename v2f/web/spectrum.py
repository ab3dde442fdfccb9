"""Drawings of a clip: the outline of its waveform and a log-mel spectrogram, with axes in seconds and kHz.

Shape letters: T samples, F frames of 10 ms, M mel bands, C columns.
"""

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchaudio.functional import melscale_fbanks

from v2f.web.page import data_uri

BANDS = 80
WIDTH, HEIGHT = 640, 60
_HOP_S, _WINDOW_S = 0.010, 0.025
_RANGE_DB = 70.0  # shown below the loudest point; anything quieter is as dark as silence
_COLUMNS = 320
_KHZ = (0.5, 1, 2, 4, 8, 16)
# From silence to the loudest; lightness rises evenly, so that it reads the same in grayscale.
_PALETTE = np.array([[8, 20, 28], [10, 66, 80], [26, 122, 118], [110, 178, 130], [214, 220, 150], [255, 252, 226]])


@dataclass(frozen=True)
class Heard:
    """Both drawings of a clip, and the labels of their axes: position in percent from the left or the top, text."""

    outline: str
    """An SVG path in a box of WIDTH x HEIGHT."""
    spectrogram: str
    """A PNG data URI of any size, to be stretched over its box."""
    seconds: list[tuple[float, str]]
    kilohertz: list[tuple[float, str]]


def heard(wav_T: NDArray[np.float32], rate: int) -> Heard:
    """The drawings of a mono clip at ``rate`` Hz."""
    mel_MF = log_mel(wav_T, rate)
    return Heard(outline(wav_T), _picture(mel_MF), _ticks(len(wav_T) / rate), _marks(rate))


def log_mel(wav_T: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Power in mel bands (HTK's scale, O'Shaughnessy 1987) in dB of the clip's loudest, float32 [M, F]."""
    size = round(_WINDOW_S * rate)
    spectrum = torch.stft(
        torch.from_numpy(np.ascontiguousarray(wav_T)),
        n_fft=_fft(rate),
        hop_length=round(_HOP_S * rate),
        win_length=size,
        window=torch.hann_window(size),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    bank = melscale_fbanks(spectrum.shape[0], 0.0, rate / 2, BANDS, rate, mel_scale="htk")
    power = bank.T @ spectrum.abs().square()
    decibels: NDArray[np.float32] = (10 * torch.log10(power / power.max().clamp_min(1e-20) + 1e-12)).numpy()
    return decibels


def _fft(rate: int) -> int:
    """The length of the transform, such that even the lowest mel bands contain a bin."""
    size: int = 2 ** math.ceil(math.log2(2 * _WINDOW_S * rate))
    return size


def outline(wav_T: NDArray[np.float32]) -> str:
    """The waveform as a closed SVG path, from the smallest to the largest sample in each column."""
    parts = np.array_split(wav_T, min(_COLUMNS, len(wav_T)))
    low_C, high_C = np.array([part.min() for part in parts]), np.array([part.max() for part in parts])
    scale = HEIGHT / 2 / max(float(np.abs(wav_T).max()), 1e-6)
    x_C = np.linspace(0, WIDTH, len(parts))
    there = [f"{x:.1f} {HEIGHT / 2 - scale * y:.1f}" for x, y in zip(x_C, high_C, strict=True)]
    back = [f"{x:.1f} {HEIGHT / 2 - scale * y:.1f}" for x, y in zip(x_C[::-1], low_C[::-1], strict=True)]
    return "M" + " L".join(there + back) + "Z"


def _picture(mel_MF: NDArray[np.float32]) -> str:
    shade = np.clip(1 + mel_MF[::-1] / _RANGE_DB, 0, 1) * (len(_PALETTE) - 1)
    below = np.minimum(shade.astype(int), len(_PALETTE) - 2)
    part = (shade - below)[..., None]
    pixels = _PALETTE[below] * (1 - part) + _PALETTE[below + 1] * part
    buffer = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).save(buffer, format="PNG")
    return data_uri(buffer.getvalue(), "png")


def _ticks(seconds: float) -> list[tuple[float, str]]:
    step = next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 600) if seconds / step <= 8 or step == 600)
    return [(100 * i * step / seconds, f"{i * step:g}") for i in range(int(seconds / step + 1e-9) + 1)]


def _marks(rate: int) -> list[tuple[float, str]]:
    top = _mel(rate / 2)
    return [(100 * (1 - _mel(1000 * khz) / top), f"{khz:g}") for khz in _KHZ if 1000 * khz < 0.9 * rate / 2]


def _mel(hertz: float) -> float:
    return 2595.0 * math.log10(1.0 + hertz / 700.0)
