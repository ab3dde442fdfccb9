"""``v2f shards verify``: checks every byte, every sample and the consistency of a data set, and reports problems by
shard and key.

With ``--absent ID``, also checks that nothing names that person, in any spelling: manifest, index, keys, JSONs,
reports.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize
from zlib import crc32

import numpy as np
from tqdm import tqdm

from v2f.data.manifest import MANIFEST, REMOVING, Dataset, Shard, open_dataset
from v2f.data.sample import Sample
from v2f.errors import V2FError
from v2f.prepare.names import person
from v2f.prepare.parts import is_record
from v2f.prepare.yields import LEFT_OUT, YIELD
from v2f.storage import store
from v2f.storage.term import FOLDER


@dataclass(frozen=True)
class Problem:
    """A problem of a shard, or of one of its samples; with an empty ``shard``, of the whole data set."""

    shard: str
    key: str
    text: str

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.shard, f"sample {self.key}" if self.key else "") if part)
        return f"{place}: {self.text}" if place else self.text


def verify(root: str, absent: Sequence[str] = ()) -> list[Problem]:
    """All problems of the data set under ``root``, also printed, one per line. None means that every byte is as packed,
    and that it names none of the identities ``absent``.

    V2FError if the manifest or the index cannot be used at all.
    """
    dataset = open_dataset(root)
    problems = []
    samples = sum(shard.samples for shard in dataset.manifest.shards)
    bar: tqdm[Any] = tqdm(total=samples, unit="sample", desc=f"verifying {root}", disable=None)
    with bar:
        for problem in _problems(dataset, absent, bar):
            bar.write(f"{root}: {problem}")
            problems.append(problem)
    if problems:
        print(f"{root}: {len(problems)} problems in {len({problem.shard for problem in problems})} places")
    else:
        size = sum(shard.bytes for shard in dataset.manifest.shards)
        print(f"{root}: {samples} samples and {size / 1e6:.0f} MB are as packed; fingerprint {dataset.fingerprint}")
        for identity in absent:
            print(f"{root}: {identity} is absent: not in the manifest, the index, the reports, nor in any sample")
    return problems


def _problems(dataset: Dataset, absent: Sequence[str], bar: "tqdm[Any]") -> Iterator[Problem]:
    binary = {dataset.manifest.index, *(shard.name for shard in dataset.manifest.shards)}
    known = {MANIFEST, LEFT_OUT, YIELD, FOLDER} | binary
    foreign = dataset.manifest.foreign
    for name in store.names(dataset.root):
        if name == REMOVING:
            yield Problem("", "", "removing people was not finished here; run the same `v2f shards remove` again")
        elif name not in known and not is_record(name):  # records are removed when the pack is finished
            if foreign is None or not foreign.shares_folder:
                yield Problem("", "", f"{name} does not belong to the data set; move it elsewhere")
        elif absent and name not in (MANIFEST, FOLDER) and name not in binary:
            try:
                content = store.read_bytes(store.join(dataset.root, name))
            except V2FError as error:
                yield Problem("", "", str(error))
                continue
            for identity in absent:
                if _reported(content, identity):
                    yield Problem("", "", f"{name} names {identity!r}")
    for identity in absent:
        if person(identity) in map(person, dataset.manifest.identities) or _names(
            dataset.manifest.provenance, identity
        ):
            yield Problem("", "", f"{MANIFEST} names {identity!r}")
    yield from _spellings(dataset)
    yield from _people(dataset)
    first = 0
    for number, shard in enumerate(dataset.manifest.shards):
        yield from _shard(dataset, number, shard, first, absent)
        first += shard.samples
        bar.update(shard.samples)


def _reported(content: bytes, identity: str) -> bool:
    """Whether a report of packing (JSON, or JSON lines) names a person; True if it cannot be parsed."""
    text = content.decode("utf-8", "replace")
    try:
        return _names(json.loads(text), identity)
    except (ValueError, RecursionError):
        try:
            return any(_names(json.loads(line), identity) for line in text.split("\n") if line)
        except (ValueError, RecursionError):
            return True


def _names(value: Any, identity: str) -> bool:
    """Whether plain JSON names a person: a key or string is the identity, or a path with a folder of that name, in any
    spelling."""
    if isinstance(value, dict):
        return any(_names(part, identity) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return any(_names(part, identity) for part in value)
    if not isinstance(value, str):
        return False
    return person(identity) in map(person, [value, *re.split(r"[/\\]", value)])


def _key_names(key: str, owner: str, identity: str) -> bool:
    """Whether a sample's key names a person, and not only because its owner's name contains that name."""
    owned = f"-{_as_in_keys(owner)}-"
    spelled = {_as_in_keys(normalize(form, identity)) for form in ("NFC", "NFD")} - {""}
    return any(f"-{wanted}-" in f"-{key}-" and f"-{wanted}-" not in owned for wanted in spelled)


def _as_in_keys(identity: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", identity).strip("-")[:40]


def _spellings(dataset: Dataset) -> Iterator[Problem]:
    spelled: dict[str, list[str]] = defaultdict(list)
    for identity in dataset.manifest.identities:
        spelled[person(identity)].append(identity)
    for name, spellings in spelled.items():
        if len(spellings) > 1:
            yield Problem(
                "",
                "",
                f"{name!r} is there in {len(spellings)} spellings ({', '.join(map(ascii, spellings))}), which count as "
                "so many people, for the splits, too; pack it anew, into another folder",
            )


def _people(dataset: Dataset) -> Iterator[Problem]:
    people = {name: set(dataset.split(name).identity_N.tolist()) for name in dataset.splits}
    apart = [name for name in people if name != "seen"]
    for i, one in enumerate(apart):
        for two in apart[i + 1 :]:
            for identity in sorted(people[one] & people[two]):
                name = dataset.manifest.identities[identity]
                yield Problem("", "", f"{name!r} is in {one} and in {two}: splits are by person")
    for identity in sorted(people.get("seen", set()) - people.get("train", set())):
        yield Problem("", "", f"{dataset.manifest.identities[identity]!r} is in seen, but not in train")
    for name, numbers in people.items():
        said = dataset.manifest.splits[name]
        if (said.samples, said.people) != (dataset.split(name).samples, len(numbers)):
            yield Problem("", "", f"the counts of the split {name} are not those of the index")


class _Stream:
    """A shard read once from front to back, with its checksum and length; holds one piece and one sample in memory."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._pieces = store.chunks(path)
        self._piece, self._begins = memoryview(b""), 0  # the current piece, and its offset in the shard
        self._digest = hashlib.sha256()
        self.bytes = 0

    def sample(self, start: int, length: int) -> bytes:
        """The ``length`` bytes from ``start`` on, or fewer at the end of the shard."""
        if start < self._begins:  # the index goes backwards: these bytes were read already
            there = max(0, min(length, store.size(self._path) - start)) if start >= 0 else 0
            return store.read_range(self._path, start, there) if there else b""
        found: list[memoryview] = []
        while True:
            some = self._piece[start - self._begins :][:length]
            found.append(some)
            start, length = start + len(some), length - len(some)
            if not length or not self._next():
                return b"".join(found)

    def has_more(self, start: int) -> bool:
        """Whether anything but zeros follows ``start``. Always reads to the end."""
        more = False
        while True:
            more = more or bool(np.frombuffer(self._piece, np.uint8)[max(0, start - self._begins) :].any())
            if not self._next():
                return more

    def sha256(self) -> str:
        """The SHA-256 of everything read."""
        return self._digest.hexdigest()

    def _next(self) -> bool:
        piece = next(self._pieces, b"")
        if not piece:
            return False
        self._begins += len(self._piece)
        self._piece = memoryview(piece)
        self._digest.update(piece)
        self.bytes += len(piece)
        return True


def _shard(dataset: Dataset, number: int, shard: Shard, first: int, absent: Sequence[str]) -> Iterator[Problem]:
    stream = _Stream(dataset.place(number))
    found: list[Problem] = []
    try:
        end = 0
        for row in range(first, first + shard.samples):
            start, length = int(dataset.index.offset[row]), int(dataset.index.length[row])
            found += _sample(dataset, number, shard, row, stream.sample(start, length), start - end, absent)
            end = start + length
        more = stream.has_more(end)
    except V2FError as error:
        yield Problem(shard.name, "", str(error))
        yield from found
        return
    if stream.bytes != shard.bytes:
        yield Problem(shard.name, "", f"it has {stream.bytes} bytes, the manifest says {shard.bytes}")
    if stream.sha256() != shard.sha256:
        yield Problem(shard.name, "", "its SHA-256 is not the manifest's")
    yield from found
    if more and dataset.manifest.foreign is None:
        yield Problem(shard.name, "", "bytes behind its last sample belong to no sample")


def _sample(
    dataset: Dataset, number: int, shard: Shard, row: int, raw: bytes, gap: int, absent: Sequence[str]
) -> Iterator[Problem]:
    """The problems of one sample with the bytes ``raw``, which starts ``gap`` bytes after the end of the previous
    one."""
    index = dataset.index
    key = bytes(index.key[row]).decode("ascii", "replace")
    if gap and dataset.manifest.foreign is None:
        yield Problem(shard.name, key, f"{gap} bytes before it belong to no sample")
    if index.shard[row] != number:
        yield Problem(shard.name, key, "the index places it in another shard")
    elif len(raw) != index.length[row]:
        yield Problem(shard.name, key, f"{len(raw)} of its {index.length[row]} bytes are there")
    elif crc32(raw) != index.crc32[row]:
        yield Problem(shard.name, key, "its CRC-32 is not the index's")
    else:
        identity = dataset.manifest.identities[index.identity[row]]
        try:
            sample = Sample.from_tar(key, dataset.in_our_schema(row, raw))
            _check(dataset, sample, shard.split, identity)
        except V2FError as error:
            yield Problem(shard.name, key, str(error).removeprefix(f"sample {key}: "))
        else:
            said = {name: value for name, value in sample.meta.items() if name not in ("split", "source")}
            for other in absent:
                if _key_names(key, identity, other):
                    yield Problem(shard.name, key, f"its key names {other!r}")
                if _names(said, other):
                    yield Problem(shard.name, key, f"its JSON names {other!r}")


def _check(dataset: Dataset, sample: Sample, split: str, identity: str) -> None:
    """Decode everything in a sample; :class:`V2FError` if it does not match the schema and the manifest."""
    if sample.identity != identity:
        raise V2FError(f"its JSON says {sample.identity!r}, the manifest {identity!r}")
    if sample.meta["split"] != split:
        raise V2FError(f"its JSON says split {sample.meta['split']!r}, its shard {split!r}")
    sample.check()
    dataset.manifest.check(sample)
