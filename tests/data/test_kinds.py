"""Samples of any kind: whatever parts they have, and no other, come back; what was lost is not taken for what was not
meant."""

import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from v2f.cli import main
from v2f.data.encoding import encode
from v2f.data.loader import Loader, read_split
from v2f.data.manifest import ArrayKind, Dataset, open_dataset
from v2f.data.order import Order
from v2f.data.sample import Sample
from v2f.data.shards import write_manifest, write_shard
from v2f.data.tar import join_members
from v2f.data.transforms import Array, ClassNumber, NoiseVector, PersonNumber, Photo, TokenWindow, Waveform, bound
from v2f.errors import V2FError
from v2f.keyed import keyed_rng
from v2f.prepare.precompute import load, precompute
from v2f.prepare.remove import remove
from v2f.prepare.stats import lines, measure
from v2f.prepare.verify import verify
from v2f.web.dataset import show, stats_page

ABOUT = {"identity": "ada", "split": "train", "source": "test"}
TYPES = ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


def drawn(seed: int, parts: set[str], key: str = "k", **about: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What a sample of these parts is made of, and its members."""
    rng = keyed_rng(3, seed)
    made: dict[str, Any] = {}
    if "audio" in parts:
        made |= {"wav_T": rng.uniform(-1, 1, int(rng.integers(1, 400))), "sample_rate": 8000}
    if parts & {"photos", "gray"}:
        shape = (*rng.integers(1, 12, 2), 1 if "gray" in parts else 3)
        made["photos_HWC"] = [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(rng.integers(1, 4))]
    if "originals" in parts:
        made["originals_HWC"] = [255 - photo_HWC for photo_HWC in made["photos_HWC"]]
    if "arrays" in parts:
        made["arrays"] = {
            f"a_{number}": (100 * rng.random(tuple(rng.integers(1, 4, rng.integers(0, 4))))).astype(dtype)
            for number, dtype in enumerate(rng.choice(TYPES, 3))
        }
    return made, encode(key, **made, **{**ABOUT, **about})


KINDS = [{*audio, *photos, *arrays} for audio, photos, arrays in itertools.product(
    [(), ("audio",)], [(), ("photos",), ("gray",), ("photos", "originals")], [(), ("arrays",)]
) if audio or photos or arrays]  # fmt: skip


@given(seed=st.integers(0, 1 << 30), parts=st.sampled_from(KINDS))
def test_whatever_parts_are_encoded_come_back(seed: int, parts: set[str]) -> None:
    made, members = drawn(seed, parts)
    sample = Sample.from_tar("k", join_members("k", members))
    sample.check()
    assert (sample.has_audio, sample.is_gray) == ("audio" in parts, "gray" in parts)
    assert sample.photo_count == len(made.get("photos_HWC", []))
    assert sample.array_names == sorted(made.get("arrays", {}))
    assert {"sample_rate", "seconds"} <= sample.meta.keys() or "audio" not in parts
    assert ("holds" in sample.meta) == (parts - {"arrays"} != {"audio", "photos"})
    assert sample.has_originals == ("originals" in parts)
    if "audio" in parts:
        assert np.abs(sample.waveform() - made["wav_T"]).max() < 1e-4
    for number, photo_HWC in enumerate(made.get("photos_HWC", [])):
        assert np.array_equal(sample.photo(number), photo_HWC)
        assert not sample.has_originals or np.array_equal(sample.original(number), 255 - photo_HWC)
    for name, values in made.get("arrays", {}).items():
        assert np.array_equal(sample.array(name), values)
        assert (sample.array(name).dtype, sample.array(name).shape) == (values.dtype, values.shape)


@given(seed=st.integers(0, 1 << 30), parts=st.sampled_from(KINDS))
def test_no_part_gets_lost_unnoticed(seed: int, parts: set[str]) -> None:
    """But for arrays, which the manifest declares."""
    _, members = drawn(seed, parts)
    for lost in ("flac", "png", "json", "original.png", "original.1.png"):
        rest = {name: content for name, content in members.items() if not name.endswith(lost)}
        if rest.keys() == members.keys():
            continue
        with pytest.raises(V2FError, match="sample k: "):
            Sample("k", rest).check()


def test_a_part_that_is_not_there_is_said_to_be_missing() -> None:
    photos, sounds = (Sample("k", drawn(0, {kind, "arrays"})[1]) for kind in ("photos", "audio"))
    for ask, message in (
        (photos.waveform, "it has no audio"),
        (lambda: photos.sample_rate, "it has no audio"),
        (lambda: Waveform(0.1)(photos, None), "it has no audio"),
        (sounds.photo, "it has no photo"),
        (lambda: Photo(8)(sounds, keyed_rng(0)), "it has no photo"),
        (photos.original, "it has no original photo; pack with psp.keep_original: true"),
        (lambda: sounds.array("b"), "it has no array 'b'; its arrays: a_0, a_1, a_2"),
    ):
        with pytest.raises(V2FError, match=f"sample k: {message}"):
            ask()


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({}, "neither audio nor photos nor an array"),
        ({"wav_T": np.zeros(9)}, "given together"),
        ({"photos_HWC": [np.zeros((4, 4, n), np.uint8) for n in (1, 3)]}, "all RGB or all gray"),
        ({"photos_HWC": [np.zeros((4, 4, 1), np.uint8)], "photo_format": "webp"}, "WebP has no grayscale"),
        ({"photos_HWC": [np.zeros((4, 4, 3), np.uint8)], "originals_HWC": []}, "0 originals for 1 photos"),
        ({"arrays": {"codes": np.zeros(3)}}, "cannot be called 'codes'"),
        ({"arrays": {"a.b": np.zeros(3)}}, "cannot be called 'a.b'"),
        ({"arrays": {"a": np.zeros(3, object)}}, "array 'a' is of object"),
        ({"arrays": {"a": np.zeros(3, complex)}}, "array 'a' is of complex128"),
        ({"arrays": {"a": np.zeros(0)}}, "array 'a' has 0 bytes"),
        ({"arrays": {"a": np.array([np.nan])}}, "not finite"),
        ({"arrays": {"a": np.zeros(3)}, "extra": {"holds": ["audio"]}}, "a source cannot add it"),
    ],
)
def test_no_kind_is_encoded_that_would_be_refused(kinds: dict[str, Any], message: str) -> None:
    with pytest.raises(V2FError, match=f"sample k: .*{message}"):
        encode("k", **kinds, **ABOUT)  # type: ignore[arg-type]


def test_an_array_too_large_to_be_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Sample("k", encode("k", arrays={"a": np.zeros(100)}, **ABOUT))  # type: ignore[arg-type]
    monkeypatch.setattr("v2f.data.sample.MAX_ARRAY", 99)
    with pytest.raises(V2FError, match="sample k: its array 'a' has 800 bytes, 1 to 99 are allowed"):
        sample.array("a")


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\3\4", encode("k", arrays={"a": np.zeros(4)}, **ABOUT)["a.npy"][:-1]],  # type: ignore[arg-type]
)
def test_an_array_that_is_damaged_is_refused(content: bytes) -> None:
    members = encode("k", arrays={"a": np.zeros(4)}, **ABOUT)  # type: ignore[arg-type]
    with pytest.raises(V2FError, match=r"sample k: its a\.npy cannot be decoded"):
        Sample("k", {**members, "a.npy": content}).check()


def test_a_pickle_is_never_run() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([print], dtype=object), allow_pickle=True)
    members = encode("k", arrays={"a": np.zeros(4)}, **ABOUT)  # type: ignore[arg-type]
    with pytest.raises(V2FError, match=r"sample k: its a\.npy cannot be decoded"):
        Sample("k", {**members, "a.npy": buffer.getvalue()}).array("a")


# -------------------------------------------------------------------------------------------- data sets

TOKENS = {"tokens": ArrayKind(dtype="int16", shape=[None])}


def pictures(root: Path, gray: bool = False) -> Dataset:
    """Pictures of cats and dogs, each with tokens, none with a person; both classes are in both splits."""
    rows = []
    for split, numbers in (("train", range(8)), ("test", range(8, 12))):
        samples = []
        for n in numbers:
            made = {
                "photos_HWC": [np.full((10, 8, 1 if gray else 3), 20 * n, np.uint8)],
                "arrays": {"tokens": np.arange(n, 2 * n + 3, dtype=np.int16)},
                "extra": {"label": ("cat", "dog")[n % 2]},
            }
            members = encode(f"s{n}", **made, identity=f"s{n}", split=split, source="test")
            samples.append((f"s{n}", f"s{n}", members))
        rows.append(write_shard(str(root), f"{split}-00000.tar", split, samples))
    return write_manifest(str(root), rows, {"classes": {"label": ["dog", "cat"]}}, arrays=TOKENS)


def test_a_data_set_of_another_kind_is_opened_verified_and_read(tmp_path: Path) -> None:
    dataset = pictures(tmp_path)
    manifest = open_dataset(str(tmp_path)).manifest
    assert (manifest.schema_version, manifest.holds, manifest.arrays) == (2, ["photos"], TOKENS)
    assert verify(dataset.root) == []
    asked = {
        "image": Photo(8),
        "label": ClassNumber(),
        "who": PersonNumber(),
        "tokens": TokenWindow("tokens", 4, pad=-1),
        "z": NoiseVector(2),
    }
    (train,), (test,) = (list(read_split(dataset.split(name), asked, 16)) for name in ("train", "test"))
    assert train["image"].shape == (8, 3, 8, 8)
    assert train["label"].tolist() == [1, 0] * 4
    assert train["who"].tolist() == list(range(8))
    assert test["who"].tolist() == [-1] * 4
    assert train["tokens"].tolist()[:3] == [[0, 1, 2, -1], [1, 2, 3, 4], [2, 3, 4, 5]]
    assert all(str(train[name].dtype) == "torch.int64" for name in ("label", "who", "tokens"))


def test_a_data_set_of_the_usual_kind_is_written_as_before(tmp_path: Path) -> None:
    photo_HWC = np.zeros((4, 4, 3), np.uint8)
    members = encode("k", np.zeros(9), 8000, [photo_HWC], **ABOUT)  # type: ignore[arg-type]
    dataset = write_manifest(
        str(tmp_path), [write_shard(str(tmp_path), "train-00000.tar", "train", [("k", "ada", members)])], {}
    )
    said = json.loads((tmp_path / "manifest.json").read_text())
    assert said["schema_version"] == 1
    assert not {"holds", "arrays"} & said.keys()
    assert open_dataset(str(tmp_path)).manifest == dataset.manifest
    assert dataset.fingerprint == "869356a8df60a4c5fb38c965e1baddaa00df0c348469170c984c51118590aac7"


def test_the_loader_gives_every_kind_in_workers_as_without(tmp_path: Path) -> None:
    dataset = pictures(tmp_path, gray=True)
    split = dataset.split("train")
    order = Order.for_batches([8], seed=0, batch=4, partitions=2, window=4, data=split.fingerprint)
    asked = {"image": Photo(8, channels=1), "label": ClassNumber(), "tokens": TokenWindow("tokens", 3)}
    seen = []
    for workers in (0, 1):
        with Loader(split, order, asked, batch=4, seed=1, workers=workers) as loader:
            seen.append([{n: b[n].tolist() for n in asked} for b in itertools.islice(iter(loader), 5)])
    assert seen[0] == seen[1]
    assert np.shape(seen[0][0]["image"]) == (4, 1, 8, 8)


def test_what_the_data_do_not_have_is_said_before_they_are_read(tmp_path: Path) -> None:
    split = pictures(tmp_path).split("train")
    for transform, message in (
        (Waveform(1.0), "audio is needed, but not every sample has it: all hold photos"),
        (Array("tokens"), r"its array 'tokens' is int16 \[any\]: a batch needs equal shapes"),
        (Array("f0"), "its samples have no array 'f0'; their arrays: tokens"),
        (TokenWindow("f0", 3), "its samples have no array 'f0'"),
        (ClassNumber("color"), "its manifest names no classes of 'color'"),
    ):
        with pytest.raises(V2FError, match=f"{tmp_path}: {message}"):
            next(read_split(split, {"x": transform}, 4))
    with pytest.raises(V2FError, match=r"sample s0: its label is 'cat', none of the 1 classes \(dog\)"):
        next(read_split(split, {"x": ClassNumber(classes=("dog",))}, 4))


def test_what_is_bound_to_the_trained_people_keeps_their_numbers(tmp_path: Path) -> None:
    one, two = pictures(tmp_path / "one"), pictures(tmp_path / "two")
    who = bound({"who": PersonNumber(people=("s3", "s1"))}, [one])
    again = bound(bound({"who": PersonNumber()}, [one, two]), [two])["who"]
    assert [int(who["who"](Sample(k, drawn(0, {"audio"}, k, identity=k)[1]), None)) for k in ("s1", "s3", "s2")] == [
        1, 0, -1,
    ]  # fmt: skip
    assert again == PersonNumber(tuple(f"s{n}" for n in range(8)))
    with pytest.raises(V2FError, match="bind the transform PersonNumber"):
        PersonNumber()(Sample("k", drawn(0, {"audio"})[1]), None)


def test_tokens_begin_anywhere_in_training_and_at_the_start_in_evaluation() -> None:
    sample = Sample("k", encode("k", arrays={"t": np.arange(20).reshape(10, 2)}, **ABOUT))  # type: ignore[arg-type]
    transform = TokenWindow("t", 3)
    assert transform(sample, None).tolist() == [[0, 1], [2, 3], [4, 5]]
    starts = [int(transform(sample, keyed_rng(0, slot))[0, 0]) // 2 for slot in range(60)]
    assert set(starts) == set(range(8))
    assert starts[5] == int(transform(sample, keyed_rng(0, 5))[0, 0]) // 2
    with pytest.raises(V2FError, match=r"its array 'f' is float64 \[2\], integers \[N, ...\] are required"):
        TokenWindow("f", 3)(Sample("k", encode("k", arrays={"f": np.ones(2)}, **ABOUT)), None)  # type: ignore[arg-type]


def test_gray_and_color_become_one_another() -> None:
    gray = Sample("k", encode("k", photos_HWC=[np.full((8, 8, 1), 77, np.uint8)], **ABOUT))  # type: ignore[arg-type]
    red = Sample("k", encode("k", photos_HWC=[np.full((8, 8, 3), (255, 0, 0), np.uint8)], **ABOUT))  # type: ignore[arg-type]
    assert np.array_equal(Photo(4)(gray, None), np.full((3, 4, 4), 77))
    assert np.array_equal(Photo(4, channels=1)(gray, None), np.full((1, 4, 4), 77))
    assert np.array_equal(Photo(4, channels=1)(red, None), np.full((1, 4, 4), 76))


# -------------------------------------------------------------------------------- whatever looks at them


def test_verify_names_arrays_that_are_not_as_declared(tmp_path: Path) -> None:
    def of(key: str, **arrays: np.ndarray) -> tuple[str, str, dict[str, bytes]]:
        return key, "ada", encode(key, arrays=arrays, **ABOUT)  # type: ignore[arg-type]

    zeros = np.zeros(3, np.float32)
    samples = [of("s0", a=zeros), of("s1", a=zeros[:2]), of("s2", a=zeros.astype(int)), of("s3", a=zeros, b=zeros)]
    shard = write_shard(str(tmp_path), "train-00000.tar", "train", samples)
    write_manifest(str(tmp_path), [shard], {}, arrays={"a": ArrayKind(dtype="float32", shape=[3])})
    assert [str(problem).removeprefix("train-00000.tar: sample ") for problem in verify(str(tmp_path))] == [
        "s1: its array 'a' is float32 [2], the manifest declares float32 [3]",
        "s2: its array 'a' is int64 [3], the manifest declares float32 [3]",
        "s3: its arrays are a, b, the manifest declares a",
    ]


@pytest.mark.parametrize("kind", [{"dtype": "object", "shape": []}, {"dtype": "float32", "shape": [0]}])
def test_a_kind_that_no_array_can_be_of_is_refused(kind: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"stored|at least 1 long"):
        ArrayKind(**kind)


@pytest.mark.parametrize("parts", [{"photos"}, {"gray"}, {"audio"}, {"arrays"}], ids=str)
def test_stats_show_and_verify_take_any_kind(tmp_path: Path, parts: set[str]) -> None:
    made = [drawn(0, parts, f"s{n}", identity=f"p{n}") for n in range(3)]
    root = str(tmp_path / "d")
    shard = write_shard(root, "train-00000.tar", "train", [(f"s{n}", f"p{n}", m) for n, (_, m) in enumerate(made)])
    arrays = {n: ArrayKind(dtype=v.dtype.name, shape=list(v.shape)) for n, v in made[0][0].get("arrays", {}).items()}
    write_manifest(root, [shard], {}, arrays=arrays)
    assert verify(root) == []
    stats = measure(open_dataset(root))
    assert (stats.measured, bool(stats.whole.seconds_N)) == (3, "audio" in parts)
    assert ("hours" in lines(stats)[0]) == ("audio" in parts)
    stats_page(root, str(tmp_path / "stats.html"))
    cards = show(root, str(tmp_path / "show.html"))
    assert [(bool(card.photos), bool(card.sound)) for card in cards] == [
        (bool(parts & {"photos", "gray"}), "audio" in parts)
    ] * 3
    page = (tmp_path / "show.html").read_text()
    assert (page.count("<audio"), "Cannot be used" in page) == (3 if "audio" in parts else 0, False)


def test_who_is_removed_takes_neither_kinds_nor_arrays_along(tmp_path: Path) -> None:
    before = pictures(tmp_path, gray=True)
    after = remove(str(tmp_path), ["s3"])
    assert (after.manifest.holds, after.manifest.arrays) == (["gray", "photos"], TOKENS)
    assert after.fingerprint != before.fingerprint
    assert verify(str(tmp_path), ["s3"]) == []


def test_codes_are_computed_of_gray_photos_and_of_no_sounds(tmp_path: Path) -> None:
    root = str(tmp_path / "sounds")
    shard = write_shard(root, "train-00000.tar", "train", [("k", "ada", drawn(0, {"audio"})[1])])
    write_manifest(root, [shard], {})
    config = load(["identity.net=stand_in", "workers=1"])
    with pytest.raises(V2FError, match=f"{root}: not every sample has a photo"):
        precompute(root, str(tmp_path / "out"), config)
    pictures(tmp_path / "gray", gray=True)
    assert main(["shards", "precompute", str(tmp_path / "gray"), "--out", str(tmp_path / "new"),
                 "identity.net=stand_in", "workers=1"]) == 0  # fmt: skip
    assert open_dataset(str(tmp_path / "new")).manifest.arrays == TOKENS
    assert verify(str(tmp_path / "new")) == []
