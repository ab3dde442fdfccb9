"""The frozen nets of a system: stand-ins of the synthetic world, weights that the user provides, or modules of runs.

    FrozenConfig (part of a recipe) -> find, check, read, fill (strictly) -> FrozenNets: generator, identity, ...

A file is given by its own path, or by a usual name in ``FrozenConfig.path``, which is a folder or an ``s3://`` mirror.
It is identified by its SHA-256, loaded with ``weights_only=True`` or as safetensors, and must match the net name by
name. Nothing is downloaded.
"""

from v2f.weights.config import (
    LEAST_SIDE,
    DlibWeights,
    ECAPAWeights,
    FaceNetWeights,
    FrozenConfig,
    GE2EWeights,
    IRSE50Weights,
    JudgeConfig,
    LPIPSWeights,
    Precomputed,
    PSPDecoderWeights,
    PSPEncoderWeights,
    Requirements,
    ResNet50Weights,
    StandInWeights,
    StyleGAN2Weights,
    TransformerWeights,
    UniSpeechSATWeights,
    UserWeights,
    WavLMWeights,
    WenGeneratorWeights,
    WenWeights,
)
from v2f.weights.layouts import read
from v2f.weights.nets import FrozenNets, JudgeNets, described, load, load_judges, load_mtcnn, load_psp, locate
from v2f.weights.runs import RunModule

__all__ = [
    "LEAST_SIDE",
    "DlibWeights",
    "ECAPAWeights",
    "FaceNetWeights",
    "FrozenConfig",
    "FrozenNets",
    "GE2EWeights",
    "IRSE50Weights",
    "JudgeConfig",
    "JudgeNets",
    "LPIPSWeights",
    "PSPDecoderWeights",
    "PSPEncoderWeights",
    "Precomputed",
    "Requirements",
    "ResNet50Weights",
    "RunModule",
    "StandInWeights",
    "StyleGAN2Weights",
    "TransformerWeights",
    "UniSpeechSATWeights",
    "UserWeights",
    "WavLMWeights",
    "WenGeneratorWeights",
    "WenWeights",
    "described",
    "load",
    "load_judges",
    "load_mtcnn",
    "load_psp",
    "locate",
    "read",
]
