"""What a sound coder codes: the wave itself, or its log-mel spectrogram.

    wave [B,T] -> signal [B,I,T'] -> (codes) -> signal [B,I,T'] -> wave [B,T]

A spectrogram has no phase: Griffin and Lim's algorithm finds one that fits (1984), which is slow and sounds metallic.

Letters: B batch, T samples, T' frames, I channels of the signal, M mel bands, F frequencies.
"""

import abc
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from v2f.config import Config
from v2f.nn import at_least_float32
from v2f.nn.spectrogram import LogMel, LogMelConfig

_MEAN, _SPREAD = -5.0, 5.0  # of a log-mel spectrogram, about, so that the network sees numbers near 1
_SMALL = 1e-8  # added to a power, so that its root has a gradient


class WaveSignal(Config):
    """The raw wave."""

    kind: Literal["wave"] = "wave"


class MelSignal(Config):
    """The logarithm of the power in mel bands, scaled by constants."""

    kind: Literal["mel"] = "mel"
    bands: int = Field(32, ge=1)
    window: float = Field(32.0, gt=0, description="ms, of a Hann window")
    hop: float = Field(1.0, gt=0, description="ms from one frame to the next; must be whole samples")
    iterations: int = Field(64, ge=1, description="of Griffin and Lim's algorithm")


class Signal(nn.Module, abc.ABC):
    """Converts waves to signals and back; nothing is learned."""

    channels: int
    """Of the signal."""
    hop: int
    """Samples of the wave for each frame of the signal."""

    def frames(self, samples: int) -> int:
        """Frames of the signal of a wave."""
        return -(-samples // self.hop)

    @abc.abstractmethod
    def forward(self, wav_BT: Tensor) -> Tensor:
        """The signals [B,I,T'] of waves in [-1,1]."""

    @abc.abstractmethod
    def wave(self, signal_BIT: Tensor) -> Tensor:
        """The waves [B,T' x hop] of signals, in [-1,1]."""


class RawWave(Signal):
    channels = hop = 1

    def forward(self, wav_BT: Tensor) -> Tensor:
        return wav_BT[:, None]

    def wave(self, signal_BIT: Tensor) -> Tensor:
        return signal_BIT[:, 0].clamp(-1, 1)


class MelSpectrogram(Signal):
    def __init__(self, config: MelSignal, sample_rate: int) -> None:
        from torchaudio.transforms import GriffinLim, InverseMelScale

        super().__init__()
        own = LogMelConfig(
            sample_rate=sample_rate, bands=config.bands, window=config.window, hop=config.hop, normalize=False
        )
        self.log_mel = LogMel(own)
        self.channels, (window, self.hop) = config.bands, own.samples
        spectrum = self.log_mel.mel.spectrogram
        with torch.device("cpu"):
            self.powers = InverseMelScale(spectrum.n_fft // 2 + 1, config.bands, sample_rate, own.f_min, own.f_max)
            self.phases = GriffinLim(spectrum.n_fft, config.iterations, window, self.hop, power=2.0, rand_init=False)
        for module in (*self.powers.modules(), *self.phases.modules()):
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer, persistent=False)

    def forward(self, wav_BT: Tensor) -> Tensor:
        log_BMT = self.log_mel(wav_BT)[:, :, : self.frames(wav_BT.shape[1])]
        return (log_BMT - _MEAN) / _SPREAD

    def wave(self, signal_BIT: Tensor) -> Tensor:
        mel_BMT = (at_least_float32(signal_BIT) * _SPREAD + _MEAN).exp()
        length = signal_BIT.shape[2] * self.hop
        mel_BMT = F.pad(mel_BMT, (0, 1), mode="replicate")  # the frame that a centered spectrogram has besides
        wav_BT: Tensor = self.phases(self.powers(mel_BMT))
        return F.pad(wav_BT, (0, length - wav_BT.shape[1]))[:, :length].clamp(-1, 1)


def build(config: WaveSignal | MelSignal, sample_rate: int) -> Signal:
    """The conversion that ``config`` names."""
    return RawWave() if isinstance(config, WaveSignal) else MelSpectrogram(config, sample_rate)


def spectral_distance(made_BT: Tensor, true_BT: Tensor, windows: list[int]) -> Tensor:
    """The multi-scale spectral loss [B]: for each window the relative error of the magnitudes and the mean absolute
    difference of their logarithms, averaged over the windows (the multi-resolution STFT loss of Yamamoto et al. 2020,
    Parallel WaveGAN, arXiv 1910.11480). Hann windows, in samples, that overlap by three quarters."""
    with torch.autocast(made_BT.device.type, enabled=False):
        made_BT, true_BT = at_least_float32(made_BT), at_least_float32(true_BT)
        found = []
        for length in windows:
            made_BFT, true_BFT = (_magnitudes(wav_BT, length) for wav_BT in (made_BT, true_BT))
            error_B = ((made_BFT - true_BFT).square().sum(dim=(1, 2)) + _SMALL).sqrt()
            relative_B = error_B / true_BFT.square().sum(dim=(1, 2)).sqrt()
            found.append(relative_B + (made_BFT.log() - true_BFT.log()).abs().mean(dim=(1, 2)))
        return torch.stack(found).mean(dim=0)


def _magnitudes(wav_BT: Tensor, length: int) -> Tensor:
    window = torch.hann_window(length, device=wav_BT.device, dtype=wav_BT.dtype)
    spectrum = torch.stft(wav_BT, length, length // 4, window=window, return_complex=True)
    return (torch.view_as_real(spectrum).square().sum(dim=3) + _SMALL).sqrt()
