"""A data set: its shards, and beside them ``manifest.json`` and ``index.npz``, which locate every sample.

``index.npz`` (no pickles) has one row per sample, in the order of the shards: shard, offset and length of its tar
members (with headers and padding), CRC-32 of those bytes, identity, key. ``manifest.json`` is written last: a folder
without it is not a data set. Its fingerprint depends on content alone. It names its index, because removing people
writes a new index beside the old one before it replaces the manifest.

``holds`` lists what every sample has (``audio``, ``photos``, ``originals``; and ``gray`` if any photo has one channel),
and ``arrays`` declares the custom arrays, which every sample has, too. Each data set is written in the lowest schema
version that can express it. Version 1: all samples have audio and RGB photos, and no custom arrays. Version 2:
``holds`` and ``arrays``. Version 3: ``foreign``, for tars not written by v2f, which may lie anywhere; a tar with
samples of several splits is one shard of each. Version 4: ``originals``, photos as they were before pSp redrew them.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from v2f.config import Config, build
from v2f.data.foreign import Foreign, ForeignSample, is_beside
from v2f.data.sample import (
    GRAY,
    ORIGINALS,
    SCHEMA_VERSION,
    USUAL,
    Sample,
)
from v2f.errors import V2FError
from v2f.storage import store

MANIFEST = "manifest.json"
INDEX = "index.npz"
PACKING = "packing.json"  # exists while a pack is in progress, or after one was killed
REMOVING = "removing"  # a folder that an earlier version made while it removed people
Ints = npt.NDArray[np.int64]
INDEX_COLUMNS: dict[str, str] = {
    "shard": "<i4",
    "offset": "<i8",
    "length": "<i8",
    "crc32": "<u4",
    "identity": "<i4",
    "key": "S",
}


class Shard(Config):
    """One tar; all its samples are of one split."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str


class SplitSize(Config):
    samples: int
    people: int


class ArrayKind(Config):
    """Type and shape of a custom array."""

    dtype: str = Field(description="NumPy's name: float32, int16, ...")
    shape: list[int | None] = Field(description="null: an axis of any length")

    @model_validator(mode="after")
    def _is_one(self) -> "ArrayKind":
        try:
            kind = np.dtype(self.dtype)
        except TypeError as error:
            raise ValueError(f"{self.dtype!r} is not a NumPy type") from error
        if kind.kind not in "fiu" or kind.itemsize > 8 or kind.name != self.dtype:
            raise ValueError(f"{self.dtype!r}: float16 to float64, int8 to int64 and uint8 to uint64 may be stored")
        if not all(length is None or length > 0 for length in self.shape):
            raise ValueError(f"{self.shape}: an axis is at least 1 long, or null")
        return self

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join('any' if length is None else str(length) for length in self.shape)}]"

    def fits(self, values: npt.NDArray[Any]) -> bool:
        """Whether an array has this type and shape."""
        same = values.dtype.name == self.dtype and values.ndim == len(self.shape)
        return same and all(wanted in (None, there) for wanted, there in zip(self.shape, values.shape, strict=True))


class Manifest(Config):
    schema_version: int
    created_by: str
    fingerprint: str
    shards: list[Shard]
    splits: dict[str, SplitSize]
    identities: list[str]
    index_sha256: str
    provenance: dict[str, Any]
    index: str = INDEX
    holds: list[str] = list(USUAL)
    arrays: dict[str, ArrayKind] = {}
    foreign: Foreign | None = None

    def content_fingerprint(self) -> str:
        """SHA-256 of the content: independent of who made it, when, and from which recipe."""
        unsaid = {"created_by", "fingerprint", "provenance", "index", *self.unsaid}
        content = self.model_dump(exclude=unsaid)
        if self.foreign is not None:
            del content["foreign"]["places"]  # the tars may move and be indexed again
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def unsaid(self) -> set[str]:
        """The fields that do not exist in this schema version, and do not enter the fingerprint."""
        return {1: {"holds", "arrays", "foreign"}, 2: {"foreign"}, 4: {"foreign"}}.get(self.schema_version, set())

    def check(self, sample: Sample) -> None:
        """:class:`V2FError` if a sample does not hold what the manifest says of all samples."""
        there = {"audio": sample.has_audio, "photos": bool(sample.photo_count)}
        for part, has in there.items():
            if part in self.holds and not has:
                raise V2FError(f"sample {sample.key}: it has no {part}, the manifest says that every sample has")
        if sample.photo_count and sample.is_gray and GRAY not in self.holds:
            raise V2FError(f"sample {sample.key}: its photos are gray, the manifest knows of no gray ones")
        if sample.has_originals != (ORIGINALS in self.holds):
            verb = "has" if sample.has_originals else "lacks"
            raise V2FError(f"sample {sample.key}: it {verb} original photos, the manifest says otherwise")
        if set(sample.array_names) != set(self.arrays):
            names = ", ".join(sample.array_names) or "none"
            raise V2FError(
                f"sample {sample.key}: its arrays are {names}, the manifest declares {', '.join(self.arrays) or 'none'}"
            )
        for name, kind in self.arrays.items():
            values = sample.array(name)
            if not kind.fits(values):
                found = f"{values.dtype} {list(values.shape)}"
                raise V2FError(f"sample {sample.key}: its array {name!r} is {found}, the manifest declares {kind}")


@dataclass(frozen=True)
class Index:
    """One row per sample (all arrays [N])."""

    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    crc32: npt.NDArray[np.uint32]
    identity: npt.NDArray[np.int32]
    key: npt.NDArray[np.bytes_]

    def digest(self) -> str:
        """SHA-256 of the columns' values, independent of the file's compression."""
        digest = hashlib.sha256()
        for name in INDEX_COLUMNS:
            column = np.ascontiguousarray(getattr(self, name))
            digest.update(f"{name} {column.dtype.str} {column.shape}".encode())
            digest.update(column.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """An opened data set: its location, its manifest, its index."""

    root: str
    manifest: Manifest
    index: Index

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def splits(self) -> list[str]:
        return list(self.manifest.splits)

    def split(self, name: str) -> "Split":
        """One split; V2FError with the existing splits if there is none of this name."""
        if name not in self.manifest.splits:
            raise V2FError(f"{self.root}: it has no split {name!r}; it has {', '.join(self.splits)}")
        numbers = [i for i, shard in enumerate(self.manifest.shards) if shard.split == name]
        first = sum(shard.samples for shard in self.manifest.shards[: numbers[0]])
        return Split(self, name, tuple(self.manifest.shards[i] for i in numbers), first)

    @cached_property
    def trained(self) -> list[str]:
        """The people who have samples in train, in the manifest's order."""
        if "train" not in self.manifest.splits:
            return []
        return [self.manifest.identities[number] for number in np.unique(self.split("train").identity_N)]

    def shard_path(self, sample: int) -> str:
        """The path of the shard with a sample (numbered over the whole data set)."""
        return self.place(int(self.index.shard[sample]))

    def place(self, shard: int) -> str:
        """The path of a shard, by its number."""
        if self.manifest.foreign is None:
            return store.join(self.root, self.manifest.shards[shard].name)
        place = self.manifest.foreign.places[shard]
        return store.join(self.root, place) if is_beside(place) else place

    def in_our_schema(self, sample: int, raw: bytes | memoryview) -> bytes | memoryview:
        """The members of a sample in our schema, from the bytes in its shard; :class:`V2FError` if they do not fit
        it."""
        if self.manifest.foreign is None:
            return raw
        identity = self.manifest.identities[self.index.identity[sample]]
        split = self.manifest.shards[self.index.shard[sample]].split
        key = bytes(self.index.key[sample]).decode("ascii")
        return ForeignSample(raw, self.manifest.foreign.fields).in_our_schema(key, identity, split)

    def check_own(self, what: str) -> None:
        """:class:`V2FError` if v2f did not write the shards, which the command ``what`` would have to rewrite."""
        if self.manifest.foreign is not None:
            raise V2FError(f"{self.root}: others wrote its tars, `{what}` changes only shards that v2f has packed")


@dataclass(frozen=True)
class Extents:
    """The byte ranges of samples: a number that is unique to the shard, offset and length in it, CRC-32 (all arrays
    [N])."""

    shard: Ints
    offset: Ints
    length: Ints
    crc32: npt.NDArray[np.uint32]


class Samples(Protocol):
    """What readers need of a split, or of several as one: samples numbered 0 to ``samples`` - 1, in stored order."""

    @property
    def name(self) -> str: ...

    @property
    def samples(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def identity_N(self) -> Ints: ...

    @property
    def extents(self) -> Extents: ...

    @property
    def datasets(self) -> Sequence[Dataset]: ...

    def key(self, sample: int) -> str: ...

    def root(self, sample: int) -> str: ...

    def shard_path(self, sample: int) -> str: ...

    def byte(self, sample: int) -> int: ...

    def where(self, sample: int) -> str: ...

    def in_our_schema(self, sample: int, raw: bytes | memoryview) -> bytes | memoryview: ...


@dataclass(frozen=True)
class Split:
    """The samples of one split, numbered 0 to ``samples`` - 1 in the order of its shards; see :class:`Samples`."""

    dataset: Dataset
    name: str
    shards: tuple[Shard, ...]
    first: int  # number of its first sample in the whole data set

    @cached_property
    def samples(self) -> int:
        return sum(self.shard_sizes)

    @property
    def shard_sizes(self) -> list[int]:
        return [shard.samples for shard in self.shards]

    @property
    def people(self) -> int:
        return self.dataset.manifest.splits[self.name].people

    @property
    def fingerprint(self) -> str:
        """Identifies the split's content, of which its order is a function."""
        return f"{self.dataset.fingerprint}/{self.name}"

    @cached_property
    def identity_N(self) -> Ints:
        """Number of each sample's person in ``manifest.identities``, int64 [N]."""
        return self.dataset.index.identity[self.first : self.first + self.samples].astype(np.int64)

    @cached_property
    def extents(self) -> Extents:
        index, rows = self.dataset.index, slice(self.first, self.first + self.samples)
        return Extents(index.shard[rows].astype(np.int64), index.offset[rows], index.length[rows], index.crc32[rows])

    @property
    def datasets(self) -> Sequence[Dataset]:
        """The data sets of the samples."""
        return [self.dataset]

    def key(self, sample: int) -> str:
        return bytes(self.dataset.index.key[self.first + sample]).decode("ascii")

    def root(self, sample: int) -> str:
        """The location of a sample's data set."""
        return self.dataset.root

    def shard_path(self, sample: int) -> str:
        """The path of a sample's shard."""
        return self.dataset.shard_path(self.first + sample)

    def byte(self, sample: int) -> int:
        """The offset of a sample in its shard."""
        return int(self.extents.offset[sample])

    def where(self, sample: int) -> str:
        """Shard, key and offset of a sample, for an error."""
        return f"{self.shard_path(sample)}: sample {self.key(sample)} at byte {self.byte(sample)}"

    def in_our_schema(self, sample: int, raw: bytes | memoryview) -> bytes | memoryview:
        """The members of a sample in our schema, from the bytes in its shard."""
        return self.dataset.in_our_schema(self.first + sample, raw)


# ------------------------------------------------------------------------------------------------ reading


def open_dataset(root: str) -> Dataset:
    """Open and validate the data set under ``root``; V2FError if its manifest or index is missing, truncated or
    edited."""
    manifest = read_manifest(root)
    while True:
        try:
            content = store.read_bytes(store.join(root, manifest.index))
            break
        except V2FError:
            before, manifest = manifest, read_manifest(root)
            if manifest == before:  # else people were removed meanwhile, and the index replaced
                raise
    path = store.join(root, manifest.index)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as columns:
            index = Index(**{name: columns[name] for name in INDEX_COLUMNS})
        digest = index.digest()
    except Exception as error:  # NumPy, zipfile and zlib raise errors of their own
        raise V2FError(f"{path}: this index cannot be read; restore it or pack the data set anew") from error
    if digest != manifest.index_sha256:
        raise V2FError(f"{path}: it is not the index of this manifest; restore both or pack the data set anew")
    if len(index.key) != sum(shard.samples for shard in manifest.shards):
        raise V2FError(f"{path}: it has {len(index.key)} rows, the manifest's shards have another number of samples")
    return Dataset(root, manifest, index)


def read_manifest(root: str) -> Manifest:
    """Read the manifest under ``root`` and check it against its own fingerprint."""
    path = store.join(root, MANIFEST)
    if not store.exists(path):
        if store.exists(store.join(root, REMOVING, MANIFEST)):
            raise V2FError(f"{root}: removing people was not finished here; run the same `v2f shards remove` again")
        if store.exists(store.join(root, PACKING)):
            raise V2FError(f"{root}: packing was not finished here; run the same `v2f shards` commands again")
        raise V2FError(f"{root}: no data set here ({MANIFEST} is missing); make one with `v2f shards pack RECIPE.yaml`")
    try:
        values = json.loads(store.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise V2FError(f"{path}: not valid JSON ({error}); restore it or pack the data set anew") from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version not in range(1, SCHEMA_VERSION + 1):
        raise V2FError(
            f"{path}: schema version {version!r}, this v2f reads 1 to {SCHEMA_VERSION}; pack the data set anew"
        )
    manifest = build(Manifest, values, path)
    actual = manifest.content_fingerprint()
    if actual != manifest.fingerprint:
        raise V2FError(
            f"{path}: it says fingerprint {manifest.fingerprint[:12]}, its content gives {actual[:12]}: "
            "it was edited; restore it or pack the data set anew"
        )
    return manifest
