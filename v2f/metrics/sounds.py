"""How well a sound is restored: SI-SDR, log-mel distance, use of a codebook, and what its rate allows at best.

Shape letters: N sounds, T samples, F frequencies, M mel bands, L frames, K codes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v2f.metrics.arrays import Numbers, floats, integers

_MELS, _FRAME_S, _HOP_S = 40, 0.064, 0.016
_LEAST_POWER = 1e-6  # of a mel band, before the logarithm
_TINY = 1e-20
_MOST_DB = 100.0
_DB = 10 / np.log(10)


def si_sdr(made_NT: Numbers, true_NT: Numbers) -> NDArray[np.float64]:
    """The scale-invariant signal-to-distortion ratio of each sound in dB, [N] (Le Roux et al. 2019, arXiv 1811.02508):
    the power of the true sound, scaled to fit best, over that of the rest. Higher is better; a sound of the
    right shape but another loudness loses nothing. Between -100 and 100; silence has -100."""
    made, true = floats(made_NT), floats(true_NT)
    scale_N1 = (made * true).sum(1, keepdims=True) / np.maximum((true**2).sum(1, keepdims=True), _TINY)
    target_N, rest_N = ((scale_N1 * true) ** 2).sum(1), ((made - scale_N1 * true) ** 2).sum(1)
    found_N = 10 * np.log10((target_N + _TINY) / (rest_N + _TINY))
    return np.asarray(np.where(target_N > 0, found_N.clip(-_MOST_DB, _MOST_DB), -_MOST_DB))


def log_mel(wav_NT: Tensor, rate: int) -> Tensor:
    """The natural logarithm of the power in mel bands, float32 [N,M,L]: frames of 64 ms every 16 ms, at most 40 bands
    up to half of ``rate``."""
    from torchaudio.functional import melscale_fbanks

    frame = max(16, round(_FRAME_S * rate))
    window = torch.hann_window(frame, device=wav_NT.device, dtype=torch.float32)
    spectrum = torch.stft(
        wav_NT.float(), frame, max(1, round(_HOP_S * rate)), window=window, return_complex=True, center=True
    )
    bank_FM = melscale_fbanks(frame // 2 + 1, 0.0, rate / 2, min(_MELS, frame // 8), rate).to(wav_NT.device)
    return torch.log(torch.einsum("nfl,fm->nml", spectrum.abs() ** 2, bank_FM) + _LEAST_POWER)


def log_mel_distance(made_NT: Tensor, true_NT: Tensor, rate: int) -> NDArray[np.float64]:
    """The difference of :func:`log_mel` in dB, [N]: root mean square over the bands, mean over the frames (Gray and
    Markel 1976 define it for spectra without bands)."""
    apart_NML = floats(log_mel(made_NT, rate)) - floats(log_mel(true_NT, rate))
    return np.asarray(_DB * np.sqrt((apart_NML**2).mean(1)).mean(1))


def code_counts(number: Numbers, codes: int) -> NDArray[np.int64]:
    """How often each of ``codes`` codes stands in an array of code numbers, [K]."""
    return np.bincount(integers(number).ravel(), minlength=codes)


def used(count_K: Numbers) -> float:
    """The share of the codes that occur."""
    return float((floats(count_K) > 0).mean())


def perplexity(count_K: Numbers) -> float:
    """exp of the entropy of the codes' frequencies: the number of codes that, used equally often, have the same
    entropy. 0 without any."""
    count = floats(count_K)
    share = count[count > 0] / max(count.sum(), 1)
    return float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0


def power_spectra(wav_NT: Numbers, rate: int) -> NDArray[np.float64]:
    """The power spectral density of each sound at equally spaced frequencies from 0 to ``rate``, [N,F]: Welch's mean of
    windowed periodograms (Welch 1967), Hann windows of 64 ms that overlap by half."""
    from scipy.signal import welch

    wav = floats(wav_NT)
    frame = min(wav.shape[1], max(16, round(_FRAME_S * rate)))
    return np.asarray(welch(wav, rate, "hann", frame, return_onesided=False, detrend=False)[1])


def rate_distortion(power_NF: Numbers, bits: float) -> NDArray[np.float64]:
    """The least distortion, as a ratio of signal to error in dB, [N], with which ``bits`` bits a sample can describe a
    Gaussian process of this power spectral density (at equally spaced frequencies of the whole circle).

    Reverse water-filling (Cover and Thomas 2006, theorem 10.3.3; Berger 1971, section 4.5): with a water level w, the
    error at each frequency is min(w, S), and the rate is the mean of max(0, log2(S / w) / 2). White noise: 6.02 dB a
    bit. A real sound is not a stationary Gaussian process: one whose spectrum changes over time may do better.
    """
    power_NF = np.maximum(np.sort(floats(power_NF), axis=1)[:, ::-1], _TINY)
    frequencies = power_NF.shape[1]
    active_F = np.arange(1, frequencies + 1)  # the strongest k frequencies are described
    log_level_NF = (np.log2(power_NF).cumsum(1) - 2 * bits * frequencies) / active_F
    # the right k is the largest whose weakest described frequency is above the level
    above_NF = np.log2(power_NF) >= log_level_NF
    last_N = frequencies - 1 - above_NF[:, ::-1].argmax(1)
    level_N1 = 2.0 ** log_level_NF[np.arange(len(power_NF)), last_N][:, None]
    error_N = np.minimum(level_N1, power_NF).mean(1)
    return np.asarray(10 * np.log10(power_NF.mean(1) / error_N))
