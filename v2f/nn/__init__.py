"""Networks in plain PyTorch: they know tensors, not batches, losses, files or ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor

EPS = 1e-10


def widened(x: Tensor) -> Tensor:
    """``x`` in float32 where it is narrower, as under autocast: for norms, means and distances."""
    return x.float() if x.dtype.itemsize < 4 else x


def feature_distance(features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """LPIPS with all channel weights at one, of two lists of feature maps [B,C,H,W]: [B].

    ``sum_l mean_hw sum_c (f_l - g_l)^2``, each feature vector of length one over the channels (Zhang et al. 2018,
    arXiv 1801.03924, eq. 1). Epsilon stands under the root, so that a feature of zeros has a gradient.
    """
    per_layer = [
        (_unit(f) - _unit(g)).square().sum(dim=1).mean(dim=(1, 2)) for f, g in zip(features, others, strict=True)
    ]
    return torch.stack(per_layer).sum(dim=0)


def _unit(x_BCHW: Tensor) -> Tensor:
    x_BCHW = widened(x_BCHW)
    return x_BCHW * torch.rsqrt(x_BCHW.square().sum(dim=1, keepdim=True) + EPS)
