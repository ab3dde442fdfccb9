"""Manifest and index: what they say is true, webdataset reads the shards, and tampering is one clear line."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import webdataset

from v2f.data.manifest import Dataset, open_dataset
from v2f.data.sample import Sample
from v2f.data.shards import write_manifest, write_shard
from v2f.data.tar import split_members
from v2f.errors import V2FError

Make = Callable[..., Dataset]
Noise = Callable[..., tuple]


def test_offsets_checksums_and_counts_are_those_of_the_tars(dataset: Dataset) -> None:
    opened = open_dataset(dataset.root)
    row = 0
    for number, shard in enumerate(opened.manifest.shards):
        content = (Path(opened.root) / shard.name).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        for _ in range(shard.samples):
            offset, length = int(opened.index.offset[row]), int(opened.index.length[row])
            raw, key = content[offset : offset + length], opened.index.key[row].decode()
            assert opened.index.shard[row] == number
            assert opened.index.crc32[row] == crc32(raw)
            sample = Sample.from_tar(key, raw)
            assert opened.manifest.identities[opened.index.identity[row]] == sample.identity
            assert sample.meta["split"] == shard.split
            row += 1
    assert row == len(opened.index.key) == 58
    assert {name: (s.samples, s.people) for name, s in opened.manifest.splits.items()} == {
        "train": (53, 5),
        "valid": (5, 5),
    }


def test_webdataset_reads_the_shards(dataset: Dataset) -> None:
    for name in dataset.splits:
        split = dataset.split(name)
        urls = [str(Path(dataset.root) / shard.name) for shard in split.shards]
        read = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
        assert [sample["__key__"] for sample in read] == [split.key(i) for i in range(split.samples)]
        for sample in read:
            members = {name: content for name, content in sample.items() if not name.startswith("__")}
            assert set(members) == {"wav", "0.png", "1.png", "json"}
            Sample(sample["__key__"], members).waveform()


def test_shards_are_the_bytes_that_webdataset_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = []
    for n in range(20):
        members = {"flac": rng.bytes(int(rng.integers(1, 3000))), "0.png": rng.bytes(512 * n), "json": b"{}"}
        samples.append((f"k{n}" * (1 + 2 * n % 20), f"person {n}", members))
    written = io.BytesIO()
    with webdataset.TarWriter(written, encoder=False, mtime=0, user="v2f", group="v2f") as tar:
        for key, _, members in samples:
            tar.write({"__key__": key, **members})
    rows = write_shard(str(tmp_path), "train-00000.tar", "train", samples)
    content = (tmp_path / "train-00000.tar").read_bytes()
    assert content == written.getvalue()
    assert rows.shard.sha256 == hashlib.sha256(content).hexdigest()
    for (key, _, members), offset, length, checksum in zip(samples, rows.offset, rows.length, rows.crc32, strict=True):
        raw = content[offset : offset + length]
        assert crc32(raw) == checksum
        assert split_members(key, raw) == members


def test_shards_are_plain_ustar_without_dates_or_owners(dataset: Dataset) -> None:
    with tarfile.open(Path(dataset.root) / "train-00000.tar", "r:") as tar:
        assert all((m.mtime, m.uid, m.gid, m.type) == (0, 0, 0, tarfile.REGTYPE) for m in tar)
        assert not tar.pax_headers


def test_the_fingerprint_depends_on_content_alone(make_dataset: Make, tmp_path: Path) -> None:
    one, two = make_dataset([4, 3], root=tmp_path / "a"), make_dataset([4, 3], root=tmp_path / "b" / "c")
    assert one.fingerprint == two.fingerprint
    assert open_dataset(one.root).fingerprint == one.fingerprint
    assert make_dataset([3, 4]).fingerprint != one.fingerprint
    assert make_dataset([4, 3], photos=1).fingerprint != one.fingerprint


def test_splits_are_slices_of_the_index(dataset: Dataset) -> None:
    train, valid = dataset.split("train"), dataset.split("valid")
    assert (train.samples, train.shard_sizes, train.people, train.first) == (53, [20, 7, 1, 25], 5, 0)
    assert (valid.samples, valid.first, valid.key(0)) == (5, 53, "s00053")
    assert [dataset.manifest.identities[i] for i in valid.identity_N] == [f"person{n % 5}" for n in range(53, 58)]
    with pytest.raises(V2FError, match=r"no split 'test'; it has train, valid"):
        dataset.split("test")


@pytest.fixture
def copy(dataset: Dataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset.root, tmp_path / "copy"))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identities": ["x"]}, "it was edited"),
        ({"fingerprint": "0" * 64}, "it was edited"),
        ({"splits": {}}, "it was edited"),
        ({"schema_version": 99}, "schema version 99, this v2f reads 1"),
        ({"shard": []}, "unknown key 'shard'; did you mean 'shards'"),
        ({"shards": 3}, "shards: input should be a valid list"),
    ],
)
def test_an_edited_manifest_is_refused(copy: Path, changes: dict[str, object], message: str) -> None:
    edit(copy, **changes)
    with pytest.raises(V2FError, match=rf"manifest\.json: .*{message}") as caught:
        open_dataset(str(copy))
    assert "\n" not in str(caught.value)


def test_who_made_it_may_be_edited(copy: Path, dataset: Dataset) -> None:
    edit(copy, created_by="me", provenance={})
    assert open_dataset(str(copy)).fingerprint == dataset.fingerprint


def test_a_missing_or_cut_manifest_says_what_to_do(copy: Path) -> None:
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text[:100])
    with pytest.raises(V2FError, match=r"not valid JSON .*pack the data set anew"):
        open_dataset(str(copy))
    (copy / "manifest.json").unlink()
    with pytest.raises(V2FError, match=r"no data set here .*v2f shards pack"):
        open_dataset(str(copy))
    with pytest.raises(V2FError, match="no data set here"):
        open_dataset(str(copy / "nowhere"))


def test_a_foreign_or_cut_index_is_refused(copy: Path, make_dataset: Make) -> None:
    other = make_dataset([20, 7, 1, 25], [5], frames=400)
    shutil.copy(Path(other.root) / "index.npz", copy)
    with pytest.raises(V2FError, match=r"index\.npz: it is not the index of this manifest"):
        open_dataset(str(copy))
    (copy / "index.npz").write_bytes(b"PK\3\4")
    with pytest.raises(V2FError, match=r"index\.npz: this index cannot be read"):
        open_dataset(str(copy))


def test_a_key_that_stands_twice_is_refused(noise_sample: Noise, tmp_path: Path) -> None:
    items = [noise_sample(0, "train"), noise_sample(0, "train")]
    with pytest.raises(V2FError, match="a key occurs twice"):
        write_shard(str(tmp_path), "train-00000.tar", "train", items)
    shards = [write_shard(str(tmp_path), f"train-0000{i}.tar", "train", items[:1]) for i in range(2)]
    with pytest.raises(V2FError, match="a key occurs twice, in different shards"):
        write_manifest(str(tmp_path), shards, {})
    assert not (tmp_path / "manifest.json").exists()


def test_the_index_holds_no_pickles(dataset: Dataset) -> None:
    with np.load(Path(dataset.root) / "index.npz", allow_pickle=False) as columns:
        assert all(columns[name].dtype != object for name in columns)
