"""The voice encoder ``wen``: the speaker embedding of Wen, Raj and Singh (NeurIPS 2019, arXiv 1905.10604).

    wave [B,T] -> log-mel [B,64,F] -> frames of speech (:mod:`v2f.nn.vad`) -> mean 0 and variance 1
      -> the frames again until there are F -> VoiceEmbedding (:mod:`v2f.nn.wen`) -> one vector, [B,1,E,1]

Front end of the authors' code: 64 mel bands from 20 to 7,200 Hz, windows of 25 ms every 10 ms, a Fourier transform of
1,024. It differs in three points: windows are Hann's, not Hamming's, frames are centered, and there is no pre-emphasis,
which is nearly a constant in the logarithms of a band, and the normalization subtracts it. On voices of the synthetic
world, a band's values correlate with those of the authors' formulas by 0.99 in the median (a test requires 0.98). The
detector of speech is another one (:mod:`v2f.nn.vad`). Like the authors, it drops silence before the normalization, and
repeats what is left.

Letters: B batch, T samples, F frames, E width of the vector.
"""

from functools import partial
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f.encoders.foreign import RATE, ForeignConfig, ForeignEncoder
from v2f.nn import vad
from v2f.nn.batchnorm import GhostBatchNorm, ghost_norms
from v2f.nn.spectrogram import LogMel, LogMelConfig, standardized
from v2f.nn.wen import BANDS, VoiceEmbedding
from v2f.weights import WenWeights

FRONT = LogMelConfig(sample_rate=RATE, bands=BANDS, fft=1024, f_max=7200.0, eps=1e-9, normalize=False)


class WenConfig(ForeignConfig, VoiceEmbedding.Config):
    """Sizes other than the published ones need a file of such a net, or ``random``.

    With ``random: true`` and ``thaw: all`` the net is trained from the start, as the part ``encoder`` with ghost batch
    norms. Else it computes as in evaluation, and ``thaw`` counts convolutions from the last one.
    """

    net: Literal["wen"]
    silence: Annotated[float, Field(gt=0)] | None = Field(
        35.0, description="dB below a clip's loudest frame from which on a frame is silent and dropped; null: none is"
    )
    normalize: Literal["bands", "clip"] = Field(
        "bands",
        description="what has mean 0 and variance 1: each band of a clip, as in the authors' code, or the clip, whose "
        "bands then keep their levels against each other, and with them the timbre of the voice",
    )
    bn_group: Annotated[int, Field(ge=2)] = Field(
        4, description="samples in each mean of batch norm; with random and thaw: all"
    )

    @model_validator(mode="after")
    def _one_vector(self) -> "WenConfig":
        if self.weighted:
            raise ValueError("weighted is a sum over several depths, and this net makes one vector: set it to false")
        if self.normalize == "clip" and not self.random:
            raise ValueError("the published weights know normalized bands only: set normalize to bands")
        return self

    @property
    def from_the_start(self) -> bool:
        """Whether the net is trained from random weights."""
        return self.random and self.thaw == "all"

    @property
    def trained(self) -> tuple[str, ...]:
        return ("encoder",) if self.from_the_start else super().trained

    def source(self) -> WenWeights:
        sizes = {name: getattr(self, name) for name in VoiceEmbedding.Config.model_fields}
        return WenWeights(net="wen", file=self.file, sha256=self.sha256, **sizes)

    def create(self) -> VoiceEmbedding:
        return VoiceEmbedding(
            self, partial(GhostBatchNorm, group=self.bn_group) if self.from_the_start else nn.BatchNorm1d
        )

    def wrapped(self, net: nn.Module) -> "WenEncoder":
        assert isinstance(net, VoiceEmbedding)
        return WenEncoder(net, self)


class WenEncoder(ForeignEncoder):
    """Waves [B,T] at 16 kHz -> one map [B,E,1], not normalized."""

    def __init__(self, net: VoiceEmbedding, config: WenConfig) -> None:
        super().__init__(net, _convolutions(net), config.embedding, 1, config)
        self.front = LogMel(FRONT)
        self.silence, self.each_band = config.silence, config.normalize == "bands"
        self.from_the_start = config.from_the_start
        self.train()

    def train(self, mode: bool = True) -> "WenEncoder":
        """The net stays as in evaluation, except its ghost batch norms."""
        super().train(mode)
        for norm in ghost_norms(self.net):
            norm.train(mode)
        return self

    def trained(self) -> dict[str, nn.Module]:
        """The whole encoder if it is trained from the start, so that other runs can name it as a module of the run."""
        return {"encoder": self} if self.from_the_start else super().trained()

    def frames(self, wav_BT: Tensor) -> Tensor:
        """What the net hears: [B,64,1 + T // 160]."""
        log_BMF = self.front(wav_BT)
        below = float("inf") if self.silence is None else self.silence
        speech_BF = vad.speech(log_BMF, below)
        return vad.repeated(standardized(log_BMF, speech_BF, each_band=self.each_band), speech_BF)

    def features(self, wav_BT: Tensor) -> Tensor:
        vector_BE: Tensor = self.net(self.frames(wav_BT))
        return vector_BE[:, None, :, None]


def _convolutions(net: VoiceEmbedding) -> list[nn.Module]:
    """What can be thawed: each convolution with its norm."""
    layers = list(net.model)
    starts = [at for at, layer in enumerate(layers) if isinstance(layer, nn.Conv1d)]
    return [nn.ModuleList(layers[one:other]) for one, other in zip(starts, [*starts[1:], len(layers)], strict=True)]
