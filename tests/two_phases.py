"""The smallest GAN, for tests of the engine: two phases, batch norm in both, every second step for the generator.

Letters: B batch, X a sample's numbers, Z noise.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from bare import BareSystem
from torch import Tensor, nn

from v2f.nn.batchnorm import GhostBatchNorm
from v2f.system import Batch, Losses, Optimizer, Phase, weighted

X, Z, WIDTH = 3, 4, 24
BY_VALUE = 0.02  # clips some numbers of the discriminator's first gradient
GROUP = 4  # samples that batch norm covers; over two single numbers it would make a sign of them


class Net(nn.Module):
    """Two layers with batch norm between; one parameter that no loss touches, one that nobody trains."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, WIDTH, bias=False), GhostBatchNorm(WIDTH, GROUP), nn.Tanh(), nn.Linear(WIDTH, outputs)
        )
        self.unused = nn.Parameter(torch.ones(5))
        self.frozen = nn.Parameter(torch.full((outputs,), 0.5), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.frozen


class TwoPhases(BareSystem):
    """``shared``: the generator's phase trains the discriminator, too. ``by_value``: clips a gradient's numbers."""

    def __init__(self, shared: bool = False, by_value: float | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.g, self.d = Net(Z, X), Net(X, 1)
        self.shared = shared
        self.clip: dict[str, Any] = {"clip": 0.3} if by_value is None else {"clip": by_value, "clip_by": "value"}

    def phases(self) -> list[Phase]:
        discriminator = Optimizer(lr={"d": 2e-3}, betas=[0.5, 0.999], weight_decay=1e-3, **self.clip)
        generator = Optimizer(lr={"g": 1e-3, "d": 1e-3}, betas=[0.5, 0.999])
        modules = {"g": self.g, "d": self.d} if self.shared else {"g": self.g}
        return [
            Phase(name="discriminator", modules={"d": self.d}, optimizer=discriminator),
            Phase(name="generator", modules=modules, optimizer=generator, every=2, ema=32),
        ]

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        fake_BX = self.g(batch["z"])
        if phase == "generator":
            return {"total": weighted(F.softplus(-self.d(fake_BX)).mean(dim=1), batch["weight"])}
        real = weighted(F.softplus(-self.d(batch["x"])).mean(dim=1), batch["weight"])
        fake = weighted(F.softplus(self.d(fake_BX)).mean(dim=1), batch["weight"])
        return {"total": real + fake, "real": real, "fake": fake}


def batches(batch: int, rank: int = 0, world_size: int = 1, start: int = 0) -> Iterator[Batch]:
    """This rank's share of each global batch, step after step; a function of the step."""
    share = batch // world_size
    step = start
    while True:
        rng = torch.Generator().manual_seed(step)
        whole = {
            "x": torch.randn(batch, X, generator=rng) * 0.5 + 1,
            "z": torch.randn(batch, Z, generator=rng),
            "weight": torch.ones(batch),
            "slot": torch.arange(step * batch, (step + 1) * batch),
        }
        yield {name: t[rank * share : (rank + 1) * share] for name, t in whole.items()}
        step += 1
