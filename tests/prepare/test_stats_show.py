"""`v2f shards stats` and `show`: right numbers, pages that stand alone, and nothing left out without a word."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest

from v2f.cli import main
from v2f.data.encoding import encode, encode_codes
from v2f.data.manifest import open_dataset
from v2f.data.shards import write_manifest, write_shard
from v2f.errors import V2FError
from v2f.prepare import LeftOut, yields
from v2f.prepare.stats import lines, measure, spread
from v2f.storage import store
from v2f.web.dataset import HEIGHT, WIDTH, show, stats_page, wave
from v2f.web.page import histogram

NAMES = ["ada", "<script>alert(1)</script>", "cy & dee", "eve"]


def item(number: int, identity: str, split: str, seconds: float, photos: int, side: int) -> tuple[str, str, dict]:
    rng = np.random.default_rng(number)
    photos_HWC = [rng.integers(0, 256, (side + 4, side, 3), dtype=np.uint8) for _ in range(photos)]
    wav_T = rng.uniform(-0.5, 0.5, round(seconds * 8000))
    key = f"{split}-{number:03d}"
    members = encode(key, wav_T, 8000, photos_HWC, identity=identity, split=split, source="test", photo_format="jpg")
    if number == 0:
        members["codes.npy"] = encode_codes(key, np.zeros((photos, 3, 4)), photos)
    return key, identity, members


@pytest.fixture
def root(tmp_path: Path) -> str:
    """20 clips of 0.5 and 1 second of three people to train on, 4 of one to test; one or two photos of 16 or 32 px."""
    folder = str(tmp_path / "d")
    train = [item(n, NAMES[n % 3], "train", 0.5 + 0.5 * (n % 2), 1 + n % 2, 16 + 16 * (n % 2)) for n in range(20)]
    test = [item(n, "eve", "test", 1.0, 1, 32) for n in range(100, 104)]
    shards = [write_shard(folder, f"train-0000{i}.tar", "train", train[10 * i : 10 * i + 10]) for i in range(2)]
    shards.append(write_shard(folder, "test-00000.tar", "test", test))
    write_manifest(folder, shards, {"recipe": "test"})
    return folder


def damage(root: str, row: int) -> str:
    """Flip a bit of a sample's audio; its key."""
    dataset = open_dataset(root)
    path = Path(dataset.shard_path(row))
    content = bytearray(path.read_bytes())
    content[int(dataset.index.offset[row]) + 700] ^= 1
    path.write_bytes(content)
    return bytes(dataset.index.key[row]).decode()


def stands_alone(page: str) -> None:
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "url(" not in page
    assert "@import" not in page


def test_the_numbers_are_right(root: str) -> None:
    stats = measure(open_dataset(root))
    whole, train = stats.whole, stats.splits["train"]
    assert (whole.samples, whole.people, train.samples, train.people) == (24, 4, 20, 3)
    assert whole.hours == pytest.approx((10 * 0.5 + 10 * 1.0 + 4 * 1.0) / 3600)
    assert sorted(train.clips_of_each) == [6, 7, 7]
    assert sum(train.seconds_of_each) == pytest.approx(15.0)
    assert (whole.kinds["flac"], whole.kinds["jpg"], whole.kinds["codes.npy"]) == (24, 34, 1)
    assert sorted(set(whole.side_M)) == [16, 32]
    assert (whole.rates, whole.sources) == ({8000: 24}, {"test": 24})
    assert not stats.broken
    said = "\n".join(lines(stats))
    assert "24 samples of 4 people, 0.01 hours" in said
    assert "train: 20 samples of 3 people" in said
    assert "clips of a person 7 (6 to 7)" in said


def test_a_part_is_enough_for_an_estimate(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And then only that part is read."""
    dataset, read = open_dataset(root), []
    read_range = store.read_range

    def counted(path: str, offset: int, length: int) -> bytes:
        read.append(length)
        return read_range(path, offset, length)

    monkeypatch.setattr(store, "read_bytes", lambda path: pytest.fail(f"all of {path} was read"))
    monkeypatch.setattr(store, "read_range", counted)
    stats = measure(dataset, 3)
    assert stats.is_sampled
    assert (stats.measured, stats.whole.samples, stats.whole.people) == (3, 24, 4)
    assert len(read) == 3
    assert 24 * 0.5 <= stats.whole.hours * 3600 <= 24 * 1.0
    assert "about 0.01 hours" in lines(stats)[0]


def test_the_page_of_numbers_stands_alone(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "stats.html"
    assert main(["shards", "stats", root, "-o", str(output)]) == 0
    page = output.read_text()
    stands_alone(page)
    assert f"page: {output}" in capsys.readouterr().out
    assert not re.search(r"\b(ada|alert|dee|eve)\b", page)
    assert page.count("<svg") == 6
    assert open_dataset(root).fingerprint in page
    assert "What was left out" not in page


def test_damage_is_named_and_not_counted(root: str, tmp_path: Path) -> None:
    key = damage(root, 3)
    stats = stats_page(root, str(tmp_path / "stats.html"))
    assert len(stats.whole.seconds_N) == 23
    assert stats.broken == [f"sample {key}: its checksum differs (train-00000.tar, byte {_offset(root, 3)})"]
    page = (tmp_path / "stats.html").read_text()
    assert "1 sample cannot be used" in page
    assert key in page
    Path(root, "test-00000.tar").unlink()
    stats = stats_page(root, str(tmp_path / "stats.html"))
    assert len(stats.broken) == 5
    assert "sample test-100" in stats.broken[1]
    assert "there is no such file" in stats.broken[1]


def _offset(root: str, row: int) -> int:
    return int(open_dataset(root).index.offset[row])


def test_nothing_that_can_be_used_is_an_error(root: str, tmp_path: Path) -> None:
    for shard in open_dataset(root).manifest.shards:
        Path(root, shard.name).write_bytes(b"\0" * shard.bytes)
    with pytest.raises(V2FError, match="none of its samples can be used, the first: sample train-000: its checksum"):
        stats_page(root, str(tmp_path / "stats.html"))


def test_the_yield_of_the_corpus_is_shown(root: str, tmp_path: Path) -> None:
    left_out = [LeftOut("a", "ada", "no face was found")] * 3
    report = yields.yield_report({("train", "ada"): 24}, left_out, [LeftOut("p.jpg", "ada", "face is too small")])
    Path(root, yields.YIELD).write_bytes(yields.to_json(report))
    stats_page(root, str(tmp_path / "stats.html"))
    page = (tmp_path / "stats.html").read_text()
    assert "24 of 27 samples of the corpus were kept" in page
    assert "<td>no face was found</td><td>3 samples</td>" in page
    assert "<td>face is too small</td><td>1 photo</td>" in page
    Path(root, yields.YIELD).write_text("{}")
    with pytest.raises(V2FError, match=r"yield\.json: this is not a yield report"):
        stats_page(root, str(tmp_path / "stats.html"))


def test_the_sheet_shows_the_stored_bytes(root: str, tmp_path: Path) -> None:
    output = tmp_path / "show.html"
    assert main(["shards", "show", root, "-o", str(output), "--samples", "100"]) == 0
    page = output.read_text()
    stands_alone(page)
    assert page.count("<audio") == 24
    assert page.count("<img") == 34
    assert "This page holds photos and voices of real people" in page
    assert "&lt;script&gt;alert(1)" in page
    content = Path(root, "test-00000.tar").read_bytes()
    shown = [
        base64.b64decode(found) for found in re.findall(r"data:(?:audio|image)/\w+;base64,([A-Za-z0-9+/=]+)", page)
    ]
    assert sum(piece in content for piece in shown) == 8
    assert "test-100" in page


def test_the_sheet_shows_everybody_before_anybody_twice(root: str, tmp_path: Path) -> None:
    cards = show(root, str(tmp_path / "show.html"), 4)
    assert sorted(card.identity for card in cards) == sorted(NAMES)
    again = show(root, str(tmp_path / "again.html"), 4)
    assert [card.key for card in again] == [card.key for card in cards]
    assert {card.identity for card in show(root, str(tmp_path / "one.html"), 99, identity="eve")} == {"eve"}
    assert {card.split for card in show(root, str(tmp_path / "one.html"), 5, split="test")} == {"test"}


def test_a_person_is_shown_in_any_spelling(tmp_path: Path) -> None:
    people = ["Jos\u00e9", "Jose\u0301", "Jose"]
    items = [item(number, who, "train", 0.5, 1, 16) for number, who in enumerate(people)]
    write_manifest(str(tmp_path), [write_shard(str(tmp_path), "train-00000.tar", "train", items)], {})
    for asked in people[:2]:
        cards = show(str(tmp_path), str(tmp_path / "show.html"), identity=asked)
        assert sorted(card.identity for card in cards) == sorted(people[:2])


def test_the_sheet_names_what_it_cannot_show(root: str, tmp_path: Path) -> None:
    key = damage(root, 0)
    show(root, str(tmp_path / "show.html"), 100)
    page = (tmp_path / "show.html").read_text()
    assert page.count("<audio") == 23
    assert f"Cannot be used: sample {key}: its checksum differs" in page


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--identity", "bob"], "it has nobody called 'bob'"),
        (["--split", "valid"], "it has no split 'valid'; it has train, test"),
        (["--split", "test", "--identity", "ada"], "'ada' is not in the split test"),
    ],
)
def test_what_cannot_be_shown_is_one_clear_line(
    root: str, tmp_path: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shards", "show", root, "-o", str(tmp_path / "show.html"), *options]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "show.html").exists()


def test_a_number_of_samples_is_a_number(root: str) -> None:
    with pytest.raises(SystemExit):
        main(["shards", "show", root, "--samples", "0"])


def test_synthetic_people_need_no_warning(tiny_shards: str, tmp_path: Path) -> None:
    show(tiny_shards, str(tmp_path / "show.html"), 2)
    assert "real people" not in (tmp_path / "show.html").read_text()


@pytest.mark.parametrize("values", [[3.0], [1, 1, 2, 5], np.geomspace(0.01, 900, 50).tolist(), [64, 1024], [0.5, 0.75]])
def test_every_value_is_in_one_bar(values: list[float]) -> None:
    found = histogram("title", "px", values)
    counts = [int(words.rpartition(": ")[2].replace(",", "")) for _, words in found.bars]
    assert sum(counts) == len(values)
    assert 1 <= len(counts) <= 26
    assert max(height for height, _ in found.bars) == 1.0


def test_a_wave_fills_its_box() -> None:
    path = wave(np.sin(np.arange(4000) / 10).astype(np.float32) / 100)
    points = np.array([[float(x) for x in point.split()] for point in path.strip("MZ").split("L")])
    assert points.min() == 0
    assert points[:, 0].max() < WIDTH
    assert points[:, 1].max() == pytest.approx(HEIGHT, abs=0.1)
    assert wave(np.zeros(3, np.float32)).count("L") == 5


def test_spread_says_a_range_where_there_is_one() -> None:
    assert spread([2, 2, 2]) == "2"
    assert spread([2] * 99 + [5]) == "2 (2 to 5)"
    assert spread(list(range(101))) == "50 (5 to 95)"
    assert spread([]) == "–"
