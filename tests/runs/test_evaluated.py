"""What ``eval.json`` holds: the observers are those of the table."""

import pytest

from v2f.runs.evaluated import BY, Evaluated
from v2f.storage.records import problem_of

NUMBERS = {"lines": {"voice": {"R@10": 0.5}}}


@pytest.mark.parametrize("by", BY)
def test_numbers_by_an_observer_of_the_table_are_read(by: str) -> None:
    assert problem_of(Evaluated, {"data": {"fingerprint": "f"}, "splits": {"test": {"by": {by: NUMBERS}}}}) is None


def test_numbers_by_another_are_refused_with_the_names_of_the_table() -> None:
    problem = problem_of(Evaluated, {"data": {"fingerprint": "f"}, "splits": {"test": {"by": {"jury": NUMBERS}}}})
    assert problem is not None
    assert problem.endswith(f"'jury' is not an observer; the observers are {', '.join(BY)}")


def test_numbers_of_groups_need_the_groups() -> None:
    sex = {"agreement": {"voice": {"value": 1.0}}, "chance": 0.5, "slices": {}}
    split = {"by": {"judge": {**NUMBERS, "attributes": {"sex": sex}}}}
    problem = problem_of(Evaluated, {"data": {"fingerprint": "f"}, "splits": {"test": split}})
    assert problem is not None
    assert "it has numbers of sex, but does not say who belongs to which group" in problem
    known = split | {"attributes": {"sex": {"source": "table", "groups": {"f": 10}}}}
    assert problem_of(Evaluated, {"data": {"fingerprint": "f"}, "splits": {"test": known}}) is None
