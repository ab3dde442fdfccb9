"""Every recipe's first losses are the committed ones; a small change of the mathematics is seen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from golden.losses import GOLDEN, RECIPES, data_of, differences, losses, make_data, parse, recipes, shrunk, text

from v2f.config import read_yaml

REWRITE = "if the mathematics was meant to change, `make golden` writes them anew"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_data(str(tmp_path_factory.mktemp("golden") / "data"))


def values_of(name: str, data: str, out: Path) -> dict[str, Any]:
    values = read_yaml(RECIPES / f"{name}.yaml")
    return shrunk(values, data_of(values, data), str(out / name))


def golden(name: str) -> list[dict[str, float]]:
    return parse((GOLDEN / f"{name}.txt").read_text())


def test_every_recipe_has_golden_losses() -> None:
    assert recipes() == sorted(path.stem for path in GOLDEN.glob("*.txt")), REWRITE


@pytest.mark.parametrize("name", recipes())
def test_the_losses_are_the_committed_ones(name: str, data: str, tmp_path: Path) -> None:
    changed = differences(golden(name), losses(values_of(name, data, tmp_path)))
    assert not changed, "\n".join([*changed[:10], REWRITE])


def rate(values: dict[str, Any]) -> None:
    values["system"]["generator"]["lr"]["generator"] *= 1 + 1e-4


def betas(values: dict[str, Any]) -> None:
    values["system"]["discriminator"]["betas"] = [0.5, 0.9991]


def coefficient(values: dict[str, Any]) -> None:
    values["system"]["losses"]["style"] *= 1 + 1e-4


def samples(values: dict[str, Any]) -> None:
    values["data"]["partitions"] = 2


@pytest.mark.parametrize(
    ("name", "change"),
    [("face-gan", rate), ("face-gan", betas), ("large-batch", coefficient), ("large-batch", samples)],
)
def test_a_small_change_is_seen(name: str, change: Callable[[dict[str, Any]], None], data: str, tmp_path: Path) -> None:
    values = values_of(name, data, tmp_path)
    change(values)
    assert differences(golden(name), losses(values))


def test_what_is_written_is_what_is_read() -> None:
    rows = [{"a/total": 0.1 + 0.2, "b/total": -1e-17}, {"a/total": 1e6}]
    written = text("some", rows)
    assert written.startswith("# launch/recipes/some.yaml")
    assert not differences(parse(written), rows)
    assert differences(parse(written), rows[:1]) == ["2 steps, now 1"]
    assert differences(parse(written), [rows[0], {"a/total": 1e6, "b/total": 1.0}]) == ["step 2: b/total came or went"]
    assert differences(parse(written), [rows[0], {"a/total": float("nan")}]) != []
