"""The files in a data set's folder while it is packed, by one machine or by several that do not communicate.

    packing.json                      what is packed, and in how many parts: the same for all machines
    train-p00003-00007.tar            shard 7 of part 3 (with a single part: train-00007.tar)
    train-p00003-00007.rows.json      written after its shard: its content, so that a killed part can resume there
    part-00003.json                   part 3 is complete: its shards, and what it left out
    lease/                            the current writer: shared by the parts of one pack, exclusive for others

A part consists of whole people, so that each person is handled by one process. It depends only on the plan and the
number of parts. After the manifest is written, everything but the shards is removed.

Only the holder of the lease writes or removes files here. In an object store, a superseded owner may still have a
request in flight; so there, shards are replaced but not removed before the manifest exists (every process writes the
same bytes for one packing), and a pack of another recipe is never removed.
"""

import hashlib
import heapq
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from v2f.config import Config
from v2f.data.manifest import INDEX, PACKING, ArrayKind, Dataset, open_dataset
from v2f.data.sample import SPLITS
from v2f.data.shards import ShardRows, write_manifest
from v2f.errors import V2FError
from v2f.prepare import Item, LeftOut, Made, share
from v2f.prepare.yields import LEFT_OUT, YIELD
from v2f.storage import lease, store
from v2f.storage.lease import Lease

log = logging.getLogger("v2f")

_TEMPORARY = re.compile(r"\.writing-.*")
_RECORD = re.compile(rf"(?:{'|'.join(SPLITS)})-(?:p\d{{5}}-)?\d{{5}}\.rows\.json|part-\d{{5}}\.json")
_SHARD = re.compile(rf"(?:{'|'.join(SPLITS)})-(?:p\d{{5}}-)?\d{{5}}\.tar")


def is_record(name: str) -> bool:
    """Whether a file of this name is only needed for packing, and may be removed once the manifest exists."""
    return bool(name == PACKING or _RECORD.fullmatch(name) or _TEMPORARY.fullmatch(name))


def is_ours(name: str) -> bool:
    """Whether packing creates files of this name."""
    return bool(is_record(name) or _SHARD.fullmatch(name) or name in (INDEX, LEFT_OUT, YIELD))


@dataclass(frozen=True)
class Part:
    """Part ``number`` (from 0) of ``of``."""

    number: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Part":
        """``i/n`` with i from 0 to n - 1, as in a Kubernetes Indexed Job or a Slurm array."""
        match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
        if match is None or not int(match[1]) < int(match[2]):
            raise V2FError(f"--part {text}: a part is written i/n with i from 0 to n - 1, for example 0/8 ... 7/8")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def record(self) -> str:
        return f"part-{self.number:05d}.json"

    def shard(self, split: str, number: int) -> str:
        middle = f"p{self.number:05d}-" if self.of > 1 else ""
        return f"{split}-{middle}{number:05d}.tar"

    def wrote(self, name: str) -> bool:
        """Whether a file of this name belongs to this part."""
        middle = f"p{self.number:05d}-" if self.of > 1 else ""
        stem = name.partition(".")[0]
        mine = re.fullmatch(rf"(?:{'|'.join(SPLITS)})-{middle}\d{{5}}", stem) is not None
        return name == self.record or (is_ours(name) and mine)

    def deal(self, items: Sequence[Item]) -> list[Item]:
        """This part's items of a plan: whole people, dealt so that the parts are as equal as possible."""
        if self.of == 1:
            return list(items)
        count = Counter(item.identity for item in items)
        lightest = [(0, number) for number in range(self.of)]
        mine = set()
        for identity in sorted(count, key=lambda identity: (-count[identity], share(identity), identity)):
            load, number = lightest[0]
            heapq.heapreplace(lightest, (load + count[identity], number))
            if number == self.number:
                mine.add(identity)
        return [item for item in items if item.identity in mine]


WHOLE = Part()


# --------------------------------------------------------------------------------------------- the folder


class Packing(Config):
    """What is being packed in a folder: equal for all machines that pack parts of one data set."""

    parts: int
    plan: str  # digest of the planned items: equal if all machines see the same inputs
    provenance: dict[str, Any]

    @classmethod
    def of(cls, parts: int, items: Iterable[Item], provenance: dict[str, Any]) -> "Packing":
        digest = hashlib.sha256()
        for item in items:
            digest.update(f"{item.key}\0{item.split}\0{item.identity}\n".encode())
        return cls(parts=parts, plan=digest.hexdigest(), provenance=json.loads(json.dumps(provenance)))

    def to_json(self) -> bytes:
        return self.model_dump_json(indent=1).encode()


def read_packing(out: str) -> Packing | None:
    """What is being packed in ``out``; None if nothing is."""
    path = store.join(out, PACKING)
    if not store.exists(path):
        return None
    try:
        return Packing.model_validate_json(store.read_bytes(path))
    except ValidationError:  # of another version: treated as a killed pack of another recipe
        return Packing(parts=1, plan="", provenance={})


def leased(out: str, what: str, packing: Packing | None = None, part: Part = WHOLE) -> Lease:
    """Take the lease of a data set for the command ``what``: shared by the parts of one ``packing``, or exclusive."""
    share = None
    if packing is not None and part.of > 1:
        share = hashlib.sha256(packing.to_json() + str(part.of).encode()).hexdigest()
    return Lease.take(out, what, share=share, member=str(part), say=log.warning, lasting=False)


def enter(owner: Lease | None, out: str, packing: Packing) -> None:
    """Make ``out`` the folder of ``packing``. V2FError if it holds other files, or another packing in parts, on which
    other machines may be working. Remains of a pack of another recipe are removed. Without an ``owner``, only check."""
    there = [name for name in store.names(out) if not _TEMPORARY.fullmatch(name) and name != lease.FOLDER]
    foreign = [name for name in there if not is_ours(name)]
    found = read_packing(out)
    if foreign or (there and found is None):
        raise V2FError(f"{out}: it is not empty ({(foreign or there)[0]}) and holds no data set; choose another `out`")
    if found == packing:
        return
    if found is not None and max(found.parts, packing.parts) > 1:
        if found.parts != packing.parts:
            what = f"a pack in {found.parts} parts is under way here, this is one in {packing.parts}"
        elif found.provenance != packing.provenance:
            what = "parts of another recipe are packed here"
        else:
            what = "the inputs are not those that the other parts have seen"
        raise V2FError(f"{out}: {what}; start all parts alike, choose another `out`, or remove this folder")
    if found is not None and store.local_path(out) is None:
        raise V2FError(
            f"{out}: a pack of another recipe was begun here and may only be slow; remove all of it first, or choose "
            "another `out`"
        )
    if owner is None:
        return
    with owner.holding():
        # last, because without it the other files would look foreign
        for name in sorted(there, key=lambda name: name == PACKING):
            store.remove(store.join(out, name))
        made = store.create(store.join(out, PACKING), packing.to_json())
    owner.settle()
    if not made or read_packing(out) != packing:
        raise V2FError(f"{out}: a pack of another recipe has just begun here; choose another `out`")


def remains(dataset: Dataset) -> list[str]:
    """The files that packing a data set has not removed yet, ``packing.json`` last."""
    shards, names = {shard.name for shard in dataset.manifest.shards}, store.names(dataset.root)
    stray = [name for name in names if _SHARD.fullmatch(name) and name not in shards] if PACKING in names else []
    return stray + sorted(filter(is_record, names), key=lambda name: name == PACKING)


def commit(
    owner: Lease,
    out: str,
    rows: Sequence[ShardRows],
    provenance: Mapping[str, Any],
    arrays: Mapping[str, ArrayKind] | None = None,
) -> Dataset:
    """Write the manifest, and remove the files of packing."""
    dataset = write_manifest(out, rows, provenance, owner.put, arrays=arrays)
    if store.local_path(out) is None:
        owner.settle()
        write_manifest(
            out, rows, provenance, owner.put, arrays=arrays
        )  # repairs what a superseded owner may just have overwritten
    leave(owner, dataset)
    return dataset


def finish(owner: Lease | None, dataset: Dataset, what: str) -> None:
    """Remove what a pack left that was killed after writing the manifest; without an ``owner``, take the lease
    first."""
    if not remains(dataset):
        return
    if owner is not None:
        return leave(owner, dataset)
    with leased(dataset.root, what) as owner:
        leave(owner, open_dataset(dataset.root))


def leave(owner: Lease, dataset: Dataset) -> None:
    """Remove the files of packing; the data set is committed."""
    gone = remains(dataset)  # listed before ownership is checked, so that it includes no files of a later owner
    with owner.holding():
        for name in gone:
            store.remove(store.join(dataset.root, name))


# --------------------------------------------------------------------------------------------- records


class ShardRecord(Config):
    """The content of a shard, and where its split resumes after it."""

    rows: ShardRows
    stop: int  # the split's items before this one are in this shard, in an earlier one, or left out
    left_out: list[tuple[int, LeftOut]]  # each with its position in the split
    rejected: list[LeftOut]
    seconds: float

    @classmethod
    def of(
        cls, rows: ShardRows, made: Sequence[Made], stop: int, left_out: Sequence[tuple[int, LeftOut]]
    ) -> "ShardRecord":
        rejected = [photo for each in made for photo in each.rejected]
        seconds = sum(each.seconds for each in made)
        return cls(rows=rows, stop=stop, left_out=list(left_out), rejected=rejected, seconds=seconds)


class PartRecord(Config):
    """A complete part."""

    shards: list[str]
    left_out: list[LeftOut]


def write_record(owner: Lease, out: str, name: str, record: Config) -> None:
    owner.put(store.join(out, name), record.model_dump_json().encode())


def rows_name(shard: str) -> str:
    return shard.removesuffix(".tar") + ".rows.json"


def read_shard_record(out: str, shard: str) -> ShardRecord | None:
    """The record of a shard that exists with the right length; None: it has to be written again."""
    path = store.join(out, rows_name(shard))
    if not store.exists(path) or not store.exists(store.join(out, shard)):
        return None
    try:
        record = ShardRecord.model_validate_json(store.read_bytes(path))
    except ValidationError:
        return None
    return record if store.size(store.join(out, shard)) == record.rows.shard.bytes else None


def read_part_record(out: str, part: Part) -> PartRecord | None:
    """The record of a complete part; None if it is not complete."""
    path = store.join(out, part.record)
    if not store.exists(path):
        return None
    try:
        return PartRecord.model_validate_json(store.read_bytes(path))
    except ValidationError:
        return None


def recover(out: str, part: Part) -> dict[str, list[ShardRecord]]:
    """Split -> the shards that this part has already, up to the first incomplete one."""
    found: dict[str, list[ShardRecord]] = {}
    for split in SPLITS:
        found[split] = []
        while (record := read_shard_record(out, part.shard(split, len(found[split])))) is not None:
            found[split].append(record)
    return found


def forget(owner: Lease, out: str, part: Part, kept: Iterable[str]) -> None:
    """Remove this part's records except those of the shards ``kept``. Its other files are replaced, or removed when the
    data set is committed."""
    stay = {rows_name(shard) for shard in kept}
    names = store.names(out)
    gone = [name for name in names if part.wrote(name) and not _SHARD.fullmatch(name) and name not in stay]
    with owner.holding():
        for name in gone:
            store.remove(store.join(out, name))
