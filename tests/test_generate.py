"""An audio file becomes a PNG that says what it is; anything else gives a one-line error and no file."""

import datetime
import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import av
import corpora
import numpy as np
import pytest
import soundfile
import torch
from fakes import RATE, SECONDS, FakeSystem, level, make_run, portrait, register
from PIL import Image
from torch import Tensor

from v2f.data.media import png
from v2f.errors import V2FError
from v2f.generate import generate, windows
from v2f.runs.run import Run
from v2f.system import Styled

Made = tuple[Run, FakeSystem]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    register(monkeypatch)
    return make_run(tmp_path / "run", tmp_path / "data")


def voice(path: Path, person: int, seconds: float, rate: int = RATE, channels: int = 1) -> str:
    soundfile.write(path, np.full((round(seconds * rate), channels), level(person), np.float32), rate)
    return str(path)


@pytest.mark.parametrize("seconds", [SECONDS, 0.3, 2.3])
@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_face_of_a_clip_of_any_length_and_kind(made: Made, tmp_path: Path, kind: str, seconds: float) -> None:
    out = tmp_path / "face.png"
    generate(made[0], voice(tmp_path / f"v.{kind}", 5, seconds), str(out), system=made[1])
    assert np.array_equal(np.asarray(Image.open(out)), portrait(5))


def test_channels_are_mixed_and_the_rate_is_converted(made: Made, tmp_path: Path) -> None:
    sound = np.stack([np.full(48000, 2 * level(7)), np.zeros(48000)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", sound, 48000)
    generate(made[0], str(tmp_path / "stereo.wav"), str(tmp_path / "face.png"), system=made[1])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "face.png")), portrait(7))


def test_sound_of_a_video_file_is_heard(tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "voice.m4a"  # AAC, which libsndfile does not read
    tone = 0.5 * np.sin(2 * np.pi * 200 * np.arange(16000) / 16000).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    heard: list[Tensor] = []
    sample = FakeSystem.sample
    monkeypatch.setattr(FakeSystem, "sample", lambda self, batch: heard.append(batch["wav"]) or sample(self, batch))
    generate(made[0], str(path), str(tmp_path / "face.png"), system=made[1])
    assert heard[0].shape == (1, round(SECONDS * RATE))
    assert np.abs(np.fft.rfft(heard[0][0].numpy())).argmax() / SECONDS == 200  # Hz, at the system's own sample rate
    assert float(heard[0].square().mean().sqrt()) == pytest.approx(0.5 / 2**0.5, rel=0.1)


def test_codes_of_a_long_clip_are_averaged_without_its_pauses(made: Made, tmp_path: Path) -> None:
    class Coded(FakeSystem, Styled):
        def styles(self, batch: dict[str, Any]) -> Tensor:
            return batch["wav"].mean(1)[:, None, None]

        def face(self, w_BLD: Tensor, size: int | None = None) -> Tensor:
            return w_BLD[..., None].expand(len(w_BLD), 3, 2, 2)

    system = Coded(FakeSystem.Config())
    speech, pause = np.full(RATE, 0.4, np.float32), np.zeros(4 * RATE, np.float32)
    soundfile.write(tmp_path / "v.wav", np.concatenate([speech, pause, speech / 2]), RATE, subtype="FLOAT")
    generate(made[0], str(tmp_path / "v.wav"), str(tmp_path / "face.png"), system=system)
    made_level = np.asarray(Image.open(tmp_path / "face.png")).mean() / 127.5 - 1
    assert made_level == pytest.approx(0.27, abs=0.02)  # the mean of the speech; it would be 0.1 with the pauses


def test_windows_cover_a_long_clip_and_repeat_a_short_one() -> None:
    ramp = np.arange(1.0, 11.0, dtype=np.float32)
    assert windows(ramp[:3], 8).tolist() == [[1, 2, 3, 1, 2, 3, 1, 2]]
    assert windows(ramp, 4).tolist() == [[1, 2, 3, 4], [3, 4, 5, 6], [5, 6, 7, 8], [7, 8, 9, 10]]
    assert len(windows(np.ones(100_000, np.float32), 4)) == 64


def test_the_picture_says_what_it_is(made: Made, tmp_path: Path) -> None:
    generate(made[0], voice(tmp_path / "v.wav", 1, 1.0), str(tmp_path / "face.png"), system=made[1])
    text = Image.open(tmp_path / "face.png").info
    assert "not a photograph" in text["Disclaimer"]
    assert text["Run"] == "fake-run"
    assert text["Stand-ins"] == "identity, perceptual"
    made_at = datetime.datetime.fromisoformat(text["Creation Time"])
    now = datetime.datetime.now(datetime.timezone.utc)
    assert datetime.timedelta(0) <= now - made_at < datetime.timedelta(minutes=5)


def test_other_programs_know_it_for_synthetic(made: Made, tmp_path: Path) -> None:
    generate(made[0], voice(tmp_path / "v.wav", 1, 1.0), str(tmp_path / "face.png"), system=made[1])
    image = Image.open(tmp_path / "face.png")
    packet = ElementTree.fromstring(image.info["XML:com.adobe.xmp"].partition("?>")[2].rpartition("<?")[0])
    (about,) = packet.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    kind = about.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert kind == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert about.get("{http://ns.adobe.com/xap/1.0/}CreateDate") == image.info["Creation Time"]
    assert "not a photograph" in "".join(packet.itertext())


def test_names_cannot_break_the_metadata() -> None:
    notes = {"Title": '<b>"&', "Software": 'x"/><y', "Creation Time": "now"}
    image = Image.open(io.BytesIO(png(torch.zeros(3, 4, 4), notes)))
    packet = image.info["XML:com.adobe.xmp"].partition("?>")[2].rpartition("<?")[0]
    assert '<b>"&' in "".join(ElementTree.fromstring(packet).itertext())
    assert image.info["Title"] == '<b>"&'
    assert Image.open(io.BytesIO(png(torch.zeros(3, 4, 4), {}))).info == {}


def test_a_list_of_files_opens_none_of_them(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    voice(tmp_path / "secret.wav", 5, 1.0)
    (tmp_path / "list.wav").write_text("ffconcat version 1.0\nfile secret.wav\n")
    with pytest.raises(V2FError, match="cannot be decoded"):
        generate(made[0], "list.wav", "face.png", system=made[1])


def test_a_rate_that_no_kernel_fits_is_converted_all_the_same(made: Made, tmp_path: Path) -> None:
    generate(made[0], voice(tmp_path / "v.wav", 5, 1.0, rate=96001), str(tmp_path / "face.png"), system=made[1])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "face.png")), portrait(5))


T = np.arange(2 * RATE) / RATE
NOISE = np.random.default_rng(0).standard_normal(len(T))
NO_SPEECH = {
    "white noise": 0.1 * NOISE,
    "a quiet room": 2e-4 * NOISE,
    "a tone": 0.3 * np.sin(2 * np.pi * 440 * T),
    "beats": 0.1 * NOISE * np.exp(-((2 * T) % 1) * 30),
}


@pytest.mark.parametrize("what", NO_SPEECH)
def test_a_face_of_what_is_hardly_speech_is_called_so(made: Made, tmp_path: Path, what: str, capsys: Any) -> None:
    soundfile.write(tmp_path / "v.wav", NO_SPEECH[what], RATE)
    generate(made[0], str(tmp_path / "v.wav"), str(tmp_path / "face.png"), system=made[1])
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith(f"{tmp_path}/v.wav: hardly speech: ")
    assert line.endswith("; the face means nothing")
    assert Image.open(tmp_path / "face.png").info["Doubt"] in line


@pytest.mark.parametrize("person", range(8))
def test_a_face_of_a_voice_is_not(made: Made, tmp_path: Path, person: int, capsys: Any) -> None:
    soundfile.write(tmp_path / "v.wav", corpora.voice(person), 16000)
    generate(made[0], str(tmp_path / "v.wav"), str(tmp_path / "face.png"), system=made[1])
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert "Doubt" not in Image.open(tmp_path / "face.png").info


def _bad(folder: Path, what: str) -> Path:
    path = folder / f"{what}.wav"
    if what == "empty":
        path.touch()
    elif what == "no audio":
        path.write_text("this is a letter, not a sound " * 50)
    elif what == "silent":
        soundfile.write(path, np.zeros(RATE), RATE)
    elif what == "too short":
        soundfile.write(path, np.ones(100), RATE)
    elif what == "no frames":
        soundfile.write(path, np.zeros(0), RATE)
    elif what == "beyond full scale":
        soundfile.write(path, 20000 * np.sin(np.arange(RATE)), RATE, subtype="FLOAT")
    elif what == "cut":
        soundfile.write(path, np.sin(np.arange(RATE)), RATE)
        path.write_bytes(path.read_bytes()[:RATE])
    elif what == "not finite":
        soundfile.write(path, np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "no such file"),
        ("empty", "empty"),
        ("no audio", "cannot be decoded"),
        ("silent", "silent"),
        ("too short", "too short"),
        ("no frames", "empty"),
        ("not finite", "not finite"),
        ("beyond full scale", "beyond full scale"),
        ("cut", "audio is cut"),
    ],
)
def test_what_is_no_voice_is_one_clear_line(made: Made, tmp_path: Path, what: str, said: str) -> None:
    path = _bad(tmp_path, what)
    with pytest.raises(V2FError, match=said) as caught:
        generate(made[0], str(path), str(tmp_path / "face.png"), system=made[1])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "face.png").exists()


def test_a_video_without_sound_is_refused(made: Made, tmp_path: Path) -> None:
    Image.fromarray(portrait(0)).save(tmp_path / "picture.png")
    with pytest.raises(V2FError, match="no sound"):
        generate(made[0], str(tmp_path / "picture.png"), str(tmp_path / "face.png"), system=made[1])


def test_a_diverged_system_writes_no_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    run, system = make_run(tmp_path / "run", tmp_path / "data", kind="broken")
    with pytest.raises(V2FError, match="diverged"):
        generate(run, voice(tmp_path / "v.wav", 1, 1.0), str(tmp_path / "face.png"), system=system)
    assert not (tmp_path / "face.png").exists()


def test_another_kind_of_picture_is_refused_before_any_work(made: Made, tmp_path: Path) -> None:
    with pytest.raises(V2FError, match="PNG"):
        generate(made[0], "nowhere.wav", str(tmp_path / "face.jpg"), system=made[1])


def test_the_former_picture_stays_when_a_new_one_fails(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "face.png"
    generate(made[0], voice(tmp_path / "v.wav", 1, 1.0), str(out), system=made[1])
    before = out.read_bytes()
    with pytest.raises(V2FError):
        generate(made[0], str(_bad(tmp_path, "silent")), str(out), system=made[1])
    assert out.read_bytes() == before
