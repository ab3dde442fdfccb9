"""What `make siblings` trains and shows: its runs fit together, and the page has every run with its numbers."""

from pathlib import Path

import pytest
from fakes import make_data, make_run, register

from bench import siblings
from bench.siblings import PACKS, SIBLINGS, Sibling, about, page
from v2f.evaluation.evaluate import evaluate
from v2f.runs.config import load_config


def test_every_run_has_its_recipe_its_data_and_comes_after_those_it_needs() -> None:
    before: set[str] = set()
    for name, sibling in SIBLINGS.items():
        recipe = siblings.REPOSITORY / "launch" / "recipes" / f"{sibling.recipe}.yaml"
        assert load_config(str(recipe)).name == sibling.recipe
        assert len(about(recipe)) > 20, recipe
        assert sibling.data in PACKS
        assert set(sibling.needs) <= before, name
        before.add(name)
    systems = {load_config(f"launch/recipes/{one.recipe}.yaml").system.name for one in SIBLINGS.values()}
    assert {"voice_gan", "face_gan", "conditional"} <= systems
    for pack in PACKS.values():
        assert (siblings.REPOSITORY / "shards" / f"{pack.recipe}.yaml").exists()


def test_the_page_shows_each_run_that_was_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    make_data(tmp_path / "data", {"test": range(12)})
    run, system = make_run(tmp_path / "run", tmp_path / "data")
    evaluate(run, system=system)
    one = Sibling("A face for each voice", "voice-gan", "speakers", 1)
    monkeypatch.setattr(siblings, "SIBLINGS", {"one": one, "absent": one})
    shown = page({"one": run.path, "absent": str(tmp_path / "absent")})
    assert shown.count("<section") == 1
    assert "A face for each voice" in shown
    assert "R@10, %" in shown
    assert "<td>voice</td><td>100.0</td>" in " ".join(shown.split()).replace("</td> <td>", "</td><td>")
