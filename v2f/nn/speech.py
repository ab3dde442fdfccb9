"""Transformers on the raw wave, pre-trained on speech by others: the classes of the package ``transformers``.

    wave [B,T] -> convolutions, 320 samples a frame -> projection [B,T',C] -> transformer layers -> states of all depths

UniSpeech-SAT (Chen et al. 2022, arXiv 2110.05752) and WavLM (Chen et al. 2022, arXiv 2110.13900). The published base
nets have 94,371,712 parameters in 211 tensors and 94,381,936 in 248. One of these tensors, ``masked_spec_embed``, is
used by SpecAugment only, and a net here does not have it.

Letters: B batch, T samples, T' frames, C channels.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f.config import Config
from v2f.errors import V2FError

Kind = Literal["unispeech_sat", "wavlm"]
Activation = Literal["gelu", "gelu_new", "relu", "selu"]
Count = Annotated[int, Field(ge=1)]
Counts = Annotated[list[Count], Field(min_length=1, max_length=100)]

MASK = "masked_spec_embed"  # what SpecAugment puts in the place of frames
EPS = 1e-7  # added to the variance of a wave, as transformers' Wav2Vec2FeatureExtractor does
STILL = {
    # what would make a net draw random numbers, all off
    **dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"), 0.0),
    **dict.fromkeys(("final_dropout", "layerdrop", "mask_time_prob", "mask_feature_prob"), 0.0),
    "apply_spec_augment": False,
}


class Architecture(Config):
    """The architecture of a net, with the names of ``config.json``; the defaults are those of the base nets."""

    hidden_size: Count = 768
    num_hidden_layers: Annotated[int, Field(ge=1, le=1000)] = 12
    num_attention_heads: Count = 12
    intermediate_size: Count = 3072
    hidden_act: Activation = "gelu"
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    feat_extract_norm: Literal["group", "layer"] = "group"
    feat_extract_activation: Activation = "gelu"
    conv_dim: Counts = [512, 512, 512, 512, 512, 512, 512]
    conv_stride: Counts = [5, 2, 2, 2, 2, 2, 2]
    conv_kernel: Counts = [10, 3, 3, 3, 3, 2, 2]
    conv_bias: bool = False
    num_conv_pos_embeddings: Count = 128
    num_conv_pos_embedding_groups: Count = 16
    do_stable_layer_norm: bool = False

    @model_validator(mode="after")
    def _fits(self) -> "Architecture":
        if not len(self.conv_dim) == len(self.conv_stride) == len(self.conv_kernel):
            raise ValueError("conv_dim, conv_stride and conv_kernel need one entry per convolution")
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if self.hidden_size % getattr(self, name):
                raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of {name} {getattr(self, name)}")
        return self

    @property
    def shortest(self) -> int:
        """The number of samples that one frame sees."""
        samples = 1
        for kernel, stride in zip(reversed(self.conv_kernel), reversed(self.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    @property
    def normalizes(self) -> bool:
        """Whether a net of this architecture was trained on waves of zero mean and unit variance: those with a layer
        norm after each convolution (the large nets) were, those with one group norm (the base nets) were not."""
        return self.feat_extract_norm == "layer"


class WavLMArchitecture(Architecture):
    """The same, with WavLM's relative positions."""

    num_buckets: Annotated[int, Field(ge=4)] = 320
    max_bucket_distance: Count = 800


class SpeechTransformer(nn.Module):
    """Waves [B,T] in [-1,1] at 16 kHz -> the states [B,T',C] of all depths.

    Depth 0 is what enters the first transformer layer, depth n what leaves the n-th: the ``hidden_states`` of
    transformers. ``normalizes``: whether each wave is shifted to zero mean and scaled to unit variance first; None: as
    :attr:`Architecture.normalizes`.
    """

    def __init__(self, kind: Kind, architecture: Architecture, normalizes: bool | None = None) -> None:
        """Random weights. V2FError if the package ``transformers`` is missing."""
        super().__init__()
        self.kind, self.architecture = kind, architecture
        self.normalizes = architecture.normalizes if normalizes is None else normalizes
        self.net = _create(kind, architecture)

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer layers, first ones first."""
        layers: nn.ModuleList = self.net.encoder.layers
        return layers

    def shorten(self, depth: int) -> None:
        """Remove what the states up to ``depth`` do not need."""
        self.net.encoder.layers = self.layers[:depth]
        if self.architecture.do_stable_layer_norm:
            self.net.encoder.layer_norm = nn.Identity()  # follows the last depth; only heads read its result

    def forward(self, wav_BT: Tensor) -> tuple[Tensor, ...]:
        if wav_BT.ndim != 2 or wav_BT.shape[1] < self.architecture.shortest:
            least = self.architecture.shortest
            raise V2FError(
                f"encoder: expected waves of shape [batch, {least} samples or more], got {list(wav_BT.shape)}"
            )
        if self.normalizes:
            variance_B1, mean_B1 = torch.var_mean(wav_BT, dim=1, correction=0, keepdim=True)
            wav_BT = (wav_BT - mean_B1) * torch.rsqrt(variance_B1 + EPS)
        states: tuple[Tensor, ...] = self.net(wav_BT, output_hidden_states=True).hidden_states
        return states


def _create(kind: Kind, architecture: Architecture) -> Any:
    """transformers' own class with random weights, in evaluation mode."""
    try:  # imported late: it takes seconds
        if kind == "wavlm":
            from transformers.models.wavlm import WavLMConfig as Settings
            from transformers.models.wavlm import WavLMModel as Net
        else:
            from transformers.models.unispeech_sat import UniSpeechSatConfig as Settings
            from transformers.models.unispeech_sat import UniSpeechSatModel as Net
    except ImportError as error:
        raise V2FError(f"{kind} needs the package transformers: pip install 'v2f[transformers]' ({error})") from error
    net = Net(Settings(**architecture.model_dump(), **STILL)).eval()
    if hasattr(net, MASK):
        delattr(net, MASK)
    return net
