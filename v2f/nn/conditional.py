"""Networks of small pictures with a class as condition: encoder, decoder (or generator) and discriminator.

    picture [B,C,H,H], class -> convolutions, each halving the side -> linear -> mean and log-variance of a code [B,Z]
    code [B,Z], class -> two linear layers -> [B,D,S,S] -> transposed convolutions, each doubling the side -> picture
    picture [B,C,H,H], class -> convolutions, each halving the side -> linear -> hidden [B,E] -> logit [B]

They follow DCGAN (:mod:`v2f.nn.dcgan`), with kernels of 4 x 4, which cover every pixel equally often. The decoder gets
the class beside its code, as in Mirza and Osindero 2014 (arXiv 1411.1784), and in the scale and shift of its norms
(Dumoulin et al. 2017, arXiv 1610.07629, eq. 5). The encoder adds a vector of the class to its first map; inside a
picture, constant input channels of the class do the same. The discriminator sees the class only at its end, as an inner
product with the hidden features (Miyato and Koyama 2018, arXiv 1802.05637, eq. 3), so that the activations of its
layers, in which the cVAE-GAN compares pictures, are a function of the picture alone. First weights are PyTorch's, whose
size follows the width; DCGAN's are for wider nets.

Letters: B batch, C/D channels, Z code, K classes, E hidden, H side of the picture, S least side.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2f.nn.batchnorm import GhostBatchNorm
from v2f.nn.dcgan import SLOPE, doublings


class ConditionalNorm(nn.Module):
    """Batch norm whose scale and shift depend on the class: ``(1 + a_k) norm(x) + b_k``; a and b start from zero."""

    def __init__(self, channels: int, classes: int, bn_group: int) -> None:
        super().__init__()
        self.norm = GhostBatchNorm(channels, bn_group)
        self.scale_and_shift = nn.Embedding(classes, 2 * channels)
        nn.init.zeros_(self.scale_and_shift.weight)

    def forward(self, x_BCHH: Tensor, class_B: Tensor) -> Tensor:
        scale_BC, shift_BC = self.scale_and_shift(class_B).to(x_BCHH.dtype).chunk(2, dim=1)
        found: Tensor = self.norm(x_BCHH) * (1 + scale_BC[:, :, None, None]) + shift_BC[:, :, None, None]
        return found


class ConditionalDecoder(nn.Module):
    """Codes [B,Z] and classes [B] -> pictures [B,channels,size,size] in (-1,1). ``width``: channels of the last map."""

    def __init__(self, code: int, classes: int, size: int, channels: int, width: int, bn_group: int) -> None:
        super().__init__()
        steps = doublings(size)
        maps = [width * 2**n for n in reversed(range(steps + 1))]
        hidden = 2 * maps[0]
        self.classes, self.side = classes, size >> steps
        self.code = nn.Linear(code + classes, hidden)
        self.linear = nn.Linear(hidden, maps[0] * self.side**2, bias=False)
        self.norms = nn.ModuleList(ConditionalNorm(each, classes, bn_group) for each in maps)
        self.convs = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 4, stride=2, padding=1, bias=False) for i, o in pairwise(maps)
        )
        self.picture = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, code_BZ: Tensor, class_B: Tensor) -> Tensor:
        class_BK = F.one_hot(class_B, self.classes).to(code_BZ)
        hidden_BE = F.leaky_relu(self.code(torch.cat([code_BZ, class_BK], dim=1)), SLOPE)
        x = self.linear(hidden_BE).unflatten(1, (-1, self.side, self.side))
        x = F.leaky_relu(self.norms[0](x.contiguous(memory_format=torch.channels_last), class_B), SLOPE)
        for conv, norm in zip(self.convs, self.norms[1:], strict=True):
            x = F.leaky_relu(norm(conv(x), class_B), SLOPE)
        picture_BCHH: Tensor = self.picture(x)
        return picture_BCHH.tanh()


class ConditionalEncoder(nn.Module):
    """Pictures [B,channels,size,size] in [-1,1] and classes [B] -> mean and log-variance of codes, [B,Z] each."""

    def __init__(self, code: int, classes: int, size: int, channels: int, width: int, bn_group: int) -> None:
        super().__init__()
        steps = doublings(size)
        maps = [width * 2**n for n in range(steps)]
        self.label = nn.Embedding(classes, width)
        self.convs, self.norms = _halving(channels, maps, bn_group)
        self.linear = nn.Linear(maps[-1] * (size >> steps) ** 2, 2 * code)
        nn.init.normal_(self.label.weight, 0.0, 0.1)

    def forward(self, img_BCHH: Tensor, class_B: Tensor) -> tuple[Tensor, Tensor]:
        x = img_BCHH.contiguous(memory_format=torch.channels_last)
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = conv(x)
            if number == 0:
                x = x + self.label(class_B).to(x.dtype)[:, :, None, None]
            x = F.leaky_relu(norm(x), SLOPE)
        mean_BZ, log_variance_BZ = self.linear(x.flatten(1)).chunk(2, dim=1)
        return mean_BZ, log_variance_BZ


class ConditionalDiscriminator(nn.Module):
    """Pictures [B,channels,size,size] and classes [B] -> logits [B] of being real pictures of the class."""

    def __init__(self, classes: int, size: int, channels: int, width: int, bn_group: int) -> None:
        super().__init__()
        steps = doublings(size)
        maps = [width * 2**n for n in range(steps)]
        hidden = 4 * maps[-1]
        self.convs, self.norms = _halving(channels, maps, bn_group)
        self.linear = nn.Linear(maps[-1] * (size >> steps) ** 2, hidden)
        self.logit = nn.Linear(hidden, 1)
        self.label = nn.Embedding(classes, hidden)
        nn.init.normal_(self.label.weight, 0.0, hidden**-0.5)

    @property
    def layers(self) -> int:
        """How many layers :meth:`activations` gives: the convolutions, and the linear layer behind them."""
        return len(self.convs) + 1

    def activations(self, img_BCHH: Tensor) -> list[Tensor]:
        """The activations of every layer, [B,D,h,h] of a convolution, [B,E] of the last one."""
        x = img_BCHH.contiguous(memory_format=torch.channels_last)
        found = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.leaky_relu(norm(conv(x)), SLOPE)
            found.append(x)
        return [*found, F.leaky_relu(self.linear(x.flatten(1)), SLOPE)]

    def judge(self, hidden_BE: Tensor, class_B: Tensor) -> Tensor:
        """The logits [B] of pictures with these activations of the last layer."""
        fits_B = (self.label(class_B).to(hidden_BE.dtype) * hidden_BE).sum(dim=1)
        logit_B: Tensor = self.logit(hidden_BE).squeeze(1) + fits_B
        return logit_B

    def forward(self, img_BCHH: Tensor, class_B: Tensor) -> Tensor:
        return self.judge(self.activations(img_BCHH)[-1], class_B)


def _halving(channels: int, maps: list[int], bn_group: int) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Convolutions that halve the side, and their norms; the first has none, as in DCGAN."""
    convs = [
        nn.Conv2d(i, o, 4, stride=2, padding=1, bias=number == 0)
        for number, (i, o) in enumerate(pairwise([channels, *maps]))
    ]
    norms = [nn.Identity(), *(GhostBatchNorm(each, bn_group) for each in maps[1:])]
    return nn.ModuleList(convs), nn.ModuleList(norms)
