"""A subset is a function of the seed and of names, not of their order; and a larger one holds each smaller one."""

import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v2f.errors import V2FError
from v2f.prepare import Item
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


@pytest.mark.parametrize("source", ["pairs", "voxceleb", "avspeech", "folder"])
def test_every_converter_of_recordings_has_the_keys(source: str, tmp_path: Path) -> None:
    path = Path(__file__).resolve().parents[2] / "shards" / f"{source}.yaml"
    group = load_recipe(str(path), [f"out={tmp_path}", f"{source}.subset.people=20"]).group
    assert dict(group)["subset"] == Subset(people=20)
