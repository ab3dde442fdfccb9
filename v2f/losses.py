"""The losses of S1, each with its equation; every function gives one value a sample, [B].

The system weights them, ``sum(weight * loss) / B``, so that a quarantined sample can be left out. ``y`` is the
reference, ``y^`` the output; a gradient flows to the output only. Sources: *Voice Styled Face* (a master's thesis,
2022) for the list, pSp (Richardson et al. 2021, arXiv 2008.00951, section 3.2 and its code) for what it leaves open.

Letters: B batch, C channels, H/W pixels, L styles, D style width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from v2f.nn import feature_distance, widened

Features = Callable[[Tensor], Sequence[Tensor]]
Embedder = Callable[[Tensor], Tensor]

BOX = (35, 223, 32, 220)  # pSp's face box in a picture of 256 px: rows from, to, columns from, to


def _mean(x: Tensor) -> Tensor:
    return widened(x).flatten(1).mean(dim=1)


def mse(output: Tensor, reference: Tensor) -> Tensor:
    """``mean (y^ - y)^2`` over channels and pixels: [B,C,H,W] twice -> [B]."""
    return _mean((output - reference.detach()).square())


def l1(output: Tensor, reference: Tensor) -> Tensor:
    """``mean |y^ - y|`` over channels and pixels: [B,C,H,W] twice -> [B]."""
    return _mean((output - reference.detach()).abs())


def perceptual(net: Features, output: Tensor, reference: Tensor) -> Tensor:
    """:func:`v2f.nn.feature_distance` of two pictures in the feature maps of ``net``: pictures [B,3,H,W] -> [B]."""
    with torch.no_grad():
        target = net(reference.detach())
    return feature_distance(net(output), target)


def identity(net: Embedder, output: Tensor, reference: Tensor) -> Tensor:
    """``1 - cos(R(y^), R(y))`` with a frozen identity net R: pictures -> [B] in [0,2]."""
    with torch.no_grad():
        target = net(reference)
    return 1 - torch.cosine_similarity(net(output), target, dim=1)


def w_norm(w_BLD: Tensor, mean_w: Tensor) -> Tensor:
    """``||w+ - mean w||_F`` over L x D, not squared (pSp's regularisation, eq. 4): [B,L,D] and [D] or [L,D] -> [B]."""
    return torch.linalg.vector_norm(w_BLD - mean_w, dim=(1, 2))


def style(w_BLD: Tensor, codes_BLD: Tensor) -> Tensor:
    """``mean (w+ - codes)^2`` to the codes that an encoder of pictures gives the reference: [B,L,D] twice -> [B]."""
    return _mean((w_BLD - codes_BLD.detach()).square())


def face_box(img_BCHW: Tensor) -> Tensor:
    """pSp's face box, for the cropped losses: rows 35:223, columns 32:220 of 256, scaled to the picture's size."""
    height, width = img_BCHW.shape[-2:]
    top, bottom = (int(edge * height / 256 + 0.5) for edge in BOX[:2])
    left, right = (int(edge * width / 256 + 0.5) for edge in BOX[2:])
    return img_BCHW[..., top:bottom, left:right]
