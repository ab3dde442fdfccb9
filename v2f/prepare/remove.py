"""``v2f shards remove``: removes all samples of people who withdrew their consent.

    affected shards --without the person's samples--> shards and an index with new names
    reports of packing without the person                                      the old data set is still complete
    new manifest replaces the old one                                          the new data set is complete
    old shards and the old index removed

If it is killed, the same command finishes it, and at any moment there is either the old data set or the new one.
Remaining samples are copied byte by byte with their recorded checksums, so that damage stays detectable; other shards
are not touched.

Only the holder of the lease does this. New names contain a hash of the data set and of the people removed, so a
superseded owner that resumes writes either the same bytes or files that no manifest names. A file is removed only when
the data set that it was made from has been replaced, so that no later owner can have written it again.
"""

import difflib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from v2f.data.manifest import INDEX, MANIFEST, REMOVING, Dataset, Shard, open_dataset, read_manifest
from v2f.data.sample import SPLITS
from v2f.data.shards import ShardRows, write_manifest, write_runs
from v2f.errors import V2FError
from v2f.prepare import parts, yields
from v2f.prepare.names import person
from v2f.prepare.yields import LEFT_OUT, YIELD
from v2f.storage import store
from v2f.storage.lease import Lease

_WHAT = "what.json"  # in ROOT/removing/: the people and the shards to remove
_MARK = r"-r[0-9a-f]+"  # earlier versions used -r1, -r2
_MADE = re.compile(rf"(?:(?:{'|'.join(SPLITS)})-(?:p\d{{5}}-)?\d{{5}}(?:{_MARK})?\.tar|index(?:{_MARK})?\.npz)")


def remove(root: str, identities: Sequence[str]) -> Dataset:
    """Remove all samples of ``identities``, in any Unicode spelling (``names.py``), from the data set under ``root``,
    print what changed, and open the result.

    :class:`V2FError`, before anything is changed, if one of them is not in the data set.
    """
    if not store.exists(store.join(root, REMOVING, MANIFEST)):
        read_manifest(root)  # an error if there is no data set, before a lease is created
    with parts.leased(root, "v2f shards remove") as owner:
        return _remove(owner, root, [*dict.fromkeys(map(person, identities))])


def _remove(owner: Lease, root: str, identities: Sequence[str]) -> Dataset:
    gone = [*map(person, _finish(owner, root))]
    dataset = open_dataset(root)
    dataset.check_own("v2f shards remove")
    parts.leave(owner, dataset)  # records of packing contain names, too
    gone = [*gone, *identities] if _clear(owner, dataset) else gone
    there = {person(identity) for identity in (*dataset.manifest.identities, *_named_beside(root))}
    for identity in identities:
        if identity not in there and identity not in gone:
            nearest = difflib.get_close_matches(identity, there, 1)
            hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
            raise V2FError(f"{root}: it has nobody called {identity!r}{hint}; `verify --absent` proves it")
    wanted = [identity for identity in identities if identity in there]
    if wanted:
        before, dataset = dataset, _without(owner, dataset, wanted)
        _clear(owner, dataset)
        _summarize(before, dataset, wanted)
    else:
        print(f"{root}: a removal that was interrupted is finished; fingerprint {dataset.fingerprint}")
    return dataset


def _summarize(before: Dataset, after: Dataset, identities: Sequence[str]) -> None:
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


# ------------------------------------------------------------------------------------------------ change


def _without(owner: Lease, dataset: Dataset, identities: Sequence[str]) -> Dataset:
    """Write the new data set beside the old one, and replace the manifest."""
    root, manifest, removals = dataset.root, dataset.manifest, dataset.manifest.provenance.get("removals", 0)
    mark = _mark(dataset) + _digest(sorted({*identities}))
    leaving = [i for i, who in enumerate(manifest.identities) if person(who) in identities]
    leaving_N = np.isin(dataset.index.identity, leaving)
    if leaving_N.all():
        raise V2FError(f"{root}: it has nobody else; remove the whole folder")
    shards: list[ShardRows] = []
    for number, shard in enumerate(tqdm(manifest.shards, unit="shard", desc=f"removing from {root}", disable=None)):
        mine_N = dataset.index.shard == number
        rows = np.flatnonzero(mine_N & ~leaving_N)
        if not (mine_N & leaving_N).any():
            shards.append(_rows(dataset, shard, rows))
        elif len(rows):
            shards.append(_rewrite(owner, dataset, shard, rows, mark))
    _clean_beside(owner, root, shards, identities)
    provenance = {**manifest.provenance, "removals": removals + 1}
    named = f"index{mark}.npz" if leaving_N.any() else manifest.index
    return write_manifest(root, shards, provenance, owner.put, named, manifest.arrays)


def _mark(dataset: Dataset) -> str:
    """The prefix of the mark in names made by a removal from exactly this data set."""
    return "-r" + _digest([dataset.fingerprint, dataset.manifest.provenance.get("removals", 0)])


def _digest(facts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]


def _clear(owner: Lease, dataset: Dataset) -> bool:
    """Remove the shards and indexes of earlier states of this data set; returns whether there were any."""
    manifest, mark = dataset.manifest, _mark(dataset)
    stay = {manifest.index, *(shard.name for shard in manifest.shards)}
    there = [name for name in store.names(dataset.root) if _MADE.fullmatch(name) and mark not in name]
    gone = [name for name in there if name not in stay]
    with owner.holding():
        for name in gone:
            store.remove(store.join(dataset.root, name))
    return bool(gone)


def _rows(dataset: Dataset, shard: Shard, rows: "np.ndarray[Any, Any]") -> ShardRows:
    """The entries of the index for the samples ``rows`` of ``shard``."""
    index = dataset.index
    return ShardRows(
        shard=shard,
        offset=index.offset[rows].tolist(),
        length=index.length[rows].tolist(),
        crc32=index.crc32[rows].tolist(),
        identity=[dataset.manifest.identities[number] for number in index.identity[rows]],
        key=[bytes(key).decode("ascii") for key in index.key[rows]],
        holds=dataset.manifest.holds,  # at least these; the removed samples may have been the ones that lacked more
    )


def _rewrite(owner: Lease, dataset: Dataset, shard: Shard, rows: "np.ndarray[Any, Any]", mark: str) -> ShardRows:
    """Write a shard with exactly the samples ``rows`` of ``shard``, unchanged; its name ends in ``mark``."""
    content = memoryview(store.read_bytes(store.join(dataset.root, shard.name)))
    if len(content) != shard.bytes:
        raise V2FError(
            f"{dataset.root}: {shard.name} has {len(content)} bytes, the manifest says {shard.bytes}; restore it first"
        )
    found = _rows(dataset, shard, rows)
    name = re.sub(rf"(?:{_MARK})?\.tar$", f"{mark}.tar", shard.name)
    runs = [content[offset : offset + length] for offset, length in zip(found.offset, found.length, strict=True)]
    with owner.holding():
        return write_runs(dataset.root, name, shard.split, found.key, found.identity, runs, found.crc32, found.holds)


def _finish(owner: Lease, root: str) -> list[str]:
    """Finish a removal that an earlier version had committed in ROOT/removing/, or discard one that it had not; returns
    the people to remove."""
    folder = store.join(root, REMOVING)
    if not store.exists(folder):
        return []
    what: dict[str, Any] = {"identities": [], "shards": []}
    if store.exists(store.join(folder, _WHAT)):
        what = json.loads(store.read_bytes(store.join(folder, _WHAT)))
    if store.exists(store.join(folder, MANIFEST)):
        decided = open_dataset(folder)
        shards = [
            _rows(decided, shard, np.flatnonzero(decided.index.shard == number))
            for number, shard in enumerate(decided.manifest.shards)
        ]
        _clean_beside(owner, root, shards, what["identities"])
        with owner.holding():
            store.remove(store.join(root, MANIFEST))
        for name in (INDEX, MANIFEST):
            owner.put(store.join(root, name), store.read_bytes(store.join(folder, name)))
    with owner.holding():
        for name in what["shards"] if store.exists(store.join(folder, MANIFEST)) else []:
            store.remove(store.join(root, name))
        store.remove_folder(folder, MANIFEST)
    return list(what["identities"])


# ----------------------------------------------------------------------------------------------- reports


def _yield(root: str) -> dict[str, Any] | None:
    path = store.join(root, YIELD)
    if not store.exists(path):
        return None
    try:
        report = json.loads(store.read_bytes(path))
        return {"people": dict(report["people"]), "rejected_photos": dict(report["rejected_photos"])}
    except (ValueError, KeyError, TypeError) as error:
        raise V2FError(f"{path}: not a yield report; restore or remove it") from error


def _named_beside(root: str) -> set[str]:
    """The people named in the reports of packing."""
    return {*(each.identity for each in yields.read_left_out(root)), *(_yield(root) or {"people": ()})["people"]}


def _clean_beside(owner: Lease, root: str, shards: Sequence[ShardRows], identities: Sequence[str]) -> None:
    """Rewrite the reports of packing without ``identities``; ``shards`` are those that remain."""
    identities = [person(identity) for identity in identities]
    left_out = [each for each in yields.read_left_out(root) if person(each.identity) not in identities]
    if store.exists(store.join(root, LEFT_OUT)):
        yields.write_left_out(root, left_out, owner.put)
    before = _yield(root)
    if before is not None:
        kept = Counter((rows.shard.split, identity) for rows in shards for identity in rows.identity)
        report = yields.yield_report(kept, left_out)
        # Rejected photos are counts without names.
        report["rejected_photos"] = before["rejected_photos"]
        owner.put(store.join(root, YIELD), yields.to_json(report))
