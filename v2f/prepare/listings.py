"""The lists of published corpora of sounds, read as rows of the CSV that :mod:`v2f.prepare.folder` takes.

    VGG-Sound   YOUTUBE_ID,START_S,LABEL,train|test   no header; the clip of 10 s is YOUTUBE_ID_START.mp4 (or .wav, ...)
    ESC-50      filename,fold,target,category,...     meta/esc50.csv; the clip is audio/FILENAME

Files may be at any depth, with any extension that ``holds`` selects. The source recording is the identity (the YouTube
video; ESC-50's ``src_file``), so that no recording is in two splits. Neither corpus has a validation set: of VGG-Sound
a share of the training videos becomes one, of ESC-50 whole folds.

Chen et al. 2020, "VGGSound" (arXiv 2004.14368); Piczak 2015, "ESC: Dataset for environmental sound classification".
"""

from collections.abc import Collection, Sequence
from typing import Literal

from pydantic import Field, model_validator

from v2f.config import Config
from v2f.errors import V2FError
from v2f.prepare import LeftOut, share
from v2f.prepare.splits import Shares
from v2f.prepare.tables import read_rows

Layout = Literal["v2f", "vgg_sound", "esc50"]
Rows = tuple[list[tuple[int, dict[str, str]]], list[LeftOut], list[str]]
"""Rows with their line numbers, the rows left out, and the columns."""

_ESC50 = ("filename", "fold", "category", "src_file")  # columns that are read


class Folds(Config):
    """Folds of ESC-50 that are held out."""

    valid: list[int] = Field([4], description="folds for validation")
    test: list[int] = Field([5], min_length=1, description="folds for the test")

    @model_validator(mode="after")
    def _differ(self) -> "Folds":
        if set(self.valid) & set(self.test):
            raise ValueError("folds: valid and test share a fold; each is held out once")
        return self


def vgg_sound(text: bytes, path: str, stems: Collection[str], people: Shares, seed: int) -> Rows:
    """The rows of ``vggsound.csv``. ``stems``: names of the files that are there, without folder and extension.

    Of the training videos, the share ``people.valid`` becomes the split valid. A training clip of a video that is also
    in the test set is left out. V2FError if the file is not such a list.
    """
    listed, left_out = [], []
    for number, values in read_rows(text, path):
        if len(values) != 4 or values[3] not in ("train", "test"):
            raise V2FError(
                f"{path}: line {number} is not YOUTUBE_ID,START,LABEL,train|test as in VGG-Sound's list; for a list of "
                "your own set folder.layout=v2f"
            )
        video, start, label, split = values
        if start.isascii() and start.isdigit():
            listed.append((number, video, int(start), label, split))
        else:
            left_out.append(LeftOut(f"line {number} ({video})", video, "its start is not a whole number", start))
    tested = {video for _, video, _, _, split in listed if split == "test"}
    held = people.without_test().valid
    rows = []
    for number, video, second, label, split in listed:
        if split == "train" and video in tested:
            left_out.append(LeftOut(f"line {number} ({video})", video, "its video is in the test set, too"))
            continue
        if split == "train" and share(str(seed), "person", video) < held:
            split = "valid"
        names = (f"{video}_{second:06d}", f"{video}_{second}", f"{video}_{second}_{second + 10}")
        file = next((name for name in names if name in stems), names[0])
        row = {"file": file, "label": label, "split": split, "identity": video, "start_second": str(second)}
        rows.append((number, row))
    return rows, left_out, ["file", "label", "split", "identity", "start_second"]


def esc50(text: bytes, path: str, folds: Folds) -> Rows:
    """The rows of ``esc50.csv``; V2FError if the file is not such a list, or has none of a held-out fold."""
    lines = iter(read_rows(text, path))
    header = next(lines, (0, []))[1]
    missing = [name for name in _ESC50 if name not in header]
    if missing:
        raise V2FError(
            f"{path}: it has no column {missing[0]!r}, which ESC-50's list has; for a list of your own set "
            "folder.layout=v2f"
        )
    rows, left_out, there = [], list[LeftOut](), set[str]()
    for number, values in lines:
        known = dict(zip(header, values, strict=False))
        if len(values) != len(header) or not all(known[name] for name in _ESC50):
            left_out.append(LeftOut(f"line {number}", "", "a field is missing"))
            continue
        fold = known["fold"]
        there.add(fold)
        split = "test" if fold in _texts(folds.test) else "valid" if fold in _texts(folds.valid) else "train"
        row = {"file": known["filename"].rpartition(".")[0], "label": known["category"], "split": split}
        row |= {"identity": known["src_file"]}
        row |= {name: known[name] for name in ("fold", "target", "esc10", "take") if name in known}
        rows.append((number, row))
    unknown = [fold for fold in _texts([*folds.valid, *folds.test]) if fold not in there]
    if unknown:
        raise V2FError(
            f"{path}: no row is of fold {unknown[0]}, which folds holds out; it has {', '.join(sorted(there))}"
        )
    return rows, left_out, ["file", "label", "split", "identity", "fold", "target", "esc10", "take"]


def _texts(folds: Sequence[int]) -> list[str]:
    return [str(fold) for fold in folds]
