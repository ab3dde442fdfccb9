"""The converter of pairs: a CSV with the header ``audio,image,identity[,split][,x,y][,landmarks]``, one row a sample.

Paths are relative to the CSV. Audio is anything that libsndfile or FFmpeg (PyAV) reads: mixed to mono, resampled.
Photos are anything that Pillow reads: turned as EXIF says, RGB, aligned by their face, and where the recipe says so
redrawn or described by pSp. A row that cannot be used is left out with its reason; a CSV that cannot be meant is
refused.

    audio --> waveform ------------------------------------------------> FLAC, WAV
    photo --> upright RGB --align--> face --(pSp, in batches)--> face --> PNG, JPEG, WebP
                                                  \\------> codes w+ ----> codes.npy

Splits are by person: from the column where there is one, else by a hash of the identity, so that neither the order
of the rows nor other people change where a person goes. ``seen`` are clips of trained people that are held out.
"""

import csv
import io
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from pydantic import Field, model_validator

from v2f import store
from v2f.config import Config
from v2f.data.audio import UnusableError, decode_voice
from v2f.data.sample import MAX_PIXELS, SPLITS, AudioFormat, PhotoFormat, encode
from v2f.data.transforms import square
from v2f.errors import V2FError
from v2f.prepare import Item, LeftOut, Made, Plan, align, share

_COLUMNS = ("audio", "image", "identity")
_OPTIONAL = ("split", "x", "y", "landmarks")
_LYING = (5, 6, 7, 8)  # EXIF's orientations that swap width and height
_PSP_SIDE = 256  # what pSp sees; a photo is not made smaller before it has been seen

Floats = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Picture = npt.NDArray[np.uint8]


class Shares(Config):
    """Shares of the people, where the CSV has no column ``split``."""

    train: float = Field(0.9, gt=0.0, le=1.0)
    valid: float = Field(0.05, ge=0.0, lt=1.0)
    test: float = Field(0.05, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _adds_up(self) -> "Shares":
        if abs(self.train + self.valid + self.test - 1.0) > 1e-6:
            raise ValueError("the shares of train, valid and test add up to 1")
        return self


class PspConfig(Config):
    """What pSp (Richardson et al. 2021) makes of the aligned photos."""

    file: str = Field(description="the authors' file: encoder, decoder, latent_avg")
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


class PairsConfig(Config):
    """Which pairs, and what is made of them. A key that is added has the default that means what was done before it."""

    csv: str = Field(description="audio,image,identity[,split][,x,y][,landmarks]; paths are relative to it")
    people: Shares = Shares()
    seen: float = Field(0.1, ge=0.0, lt=1.0, description="share of a trained person's clips that is held out")
    seed: int = Field(0, ge=0, description="another seed, other splits")
    sample_rate: int = Field(16000, ge=4000, le=48000)
    min_seconds: float = Field(0.5, gt=0.0, description="shorter clips are left out")
    audio: AudioFormat = "flac"
    align: Literal["mtcnn", "landmarks", "none"] = "mtcnn"
    face: Literal["largest", "nearest", "only"] = Field("largest", description="of several; nearest: to the point x,y")
    mtcnn: str | None = Field(None, description="folder or mirror of its weights; null: those in facenet-pytorch")
    min_confidence: float = Field(0.9, ge=0.0, le=1.0, description="of a face, by MTCNN")
    min_face: float = Field(16.0, ge=4.0, description="pixels; a face whose square is smaller is left out")
    size: int = Field(256, ge=16, le=1024, description="side of a photo in pixels")
    max_side: int = Field(2048, ge=64, description="a larger photo is shrunk to this before a face is looked for")
    photo: PhotoFormat = "png"
    quality: int = Field(95, ge=1, le=100, description="of JPEG and WebP")
    psp: PspConfig | None = None

    @model_validator(mode="after")
    def _faces_are_chosen_among_those_found(self) -> "PairsConfig":
        if self.mtcnn is not None and self.align != "mtcnn":
            raise ValueError(f"mtcnn has weights, but align is {self.align!r}")
        if self.face != "largest" and self.align != "mtcnn":
            raise ValueError(f"face {self.face!r} chooses among the faces that align 'mtcnn' finds, not {self.align!r}")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that every row has to fill."""
        point = ("x", "y") if self.face == "nearest" else ()
        return (*_COLUMNS, *point, *(("landmarks",) if self.align == "landmarks" else ()))


@dataclass(frozen=True)
class Row:
    """One row of the CSV; ``number`` is its line, the header being line 1."""

    number: int
    audio: str
    image: str
    identity: str
    split: str = ""
    x: str = ""
    y: str = ""
    landmarks: str = ""

    @property
    def name(self) -> str:
        return f"line {self.number} ({self.audio}, {self.image})"


@dataclass(frozen=True)
class _Pair:
    """A pair that can be used, on its way to a sample."""

    item: Item
    wav_T: Floats
    photo_HWC: Picture
    codes_LD: Floats | None = None


@dataclass(frozen=True)
class Pairs:
    """Converts the rows of a CSV."""

    config: PairsConfig

    def plan(self) -> Plan:
        config = self.config
        text = store.read_bytes(config.csv)
        rows, left_out, has_splits = _read_rows(text, config.csv, config.columns)
        rows = _check_column(rows, config.csv) if has_splits else self._deal(rows)
        items = [Item(_key(row), row.split, row.identity, row.name, row) for row in rows]
        provenance: dict[str, Any] = {"csv_sha256": sha256(text).hexdigest()}
        if config.mtcnn is not None:
            from v2f.weights import load_mtcnn

            provenance["mtcnn_sha256"] = load_mtcnn(config.mtcnn)[1]
        if config.psp is not None:
            from v2f.prepare import psp  # imports torch, which packing without pSp may do without

            provenance["psp_sha256"] = psp.checksum(config.psp)
        return Plan(items, left_out, provenance)

    def make(self, items: Sequence[Item]) -> list[Made | LeftOut]:
        with _one_thread() if self.config.align == "mtcnn" or self.config.psp else nullcontext():
            read = [self._read(item) for item in items]
            pairs = iter(self._see([pair for pair in read if isinstance(pair, _Pair)]))
        return [self._encode(next(pairs)) if isinstance(each, _Pair) else each for each in read]

    def _read(self, item: Item) -> _Pair | LeftOut:
        config, row = self.config, item.what
        try:
            content = _read(self._path(row.audio), "audio")
            wav_T = decode_voice(content, sample_rate=config.sample_rate, min_seconds=config.min_seconds)
            return _Pair(item, wav_T, self._face(row))
        except UnusableError as error:
            return LeftOut(item.name, item.identity, error.reason, error.detail)

    def _face(self, row: Row) -> Picture:
        """The photo of a row, aligned; for pSp not smaller than pSp sees."""
        config = self.config
        photo, shrunk = read_photo(self._path(row.image), config.max_side)
        size = max(config.size, _PSP_SIDE) if config.psp is not None else config.size
        if config.align == "none":
            return square(np.asarray(photo), size)
        if config.align == "landmarks":
            content = _read(self._path(row.landmarks), "landmarks file")
            # a pixel's centre has whole numbers as coordinates, its corner is half a pixel away
            landmarks = (align.read_landmarks(content, row.landmarks) + 0.5) * shrunk - 0.5
            landmarks = align.check_landmarks(landmarks, photo)
        else:
            faces = align.find_faces(photo, config.min_confidence, config.mtcnn)
            if not faces:
                raise UnusableError("no face was found", f"photo of {photo.width} x {photo.height} pixels")
            point = _point(row, photo) if config.face == "nearest" else None
            landmarks = align.choose_face(faces, config.face, point).landmarks
        return align.align_face(photo, landmarks, size, config.min_face)

    def _see(self, pairs: list[_Pair]) -> list[_Pair]:
        """What pSp makes of the pairs, where the recipe asks for it."""
        config = self.config
        if config.psp is None or not pairs:
            return pairs
        from v2f.prepare import psp

        codes_NLD, drawn_NHWC = psp.see(config.psp, np.stack([pair.photo_HWC for pair in pairs]), config.size)
        return [
            replace(
                pair,
                photo_HWC=square(pair.photo_HWC, config.size) if drawn_NHWC is None else drawn_NHWC[n],
                codes_LD=codes_NLD[n] if config.psp.codes else None,
            )
            for n, pair in enumerate(pairs)
        ]

    def _encode(self, pair: _Pair) -> Made:
        config, item = self.config, pair.item
        members = encode(
            item.key,
            pair.wav_T,
            config.sample_rate,
            [pair.photo_HWC],
            identity=item.identity,
            split=item.split,
            source="pairs",
            extra={"audio": item.what.audio, "image": item.what.image},
            codes_PLD=None if pair.codes_LD is None else pair.codes_LD[None],
            audio_format=config.audio,
            photo_format=config.photo,
            quality=config.quality,
        )
        return Made(item, members, len(pair.wav_T) / config.sample_rate)

    def _path(self, path: str) -> str:
        if path.startswith("/") or "://" in path:
            return path
        folder, slash, _ = self.config.csv.rpartition("/")
        return store.join(folder, path) if slash else path

    def _deal(self, rows: list[Row]) -> list[Row]:
        """Split by person, and hold out clips of those who are trained on."""
        config, seed = self.config, str(self.config.seed)
        of_person: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            of_person[row.identity].add(row.audio)
        split_of: dict[str, str] = {}
        held_out: set[tuple[str, str]] = set()
        for identity, clips in of_person.items():
            place = share(seed, "person", identity)
            edge = config.people.train
            split_of[identity] = "train" if place < edge else "valid" if place < edge + config.people.valid else "test"
            if split_of[identity] == "train":
                ranked = sorted(clips, key=lambda clip: share(seed, "clip", identity, clip))
                held_out |= {(identity, clip) for clip in ranked[: int(len(ranked) * config.seen)]}
        return [
            replace(row, split="seen" if (row.identity, row.audio) in held_out else split_of[row.identity])
            for row in rows
        ]


# --------------------------------------------------------------------------------------------------- CSV


def _read_rows(text: bytes, path: str, needed: Sequence[str]) -> tuple[list[Row], list[LeftOut], bool]:
    """The rows, what is left out, whether a column names the splits; ``needed``: the columns that the recipe uses."""
    try:
        reader = csv.DictReader(io.StringIO(text.decode("utf-8-sig"), newline=""), strict=True)
        header = [name.strip() for name in reader.fieldnames or []]
        known, unused = {*_COLUMNS, *_OPTIONAL}, {*_OPTIONAL} - {*needed, "split"}
        if len(set(header)) < len(header) or not {*needed} <= {*header} <= known:
            wanted = f"its header has to be {','.join(needed)}, with any of {','.join(_OPTIONAL)} beside"
            raise V2FError(f"{path}: {wanted}, it is {','.join(header) or 'empty'}")
        reader.fieldnames = header
        rows: list[Row] = []
        left_out: list[LeftOut] = []
        first: dict[tuple[str, str, str], int] = {}
        for fields in reader:
            values = {name: (fields[name] or "").strip() for name in header}
            row = Row(reader.line_num, **values)
            pair = (row.audio, row.image, row.identity)
            empty = [name for name in header if not values[name] and name not in unused]
            if None in fields:
                left_out.append(LeftOut(row.name, row.identity, "too many fields", "quote what holds a comma"))
            elif empty:
                left_out.append(LeftOut(row.name, row.identity, "empty field", ", ".join(empty)))
            elif pair in first:
                left_out.append(LeftOut(row.name, row.identity, "the same pair again", f"as in line {first[pair]}"))
            else:
                first[pair] = row.number
                rows.append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise V2FError(f"{path}: this is no CSV in UTF-8 ({error})") from error
    if not rows:
        raise V2FError(f"{path}: it has no row that could be used")
    return rows, left_out, "split" in header


def _check_column(rows: list[Row], path: str) -> list[Row]:
    """The rows, if their column ``split`` keeps people apart."""
    first: dict[str, Row] = {}
    for row in rows:
        if row.split not in SPLITS:
            raise V2FError(f"{path}: line {row.number}: the split {row.split!r} is none of {', '.join(SPLITS)}")
        if row.split == "seen":
            continue
        other = first.setdefault(row.identity, row)
        if other.split != row.split:
            raise V2FError(
                f"{path}: {row.identity!r} is in {other.split} (line {other.number}) and in {row.split} "
                f"(line {row.number}): splits are by person; held-out clips of trained people are called 'seen'"
            )
    for row in rows:
        if row.split == "seen" and (row.identity not in first or first[row.identity].split != "train"):
            raise V2FError(
                f"{path}: line {row.number}: {row.identity!r} is in 'seen', which are clips of trained people, "
                "but has no row in train"
            )
    return rows


def _key(row: Row) -> str:
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", row.identity).strip("-")[:40]
    return f"{slug or 'person'}-{sha256(chr(0).join((row.identity, row.audio, row.image)).encode()).hexdigest()[:12]}"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks on a CPU compute in one thread: their last bits, and so a pack's bytes, depend on the number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _point(row: Row, photo: Image.Image) -> Points:
    """The row's point in pixels of the photo."""
    try:
        point = np.array([row.x, row.y], np.float64)
    except ValueError:
        point = np.full(2, np.nan)
    if not ((point >= 0) & (point <= 1)).all():
        raise UnusableError("x,y is no point", f"{row.x}, {row.y}; shares of width and height are wanted, 0 to 1")
    return point * photo.size


# ------------------------------------------------------------------------------------------------ photos


def read_photo(path: str, max_side: int) -> tuple[Image.Image, Points]:
    """Any photo as upright 8-bit RGB, no side longer than ``max_side``; and how much shorter its sides are (width,
    height; at most 1) than those of the upright photo as stored."""
    content = _read(path, "photo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large photos and odd metadata; MAX_PIXELS is what counts
        try:
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UnusableError("photo is too large", f"{image.width} x {image.height} pixels")
                stored = image.size
                image.draft("RGB", (max_side, max_side))  # lets a JPEG decode at a fraction of its size
                if image.getexif().get(ExifTags.Base.Orientation) in _LYING:
                    stored = stored[::-1]
                upright = _to_rgb(ImageOps.exif_transpose(image))
                upright.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
                return upright, np.divide(upright.size, stored)
        except Image.DecompressionBombError as error:
            raise UnusableError("photo is too large", str(error)) from error
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            reason = "no kind of picture that is known" if isinstance(error, UnidentifiedImageError) else str(error)
            raise UnusableError("photo cannot be decoded", reason) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip instead of scale
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _read(path: str, what: str) -> bytes:
    if not store.exists(path):
        raise UnusableError(f"{what} is missing", path)
    try:
        return store.read_bytes(path)
    except V2FError as error:
        raise UnusableError(f"{what} cannot be read", str(error)) from error
