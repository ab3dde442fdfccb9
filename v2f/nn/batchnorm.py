"""Ghost batch norm: statistics over fixed groups of consecutive samples, committed once per step.

Batch norm couples the samples of a batch, so its result would depend on how a global batch is split into ranks and
micro-batches. Here the statistics cover fixed groups of ``group`` consecutive batch entries (Hoffer, Hubara, Soudry
2017, arXiv 1705.08741, algorithm 1), so any split between groups gives the same outputs and gradients.

The same holds for the running statistics (:mod:`v2f.nn.statistics`): a forward pass in training only *collects* the
mean and variance of each group; the step commits their mean over all micro-batches and ranks once.

Letters: B batch, G groups, C channels.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2f.errors import V2FError
from v2f.nn.groups import Grouped
from v2f.nn.statistics import KeepsStatistics


class GhostBatchNorm(Grouped, KeepsStatistics):
    """Batch norm of [B,C,...] (any number of axes behind C) over groups of ``group`` samples.

    In training ``B`` must be a multiple of ``group``, else :class:`V2FError`. Evaluation uses the running statistics.
    They stay in float32 (or float64) when the module is cast to half precision, as do the sums of a forward pass under
    autocast. Parameters and buffers are named as in ``torch.nn.BatchNorm1d``, without ``num_batches_tracked``.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, group: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        if group < 1:
            raise V2FError(f"batch norm: bn_group is {group}; set it to at least one")
        self.channels = channels
        self.group = group
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self._sums: Tensor | None = None  # [2,C]: of the group means and of the group variances
        self._count = 0

    def extra_repr(self) -> str:
        return f"{self.channels}, group={self.group}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GhostBatchNorm":
        before = self.running_mean, self.running_var
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.running_mean.dtype in (torch.float16, torch.bfloat16):
            self.running_mean, self.running_var = (old.to(self.running_mean.device) for old in before)
        return self

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(self.running_mean.dtype)
        bias = self.bias.to(self.running_mean.dtype)
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, False, 0.0, self.eps)
        if len(x) % self.group or len(x) == 0:
            raise V2FError(
                f"batch norm covers groups of {self.group} samples, this batch has {len(x)}: "
                f"set the batch size of each rank and micro-batch to a multiple of bn_group"
            )
        values = self.group * x[0, 0].numel()  # in each mean
        if values < 2:
            raise V2FError(
                "batch norm has only one value per channel, so no variance: use longer clips or a larger bn_group"
            )
        parts = [
            torch.native_batch_norm(chunk, weight, bias, None, None, True, 0.0, self.eps)
            for chunk in x.split(self.group)
        ]
        if self.collecting:
            self._collect(parts, values)
        return parts[0][0] if len(parts) == 1 else torch.cat([part[0] for part in parts])

    def _collect(self, parts: list[Any], values: int) -> None:
        with torch.no_grad():
            mean_GC = torch.stack([part[1] for part in parts])
            invstd_GC = torch.stack([part[2] for part in parts])
            var_GC = (invstd_GC.square().reciprocal() - self.eps).clamp_(min=0)
            sums = torch.stack([mean_GC.sum(dim=0), var_GC.sum(dim=0) * (values / (values - 1))])
        self._sums = sums if self._sums is None else self._sums + sums
        self._count += len(parts)

    def collected(self) -> tuple[Tensor, Tensor, int]:
        """Since the last commit: the sums of the group means [C] and of the unbiased group variances [C], and G."""
        if self._sums is None:
            zeros = torch.zeros_like(self.running_mean)
            return zeros, zeros, 0
        return self._sums[0], self._sums[1], self._count

    def sums(self) -> Tensor:
        """The sum of means [C], the sum of variances [C], the number of groups [1]."""
        mean_C, var_C, count = self.collected()
        return torch.cat([mean_C.double(), var_C.double(), mean_C.new_tensor([count], dtype=torch.float64)])

    @torch.no_grad()
    def commit(self, sums: Tensor) -> None:
        """Move the running statistics towards the step's mean and variance; unchanged if there was no group."""
        mean_C, var_C, count = sums.split([self.channels, self.channels, 1])
        if count.item() > 0:
            self.running_mean.lerp_((mean_C / count).to(self.running_mean), self.momentum)
            self.running_var.lerp_((var_C / count).to(self.running_var), self.momentum)
        self.discard()

    def discard(self) -> None:
        self._sums = None
        self._count = 0


def ghost_norms(module: nn.Module) -> list[GhostBatchNorm]:
    """The ghost norms of a module tree, without duplicates, in the order of definition (the same on every rank)."""
    return [m for m in module.modules() if isinstance(m, GhostBatchNorm)]
