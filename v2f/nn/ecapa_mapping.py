"""The mapping that the thesis proposes for an encoder with frames: an ECAPA-TDNN for each style.

    maps [B,C_i,F_i], shallow ones first -> a trunk of ECAPA-TDNN for each style -> pooled [B,2M] -> w [B,L,D]

*Voice Styled Face* (a master's thesis, 2022, section 5.5) names the architecture, for the frames of UniSpeech-SAT, and
that statistics pooling makes one vector of them; it states no sizes.

Letters: B batch, C channels, F frames, M pooled channels, L styles, D style width.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from v2f.errors import V2FError
from v2f.nn.batchnorm import GhostBatchNorm
from v2f.nn.ecapa import ECAPATrunk, Positive, Widths
from v2f.nn.mapping import Groups, InitGain, MappingNetwork, last_layer


class FramesToStyle(nn.Module):
    """One style from one map: [B,C,F] -> trunk of ECAPA-TDNN -> equalised linear layer -> [B,D]."""

    def __init__(self, channels: int, style_dim: int, config: "ECAPAMapping.Config") -> None:
        super().__init__()
        self.trunk = ECAPATrunk(channels, config, partial(GhostBatchNorm, group=config.bn_group))
        self.linear = last_layer(2 * config.mfa, style_dim, config.init_gain)

    def forward(self, x_BCF: Tensor) -> Tensor:
        w_BD: Tensor = self.linear(self.trunk.pooled(x_BCF))
        return w_BD


class ECAPAMapping(MappingNetwork):
    """A :class:`FramesToStyle` for each style, on the map of its group (:class:`~v2f.nn.mapping.Groups`).

    With the default sizes, 18 styles of 512 on maps of 768 channels have 53,630,784 parameters. V2FError if a map has
    fewer frames than the kernels reach, by default 5; a vector, which is a map of one frame, has nothing to pool.
    """

    class Config(Groups, Widths):
        """All sizes are ours, a quarter of the published net's."""

        net: Literal["ecapa_tdnn"]
        channels: Positive = 256
        mfa: Positive = Field(768, description="channels after the aggregation of all blocks")
        attention: Positive = Field(32, description="channels inside the attention over frames")
        se: Positive = Field(32, description="channels inside squeeze and excitation")
        bn_group: Annotated[int, Field(ge=2)] = Field(4, description="samples in each mean of batch norm")
        init_gain: InitGain = 1.0

    def __init__(self, config: "ECAPAMapping.Config", channels: Sequence[int], n_styles: int, style_dim: int) -> None:
        super().__init__()
        self._reads = [config.map_of(style, len(channels)) for style in range(n_styles)]
        self.styles = nn.ModuleList(FramesToStyle(channels[read], style_dim, config) for read in self._reads)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        if any(map_BCF.shape[2] == 1 for map_BCF in maps):
            raise V2FError(
                "system.mapping: ecapa_tdnn pools over frames, but the encoder gives a vector; choose an encoder with "
                "frames (ecapa: output=frames) or another mapping (vec2style)"
            )
        return torch.stack([style(maps[read]) for style, read in zip(self.styles, self._reads, strict=True)], dim=1)
