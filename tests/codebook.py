"""The smallest vector quantizer, for tests of what a step commits: k-means starts its codes, drawn vectors revive them.

Letters: B batch, X a sample's numbers, N vectors of a sample, D their width, K codes, M drawn vectors.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from bare import BareSystem
from torch import Tensor, nn

from v2f.engine import Engine
from v2f.nn.batchnorm import GhostBatchNorm
from v2f.nn.statistics import KeepsStatistics, KeyedVectorSample, Turn
from v2f.system import Batch, Losses, Optimizer, Phase, Stepped, weighted

X, N, D, K = 5, 3, 2, 6
GROUP, BATCH, STEPS = 4, 16, 12
DECAY, DEAD, ALIVE = 0.6, 3.5, 6.0  # vectors of a step that a code takes
NOISE = 0x4E6F69


class Codebook(KeepsStatistics):
    """Codes that follow the mean of their vectors (van den Oord et al. 2017, arXiv 1711.00937, appendix A.1)."""

    codes_KD: Tensor
    sizes_K: Tensor
    totals_KD: Tensor
    started: Tensor
    revived: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes_KD", torch.zeros(K, D))
        self.register_buffer("sizes_K", torch.zeros(K))
        self.register_buffer("totals_KD", torch.zeros(K, D))
        self.register_buffer("started", torch.tensor(0))
        self.register_buffer("revived", torch.tensor(0))
        self.drawn = KeyedVectorSample(D, purpose=7)
        self.discard()

    def begin(self, turn: Turn) -> None:
        if not self.started:
            self.drawn.begin(turn, 2 * K)
        elif (self.sizes_K < DEAD).any():
            self.drawn.begin(turn, K)

    def forward(self, z_BND: Tensor, slot_B: Tensor, weight_B: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest code of each vector, with the gradient of the vector, and the commitment [B]."""
        nearest_BN = torch.cdist(z_BND.detach(), self.codes_KD).argmin(dim=2)
        if self.collecting:
            taken_BNK = F.one_hot(nearest_BN, K).double() * weight_B.double()[:, None, None]
            totals_KD = torch.einsum("bnk,bnd->kd", taken_BNK, z_BND.detach().double())
            self._sums = self._sums + torch.cat([taken_BNK.sum(dim=(0, 1)), totals_KD.flatten()])
            self.drawn.collect(z_BND, slot_B, weight_B)
        code_BND = self.codes_KD[nearest_BN]
        return z_BND + (code_BND - z_BND).detach(), (z_BND - code_BND).square().mean(dim=(1, 2))

    def sums(self) -> Tensor:
        return torch.cat([self._sums, self.drawn.sums(self._sums.device)])

    def commit(self, sums: Tensor) -> None:
        sizes_K, totals, drawn = sums[:K], sums[K : K + K * D], sums[K + K * D :]
        vector_MD = self.drawn.read(drawn).to(self.codes_KD)
        if not self.started:
            self.codes_KD.copy_(k_means(vector_MD))
            self.started.fill_(1)
            self.sizes_K.fill_(ALIVE)
            self.totals_KD.copy_(ALIVE * self.codes_KD)
        else:
            dead = (self.sizes_K < DEAD).nonzero()[: len(vector_MD), 0]
            self.sizes_K.lerp_(sizes_K.to(self.sizes_K), 1 - DECAY)
            self.totals_KD.lerp_(totals.view(K, D).to(self.totals_KD), 1 - DECAY)
            self.sizes_K[dead], self.totals_KD[dead] = ALIVE, ALIVE * vector_MD[: len(dead)]
            self.codes_KD.copy_(self.totals_KD / self.sizes_K[:, None].clamp(min=1e-3))
            self.revived += len(dead)
        self.discard()

    def discard(self) -> None:
        self._sums = torch.zeros(K + K * D, dtype=torch.float64, device=self.codes_KD.device)
        self.drawn.discard()


def k_means(vector_MD: Tensor) -> Tensor:
    """K means, from the first K vectors on."""
    mean_KD = vector_MD[:K].clone()
    for _ in range(5):
        taken_MK = F.one_hot(torch.cdist(vector_MD, mean_KD).argmin(dim=1), K).to(vector_MD)
        mean_KD = torch.where(taken_MK.sum(0)[:, None] > 0, taken_MK.T @ vector_MD / taken_MK.sum(0)[:, None], mean_KD)
    return mean_KD


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
        code_BND, commitment_B = self.codebook(z_BND, batch["slot"], batch["weight"])
        made_BX = self.decoder(code_BND.flatten(1))
        parts = {
            "mse": weighted((made_BX - batch["x"]).square().mean(dim=1), batch["weight"]),
            "commitment": weighted(commitment_B, batch["weight"]),
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
