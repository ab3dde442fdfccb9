"""The steps that every corpus shares: what is cut out of a recording, how loud it becomes, what a video shows when."""

import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from corpora import portrait, samples, voice, write_video
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from v2f.config import build
from v2f.data.audio import UnusableError, _k_weighting, decode_span, loudness, only_speech, to_loudness
from v2f.data.manifest import Dataset
from v2f.data.sample import Sample
from v2f.errors import V2FError
from v2f.prepare import LeftOut, steps, video
from v2f.prepare.pack import PackConfig, pack
from v2f.prepare.steps import StepsConfig
from v2f.prepare.yields import examples, lines, to_json, yield_report

RATE = 16000
QUIET = (1e-4 * np.random.default_rng(0).standard_normal(18 * RATE)).astype(np.float32)


# ------------------------------------------------------------------------------------------------ speech


@pytest.mark.parametrize(("rate", "level"), [(16000, 1.0), (16000, 0.02), (24000, 1.0), (48000, 1.0)])
def test_what_is_no_speech_is_cut_out(rate: int, level: float) -> None:
    said = np.interp(np.arange(rate) * RATE / rate, np.arange(RATE), voice(0)).astype(np.float32)
    quiet = QUIET[: 6 * rate].reshape(3, -1)
    wav = level * np.concatenate([quiet[0], said, quiet[1], said, quiet[2]])
    joined = only_speech(wav, rate, mode=3, margin=0.1, keep="speech")
    span = only_speech(wav, rate, mode=3, margin=0.1, keep="span")
    assert 1.7 * rate < len(joined) < 3.0 * rate  # two seconds were said
    assert 3.7 * rate < len(span) < 4.6 * rate  # and two are between them
    assert np.abs(joined[: rate // 2]).max() > 0.2 * level < np.abs(joined[-rate // 2 :]).max()
    where = int(np.flatnonzero(wav == span[0])[0])
    assert np.array_equal(wav[where : where + len(span)], span)


def test_speech_alone_stays_as_it_is_and_silence_has_none() -> None:
    whole = only_speech(voice(0), RATE, mode=0, margin=2.0, keep="speech")
    assert np.array_equal(whole, voice(0))
    with pytest.raises(UnusableError, match=r"no speech was found \(in 1\.00 s\)"):
        only_speech(0 * voice(0), RATE, mode=3, margin=0.1, keep="speech")


# ---------------------------------------------------------------------------------------------- loudness


def test_the_filters_at_48_khz_are_those_of_the_standard() -> None:
    """ITU-R BS.1770-4, tables 1 and 2."""
    (shelf, poles), (high_pass, slow) = _k_weighting(48000)
    assert shelf == pytest.approx([1.53512485958697, -2.69169618940638, 1.19839281085285], abs=1e-9)
    assert poles == pytest.approx([1.0, -1.69065929318241, 0.73248077421585], abs=1e-9)
    assert high_pass == [1.0, -2.0, 1.0]
    assert slow == pytest.approx([1.0, -1.99004745483398, 0.99007225036621], abs=1e-9)


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_a_full_tone_of_997_hz_has_the_loudness_that_the_standard_says(rate: int) -> None:
    tone = np.sin(2 * np.pi * 997 * np.arange(3 * rate) / rate).astype(np.float32)
    assert loudness(tone, rate) == pytest.approx(-3.01, abs=0.06)
    assert loudness(0.1 * tone, rate) == pytest.approx(-23.01, abs=0.06)
    assert loudness(tone[: rate // 10], rate) == pytest.approx(-3.01, abs=0.2)


def test_pauses_do_not_count_and_another_implementation_agrees() -> None:
    said = voice(1, 2.0)
    with_pause = np.concatenate([said, QUIET[: 4 * RATE]])
    assert loudness(with_pause, RATE) == pytest.approx(loudness(said, RATE), abs=0.8)
    theirs = torchaudio.functional.loudness(torch.from_numpy(said)[None], RATE).item()
    assert loudness(said, RATE) == pytest.approx(theirs, abs=0.3)  # its filters are other approximations
    assert loudness(QUIET[:RATE] * 0, RATE) == -np.inf


@given(person=st.integers(0, 20), db=st.floats(-60, 0), lufs=st.floats(-40, -10), max_gain=st.floats(0, 30))
def test_a_recording_gets_its_loudness_within_the_limits(person: int, db: float, lufs: float, max_gain: float) -> None:
    wav = (voice(person) * 10 ** (db / 20)).astype(np.float32)
    louder = to_loudness(wav, RATE, lufs=lufs, max_gain=max_gain, peak=0.9)
    gain = 20 * np.log10(np.abs(louder).max() / np.abs(wav).max())
    assert np.allclose(
        louder / wav[np.abs(wav).argmax()], wav / wav[np.abs(wav).argmax()] * 10 ** (gain / 20), atol=1e-4
    )
    assert np.abs(louder).max() < 0.9001
    assert gain < max_gain + 1e-3
    reached = loudness(louder, RATE) - lufs
    limited = gain > max_gain - 1e-3 or np.abs(louder).max() > 0.8999
    assert reached < 0.01 if limited else abs(reached) < 0.01


# ------------------------------------------------------------------------------------- the steps together


def packed(folder: Path, wavs: dict[str, np.ndarray], rate: int = RATE, **kinds: Any) -> Dataset:
    """A data set of recordings and one picture."""
    portrait(0).save(folder / "p.png")
    for name, wav in wavs.items():
        soundfile.write(folder / f"{name}.wav", wav, rate, subtype="FLOAT")
    rows = "".join(f"{name}.wav,p.png,{name}\n" for name in wavs)
    (folder / "pairs.csv").write_text(f"audio,image,identity\n{rows}")
    pairs = {"csv": str(folder / "pairs.csv"), "align": "none", "size": 32, **kinds}
    pairs["people"] = {"train": 1.0, "valid": 0.0, "test": 0.0}
    return pack(
        build(PackConfig, {"out": str(folder / "out"), "source": "pairs", "pairs": pairs, "workers": 1}, "the test")
    )


def test_a_recording_goes_through_all_steps_and_the_manifest_says_which(tmp_path: Path) -> None:
    quiet = QUIET[: 2 * RATE]
    wavs = {
        "long": 0.02 * np.concatenate([quiet, voice(0, 4.0), quiet]),
        "click": np.eye(1, 2 * RATE, RATE)[0] * 1e-3,
        "word": np.concatenate([quiet, voice(0)[:4800], quiet]),
    }
    kinds = {
        "vad": {"mode": 3, "margin": 0.05, "keep": "speech"},
        "min_seconds": 1.0,
        "max_seconds": 2.0,
        "loudness": {"lufs": -30.0, "max_gain": 60.0},
    }
    dataset = packed(tmp_path, wavs, **kinds)
    (sample,) = samples(dataset).values()
    assert sample.identity == "long"
    assert len(sample.waveform()) == 2 * RATE
    assert loudness(sample.waveform(), RATE) == pytest.approx(-30.0, abs=0.05)
    left_out = map(json.loads, (tmp_path / "out" / "left_out.jsonl").read_text().splitlines())
    reasons = {each["identity"]: each["reason"] for each in left_out}
    assert reasons == {"click": "no speech was found", "word": "there is too little speech"}
    recipe = dataset.manifest.provenance["recipe"]["pairs"]
    for name, value in kinds.items():
        assert recipe[name] == value if not isinstance(value, dict) else recipe[name].items() >= value.items()


def test_without_steps_a_recording_stays_what_it_was(tmp_path: Path) -> None:
    wav = voice(3, 2.0)
    (sample,) = samples(packed(tmp_path, {"a": wav})).values()
    assert np.abs(sample.waveform() - wav).max() < 2 / 32767


def test_lengths_that_leave_nothing_are_refused() -> None:
    with pytest.raises(V2FError, match=r"max_seconds is 1, but min_seconds is 2"):
        build(StepsConfig, {"min_seconds": 2.0, "max_seconds": 1.0}, "the test")


# ------------------------------------------------------------------------------------------------ videos

FPS, SECONDS = 10, 4
TONES = [(0.0, 300.0), (1.0, 600.0), (2.0, 900.0), (3.0, 1200.0)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds: each has a tone of its own, each picture a column of its own in white."""
    folder = tmp_path_factory.mktemp("videos")
    t = np.arange(SECONDS * 48000) / 48000
    wav = sum(0.3 * np.sin(2 * np.pi * hertz * t) * ((t >= at) & (t < at + 1)) for at, hertz in TONES)
    pictures = []
    for number in range(SECONDS * FPS):
        picture = np.full((96, 8 * SECONDS * FPS, 3), 20, np.uint8)
        picture[:, 8 * number : 8 * number + 8] = 235
        pictures.append(Image.fromarray(picture))
    for kind in ("mp4", "mkv", "webm"):
        write_video(folder / f"v.{kind}", wav, pictures, FPS)
    write_video(folder / "mute.mp4", None, pictures, FPS)
    return folder


def shown(picture: Image.Image) -> int:
    """The number of a picture."""
    return int(np.asarray(picture.convert("L"), float).mean(axis=0).reshape(-1, 8).mean(axis=1).argmax())


def hertz(wav: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(wav * np.hanning(len(wav)))).argmax() * RATE / len(wav))


@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm"])
def test_a_video_is_cut_where_it_is_asked_for(videos: Path, kind: str) -> None:
    with video.opened(str(videos / f"v.{kind}")) as container:
        for start, tone in TONES[::-1]:  # backwards, so that each has to be sought
            wav = decode_span(container, start, start + 1, sample_rate=RATE, min_seconds=0.5)
            assert len(wav) == RATE
            assert abs(hertz(wav[:3000]) - tone) < 8
            assert abs(hertz(wav[-3000:]) - tone) < 8
        seconds = [3.9, 0.0, 1.0, 1.05, 2.15, 2.999, 3.95]
        assert [shown(picture) for picture in video.pictures(container, seconds)] == [39, 0, 10, 10, 21, 30, 39]


def test_a_remote_video_is_read_in_ranges(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (videos / "v.mp4").read_bytes()
    content += (8 << 20).to_bytes(4, "big") + b"free" + bytes((8 << 20) - 8)
    fsspec.filesystem("memory").pipe("/corpus/v.mp4", content)
    asked: list[int] = []
    read_range = video.store.read_range
    monkeypatch.setattr(video.store, "read_range", lambda *what: asked.append(what[2]) or read_range(*what))
    with video.opened("memory://corpus/v.mp4") as container:
        assert shown(video.pictures(container, [3.5])[0]) == 35
    assert sum(asked) < len(content) / 2
    fsspec.filesystem("memory").rm("/corpus", recursive=True)
    with pytest.raises(UnusableError, match="video cannot be read"), video.opened("memory://corpus/v.mp4"):
        pass


@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm"])
def test_a_video_that_is_damaged_anywhere_is_used_or_left_out(videos: Path, tmp_path: Path, kind: str) -> None:
    content, other = (videos / f"v.{kind}").read_bytes(), (videos / "mute.mp4").read_bytes()
    rng, used = np.random.default_rng(0), 0
    for number in range(24):
        place = int(rng.integers(len(content)))
        noise = rng.bytes(64)
        cut, overwritten = content[:place], content[:place] + noise + content[place + 64 :]
        (tmp_path / "v").write_bytes((cut, cut + other, overwritten, cut[:200] + noise)[number % 4])
        try:
            with video.opened(str(tmp_path / "v")) as container:
                wav = decode_span(container, 1.0, 2.0, sample_rate=RATE, min_seconds=0.5)
                (picture,) = video.pictures(container, [1.5])
        except UnusableError:
            continue
        used += 1
        assert len(wav) >= 0.74 * RATE
        assert picture.size == (320, 96)
    assert used > 0  # what lies behind the segment does not matter


def test_whatever_a_video_decoder_raises_costs_one_input(videos: Path) -> None:
    for error in (OverflowError("large"), TypeError("None"), AssertionError()):
        with pytest.raises(UnusableError, match="video cannot be decoded"), video.opened(str(videos / "v.mp4")):
            raise error


def test_what_a_video_does_not_have_is_said(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with video.opened(str(videos / "v.mp4")) as container:
        with pytest.raises(UnusableError, match=r"the sound ends before the segment does \(1\.\d\d s of 3\.00 s\)"):
            decode_span(container, 3.0, 6.0, sample_rate=RATE, min_seconds=0.5)
        with pytest.raises(UnusableError, match=r"ends before the segment does \(there is no picture at 9\.00 s\)"):
            video.pictures(container, [9.0])
        monkeypatch.setattr(video, "MAX_PIXELS", 1000)
        with pytest.raises(UnusableError, match=r"video is too large \(320 x 96 pixels\)"):
            video.pictures(container, [0.0])
    with pytest.raises(UnusableError, match="the file has no sound"), video.opened(str(videos / "mute.mp4")) as mute:
        decode_span(mute, 0.0, 1.0, sample_rate=RATE, min_seconds=0.5)
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "cut.mp4").write_bytes((videos / "v.mp4").read_bytes()[:3000])
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:4,\nhttp://127.0.0.1:9/v.ts\n#EXT-X-ENDLIST\n")
    for name in ("text.mp4", "cut.mp4", "list.mp4", "nowhere.mp4"):
        with (
            pytest.raises(UnusableError, match=r"video cannot be (decoded|read)"),
            video.opened(str(tmp_path / name)) as broken,
        ):
            video.pictures(broken, [0.0])


# ------------------------------------------------------------------------------------------------- yield


def test_the_yield_counts_samples_by_reason_and_by_person() -> None:
    kept = {("train", "ada"): 3, ("seen", "ada"): 1, ("test", "bob"): 2}
    left_out = [
        LeftOut("a", "ada", "audio is silent"),
        LeftOut("b", "ada", "no face was found"),
        LeftOut("eve", "eve", "the person has no photos", "40 clips", 40),
    ]
    rejected = [LeftOut("p1.jpg", "ada", "no face was found", "", 0)] * 3
    rejected.append(LeftOut("p1.jpg", "bob", "no face was found", "", 0))  # another person's
    report = yield_report(kept, left_out, rejected)
    assert json.loads(to_json(report)) == report
    assert report["kept"] == {"samples": 6, "people": 2, "splits": {"seen": 1, "test": 2, "train": 3}}
    assert report["left_out"]["samples"] == 42
    assert next(iter(report["left_out"]["reasons"].items())) == ("the person has no photos", 40)
    assert report["rejected_photos"] == {"no face was found": 2}
    assert report["people"]["ada"] == {"kept": 4, "left_out": {"audio is silent": 1, "no face was found": 1}}
    assert report["people"]["eve"] == {"kept": 0, "left_out": {"the person has no photos": 40}}
    text = "\n".join(lines(report))
    assert "yield: 6 of 48 samples (12.5%), of 2 people" in text
    assert "left out: 40 the person has no photos" in text
    assert "people of whom nothing is left: 1" in text
    assert "most left out of: eve 40 of 40, ada 2 of 6" in text


def test_of_many_alike_some_are_printed() -> None:
    said = examples(
        [LeftOut(f"{n}.wav", "ada", "audio is silent") for n in range(1000)] + [LeftOut("x", "b", "odd", "y")]
    )
    assert len(said) == 22
    assert said[0] == "left out: 0.wav: audio is silent"
    assert said[-2:] == ["left out: 980 more: audio is silent", "left out: x: odd (y)"]


def test_a_network_computes_in_one_thread_and_only_then() -> None:
    config = build(StepsConfig, {}, "the test")
    threads: list[int] = []

    def read(item: Any) -> Any:
        threads.append(torch.get_num_threads())
        raise UnusableError("nothing")

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        item = steps.Item("k", "train", "ada", "line 2")
        for nets in (True, False):
            assert steps.make(config, "pairs", [item], nets, read) == [LeftOut("line 2", "ada", "nothing")]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert threads == [1, 3]


def test_psp_sees_all_photos_of_a_batch_and_each_sample_gets_its_own_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from v2f.prepare import psp

    def encode_and_render(config: Any, photo_NHWC: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        first_N = photo_NHWC[:, 0, 0, 0]
        drawn_NHWC = np.broadcast_to(255 - first_N[:, None, None, None], (len(first_N), size, size, 3))
        return np.broadcast_to(first_N[:, None, None], (len(first_N), 2, 3)).astype(np.float32), drawn_NHWC

    monkeypatch.setattr(psp, "encode_and_render", encode_and_render)
    config = build(StepsConfig, {"size": 32, "psp": {"file": "x", "pictures": True, "codes": True}}, "the test")
    photos = {"a": [10, 20], "b": [], "c": [30], "d": [40, 50, 60]}

    def read(item: Any) -> Any:
        if not photos[item.key]:
            raise UnusableError("nothing")
        pictures = [np.full((256, 256, 3), value, np.uint8) for value in photos[item.key]]
        return steps.RawSample(item, voice(0), pictures, {"key": item.key})

    items = [steps.Item(key, "train", key, key) for key in photos]
    a, b, c, d = steps.make(config, "voxceleb", items, False, read)
    assert b == LeftOut("b", "b", "nothing")
    for made in (a, c, d):
        sample = Sample(made.item.key, made.members)
        assert [sample.photo(n)[5, 5, 0] for n in range(sample.photo_count)] == [255 - v for v in photos[sample.key]]
        assert [sample.codes(n)[1, 2] for n in range(sample.photo_count)] == photos[sample.key]
