"""Writing a data set: each shard as a plain tar, then the index, and the manifest last."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any
from zlib import crc32

import numpy as np

import v2f
from v2f.data.foreign import Foreign
from v2f.data.manifest import INDEX, INDEX_COLUMNS, MANIFEST, ArrayKind, Dataset, Index, Manifest, Shard, SplitSize
from v2f.data.sample import GRAY, ORIGINALS, SPLITS, USUAL, check_key, held
from v2f.data.tar import BLOCK, Members, join_members
from v2f.errors import V2FError
from v2f.storage import store


@dataclass(frozen=True)
class ShardRows:
    """A finished tar: its entry in the manifest, and a row for each of its samples."""

    shard: Shard
    offset: list[int]
    length: list[int]
    crc32: list[int]
    identity: list[str]
    key: list[str]
    holds: list[str] = field(default_factory=lambda: list(USUAL))  # as in the manifest


def common(kinds: Iterable[Sequence[str]]) -> list[str]:
    """The common ``holds`` of several: the parts that all have, and ``gray`` if any of them has it."""
    each = [set(kind) for kind in kinds] or [set(USUAL)]
    every, some = set.intersection(*each), set.union(*each)
    return sorted((every - {GRAY}) | (some & {GRAY}))


def write_shard(root: str, name: str, split: str, samples: Sequence[tuple[str, str, Members]]) -> ShardRows:
    """Write ``samples`` (key, identity, members) as ``root/name``, atomically, as a plain tar like webdataset's."""
    runs = [join_members(check_key(key), members) for key, _, members in samples]
    keys, identities = [key for key, _, _ in samples], [identity for _, identity, _ in samples]
    holds = common(held(members) for _, _, members in samples)
    return write_runs(root, name, split, keys, identities, runs, [crc32(run) for run in runs], holds)


def write_runs(
    root: str,
    name: str,
    split: str,
    keys: Sequence[str],
    identities: Sequence[str],
    runs: Sequence[bytes | memoryview],
    checksums: Sequence[int],
    holds: Sequence[str] = USUAL,
) -> ShardRows:
    """Write the tar members ``runs`` of samples unchanged to ``root/name``, atomically. ``checksums``: the CRC-32 to
    record for each, unchecked; ``holds``: what all of the samples hold."""
    if len(set(keys)) != len(keys):
        raise V2FError(f"{name}: a key occurs twice among its samples; keys must be unique")
    ends = list(accumulate((len(run) for run in runs), initial=0))
    tail = bytes(-(ends[-1] + 2 * BLOCK) % tarfile.RECORDSIZE + 2 * BLOCK)  # a tar ends with two zero blocks
    digest = hashlib.sha256()
    with store.replacing(store.join(root, name)) as temporary, open(temporary, "wb") as file:
        for piece in (*runs, tail):
            file.write(piece)
            digest.update(piece)
    size = ends[-1] + len(tail)
    return ShardRows(
        shard=Shard(name=name, split=split, samples=len(keys), bytes=size, sha256=digest.hexdigest()),
        offset=ends[:-1],
        length=[len(run) for run in runs],
        crc32=list(checksums),
        identity=list(identities),
        key=list(keys),
        holds=list(holds),
    )


def write_manifest(
    root: str,
    shards: Sequence[ShardRows],
    provenance: Mapping[str, Any],
    put: Callable[[str, bytes], None] = store.write_bytes,
    named: str = INDEX,
    arrays: Mapping[str, ArrayKind] | None = None,
    foreign: Foreign | None = None,
) -> Dataset:
    """Commit a data set: write its index, then ``manifest.json``. ``provenance`` is plain JSON; ``put`` writes a file;
    ``named`` is the name of the index; ``arrays`` declares the custom arrays, which every sample has; ``foreign`` is
    set if v2f did not write the shards. V2FError if there is no sample, or a key occurs twice."""
    rows = [(row, key) for row in shards for key in row.key]
    keys = [key for _, key in rows]
    if not keys:
        raise V2FError(f"{root}: no sample is left, there is nothing to commit")
    if len(set(keys)) != len(keys):
        raise V2FError(f"{root}: a key occurs twice, in different shards; keys must be unique")
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
    holds = common(row.holds for row in shards)
    manifest = Manifest(
        schema_version=_schema(holds, arrays, foreign),
        created_by=f"v2f {v2f.__version__}",
        fingerprint="",
        shards=[row.shard for row in shards],
        splits=_split_sizes(shards),
        identities=identities,
        index_sha256=index.digest(),
        provenance=dict(provenance),
        index=named,
        holds=holds,
        arrays=dict(arrays or {}),
        foreign=foreign,
    )
    manifest = manifest.model_copy(update={"fingerprint": manifest.content_fingerprint()})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: getattr(index, name) for name in INDEX_COLUMNS})
    put(store.join(root, named), buffer.getvalue())
    values = manifest.model_dump(mode="json", exclude=manifest.unsaid | ({"index"} if named == INDEX else set()))
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
    put(store.join(root, MANIFEST), text.encode() + b"\n")
    return Dataset(root, manifest, index)


def _schema(holds: Sequence[str], arrays: Mapping[str, ArrayKind] | None, foreign: Foreign | None) -> int:
    """The lowest schema version that can hold the data set."""
    if foreign is not None:
        return 3
    if ORIGINALS in holds:
        return 4
    return 2 if arrays or tuple(holds) != USUAL else 1


def _split_sizes(shards: Sequence[ShardRows]) -> dict[str, SplitSize]:
    sizes = {}
    for split in SPLITS:
        mine = [row for row in shards if row.shard.split == split]
        if mine:
            people = len({identity for row in mine for identity in row.identity})
            sizes[split] = SplitSize(samples=sum(row.shard.samples for row in mine), people=people)
    return sizes
