"""UniSpeech-SAT and WavLM as voice encoders: the states of chosen depths of a speech transformer.

    wave [B,T] -> (zero mean, unit variance) -> SpeechTransformer -> states of K depths [B,K,C,T'] -> maps [B,C,T']

Depth 0 enters the first transformer layer, depth n leaves the n-th. At 16 kHz a frame comes every 20 ms: 6 s are 299.

Letters: B batch, T samples, K depths, C channels, T' frames.
"""

import hashlib
import json
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from v2f.encoders.foreign import ForeignConfig, ForeignEncoder
from v2f.errors import V2FError
from v2f.nn.speech import Architecture, Kind, SpeechTransformer, WavLMArchitecture
from v2f.weights import TransformerWeights, UniSpeechSATWeights, WavLMWeights


class SpeechConfig(ForeignConfig):
    """The keys of both. ``thaw: N`` trains the last N transformer layers that the chosen depths need; the convolutions,
    their projection and the position embedding are trained by ``thaw: all`` only."""

    net: Kind
    depths: list[Annotated[int, Field(ge=0)]] = Field(
        [4, 8, 12],
        min_length=1,
        description="layers after which features are taken, shallow ones first; 0: before the first layer",
    )
    normalize: bool | None = Field(
        None,
        description="shift each wave to zero mean and scale it to unit variance; null: as preprocessor_config.json "
        "beside the weights says, else as the net was trained: base nets without, large ones with",
    )
    architecture: Architecture | None = Field(
        None, description="null: config.json beside the weights, else the published base net"
    )

    @model_validator(mode="after")
    def _depths_rise(self) -> "SpeechConfig":
        if self.depths != sorted(set(self.depths)) or not self.depths[-1]:
            raise ValueError(f"depths {self.depths}: name each once, shallow ones first, and at least one above 0")
        return self

    def create(self) -> SpeechTransformer:
        default = WavLMArchitecture() if self.net == "wavlm" else Architecture()
        return SpeechTransformer(self.net, self.architecture or default)

    def wrapped(self, net: Any) -> "SpeechEncoder":
        return SpeechEncoder(net, self)


class UniSpeechSATConfig(SpeechConfig):
    """UniSpeech-SAT (Chen et al. 2022, arXiv 2110.05752), pre-trained to tell speakers apart."""

    net: Literal["unispeech_sat"]

    def source(self) -> TransformerWeights:
        return UniSpeechSATWeights(
            net="unispeech_sat", file=self.file, sha256=self.sha256, architecture=self.architecture
        )


class WavLMConfig(SpeechConfig):
    """WavLM (Chen et al. 2022, arXiv 2110.13900)."""

    net: Literal["wavlm"]
    architecture: WavLMArchitecture | None = None

    def source(self) -> TransformerWeights:
        return WavLMWeights(net="wavlm", file=self.file, sha256=self.sha256, architecture=self.architecture)


class SpeechEncoder(ForeignEncoder):
    """A speech transformer, without the layers after the deepest of its depths."""

    def __init__(self, net: SpeechTransformer, config: SpeechConfig) -> None:
        """V2FError if a depth is not in the net."""
        layers, width = len(net.layers), net.architecture.hidden_size
        if config.depths[-1] > layers:
            raise V2FError(f"system.encoder.depths: {config.depths[-1]}, but {config.net} has {layers} layers")
        net.shorten(config.depths[-1])
        if config.normalize is not None:
            net.normalizes = config.normalize
        super().__init__(net, list(net.layers), width, len(config.depths), config)
        self.depths = tuple(config.depths)
        settings = {"architecture": net.architecture.model_dump(mode="json"), "normalize": net.normalizes}
        self.settings = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self._settings = settings

    def features(self, wav_BT: Tensor) -> Tensor:
        states = self.net(wav_BT)
        return torch.stack([states[depth].transpose(1, 2) for depth in self.depths], dim=1)

    def described(self) -> dict[str, Any]:
        return super().described() | self._settings
