"""Every kind of damage, and what becomes of it: the sample is used, or it is in quarantine. Nothing in between."""

import io
import json
import struct
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from v2f.config import build
from v2f.data.encoding import encode
from v2f.data.loader import Batch, Loader, read_split, read_usable
from v2f.data.manifest import Dataset, Split, open_dataset
from v2f.data.order import Order
from v2f.data.shards import write_manifest, write_shard
from v2f.data.transforms import Photo, Waveform
from v2f.errors import V2FError
from v2f.prepare.pack import PackConfig, pack
from v2f.prepare.verify import verify

TRANSFORMS = {"wav": Waveform(0.03), "image": Photo(8)}
BATCH = 4
Copy = Callable[[Dataset], Dataset]
Make = Callable[..., Dataset]


@pytest.fixture(scope="module")
def whole(make_dataset: Make) -> Dataset:
    """Three shards of 20, 12 and 8 samples."""
    return make_dataset([20, 12, 8])


def an_epoch(split: Split, workers: int = 0) -> tuple[list[Batch], dict[str, str]]:
    """The batches of the first epoch, and the keys in quarantine with their reasons."""
    order = Order.for_batches(split.shard_sizes, seed=0, batch=BATCH, partitions=2, window=6)
    with Loader(split, order, TRANSFORMS, batch=BATCH, seed=0, workers=workers) as loader:
        batches = list(islice(loader, split.samples // BATCH))
        news = loader.quarantine.news()
    assert [entry.number for entry in sorted(news, key=lambda entry: entry.number)] == loader.quarantine.numbers
    for entry in news:
        assert (entry.key, entry.shard, entry.byte) == (
            split.key(entry.number),
            split.shard_path(entry.number),
            split.byte(entry.number),
        )
    return batches, {entry.key: entry.reason for entry in news}


def assert_quarantined(damaged: Dataset, whole: Dataset, bad: set[str], reason: str) -> None:
    """Of an epoch over damaged data, ``bad`` has weight 0 and everything else is as in the whole data."""
    split = damaged.split("train")
    batches, found = an_epoch(split)
    expected, none = an_epoch(whole.split("train"))
    assert none == {}
    assert found.keys() == bad
    assert all(reason in said for said in found.values()), found
    assert sorted(key for batch in batches for key in batch["key"]) == sorted(split.key(n) for n in range(40))
    for one, two in zip(batches, expected, strict=True):
        assert one["key"] == two["key"]
        for name in ("slot", "identity"):
            assert torch.equal(one[name], two[name])
        for row, key in enumerate(one["key"]):
            assert one["weight"][row] == (key not in bad)
            same = all(torch.equal(one[name][row], two[name][row]) for name in TRANSFORMS)
            assert same == (key not in bad)
    left_out: list[str] = []
    usable = [key for batch in read_usable(split, TRANSFORMS, BATCH, left_out) for key in batch["key"]]
    assert sorted([*usable, *bad]) == sorted(split.key(n) for n in range(40))
    assert len(left_out) == len(bad)
    assert all(reason in line for line in left_out)
    with pytest.raises(V2FError, match=r"train-0000\d\.tar: .*sample s000"):
        list(read_split(split, TRANSFORMS, BATCH))


def shard(dataset: Dataset, number: int) -> Path:
    return Path(dataset.root) / dataset.manifest.shards[number].name


def overwrite(path: Path, at: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(content)


def keys(*numbers: int) -> set[str]:
    return {f"s{number:05d}" for number in numbers}


# ------------------------------------------------------------------------------------------ after packing


def test_a_corrupt_tar_header_costs_its_sample_and_no_other(whole: Dataset, copy_of: Copy) -> None:
    """WebDataset's reader ends there without a word: 5 of 20 samples."""
    damaged = copy_of(whole)
    overwrite(shard(damaged, 0), int(damaged.index.offset[5]), b"\xff" * 512)
    assert_quarantined(damaged, whole, keys(5), "its checksum differs")


def test_flipped_bits_cost_their_samples(whole: Dataset, copy_of: Copy) -> None:
    """WebDataset's reader gives them out."""
    damaged = copy_of(whole)
    for number in (7, 8, 33):
        at = int(damaged.index.offset[number]) + 700
        path = Path(damaged.shard_path(number))
        overwrite(path, at, bytes([path.read_bytes()[at] ^ 4]))
    assert_quarantined(damaged, whole, keys(7, 8, 33), "its checksum differs")


@pytest.mark.parametrize("at", ["between two members", "between two samples", "within a member"])
def test_a_cut_shard_costs_what_is_behind_the_cut(whole: Dataset, copy_of: Copy, at: str) -> None:
    """WebDataset's reader gives out half a sample where the cut is between two members of it."""
    damaged = copy_of(whole)
    path, begin = shard(damaged, 1), int(damaged.index.offset[23])
    size = int(path.read_bytes()[begin + 124 : begin + 135], 8)
    length = {"between two members": 512 + -(-size // 512) * 512, "between two samples": 0, "within a member": 600}[at]
    with open(path, "r+b") as file:
        file.truncate(begin + length)
    assert_quarantined(damaged, whole, keys(*range(23, 32)), "it was cut or replaced")


def test_a_missing_shard_costs_its_samples(whole: Dataset, copy_of: Copy) -> None:
    damaged = copy_of(whole)
    shard(damaged, 1).unlink()
    assert_quarantined(damaged, whole, keys(*range(20, 32)), "there is no such file")


def test_an_empty_shard_costs_its_samples(whole: Dataset, copy_of: Copy) -> None:
    damaged = copy_of(whole)
    shard(damaged, 2).write_bytes(b"")
    assert_quarantined(damaged, whole, keys(*range(32, 40)), "its shard ends at byte 0")


def test_a_shard_that_was_replaced_by_another_costs_its_samples(whole: Dataset, copy_of: Copy) -> None:
    damaged = copy_of(whole)
    shard(damaged, 2).write_bytes(shard(damaged, 0).read_bytes())
    assert_quarantined(damaged, whole, keys(*range(32, 40)), "its checksum differs")


def test_the_first_shard_may_be_missing_too(whole: Dataset, copy_of: Copy) -> None:
    """What stands in is then looked for behind it."""
    damaged = copy_of(whole)
    shard(damaged, 0).unlink()
    assert_quarantined(damaged, whole, keys(*range(20)), "there is no such file")


def test_a_folder_in_the_place_of_a_shard_costs_its_samples(whole: Dataset, copy_of: Copy) -> None:
    damaged = copy_of(whole)
    shard(damaged, 1).unlink()
    shard(damaged, 1).mkdir()
    assert_quarantined(damaged, whole, keys(*range(20, 32)), "")


def test_a_foreign_file_in_the_folder_is_not_read(whole: Dataset, copy_of: Copy) -> None:
    damaged = copy_of(whole)
    (Path(damaged.root) / "train-00003.tar").write_bytes(shard(damaged, 0).read_bytes())
    (Path(damaged.root) / "notes.txt").write_text("not ours")
    batches, found = an_epoch(open_dataset(damaged.root).split("train"))
    assert found == {}
    for one, two in zip(batches, an_epoch(whole.split("train"))[0], strict=True):
        assert torch.equal(one["wav"], two["wav"])


def test_a_data_set_that_is_gone_is_an_error_and_no_damage(whole: Dataset, copy_of: Copy) -> None:
    """A disk that is not mounted, a store that is away: no sample is bad because of that."""
    split = copy_of(whole).split("train")
    for path in Path(split.dataset.root).iterdir():
        path.unlink()
    with pytest.raises(V2FError, match=r"copy: the data set has disappeared; restore it and resume"):
        an_epoch(split)
    with pytest.raises(V2FError, match="the data set has disappeared"):
        list(read_usable(split, TRANSFORMS, BATCH, []))


# ---------------------------------------------------------------------------------- packed as it should not be


def sound(samples: np.ndarray, rate: int = 16000, subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


def picture(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


TONE = 0.4 * np.sin(2 * np.pi * 300 * np.arange(4800) / 16000)


def bomb() -> bytes:
    """A few bytes that say they are a picture of 65536 x 65536 pixels."""
    png = picture(Image.new("RGB", (4, 4)))
    header = b"IHDR" + struct.pack(">II", 1 << 16, 1 << 16) + png[24:29]
    return png[:12] + header + struct.pack(">I", crc32(header)) + png[33:]


UNUSABLE = [
    ("wav", None, "one audio wanted"),
    ("png", None, "a photo wanted"),
    ("json", None, "a JSON wanted"),
    ("png", picture(Image.new("I;16", (8, 8))), "mode I;16, 8-bit RGB is required"),
    ("wav", sound(np.stack([TONE, TONE], 1), 48000), "2 channels"),
    ("wav", sound(TONE, 48000), "48000 frames a second"),
    ("wav", sound(np.where(np.arange(4800) == 3, np.nan, TONE), subtype="FLOAT"), "not finite"),
    ("png", bomb(), "exceeds limit|too large"),
    ("png", b"", "cannot be decoded"),
    ("json", b"{", "JSON cannot be read"),
    ("txt", b"a foreign member", "does not know: txt"),
]


@pytest.mark.parametrize(("name", "content", "reason"), UNUSABLE, ids=[f"{n}: {r}" for n, _, r in UNUSABLE])
def test_what_the_schema_does_not_promise_is_quarantined_although_its_checksum_is_right(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    """Somebody else wrote these shards; ``v2f shards pack`` would not."""
    items = []
    for n in range(8):
        about = {"identity": f"p{n}", "split": "train", "source": "test"}
        members = encode(f"s{n}", TONE, 16000, [np.full((8, 8, 3), 9 * n, np.uint8)], audio_format="wav", **about)
        if n == 5:
            members = {k: v for k, v in {**members, name: content}.items() if v is not None}
        items.append((f"s{n}", f"p{n}", members))
    dataset = write_manifest(str(tmp_path), [write_shard(str(tmp_path), "train-00000.tar", "train", items)], {})
    batches, found = an_epoch(dataset.split("train"))
    assert found.keys() == {"s5"}
    assert any(part in found["s5"] for part in reason.split("|")), found
    weight = {key: float(w) for batch in batches for key, w in zip(batch["key"], batch["weight"], strict=True)}
    assert weight == {f"s{n}": float(n != 5) for n in range(8)}
    photo = next(batch["image"][batch["key"].index("s5")] for batch in batches if "s5" in batch["key"])
    assert not photo.any()  # the first sample's
    assert any("s5" in str(problem) for problem in verify(str(tmp_path)))


def test_packing_converts_what_can_be_used_and_leaves_out_the_rest(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    rate = 48000
    tone = 0.4 * np.sin(2 * np.pi * 300 * np.arange(rate) / rate)
    ramp = np.add.outer(np.linspace(0, 60000, 40), np.linspace(0, 5000, 40))
    Image.fromarray(np.linspace(0, 255, 4800).reshape(40, 40, 3).astype(np.uint8)).save(raw / "good.png")
    Image.fromarray(ramp.astype(np.uint16)).save(raw / "deep.png")
    (raw / "bomb.png").write_bytes(bomb())
    soundfile.write(raw / "good.wav", tone, rate)
    soundfile.write(raw / "stereo.wav", np.stack([tone, tone], 1), rate)
    soundfile.write(raw / "nan.wav", np.where(np.arange(rate) == 3, np.nan, tone), rate, subtype="FLOAT")
    rows = ["stereo.wav,good.png,used1", "good.wav,deep.png,used2", "nan.wav,good.png,bad1", "good.wav,bomb.png,bad2"]
    (raw / "pairs.csv").write_text("\n".join(["audio,image,identity", *rows]) + "\n")
    people = {"train": 1.0, "valid": 0.0, "test": 0.0}
    pairs = {"csv": str(raw / "pairs.csv"), "align": "none", "size": 16, "seen": 0.0, "people": people}
    config = {"source": "pairs", "out": str(tmp_path / "out"), "pairs": pairs, "workers": 1}
    dataset = pack(build(PackConfig, config, "test"))
    assert sorted(dataset.manifest.identities) == ["used1", "used2"]
    assert verify(dataset.root) == []
    left_out = [json.loads(line) for line in (Path(dataset.root) / "left_out.jsonl").read_text().splitlines()]
    assert sorted(line["identity"] for line in left_out) == ["bad1", "bad2"]
