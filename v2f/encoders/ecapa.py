"""SpeechBrain's ECAPA-TDNN as a voice encoder: one vector of 192 numbers, or the frames of its blocks.

    wave [B,T] -> log-mel bands [B,80,F] (:mod:`v2f.nn.fbank`) -> ECAPA-TDNN (:mod:`v2f.nn.ecapa`) -> [B,K,C,F']

Letters: B batch, T samples, F frames (one every 10 ms), K depths, C channels, F' frames or 1.
"""

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f.encoders.foreign import ForeignConfig, ForeignEncoder
from v2f.nn.batchnorm import GhostBatchNorm, ghost_norms
from v2f.nn.ecapa import ECAPA, Blocks
from v2f.nn.fbank import LogMel
from v2f.weights import ECAPAWeights


class ECAPAConfig(ForeignConfig, ECAPA.Config):
    """The sizes are the published net's by default; other sizes need a file of such a net, or ``random``.

    ``thaw`` counts blocks from the last one. For a vector there are five: blocks 0 to 3, and all that follows as one.
    For frames they end with the deepest of ``depths``; what follows is not part of the encoder.

    Batch norms keep the statistics they came with (with ``random``: mean 0, variance 1). With ``random: true`` and
    ``thaw: all``, they are ghost batch norms instead, trained like those of our own encoder.
    """

    net: Literal["ecapa"]
    output: Literal["vector", "frames"] = Field(
        "vector", description="vector: one map of one frame, [B,192,1]; frames: the maps of `depths`"
    )
    depths: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
        [1, 2, 3], description="blocks whose maps are taken, shallow ones first; for frames"
    )
    bn_group: Annotated[int, Field(ge=2)] = Field(
        4, description="samples in each mean of batch norm; with random and thaw: all"
    )

    @model_validator(mode="after")
    def _outputs_fit(self) -> "ECAPAConfig":
        if self.output == "vector" and self.weighted:
            raise ValueError("weighted is a sum over several depths: set output to frames, or weighted to false")
        blocks = len(self.kernels) - 1
        if self.output == "frames" and (sorted({*self.depths}) != self.depths or self.depths[-1] >= blocks):
            raise ValueError(f"depths {self.depths}: name blocks from 0 to {blocks - 1} in ascending order, each once")
        return self

    def source(self) -> ECAPAWeights:
        sizes = {name: getattr(self, name) for name in ECAPA.Config.model_fields}
        return ECAPAWeights(net="ecapa", file=self.file, sha256=self.sha256, **sizes)

    def create(self) -> ECAPA:
        ghost = self.random and self.thaw == "all"
        return ECAPA(self, partial(GhostBatchNorm, group=self.bn_group) if ghost else nn.BatchNorm1d)

    def wrapped(self, net: nn.Module) -> "ECAPAEncoder":
        assert isinstance(net, ECAPA)
        return ECAPAEncoder(net, self)


class ECAPAEncoder(ForeignEncoder):
    """Waves [B,T] at 16 kHz -> one map [B,192,1], not normalized, or maps [B,1024,1 + T // 160] of the depths.

    V2FError if a clip has fewer frames than the kernels reach: 5, which is 640 samples.
    """

    def __init__(self, net: ECAPA, config: ECAPAConfig) -> None:
        if config.output == "vector":
            last = nn.ModuleDict({"mfa": net.mfa, "asp": net.asp, "asp_bn": net.asp_bn, "fc": net.fc})
            super().__init__(net, [*net.blocks, last], config.outputs, 1, config)
        else:
            blocks = net.blocks[: config.depths[-1] + 1]
            super().__init__(blocks, list(blocks), config.channels, len(config.depths), config)
        self.depths = config.depths
        self.front = LogMel()
        self.train()

    def train(self, mode: bool = True) -> "ECAPAEncoder":
        """The foreign net stays as in evaluation, except its ghost batch norms."""
        super().train(mode)
        for norm in ghost_norms(self.net):
            norm.train(mode)
        return self

    def features(self, wav_BT: Tensor) -> Tensor:
        x_B80F = self.front(wav_BT)
        if isinstance(self.net, ECAPA):
            vector_BC: Tensor = self.net(x_B80F)
            return vector_BC[:, None, :, None]
        assert isinstance(self.net, Blocks)
        maps = self.net.maps(x_B80F)
        return torch.stack([maps[depth] for depth in self.depths], dim=1)
