"""What bench/voice_gan.py starts, and what it says of the results."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import runs, voice_gan
from bench.voice_gan import met, table, trained


def evaluation(precision: float) -> dict[str, Any]:
    """Splits as ``v2f eval`` writes them for faces of voices."""
    picture = {"precision": precision, "recall": 0.4, "energy": 0.1}
    voice = {"R@1": {"value": 0.05}, "R@10": {"value": 0.35}, "identity_distance_ratio": 0.6, "picture": picture}
    lines = {"voice": voice, **{name: {"R@10": {"value": 0.25}} for name in ("strongest", "U1", "U2")}}
    held = {"lines": {"voice": {"R@1": {"value": 0.12}}}, "chance": {"R@1": 0.05}}
    told = {"lines": lines, "held_equal": held, "consistency": {"margin": {"value": 0.3, "low": 0.28, "high": 0.33}}}
    chance = {"R@1": 0.01, "R@10": 0.1}
    return {"test": {"by": dict.fromkeys(("referee", "judge"), told), "chance": chance}}


SPEAKERS = {
    "test": {"by": {"trials": {"lines": {"speaker": {"eer": {"value": 0.1}}}}}},
    "seen": {"by": {"classes": {"lines": {"speaker": {"accuracy": {"value": 0.2}}}}}, "chance": {"accuracy": 0.001}},
}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, str]]:
    """The overrides of each training that would be started; each leaves an evaluation behind."""
    found: list[dict[str, str]] = []

    def run(*arguments: str) -> None:
        if arguments[0] == "train":
            found.append(dict(each.split("=", 1) for each in arguments[5:]))
            return
        folder = Path(arguments[1])
        folder.mkdir(parents=True)
        splits = SPEAKERS if "embedding" in folder.name else evaluation(0.6)
        (folder / "eval.json").write_text(json.dumps({"step": int(found[-1]["train.steps"]), "splits": splits}))
        config = {"name": "x", "system": {"name": "face_gan"}, "data": {"path": "data/x", "batch": 8}}
        (folder / "config.yaml").write_text(json.dumps(config | {"train": {"steps": 1}}))

    monkeypatch.setattr(runs, "v2f", run)
    monkeypatch.setattr(runs, "REPOSITORY", tmp_path)
    return found


def test_each_seed_has_an_encoder_of_its_own_and_nothing_runs_twice(started: list[dict[str, str]]) -> None:
    one, _ = trained(0, "data/x", 7), trained(1, "data/x", 7)
    assert [each["name"] for each in started] == [f"voice-{kind}-{n}" for n in (0, 1) for kind in ("embedding", "gan")]
    assert started[3]["system.encoder"] == "{net: run, path: runs/voice-embedding-1, module: encoder}"
    assert started[3]["train.steps"] == "7"
    started.clear()
    assert trained(0, "data/x", 7) == one
    assert started == []


@pytest.mark.parametrize("precision", [0.6, 0.3])
def test_the_table_says_which_ends_are_met(
    started: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, precision: float
) -> None:
    monkeypatch.setattr("test_voice_gan_bench.evaluation", lambda _, real=evaluation: real(precision))
    runs = [trained(seed, "data/x", 7) for seed in (0, 1)]
    found = {"runs": runs, "date": "2026-12-01", "device": "2 x CPU", "versions": {"torch": "2"}}
    assert list(met(found).values()) == [True, True, True, precision > 0.5, True]
    text = table(found)
    assert ("MISSED: the precision" in text) == (precision < 0.5)
    assert "| test/referee | 5.0 (5.0 to 5.0) | 35.0" in text
    assert voice_gan.mean_of(found, "test/judge")["consistency"] == pytest.approx(0.3)
