"""The nets of a GAN that draws faces of voices (Wen, Raj, Singh, NeurIPS 2019, "Face reconstruction from voice using
generative adversarial networks", arXiv 1905.10604).

    log-mel [B,64,F] -> VoiceEmbedding -> [B,E]
    embedding [B,E] -> FaceGenerator -> pictures [B,3,H,H]
    pictures [B,3,H,H] -> FaceTrunk or ResidualTrunk -> features [B,E'] -> heads (linear, without bias)

The layers are those of the authors' published code, and tensors have the names of their files. As far as the Ukrainian
document that ``voice_gan`` follows differs from it, both are keys: kernel of the trunk, last layer of the generator.
At 64 px and the default widths, embedding, generator and trunk have 2,670,720, 12,191,875 and 3,310,720 parameters.

Letters: B batch, F frames, E width of an embedding, C channels, H side of the picture.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from v2f import config
from v2f.nn import at_least_float32
from v2f.nn.dcgan import doublings

BANDS = 64  # mel bands of VoiceEmbedding's input
SLOPE = 0.2  # of the leaky ReLU


class VoiceEmbedding(nn.Module):
    """Log-mel frames [B,64,F] -> embeddings [B,E], not normalized.

    Convolutions of 3 taps and stride 2: all but the last without bias, followed by batch norm and ReLU; the last one
    with a bias and nothing behind it; then the mean over time.
    """

    class Config(config.Config):
        """The sizes of :class:`VoiceEmbedding`; the defaults are the published ones."""

        widths: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1)] = Field(
            [256, 384, 576, 864], description="channels of all convolutions but the last"
        )
        embedding: Annotated[int, Field(gt=0)] = Field(64, description="width of the embedding")

    def __init__(self, config: "VoiceEmbedding.Config", norm: Callable[[int], nn.Module] = nn.BatchNorm1d) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([BANDS, *config.widths]):
            layers += [nn.Conv1d(inputs, outputs, 3, 2, 1, bias=False), norm(outputs), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.Conv1d(config.widths[-1], config.embedding, 3, 2, 1))

    def forward(self, x_B64F: Tensor) -> Tensor:
        embedding_BE: Tensor = at_least_float32(self.model(x_B64F)).mean(dim=2)
        return embedding_BE


class FaceGenerator(nn.Module):
    """Embeddings [B,E] -> pictures [B,3,size,size], in (-1,1) if ``last`` is ``tanh``, else not limited.

    Transposed convolutions with ReLU: one to the least side (4 px of 64), then ones of 4 taps that double it; a 1x1 one
    makes the picture. ``width``: channels of the last map, which double where the side halves. ``extra``: 3x3
    convolutions with ReLU behind each of the others, for a deeper net. V2FError unless the side is 4 to 7 times a power
    of two.
    """

    def __init__(
        self,
        inputs: int,
        size: int = 64,
        width: int = 64,
        last: Literal["linear", "tanh"] = "linear",
        extra: int = 0,
    ) -> None:
        super().__init__()
        steps = doublings(size)
        channels = [width << n for n in reversed(range(steps + 1))]
        layers: list[nn.Module] = []
        for number, (i, o) in enumerate(pairwise([inputs, *channels])):
            first = nn.ConvTranspose2d(i, o, size >> steps)
            layers += [first if number == 0 else nn.ConvTranspose2d(i, o, 4, 2, 1), nn.ReLU()]
            layers += [each for _ in range(extra) for each in (nn.Conv2d(o, o, 3, 1, 1), nn.ReLU())]
        layers += [nn.ConvTranspose2d(width, 3, 1)]
        self.model = nn.Sequential(*layers, *([nn.Tanh()] if last == "tanh" else []))

    def forward(self, embedding_BE: Tensor) -> Tensor:
        x = embedding_BE[:, :, None, None].contiguous(memory_format=torch.channels_last)
        picture_B3HH: Tensor = self.model(x)
        return picture_B3HH


class FaceTrunk(nn.Module):
    """Pictures [B,3,size,size] -> features [B,outputs].

    A 1x1 convolution, convolutions of ``kernel`` taps (3 or 4) and stride 2 down to the least side, then one over the
    whole map; leaky ReLU between them and nothing behind the last. ``width``: channels of the first map, which double
    where the side halves.
    """

    def __init__(self, size: int = 64, width: int = 32, kernel: int = 4, outputs: int = 64) -> None:
        super().__init__()
        steps = doublings(size)
        channels = [width << n for n in range(steps + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, width, 1), nn.LeakyReLU(SLOPE)]
        for i, o in pairwise(channels):
            layers += [nn.Conv2d(i, o, kernel, 2, 1), nn.LeakyReLU(SLOPE)]
        self.model = nn.Sequential(*layers, nn.Conv2d(channels[-1], outputs, size >> steps))

    def forward(self, img_B3HH: Tensor) -> Tensor:
        x = img_B3HH.contiguous(memory_format=torch.channels_last)
        feature_BE: Tensor = self.model(x).flatten(1)
        return feature_BE


class ResidualTrunk(nn.Module):
    """Pictures [B,3,size,size] -> features [B,outputs]: a residual network without norms.

    ``blocks`` residual blocks (leaky ReLU, 3x3, leaky ReLU, 3x3) at each side, then the mean of 2 x 2 pixels and twice
    the channels, down to the least side; similar to the critic of Gulrajani et al. 2017 (arXiv 1704.00028, appendix F).
    """

    def __init__(self, size: int = 64, width: int = 32, blocks: int = 1, outputs: int = 64) -> None:
        super().__init__()
        steps = doublings(size)
        channels = [width << n for n in range(steps + 1)]
        self.first = nn.Conv2d(3, width, 1)
        stages: list[Sequence[nn.Module]] = [
            [_Residual(i, i) for _ in range(blocks - 1)] + [_Residual(i, o), nn.AvgPool2d(2)]
            for i, o in pairwise(channels)
        ]
        self.stages = nn.Sequential(*(layer for stage in stages for layer in stage))
        self.last = nn.Conv2d(channels[-1], outputs, size >> steps)

    def forward(self, img_B3HH: Tensor) -> Tensor:
        x = self.stages(self.first(img_B3HH.contiguous(memory_format=torch.channels_last)))
        feature_BE: Tensor = self.last(F.leaky_relu(x, SLOPE)).flatten(1)
        return feature_BE


@torch.no_grad()
def keep_variance(net: "FaceGenerator | FaceTrunk") -> None:
    """Initial weights from a normal distribution such that each layer keeps the mean square of its input, and biases of
    zero (He et al. 2015, arXiv 1502.01852, eq. 10).

    With PyTorch's own, which Wen's code has, it shrinks about threefold in each layer, so that the first pictures
    hardly depend on the embedding. A generator takes embeddings of unit length, and its first pictures have a standard
    deviation below 0.5.
    """
    layers = [layer for layer in net.model if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    for number, layer in enumerate(layers):
        gain, inputs = 2**0.5, layer.weight[0].numel()
        if isinstance(layer, nn.ConvTranspose2d):  # whose weight is [I,O,k,k]
            inputs = layer.in_channels * (layer.kernel_size[0] // layer.stride[0]) ** 2
        if isinstance(net, FaceGenerator) and number == 0:
            inputs = 1  # a vector of unit length
        elif isinstance(net, FaceGenerator) and number == len(layers) - 1:
            gain = 0.5
        nn.init.normal_(layer.weight, 0.0, gain * inputs**-0.5)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)


class _Residual(nn.Module):
    """A block [B,I,H,H] -> [B,O,H,H]; the shortcut is a 1x1 convolution where the channels change."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(inputs, outputs, 3, 1, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        body: Tensor = self.two(F.leaky_relu(self.one(F.leaky_relu(x, SLOPE)), SLOPE))
        return self.shortcut(x) + body
