"""What a system reads of a sample: small frozen objects that make one array of it.

``rng`` is keyed by (seed, slot, the transform's name) in training; None asks for the one deterministic reading
(evaluation). A transform that has to choose as another one does names that one in an attribute ``draws_as``.

Shape letters: T audio frames, H height, W width, C channels, L styles, D style width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from zlib import crc32

import numpy as np
import numpy.typing as npt
from PIL import Image

from v2f.data.sample import Sample
from v2f.errors import V2FError
from v2f.keyed import keyed_rng

_NOISE = 0x4E01  # what a key draws, so that no two draws share a stream


class Transform(Protocol):
    """A picklable callable, of a class that a module (not a script) defines; equal shapes for all samples.

    Optional: ``draws_as: str``, the name of the transform with whose ``rng`` it is called; ``check(root, provenance)``,
    called with where a data set lies and what its manifest says of its making, before it is read: a
    :class:`V2FError` where that cannot be read."""

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

    A photo that is not square is cut to its middle, of which ``share`` of the side is kept; another size is
    resampled (Lanczos).
    """

    size: int
    share: float = 1.0

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[np.uint8]:
        return square(sample.photo(_chosen(sample, rng)), self.size, self.share).transpose(2, 0, 1)


@dataclass(frozen=True)
class Noise:
    """Independent numbers of N(0, 1), float32 [width]; in evaluation always the same ones for a sample."""

    width: int

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[np.float32]:
        own = rng if rng is not None else keyed_rng(_NOISE, crc32(sample.key.encode()))
        return own.standard_normal(self.width, dtype=np.float32)


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


@dataclass(frozen=True)
class Embedding:
    """Identity embedding of the photo that the :class:`Photo` called ``draws_as`` gives, float32 [width], of length one
    but for float16's rounding.

    ``net`` describes the identity net that the system knows: embeddings of another one are refused.
    """

    net: Mapping[str, Any]
    draws_as: str = "image"

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[np.float32]:
        return sample.embedding(_chosen(sample, rng))

    def check(self, root: str, provenance: Mapping[str, Any]) -> None:
        found = provenance.get("precomputed", {}).get("identity")
        if found is None:
            raise V2FError(
                f"{root}: it holds no identity embeddings; write them with `v2f shards precompute`, or set "
                "system.frozen.embeddings=null"
            )
        if found != self.net:
            raise V2FError(
                f"{root}: its identity embeddings are of another net ({_shown(found)}) than system.frozen.identity "
                f"({_shown(self.net)}); compute them with this one, or set system.frozen.embeddings=null"
            )


def _shown(net: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {str(value)[:16]}" for name, value in net.items())


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


def square(photo_HWC: npt.NDArray[np.uint8], size: int, share: float = 1.0) -> npt.NDArray[np.uint8]:
    """The middle square of a photo, ``share`` of its shorter side, at ``size`` x ``size``: uint8 [size, size, 3]."""
    height, width, _ = photo_HWC.shape
    side = max(1, round(share * min(height, width)))
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
