"""A subset is a function of the seed and of names, not of their order; and a larger one holds each smaller one."""

import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v2f.errors import V2FError
from v2f.prepare import Item, Plan
from v2f.prepare.pack import load_recipe
from v2f.prepare.splits import Subset

PEOPLE = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=4),
    st.tuples(st.sampled_from(["train", "train", "valid", "test"]), st.integers(1, 5), st.integers(0, 2)),
    min_size=1,
    max_size=12,
)
Crowd = dict[str, tuple[str, int, int]]


def items_of(crowd: Crowd) -> list[Item]:
    """So many clips of each person in a split; of people in train, so many in seen."""
    items = []
    for identity, (split, clips, seen) in crowd.items():
        items += [Item(f"{identity}-{n}", split, identity, "") for n in range(clips)]
        items += [Item(f"{identity}-s{n}", "seen", identity, "") for n in range(seen if split == "train" else 0)]
    return items


def keys(items: list[Item]) -> set[str]:
    return {item.key for item in items}


@given(PEOPLE, st.data())
def test_a_subset_is_the_same_in_any_order_and_holds_each_smaller_one(crowd: Crowd, data: st.DataObject) -> None:
    trained = sum(split == "train" for split, _, _ in crowd.values())
    people = data.draw(st.none() | st.integers(1, trained)) if trained else None
    clips, seed = data.draw(st.none() | st.integers(1, 5)), data.draw(st.integers(0, 9))
    subset, items = Subset(people=people, clips_per_person=clips), items_of(crowd)
    found = subset.of(items, seed)
    assert found == [item for item in items if item.key in keys(found)]
    shuffled = random.Random(seed).sample(items, len(items))
    assert keys(subset.of(shuffled, seed)) == keys(found)

    by_split: dict[str, list[Item]] = defaultdict(list)
    for item in found:
        by_split[item.split].append(item)
    count = Counter(item.identity for item in by_split["train"])
    assert len(count) == (trained if people is None else people)
    assert all(n == min(crowd[identity][1], clips or 9) for identity, n in count.items())
    for split in ("valid", "test"):
        assert by_split[split] == [item for item in items if item.split == split]
    assert by_split["seen"] == [item for item in items if item.split == "seen" and item.identity in count]
    if people is not None and people > 1:
        assert keys(Subset(people=people - 1, clips_per_person=clips).of(items, seed)) < keys(found)
    if clips is not None:
        assert keys(found) <= keys(Subset(people=people, clips_per_person=clips + 1).of(items, seed))


def test_another_seed_chooses_others() -> None:
    items = items_of({f"p{n}": ("train", 1, 0) for n in range(30)})
    assert len({frozenset(keys(Subset(people=5).of(items, seed))) for seed in range(10)}) == 10


def test_all_is_what_is_there_and_more_is_refused() -> None:
    items = items_of({"a": ("train", 2, 1), "b": ("test", 2, 0)})
    assert Subset().of(items, 0) == items
    with pytest.raises(V2FError, match=r"subset\.people: 2, but only 1 people would be trained on"):
        Subset(people=2).of(items, 0)


def test_a_plan_says_how_much_of_train_was_taken() -> None:
    items = items_of({"a": ("train", 2, 1), "b": ("train", 3, 1), "c": ("train", 3, 0), "d": ("test", 2, 0)})
    plan = Plan(items, provenance={"csv": 1})
    assert Subset().within(plan, 0) is plan
    some = Subset(people=2, clips_per_person=1).within(plan, 0)
    assert some.items == Subset(people=2, clips_per_person=1).of(items, 0)
    assert some.provenance == plan.provenance
    assert some.taken == "2 of 3 people to train on, 2 of 8 clips"


def test_the_thesiss_sets_are_the_commands_in_the_recipe_and_each_is_part_of_the_larger_ones() -> None:
    path = Path(__file__).resolve().parents[2] / "shards" / "voxceleb2.yaml"
    lines = [line.partition("    #")[0] for line in path.read_text().splitlines() if "v2f shards pack" in line]
    recipes = [load_recipe(str(path), line.partition("voxceleb2.yaml")[2].split()) for line in lines]
    subsets: dict[str, Subset] = {recipe.out: dict(recipe.group)["subset"] for recipe in recipes}
    assert {out: (each.people, each.clips_per_person) for out, each in subsets.items()} == {
        "data/voxceleb2": (3000, None),
        "data/voxceleb2-2000": (2000, None),
        "data/small": (20, 100),
        "data/voxceleb2-all": (None, None),
    }
    for recipe in recipes[1:]:  # else they are one recipe
        assert recipe.model_copy(update={"out": recipes[0].out, "voxceleb": recipes[0].voxceleb}) == recipes[0]
        assert recipe.group.model_copy(update={"subset": subsets["data/voxceleb2"]}) == recipes[0].group
    crowd = items_of({f"p{n}": ("train" if n % 9 else "test", 1 + n % 2, 1) for n in range(4000)})
    small, some, half, whole = sorted((keys(each.of(crowd, 0)) for each in subsets.values()), key=len)
    assert small < some < half < whole == keys(crowd)


@pytest.mark.parametrize("source", ["pairs", "voxceleb", "avspeech", "folder"])
def test_every_converter_of_recordings_has_the_keys(source: str, tmp_path: Path) -> None:
    path = Path(__file__).resolve().parents[2] / "shards" / f"{source}.yaml"
    group = load_recipe(str(path), [f"out={tmp_path}", f"{source}.subset.people=20"]).group
    assert dict(group)["subset"] == Subset(people=20)
