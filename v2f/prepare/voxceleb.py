"""The converter of VoxCeleb1 and VoxCeleb2: their voices, and faces from VGGFace1 and VGGFace2, matched by the
published metadata.

    voices  ROOT/.../idXXXXX/VIDEO/UTT.wav | m4a     one sample per clip
    meta    vox1_meta.csv, vox2_meta.csv             idXXXXX -> A.J._Buckley or n000012; dev or test
    faces   ROOT/.../A.J._Buckley/*.jpg              VGGFace1, or any set with a folder for each name
            ROOT/.../n000012/*.jpg                   VGGFace2; a folder may also be named idXXXXX

The people of the two corpora are disjoint, so one recipe may use both. Other sounds and photos below the roots are left
out and counted. A person's photos are dealt to the person's clips in turn (both in the order of a hash), so that clips
show different photos. A photo without a usable face is replaced by the next.
"""

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from v2f.config import Place
from v2f.data.audio import UnusableError
from v2f.data.transforms import square
from v2f.errors import V2FError
from v2f.prepare import Item, LeftOut, Made, Plan, share, steps, yields
from v2f.prepare.names import is_text, on_disk, same, tidy
from v2f.prepare.splits import Shares, Subset, deal
from v2f.prepare.steps import Pixels, RawSample, StepsConfig
from v2f.storage import store

_CLIP = re.compile(r"(?:.*/)?(id\d{5})/([A-Za-z0-9_-]{1,40})/([A-Za-z0-9_-]{1,20})\.(?i:wav|flac|m4a)")
_SOUND = re.compile(r".+\.(?:wav|flac|m4a|mp[34]|aac|og[ga]|opus|aiff?|wma|amr|caf|webm|mkv)", re.IGNORECASE)
_PHOTO = re.compile(r".+\.(?:jpe?g|png|webp|bmp|tiff?)", re.IGNORECASE)
_PICTURE = re.compile(r".+\.(?:gif|hei[cf]|avif|jfif|jp2|jxl|p[pgn]m|tga|svg)", re.IGNORECASE)
_COLUMNS = {  # published names without case and spaces; vox2_meta.csv has a space before most commas
    "voxceleb1id": "id",
    "voxceleb2id": "id",
    "vggface1id": "face",
    "vggface2id": "face",
    "name": "name",
    "gender": "gender",
    "nationality": "nationality",
    "set": "set",
}


class VoxCelebConfig(StepsConfig):
    """Which clips and photos to use, and (``StepsConfig``) how to process them."""

    voices: list[Place] = Field(min_length=1, description="folders that hold idXXXXX/VIDEO/UTT.wav|m4a, at any depth")
    meta: list[Place] = Field(min_length=1, description="vox1_meta.csv, vox2_meta.csv")
    faces: list[Place] = Field(min_length=1, description="folders that hold a folder for each person, at any depth")
    photos: int = Field(1, ge=1, le=100, description="of the person in each sample, at most")
    spare: int = Field(3, ge=0, le=100, description="photos that are tried where others have no usable face")
    splits: Literal["published", "shares"] = Field("published", description="published: its test people are `test`")
    people: Shares = Shares()
    seen: float = Field(0.1, ge=0.0, lt=1.0, description="held-out share of the clips of each person in train")
    seed: int = Field(0, ge=0, description="another seed gives other splits and other photos")
    subset: Subset = Subset()
    align: Literal["mtcnn", "none"] = "mtcnn"
    face: Literal["largest", "only"] = Field("largest", description="which face, if a photo has several")

    @model_validator(mode="after")
    def _faces_are_chosen_among_those_found(self) -> "VoxCelebConfig":
        if self.align == "none" and (self.mtcnn is not None or self.face != "largest"):
            raise ValueError("mtcnn and face are for align 'mtcnn', align is 'none'")
        return self


@dataclass(frozen=True)
class Speaker:
    """One line of the metadata."""

    id: str
    names: tuple[str, ...]  # of folders with the person's photos
    tested: bool
    known: Mapping[str, str] = field(default_factory=dict)  # gender, nationality: stored in the samples


@dataclass(frozen=True)
class _Photo:
    name: str  # relative to its root, in NFC
    path: str


@dataclass(frozen=True)
class _Clip:
    """The inputs of a sample: a recording, the photos to try in order, and facts about the person."""

    name: str
    path: str
    photos: tuple[_Photo, ...]
    known: Mapping[str, str]


@dataclass(frozen=True)
class VoxCeleb:
    """Converts the clips of people with photos."""

    config: VoxCelebConfig

    def plan(self) -> Plan:
        config = self.config
        texts = {path: store.read_bytes(on_disk(path)) for path in config.meta}
        people: dict[str, Speaker] = {}
        for path, text in texts.items():
            for person in read_meta(text, path, config.splits == "published"):
                if people.setdefault(person.id, person) != person:
                    raise V2FError(f"{path}: {person.id} is there with other data in another line or file of `meta`")
        clips, left_out = self._clips()
        photos, of_nobody = self._photos(people)
        left_out += of_nobody

        usable: dict[str, list[_Clip]] = {}
        for id, mine in clips.items():
            why = "the person is not in the metadata" if id not in people else "the person has no photos"
            if id in people and photos[id]:
                usable[id] = mine
            else:
                name = f"{id} {' '.join(people[id].names)}" if id in people else id
                left_out.append(LeftOut(name, id, why, f"{len(mine)} clips", len(mine)))
        for id in people.keys() - clips.keys():
            left_out.append(LeftOut(f"{id} {' '.join(people[id].names)}", id, "the person has no clips", "", 0))
        if not usable:
            raise V2FError(
                f"{', '.join(config.voices)}: no clip idXXXXX/VIDEO/UTT.wav|m4a of a person with photos below "
                f"{', '.join(config.faces)} was found ({yields.why(left_out)})"
            )
        tested = {id for id in people if people[id].tested} if config.splits == "published" else None
        names = {id: [clip.name for clip in mine] for id, mine in usable.items()}
        split_of = deal(names, config.people, config.seen, config.seed, tested)
        items = [
            Item(_key(clip.name), split_of[id, clip.name], id, clip.name, clip)
            for id, mine in usable.items()
            for clip in self._with_photos(people[id], mine, photos[id])
        ]
        files = sorted([clip.name for mine in clips.values() for clip in mine])
        files += sorted(photo.name for mine in photos.values() for photo in mine)
        found = {
            "meta_sha256": [sha256(text).hexdigest() for text in texts.values()],
            "files_sha256": sha256("\n".join(files).encode()).hexdigest(),
        }
        return config.subset.within(Plan(items, left_out, {**found, **steps.provenance(config)}), config.seed)

    def inputs(self, item: Item) -> list[str]:
        return [item.what.path, *(photo.path for photo in item.what.photos)]

    def make(self, items: Sequence[Item]) -> list[Made | LeftOut]:
        return steps.make(self.config, "voxceleb", items, self.config.align == "mtcnn", self._read)

    def _read(self, item: Item) -> RawSample:
        clip: _Clip = item.what
        wav_T = steps.hear(self.config, clip.path)
        photos_HWC: list[Pixels] = []
        names: list[str] = []
        rejected: list[LeftOut] = []
        for photo in clip.photos:
            if len(photos_HWC) == self.config.photos:
                break
            try:
                photos_HWC.append(self._face(photo.path))
                names.append(photo.name)
            except UnusableError as error:
                rejected.append(LeftOut(photo.name, item.identity, error.reason, error.detail, 0))
        if not photos_HWC:
            reasons = Counter(each.reason for each in rejected).most_common()
            raise UnusableError("none of its photos can be used", ", ".join(f"{n} x {why}" for why, n in reasons))
        return RawSample(item, wav_T, photos_HWC, {"audio": clip.name, "images": names, **clip.known}, tuple(rejected))

    def _face(self, path: str) -> Pixels:
        config = self.config
        photo, _ = steps.read_photo(path, config.max_side)
        if config.align == "none":
            return square(np.asarray(photo), steps.side(config))
        return steps.cut_face(config, photo, steps.find_face(config, photo, config.face, None).landmarks)

    def _clips(self) -> tuple[dict[str, list[_Clip]], list[LeftOut]]:
        """The recordings of each id; and those left out: duplicates (as wav and m4a, or below two roots), and sounds
        that are not clips."""
        clips: dict[str, list[_Clip]] = defaultdict(list)
        left_out = []
        first: dict[str, str] = {}
        for root in map(on_disk, self.config.voices):
            for name in sorted(store.tree(root), key=_as_published):
                match, path = _CLIP.fullmatch(name), store.join(root, name)
                if match is None or not is_text(name):
                    if _SOUND.fullmatch(name) is not None:
                        left_out.append(_no_clip(name, path))
                    continue
                id, clip = match[1], "/".join(match.groups())
                if clip in first:
                    left_out.append(LeftOut(path, id, "the same clip again", f"as {first[clip]}"))
                    continue
                first[clip] = path
                clips[id].append(_Clip(clip, path, (), {}))
        return clips, left_out

    def _photos(self, people: Mapping[str, Speaker]) -> tuple[dict[str, list[_Photo]], list[LeftOut]]:
        """The photos of each id; and those that belong to nobody, one entry per folder."""
        exact = {name: person.id for person in people.values() for name in (person.id, *person.names)}
        loose: dict[str, set[str]] = defaultdict(set)
        for name, id in exact.items():
            loose[_loose(name)].add(id)
        photos: dict[str, list[_Photo]] = {id: [] for id in people}
        others: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for root in map(on_disk, self.config.faces):
            for path in store.tree(root):
                name = same(path)
                if _PHOTO.fullmatch(name) is None and _PICTURE.fullmatch(name) is None:
                    continue
                owner, why = _owner(name, exact, loose)
                if not is_text(name):
                    why = "its name is not valid UTF-8"
                elif _PHOTO.fullmatch(name) is None:
                    why = "unsupported type of photo"
                if owner and not why:
                    photos[owner].append(_Photo(name, store.join(root, path)))
                else:
                    folder = store.join(root, path).rpartition("/")[0]
                    others[folder, owner or folder.rpartition("/")[2], why].append(path)
        left_out = []
        for (folder, identity, why), names in others.items():
            detail = f"{len(names)} photos, the first: {names[0].rpartition('/')[2]}"
            left_out.append(LeftOut(folder, identity, why, detail, 0, len(names)))
        return photos, left_out

    def _with_photos(self, person: Speaker, clips: list[_Clip], photos: list[_Photo]) -> list[_Clip]:
        """The clips with their photos and spare ones, dealt around a ring: each clip continues after the previous
        one."""
        seed, wanted = str(self.config.seed), self.config.photos
        ring = sorted(photos, key=lambda photo: share(seed, "photo", person.id, photo.name))
        dealt = []
        for number, clip in enumerate(sorted(clips, key=lambda clip: share(seed, "turn", person.id, clip.name))):
            places = range(number * wanted, number * wanted + min(wanted + self.config.spare, len(ring)))
            mine = tuple(ring[place % len(ring)] for place in places)
            dealt.append(_Clip(clip.name, clip.path, mine, person.known))
        return dealt


def read_meta(text: bytes, path: str, needs_set: bool) -> list[Speaker]:
    """The people in vox1_meta.csv (tabs), vox2_meta.csv (commas), or the variant of the latter with names."""
    try:
        head, *lines = re.split(r"\r\n|\r|\n", text.decode("utf-8-sig"))
        rows = csv.reader(lines, delimiter="\t" if "\t" in head else ",", strict=True)
        titles = _trimmed(next(csv.reader(io.StringIO(head), delimiter="\t" if "\t" in head else ",")))
        columns = [_COLUMNS.get(re.sub(r"\s", "", title).lower(), "") for title in titles]
        listed = [_trimmed([same(tidy(value)) for value in row], len(columns)) for row in rows]
    except (UnicodeDecodeError, csv.Error, ValueError, StopIteration) as error:
        raise V2FError(f"{path}: not VoxCeleb metadata ({error or 'it is empty'})") from error
    wanted = {"id", *(["set"] if needs_set else [])}
    if not wanted <= set(columns) or not {"face", "name"} & set(columns):
        raise V2FError(
            f"{path}: the header must contain VoxCeleb1 ID, VGGFace1 ID (or 2) and Set; it is {','.join(titles)}"
        )
    people = []
    for number, row in enumerate(listed, start=2):
        if not any(row):
            continue
        values = {column: value for column, value in zip(columns, row, strict=False) if column}
        if len(row) != len(columns) or not re.fullmatch(r"id\d{5}", values["id"]):
            raise V2FError(
                f"{path}: line {number} does not describe a person ({', '.join(row)}); the file is damaged, "
                "download it again"
            )
        if needs_set and values["set"].lower() not in ("dev", "test"):
            raise V2FError(f"{path}: line {number}: the set {values['set']!r} is neither dev nor test")
        names = tuple(dict.fromkeys(values[column] for column in ("face", "name") if values.get(column)))
        known = {column: values[column] for column in ("gender", "nationality") if values.get(column)}
        people.append(Speaker(values["id"], names, values.get("set", "").lower() == "test", known))
    return people


def _trimmed(row: list[str], least: int = 0) -> list[str]:
    """A row without empty fields at its end, but with at least ``least`` fields."""
    filled = max((at for at, value in enumerate(row, start=1) if value.strip()), default=0)
    return row[: max(filled, least)]


def _as_published(name: str) -> bool:
    """A sort key that puts lowercase extensions, as VoxCeleb uses them, first."""
    return not name.rpartition(".")[2].islower()


def _no_clip(name: str, path: str) -> LeftOut:
    """Why the sound file ``name`` of a root is not a clip."""
    folders = name.split("/")[:-1]
    id = next((folder for folder in reversed(folders) if re.fullmatch(r"id\d{5}", folder)), "".join(folders[:1]))
    if not is_text(name):
        return LeftOut(path, id, "its name is not valid UTF-8")
    if _CLIP.fullmatch(f"{name.rpartition('.')[0]}.wav") is not None:
        return LeftOut(path, id, "unsupported type of clip", "use .wav, .m4a or .flac")
    return LeftOut(path, id, "it does not lie where clips do", "that is idXXXXX/VIDEO/UTT.wav|m4a")


def _owner(name: str, exact: Mapping[str, str], loose: Mapping[str, set[str]]) -> tuple[str, str]:
    """The id of the person whose folder a photo is in, or why it belongs to nobody."""
    why = "the folder is of nobody in the metadata"
    for folder in name.split("/")[:-1]:
        owners = {exact[folder]} if folder in exact else loose.get(_loose(folder), set())
        if len(owners) == 1:
            return next(iter(owners)), ""
        if owners:
            why = "the folder may be of several people"
    return "", why


def _loose(name: str) -> str:
    """A name reduced to its letters and digits, without case."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _key(clip: str) -> str:
    return clip.replace("/", "-")
