"""A CSV of pairs as people have them: all kinds of files, some broken, some contradictory."""

import json
import random
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from corpora import write_m4a
from PIL import Image

from v2f.config import build
from v2f.data.manifest import Dataset
from v2f.data.sample import Sample
from v2f.errors import V2FError
from v2f.prepare.names import on_disk
from v2f.prepare.pack import PackConfig, finalize, pack, pack_part
from v2f.prepare.pairs import Pairs, PairsConfig
from v2f.prepare.parts import Part
from v2f.prepare.verify import verify
from v2f.storage import store

TONE = 0.4 * np.sin(2 * np.pi * 300 * np.arange(16000) / 16000)


def photo(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    picture = Image.fromarray(np.stack([x, y, 0 * x + 90], axis=2).astype(np.uint8))
    return Image.fromarray((x * 257).astype(np.uint16)) if mode == "I;16" else picture.convert(mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of every kind, sound and broken."""
    folder = tmp_path / "raw"
    folder.mkdir()
    soundfile.write(folder / "a.wav", TONE, 16000)
    soundfile.write(folder / "b.flac", np.stack([TONE, 0.5 * TONE], axis=1), 16000)
    at_44100 = 0.4 * np.sin(2 * np.pi * 300 * np.arange(44100) / 44100)
    soundfile.write(folder / "c.ogg", at_44100, 44100)
    write_m4a(folder / "d.m4a", at_44100, 44100, channels=2)
    soundfile.write(folder / "short.wav", TONE[:4000], 16000)
    soundfile.write(folder / "empty.wav", TONE[:0], 16000)
    soundfile.write(folder / "silent.wav", 0 * TONE, 16000)
    soundfile.write(folder / "nan.wav", np.where(np.arange(16000) == 5, np.nan, TONE), 16000, subtype="FLOAT")
    (folder / "text.wav").write_text("this is no sound")
    photo().save(folder / "p.png")
    photo().save(folder / "p.bmp")
    photo("L").save(folder / "gray.jpg")
    photo("RGBA").save(folder / "alpha.png")
    photo("I;16").save(folder / "deep.png")
    photo("CMYK").save(folder / "cmyk.tif")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right to see it upright
    photo().save(folder / "turned.jpg", exif=exif, quality=100)
    (folder / "cut.png").write_bytes((folder / "p.png").read_bytes()[:90])
    (folder / "text.png").write_text("this is no picture")
    return folder


def write_csv(folder: Path, rows: list[str], header: str = "audio,image,identity") -> str:
    (folder / "pairs.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(folder / "pairs.csv")


def packed(folder: Path, rows: list[str], header: str = "audio,image,identity", **kinds: Any) -> Dataset:
    pairs = {"csv": write_csv(folder, rows, header), "align": "none", "size": 30, "seen": 0.0, **kinds}
    pairs.setdefault("people", {"train": 1.0, "valid": 0.0, "test": 0.0})
    out = folder.parent / "out"
    return pack(build(PackConfig, {"out": str(out), "source": "pairs", "pairs": pairs, "workers": 1}, "the test"))


def samples(dataset: Dataset) -> dict[str, Sample]:
    """By the audio and the image that they were made of."""
    found = {}
    for i, key in enumerate(dataset.index.key.tolist()):
        raw = Path(dataset.shard_path(i)).read_bytes()[dataset.index.offset[i] :][: dataset.index.length[i]]
        sample = Sample.from_tar(key.decode(), raw)
        found[f"{sample.meta['audio']} {sample.meta['image']}"] = sample
    return found


def pitch(sample: Sample) -> float:
    spectrum = np.abs(np.fft.rfft(sample.waveform() * np.hanning(len(sample.waveform()))))
    return float(spectrum.argmax() * 16000 / len(sample.waveform()))


def test_every_kind_of_audio_becomes_mono_16_khz(folder: Path) -> None:
    rows = [f"{name},p.png,ada" for name in ("a.wav", "b.flac", "c.ogg", "d.m4a")]
    dataset = packed(folder, rows)
    assert verify(dataset.root) == []
    found = samples(dataset)
    assert len(found) == 4
    for name, sample in found.items():
        assert sample.sample_rate == 16000
        assert abs(len(sample.waveform()) - 16000) < 2500  # AAC pads
        assert abs(pitch(sample) - 300) < 2
        peak = np.abs(sample.waveform()[2000:-3000]).max()
        assert abs(peak - (0.3 if name.startswith("b.flac") else 0.4)) < 0.02


def test_every_kind_of_picture_becomes_upright_rgb(folder: Path) -> None:
    names = ["p.png", "p.bmp", "gray.jpg", "alpha.png", "deep.png", "cmyk.tif", "turned.jpg"]
    found = {
        name.split()[1]: s.photo() for name, s in samples(packed(folder, [f"a.wav,{n},ada" for n in names])).items()
    }
    assert set(found) == set(names)
    assert np.array_equal(found["p.png"], np.asarray(photo())[:, 5:35])
    assert np.array_equal(found["p.png"], found["p.bmp"])
    assert np.array_equal(found["alpha.png"], found["p.png"])
    assert np.abs(found["deep.png"][..., 0].astype(int) - np.asarray(photo())[:, 5:35, 0]).max() <= 1
    assert np.ptp(found["gray.jpg"], axis=2).max() == 0
    # Stored left to right is shown top to bottom; the red ramp runs along x in the file, so along y when upright.
    upright = np.asarray(photo().transpose(Image.Transpose.ROTATE_270))[5:35]
    assert np.abs(found["turned.jpg"].astype(int) - upright).mean() < 6


def test_what_cannot_be_used_is_left_out_with_its_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("v2f.prepare.steps.MAX_PIXELS", 2000)
    photo(size=(60, 50)).save(folder / "huge.png")
    reasons = {
        "short.wav,p.png,ada": "audio is too short (0.25 s of at least 0.5 s)",
        "empty.wav,p.png,ada": "audio is empty",
        "silent.wav,p.png,ada": "audio is silent",
        "nan.wav,p.png,ada": "audio is not finite",
        "text.wav,p.png,ada": "audio cannot be decoded",
        "nowhere.wav,p.png,ada": "audio is missing",
        "a.wav,nowhere.png,ada": "photo is missing",
        "a.wav,cut.png,ada": "photo cannot be decoded",
        "a.wav,text.png,ada": "photo cannot be decoded (unknown picture format)",
        "a.wav,huge.png,ada": "photo is too large (60 x 50 pixels)",
        "a.wav,.,ada": "photo cannot be read",
        "a.wav,,ada": "empty field (image)",
        "a.wav,p.png,ada": "the same pair again (as in line 2)",
        "b.flac,p.png,ada,more": "too many fields",
    }
    dataset = packed(folder, ["a.wav,p.png,ada", *reasons])
    assert dataset.split("train").samples == 1
    said = capsys.readouterr().out.splitlines()
    for number, (row, reason) in enumerate(reasons.items(), start=3):
        audio, image, *_ = row.split(",")
        start = f"left out: line {number} ({audio}, {image}): {reason}"
        assert len([line for line in said if line.startswith(start)]) == 1, start
    assert any(f"yield: 1 of {len(reasons) + 1} samples" in line for line in said)
    lines = [json.loads(line) for line in (Path(dataset.root) / "left_out.jsonl").read_text().splitlines()]
    assert len(lines) == len(reasons)
    assert {line["identity"] for line in lines} == {"ada"}


def test_alignment_leaves_out_what_has_no_face(folder: Path) -> None:
    """One photo with a face that MTCNN finds, one without."""
    from v2f.world.people import World
    from v2f.world.portraits import render_portraits

    world, ids = World(), np.array([2])
    portrait = render_portraits(world.face(ids), world.photo(ids, ids * 0), 96)[0]
    Image.fromarray(portrait).save(folder / "face.png")
    dataset = packed(folder, ["a.wav,face.png,ada", "a.wav,p.png,ada"], align="mtcnn", size=48)
    (sample,) = samples(dataset).values()
    assert sample.meta["image"] == "face.png"
    assert sample.photo().shape == (48, 48, 3)
    (line,) = (Path(dataset.root) / "left_out.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "no face was found"


# -------------------------------------------------------------------------------------- which face, and where

DISCS = np.array([[40.0, 50.0], [80.0, 50.0], [60.0, 72.0], [46.0, 94.0], [74.0, 94.0]])  # eyes, nose, mouth
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]


def scene(scale: float, shift: tuple[float, float], size: tuple[int, int]) -> tuple[Image.Image, np.ndarray]:
    """Gray, with a colored disc at each landmark; and the landmarks, in pixels of this picture."""
    landmarks = (DISCS + shift) * scale
    y, x = np.mgrid[: size[1], : size[0]]
    picture = np.full((size[1], size[0], 3), 128, np.uint8)
    for (cx, cy), color in zip(landmarks, COLORS, strict=True):
        picture[(x - cx) ** 2 + (y - cy) ** 2 < (5 * scale) ** 2] = color
    return Image.fromarray(picture), landmarks


LANDMARKS_HEADER = "audio,image,identity,landmarks"


def test_landmarks_align_what_is_stored_turned_or_shrunk(folder: Path) -> None:
    """The user's points are in pixels of the upright photo as stored; neither EXIF's turn, nor a JPEG that is decoded
    at a fraction, nor `max_side` moves them off the face."""
    upright, landmarks = scene(6, (30, 40), (1000, 1100))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.save(folder / "large.jpg", exif=exif, quality=95)
    upright.save(folder / "large.png")
    (folder / "points.json").write_text(json.dumps(landmarks.tolist()))
    kinds = {"align": "landmarks", "size": 64, "max_side": 300}
    rows = [f"a.wav,large.{kind},ada,points.json" for kind in ("jpg", "png")]
    for sample in samples(packed(folder, rows, LANDMARKS_HEADER, **kinds)).values():
        crop_HWC = sample.photo().astype(float) - 128
        # eyes 40 apart and 44 above the mouth: half a side is max(2 * 40, 1.8 * 44) around (60, 54.4)
        for place, color in zip((DISCS - [60, 54.4]) / 160 * 64 + 32, COLORS, strict=True):
            weight = np.clip(crop_HWC @ (np.array(color) - 128.0), 0, None) ** 3
            weight[weight < weight.max() / 4] = 0
            y, x = np.mgrid[:64, :64] + 0.5
            found = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
            assert np.abs(found - place).max() < 0.8


def test_landmarks_that_cannot_be_used_are_left_out_with_their_reason(folder: Path) -> None:
    picture, landmarks = scene(1, (0, 0), (130, 130))
    picture.save(folder / "face.png")
    files = {
        "good": landmarks,
        "wide": landmarks * 9,
        "small": landmarks / 12,
        "swapped": landmarks[[1, 0, 2, 4, 3]],
        "few": landmarks[:4],
    }
    for name, points in files.items():
        np.save(folder / f"{name}.npy", points)
    np.save(folder / "code.npy", np.array([print, print], dtype=object), allow_pickle=True)
    names = [*(f"{name}.npy" for name in files), "code.npy", "nowhere.npy", "a.wav", ""]
    rows = [f"a.wav,face.png,{name or 'x'},{name}" for name in names]
    dataset = packed(folder, rows, LANDMARKS_HEADER, align="landmarks", size=64)
    assert dataset.manifest.identities == ["good.npy"]
    lines = map(json.loads, (Path(dataset.root) / "left_out.jsonl").read_text().splitlines())
    assert {line["identity"]: line["reason"] for line in lines} == {
        "wide.npy": "landmarks are outside of the photo",
        "small.npy": "face is too small",
        "swapped.npy": "landmarks do not form a face",
        "few.npy": "landmarks cannot be read",
        "code.npy": "landmarks cannot be read",
        "nowhere.npy": "landmarks file is missing",
        "a.wav": "landmarks cannot be read",
        "x": "empty field",
    }


@pytest.fixture(scope="module")
def portraits() -> list[Image.Image]:
    from v2f.world.people import World
    from v2f.world.portraits import render_portraits

    world, ids = World(), np.array([2, 3])
    return [Image.fromarray(photo) for photo in render_portraits(world.face(ids), world.photo(ids, ids * 0), 128)]


def test_a_photo_of_two_gives_the_face_that_is_meant(folder: Path, portraits: list[Image.Image]) -> None:
    two = Image.new("RGB", (400, 260), "gray")
    two.paste(portraits[0].resize((120, 120)), (10, 10))
    two.paste(portraits[1].resize((240, 240)), (150, 10))
    two.save(folder / "two.png")
    alone = Image.new("RGB", (400, 260), "gray")
    alone.paste(portraits[0].resize((120, 120)), (10, 10))
    alone.save(folder / "alone.png")
    header, kinds = "audio,image,identity,x,y", {"align": "mtcnn", "size": 48}

    def run(rows: list[str], **more: Any) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        shutil.rmtree(folder.parent / "out", ignore_errors=True)
        dataset = packed(folder, rows, header, **kinds, **more)
        left_out = map(json.loads, (Path(dataset.root) / "left_out.jsonl").read_text().splitlines())
        said = {line["identity"]: f"{line['reason']} ({line['detail']})" for line in left_out}
        return {sample.identity: sample.photo() for sample in samples(dataset).values()}, said

    rows = ["a.wav,two.png,ada,0.2,0.3", "b.flac,two.png,bob,0.7,0.5", "a.wav,alone.png,eve,,"]
    found, said = run(rows, face="only")
    assert found.keys() == {"eve"}
    assert said == dict.fromkeys(("ada", "bob"), "several faces (found 2, expected one)")
    large, _ = run(rows, face="largest")
    assert np.array_equal(large["ada"], large["bob"])
    odd = ["a.wav,two.png,far,0.02,0.98", "a.wav,two.png,odd,120,90", "a.wav,two.png,word,left,0.5", rows[2]]
    near, said = run([*rows, *odd], face="nearest")
    assert near.keys() == {"ada", "bob"}
    assert np.array_equal(near["bob"], large["bob"])
    assert (
        np.abs(near["ada"].astype(int) - large["eve"]).mean()
        < 12
        < np.abs(near["ada"].astype(int) - large["ada"]).mean()
    )
    assert said["far"].startswith("no face at the point (the nearest of 2 is ")
    assert said["odd"] == "x,y is not a point in the photo (120, 90; use fractions of width and height, 0 to 1)"
    assert said["word"].startswith("x,y is not a point in the photo (left, 0.5;")
    assert said["eve"] == "empty field (x, y)"


def test_a_face_smaller_than_asked_for_is_left_out(folder: Path, portraits: list[Image.Image]) -> None:
    for size in (60, 120):
        portraits[0].resize((size, size)).save(folder / f"{size}.png")
    dataset = packed(folder, [f"a.wav,{size}.png,{size}" for size in (60, 120)], align="mtcnn", size=48, min_face=80)
    assert dataset.manifest.identities == ["120"]
    (line,) = map(json.loads, (Path(dataset.root) / "left_out.jsonl").read_text().splitlines())
    assert line["reason"] == "face is too small"
    assert line["detail"].endswith("pixels, expected at least 80")


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"face": "nearest"}, "the header must be audio,image,identity,x,y and optionally "),
        ({"align": "landmarks"}, "the header must be audio,image,identity,landmarks and optionally "),
        ({"align": "none", "face": "only"}, "face 'only' needs align 'mtcnn', but align is 'none'"),
        ({"align": "landmarks", "face": "nearest"}, "face 'nearest' needs align 'mtcnn'"),
        ({"psp": {"file": "x"}}, "psp: set pictures, codes or both to true, or leave psp out"),
        ({"psp": {"file": "x", "code": True}}, "unknown key 'psp.code'; did you mean 'psp.codes'"),
    ],
)
def test_a_recipe_that_asks_for_what_is_not_there_is_refused(
    tmp_path: Path, kinds: dict[str, Any], message: str
) -> None:
    path = write_csv(tmp_path, ["a.wav,p.png,ada"])
    with pytest.raises(V2FError, match=message):
        Pairs(build(PairsConfig, {"csv": path, **kinds}, "the test")).plan()


# ------------------------------------------------------------------------------------------------ splits

PEOPLE = [f"person {i}" for i in range(60)]
ROWS = [f"{person}/{clip}.wav,{person}.png,{person}" for person in PEOPLE for clip in range(10)]


def dealt(folder: Path, rows: list[str], **kinds: Any) -> dict[str, str]:
    """Audio -> split."""
    config = build(PairsConfig, {"csv": write_csv(folder, rows), **kinds}, "the test")
    return {item.what.audio: item.split for item in Pairs(config).plan().items}


def test_people_are_split_by_shares_and_clips_are_held_out(tmp_path: Path) -> None:
    split_of = dealt(tmp_path, ROWS, people={"train": 0.6, "valid": 0.2, "test": 0.2}, seen=0.2)
    splits_of: dict[str, set[str]] = {}
    for audio, split in split_of.items():
        splits_of.setdefault(audio.split("/")[0], set()).add(split)
    assert all(splits in ({"train", "seen"}, {"valid"}, {"test"}) for splits in splits_of.values())
    trained = [person for person, splits in splits_of.items() if "train" in splits]
    assert 24 <= len(trained) <= 48
    assert sum({"test"} == splits for splits in splits_of.values()) >= 4
    assert sum(split == "seen" for split in split_of.values()) == 2 * len(trained)


def test_splits_depend_neither_on_the_rows_order_nor_on_other_people(tmp_path: Path) -> None:
    kinds = {"people": {"train": 0.6, "valid": 0.2, "test": 0.2}, "seen": 0.2}
    before = dealt(tmp_path, ROWS, **kinds)
    shuffled = ROWS[: len(ROWS) // 2]
    random.Random(0).shuffle(shuffled)
    assert dealt(tmp_path, shuffled, **kinds).items() <= before.items()
    assert dealt(tmp_path, ROWS, **kinds, seed=1) != before


def test_an_audio_with_several_photos_is_held_out_as_one(tmp_path: Path) -> None:
    rows = [f"{clip}.wav,{n}.png,ada" for clip in range(10) for n in range(3)]
    config = {"csv": write_csv(tmp_path, rows), "people": {"train": 1.0, "valid": 0.0, "test": 0.0}, "seen": 0.3}
    items = Pairs(build(PairsConfig, config, "the test")).plan().items
    held_out = {item.what.audio for item in items if item.split == "seen"}
    assert len(held_out) == 3
    assert not held_out & {item.what.audio for item in items if item.split == "train"}


def test_a_column_decides(folder: Path) -> None:
    header = "identity,split,image,audio"
    rows = ["ada,train,p.png,a.wav", "ada,seen,p.png,b.flac", "bob,test,p.png,a.wav", "eve,valid,p.png,a.wav"]
    dataset = packed(folder, rows, header)
    assert {name: split.samples for name, split in dataset.manifest.splits.items()} == dict.fromkeys(
        ("train", "valid", "test", "seen"), 1
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["a,b,ada,train", "c,d,ada,test"],
            r"'ada' is in train \(line 2\) and in test \(line 3\): splits are by",
        ),
        (["a,b,ada,valid", "c,d,ada,test"], r"'ada' is in valid \(line 2\) and in test \(line 3\)"),
        (["a,b,ada,train", "c,d,bob,seen"], r"line 3: 'bob' is in 'seen', .* has no row in train"),
        (["a,b,bob,test", "c,d,bob,seen"], r"line 3: 'bob' is in 'seen'"),
        (["a,b,ada,training"], r"line 2: the split 'training' is none of train, valid, test, seen"),
    ],
)
def test_a_column_that_mixes_people_is_refused(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(V2FError, match=rf"pairs\.csv: {message}"):
        packed(tmp_path, rows, "audio,image,identity,split")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"sound,image,identity\n", "the header must be audio,image,identity"),
        (b"audio,image,identity,age\n", "the header must be audio,image,identity and optionally split,x,y,landmarks"),
        (b"audio,image,identity,x,x\n", "the header must be audio,image,identity"),
        (b"", "it is empty"),
        (b"audio,image,identity\n", "it has no usable row"),
        (b"audio,image,identity\n\xff\xfe\n", "this is not a CSV file in UTF-8"),
        (b'audio,image,identity\n"a,b,c\n', "this is not a CSV file in UTF-8"),
    ],
)
def test_a_file_that_is_no_list_of_pairs_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(V2FError, match=rf"x\.csv: .*{message}"):
        Pairs(build(PairsConfig, {"csv": str(tmp_path / "x.csv")}, "the test")).plan()


def test_a_missing_csv_and_wrong_shares_are_refused(tmp_path: Path) -> None:
    with pytest.raises(V2FError, match=r"x\.csv: cannot read it, there is no such file"):
        Pairs(build(PairsConfig, {"csv": str(tmp_path / "x.csv")}, "the test")).plan()
    with pytest.raises(V2FError, match=r"people: the shares of train, valid and test add up to 1"):
        build(PairsConfig, {"csv": "x", "people": {"train": 0.9, "valid": 0.2, "test": 0.1}}, "the test")


def test_names_in_any_script_become_keys_of_a_tar(folder: Path) -> None:
    dataset = packed(folder, ["a.wav,p.png,Žofie Ólafsdóttir", "b.flac,p.png,毛利", "a.wav,p.png,a.b/c"])
    assert sorted(dataset.manifest.identities) == ["a.b/c", "Žofie Ólafsdóttir", "毛利"]
    assert verify(dataset.root) == []


# ------------------------------------------------------------------------------------------------- names

JOSE, DECOMPOSED = "Jos\u00e9", "Jose\u0301"
VIET, HALF = "Vi\u1ec7t", "Vi\u00ea\u0323t"  # as Windows types it, which is neither of Unicode's two forms


def test_spellings_of_a_name_are_one_person(folder: Path) -> None:
    """Of one split, with all samples under one name; the same pair in another spelling is the same pair."""
    rows = [f"a.wav,p.png,{JOSE}", f"b.flac,p.png,{DECOMPOSED}", f"a.wav,p.png,{DECOMPOSED}", "a.wav,p.png,Jose"]
    rows += [f"c.ogg,p.png,\ufeff{JOSE}\u00a0\u200b", "a.wav,p.png,jose"]
    dataset = packed(folder, rows)
    assert dataset.manifest.identities == ["Jose", JOSE, "jose"]
    assert sorted(dataset.index.identity.tolist()) == [0, 1, 1, 1, 2]
    (line,) = map(json.loads, (Path(dataset.root) / "left_out.jsonl").read_text().splitlines())
    assert (line["identity"], line["reason"], line["detail"]) == (JOSE, "the same pair again", "as in line 2")
    assert verify(dataset.root) == []
    absent = [problem.text for problem in verify(dataset.root, [DECOMPOSED])]
    assert f"manifest.json names {DECOMPOSED!r}" in absent
    assert absent.count(f"its JSON names {DECOMPOSED!r}") == 3


def test_splits_do_not_depend_on_the_spelling(tmp_path: Path) -> None:
    kinds = {"people": {"train": 0.6, "valid": 0.2, "test": 0.2}, "seen": 0.2}

    def planned(form: str) -> list[tuple[str, str, str]]:
        rows = [
            unicodedata.normalize(form, f"{n}/{c}\u00e9.wav,p.png,J\u00f3ska {n}") for n in range(20) for c in range(5)
        ]
        config = build(PairsConfig, {"csv": write_csv(tmp_path, rows), **kinds}, "the test")
        return [(item.key, item.identity, item.split) for item in Pairs(config).plan().items]

    assert planned("NFC") == planned("NFD")


def test_a_column_that_mixes_spellings_of_a_person_is_refused(tmp_path: Path) -> None:
    rows = [f"a,b,{JOSE},train", f"c,d,{DECOMPOSED},test"]
    with pytest.raises(V2FError, match=rf"'{JOSE}' is in train \(line 2\) and in test \(line 3\)"):
        packed(tmp_path, rows, "audio,image,identity,split")


@pytest.mark.parametrize(("written", "there"), [(JOSE, DECOMPOSED), (DECOMPOSED, JOSE)])
def test_a_path_finds_its_file_in_another_spelling(folder: Path, written: str, there: str) -> None:
    (folder / there).mkdir()
    shutil.copy(folder / "a.wav", folder / there / f"{written}.wav")
    shutil.copy(folder / "p.png", folder / there / f"{HALF}.png")
    dataset = packed(folder, [f"{written}/{there}.wav,{there}/{VIET}.png,ada"])
    (sample,) = samples(dataset).values()
    assert (sample.meta["audio"], sample.meta["image"]) == (f"{JOSE}/{JOSE}.wav", f"{JOSE}/{VIET}.png")


def test_of_two_files_the_one_is_meant_that_is_spelled_as_written(folder: Path) -> None:
    shutil.copy(folder / "a.wav", folder / f"{JOSE}.wav")
    shutil.copy(folder / "short.wav", folder / f"{DECOMPOSED}.wav")
    dataset = packed(folder, [f"{DECOMPOSED}.wav,p.png,ada", f"{JOSE}.wav,p.png,bob"])
    assert dataset.manifest.identities == ["bob"]


def test_the_list_itself_is_found_in_another_spelling(folder: Path) -> None:
    Path(write_csv(folder, ["a.wav,p.png,ada"])).rename(folder / f"{DECOMPOSED}.csv")
    plan = Pairs(build(PairsConfig, {"csv": str(folder / f"{JOSE}.csv"), "align": "none"}, "the test")).plan()
    assert len(plan.items) == 1


def test_in_a_store_too() -> None:
    store.write_bytes(f"memory://names/{DECOMPOSED}/a.wav", b"x")
    assert on_disk(f"memory://names/{JOSE}/a.wav") == f"memory://names/{DECOMPOSED}/a.wav"
    assert on_disk(f"memory://names/{JOSE}/no.wav") == f"memory://names/{JOSE}/no.wav"


def test_ascii_names_keep_the_keys_that_they_have_always_had(folder: Path) -> None:
    dataset = packed(folder, ["a.wav,p.png,ada", f"a.wav,p.png,{JOSE}"])
    assert {key.decode() for key in dataset.index.key.tolist()} == {"ada-eb852b006958", "Jos-88ab29cd4de8"}


# ------------------------------------------------------------------------------------------ empty fields


def test_commas_behind_the_last_field_do_not_count(folder: Path) -> None:
    rows = ["a.wav,p.png,ada,,", "b.flac,p.png,bob", ",,,,", "c.ogg,p.png,eve, ,\u200b", "a.wav,p.png,dan,,x"]
    dataset = packed(folder, rows)
    assert dataset.manifest.identities == ["ada", "bob", "eve"]
    (line,) = map(json.loads, (Path(dataset.root) / "left_out.jsonl").read_text().splitlines())
    assert (line["identity"], line["reason"]) == ("dan", "too many fields")


@pytest.mark.parametrize("header", ["audio,image,identity,,", "audio,image,,identity", ",\ufeffaudio ,image,identity"])
def test_columns_without_a_name_do_not_count_where_they_are_empty(folder: Path, header: str) -> None:
    def row(name: str, other: str) -> str:
        named = {"audio": "a.wav", "image": "p.png", "identity": name}
        return ",".join(named.get(column.strip("\ufeff "), other) for column in header.split(","))

    dataset = packed(folder, [row("ada", ""), row("bob", "x")], header)
    assert dataset.manifest.identities == ["ada"]
    (line,) = map(json.loads, (Path(dataset.root) / "left_out.jsonl").read_text().splitlines())
    assert (line["identity"], line["reason"]) == ("bob", "too many fields")


def test_where_no_row_can_be_used_it_is_said_why(tmp_path: Path) -> None:
    with pytest.raises(V2FError) as error:
        packed(tmp_path, ["a.wav,p.png,ada,x", "a.wav,,ada", "a.wav,p.png,", "a.wav"])
    assert str(error.value).endswith(
        "pairs.csv: it has no usable row (3 x empty field, 1 x too many fields; the first: "
        "line 3 (a.wav, ): empty field (image))"
    )


# ------------------------------------------------------------------------------------------- mended inputs


def again(folder: Path, rows: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a pack of a recipe says that is packed already, and that it changes nothing."""
    out = folder.parent / "out"
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    capsys.readouterr()
    packed(folder, rows)
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()} == before
    said, *more = capsys.readouterr().out.splitlines()
    assert "packed already from this recipe, nothing to do" in said
    return "\n".join(more)


def test_an_input_that_is_mended_after_packing_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was missing, or is another file now; what is as it was is not tried again."""
    rows = ["a.wav,p.png,ada", "late.wav,p.png,bob", "short.wav,p.png,eve", "never.wav,p.png,dan", "a.wav,cut.png,cy"]
    packed(folder, rows)
    assert again(folder, rows, capsys) == ""
    shutil.copy(folder / "a.wav", folder / "late.wav")
    out = folder.parent / "out"
    way_out = "choose another `out`, or remove this folder to pack anew"
    assert again(folder, rows, capsys) == (
        f"{out}: inputs that were left out and may be usable now: 1, the first: line 3 (late.wav, p.png) (it was left "
        f"out because: audio is missing); nothing is added to a data set that is committed: {way_out}"
    )
    shutil.copy(folder / "a.wav", folder / "short.wav")
    shutil.copy(folder / "p.png", folder / "cut.png")
    assert "may be usable now: 3, the first: line 3 (late.wav, p.png)" in again(folder, rows, capsys)


def test_what_is_not_mended_costs_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["a.wav,p.png,ada", *(f"a.wav,text.png,{n}" for n in range(40)), "none.wav,p.png,bob"]
    packed(folder, rows)
    monkeypatch.setattr(Pairs, "make", lambda self, items: 1 / 0)
    assert again(folder, rows, capsys) == ""


def test_of_many_mended_inputs_a_few_are_tried(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["a.wav,p.png,ada", *(f"late.wav,p.png,{n}" for n in range(40))]
    packed(folder, rows)
    shutil.copy(folder / "a.wav", folder / "late.wav")
    assert "may be usable now: at least 32, the first: " in again(folder, rows, capsys)


def test_a_part_that_is_whole_says_what_is_mended_and_how_to_take_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = write_csv(folder, ["a.wav,p.png,ada", "late.wav,p.png,ada"])
    pairs = {"csv": csv, "align": "none", "size": 30, "seen": 0.0, "people": {"train": 1.0, "valid": 0.0, "test": 0.0}}
    out = folder.parent / "out"
    recipe = build(PackConfig, {"out": str(out), "source": "pairs", "pairs": pairs, "workers": 1}, "the test")
    pack_part(recipe, Part(0, 2))
    pack_part(recipe, Part(1, 2))
    shutil.copy(folder / "a.wav", folder / "late.wav")
    capsys.readouterr()
    for number in range(2):
        pack_part(recipe, Part(number, 2))
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "may be usable now" in line]
    record = told.partition("to have the part packed again, remove ")[2].removesuffix(" first")
    Path(record).unlink()
    for number in range(2):
        pack_part(recipe, Part(number, 2))
    assert len(finalize(recipe).index.key) == 2


def test_a_list_that_was_mended_is_other_inputs(folder: Path) -> None:
    packed(folder, ["a.wav,p.png,ada"])
    with pytest.raises(
        V2FError, match=r"a data set of other inputs is there \(csv_sha256 differ\); choose another `out`"
    ):
        packed(folder, ["a.wav,p.png,ada", "b.flac,p.png,bob"])
