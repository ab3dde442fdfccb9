"""What bench/face_gan.py says of runs: whether a failure was named, in time, and whether a healthy run was accused."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import face_gan
from bench.face_gan import RECIPES, add, complaint, named_at, table, verdicts
from v2f.config import build, read_yaml
from v2f.runs.config import RunConfig
from v2f.systems.face_gan import FaceGAN

COLLAPSED = "MODE COLLAPSE: the generated pictures repeat themselves"
SCORES = dict.fromkeys(("frechet", "nearest", "energy", "precision", "recall", "variety", "variety_nearest"), 0.5)


def run(recipe: str, *said: str | None, seed: int = 0) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "seed": seed,
        "steps": 10,
        "ms_a_step": 20.0,
        "people": 300,
        "scores": {"generated": SCORES, "trained": SCORES},
        "verdicts": [(10 * number, verdict) for number, verdict in enumerate(said, 1)],
        "versions": {"torch": "2"},
    }


def test_a_failure_must_be_named_by_the_third_validation_and_only_where_it_was_meant() -> None:
    assert complaint(run("face-gan-collapse", None, None, COLLAPSED)) is None
    assert "was named at validation 4" in str(complaint(run("face-gan-collapse", None, None, None, COLLAPSED)))
    assert "was named never" in str(complaint(run("face-gan-diverge", COLLAPSED, COLLAPSED)))
    assert complaint(run("face-gan-diverge", COLLAPSED, f"{COLLAPSED}; NOT CONVERGING: the rates")) is None
    assert named_at(run("face-gan", None, None)) is None
    assert f"validation 2 says {COLLAPSED}" in str(complaint(run("face-gan", None, COLLAPSED)))


def test_results_of_other_runs_stay_and_the_table_has_a_row_for_each_recipe(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    add(path, [run("face-gan", None), run("face-gan-diverge", None)])
    add(path, [run("face-gan-diverge", "NOT CONVERGING: it won"), run("face-gan-diverge", None, seed=1)])
    found = json.loads(path.read_text())
    assert [(one["recipe"], one["seed"]) for one in found["runs"]] == [
        ("face-gan-diverge", 0),
        ("face-gan-diverge", 1),
        ("face-gan", 0),
    ]
    rows = table(found).splitlines()
    assert len({row.count("|") for row in rows if row.startswith("|")}) == 1
    assert "| `face-gan-diverge.yaml` | NOT CONVERGING: 1 of 2 | 1 |" in rows[2]
    assert "| `face-gan.yaml` | anything: 0 of 1 | – |" in rows[4]


def test_the_verdicts_are_those_that_the_run_said(run_values: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from v2f.training.trainer import fit

    values = run_values("face_gan", steps=24, log_every=1, validate_every=8)
    values["system"] |= {"norm": "batch", "r1": 0.0, "augment": []}
    values["system"]["discriminator"] = {"lr": {"discriminator": 2e-2}}
    folder = fit(build(RunConfig, values, "test"))
    said = {
        int(line.split("step ")[1].split(":")[0]): line.split(": ", 1)[1]
        for line in capsys.readouterr().err.splitlines()
        if "MODE COLLAPSE" in line or "NOT CONVERGING" in line
    }
    logged = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    points = [(point["step"], point["metrics"]) for point in logged if "metrics" in point]
    found = verdicts(FaceGAN(build(FaceGAN.Config, values["system"], "test")), points)
    assert [step for step, _ in found] == [8, 16, 24]
    assert {step: verdict for step, verdict in found if verdict} == said
    assert said


def test_every_recipe_logs_often_enough_for_a_verdict_by_the_third_validation() -> None:
    for name in RECIPES:
        train = read_yaml(face_gan.REPOSITORY / "launch" / "recipes" / f"{name}.yaml")["train"]
        assert 10 * train["log_every"] <= face_gan.IN_TIME * train["validate_every"], name
        assert train["steps"] % train["validate_every"] == 0
