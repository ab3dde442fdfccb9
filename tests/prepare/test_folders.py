"""A folder of pictures and sounds becomes a data set: classes, splits, windows; what cannot be used has its reason."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import portrait, samples, save_jpg, write_m4a
from media import WHOLE, by_libsndfile, tone
from PIL import Image

from v2f.config import build, read_yaml
from v2f.data.loader import read_split
from v2f.data.manifest import Dataset
from v2f.data.transforms import ClassNumber, Photo, Waveform
from v2f.errors import V2FError
from v2f.prepare.pack import PackConfig, finalize, load_recipe, pack, pack_part
from v2f.prepare.parts import Part
from v2f.prepare.verify import verify
from v2f.prepare.yields import read_left_out
from v2f.storage import store

RECIPE = Path(__file__).resolve().parents[2] / "shards" / "folder.yaml"


def recipe(out: Path, **group: Any) -> PackConfig:
    values = read_yaml(RECIPE)
    values |= {"out": str(out), "workers": 1, "folder": {**values["folder"], "size": 16, **group}}
    return build(PackConfig, values, "the test")


def picture(path: Path, value: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((24, 20, 3), value, np.uint8)).convert(mode).save(path)


def sound(path: Path, seconds: float, rate: int = 22050) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(by_libsndfile("WAV")(tone(seconds * rate / 16000), rate))


def by_file(dataset: Dataset) -> dict[str, Any]:
    return {sample.meta["file"]: sample for sample in samples(dataset).values()}


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """40 pictures of each of two classes, and much that is none."""
    root = tmp_path / "animals"
    for number in range(40):
        picture(root / "cat" / f"{number}.png", number)
        picture(root / "dog" / "deep" / f"{number}.jpg", 100 + number, "L")
    sound(root / "cat" / "purr.wav", 1.0)
    (root / "README.txt").write_text("hello")
    (root / ".DS_Store").write_bytes(b"")
    (root / "cat" / "._1.png").write_bytes(b"")
    (root / "cat" / "broken.png").write_bytes(b"\x89PNG")
    picture(root / "lost.png", 0)
    return root


def test_classes_are_folders_and_may_be_in_every_split(animals: Path, tmp_path: Path) -> None:
    dataset = pack(recipe(tmp_path / "d", root=str(animals), people={"train": 0.6, "valid": 0.2, "test": 0.2}))
    assert verify(dataset.root) == []
    assert (dataset.manifest.holds, dataset.manifest.provenance["classes"]) == (["photos"], {"label": ["cat", "dog"]})
    found = by_file(dataset)
    assert len(found) == len(dataset.manifest.identities) == 80
    assert {(s.meta["label"], s.meta["split"]) for s in found.values()} == {
        (label, split) for label in ("cat", "dog") for split in ("train", "valid", "test")
    }
    assert all(np.array_equal(found[f"cat/{n}.png"].photo(), np.full((16, 16, 3), n)) for n in range(40))
    (batch,) = read_split(dataset.split("valid"), {"image": Photo(16), "label": ClassNumber()}, 80)
    assert [found_["label"] for found_ in _meta(dataset, "valid")] == [("cat", "dog")[n] for n in batch["label"]]
    reasons = {each.reason: each.detail or each.name for each in read_left_out(dataset.root)}
    assert reasons == {
        "it is a sound, but `holds` is pictures": "1 files, the first: cat/purr.wav",
        "it is hidden": "2 files, the first: .DS_Store",
        "unsupported type of file": "1 files, the first: README.txt",
        "it is not in the folder of a class": "1 files, the first: lost.png",
        "photo cannot be decoded": reasons["photo cannot be decoded"],
    }


def _meta(dataset: Dataset, split: str) -> list[dict[str, Any]]:
    of, found = dataset.split(split), samples(dataset)
    return [found[of.key(number)].meta for number in range(of.samples)]


def test_parts_of_a_pack_and_any_order_of_listing_give_the_same_samples(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a subset, too."""
    group = {"root": str(animals), "subset": {"people": 30, "clips_per_person": None}}
    whole = pack(recipe(tmp_path / "d", **group))
    assert whole.manifest.splits["train"].people == 29  # of thirty, one is broken
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path / 'd'}: the subset takes 30 of ")
    assert "people to train on, 30 of " in said
    tree = store.tree
    monkeypatch.setattr(store, "tree", lambda path: sorted(tree(path), reverse=True))
    for number in (1, 0):
        pack_part(recipe(tmp_path / "parts", **group), Part(number, 2))
    parts = finalize(recipe(tmp_path / "parts", **group))
    assert {key: sample.meta for key, sample in samples(parts).items()} == {
        key: sample.meta for key, sample in samples(whole).items()
    }


def test_gray_pictures_stay_gray_where_that_is_asked(animals: Path, tmp_path: Path) -> None:
    dataset = pack(recipe(tmp_path / "d", root=str(animals), channels=1, classes=["dog"]))
    assert (dataset.manifest.holds, dataset.manifest.provenance["classes"]) == (["gray", "photos"], {"label": ["dog"]})
    assert by_file(dataset)["dog/deep/7.jpg"].photo().shape == (16, 16, 1)
    assert by_file(dataset)["dog/deep/7.jpg"].photo()[0, 0, 0] == 107
    assert verify(dataset.root) == []
    with pytest.raises(V2FError, match="no file has the class 'cow', which `classes` lists"):
        pack(recipe(tmp_path / "e", root=str(animals), classes=["dog", "cow"]))


def test_splits_may_be_folders(tmp_path: Path) -> None:
    root = tmp_path / "digits"
    for split in ("training", "Test", "val"):
        for label in "37":
            picture(root / split / label / "0.png", int(label))
    picture(root / "more" / "3" / "0.png", 3)
    dataset = pack(recipe(tmp_path / "d", root=str(root), splits="folders"))
    assert {(s.meta["split"], s.meta["label"]) for s in samples(dataset).values()} == {
        (split, label) for split in ("train", "test", "valid") for label in "37"
    }
    assert [each.reason for each in read_left_out(dataset.root)] == ["it is not in a folder named after a split"]
    assert verify(dataset.root) == []


def test_sounds_are_cut_into_windows_that_stay_together(tmp_path: Path) -> None:
    root = tmp_path / "sounds"
    for number in range(12):
        sound(root / "rain" / f"{number}.wav", 2.6)
    write_m4a(root / "rain" / "clip.m4a", tone(2.1))
    sound(root / "rain" / "short.wav", 0.7, 8000)
    sound(root / "rain" / "shorter.wav", 0.2)
    cut = tone(2.0)
    cut[16000:] = 0
    (root / "rain" / "half.wav").write_bytes(by_libsndfile("WAV")(cut))
    halves = {"train": 0.5, "valid": 0.25, "test": 0.25}
    dataset = pack(recipe(tmp_path / "d", root=str(root), holds="sounds", seconds=1.0, people=halves))
    assert (dataset.manifest.holds, verify(dataset.root)) == (["audio"], [])
    of_file: dict[str, list[Any]] = {}
    for sample in samples(dataset).values():
        of_file.setdefault(sample.meta["file"], []).append(sample)
    assert sorted(len(windows) for windows in of_file.values()) == [1, 1, *[2] * 13]
    assert all(len({(s.identity, s.meta["split"]) for s in windows}) == 1 for windows in of_file.values())
    windows = {sample.meta["start"]: sample for sample in of_file["rain/0.wav"]}
    assert {start: len(sample.waveform()) for start, sample in windows.items()} == {0.0: 16000, 1.0: 16000}
    whole = by_file(pack(recipe(tmp_path / "whole", root=str(root), holds="sounds")))["rain/0.wav"].waveform()
    assert np.array_equal(np.concatenate([windows[0.0].waveform(), windows[1.0].waveform()]), whole[:32000])
    assert len(of_file["rain/short.wav"][0].waveform()) == 11200
    assert {each.reason for each in read_left_out(dataset.root)} == {"audio is too short", "audio is silent"}
    (batch,) = read_split(dataset.split("train"), {"wav": Waveform(0.5), "label": ClassNumber()}, 99)
    assert batch["wav"].shape[1] == 8000


def test_a_picture_and_a_sound_of_one_name_are_one_sample(tmp_path: Path) -> None:
    root = tmp_path / "both"
    for number in range(3):
        save_jpg(root / f"{number}.jpg", Image.new("RGB", (20, 20), (9 * number,) * 3))
        sound(root / f"{number}.wav", 0.6)
    save_jpg(root / "4.jpg", Image.new("RGB", (20, 20)))
    sound(root / "5.wav", 0.6)
    dataset = pack(recipe(tmp_path / "d", root=str(root), holds="both"))
    assert (sorted(by_file(dataset)), dataset.manifest.schema_version) == (["0", "1", "2"], 1)
    assert "classes" not in dataset.manifest.provenance
    assert {each.reason for each in read_left_out(dataset.root)} == {
        "the picture has no sound",
        "the sound has no picture",
    }


def test_a_csv_names_classes_splits_people_and_what_else_is_known(tmp_path: Path) -> None:
    root = tmp_path / "faces"
    for number in range(4):
        picture(root / "all" / f"{number}.png", number)
    table = tmp_path / "faces.csv"
    table.write_text(
        "file,label,split,identity,glasses\nall/0.png,a,train,ada,1\nall/1.png,b,train,ada,0\nall/2.png,a,test,eve,0\n"
        "all/9.png,a,train,bob,0\nall/0.png,b,train,ada,1\n./all/3.png,a,,ada,0\n"
    )
    dataset = pack(recipe(tmp_path / "d", root=str(root), csv=str(table)))
    assert {
        name: (s.identity, s.meta["split"], s.meta["label"], s.meta["glasses"]) for name, s in by_file(dataset).items()
    } == {
        "all/0.png": ("ada", "train", "a", "1"),
        "all/1.png": ("ada", "train", "b", "0"),
        "all/2.png": ("eve", "test", "a", "0"),
    }
    assert {each.reason for each in read_left_out(dataset.root)} == {
        "file is missing, or not of a type that `holds` selects",
        "the same file again",
        "empty field",
        "no row names the file",
    }
    assert verify(dataset.root) == []
    (batch,) = read_split(dataset.split("train"), {"g": ClassNumber("glasses", ("0", "1"))}, 9)
    assert sorted(batch["g"].tolist()) == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\n0.png,a\n", "the header must be file"),
        ("file,sample_rate\n0.png,a\n", "'sample_rate' cannot be a column"),
        ("file,split\n0.png,dev\n", "line 2: the split 'dev' is none of"),
        ("file,split,identity\n0.png,train,ada\n1.png,test,ada\n", "'ada' is in train .line 2. and in test .line 3."),
        ("file\n", "it has no usable file"),
    ],
)
def test_a_csv_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    for number in range(2):
        picture(tmp_path / "p" / f"{number}.png", number)
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(V2FError, match=message):
        pack(recipe(tmp_path / "d", root=str(tmp_path / "p"), csv=str(tmp_path / "p.csv")))


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"csv": "a.csv", "splits": "folders"}, "with a csv, its column `split` sets the splits"),
        ({"channels": 1, "photo": "webp"}, "WebP has no grayscale"),
        ({"seconds": 1.0, "max_seconds": 2.0}, "set vad and max_seconds to null"),
        ({"seconds": 0.1}, "seconds is 0.1, but min_seconds is 0.5"),
        ({"classes": ["a", "a"]}, "classes names a class twice"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(tmp_path: Path, group: dict[str, Any], message: str) -> None:
    with pytest.raises(V2FError, match=message):
        recipe(tmp_path, **group)


def test_a_name_in_another_spelling_is_the_same_file(tmp_path: Path) -> None:
    picture(tmp_path / "p" / "Jose\u0301" / "0.png", 1)
    (tmp_path / "p.csv").write_text("file,label\nJos\u00e9/0.png,a\n")
    dataset = pack(recipe(tmp_path / "d", root=str(tmp_path / "p"), csv=str(tmp_path / "p.csv")))
    assert list(by_file(dataset)) == ["Jos\u00e9/0.png"]
    assert os.listdir(tmp_path / "p") == ["Jose\u0301"]


def test_the_recipe_is_one(tmp_path: Path) -> None:
    assert load_recipe(str(RECIPE), [f"out={tmp_path}"]).folder is not None


def test_a_store_is_a_folder_and_sounds_are_of_any_format(tmp_path: Path) -> None:
    root = f"memory://{tmp_path}"
    for kind in ("flac", "ogg vorbis", "mp3", "m4a", "webm"):
        store.write_bytes(f"{root}/some/{kind.replace(' ', '.')}.{kind.split()[0]}", WHOLE[kind](tone(2.2)))
    dataset = pack(recipe(tmp_path / "d", root=root, holds="sounds", seconds=1.0))
    assert len(samples(dataset)) == 10
    assert read_left_out(dataset.root) == []


def test_faces_are_aligned_where_that_is_asked(tmp_path: Path) -> None:
    root = tmp_path / "faces"
    save_jpg(root / "ada" / "0.jpg", portrait(1))
    picture(root / "ada" / "1.png", 0)
    dataset = pack(recipe(tmp_path / "d", root=str(root), align="mtcnn", size=64))
    assert by_file(dataset)["ada/0.jpg"].photo().shape == (64, 64, 3)
    assert [each.reason for each in read_left_out(dataset.root)] == ["no face was found"]
