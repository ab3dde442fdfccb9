"""Megatron-Energon reads our shards: their names keep its rules, and where it is installed the block of docs/data.md
runs. A folder that it prepared is indexed as it is.

The rules are those of megatron-energon 7.4.1, as `energon prepare` applies them to a folder:

    any tar below the folder is a shard; one without a sample is an error
    a sample is a run of members with one key: the name up to the first dot behind the last slash; the rest is the part
    members called __NAME__ are passed over; a key may stand once in the whole folder
    a pattern of --split-parts is a regular expression that a shard's name begins with
    a part is decoded by what stands behind its last dot; one that begins with __ is not
"""

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import documents
import numpy as np
import pytest

import v2f
from v2f.data import sample
from v2f.data.encoding import encode
from v2f.data.manifest import ArrayKind, Dataset, open_dataset
from v2f.data.sample import AudioFormat, PhotoFormat
from v2f.data.shards import write_manifest, write_shard
from v2f.prepare.index import index
from v2f.prepare.parts import Part
from v2f.prepare.remove import remove
from v2f.prepare.verify import verify

PAGE = documents.REPOSITORY / "docs" / "data.md"
DECODED = {"flac", "wav", "png", "jpg", "webp", "json", "npy"}  # of what we write, what Energon decodes
ODD = {
    "train": ["__x__", "-", "_", "a" * 80, "Z-9_"],
    "valid": ["__valid__", "valid-1"],
    "test": ["t"],
    "seen": ["0"],
}
SPLITS = {"train": "train", "valid": "val", "test": "test", "seen": "seen"}  # ours and Energon's


def energon_command() -> list[str]:
    """The words of the page's `energon prepare`."""
    (found,) = [each for each in documents.commands("docs/data.md", PAGE.read_text()) if each.words[0] == "energon"]
    return list(found.words)


def split_patterns() -> dict[str, str]:
    words = energon_command()
    return dict(words[i + 1].split(":", 1) for i, word in enumerate(words) if word == "--split-parts")


def members_as_energon_reads(tar: Path) -> Iterator[tuple[str, str, int]]:
    """Key, part and offset of each member of a tar that Energon takes for a part of a sample."""
    with tarfile.open(tar, "r:") as opened:
        for member in opened:
            folder, slash, base = member.name.rpartition("/")
            key, dot, part = base.partition(".")
            first = member.name.split("/")[0]
            passed_over = len(first) >= 4 and first.startswith("__") and first.endswith("__")
            if member.isreg() and key and dot and not passed_over:
                yield folder + slash + key, part, member.offset


def samples_as_energon_reads(tar: Path) -> list[tuple[str, int, list[str]]]:
    """Key, offset and parts of each sample of a tar."""
    samples: list[tuple[str, int, list[str]]] = []
    for key, part, offset in members_as_energon_reads(tar):
        if not samples or samples[-1][0] != key:
            samples.append((key, offset, []))
        samples[-1][2].append(part)
    return samples


def write_odd(root: str, audio: Sequence[AudioFormat], photo: Sequence[PhotoFormat]) -> Dataset:
    """Parts of a pack, with keys at the edge of what is allowed and every member that a sample can have; clips of 1500
    to 7500 frames."""
    rng = np.random.default_rng(0)
    shards = []
    for split, keys in ODD.items():
        for number, key in enumerate(keys):
            identity = "train 0" if split == "seen" else f"{split} {number}"
            photos = [rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(1 + number % 3)]
            members = encode(
                key,
                rng.uniform(-1, 1, 1500 * (number + 1)),
                16000,
                photos,
                codes_PLD=rng.normal(size=(len(photos), 2, 4)),
                arrays={"tokens": np.arange(number + 1)},
                audio_format=audio[number % len(audio)],
                photo_format=photo[number % len(photo)],
                identity=identity,
                split=split,
                source="test",
            )
            shards.append(write_shard(root, Part(number, 8).shard(split, number), split, [(key, identity, members)]))
    return write_manifest(root, shards, {}, arrays={"tokens": ArrayKind(dtype="int64", shape=[None])})


@pytest.fixture(params=["packed", "removed", "odd"])
def ours(request: pytest.FixtureRequest, tiny_shards: str, tmp_path: Path) -> Dataset:
    root = str(tmp_path / "ours")
    if request.param == "odd":
        return write_odd(root, ["flac", "wav"], ["png", "jpg", "webp"])
    shutil.copytree(tiny_shards, root)
    dataset = open_dataset(root)
    return dataset if request.param == "packed" else remove(root, dataset.manifest.identities[:1])


def test_our_names_keep_the_rules_of_energon(ours: Dataset) -> None:
    tars = sorted(path.name for path in Path(ours.root).rglob("*.tar"))
    assert tars == sorted(shard.name for shard in ours.manifest.shards)
    patterns, seen = split_patterns(), set()
    for number, shard in enumerate(ours.manifest.shards):
        assert [name for name, pattern in patterns.items() if re.match(pattern, shard.name)] == [SPLITS[shard.split]]
        mine = ours.index.shard == number
        samples = samples_as_energon_reads(Path(ours.root) / shard.name)
        assert [key for key, _, _ in samples] == [bytes(key).decode() for key in ours.index.key[mine]]
        assert [offset for _, offset, _ in samples] == ours.index.offset[mine].tolist()
        for key, _, parts in samples:
            assert key not in seen
            seen.add(key)
            assert len(set(parts)) == len(parts)
            assert {part.rpartition(".")[2] for part in parts} <= DECODED
            assert not any(part.startswith("__") for part in parts)
    assert len(seen) == len(ours.index.key)


def test_the_page_names_every_split() -> None:
    assert set(SPLITS) == set(sample.SPLITS)
    assert set(split_patterns()) == set(SPLITS.values())


def test_a_folder_that_energon_prepared_is_indexed_as_it_is(tiny_shards: str, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    (theirs / ".nv-meta").mkdir(parents=True)
    (theirs / ".nv-meta" / ".info.json").write_text('{"energon_version": "7.4.1", "shard_counts": {"0.tar": 48}}')
    (theirs / ".nv-meta" / "split.yaml").write_text("split_parts:\n  train:\n  - 0.tar\nexclude: []\n")
    (theirs / ".nv-meta" / "index.sqlite").write_bytes(b"SQLite format 3\0")
    shutil.copy(Path(tiny_shards) / "train-00000.tar", theirs / "0.tar")
    (theirs / "0.tar.idx").write_bytes(bytes(8))
    for out in (theirs, tmp_path / "elsewhere"):
        dataset = index([f"{theirs}/0.tar"], str(out))
        assert len(dataset.index.key) == 48
        assert verify(dataset.root) == []
    (tmp_path / "elsewhere" / "stray.txt").write_text("")
    assert [problem.text.split()[0] for problem in verify(str(tmp_path / "elsewhere"))] == ["stray.txt"]


def test_energon_reads_ours_as_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("megatron.energon", reason="megatron-energon is not installed")
    dataset = write_odd(str(tmp_path / "data" / "quickstart"), ["flac"], ["png"])
    data = v2f.open_dataset(dataset.root)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    (shown,) = [text for _, text in documents.blocks(PAGE.read_text(), "bash") if "energon prepare" in text]
    subprocess.run(["bash", "-ec", shown], check=True, capture_output=True)
    (block,) = [text for _, text in documents.blocks(PAGE.read_text(), "python") if "megatron.energon" in text]
    for split, theirs in SPLITS.items():
        assert 'split_part="train"' in block
        names: dict[str, Any] = {"__name__": __name__}
        code = block.replace('split_part="train"', f'split_part="{theirs}"')
        exec(compile(code, "docs/data.md", "exec"), names)  # noqa: S102 - the page is ours
        assert sorted(names["read"]) == sorted(data.keys(split))
        for key, (identity, wav_T, photo_CHW) in names["read"].items():
            mine = data.sample(key, split)
            frames = len(mine["audio"])
            assert identity == mine["identity"]
            assert np.array_equal(wav_T[:frames], mine["audio"])
            assert not wav_T[frames:].any()
            assert np.array_equal(photo_CHW.permute(1, 2, 0).mul(255).round().byte(), mine["photos"][0])
    assert verify(dataset.root) == []
