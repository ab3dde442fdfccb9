"""WebDataset tars not written by v2f, read in place: which of their members correspond to which of ours.

A manifest with ``foreign`` says where the tars are and which members hold audio, photo, identity and label. The index
has the byte range of each sample, as for our own shards. Members are renamed to our schema before decoding; the tars
are never written to. Such a sample has an empty member ``foreign``, which tells :class:`v2f.data.sample.Sample` to
accept any audio format and photo mode.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from typing import Any

from pydantic import Field, model_validator

from v2f.config import Config
from v2f.data.sample import AUDIO, FOREIGN, FOREIGN_AUDIO, PHOTO_FORMATS, PHOTOS, USUAL
from v2f.data.tar import join_members
from v2f.errors import V2FError

_META = re.compile(r"__[^/]*__($|/)")  # names that webdataset skips


class Fields(Config):
    """Which member holds what; ``a|b`` means the first of them that exists."""

    audio: str | None = Field(None, description="flac|wav|mp3|m4a|ogg; null: do not read audio")
    photo: str | None = Field(None, description="jpg|jpeg|png|webp; null: do not read photos")
    identity: str = Field("key", description="key, folder (of the key), json:NAME.NAME, or the name of a text member")
    label: str | None = Field(None, description="the class, given like identity")
    sample_rate: int = Field(16000, ge=1000, le=192_000, description="all audio is resampled to it")

    @model_validator(mode="after")
    def _is_readable(self) -> "Fields":
        if self.audio is None and self.photo is None:
            raise ValueError("neither audio nor photo is named")
        for what, names, known in (
            ("audio", self.audio, FOREIGN_AUDIO),
            ("photo", self.photo, (*PHOTO_FORMATS, "jpeg")),
        ):
            for name in _choices(names):
                if name.rpartition(".")[2] not in known:
                    raise ValueError(f"{what}: {name!r} is none of {', '.join(known)}")
        return self


class Foreign(Config):
    """What a manifest says about foreign tars."""

    fields: Fields
    places: list[str] = Field(description="of each shard: relative to the manifest, or an absolute path or URL")

    @property
    def shares_folder(self) -> bool:
        """Whether some of the tars are in the manifest's folder, which may then hold other files that belong to
        them."""
        return any(map(is_beside, self.places))


def is_beside(place: str) -> bool:
    """Whether a place is relative to the manifest's folder, not an absolute path or URL."""
    return not place.startswith("/") and "://" not in place


def _choices(names: str | None) -> list[str]:
    return [name.strip().lower() for name in (names or "").split("|") if name.strip()]


def members_of(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """The members of a tar that webdataset treats as parts of samples, each with the sample's key and its extension."""
    from webdataset.tariterators import base_plus_ext

    for member in tar:
        if not member.isreg() or _META.match(member.name):
            continue
        key, extension = base_plus_ext(member.name)
        if key is not None and extension:
            yield member, key, extension.lower()


class ForeignSample:
    """The members of one sample of a foreign tar; :class:`V2FError` if they do not form a sample."""

    def __init__(self, raw: bytes | memoryview, fields: Fields):
        self.members: dict[str, bytes] = {}
        self.key, self._fields = "", fields
        try:
            with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
                for member, key, extension in members_of(tar):
                    if extension in self.members:
                        raise V2FError(f"two members are called {extension}")
                    file = tar.extractfile(member)
                    self.members[extension] = file.read() if file is not None else b""
                    self.key = key
        except tarfile.TarError as error:
            raise V2FError(f"its tar members cannot be read ({error})") from error

    @property
    def identity(self) -> str:
        return self._value("identity", self._fields.identity)

    def in_our_schema(self, key: str, identity: str, split: str) -> bytes:
        """The sample in our schema, under ``key``: tar members as from :func:`v2f.data.sample.join_members`."""
        fields = self._fields
        meta: dict[str, Any] = {"identity": identity, "split": split, "source": "webdataset", "key": self.key}
        members = {FOREIGN: b""}
        held = tuple(part for part, wanted in ((AUDIO, fields.audio), (PHOTOS, fields.photo)) if wanted is not None)
        if held != USUAL:
            meta["holds"] = list(held)
        if fields.audio is not None:
            name = self._first(AUDIO, fields.audio)
            members[name.rpartition(".")[2]] = self.members[name]
            meta["sample_rate"] = fields.sample_rate
        if fields.photo is not None:
            name = self._first("photo", fields.photo)
            members[name.rpartition(".")[2].replace("jpeg", "jpg")] = self.members[name]
        if fields.label is not None:
            meta["label"] = self._value("label", fields.label)
        members["json"] = json.dumps(meta, ensure_ascii=False, allow_nan=False).encode()
        return join_members(key, members)

    def _first(self, what: str, names: str) -> str:
        for name in _choices(names):
            if name in self.members:
                return name
        raise V2FError(f"no {what}: none of its members is called {names}")

    def _value(self, what: str, place: str) -> str:
        """The identity or label, from the place that the map gives."""
        if place == "key":
            return self.key
        if place == "folder":
            value: Any = self.key.rpartition("/")[0]
        elif place.startswith("json:"):
            try:
                value = json.loads(self.members[self._first(what, "json")])
                for name in place.removeprefix("json:").split("."):
                    value = value[name] if isinstance(value, dict) else None
            except (KeyError, ValueError, RecursionError):
                value = None
        else:
            value = self.members[self._first(what, place)].decode("utf-8", "replace")
        text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
        if not text:
            raise V2FError(f"no {what}: {place} holds none")
        return text
