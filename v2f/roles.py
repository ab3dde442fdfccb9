"""What some systems can do besides :meth:`~v2f.system.System.sample`, as base classes that other code looks for.

Shape letters: B batch, C channels, H W picture, Z code, K classes, F factors or frames, P features, S condition,
T samples or codes, N codes of a level.
"""

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from v2f.nn.sampling import Sampling
from v2f.system import Generative, Picture, Sound, System, Tokens


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


def most_frequent(score_FK: Tensor) -> int:
    """The class that most frames have, by their scores [F,K]; of equally frequent ones the first."""
    return int(torch.bincount(score_FK.argmax(1), minlength=score_FK.shape[1]).argmax())


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
        return most_frequent(self.scores(img_FCHH))


class PictureReader(Reader, FrameLabeler):
    """A system that reads the labels of a picture. As a labeler of frames, it gives the first of its labels."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(next(iter(self.labels.values())))

    def scores(self, img_BCHH: Tensor) -> Tensor:
        return next(iter(self.read(img_BCHH).scores.values()))


class SoundReader(Reader):
    """A system that reads the labels of a sound."""


class SoundCoder(System):
    """A system that describes a sound by codes, numbers at one level or several, and restores it from them. It asks for
    a sound and makes a sound of the same rate and length.
    """

    @property
    @abc.abstractmethod
    def sound(self) -> Sound:
        """The sound that it codes."""

    @property
    @abc.abstractmethod
    def levels(self) -> Mapping[str, Tokens]:
        """The levels of its codes, coarse to fine: ``top``, ``bottom``; with one level, ``bottom`` alone."""

    @property
    def label(self) -> str | None:
        """The label by whose classes its evaluation tells sounds apart, by its name in a sample."""
        return None

    @property
    def bits(self) -> float:
        """Bits for each sample of a sound, if all codes are equally likely."""
        each = (level.length * math.log2(level.vocabulary) for level in self.levels.values())
        return sum(each) / self.sound.frames

    @abc.abstractmethod
    def encode(self, wav_BT: Tensor) -> dict[str, Tensor]:
        """The codes of sounds in [-1,1], int64 [B,N] for each level."""

    @abc.abstractmethod
    def decode(self, codes: Mapping[str, Tensor]) -> Tensor:
        """The sounds [B,1,T] in [-1,1] of the codes [B,N] of all levels."""


class CodeSampler(System):
    """A system that draws the tokens of one level, given a class or the tokens of the level above."""

    @property
    @abc.abstractmethod
    def target(self) -> Tokens:
        """The tokens that it draws."""

    @abc.abstractmethod
    def draw(self, condition_BS: Tensor, uniform_BT: Tensor, how: Sampling) -> Tensor:
        """Tokens, int64 [B,T]. ``condition_BS``: class numbers [B,1] or the tokens of the level above, int64;
        ``uniform_BT``: a number in [0,1) for each token, which decides the draw."""


@dataclass(frozen=True, kw_only=True)
class CodeScores:
    """How well a system predicts codes, each from the condition and the codes before it."""

    nats: Tensor
    """[B,T]: minus the logarithm of the code's probability."""
    rank: Tensor
    """[B,T]: how many tokens were thought likelier."""


class CodePredictor(CodeSampler):
    """A code sampler that also scores given codes. Its only inputs are the condition, a Label or Tokens, and Noise; a
    transform with the name of its only output reads the codes of a sample."""

    @abc.abstractmethod
    def score(self, condition_BS: Tensor, code_BT: Tensor) -> CodeScores:
        """Scores of codes, int64 [B,T]; ``condition_BS`` as in :meth:`draw`."""


class Labeling(Generative):
    """Something that asks for a label, and that finds the label in a photo or in the frames of a video if one of these
    is given instead."""

    @property
    @abc.abstractmethod
    def looks(self) -> Picture:
        """The photo, or one frame of a video, in which it finds the label."""

    @property
    @abc.abstractmethod
    def frames(self) -> int:
        """The frames of a video that it looks at, spread evenly."""

    @abc.abstractmethod
    def label_of(self, img_FCHW: Tensor) -> tuple[int, Tensor]:
        """The number of the label of pictures in [-1,1] that show one thing, and the share [K] of each label."""
