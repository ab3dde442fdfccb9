"""The losses of a generator and a discriminator; every loss has one value per sample, [B].

D is the discriminator's probability that a picture is real, the sigmoid of its logit. Goodfellow et al. 2014 (arXiv
1406.2661): the discriminator maximizes ``log D(x) + log(1 - D(G(z)))`` (eq. 1), the generator maximizes ``log D(G(z))``
(non-saturating, section 3) or minimizes ``log(1 - D(G(z)))`` (minimax, eq. 1).

Letters: B batch, C channels, H side of a picture.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from v2f.nn import at_least_float32


def real(logit_B: Tensor, smooth: float = 0.0) -> Tensor:
    """The discriminator's cross-entropy of real pictures with the target ``1 - smooth``: ``- log D(x)`` at 0
    (one-sided label smoothing: Salimans et al. 2016, arXiv 1606.03498, section 3.4)."""
    logit_B = at_least_float32(logit_B)
    return F.softplus(-logit_B) + smooth * logit_B


def fake(logit_B: Tensor) -> Tensor:
    """The discriminator's cross-entropy of generated pictures: ``- log(1 - D(G(z)))``."""
    return F.softplus(at_least_float32(logit_B))


def deceive(logit_B: Tensor, saturating: bool = False) -> Tensor:
    """The generator's loss: ``- log D(G(z))``, or ``log(1 - D(G(z)))`` of the minimax game if ``saturating``."""
    logit_B = at_least_float32(logit_B)
    return -F.softplus(logit_B) if saturating else F.softplus(-logit_B)


def with_r1(discriminator: Callable[[Tensor], Tensor], img_BCHH: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of real pictures, and for each the squared norm of the logits' gradient at the picture.

    The gradient penalty R1 is gamma / 2 times the latter (Mescheder, Geiger, Nowozin 2018, arXiv 1801.04406, eq. 9).
    Where batch norm couples the pictures of a group, the gradient is that of the sum of their logits. Under
    ``torch.no_grad``, as in validation, the results are the same without a graph.
    """
    learns = torch.is_grad_enabled()
    with torch.enable_grad():
        img_BCHH = img_BCHH.detach().requires_grad_()
        logit_B = discriminator(img_BCHH)
        (gradient_BCHH,) = torch.autograd.grad(logit_B.sum(), img_BCHH, create_graph=learns)
        slope_B = at_least_float32(gradient_BCHH).flatten(1).square().sum(1)
    return (logit_B, slope_B) if learns else (logit_B.detach(), slope_B.detach())


def called_real(logit_B: Tensor) -> Tensor:
    """1 where the discriminator takes a picture for real, else 0."""
    return (logit_B > 0).to(at_least_float32(logit_B))


def least_loss(smooth: float) -> float:
    """The loss of a perfect discriminator, ``real + fake``: the entropy of the target ``1 - smooth``."""
    target = torch.tensor([smooth, 1 - smooth], dtype=torch.float64)
    return float(-torch.xlogy(target, target).sum())
