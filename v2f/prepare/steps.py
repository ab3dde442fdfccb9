"""The steps from what a corpus holds to a sample. Each corpus has a converter that finds its files; all share these.

    recording --decode, mono, resample--(speech only)--(longest)--(loudness)--> wav_T -----------> FLAC, WAV
    photos ----upright RGB--(face found, chosen, aligned)--> photo_HWC --(pSp, in batches)-------> PNG, JPEG, WebP
                                                                    \\-----> codes w+ ----------> codes.npy

A step in parentheses is done where the recipe asks for it, and the manifest holds the recipe. What cannot be used
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
"""The formats that are decoded. Pillow knows others, and for some it starts a program (Ghostscript for EPS)."""

_TURNS = {  # EXIF's orientations
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = (5, 6, 7, 8)  # those that swap width and height
_DIM = 4096  # 16-bit values that all lie below are of 12 bits or fewer, and would come out black
_PSP_SIDE = 256  # what pSp sees; a photo is not made smaller before it has been seen

Points = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


class VadConfig(Config):
    """What WebRTC's voice activity detector does not take for speech is cut out of a recording."""

    mode: int = Field(2, ge=0, le=3, description="0 lets most pass, 3 least")
    margin: float = Field(0.15, ge=0.0, le=2.0, description="seconds around speech that stay")
    keep: Keep = Field("speech", description="the speech, joined; or the span from its beginning to its end")


class LoudnessConfig(Config):
    """Recordings are amplified or turned down to one loudness (ITU-R BS.1770-4)."""

    lufs: float = Field(-23.0, ge=-60.0, le=0.0, description="the loudness wanted; -23: EBU R 128")
    max_gain: float = Field(20.0, ge=0.0, description="dB; more would amplify noise")
    peak: float = Field(0.98, gt=0.0, le=1.0, description="no sample becomes larger, so nothing clips")


class PspConfig(Config):
    """What pSp (Richardson et al. 2021) makes of the aligned photos."""

    file: Place = Field(description="the authors' file; or a folder or mirror with their files, chosen by `pictures`")
    sha256: str | None = Field(None, description="of the file; null: whatever it has")
    pictures: bool = Field(False, description="each photo is replaced by what pSp draws of it (frontalisation)")
    codes: bool = Field(False, description="w+ goes into the sample: of the drawn picture, else of the photo")
    batch: int = Field(8, ge=1, description="photos at once")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")

    @model_validator(mode="after")
    def _makes_something(self) -> "PspConfig":
        if not (self.pictures or self.codes):
            raise ValueError("set pictures, codes or both to true, or leave psp out")
        return self


class StepsConfig(Config):
    """What is made of a recording and its photos, whatever the corpus. A key that is added has the default that means
    what was done before it."""

    sample_rate: int = Field(16000, ge=4000, le=48000)
    vad: VadConfig | None = None
    min_seconds: float = Field(0.5, gt=0.0, description="shorter clips are left out, before and after `vad`")
    max_seconds: float | None = Field(None, gt=0.0, description="longer clips lose their end; null: they stay")
    loudness: LoudnessConfig | None = None
    audio: AudioFormat = "flac"
    mtcnn: Place | None = Field(None, description="folder or mirror of its weights; null: those in facenet-pytorch")
    min_confidence: float = Field(0.9, ge=0.0, le=1.0, description="of a face, by MTCNN")
    min_face: float = Field(16.0, ge=4.0, description="pixels; a face whose square is smaller is left out")
    size: int = Field(256, ge=16, le=1024, description="side of a photo in pixels")
    max_side: int = Field(2048, ge=64, description="a larger photo is shrunk to this before a face is looked for")
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
    """What a sample will be made of; ``rejected``: photos that were tried in vain. None: it has no such part."""

    item: Item
    wav_T: npt.NDArray[np.float32] | None
    photos_HWC: list[Pixels] | None
    extra: dict[str, Any]
    rejected: tuple[LeftOut, ...] = ()
    codes_NLD: npt.NDArray[np.float32] | None = field(default=None)


def make(
    config: StepsConfig, source: str, items: Sequence[Item], nets: bool, read: Callable[[Item], RawSample]
) -> list[Made | LeftOut]:
    """The samples of ``items``: ``read`` gives what a corpus has of one, or raises :class:`UnusableError`.

    ``nets``: ``read`` runs a network.
    """
    with one_thread() if nets or config.psp is not None else nullcontext():
        found = [_read(item, read) for item in items]
        seen = iter(_see(config, [each for each in found if isinstance(each, RawSample)]))
    return [_encode(config, source, next(seen)) if isinstance(each, RawSample) else each for each in found]


def provenance(config: StepsConfig) -> dict[str, Any]:
    """The weights that the content depends on beside the recipe; ones that do not fit are refused here."""
    found: dict[str, Any] = {}
    if config.mtcnn is not None:
        from v2f.weights import load_mtcnn

        found["mtcnn_sha256"] = load_mtcnn(config.mtcnn)[1]
    if config.psp is not None:
        from v2f.prepare import psp  # imports torch, which packing without pSp may do without

        found["psp_sha256"] = psp.checksum(config.psp)
    return found


def _read(item: Item, read: Callable[[Item], RawSample]) -> RawSample | LeftOut:
    try:
        with _named(item):
            return read(item)
    except UnusableError as error:
        return LeftOut(item.name, item.identity, error.reason, error.detail)


@contextmanager
def _named(item: Item) -> Iterator[None]:
    """A defect of ours that an input brings out stops the packing, and says which input it was."""
    try:
        yield
    except (UnusableError, V2FError):
        raise
    except Exception as error:
        raise RuntimeError(f"at {item.name}: {type(error).__name__}: {error}") from error


def _see(config: StepsConfig, raws: list[RawSample]) -> list[RawSample]:
    """What pSp makes of the photos, where the recipe asks for it."""
    if config.psp is None or not raws:
        return raws
    from v2f.prepare import psp

    photo_NHWC = np.stack([photo_HWC for raw in raws for photo_HWC in raw.photos_HWC or ()])
    codes_NLD, drawn_NHWC = psp.see(config.psp, photo_NHWC, config.size)
    if drawn_NHWC is None:
        drawn_NHWC = np.stack([square(photo_HWC, config.size) for photo_HWC in photo_NHWC])
    seen, at = [], 0
    for raw in raws:
        mine = slice(at, at := at + len(raw.photos_HWC or ()))
        codes = codes_NLD[mine] if config.psp.codes else None
        seen.append(replace(raw, photos_HWC=list(drawn_NHWC[mine]), codes_NLD=codes))
    return seen


def _encode(config: StepsConfig, source: str, raw: RawSample) -> Made:
    item = raw.item
    with _named(item):
        members = encode(
            item.key,
            raw.wav_T,
            config.sample_rate if raw.wav_T is not None else None,
            raw.photos_HWC,
            identity=item.identity,
            split=item.split,
            source=source,
            extra=raw.extra,
            codes_PLD=raw.codes_NLD,
            audio_format=config.audio,
            photo_format=config.photo,
            quality=config.quality,
        )
    seconds = len(raw.wav_T) / config.sample_rate if raw.wav_T is not None else 0.0
    return Made(item, members, seconds, raw.rejected)


# ------------------------------------------------------------------------------------------------- voice


def hear(config: StepsConfig, path: str) -> npt.NDArray[np.float32]:
    """The recording in a file as the recipe wants it, [T]."""
    content = read_file(path, "audio")
    return voice(config, decode_voice(content, sample_rate=config.sample_rate, min_seconds=config.min_seconds))


def voice(config: StepsConfig, wav_T: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A mono recording at the recipe's rate as the recipe wants it."""
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
    """Of an aligned photo in pixels; for pSp not smaller than pSp sees."""
    return max(config.size, _PSP_SIDE) if config.psp is not None else config.size


def find_face(config: StepsConfig, photo: Image.Image, choice: align.FaceChoice, point: Points | None) -> align.Face:
    """The face of a photo that is meant."""
    faces = align.find_faces(photo, config.min_confidence, config.mtcnn)
    if not faces:
        raise UnusableError("no face was found", f"photo of {photo.width} x {photo.height} pixels")
    return align.choose_face(faces, choice, point)


def cut_face(config: StepsConfig, photo: Image.Image, landmarks: Points) -> Pixels:
    """The face with these landmarks, aligned."""
    with decoding("face cannot be aligned"):
        return align.align_face(photo, landmarks, side(config), config.min_face)


def read_photo(file: str | bytes, max_side: int) -> tuple[Image.Image, Points]:
    """Any photo, by its path or its bytes, as upright 8-bit RGB, no side longer than ``max_side``; and how much shorter
    its sides are (width, height; at most 1) than those of the upright photo as stored. Of several pictures in a file
    the first."""
    content = file if isinstance(file, bytes) else read_file(file, "photo")
    with warnings.catch_warnings(), decoding("photo cannot be decoded"):
        warnings.simplefilter("ignore")  # Pillow warns of large photos and odd metadata; MAX_PIXELS is what counts
        try:
            with Image.open(io.BytesIO(content), formats=_known_pictures()) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UnusableError("photo is too large", f"{image.width} x {image.height} pixels")
                stored = image.size
                image.draft("RGB", (max_side, max_side))  # lets a JPEG decode at a fraction of its size
                image.load()
                orientation = _orientation(image)
                upright = _to_rgb(image)
        except Image.DecompressionBombError as error:
            raise UnusableError("photo is too large", str(error)) from error
        except UnidentifiedImageError as error:
            raise UnusableError("photo cannot be decoded", "no kind of picture that is known") from error
        if orientation in _TURNS:
            upright = upright.transpose(_TURNS[orientation])
        upright.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        return upright, np.divide(upright.size, stored[::-1] if orientation in _LYING else stored)


@functools.cache
def _known_pictures() -> tuple[str, ...]:
    """Those of :data:`PICTURES` that this Pillow has."""
    Image.init()
    return tuple(kind for kind in PICTURES if kind in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation of a loaded picture, 1 to 8. Cameras and programs write EXIF that cannot be read: no other tag
    is looked at, and where this one cannot be read the picture is taken as it lies."""
    try:
        told = image.getexif().get(ExifTags.Base.Orientation)
        return int(told) if told in _TURNS else 1
    except Exception:  # whatever Pillow's reader of EXIF stumbles over
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("F", "I") and image.format != "PPM":  # PPM says what its largest value is
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
    """The bytes of an input; ``what`` names it in a reason."""
    if not store.exists(path):
        raise UnusableError(f"{what} is missing", path)
    try:
        return store.read_bytes(path)
    except V2FError as error:
        raise UnusableError(f"{what} cannot be read", str(error)) from error
