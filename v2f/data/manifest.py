"""A data set: its shards, and beside them ``manifest.json`` and ``index.npz``, which say where every sample lies.

``index.npz`` (no pickles) holds one row a sample, in the order of the shards: shard, offset and length of its run
of tar members (headers and padding included), CRC-32 of that run, identity, key. ``manifest.json`` is written
last: a folder without it holds no data set. Its fingerprint depends on content alone.
"""

import hashlib
import io
import json
import mmap
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

import v2f
from v2f import store
from v2f.config import Config, build
from v2f.data.sample import SCHEMA_VERSION, SPLITS, Members, check_key, padded
from v2f.errors import V2FError

MANIFEST = "manifest.json"
INDEX = "index.npz"
PACKING = "packing.json"  # there while a pack is under way, or after one was killed
_COLUMNS: dict[str, str] = {
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


class Manifest(Config):
    schema_version: int
    created_by: str
    fingerprint: str
    shards: list[Shard]
    splits: dict[str, SplitSize]
    identities: list[str]
    index_sha256: str
    provenance: dict[str, Any]

    def content_fingerprint(self) -> str:
        """SHA-256 over what the data are: not over who made them, when, or from which recipe."""
        content = self.model_dump(exclude={"created_by", "fingerprint", "provenance"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
        for name in _COLUMNS:
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

    def shard_path(self, sample: int) -> str:
        """The path of the shard that holds a sample (numbered over the whole data set)."""
        return store.join(self.root, self.manifest.shards[self.index.shard[sample]].name)


@dataclass(frozen=True)
class Split:
    """The samples of one split, numbered 0 to ``samples`` - 1 in the order of its shards."""

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

    @property
    def identity_N(self) -> npt.NDArray[np.int64]:
        """Number of each sample's person in ``manifest.identities``, int64 [N]."""
        return self.dataset.index.identity[self.first : self.first + self.samples].astype(np.int64)

    def key(self, sample: int) -> str:
        return bytes(self.dataset.index.key[self.first + sample]).decode("ascii")

    def where(self, sample: int) -> str:
        """Shard, key and offset of a sample, for an error."""
        number = self.first + sample
        return (
            f"{self.dataset.shard_path(number)}: sample {self.key(sample)} at byte {self.dataset.index.offset[number]}"
        )


# ------------------------------------------------------------------------------------------------ writing


@dataclass(frozen=True)
class ShardRows:
    """What a finished tar holds: itself, and a row for each of its samples."""

    shard: Shard
    offset: list[int]
    length: list[int]
    crc32: list[int]
    identity: list[str]
    key: list[str]


def write_shard(root: str, name: str, split: str, samples: Sequence[tuple[str, str, Members]]) -> ShardRows:
    """Write ``samples`` (key, identity, members) as ``root/name``, atomically, with webdataset's own writer.

    Offsets are read back from the tar. Times and owners are fixed, so that equal samples make equal bytes.
    """
    from webdataset import TarWriter  # here, not above: it imports torch, which reading a manifest does without

    keys = [check_key(key) for key, _, _ in samples]
    with store.replacing(store.join(root, name)) as temporary:
        with open(temporary, "wb") as file, TarWriter(file, encoder=False, mtime=0, user="v2f", group="v2f") as tar:
            for key, _, members in samples:
                tar.write({"__key__": key, **members})
        return _read_back(temporary, name, split, keys, [identity for _, identity, _ in samples])


def _read_back(path: str, name: str, split: str, keys: list[str], identities: list[str]) -> ShardRows:
    spans: dict[str, list[int]] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key = member.name.partition(".")[0]
            end = member.offset_data + padded(member.size)
            span = spans.setdefault(key, [member.offset, member.offset])
            if span[1] != member.offset:
                raise V2FError(f"{name}: the members of sample {key} are not adjacent; a key stands twice")
            span[1] = end
    if list(spans) != keys:
        raise V2FError(f"{name}: the tar does not hold the samples that were written to it; a key stands twice")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        view = memoryview(content)
        checksums = [crc32(view[start:end]) for start, end in spans.values()]
        shard = Shard(
            name=name, split=split, samples=len(keys), bytes=len(view), sha256=hashlib.sha256(view).hexdigest()
        )
        view.release()
    return ShardRows(
        shard=shard,
        offset=[start for start, _ in spans.values()],
        length=[end - start for start, end in spans.values()],
        crc32=checksums,
        identity=identities,
        key=keys,
    )


def write_manifest(root: str, shards: Sequence[ShardRows], provenance: Mapping[str, Any]) -> Dataset:
    """Commit a data set: its index first, ``manifest.json`` last. ``provenance`` is plain JSON."""
    rows = [(row, key) for row in shards for key in row.key]
    keys = [key for _, key in rows]
    if not keys:
        raise V2FError(f"{root}: no sample is left, there is nothing to commit")
    if len(set(keys)) != len(keys):
        raise V2FError(f"{root}: a key stands twice, in different shards")
    identities = sorted({identity for row in shards for identity in row.identity})
    number = {identity: i for i, identity in enumerate(identities)}
    index = Index(
        shard=np.repeat(np.arange(len(shards), dtype="<i4"), [row.shard.samples for row in shards]),
        offset=np.array([o for row in shards for o in row.offset], dtype="<i8"),
        length=np.array([n for row in shards for n in row.length], dtype="<i8"),
        crc32=np.array([c for row in shards for c in row.crc32], dtype="<u4"),
        identity=np.array([number[i] for row in shards for i in row.identity], dtype="<i4"),
        key=np.array(keys, dtype="S"),
    )
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        created_by=f"v2f {v2f.__version__}",
        fingerprint="",
        shards=[row.shard for row in shards],
        splits=_split_sizes(shards),
        identities=identities,
        index_sha256=index.digest(),
        provenance=dict(provenance),
    )
    manifest = manifest.model_copy(update={"fingerprint": manifest.content_fingerprint()})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: getattr(index, name) for name in _COLUMNS})
    store.write_bytes(store.join(root, INDEX), buffer.getvalue())
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
    store.write_bytes(store.join(root, MANIFEST), text.encode() + b"\n")
    return Dataset(root, manifest, index)


def _split_sizes(shards: Sequence[ShardRows]) -> dict[str, SplitSize]:
    sizes = {}
    for split in SPLITS:
        mine = [row for row in shards if row.shard.split == split]
        if mine:
            people = len({identity for row in mine for identity in row.identity})
            sizes[split] = SplitSize(samples=sum(row.shard.samples for row in mine), people=people)
    return sizes


# ------------------------------------------------------------------------------------------------ reading


def open_dataset(root: str) -> Dataset:
    """The data set under ``root``, validated: a missing, cut or edited manifest or index is one clear line."""
    manifest = read_manifest(root)
    path = store.join(root, INDEX)
    try:
        with np.load(io.BytesIO(store.read_bytes(path)), allow_pickle=False) as columns:
            index = Index(**{name: columns[name] for name in _COLUMNS})
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise V2FError(f"{path}: this index cannot be read; restore it or pack the data set anew") from error
    if index.digest() != manifest.index_sha256:
        raise V2FError(f"{path}: it is not the index of this manifest; restore both or pack the data set anew")
    if len(index.key) != sum(shard.samples for shard in manifest.shards):
        raise V2FError(f"{path}: it has {len(index.key)} rows, the manifest's shards have another number of samples")
    return Dataset(root, manifest, index)


def read_manifest(root: str) -> Manifest:
    """The manifest under ``root``, checked against its own fingerprint."""
    path = store.join(root, MANIFEST)
    if not store.exists(path):
        if store.exists(store.join(root, PACKING)):
            raise V2FError(f"{root}: packing was not finished here; run the same `v2f shards pack` again")
        raise V2FError(f"{root}: no data set here ({MANIFEST} is missing); make one with `v2f shards pack RECIPE.yaml`")
    try:
        values = json.loads(store.read_bytes(path))
    except ValueError as error:
        raise V2FError(f"{path}: not valid JSON ({error}); restore it or pack the data set anew") from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise V2FError(f"{path}: schema version {version!r}, this v2f reads {SCHEMA_VERSION}; pack the data set anew")
    manifest = build(Manifest, values, path)
    actual = manifest.content_fingerprint()
    if actual != manifest.fingerprint:
        raise V2FError(
            f"{path}: it says fingerprint {manifest.fingerprint[:12]}, its content gives {actual[:12]}: "
            "it was edited; restore it or pack the data set anew"
        )
    return manifest
