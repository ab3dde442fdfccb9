"""Random augmentation of recordings and photos, drawn anew for each training slot.

    sample --of--> values --each of `changes` in turn, with its chance--> values of the same shape and type

    "wav": Augment(Waveform(6.0), (AddNoise(snr=(5.0, 30.0)), Reverb(), Codec(), Gaps(), Stutters()))
    "image": Augment(Photo(256), (Flip(), Color(), Crop()))

All randomness comes from the transform's ``rng``, keyed by (seed, slot, name). ``of`` draws first, so it picks the same
window or photo as without augmentation. With ``rng`` None (evaluation) nothing changes. A range is (least, most), from
which a value is drawn uniformly; a chance is a probability from 0 to 1.

Shape letters: T audio frames, C channels, H height, W width, F frequencies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from v2f.data.audio import resample
from v2f.data.sample import Sample, pillow_image
from v2f.data.transforms import Photo, Transform, Waveform, bound
from v2f.errors import V2FError

if TYPE_CHECKING:
    from v2f.data.manifest import Dataset

Pixels = npt.NDArray[np.uint8]
Range = tuple[float, float]

_MU = 255  # of mu-law


class Change(Protocol):
    """One augmentation of a sound or a picture: a picklable callable that keeps shape and type."""

    @property
    def kind(self) -> Literal["sound", "picture"]:
        """Its input: a sound, float32 [T] in [-1, 1], or a picture, uint8 [C, H, W]."""
        ...

    @property
    def chance(self) -> float: ...

    def __call__(self, values: Any, /, rng: np.random.Generator, rate: int) -> Any:
        """The changed ``values`` as a new array; ``rate``: sample rate of a sound."""
        ...


@dataclass(frozen=True)
class Augment:
    """Reads with ``of``, then applies each of ``changes`` with its chance. ``sample_rate``: rate of the sound that
    ``of`` returns; not needed for a :class:`Waveform`, which knows its rate."""

    of: Transform
    changes: tuple[Change, ...]
    sample_rate: int | None = None

    def __post_init__(self) -> None:
        for change in self.changes:
            other = Photo if change.kind == "sound" else Waveform
            if isinstance(self.of, other):
                raise V2FError(f"{type(change).__name__} changes a {change.kind}, {other.__name__} gives none")
            if change.kind == "sound" and self._rate is None:
                raise V2FError(f"{type(change).__name__} needs the sample rate: set sample_rate of Augment")

    @property
    def _rate(self) -> int | None:
        return self.of.sample_rate if self.sample_rate is None and isinstance(self.of, Waveform) else self.sample_rate

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[Any]:
        values = self.of(sample, rng)
        if rng is not None:
            for change in self.changes:
                if rng.random() < change.chance:
                    values = change(values, rng, self._rate or 0)
        return values

    @property
    def draws_as(self) -> str:
        """The ``draws_as`` of ``of``; AttributeError if ``of`` has none, so that :class:`Augment` has none either."""
        of: Any = self.of
        return str(of.draws_as)

    def check(self, root: str, provenance: Mapping[str, Any]) -> None:
        of: Any = self.of
        if hasattr(of, "check"):
            of.check(root, provenance)

    def bind(self, datasets: "Sequence[Dataset]") -> "Augment":
        return replace(self, of=bound({"of": self.of}, datasets)["of"])


def _check(change: Any, least: float, most: float, *names: str) -> None:
    """:class:`V2FError` where a range is none, or goes beyond [least, most], or the chance is none."""
    who = type(change).__name__
    if not 0 <= change.chance <= 1:
        raise V2FError(f"{who}: a chance is from 0 to 1, got {change.chance}")
    for name in names:
        low, high = getattr(change, name)
        if not least <= low <= high <= most:
            raise V2FError(f"{who}: {name} is a range (least, most) within {least:g} and {most:g}, got ({low}, {high})")


# ------------------------------------------------------------------------------------------------- sound


def _power(wav_T: npt.NDArray[np.float32]) -> float:
    return float(np.mean(np.square(wav_T, dtype=np.float64)))


def _within(wav_T: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """A sound scaled down if it exceeds full scale."""
    quieter_T: npt.NDArray[np.float32] = np.asarray(wav_T / max(1.0, float(np.abs(wav_T).max(initial=0.0))), np.float32)
    return quieter_T


@dataclass(frozen=True)
class AddNoise:
    """Noise at ``snr`` dB below the clip, mean power to mean power: white, or pink (its power falls as 1/f, 3 dB an
    octave). A silent clip stays silent."""

    snr: Range = (5.0, 30.0)
    colors: tuple[Literal["white", "pink"], ...] = ("white", "pink")
    chance: float = 0.5
    kind: Literal["sound"] = "sound"

    def __post_init__(self) -> None:
        _check(self, -60.0, 120.0, "snr")
        if not self.colors or not {*self.colors} <= {"white", "pink"}:
            raise V2FError(f"AddNoise: colors are white and pink, got {self.colors}")

    def __call__(self, wav_T: npt.NDArray[np.float32], rng: np.random.Generator, rate: int) -> npt.NDArray[np.float32]:
        snr, color = rng.uniform(*self.snr), self.colors[int(rng.integers(len(self.colors)))]
        noise_T = rng.standard_normal(len(wav_T))
        if color == "pink":
            spectrum_F = np.fft.rfft(noise_T)
            noise_T = np.fft.irfft(spectrum_F / np.sqrt(np.maximum(np.arange(len(spectrum_F)), 1)), len(wav_T))
        power = float(np.mean(noise_T**2))
        return _within(wav_T + noise_T * np.sqrt(_power(wav_T) / max(power, 1e-30)) * 10 ** (-snr / 20))


@dataclass(frozen=True)
class Gaps:
    """``count`` stretches of ``seconds`` each are silenced, as if packets were lost."""

    count: tuple[int, int] = (1, 3)
    seconds: Range = (0.02, 0.2)
    chance: float = 0.3
    kind: Literal["sound"] = "sound"

    def __post_init__(self) -> None:
        _check(self, 0.0, 1000.0, "count", "seconds")

    def __call__(self, wav_T: npt.NDArray[np.float32], rng: np.random.Generator, rate: int) -> npt.NDArray[np.float32]:
        broken_T = wav_T.copy()
        for _ in range(int(rng.integers(self.count[0], self.count[1] + 1))):
            start, length = _stretch(len(wav_T), self.seconds, rng, rate)
            broken_T[start : start + length] = 0.0
        return broken_T


@dataclass(frozen=True)
class Stutters:
    """``count`` stretches of ``seconds`` each are repeated; the end of the clip is cut off."""

    count: tuple[int, int] = (1, 2)
    seconds: Range = (0.05, 0.2)
    chance: float = 0.2
    kind: Literal["sound"] = "sound"

    def __post_init__(self) -> None:
        _check(self, 0.0, 1000.0, "count", "seconds")

    def __call__(self, wav_T: npt.NDArray[np.float32], rng: np.random.Generator, rate: int) -> npt.NDArray[np.float32]:
        frames = len(wav_T)
        for _ in range(int(rng.integers(self.count[0], self.count[1] + 1))):
            start, length = _stretch(frames, self.seconds, rng, rate)
            wav_T = np.concatenate([wav_T[: start + length], wav_T[start:]])[:frames]
        return wav_T.copy()


def _stretch(frames: int, seconds: Range, rng: np.random.Generator, rate: int) -> tuple[int, int]:
    """Start and length, in frames, of a random stretch within the clip."""
    length = min(frames, round(rng.uniform(*seconds) * rate))
    return int(rng.integers(frames - length + 1)), length


@dataclass(frozen=True)
class Gain:
    """The sound is amplified by a level in ``decibels``, drawn uniformly; never beyond full scale."""

    decibels: Range = (-6.0, 6.0)
    chance: float = 1.0
    kind: Literal["sound"] = "sound"

    def __post_init__(self) -> None:
        _check(self, -60.0, 60.0, "decibels")

    def __call__(self, wav_T: npt.NDArray[np.float32], rng: np.random.Generator, rate: int) -> npt.NDArray[np.float32]:
        return _within(wav_T * 10 ** (rng.uniform(*self.decibels) / 20))


@dataclass(frozen=True)
class Shift:
    """The sound begins up to ``seconds`` later, drawn uniformly; what leaves at its end comes in at its start."""

    seconds: Range = (0.0, 0.2)
    chance: float = 1.0
    kind: Literal["sound"] = "sound"

    def __post_init__(self) -> None:
        _check(self, 0.0, 1000.0, "seconds")

    def __call__(self, wav_T: npt.NDArray[np.float32], rng: np.random.Generator, rate: int) -> npt.NDArray[np.float32]:
        return np.roll(wav_T, round(rng.uniform(*self.seconds) * rate))


@dataclass(frozen=True)
class Codec:
    """A narrow-band line: limits the band to half of one of ``rates`` (Hz), and with the probability ``mu_law``
    quantizes each frame to 8 bits (ITU-T G.711, mu 255). A rate not below the clip's own does not limit the band."""

    rates: tuple[int, ...] = (8000,)
    mu_law: float = 0.5
    chance: float = 0.3
    kind: Literal["sound"] = "sound"

    def __post_init__(self) -> None:
        _check(self, 0.0, 1.0)
        if not self.rates or min(self.rates) < 1000 or not 0 <= self.mu_law <= 1:
            raise V2FError(f"Codec: rates from 1000 Hz on, mu_law from 0 to 1, got {self.rates} and {self.mu_law}")

    def __call__(self, wav_T: npt.NDArray[np.float32], rng: np.random.Generator, rate: int) -> npt.NDArray[np.float32]:
        narrow, compress = self.rates[int(rng.integers(len(self.rates)))], rng.random() < self.mu_law
        heard_T = resample(wav_T, rate, narrow) if narrow < rate else wav_T
        if compress:
            heard_T = _mu_law(np.clip(heard_T, -1.0, 1.0))
        if narrow < rate:
            heard_T = resample(heard_T, narrow, rate)
        heard_T = np.pad(heard_T[: len(wav_T)], (0, max(0, len(wav_T) - len(heard_T))))
        return _within(heard_T)


def _mu_law(wav_T: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A sound in [-1, 1] quantized to 255 levels, which are finer at low amplitudes."""
    level_T = np.round(127 * np.sign(wav_T) * np.log1p(_MU * np.abs(wav_T)) / np.log1p(_MU)) / 127
    expanded_T: npt.NDArray[np.float32] = np.asarray(
        np.sign(level_T) * np.expm1(np.abs(level_T) * np.log1p(_MU)) / _MU, np.float32
    )
    return expanded_T


@dataclass(frozen=True)
class Reverb:
    """A room: adds a noise tail that decays by 60 dB in ``rt60`` seconds and has ``direct`` dB less energy than the
    direct sound. The clip keeps its mean power unless it would exceed full scale."""

    rt60: Range = (0.2, 0.8)
    direct: Range = (0.0, 15.0)
    chance: float = 0.3
    kind: Literal["sound"] = "sound"

    def __post_init__(self) -> None:
        _check(self, 0.01, 20.0, "rt60")
        _check(self, -30.0, 60.0, "direct")

    def __call__(self, wav_T: npt.NDArray[np.float32], rng: np.random.Generator, rate: int) -> npt.NDArray[np.float32]:
        rt60, direct = rng.uniform(*self.rt60), rng.uniform(*self.direct)
        frames = min(len(wav_T), max(2, round(rt60 * rate)))
        response_T = rng.standard_normal(frames) * np.exp(-np.log(1000.0) * np.arange(frames) / (rt60 * rate))
        response_T[0] = 0.0
        response_T *= 10 ** (-direct / 20) / np.sqrt(max(float(np.sum(response_T**2)), 1e-30))
        response_T[0] = 1.0
        size = 1 << (len(wav_T) + frames - 2).bit_length()
        wet_T = np.fft.irfft(np.fft.rfft(wav_T, size) * np.fft.rfft(response_T, size), size)[: len(wav_T)]
        return _within(wet_T * np.sqrt(_power(wav_T) / max(float(np.mean(wet_T**2)), 1e-30)))


# ----------------------------------------------------------------------------------------------- picture


@dataclass(frozen=True)
class Flip:
    """Mirrors the picture horizontally."""

    chance: float = 0.5
    kind: Literal["picture"] = "picture"

    def __post_init__(self) -> None:
        _check(self, 0.0, 1.0)

    def __call__(self, image_CHW: Pixels, rng: np.random.Generator, rate: int) -> Pixels:
        return np.ascontiguousarray(image_CHW[..., ::-1])


@dataclass(frozen=True)
class Color:
    """Scales the brightness, the contrast (the distance from the mean brightness) and the saturation (the distance from
    gray; RGB only); a factor of 1 changes nothing."""

    brightness: Range = (0.8, 1.2)
    contrast: Range = (0.8, 1.2)
    saturation: Range = (0.8, 1.2)
    chance: float = 0.5
    kind: Literal["picture"] = "picture"

    def __post_init__(self) -> None:
        _check(self, 0.0, 10.0, "brightness", "contrast", "saturation")

    def __call__(self, image_CHW: Pixels, rng: np.random.Generator, rate: int) -> Pixels:
        brightness, contrast, saturation = (
            np.float32(rng.uniform(*each)) for each in (self.brightness, self.contrast, self.saturation)
        )
        values_CHW = image_CHW.astype(np.float32) * brightness
        values_CHW = _luma(values_CHW).mean() * (1 - contrast) + values_CHW * contrast
        values_CHW = _luma(values_CHW) * (1 - saturation) + values_CHW * saturation
        return np.clip(np.rint(values_CHW), 0, 255).astype(np.uint8)


def _luma(values_CHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Brightness by ITU-R BT.601, [1, H, W]."""
    if len(values_CHW) == 1:
        return values_CHW
    luma_HW: npt.NDArray[np.float32] = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), values_CHW, 1)
    return luma_HW[None]


@dataclass(frozen=True)
class Crop:
    """A random crop whose sides are ``share`` of the picture's, resized to the full size (Lanczos)."""

    share: Range = (0.8, 1.0)
    chance: float = 0.5
    kind: Literal["picture"] = "picture"

    def __post_init__(self) -> None:
        _check(self, 0.01, 1.0, "share")

    def __call__(self, image_CHW: Pixels, rng: np.random.Generator, rate: int) -> Pixels:
        height, width = image_CHW.shape[1:]
        share = rng.uniform(*self.share)
        tall, wide = max(1, round(share * height)), max(1, round(share * width))
        top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
        part_HWC = image_CHW[:, top : top + tall, left : left + wide].transpose(1, 2, 0)
        resized = np.asarray(pillow_image(part_HWC).resize((width, height), Image.Resampling.LANCZOS))
        return np.ascontiguousarray(resized.reshape(height, width, -1).transpose(2, 0, 1))
