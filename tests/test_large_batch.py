"""The rule for another batch: what it derives loads, and says what docs/scaling.md says. The training is bench's."""

from pathlib import Path

import pytest

from bench import large_batch
from bench.large_batch import LEAST_WARMUP_STEPS, derived, optimizers
from v2f.runs.config import RunConfig, load_config
from v2f.runs.run import build_system

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPES = sorted((REPOSITORY / "launch" / "recipes").glob("*.yaml"))
LARGE = str(REPOSITORY / large_batch.RECIPE)


def taken(recipe: str, batch: int, arm: str = "rule") -> RunConfig:
    changes = derived(load_config(recipe), batch, arm)
    return load_config(recipe, [f"{key}={value}" for key, value in changes.items()])


def rates(config: RunConfig) -> list[float]:
    return [rate for _, optimizer in optimizers(config.system, "system") for rate in optimizer.lr.values()]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_can_be_taken_to_another_batch_and_sees_as_many_samples(path):
    before = load_config(str(path))
    assert rates(before)
    for factor in (4, 64):
        after = taken(str(path), before.data.batch * factor)
        assert after.data.batch == before.data.batch * factor
        assert rates(after) == pytest.approx([rate * factor**0.5 for rate in rates(before)], rel=1e-3)
        samples = before.train.steps * before.data.batch
        assert after.train.steps * after.data.batch == pytest.approx(samples, abs=after.data.batch / 2)
        pairs = zip(optimizers(before.system, ""), optimizers(after.system, ""), strict=True)
        for (_, old), (_, new) in pairs:
            assert new.schedule.warmup == max(old.schedule.warmup, LEAST_WARMUP_STEPS * after.data.batch)
            assert new.betas == old.betas
            assert new.clip == old.clip


def test_the_arms_differ_in_the_rate_alone():
    unscaled, rule, linear = (taken(LARGE, 16, arm) for arm in ("unscaled", "rule", "linear"))
    whole = rates(load_config(LARGE))
    assert rates(unscaled) == whole
    assert rates(rule) == pytest.approx([rate / 8 for rate in whole])
    assert rates(linear) == pytest.approx([rate / 64 for rate in whole])
    assert unscaled.train == rule.train == linear.train
    assert unscaled.data == rule.data


def test_the_recipe_is_what_the_rule_makes_of_a_batch_of_sixteen():
    recipe, small = load_config(LARGE), taken(LARGE, 16)
    assert (recipe.data.batch, small.data.batch, small.train.steps) == (1024, 16, 64 * recipe.train.steps)
    changes = derived(small, 1024)
    back = load_config(LARGE, [f"{key}={value}" for key, value in changes.items()])
    assert rates(back) == rates(recipe)
    assert back.train == recipe.train


def test_a_modules_own_warm_up_is_stretched_as_the_common_one_is():
    own = "system.optimizer.schedules={mapping: {warmup: 100}, encoder: {warmup: 1000000}}"
    changes = derived(load_config(LARGE, [own]), 2048)
    after = load_config(LARGE, [own, *(f"{key}={value}" for key, value in changes.items())])
    schedules = dict(optimizers(after.system, ""))[".optimizer"].schedules
    assert {name: each.warmup for name, each in schedules.items()} == {"mapping": 16 * 2048, "encoder": 1_000_000}


def test_the_recipe_trains_without_drawing_a_picture(monkeypatch, tiny_shards):
    from v2f.data.loader import read_usable
    from v2f.data.manifest import open_dataset

    system = build_system(load_config(LARGE))
    (batch,) = read_usable(open_dataset(tiny_shards).split("train"), system.transforms(), 8, [], limit=8)
    monkeypatch.setattr(system.generator, "synthesis", None)
    found = system.loss("supervised", batch, 0)
    assert set(found) == {"total", "style"}
    assert found["total"].item() == pytest.approx(found["style"].item())


def test_what_is_claimed_runs_with_every_seed_and_the_rest_once():
    runs = large_batch.wanted([3, 4])
    assert {run for run in runs if run[2] == 4} == {(batch, "rule", 4) for batch in (16, 256, 1024)}
    assert [run[:2] for run in runs if run[2] == 3] == large_batch.RUNS


def test_the_miss_is_judged_by_the_mean_of_the_runs():
    def run(r10: float) -> dict:
        return {"batch": 16, "arm": "rule", "steps": 1, "rate": {}, "seen/R@10": 0.5, "test/R@10": r10} | {
            "test/identity distance": 0.5,
            "loss at the end": 0.9,
        }

    found = large_batch.summary([run(0.4), run(0.6), run(0.7) | {"arm": "linear"}], 16, "rule")
    assert found["runs"] == 2
    assert found["test/R@10"] == {"mean": 0.5, "least": 0.4, "most": 0.6}


def test_what_does_not_learn_alike_is_a_miss():
    def row(r10: float) -> dict:
        spread = {"mean": r10, "least": r10, "most": r10}
        names = ("test/R@10", "seen/R@10", "test/identity distance", "loss at the end")
        return {"steps": 1, "runs": 1, **dict.fromkeys(names, spread)}

    reached = {"16 rule": 0.50, "256 rule": 0.51, "1024 rule": 0.48, "256 unscaled": 0.45, "1024 unscaled": 0.30}
    alike = {name: row(r10) for name, r10 in reached.items()} | {"1024 linear": row(0.50)}
    assert set(alike) == {f"{batch} {arm}" for batch, arm in large_batch.RUNS}
    assert large_batch.show(alike) == []
    assert large_batch.show(alike | {"1024 rule": row(0.44)}) == [
        "under the rule, R@10 at 1024 is -0.060 from that at 16; at most 0.05"
    ]
    assert large_batch.show(alike | {"1024 unscaled": row(0.47)}) == [
        "at 1,024 the rule gains +0.010 of R@10 over an unscaled rate, less than 0.05"
    ]
