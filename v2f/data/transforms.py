"""What a system reads of a sample: small frozen objects that make one array of it.

``rng`` is keyed by (seed, slot, the transform's name) in training; None asks for the one deterministic reading
(evaluation). A transform that has to choose as another one does names that one in an attribute ``draws_as``.

Shape letters: T audio frames, H height, W width, C channels, L styles, D style width.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from v2f.data.sample import Sample
from v2f.errors import V2FError


class Transform(Protocol):
    """A picklable callable, of a class that a module (not a script) defines; equal shapes for all samples.

    Optional: ``draws_as: str``, the name of the transform with whose ``rng`` it is called."""

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[Any]: ...


@dataclass(frozen=True)
class Waveform:
    """``seconds`` of the clip as float32 [T] in [-1, 1]: a random window (in evaluation the middle one) of a
    longer clip; a shorter clip is repeated to the length."""

    seconds: float
    sample_rate: int = 16000

    @property
    def frames(self) -> int:
        return round(self.seconds * self.sample_rate)

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[np.float32]:
        wav_T = sample.waveform()
        if sample.sample_rate != self.sample_rate:
            wav_T = resample(wav_T, sample.sample_rate, self.sample_rate)
        spare = len(wav_T) - self.frames
        if spare < 0:
            return np.resize(wav_T, self.frames)
        start = spare // 2 if rng is None else int(rng.integers(spare + 1))
        return wav_T[start : start + self.frames]


@dataclass(frozen=True)
class Photo:
    """One of the sample's photos (in evaluation the first), uint8 [3, size, size], RGB.

    A photo that is not square is cut to its middle; another size is resampled (Lanczos).
    """

    size: int

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[np.uint8]:
        return square(sample.photo(_chosen(sample, rng)), self.size).transpose(2, 0, 1)


@dataclass(frozen=True)
class Codes:
    """w+ of the photo that the :class:`Photo` called ``draws_as`` gives, float32 [styles, width]."""

    styles: int
    width: int = 512
    draws_as: str = "image"

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[np.float32]:
        codes_LD = sample.codes(_chosen(sample, rng))
        if codes_LD.shape != (self.styles, self.width):
            raise V2FError(
                f"sample {sample.key}: its codes have {codes_LD.shape[0]} styles x {codes_LD.shape[1]}, the generator "
                f"takes {self.styles} x {self.width}; pack it anew with a pSp for that generator"
            )
        return codes_LD


def _chosen(sample: Sample, rng: np.random.Generator | None) -> int:
    """The number of one photo: by chance, in evaluation the first."""
    return 0 if rng is None else int(rng.integers(sample.photo_count))


@dataclass(frozen=True)
class Factors:
    """The synthetic person's true factors of one group, float32 [factors]; for upper bounds, never for training."""

    group: Literal["voice", "face", "clip"]

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[np.float32]:
        try:
            return np.array(list(sample.meta["factors"][self.group].values()), dtype=np.float32)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise V2FError(f"sample {sample.key}: its JSON has no {self.group} factors; is it synthetic?") from error


def square(photo_HWC: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """The middle square of a photo at ``size`` x ``size``, uint8 [size, size, 3]."""
    height, width, _ = photo_HWC.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    photo_HWC = photo_HWC[top : top + side, left : left + side]
    if side == size:
        return photo_HWC
    image = Image.fromarray(np.ascontiguousarray(photo_HWC))
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def resample(wav_T: npt.NDArray[np.float32], rate: int, wanted: int) -> npt.NDArray[np.float32]:
    from scipy.signal import resample_poly  # slow to import, and packed data seldom need it

    divisor = int(np.gcd(rate, wanted))
    return np.asarray(resample_poly(wav_T, wanted // divisor, rate // divisor), dtype=np.float32)
