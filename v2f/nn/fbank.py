"""The log-mel front end of SpeechBrain's speaker nets.

    wave [B,T] -> short-time spectrum, power [B,201,F] -> 80 triangles -> decibels -> minus the sentence's mean [B,80,F]

Its settings are those of SpeechBrain's ``spkrec-ecapa-voxceleb``. Everything is computed in float64: neither autocast
nor TF32 rounds that, and on a CPU it takes less than a hundredth of the published net's time.

Letters: B batch, T samples, F frames, K frequencies, M mel bands.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from v2f.errors import V2FError

RATE = 16_000  # Hz
WINDOW, HOP = 400, 160  # samples: 25 ms every 10 ms; the transform has as many points as the window
BANDS = 80
LEAST_POWER, RANGE = 1e-10, 80.0  # the power taken for silence; decibels kept below a clip's loudest band
_BREAK, _SLOPE = 700.0, 2595.0  # mel(f) = 2595 log10(1 + f / 700)


class LogMel(nn.Module):
    """Waves [B,T] at 16 kHz -> decibels [B,80,1 + T // 160], each band's mean over the clip subtracted.

    Hamming window of 25 ms, hop of 10 ms, frames centered with zeros around the clip. A band is cut 80 dB below the
    loudest of the same clip. The result has the wave's dtype, but at least float32. V2FError if T is 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hamming_window(WINDOW, dtype=torch.float64), persistent=False)
        self.register_buffer("triangles_MK", triangles(), persistent=False)
        self.window: Tensor
        self.triangles_MK: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LogMel":
        constants = self.window, self.triangles_MK
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # moved to another device with the rest, but not to another precision
        self.window, self.triangles_MK = (constant.to(self.window.device) for constant in constants)
        return self

    def forward(self, wav_BT: Tensor) -> Tensor:
        if wav_BT.ndim != 2 or wav_BT.shape[1] == 0:
            raise V2FError(f"log-mel spectrum: expected waves of shape [batch, samples], got {list(wav_BT.shape)}")
        spectrum_BKF = torch.stft(
            wav_BT.double(), WINDOW, HOP, window=self.window, pad_mode="constant", return_complex=True
        )
        power_BKF = spectrum_BKF.real.square() + spectrum_BKF.imag.square()
        mel_BMF = self.triangles_MK @ power_BKF
        loud_BMF = 10 * mel_BMF.clamp(min=LEAST_POWER).log10()
        loud_BMF = torch.maximum(loud_BMF, loud_BMF.amax(dim=(1, 2), keepdim=True) - RANGE)
        level_BMF = loud_BMF - loud_BMF.mean(dim=2, keepdim=True)
        return level_BMF if wav_BT.dtype == torch.float64 else level_BMF.float()


def triangles() -> Tensor:
    """The weights [80,201] of the frequencies in each band, in float64.

    The bands' centers are equally spaced in mel between 0 and 8,000 Hz. A triangle is symmetric: on both sides it
    reaches as far as the center of the band below, although the center of the band above is farther away.
    """
    top = _SLOPE * torch.log10(torch.tensor(1 + RATE / 2 / _BREAK, dtype=torch.float64))
    mel = torch.linspace(0, float(top), BANDS + 2, dtype=torch.float64)
    hertz = _BREAK * (10 ** (mel / _SLOPE) - 1)
    center_M, width_M = hertz[1:-1], hertz[1:-1] - hertz[:-2]
    hertz_K = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    return (1 - (hertz_K - center_M[:, None]).abs() / width_M[:, None]).clamp(min=0)
