"""The losses of S1, each with its equation; every function gives one value a sample, [B].

The system weights them, ``sum(weight * loss) / B``, so that a quarantined sample can be left out. ``y`` is the
reference, ``y^`` the output; a gradient flows to the output only. The cropped losses are these of two face boxes
(:func:`v2f.nn.face_box`). Sources: *Voice Styled Face* (a master's thesis, 2022) for the list, pSp (Richardson et al.
2021, arXiv 2008.00951, section 3.2 and its code) for what it leaves open.

Letters: B batch, C channels, H/W pixels, L styles, D style width, E embedding.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from v2f.nn import widened

Embedder = Callable[[Tensor], Tensor]


class Perceptual(Protocol):
    """A frozen net that says how far pictures are apart: :class:`v2f.nn.frozen.LPIPS`, or its stand-in."""

    def distance(self, output_B3HW: Tensor, reference_B3HW: Tensor, /) -> Tensor: ...


def _mean(x: Tensor) -> Tensor:
    return widened(x).flatten(1).mean(dim=1)


def mse(output: Tensor, reference: Tensor) -> Tensor:
    """``mean (y^ - y)^2`` over channels and pixels: [B,C,H,W] twice -> [B]."""
    return _mean((output - reference.detach()).square())


def l1(output: Tensor, reference: Tensor) -> Tensor:
    """``mean |y^ - y|`` over channels and pixels: [B,C,H,W] twice -> [B]."""
    return _mean((output - reference.detach()).abs())


def perceptual(net: Perceptual, output: Tensor, reference: Tensor) -> Tensor:
    """LPIPS, ``sum_l mean_hw |w_l (f_l(y^) - f_l(y))|^2`` over the layers of ``net``: pictures [B,3,H,W] -> [B].

    ``f_l``: the map of layer l, each of its vectors of length one over the channels; ``w_l``: a weight a channel. See
    :func:`v2f.nn.feature_distance`, whose weights are the squares of these.
    """
    return net.distance(output, reference.detach())


def identity(net: Embedder, output: Tensor, reference_BE: Tensor) -> Tensor:
    """``1 - cos(R(y^), R(y))`` with a frozen identity net R: pictures [B,3,H,W] and embeddings R(y) [B,E] -> [B] in
    [0,2].

    R crops and pools as it needs; pSp's, IR-SE50, sees the face box at 112 px (:class:`v2f.nn.frozen.FaceIdentity`).
    """
    return 1 - torch.cosine_similarity(net(output), reference_BE.detach(), dim=1)


def w_norm(w_BLD: Tensor, mean_w: Tensor) -> Tensor:
    """``||w+ - mean w||_F`` over L x D, not squared (pSp's regularisation, eq. 4): [B,L,D] and [D] or [L,D] -> [B]."""
    return torch.linalg.vector_norm(widened(w_BLD - mean_w), dim=(1, 2))


def style(w_BLD: Tensor, codes_BLD: Tensor) -> Tensor:
    """``mean (w+ - codes)^2`` to the codes that an encoder of pictures gives the reference: [B,L,D] twice -> [B]."""
    return _mean((w_BLD - codes_BLD.detach()).square())
