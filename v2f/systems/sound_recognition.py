"""Sound recognition: the labels of a sound, several at once, and on request the known factors of a synthetic one.

    wave [B,T] -> log-mel [B,1,M,T'], scaled as a whole -> residual network -> features [B,F] -> heads
      -> scores [B,K], factors [B,G] (:mod:`v2f.recognition`)

It judges systems that make sounds from labels (``v2f eval RUN --classifier RUN``): does a generated bark sound like a
bark? A clip's spectrogram is scaled to mean 0 and variance 1, so loudness says nothing.

Shape letters: B batch, T samples, M mel bands, T' frames, F features, K classes of a label, G factors.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f.data.transforms import ClassNumber, Factors, Waveform
from v2f.nn import picture_resnet
from v2f.nn.picture_resnet import SmallResNet
from v2f.nn.spectrogram import LogMel, LogMelConfig, standardized
from v2f.recognition import Recognition, RecognitionConfig
from v2f.roles import Reading, SoundReader
from v2f.system import Batch, Kind, Sound, Transform


class Front(LogMelConfig):
    """The spectrogram; its sample rate is the system's."""

    sample_rate: int = Field(4000, gt=0, description="Hz, of the sounds")
    bands: int = Field(40, ge=1)
    window: float = Field(64.0, gt=0, description="ms, of a Hann window")
    hop: float = Field(16.0, gt=0, description="ms from one frame to the next")
    normalize: Literal[False] = False


class SpectrumBackbone(nn.Module):
    """Waves [B,T] -> features [B,F]; ``features`` is F."""

    def __init__(self, front: Front, net: SmallResNet, bn_group: int) -> None:
        super().__init__()
        self.log_mel = LogMel(front)
        self.net = picture_resnet.build(net, 1, bn_group)
        self.features = self.net.features

    def forward(self, wav_BT: Tensor) -> Tensor:
        features_BF: Tensor = self.net(standardized(self.log_mel(wav_BT), each_band=False)[:, None])
        return features_BF


class SoundRecognition(Recognition, SoundReader):
    """The whole system: one phase, which trains the backbone and the heads."""

    protocol = "labels_of_sounds"

    class Config(RecognitionConfig):
        name: Literal["sound_recognition"]
        seconds: float = Field(1.8, gt=0, description="length of the sounds; shorter ones are repeated")
        front: Front = Front()
        factors: Literal["sound", "voice"] | None = Field(
            None, description="known factors of synthetic sounds that it estimates, too"
        )
        backbone: SmallResNet = SmallResNet(width=16)

        @model_validator(mode="after")
        def _is_long_enough(self) -> "SoundRecognition.Config":
            if self.seconds * 1000 < self.front.window:
                raise ValueError(f"seconds is {self.seconds:g}, less than front.window, {self.front.window:g} ms")
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = SpectrumBackbone(config.front, config.backbone, config.bn_group)
        self.heads = self.new_heads(self.backbone.features)

    def transforms(self) -> dict[str, Transform]:
        c = self.config
        reads: dict[str, Transform] = {"wav": Waveform(c.seconds, c.front.sample_rate)}
        reads |= {f"label_{label}": ClassNumber(label, tuple(names)) for label, names in c.labels.items()}
        return reads | ({"factors": Factors(c.factors)} if c.factors else {})

    def asks(self) -> Mapping[str, Kind]:
        return {"wav": Sound(self.config.front.sample_rate, self.config.seconds)}

    def read(self, wav_BT: Tensor) -> Reading:
        return self.read_off(self.backbone(wav_BT))

    def reading(self, batch: Batch) -> Reading:
        like = next(self.parameters())
        return self.read(torch.as_tensor(batch["wav"]).to(like))
