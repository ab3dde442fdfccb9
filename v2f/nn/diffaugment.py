"""DiffAugment: differentiable augmentation of all pictures that a discriminator sees, real and generated ones.

    pictures [B,C,H,H], uniform numbers [B,7] -> color -> translation -> cutout -> pictures [B,C,H,H]

Zhao, Liu, Lin, Zhu, Han 2020, "Differentiable augmentation for data-efficient GAN training" (arXiv 2006.10738, eq. 4 to
6, section 3.2). Because the generator's gradient passes through it, the generator learns pictures that look real after
augmentation, not augmented pictures. The ranges are those of section 4 and the authors' program. All numbers come from
the batch (:class:`v2f.data.transforms.UniformVector`), so that they belong to the slot.

Letters: B batch, C channels, H side of the picture.
"""

from collections.abc import Collection
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Policy = Literal["color", "translation", "cutout"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
NUMBERS = 7  # uniform numbers of a picture; each has its own meaning, whatever is chosen

_BRIGHTNESS = 0.5  # most that is added or subtracted
_SATURATION = 1.0  # factor 0 to 2
_CONTRAST = 0.5  # factor 0.5 to 1.5
_SHIFT = 1 / 8  # of the side
_CUT = 1 / 2  # of the side


def diffaugment(img_BCHH: Tensor, uniform_BN: Tensor, policies: Collection[Policy]) -> Tensor:
    """Pictures in [-1, 1], augmented; ``uniform_BN``: :data:`NUMBERS` numbers in [0, 1) for each picture.

    Policies apply in a fixed order; without any, the result is ``img_BCHH`` itself. Colors may leave [-1, 1], and what
    translation and cutout empty is 0, a mean gray.
    """
    if "color" in policies:
        img_BCHH = color(img_BCHH, uniform_BN[:, 0], uniform_BN[:, 1], uniform_BN[:, 2])
    if "translation" in policies:
        img_BCHH = translation(img_BCHH, uniform_BN[:, 3], uniform_BN[:, 4])
    if "cutout" in policies:
        img_BCHH = cutout(img_BCHH, uniform_BN[:, 5], uniform_BN[:, 6])
    return img_BCHH


def color(img_BCHH: Tensor, brightness_B: Tensor, saturation_B: Tensor, contrast_B: Tensor) -> Tensor:
    """Brightness, saturation around the mean of the channels, contrast around the mean of the picture.

    A picture of one channel has no saturation: it is its own mean.
    """
    img_BCHH = img_BCHH + _around(0, _BRIGHTNESS, brightness_B)
    if img_BCHH.shape[1] > 1:
        gray_B1HH = img_BCHH.mean(1, keepdim=True)
        img_BCHH = gray_B1HH + _around(1, _SATURATION, saturation_B) * (img_BCHH - gray_B1HH)
    mean_B111 = img_BCHH.mean((1, 2, 3), keepdim=True)
    return mean_B111 + _around(1, _CONTRAST, contrast_B) * (img_BCHH - mean_B111)


def translation(img_BCHH: Tensor, down_B: Tensor, right_B: Tensor) -> Tensor:
    """Shifted by whole pixels, at most an eighth of the side in each direction."""
    _, channels, side, _ = img_BCHH.shape
    most = round(_SHIFT * side)
    padded = F.pad(img_BCHH, [most] * 4)
    places_H = torch.arange(side, device=img_BCHH.device)
    row_BH, column_BH = (_whole(uniform_B, 2 * most + 1) + places_H for uniform_B in (down_B, right_B))
    padded = padded.gather(2, row_BH[:, None, :, None].expand(-1, channels, -1, padded.shape[3]))
    return padded.gather(3, column_BH[:, None, None, :].expand(-1, channels, side, -1))


def cutout(img_BCHH: Tensor, row_B: Tensor, column_B: Tensor) -> Tensor:
    """A square of half the side is set to 0; its center is anywhere in the picture, so it may be cut off at an edge."""
    side = img_BCHH.shape[2]
    length = round(_CUT * side)
    places_H = torch.arange(side, device=img_BCHH.device)
    starts = (_whole(uniform_B, side + 1 - length % 2) - length // 2 for uniform_B in (row_B, column_B))
    row_BH, column_BH = ((places_H >= start_B1) & (places_H < start_B1 + length) for start_B1 in starts)
    return img_BCHH.masked_fill((row_BH[:, :, None] & column_BH[:, None, :])[:, None], 0.0)


def _around(middle: float, most: float, uniform_B: Tensor) -> Tensor:
    """Numbers [B,1,1,1] from ``middle - most`` to ``middle + most``."""
    return (middle + most * (2 * uniform_B - 1))[:, None, None, None]


def _whole(uniform_B: Tensor, count: int) -> Tensor:
    """Whole numbers [B,1] from 0 to ``count - 1``."""
    return (uniform_B.double() * count).long()[:, None]
