"""The page stands alone, holds its figure and its numbers, and says what it is."""

import base64
import datetime
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fakes import RATE, SECONDS, level, make_data, make_run, portrait, register
from pages import Page, pictures
from PIL import Image

from v2f.evaluation.evaluate import evaluate
from v2f.runs.run import Run
from v2f.web.curves import chart, charts, read_curves
from v2f.web.page import fixed, number
from v2f.web.report import _sheets, report, voice_in_words

PEOPLE = {"test": range(6), "seen": range(6, 10)}


@pytest.fixture(autouse=True)
def _fake_system(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def made(tmp_path: Path, *, kind: str = "copy", measure: bool = True, **data: Any) -> Page:
    make_data(tmp_path / "data", PEOPLE, **data)
    run, system = make_run(tmp_path / "run", tmp_path / "data", kind)
    if measure:
        evaluate(run, system=system, progress=False, device="cpu")
    points = [{"step": i, "samples": 32 * i, "metrics": {"loss/s/total": 2 / (i + 1)}} for i in range(9)]
    points.append({"step": 9, "samples": 288, "metrics": {"valid/identity_distance_ratio": 0.5, "loss/s/total": None}})
    points.append({"step": 12, "samples": 384, "metrics": {"valid/identity_distance_ratio": 0.8}})
    lines = [json.dumps(point) for point in points]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 10, "sam']))
    return Page(report(run, system=system))


def test_the_figure_pairs_each_reference_with_the_face_of_its_voice(tmp_path: Path) -> None:
    shown = pictures(made(tmp_path))
    expected = [portrait(person) for person in [*PEOPLE["test"], *PEOPLE["seen"]] for _ in "ab"]
    assert len(shown) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(shown, expected, strict=True))


def test_the_page_says_how_alike_the_faces_of_a_speakers_clips_are(tmp_path: Path) -> None:
    made(tmp_path)
    (found,) = json.loads((tmp_path / "run" / "eval.json").read_text())["splits"]["test"]["by"].values()
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"a margin of <strong>{found['consistency']['margin']['value']:.3f}</strong>" in page


def test_the_face_is_the_systems_and_not_the_reference(tmp_path: Path) -> None:
    shown = pictures(made(tmp_path, kind="constant", measure=False))
    assert np.array_equal(shown[2], portrait(1))
    assert np.array_equal(shown[3], portrait(0))


def test_a_face_tells_what_it_is_which_run_made_it_and_when_and_a_photo_does_not(tmp_path: Path) -> None:
    page = made(tmp_path)
    for image in page.all("img"):
        content = base64.b64decode(str(image["src"]).partition(",")[2])
        notes = Image.open(io.BytesIO(content)).info
        if "face made" in str(image["alt"]):
            assert notes["Title"] == "A face estimated from a voice, not a photograph"
            assert notes["Run"] == Run.open(str(tmp_path / "run")).config.name
            assert datetime.datetime.fromisoformat(notes["Creation Time"]).utcoffset() == datetime.timedelta(0)
        else:
            assert "Title" not in notes


def test_synthetic_people_have_a_third_column(tmp_path: Path) -> None:
    page = made(tmp_path, synthetic=True)
    assert len(pictures(page)) == 3 * 10
    assert "(c) knowable" in page.text
    assert "photos and voices of real people" not in page.text


def test_the_voices_can_be_heard(tmp_path: Path) -> None:
    sources = [str(audio["src"]) for audio in made(tmp_path).all("audio")]
    assert len(sources) == 10
    wav_T, rate = soundfile.read(io.BytesIO(base64.b64decode(sources[3].partition(",")[2])))
    assert rate == RATE
    assert len(wav_T) == SECONDS * RATE
    assert wav_T.mean() == pytest.approx(level(3), abs=1e-3)


def test_nothing_is_loaded_and_nothing_runs(tmp_path: Path) -> None:
    page = made(tmp_path, synthetic=True)
    assert page.stands_alone
    assert len(page.all("img")) == 30


def test_the_page_says_what_it_is_and_what_it_is_not(tmp_path: Path) -> None:
    text = made(tmp_path).text
    for said in (
        "Unseen people",
        "Seen people, unseen clips",
        "not a photograph",
        "Stand-ins.",
        "identity, perceptual",
    ):
        assert said in text
    assert "photos and voices of real people" in text


def test_the_numbers_stand_beside_the_figure(tmp_path: Path) -> None:
    page = made(tmp_path)
    assert "gallery is too small: 6 people" in page.text
    assert "no upper bound U1 or U2" in page.text
    assert "face from the voice (this run)" in page.text
    assert "identity distance ratio0.8" in page.text
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["data"]["fingerprint"] in page.text


def test_a_collapse_is_said_at_the_top(tmp_path: Path) -> None:
    text = made(tmp_path, kind="constant").text
    assert text.index("one face for everyone") < text.index("(a) reference")


def test_without_an_evaluation_the_page_says_how_to_get_one(tmp_path: Path) -> None:
    assert "Not measured yet: v2f eval" in made(tmp_path, measure=False).text


def test_samples_of_a_start_that_was_rolled_back_are_not_shown(tmp_path: Path) -> None:
    make_data(tmp_path / "data", PEOPLE)
    run, _ = make_run(tmp_path / "run", tmp_path / "data")
    (tmp_path / "run" / "samples").mkdir()
    for step in (1, 2, 3):
        (tmp_path / "run" / "samples" / f"step-{step:08d}.png").write_bytes(b"png")
    for name, steps in (("metrics.jsonl", (1, 2)), ("rolled-back.jsonl", (2, 3))):
        about = {"kind": "picture", "samples": 1, "time": 1.5, "name": "samples"}
        lines = (json.dumps(about | {"step": s, "picture": f"samples/step-{s:08d}.png"}) for s in steps)
        (tmp_path / "run" / name).write_text("".join(f"{line}\n" for line in lines))
    assert [step for step, _ in _sheets(run)] == [1, 2]


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    make_data(tmp_path / "data", PEOPLE)
    run, system = make_run(tmp_path / "run", tmp_path / "data")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"code": "<script>alert(1)</script>"}))
    assert not Page(report(run, system=system)).all("script")


def test_curves_leave_out_a_line_that_was_cut(tmp_path: Path) -> None:
    made(tmp_path, measure=False)
    curves = read_curves(str(tmp_path / "run" / "metrics.jsonl"))
    assert len(curves["loss/s/total"]) == 9
    assert curves["valid/identity_distance_ratio"] == [(288, 0.5), (384, 0.8)]


def test_a_chart_holds_zero_and_goes_from_end_to_end() -> None:
    drawn = chart("margin", {0: [(0, 0.5), (50, 1.0), (100, 0.25)]})
    assert [(trace.path, trace.last) for trace in drawn.traces] == [("M0.0 55.0 L160.0 0.0 L320.0 82.5", "0.25")]
    assert (drawn.low, drawn.high, drawn.end, drawn.log) == ("0", "1", "100", False)


def test_a_chart_of_many_magnitudes_is_logarithmic() -> None:
    drawn = chart("loss", {0: [(0, 100.0), (1, 10.0), (2, 1.0)]})
    assert drawn.log
    assert drawn.traces[0].path == "M0.0 0.0 L160.0 55.0 L320.0 110.0"


def test_curves_of_several_runs_share_their_axes() -> None:
    runs = [{"loss/a": [(0, 4.0), (100, 2.0)]}, {}, {"loss/a": [(0, 4.0), (200, 0.0)]}]
    (drawn,) = charts(runs, "loss/")
    assert [(trace.run, trace.path) for trace in drawn.traces] == [
        (0, "M0.0 0.0 L160.0 55.0"),
        (2, "M0.0 0.0 L320.0 110.0"),
    ]


def test_a_long_curve_keeps_its_ends_and_its_peaks() -> None:
    points = [(i, 100.0 if i == 54_321 else 1.0 + i % 2) for i in range(100_000)]
    (trace,) = chart("loss", {0: points}).traces
    shown = [tuple(map(float, point.split())) for point in trace.path[1:].split(" L")]
    assert len(shown) <= 402
    assert shown[0][0] == 0
    assert shown[-1][0] == 320
    assert [x for x, y in shown if y == 0] == [round(320 * 54_321 / 99_999, 1)]


def test_charts_skip_what_cannot_be_drawn() -> None:
    curves = {"valid/a": [(0, float("nan")), (1, 1.0)], "valid/b": [(0, 1.0), (1, 1.0)], "loss/c": [(0, 1.0), (1, 2.0)]}
    assert [c.title for c in charts([curves], "valid/")] == ["b"]


def test_a_voice_is_told_by_what_stands_out() -> None:
    assert voice_in_words(np.array([1.9, 0.1, -1.0, 0, 0.2, 0], np.float32)) == "high, clear"
    assert voice_in_words(np.zeros(6, np.float32)) == "an average voice"


def test_numbers_are_written_to_be_read() -> None:
    assert [number(v) for v in (0.123456, 12345.6, float("nan"), None)] == ["0.123", "12,346", "–", "–"]
    assert [fixed(v, 2) for v in (1.0, -0.001, -0.25, None)] == ["1.00", "0.00", "−0.25", "–"]
