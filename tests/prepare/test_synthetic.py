"""Synthetic samples are what the world says, and the splits are what the recipe says."""

from typing import Any

import numpy as np
import pytest

from v2f.config import build
from v2f.data.sample import Sample
from v2f.data.transforms import Factors
from v2f.errors import V2FError
from v2f.prepare import Item, Made
from v2f.prepare.synthetic import Synthetic, SyntheticConfig
from v2f.world import world_hash
from v2f.world.people import CLIP, FACE, PHOTO, VOICE, World
from v2f.world.portraits import render_portraits

CROWDS = {
    "train": {"people": 6, "clips": 2},
    "valid": {"people": 2},
    "test": {"people": 3, "clips": 2},
    "seen": {"people": 4, "clips": 2},
}


def synthetic(**kinds: Any) -> Synthetic:
    values = {**CROWDS, "seconds": 0.3, "size": 32, "photos": 2, **kinds}
    return Synthetic(build(SyntheticConfig, values, "the test"))


def samples(converter: Synthetic, items: list[Item]) -> dict[str, Sample]:
    made = converter.make(items)
    assert all(isinstance(one, Made) for one in made)
    return {one.item.key: Sample(one.item.key, one.members) for one in made if isinstance(one, Made)}


def test_the_plan_has_the_people_and_clips_of_the_recipe() -> None:
    plan = synthetic().plan()
    people: dict[str, set[str]] = {}
    clips: dict[str, set[int]] = {}
    for item in plan.items:
        people.setdefault(item.split, set()).add(item.identity)
        clips.setdefault(item.split, set()).add(item.what[1])
    assert {split: len(found) for split, found in people.items()} == {"train": 6, "valid": 2, "test": 3, "seen": 4}
    assert people["seen"] < people["train"]
    assert not people["train"] & people["test"]
    assert not people["valid"] & (people["train"] | people["test"])
    assert clips == {"train": {0, 1}, "valid": {0}, "test": {0, 1}, "seen": {2, 3}}
    assert len({item.key for item in plan.items}) == len(plan.items) == 28
    assert plan.provenance["world_hash"] == world_hash()


def test_more_people_change_no_person() -> None:
    few, many = synthetic(), synthetic(train={"people": 60, "clips": 2})
    keys = {item.key: item for item in many.plan().items}
    for item in few.plan().items:
        assert keys[item.key] == item


def test_a_sample_is_what_the_world_says() -> None:
    converter, world = synthetic(), World()
    items = [item for item in converter.plan().items if item.split == "test"]
    for item in items:
        sample = samples(converter, [item])[item.key]
        person, clip = item.what
        assert (sample.identity, sample.meta["split"], sample.meta["source"]) == (item.identity, "test", "synthetic")
        assert sample.waveform().shape == (4800,)
        assert (sample.meta["person"], sample.meta["clip"]) == (person, clip)
        assert sample.meta["photos"] == [2 * clip, 2 * clip + 1]
        ids = np.array([person])
        for n, number in enumerate(sample.meta["photos"]):
            drawn = render_portraits(world.face(ids), world.photo(ids, np.array([number])), 32)[0]
            assert np.array_equal(sample.photo(n), drawn)
        factors = sample.meta["factors"]
        assert (tuple(factors["voice"]), tuple(factors["face"]), tuple(factors["clip"])) == (VOICE, FACE, CLIP)
        assert [tuple(photo) for photo in factors["photos"]] == [PHOTO, PHOTO]
        assert np.allclose(Factors("voice")(sample, None), world.voice(ids)[0], atol=1e-5)
        assert np.allclose(Factors("face")(sample, None), world.face(ids)[0], atol=1e-5)
        assert sample.meta["world"] == {
            "version": sample.meta["world"]["version"],
            "hash": world_hash(),
            **world.config.model_dump(),
        }


def test_a_sample_does_not_depend_on_what_is_made_with_it() -> None:
    converter = synthetic()
    items = converter.plan().items[:6]
    together = converter.make(items)
    assert [converter.make([item])[0] for item in items] == together


def test_clips_and_people_differ() -> None:
    converter = synthetic()
    wavs = [s.waveform() for s in samples(converter, converter.plan().items[:4]).values()]
    assert all(np.abs(a - b).max() > 0.01 for i, a in enumerate(wavs) for b in wavs[:i])


def test_impossible_crowds_are_refused() -> None:
    with pytest.raises(V2FError, match=r"synthetic\.seen\.people: 7, but only 6 people are trained on"):
        synthetic(seen={"people": 7}).plan()
    with pytest.raises(V2FError, match=r"synthetic\.test\.people: at most 1000000"):
        synthetic(test={"people": 1_000_001}).plan()
