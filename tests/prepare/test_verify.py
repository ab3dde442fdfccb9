"""`v2f shards verify` names every problem by shard and key."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from v2f.data.encoding import encode, encode_codes
from v2f.data.shards import write_manifest, write_shard
from v2f.data.tar import Members
from v2f.prepare import LeftOut, yields
from v2f.prepare.verify import verify
from v2f.storage import store

Item = tuple[str, str, Members]


def item(number: int, identity: str, split: str, **kinds: str) -> Item:
    rng = np.random.default_rng(number)
    photo_HWC = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    said = {"identity": identity, "split": split, **kinds}
    members = encode(f"s{number}", rng.uniform(-1, 1, 400), 16000, [photo_HWC], source="test", **said)  # type: ignore[arg-type]
    return f"s{number}", identity, members


def write(root: Path, splits: dict[str, Sequence[Item]]) -> str:
    shards = [write_shard(str(root), f"{split}-00000.tar", split, items) for split, items in splits.items()]
    write_manifest(str(root), shards, {})
    return str(root)


@pytest.fixture
def sound(tmp_path: Path) -> str:
    train = [item(n, f"p{n}", "train") for n in range(4)]
    return write(tmp_path / "d", {"train": train, "test": [item(9, "p9", "test")], "seen": [item(5, "p1", "seen")]})


def said(root: str) -> list[str]:
    return [str(problem) for problem in verify(root)]


def test_a_sound_data_set_has_no_problem(sound: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(sound) == []
    assert "6 samples and" in capsys.readouterr().out


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)


KINDS = ["flipped", "cut", "missing", "fifo", "more", "zeros", "empty"]
DAMAGES: list[tuple[Callable[[Path], object], list[str]]] = [
    (flip, ["SHA-256", "sample s0: its CRC-32"]),
    (lambda path: path.write_bytes(path.read_bytes()[:-9000]), ["bytes, the manifest says", "SHA-256", "sample s3: "]),
    (Path.unlink, ["there is no such file"]),
    (lambda path: (path.unlink(), os.mkfifo(path)), ["it is a FIFO (named pipe) and no file"]),
    (lambda path: path.write_bytes(path.read_bytes() + b"x"), ["bytes, the man", "SHA-256", "bytes behind its last"]),
    (lambda path: path.write_bytes(path.read_bytes() + bytes(9000)), ["bytes, the manifest says", "SHA-256"]),
    (lambda path: path.write_bytes(b""), ["it has 0 bytes", "SHA-256", "s0: 0 of its", "s1: ", "s2: ", "s3: "]),
]


@pytest.fixture(params=[None, 700, 4096], ids=["whole", "pieces of 700", "pieces of 4096"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard comes in one piece, or in pieces that end within samples."""
    if request.param is not None:
        monkeypatch.setattr(store, "chunks", functools.partial(store.chunks, length=request.param))


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize(("change", "expected"), DAMAGES, ids=KINDS)
def test_damage_is_found_where_it_is(sound: str, change: Callable[[Path], object], expected: list[str]) -> None:
    change(Path(sound) / "train-00000.tar")
    found = said(sound)
    assert len(found) == len(expected)
    assert all(line.startswith("train-00000.tar: ") for line in found)
    assert all(part in line for part, line in zip(expected, found, strict=True))


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("remote", [False, True])
def test_gaps_and_an_index_that_goes_back_are_named(tmp_path: Path, remote: bool) -> None:
    root = f"memory://{tmp_path}" if remote else str(tmp_path)
    items = [item(n, f"p{n}", "train") for n in range(3)]
    rows = write_shard(root, "train-00000.tar", "train", items)
    a, b, _ = rows.offset
    write_manifest(root, [replace(rows, offset=[b, a, a + 512], length=[*rows.length[:2], 512])], {})
    found = said(root)
    assert [line.removeprefix("train-00000.tar: sample ") for line in found[:4]] == [
        f"s0: {b} bytes before it belong to no sample",
        "s0: its CRC-32 is not the index's",
        f"s1: {a - b - rows.length[0]} bytes before it belong to no sample",
        "s1: its CRC-32 is not the index's",
    ]
    assert found[-1] == "train-00000.tar: bytes behind its last sample belong to no sample"


def test_a_shard_far_larger_than_memory_is_read_piece_by_piece(sound: str) -> None:
    """Sparse, 1 GB, in a process that may take 300 MB."""
    os.truncate(Path(sound) / "train-00000.tar", 1 << 30)
    script = (
        "import resource, sys\nfrom v2f.prepare.verify import verify\n"
        "now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + (300 << 20),) * 2)\nverify(sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, sound], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"train-00000.tar: it has {1 << 30} bytes, the manifest says " in done.stdout
    assert "2 problems in 1 places" in done.stdout


def test_a_foreign_file_is_named(sound: str) -> None:
    shutil.copy(Path(sound) / "test-00000.tar", Path(sound) / "train-00001.tar")
    assert said(sound) == ["train-00001.tar does not belong to the data set; move it elsewhere"]


def test_people_in_two_splits_are_named(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "train": [item(0, "ada", "train")],
            "test": [item(1, "ada", "test")],
            "seen": [item(2, "bob", "seen")],
        },
    )
    assert said(root) == ["'ada' is in train and in test: splits are by person", "'bob' is in seen, but not in train"]


def test_a_json_that_says_otherwise_is_named(tmp_path: Path) -> None:
    key, _, members = item(0, "ada", "train")
    _, _, wrong_split = item(1, "ada", "test")
    root = write(tmp_path, {"train": [(key, "bob", members), ("s1", "ada", wrong_split)]})
    assert said(root) == [
        "train-00000.tar: sample s0: its JSON says 'ada', the manifest 'bob'",
        "train-00000.tar: sample s1: its JSON says split 'test', its shard 'train'",
    ]


def test_codes_are_looked_at(tmp_path: Path) -> None:
    key, identity, members = item(0, "ada", "train")
    codes = encode_codes("s0", np.zeros((1, 4, 6)), 1)
    assert said(write(tmp_path / "sound", {"train": [(key, identity, {**members, "codes.npy": codes})]})) == []
    (line,) = said(write(tmp_path / "cut", {"train": [(key, identity, {**members, "codes.npy": codes[:-2]})]}))
    assert line.startswith("train-00000.tar: sample s0: its codes.npy cannot be decoded (46 bytes are no float16")


def test_a_sample_that_was_packed_broken_is_named(tmp_path: Path) -> None:
    key, identity, members = item(0, "ada", "train")
    root = write(tmp_path, {"train": [(key, identity, {**members, "png": members["png"][:50]})]})
    (line,) = said(root)
    assert line.startswith("train-00000.tar: sample s0: photo png cannot be decoded")


JOSE, DECOMPOSED = "Jos\u00e9", "Jose\u0301"


def test_a_person_who_is_there_in_two_spellings_is_named(tmp_path: Path) -> None:
    """As a version packed it that took them for two."""
    people = [JOSE, DECOMPOSED, "eve", "eve\ufeff"]
    root = write(tmp_path, {"train": [item(number, who, "train") for number, who in enumerate(people)]})
    many = "which count as so many people, for the splits, too; pack it anew, into another folder"
    assert said(root) == [
        f"'{JOSE}' is there in 2 spellings ('Jose\\u0301', 'Jos\\xe9'), {many}",
        f"'eve' is there in 2 spellings ('eve', 'eve\\ufeff'), {many}",
    ]


@pytest.mark.parametrize("asked", [JOSE, DECOMPOSED, f"{JOSE}\u200b "])
@pytest.mark.parametrize("there", [JOSE, DECOMPOSED])
def test_nobody_is_absent_who_is_there_in_another_spelling(tmp_path: Path, asked: str, there: str) -> None:
    root = write(tmp_path, {"train": [item(0, there, "train"), item(1, "eve", "train")]})
    found = [str(problem) for problem in verify(root, [asked])]
    assert found == [f"manifest.json names {asked!r}", f"train-00000.tar: sample s0: its JSON names {asked!r}"]
    assert verify(root, ["Jose", "jos\u00e9", "Eve"]) == []


def test_a_report_names_who_is_in_it_whatever_else_a_name_holds(sound: str) -> None:
    """A separator of lines inside a name does not make the report something else than lines of JSON."""
    left_out = [LeftOut("a\u2028b.wav", "p\u0085q", "no"), LeftOut(f"raw/{DECOMPOSED}/1.wav", "p1", "no")]
    yields.write_left_out(sound, left_out)
    assert yields.read_left_out(sound) == left_out
    assert [str(problem) for problem in verify(sound, [JOSE, "gil"])] == [f"left_out.jsonl names {JOSE!r}"]
