"""Whitened principal components of vectors, fitted once to the first vectors that training sees.

    vector [B,X] -> minus the mean, onto K directions, each by its standard deviation -> [B,K], and back

Letters: B batch, X width of a vector, K components, N vectors that are fitted to.
"""

import torch
from torch import Tensor

from v2f.errors import V2FError
from v2f.nn.speaker_head import in_float32
from v2f.nn.statistics import KeepsStatistics, Turn

_LEAST = 1e-4  # of the first component's deviation: one below it is noise of the numbers' precision


class Components(KeepsStatistics):
    """The K directions of the largest variance among the first N vectors, and the mean and deviation along each.

    The forward pass in training keeps vectors, quarantined ones (weight 0) left out, until there are N; the commit of
    that step fits. Vectors of other ranks are added as they are, each to zeros, so the fit is the same to the bit for
    any number of ranks and micro-batches, and never changes again. Until then the directions are random ones, with a
    mean of 0 and a deviation of 1. All of it is in buffers, and so in checkpoints.
    """

    mean_X: Tensor
    basis_KX: Tensor
    scale_K: Tensor
    kept_NX: Tensor
    count: Tensor

    def __init__(self, width: int, components: int, fit: int) -> None:
        """V2FError if ``fit`` vectors (N) cannot have so many components."""
        super().__init__()
        if not components <= min(width, fit - 1):
            raise V2FError(
                f"{components} components of vectors of {width} numbers need fit to be at least {components + 1} and "
                f"components at most {width}; fit is {fit}"
            )
        basis_XK, _ = torch.linalg.qr(torch.randn(width, components))
        self.register_buffer("mean_X", torch.zeros(width))
        self.register_buffer("basis_KX", basis_XK.T.contiguous())
        self.register_buffer("scale_K", torch.ones(components))
        self.register_buffer("kept_NX", torch.zeros(fit, width))
        self.register_buffer("count", torch.tensor(0))
        self._first = self._slots = 0
        self._found: Tensor | None = None  # [slots,1+X]: 1 and the vector of each slot of the global batch, or zeros

    @property
    def missing(self) -> int:
        """How many vectors are still to come before the fit; 0: it is fitted."""
        return len(self.kept_NX) - int(self.count)

    def begin(self, turn: Turn) -> None:
        self._first, self._slots = turn.slot, turn.slots

    def forward(self, vector_BX: Tensor, slot_B: Tensor, weight_B: Tensor) -> Tensor:
        """The components [B,K] of vectors, by the fit that the step began with."""
        if self.collecting and self.missing:
            if self._found is None:
                self._found = self._nothing()
            rows = (slot_B - self._first).to(self._found.device)
            self._found[rows, 0] = (weight_B != 0).to(self._found)
            self._found[rows, 1:] = vector_BX.detach().to(self._found) * self._found[rows, :1]
        return self.down(vector_BX)

    def down(self, vector_BX: Tensor) -> Tensor:
        """Vectors [B,X] -> components [B,K]."""
        with in_float32(vector_BX):
            return (vector_BX - self.mean_X) @ self.basis_KX.T / self.scale_K

    def up(self, x_BK: Tensor) -> Tensor:
        """Components [B,K] -> the vectors [B,X] that have them, and are the mean along all other directions."""
        with in_float32(x_BK):
            return self.mean_X + (x_BK * self.scale_K) @ self.basis_KX

    def sums(self) -> Tensor:
        if not self.missing:
            return torch.zeros(0, dtype=torch.float64, device=self.mean_X.device)
        return (self._nothing() if self._found is None else self._found).flatten()

    @torch.no_grad()
    def commit(self, sums: Tensor) -> None:
        """Keep the step's vectors in the order of their slots, and fit if there are enough."""
        if self.missing:
            found = sums.view(-1, 1 + len(self.mean_X))
            vectors = found[found[:, 0] > 0, 1:][: self.missing]
            before = int(self.count)
            self.kept_NX[before : before + len(vectors)] = vectors.to(self.kept_NX)
            self.count += len(vectors)
            if not self.missing:
                self._fit()
        self.discard()

    def discard(self) -> None:
        self._found = None

    def _fit(self) -> None:
        """Singular value decomposition, on the CPU in float64: the same on all ranks. The largest number of each
        direction is positive."""
        kept_NX = self.kept_NX.cpu().double()
        mean_X = kept_NX.mean(dim=0)
        _, value_M, direction_MX = torch.linalg.svd(kept_NX - mean_X, full_matrices=False)
        basis_KX = direction_MX[: len(self.scale_K)]
        largest_K1 = basis_KX.gather(1, basis_KX.abs().argmax(dim=1, keepdim=True))
        scale_K = value_M[: len(self.scale_K)] / (len(kept_NX) - 1) ** 0.5
        self.mean_X.copy_(mean_X)
        self.basis_KX.copy_(basis_KX * largest_K1.sign())
        self.scale_K.copy_(scale_K.clamp(min=_LEAST * float(scale_K[0]) or 1.0))

    def _nothing(self) -> Tensor:
        width = 1 + len(self.mean_X)
        return torch.zeros(self._slots, width, dtype=torch.float64, device=self.mean_X.device)
