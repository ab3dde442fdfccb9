"""A voice encoder on the log-mel spectrogram, otherwise built like the waveform encoder (:mod:`v2f.nn.waveform`).

    wave [B,T] -> log-mel [B,M,T'] -> 1-D ResNet over time, the bands as channels   -> three maps [B,C,T_i]
                                   or 2-D ResNet over bands and time, mean over bands

The thesis also tried spectrograms as input, which "hardly" made training faster, and tells no more of them. Front end
and sizes are ours, chosen for a comparison: channels, blocks and out_channels are the waveform encoder's, and a 3 x 3
convolution has as many weights as one of 9 taps. So the 2-D encoder has its 37,711,040 parameters, and the 1-D one
37,735,040. For 6 s at 16 kHz a forward pass takes 60 GFLOP in 2-D and 4.6 in 1-D, without the Fourier transform; the
waveform encoder's takes 182. The maps have 151 / 76 / 38 frames; its maps 6,000 / 3,000 / 1,500.

Letters: B batch, T samples or frames, M mel bands, C channels.
"""

import warnings
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f.config import Config
from v2f.errors import V2FError
from v2f.nn import at_least_float32
from v2f.nn.resnet import Dims, ResNetConfig, ResNetEncoder, channels_last

LEAST_DEVIATION = 1e-2  # of a band's logarithms over a clip: silence is not amplified


class LogMelConfig(Config):
    """The keys of :class:`LogMel`."""

    sample_rate: Annotated[int, Field(gt=0)] = 16_000  # Hz, of the waves
    bands: Annotated[int, Field(ge=1)] = 80
    window: float = Field(25.0, gt=0, description="ms, of a Hann window")
    hop: float = Field(10.0, gt=0, description="ms from one frame to the next")
    fft: Annotated[int, Field(gt=0)] | None = Field(
        None, description="length of the Fourier transform in samples; null: the window's next power of two"
    )
    f_min: float = Field(20.0, ge=0, description="Hz, where the lowest band begins")
    f_max: float | None = Field(None, gt=0, description="Hz, where the highest band ends; null: half of sample_rate")
    eps: float = Field(1e-6, gt=0, description="least power of a band, before the logarithm")
    normalize: bool = Field(True, description="scale each band to mean 0 and variance 1 over the clip")

    @property
    def samples(self) -> tuple[int, int]:
        """Window and hop in samples."""
        return round(self.window * self.sample_rate / 1000), round(self.hop * self.sample_rate / 1000)

    @model_validator(mode="after")
    def _can_be(self) -> "LogMelConfig":
        half = self.sample_rate / 2
        if min(self.samples) < 1:
            raise ValueError(f"window and hop must be at least one sample, {1000 / self.sample_rate:g} ms")
        if self.fft is not None and self.fft < self.samples[0]:
            raise ValueError(f"fft must be at least the window, {self.samples[0]} samples")
        if not self.f_min < (half if self.f_max is None else self.f_max) <= half:
            raise ValueError(f"f_min must be below f_max, and f_max at most {half:g} Hz, half of sample_rate")
        return self


class LogMel(nn.Module):
    """wave [B,T] in [-1,1] -> the logarithm of the power in M mel bands, [B,M,1 + T // hop], float32 or float64.

    Power: torchaudio's MelSpectrogram (HTK's scale, triangles of height one), frames centered, with zeros before and
    after the wave. It computes in the precision of the wave even under autocast. Nothing is learned, and a checkpoint
    contains none of it.
    """

    def __init__(self, config: LogMelConfig) -> None:
        """V2FError if a band is so narrow that it contains no frequency of the transform."""
        from torchaudio.transforms import MelSpectrogram  # which only this encoder needs

        super().__init__()
        self.eps, self.normalize = config.eps, config.normalize
        window, hop = config.samples
        with warnings.catch_warnings(), torch.device("cpu"):  # its checks need numbers, which meta tensors lack
            warnings.simplefilter("ignore")  # about empty bands, see below
            self.mel = MelSpectrogram(
                config.sample_rate,
                n_fft=config.fft or 1 << (window - 1).bit_length(),
                win_length=window,
                hop_length=hop,
                f_min=config.f_min,
                f_max=config.f_max,
                n_mels=config.bands,
                pad_mode="constant",
            )
            empty = (self.mel.mel_scale.fb == 0).all(dim=0).nonzero().flatten().tolist()
        if empty:
            raise V2FError(
                f"system.encoder: band {empty[0] + 1} of {config.bands} is narrower than the resolution of a window of "
                f"{config.window:g} ms; set fewer bands, or a longer window"
            )
        for module in self.mel.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer, persistent=False)
        self.mel.to(torch.get_default_device())

    def forward(self, wav_BT: Tensor) -> Tensor:
        with torch.autocast(wav_BT.device.type, enabled=False):
            power_BMT: Tensor = self.mel(at_least_float32(wav_BT))
            log_BMT = power_BMT.clamp(min=self.eps).log()
            return standardized(log_BMT) if self.normalize else log_BMT


def standardized(log_BMT: Tensor, chosen_BT: Tensor | None = None, *, each_band: bool = True) -> Tensor:
    """Each band of each clip scaled to mean 0 and variance 1 over its frames, or over the chosen ones (bool).

    Not ``each_band``: the clip as a whole, so that its bands keep their levels against each other.
    """
    if chosen_BT is None:
        over = 2 if each_band else (1, 2)
        deviation_BM1, mean_BM1 = torch.std_mean(log_BMT, dim=over, correction=0, keepdim=True)
    else:
        share_B1T = chosen_BT[:, None] / chosen_BT.sum(dim=1)[:, None, None].to(log_BMT.dtype)
        mean_BM1 = (log_BMT * share_B1T).sum(dim=2, keepdim=True)
        mean_BM1 = mean_BM1 if each_band else mean_BM1.mean(dim=1, keepdim=True)
        variance_BM1 = ((log_BMT - mean_BM1).square() * share_B1T).sum(dim=2, keepdim=True)
        deviation_BM1 = (variance_BM1 if each_band else variance_BM1.mean(dim=1, keepdim=True)).sqrt()
    return (log_BMT - mean_BM1) / deviation_BM1.clamp(min=LEAST_DEVIATION)


class SpectrogramEncoder(ResNetEncoder):
    """wave [B,T] in [-1,1] -> three maps (shallow, middle, deep), each [B,C,T_i]; trained from the start."""

    class Config(LogMelConfig, ResNetConfig):
        """The defaults have about as many parameters as the waveform encoder. ``kernel``: 9 in 1-D, 3 (square) in 2-D,
        unless set; in 2-D the stem's is a square, too, and strides are those of both axes."""

        net: Literal["spectrogram"] = "spectrogram"
        strides: list[Annotated[int, Field(ge=1)]] = [1, 2, 2, 2]
        stem_kernel: int = 5
        stem_stride: Annotated[int, Field(ge=1)] = 2
        dims: Dims = 1

        @model_validator(mode="before")
        @classmethod
        def _square(cls, values: Any) -> Any:
            return {"kernel": 3, **values} if isinstance(values, dict) and values.get("dims") == 2 else values

    def __init__(self, config: "SpectrogramEncoder.Config") -> None:
        super().__init__(config, inputs=config.bands if config.dims == 1 else 1, dims=config.dims)
        self.config = config
        self.log_mel = LogMel(config)

    def signal(self, wav_BT: Tensor) -> Tensor:
        log_BMT = self.log_mel(wav_BT)
        return channels_last(log_BMT[:, :, None] if self.config.dims == 1 else log_BMT[:, None])
