"""Which differences are larger than noise, on constructed numbers with a known truth; and what differs between runs."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from fakes import register
from rich.console import Console

from v2f import metrics
from v2f.errors import V2FError
from v2f.evaluation.compare import Comparison, Outcome, compare
from v2f.evaluation.comparison_tables import show
from v2f.evaluation.significance import holm, sign_flips, with_training
from v2f.evaluation.subjects import METRICS, gather, recipes
from v2f.keyed import keyed_rng

PEOPLE = 60
JUDGED = [metric for metric in METRICS["voice"] if metric.by == "judge"]
KEYS = tuple(metric.key for metric in JUDGED)
PICTURE = ("nearest", "energy", "precision", "recall")
Shares = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _fake_system(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def write_run(
    path: Path,
    shares: Mapping[str, Shares] | None,
    *,
    seed: int = 0,
    kind: str = "copy",
    fingerprint: str = "f" * 64,
    weights: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
    by: Sequence[str] = ("judge",),
    referee: Mapping[str, Any] | None = None,
) -> str:
    """A run's folder as training and ``v2f eval`` leave it; ``shares``: split -> metric -> share of each person."""
    path.mkdir(parents=True)
    values: dict[str, Any] = {"name": path.name, "seed": seed, "system": {"name": "fake", "kind": kind}}
    values |= {"data": {"path": "data", "batch": 8}, "train": {"steps": 1}}
    (path / "config.yaml").write_text(json.dumps(values | dict(config or {})))
    made = {"fingerprint": "f" * 64, "code": "abc", "versions": {"torch": "2"}, "device": "cpu", "world_size": 1}
    (path / "run.json").write_text(json.dumps(made | dict(info or {})))
    if shares is None:
        return str(path)
    kept, splits = {}, {}
    for split, of in shares.items():
        means: dict[str, Any] = {
            key: metrics.over_people(each).as_dict() if "@" in key else float(each.mean()) for key, each in of.items()
        }
        line = {key: value for key, value in means.items() if key not in (*PICTURE, "margin")}
        line["picture"] = {key: means[key] for key in PICTURE if key in means}
        splits[split] = {"people": len(next(iter(of.values()))), "gallery": 50, "chance": {"R@10": 0.2}}
        told = {"lines": {"voice": line}, "meters": {"margin": means.get("margin")}}
        splits[split] |= {"by": dict.fromkeys(by, told), "verdict": None}
        people = list(range(splits[split]["people"]))
        kept[split] = {
            "people": people,
            "shares": {who: {key: each.tolist() for key, each in of.items()} for who in by},
        }
    content = json.dumps({"splits": kept}).encode()
    (path / "eval-people.json").write_bytes(content)
    measured = {"step": 1, "weights": dict(weights or {}), "stand_ins": [], "splits": splits}
    measured["referee"] = dict(referee or {})
    measured["data"] = {"path": "data", "fingerprint": fingerprint}
    measured["people"] = {"file": "eval-people.json", "sha256": hashlib.sha256(content).hexdigest()}
    (path / "eval.json").write_text(json.dumps(measured))
    return str(path)


def drawn(*key: int, shift: float = 0.0) -> Shares:
    """People's shares, which are correlated between runs because some people are hard for every run."""
    hard_N = keyed_rng(77).normal(size=PEOPLE)
    rng = keyed_rng(*key)
    return {name: 0.3 + 0.1 * hard_N + 0.05 * rng.normal(size=PEOPLE) + shift for name in KEYS}


def compared(*folders: str) -> Comparison:
    return compare(gather(folders))


def outcome(found: Comparison, key: str, split: str = "test") -> Outcome:
    (one,) = (o for o in found.outcomes if o.metric.key == key and o.split == split)
    return one


# ------------------------------------------------------------------------------------------------ statistics


def test_holms_correction_is_his() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_sign_flip_test_counts_the_signs_that_reach_as_far() -> None:
    rows = np.array([[1.0, 1.0, 0.0], [1.0, 2.0, 0.0], [1.0, 4.0, 0.0]])  # of 8 signs: 2, 2 and all
    assert sign_flips(rows, 39_999) == pytest.approx([0.25, 0.25, 1.0], abs=0.01)
    assert np.array_equal(sign_flips(-rows, 999), sign_flips(rows, 999))
    tenths = np.full((3, 1), 0.1) + np.array([[0.0], [0.0], [1e-17]])  # equal but for rounding
    assert sign_flips(tenths, 39_999)[0] == pytest.approx(0.25, abs=0.01)


def test_it_finds_what_the_t_test_finds_where_both_hold() -> None:
    rows = keyed_rng(5).normal(0.2, 1.0, size=(200, 6))
    assert sign_flips(rows, 19_999) == pytest.approx(scipy.stats.ttest_1samp(rows, 0).pvalue, abs=0.01)


def test_noise_of_training_alone_gives_the_pooled_t_test_of_the_seeds() -> None:
    one, other = np.array([0.30, 0.34, 0.31]), np.array([0.41, 0.37])
    squares = ((one - one.mean()) ** 2).sum() + ((other - other.mean()) ** 2).sum()
    interval, p = with_training(np.full(PEOPLE, other.mean() - one.mean()), (3, 2), squares / 3, 3)
    expected = scipy.stats.ttest_ind(other, one, equal_var=True)
    assert p == pytest.approx(expected.pvalue)
    between = expected.confidence_interval()
    assert (interval.low, interval.high) == pytest.approx((between.low, between.high))


def test_where_nothing_differs_little_is_called_larger_than_noise(tmp_path: Path) -> None:
    """There are 14 tests per comparison: uncorrected, about half of the comparisons would have a false positive."""
    comparisons = 40
    wrong = 0
    for number in range(comparisons):
        folders = [
            write_run(
                tmp_path / f"{number}-{run}",
                {split: drawn(number, run, at) for at, split in enumerate(("test", "seen"), start=1)},
                kind=("copy", "constant")[run],
            )
            for run in range(2)
        ]
        wrong += bool(compared(*folders).larger)
    assert wrong <= 5  # 5 % of 40 is 2


def test_a_difference_is_found_though_the_intervals_overlap(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", {"test": drawn(1)})
    other = write_run(tmp_path / "other", {"test": drawn(2, shift=0.045)}, kind="constant")
    found = compared(one, other)
    metric = found.metrics("test")[0]
    low, high = (subject.value("test", metric) for subject in found.subjects)
    assert low is not None
    assert high is not None
    assert low.high > high.low  # the intervals of the two runs overlap
    assert {o.metric.key for o in found.larger} >= {"R@1", "margin"}
    assert found.tests == len(KEYS)
    assert outcome(found, "R@10").difference.value == pytest.approx(0.045, abs=0.015)


def test_what_the_referee_tells_comes_first_beside_what_the_judge_tells(tmp_path: Path) -> None:
    shares = [{"test": drawn(n, shift=0.2 * n)} for n in (0, 1)]
    kinds, both = ("copy", "constant"), ("referee", "judge")
    one, other = (
        write_run(tmp_path / f"run{n}", shares[n], kind=kinds[n], by=both, referee={"net": "stand_in"}) for n in (0, 1)
    )
    found = compared(one, other)
    assert [o.metric.by for o in found.larger] == ["referee"] * len(KEYS) + ["judge"] * len(KEYS)
    text = printed(found)
    assert text.index("by the referee") < text.index("by the judge")
    assert "test, R@10, % by the referee: B is above A by" in text
    third = write_run(tmp_path / "third", shares[1], kind="constant", by=both, referee={"net": "facenet"})
    apart = compared(one, third)  # the judges are the same, the referees are not
    assert {o.metric.by for o in apart.outcomes if o.p is not None} == {"judge"}
    assert any("measured by different nets" in note for note in apart.notes)
    without = write_run(tmp_path / "without", shares[1], kind="constant")
    assert any(f"was measured without a referee: v2f eval {without}" in note for note in compared(one, without).notes)


def test_what_is_better_depends_on_the_metric(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / f"run{n}", {"test": drawn(n, shift=0.2 * n)}, kind=("copy", "constant")[n]) for n in (0, 1)
    ]
    found = compared(*folders)
    assert {o.metric.key: o.direction for o in found.outcomes} == {
        "R@1": 1,
        "R@5": 1,
        "R@10": 1,
        "margin": 1,
        "consistency": 1,
        "identity_distance_ratio": 0,
        "nearest": 0,
        "energy": -1,
        "precision": 1,
        "recall": 1,
    }
    assert outcome(found, "R@1").sentence().startswith("R@1, % by the judge: B is above A by 2")
    assert outcome(found, "R@1").sentence().endswith("B is better")
    assert outcome(found, "energy").sentence().endswith("A is better")
    assert "better" not in outcome(found, "nearest").sentence()


def test_the_order_of_the_runs_does_not_matter(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / f"run{n}", {"test": drawn(n, shift=0.02 * n * n)}, config={"train": {"steps": n + 1}})
        for n in range(3)
    ]
    straight, turned = compared(*folders), compared(*folders[::-1])
    names = dict(zip("ABC", folders, strict=True))
    turned_names = dict(zip("ABC", folders[::-1], strict=True))

    def told(found: Comparison, names: Mapping[str, str]) -> dict[Any, Any]:
        rows = {}
        for o in found.outcomes:
            pair = names[o.one.letters], names[o.other.letters]
            d = o.difference
            assert d is not None
            turn = pair != tuple(sorted(pair))
            numbers = (-d.value, -d.high, -d.low) if turn else (d.value, d.low, d.high)
            rows[tuple(sorted(pair)), o.metric.key] = (*numbers, o.p, o.larger)
        return rows

    one, other = told(straight, names), told(turned, turned_names)
    assert one.keys() == other.keys()
    assert len(one) == 3 * len(KEYS)
    assert any(row[-1] for row in one.values())
    assert not all(row[-1] for row in one.values())
    for key, row in one.items():
        assert row == pytest.approx(other[key])


def seeds(tmp_path: Path, name: str, kind: str, values: list[float], key: int) -> list[str]:
    return [
        write_run(tmp_path / f"{name}-{seed}", {"test": drawn(key, seed, shift=value)}, seed=seed, kind=kind)
        for seed, value in enumerate(values)
    ]


def test_what_another_seed_would_change_is_noise(tmp_path: Path) -> None:
    """The seeds of a recipe differ by much more than people explain, so two single runs would mislead."""
    low, high = [0.0, 0.1, 0.2], [0.06, 0.26, 0.16]
    one, other = seeds(tmp_path, "one", "copy", low, 1), seeds(tmp_path, "other", "constant", high, 2)
    single = compared(one[0], other[1])
    assert len(single.larger) == len(KEYS)
    assert any("how much another seed would change is not known" in note for note in single.notes)
    several = compared(*one, *other)
    assert [recipe.letters for recipe in several.recipes] == ["A+B+C", "D+E+F"]
    assert not several.larger
    assert all(o.training for o in several.outcomes)
    value = outcome(several, "R@1").difference.value
    assert value == pytest.approx(np.mean(high) - np.mean(low), abs=0.01)
    ((first, ranges), _) = several.spread("test")
    assert first.letters == "A+B+C"
    steps = ranges[0].value - ranges[0].low, ranges[0].high - ranges[0].value
    assert steps == pytest.approx((0.1, 0.1), abs=0.02)


def test_seeds_of_one_recipe_alone_are_noise_and_nothing_else(tmp_path: Path) -> None:
    found = compared(*seeds(tmp_path, "one", "copy", [0.0, 0.3], 1))
    assert found.tests == 0
    assert any("one recipe" in note for note in found.notes)
    assert len(found.spread("test")) == 1


def test_a_difference_beyond_the_seeds_is_found_and_one_run_borrows_their_spread(tmp_path: Path) -> None:
    one = seeds(tmp_path, "one", "copy", [0.0, 0.01, -0.01], 1)
    other = write_run(tmp_path / "other", {"test": drawn(9, shift=0.3)}, kind="constant")
    near = write_run(tmp_path / "near", {"test": drawn(8, shift=0.025)}, kind="broken")
    found = compared(*one, other, near)
    judged = {(o.one.letters, o.other.letters): o.larger for o in found.outcomes if o.metric.key == "R@1"}
    assert judged == {("A+B+C", "D"): True, ("A+B+C", "E"): False, ("D", "E"): True}
    assert len(compared(one[0], near).larger) > 0  # without the variance between seeds


# -------------------------------------------------------------------------------------- what can be compared


def test_what_was_not_measured_alike_is_not_tested_and_says_why(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", {"test": drawn(1)})
    cases: dict[str, tuple[str, str]] = {}
    other_data = write_run(tmp_path / "elsewhere", {"test": drawn(2, shift=1)}, fingerprint="e" * 64)
    cases["measured on different people"] = other_data, "v2f eval RUN --data PATH"
    cases["measured by different nets"] = (
        write_run(tmp_path / "judged", {"test": drawn(2, shift=1)}, weights={"identity": "1", "perceptual": "1"}),
        "A and B",
    )
    unmeasured = write_run(tmp_path / "unmeasured", None)
    cases["was not measured"] = unmeasured, f"v2f eval {unmeasured}"
    former = write_run(tmp_path / "former", {"test": drawn(2)})
    Path(former, "eval-people.json").unlink()
    cases["without keeping each person"] = former, f"v2f eval {former}"
    stale = write_run(tmp_path / "stale", {"test": drawn(2)})
    Path(stale, "eval-people.json").write_text('{"splits": {}}')
    cases["without keeping"] = stale, f"v2f eval {stale}"
    for said, (folder, way_out) in cases.items():
        found = compared(base, folder)
        assert found.tests == 0
        assert not found.larger
        (note,) = (note for note in found.notes if said in note)
        assert way_out in note
    judged = compared(base, former).subjects[1]
    value = judged.value("test", JUDGED[0])
    assert value is not None  # the number and its interval are still shown
    assert value.low < value.value < value.high


def test_a_number_that_is_not_defined_is_not_tested(tmp_path: Path) -> None:
    one, other = (
        write_run(tmp_path / name, {"test": {"R@1": np.array([0.5, 1.0]), "energy": np.array([np.nan, np.nan])}})
        for name in ("one", "other")
    )
    for folder in (one, other):  # as the evaluation writes it
        path = Path(folder, "eval-people.json")
        path.write_text(path.read_text().replace("NaN", "null"))
        measured = json.loads(Path(folder, "eval.json").read_text())
        measured["people"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        Path(folder, "eval.json").write_text(json.dumps(measured))
    found = compared(one, other)
    assert outcome(found, "R@1").p == 1.0  # two people are too few to show anything
    assert outcome(found, "energy").why_not == "some numbers are not defined for A: too few people"


def test_a_run_that_trained_on_since_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [write_run(tmp_path / name, {"test": drawn(n)}) for n, name in enumerate(("one", "other"))]
    monkeypatch.setattr("v2f.runs.run.Run.step", property(lambda run: 5 if run.path == folders[1] else 1))
    (note,) = (note for note in compared(*folders).notes if "is at" in note)
    assert note == f"B was measured at step 1 and is at 5 now: v2f eval {folders[1]}"


def test_runs_that_have_not_seen_as_much_are_named(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, {"test": drawn(n)}) for n, name in enumerate(("one", "other"))]
    measured = json.loads(Path(folders[1], "eval.json").read_text())
    Path(folders[1], "eval.json").write_text(json.dumps(measured | {"step": 500}))
    (note,) = (note for note in compared(*folders).notes if "samples" in note)
    assert note.endswith("when they were measured: A 8, B 4,000")


# ------------------------------------------------------------------------------------------ recipes, differences


@pytest.mark.parametrize(
    ("changed", "alike"),
    [
        ({"seed": 1}, True),
        ({"seed": 1, "config": {"tracking": {"experiment": "x"}, "out": "elsewhere"}}, True),
        ({"seed": 0}, False),  # the same seed is not a second draw of the noise of training
        ({"seed": 1, "kind": "constant"}, False),
        ({"seed": 1, "config": {"train": {"steps": 2}}}, False),
        ({"seed": 1, "info": {"code": "other"}}, False),
        ({"seed": 1, "info": {"fingerprint": "e" * 64}}, False),
    ],
)
def test_a_recipe_is_what_differs_in_the_seed_alone(tmp_path: Path, changed: dict[str, Any], alike: bool) -> None:
    one = write_run(tmp_path / "one", {"test": drawn(1)})
    other = write_run(tmp_path / "other", {"test": drawn(2)}, **changed)
    assert [recipe.letters for recipe in recipes(gather([one, other]))] == (["A+B"] if alike else ["A", "B"])


def test_what_differs_is_told_by_key_and_what_does_not_matter_apart(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", None, info={"versions": {"torch": "2", "numpy": "1"}})
    config = {"train": {"steps": 7, "log_every": 3}, "data": {"path": "data", "batch": 16}}
    other = write_run(tmp_path / "other", None, kind="constant", config=config, info={"code": "abc+dirty"})
    (tmp_path / "other" / "starts.jsonl").write_text(
        '{"step": 0, "world_size": 1}\n{"step": 4, "world_size": 2, "changed": ["train.steps: 5 -> 7"]}\n{"st'
    )
    found = compared(one, other).differences
    rows = {group: {row.key: row.values for row in rows} for group, rows in found.config.items()}
    assert rows == {
        "system": {"system.kind": ("copy", "constant")},
        "data": {"data.batch": ("8", "16")},
        "train": {"train.steps": ("1", "7")},
    }
    assert [row.key for row in found.free] == ["train.log_every"]
    facts = {row.key: row.values for row in found.facts}
    assert facts["code"] == ("abc", "abc+dirty")
    assert facts["starts"] == ("0", "2")
    assert facts["changed over resumes"] == ("nothing", "train.steps: 5 -> 7 at step 4")
    alike = {row.key: row.known for row in found.alike}
    assert alike["device"] == ["cpu"]
    assert alike["version of numpy"] == ["1"]  # the other run does not record it
    assert alike["ranks of each start"] == ["1 at step 0, 2 at step 4"]


def test_too_few_too_many_or_the_same_runs_are_one_clear_line(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", None)
    for names, said in (
        ([one], "needs at least two runs"),
        ([one] * 9, "9 runs: at most 8"),
        ([one, f"{one}/"], "are the same run"),
        ([one, "nowhere"], "nowhere: no run there"),
    ):
        with pytest.raises(V2FError, match=said) as caught:
            gather(names)
        assert "\n" not in str(caught.value)


def test_a_file_that_is_no_evaluation_is_one_clear_line(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, {"test": drawn(1)}) for name in ("one", "other")]
    Path(folders[1], "eval.json").write_text("{")
    with pytest.raises(V2FError, match="not valid JSON"):
        compared(*folders)


# ---------------------------------------------------------------------------------------------- the table


def printed(found: Comparison) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show(found, console)
    return console.export_text()


def test_the_table_says_what_differs_and_what_is_larger_than_noise(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", {"test": drawn(1)})
    other = write_run(tmp_path / "other", {"test": drawn(2, shift=0.2)}, kind="constant")
    text = printed(compared(one, other))
    assert "system.kind" in text
    assert "gallery" not in text
    assert "* larger than noise: 10 of 10 differences" in text
    assert "test, R@10, % by the judge: B is above A by" in text
    (row,) = (line for line in text.splitlines() if "B − A" in line)
    assert row.count("*") == 10
    assert "chance" in text


def test_brackets_in_a_name_are_no_markup(tmp_path: Path) -> None:
    hostile: Callable[[str], str] = lambda name: write_run(  # noqa: E731
        tmp_path / "[red]" / name, {"test": drawn(1)}, info={"code": f"[/] {name}", "device": "[bold]x"}
    )
    text = printed(compared(hostile("one"), hostile("other")))
    assert "[red]/one" in text
    assert "[/] other" in text
