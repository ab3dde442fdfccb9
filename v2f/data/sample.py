"""The schema of a sample, and reading one; ``encoding.py`` writes them.

A sample is a run of adjacent members of a plain WebDataset tar that share a key::

    KEY.flac | KEY.wav                         optional: mono, 16-bit
    KEY.png | KEY.jpg | KEY.webp               optional: one photo, 8-bit RGB, or gray (PNG and JPEG)
    KEY.0.png, KEY.1.png, ...                  several photos
    KEY.original.png, KEY.original.0.png, ...  optional: each photo as it was before pSp redrew it; nothing trains on it
    KEY.codes.npy                              optional: w+ of each photo, float16 [P, L, D]
    KEY.identity.npy                           optional: identity embedding of each photo, float16 [P, E]
    KEY.NAME.npy                               optional: a custom array of floats or integers, of any shape; `voice` are
                                               the features of a frozen voice encoder, float16 [K, C, T']
    KEY.json                                   identity, split, source; with audio also sample_rate and seconds; and
                                               whatever the source adds, such as labels
    KEY.foreign                                only in memory, for tars not written by v2f: see foreign.py

A sample has at least one of audio, photos and arrays. One that holds anything but audio and RGB photos lists what it
has under ``holds`` in its JSON: any of ``audio``, ``photos``, ``gray`` (the photos have one channel) and ``originals``.
So a lost member is never mistaken for one that was left out on purpose.

A key consists of letters, digits, ``-`` and ``_`` (a dot would end it), a NAME of letters, digits and ``_``; together
they fit into the 100 characters of a tar's names. The manifest declares dtype and shape of each array.

Shape letters: T audio frames, H height, W width, C channels, P photos, L styles, D style width, E embedding, K depths,
T' frames of features.
"""

import io
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soundfile
from PIL import Image, ImageOps

from v2f.data.tar import split_members
from v2f.errors import V2FError, first_line

SCHEMA_VERSION = 4  # the highest version that is read; a data set is written in the lowest version that can hold it
AudioFormat = Literal["flac", "wav"]
PhotoFormat = Literal["png", "jpg", "webp"]
AUDIO_FORMATS = ("flac", "wav")
PHOTO_FORMATS = ("png", "jpg", "webp")
FOREIGN = "foreign"  # an empty member marks samples from tars of others (foreign.py), which may hold the formats below
FOREIGN_AUDIO = (*AUDIO_FORMATS, "mp3", "m4a", "ogg")
FOREIGN_MODES = ("RGB", "RGBA", "L", "LA", "P", "CMYK")
AUDIO, PHOTOS, GRAY, ORIGINALS = "audio", "photos", "gray", "originals"  # what `holds` may list
USUAL = (AUDIO, PHOTOS)  # what a sample without `holds` has
_PARTS = {AUDIO, PHOTOS, GRAY, ORIGINALS}
CODES = "codes.npy"
EMBEDDING = "identity.npy"
VOICE = "voice"  # the custom array with the features of a frozen voice encoder
SPLITS = ("train", "valid", "test", "seen")
MAX_SECONDS = 3600.0  # longer audio and larger photos count as decompression bombs
MAX_PIXELS = 100_000_000
MAX_ARRAY = 1 << 26  # bytes of a custom array

_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
_PHOTO = re.compile(rf"(?:(\d+)\.)?({'|'.join(PHOTO_FORMATS)})")
_ORIGINAL = re.compile(rf"original\.{_PHOTO.pattern}")
_ARRAY = re.compile(r"([A-Za-z0-9_]{1,40})\.npy")
_REQUIRED: dict[str, tuple[type, ...]] = {"identity": (str,), "split": (str,), "source": (str,)}
_OF_AUDIO: dict[str, tuple[type, ...]] = {"sample_rate": (int,), "seconds": (float, int)}


def check_key(key: str) -> str:
    """``key`` if it is valid as a sample's key; else V2FError."""
    if not _KEY.fullmatch(key):
        raise V2FError(f"sample {key!r}: a key has 1 to 80 of the characters A-Z a-z 0-9 - _")
    return key


def is_array_name(name: str) -> bool:
    """Whether a sample may hold a custom array of this name: 1 to 40 letters, digits and ``_``, and not one of ours."""
    return f"{name}.npy" not in (CODES, EMBEDDING) and _ARRAY.fullmatch(f"{name}.npy") is not None


def pillow_image(photo_HWC: npt.NDArray[np.uint8]) -> Image.Image:
    """A uint8 photo [H, W, 3] or [H, W, 1] as a Pillow image."""
    return Image.fromarray(np.ascontiguousarray(photo_HWC[..., 0] if photo_HWC.shape[2] == 1 else photo_HWC))


def array_problem(values: npt.NDArray[Any]) -> str:
    """Why a sample may not hold this array; empty if it may."""
    if values.dtype.kind not in "fiu" or values.dtype.itemsize > 8:
        return f"is of {values.dtype}, floats or integers of at most 8 bytes are allowed"
    if not 0 < values.nbytes <= MAX_ARRAY:
        return f"has {values.nbytes} bytes, 1 to {MAX_ARRAY} are allowed"
    if not np.isfinite(values).all():
        return "holds values that are not finite"
    return ""


def read_npy(content: bytes | memoryview) -> npt.NDArray[Any]:
    """The array in NumPy's format 1.0 (NEP 1); ValueError for any other or truncated content. Runs no code, and takes
    no more memory than ``content``."""
    buffer = io.BytesIO(content)
    if np.lib.format.read_magic(buffer) != (1, 0):
        raise ValueError("no NumPy format 1.0")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(buffer)
    raw = buffer.read()
    if dtype.kind not in "fiu" or math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"{len(raw)} bytes are no {dtype} {list(shape)}")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if by_columns else "C")


class Sample:
    """One sample. Audio, photos and JSON are decoded when they are asked for; whatever breaks the schema is a
    :class:`V2FError` that names the key."""

    def __init__(self, key: str, members: Mapping[str, bytes | memoryview]):
        self.key = key
        self._is_foreign = FOREIGN in members
        audio = [name for name in members if name in (FOREIGN_AUDIO if self._is_foreign else AUDIO_FORMATS)]
        photos, originals = _numbered(members, _PHOTO), _numbered(members, _ORIGINAL)
        pictures = {name for _, name in photos + originals}
        foreign = set(members) - set(audio) - pictures - {"json", CODES, EMBEDDING, FOREIGN}
        arrays = sorted(name for name in foreign if _ARRAY.fullmatch(name))
        foreign -= set(arrays)
        if foreign:
            raise V2FError(f"sample {key}: members that the schema does not know: {', '.join(sorted(foreign))}")
        if len(audio) != 1 or not photos or "json" not in members:
            meant = held(members)
            missing = [
                what
                for what, lacks in (
                    ("one audio", len(audio) > 1 or (not audio and AUDIO in meant)),
                    ("a photo", not photos and PHOTOS in meant),
                    ("a JSON", "json" not in members),
                    ("audio, a photo or an array", not (audio or photos or arrays or meant)),
                )
                if lacks
            ]
            if missing:
                raise V2FError(f"sample {key}: {' and '.join(missing)} wanted, it holds {', '.join(sorted(members))}")
        if [number for number, _ in photos] != list(range(len(photos))):
            raise V2FError(f"sample {key}: its photos are not numbered 0 to {len(photos) - 1}")
        if originals and [number for number, _ in originals] != list(range(len(photos))):
            raise V2FError(
                f"sample {key}: {len(originals)} original photos for {len(photos)}; each has one, or none has"
            )
        self._members = members
        self._audio = audio[0] if audio else None
        self._photos = [name for _, name in photos]
        self._originals = [name for _, name in originals]
        self._arrays = [name.removesuffix(".npy") for name in arrays]

    @classmethod
    def from_tar(cls, key: str, raw: bytes | bytearray | memoryview) -> "Sample":
        """The sample in ``raw``: its tar members with their headers and padding."""
        return cls(key, split_members(key, raw))

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The JSON, with its required keys checked."""
        try:
            meta = json.loads(bytes(self._members["json"]))
        except (ValueError, RecursionError) as error:
            raise V2FError(f"sample {self.key}: its JSON cannot be read ({error})") from error
        if not isinstance(meta, dict):
            raise V2FError(f"sample {self.key}: its JSON is not an object")
        for name, types in (_REQUIRED | (_OF_AUDIO if self.has_audio else {})).items():
            if name == "seconds" and self._is_foreign:
                continue
            if not isinstance(meta.get(name), types):
                raise V2FError(
                    f"sample {self.key}: its JSON needs {name!r} of type {types[0].__name__}, got {meta.get(name)!r}"
                )
        if meta["split"] not in SPLITS:
            raise V2FError(
                f"sample {self.key}: its JSON names the split {meta['split']!r}, none of {', '.join(SPLITS)}"
            )
        if not _is_true(meta.get("holds", list(USUAL)), self.has_audio, bool(self._photos), self.has_originals):
            parts = ((AUDIO, self.has_audio), (PHOTOS, self._photos), (ORIGINALS, self._originals))
            there = " and ".join(what for what, has in parts if has)
            raise V2FError(
                f"sample {self.key}: its JSON says that it holds {meta['holds']!r}, there is {there or None}"
            )
        return meta

    @property
    def identity(self) -> str:
        return str(self.meta["identity"])

    @property
    def has_audio(self) -> bool:
        return self._audio is not None

    @property
    def is_gray(self) -> bool:
        """Whether its photos have one channel."""
        return GRAY in self.meta.get("holds", USUAL)

    @property
    def sample_rate(self) -> int:
        """Sample rate of :meth:`waveform`, from the JSON; :meth:`waveform` checks it against the audio's header."""
        self._heard()
        return int(self.meta["sample_rate"])

    def _heard(self) -> str:
        """The extension of the member that holds the clip."""
        if self._audio is None:
            raise V2FError(f"sample {self.key}: it has no audio")
        return self._audio

    def waveform(self) -> npt.NDArray[np.float32]:
        """The clip, float32 [T] in [-1, 1] at :attr:`sample_rate`."""
        audio = self._heard()
        if self._is_foreign:
            return self._any_waveform(audio)
        try:
            with soundfile.SoundFile(io.BytesIO(self._members[audio])) as file:
                if file.channels != 1:
                    raise V2FError(f"sample {self.key}: its audio has {file.channels} channels, the schema allows one")
                if file.samplerate != self.sample_rate:
                    raise V2FError(
                        f"sample {self.key}: its audio has {file.samplerate} frames a second, "
                        f"its JSON says {self.sample_rate}"
                    )
                if file.frames > MAX_SECONDS * file.samplerate:
                    raise V2FError(f"sample {self.key}: its audio is longer than {MAX_SECONDS:.0f} s")
                promised = file.frames
                wav_T: npt.NDArray[np.float32] = file.read(dtype="float32")
        except V2FError:
            raise
        except Exception as error:
            raise V2FError(f"sample {self.key}: its {audio} cannot be decoded ({_first_line(error)})") from error
        if not len(wav_T) or len(wav_T) != promised:
            raise V2FError(f"sample {self.key}: its audio holds {len(wav_T)} of {promised} frames")
        if not np.isfinite(wav_T).all():
            raise V2FError(f"sample {self.key}: its audio holds values that are not finite")
        return wav_T

    def _any_waveform(self, audio: str) -> npt.NDArray[np.float32]:
        """A recording of any format, rate and number of channels, float32 [T] at :attr:`sample_rate`."""
        from v2f.data.audio import UnusableError, decode_voice

        try:
            wav_T = decode_voice(bytes(self._members[audio]), sample_rate=self.sample_rate, min_seconds=0.0)
        except UnusableError as error:
            raise V2FError(f"sample {self.key}: its {audio} cannot be used ({error})") from error
        return np.clip(wav_T, -1.0, 1.0)

    @property
    def seconds(self) -> float:
        """Length of the clip; a sample from a foreign tar is decoded to find it."""
        if self._is_foreign:
            return len(self.waveform()) / self.sample_rate
        return float(self.meta["seconds"])

    @property
    def audio_name(self) -> str:
        """The extension of the member that holds the clip."""
        return self._heard()

    @property
    def photo_names(self) -> list[str]:
        """The extensions of the members that hold the photos, in their order."""
        return list(self._photos)

    def member(self, extension: str) -> bytes | memoryview:
        """The stored bytes of a member."""
        return self._members[extension]

    @property
    def photo_count(self) -> int:
        return len(self._photos)

    def photo_size(self, number: int = 0) -> tuple[int, int]:
        """Width and height of photo ``number``, from its header."""
        with self._picture(self._photos, number) as image:
            return image.size

    def photo(self, number: int = 0) -> npt.NDArray[np.uint8]:
        """Photo ``number``, uint8: RGB [H, W, 3], or gray [H, W, 1] if the sample is gray."""
        return self._pixels(self._photos, number)

    @property
    def has_originals(self) -> bool:
        """Whether each photo is also there as it was before pSp redrew it."""
        return bool(self._originals)

    @property
    def original_names(self) -> list[str]:
        """The extensions of the members that hold the originals, in the order of the photos; empty without any."""
        return list(self._originals)

    def original(self, number: int = 0) -> npt.NDArray[np.uint8]:
        """Photo ``number`` as it was before pSp redrew it, uint8 [H, W, 3]; to look at, never to train on."""
        if not self._originals:
            raise V2FError(f"sample {self.key}: it has no original photo; pack with psp.keep_original: true")
        return self._pixels(self._originals, number)

    def _pixels(self, names: list[str], number: int) -> npt.NDArray[np.uint8]:
        with self._picture(names, number) as image:
            pixels: npt.NDArray[np.uint8] = np.array(image)
            return pixels if pixels.ndim == 3 else pixels[..., None]

    @contextmanager
    def _picture(self, names: list[str], number: int) -> Iterator[Image.Image]:
        if not names:
            raise V2FError(f"sample {self.key}: it has no photo")
        name = names[number]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is the limit here
            try:
                with Image.open(io.BytesIO(self._members[name]), formats=("PNG", "JPEG", "WEBP")) as image:
                    if image.width * image.height > MAX_PIXELS:
                        raise V2FError(
                            f"sample {self.key}: photo {name} of {image.width} x {image.height} pixels is too large"
                        )
                    if self._is_foreign and image.mode in FOREIGN_MODES:
                        yield ImageOps.exif_transpose(image).convert("RGB")
                        return
                    if image.mode != "RGB" and not (image.mode == "L" and self.is_gray):
                        raise V2FError(
                            f"sample {self.key}: photo {name} has the mode {image.mode}, 8-bit RGB is required"
                        )
                    yield image
            except V2FError:
                raise
            except Exception as error:  # damage can make a decoder raise anything
                raise V2FError(f"sample {self.key}: photo {name} cannot be decoded ({_first_line(error)})") from error

    @property
    def has_codes(self) -> bool:
        return CODES in self._members

    def codes(self, number: int = 0) -> npt.NDArray[np.float32]:
        """w+ of photo ``number``, float32 [L, D]."""
        if not self.has_codes:
            raise V2FError(f"sample {self.key}: it has no codes ({CODES}); `v2f shards precompute` writes them")
        return self._half(CODES, "codes", "styles, width")[number].astype(np.float32)

    @property
    def has_embedding(self) -> bool:
        return EMBEDDING in self._members

    def embedding(self, number: int = 0) -> npt.NDArray[np.float32]:
        """Identity embedding of photo ``number``, float32 [E]; of unit length up to float16 rounding."""
        if not self.has_embedding:
            raise V2FError(
                f"sample {self.key}: it has no identity embedding ({EMBEDDING}); `v2f shards precompute` writes it"
            )
        return self._half(EMBEDDING, "embeddings", "width")[number].astype(np.float32)

    @property
    def array_names(self) -> list[str]:
        """The names of its custom arrays, sorted."""
        return list(self._arrays)

    def array(self, name: str) -> npt.NDArray[Any]:
        """The custom array ``name``, as it was encoded."""
        if name not in self._arrays:
            there = ", ".join(self._arrays) or "none"
            raise V2FError(f"sample {self.key}: it has no array {name!r}; its arrays: {there}")
        content = self._members[f"{name}.npy"]
        try:
            values = read_npy(content)
        except ValueError as error:
            raise V2FError(f"sample {self.key}: its {name}.npy cannot be decoded ({_first_line(error)})") from error
        problem = array_problem(values)
        if problem:
            raise V2FError(f"sample {self.key}: its array {name!r} {problem}")
        return values

    def check(self) -> None:
        """Decode everything in the sample; :class:`V2FError` if anything breaks the schema."""
        seconds = len(self.waveform()) / self.sample_rate if self.has_audio else 0.0
        if self.has_audio and not self._is_foreign and abs(seconds - self.seconds) > 0.01:
            raise V2FError(f"sample {self.key}: its JSON says {self.meta['seconds']} s, its audio has {seconds:.3f}")
        for number in range(self.photo_count):
            channels = self.photo(number).shape[2]
            if channels != (1 if self.is_gray else 3):
                raise V2FError(f"sample {self.key}: a photo of {channels} channels is not what its JSON says")
            if self.has_originals:
                self.original(number)
            if self.has_codes:
                self.codes(number)
            if self.has_embedding:
                self.embedding(number)
        for name in self._arrays:
            self.array(name)

    def _half(self, name: str, what: str, shape: str) -> npt.NDArray[np.float16]:
        """The member ``name``: float16 [P, ...], ``shape`` naming the axes after P."""
        try:
            values = read_npy(self._members[name])
        except ValueError as error:
            raise V2FError(f"sample {self.key}: its {name} cannot be decoded ({_first_line(error)})") from error
        if values.dtype != np.float16 or values.ndim != 2 + shape.count(",") or len(values) != self.photo_count:
            raise V2FError(
                f"sample {self.key}: its {what} are {values.dtype} {list(values.shape)}, "
                f"expected float16 [{self.photo_count}, {shape}]"
            )
        if not np.isfinite(values).all():
            raise V2FError(f"sample {self.key}: its {what} hold values that are not finite")
        return values


def held(members: Mapping[str, bytes | memoryview]) -> tuple[str, ...]:
    """The sample's ``holds``: any of ``audio``, ``gray``, ``originals`` and ``photos``; :data:`USUAL` if its JSON has
    none or cannot be read."""
    try:
        said = json.loads(bytes(members["json"]))["holds"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return USUAL
    return tuple(said) if isinstance(said, list) and set(map(str, said)) <= _PARTS else USUAL


def _is_true(said: Any, audio: bool, photos: bool, originals: bool) -> bool:
    """Whether ``holds`` of a JSON is true of a sample with or without audio, photos and originals."""
    if not isinstance(said, list) or not {*map(str, said)} <= _PARTS:
        return False
    return (AUDIO in said, PHOTOS in said, ORIGINALS in said) == (audio, photos, originals) and (
        photos or GRAY not in said
    )


def _numbered(members: Mapping[str, Any], pattern: re.Pattern[str]) -> list[tuple[int, str]]:
    """Number and extension of the members that hold pictures, in order."""
    return sorted((int(m[1] or 0), name) for name in members if (m := pattern.fullmatch(name)))


def _first_line(error: BaseException) -> str:
    return first_line(error, type(error).__name__)
