"""The page of a comparison stands alone, shows the same voices through each run, and does without what is missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fakes import RATE, level, make_data, make_run, portrait, register
from pages import Page, pictures, pixels

from v2f.cli import main
from v2f.config import build
from v2f.data import media
from v2f.errors import V2FError
from v2f.evaluation.evaluate import evaluate
from v2f.runs.config import RunConfig
from v2f.runs.export import export
from v2f.runs.run import Run, build_system
from v2f.training.trainer import fit
from v2f.web.comparison import comparison

PEOPLE = {"train": range(50, 52), "test": range(20), "seen": range(20, 24)}


@pytest.fixture(autouse=True)
def _fake_system(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "run_values" not in request.fixturenames:
        register(monkeypatch)
        monkeypatch.setattr(Run, "system", lambda run: build_system(run.config).eval())


def made(root: Path, name: str, kind: str, *, measure: bool = True, data: str = "data", **info: Any) -> str:
    """A run of the fake system on the data under ``root``."""
    if not (root / data).exists():
        make_data(root / data, PEOPLE if data == "data" else {"test": range(30, 36)})
    run, _ = make_run(root / name, root / data, kind)
    path = root / name / "config.yaml"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": name}))
    (root / name / "run.json").write_text(json.dumps(run.info | info))
    points = [{"samples": 8 * i, "metrics": {"loss/s/total": 2 / (i + 1), "valid/margin": 0.1 * i}} for i in range(5)]
    (root / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, points)))
    run = Run(run.path)
    if measure:
        evaluate(run, system=build_system(run.config), progress=False, device="cpu")  # type: ignore[arg-type]
    return run.path


def page_of(root: Path, *runs: str, **options: Any) -> Page:
    comparison(runs, f"{root}/compare.html", **options)
    return Page(f"{root}/compare.html")


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    return [made(tmp_path, "follows", "copy"), made(tmp_path, "collapsed", "constant")]


def test_the_same_voices_go_through_each_run(tmp_path: Path, two: list[str]) -> None:
    page = page_of(tmp_path, *two, voices=3)
    expected = [portrait(person) for number in range(3) for person in (number, number, 0)]
    shown = pictures(page)
    assert len(shown) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(shown, expected, strict=True))
    assert len(page.all("audio")) == 3
    assert "Unseen people of" in page.text


def test_the_page_says_what_is_larger_than_noise_and_what_it_cannot_know(tmp_path: Path, two: list[str]) -> None:
    page = page_of(tmp_path, *two)
    assert "R@1, % by the judge: A is above B by" in page.text
    assert "A is better" in page.text
    assert "Each recipe was trained once" in page.text
    assert "one face for everyone" in page.text  # B's collapse
    assert "system.kindcopyconstant" in page.text
    assert "chance" in page.text
    assert page.text.count("within noise") + page.text.count("A better") + page.text.count("differs") > 7
    assert "photos and voices of real people" in page.text
    assert page.text.count("The gallery is smaller than 100 people") == 2


def test_the_page_stands_alone_and_is_the_same_twice(
    tmp_path: Path, two: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "now", lambda: "2026-01-02T03:04:05+00:00")  # the faces tell when they were made
    page = page_of(tmp_path, *two)
    assert page.stands_alone
    assert page_of(tmp_path, *two).raw == page.raw


def test_curves_lie_over_each_other_with_a_letter_each(tmp_path: Path, two: list[str]) -> None:
    page = page_of(tmp_path, *two)
    lines = [attrs["class"] for attrs in page.all("path") if attrs.get("d", "").startswith("M0.0")]
    assert lines == ["line run-0", "line run-1"] * 2
    assert "A 0.4B 0.4" in page.text  # at the end
    assert page.raw.count("stroke-dasharray") == 8 + 1  # that of the runs, and of a mark


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(1)>"
    make_data(tmp_path / "data", PEOPLE)
    runs = [made(tmp_path / bad, "one", "copy", code=bad, data="../data")]
    runs.append(made(tmp_path, "two", "constant", code="<script>alert(1)</script>"))
    page = page_of(tmp_path, *runs, voices=1)
    assert page.stands_alone
    assert bad in page.text
    assert len(page.all("img")) == 3


def test_without_an_evaluation_the_page_is_made_and_says_how_to_get_one(tmp_path: Path) -> None:
    runs = [made(tmp_path, "one", "copy", measure=False), made(tmp_path, "two", "constant")]
    page = page_of(tmp_path, *runs, voices=2)
    assert f"A was not measured: v2f eval {runs[0]}" in page.text
    assert "No difference could be tested" in page.text
    assert len(pictures(page)) == 6


def test_without_a_checkpoint_the_others_faces_are_shown(
    tmp_path: Path, two: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def system(run: Run) -> Any:
        if run.path == two[0]:
            raise V2FError(f"{run.path}: no committed checkpoint yet")
        return build_system(run.config).eval()

    monkeypatch.setattr(Run, "system", system)
    page = page_of(tmp_path, *two, voices=2)
    assert "A shows no faces: " in page.text
    assert len(pictures(page)) == 4
    assert "R@1, % by the judge: A is above B" in page.text


def test_runs_with_other_data_are_shown_people_of_one_that_is_named(tmp_path: Path) -> None:
    runs = [made(tmp_path, "one", "copy"), made(tmp_path, "two", "copy", data="other")]
    page = page_of(tmp_path, *runs)
    assert not page.all("img")
    assert "name one data set (--data PATH) or recordings (--voice FILE)" in page.text
    assert "measured on different people" in page.text
    page = page_of(tmp_path, *runs, data=str(tmp_path / "other"), voices=1)
    assert [np.array_equal(one, portrait(30)) for one in pictures(page)] == [True] * 3
    with pytest.raises(V2FError, match="nowhere: no data set here"):
        page_of(tmp_path, *runs, data="nowhere")


def test_recordings_are_shown_alone_where_no_people_are_asked_for(tmp_path: Path, two: list[str]) -> None:
    voice = tmp_path / "<b>v.wav"
    soundfile.write(voice, np.full(RATE, level(7), np.float32), RATE)
    page = page_of(tmp_path, *two, recordings=[str(voice)])
    assert [np.array_equal(one, portrait(p)) for one, p in zip(pictures(page), (7, 0), strict=True)] == [True, True]
    assert "<b>v.wav" in page.text
    assert len(pictures(page_of(tmp_path, *two, recordings=[str(voice)], voices=1))) == 5


def test_a_recording_without_a_voice_is_one_clear_line_and_no_page(tmp_path: Path, two: list[str]) -> None:
    (tmp_path / "letter.wav").write_text("no sound " * 90)
    with pytest.raises(V2FError, match=r"letter\.wav: .*give a recording of a voice"):
        page_of(tmp_path, *two, recordings=[str(tmp_path / "letter.wav")])
    assert not (tmp_path / "compare.html").exists()


def test_a_diverged_run_is_named_and_the_others_are_shown(tmp_path: Path, two: list[str]) -> None:
    broken = made(tmp_path, "broken", "broken", measure=False)
    voice = tmp_path / "v.wav"
    soundfile.write(voice, np.full(RATE, level(7), np.float32), RATE)
    page = page_of(tmp_path, *two, broken, recordings=[str(voice)])
    assert "C shows no faces: the system's picture is not finite: its training diverged" in page.text
    assert len(pictures(page)) == 2


@pytest.mark.slow
def test_real_runs_of_two_systems_and_an_export(
    run_values: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two seeds of a system that makes faces from noise; one that hears, and its export."""
    folders = []
    for name, system, seed in (("noise", "face_gan", 1), ("noise", "face_gan", 2), ("voice", "voice_styled_face", 1)):
        own = {"seed": seed, "name": name, "out": f"{tmp_path}/{name}-{seed}"}
        folders.append(fit(build(RunConfig, run_values(system, steps=2) | own, "test")))
    export(folders[2], f"{tmp_path}/export")
    folders.append(f"{tmp_path}/export")
    for folder in folders[:2]:
        assert main(["eval", folder]) == 0
    capsys.readouterr()
    assert main(["compare", *folders, "-o", f"{tmp_path}/c.html", "--voices", "2"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "B − A" not in printed  # two seeds of one recipe
    assert "the same recipe with other seeds" in printed
    page = Page(f"{tmp_path}/c.html")
    assert page.stands_alone
    assert "A+B2 seeds" in page.text
    assert "D has no curves: an export holds weights alone" in page.text
    assert f"C was not measured: v2f eval {folders[2]}" in page.text
    shown = [(str(image["alt"]), image["src"]) for image in page.all("img")]
    assert sum(alt.startswith("face that") for alt, _ in shown) == 4
    faces = [pixels(str(source)).tobytes() for alt, source in shown if alt.startswith("face that")]
    assert len(set(faces)) == 2  # an export makes what its run does
    assert [sum(f"that {letter} makes from noise" in alt for alt, _ in shown) for letter in "AB"] == [6, 6]
    assert len({source for alt, source in shown if "from noise" in alt}) == 12
