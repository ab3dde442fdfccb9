"""The converter of AVSpeech (Ephrat et al. 2018): segments of YouTube videos in which one visible person speaks.

    avspeech_train.csv   VIDEO,start,end,x,y    no header; seconds; a point in the speaker's face at the start of the
    avspeech_test.csv                           segment, as shares of width and height
    videos               VIDEO.mp4 | mkv | webm at any depth; one sample per segment:

    sound from start to end ------------------------------------------------------> wav_T
    picture at start --the box around x,y--> MTCNN: the face at x,y --> aligned --> photo

Videos in the folder are used; missing ones are downloaded by yt-dlp only if it is installed and the recipe says so.
AVSpeech does not name people: all segments of a video count as one person, and no video may be in both files.
"""

import fcntl
import math
import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from v2f.config import Place
from v2f.data.audio import UnusableError, decode_span
from v2f.data.sample import MAX_SECONDS
from v2f.data.transforms import square
from v2f.errors import V2FError
from v2f.prepare import Item, LeftOut, Made, Plan, align, steps, video, yields
from v2f.prepare.names import on_disk, same
from v2f.prepare.splits import Shares, Subset, deal
from v2f.prepare.steps import Pixels, Points, RawSample, StepsConfig
from v2f.prepare.tables import read_rows, without_empty_end
from v2f.storage import local as files
from v2f.storage import store

_KINDS = ("mp4", "mkv", "webm")
_OTHER_KINDS = ("avi", "mov", "flv", "m4v", "3gp", "mpg", "mpeg", "ogv", "wmv", "ts", "m4a", "mp3", "opus", "wav")
_VIDEO = re.compile(r"[A-Za-z0-9_-]{11}")
_FETCH_S = 1800  # seconds that the download of one video may take
_GONE = ".gone"  # VIDEO.gone holds why the download failed; remove it to try again


class AVSpeechConfig(StepsConfig):
    """Which segments to use, and (``StepsConfig``) how to process them."""

    train_csv: Place = Field(description="avspeech_train.csv, or a part of it")
    test_csv: Place | None = Field(None, description="avspeech_test.csv: its videos are `test`; null: `people` says")
    videos: Place = Field(description="folder that holds VIDEO.mp4, .mkv or .webm, at any depth")
    download: bool = Field(False, description="download missing videos to that folder with yt-dlp")
    format: str = Field("bv*[height<=720]+ba/b[height<=720]/b", description="yt-dlp's --format")
    photos: int = Field(1, ge=1, le=100, description="per segment: the first at its start, the others evenly spaced")
    box: float = Field(0.8, gt=0.0, le=2.0, description="side of the square around x,y, as a share of the height")
    people: Shares = Shares()
    seen: float = Field(0.0, ge=0.0, lt=1.0, description="held-out share of the segments of each video in train")
    seed: int = Field(0, ge=0, description="another seed gives other splits")
    subset: Subset = Subset()
    align: Literal["mtcnn", "none"] = "mtcnn"

    @model_validator(mode="after")
    def _fits_together(self) -> "AVSpeechConfig":
        if self.align == "none" and self.mtcnn is not None:
            raise ValueError("mtcnn is set, but align is 'none'; set align to 'mtcnn' or remove mtcnn")
        if self.download and store.local_path(self.videos) is None:
            raise ValueError(f"download needs a local folder for videos, not {self.videos}")
        return self


@dataclass(frozen=True)
class Segment:
    """One row of a CSV; ``path``: its video, None: to be downloaded."""

    video: str
    start: float
    end: float
    x: float
    y: float
    path: str | None = None

    @property
    def name(self) -> str:
        return f"{self.video} {self.start:.2f}-{self.end:.2f} s"

    @property
    def key(self) -> str:
        return f"av-{self.video}-{round(self.start * 1000):08d}-{round(self.end * 1000):08d}"


@dataclass(frozen=True)
class AVSpeech:
    """Converts segments of videos."""

    config: AVSpeechConfig

    def plan(self) -> Plan:
        config = self.config
        if config.download and shutil.which("yt-dlp") is None:
            raise V2FError(
                "avspeech.download: there is no yt-dlp here; install it (pip install yt-dlp), or set it to false"
            )
        there, others = self._videos()
        if not there and not config.download:
            reasons = f" ({yields.why(others)})" if others else ""
            raise V2FError(
                f"{config.videos}: no video VIDEO.mp4, .mkv or .webm is there, and avspeech.download is false{reasons}"
            )

        texts = [store.read_bytes(on_disk(path)) for path in (config.train_csv, config.test_csv) if path is not None]
        found: dict[str, list[Segment]] = defaultdict(list)
        left_out = others
        of_file: list[set[str]] = []
        for path, text in zip((config.train_csv, config.test_csv), texts, strict=False):
            segments, bad = read_segments(text, str(path), there)
            left_out += bad
            of_file.append({segment.video for segment in segments})
            for segment in segments:
                found[segment.video].append(segment)
        tested = of_file[1] if config.test_csv is not None else None
        both = sorted(of_file[0] & (tested or set()))
        if both:
            raise V2FError(
                f"{config.train_csv}: the video {both[0]} is in {config.test_csv}, too; splits are by person"
            )

        for name in [name for name in found if name not in there and not config.download]:
            count = len(found.pop(name))
            left_out.append(LeftOut(name, name, "video is missing", f"{count} segments", count))
        not_in_csv = sorted(there.keys() - {name for each in of_file for name in each})
        if not_in_csv:
            detail = f"{len(not_in_csv)} videos, the first: {there[not_in_csv[0]]}"
            left_out.append(LeftOut(config.videos, "", "no row names the video", detail, 0))
        left_out += _drop_repeated(found)
        split_of = deal(
            {name: [segment.key for segment in segments] for name, segments in found.items()},
            config.people,
            config.seen,
            config.seed,
            tested,
        )
        items = [
            Item(segment.key, split_of[name, segment.key], name, segment.name, segment)
            for name, segments in found.items()
            for segment in segments
        ]
        if not items:
            lost = [each for each in left_out if each.samples]
            raise V2FError(
                f"{config.train_csv}: none of its segments can be used ({yields.why(lost) or 'it is empty'})"
            )
        known: dict[str, Any] = {"csv_sha256": [sha256(text).hexdigest() for text in texts]}
        if not config.download:  # with downloads, the next run would find other files
            known["files_sha256"] = sha256("\n".join(sorted(there.keys() & found.keys())).encode()).hexdigest()
        return config.subset.within(Plan(items, left_out, {**known, **steps.provenance(config)}), config.seed)

    def _videos(self) -> tuple[dict[str, str], list[LeftOut]]:
        """The paths of the videos by name, and video files that cannot be used."""
        there: dict[str, str] = {}
        left_out = []
        root = on_disk(self.config.videos)
        # of two files with one name, prefer the one higher up, then the one with a lowercase extension
        for name in sorted(store.tree(root), key=lambda name: (name.count("/"), name[-4:] != name[-4:].lower(), name)):
            stem, _, kind = name.rpartition("/")[2].rpartition(".")
            if kind.lower() not in (*_KINDS, *_OTHER_KINDS) or not stem:
                continue
            path = store.join(root, name)
            if kind.lower() not in _KINDS:
                left_out.append(LeftOut(path, stem, "unsupported type of video", "use mp4, mkv or webm", 0))
            elif _VIDEO.fullmatch(stem) is None:
                left_out.append(LeftOut(path, stem, "its name is not VIDEO.mp4", "", 0))
            elif stem in there:
                left_out.append(LeftOut(path, stem, "the same video again", f"as {there[stem]}", 0))
            else:
                there[stem] = path
        return there, left_out

    def inputs(self, item: Item) -> list[str]:
        return [item.what.path] if item.what.path is not None else []

    def make(self, items: Sequence[Item]) -> list[Made | LeftOut]:
        return steps.make(self.config, "avspeech", items, self.config.align == "mtcnn", self._read)

    def _read(self, item: Item) -> RawSample:
        config, segment = self.config, item.what
        path = segment.path or download_video(config.videos, segment.video, config.format)
        with video.opened(path) as container:
            rate, least = config.sample_rate, config.min_seconds
            wav_T = decode_span(container, segment.start, segment.end, sample_rate=rate, min_seconds=least)
            wav_T = steps.voice(config, wav_T)
            step = (segment.end - segment.start) / config.photos
            pictures = video.pictures(container, [segment.start + n * step for n in range(config.photos)])
        extra = {"video": segment.video, "start": segment.start, "end": segment.end, "x": segment.x, "y": segment.y}
        photos_HWC, rejected = self._faces(item, pictures, segment)
        return RawSample(item, wav_T, photos_HWC, extra, tuple(rejected))

    def _faces(
        self, item: Item, pictures: Sequence[Image.Image], segment: Segment
    ) -> tuple[list[Pixels], list[LeftOut]]:
        """The speaker's face in each picture: in the first at the given point, in each later one where it was
        before."""
        photos_HWC: list[Pixels] = []
        rejected = []
        point = np.array([segment.x, segment.y]) * pictures[0].size
        for number, picture in enumerate(pictures):
            try:
                photo_HWC, point = self._face(picture, point)
                photos_HWC.append(photo_HWC)
            except UnusableError as error:
                if number == 0:
                    raise
                rejected.append(LeftOut(f"{item.name}, photo {number}", item.identity, error.reason, error.detail, 0))
        return photos_HWC, rejected

    def _face(self, picture: Image.Image, point: Points) -> tuple[Pixels, Points]:
        """The face at a point of a picture, and the center of the face, in pixels."""
        config = self.config
        side = config.box * picture.height
        low = np.clip(np.floor(point - side / 2), 0, None)
        high = np.clip(np.ceil(point + side / 2), None, picture.size)
        left, top, right, bottom = (int(edge) for edge in (*low, *high))
        box = picture.crop((left, top, right, bottom))
        if config.align == "none":
            return square(np.asarray(box), steps.side(config)), point
        seen = box.copy()
        seen.thumbnail((config.max_side, config.max_side), Image.Resampling.LANCZOS)
        shrunk = np.divide(seen.size, box.size)
        face = steps.find_face(config, seen, "nearest", (point - low) * shrunk)
        # in pixels of the whole picture, because alignment may need more than the box
        landmarks = (face.landmarks + 0.5) / shrunk - 0.5 + low
        middle: Points = face.box.mean(axis=0) / shrunk + low
        return steps.cut_face(config, picture, align.check_landmarks(landmarks, picture)), middle


# --------------------------------------------------------------------------------------------------- CSV


def read_segments(text: bytes, path: str, there: dict[str, str]) -> tuple[list[Segment], list[LeftOut]]:
    """The rows of a CSV, and those left out; ``there``: the path of each video."""
    segments, left_out = [], []
    for number, fields in read_rows(text, path, strict=False):
        row = without_empty_end(fields)
        segment = _segment(row, there)
        if segment is None:
            name = f"line {number} of {path}"
            left_out.append(LeftOut(name, same(row[0]), "the row does not describe a segment", ",".join(row)[:80]))
        else:
            segments.append(segment)
    return segments, left_out


def _segment(row: Sequence[str], there: dict[str, str]) -> Segment | None:
    try:
        name, (start, end, x, y) = row[0], map(float, row[1:])
    except ValueError:
        return None
    meant = 0 <= start < end <= start + MAX_SECONDS and 0 <= x <= 1 and 0 <= y <= 1 and math.isfinite(end)
    return Segment(name, start, end, x, y, there.get(name)) if meant and _VIDEO.fullmatch(name) else None


def _drop_repeated(found: dict[str, list[Segment]]) -> list[LeftOut]:
    """Keep the first segment of each key in ``found``, and return the others."""
    repeated = []
    for name, segments in found.items():
        first: dict[str, Segment] = {}
        for segment in segments:
            if first.setdefault(segment.key, segment) is not segment:
                repeated.append(LeftOut(segment.name, name, "the same segment again"))
        found[name] = list(first.values())
    return repeated


# ------------------------------------------------------------------------------------------------- fetch


def download_video(folder: str, name: str, choice: str) -> str:
    """The path of a video, downloaded to a local folder by yt-dlp unless it is there already.

    One process downloads, others wait for it. A failed download is not tried again; :class:`UnusableError`.
    """
    local = store.local_path(folder)
    assert local is not None
    gone = os.path.join(local, name + _GONE)
    with store.explained(local):
        os.makedirs(local, exist_ok=True)
        lock = files.opened(os.path.join(local, f".{name}.lock"), "w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases it when a process dies
        for kind in _KINDS:
            path = os.path.join(local, f"{name}.{kind}")
            if os.path.exists(path):
                return path
        if not os.path.exists(gone):
            reason = _run_yt_dlp(local, name, choice)
            if reason is None:
                return os.path.join(local, f"{name}.mkv")
            store.write_bytes(gone, reason.encode())
    raise UnusableError("video cannot be fetched", store.read_bytes(gone).decode())


def _run_yt_dlp(local: str, name: str, choice: str) -> str | None:
    """Download a video; returns why yt-dlp failed, None if it succeeded."""
    command = ["yt-dlp", "--quiet", "--no-warnings", "--no-playlist", "--no-progress", "--format", choice]
    command += ["--merge-output-format", "mkv", "--remux-video", "mkv", "--paths", local, "--output", f"{name}.%(ext)s"]
    try:
        done = subprocess.run(
            [*command, "--", f"https://www.youtube.com/watch?v={name}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_FETCH_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it took longer than {_FETCH_S} s"
    except OSError as error:
        raise V2FError(
            f"yt-dlp cannot be run ({error.strerror}); install it anew, or set avspeech.download to false"
        ) from error
    if done.returncode == 0 and os.path.exists(os.path.join(local, f"{name}.mkv")):
        return None
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return (said[-1] if said else f"yt-dlp left with {done.returncode}")[:300]
