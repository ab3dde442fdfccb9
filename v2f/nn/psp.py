"""pSp: a picture of a face -> styles -> the picture that StyleGAN2 generates from them. Written from the paper.

    picture [B,3,256,256] -> IR-SE50's units -> maps at 64, 32 and 16 px -> a small net for each style -> offsets
    offsets + mean styles -> w+ [B,L,512] -> StyleGAN2 -> picture [B,3,256,256]

Richardson et al. 2021, "Encoding in Style" (arXiv 2008.00951, section 3 and figure 2). A ``state_dict`` of
:class:`PSP` has the keys and shapes of the authors' files (``encoder.*``, ``decoder.*``).

Letters: B batch, C channels, H/W pixels, L styles, D style width.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2f.nn import at_least_float32, upsample_add
from v2f.nn.irse import STAGES, IRSE50Trunk
from v2f.nn.stylegan2 import EqualLinear, Generator

SIDE = 256  # pixels of the picture that the encoder takes
WIDTH = 512  # of the laterals and of a style
TAPS = (6, 20, 23)  # the last units that see 64, 32 and 16 px
COARSE, MIDDLE = 3, 7  # styles below COARSE read the map of 16 px, those below MIDDLE that of 32 px, the rest 64 px
SLOPE = 0.01  # of the leaky ReLU


class Map2Style(nn.Module):
    """One style from one square map [B,512,S,S]: halved down to one pixel, then a linear layer: [B,512]."""

    def __init__(self, side: int) -> None:
        super().__init__()
        halving = partial(nn.Conv2d, WIDTH, WIDTH, 3, stride=2, padding=1)
        layers: list[nn.Module] = []
        for _ in range(int(math.log2(side))):
            layers += [halving(), nn.LeakyReLU(SLOPE)]
        self.convs = nn.Sequential(*layers)
        self.linear = EqualLinear(WIDTH, WIDTH)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        style_BD: Tensor = self.linear(self.convs(x_BCHW).flatten(1))
        return style_BD


class GradualStyleEncoder(IRSE50Trunk):
    """Picture [B,3,256,256] in [-1,1] -> offsets of the styles from the mean style, [B,L,512] in float32.

    267,136,704 parameters and 621 keys at 18 styles (a generator of 1024 px).
    """

    def __init__(self, n_styles: int = 18) -> None:
        super().__init__()
        sides = [SIDE // 16] * COARSE + [SIDE // 8] * (MIDDLE - COARSE) + [SIDE // 4] * (n_styles - MIDDLE)
        self.styles = nn.ModuleList(Map2Style(side) for side in sides[:n_styles])
        self.latlayer1 = nn.Conv2d(STAGES[2][0], WIDTH, 1)
        self.latlayer2 = nn.Conv2d(STAGES[1][0], WIDTH, 1)

    def forward(self, img_B3HW: Tensor) -> Tensor:
        shallow, middle, deep = self.maps(img_B3HW, TAPS)
        middle = upsample_add(self.latlayer1(middle), deep)
        shallow = upsample_add(self.latlayer2(shallow), middle)
        styles = [
            style(deep if i < COARSE else middle if i < MIDDLE else shallow) for i, style in enumerate(self.styles)
        ]
        return at_least_float32(torch.stack(styles, dim=1))


class PSP(nn.Module):
    """Encoder, decoder and the mean styles [L,512], outside the ``state_dict`` as in the authors' files."""

    latent_avg: Tensor

    def __init__(self, encoder: nn.Module, decoder: Generator, latent_avg_LD: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.register_buffer("latent_avg", latent_avg_LD, persistent=False)

    def codes(self, img_B3HW: Tensor) -> Tensor:
        """w+ [B,L,D] of pictures [B,3,H,W] in [-1,1], which are resized to 256 px first."""
        return _codes(self.encoder, self.latent_avg, img_B3HW)

    def pictures(self, w_BLD: Tensor, size: int = SIDE) -> Tensor:
        """The generator's pictures of w+ [B,L,D] with its fixed noise, average-pooled: [B,3,size,size], not clipped."""
        return F.adaptive_avg_pool2d(self.decoder.synthesis(w_BLD), size)

    def forward(self, img_B3HW: Tensor) -> Tensor:
        """Pictures encoded and generated again: [B,3,H,W] -> [B,3,256,256]."""
        return self.pictures(self.codes(img_B3HW))


class PSPCodeEncoder(nn.Module):
    """A pSp without its decoder: [B,3,H,W] -> w+ [B,L,D], as :meth:`PSP.codes`."""

    latent_avg: Tensor

    def __init__(self, psp: PSP) -> None:
        super().__init__()
        self.encoder = psp.encoder
        self.register_buffer("latent_avg", psp.latent_avg, persistent=False)
        self.n_styles, self.style_dim = psp.latent_avg.shape

    def forward(self, img_B3HW: Tensor) -> Tensor:
        return _codes(self.encoder, self.latent_avg, img_B3HW)


def _codes(encoder: nn.Module, latent_avg_LD: Tensor, img_B3HW: Tensor) -> Tensor:
    if min(img_B3HW.shape[-2:]) >= SIDE:
        img_B3HW = F.adaptive_avg_pool2d(img_B3HW, SIDE)  # averages over all pixels; no change at 256 px
    else:
        img_B3HW = F.interpolate(img_B3HW, (SIDE, SIDE), mode="bilinear")
    w_BLD: Tensor = encoder(img_B3HW) + latent_avg_LD
    return w_BLD
