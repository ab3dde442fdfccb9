"""Variational autoencoders: their two loss terms, one value per sample, and the draw of a code.

Kingma and Welling 2014, "Auto-encoding variational Bayes" (arXiv 1312.6114). The encoder gives the mean and the
log-variance of a Gaussian over codes, the prior is N(0, 1).

Letters: B batch, Z width of a code.
"""

import torch
from torch import Tensor

from v2f.nn import at_least_float32


def reparametrized(mean_BZ: Tensor, log_variance_BZ: Tensor, noise_BZ: Tensor) -> Tensor:
    """A draw from N(mean, variance), differentiable in both: ``mean + std * noise``, the noise from N(0, 1) (section
    2.4)."""
    return mean_BZ + torch.exp(0.5 * log_variance_BZ) * noise_BZ


def kl_to_normal(mean_BZ: Tensor, log_variance_BZ: Tensor) -> Tensor:
    """``KL(N(mean, variance), N(0, 1)) = 1/2 sum (mean^2 + variance - 1 - ln variance)`` in nats (appendix B): [B]."""
    mean_BZ, log_variance_BZ = at_least_float32(mean_BZ), at_least_float32(log_variance_BZ)
    return 0.5 * (mean_BZ.square() + log_variance_BZ.exp() - 1 - log_variance_BZ).sum(dim=1)


def unlikeness(output: Tensor, reference: Tensor) -> Tensor:
    """``1/2 sum (y^ - y)^2``, minus the log-likelihood of the reference under N(output, 1) but for a constant
    (appendix C.2): [B,...] twice -> [B]; a gradient flows to the output only."""
    apart = at_least_float32(output) - at_least_float32(reference.detach())
    return 0.5 * apart.flatten(1).square().sum(dim=1)
