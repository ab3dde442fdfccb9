"""What some systems can do besides :meth:`~v2f.system.System.sample`, as base classes that other code looks for.

Shape letters: B batch, C channels, H W picture, Z code, K classes, F factors or frames, P features, T samples.
"""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from v2f.system import System


class Restyling(System):
    """A system that makes a picture from a code and a label, its only inputs: Noise is a code, and Label the label.

    It may also find the code of a picture. A picture is *restyled* by the code of that picture and another label.
    """

    @property
    def restyles(self) -> bool:
        """Whether it has an encoder, which :meth:`posterior` needs."""
        return True

    @abc.abstractmethod
    def posterior(self, img_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the log-variance [B,Z] of the codes of pictures in [-1,1] with these labels, if it
        :attr:`restyles`; the mean is *the* code of a picture."""

    @abc.abstractmethod
    def decode(self, code_BZ: Tensor, label_B: Tensor) -> Tensor:
        """The pictures [B,C,H,W] in [-1,1] of codes and labels."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a system reads in pictures or sounds."""

    scores: Mapping[str, Tensor]
    """Label -> scores [B,K] of its classes; the highest is the answer."""
    factors: Tensor
    """[B,F]: estimates of the known factors of a synthetic sample; F is 0 if it estimates none."""
    features: Tensor
    """[B,P]: what scores and factors are computed from."""


class Reader(System):
    """A system that reads the labels of its only input, and may estimate the factors of a synthetic one."""

    @property
    @abc.abstractmethod
    def labels(self) -> Mapping[str, Sequence[str]]:
        """Label, by its name in a sample -> its classes."""

    @property
    @abc.abstractmethod
    def factors(self) -> Sequence[str]:
        """The names of the factors that it estimates."""

    @abc.abstractmethod
    def read(self, rows: Tensor) -> Reading:
        """What it reads in inputs as it asks for them: pictures [B,C,H,H] in [-1,1], or sounds [B,T]."""


class FrameLabeler(System):
    """A system that gives a picture one label, and so every frame of a video."""

    @property
    @abc.abstractmethod
    def names(self) -> tuple[str, ...]:
        """The classes of the label."""

    @abc.abstractmethod
    def scores(self, img_BCHH: Tensor) -> Tensor:
        """A score [B,K] for each class, of pictures in [-1,1] of the size that it asks for; the highest is the
        answer."""

    def label_of(self, img_FCHH: Tensor) -> int:
        """The label of a video with these frames, as its number: the most frequent one, of equally frequent ones the
        first.

        With two classes, that is the median of the frames' labels, as *Sound for pictures* (2024) has it. The numbers
        of more classes have no order, and their median could be a class that no frame shows.
        """
        return int(torch.bincount(self.scores(img_FCHH).argmax(1), minlength=len(self.names)).argmax())


class PictureReader(Reader, FrameLabeler):
    """A system that reads the labels of a picture. As a labeler of frames, it gives the first of its labels."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(next(iter(self.labels.values())))

    def scores(self, img_BCHH: Tensor) -> Tensor:
        return next(iter(self.read(img_BCHH).scores.values()))


class SoundReader(Reader):
    """A system that reads the labels of a sound."""
