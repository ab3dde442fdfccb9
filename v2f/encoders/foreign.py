"""Voice encoders that others trained: frozen, or with their last blocks thawed.

    wave [B,T] -> the foreign net, always as in evaluation -> features [B,K,C,T'] of K depths -> maps [B,C,T']

Letters: B batch, T samples, K depths, C channels, T' frames.
"""

import abc
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f import weights
from v2f.errors import V2FError
from v2f.nn import freeze
from v2f.nn.voice import LayerWeights, VoiceEncoder
from v2f.weights import UserWeights

_NOT_OF_FEATURES = {"file", "sha256", "random", "thaw", "weighted", "precomputed"}

RATE = 16_000  # Hz, of all foreign encoders here
MAPS = 3  # of a weighted sum over depths: coarse, middle and fine styles, as in pSp


class ForeignConfig(UserWeights):
    """The keys of every foreign encoder. Its trained parts are ``thawed`` and ``layers`` in ``optimizer.lr``."""

    net: str
    random: bool = Field(False, description="random weights instead of a file: for tests, or with thaw: all")
    thaw: Annotated[int, Field(ge=0)] | Literal["all"] = Field(
        0, description="train the last so many blocks, or the whole net"
    )
    weighted: bool = Field(
        False, description="three maps, each a learned weighted sum of all depths, instead of a map for each depth"
    )
    precomputed: bool = Field(
        False,
        description="in training, read the features from the shards, where `v2f shards precompute --voice` stored them",
    )
    sample_rate: ClassVar[int] = RATE

    @model_validator(mode="after")
    def _stored_features_stay_true(self) -> "ForeignConfig":
        if self.precomputed and (self.thaw or self.random):
            raise ValueError("precomputed: only features of a frozen net from a file can be stored; set thaw to 0")
        return self

    @property
    def trained(self) -> tuple[str, ...]:
        """The names of the trained parts; none if the encoder is frozen."""
        return ("thawed",) * (self.thaw != 0) + ("layers",) * self.weighted

    @abc.abstractmethod
    def source(self) -> UserWeights:
        """The weights alone, as :func:`v2f.weights.read` takes them."""

    @abc.abstractmethod
    def create(self) -> nn.Module:
        """The net with random weights."""

    @abc.abstractmethod
    def wrapped(self, net: nn.Module) -> "ForeignEncoder":
        """The encoder around the net."""

    def load(self, folder: str) -> "tuple[ForeignEncoder, str | None]":
        """The encoder, and its file's SHA-256. The file is named by ``file``, or found in ``folder`` by a usual name;
        V2FError if there is none or its tensors do not fit."""
        if self.random:
            return self.wrapped(self.create()), None
        source = self.source()
        try:
            net, digest = weights.read(source, weights.locate(folder, source))
        except V2FError as error:
            raise error.at("system.encoder") from error
        return self.wrapped(net), digest


class ForeignEncoder(VoiceEncoder):
    """A foreign net, its depths, and what of it is trained.

    The net always computes as in evaluation, also where it is trained: no dropout, no masks, and batch norms keep the
    statistics they came with, so the result does not depend on the rest of the batch (promise 3,
    docs/architecture.md). One case differs: an ECAPA-TDNN that is trained whole from random weights has ghost batch
    norm (:mod:`v2f.encoders.ecapa`).
    """

    def __init__(
        self, net: nn.Module, blocks: Sequence[nn.Module], channels: int, depths: int, config: ForeignConfig
    ) -> None:
        """``blocks``: what can be thawed, first ones first; V2FError if fewer than ``config.thaw``. ``channels``: C."""
        super().__init__()
        self.config = config
        self.net = freeze(net)
        self._trained: dict[str, nn.Module] = {}  # a dict, because a checkpoint names a trained part once
        if config.thaw == "all":
            self._trained["thawed"] = net
        elif config.thaw:
            if config.thaw > len(blocks):
                raise V2FError(f"system.encoder.thaw: {config.thaw}, but {config.net} has {len(blocks)} blocks")
            self._trained["thawed"] = nn.ModuleList(blocks[-config.thaw :])
        for part in self._trained.values():
            part.requires_grad_(True)
        self.layers = LayerWeights(depths, MAPS) if config.weighted else None
        if self.layers is not None:
            self._trained["layers"] = self.layers
        self.channels = (channels,) * (MAPS if config.weighted else depths)

    settings: str | None = None
    """The SHA-256 of what the net computes with besides its weights, if files beside them may say it."""

    @abc.abstractmethod
    def features(self, wav_BT: Tensor) -> Tensor:
        """The features of the chosen depths, shallow ones first: [B,K,C,T']."""

    def maps(self, features_BKCT: Tensor) -> tuple[Tensor, ...]:
        """The maps, from :meth:`features` or from features that the shards hold."""
        features_KBCT = features_BKCT.transpose(0, 1)
        return features_KBCT.unbind(0) if self.layers is None else self.layers(features_KBCT)

    def forward(self, wav_BT: Tensor) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and "thawed" in self._trained):
            features_BKCT = self.features(wav_BT)
        return self.maps(features_BKCT)

    def trained(self) -> dict[str, nn.Module]:
        return self._trained

    def described(self) -> dict[str, Any]:
        """What :meth:`features` depend on besides the file of weights, as plain JSON."""
        return self.config.model_dump(mode="json", exclude=_NOT_OF_FEATURES)
