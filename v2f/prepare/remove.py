"""``v2f shards remove``: a person withdraws consent, and is in the data set no more.

    affected shards --without the person's samples--> shards of other names        the old data set is still whole
    index, manifest of what stays ----> ROOT/removing/                              decided: from here on it is finished
    old manifest removed, new index and manifest put in its place, old shards removed

Killed anywhere, the same command finishes it, and in between there is either the old data set, or the new one, or a
folder that says that it is neither. What stays is copied byte by byte with its checksum, so that a damaged sample does
not become a sound one; other shards are not touched.
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from v2f import store
from v2f.data.manifest import (
    INDEX,
    MANIFEST,
    REMOVING,
    Dataset,
    Shard,
    ShardRows,
    open_dataset,
    write_manifest,
    write_runs,
)
from v2f.data.sample import SPLITS
from v2f.errors import V2FError
from v2f.prepare import parts, yields
from v2f.prepare.names import person
from v2f.prepare.yields import LEFT_OUT, YIELD

_WHAT = "what.json"  # in ROOT/removing/: who goes, and which shards
_REWRITTEN = re.compile(rf"(?:{'|'.join(SPLITS)})-(?:p\d{{5}}-)?\d{{5}}-r\d+\.tar")


def remove(root: str, identities: Sequence[str]) -> Dataset:
    """Take all samples of ``identities``, however they are spelled (``names.py``), out of the data set under ``root``,
    print what that changed, and open it.

    :class:`V2FError` where one of them is not in it, before anything is changed.
    """
    identities = [*dict.fromkeys(map(person, identities))]
    gone = [*map(person, _finish(root))]
    dataset = open_dataset(root)
    parts.leave(root)  # records of packing name people, too
    there = {person(identity) for identity in (*dataset.manifest.identities, *_named_beside(root))}
    for identity in identities:
        if identity not in there and identity not in gone:
            nearest = difflib.get_close_matches(identity, there, 1)
            hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
            raise V2FError(f"{root}: it has nobody called {identity!r}{hint}; `verify --absent` proves it")
    wanted = [identity for identity in identities if identity in there]
    if wanted:
        before = dataset
        _decide(dataset, wanted)
        _finish(root)
        dataset = open_dataset(root)
        _summarise(before, dataset, wanted)
    else:
        print(f"{root}: a removal that was interrupted is finished; fingerprint {dataset.fingerprint}")
    return dataset


def _summarise(before: Dataset, after: Dataset, identities: Sequence[str]) -> None:
    old, new = before.manifest.shards, {shard.name for shard in after.manifest.shards}
    samples = len(before.index.key) - len(after.index.key)
    print(
        f"{after.root}: {', '.join(identities)} removed: {samples} samples in "
        f"{sum(shard.name not in new for shard in old)} of {len(old)} shards; {len(after.index.key)} samples of "
        f"{len(after.manifest.identities)} people stay"
    )
    for name in before.splits:
        if name not in after.splits:
            print(f"  the split {name} had nobody else; it is gone")
    print(f"  fingerprint {before.fingerprint[:12]} became {after.fingerprint}")
    print("  copies elsewhere (backups, versions that an object store keeps, caches, runs) are not touched")


# ----------------------------------------------------------------------------------------------- decide


def _decide(dataset: Dataset, identities: Sequence[str]) -> None:
    """Write what will be, beside what is."""
    root, manifest = dataset.root, dataset.manifest
    for name in store.names(root):  # of a removal that was killed here
        if _REWRITTEN.fullmatch(name) and name not in {shard.name for shard in manifest.shards}:
            store.remove(store.join(root, name))
    leaving_N = np.isin(
        dataset.index.identity, [i for i, who in enumerate(manifest.identities) if person(who) in identities]
    )
    shards: list[ShardRows] = []
    old: list[str] = []
    for number, shard in enumerate(tqdm(manifest.shards, unit="shard", desc=f"removing from {root}", disable=None)):
        mine_N = dataset.index.shard == number
        rows = np.flatnonzero(mine_N & ~leaving_N)
        if (mine_N & leaving_N).any():
            old.append(shard.name)
            if len(rows):
                shards.append(_rewrite(dataset, shard, rows))
        else:
            shards.append(_rows(dataset, shard, rows))
    if not shards:
        raise V2FError(f"{root}: it has nobody else; remove the whole folder")
    folder = store.join(root, REMOVING)
    store.write_bytes(store.join(folder, _WHAT), json.dumps({"identities": list(identities), "shards": old}).encode())
    provenance = {**manifest.provenance, "removals": manifest.provenance.get("removals", 0) + 1}
    write_manifest(folder, shards, provenance)


def _rows(dataset: Dataset, shard: Shard, rows: "np.ndarray[Any, Any]") -> ShardRows:
    """What the index says of the samples ``rows`` of ``shard``."""
    index = dataset.index
    return ShardRows(
        shard=shard,
        offset=index.offset[rows].tolist(),
        length=index.length[rows].tolist(),
        crc32=index.crc32[rows].tolist(),
        identity=[dataset.manifest.identities[number] for number in index.identity[rows]],
        key=[bytes(key).decode("ascii") for key in index.key[rows]],
    )


def _rewrite(dataset: Dataset, shard: Shard, rows: "np.ndarray[Any, Any]") -> ShardRows:
    """A shard that holds the samples ``rows`` of ``shard`` as they are, and no other."""
    content = memoryview(store.read_bytes(store.join(dataset.root, shard.name)))
    if len(content) != shard.bytes:
        raise V2FError(
            f"{dataset.root}: {shard.name} has {len(content)} bytes, the manifest says {shard.bytes}; restore it first"
        )
    found = _rows(dataset, shard, rows)
    stem, again = re.fullmatch(r"(.*?)(?:-r(\d+))?\.tar", shard.name).groups()  # type: ignore[union-attr]
    name = f"{stem}-r{int(again or 0) + 1}.tar"
    runs = [content[offset : offset + length] for offset, length in zip(found.offset, found.length, strict=True)]
    return write_runs(dataset.root, name, shard.split, found.key, found.identity, runs, found.crc32)


# ----------------------------------------------------------------------------------------------- finish


def _finish(root: str) -> list[str]:
    """Finish a removal that was decided, drop one that was not; who was to be removed."""
    folder = store.join(root, REMOVING)
    what: dict[str, Any] = {"identities": [], "shards": []}
    if store.exists(store.join(folder, _WHAT)):
        what = json.loads(store.read_bytes(store.join(folder, _WHAT)))
    if store.exists(store.join(folder, MANIFEST)):
        open_dataset(folder)  # which it has to be before anything goes
        store.remove(store.join(root, MANIFEST))
        store.write_bytes(store.join(root, INDEX), store.read_bytes(store.join(folder, INDEX)))
        _clean_beside(root, folder, what["identities"])
        store.write_bytes(store.join(root, MANIFEST), store.read_bytes(store.join(folder, MANIFEST)))
        for name in what["shards"]:
            store.remove(store.join(root, name))
    if store.exists(folder):
        store.remove_folder(folder, MANIFEST)
    return list(what["identities"])


def _named_beside(root: str) -> set[str]:
    """Who is named beside the data: people of whom samples were left out."""
    return {each.identity for each in yields.read_left_out(root)}


def _clean_beside(root: str, folder: str, identities: Sequence[str]) -> None:
    """The reports of packing without ``identities``; ``folder`` holds the manifest and index of what stays."""
    dataset = open_dataset(folder)
    identities = [person(identity) for identity in identities]
    left_out = [each for each in yields.read_left_out(root) if person(each.identity) not in identities]
    if store.exists(store.join(root, LEFT_OUT)):
        yields.write_left_out(root, left_out)
    path = store.join(root, YIELD)
    if store.exists(path):
        split_N = [dataset.manifest.shards[shard].split for shard in dataset.index.shard]
        kept = Counter(zip(split_N, (dataset.manifest.identities[i] for i in dataset.index.identity), strict=True))
        try:
            rejected = json.loads(store.read_bytes(path))["rejected_photos"]  # counts of photos, of nobody by name
        except (ValueError, KeyError, TypeError) as error:
            raise V2FError(f"{path}: this is no yield report; restore or remove it") from error
        store.write_bytes(path, yields.to_json({**yields.yield_report(kept, left_out), "rejected_photos": rejected}))
