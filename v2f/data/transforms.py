"""Transforms: what a system reads of a sample. Each is a small frozen object that makes one array of it.

``rng`` is keyed by (seed, slot, the transform's name) in training; None means the deterministic reading (evaluation). A
transform that has to make the same random choices as another one names it in an attribute ``draws_as``.

A transform learns what depends on the data set, such as its classes and people, before anything is read: :func:`bound`.
A part that the samples do not have is a :class:`V2FError`, before the start if the manifest says so.

Shape letters: T audio frames, H height, W width, C channels, L styles, D style width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable
from zlib import crc32

import numpy as np
import numpy.typing as npt
from PIL import Image

from v2f.data.audio import resample
from v2f.data.sample import AUDIO, PHOTOS, VOICE, Sample, pillow_image
from v2f.errors import V2FError
from v2f.keyed import keyed_rng

if TYPE_CHECKING:
    from v2f.data.manifest import ArrayKind, Dataset  # not at run time, so that decode workers start faster

_NOISE, _UNIFORM = 0x4E01, 0x4E02  # what a key draws, so that no two draws share a stream


class Transform(Protocol):
    """A picklable callable whose class is defined in a module (not a script); it returns equal shapes for all samples.

    Optional: ``draws_as: str``, the transform whose ``rng`` it gets (:class:`Following`); ``check(root, provenance)``
    (:class:`Checking`); ``bind(datasets)`` (:class:`Binding`)."""

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[Any]: ...


@runtime_checkable
class Checking(Protocol):
    """A transform that cannot read every data set: it is asked before reading starts."""

    def check(self, root: str, provenance: Mapping[str, Any]) -> None:
        """:class:`V2FError` if it cannot read the data set at ``root``, whose manifest has this ``provenance``."""


@runtime_checkable
class Following(Protocol):
    """A transform that makes the same random choices as another one: it is called with an equal ``rng``."""

    @property
    def draws_as(self) -> str:
        """The name of the other transform."""


@runtime_checkable
class Binding(Protocol):
    """A transform that depends on the data sets."""

    def bind(self, datasets: "Sequence[Dataset]") -> Transform:
        """The transform for these data sets, which are read together; :class:`V2FError` if they lack what it reads. A
        transform that is bound already, or was given all it needs, only checks."""
        ...


def bound(transforms: Mapping[str, Transform], datasets: "Sequence[Dataset]") -> dict[str, Transform]:
    """The transforms, with those that depend on data bound to ``datasets``.

    Code that reads a split binds to the data sets of that split. In a mix, the people of the first data set get the
    first numbers, so validation, which reads that data set, numbers them alike. Before transforms read yet another data
    set, bind them to the training data, so that classes and people keep their numbers.
    """
    return {name: each.bind(datasets) if isinstance(each, Binding) else each for name, each in transforms.items()}


def _want(part: str, datasets: "Sequence[Dataset]") -> None:
    for dataset in datasets:
        if part not in dataset.manifest.holds:
            holds = " and ".join(dataset.manifest.holds) or "arrays"
            raise V2FError(f"{dataset.root}: {part} is needed, but not every sample has it: all hold {holds}")


@dataclass(frozen=True)
class Waveform:
    """``seconds`` of the clip at ``sample_rate``, float32 [T] in [-1, 1]: a random window of a longer clip (in
    evaluation the middle one); a shorter clip is repeated to the length."""

    seconds: float
    sample_rate: int = 16000

    @property
    def frames(self) -> int:
        return round(self.seconds * self.sample_rate)

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[np.float32]:
        wav_T = resample(sample.waveform(), sample.sample_rate, self.sample_rate)
        spare = len(wav_T) - self.frames
        if spare < 0:
            return np.resize(wav_T, self.frames)
        start = spare // 2 if rng is None else int(rng.integers(spare + 1))
        return wav_T[start : start + self.frames]

    def bind(self, datasets: "Sequence[Dataset]") -> "Waveform":
        _want(AUDIO, datasets)
        return self


@dataclass(frozen=True)
class Photo:
    """One of the sample's photos (in evaluation the first), uint8 [channels, size, size]: RGB, or gray of one channel.

    The photo is cropped to its central square, of whose side ``share`` is kept, and resized if necessary (Lanczos). A
    gray photo becomes RGB with three equal channels; an RGB photo becomes gray by its luma (ITU-R BT.601).
    """

    size: int
    share: float = 1.0
    channels: Literal[1, 3] = 3

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[np.uint8]:
        photo_HWC = square(sample.photo(_chosen(sample, rng)), self.size, self.share)
        return (to_gray if self.channels == 1 else to_rgb)(photo_HWC).transpose(2, 0, 1)

    def bind(self, datasets: "Sequence[Dataset]") -> "Photo":
        _want(PHOTOS, datasets)
        return self


@dataclass(frozen=True)
class ClassNumber:
    """The number of the sample's class, int64 []: the index in ``classes`` of what its JSON has under ``name``.

    ``classes`` are the names in order; by default those that packing put into the manifest (``provenance.classes``).
    Unlike a person, a class may be in several splits.
    """

    name: str = "label"
    classes: tuple[str, ...] = ()

    @cached_property
    def _number(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[np.int64]:
        value = sample.meta.get(self.name)
        number = self._number.get(str(value)) if value is not None else None
        if number is None:
            some = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
            raise V2FError(
                f"sample {sample.key}: its {self.name} is {value!r}, none of the {len(self.classes)} classes ({some})"
            )
        return np.asarray(number, np.int64)

    def bind(self, datasets: "Sequence[Dataset]") -> "ClassNumber":
        if self.classes:
            return self
        found = [_classes(dataset, self.name) for dataset in datasets]
        for dataset, classes in zip(datasets, found, strict=True):
            if not classes:
                raise V2FError(
                    f"{dataset.root}: its manifest names no classes of {self.name!r}; name them where the label is "
                    "asked for"
                )
            if classes != found[0]:
                raise V2FError(
                    f"{dataset.root}: its classes of {self.name!r} are not those of {datasets[0].root}; name them "
                    "where the label is asked for"
                )
        return replace(self, classes=found[0])


def _classes(dataset: "Dataset", name: str) -> tuple[str, ...]:
    """The classes of the label ``name`` in a manifest; empty if it names none."""
    said = dataset.manifest.provenance.get("classes")
    listed = said.get(name) if isinstance(said, dict) else None
    return tuple(map(str, listed)) if isinstance(listed, list) else ()


@dataclass(frozen=True)
class PersonNumber:
    """The number of the sample's person among the people of the training data, int64 []; -1: somebody else.

    ``people`` are their names in order; by default those in the split train, in the manifest's order, for several data
    sets one after the other. Equal names are the same person. ``most``: how many people the system can tell apart.
    """

    people: tuple[str, ...] = ()
    most: int | None = None

    @cached_property
    def _number(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.people)}

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[np.int64]:
        if not self.people:
            raise V2FError("bind the transform PersonNumber to the training data before you use it")
        return np.asarray(self._number.get(sample.identity, -1), np.int64)

    def bind(self, datasets: "Sequence[Dataset]") -> "PersonNumber":
        if self.people:
            return self
        people = tuple(dict.fromkeys(name for dataset in datasets for name in dataset.trained))
        if not people:
            raise V2FError(f"{datasets[0].root}: it has no split train, whose people would be numbered")
        if self.most is not None and len(people) > self.most:
            raise V2FError(
                f"{datasets[0].root}: {len(people)} people are seen in training, the system tells {self.most} apart; "
                f"set system.people={len(people)}"
            )
        return replace(self, people=people)


@dataclass(frozen=True)
class Array:
    """The custom array ``name``, as it is stored; its shape must be the same in all samples."""

    name: str

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[Any]:
        return sample.array(self.name)

    def bind(self, datasets: "Sequence[Dataset]") -> "Array":
        for dataset in datasets:
            kind = _declared(dataset, self.name)
            if None in kind.shape:
                raise V2FError(f"{dataset.root}: its array {self.name!r} is {kind}: a batch needs equal shapes")
        return self


@dataclass(frozen=True)
class TokenWindow:
    """``length`` entries of the integer array ``name`` [N, ...], int64 [length, ...]: of a longer array a random window
    (in evaluation the first entries); a shorter one is padded at its end with ``pad``."""

    name: str
    length: int
    pad: int = 0

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[np.int64]:
        values = sample.array(self.name)
        if values.dtype.kind not in "iu" or values.dtype == np.uint64 or not values.ndim:
            found = f"{values.dtype} {list(values.shape)}"
            raise V2FError(f"sample {sample.key}: its array {self.name!r} is {found}, integers [N, ...] are required")
        spare = len(values) - self.length
        start = int(rng.integers(spare + 1)) if spare > 0 and rng is not None else 0
        some = values[start : start + self.length]
        tokens = np.full((self.length, *values.shape[1:]), self.pad, np.int64)
        tokens[: len(some)] = some
        return tokens

    def bind(self, datasets: "Sequence[Dataset]") -> "TokenWindow":
        for dataset in datasets:
            kind = _declared(dataset, self.name)
            if not kind.shape or None in kind.shape[1:] or np.dtype(kind.dtype).kind not in "iu":
                raise V2FError(f"{dataset.root}: its array {self.name!r} is {kind}, integers [N, ...] are required")
        return self


def _declared(dataset: "Dataset", name: str) -> "ArrayKind":
    """The manifest's declaration of the array ``name``."""
    arrays = dataset.manifest.arrays
    if name not in arrays:
        raise V2FError(
            f"{dataset.root}: its samples have no array {name!r}; their arrays: {', '.join(arrays) or 'none'}"
        )
    return arrays[name]


@dataclass(frozen=True)
class NoiseVector:
    """Independent standard normal numbers, float32 [width]; in evaluation always the same for a sample."""

    width: int

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[np.float32]:
        own = rng if rng is not None else keyed_rng(_NOISE, crc32(sample.key.encode()))
        return own.standard_normal(self.width, dtype=np.float32)


@dataclass(frozen=True)
class UniformVector:
    """Independent numbers, uniform in [0, 1), float32 [width]; in evaluation always the same for a sample."""

    width: int

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[np.float32]:
        own = rng if rng is not None else keyed_rng(_UNIFORM, crc32(sample.key.encode()))
        return own.random(self.width, dtype=np.float32)


@dataclass(frozen=True)
class StoredCodes:
    """The stored w+ of the photo that the :class:`Photo` named ``draws_as`` reads, float32 [styles, width]."""

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
class StoredEmbedding:
    """The stored identity embedding of the photo that the :class:`Photo` named ``draws_as`` reads, float32 [width], of
    unit length up to float16 rounding.

    ``net`` describes the system's identity net; embeddings of any other net are refused.
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
                f"{root}: its identity embeddings are of another net ({_net_facts(found)}) than system.frozen.identity "
                f"({_net_facts(self.net)}); compute them with this one, or set system.frozen.embeddings=null"
            )


@dataclass(frozen=True)
class StoredVoice:
    """The stored features of a frozen voice encoder, float16 [depths, channels, frames]: of the window that
    :class:`Waveform` reads in evaluation.

    ``net`` describes the system's encoder and the window; features of any other are refused.
    """

    net: Mapping[str, Any]

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[np.float16]:
        return sample.array(VOICE)

    def check(self, root: str, provenance: Mapping[str, Any]) -> None:
        found = provenance.get("precomputed", {}).get("voice")
        if found is None:
            raise V2FError(
                f"{root}: it holds no voice features; write them with `v2f shards precompute --voice`, or set "
                "system.encoder.precomputed=false"
            )
        if found != self.net:
            differ = [name for name in {**found, **self.net} if found.get(name) != self.net.get(name)]
            facts = (
                ", ".join(f"{name} {_brief(each.get(name))}" for name in differ) for each in (found, dict(self.net))
            )
            raise V2FError(
                "{}: its voice features are of another encoder ({}) than system.encoder ({}); compute them with this "
                "one, or set system.encoder.precomputed=false".format(root, *facts)
            )

    def bind(self, datasets: "Sequence[Dataset]") -> "StoredVoice":
        Array(VOICE).bind(datasets)
        return self


def _brief(value: Any) -> str:
    return str(value)[:40]


def _net_facts(net: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {str(value)[:16]}" for name, value in net.items())


def _chosen(sample: Sample, rng: np.random.Generator | None) -> int:
    """The number of a random photo, in evaluation the first."""
    if not sample.photo_count:
        raise V2FError(f"sample {sample.key}: it has no photo")
    return 0 if rng is None else int(rng.integers(sample.photo_count))


@dataclass(frozen=True)
class Factors:
    """The true factors of one group of a synthetic person or picture, float32 [factors]; for upper bounds and for nets
    that measure pictures, never for training what makes them."""

    group: Literal["voice", "face", "clip", "shape", "sound", "picture"]

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[np.float32]:
        try:
            return np.array(list(sample.meta["factors"][self.group].values()), dtype=np.float32)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise V2FError(f"sample {sample.key}: its JSON has no {self.group} factors; is it synthetic?") from error


def square(photo_HWC: npt.NDArray[np.uint8], size: int, share: float = 1.0) -> npt.NDArray[np.uint8]:
    """The central square of a photo [H, W, C], with ``share`` of its shorter side, resized to uint8 [size, size, C]."""
    height, width, _ = photo_HWC.shape
    side = max(1, round(share * min(height, width)))
    top, left = (height - side) // 2, (width - side) // 2
    photo_HWC = photo_HWC[top : top + side, left : left + side]
    if side == size:
        return photo_HWC
    resized = np.asarray(pillow_image(photo_HWC).resize((size, size), Image.Resampling.LANCZOS))
    return resized if resized.ndim == 3 else resized[..., None]


def to_rgb(photo_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A photo as RGB [H, W, 3]; a gray channel is repeated three times."""
    return np.repeat(photo_HWC, 3, axis=2) if photo_HWC.shape[2] == 1 else photo_HWC


def to_gray(photo_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A photo as gray [H, W, 1]; RGB becomes its luma (ITU-R BT.601)."""
    return photo_HWC if photo_HWC.shape[2] == 1 else np.asarray(pillow_image(photo_HWC).convert("L"))[..., None]
