"""The voice encoder ``ge2e``: the speaker encoder of the package ``resemblyzer``, as one vector or as LSTM states."""

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f.encoders.foreign import ForeignConfig, ForeignEncoder
from v2f.nn.ge2e import GE2E, RATE, raised
from v2f.weights import GE2EWeights

LAYERS = 3


class GE2EConfig(ForeignConfig):
    """The sizes are those of the published weights; others need ``random``.

    ``thaw`` counts LSTM layers from the last one that is read; that of a vector includes the linear layer.
    """

    net: Literal["ge2e"]
    output: Literal["vector", "frames"] = Field(
        "vector", description="one vector of the whole clip, or the states of LSTM layers, 100 frames a second"
    )
    depths: Annotated[list[Annotated[int, Field(ge=1, le=LAYERS)]], Field(min_length=1)] = Field(
        [1, 2, 3], description="LSTM layers whose states are the maps, first ones first; for frames"
    )
    level: float | None = Field(
        -30.0, le=0, description="dB of full scale to which quieter clips are raised, as the package does; null: none"
    )
    width: int = Field(256, gt=0, description="width of the LSTM layers")
    embedding: int = Field(256, gt=0, description="width of the vector")
    sample_rate = RATE

    @model_validator(mode="after")
    def _fits(self) -> "GE2EConfig":
        if not self.random and (self.width, self.embedding) != (256, 256):
            raise ValueError(
                "the published weights have a width and an embedding of 256: keep both, or set random: true"
            )
        if self.output == "frames" and self.depths != sorted({*self.depths}):
            raise ValueError(f"depths {self.depths}: name layers from 1 to {LAYERS} in ascending order, each once")
        if self.output == "vector" and self.weighted:
            raise ValueError("weighted is a sum over several depths: set output to frames, or weighted to false")
        return self

    def source(self) -> GE2EWeights:
        return GE2EWeights(net="ge2e", file=self.file, sha256=self.sha256)

    def create(self) -> GE2E:
        return GE2E(self.width, self.embedding, LAYERS)

    def wrapped(self, net: nn.Module) -> "GE2EEncoder":
        assert isinstance(net, GE2E)
        return GE2EEncoder(net, self)


class GE2EEncoder(ForeignEncoder):
    """Waves [B,T] -> the vector [B,E,1], or the states [B,H,T'] of the chosen LSTM layers, T' = 1 + T // 160.

    The states run over the whole clip. The weights were trained on 1.6 s, which is what the vector averages over.
    """

    def __init__(self, net: GE2E, config: GE2EConfig) -> None:
        if config.output == "vector":
            last = nn.ModuleDict({"lstm": net.layers[-1], "linear": net.linear})
            super().__init__(net, [*net.layers[:-1], last], config.embedding, 1, config)
        else:
            net.cut(config.depths[-1])  # what no map needs cannot be trained
            super().__init__(net, list(net.layers), config.width, len(config.depths), config)
        self.net: GE2E
        self.output, self.depths, self.level = config.output, config.depths, config.level
        for layer in net.layers:
            layer.eval()  # if it was thawed above, this keeps it in training mode

    def features(self, wav_BT: Tensor) -> Tensor:
        if self.level is not None:
            wav_BT = raised(wav_BT, self.level)
        if self.output == "vector":
            vector_BE: Tensor = self.net(wav_BT)
            return vector_BE[:, None, :, None]
        states = self.net.states(wav_BT)
        return torch.stack([states[depth - 1].transpose(1, 2) for depth in self.depths], dim=1)
