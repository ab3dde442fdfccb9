"""A data set: its shards, and beside them ``manifest.json`` and ``index.npz``, which say where every sample lies.

``index.npz`` (no pickles) holds one row a sample, in the order of the shards: shard, offset and length of its run
of tar members (headers and padding included), CRC-32 of that run, identity, key. ``manifest.json`` is written
last: a folder without it holds no data set. Its fingerprint depends on content alone. It names its index, because the
one that follows it when people are removed lies beside it until the manifest itself is replaced.

``holds`` are the parts that every sample has (``audio``, ``photos``; and ``gray`` where photos of one channel are among
them), ``arrays`` declares the arrays of one's own, which every sample has, too. A data set whose samples all have audio
and RGB photos, and no such array, is written as it was before there were others, of schema version 1; another one has
version 2, which a v2f of before refuses. Shards that others wrote (``foreign``) lie anywhere, in any order of splits: a
tar that has samples of several splits is one shard in each; version 3.
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
    SCHEMA_VERSION,
    USUAL,
    Sample,
)
from v2f.errors import V2FError
from v2f.storage import store

MANIFEST = "manifest.json"
INDEX = "index.npz"
PACKING = "packing.json"  # there while a pack is under way, or after one was killed
REMOVING = "removing"  # a folder that a former version made while it removed people
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
    """What an array of one's own is in every sample."""

    dtype: str = Field(description="as NumPy calls it: float32, int16, ...")
    shape: list[int | None] = Field(description="null: an axis of any length")

    @model_validator(mode="after")
    def _is_one(self) -> "ArrayKind":
        try:
            kind = np.dtype(self.dtype)
        except TypeError as error:
            raise ValueError(f"{self.dtype!r} is no type of NumPy's") from error
        if kind.kind not in "fiu" or kind.itemsize > 8 or kind.name != self.dtype:
            raise ValueError(f"{self.dtype!r}: float16 to float64, int8 to int64 and uint8 to uint64 may be stored")
        if not all(length is None or length > 0 for length in self.shape):
            raise ValueError(f"{self.shape}: an axis is at least 1 long, or null")
        return self

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join('any' if length is None else str(length) for length in self.shape)}]"

    def fits(self, values: npt.NDArray[Any]) -> bool:
        """Whether an array is of this kind."""
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
        """SHA-256 over what the data are: not over who made them, when, or from which recipe."""
        unsaid = {"created_by", "fingerprint", "provenance", "index", *self.unsaid}
        content = self.model_dump(exclude=unsaid)
        if self.foreign is not None:
            del content["foreign"]["places"]  # tars may move, and be indexed anew
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def unsaid(self) -> set[str]:
        """The fields that a data set of its schema version does not have: nothing in it depends on them."""
        return {1: {"holds", "arrays", "foreign"}, 2: {"foreign"}}.get(self.schema_version, set())

    def check(self, sample: Sample) -> None:
        """:class:`V2FError` where a sample does not hold what is said of all."""
        there = {"audio": sample.has_audio, "photos": bool(sample.photo_count)}
        for part, has in there.items():
            if part in self.holds and not has:
                raise V2FError(f"sample {sample.key}: it has no {part}, the manifest says that every sample has")
        if sample.photo_count and sample.is_gray and GRAY not in self.holds:
            raise V2FError(f"sample {sample.key}: its photos are gray, the manifest knows of no gray ones")
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
    """One row a sample (all arrays [N])."""

    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    crc32: npt.NDArray[np.uint32]
    identity: npt.NDArray[np.int32]
    key: npt.NDArray[np.bytes_]

    def digest(self) -> str:
        """SHA-256 of the columns' values, whatever way the file compresses them."""
        digest = hashlib.sha256()
        for name in INDEX_COLUMNS:
            column = np.ascontiguousarray(getattr(self, name))
            digest.update(f"{name} {column.dtype.str} {column.shape}".encode())
            digest.update(column.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """A data set that was opened: where it lies, its manifest, its index."""

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
        """One split, or an error that names those that are there."""
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
        """The path of the shard that holds a sample (numbered over the whole data set)."""
        return self.place(int(self.index.shard[sample]))

    def place(self, shard: int) -> str:
        """The path of a shard, by its number."""
        if self.manifest.foreign is None:
            return store.join(self.root, self.manifest.shards[shard].name)
        place = self.manifest.foreign.places[shard]
        return store.join(self.root, place) if is_beside(place) else place

    def in_our_schema(self, sample: int, raw: bytes | memoryview) -> bytes | memoryview:
        """The members of a sample by our schema, of those that its shard holds; :class:`V2FError` where they cannot be
        read so."""
        if self.manifest.foreign is None:
            return raw
        identity = self.manifest.identities[self.index.identity[sample]]
        split = self.manifest.shards[self.index.shard[sample]].split
        key = bytes(self.index.key[sample]).decode("ascii")
        return ForeignSample(raw, self.manifest.foreign.fields).in_our_schema(key, identity, split)

    def check_own(self, what: str) -> None:
        """:class:`V2FError` where others wrote the shards, which ``what`` would have to write anew."""
        if self.manifest.foreign is not None:
            raise V2FError(f"{self.root}: others wrote its tars, `{what}` changes only shards that v2f has packed")


@dataclass(frozen=True)
class Extents:
    """Where samples lie: number of the shard (any, but a shard's own), bytes in it, CRC-32 (all arrays [N])."""

    shard: Ints
    offset: Ints
    length: Ints
    crc32: npt.NDArray[np.uint32]


class Samples(Protocol):
    """What reading asks of a split, or of several put together: samples numbered 0 to ``samples`` - 1, in the order in
    which they are stored."""

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
    first: int  # number of its first sample in the data set

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
        """What an order over this split is a function of."""
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
        """The data sets that the samples are of."""
        return [self.dataset]

    def key(self, sample: int) -> str:
        return bytes(self.dataset.index.key[self.first + sample]).decode("ascii")

    def root(self, sample: int) -> str:
        """Where the data set lies that holds a sample."""
        return self.dataset.root

    def shard_path(self, sample: int) -> str:
        """The path of the shard that holds a sample."""
        return self.dataset.shard_path(self.first + sample)

    def byte(self, sample: int) -> int:
        """Where in its shard a sample begins."""
        return int(self.extents.offset[sample])

    def where(self, sample: int) -> str:
        """Shard, key and offset of a sample, for an error."""
        return f"{self.shard_path(sample)}: sample {self.key(sample)} at byte {self.byte(sample)}"

    def in_our_schema(self, sample: int, raw: bytes | memoryview) -> bytes | memoryview:
        """The members of a sample by our schema, of those that its shard holds."""
        return self.dataset.in_our_schema(self.first + sample, raw)


# ------------------------------------------------------------------------------------------------ reading


def open_dataset(root: str) -> Dataset:
    """The data set under ``root``, validated: a missing, cut or edited manifest or index is one clear line."""
    manifest = read_manifest(root)
    while True:
        try:
            content = store.read_bytes(store.join(root, manifest.index))
            break
        except V2FError:
            before, manifest = manifest, read_manifest(root)
            if manifest == before:  # else people were removed in between, and the index with them
                raise
    path = store.join(root, manifest.index)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as columns:
            index = Index(**{name: columns[name] for name in INDEX_COLUMNS})
        digest = index.digest()
    except Exception as error:  # of NumPy, zipfile and zlib, each with kinds of its own
        raise V2FError(f"{path}: this index cannot be read; restore it or pack the data set anew") from error
    if digest != manifest.index_sha256:
        raise V2FError(f"{path}: it is not the index of this manifest; restore both or pack the data set anew")
    if len(index.key) != sum(shard.samples for shard in manifest.shards):
        raise V2FError(f"{path}: it has {len(index.key)} rows, the manifest's shards have another number of samples")
    return Dataset(root, manifest, index)


def read_manifest(root: str) -> Manifest:
    """The manifest under ``root``, checked against its own fingerprint."""
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
