"""Voice encoders by choice: ours are trained from the start, foreign ones are frozen or thawed.

system.encoder (a configuration with the key ``net``) -> build -> VoiceEncoder: wave [B,T] -> maps [B,C_i,T_i]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from v2f.encoders.foreign import ForeignConfig
from v2f.encoders.ge2e import GE2EConfig
from v2f.nn.voice import VoiceEncoder
from v2f.nn.waveform import WaveformEncoder, other_split
from v2f.weights import Requirements


def _default_net(value: Any) -> Any:
    """Recipes from before there was a choice have no ``net``."""
    return {"net": "waveform", **value} if isinstance(value, Mapping) else value


EncoderConfig = Annotated[
    Annotated[WaveformEncoder.Config | GE2EConfig, Field(discriminator="net")], BeforeValidator(_default_net)
]
AnyConfig = WaveformEncoder.Config | ForeignConfig


@dataclass(frozen=True)
class Built:
    """A voice encoder, and the SHA-256 of the file that its weights come from, if any."""

    encoder: VoiceEncoder
    sha256: str | None = None


def build(config: AnyConfig, folder: str) -> Built:
    """The encoder of a configuration. ``folder``: where the weights of a foreign net are searched for by name."""
    if isinstance(config, ForeignConfig):
        return Built(*config.load(folder))
    return Built(WaveformEncoder(config))


def with_encoder(required: Requirements, config: AnyConfig) -> Requirements:
    """``required`` and the file of a foreign encoder, in the role ``encoder``."""
    if not isinstance(config, ForeignConfig) or config.random:
        return required
    return replace(required, user_weights={**required.user_weights, "encoder": config.source()})


def check_rate(config: AnyConfig, sample_rate: int) -> None:
    """ValueError if a foreign encoder was trained at another sample rate."""
    if isinstance(config, ForeignConfig) and config.sample_rate != sample_rate:
        raise ValueError(f"sample_rate is {sample_rate}, {config.net} takes {config.sample_rate} Hz; set it to that")


def misfit(config: AnyConfig, shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Why an encoder with these tensor shapes, by name, does not fit ``config``, where this is known; else None."""
    return None if isinstance(config, ForeignConfig) else other_split(config, shapes)
