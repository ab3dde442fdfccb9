"""`v2f eval` of a run that codes sounds: numbers by class, the bound, and what is compared."""

import json
from pathlib import Path

import numpy as np
import pytest
import sounding
from sounding import CLASSES, SAMPLES

from v2f import metrics
from v2f.data.loader import read_split
from v2f.data.manifest import open_dataset
from v2f.evaluation.evaluate import evaluate
from v2f.runs.run import Run
from v2f.systems.vq_audio import VQAudio


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("coded")
    return Run.open(sounding.run_on(sounding.make_data(str(folder / "data")).root, folder / "run"))


def test_every_class_has_its_numbers_and_its_bound(run, capsys):
    result = evaluate(run, device="cpu")["splits"]["test"]
    system = run.system()
    assert isinstance(system, VQAudio)
    assert result["bits"] == system.bits == (100 * 4 + 50 * 3) / 400
    lines = result["by"]["waves"]["lines"]
    assert list(lines) == ["coded", *(f"class: {name}" for name in CLASSES)]
    batch = next(iter(read_split(open_dataset(run.config.data.home).split("test"), system.transforms(), 16)))
    wav_NT = batch["wav"]
    made_NT = system.sample(batch)["sound"][:, 0]
    for number, name in enumerate(CLASSES):
        line, own, made = lines[f"class: {name}"], wav_NT[number::2], made_NT[number::2]
        assert line["sounds"] == SAMPLES["test"] // 2
        assert line["si_sdr"]["value"] == pytest.approx(metrics.si_sdr(made, own).mean(), abs=1e-4)
        assert line["log_mel"]["value"] == pytest.approx(metrics.log_mel_distance(made, own, 4000).mean(), abs=1e-3)
        assert line["gap"]["value"] == pytest.approx(line["bound"]["value"] - line["si_sdr"]["value"])
    hiss, tone = (lines[f"class: {name}"] for name in CLASSES)
    assert hiss["bound"]["value"] == pytest.approx(6.02 * result["bits"], abs=1.5)  # noise, of few windows
    assert tone["bound"]["value"] > hiss["bound"]["value"] + 10
    assert tone["class_bound"] < tone["bound"]["value"]  # of all pitches at once
    codes = result["by"]["codes"]["lines"]["coded"]
    assert 0 < codes["used_bottom"] <= 1
    assert 1 <= codes["perplexity_top"] <= 8
    shown = capsys.readouterr().out
    assert "1.38 bits a sample" in shown
    assert all(name in shown for name in (*CLASSES, "bottom: used of 16", "class bound, dB"))
    people = json.loads(Path(run.path, "eval-people.json").read_text())["splits"]["test"]
    assert len(people["people"]) == SAMPLES["test"]
    assert np.mean(people["shares"]["waves"]["gap"]) == pytest.approx(lines["coded"]["gap"]["value"])


def test_without_a_label_all_sounds_are_one_line(tmp_path):
    folder = sounding.run_on(sounding.make_data(str(tmp_path / "data")).root, tmp_path / "run", steps=1, label=None)
    result = evaluate(Run.open(folder), device="cpu", progress=False, limit=4)["splits"]["test"]
    assert list(result["by"]["waves"]["lines"]) == ["coded"]
    assert result["notes"] == ["no classes to tell apart: this run's system.label is null"]
    assert result["people"] == 4
