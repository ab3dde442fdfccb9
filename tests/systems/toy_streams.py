"""A toy of two streams: voices draw pictures, and faces that are no one's of them tell the pictures from photos.

    voice [B,T] -> generator -> picture [B,3,8,8] -> discriminator -> logit [B] <- photo [F,3,8,8]

Shape letters: B voices, F faces, T waveform samples.
"""

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2f.data.transforms import Photo, Waveform
from v2f.nn.batchnorm import GhostBatchNorm
from v2f.system import (
    Batch,
    Kind,
    Losses,
    Optimizer,
    Phase,
    Picture,
    Sound,
    System,
    SystemConfig,
    Transform,
    to_picture,
    weighted,
)

SIDE, FRAMES, WIDTH = 8, 64, 16


class ToyStreams(System):
    class Config(SystemConfig):
        name: Literal["toy_streams"]
        bn_group: int = 2

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(FRAMES, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3 * SIDE * SIDE), nn.Tanh()
        )
        self.discriminator = nn.Sequential(
            nn.Flatten(),
            nn.Linear(3 * SIDE * SIDE, WIDTH, bias=False),
            GhostBatchNorm(WIDTH, config.bn_group),
            nn.Tanh(),
            nn.Linear(WIDTH, 1),
        )

    def phases(self) -> list[Phase]:
        modules = {"discriminator": self.discriminator, "generator": self.generator}
        return [
            Phase(name=name, modules={name: module}, optimizer=Optimizer(lr={name: 1e-3}), ema=64)
            for name, module in modules.items()
        ]

    def transforms(self) -> dict[str, Transform]:
        return {"wav": Waveform(FRAMES / 16000), "image": Photo(SIDE)}

    def asks(self) -> dict[str, Kind]:
        return {"wav": Sound(16000, FRAMES / 16000, voice=True)}

    def makes(self) -> dict[str, Kind]:
        return {"face": Picture(SIDE)}

    def streams(self) -> dict[str, dict[str, Transform]]:
        read = self.transforms()
        return {"voice": {"wav": read["wav"]}, "face": {"image": read["image"]}}

    def made(self, wav: Tensor) -> Tensor:
        return self.generator(wav).unflatten(1, (3, SIDE, SIDE))

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        voice, face = batch["voice"], batch["face"]
        logit_B = self.discriminator(self.made(voice["wav"])).squeeze(1)
        if phase == "generator":
            return {"total": weighted(F.softplus(-logit_B), voice["weight"])}
        fake = weighted(F.softplus(logit_B), voice["weight"])
        logit_F = self.discriminator(to_picture(face["image"], like=voice["wav"])).squeeze(1)
        real = weighted(F.softplus(-logit_F), face["weight"])
        return {"total": real + fake, "real": real, "fake": fake}

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        return {"face": self.made(batch["wav"])}

    @torch.no_grad()
    def meters(self, batches: Iterable[Batch]) -> dict[str, float]:
        parts = list(batches)
        heard, seen = (torch.cat([batch[name]["identity"] for batch in parts]) for name in ("voice", "face"))
        return {"voices": float(len(heard)), "faces": float(len(seen)), "known": float(torch.isin(seen, heard).sum())}
