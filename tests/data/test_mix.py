"""A mix of data sets: a pure function of the slot, with epochs for each source."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from v2f.data.mix import MixOrder
from v2f.errors import V2FError

SIZES = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3)


@st.composite
def mixes(draw: st.DrawFn) -> MixOrder:
    sizes = draw(SIZES)
    weights = [draw(st.sampled_from([0.5, 1.0, 1.5, 2.0])) for _ in sizes]
    batch, partitions = draw(st.sampled_from([(4, 2), (12, 4), (6, 8), (8, 8)]))
    return MixOrder(
        sizes, weights, seed=draw(st.integers(0, 3)), batch=batch, partitions=partitions, window=draw(st.integers(1, 6))
    )


@given(mixes(), st.integers(0, 500))
@settings(max_examples=60)
def test_a_slot_does_not_depend_on_how_slots_are_asked_for(mix: MixOrder, start: int) -> None:
    whole = mix.sample_numbers(start, start + 64)
    single = np.concatenate([mix.sample_numbers(s, s + 1) for s in range(start, start + 64)])
    np.testing.assert_array_equal(whole, single)
    mixed = np.random.default_rng(0).permutation(64)
    np.testing.assert_array_equal(mix.places(start + mixed).sample_S, whole[mixed])


@given(mixes())
@settings(max_examples=25)
def test_each_epoch_of_each_source_has_every_sample_once(mix: MixOrder) -> None:
    """Over a stretch in which every source has finished some epochs; its end cuts the last ones."""
    slots = 3 * sum(mix.shares) * (mix.samples + mix.partitions * mix.chunk)
    places = mix.places(np.arange(slots, dtype=np.int64))
    source_S, own_S = np.divmod(places.partition_S, mix.partitions)
    finished = 0
    for i, order in enumerate(mix.orders):
        mine = source_S == i
        numbers, epochs, partitions = places.sample_S[mine] - mix.firsts[i], places.epoch_S[mine], own_S[mine]
        begun_by_all = min(epochs[partitions == p].max(initial=0) for p in range(mix.partitions))
        for epoch in range(epochs.max() + 1):
            found = np.sort(numbers[epochs == epoch])
            assert len(np.unique(found)) == len(found)  # no sample twice
            if epoch < begun_by_all:
                np.testing.assert_array_equal(found, np.arange(order.samples))
                finished += 1
    assert finished


@given(mixes())
@settings(max_examples=40)
def test_every_stretch_of_a_partition_has_the_sources_in_proportion(mix: MixOrder) -> None:
    places = mix.places(np.arange(700, dtype=np.int64))
    source_S, partition_S = np.divmod(places.partition_S, mix.partitions)
    for p in range(mix.partitions):
        mine = source_S[partition_S == p]
        for i, share in enumerate(mix.shares):
            had = np.cumsum(mine == i)
            wanted = np.arange(1, len(mine) + 1) * share / sum(mix.shares)
            assert np.abs(had - wanted).max() <= len(mix.shares)


@given(mixes(), st.integers(0, 300))
@settings(max_examples=40)
def test_a_block_holds_the_samples_that_its_slots_take(mix: MixOrder, start: int) -> None:
    """What a rank reads ahead is what it will need: the blocks of :meth:`places`, and :meth:`next_block` after them."""
    places = mix.places(np.arange(start, start + 200, dtype=np.int64))
    rows = zip(places.epoch_S, places.partition_S, places.block_S, places.rank_S, places.sample_S, strict=True)
    last: dict[int, tuple[int, int, int]] = {}
    for epoch, partition, block, rank, sample in (map(int, row) for row in rows):
        here = (epoch, partition, block)
        assert sample in mix.block_samples(*here)
        assert rank < mix.window
        if partition in last and last[partition] != here:
            assert mix.next_block(*last[partition]) in (here, None)  # None: a partition that an epoch passes by
        last[partition] = here


def test_a_mix_of_one_source_trains_on_that_source_and_the_seed_changes_the_order() -> None:
    one = MixOrder([[7, 5]], [3.0], seed=0, batch=4)
    assert sorted(one.sample_numbers(0, 12).tolist()) == list(range(12))
    orders = [MixOrder([[7, 5], [30]], [1, 2], seed=seed, batch=4) for seed in (0, 1)]
    assert orders[0].sample_numbers(0, 40).tolist() != orders[1].sample_numbers(0, 40).tolist()


def test_what_a_mix_is_made_of_is_in_its_fingerprint() -> None:
    made = [
        MixOrder(sizes, weights, seed=seed, batch=batch, data=data).fingerprint
        for sizes, weights, seed, batch, data in (
            ([[3], [4]], [1, 2], 0, 4, ["a", "b"]),
            ([[3], [4]], [2, 4], 0, 4, ["a", "b"]),
            ([[3], [4]], [1, 3], 0, 4, ["a", "b"]),
            ([[3], [4]], [1, 2], 1, 4, ["a", "b"]),
            ([[3], [4]], [1, 2], 0, 8, ["a", "b"]),
            ([[3], [4]], [1, 2], 0, 4, ["a", "c"]),
            ([[4], [3]], [1, 2], 0, 4, ["a", "b"]),
        )
    ]
    assert made[0] == made[1]
    assert all(one != two for one, two in itertools.combinations(made[1:], 2))


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ([1.0], "a weight for each source, got 2 sources, 1 weights"),
        ([1.0, 0.0], "above zero, got 1.0, 0.0"),
        ([1.0, float("nan")], "above zero"),
        ([1.0, 1e-5], "below one 1000th of the whole"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused(weights: list[float], told: str) -> None:
    with pytest.raises(V2FError, match=told):
        MixOrder([[3], [4]], weights, seed=0, batch=4)
