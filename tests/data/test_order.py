"""Promise 1: the order is a pure function of the slot."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from v2f.data.order import Order
from v2f.errors import V2FError

sizes = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 0)
orders = st.builds(
    Order,
    sizes,
    seed=st.integers(0, 2**40),
    partitions=st.integers(1, 9),
    chunk=st.integers(1, 7),
    window=st.integers(1, 40),
)


@given(orders, st.integers(0, 1000))
def test_every_epoch_holds_every_sample_once(order: Order, epoch: int) -> None:
    numbers = order.sample_numbers(epoch * order.samples, (epoch + 1) * order.samples)
    assert sorted(numbers.tolist()) == list(range(order.samples))


@given(orders, st.integers(0, 10**12), st.lists(st.integers(0, 50), min_size=1, max_size=9))
def test_a_slot_does_not_depend_on_how_slots_are_asked_for(order: Order, start: int, cuts: list[int]) -> None:
    whole = order.sample_numbers(start, start + 50)
    edges = sorted({0, 50, *cuts})
    parts = [order.sample_numbers(start + a, start + b) for a, b in itertools.pairwise(edges)]
    assert np.concatenate(parts).tolist() == whole.tolist()
    shuffled = start + np.random.default_rng(0).permutation(50)
    fresh = Order(
        order.shard_sizes, seed=order.seed, partitions=order.partitions, chunk=order.chunk, window=order.window
    )
    assert fresh.places(shuffled).sample_S.tolist() == whole[shuffled - start].tolist()


@given(orders, st.integers(0, 50))
def test_partitions_take_disjoint_runs_of_the_shards_in_blocks_of_a_window(order: Order, epoch: int) -> None:
    """What keeps reading to one data set an epoch: a partition's slots in an epoch are one run of adjacent samples."""
    slots = np.arange(epoch * order.samples, (epoch + 1) * order.samples)
    places = order.places(slots)
    assert (places.partition_S == slots // order.chunk % order.partitions).all()
    shard_of = np.repeat(np.arange(len(order.shard_sizes)), order.shard_sizes)
    runs = 0
    for partition in range(order.partitions):
        for block in np.unique(places.block_S[places.partition_S == partition]):
            stored = order.block_samples(epoch, partition, int(block))
            mine = places.sample_S[(places.partition_S == partition) & (places.block_S == block)]
            assert sorted(mine.tolist()) == sorted(stored.tolist())
            assert len(stored) <= order.window
            runs += 1 + np.count_nonzero((np.diff(stored) != 1) | (np.diff(shard_of[stored]) != 0))
    blocks = sum(-(-int((places.partition_S == p).sum()) // order.window) for p in range(order.partitions))
    assert runs <= blocks + len(order.shard_sizes) + 1


@given(orders, st.integers(0, 20))
def test_the_next_block_is_the_one_whose_slots_come_next(order: Order, epoch: int) -> None:
    slots = np.arange(epoch * order.samples, (epoch + 2) * order.samples)
    places = order.places(slots)
    for partition in range(order.partitions):
        mine = places.partition_S == partition
        visited = list(dict.fromkeys(zip(places.epoch_S[mine].tolist(), places.block_S[mine].tolist(), strict=True)))
        for here, there in itertools.pairwise(visited):
            following = order.next_block(here[0], partition, here[1])
            # Where a partition has no slot in the following epoch there is nothing to read ahead yet.
            assert following == (there[0], partition, there[1]) or (following is None and there[0] > here[0] + 1)


def test_epochs_and_seeds_differ_and_mix_over_the_shards() -> None:
    def order(seed: int) -> Order:
        return Order([100] * 10, seed=seed, partitions=4, chunk=4, window=64)

    first, second = order(1).sample_numbers(0, 1000), order(1).sample_numbers(1000, 2000)
    assert (first == second).mean() < 0.05
    assert (first == order(2).sample_numbers(0, 1000)).mean() < 0.05
    assert len(np.unique(first[:64] // 100)) >= 4
    assert order(1).fingerprint != order(2).fingerprint


def test_a_golden_order_does_not_move() -> None:
    """A changed order makes a resumed run see other data: change the fingerprint's version with it."""
    order = Order([5, 3], seed=3, partitions=2, chunk=2, window=3)
    assert order.sample_numbers(0, 16).tolist() == [6, 5, 1, 2, 4, 7, 0, 3, 4, 3, 1, 0, 5, 6, 7, 2]


def test_far_slots_cost_what_near_slots_cost() -> None:
    """No state, no walk: a fresh order finds slot 10**15 by making the plan of its two epochs only."""
    order = Order([1000] * 50, seed=0, partitions=8, chunk=4, window=256)
    order.sample_numbers(10**15, 10**15 + 32)
    assert order._epoch.cache_info().misses <= 2
    assert order._block.cache_info().misses <= 16


def test_for_batches_gives_each_rank_whole_partitions() -> None:
    order = Order.for_batches([1000], seed=0, batch=48, partitions=8)
    assert (order.partitions, order.chunk) == (8, 6)
    assert Order.for_batches([1000], seed=0, batch=12, partitions=8).partitions == 4
    places = order.places(np.arange(48))
    assert (places.partition_S == np.repeat(np.arange(8), 6)).all()


@pytest.mark.parametrize(
    ("sizes", "kind"),
    [([0], {}), ([3], {"window": 0}), ([3], {"chunk": 0}), ([3], {"partitions": 0}), ([3], {"seed": -1})],
)
def test_nonsense_is_refused(sizes: list[int], kind: dict[str, int]) -> None:
    with pytest.raises(V2FError, match="an order needs"):
        Order(sizes, **{"seed": 0, "partitions": 1, "chunk": 1, "window": 1, **kind})
