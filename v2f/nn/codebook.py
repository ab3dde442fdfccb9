"""Vector quantization: each vector is replaced by the nearest code of a codebook (van den Oord et al. 2017, VQ-VAE).

    vectors [B,N,D] -> nearest of K codes -> their numbers [B,N], codes [B,N,D] with the gradient of the vectors

The decoder's gradient is copied from code to vector (section 3.2). The codes are learned in one of two ways:

- by gradient (eq. 3): the codebook term pulls codes to vectors, the commitment term vectors to codes;
- as exponential moving averages of their vectors (appendix A.1), without a codebook term. Here k-means on vectors of
  the first step initializes them, and a code that is hardly used is revived: a vector of the step replaces it (both as
  in Dhariwal et al. 2020, Jukebox, arXiv 2005.00341, section 3.1). The vectors are keyed by (seed, slot), so that all
  ranks, and a resumed run, find the same codes.

Letters: B batch, N vectors of a sample, D their width, K codes, M drawn vectors.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from v2f.config import Config
from v2f.nn import at_least_float32
from v2f.nn.statistics import KeepsStatistics, KeyedVectorSample, Turn

_ROWS = 4096  # vectors that are compared with all codes at once
_MEANS = 8  # iterations of k-means


class CodebookConfig(Config):
    """The keys of a codebook."""

    width: int = Field(32, gt=0, description="numbers of a code")
    learned: Literal["ema", "gradient"] = Field(
        "ema", description="ema: codes are moving averages of their vectors; gradient: by the codebook loss"
    )
    decay: float = Field(0.99, gt=0, lt=1, description="ema: the factor of the averages in each step")
    dead: float = Field(
        0.1, ge=0, lt=1, description="ema: a code used less than this share of an even use is revived; 0: never"
    )
    starts: Annotated[int, Field(ge=1)] = Field(
        4, description="ema: vectors for each code, from which k-means initializes them"
    )


@dataclass(frozen=True)
class Quantized:
    """What a codebook makes of vectors."""

    code_BND: Tensor
    """The codes, with the gradient of the vectors."""
    number_BN: Tensor
    """The codes' numbers, int64."""
    commitment_B: Tensor
    """Mean square of vector minus code, whose gradient flows to the vectors."""
    codebook_B: Tensor | None
    """The same number, whose gradient flows to the codes; None if they are not learned by gradient."""


def build(config: CodebookConfig, codes: int, purpose: int) -> "GradientCodebook | EMACodebook":
    """A codebook of ``codes`` codes; ``purpose``: a number for each codebook of a system, see
    :class:`~v2f.nn.statistics.KeyedVectorSample`."""
    if config.learned == "gradient":
        return GradientCodebook(codes, config.width)
    return EMACodebook(codes, config, purpose)


class GradientCodebook(nn.Module):
    """Codes that are parameters. They start uniform in [-1/K, 1/K], so close to 0 that the direction of a vector
    decides which code is the nearest."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.codes_KD = nn.Parameter(torch.empty(codes, width).uniform_(-1 / codes, 1 / codes))

    def forward(self, z_BND: Tensor, slot_B: Tensor, weight_B: Tensor) -> Quantized:
        number_BN = nearest(z_BND.detach(), self.codes_KD.detach())
        return quantized(z_BND, self.codes_KD, number_BN)


class EMACodebook(KeepsStatistics):
    """Codes that are moving averages of their vectors. Until the first step, all are 0."""

    codes_KD: Tensor
    sizes_K: Tensor
    totals_KD: Tensor
    started: Tensor
    revived: Tensor

    def __init__(self, codes: int, config: CodebookConfig, purpose: int) -> None:
        super().__init__()
        self.codes, self.width = codes, config.width
        self._decay, self._dead, self._starts = config.decay, config.dead, config.starts
        self.register_buffer("codes_KD", torch.zeros(codes, config.width))
        self.register_buffer("sizes_K", torch.zeros(codes))
        self.register_buffer("totals_KD", torch.zeros(codes, config.width))
        self.register_buffer("started", torch.tensor(0))
        self.register_buffer("revived", torch.tensor(0))
        self.drawn = KeyedVectorSample(config.width, purpose)
        self.discard()

    @property
    def dead_K(self) -> Tensor:
        """Whether each code is hardly used: its average number of vectors in a step is below the configured share of
        the mean over codes."""
        return self.sizes_K < self._dead * self.sizes_K.mean()

    def begin(self, turn: Turn) -> None:
        self.drawn.begin(turn, int(self.dead_K.sum()) if self.started else self._starts * self.codes)

    def forward(self, z_BND: Tensor, slot_B: Tensor, weight_B: Tensor) -> Quantized:
        vector_BND = z_BND.detach()
        number_BN = nearest(vector_BND, self.codes_KD)
        if self.collecting:
            weight_N = weight_B.double().repeat_interleave(z_BND.shape[1])
            numbers_N, vectors_ND = number_BN.flatten(), vector_BND.flatten(0, 1).double()
            self._sizes_K.index_add_(0, numbers_N, weight_N)
            self._totals_KD.index_add_(0, numbers_N, vectors_ND * weight_N[:, None])
            self.drawn.collect(vector_BND, slot_B, weight_B)
        return quantized(z_BND, self.codes_KD, number_BN)

    def sums(self) -> Tensor:
        own = [self._sizes_K, self._totals_KD.flatten()]
        return torch.cat([*own, self.drawn.sums(self._sizes_K.device)])

    def commit(self, sums: Tensor) -> None:
        """Appendix A.1, eq. 6 to 8; the first step initializes the codes instead, if it has any vector."""
        codes, width = self.codes, self.width
        sizes_K, totals, drawn = sums[:codes], sums[codes : codes * (1 + width)], sums[codes * (1 + width) :]
        vector_MD = self.drawn.read(drawn)
        if not self.started:
            if len(vector_MD):
                # on the CPU, whose sums have the same order on every rank
                self.codes_KD.copy_(k_means(vector_MD.cpu(), codes))
                self.sizes_K.fill_(float(sizes_K.sum()) / codes)
                self.totals_KD.copy_(self.sizes_K[:, None] * self.codes_KD)
                self.started.fill_(1)
        else:
            dead = self.dead_K.nonzero()[: len(vector_MD), 0]
            self.sizes_K.lerp_(sizes_K.to(self.sizes_K), 1 - self._decay)
            self.totals_KD.lerp_(totals.view(codes, width).to(self.totals_KD), 1 - self._decay)
            alive = self.sizes_K.mean()
            self.sizes_K[dead], self.totals_KD[dead] = alive, alive * vector_MD[: len(dead)].to(self.totals_KD)
            self.codes_KD.copy_(self.totals_KD / self.sizes_K[:, None].clamp(min=1e-12))
            self.revived += len(dead)
        self.discard()

    def discard(self) -> None:
        device = self.codes_KD.device
        self._sizes_K = torch.zeros(self.codes, dtype=torch.float64, device=device)
        self._totals_KD = torch.zeros(self.codes, self.width, dtype=torch.float64, device=device)
        self.drawn.discard()


def nearest(z_BND: Tensor, codes_KD: Tensor) -> Tensor:
    """The number of the code with the least Euclidean distance to each vector, int64 [B,N]; of equal ones the first."""
    with torch.autocast(z_BND.device.type, enabled=False):
        codes_DK = at_least_float32(codes_KD).T
        half_K = 0.5 * codes_DK.square().sum(dim=0)
        rows = at_least_float32(z_BND).flatten(0, 1).split(_ROWS)
        found = [torch.addmm(half_K, row_ND, codes_DK, alpha=-1).argmin(dim=1) for row_ND in rows]
    return torch.cat(found).view(z_BND.shape[:2])


def quantized(z_BND: Tensor, codes_KD: Tensor, number_BN: Tensor) -> Quantized:
    """The codes of these numbers, and the terms of the loss (eq. 3)."""
    z_BND = at_least_float32(z_BND)
    code_BND = codes_KD[number_BN]
    fixed_BND = code_BND.detach()
    commitment_B = (z_BND - fixed_BND).square().mean(dim=(1, 2))
    codebook_B = (z_BND.detach() - code_BND).square().mean(dim=(1, 2)) if isinstance(codes_KD, nn.Parameter) else None
    return Quantized(z_BND + (fixed_BND - z_BND).detach(), number_BN, commitment_B, codebook_B)


def k_means(vector_MD: Tensor, codes: int) -> Tensor:
    """The means [K,D] of Lloyd's algorithm, which starts from the first K vectors (repeated if there are fewer)."""
    mean_KD = vector_MD[torch.arange(codes) % len(vector_MD)]
    for _ in range(_MEANS):
        number_M = nearest(vector_MD[None], mean_KD)[0]
        count_K = torch.bincount(number_M, minlength=codes).to(vector_MD)
        total_KD = torch.zeros_like(mean_KD).index_add_(0, number_M, vector_MD)
        mean_KD = torch.where(count_K[:, None] > 0, total_KD / count_K[:, None].clamp(min=1), mean_KD)
    return mean_KD
