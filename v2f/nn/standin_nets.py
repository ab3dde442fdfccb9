"""Small frozen networks for the synthetic world, in place of published ones.

They replace a face identity net, LPIPS' backbone, pSp and a second identity net. All take pictures [B,3,H,W] in [-1,1]
of any size and resize them to 64 px (by the mean over areas).

Letters: B batch, C channels, H/W pixels, E embedding width, L styles, D style width.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2f.nn import at_least_float32, perceptual_distance

SIZE = 64
SLOPE = 0.2


def to_input(img_B3HW: Tensor) -> Tensor:
    """A picture of any size, resized to 64 px, in channels-last layout (several times as fast on a CPU)."""
    if img_B3HW.shape[-2:] != (SIZE, SIZE):
        img_B3HW = F.interpolate(img_B3HW, (SIZE, SIZE), mode="area")
    return img_B3HW.contiguous(memory_format=torch.channels_last)


class Residual(nn.Module):
    """``act(x + conv(act(conv(x))))``; the second convolution starts with small weights, so no norm is needed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.leaky_relu(x_BCHW + self.conv2(F.leaky_relu(self.conv1(x_BCHW), SLOPE)), SLOPE)


class StandInTrunk(nn.Module):
    """[B,3,64,64] -> four maps: [B,C0,32,32], [B,C1,16,16], [B,C2,8,8], [B,C3,4,4], each after a leaky ReLU."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        widths = [3, *channels]
        self.down = nn.ModuleList(nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in pairwise(widths))
        # at 32 px a block would cost more than all others together, at 4 px it does not help
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
    """The identity of a face: picture [B,3,H,W] -> embedding [B,E] of length one, compared by cosine."""

    def __init__(self, channels: list[int], embedding: int = 128) -> None:
        super().__init__()
        self.trunk = StandInTrunk(channels)
        self.head = nn.Linear(self.trunk.values, embedding)

    def raw(self, img_B3HW: Tensor) -> Tensor:
        """The embedding before it is scaled to length one, in float32."""
        x_BE: Tensor = self.head(self.trunk(img_B3HW)[-1].flatten(1))
        return at_least_float32(x_BE)

    def forward(self, img_B3HW: Tensor) -> Tensor:
        return F.normalize(self.raw(img_B3HW), dim=1)


class RefereeNet(nn.Module):
    """A second opinion on the identity of a face: picture [B,3,H,W] -> embedding [B,E] of length one.

    It should not share the weaknesses of :class:`IdentityNet`, so every design choice is different: 5 x 5 and 3 x 3
    convolutions with group norm (Wu and He 2018) and ReLU, pooling instead of strides, and mean and maximum over the
    picture instead of a flattened map.
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
        """The embedding, and the stages' maps: with four stages [B,C0,32,32], ..., [B,C3,4,4]."""
        x = to_input(img_B3HW)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        x_BE: Tensor = self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))
        return F.normalize(at_least_float32(x_BE), dim=1), maps

    def forward(self, img_B3HW: Tensor) -> Tensor:
        return self.look(img_B3HW)[0]


class PerceptualNet(nn.Module):
    """Features for a perceptual distance: picture [B,3,H,W] -> maps at 32, 16, 8 and 4 px.

    It was trained to estimate every factor of a portrait, including those of the photo, so that no visible difference
    escapes it. :meth:`factors` returns that estimate, [B,factors].
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
        """The distance of two pictures in the maps, all channels alike: [B]; gradients flow to the output only."""
        return perceptual_distance(self, output_B3HW, reference_B3HW)

    def factors(self, img_B3HW: Tensor) -> Tensor:
        x = F.leaky_relu(self.hidden(self.trunk(img_B3HW)[-1].flatten(1)), SLOPE)
        factors_BF: Tensor = self.head(x)
        return at_least_float32(factors_BF)


class CodeEncoder(nn.Module):
    """The styles of a picture: [B,3,H,W] -> w+ [B,L,D], in place of pSp's encoder.

    The result is the generator's mean style plus an offset, as in pSp.
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
        return at_least_float32(offset).unflatten(1, (self.n_styles, -1)) + self.latent_avg
