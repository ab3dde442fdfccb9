"""Streams: each is an order of its own over its own set, and what ranks get of all is a function of data and seed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pytest
import torch
from batches import TRANSFORMS, assert_equal, joined
from hypothesis import given, settings
from hypothesis import strategies as st

from v2f.data.loader import Batch, Loader, micro_batch_of, read_usable
from v2f.data.manifest import Dataset
from v2f.data.mix import MixOrder, Union
from v2f.data.order import Order
from v2f.data.shards import write_manifest, write_shard
from v2f.data.streams import Streams, joint_fingerprint, joint_people, numbered, side_by_side, stream_seed
from v2f.errors import V2FError

BATCHES = {"voice": 24, "face": 12}
READS = {"voice": {"wav": TRANSFORMS["wav"]}, "face": {"image": TRANSFORMS["image"]}}
SEED = 5
Sets = dict[str, Dataset]


@pytest.fixture(scope="module")
def sets(noise_sample: Callable[..., tuple], tmp_path_factory: pytest.TempPathFactory) -> Sets:
    """Voices of p0 to p6, and faces of p4 to p9, one of which is damaged."""

    def made(name: str, sizes: list[int], people: range, first: int) -> Dataset:
        folder, number, shards = str(tmp_path_factory.mktemp(name)), 0, []
        for i, size in enumerate(sizes):
            named = [f"p{people[(number + k) % len(people)]}" for k in range(size)]
            items = [noise_sample(first + number + k, "train", photos=1, frames=500) for k in range(size)]
            whole = [(key, person, members) for (key, _, members), person in zip(items, named, strict=True)]
            shards.append(write_shard(folder, f"train-{i:05d}.tar", "train", whole))
            number += size
        return write_manifest(folder, shards, {})

    found = {"voice": made("voices", [20, 7, 1, 25], range(7), 0), "face": made("faces", [9, 16], range(4, 10), 100)}
    with open(found["face"].shard_path(11), "r+b") as file:
        file.seek(int(found["face"].index.offset[11]) + 600)
        file.write(b"damage")
    return found


@dataclass
class Job:
    """Ranks that train on two streams; what they would write into a checkpoint is all that outlives a leg."""

    sets: Sets
    step: int = 0
    quarantined: dict[str, list[int]] = field(default_factory=dict)

    def rank(self, rank: int, world_size: int, workers: int) -> Streams:
        splits = {name: dataset.split("train") for name, dataset in self.sets.items()}
        people, loaders = joint_people(splits.values()), {}
        for name, split in splits.items():
            batch, seed = BATCHES[name], stream_seed(SEED, name)
            order = Order.for_batches(split.shard_sizes, seed=seed, batch=batch, partitions=4, window=5)
            place = {"rank": rank, "world_size": world_size, "start_slot": self.step * batch, "workers": workers}
            known, numbers = self.quarantined.get(name, ()), numbered(split, people)
            loaders[name] = Loader(
                split, order, READS[name], batch=batch, seed=seed, quarantine=known, identity_N=numbers, **place
            )
        return Streams(loaders)

    def leg(self, steps: int, world_size: int, workers: int = 0, lost: int = 0) -> list[Batch]:
        """The global batches of ``steps`` steps, after which there is a checkpoint, and of ``lost`` more, after which
        all is killed; only those before the checkpoint count."""
        ranks = [self.rank(rank, world_size, workers) for rank in range(world_size)]
        running = [iter(rank) for rank in ranks]
        batches = []
        for _ in range(steps):
            parts = [next(each) for each in running]
            batches.append({name: joined([part[name] for part in parts]) for name in BATCHES})
        known = [rank.quarantined for rank in ranks]
        for each in running:
            list(islice(each, lost))
        for rank in ranks:
            rank.close()
        self.quarantined = {name: sorted({n for own in known for n in own[name]}) for name in BATCHES}
        self.step += steps
        return batches


STEPS = 7  # three epochs of voices, three of faces and a bit


@pytest.fixture(scope="module")
def undisturbed(sets: Sets) -> Callable[[], list[Batch]]:
    job = Job(sets)
    batches = job.leg(STEPS, 1)
    assert job.quarantined == {"voice": [], "face": [11]}
    return lambda: batches


ALONE = [(ranks, 0) for ranks in (1, 2, 3, 4, 12)]


@settings(max_examples=20)
@given(
    legs=st.lists(st.tuples(st.integers(0, 4), st.sampled_from([*ALONE * 3, (2, 1)]), st.integers(0, 2)), max_size=3)
)
def test_ranks_workers_and_kills_change_no_global_batch_of_any_stream(
    sets: Sets, undisturbed: Callable[[], list[Batch]], legs: list[tuple[int, tuple[int, int], int]]
) -> None:
    job = Job(sets)
    found = [batch for steps, (ranks, workers), lost in legs for batch in job.leg(steps, ranks, workers, lost)]
    found += job.leg(max(0, STEPS - len(found)), 2)
    for batch, expected in zip(found, undisturbed(), strict=False):
        assert list(batch) == ["voice", "face"]
        for name in BATCHES:
            assert_equal(batch[name], expected[name])


def test_each_stream_is_what_it_would_be_without_the_other(sets: Sets, undisturbed: Callable[[], list[Batch]]) -> None:
    for name, dataset in sets.items():
        whole = joined([batch[name] for batch in undisturbed()])
        split = dataset.split("train")
        assert torch.equal(whole["slot"], torch.arange(STEPS * BATCHES[name]))
        for start in range(0, len(whole["key"]) - split.samples + 1, split.samples):  # each epoch has all, once
            epoch = whole["key"][start : start + split.samples]
            assert sorted(epoch) == sorted(split.key(number) for number in range(split.samples))
        damaged = {split.key(11)} if name == "face" else set()
        assert [weight == 0 for weight in whole["weight"].tolist()] == [key in damaged for key in whole["key"]]


def test_a_name_is_one_person_in_all_streams(sets: Sets, undisturbed: Callable[[], list[Batch]]) -> None:
    names = sorted(f"p{number}" for number in range(10))
    for name, dataset in sets.items():
        whole = joined([batch[name] for batch in undisturbed()])
        split = dataset.split("train")
        person = {split.key(n): dataset.manifest.identities[i] for n, i in enumerate(split.identity_N.tolist())}
        assert [names[number] for number in whole["identity"].tolist()] == [person[key] for key in whole["key"]]
    people = joint_people(dataset.split("train") for dataset in sets.values())
    assert list(people) == names
    mixed = Union([dataset.split("train") for dataset in sets.values()])
    of_mix = numbered(mixed, joint_people([mixed]))
    apart = [numbered(dataset.split("train"), people) for dataset in sets.values()]
    assert of_mix.tolist() == np.concatenate(apart).tolist()
    faces = sets["face"].split("train")
    (read,) = read_usable(faces, READS["face"], 25, [], identity_N=numbered(faces, people))
    assert read["identity"].tolist() == np.delete(apart[1], 11).tolist()


# ------------------------------------------------------------------------------------------------ pairs


def met(seeds: tuple[int, int], samples: tuple[int, int], batch: int, people: int, epochs: int = 400) -> np.ndarray:
    """How often person a of the one stream stands in the row of person b of the other: counts [a, b]."""
    found = []
    for seed, count in zip(seeds, samples, strict=True):
        order = Order.for_batches([count // 3, count - count // 3], seed=seed, batch=batch, partitions=4, window=64)
        found.append(order.sample_numbers(0, epochs * samples[0]) % people)
    counts = np.zeros((people, people))
    np.add.at(counts, tuple(found), 1)
    return counts


def chi_square(counts: np.ndarray) -> float:
    """How many standard deviations the statistic of independence is above what independence gives."""
    expected = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / counts.sum()
    freedom = (len(counts) - 1) ** 2
    return (float(((counts - expected) ** 2 / expected).sum()) - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("seed", [0, 3, 2**40])
@pytest.mark.parametrize("samples", [(60, 60), (60, 84)])
def test_whose_voice_meets_whose_face_is_left_to_chance(seed: int, samples: tuple[int, int]) -> None:
    """Also where both streams read one set, in batches of one size."""
    counts = met((stream_seed(seed, "voice"), stream_seed(seed, "face")), samples, 12, 12)
    assert counts.sum() == 400 * 60
    assert abs(chi_square(counts)) < 4
    own = counts.trace() / counts.sum()  # a person's voice meets the own face as often as any other
    assert abs(own - 1 / 12) < 4 * (1 / 12 * 11 / 12 / counts.sum()) ** 0.5


def test_the_test_above_sees_a_pairing() -> None:
    assert chi_square(met((7, 7), (60, 60), 12, 12)) > 1000


# ------------------------------------------------------------------------------------------------ keys


def test_a_golden_stream_does_not_move() -> None:
    """A changed key makes a resumed run see other data: change the number in it, and joint_fingerprint's with it."""
    assert stream_seed(3, "") == 3
    assert (stream_seed(3, "voice"), stream_seed(3, "face")) == (4170436242, 925567717)
    assert joint_fingerprint({"": "abc"}) == "abc"
    joint = joint_fingerprint({"voice": "a", "face": "b"})
    assert joint == joint_fingerprint({"face": "b", "voice": "a"})
    assert joint != joint_fingerprint({"voice": "b", "face": "a"})
    assert joint[:16] == "f2aff8da3f5d0506"


def test_a_stream_may_be_a_mix(sets: Sets) -> None:
    """With the other one beside it."""
    splits = [dataset.split("train") for dataset in sets.values()]
    mixed, alone = Union(splits), splits[0]
    sizes = [split.shard_sizes for split in splits]
    mix = MixOrder(sizes, [2, 1], seed=stream_seed(SEED, "face"), batch=12, partitions=4, window=5)
    order = Order.for_batches(alone.shard_sizes, seed=stream_seed(SEED, "voice"), batch=24, partitions=4, window=5)
    voice = Loader(alone, order, READS["voice"], batch=24, seed=1)
    face = Loader(mixed, mix, READS["face"], batch=12, seed=2)
    with Streams({"voice": voice, "face": face}) as both:
        batches = list(islice(both, 5))
        keys = [mixed.key(number) for number in mix.sample_numbers(0, 60).tolist()]
        assert [key for batch in batches for key in batch["face"]["key"]] == keys
        assert both.bytes_read == voice.bytes_read + face.bytes_read
        assert both.fingerprint not in (order.fingerprint, mix.fingerprint)


def test_one_stream_without_a_name_is_its_loader(sets: Sets) -> None:
    split = sets["voice"].split("train")
    order = Order.for_batches(split.shard_sizes, seed=SEED, batch=24, partitions=4, window=5)
    alone = Loader(split, order, READS["voice"], batch=24, seed=SEED)
    streams = Streams({"": Loader(split, order, READS["voice"], batch=24, seed=SEED)})
    assert streams.fingerprint == order.fingerprint
    with alone, streams:
        for one, other in islice(zip(alone, streams, strict=True), 3):
            assert_equal(one, other)
    assert list(side_by_side({"a": [{"x": 1}, {"x": 2}], "b": [{"y": 3}]})) == [{"a": {"x": 1}, "b": {"y": 3}}]


@given(groups=st.lists(st.integers(1, 24), min_size=2, max_size=3), group=st.integers(1, 4), most=st.integers(1, 60))
def test_a_micro_batch_cuts_every_stream_into_as_many_parts_of_whole_norm_groups(
    groups: list[int], group: int, most: int
) -> None:
    share, *others = (count * group for count in groups)
    fits = [
        size
        for size in range(1, min(most, share) + 1)
        if share % size == 0 and all(n % (share // size * group) == 0 for n in (share, *others))
    ]
    if fits:
        assert (micro_batch_of(share, most, group, others) or share) == max(fits)
    else:
        with pytest.raises(V2FError, match=r"train\.micro_batch: "):
            micro_batch_of(share, most, group, others)
