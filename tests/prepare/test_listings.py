"""The lists of VGG-Sound and ESC-50, on tiny corpora in their layouts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from corpora import samples, write_video
from PIL import Image

from v2f.data.loader import read_split
from v2f.data.transforms import ClassNumber, Photo, Waveform, bound
from v2f.errors import V2FError
from v2f.prepare import listings
from v2f.prepare.pack import PackConfig, load_recipe, pack
from v2f.prepare.splits import Shares

SHARDS = Path(__file__).parents[2] / "shards"


def recipe(name: str, out: Path, **group: Any) -> PackConfig:
    keys = [f"folder.{key}={value}" for key, value in group.items()]
    return load_recipe(str(SHARDS / f"{name}.yaml"), [f"out={out}", "workers=1", "folder.loudness=null", *keys])


def tone(hz: float, seconds: float, rate: int) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture
def esc50(tmp_path: Path) -> Path:
    root = tmp_path / "ESC-50"
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target, category in ((0, "dog"), (5, "cat"), (20, "crying_baby")):
            name = f"{fold}-1000{target}-A-{target}.wav"
            soundfile.write(root / "audio" / name, tone(200 + 50 * target, 1.0, 44_100), 44_100)
            lines.append(f"{name},{fold},{target},{category},{target == 0},1000{fold}{target},A")
    (root / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    return root


def test_esc50_is_packed_by_its_own_list(esc50: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = pack(recipe("esc50", tmp_path / "out", root=esc50, csv=esc50 / "meta" / "esc50.csv"))
    assert dataset.manifest.provenance["classes"] == {"label": ["cat", "dog"]}
    assert {name: split.samples for name, split in dataset.manifest.splits.items()} == {
        "train": 6,
        "valid": 2,
        "test": 2,
    }
    assert "its class is not in `classes`" in capsys.readouterr().out
    reads = bound({"wav": Waveform(0.5, 4000), "label": ClassNumber()}, [dataset])
    (batch,) = read_split(dataset.split("test"), reads, 4)
    for wav_T, label in zip(batch["wav"].numpy(), batch["label"].tolist(), strict=True):
        hz = np.abs(np.fft.rfft(wav_T)).argmax() * 2
        assert abs(hz - (450, 200)[label]) <= 2
    tested = [sample.meta for sample in samples(dataset).values() if sample.meta["split"] == "test"]
    assert [meta["fold"] for meta in tested] == ["5", "5"]
    assert {meta["identity"] for meta in tested} == {"100050", "100055"}


def test_vgg_sound_is_packed_with_the_frames_and_the_sound_of_its_clips(tmp_path: Path) -> None:
    root, lines = tmp_path / "vggsound", []
    for number, (video, start, label, split) in enumerate(
        [
            ("--abc_1", 30, "dog barking", "train"),
            ("-x-Y_2", 0, "cat meowing", "train"),
            ("zz9", 110, "dog barking", "test"),
            ("zz8", 7, "cat meowing", "test"),
            ("zz7", 7, "people marching", "test"),
            ("gone", 1, "dog barking", "test"),
        ]
    ):
        lines.append(f'"{video}",{start},{label},{split}')
        if video != "gone":
            level = 40 + 50 * number
            frames = [Image.new("RGB", (64, 48), (level, level // 2, 255 - level - at // 2)) for at in range(25)]
            name = f"{video}_{start:06d}" if number % 2 else f"{video}_{start}"
            write_video(root / "clips" / f"{name}.mp4", tone(300 + 100 * number, 1.0, 16_000), frames, rate=16_000)
    (root / "vggsound.csv").write_text("\n".join(lines) + "\n")
    few = {"root": root, "csv": root / "vggsound.csv", "size": 48, "frames": 2, "photo": "png", "min_seconds": 0.5}
    dataset = pack(recipe("vgg-sound", tmp_path / "out", **few))
    assert dataset.manifest.provenance["classes"] == {"label": ["cat meowing", "dog barking"]}
    assert {name: split.samples for name, split in dataset.manifest.splits.items()} == {"train": 2, "test": 2}
    assert (tmp_path / "out" / "left_out.jsonl").read_text().count("file is missing") == 1
    reads = bound({"wav": Waveform(0.5, 4000), "image": Photo(48), "label": ClassNumber()}, [dataset])
    (batch,) = read_split(dataset.split("test"), reads, 4)
    for row, key in enumerate(batch["key"]):
        number = 2 if "zz9" in key else 3
        assert batch["label"][row] == (0, 1)[number == 2]
        assert abs(np.abs(np.fft.rfft(batch["wav"][row].numpy())).argmax() * 2 - (300 + 100 * number)) <= 4
        assert abs(float(batch["image"][row, 0].float().mean()) - (40 + 50 * number)) < 6
    there = samples(dataset).values()
    assert {sample.photo_count for sample in there} == {2}
    assert {sample.identity for sample in there} == {"--abc_1", "-x-Y_2", "zz9", "zz8"}


def test_of_vgg_sound_a_share_of_the_training_videos_is_valid_and_no_video_is_in_two_splits() -> None:
    lines = [f"v{number},10,barking,train" for number in range(400)] + ["v3,50,barking,test", "w,x,barking,test"]
    shares = Shares(train=0.8, valid=0.2, test=0.0)
    rows, left_out, header = listings.vgg_sound("\n".join(lines).encode(), "list.csv", {"v5_000010"}, shares, 0)
    split = [row["split"] for _, row in rows]
    assert 50 < split.count("valid") < 110
    assert [row["identity"] for _, row in rows if row["split"] == "test"] == ["v3"]
    assert [each.reason for each in left_out] == [
        "its start is not a whole number",
        "its video is in the test set, too",
    ]
    assert header[0] == "file"
    assert rows[4][1]["file"] == "v5_000010"


def test_a_list_of_another_kind_is_one_clear_line(esc50: Path, tmp_path: Path) -> None:
    listed = esc50 / "meta" / "esc50.csv"
    for name, group, told in (
        ("vgg-sound", {}, "line 1 is not YOUTUBE_ID,START,LABEL,train|test as in VGG-Sound's list"),
        (
            "esc50",
            {"folds": "{valid: [], test: [9]}"},
            "no row is of fold 9, which folds holds out; it has 1, 2, 3, 4, 5",
        ),
        ("esc50", {"folds": "{valid: [5], test: [5]}"}, "valid and test share a fold"),
        ("esc50", {"csv": "null"}, "layout is esc50: name the corpus's list in csv"),
        ("folder", {"layout": "v2f"}, "the header must be file"),
    ):
        with pytest.raises(V2FError, match=told.replace("|", r"\|")):
            pack(recipe(name, tmp_path / "out", **{"root": esc50, "csv": listed, **group}))
    (tmp_path / "other.csv").write_text("filename,category\na.wav,dog\n")
    with pytest.raises(V2FError, match="it has no column 'fold', which ESC-50's list has"):
        pack(recipe("esc50", tmp_path / "out", root=esc50, csv=tmp_path / "other.csv"))
