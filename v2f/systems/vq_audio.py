"""Sounds as codes: VQ-VAE-2 on the raw wave, a flat VQ-VAE, or either on log-mel spectrograms.

    sound [B,T] -> signal -> encoder -> codebooks: top and bottom codes -> decoder -> signal -> sound [B,1,T]

The network is described in :mod:`v2f.nn.vq_audio`. The loss is the mean squared error of the signal, plus a codebook
term (where codes are learned by gradient) and beta times a commitment term at each level (van den Oord et al. 2017,
arXiv 1711.00937, eq. 3; beta is 0.25), plus a multi-scale spectral loss by choice.

Shape letters: B batch, T samples, I channels of the signal, N codes of a level, K codes of a codebook.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from v2f import metrics
from v2f.data.transforms import Waveform
from v2f.nn import signals
from v2f.nn.signals import MelSignal, WaveSignal, spectral_distance
from v2f.nn.vq_audio import VQVAE2, NetConfig
from v2f.roles import SoundCoder
from v2f.system import (
    Batch,
    Kind,
    Losses,
    Optimizer,
    Phase,
    Sound,
    SystemConfig,
    Tokens,
    Transform,
    weighted,
)

_MODULES = ("encoder", "codebooks", "decoder")
_COLLAPSED = 4  # codes: less perplexity than this is a collapse, if the codebook is larger
_LEAST_POWER = 1e-5  # of a sound, -50 dB: quieter ones do not weigh more


class VQAudio(SoundCoder):
    """The whole system: one phase, which trains everything."""

    protocol = "coded_sounds"

    class Config(SystemConfig, NetConfig):
        name: Literal["vq_audio"]
        seconds: float = Field(7.2, gt=0, description="of a sound")
        sample_rate: int = Field(4000, gt=0, description="Hz")
        label: str | None = Field(None, description="label of the sounds by whose classes `v2f eval` shows results")
        signal: Annotated[WaveSignal | MelSignal, Field(discriminator="kind")] = WaveSignal()
        relative: bool = Field(False, description="divide each sound's squared error by its power")
        beta: float = Field(0.25, ge=0, description="weight of the commitment")
        spectral: float = Field(0.0, ge=0, description="weight of the multi-scale spectral loss")
        windows: list[Annotated[int, Field(ge=8)]] = Field(
            [64, 128, 256], min_length=1, description="of the spectral loss, in samples"
        )
        optimizer: Optimizer = Optimizer(lr=dict.fromkeys(_MODULES, 1e-3))
        ema: int | None = Field(None, gt=0, description="half-life of the moving average of the weights, in samples")

        @model_validator(mode="after")
        def _is_possible(self) -> "VQAudio.Config":
            if isinstance(self.signal, MelSignal):
                if self.spectral or self.relative:
                    raise ValueError("spectral and relative compare waves; set signal.kind=wave, or leave them out")
                hop = self.signal.hop * self.sample_rate / 1000
                if hop < 1 or hop != round(hop):
                    raise ValueError(f"signal.hop must be whole samples; {self.signal.hop:g} ms are {hop:g}")
            if max(self.windows) // 2 >= round(self.seconds * self.sample_rate):
                raise ValueError(f"windows: {max(self.windows)} samples do not fit into {self.seconds:g} s")
            self.optimizer.check(_MODULES)
            return self

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.signal = signals.build(config.signal, config.sample_rate)
        self.net = VQVAE2(config, self.signal.channels)

    def phases(self) -> list[Phase]:
        modules = {"encoder": self.net.encoder, "codebooks": self.net.codebooks, "decoder": self.net.decoder}
        return [Phase(name="coding", modules=modules, optimizer=self.config.optimizer, ema=self.config.ema)]

    def transforms(self) -> dict[str, Transform]:
        return {"wav": Waveform(self.config.seconds, self.config.sample_rate)}

    @property
    def sound(self) -> Sound:
        return Sound(self.config.sample_rate, self.config.seconds)

    @property
    def label(self) -> str | None:
        return self.config.label

    @property
    def levels(self) -> Mapping[str, Tokens]:
        frames = self.config.padded(self.signal.frames(self.sound.frames))
        return {
            name: Tokens(frames // self.config.strides[name], level.codes) for name, level in self.config.levels.items()
        }

    def asks(self) -> Mapping[str, Kind]:
        return {"wav": self.sound}

    def makes(self) -> Mapping[str, Kind]:
        return {"sound": self.sound}

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        """The reconstruction, of each level the codebook and commitment terms (eq. 3), and the spectral loss."""
        c, wav_BT, weight_B = self.config, batch["wav"], batch["weight"]
        true_BIT = self.signal(wav_BT)
        made = self.net(true_BIT, batch["slot"], weight_B)
        error_B = (made.signal_BIT.to(true_BIT) - true_BIT).square().mean(dim=(1, 2))
        if c.relative:
            error_B = error_B / true_BIT.square().mean(dim=(1, 2)).clamp(min=_LEAST_POWER)
        parts = {"reconstruction": weighted(error_B, weight_B)}
        total = parts["reconstruction"]
        for level, found in made.levels.items():
            if found.codebook_B is not None:
                parts[f"codebook_{level}"] = weighted(found.codebook_B, weight_B)
                total = total + parts[f"codebook_{level}"]
            parts[f"commitment_{level}"] = weighted(found.commitment_B, weight_B)
            total = total + c.beta * parts[f"commitment_{level}"]
        if c.spectral:
            apart_B = spectral_distance(made.signal_BIT[:, 0], wav_BT, c.windows)
            parts["spectral"] = weighted(apart_B, weight_B)
            total = total + c.spectral * parts["spectral"]
        return {"total": total, **parts}

    @torch.no_grad()
    def encode(self, wav_BT: Tensor) -> dict[str, Tensor]:
        return self.net.encode(self.signal(wav_BT.to(next(self.parameters()))))

    @torch.no_grad()
    def decode(self, codes: Mapping[str, Tensor]) -> Tensor:
        wav_BT = self.signal.wave(self.net.decode(codes)).float()
        whole = all(codes[name].shape[1] == level.length for name, level in self.levels.items())
        return wav_BT[:, None, : self.sound.frames if whole else None]

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        return {"sound": self.decode(self.encode(batch["wav"]))}

    @torch.no_grad()
    def meters(self, batches: Iterable[Batch]) -> dict[str, float]:
        """SI-SDR and log-mel distance, both in dB, and of each level the share of the codes that occur and their
        perplexity."""
        restored: list[NDArray[np.float64]] = []
        apart: list[NDArray[np.float64]] = []
        counts = {name: np.zeros(level.vocabulary, np.int64) for name, level in self.levels.items()}
        for batch in batches:
            codes = self.encode(batch["wav"])
            made_BT = self.decode(codes)[:, 0]
            restored.append(metrics.si_sdr(made_BT, batch["wav"]))
            apart.append(metrics.log_mel_distance(made_BT, batch["wav"], self.sound.rate))
            for name, number_BN in codes.items():
                counts[name] += metrics.code_counts(number_BN, len(counts[name]))
        found = {"si_sdr": float(np.concatenate(restored).mean()), "log_mel": float(np.concatenate(apart).mean())}
        for name, count_K in counts.items():
            found |= {f"used_{name}": metrics.used(count_K), f"perplexity_{name}": metrics.perplexity(count_K)}
        return found

    def verdict(self, meters: Mapping[str, float], history: Mapping[str, Sequence[float]]) -> str | None:
        """Whether a codebook has collapsed to a few codes."""
        for name, level in self.levels.items():
            if meters[f"perplexity_{name}"] < min(_COLLAPSED, level.vocabulary / 2):
                return (
                    f"CODEBOOK COLLAPSE: the {name} codes of held-out sounds have a perplexity of "
                    f"{meters[f'perplexity_{name}']:.1f} of {level.vocabulary}; set system.codebook.learned=ema, which "
                    "revives unused codes, or lower system.optimizer.lr"
                )
        return None
