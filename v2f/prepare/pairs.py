"""The converter of pairs: a CSV with the header ``audio,image,identity[,split]``, one row a sample.

Paths are relative to the CSV. Audio is anything that libsndfile or FFmpeg (PyAV) reads: mixed to mono, resampled.
Photos are anything that Pillow reads: turned as EXIF says, RGB, aligned by their face. A row that cannot be used is
left out with its reason; a CSV that cannot be meant is refused.

Splits are by person: from the column where there is one, else by a hash of the identity, so that neither the order
of the rows nor other people change where a person goes. ``seen`` are clips of trained people that are held out.
"""

import csv
import io
import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field, model_validator

from v2f import store
from v2f.config import Config
from v2f.data.audio import UnusableError, decode_voice
from v2f.data.sample import MAX_PIXELS, SPLITS, AudioFormat, PhotoFormat, encode
from v2f.data.transforms import square
from v2f.errors import V2FError
from v2f.prepare import Item, LeftOut, Made, Plan, share

_COLUMNS = ("audio", "image", "identity")

Floats = npt.NDArray[np.float32]


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


class PairsConfig(Config):
    """Which pairs, and what is made of them."""

    csv: str = Field(description="audio,image,identity[,split]; paths are relative to it")
    people: Shares = Shares()
    seen: float = Field(0.1, ge=0.0, lt=1.0, description="share of a trained person's clips that is held out")
    seed: int = Field(0, ge=0, description="another seed, other splits")
    sample_rate: int = Field(16000, ge=4000, le=48000)
    min_seconds: float = Field(0.5, gt=0.0, description="shorter clips are left out")
    audio: AudioFormat = "flac"
    align: Literal["mtcnn", "none"] = "mtcnn"
    min_confidence: float = Field(0.9, ge=0.0, le=1.0, description="of a face, by MTCNN")
    size: int = Field(256, ge=16, le=1024, description="side of a photo in pixels")
    max_side: int = Field(2048, ge=64, description="a larger photo is shrunk to this before a face is looked for")
    photo: PhotoFormat = "png"
    quality: int = Field(95, ge=1, le=100, description="of JPEG and WebP")


@dataclass(frozen=True)
class Row:
    """One row of the CSV; ``number`` is its line, the header being line 1."""

    number: int
    audio: str
    image: str
    identity: str
    split: str

    @property
    def name(self) -> str:
        return f"line {self.number} ({self.audio}, {self.image})"


@dataclass(frozen=True)
class Pairs:
    """Converts the rows of a CSV."""

    config: PairsConfig

    def plan(self) -> Plan:
        text = store.read_bytes(self.config.csv)
        rows, left_out, has_splits = _read_rows(text, self.config.csv)
        rows = _check_column(rows, self.config.csv) if has_splits else self._deal(rows)
        items = [Item(_key(row), row.split, row.identity, row.name, row) for row in rows]
        return Plan(items, left_out, {"csv_sha256": sha256(text).hexdigest()})

    def make(self, items: Sequence[Item]) -> list[Made | LeftOut]:
        return [self._make(item) for item in items]

    def _make(self, item: Item) -> Made | LeftOut:
        config, row = self.config, item.what
        try:
            content = _read(self._path(row.audio), "audio")
            wav_T = decode_voice(content, sample_rate=config.sample_rate, min_seconds=config.min_seconds)
            photo_HWC = self._face(read_photo(self._path(row.image), config.max_side))
        except UnusableError as error:
            return LeftOut(item.name, item.identity, error.reason, error.detail)
        members = encode(
            item.key,
            wav_T,
            config.sample_rate,
            [photo_HWC],
            identity=item.identity,
            split=item.split,
            source="pairs",
            extra={"audio": row.audio, "image": row.image},
            audio_format=config.audio,
            photo_format=config.photo,
            quality=config.quality,
        )
        return Made(item, members, len(wav_T) / config.sample_rate)

    def _face(self, photo: Image.Image) -> npt.NDArray[np.uint8]:
        if self.config.align == "none":
            return square(np.asarray(photo), self.config.size)
        from v2f.prepare.align import align_face  # imports torch and facenet-pytorch, which `none` does without

        aligned = align_face(photo, self.config.size, self.config.min_confidence)
        if aligned is None:
            raise UnusableError("no face was found", f"photo of {photo.width} x {photo.height} pixels")
        return aligned

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
            Row(
                row.number,
                row.audio,
                row.image,
                row.identity,
                "seen" if (row.identity, row.audio) in held_out else split_of[row.identity],
            )
            for row in rows
        ]


# --------------------------------------------------------------------------------------------------- CSV


def _read_rows(text: bytes, path: str) -> tuple[list[Row], list[LeftOut], bool]:
    try:
        reader = csv.DictReader(io.StringIO(text.decode("utf-8-sig"), newline=""), strict=True)
        header = [name.strip() for name in reader.fieldnames or []]
        if sorted(header) not in (sorted(_COLUMNS), sorted((*_COLUMNS, "split"))):
            wanted = "its header has to be audio,image,identity or audio,image,identity,split"
            raise V2FError(f"{path}: {wanted}, it is {','.join(header) or 'empty'}")
        reader.fieldnames = header
        rows: list[Row] = []
        left_out: list[LeftOut] = []
        first: dict[tuple[str, str, str], int] = {}
        for fields in reader:
            values = {name: (fields[name] or "").strip() for name in header}
            row = Row(reader.line_num, **{"split": "", **values})
            pair = (row.audio, row.image, row.identity)
            empty = [name for name in header if not values[name]]
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


# ------------------------------------------------------------------------------------------------ photos


def read_photo(path: str, max_side: int) -> Image.Image:
    """Any photo as upright 8-bit RGB, no side longer than ``max_side``."""
    content = _read(path, "photo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large photos and odd metadata; MAX_PIXELS is what counts
        try:
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UnusableError("photo is too large", f"{image.width} x {image.height} pixels")
                image.draft("RGB", (max_side, max_side))  # lets a JPEG decode at a fraction of its size
                upright = _to_rgb(ImageOps.exif_transpose(image))
                upright.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
                return upright
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
