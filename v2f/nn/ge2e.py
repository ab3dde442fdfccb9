"""The GE2E speaker encoder (Wan et al. 2018, "Generalized end-to-end loss for speaker verification", arXiv 1710.10467).

    wave [B,T] -> power mel [B,F,M] -> partials of 1.6 s -> LSTM layers -> last state -> Linear, ReLU -> unit length
               -> mean over the partials -> unit length [B,E]

Sizes and front end are those of the package ``resemblyzer`` 0.1.4, which publishes trained weights: 40 mel bands of
16 kHz, three LSTM layers of 256 and a vector of 256 have 1,423,616 parameters. Its authors differ from the paper: the
mel is a power, not a logarithm; the layers are smaller and have no projection; the vector has no negative numbers.

Letters: B batch, T samples, F frames, M mel bands, P partials, H width of the LSTM layers, E width of the vector.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2f.nn import at_least_float32

RATE = 16_000  # Hz
WINDOW, HOP = 400, 160  # samples: 25 and 10 ms
BANDS = 40
PARTIAL = 160  # frames of 10 ms in a partial: 1.6 s
STEP = 77  # frames from one partial to the next: 1.3 partials a second
COVERAGE = 0.75  # share of the last partial that must lie within the clip
QUIETEST = 1e-5  # of full scale: a wave below this RMS is silence


def partials(samples: int) -> list[int]:
    """The first frame of each partial of a clip; it always has one."""
    frames = -(-(samples + 1) // HOP)
    starts = list(range(0, max(1, frames - PARTIAL + STEP + 1), STEP))
    if len(starts) > 1 and samples - starts[-1] * HOP < COVERAGE * PARTIAL * HOP:
        starts.pop()
    return starts


def raised(wav_BT: Tensor, level: float) -> Tensor:
    """Waves [B,T], those with an RMS below ``level`` (dB of full scale) amplified to it; silence stays silence.

    A power mel depends on the level, and the published weights were trained on waves that were raised to -30 dB.
    """
    rms_B1 = at_least_float32(wav_BT).square().mean(dim=1, keepdim=True).sqrt()
    gain_B1 = (10 ** (level / 20) / rms_B1).clamp_min(1.0)
    return wav_BT * torch.where(rms_B1 > QUIETEST, gain_B1, 1.0)


class Layer(nn.LSTM):
    """One LSTM layer. Where it is trained, it stays in training mode: cuDNN has a backward pass in that mode only. It
    has no dropout, so both modes compute the same."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs, width, batch_first=True)

    def train(self, mode: bool = True) -> "Layer":
        return super().train(mode or any(p.requires_grad for p in self.parameters()))


class GE2E(nn.Module):
    """Waves [B,T] at 16 kHz -> vectors [B,E] of unit length, without negative numbers."""

    def __init__(self, width: int = 256, embedding: int = 256, layers: int = 3) -> None:
        from torchaudio.functional import melscale_fbanks  # slow to import

        super().__init__()
        self.layers = nn.ModuleList(Layer(BANDS if layer == 0 else width, width) for layer in range(layers))
        self.linear = nn.Linear(width, embedding)
        bands_KM = melscale_fbanks(WINDOW // 2 + 1, 0.0, RATE / 2, BANDS, RATE, norm="slaney", mel_scale="slaney")
        self.register_buffer("bands_MK", bands_KM.T.contiguous(), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.bands_MK: Tensor
        self.window: Tensor

    def mel(self, wav_BT: Tensor) -> Tensor:
        """Power in mel bands [B,F,M], F = 1 + T // 160; the frames are centered, and beyond the wave is silence."""
        with torch.autocast(wav_BT.device.type, enabled=False):
            wav_BT = at_least_float32(wav_BT)
            spectrum_BKF = torch.stft(
                wav_BT, WINDOW, HOP, window=self.window, center=True, pad_mode="constant", return_complex=True
            )
            power_BKF = torch.view_as_real(spectrum_BKF).square().sum(dim=-1)
            return (self.bands_MK @ power_BKF).transpose(1, 2)

    def states(self, wav_BT: Tensor) -> list[Tensor]:
        """The states of each LSTM layer over the whole wave, first layer first: [B,F,H] each, 100 frames a second."""
        return self._layers(self.mel(wav_BT))

    def parts(self, wav_BT: Tensor) -> Tensor:
        """The vector of each partial (:func:`partials`), of unit length: [B,P,E]."""
        samples = wav_BT.shape[1]
        starts = partials(samples)
        end = (starts[-1] + PARTIAL) * HOP
        mel_BFM = self.mel(F.pad(wav_BT, (0, max(0, end - samples))))
        mel_BPFM = torch.stack([mel_BFM[:, start : start + PARTIAL] for start in starts], dim=1)
        last_NH = self._layers(mel_BPFM.flatten(0, 1))[-1][:, -1]
        part_NE = F.normalize(at_least_float32(F.relu(self.linear(last_NH))), dim=1)
        return part_NE.unflatten(0, (-1, len(starts)))

    def forward(self, wav_BT: Tensor) -> Tensor:
        return F.normalize(self.parts(wav_BT).mean(dim=1), dim=1)

    def cut(self, layers: int) -> None:
        """Keep only what :meth:`states` of the first ``layers`` layers needs."""
        del self.layers[layers:]
        del self.linear

    def _layers(self, mel_BFM: Tensor) -> list[Tensor]:
        states, x_BFH = [], mel_BFM
        for layer in self.layers:
            x_BFH, _ = layer(x_BFH)
            states.append(x_BFH)
        return states
