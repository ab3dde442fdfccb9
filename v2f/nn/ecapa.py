"""ECAPA-TDNN: a speaker net over frames. Written from the paper and the names in SpeechBrain's published weights.

    features [B,I,F] -> blocks: a TDNN layer, SE-Res2Blocks -> maps [B,C,F] of each -> all of the latter -> mfa [B,M,F]
      -> attentive statistics pooling -> batch norm [B,2M] -> fc -> vector [B,E]

The paper is Desplanques et al. 2020 (arXiv 2005.07143); "mfa" is its multi-layer feature aggregation (section 3.3). As
in SpeechBrain, a TDNN layer is a convolution with bias and reflect padding, then ReLU, then batch norm, and a block
reads the map before it, not, as in the paper, the sum of all maps before it. With the defaults, the ``state_dict`` has
the 231 keys and 20,767,552 parameters of ``embedding_model.ckpt`` of SpeechBrain's ``spkrec-ecapa-voxceleb``, which
therefore loads strictly.

Letters: B batch, I/O channels in and out, F frames, C channels of a block, M of mfa, E vector.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f.config import Config
from v2f.errors import V2FError
from v2f.nn import at_least_float32
from v2f.nn.fbank import BANDS

LEAST_VARIANCE = 1e-12  # below it, a standard deviation is constant and has no gradient
Positive = Annotated[int, Field(ge=1)]
Norm = Callable[[int], nn.Module]
"""Makes the batch norm of a number of channels."""


class Widths(Config):
    """The sizes of the net's parts; the defaults are the published net's."""

    channels: Positive = 1024
    mfa: Positive = Field(3072, description="channels after the aggregation of all blocks")
    kernels: Annotated[list[Positive], Field(min_length=3)] = Field(
        [5, 3, 3, 3, 1], description="taps of the first layer, of each SE-Res2Block, and of the aggregation"
    )
    dilations: list[Positive] = Field([1, 2, 3, 4, 1], description="frames between taps, in the same order")
    attention: Positive = Field(128, description="channels inside the attention over frames")
    scale: Annotated[int, Field(ge=2)] = Field(8, description="parts of the channels in a Res2Net layer")
    se: Positive = Field(128, description="channels inside squeeze and excitation")

    @model_validator(mode="after")
    def _fits(self) -> "Widths":
        if len(self.kernels) != len(self.dilations):
            raise ValueError(f"kernels has {len(self.kernels)} entries, dilations {len(self.dilations)}: one per layer")
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise ValueError("kernels must be odd, so that a convolution keeps the number of frames")
        if self.channels % self.scale:
            raise ValueError(f"channels {self.channels} is not a multiple of scale {self.scale}")
        return self


class Conv(nn.Module):
    """A convolution that keeps the number of frames: [B,I,F] -> [B,O,F]."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.reach = dilation * (kernel // 2)  # frames added on each side
        mode: Literal["reflect", "zeros"] = "reflect" if self.reach else "zeros"  # the same without a reach, but faster
        self.conv = nn.Conv1d(inputs, outputs, kernel, padding=self.reach, dilation=dilation, padding_mode=mode)

    def forward(self, x_BIF: Tensor) -> Tensor:
        x_BOF: Tensor = self.conv(x_BIF)
        return x_BOF


class BatchNorm(nn.Module):
    """A batch norm under the name that the published weights give it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x)
        return normed


class TDNN(nn.Module):
    """A layer of a time-delay neural net: convolution, ReLU, batch norm: [B,I,F] -> [B,O,F]."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        self.conv = Conv(inputs, outputs, kernel, dilation)
        self.norm = BatchNorm(norm(outputs))

    def forward(self, x_BIF: Tensor) -> Tensor:
        x_BOF: Tensor = self.norm(F.relu(self.conv(x_BIF)))
        return x_BOF


class Res2Net(nn.Module):
    """Channels in ``scale`` parts: each but the first has a TDNN layer, whose input includes the part before it.

    Gao et al. 2019 (arXiv 1904.01169, section 3.1).
    """

    def __init__(self, channels: int, scale: int, kernel: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        width = channels // scale
        self.blocks = nn.ModuleList(TDNN(width, width, kernel, dilation, norm) for _ in range(scale - 1))

    def forward(self, x_BCF: Tensor) -> Tensor:
        first, *parts = x_BCF.chunk(len(self.blocks) + 1, dim=1)
        made = [first]
        for number, (part, block) in enumerate(zip(parts, self.blocks, strict=True)):
            made.append(block(part + made[-1] if number else part))
        return torch.cat(made, dim=1)


class SqueezeExcite(nn.Module):
    """Scales each channel by a number in (0,1) computed from the means over frames of all channels (section 3.2)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = Conv(channels, hidden)
        self.conv2 = Conv(hidden, channels)

    def forward(self, x_BCF: Tensor) -> Tensor:
        mean_BC1 = x_BCF.mean(dim=2, keepdim=True)
        return x_BCF * torch.sigmoid(self.conv2(F.relu(self.conv1(mean_BC1))))


class SERes2Block(nn.Module):
    """The residual block (section 3.2, figure 1): TDNN layer of one tap, Res2Net, TDNN layer of one tap, SE."""

    def __init__(self, widths: Widths, kernel: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        channels = widths.channels
        self.tdnn1 = TDNN(channels, channels, 1, 1, norm)
        self.res2net_block = Res2Net(channels, widths.scale, kernel, dilation, norm)
        self.tdnn2 = TDNN(channels, channels, 1, 1, norm)
        self.se_block = SqueezeExcite(channels, widths.se)

    def forward(self, x_BCF: Tensor) -> Tensor:
        y_BCF: Tensor = self.se_block(self.tdnn2(self.res2net_block(self.tdnn1(x_BCF))))
        return x_BCF + y_BCF


class AttentivePooling(nn.Module):
    """Channel- and context-dependent statistics pooling (section 3.1): [B,M,F] -> mean and deviation [B,2M].

    Each channel has its own weights over the frames; they are computed from each frame and from the mean and the
    standard deviation over all frames. At least float32.
    """

    def __init__(self, channels: int, hidden: int, norm: Norm) -> None:
        super().__init__()
        self.tdnn = TDNN(3 * channels, hidden, 1, 1, norm)
        self.conv = Conv(hidden, channels)

    def forward(self, x_BMF: Tensor) -> Tensor:
        wide_BMF = at_least_float32(x_BMF)
        context_BS1 = _moments(wide_BMF, wide_BMF.new_full((), 1 / x_BMF.shape[2]))[:, :, None]
        seen = torch.cat([x_BMF, context_BS1.to(x_BMF.dtype).expand(-1, -1, x_BMF.shape[2])], dim=1)
        weight_BMF = at_least_float32(self.conv(torch.tanh(self.tdnn(seen)))).softmax(dim=2)
        return _moments(wide_BMF, weight_BMF)


def _moments(x_BMF: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean and standard deviation over the frames, [B,2M]."""
    mean_BM = (weight * x_BMF).sum(dim=2)
    variance_BM = (weight * (x_BMF - mean_BM[:, :, None]).square()).sum(dim=2)
    return torch.cat([mean_BM, variance_BM.clamp(min=LEAST_VARIANCE).sqrt()], dim=1)


class Blocks(nn.ModuleList):
    """The TDNN layer and the SE-Res2Blocks, one after another, or the first of them (by slicing)."""

    def maps(self, x_BIF: Tensor) -> list[Tensor]:
        """The map [B,C,F] after each block; V2FError if there are fewer frames than the kernels need."""
        _check_frames(self, x_BIF)
        found: list[Tensor] = []
        for block in self:
            found.append(block(found[-1] if found else x_BIF))
        return found


def _check_frames(net: nn.Module, x_BIF: Tensor) -> None:
    """V2FError if there are too few frames to reflect: a convolution needs one more than it adds on a side."""
    frames, least = x_BIF.shape[2], 1 + max(module.reach for module in net.modules() if isinstance(module, Conv))
    if frames < least:
        raise V2FError(f"ECAPA-TDNN: its kernels need {least} frames, got {frames}; use longer clips")


class ECAPATrunk(nn.Module):
    """All but the last layer: features [B,I,F] -> pooled, normalized statistics [B,2M]."""

    def __init__(self, inputs: int, widths: Widths, norm: Norm) -> None:
        super().__init__()
        (first, *kernels, last), (start, *dilations, end) = widths.kernels, widths.dilations
        blocks = [SERes2Block(widths, *layer, norm) for layer in zip(kernels, dilations, strict=True)]
        self.blocks = Blocks([TDNN(inputs, widths.channels, first, start, norm), *blocks])
        self.mfa = TDNN(widths.channels * len(kernels), widths.mfa, last, end, norm)
        self.asp = AttentivePooling(widths.mfa, widths.attention, norm)
        self.asp_bn = BatchNorm(norm(2 * widths.mfa))

    def pooled(self, x_BIF: Tensor) -> Tensor:
        """[B,2M]; V2FError as for :meth:`Blocks.maps`."""
        _check_frames(self, x_BIF)
        statistics: Tensor = self.asp_bn(self.asp(self.mfa(torch.cat(self.blocks.maps(x_BIF)[1:], dim=1))))
        return statistics


class ECAPA(ECAPATrunk):
    """The speaker net: 80 log-mel bands [B,80,F] -> vectors [B,E], not normalized."""

    class Config(Widths):
        """The defaults are the published net's."""

        outputs: Positive = Field(192, description="length of the vector")

    def __init__(self, config: "ECAPA.Config", norm: Norm = nn.BatchNorm1d) -> None:
        super().__init__(BANDS, config, norm)
        self.fc = Conv(2 * config.mfa, config.outputs)

    def forward(self, x_BIF: Tensor) -> Tensor:
        vector_BE: Tensor = self.fc(self.pooled(x_BIF)[:, :, None])[:, :, 0]
        return vector_BE
