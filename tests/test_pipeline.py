"""Four runs as one: a picture, a video or a label becomes a sound, or a clip with its sound; anything else one line."""

import json
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import av
import numpy as np
import pytest
import sounders
import soundfile
import torch
from corpora import write_m4a, write_video
from PIL import Image
from sounders import BOTTOM, NAMES, SECONDS, TOP, ColorLabeler, FewCodes, hertz_of, make_pipeline, picture

import v2f
from v2f.cli import main
from v2f.errors import V2FError
from v2f.generate import generate
from v2f.given import Given, labeled
from v2f.pipeline import Pipeline, SoundOfPicture, opened
from v2f.prepare import video as videos
from v2f.runs.pretrained import digest_of
from v2f.runs.run import Run

FPS = 10


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        sounders.register(patch)
        yield make_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def system(file: str) -> SoundOfPicture:
    return opened(file).system()  # type: ignore[return-value]


Make = Callable[..., Path]


@pytest.fixture
def make(file: str, system: SoundOfPicture, tmp_path: Path) -> Make:
    """Generates a file and gives its path."""

    def write(name: str, **given: Any) -> Path:
        for what, value in given.items():
            if isinstance(value, Path):
                given[what] = str(value)
        generate(Pipeline(file), None, str(tmp_path / name), system=system, **given)
        return tmp_path / name

    return write


def clip(path: Path, colors: list[str], seconds: float = 2.0) -> Path:
    """A silent video that shows each color equally long."""
    frames = round(seconds * FPS)
    shown = [picture(colors[number * len(colors) // frames]) for number in range(frames)]
    write_video(path, None, shown, fps=FPS)
    return path


def tone(path: Path) -> tuple[float, float]:
    """The loudest frequency, and the seconds, of a WAV or of a video's sound."""
    if path.suffix == ".wav":
        wav_T, rate = soundfile.read(path)
        return hertz_of(wav_T, rate), len(wav_T) / rate
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        wav_T = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    return hertz_of(wav_T, rate), len(wav_T) / rate


def packets(path: Path) -> list[tuple[bytes, float]]:
    """The packets of a video's pictures, and how long after the first each is shown."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        found = [packet for packet in container.demux(stream) if packet.size]
        first = min(packet.pts for packet in found)
        return [(bytes(packet), round(float((packet.pts - first) * stream.time_base), 2)) for packet in found]


# --------------------------------------------------------------------------------------------- what it makes


@pytest.mark.parametrize("color", NAMES)
def test_a_photo_has_the_sound_of_what_it_shows(make: Make, tmp_path: Path, color: str, capsys: Any) -> None:
    picture(color).save(tmp_path / "p.png")
    out = make("out.wav", photo=tmp_path / "p.png")
    hertz, seconds = tone(out)
    assert hertz == pytest.approx(sounders.HERTZ[color], abs=3)
    assert seconds == SECONDS
    said = capsys.readouterr().out
    assert said.startswith(f"{out}: a sound made from a photo, not a recording (label {color}, ")
    with soundfile.SoundFile(out) as file:
        notes = json.loads(file.comment)
    assert (notes["Run"], notes["Label"], notes["Seed"]) == ("tones", color, "0")
    assert notes["Step"] == "labels 10, top 11, bottom 12, sound 13"
    assert notes["Title"] == "A sound made from a photo, not a recording"
    assert notes["Disclaimer"] == "Made by a program; not a recording of anything."


def test_a_label_makes_the_sound_that_its_picture_makes_and_another_seed_another(
    make: Make, file: str, system: SoundOfPicture, tmp_path: Path
) -> None:
    picture("green").save(tmp_path / "p.png")
    by_photo, again = (soundfile.read(make("out.wav", photo=tmp_path / "p.png"))[0] for _ in range(2))
    by_label = soundfile.read(make("out.wav", label="green"))[0]
    assert np.array_equal(by_photo, again)
    assert np.array_equal(by_photo, by_label)
    others = [soundfile.read(make("out.wav", label="green", seed=seed))[0] for seed in range(1, 6)]
    assert not all(np.array_equal(by_label, each) for each in others)
    model = v2f.load(file)
    assert np.allclose(model.generate(label="green"), by_label, atol=1e-4)
    assert np.allclose(model.generate(photo=str(tmp_path / "p.png")), by_label, atol=1e-4)


def test_the_seed_and_the_sampling_of_the_file_matter(file: str, tmp_path: Path) -> None:
    folder = Path(file).parent
    drawn = {}
    for name, keys in {"one": {}, "other": {"seed": 8}, "greedy": {"sampling": {"kind": "greedy"}}}.items():
        system = opened(make_pipeline(folder / name, **keys)).system()
        batch = {"label": torch.zeros(40, dtype=torch.int64), "noise": torch.randn(40, TOP + BOTTOM)}
        drawn[name] = system.sample({**batch, "noise": batch["noise"] * 0})["sound"]
        assert len({tuple(each.flatten().tolist()) for each in system.sample(batch)["sound"]}) == (
            1 if name == "greedy" else 4
        )
    assert not torch.equal(drawn["one"], drawn["other"])


def test_a_video_is_labeled_by_most_of_its_frames_spread_evenly(
    make: Make, system: SoundOfPicture, tmp_path: Path
) -> None:
    source = clip(tmp_path / "v.mp4", ["red", "blue", "blue", "green", "green", "green"], 3.0)
    ColorLabeler.looked_at.clear()
    given, shares = labeled(system, Given(video=str(source)))
    (looked_FCHH,) = ColorLabeler.looked_at
    seen = [NAMES[int(top.mean((1, 2)).argmax())] for top in looked_FCHH[:, :, :5]]
    assert seen == ["red", "blue", "blue", "blue", "green", "green", "green", "green", "green"]
    assert given.label == "green"
    assert shares is not None
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=shares.__getitem__) == "green"
    assert tone(make("out.wav", video=source)) == (pytest.approx(500, abs=3), 3.0)


def test_of_two_labels_it_is_the_median(system: SoundOfPicture) -> None:
    for reds in range(10):
        frames = [picture("red")] * reds + [picture("green")] * (9 - reds)
        img_FCHH = torch.stack([torch.from_numpy(np.array(each.resize((16, 16)))).permute(2, 0, 1) for each in frames])
        number, _ = system.label_of(img_FCHH / 127.5 - 1)
        assert number == sorted([0] * reds + [1] * (9 - reds))[4]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_a_clip_gets_its_sound_and_its_pictures_are_copied(make: Make, tmp_path: Path, suffix: str) -> None:
    source = clip(tmp_path / "v.mp4", ["blue"], 2.3)
    FewCodes.rows.clear()
    out = make(f"out{suffix}", video=source)
    assert packets(out) == packets(source)
    hertz, seconds = tone(out)
    assert hertz == pytest.approx(700, abs=3)
    assert seconds == pytest.approx(2.3, abs=0.2)  # AAC pads to whole frames
    assert FewCodes.rows == [8, 8]  # all pieces at once: 0.4 s each, 0.1 s of which overlap
    with av.open(str(out)) as container:
        told = {key.lower(): value for key, value in container.metadata.items()}
    notes = json.loads(told["comment"])
    assert told["title"] == "A sound made from a video, not a recording"
    assert (notes["Run"], notes["Label"]) == ("tones", "blue")


def test_a_webm_stays_one_and_what_an_mp4_cannot_hold_is_one_line(make: Make, tmp_path: Path) -> None:
    source = clip(tmp_path / "v.webm", ["red"])
    out = make("out.webm", video=source)
    assert packets(out) == packets(source)
    assert tone(out)[0] == pytest.approx(300, abs=3)
    with pytest.raises(V2FError, match=r"v\.webm: pictures in the codec .* do not fit into a \.mp4; write a \.mkv"):
        make("out.mp4", video=source)
    assert not (tmp_path / "out.mp4").exists()
    assert packets(make("out.mkv", video=source)) == packets(source)


def test_a_clip_that_has_a_sound_already_gets_another_of_a_label_that_is_given(make: Make, tmp_path: Path) -> None:
    wav = 0.5 * np.sin(2 * np.pi * 1234 * np.arange(96000) / 48000)
    write_video(tmp_path / "v.mp4", wav, [picture("red")] * 20, fps=FPS)
    out = make("out.mp4", video=tmp_path / "v.mp4", label="green")
    assert tone(out)[0] == pytest.approx(500, abs=3)
    with av.open(str(out)) as container:
        assert len(container.streams.audio) == 1
    over = make("v.mp4", video=tmp_path / "v.mp4")  # the file that it is read from
    assert tone(over)[0] == pytest.approx(300, abs=3)


def turned(path: Path, degrees: int) -> Path:
    """``path`` with the rotation that a phone writes into an MP4: by so many degrees clockwise."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44  # version 0: the matrix follows 40 bytes of other fields
    cos, sin = round(np.cos(np.radians(degrees))), round(np.sin(np.radians(degrees)))
    one = 1 << 16
    content[at : at + 36] = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_phone_s_video_is_looked_at_upright_and_stays_rotated(make: Make, tmp_path: Path, degrees: int) -> None:
    upright = picture("green", below="red", size=(64, 48))
    stored = upright.rotate(degrees, expand=True)  # counterclockwise; the player turns it clockwise
    write_video(tmp_path / "v.mp4", None, [stored] * 10, fps=FPS)
    source = turned(tmp_path / "v.mp4", degrees)
    with videos.opened(str(source)) as container:
        (shown,) = videos.pictures(container, [0.5])
    assert shown.size == (64, 48)
    assert np.abs(np.asarray(shown, int) - np.asarray(upright, int)).mean() < 12
    out = make("out.mp4", video=source)
    assert tone(out)[0] == pytest.approx(500, abs=3)
    with av.open(str(source)) as before, av.open(str(out)) as after:
        angles = [next(each.decode(video=0)).rotation for each in (before, after)]
    assert angles[0] == angles[1] != 0


def write_at(path: Path, times: list[float], colors: list[str], **options: str) -> Path:
    """A video of which each picture is shown from a time of its own."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("h264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 48, 48, "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, (time, color) in enumerate(zip(times, colors, strict=True)):
            frame = av.VideoFrame.from_image(picture(color))
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            frame.duration = round(1000 * ([*times, 5.0][number + 1] - time))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_a_video_of_a_variable_frame_rate_is_looked_at_by_time(make: Make, tmp_path: Path) -> None:
    times = [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 4.0]
    source = write_at(tmp_path / "v.mkv", times, ["red"] * 7 + ["blue"] * 2)  # most frames are red, but not for long
    with videos.opened(str(source)) as container:
        lasts = videos.seconds_of(container)
    out = make("out.mkv", video=source)
    assert tone(out)[0] == pytest.approx(700, abs=3)
    assert tone(out)[1] == pytest.approx(lasts, abs=0.2)
    assert packets(out) == packets(source)


def test_a_recording_that_does_not_say_how_long_it_is_is_measured(make: Make, tmp_path: Path) -> None:
    source = write_at(tmp_path / "v.mkv", [0.0, 0.4, 0.8, 1.2], ["blue"] * 4, live="1")
    with av.open(str(source)) as container:
        assert not container.duration
    out = make("out.mkv", video=source)
    assert packets(out) == packets(source)
    assert tone(out)[1] == pytest.approx(1.6, abs=0.5)


def test_pictures_that_begin_late_and_their_sound_begin_together(make: Make, tmp_path: Path) -> None:
    source = write_at(tmp_path / "v.ts", [1.0, 1.5, 2.0, 2.5], ["green"] * 4)  # MPEG-TS begins at 1.4 s besides
    out = make("out.mp4", video=source)
    with av.open(str(out)) as container:
        starts = [float((each.start_time or 0) * each.time_base) for each in container.streams]
    assert starts == pytest.approx([0, 0], abs=0.1)
    assert [content for content, _ in packets(out)] != []


# ------------------------------------------------------------------------------------- what it refuses, in one line


def mute(folder: Path) -> Path:
    write_m4a(folder / "mute.m4a", np.sin(np.arange(16000)).astype(np.float32))
    return folder / "mute.m4a"


def no_frames(folder: Path) -> Path:
    with av.open(str(folder / "none.mkv"), "w") as container:
        stream = container.add_stream("h264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
        container.start_encoding()
    return folder / "none.mkv"


def text(folder: Path) -> Path:
    (folder / "letter.mp4").write_text("Dear all, this is a letter.\n" * 20)
    return folder / "letter.mp4"


def empty(folder: Path) -> Path:
    (folder / "empty.mp4").touch()
    return folder / "empty.mp4"


def three_hours(folder: Path) -> Path:
    return write_at(folder / "long.mkv", [0.0, 3 * 3600.0], ["red", "red"])


def small(folder: Path) -> Path:
    write_video(folder / "small.mp4", None, [Image.new("RGB", (4, 4))] * 5)
    return folder / "small.mp4"


def cut(folder: Path) -> Path:
    whole = clip(folder / "whole.mp4", ["red"]).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    return folder / "cut.mp4"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (mute, "the file has no pictures"),
        (no_frames, "video cannot be decoded|no pictures|there is no picture"),
        (text, "video cannot be decoded"),
        (empty, "video cannot be decoded"),
        (lambda folder: folder, "video cannot be read"),
        (lambda folder: folder / "missing.mp4", "video cannot be read|no such file"),
        (three_hours, r"video is too long \(\d+\.\d s of at most 3600 s\)"),
        (small, r"video is too small \(4 x 4 pixels"),
        (cut, "video cannot be decoded"),
    ],
)
def test_what_is_no_video_is_one_clear_line(
    make: Make, tmp_path: Path, what: Callable[[Path], Path], said: str
) -> None:
    source = what(tmp_path)
    with pytest.raises(V2FError, match=said) as caught:
        make("out.mp4", video=source)
    assert str(caught.value).startswith(f"{source}: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(("side", "said"), [(1, r"photo is too small \(1 x 1 pixels"), (0, "photo cannot be decoded")])
def test_what_is_no_photo_is_one_clear_line(make: Make, tmp_path: Path, side: int, said: str) -> None:
    (tmp_path / "p.png").touch()
    if side:
        Image.new("RGB", (side, side)).save(tmp_path / "p.png")
    with pytest.raises(V2FError, match=said) as caught:
        make("out.wav", photo=tmp_path / "p.png")
    assert str(caught.value).startswith(f"{tmp_path / 'p.png'}: ")


@pytest.mark.parametrize(
    ("given", "name", "said"),
    [
        ({}, "out.wav", r"asks for a photo, a video or a label \(red, green, blue\): give one of them"),
        ({"label": "cow"}, "out.wav", "there is no label 'cow'; there are red, green, blue"),
        ({"label": "red", "photo": "p.png"}, "out.wav", "a photo and a label are given; give one of the two"),
        ({"photo": "p.png", "video": "v.mp4"}, "out.wav", "a photo and a video are given; give one of the two"),
        ({"label": "red"}, "out.mp4", r"no video is given to put the sound under; name the output something\.wav"),
        ({"label": "red"}, "out.png", r"makes sound; name the output something\.wav"),
        ({"label": "red", "size": 64}, "out.wav", "one output size only"),
    ],
)
def test_inputs_that_do_not_go_together_are_one_clear_line(
    make: Make, given: dict[str, Any], name: str, said: str
) -> None:
    with pytest.raises(V2FError, match=said):
        make(name, **given)


def test_a_diverged_run_makes_no_sound(tmp_path: Path, file: str) -> None:
    broken = make_pipeline(tmp_path, {"top": {"broken": True}})
    with pytest.raises(V2FError, match="diverged"):
        generate(opened(broken), None, str(tmp_path / "out.wav"), label="red")


@pytest.mark.parametrize(
    ("changes", "keys", "said"),
    [
        (
            {"labels": {"name": "tone_coder"}},
            {},
            r"labels: .*its system tone_coder does not label pictures; name",
        ),
        ({"top": {"name": "color_labeler"}}, {}, r"top: .*its system color_labeler does not draw codes"),
        ({"sound": {"name": "color_labeler"}}, {}, r"sound: .*does not turn codes into sound"),
        (
            {"labels": {"names": ["red", "cow"]}},
            {},
            r"labels: .* finds the label 'cow', which .*a-top does not know",
        ),
        (
            {"top": {"length": 6}},
            {},
            r"top: .*a-top draws 6 codes of a vocabulary of 16, but .*a-sound decodes 5",
        ),
        ({"bottom": {"vocabulary": 32}}, {}, r"bottom: .* expects 5 codes of a vocabulary of 32, but .*a-top draws 5 "),
        ({"top": {"above": 5}}, {}, r"top: .*a-top draws codes from codes; name a run that draws them from a label"),
        ({"bottom": {"above": 0}}, {}, r"bottom: .*a-bottom draws codes from a label; name a run .* from top codes"),
        ({}, {"top": None}, r"top: the key is missing; the sounds of .*a-sound have top codes as well"),
        ({"sound": {"flat": True}}, {}, r"top: the sounds of .*a-sound have no top codes; remove the key"),
        ({}, {"labels": "gone"}, r"labels: gone: no run there"),
        ({}, {"labels": None}, r"the key 'labels' is missing"),
        ({}, {"lables": "x"}, r"unknown key 'lables'; did you mean 'labels'\?"),
        ({}, {"sampling": {"kind": "top"}}, r"sampling\.kind: "),
        ({}, {"frames": 0}, r"frames: "),
    ],
)
def test_runs_that_do_not_fit_are_one_line_that_names_the_file_and_the_key(
    file: str, tmp_path: Path, changes: dict[str, Any], keys: dict[str, Any], said: str
) -> None:
    path = make_pipeline(tmp_path, changes, **keys)
    with pytest.raises(V2FError, match=said) as caught:
        opened(path).system()
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it holds no keys"),
        (b"- a\n- b\n", "it holds no keys"),
        (b"\xff\xfe\x00", "not a UTF-8 text"),
        (b"labels: [", "not valid YAML"),
    ],
)
def test_what_is_no_pipeline_file_is_one_line(tmp_path: Path, content: bytes, said: str, capsys: Any) -> None:
    (tmp_path / "p.yaml").write_bytes(content)
    assert main(["generate", str(tmp_path / "p.yaml"), "--label", "red", "-o", str(tmp_path / "out.wav")]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert f"{tmp_path / 'p.yaml'}: " in error
    assert error.count("\n") == 1


def test_a_run_that_was_trained_on_codes_of_another_coder_is_refused(file: str, monkeypatch: Any) -> None:
    """Where its shards are at hand: else the numbers would fit, and the sound would be noise."""
    codes = {"tokens": {"sha256": "0" * 64}}
    monkeypatch.setattr("v2f.pipeline.read_manifest", lambda data: Mock(provenance={"precomputed": codes}))
    with pytest.raises(V2FError, match=r"top: .*a-top was trained on the codes in nowhere, which are not"):
        opened(file).system()
    codes["tokens"]["sha256"] = digest_of(Pipeline(file).runs["sound"].system())  # type: ignore[arg-type]
    assert opened(file).system().makes().keys() == {"sound"}


def test_a_flat_coder_needs_one_drawer(file: str, tmp_path: Path) -> None:
    flat = {"sound": {"flat": True}, "bottom": {"above": 0, "length": BOTTOM}}
    path = make_pipeline(tmp_path, flat, top=None)
    generate(opened(path), None, str(tmp_path / "out.wav"), label="blue")
    assert tone(tmp_path / "out.wav")[0] == pytest.approx(700, abs=3)


def test_a_folder_is_a_run_and_a_pipeline_has_no_checkpoint_to_choose(file: str) -> None:
    assert isinstance(opened(str(Path(file).parent / "a-top")), Run)
    with pytest.raises(V2FError, match="a pipeline uses the newest checkpoint of each run"):
        opened(file).system(which="best")
    with pytest.raises(V2FError, match="no such file"):
        opened(file.replace("tones", "nowhere")).system()
