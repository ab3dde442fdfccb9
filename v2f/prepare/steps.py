"""The processing steps from a corpus's files to a sample, shared by all converters; each converter finds its files.

    recording --decode, mono, resample--(speech only)--(longest)--(loudness)--> wav_T -----------> FLAC, WAV
    photos ----upright RGB--(face found, chosen, aligned)--> photo_HWC --(pSp, in batches)-------> PNG, JPEG, WebP
                                                                    \\-----> codes w+ ----------> codes.npy

Steps in parentheses are optional, set in the recipe, which is stored in the manifest. An input that cannot be used
raises :class:`UnusableError`, and becomes a :class:`LeftOut` with its reason.

Shape letters: N photos, H height, W width, C channels, T samples, L styles, D style width.
"""

import functools
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError
from pydantic import Field, model_validator

from v2f.config import Config, Place
from v2f.data.audio import Keep, UnusableError, decode_voice, decoding, only_speech, to_loudness
from v2f.data.encoding import encode
from v2f.data.sample import MAX_PIXELS, AudioFormat, PhotoFormat
from v2f.data.transforms import square
from v2f.errors import V2FError
from v2f.prepare import Item, LeftOut, Made, align
from v2f.prepare.processes import one_thread
from v2f.storage import store

PICTURES = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
"""The accepted formats. Pillow knows others, and for some it runs a program (Ghostscript for EPS)."""

_TURNS = {  # EXIF's orientations
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = (5, 6, 7, 8)  # those with width and height swapped
_DIM = 4096  # if all 16-bit values are below this, they have 12 bits or fewer, and the photo would turn black
_PSP_SIDE = 256  # input size of pSp; photos are not reduced below it before pSp

Points = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


class VadConfig(Config):
    """Removes the parts of a recording that WebRTC's voice activity detector does not take for speech."""

    mode: int = Field(2, ge=0, le=3, description="aggressiveness: 0 keeps the most, 3 the least")
    margin: float = Field(0.15, ge=0.0, le=2.0, description="seconds kept around speech")
    keep: Keep = Field("speech", description="the parts with speech, joined; or everything from the first to the last")


class LoudnessConfig(Config):
    """Scales recordings to one loudness (ITU-R BS.1770-4)."""

    lufs: float = Field(-23.0, ge=-60.0, le=0.0, description="target loudness; -23: EBU R 128")
    max_gain: float = Field(20.0, ge=0.0, description="dB; more would amplify noise")
    peak: float = Field(0.98, gt=0.0, le=1.0, description="maximum sample after scaling, so that nothing clips")


class PspConfig(Config):
    """Processing of the aligned photos by pSp (Richardson et al. 2021)."""

    file: Place = Field(description="the authors' file; or a folder or mirror with their files, chosen by `pictures`")
    sha256: str | None = Field(None, description="of the file; null: not checked")
    pictures: bool = Field(False, description="replace each photo by the one that pSp generates (frontalization)")
    codes: bool = Field(False, description="store w+ in the sample: of the generated picture, else of the photo")
    keep_original: bool = Field(False, description="store each photo that `pictures` replaces, too, to look at")
    batch: int = Field(8, ge=1, description="photos at once")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")

    @model_validator(mode="after")
    def _makes_something(self) -> "PspConfig":
        if not (self.pictures or self.codes):
            raise ValueError("set pictures, codes or both to true, or leave psp out")
        if self.keep_original and not self.pictures:
            raise ValueError(
                "keep_original keeps the photos that `pictures: true` replaces; nothing replaces them here"
            )
        return self


class StepsConfig(Config):
    """How recordings and photos are processed, for any corpus. The default of a key that is added later must keep the
    behavior from before it existed."""

    sample_rate: int = Field(16000, ge=4000, le=48000)
    vad: VadConfig | None = None
    min_seconds: float = Field(0.5, gt=0.0, description="shorter clips are left out, both before and after `vad`")
    max_seconds: float | None = Field(None, gt=0.0, description="longer clips are cut to this; null: they are kept")
    loudness: LoudnessConfig | None = None
    audio: AudioFormat = "flac"
    mtcnn: Place | None = Field(None, description="folder or mirror of its weights; null: those in facenet-pytorch")
    min_confidence: float = Field(0.9, ge=0.0, le=1.0, description="of a face, by MTCNN")
    min_face: float = Field(16.0, ge=4.0, description="pixels; faces with a smaller square are left out")
    size: int = Field(256, ge=16, le=1024, description="side of a photo in pixels")
    max_side: int = Field(2048, ge=64, description="larger photos are reduced to this before face detection")
    photo: PhotoFormat = "png"
    quality: int = Field(95, ge=1, le=100, description="of JPEG and WebP")
    psp: PspConfig | None = None

    @model_validator(mode="after")
    def _lengths_leave_something(self) -> "StepsConfig":
        if self.max_seconds is not None and self.max_seconds < self.min_seconds:
            raise ValueError(f"max_seconds is {self.max_seconds:g}, but min_seconds is {self.min_seconds:g}")
        return self


@dataclass(frozen=True)
class RawSample:
    """The decoded parts of a sample, None for those it does not have. ``rejected``: photos that could not be used."""

    item: Item
    wav_T: npt.NDArray[np.float32] | None
    photos_HWC: list[Pixels] | None
    extra: dict[str, Any]
    rejected: tuple[LeftOut, ...] = ()
    codes_NLD: npt.NDArray[np.float32] | None = field(default=None)
    originals_HWC: list[Pixels] | None = None


def make(
    config: StepsConfig, source: str, items: Sequence[Item], nets: bool, read: Callable[[Item], RawSample]
) -> list[Made | LeftOut]:
    """Make the samples of ``items``. ``read`` returns the decoded parts of one, or raises :class:`UnusableError`.

    ``nets``: whether ``read`` runs a network.
    """
    with one_thread() if nets or config.psp is not None else nullcontext():
        found = [_read(item, read) for item in items]
        seen = iter(_apply_psp(config, [each for each in found if isinstance(each, RawSample)]))
    return [_encode(config, source, next(seen)) if isinstance(each, RawSample) else each for each in found]


def provenance(config: StepsConfig) -> dict[str, Any]:
    """The checksums of the weights that the content depends on; unsuitable weights are refused here."""
    found: dict[str, Any] = {}
    if config.mtcnn is not None:
        from v2f.weights import load_mtcnn

        found["mtcnn_sha256"] = load_mtcnn(config.mtcnn)[1]
    if config.psp is not None:
        from v2f.prepare import psp  # imported late: it imports torch, which packing without pSp does not need

        found["psp_sha256"] = psp.checksum(config.psp)
    return found


def _read(item: Item, read: Callable[[Item], RawSample]) -> RawSample | LeftOut:
    try:
        with _naming(item):
            return read(item)
    except UnusableError as error:
        return LeftOut(item.name, item.identity, error.reason, error.detail)


@contextmanager
def _naming(item: Item) -> Iterator[None]:
    """Add the input's name to an unexpected error (a bug in v2f), which stops the packing."""
    try:
        yield
    except (UnusableError, V2FError):
        raise
    except Exception as error:
        raise RuntimeError(f"at {item.name}: {type(error).__name__}: {error}") from error


def _apply_psp(config: StepsConfig, raws: list[RawSample]) -> list[RawSample]:
    """Apply pSp to the photos, if the recipe sets it."""
    if config.psp is None or not raws:
        return raws
    from v2f.prepare import psp

    photo_NHWC = np.stack([photo_HWC for raw in raws for photo_HWC in raw.photos_HWC or ()])
    codes_NLD, drawn_NHWC = psp.encode_and_render(config.psp, photo_NHWC, config.size)
    if drawn_NHWC is None:
        drawn_NHWC = np.stack([square(photo_HWC, config.size) for photo_HWC in photo_NHWC])
    seen, at = [], 0
    for raw in raws:
        mine = slice(at, at := at + len(raw.photos_HWC or ()))
        codes = codes_NLD[mine] if config.psp.codes else None
        originals = [square(one, config.size) for one in photo_NHWC[mine]] if config.psp.keep_original else None
        seen.append(replace(raw, photos_HWC=list(drawn_NHWC[mine]), codes_NLD=codes, originals_HWC=originals))
    return seen


def _encode(config: StepsConfig, source: str, raw: RawSample) -> Made:
    item = raw.item
    with _naming(item):
        members = encode(
            item.key,
            raw.wav_T,
            config.sample_rate if raw.wav_T is not None else None,
            raw.photos_HWC,
            identity=item.identity,
            split=item.split,
            source=source,
            extra=raw.extra,
            originals_HWC=raw.originals_HWC,
            codes_PLD=raw.codes_NLD,
            audio_format=config.audio,
            photo_format=config.photo,
            quality=config.quality,
        )
    seconds = len(raw.wav_T) / config.sample_rate if raw.wav_T is not None else 0.0
    seen = len(raw.photos_HWC or ()) if config.psp is not None else 0
    return Made(item, members, seconds, raw.rejected, seen)


# ------------------------------------------------------------------------------------------------- voice


def hear(config: StepsConfig, path: str) -> npt.NDArray[np.float32]:
    """Decode and process a recording as the recipe says, [T]."""
    content = read_file(path, "audio")
    return voice(config, decode_voice(content, sample_rate=config.sample_rate, min_seconds=config.min_seconds))


def voice(config: StepsConfig, wav_T: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Process a mono recording at the recipe's rate as the recipe says."""
    rate, vad, loudness = config.sample_rate, config.vad, config.loudness
    if vad is not None:
        wav_T = only_speech(wav_T, rate, mode=vad.mode, margin=vad.margin, keep=vad.keep)
        if len(wav_T) < config.min_seconds * rate:
            detail = f"{len(wav_T) / rate:.2f} s of at least {config.min_seconds:g} s"
            raise UnusableError("there is too little speech", detail)
    if config.max_seconds is not None:
        wav_T = wav_T[: round(config.max_seconds * rate)]
    if loudness is not None:
        wav_T = to_loudness(wav_T, rate, lufs=loudness.lufs, max_gain=loudness.max_gain, peak=loudness.peak)
    return wav_T


# ------------------------------------------------------------------------------------------------ photos


def side(config: StepsConfig) -> int:
    """Side of an aligned photo in pixels; with pSp at least pSp's input size."""
    return max(config.size, _PSP_SIDE) if config.psp is not None else config.size


def find_face(config: StepsConfig, photo: Image.Image, choice: align.FaceChoice, point: Points | None) -> align.Face:
    """Find the faces in a photo and choose one; UnusableError if there is none."""
    faces = align.find_faces(photo, config.min_confidence, config.mtcnn)
    if not faces:
        raise UnusableError("no face was found", f"photo of {photo.width} x {photo.height} pixels")
    return align.choose_face(faces, choice, point)


def cut_face(config: StepsConfig, photo: Image.Image, landmarks: Points) -> Pixels:
    """The face with these landmarks, aligned."""
    with decoding("face cannot be aligned"):
        return align.align_face(photo, landmarks, side(config), config.min_face)


def read_photo(file: str | bytes, max_side: int) -> tuple[Image.Image, Points]:
    """Read a photo, given as path or bytes, as upright 8-bit RGB with no side longer than ``max_side``; returns also
    the scale of width and height (at most 1) relative to the stored photo, turned upright. Uses the first of several
    pictures in a file."""
    content = file if isinstance(file, bytes) else read_file(file, "photo")
    with warnings.catch_warnings(), decoding("photo cannot be decoded"):
        warnings.simplefilter("ignore")  # Pillow warns of large photos and odd metadata; MAX_PIXELS is the limit here
        try:
            with Image.open(io.BytesIO(content), formats=_known_pictures()) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UnusableError("photo is too large", f"{image.width} x {image.height} pixels")
                stored = image.size
                image.draft("RGB", (max_side, max_side))  # decodes a JPEG at a fraction of its size
                image.load()
                orientation = _orientation(image)
                upright = _to_rgb(image)
        except Image.DecompressionBombError as error:
            raise UnusableError("photo is too large", str(error)) from error
        except UnidentifiedImageError as error:
            raise UnusableError("photo cannot be decoded", "unknown picture format") from error
        if orientation in _TURNS:
            upright = upright.transpose(_TURNS[orientation])
        upright.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        return upright, np.divide(upright.size, stored[::-1] if orientation in _LYING else stored)


@functools.cache
def _known_pictures() -> tuple[str, ...]:
    """The formats in :data:`PICTURES` that this Pillow supports."""
    Image.init()
    return tuple(kind for kind in PICTURES if kind in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded picture, 1 to 8. EXIF is often malformed, so no other tag is read, and an
    unreadable orientation counts as upright."""
    try:
        told = image.getexif().get(ExifTags.Base.Orientation)
        return int(told) if told in _TURNS else 1
    except Exception:  # Pillow's EXIF reader can raise anything
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("F", "I") and image.format != "PPM":  # PPM gives its maximum value
        kind = "floating point" if image.mode == "F" else "32 bits"
        raise UnusableError("photo has no range of values", f"{kind} a pixel; save it with 8 or 16 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):  # Pillow's own conversion would clip instead of scale
        pixels: Any = np.asarray(image)
        if pixels.max() < _DIM:
            detail = f"16 bits a pixel, but none is above {pixels.max()}; save it with 8 bits a channel"
            raise UnusableError("photo has no range of values", detail)
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_file(path: str, what: str) -> bytes:
    """The bytes of an input file; ``what`` names its kind in the reason of an UnusableError."""
    if not store.exists(path):
        raise UnusableError(f"{what} is missing", path)
    try:
        return store.read_bytes(path)
    except V2FError as error:
        raise UnusableError(f"{what} cannot be read", str(error)) from error
