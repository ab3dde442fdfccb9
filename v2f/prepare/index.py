"""``v2f shards index``: makes a data set of existing WebDataset tars, which are neither moved nor changed.

Each tar is read once, for its SHA-256, the byte range of each sample, and whether its members decode. Incomplete
samples are left out and listed in ``left_out.jsonl``: those that lack a member named in the map, that cannot be
decoded, whose key occurs again after other samples, or that follow damage in the tar.
"""

import os
import re
import shutil
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from zlib import crc32

from tqdm import tqdm

from v2f.config import build, read_yaml
from v2f.data.foreign import Fields, Foreign, ForeignSample, is_beside, members_of
from v2f.data.manifest import MANIFEST, Dataset, Shard
from v2f.data.sample import AUDIO, PHOTOS, SPLITS, Sample
from v2f.data.shards import ShardRows, write_manifest
from v2f.data.tar import BLOCK, padded
from v2f.errors import V2FError
from v2f.prepare import LeftOut, parts
from v2f.prepare.names import person
from v2f.prepare.splits import Shares, deal
from v2f.prepare.yields import write_left_out
from v2f.storage import store
from v2f.storage.credentials import without_credentials
from v2f.storage.lease import Lease
from v2f.weights.files import sha256_of

EVERYTHING = {"audio": "flac|wav|mp3|m4a|ogg", "photo": "jpg|jpeg|png|webp"}  # the fields without a map
_APART = ("train", "valid", "test")  # a person in several splits goes to the last of them


@dataclass(frozen=True)
class _Tar:
    url: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _FoundSample:
    """A whole sample that was found: ``key`` follows our rules, ``tar`` is the number of its tar."""

    tar: int
    key: str
    identity: str
    label: str
    offset: int
    length: int
    crc32: int


def index(urls: Sequence[str], out: str, map_path: str | None = None, splits: Sequence[str] = ()) -> Dataset:
    """Write the manifest of the tars ``urls`` (with brace expansion) to ``out``. ``map_path``: YAML of
    :class:`v2f.data.foreign.Fields`; ``splits``: ``NAME=PATTERN`` each, matched against the tars' locations; without
    any, people are split by a hash."""
    fields = build(Fields, EVERYTHING if map_path is None else read_yaml(map_path), map_path or "the map")
    patterns = [_pattern(text) for text in splits]
    with parts.leased(out, "v2f shards index") as owner:
        return _index(owner, urls, out, fields, patterns)


def _index(owner: Lease, urls: Sequence[str], out: str, fields: Fields, patterns: Sequence[tuple[str, str]]) -> Dataset:
    if store.exists(store.join(out, MANIFEST)):
        raise V2FError(f"{out}: a data set is there already; choose another folder, or remove this one")
    from webdataset.shardlists import expand_urls

    places = [_place(each, out) for url in urls for each in expand_urls(url)]
    if len(set(places)) != len(places):
        raise V2FError("a tar is named twice; name each once")
    tars: list[_Tar] = []
    rows: list[_FoundSample] = []
    left_out: list[LeftOut] = []
    keys = _Keys()
    for place in tqdm(places, unit="tar", desc="indexing", disable=None):
        url = store.join(out, place) if is_beside(place) else place
        with _as_file(url) as path:
            rows += _rows(path, url, len(tars), fields, keys, left_out)
            tars.append(_Tar(url, os.path.getsize(path), sha256_of(path)))
    split_of = _by_pattern(rows, tars, patterns, left_out) if patterns else _by_person(rows)
    shards, lies = [], []
    for split in SPLITS:
        for number, tar in enumerate(tars):
            mine = [row for row in rows if row.tar == number and split_of.get(row.key) == split]
            if mine:
                shards.append(_shard(tar, split, mine, fields))
                lies.append(places[number])
    said = ", ".join(
        f"{count} samples: {reason}" for reason, count in Counter(e.reason for e in left_out).most_common()
    )
    if not shards:
        raise V2FError(f"no sample of {without_credentials(urls[0])} is whole ({said or 'there is none'})")
    write_left_out(out, left_out, owner.put)
    recipe = {
        "source": "index",
        "urls": [without_credentials(url) for url in urls],
        "split": [*map("=".join, patterns)],
    }
    labels = {row.label for row in rows if row.key in split_of} if fields.label is not None else set()
    classes = sorted(labels, key=lambda label: (not label.isdecimal(), int(label) if label.isdecimal() else 0, label))
    provenance = {"recipe": recipe, **({"classes": {"label": classes}} if classes else {})}
    dataset = write_manifest(out, shards, provenance, owner.put, foreign=Foreign(fields=fields, places=lies))
    kept, people = len(dataset.index.key), len(dataset.manifest.identities)
    print(f"{out}: {kept} samples of {people} people in {len(tars)} tars; fingerprint {dataset.fingerprint}")
    if left_out:
        print(f"  left out: {said}; left_out.jsonl names each")
    return dataset


def _pattern(text: str) -> tuple[str, str]:
    name, equals, pattern = text.partition("=")
    if not equals or not pattern or name not in _APART:
        raise V2FError(f"--split {text!r}: write {'|'.join(_APART)}=PATTERN, for example 'test=*/test-*.tar'")
    return name, pattern


def _place(url: str, out: str) -> str:
    """The location of a tar: relative to ``out`` if it is below it, else the absolute path or URL."""
    local = store.local_path(url)
    if local is None:
        return url.removeprefix(out.rstrip("/") + "/")
    local = os.path.abspath(local)
    root = store.local_path(out)
    return local if root is None else local.removeprefix(os.path.abspath(root) + os.sep)


@contextmanager
def _as_file(url: str) -> Iterator[str]:
    """A tar as a local file, downloaded to a temporary folder if it is remote."""
    local = store.local_path(url)
    if local is not None:
        store.size(local)  # V2FError that names it if it is missing
        yield local
        return
    folder = tempfile.mkdtemp(prefix="v2f-index-")
    try:
        path = os.path.join(folder, "shard.tar")
        with open(path, "wb") as file:
            for piece in store.chunks(url):
                file.write(piece)
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Keys:
    """Turns foreign keys into valid, unique ones: invalid characters become a dash, a duplicate gets a number."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._times: Counter[str] = Counter()

    def __call__(self, key: str) -> str:
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", key).strip("-")[-64:] or "sample"
        found = plain
        while found in self._taken:
            self._times[plain] += 1
            found = f"{plain}-{self._times[plain]}"
        self._taken.add(found)
        return found


def _rows(
    path: str, url: str, number: int, fields: Fields, keys: _Keys, left_out: list[LeftOut]
) -> Iterator[_FoundSample]:
    """The whole samples of a tar, in order; the others are added to ``left_out``."""
    shown, kept = without_credentials(url), set()
    with open(path, "rb") as file:
        for key, start, end in _runs(path, shown, left_out):
            file.seek(start)
            raw = file.read(end - start)
            try:
                if len(raw) < end - start:
                    raise V2FError("the tar ends inside of it")
                if key in kept:
                    raise V2FError("its key stood before, with other samples between")
                foreign = ForeignSample(raw, fields)
                identity = person(foreign.identity)
                if not identity:
                    raise V2FError("its identity is blank")
                sample = Sample.from_tar("sample", foreign.in_our_schema("sample", identity, "train"))
                sample.check()
            except V2FError as error:
                left_out.append(LeftOut(f"{shown}: {key}", "", str(error).removeprefix("sample sample: ")))
                continue
            kept.add(key)
            label = str(sample.meta.get("label", ""))
            yield _FoundSample(number, keys(key), identity, label, start, len(raw), crc32(raw))


def _runs(path: str, shown: str, left_out: list[LeftOut]) -> Iterator[tuple[str, int, int]]:
    """Key, start and end of each run of members with one key, grouped as in webdataset."""
    key, start, end = "", 0, 0
    try:
        with tarfile.open(path, "r:") as tar:
            try:
                for member, owner, _ in members_of(tar):
                    if owner != key:
                        if key:
                            yield key, start, end
                        key, start = owner, member.offset
                    end = member.offset_data + padded(member.size)
                with open(path, "rb") as file:
                    file.seek(tar.offset)
                    if any(file.read(BLOCK)):
                        raise tarfile.ReadError("no header of a member")
            except tarfile.TarError as error:
                detail = f"at byte {tar.offset}: {error}"
                left_out.append(LeftOut(shown, "", "the tar is damaged, nothing behind that is read", detail))
            if key:
                yield key, start, end
    except tarfile.TarError as error:
        raise V2FError(f"{shown}: not a plain tar ({error}); of a compressed one no parts can be read") from error


def _by_person(rows: Sequence[_FoundSample]) -> dict[str, str]:
    clips: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        clips[row.identity].append(row.key)
    return {key: split for (_, key), split in deal(clips, Shares.model_validate({}), 0.0, 0).items()}


def _by_pattern(
    rows: Sequence[_FoundSample], tars: Sequence[_Tar], patterns: Sequence[tuple[str, str]], left_out: list[LeftOut]
) -> Mapping[str, str]:
    """Key -> split, from the first pattern that matches the tar's location, else train. A person's samples in any but
    the person's last split are left out, so that people are not shared between splits."""
    of_tar = [next((name for name, pattern in patterns if fnmatchcase(tar.url, pattern)), "train") for tar in tars]
    for name, pattern in patterns:
        if not any(fnmatchcase(tar.url, pattern) for tar in tars):
            raise V2FError(f"--split {name}={pattern}: no tar lies at such a place")
    of_person: dict[str, str] = {}
    for row in rows:
        of_person[row.identity] = max(of_person.get(row.identity, "train"), of_tar[row.tar], key=_APART.index)
    split_of = {}
    for row in rows:
        split = of_tar[row.tar]
        if split == of_person[row.identity]:
            split_of[row.key] = split
        else:
            name = f"{without_credentials(tars[row.tar].url)}: {row.key}"
            left_out.append(LeftOut(name, row.identity, f"its person is in {of_person[row.identity]}"))
    return split_of


def _shard(tar: _Tar, split: str, rows: Sequence[_FoundSample], fields: Fields) -> ShardRows:
    name = tar.url.rpartition("/")[2]
    return ShardRows(
        shard=Shard(name=name, split=split, samples=len(rows), bytes=tar.bytes, sha256=tar.sha256),
        offset=[row.offset for row in rows],
        length=[row.length for row in rows],
        crc32=[row.crc32 for row in rows],
        identity=[row.identity for row in rows],
        key=[row.key for row in rows],
        holds=[part for part, wanted in ((AUDIO, fields.audio), (PHOTOS, fields.photo)) if wanted is not None],
    )
