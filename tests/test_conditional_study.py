"""What bench/conditional.py trains, and the table that it makes of the evaluations."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench import conditional

LINE = {"value": 0.5, "low": 0.4, "high": 0.6}
OWN = {
    **dict.fromkeys(("agreement", "restyled", "kept_factors"), LINE),
    "kept_labels": None,
    "picture": {"recall": 0.3, "precision": 0.8},
}
REAL = {"picture": {"recall": 0.6, "precision": 0.8}}
CODES = {"restored_error": {"value": 0.02}, "code_nats": {"value": 7.0}}


def result(codes: bool) -> dict[str, Any]:
    by = {"classifier": {"lines": {"labelled": OWN, "trained": REAL}}}
    by |= {"codes": {"lines": {"labelled": CODES}}} if codes else {}
    return {"step": 1, "versions": {"torch": "2"}, "splits": {"test": {"by": by}}}


def test_every_kind_has_a_recipe_and_starts_after_what_it_starts_from() -> None:
    recipes = conditional.REPOSITORY / "launch" / "recipes"
    for world, (shards, kinds) in conditional.WORLDS.items():
        assert (conditional.REPOSITORY / "shards" / f"{shards}.yaml").exists()
        for at, kind in enumerate(kinds):
            values = yaml.safe_load((recipes / f"{world}-{kind}.yaml").read_text())
            assert values["data"]["path"] == f"data/{shards}"
            for source in values.get("init_from", []):
                assert source["run"].removeprefix(f"runs/{world}-") in kinds[:at]


def test_runs_are_judged_by_the_classifier_of_their_world_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[tuple[str, ...]] = []

    def v2f(*arguments: str) -> None:
        said.append(arguments)
        if arguments[0] == "eval":
            Path(arguments[1]).mkdir(parents=True)
            Path(arguments[1], "eval.json").write_text(json.dumps(result(codes="cgan" not in arguments[1])))

    monkeypatch.setattr(conditional, "v2f", v2f)
    monkeypatch.setattr(conditional, "REPOSITORY", tmp_path)
    runs = conditional.of_world("shapes", [0, 1], 1)
    assert said[0] == ("shards", "pack", "shards/shapes.yaml")
    trained = [arguments for arguments in said if arguments[0] == "train"]
    assert len(trained) == 1 + 4 * 2
    assert "init_from=[{run: runs/shapes-cvae-seed-1, module: decoder}]" in trained[-1]
    evaluated = [arguments for arguments in said if arguments[0] == "eval"]
    assert all(
        arguments[2:] == ("--classifier", str(tmp_path / "runs/shapes-classifier")) for arguments in evaluated[1:]
    )
    before = len(said)
    assert conditional.of_world("shapes", [0, 1], 1) == runs
    assert [arguments for arguments in said[before:] if arguments[0] != "shards"] == []
    text = conditional.table({"date": "d", "device": "c", "versions": {"torch": "2"}, "runs": runs})
    row = next(line for line in text.splitlines() if line.startswith("| shapes | cvae |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:] == [
        "2", "50.0 (50.0 to 50.0)", "50.0 (50.0 to 50.0)", "100.0 (100.0 to 100.0)", "50.0 (50.0 to 50.0)", "–",
        "0.50 (0.50 to 0.50)", "0.0200 (0.0200 to 0.0200)", "7.00 (7.00 to 7.00)",
    ]  # fmt: skip
    assert "| shapes | cgan |" in text
