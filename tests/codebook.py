"""The smallest system with a codebook, for tests of what a step commits: k-means starts its codes, drawn vectors
revive them.

Letters: B batch, X a sample's numbers, N vectors of a sample, D their width, K codes.
"""

from collections.abc import Iterator
from typing import Any

import torch
from bare import BareSystem
from torch import nn

from v2f.engine import Engine
from v2f.nn.batchnorm import GhostBatchNorm
from v2f.nn.codebook import CodebookConfig, EMACodebook
from v2f.system import Batch, Losses, Optimizer, Phase, Stepped, weighted

X, N, D, K = 5, 3, 2, 6
GROUP, BATCH, STEPS = 4, 16, 12
CONFIG = CodebookConfig(width=D, decay=0.6, dead=0.5, starts=2)
NOISE = 0x4E6F69


class Codebook(EMACodebook):
    def __init__(self) -> None:
        super().__init__(K, CONFIG, purpose=7)


class Quantized(BareSystem):
    """An encoder with batch norm, the codebook, a decoder. ``told``: the arguments of ``after_step``; ``noise``:
    a number that it draws."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.encoder = nn.Sequential(nn.Linear(X, N * D, bias=False), GhostBatchNorm(N * D, GROUP))
            self.decoder = nn.Linear(N * D, X)
        self.decoder.register_buffer("noise", torch.tensor(0.0))
        self.codebook = Codebook()
        self.told: list[Stepped] = []

    def phases(self) -> list[Phase]:
        modules = {"encoder": self.encoder, "codebook": self.codebook, "decoder": self.decoder}
        return [Phase(name="all", modules=modules, optimizer=Optimizer(lr=dict.fromkeys(modules, 1e-2)), ema=16)]

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        z_BND = self.encoder(batch["x"]).unflatten(1, (N, D))
        found = self.codebook(z_BND, batch["slot"], batch["weight"])
        made_BX = self.decoder(found.code_BND.flatten(1))
        parts = {
            "mse": weighted((made_BX - batch["x"]).square().mean(dim=1), batch["weight"]),
            "commitment": weighted(found.commitment_B, batch["weight"]),
        }
        return {"total": parts["mse"] + 0.25 * parts["commitment"], **parts}

    def after_step(self, phase: str, stepped: Stepped) -> None:
        self.told.append(stepped)
        self.decoder.noise.fill_(stepped.rng(NOISE).random())


def batches(rank: int = 0, world_size: int = 1, start: int = 0) -> Iterator[Batch]:
    """This rank's share of each global batch: clusters that come and go, one slot of weight 0."""
    share, step = BATCH // world_size, start
    while True:
        rng = torch.Generator().manual_seed(step)
        weight_B = torch.ones(BATCH)
        weight_B[step % BATCH] = 0
        cluster_B = torch.randint(0, 4, (BATCH,), generator=rng) + 3 * (step // 3 % 2)
        whole = {
            "x": torch.eye(7, X)[cluster_B] * 3 + 0.3 * torch.randn(BATCH, X, generator=rng),
            "weight": weight_B,
            "slot": torch.arange(step * BATCH, (step + 1) * BATCH),
        }
        yield {name: t[rank * share : (rank + 1) * share] for name, t in whole.items()}
        step += 1


def trained(strategy: Any, precision: Any, micro: int | None) -> tuple[Engine, Quantized]:
    """The system after ``STEPS`` steps, on this rank."""
    engine, system = Engine(precision, strategy), Quantized()
    engine.wrap(system, share=BATCH // engine.world_size, micro_batch=micro, seed=3)
    system.train()
    stream, (phase,) = batches(engine.rank, engine.world_size), system.phases()
    for step in range(STEPS):
        engine.step(phase, next(stream), step, micro_batch=micro, seen=step * BATCH, total=STEPS * BATCH)
    return engine, system
