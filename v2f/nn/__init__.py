"""Networks in plain PyTorch. They depend on tensors only, not on batches, losses, files or ranks."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

EPS = 1e-10
BOX = (35, 223, 32, 220)  # pSp's face box in a picture of 256 px: rows from, to, columns from, to


def freeze(module: M) -> M:
    """Put ``module`` in eval mode permanently, without gradients for its parameters; they still pass through it."""
    module.eval().requires_grad_(False)
    module.train = _stay  # type: ignore[method-assign, assignment]
    return module


def _stay(mode: bool = True) -> None:
    """A frozen module's ``train``: does nothing, also when called through a parent module."""


def float32_products(tf32: bool) -> None:
    """Set whether GPUs round the inputs of float32 products to TF32's 10 bits of mantissa, for this process.

    By default torch rounds those of convolutions but not those of matrix products; a CPU never rounds.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has bfloat16 instructions; a CPU without them is many times slower than with float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def at_least_float32(x: Tensor) -> Tensor:
    """``x``, converted to float32 if its dtype is narrower, as under autocast: for norms, means and distances."""
    return x.float() if x.dtype.itemsize < 4 else x


def face_box(img_BCHW: Tensor, box: tuple[float, float, float, float] = BOX) -> Tensor:
    """pSp's face box, for the cropped losses: rows 35:223, columns 32:220 of 256, scaled to the picture's size. Or
    another ``box`` in the order of :data:`BOX`."""
    height, width = img_BCHW.shape[-2:]
    top, bottom = (int(edge * height / 256 + 0.5) for edge in box[:2])
    left, right = (int(edge * width / 256 + 0.5) for edge in box[2:])
    return img_BCHW[..., top:bottom, left:right]


def upsample_add(x_BCHW: Tensor, deeper_BChw: Tensor) -> Tensor:
    """``x`` plus the deeper map, resized bilinearly with aligned corners, as in pSp's pyramid."""
    return x_BCHW + F.interpolate(deeper_BChw, size=x_BCHW.shape[2:], mode="bilinear", align_corners=True)


def feature_distance(
    features: Sequence[Tensor], others: Sequence[Tensor], weights: Sequence[Tensor] | None = None
) -> Tensor:
    """LPIPS of two lists of feature maps [B,C,H,W]: [B] (Zhang et al. 2018, arXiv 1801.03924, eq. 1).

    ``sum_l mean_hw sum_c w_lc (f_lc - g_lc)^2``, with every feature vector over the channels scaled to length one.
    ``weights``: w_l [C] >= 0 of each layer, multiplied with the square as the published weights are; None: all ones.
    Epsilon is inside the square root, so that a feature of zeros has a gradient.
    """
    total: Tensor | None = None
    for layer, (f, g) in enumerate(zip(features, others, strict=True)):
        square_BCHW = (_unit(f) - _unit(g)).square()
        if weights is not None:
            square_BCHW = square_BCHW * weights[layer][:, None, None]
        distance_B = square_BCHW.sum(dim=1).mean(dim=(1, 2))
        total = distance_B if total is None else total + distance_B
    assert total is not None, "a distance needs at least one layer"
    return total


def perceptual_distance(
    net: Callable[[Tensor], Sequence[Tensor]],
    output_B3HW: Tensor,
    reference_B3HW: Tensor,
    weights: Sequence[Tensor] | None = None,
) -> Tensor:
    """:func:`feature_distance` of two pictures in ``net``'s maps: [B]; a gradient flows to the output only."""
    with torch.no_grad():
        target = net(reference_B3HW)
    return feature_distance(net(output_B3HW), target, weights)


def _unit(x_BCHW: Tensor) -> Tensor:
    x_BCHW = at_least_float32(x_BCHW)
    return x_BCHW * torch.rsqrt(x_BCHW.square().sum(dim=1, keepdim=True) + EPS)
