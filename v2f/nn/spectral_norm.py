"""Spectral norm: layers whose weight has the largest singular value 1, estimated by one power iteration a step.

    weight W [O,I], vector v [I] -> sigma = |W v| -> the layer computes with W / sigma

Miyato, Kataoka, Koyama, Yoshida 2018, "Spectral normalization for generative adversarial networks" (arXiv 1802.05957,
algorithm 1). Elsewhere every forward pass in training iterates, so sigma depends on how often a step calls the net.
Here a forward pass only reads ``v``. It iterates when the step is committed (:mod:`v2f.nn.statistics`), after the
update of the weight, which is then the same on all ranks: so micro-batches, ranks, recomputation and validation change
nothing, and a skipped step leaves ``v`` as it is.

The paper's ``u`` is ``W v / |W v|``, so its ``u^T W v`` is ``|W v|``, and so is its gradient, which regards ``u`` and
``v`` as constants (eq. 12): ``u`` need not be kept.

Letters: O outputs, I all other axes of the weight.
"""

import abc
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2f.nn.statistics import KeepsStatistics

_EPS = 1e-12
_START = 15  # iterations of a new weight, as in torch.nn.utils.parametrizations.spectral_norm


class SpectralNorm(KeepsStatistics):
    """What such layers have in common; ``v`` is a buffer beside the layer's own ``weight`` and ``bias``.

    Sigma is computed in float32 (or float64), also under autocast.
    """

    weight: Tensor
    v: Tensor

    def _begin(self) -> None:
        """Draw ``v``; called at the end of the constructor."""
        self.register_buffer("v", torch.randn(self.weight[0].numel()))
        self.iterate(_START)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SpectralNorm":
        before = self.v
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.v.dtype in (torch.float16, torch.bfloat16):
            self.v = before.to(self.v.device)
        return self

    @property
    def sigma(self) -> Tensor:
        """The estimate of the largest singular value, never above it: a scalar with a gradient to the weight."""
        with torch.autocast(self.weight.device.type, enabled=False):
            # a copy, because a commit changes v in place
            return torch.mv(self.weight.flatten(1).to(self.v.dtype), self.v.clone()).norm().clamp_min(_EPS)

    def normalized(self) -> Tensor:
        """The weight divided by :attr:`sigma`."""
        return self.weight / self.sigma

    @torch.no_grad()
    def iterate(self, times: int = 1) -> None:
        """Power iterations for the weight as it is."""
        weight_OI = self.weight.flatten(1).to(self.v.dtype)
        for _ in range(times):
            self.v.copy_(F.normalize(torch.mv(weight_OI.t(), torch.mv(weight_OI, self.v)), dim=0, eps=_EPS))

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The layer with the normalized weight."""

    def sums(self) -> Tensor:
        """Empty: the iteration depends on the weight alone."""
        return self.v.new_empty(0, dtype=torch.float64)

    def commit(self, sums: Tensor) -> None:
        self.iterate()

    def discard(self) -> None:
        """Nothing was collected."""


class SpectralConv2d(SpectralNorm, nn.Conv2d):
    """``torch.nn.Conv2d`` with the normalized weight; the weight is the matrix [O, I x kernel x kernel]."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int, padding: int, bias: bool) -> None:
        nn.Conv2d.__init__(self, inputs, outputs, kernel, stride=stride, padding=padding, bias=bias)
        self._begin()

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.normalized(), self.bias)


class SpectralLinear(SpectralNorm, nn.Linear):
    """``torch.nn.Linear`` with the normalized weight."""

    def __init__(self, inputs: int, outputs: int) -> None:
        nn.Linear.__init__(self, inputs, outputs)
        self._begin()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.normalized(), self.bias)


def restart(net: nn.Module) -> None:
    """Let the vectors of a net's layers follow weights that were initialized anew."""
    for module in net.modules():
        if isinstance(module, SpectralNorm):
            module.iterate(_START)
