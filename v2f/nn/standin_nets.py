"""Small frozen networks for the synthetic world, in the places of the ones that users bring.

They stand in for a face identity network, LPIPS' backbone, pSp and a second identity network, on 64 px pictures. All
take pictures [B,3,H,W] in [-1,1] of any size and see them at 64 px (by the mean over areas).

Letters: B batch, C channels, H/W pixels, E embedding width, L styles, D style width.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2f.nn import perceptual_distance, widened

SIZE = 64
SLOPE = 0.2


def to_input(img_B3HW: Tensor) -> Tensor:
    """A picture of any size at 64 px, channels last (several times as fast on a CPU)."""
    if img_B3HW.shape[-2:] != (SIZE, SIZE):
        img_B3HW = F.interpolate(img_B3HW, (SIZE, SIZE), mode="area")
    return img_B3HW.contiguous(memory_format=torch.channels_last)


class Residual(nn.Module):
    """``act(x + conv(act(conv(x))))``; the second convolution starts small, so it trains without normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.leaky_relu(x_BCHW + self.conv2(F.leaky_relu(self.conv1(x_BCHW), SLOPE)), SLOPE)


class StandInTrunk(nn.Module):
    """[B,3,64,64] -> four maps: [B,C0,32,32], [B,C1,16,16], [B,C2,8,8], [B,C3,4,4], each behind a leaky ReLU."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        widths = [3, *channels]
        self.down = nn.ModuleList(nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in pairwise(widths))
        # at 32 px a block would cost more than all others together, at 4 px it has nothing to add
        self.block = nn.ModuleList([nn.Identity(), Residual(channels[1]), Residual(channels[2]), nn.Identity()])
        self.values = channels[3] * 16
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, SLOPE)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            if isinstance(module, Residual):
                with torch.no_grad():
                    module.conv2.weight.mul_(0.3)

    def forward(self, img_B3HW: Tensor) -> list[Tensor]:
        x = to_input(img_B3HW)
        maps = []
        for down, block in zip(self.down, self.block, strict=True):
            x = block(F.leaky_relu(down(x), SLOPE))
            maps.append(x)
        return maps


class IdentityNet(nn.Module):
    """Whose face is it? Picture [B,3,H,W] -> embedding [B,E] of length one; the cosine tells people apart."""

    def __init__(self, channels: list[int], embedding: int = 128) -> None:
        super().__init__()
        self.trunk = StandInTrunk(channels)
        self.head = nn.Linear(self.trunk.values, embedding)

    def raw(self, img_B3HW: Tensor) -> Tensor:
        """The embedding before its length is set to one, in float32."""
        x_BE: Tensor = self.head(self.trunk(img_B3HW)[-1].flatten(1))
        return widened(x_BE)

    def forward(self, img_B3HW: Tensor) -> Tensor:
        return F.normalize(self.raw(img_B3HW), dim=1)


class RefereeNet(nn.Module):
    """The second opinion on whose face it is: picture [B,3,H,W] -> embedding [B,E] of length one.

    What pleases :class:`IdentityNet` need not please this one, so it is built otherwise in all that can be chosen:
    5 x 5 and 3 x 3 convolutions with group norm (Wu and He 2018) and ReLU, pooling in place of strides, and mean and
    maximum over the picture in place of a flattened map.
    """

    def __init__(self, channels: list[int], embedding: int = 128, groups: int = 8) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        width = 3
        for depth, c in enumerate(channels):
            kernel = 5 if depth == 0 else 3
            self.stages.append(
                nn.Sequential(
                    nn.Conv2d(width, c, kernel, padding=kernel // 2, bias=False),
                    nn.AvgPool2d(2),
                    nn.GroupNorm(groups, c),
                    nn.ReLU(),
                )
            )
            width = c
        self.head = nn.Linear(2 * width, embedding)

    def look(self, img_B3HW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The embedding and what led to it: with four stages the maps [B,C0,32,32], ..., [B,C3,4,4]."""
        x = to_input(img_B3HW)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        x_BE: Tensor = self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))
        return F.normalize(widened(x_BE), dim=1), maps

    def forward(self, img_B3HW: Tensor) -> Tensor:
        return self.look(img_B3HW)[0]


class PerceptualNet(nn.Module):
    """Features for a perceptual distance: picture [B,3,H,W] -> maps at 32, 16, 8 and 4 px.

    It was trained to tell every factor of a portrait, those of the photo included, so nothing that is seen is
    lost on it. :meth:`factors` gives that estimate [B,factors].
    """

    def __init__(self, channels: list[int], factors: int) -> None:
        super().__init__()
        self.trunk = StandInTrunk(channels)
        self.hidden = nn.Linear(self.trunk.values, 192)
        self.head = nn.Linear(192, factors)

    def forward(self, img_B3HW: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.trunk(img_B3HW)
        return maps

    def distance(self, output_B3HW: Tensor, reference_B3HW: Tensor) -> Tensor:
        """How far two pictures are apart in the maps, all channels alike: [B]; a gradient flows to the output only."""
        return perceptual_distance(self, output_B3HW, reference_B3HW)

    def factors(self, img_B3HW: Tensor) -> Tensor:
        x = F.leaky_relu(self.hidden(self.trunk(img_B3HW)[-1].flatten(1)), SLOPE)
        factors_BF: Tensor = self.head(x)
        return widened(factors_BF)


class CodeEncoder(nn.Module):
    """The styles of a picture: [B,3,H,W] -> w+ [B,L,D], the place of pSp's encoder.

    The result is the generator's mean style plus an offset, as pSp's is.
    """

    latent_avg: Tensor

    def __init__(self, channels: list[int], n_styles: int, style_dim: int) -> None:
        super().__init__()
        self.trunk = StandInTrunk(channels)
        self.hidden = nn.Linear(self.trunk.values, 256)
        self.head = nn.Linear(256, n_styles * style_dim)
        self.n_styles = n_styles
        self.style_dim = style_dim
        self.register_buffer("latent_avg", torch.zeros(style_dim))
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, img_B3HW: Tensor) -> Tensor:
        x = F.leaky_relu(self.hidden(self.trunk(img_B3HW)[-1].flatten(1)), SLOPE)
        offset: Tensor = self.head(x)
        return widened(offset).unflatten(1, (self.n_styles, -1)) + self.latent_avg
