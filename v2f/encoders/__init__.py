"""Voice encoders by choice: ours are trained from the start, foreign ones are frozen or thawed.

system.encoder (a configuration with the key ``net``) -> build -> VoiceEncoder: wave [B,T] -> maps [B,C_i,T_i]
                                                    -> frozen -> the same, of weights or of another run, not trained
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from v2f.config import default_net
from v2f.data.transforms import StoredVoice, Transform
from v2f.encoders.ecapa import ECAPAConfig
from v2f.encoders.foreign import ForeignConfig
from v2f.encoders.foreign import ForeignEncoder as ForeignEncoder  # systems ask for its maps
from v2f.encoders.ge2e import GE2EConfig
from v2f.encoders.speech_transformers import UniSpeechSATConfig, WavLMConfig
from v2f.encoders.wen import WenConfig
from v2f.errors import V2FError
from v2f.nn import freeze
from v2f.nn.spectrogram import SpectrogramEncoder
from v2f.nn.voice import VoiceEncoder
from v2f.nn.waveform import WaveformEncoder, other_split
from v2f.weights import Requirements, RunModule
from v2f.weights.runs import read_module

EncoderConfig = Annotated[
    Annotated[
        WaveformEncoder.Config
        | ECAPAConfig
        | GE2EConfig
        | SpectrogramEncoder.Config
        | UniSpeechSATConfig
        | WavLMConfig
        | WenConfig,
        Field(discriminator="net"),
    ],
    default_net("waveform"),
]
FrozenEncoderConfig = Annotated[
    ECAPAConfig | GE2EConfig | UniSpeechSATConfig | WavLMConfig | WenConfig | RunModule, Field(discriminator="net")
]
"""An encoder that is not trained: with the weights of others, or the encoder of another run."""
EncoderOrRunConfig = Annotated[
    Annotated[
        WaveformEncoder.Config
        | ECAPAConfig
        | GE2EConfig
        | SpectrogramEncoder.Config
        | UniSpeechSATConfig
        | WavLMConfig
        | WenConfig
        | RunModule,
        Field(discriminator="net"),
    ],
    default_net("waveform"),
]
"""Any encoder, or that of another run, which is then not trained."""
AnyConfig = WaveformEncoder.Config | SpectrogramEncoder.Config | ForeignConfig


@dataclass(frozen=True)
class Built:
    """A voice encoder, and the SHA-256 of the file that its weights come from, if any."""

    encoder: VoiceEncoder
    sha256: str | None = None

    @property
    def checksums(self) -> dict[str, str]:
        """Role -> SHA-256 of what its features depend on: the file, and settings that may have been read beside it."""
        found = {} if self.sha256 is None else {"encoder": self.sha256}
        if found and isinstance(self.encoder, ForeignEncoder) and self.encoder.settings is not None:
            found["encoder.settings"] = self.encoder.settings
        return found


def build(config: AnyConfig | RunModule, folder: str) -> Built:
    """The encoder of a configuration. ``folder``: where the weights of a foreign net are searched for by name. V2FError
    if the module of a run is no encoder."""
    if isinstance(config, RunModule):
        return frozen(config, folder)
    if isinstance(config, ForeignConfig):
        return Built(*config.load(folder))
    if isinstance(config, SpectrogramEncoder.Config):
        return Built(SpectrogramEncoder(config))
    return Built(WaveformEncoder(config))


def frozen(config: ForeignConfig | RunModule, folder: str) -> Built:
    """The frozen encoder of a configuration that passed :func:`check_frozen`; arguments as for :func:`build`. V2FError
    if the module of a run is no encoder."""
    if isinstance(config, ForeignConfig):
        built = build(config, folder)
        return replace(built, encoder=freeze(built.encoder))
    module, digest = read_module(config, "system.encoder")
    if not isinstance(module, VoiceEncoder):
        raise V2FError(
            f"system.encoder: {config.module} of {config.path} is a {type(module).__name__}, not a voice encoder; "
            "name the module `encoder` of a run that trains one"
        )
    return Built(freeze(module), digest)


def check_frozen(config: ForeignConfig | RunModule) -> None:
    """ValueError if something of the encoder would be trained, or would be read from shards."""
    if isinstance(config, ForeignConfig) and config.trained:
        raise ValueError("the encoder is frozen here: remove thaw and weighted, or train it in a run of its own")
    if isinstance(config, ForeignConfig) and config.precomputed:
        raise ValueError("precomputed features are not read here; set encoder.precomputed to false")


def described(encoder: ForeignEncoder, sha256: str | None, seconds: float) -> dict[str, Any]:
    """What identifies the features of ``seconds`` of a voice; ``sha256``: that of the encoder's file."""
    return encoder.described() | {"sha256": sha256, "seconds": seconds, "sample_rate": encoder.config.sample_rate}


def stored(encoder: VoiceEncoder, sha256: str | None, seconds: float) -> StoredVoice | None:
    """The transform that reads the encoder's features from shards, if it is configured to; arguments as above."""
    if not isinstance(encoder, ForeignEncoder) or not encoder.config.precomputed:
        return None
    return StoredVoice(described(encoder, sha256, seconds))


def trained(config: AnyConfig | RunModule) -> tuple[str, ...]:
    """The names of the parts that training changes, as :meth:`VoiceEncoder.trained` has them; none of the module of a
    run."""
    if isinstance(config, RunModule):
        return ()
    return config.trained if isinstance(config, ForeignConfig) else ("encoder",)


def reads(encoder: VoiceEncoder, wav: Transform, sha256: str | None, seconds: float) -> dict[str, Transform]:
    """What training reads of a voice: ``wav`` by the transform ``wav``, or ``voice_features``, if the encoder is
    configured to read them from shards. ``sha256`` and ``seconds`` as for :func:`described`."""
    features = stored(encoder, sha256, seconds)
    return {"wav": wav} if features is None else {"voice_features": features}


def maps_of(encoder: VoiceEncoder, batch: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The maps [B,C_i,T_i] of a batch that has what :func:`reads` says."""
    if "voice_features" not in batch:
        maps: tuple[Tensor, ...] = encoder(batch["wav"])
        return maps
    assert isinstance(encoder, ForeignEncoder), "only a foreign encoder's features are stored"
    return encoder.maps(batch["voice_features"].to(next(encoder.parameters()).dtype))


def with_encoder(required: Requirements, config: AnyConfig | RunModule) -> Requirements:
    """``required`` and the file of a foreign encoder, or the module of a run, in the role ``encoder``."""
    if isinstance(config, RunModule):
        return replace(required, run_modules={**required.run_modules, "encoder": config})
    if not isinstance(config, ForeignConfig) or config.random:
        return required
    return replace(required, user_weights={**required.user_weights, "encoder": config.source()})


def check_rate(config: AnyConfig | RunModule, sample_rate: int) -> None:
    """ValueError if an encoder works at another sample rate: a foreign one was trained at it."""
    if isinstance(config, ForeignConfig) and config.sample_rate != sample_rate:
        raise ValueError(f"sample_rate is {sample_rate}, {config.net} takes {config.sample_rate} Hz; set it to that")
    if isinstance(config, SpectrogramEncoder.Config) and config.sample_rate != sample_rate:
        raise ValueError(f"sample_rate is {sample_rate}, encoder.sample_rate {config.sample_rate}; make them equal")


def misfit(config: AnyConfig, shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Why an encoder with these tensor shapes, by name, does not fit ``config``, where this is known; else None."""
    return other_split(config, shapes) if isinstance(config, WaveformEncoder.Config) else None
