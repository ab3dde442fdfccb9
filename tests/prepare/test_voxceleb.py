"""VoxCeleb and VGGFace as they lie on a disk: two trees of voices, two of faces, and the published metadata."""

import json
import os
import pickle
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from corpora import portrait, samples, save_jpg, voice, write_m4a
from PIL import Image

from v2f.config import build
from v2f.data.manifest import Dataset
from v2f.errors import V2FError
from v2f.prepare import yields
from v2f.prepare.pack import PackConfig, pack
from v2f.prepare.verify import verify
from v2f.prepare.voxceleb import VoxCeleb, VoxCelebConfig, read_meta
from v2f.storage import store

VOX1 = """VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet
id10001\tA.J._Buckley\tm\tIreland\tdev
id10002\tA.R._Rahman\tm\tIndia\tdev
id10270\tEartha_Kitt\tf\tUSA\ttest
"""
VOX2 = """VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set 
id00012 ,n000012 ,m ,dev 
id00017 ,n000017 ,m ,test 
id00076 ,n000076 ,f ,dev 
"""  # noqa: W291 - as published


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six people, of whom one has no photos and one no clips; and what else lies about in such trees."""
    root = tmp_path_factory.mktemp("vox")
    (root / "vox1_meta.csv").write_text(VOX1)
    (root / "vox2_meta.csv").write_text(VOX2)

    def wav(name: str, person: int) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, voice(person), 16000)

    for clip in range(1, 4):
        wav(f"vox1/dev/wav/id10001/1zcIwhmdeo4/0000{clip}.wav", 1)
    wav("vox1/dev/wav/id10002/0_laIeN-Q44/00001.wav", 2)
    wav("vox1/test/wav/id10270/5r0dWxy17C8/00001.wav", 3)
    write_m4a(root / "vox2/dev/aac/id00012/21Uxsk56VDQ/00001.m4a", voice(4))
    write_m4a(root / "vox2/dev/aac/id00012/_raOc3-IRsw/00110.m4a", voice(4))
    wav("vox2/dev/aac/id00012/21Uxsk56VDQ/00001.wav", 4)  # somebody has begun to convert them
    write_m4a(root / "vox2/test/aac/id00017/utabcdefghi/00001.m4a", voice(5))
    wav("vox2/dev/aac/id09999/21Uxsk56VDQ/00001.wav", 6)
    (root / "vox1/dev/wav/id10001/1zcIwhmdeo4/00001.txt").write_text("FRAME")
    (root / "vox1/dev/wav/id10001/1zcIwhmdeo4/00004.wav").write_bytes(b"")

    for n in range(4):
        save_jpg(root / f"VGGFace/A.J._Buckley/{n:08d}.jpg", portrait(1, n))
    save_jpg(root / "VGGFace/eartha kitt/1.jpg", portrait(3))  # names as people write them
    save_jpg(root / "VGGFace2/train/n000012/0001_01.jpg", portrait(4))
    save_jpg(root / "VGGFace2/train/n000012/0002_01.jpg", Image.new("RGB", (128, 128), "gray"))
    (root / "VGGFace2/train/n000012/0003_01.jpg").write_bytes(b"<html>404 not found</html>")
    save_jpg(root / "VGGFace2/test/n000017/0001_01.jpg", Image.new("RGB", (128, 128), "gray"))
    save_jpg(root / "VGGFace2/test/n000018/0001_01.jpg", portrait(7))  # nobody of ours
    (root / "VGGFace/A.J._Buckley/faces.txt").write_text("1 http://dead.link 1 2 3 4")
    return root


def config(corpus: Path, **kinds: Any) -> VoxCelebConfig:
    values = {
        "voices": [str(corpus / "vox1"), str(corpus / "vox2")],
        "meta": [str(corpus / "vox1_meta.csv"), str(corpus / "vox2_meta.csv")],
        "faces": [str(corpus / "VGGFace"), str(corpus / "VGGFace2")],
        "size": 48,
        "people": {"train": 1.0, "valid": 0.0, "test": 0.0},
        "seen": 0.0,
    }
    return build(VoxCelebConfig, {**values, **kinds}, "the test")


def packed(corpus: Path, out: Path, **kinds: Any) -> Dataset:
    group = config(corpus, **kinds).model_dump(mode="json")
    return pack(build(PackConfig, {"out": str(out), "source": "voxceleb", "voxceleb": group, "workers": 1}, "the test"))


@pytest.fixture(scope="module")
def dataset(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return packed(corpus, tmp_path_factory.mktemp("packed") / "out", photos=2, spare=2)


def test_voices_meet_the_faces_that_the_metadata_names(dataset: Dataset) -> None:
    found = samples(dataset)
    assert sorted(found) == [
        "id00012-21Uxsk56VDQ-00001",
        "id00012-_raOc3-IRsw-00110",
        "id10001-1zcIwhmdeo4-00001",
        "id10001-1zcIwhmdeo4-00002",
        "id10001-1zcIwhmdeo4-00003",
        "id10270-5r0dWxy17C8-00001",
    ]
    folder = {"id00012": "train/n000012/", "id10001": "A.J._Buckley/", "id10270": "eartha kitt/"}
    for key, sample in found.items():
        assert key.startswith(sample.identity)
        assert all(name.startswith(folder[sample.identity]) for name in sample.meta["images"])
        assert sample.photo_count == len(sample.meta["images"]) == {"id10001": 2}.get(sample.identity, 1)
        assert sample.sample_rate == 16000
        assert len(sample.waveform()) >= 16000
        assert sample.photo().shape == (48, 48, 3)
    assert (
        found["id10270-5r0dWxy17C8-00001"].meta.items()
        >= {
            "gender": "f",
            "nationality": "USA",
            "split": "test",
            "source": "voxceleb",
            "audio": "id10270/5r0dWxy17C8/00001",
        }.items()
    )
    assert found["id00012-21Uxsk56VDQ-00001"].meta["gender"] == "m"
    assert {name: split.samples for name, split in dataset.manifest.splits.items()} == {"train": 5, "test": 1}
    assert verify(dataset.root) == []


def test_what_is_lost_is_in_the_yield(dataset: Dataset) -> None:
    lines = map(json.loads, (Path(dataset.root) / "left_out.jsonl").read_text().splitlines())
    left_out = {(line["identity"], line["reason"]): line for line in lines}
    assert left_out.keys() == {
        ("id10001", "audio is empty"),
        ("id10002", "the person has no photos"),
        ("id00012", "the same clip again"),
        ("id00017", "none of its photos can be used"),
        ("id00076", "the person has no clips"),
        ("id09999", "the person is not in the metadata"),
        ("n000018", "the folder is of nobody in the metadata"),
    }
    assert left_out["id10002", "the person has no photos"]["name"] == "id10002 A.R._Rahman"
    assert left_out["id00017", "none of its photos can be used"]["detail"] == "1 x no face was found"
    assert left_out["id00012", "the same clip again"]["name"].endswith("id00012/21Uxsk56VDQ/00001.wav")
    report = json.loads((Path(dataset.root) / "yield.json").read_text())
    assert report["kept"] == {"samples": 6, "people": 3, "splits": {"test": 1, "train": 5}}
    assert report["left_out"]["samples"] == 5
    assert report["rejected_photos"] == {
        "no face was found": 1,
        "photo cannot be decoded": 1,
        "the folder is of nobody in the metadata": 1,
    }
    assert report["people"]["id10001"] == {"kept": 3, "left_out": {"audio is empty": 1}}


def test_photos_are_dealt_in_turn(corpus: Path) -> None:
    """Four photos, four clips: each clip its own; with two a clip each photo is there twice. A spare one follows."""
    for photos in (1, 2):
        items = [item for item in VoxCeleb(config(corpus, photos=photos, spare=1)).plan().items if "10001" in item.key]
        firsts = Counter(photo.name for item in items for photo in item.what.photos[:photos])
        assert list(firsts.values()) == [photos] * 4
        assert all(len({photo.name for photo in item.what.photos}) == photos + 1 for item in items)
    assert max(len(item.what.photos) for item in VoxCeleb(config(corpus, photos=9, spare=9)).plan().items) == 4
    turned = [VoxCeleb(config(corpus, seed=seed)).plan().items for seed in range(6)]
    assert len({tuple(item.what.photos[0].name for item in items if "10001" in item.key) for items in turned}) > 1


def splits(corpus: Path, **kinds: Any) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for item in VoxCeleb(config(corpus, **kinds)).plan().items:
        found.setdefault(item.split, set()).add(item.identity)
    return found


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    """80 people, every fourth of the published test set, with ten empty clips and a photo each."""
    lines = ["VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set "]
    for n in range(80):
        lines.append(f"id{n:05d} ,n{n:06d} ,m ,{'test' if n % 4 == 0 else 'dev'} ")
        for clip in range(10):
            path = tmp_path / f"vox1/id{n:05d}/abcdefghijk/{clip:05d}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (tmp_path / f"VGGFace/n{n:06d}").mkdir(parents=True)
        (tmp_path / f"VGGFace/n{n:06d}/0001_01.jpg").touch()
    (tmp_path / "vox2_meta.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "vox1_meta.csv").write_text(VOX1)
    return tmp_path


def test_the_published_test_people_are_tested_and_the_others_are_dealt(crowd: Path) -> None:
    people = {"train": 0.6, "valid": 0.3, "test": 0.1}
    published = splits(crowd, people=people, seen=0.2)
    assert published["test"] == {f"id{n:05d}" for n in range(0, 80, 4)}
    assert 30 <= len(published["train"]) <= 50  # 40 of 60 are expected
    assert len(published["valid"]) == 60 - len(published["train"])
    assert published["seen"] == published["train"]
    items = VoxCeleb(config(crowd, people=people, seen=0.2)).plan().items
    assert sum(item.split == "seen" for item in items) == 2 * len(published["train"])
    shares = splits(crowd, people=people, splits="shares")
    assert shares["test"] != published["test"]
    assert sum(map(len, shares.values())) == 80
    assert {name: shares[name] for name in ("train", "valid", "test")} == {
        name: splits(crowd, people=people, splits="shares", seen=0.5)[name] for name in ("train", "valid", "test")
    }


def test_another_place_makes_no_other_samples_and_another_file_makes_another_data_set(
    corpus: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(corpus, tmp_path / "elsewhere"))
    here, there = (VoxCeleb(config(root)).plan() for root in (corpus, moved))
    assert here.provenance == there.provenance
    assert [(item.key, item.split, [photo.name for photo in item.what.photos]) for item in here.items] == [
        (item.key, item.split, [photo.name for photo in item.what.photos]) for item in there.items
    ]
    save_jpg(moved / "VGGFace/A.J._Buckley/00000009.jpg", portrait(1))
    assert VoxCeleb(config(moved)).plan().provenance != here.provenance


def test_a_corpus_in_a_store_is_packed_as_the_same_on_a_disk(
    corpus: Path, dataset: Dataset, tmp_path: Path, s3_root: str
) -> None:
    for path in sorted(path for path in corpus.rglob("*") if path.is_file()):
        store.write_bytes(store.join(s3_root, str(path.relative_to(corpus))), path.read_bytes())
    assert store.tree(s3_root) == store.tree(str(corpus))
    lists = {"voices": ["vox1", "vox2"], "meta": ["vox1_meta.csv", "vox2_meta.csv"], "faces": ["VGGFace", "VGGFace2"]}
    remote = {name: [store.join(s3_root, path) for path in paths] for name, paths in lists.items()}
    assert packed(corpus, tmp_path / "out", photos=2, spare=2, **remote).fingerprint == dataset.fingerprint


def test_another_process_can_make_what_was_planned(corpus: Path) -> None:
    converter = VoxCeleb(config(corpus))
    items = converter.plan().items[:1]
    over_there, planned = pickle.loads(pickle.dumps((converter, items)))  # noqa: S301 - our own
    assert pickle.dumps(over_there.make(planned)) == pickle.dumps(converter.make(items))


def test_a_name_that_may_mean_two_people_means_neither(corpus: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(corpus, tmp_path / "elsewhere"))
    (moved / "vox1_meta.csv").write_text(VOX1 + "id10003\tEarthaKitt\tf\tUSA\ttest\n")
    left_out = {each.identity: each.reason for each in VoxCeleb(config(moved)).plan().left_out}
    assert left_out["id10270"] == "the person has no photos"
    (moved / "VGGFace/eartha kitt").rename(moved / "VGGFace/Eartha_Kitt")
    assert "id10270" in {item.identity for item in VoxCeleb(config(moved)).plan().items}


def test_photos_of_your_own_may_lie_under_the_id(corpus: Path, tmp_path: Path) -> None:
    save_jpg(tmp_path / "mine/id10002/me.jpg", portrait(2))
    items = VoxCeleb(config(corpus, faces=[str(tmp_path / "mine")])).plan().items
    assert [item.what.photos[0].name for item in items] == ["id10002/me.jpg"]


def test_without_alignment_the_middle_square_is_taken(corpus: Path, tmp_path: Path) -> None:
    dataset = packed(corpus, tmp_path / "out", align="none", size=128)
    sample = samples(dataset)["id10270-5r0dWxy17C8-00001"]
    assert np.abs(sample.photo().astype(int) - np.asarray(portrait(3), int)).mean() < 3


# ---------------------------------------------------------------------------------------------- metadata


def test_the_metadata_is_read_as_published() -> None:
    first, _, third = read_meta(VOX1.encode(), "vox1_meta.csv", True)
    assert (first.id, first.names, first.tested) == ("id10001", ("A.J._Buckley",), False)
    assert first.known == {"gender": "m", "nationality": "Ireland"}
    assert third.tested
    one, two, _ = read_meta(b"\xef\xbb\xbf" + VOX2.replace("\n", "\r\n").encode(), "vox2_meta.csv", True)
    assert (one.id, one.names, one.tested, one.known) == ("id00012", ("n000012",), False, {"gender": "m"})
    assert two.tested
    full = b"Name, VoxCeleb2 ID, VGGFace2 ID, Gender, Set\nAda L. Byron, id00012, n000012, f, dev\n"
    (person,) = read_meta(full, "full_vox2_meta.csv", True)
    assert person.names == ("n000012", "Ada L. Byron")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not VoxCeleb metadata"),
        ("id,name\n", r"the header must contain VoxCeleb1 ID, VGGFace1 ID \(or 2\) and Set; it is id,name"),
        (VOX1.replace("\tSet", "\tRole"), "the header must contain"),
        (VOX1 + "id1\tx\tm\tUSA\tdev\n", r"line 5 does not describe a person \(id1, x, m, USA, dev\)"),
        (VOX1 + "id10009\tx\n", "line 5 does not describe a person"),
        (VOX1 + "id10009\tx\tm\tUSA\ttrain\n", r"line 5: the set 'train' is neither dev nor test"),
        (VOX1 + "id10001\tx\tm\tUSA\tdev\n", "id10001 is there with other data in another line or file"),
    ],
)
def test_metadata_that_cannot_be_meant_is_refused(corpus: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(V2FError, match=rf"m\.csv: {message}"):
        VoxCeleb(config(corpus, meta=[str(tmp_path / "m.csv")])).plan()


def test_where_nothing_can_be_packed_it_is_said_why(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(V2FError, match=r"no clip idXXXXX/VIDEO/UTT\.wav\|m4a of a person with photos .* was found"):
        VoxCeleb(config(corpus, voices=[str(tmp_path)])).plan()
    with pytest.raises(V2FError, match=r"was found \(5 x the person has no photos, 1 x"):
        VoxCeleb(config(corpus, faces=[str(tmp_path)])).plan()
    with pytest.raises(V2FError, match=r"mtcnn and face are for align 'mtcnn', align is 'none'"):
        config(corpus, align="none", face="only")


# ------------------------------------------------------------------------------------ what lies in the roots


def planned(root: Path, **kinds: Any) -> tuple[list[str], dict[tuple[str, str], tuple[int, int]]]:
    """The clips that are taken; and, by place below ``root`` and reason, samples and photos that are not."""
    plan = VoxCeleb(config(root, **kinds)).plan()
    left_out = {
        (each.name.removeprefix(f"{root}/"), each.reason): (each.samples, each.photos) for each in plan.left_out
    }
    return sorted(item.name for item in plan.items), left_out


@pytest.fixture
def trees(tmp_path: Path) -> Path:
    """Empty files of one person in both trees; nothing of them is read."""
    for name in ("vox1/id10001/abc/00001.wav", "VGGFace/A.J._Buckley/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    for name in ("vox2", "VGGFace2"):
        (tmp_path / name).mkdir()
    (tmp_path / "vox1_meta.csv").write_text(VOX1)
    (tmp_path / "vox2_meta.csv").write_text("VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \n")
    return tmp_path


NOBODY_S = {("id10002 A.R._Rahman", "the person has no clips"), ("id10270 Eartha_Kitt", "the person has no clips")}


def test_every_sound_below_the_roots_is_taken_or_counted(trees: Path) -> None:
    there = ["00002.WAV", "00003.M4a", "00004.Flac", "00001.WAV", "deep/00005.wav", "00006.mp3", "notes.txt"]
    for name in [*(f"vox1/id10001/abc/{name}" for name in there), "vox1/other/1.OGG", "vox1/2.wav"]:
        (trees / name).parent.mkdir(exist_ok=True)
        (trees / name).touch()
    taken, left_out = planned(trees)
    assert taken == [f"id10001/abc/0000{number}" for number in (1, 2, 3, 4)]
    assert {key: count for key, count in left_out.items() if key not in NOBODY_S} == {
        ("vox1/id10001/abc/00001.WAV", "the same clip again"): (1, 0),
        ("vox1/id10001/abc/deep/00005.wav", "it does not lie where clips do"): (1, 0),
        ("vox1/id10001/abc/00006.mp3", "unsupported type of clip"): (1, 0),
        ("vox1/other/1.OGG", "it does not lie where clips do"): (1, 0),
        ("vox1/2.wav", "it does not lie where clips do"): (1, 0),
    }
    identities = {each.name: each.identity for each in VoxCeleb(config(trees)).plan().left_out}
    assert identities[f"{trees}/vox1/id10001/abc/deep/00005.wav"] == "id10001"


def test_every_photo_below_the_roots_is_taken_or_counted(trees: Path) -> None:
    there = [
        "A.J._Buckley/2.JPG",
        "A.J._Buckley/3.heic",
        "A.J._Buckley/list.txt",
        "Nobody/1.jpg",
        "Nobody/2.png",
        "4.jpg",
    ]
    for name in there:
        (trees / "VGGFace" / name).parent.mkdir(exist_ok=True)
        (trees / "VGGFace" / name).touch()
    plan = VoxCeleb(config(trees, photos=9)).plan()
    assert sorted(photo.name for photo in plan.items[0].what.photos) == ["A.J._Buckley/1.jpg", "A.J._Buckley/2.JPG"]
    left_out = {key: count for key, count in planned(trees)[1].items() if key not in NOBODY_S}
    assert left_out == {
        ("VGGFace/A.J._Buckley", "unsupported type of photo"): (0, 1),
        ("VGGFace/Nobody", "the folder is of nobody in the metadata"): (0, 2),
        ("VGGFace", "the folder is of nobody in the metadata"): (0, 1),
    }
    identities = {each.reason: each.identity for each in plan.left_out if each.photos > 0}
    assert identities["unsupported type of photo"] == "id10001"  # so `remove` finds the line


def test_a_link_back_packs_nothing_twice(trees: Path) -> None:
    (trees / "vox1/id10001/again").symlink_to("..")
    (trees / "VGGFace/A.J._Buckley/again").symlink_to(".")
    plan = VoxCeleb(config(trees, photos=9)).plan()
    assert [item.name for item in plan.items] == ["id10001/abc/00001"]
    assert [photo.name for photo in plan.items[0].what.photos] == ["A.J._Buckley/1.jpg"]
    assert {(each.identity, each.reason) for each in plan.left_out} == {
        ("id10002", "the person has no clips"),
        ("id10270", "the person has no clips"),
    }


def test_a_folder_of_photos_has_the_person_s_name_in_any_spelling(trees: Path) -> None:
    spellings = ["Beyonc\u00e9_Knowles", "Beyonce\u0301_Knowles"]
    plans = []
    for meta, folder in ((0, 1), (1, 0), (0, 0)):
        (trees / "vox1_meta.csv").write_text(VOX1.replace("A.J._Buckley", spellings[meta]))
        shutil.rmtree(trees / "VGGFace")
        (trees / "VGGFace" / spellings[folder]).mkdir(parents=True)
        (trees / "VGGFace" / spellings[folder] / "1.jpg").touch()
        plans.append(VoxCeleb(config(trees)).plan())
        assert Path(plans[-1].items[0].what.photos[0].path).exists()
    assert {plan.items[0].what.photos[0].name for plan in plans} == {f"{spellings[0]}/1.jpg"}
    assert len({plan.provenance["files_sha256"] for plan in plans}) == 1


def test_a_file_whose_name_is_no_text_is_left_out_and_named(trees: Path) -> None:
    """Bytes that are not valid UTF-8, as old Windows names are on a Linux disk; in the reports they are escaped."""
    odd = os.fsdecode(b"caf\xe9")
    for name in (f"vox1/{odd}/id10001/abc/00002.wav", f"VGGFace/A.J._Buckley/{odd}.jpg"):
        (trees / name).parent.mkdir(exist_ok=True, parents=True)
        (trees / name).touch()
    taken, left_out = planned(trees)
    assert taken == ["id10001/abc/00001"]
    assert left_out["vox1/caf\\udce9/id10001/abc/00002.wav", "its name is not valid UTF-8"] == (1, 0)
    assert left_out["VGGFace/A.J._Buckley", "its name is not valid UTF-8"] == (0, 1)
    plan = VoxCeleb(config(trees)).plan()
    yields.write_left_out(str(trees), plan.left_out)
    assert yields.read_left_out(str(trees)) == plan.left_out


def test_commas_and_tabs_behind_the_last_field_of_the_metadata_do_not_count() -> None:
    plain = read_meta(VOX1.encode(), "vox1_meta.csv", True)
    assert read_meta(VOX1.replace("\n", "\t\t\n").encode(), "vox1_meta.csv", True) == plain
    assert read_meta(VOX1.replace("dev\n", "dev\t \n").encode(), "vox1_meta.csv", True) == plain
    with pytest.raises(V2FError, match="line 2 does not describe a person"):
        read_meta(VOX1.replace("dev\n", "dev\tx\n").encode(), "vox1_meta.csv", True)


def test_where_there_is_no_clip_at_all_the_first_file_is_named(trees: Path) -> None:
    (trees / "vox1/id10001/abc/00001.wav").rename(trees / "vox1/00001.wav")
    with pytest.raises(V2FError, match=r"1 x it does not lie where clips do") as error:
        VoxCeleb(config(trees)).plan()
    assert "; the first: " in str(error.value)


def test_a_clip_that_is_mended_after_packing_is_named(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.copytree(corpus, tmp_path / "elsewhere"))
    packed(moved, tmp_path / "out", align="none")
    clips = moved / "vox1/dev/wav/id10001/1zcIwhmdeo4"
    shutil.copy(clips / "00001.wav", clips / "00004.wav")
    packed(moved, tmp_path / "out", align="none")
    assert "may be usable now: 1, the first: id10001/1zcIwhmdeo4/00004 (it was left" in capsys.readouterr().out
    shutil.copy(clips / "00001.wav", clips / "00005.wav")
    with pytest.raises(V2FError, match=r"a data set of other inputs is there \(files_sha256 differ\)"):
        packed(moved, tmp_path / "out", align="none")
