"""The converter of pairs: a CSV with the header ``audio,image,identity[,split][,x,y][,landmarks]``, one row per sample.

Paths are relative to the CSV. Blanks around a field, trailing commas, and the Unicode spelling of names
(``names.py``) are ignored. Audio may have any format that libsndfile or FFmpeg (PyAV) reads, photos any that Pillow
reads; ``steps.py`` describes the processing. A row that cannot be used is left out with its reason; a CSV with a wrong
header or invalid splits is refused.

Splits are by person: from the column if there is one, else by shares (``splits.py``).
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import zip_longest
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from v2f.config import Place
from v2f.data.audio import UnusableError
from v2f.data.transforms import square
from v2f.errors import V2FError
from v2f.prepare import Item, LeftOut, Made, Plan, align, steps, yields
from v2f.prepare.names import on_disk, person, same
from v2f.prepare.splits import Shares, Subset, check_column, deal
from v2f.prepare.steps import Pixels, Points, RawSample, StepsConfig
from v2f.prepare.tables import read_rows
from v2f.storage import store

_COLUMNS = ("audio", "image", "identity")
_OPTIONAL = ("split", "x", "y", "landmarks")


class PairsConfig(StepsConfig):
    """Which pairs to use, and (``StepsConfig``) how to process them."""

    csv: Place = Field(description="audio,image,identity[,split][,x,y][,landmarks]; paths are relative to it")
    people: Shares = Shares()
    seen: float = Field(0.1, ge=0.0, lt=1.0, description="held-out share of the clips of each person in train")
    seed: int = Field(0, ge=0, description="another seed gives other splits")
    subset: Subset = Subset()
    align: Literal["mtcnn", "landmarks", "none"] = "mtcnn"
    face: Literal["largest", "nearest", "only"] = Field(
        "largest", description="if there are several; nearest: to the point x,y"
    )

    @model_validator(mode="after")
    def _faces_are_chosen_among_those_found(self) -> "PairsConfig":
        if self.mtcnn is not None and self.align != "mtcnn":
            raise ValueError(f"mtcnn is set, but align is {self.align!r}; set align to 'mtcnn' or remove mtcnn")
        if self.face != "largest" and self.align != "mtcnn":
            raise ValueError(f"face {self.face!r} needs align 'mtcnn', but align is {self.align!r}")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that every row must fill."""
        point = ("x", "y") if self.face == "nearest" else ()
        return (*_COLUMNS, *point, *(("landmarks",) if self.align == "landmarks" else ()))


@dataclass(frozen=True)
class PairRow:
    """One row of the CSV; ``number`` is its line, with the header as line 1. Paths are spelled as in the CSV."""

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
class Pairs:
    """Converts the rows of a CSV."""

    config: PairsConfig

    def plan(self) -> Plan:
        config = self.config
        text = store.read_bytes(on_disk(config.csv))
        rows, left_out, has_splits = _pairs_of(text, config.csv, config.columns)
        rows = check_column(rows, config.csv) if has_splits else self._deal(rows)
        items = [Item(_key(row), row.split, row.identity, row.name, row) for row in rows]
        plan = Plan(items, left_out, {"csv_sha256": sha256(text).hexdigest(), **steps.provenance(config)})
        return config.subset.within(plan, config.seed)

    def inputs(self, item: Item) -> list[str]:
        row = item.what
        landmarks = [row.landmarks] if self.config.align == "landmarks" else []
        return [self._path(path) for path in (row.audio, row.image, *landmarks)]

    def make(self, items: Sequence[Item]) -> list[Made | LeftOut]:
        return steps.make(self.config, "pairs", items, self.config.align == "mtcnn", self._read)

    def _read(self, item: Item) -> RawSample:
        row = item.what
        wav_T = steps.hear(self.config, self._path(row.audio))
        return RawSample(item, wav_T, [self._face(row)], {"audio": same(row.audio), "image": same(row.image)})

    def _face(self, row: PairRow) -> Pixels:
        """The photo of a row, aligned."""
        config = self.config
        photo, shrunk = steps.read_photo(self._path(row.image), config.max_side)
        if config.align == "none":
            return square(np.asarray(photo), steps.side(config))
        if config.align == "landmarks":
            content = steps.read_file(self._path(row.landmarks), "landmarks file")
            # pixel centers have integer coordinates, pixel corners are half a pixel away
            landmarks = (align.read_landmarks(content, row.landmarks) + 0.5) * shrunk - 0.5
            landmarks = align.check_landmarks(landmarks, photo)
        else:
            point = _point(row, photo) if config.face == "nearest" else None
            landmarks = steps.find_face(config, photo, config.face, point).landmarks
        return steps.cut_face(config, photo, landmarks)

    def _path(self, path: str) -> str:
        folder, slash, _ = self.config.csv.rpartition("/")
        relative = slash and not path.startswith("/") and "://" not in path
        return on_disk(store.join(folder, path) if relative else path)

    def _deal(self, rows: list[PairRow]) -> list[PairRow]:
        """Split by person, and hold out some clips of the people in train."""
        of_person: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            of_person[row.identity].add(same(row.audio))
        split_of = deal(of_person, self.config.people, self.config.seen, self.config.seed)
        return [replace(row, split=split_of[row.identity, same(row.audio)]) for row in rows]


# --------------------------------------------------------------------------------------------------- CSV


def _pairs_of(text: bytes, path: str, needed: Sequence[str]) -> tuple[list[PairRow], list[LeftOut], bool]:
    """The rows, those left out, and whether there is a column ``split``; ``needed``: the columns that the recipe
    uses."""
    listed = read_rows(text, path)
    _, header = next(listed, (0, []))
    names = [name for name in header if name]
    known, unused = {*_COLUMNS, *_OPTIONAL}, {*_OPTIONAL} - {*needed, "split"}
    if len(set(names)) < len(names) or not {*needed} <= {*names} <= known:
        wanted = f"the header must be {','.join(needed)} and optionally {','.join(_OPTIONAL)}"
        raise V2FError(f"{path}: {wanted}; it is {','.join(header) or 'empty'}")
    rows: list[PairRow] = []
    left_out: list[LeftOut] = []
    first: dict[tuple[str, ...], int] = {}
    for number, fields in listed:
        named = list(zip_longest(header, fields[: len(header)], fillvalue=""))
        row = PairRow(number, **{name: field for name, field in named if name})
        row = replace(row, identity=person(row.identity))
        pair = tuple(map(same, (row.audio, row.image, row.identity)))
        empty = [name for name, field in named if name and not field and name not in unused]
        if any(fields[len(header) :]) or any(field for name, field in named if not name):
            advice = "put fields that contain a comma in quotes"
            left_out.append(LeftOut(row.name, row.identity, "too many fields", advice))
        elif empty:
            left_out.append(LeftOut(row.name, row.identity, "empty field", ", ".join(empty)))
        elif pair in first:
            left_out.append(LeftOut(row.name, row.identity, "the same pair again", f"as in line {first[pair]}"))
        else:
            first[pair] = row.number
            rows.append(row)
    if not rows:
        reasons = f" ({yields.why(left_out)})" if left_out else ""
        raise V2FError(f"{path}: it has no usable row{reasons}")
    return rows, left_out, "split" in names


def _key(row: PairRow) -> str:
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", row.identity).strip("-")[:40]
    content = chr(0).join((row.identity, same(row.audio), same(row.image)))
    return f"{slug or 'person'}-{sha256(content.encode()).hexdigest()[:12]}"


def _point(row: PairRow, photo: Image.Image) -> Points:
    """The row's point, in pixels of the photo."""
    try:
        point = np.array([row.x, row.y], np.float64)
    except ValueError:
        point = np.full(2, np.nan)
    if not ((point >= 0) & (point <= 1)).all():
        detail = f"{row.x}, {row.y}; use fractions of width and height, 0 to 1"
        raise UnusableError("x,y is not a point in the photo", detail)
    return point * photo.size
