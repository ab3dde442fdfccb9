"""The answer to a clip: the run's face, honest samples around it, and measures that may speak against it."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import RATE, level, make_data, make_run, portrait, register
from PIL import Image

from v2f.data.audio import UnusableError
from v2f.generate import generate
from v2f.keyed import keyed_rng
from v2f.runs.run import Run
from v2f.web import answer, reference
from v2f.web.answer import Answer, Listener, moments
from v2f.web.reference import Reference


@pytest.fixture(scope="module")
def listener(tiny_run: str) -> Listener:
    return Listener(Run.open(tiny_run))


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def pictures(of: Answer) -> list[str]:
    return [of.face, *(uri for uri, _ in of.moments), *of.others]


def by_title(of: Answer, title: str) -> answer.Gauge:
    return next(gauge for gauge in of.gauges if title in gauge.title)


def test_the_face_is_the_one_that_generate_draws(listener: Listener, clip: Any, tmp_path: Path) -> None:
    path = clip()
    generate(listener.run, path, str(tmp_path / "face.png"))
    shown = np.asarray(picture(listener.answer(Path(path).read_bytes()).face)).astype(int)
    apart = np.abs(shown - np.asarray(Image.open(tmp_path / "face.png")))
    assert apart.max() <= 1  # a net that hears more at once rounds in another order


def test_every_picture_says_what_it_is(listener: Listener, clip: Any) -> None:
    made = listener.answer(Path(clip()).read_bytes())
    assert len(made.moments) == 4
    assert len(made.others) == 6
    for uri in pictures(made):
        text = picture(uri).info
        assert (text["Run"], text["Step"]) == ("tiny", "2")
        assert "not a photograph" in text["Title"]
        assert text["Creation Time"].endswith("+00:00")
        assert "digitalsourcetype/trainedAlgorithmicMedia" in text["XML:com.adobe.xmp"]


def test_one_clip_has_one_answer_and_another_clip_another(listener: Listener, clip: Any) -> None:
    content = Path(clip()).read_bytes()
    one, again = listener.answer(content), listener.answer(content)
    other = listener.answer(Path(clip("other.wav", key=8)).read_bytes())

    def pixels(of: Answer) -> list[np.ndarray]:
        return [np.asarray(picture(uri)) for uri in pictures(of)]

    assert all(np.array_equal(a, b) for a, b in zip(pixels(one), pixels(again), strict=True))
    assert one.gauges == again.gauges
    assert not any(np.array_equal(a, b) for a, b in zip(pixels(one), pixels(other), strict=True))


def test_the_others_differ_as_much_as_what_no_voice_tells(listener: Listener) -> None:
    known = listener.reference
    assert known is not None
    assert known.residual_NLD is not None
    w_LD = torch.ones(known.residual_NLD.shape[1:])
    drawn = known.others(w_LD, 4000, keyed_rng(5))
    assert drawn is not None
    deviation = known.residual_NLD.std(0)
    assert ((drawn.mean(0) - w_LD).abs() < 5 * deviation / len(drawn) ** 0.5).all()
    # the variance along every direction in which people differed, and none along any other
    rows = known.residual_NLD.flatten(1)
    directions = torch.linalg.svd(rows, full_matrices=False).Vh[: known.people - 1]
    around = (drawn - w_LD).flatten(1)
    wanted = (rows @ directions.T).square().sum(0) / (known.people - 1)
    assert torch.allclose((around @ directions.T).square().mean(0), wanted, rtol=0.15)
    outside = around - around @ directions.T @ directions
    assert outside.abs().max() < 1e-3


def test_a_voice_that_says_all_leaves_nothing_open() -> None:
    codes = torch.randn(20, 2, 3, generator=torch.Generator().manual_seed(0))
    assert reference._settled(codes, torch.zeros_like(codes)) == 1.0
    assert reference._settled(codes, codes - codes.mean(0)) == pytest.approx(0.0, abs=1e-6)
    assert reference._settled(codes, 3 * codes) == 0.0  # worse than the mean face


@pytest.mark.parametrize(("apart", "said", "doubtful"), [
    (0.02, "Steady", False),
    (0.08, "As steady as usual", False),
    (0.20, "Unsteady", True),
    (0.60, "two different people", True),
])  # fmt: skip
def test_halves_that_disagree_are_told(apart: float, said: str, doubtful: bool) -> None:
    gauge = answer._steady(np.linspace(0, 0.1, 101), strangers=0.5, apart=apart)
    assert said in gauge.words
    assert gauge.doubtful is doubtful
    assert gauge.value is not None
    assert 0 < gauge.value <= 1
    assert (gauge.value > gauge.high) is doubtful


def test_a_run_that_draws_one_face_for_everyone_is_not_called_steady() -> None:
    gauge = answer._steady(np.linspace(0, 0.1, 101), strangers=0.08, apart=0.01)
    assert "the same face for everyone" in gauge.words
    assert gauge.doubtful


def noises() -> dict[str, np.ndarray]:
    t, rng = np.arange(2 * 16000) / 16000, np.random.default_rng(0)
    return {
        "drum": rng.normal(size=len(t)) * np.exp(-((t * 2) % 1) * 30),
        "noise": rng.normal(size=len(t)),
        "hum": np.sign(np.sin(2 * np.pi * 50 * t)),
        "whistle": np.sin(2 * np.pi * (2000 * t + 80 * np.sin(2 * np.pi * t))),
    }


@pytest.mark.parametrize("name", sorted(noises()))
def test_what_is_no_voice_is_doubted(listener: Listener, name: str) -> None:
    samples = noises()[name]
    made = listener.answer(wav(0.3 * samples / np.abs(samples).max()))
    assert by_title(made, "speech").doubtful
    assert "hardly speech" in picture(made.face).info["Doubt"]
    if name != "drum":
        assert by_title(made, "know such voices").doubtful


def test_a_voice_is_not_doubted(listener: Listener, clip: Any) -> None:
    made = listener.answer(Path(clip()).read_bytes())
    assert not by_title(made, "speech").doubtful
    assert "Doubt" not in picture(made.face).info
    assert not by_title(made, "know such voices").doubtful


def test_a_known_voice_is_known_however_loud(listener: Listener, clip: Any) -> None:
    known = listener.reference
    assert known is not None
    rate = listener.ear.sample_rate
    import soundfile

    wav_T = soundfile.read(clip(), dtype="float32")[0]
    assert known.how_far(wav_T, rate) == pytest.approx(known.how_far(0.1 * wav_T, rate), rel=0.01)


def wav(samples: np.ndarray, rate: int = 16000) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV")
    return buffer.getvalue()


def test_parts_lie_in_the_clip_and_span_it() -> None:
    for length in (4000, 16000, 20000, 70000, 480000):
        parts = moments(length, 16000)
        assert len(parts) == 4
        assert (parts[0][0], parts[-1][1]) == (0, length)
        assert all(start < stop for start, stop in parts)
    assert moments(480000, 16000)[0][1] == 120000  # of a long clip a quarter
    assert moments(40000, 16000)[0][1] == 16000  # what the system hears at once
    assert moments(16000, 16000)[0][1] == 8000  # of a short one the half


def test_halves_hold_equal_shares_of_the_voice() -> None:
    voice, pause = np.ones(1000, np.float32), np.zeros(6000, np.float32)
    first, second = reference.halves(np.concatenate([voice, pause]))
    assert abs(len(first) - 500) <= 1
    assert len(first) + len(second) == 7000
    assert len(reference.halves(np.concatenate([10 * voice[:1], voice[:159] * 0]))[0]) == 10  # a click is no half


def test_a_pause_is_no_moment(listener: Listener) -> None:
    t = np.arange(16000) / 16000
    speech = 0.3 * np.sign(np.sin(2 * np.pi * 120 * t))
    made = listener.answer(wav(np.concatenate([speech, np.zeros(32000), speech])))
    assert [span for _, span in made.moments] == ["0.0 to 1.0 s", "3.0 to 4.0 s"]


@pytest.mark.parametrize(("samples", "said"), [
    (np.zeros(16000), "silent"),
    (np.ones(1000) * 0.1, "too short"),
    (np.ones(16000 * 5) * 0.1, "too long .5.0 s of at most 4 s"),
])  # fmt: skip
def test_what_is_no_clip_is_refused(listener: Listener, samples: np.ndarray, said: str) -> None:
    with pytest.raises(UnusableError, match=said):
        listener.answer(wav(samples), max_seconds=4.0)


def test_without_data_it_draws_and_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    make_run(tmp_path / "run", tmp_path / "nowhere")
    monkeypatch.setattr(Run, "system", lambda self, **_: make_run(tmp_path / "run", tmp_path / "nowhere")[1])
    monkeypatch.setattr(Run, "step_of", lambda self, _: 1)
    made = Listener(Run.open(str(tmp_path / "run")))
    assert str(tmp_path / "nowhere") in made.without
    answered = made.answer(wav(np.full(RATE, level(5)), RATE))
    assert np.array_equal(np.asarray(picture(answered.face)), portrait(5))  # a system without codes, too
    assert answered.others == []
    assert [gauge.title for gauge in answered.gauges] == ["Is it speech?"]


def test_few_people_are_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    make_data(tmp_path / "data", {"test": range(7)})
    run, system = make_run(tmp_path / "run", tmp_path / "data")
    with pytest.raises(Exception, match="at least 8 people"):
        reference.measure(run, system, None)
    make_data(tmp_path / "more", {"test": range(9)})
    run, system = make_run(tmp_path / "run2", tmp_path / "more")
    known = reference.measure(run, system, reference.observer_of(run, system))
    assert isinstance(known, Reference)
    assert known.people == 9
    assert known.halves_N is not None
    assert known.halves_N.max() == pytest.approx(0, abs=1e-6)  # this system knows the person by any half
    assert known.strangers is not None
    assert known.strangers > 0.1
    assert known.others(torch.zeros(1, 1), 3, keyed_rng(1)) is None
