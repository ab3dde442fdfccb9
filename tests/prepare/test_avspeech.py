"""AVSpeech as it lies on a disk: the published CSV, and those of its videos that could be had."""

import json
import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import portrait, samples, voice, write_video
from PIL import Image

from v2f.config import build
from v2f.data.audio import UnusableError
from v2f.data.manifest import Dataset
from v2f.data.sample import Sample
from v2f.errors import V2FError
from v2f.prepare.avspeech import AVSpeech, AVSpeechConfig, download_video
from v2f.prepare.pack import PackConfig, pack
from v2f.prepare.verify import verify

WIDTH, HEIGHT, FPS = 480, 270, 5
LEFT, RIGHT = (0.25, 0.4), (0.75, 0.6)  # the middles of two faces
TALK, WEB, MUTE, BROKEN, GONE = "TalkTalk-01", "Webm_Webm02", "MuteMuteM03", "BrokenBro04", "GoneGoneG05"


def stage(*faces: tuple[int, tuple[float, float]]) -> Image.Image:
    """A picture with the faces of some people at some points."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "gray")
    for person, (x, y) in faces:
        face = portrait(person).resize((140, 140))
        picture.paste(face, (round(x * WIDTH) - 70, round(y * HEIGHT) - 70))
    return picture


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos of six seconds. In the first, person 1 stands at the left and 2 at the right, and after three
    seconds they change places; one is mute, one is broken, one could not be had."""
    root = tmp_path_factory.mktemp("avspeech")
    wav = np.repeat(np.concatenate([voice(1, 3.0), 0.25 * voice(2, 3.0)]), 3)
    before, after = stage((1, LEFT), (2, RIGHT)), stage((2, LEFT), (1, RIGHT))
    write_video(root / f"videos/{TALK}.mp4", wav, [before] * 3 * FPS + [after] * 3 * FPS, FPS)
    write_video(root / f"videos/{WEB}.webm", wav, [stage((3, LEFT))] * 6 * FPS, FPS)
    write_video(root / f"videos/{MUTE}.mkv", None, [stage((4, LEFT))] * 6 * FPS, FPS)
    (root / f"videos/{BROKEN}.mp4").write_bytes(b"moov" * 100)
    (root / "videos/notes.txt").write_text("mine")
    (root / "train.csv").write_text(
        f"{TALK},0.500000,2.500000,{LEFT[0]:.6f},{LEFT[1]:.6f}\n"
        f"{TALK},0.500000,2.400000,{RIGHT[0]:.6f},{RIGHT[1]:.6f}\n"
        f"{TALK},3.2,5.2,{LEFT[0]},{LEFT[1]}\n"
        f"{TALK},3.2,5.2,{LEFT[0]},{LEFT[1]}\n"
        f"{TALK},1.0,3.0,0.5,0.99\n"
        f"{TALK},5.0,8.0,{LEFT[0]},{LEFT[1]}\n"
        f"{MUTE},0.0,3.0,{LEFT[0]},{LEFT[1]}\n"
        f"{BROKEN},0.0,3.0,{LEFT[0]},{LEFT[1]}\n"
        f"{GONE},0.0,3.0,0.5,0.5\n"
        f"{GONE},7.0,9.0,0.5,0.5\n"
        f"{TALK},4.0,3.0,0.5,0.5\n"
        f"{TALK},0.0,3.0,250,120\n"
        "https://youtu.be/x,0.0,3.0,0.5,0.5\n"
        "\n"
    )
    (root / "test.csv").write_text(f"{WEB},1.0,4.0,{LEFT[0]},{LEFT[1]}\n")
    return root


def config(corpus: Path, **kinds: Any) -> AVSpeechConfig:
    values = {
        "train_csv": str(corpus / "train.csv"),
        "test_csv": str(corpus / "test.csv"),
        "videos": str(corpus / "videos"),
        "size": 64,
        "people": {"train": 1.0, "valid": 0.0, "test": 0.0},
    }
    return build(AVSpeechConfig, {**values, **kinds}, "the test")


def packed(corpus: Path, out: Path, **kinds: Any) -> Dataset:
    group = config(corpus, **kinds).model_dump(mode="json")
    return pack(build(PackConfig, {"out": str(out), "source": "avspeech", "avspeech": group, "workers": 1}, "the test"))


@pytest.fixture(scope="module")
def dataset(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return packed(corpus, tmp_path_factory.mktemp("packed") / "out")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> dict[int, np.ndarray]:
    """What alignment makes of each person alone."""
    from v2f.prepare.align import align_face, find_faces

    made = {}
    for person in (1, 2, 3):
        picture = stage((person, LEFT))
        made[person] = align_face(picture, find_faces(picture, 0.9)[0].landmarks, 64, 16).astype(float)
    return made


def who(photo: np.ndarray, faces: dict[int, np.ndarray]) -> int:
    distance = {person: np.abs(face - photo)[8:-8, 8:-8].mean() for person, face in faces.items()}
    best, second, *_ = sorted(distance, key=lambda person: distance[person])
    assert distance[best] < min(20.0, 0.8 * distance[second])
    return best


def key(video: str, start: float, end: float) -> str:
    return f"av-{video}-{round(start * 1000):08d}-{round(end * 1000):08d}"


def test_a_segment_is_the_sound_and_the_face_at_its_point_when_it_starts(
    dataset: Dataset, faces: dict[int, np.ndarray]
) -> None:
    found = samples(dataset)
    expected = {
        key(TALK, 0.5, 2.5): (1, 2.0, voice(1, 3.0)[8000:40000]),
        key(TALK, 0.5, 2.4): (2, 1.9, voice(1, 3.0)[8000:38400]),
        key(TALK, 3.2, 5.2): (2, 2.0, 0.25 * voice(2, 3.0)[3200:35200]),
        key(WEB, 1.0, 4.0): (3, 3.0, np.concatenate([voice(1, 3.0)[16000:], 0.25 * voice(2, 3.0)[:16000]])),
    }
    assert found.keys() == expected.keys()
    for name, (person, seconds, said) in expected.items():
        sample = found[name]
        assert who(sample.photo(), faces) == person
        wav = sample.waveform()
        assert len(wav) == round(seconds * 16000)
        # a codec keeps the loud parts; where they are tells whether the cut is right
        loud, meant = (np.abs(part).reshape(-1, 160).max(axis=1) for part in (wav, said))
        assert np.corrcoef(loud, meant)[0, 1] > 0.9
        assert np.abs(wav).max() == pytest.approx(np.abs(said).max(), rel=0.35)
    assert {name: split.samples for name, split in dataset.manifest.splits.items()} == {"train": 3, "test": 1}
    assert dataset.manifest.identities == [TALK, WEB]
    meta = found[key(WEB, 1.0, 4.0)].meta
    assert meta.items() >= {"video": WEB, "start": 1.0, "end": 4.0, "x": 0.25, "y": 0.4, "source": "avspeech"}.items()
    assert verify(dataset.root) == []


def test_what_is_lost_is_in_the_yield(corpus: Path, dataset: Dataset) -> None:
    lines = map(json.loads, (Path(dataset.root) / "left_out.jsonl").read_text().splitlines())
    left_out = {(line["name"], line["reason"]): line for line in lines}
    csv = corpus / "train.csv"
    assert left_out.keys() == {
        (f"{TALK} 3.20-5.20 s", "the same segment again"),
        (f"{TALK} 1.00-3.00 s", "no face was found"),
        (f"{TALK} 5.00-8.00 s", "the sound ends before the segment does"),
        (f"{MUTE} 0.00-3.00 s", "audio cannot be decoded"),
        (f"{BROKEN} 0.00-3.00 s", "video cannot be decoded"),
        (GONE, "video is missing"),
        (f"line 11 of {csv}", "the row does not describe a segment"),
        (f"line 12 of {csv}", "the row does not describe a segment"),
        (f"line 13 of {csv}", "the row does not describe a segment"),
    }
    assert left_out[GONE, "video is missing"]["samples"] == 2
    report = json.loads((Path(dataset.root) / "yield.json").read_text())
    assert report["kept"]["samples"] == 4
    assert report["left_out"]["samples"] == 10
    assert report["people"][TALK]["kept"] == 3


def test_several_photos_follow_the_face(corpus: Path, tmp_path: Path, faces: dict[int, np.ndarray]) -> None:
    """At 0, 1, 2 s of the first, and where the two change places, that is the place; a face that is lost is counted."""
    moved = Path(shutil.copytree(corpus, tmp_path / "elsewhere"))
    (moved / "train.csv").write_text(f"{TALK},2.0,5.0,{LEFT[0]},{LEFT[1]}\n")
    pictures = [stage((3, LEFT))] * 3 * FPS + [stage()] * 3 * FPS
    write_video(moved / f"videos/{WEB}.mp4", np.repeat(voice(3, 6.0), 3), pictures, FPS)
    dataset = packed(moved, tmp_path / "out", photos=3)
    found = samples(dataset)
    talk, web = found[key(TALK, 2.0, 5.0)], found[key(WEB, 1.0, 4.0)]
    assert [who(talk.photo(n), faces) for n in range(talk.photo_count)] == [1, 2, 2]
    assert web.photo_count == 2
    report = json.loads((Path(dataset.root) / "yield.json").read_text())
    assert report["rejected_photos"] == {"no face was found": 1}


def test_a_face_that_moves_is_followed(corpus: Path, tmp_path: Path, faces: dict[int, np.ndarray]) -> None:
    """To the right, while somebody else comes to where it was."""
    moved = Path(shutil.copytree(corpus, tmp_path / "elsewhere"))
    (moved / "train.csv").write_text(f"{TALK},0.0,6.0,{LEFT[0]},{LEFT[1]}\n")
    (moved / "test.csv").write_text("")
    scenes = [stage((1, LEFT)), stage((1, (0.42, 0.4))), stage((1, (0.59, 0.4)), (2, LEFT))]
    write_video(moved / f"videos/{TALK}.mp4", np.repeat(voice(1, 6.0), 3), sorted(scenes * 10, key=scenes.index), FPS)
    (sample,) = samples(packed(moved, tmp_path / "out", photos=3, box=1.6)).values()
    assert [who(sample.photo(n), faces) for n in range(sample.photo_count)] == [1, 1, 1]


def test_without_alignment_the_box_is_taken(corpus: Path, tmp_path: Path) -> None:
    dataset = packed(corpus, tmp_path / "out", align="none", box=140 / HEIGHT, size=140)
    photo = samples(dataset)[key(TALK, 0.5, 2.5)].photo().astype(float)
    assert np.abs(photo - np.asarray(portrait(1).resize((140, 140)))).mean() < 6


def test_splits_come_from_the_files_or_from_shares(corpus: Path, tmp_path: Path) -> None:
    names = [f"{n:011d}" for n in range(100)]
    (tmp_path / "videos").mkdir()
    for name in names:
        (tmp_path / f"videos/{name}.mp4").touch()
    for file, some in (("train", names[:80]), ("test", names[80:])):
        rows = [f"{name},{start}.0,{start + 3}.0,0.5,0.5\n" for name in some for start in range(4)]
        (tmp_path / f"{file}.csv").write_text("".join(rows))
    people = {"train": 0.6, "valid": 0.2, "test": 0.2}

    def split_of(**kinds: Any) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for item in AVSpeech(config(tmp_path, people=people, **kinds)).plan().items:
            found.setdefault(item.split, set()).add(item.identity)
        return found

    files = split_of()
    assert files["test"] == set(names[80:])
    assert files["train"] | files["valid"] == set(names[:80])
    assert 50 <= len(files["train"]) <= 70  # 60 are expected
    shares = split_of(test_csv=None, seen=0.25)
    assert 8 <= len(shares["test"]) <= 24  # 16 are expected
    assert shares["seen"] == shares["train"]
    assert not shares["test"] & shares["train"]
    (tmp_path / "test.csv").write_text(f"{names[0]},0.0,3.0,0.5,0.5\n")
    with pytest.raises(V2FError, match=rf"the video {names[0]} is in .*test\.csv, too; splits are by person"):
        split_of()


@pytest.mark.parametrize(
    ("files", "kinds", "message"),
    [
        ({"videos": None}, {}, r"no video VIDEO\.mp4, \.mkv or \.webm is there, and avspeech\.download is false"),
        ({"train.csv": b"\xff\xfe"}, {}, r"train\.csv: this is not a CSV file in UTF-8"),
        ({"train.csv": b"", "test.csv": b""}, {}, r"none of its segments can be used \(it is empty\)"),
        (
            {"train.csv": b"id,start\n", "test.csv": b""},
            {},
            r"can be used \(1 x the row does not describe a segment; the first: line 1 of .*train\.csv: "
            r".*\(id,start\)\)",
        ),
        ({}, {"download": True}, "avspeech.download: there is no yt-dlp here"),
        ({}, {"download": True, "videos": "s3://b/v"}, "download needs a local folder for videos, not s3://b/v"),
        (
            {},
            {"align": "none", "mtcnn": "w"},
            "mtcnn is set, but align is 'none'; set align to 'mtcnn' or remove mtcnn",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, Any],
    kinds: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    moved = Path(shutil.copytree(corpus, tmp_path / "elsewhere"))
    for name, content in files.items():
        (moved / name).write_bytes(content) if content is not None else shutil.rmtree(moved / name)
    with pytest.raises(V2FError, match=message):
        AVSpeech(config(moved, **kinds)).plan()


def test_every_video_below_the_folder_is_taken_or_counted(tmp_path: Path) -> None:
    names = [f"{letter * 11}" for letter in "abcdefg"]
    files = [
        f"{names[0]}.MP4",
        f"{names[1]}.mkv",
        f"part/{names[2]}.WebM",
        f"deep/er/{names[1]}.mp4",
        f"{names[3]}.AVI",
    ]
    files += [f"{names[5]}.mp4", f"{names[6]}.mp4", "my holidays.mp4", "notes.txt", f"{names[4]}.mp4.part"]
    for file in files:
        (tmp_path / "videos" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / file).touch()
    (tmp_path / "videos/part/again").symlink_to("..")
    (tmp_path / "train.csv").write_text("".join(f"{name},0.0,3.0,0.5,0.5,,\n" for name in names[:5]))
    plan = AVSpeech(config(tmp_path, test_csv=None)).plan()
    assert [item.identity for item in plan.items] == names[:3]
    place = f"{tmp_path}/videos"
    assert {(each.name, each.reason, each.samples, each.detail) for each in plan.left_out} == {
        (names[3], "video is missing", 1, "1 segments"),
        (names[4], "video is missing", 1, "1 segments"),
        (f"{place}/{names[3]}.AVI", "unsupported type of video", 0, "use mp4, mkv or webm"),
        (f"{place}/my holidays.mp4", "its name is not VIDEO.mp4", 0, ""),
        (f"{place}/deep/er/{names[1]}.mp4", "the same video again", 0, f"as {place}/{names[1]}.mkv"),
        (place, "no row names the video", 0, f"2 videos, the first: {place}/{names[5]}.mp4"),
    }


def test_a_video_that_is_mended_after_packing_is_named(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.copytree(corpus, tmp_path / "elsewhere"))
    packed(moved, tmp_path / "out", align="none")
    shutil.copy(moved / f"videos/{TALK}.mp4", moved / f"videos/{BROKEN}.mp4")
    packed(moved, tmp_path / "out", align="none")
    assert f"may be usable now: 1, the first: {BROKEN} 0.00-3.00 s (it was left out" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------- fetch

YT_DLP = """#!/bin/sh
# Understands what is asked of yt-dlp as far as it is asked here: notes it, and has one video.
printf '%s\\n' "$*" >> "{root}/asked"
while [ $# -gt 1 ]; do [ "$1" = --paths ] && folder=$2; shift; done
case "$1" in
*watch?v={name}) cp "{root}/remote.mkv" "$folder/{name}.mkv" ;;
*) echo "WARNING: trying" >&2; echo "ERROR: [youtube] Video unavailable" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def youtube(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A yt-dlp that has the webm's video, as an mkv; what it was asked stands in the file ``asked``."""
    write_video(tmp_path / "remote.mkv", np.repeat(voice(3, 6.0), 3), [stage((3, LEFT))] * 6 * FPS, FPS)
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin/yt-dlp"
    script.write_text(YT_DLP.format(root=tmp_path, name=WEB))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def asked(youtube: Path) -> list[str]:
    return (youtube / "asked").read_text().splitlines() if (youtube / "asked").exists() else []


def test_missing_videos_are_fetched_where_the_recipe_says_so(
    corpus: Path, youtube: Path, faces: dict[int, np.ndarray]
) -> None:
    root = youtube / "corpus"
    root.mkdir()
    shutil.copy(corpus / "test.csv", root)
    (root / "train.csv").write_text(f"{GONE},0.0,3.0,0.5,0.5\n{GONE},4.0,6.0,0.5,0.5\n")
    dataset = packed(root, youtube / "out", download=True, format="b")
    found: dict[str, Sample] = samples(dataset)
    assert list(found) == [key(WEB, 1.0, 4.0)]
    assert who(found[key(WEB, 1.0, 4.0)].photo(), faces) == 3
    lines = [json.loads(line) for line in (youtube / "out/left_out.jsonl").read_text().splitlines()]
    assert {(line["reason"], line["detail"]) for line in lines} == {
        ("video cannot be fetched", "ERROR: [youtube] Video unavailable")
    }
    assert len(lines) == 2
    assert len(asked(youtube)) == 2  # one video that is there, and one that is not, for which once is enough
    assert all("--format b " in line and "-- https://www.youtube.com/watch?v=" in line for line in asked(youtube))
    again = packed(root, youtube / "again", download=True, format="b")
    assert again.fingerprint == dataset.fingerprint
    assert len(asked(youtube)) == 2


def test_processes_that_want_the_same_video_fetch_it_once(youtube: Path) -> None:
    folder = str(youtube / "videos")
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: download_video(folder, WEB, "b"), range(8)))
    assert paths == {f"{folder}/{WEB}.mkv"}
    assert len(asked(youtube)) == 1
    with pytest.raises(UnusableError, match="video cannot be fetched"):
        download_video(folder, GONE, "b")
    (Path(folder) / f"{GONE}.gone").unlink()
    with pytest.raises(UnusableError, match="video cannot be fetched"):
        download_video(folder, GONE, "b")
    assert len(asked(youtube)) == 3


def test_without_the_recipe_s_word_nothing_is_fetched(corpus: Path, youtube: Path) -> None:
    AVSpeech(config(corpus)).plan()
    packed(corpus, youtube / "out")
    assert asked(youtube) == []
