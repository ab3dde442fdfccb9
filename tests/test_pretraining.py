"""What bench/pretraining.py compares: arms that see as many samples, and a table that says what was measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import pretraining, runs
from bench.pretraining import ARMS, difference, table, trained


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, str]]:
    """The overrides of each training that would be started; each leaves an evaluation behind."""
    found: list[dict[str, str]] = []
    voice = {"R@10": {"value": 0.4}, "identity_distance_ratio": 0.5, "picture": {"nearest": 1.2, "energy": 0.1}}
    faces = {"test": {"by": {by: {"lines": {"voice": voice}} for by in ("referee", "judge")}}}
    speaker = {"eer": {"value": 0.1}}, {"accuracy": {"value": 0.2}}
    speakers = {
        "test": {"by": {"trials": {"lines": {"speaker": speaker[0]}}}},
        "seen": {"by": {"classes": {"lines": {"speaker": speaker[1]}}}, "chance": {"accuracy": 0.001}},
    }

    def run(*arguments: str) -> None:
        if arguments[0] == "train":
            _, _, recipe, _, _, *overrides = arguments
            found.append({"recipe": recipe, **dict(each.split("=", 1) for each in overrides)})
        else:
            folder = Path(arguments[1])
            folder.mkdir(parents=True)
            splits = speakers if "speakers" in folder.name else faces
            result = {"step": int(found[-1]["train.steps"]), "splits": splits}
            (folder / "eval.json").write_text(json.dumps(result))
            data = {"path": found[-1]["data.path"], "batch": 8}
            system = {"name": "face_gan"}
            config = {"name": "x", "system": system, "data": data, "train": {"steps": 1}}
            (folder / "config.yaml").write_text(json.dumps(config))

    monkeypatch.setattr(runs, "v2f", run)
    monkeypatch.setattr(runs, "REPOSITORY", tmp_path)
    return found


def test_the_arms_that_are_compared_see_as_many_samples(commands: list[dict[str, str]]) -> None:
    steps = {}
    for arm in ARMS:
        commands.clear()
        trained(arm, 1, 10, "data/x")
        steps[arm] = [int(each["train.steps"]) for each in commands]
        assert all((each["seed"], each["data.path"]) == ("1", "data/x") for each in commands)
        if arm in ("last", "all"):
            first, then = commands
            assert (first["recipe"], first["system.heads"]) == (pretraining.SPEAKERS, arm)
            assert then["recipe"] == pretraining.FACES
            assert then["init_from"] == f"[{{run: runs/{first['name']}, module: encoder}}]"
    assert steps == {"alone": [10], "longer": [20], "last": [10, 10], "all": [10, 10]}


def test_a_run_that_is_evaluated_is_not_repeated(commands: list[dict[str, str]]) -> None:
    before = trained("all", 0, 10, "data/x")
    assert len(commands) == 2
    assert trained("all", 0, 10, "data/x") == before
    assert len(commands) == 2
    assert before["speakers"]["EER"] == 0.1
    assert before["scores"]["test/judge/R@10"] == 0.4


def test_a_difference_includes_the_noise_of_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {
        f"{arm}-{seed}": np.full(50, 0.3 + 0.1 * (arm == "all") + 0.05 * seed) for arm in ARMS for seed in range(3)
    }
    monkeypatch.setattr(pretraining, "shares_of", shares.__getitem__)
    runs: list[dict[str, Any]] = [{"arm": arm, "run": f"{arm}-{seed}"} for arm in ARMS for seed in range(3)]
    found = difference(runs, "all")
    assert found["value"] == pytest.approx(0.1)
    assert found["low"] < 0.03 < 0.17 < found["high"]  # the seeds differ by 0.05
    assert difference(runs, "last")["value"] == pytest.approx(0)


def test_the_table_has_a_row_for_each_arm() -> None:
    scores = {f"test/{by}/R@10": 0.4 for by in ("referee", "judge")}
    scores |= {"test/referee/nearest": 1.2, "test/referee/energy": 0.1}
    runs = [
        {"arm": arm, "seed": seed, "scores": scores | {"test/referee/R@10": 0.4 + 0.01 * seed}}
        | ({"speakers": {"EER": 0.1, "accuracy": 0.2}} if arm in ("last", "all") else {})
        for arm in ARMS
        for seed in range(3)
    ]
    apart = {"value": 0.02, "low": -0.01, "high": 0.05, "p": 0.2}
    found = {"batch": 32, "steps": 350, "runs": runs, "bounds": {"chance": 0.1, "U1": 0.5}, "date": "2026-11-30"}
    found |= {"differences": {"all": apart}, "device": "2 x CPU", "versions": {"torch": "2.11.0"}}
    lines = table(found).splitlines()
    assert "| faces alone | 0, 11,200 | – | 41.0 (40.0 to 42.0) |" in lines[2]
    assert "| faces alone, twice as long | 0, 22,400 | – |" in lines[3]
    assert "| 11,200, 11,200 | 10.0 (10.0 to 10.0), 20.0 (20.0 to 20.0) |" in lines[5]
    assert any(line.endswith("R@10 +2.0 (-1.0 to +5.0), p 0.2") for line in lines)
    assert lines[-1] == "2026-11-30, seeds 0, 1, 2, 2 x CPU, torch 2.11.0."
