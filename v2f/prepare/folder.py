"""The converter of a folder of pictures, sounds, pairs of both, or videos, with a class for each.

    ROOT/CLASS/.../FILE                  the class is the first folder; files directly in ROOT have none
    ROOT/SPLIT/CLASS/.../FILE            with `splits: folders`; SPLIT is train, valid, test (or val, dev, testing...)
    CSV file[,label][,split][,identity]  replaces both; files are at ROOT/file. Other columns go into the JSON
    CSV of a published corpus            with `layout`: see :mod:`v2f.prepare.listings`

A sample is a picture, a sound, a window of a sound, a picture and a sound (`holds: both`) in one folder whose names
differ only in the extension, or the sound of a video with some of its frames (`holds: videos`). ``steps.py`` describes
the processing; an input that cannot be used is left out with its reason.

A sample's identity is in the column of that name. Without one, each file is an identity of its own, so that its windows
stay in one split. A class is not an identity, and may be in all splits. The manifest names the classes
(``provenance.classes``).
"""

import functools
import posixpath
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from v2f.config import Place
from v2f.data.audio import SILENCE, UnusableError, decode_voice
from v2f.data.transforms import square, to_gray
from v2f.errors import V2FError
from v2f.prepare import Item, LeftOut, Made, Plan, listings, steps, video, yields
from v2f.prepare.listings import Folds, Layout
from v2f.prepare.names import is_text, on_disk, person, same
from v2f.prepare.splits import Shares, Subset, check_column, deal
from v2f.prepare.steps import Pixels, RawSample, StepsConfig
from v2f.prepare.tables import read_rows, without_empty_end
from v2f.storage import local as files
from v2f.storage import store

PICTURE = re.compile(r".+\.(?:jpe?g|png|webp|bmp|tiff?|gif|avif|jp2|p[pgn]m)", re.IGNORECASE)
SOUND = re.compile(
    r".+\.(?:wav|flac|m4a|mp[34]|aac|og[ga]|opus|aiff?|wma|amr|caf|webm|mkv|mov|avi|w64|au)", re.IGNORECASE
)
VIDEO = re.compile(r".+\.(?:mp4|m4v|webm|mkv|mov|avi)", re.IGNORECASE)
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= dict.fromkeys(("valid", "val", "validation", "dev"), "valid")
_COLUMNS = ("file", "label", "split", "identity")
# JSON keys that columns must not overwrite
_RESERVED = ("sample_rate", "seconds", "source", "holds", "start", *_COLUMNS)


class FolderConfig(StepsConfig):
    """Which files to use, and (``StepsConfig``) how to process them."""

    root: Place = Field(description="the folder; its files are found at any depth")
    holds: Literal["pictures", "sounds", "both", "videos"] = "pictures"
    csv: Place | None = Field(None, description="file[,label][,split][,identity]; null: classes are folders")
    layout: Layout = Field("v2f", description="of the csv; vgg_sound, esc50: the list that such a corpus comes with")
    folds: Folds = Field(Folds(), description="the folds of esc50 that are held out")
    frames: int = Field(1, ge=1, le=100, description="pictures of a video, or of a window of it, evenly spread")
    labels: bool = Field(True, description="without a csv: whether folders are classes")
    classes: list[str] | None = Field(None, min_length=1, description="classes, in this order; null: all, sorted")
    splits: Literal["shares", "folders"] = "shares"
    people: Shares = Shares()
    seen: float = Field(0.0, ge=0.0, lt=1.0, description="held-out share of the samples of each person in train")
    seed: int = Field(0, ge=0, description="another seed gives other splits")
    subset: Subset = Subset()
    seconds: float | None = Field(None, gt=0.0, description="length of the windows of a sound; null: not cut")
    align: Literal["mtcnn", "none"] = "none"
    channels: Literal[1, 3] = Field(3, description="of a picture: 3 is RGB, 1 gray")

    @model_validator(mode="after")
    def _fits_together(self) -> "FolderConfig":
        if self.csv is not None and self.splits == "folders":
            raise ValueError("with a csv, its column `split` sets the splits; remove `splits: folders`")
        if self.layout != "v2f" and self.csv is None:
            raise ValueError(f"layout is {self.layout}: name the corpus's list in csv")
        if self.mtcnn is not None and self.align == "none":
            raise ValueError("mtcnn is set, but align is 'none'; set align to 'mtcnn' or remove mtcnn")
        if self.psp is not None and (self.holds == "sounds" or self.channels == 1):
            raise ValueError("psp needs RGB pictures")
        if self.channels == 1 and self.photo == "webp":
            raise ValueError("WebP has no grayscale; set photo to png or jpg")
        if self.seconds is not None and (self.vad is not None or self.max_seconds is not None):
            raise ValueError("`seconds` cuts the unprocessed sound; set vad and max_seconds to null, or seconds")
        if self.seconds is not None and self.seconds < self.min_seconds:
            raise ValueError(f"seconds is {self.seconds:g}, but min_seconds is {self.min_seconds:g}")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError("classes names a class twice; remove one")
        return self


@dataclass(frozen=True)
class _File:
    """The inputs of a sample: paths below ROOT, and what is known about it. ``number``: its line in the CSV;
    ``window``: the number of the window of the sound, None: the whole sound."""

    name: str
    picture: str | None
    sound: str | None
    label: str | None = None
    split: str = ""
    identity: str = ""
    number: int = 0
    window: int | None = None
    known: Mapping[str, str] = field(default_factory=dict)

    @property
    def own(self) -> str:
        """The key of this file, which is also its identity if it has no other."""
        slug = re.sub(r"[^A-Za-z0-9_]+", "-", posixpath.splitext(self.name)[0]).strip("-")[-40:].strip("-")
        return f"{slug or 'file'}-{sha256(self.name.encode()).hexdigest()[:12]}"

    @property
    def key(self) -> str:
        return self.own if self.window is None else f"{self.own}-w{self.window:05d}"


@dataclass(frozen=True)
class Folder:
    """Converts the files of a folder."""

    config: FolderConfig

    def plan(self) -> Plan:
        config = self.config
        found, left_out = self._files()
        names = [file.name for file in found]
        known: dict[str, Any] = {"files_sha256": sha256("\n".join(sorted(names)).encode()).hexdigest()}
        if config.csv is not None:
            text = store.read_bytes(on_disk(config.csv))
            known["csv_sha256"] = sha256(text).hexdigest()
            found, bad = self._from_csv(text, config.csv, found)
        else:
            found, bad = self._by_folder(found)
        left_out += bad
        found, bad = self._of_classes(found)
        left_out += bad
        if not found:
            lost = yields.why(left_out) if left_out else "it is empty"
            raise V2FError(f"{config.root}: it has no usable file ({lost})")
        labels = {file.label for file in found if file.label is not None}
        if labels:
            known["classes"] = {"label": config.classes or sorted(labels)}
        found = self._windows(self._with_splits(found))
        items = [Item(file.key, file.split, file.identity, _display_name(file), file) for file in found]
        return config.subset.within(Plan(items, left_out, {**known, **steps.provenance(config)}), config.seed)

    def inputs(self, item: Item) -> list[str]:
        return [self._path(name) for name in (item.what.picture, item.what.sound) if name is not None]

    def make(self, items: Sequence[Item]) -> list[Made | LeftOut]:
        return steps.make(self.config, "folder", items, self.config.align == "mtcnn", self._read)

    def _read(self, item: Item) -> RawSample:
        file: _File = item.what
        wav_T = self._read_sound(file) if file.sound is not None else None
        photos_HWC = self._read_pictures(file) if file.picture is not None else None
        extra: dict[str, Any] = {"file": file.name, **file.known}
        if file.label is not None:
            extra["label"] = file.label
        if file.window is not None and self.config.seconds is not None:
            extra["start"] = round(file.window * self.config.seconds, 6)
        return RawSample(item, wav_T, photos_HWC, extra)

    def _read_pictures(self, file: _File) -> list[Pixels]:
        config, path = self.config, self._path(str(file.picture))
        if config.holds != "videos":
            return [self._cropped(steps.read_photo(path, config.max_side)[0])]
        with video.opened(path) as container:
            start, length = 0.0, float(container.duration or 0) / 1e6
            if file.window is not None and config.seconds is not None:
                start, length = file.window * config.seconds, min(config.seconds, length)
            times = [start + length * (number + 0.5) / config.frames for number in range(config.frames)]
            return [self._cropped(frame) for frame in video.pictures(container, times)]

    def _cropped(self, photo: Image.Image) -> Pixels:
        config = self.config
        if config.align == "mtcnn":
            found = steps.cut_face(config, photo, steps.find_face(config, photo, "largest", None).landmarks)
        else:
            found = square(np.asarray(photo), steps.side(config))
        return to_gray(found) if config.channels == 1 else found

    def _read_sound(self, file: _File) -> NDArray[np.float32]:
        config, path = self.config, self._path(str(file.sound))
        if file.window is None or config.seconds is None:
            return steps.hear(config, path)
        whole_T = _decoded(path, config.sample_rate, config.min_seconds)
        first, last = (round((file.window + n) * config.seconds * config.sample_rate) for n in (0, 1))
        wav_T = whole_T[first:last]
        if file.window and len(wav_T) < last - first:
            raise UnusableError("the sound ends before the window does", f"it has {len(whole_T)} of {last} frames")
        if float(np.abs(wav_T).max()) < SILENCE:
            raise UnusableError("audio is silent")
        return steps.voice(config, wav_T)

    def _path(self, name: str) -> str:
        return on_disk(store.join(on_disk(self.config.root), name))

    # ----------------------------------------------------------------------------------------------- which

    def _files(self) -> tuple[list[_File], list[LeftOut]]:
        """The files that samples can be made from, sorted by name; and the others, one entry per reason."""
        wanted = self.config.holds
        pictures: list[str] = []
        sounds: list[str] = []
        others: dict[str, list[str]] = defaultdict(list)
        for path in sorted(store.tree(on_disk(self.config.root))):
            name = same(path)
            if not is_text(name):
                others["its name is not valid UTF-8"].append(path)
            elif name.rpartition("/")[2].startswith("."):
                others["it is hidden"].append(path)
            elif wanted == "videos":
                (sounds if VIDEO.fullmatch(name) else others["it is not a video, but `holds` is videos"]).append(path)
            elif PICTURE.fullmatch(name):
                (pictures if wanted != "sounds" else others["it is a picture, but `holds` is sounds"]).append(path)
            elif SOUND.fullmatch(name):
                (sounds if wanted != "pictures" else others["it is a sound, but `holds` is pictures"]).append(path)
            else:
                others["unsupported type of file"].append(path)
        found = []
        if wanted == "videos":
            found = [_File(same(path), path, path) for path in sounds]
        elif wanted != "both":
            found = [_File(same(path), path, None) for path in pictures] + [
                _File(same(path), None, path) for path in sounds
            ]
        else:
            of_stem: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
            for which, paths in enumerate((pictures, sounds)):
                for path in paths:
                    of_stem[posixpath.splitext(same(path))[0]][which].append(path)
            for stem, (seen, heard) in of_stem.items():
                if len(seen) == len(heard) == 1:
                    found.append(_File(stem, seen[0], heard[0]))
                else:
                    why = "the picture has no sound" if not heard else "the sound has no picture"
                    others[why if not (seen and heard) else "several pictures or sounds share a name"] += seen + heard
        return sorted(found, key=lambda file: file.name), _left_out_by_reason(others, self.config.root)

    def _by_folder(self, found: Sequence[_File]) -> tuple[list[_File], list[LeftOut]]:
        """The files with the classes and splits that their folders give."""
        config = self.config
        kept = []
        others: dict[str, list[str]] = defaultdict(list)
        for file in found:
            folders, split = file.name.split("/")[:-1], ""
            if config.splits == "folders":
                split = _SPLITS.get(folders.pop(0).casefold(), "") if folders else ""
                if not split:
                    others["it is not in a folder named after a split"].append(file.name)
                    continue
            kept.append(replace(file, split=split, label=folders[0] if folders and config.labels else None))
        if any(file.label is not None for file in kept):
            others["it is not in the folder of a class"] += [file.name for file in kept if file.label is None]
            kept = [file for file in kept if file.label is not None]
        return kept, _left_out_by_reason(others, config.root)

    def _of_classes(self, found: list[_File]) -> tuple[list[_File], list[LeftOut]]:
        """The files whose class the recipe names."""
        classes = self.config.classes
        if classes is None:
            return found, []
        missing = sorted(set(classes) - {file.label for file in found})
        if missing:
            raise V2FError(f"{self.config.root}: no file has the class {missing[0]!r}, which `classes` lists")
        others = {"its class is not in `classes`": [file.name for file in found if file.label not in classes]}
        return [file for file in found if file.label in classes], _left_out_by_reason(others, self.config.root)

    def _from_csv(self, text: bytes, path: str, found: Sequence[_File]) -> tuple[list[_File], list[LeftOut]]:
        """The files that a CSV names, with its columns."""
        there = {name: file for file in found for name in (file.name, file.picture, file.sound) if name is not None}
        there |= {same(name): file for name, file in there.items()}
        rows, left_out, header = self._listed(text, path, there, found)
        listed: dict[str, _File] = {}
        for number, row in rows:
            name = f"line {number} ({row['file']})"
            file = there.get(same(posixpath.normpath(row["file"])))
            identity = person(row.get("identity", ""))
            if file is None:
                left_out.append(LeftOut(name, identity, "file is missing, or not of a type that `holds` selects"))
            elif file.name in listed:
                left_out.append(
                    LeftOut(name, identity, "the same file again", f"as in line {listed[file.name].number}")
                )
            else:
                known = {column: value for column, value in row.items() if column not in _COLUMNS}
                listed[file.name] = replace(
                    file,
                    label=row.get("label"),
                    split=row.get("split", ""),
                    identity=identity,
                    number=number,
                    known=known,
                )
        not_in_csv = {"no row names the file": [file.name for file in found if file.name not in listed]}
        kept = list(listed.values())
        if "split" in header:
            check_column([replace(file, identity=file.identity or file.own) for file in kept], path)
        return kept, left_out + _left_out_by_reason(not_in_csv, self.config.root)

    def _listed(self, text: bytes, path: str, there: dict[str, _File], found: Sequence[_File]) -> listings.Rows:
        """The rows of the CSV in its layout. ``there``: file by name; those that a corpus names are added to it."""
        config = self.config
        if config.layout == "v2f":
            return _rows_of(text, path)
        stems = {same(posixpath.splitext(posixpath.basename(file.name))[0]): file for file in reversed(found)}
        there |= stems
        if config.layout == "esc50":
            return listings.esc50(text, path, config.folds)
        return listings.vgg_sound(text, path, stems, config.people, config.seed)

    def _with_splits(self, found: Sequence[_File]) -> list[_File]:
        """The files, each with an identity and a split; those that have none yet are assigned one."""
        found = [replace(file, identity=file.identity or file.own) for file in found]
        of_person: dict[str, list[str]] = defaultdict(list)
        for file in found:
            of_person[file.identity].append(file.name)
        split_of = deal(of_person, self.config.people, self.config.seen, self.config.seed)
        return [replace(file, split=file.split or split_of[file.identity, file.name]) for file in found]

    def _windows(self, found: Sequence[_File]) -> list[_File]:
        """The windows of each file. The remainder of a sound is dropped; a shorter sound is one window."""
        seconds = self.config.seconds
        if seconds is None:
            return list(found)
        return [
            replace(file, window=window) if file.sound is not None else file
            for file in found
            for window in range(max(1, int(_length(self._path(file.sound)) / seconds + 1e-6)) if file.sound else 1)
        ]


def _display_name(file: _File) -> str:
    return file.name + (f", window {file.window}" if file.window is not None else "")


def _left_out_by_reason(others: Mapping[str, Sequence[str]], root: str) -> list[LeftOut]:
    """One entry per reason."""
    return [
        LeftOut(root, "", why, f"{len(names)} files, the first: {names[0]}", 0)
        for why, names in others.items()
        if names
    ]


def _length(path: str) -> float:
    """Length of a sound in seconds from its header; 0 if it is unknown or unreadable, which decoding will report."""
    local = store.local_path(path)
    if local is not None:
        try:
            with files.opened(local, "rb") as file:
                info = soundfile.info(file)
            if 0 < info.frames < 1 << 62:
                return float(info.frames / info.samplerate)
        except Exception:  # libsndfile does not know the format
            pass
    try:
        with video.opened(path) as container:
            return float((container.duration or 0) / 1e6)  # AV_TIME_BASE: microseconds
    except UnusableError:
        return 0.0


@functools.lru_cache(1)  # windows of one file are often consecutive
def _decoded(path: str, sample_rate: int, min_seconds: float) -> NDArray[np.float32]:
    wav_T = decode_voice(steps.read_file(path, "audio"), sample_rate=sample_rate, min_seconds=min_seconds)
    wav_T.flags.writeable = False
    return wav_T


def _rows_of(text: bytes, path: str) -> tuple[list[tuple[int, dict[str, str]]], list[LeftOut], list[str]]:
    """The rows of a CSV with their line numbers, the rows left out, and the columns."""
    listed = read_rows(text, path)
    header = without_empty_end(next(listed, (0, []))[1])
    bad = [
        name for name in header if not re.fullmatch(r"[A-Za-z0-9_]+", name) or name in set(_RESERVED) - set(_COLUMNS)
    ]
    if "file" not in header or len(set(header)) < len(header) or bad:
        why = f"{bad[0]!r} cannot be a column" if bad else f"it is {','.join(header) or 'empty'}"
        raise V2FError(f"{path}: the header must be file[,label][,split][,identity] and any columns of your own; {why}")
    rows, left_out = [], []
    for number, values in listed:
        row = dict(zip_longest(header, values[: len(header)], fillvalue=""))
        name = f"line {number} ({row['file']})"
        empty = [column for column in _COLUMNS if not row.get(column, " ")]
        if any(values[len(header) :]):
            left_out.append(LeftOut(name, "", "too many fields", "put fields that contain a comma in quotes"))
        elif empty:
            left_out.append(LeftOut(name, "", "empty field", ", ".join(empty)))
        else:
            rows.append((number, row))
    return rows, left_out, header
