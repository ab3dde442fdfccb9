"""The losses of the voice-styled-face system, each with its equation; every function returns one value per sample, [B].

The system weights them, ``sum(weight * loss) / B``, so that quarantined samples can be excluded. ``y`` is the
reference, ``y^`` the output; gradients flow to the output only. The cropped losses apply these functions to face boxes
(:func:`v2f.nn.face_box`). Sources: *Voice Styled Face* (a master's thesis, 2022) for the list, pSp (Richardson et al.
2021, arXiv 2008.00951, section 3.2 and its code) for details that the thesis omits.

Letters: B batch, C channels, H/W pixels, L styles, D style width, E embedding.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from v2f.nn import at_least_float32

Embedder = Callable[[Tensor], Tensor]


class Perceptual(Protocol):
    """A frozen net that measures the distance of pictures: :class:`v2f.nn.frozen.LPIPS`, or its stand-in."""

    def distance(self, output_B3HW: Tensor, reference_B3HW: Tensor, /) -> Tensor: ...


def _mean(x: Tensor) -> Tensor:
    return at_least_float32(x).flatten(1).mean(dim=1)


def mse(output: Tensor, reference: Tensor) -> Tensor:
    """``mean (y^ - y)^2`` over channels and pixels: [B,C,H,W] twice -> [B]."""
    return _mean((output - reference.detach()).square())


def l1(output: Tensor, reference: Tensor) -> Tensor:
    """``mean |y^ - y|`` over channels and pixels: [B,C,H,W] twice -> [B]."""
    return _mean((output - reference.detach()).abs())


def perceptual(net: Perceptual, output: Tensor, reference: Tensor) -> Tensor:
    """LPIPS, ``sum_l mean_hw |w_l (f_l(y^) - f_l(y))|^2`` over the layers of ``net``: pictures [B,3,H,W] -> [B].

    ``f_l``: the map of layer l, with every vector over the channels scaled to length one; ``w_l``: one weight per
    channel. See :func:`v2f.nn.feature_distance`, whose weights are the squares of these.
    """
    return net.distance(output, reference.detach())


def identity(net: Embedder, output: Tensor, reference_BE: Tensor) -> Tensor:
    """``1 - cos(R(y^), R(y))`` with a frozen identity net R: pictures [B,3,H,W] and embeddings R(y) [B,E] -> [B] in
    [0,2].

    R does its own cropping and pooling; pSp's net, IR-SE50, sees the face box at 112 px
    (:class:`v2f.nn.frozen.FaceIdentity`).
    """
    return 1 - torch.cosine_similarity(net(output), reference_BE.detach(), dim=1)


def w_norm(w_BLD: Tensor, mean_w: Tensor) -> Tensor:
    """``||w+ - mean w||_F`` over L x D, not squared (pSp's regularization, eq. 4): [B,L,D] and [D] or [L,D] -> [B]."""
    return torch.linalg.vector_norm(at_least_float32(w_BLD - mean_w), dim=(1, 2))


def style(w_BLD: Tensor, codes_BLD: Tensor) -> Tensor:
    """``mean (w+ - codes)^2``, where a picture encoder computed the codes of the reference: [B,L,D] twice -> [B]."""
    return _mean((w_BLD - codes_BLD.detach()).square())
