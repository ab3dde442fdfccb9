"""DCGAN: a generator of small pictures from noise, and a discriminator that tells them from real ones.

    z [B,Z] -> linear -> [B,C,S,S] -> transposed convolutions, each doubling the side -> tanh -> picture [B,P,H,H]
    picture [B,P,H,H] -> convolutions, each halving the side -> linear -> logit [B]

Radford, Metz, Chintala 2016, "Unsupervised representation learning with deep convolutional generative adversarial
networks" (arXiv 1511.06434, section 3): kernels of 5 x 5, strides instead of pooling, batch norm everywhere but at
the pictures, channels doubling where the side halves. Both nets have leaky ReLU, as in *Generisanje lica koriscenjem
GAN neuronskih mreza* (2020). The side is 4 to 7 times a power of two: 28 = 7 * 4, 64 = 4 * 16. A kernel of any size
from 2 on doubles and halves it exactly.

Letters: B batch, Z noise, C channels, P channels of the picture, S least side, H side of the picture.
"""

from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator
from torch import Tensor, nn

from v2f.errors import V2FError
from v2f.nn.batchnorm import GhostBatchNorm
from v2f.nn.spectral_norm import SpectralConv2d, SpectralLinear, restart

Norm = Literal["batch", "none", "spectral"]
KERNEL = 5
SLOPE = 0.2
LEAST = range(4, 8)  # sides of the smallest map


def doublings(size: int) -> int:
    """The number of times a map of 4 to 7 px doubles to reach ``size`` px; V2FError if it never does."""
    count = 0
    while size % 2 == 0 and size >= 2 * LEAST.start:
        size //= 2
        count += 1
    if count == 0 or size not in LEAST:
        sides = sorted(side * 2**n for side in LEAST for n in (2, 3, 4))
        raise V2FError(
            f"the side of a DCGAN's pictures must be 4 to 7 times a power of two, such as {', '.join(map(str, sides))}"
        )
    return count


def _side(size: int) -> int:
    try:
        doublings(size)
    except V2FError as error:
        raise ValueError(str(error)) from error
    return size


Side = Annotated[int, AfterValidator(_side)]
"""The side of a DCGAN's pictures in a configuration."""


class DCGANGenerator(nn.Module):
    """Noise [B,Z] -> pictures [B,P,size,size] in (-1,1). ``width``: channels of the last map before the picture.

    ``norm``: ``batch``, DCGAN's, over every map but the picture, without which the paper saw generators collapse to a
    single picture (section 3), or ``none``: then every layer has a bias.
    """

    def __init__(
        self,
        noise: int,
        size: int,
        width: int,
        bn_group: int,
        *,
        channels: int = 3,
        kernel: int = KERNEL,
        norm: Literal["batch", "none"] = "batch",
    ) -> None:
        super().__init__()
        steps = doublings(size)
        widths = [width * 2**n for n in reversed(range(steps))]
        self.side = size >> steps
        self.linear = nn.Linear(noise, widths[0] * self.side**2, bias=norm == "none")
        self.norms = nn.ModuleList(GhostBatchNorm(c, bn_group) if norm == "batch" else nn.Identity() for c in widths)
        # An odd kernel needs one more row and column at the end for exactly twice the side.
        pad, more = (kernel - 1) // 2, kernel % 2
        self.convs = nn.ModuleList(
            nn.ConvTranspose2d(
                i, o, kernel, stride=2, padding=pad, output_padding=more, bias=n == steps - 1 or norm == "none"
            )
            for n, (i, o) in enumerate(pairwise([*widths, channels]))
        )
        initialize(self)

    def forward(self, z_BZ: Tensor) -> Tensor:
        x = self.linear(z_BZ).unflatten(1, (-1, self.side, self.side))
        x = x.contiguous(memory_format=torch.channels_last)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = conv(F.leaky_relu(norm(x), SLOPE))
        return x.tanh()


class DCGANDiscriminator(nn.Module):
    """Pictures [B,P,size,size] -> logits [B] of being real. ``width``: channels of the first map.

    ``norm``: ``batch``, DCGAN's, over every map but the first; ``spectral``, of the weights of all layers (Miyato et
    al. 2018), or ``none``: then every convolution has a bias.
    """

    def __init__(
        self,
        size: int,
        width: int,
        bn_group: int,
        *,
        channels: int = 3,
        kernel: int = KERNEL,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        steps = doublings(size)
        widths = [width * 2**n for n in range(steps)]
        conv, linear = (SpectralConv2d, SpectralLinear) if norm == "spectral" else (nn.Conv2d, nn.Linear)
        self.convs = nn.ModuleList(
            conv(i, o, kernel, stride=2, padding=(kernel - 1) // 2, bias=n == 0 or norm != "batch")
            for n, (i, o) in enumerate(pairwise([channels, *widths]))
        )
        self.norms = nn.ModuleList(
            GhostBatchNorm(c, bn_group) if n and norm == "batch" else nn.Identity() for n, c in enumerate(widths)
        )
        self.linear = linear(widths[-1] * (size >> steps) ** 2, 1)
        initialize(self)
        restart(self)

    def forward(self, img_BPHH: Tensor) -> Tensor:
        x = img_BPHH.contiguous(memory_format=torch.channels_last)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.leaky_relu(norm(conv(x)), SLOPE)
        logit_B: Tensor = self.linear(x.flatten(1)).squeeze(1)
        return logit_B


@torch.no_grad()
def initialize(net: nn.Module) -> None:
    """Weights from N(0, 0.02), the norms' weights from N(1, 0.02), biases zero (section 4 of the paper)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, GhostBatchNorm):
            nn.init.normal_(module.weight, 1.0, 0.02)
