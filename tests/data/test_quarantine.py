"""Promise 2 where it counts: each sample of each epoch stands in one slot, used or in quarantine, whatever happens."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from batches import TRANSFORMS, assert_equal, joined
from hypothesis import example, given, settings
from hypothesis import strategies as st
from odd_transforms import Picky

from v2f.data import fetch
from v2f.data.loader import Batch, Loader, read_usable
from v2f.data.manifest import Dataset, Split
from v2f.data.mix import MixOrder, Union
from v2f.data.order import Order
from v2f.data.quarantine import Bad, Quarantine
from v2f.data.shards import write_manifest, write_shard
from v2f.data.transforms import Waveform
from v2f.errors import V2FError
from v2f.storage import store
from v2f.storage.cache import Cache

BATCH = 24  # so that 1, 2, 3, 4 and 8 ranks have equal shares
Copy = Callable[[Dataset], Dataset]
Make = Callable[..., Dataset]


def order(split: Split, window: int = 5) -> Order:
    return Order.for_batches(split.shard_sizes, seed=1, batch=BATCH, partitions=8, window=window)


def flip(dataset: Dataset, number: int) -> None:
    """Damage one sample."""
    with open(dataset.shard_path(number), "r+b") as file:
        at = int(dataset.index.offset[number]) + 600
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


@dataclass
class Job:
    """Ranks that train on ``split``; what they would write into a checkpoint is all that outlives a leg."""

    split: Split
    window: int
    step: int = 0
    quarantine: tuple[int, ...] = ()

    def leg(self, steps: int, world_size: int, workers: int = 0, lost: int = 0) -> list[Batch]:
        """The global batches of ``steps`` steps, after which there is a checkpoint, and of ``lost`` more, after which
        all is killed; only those before the checkpoint count."""
        loaders = [
            Loader(
                self.split, order(self.split, self.window), TRANSFORMS, batch=BATCH, seed=4, rank=rank,
                world_size=world_size, start_slot=self.step * BATCH, workers=workers, quarantine=self.quarantine,
            )
            for rank in range(world_size)
        ]  # fmt: skip
        streams = [iter(loader) for loader in loaders]
        batches = [joined([next(stream) for stream in streams]) for _ in range(steps)]
        known = {number for loader in loaders for number in loader.quarantine.numbers}
        for stream in streams:
            for _ in range(lost):
                next(stream)
        for loader in loaders:
            loader.close()
        self.step, self.quarantine = self.step + steps, tuple(sorted(known))
        return batches


def packed(sizes: list[int], noise_sample: Callable[..., tuple], root: Path) -> Dataset:
    shards, number = [], 0
    for i, size in enumerate(sizes):
        items = [noise_sample(number + k, "train", photos=1, frames=500) for k in range(size)]
        shards.append(write_shard(str(root), f"train-{i:05d}.tar", "train", items))
        number += size
    return write_manifest(str(root), shards, {})


RANKS = (1, 2, 3, 4, 8)
ALONE = [(ranks, 0) for ranks in RANKS]
WITH_WORKERS = [(ranks, workers) for ranks in RANKS for workers in (1, 3)]


@pytest.mark.parametrize(
    ("examples", "setups"),
    [(10, 5 * ALONE + WITH_WORKERS[:3]), pytest.param(80, 8 * ALONE + WITH_WORKERS, marks=pytest.mark.slow)],
)
def test_every_sample_of_every_epoch_stands_in_one_slot_used_or_quarantined(
    noise_sample: Callable[..., tuple], examples: int, setups: list[tuple[int, int]]
) -> None:
    """Over shards of any sizes, some samples of which are damaged and one of which may be missing, through kills at
    random slots and on other numbers of ranks and workers (fewer often than none, as processes take time to start):
    the same global batches, the same crops, the same quarantine."""
    leg = st.tuples(st.integers(0, 3), st.sampled_from(setups), st.integers(0, 2))
    run = given(
        sizes=st.lists(st.integers(1, 14), min_size=1, max_size=5),
        window=st.integers(1, 9),
        legs=st.lists(leg, min_size=1, max_size=4),
        damaged=st.lists(st.integers(0, 69), max_size=24),
        missing=st.none() | st.integers(0, 4),
    )(exactly_once)
    always = example([20, 7, 1, 25], 5, [(2, (2, 1), 1), (2, (1, 3), 2)], [0, 3, 30], 1)(run)
    settings(max_examples=examples)(always)(noise_sample)


def exactly_once(
    noise_sample: Callable[..., tuple],
    sizes: list[int],
    window: int,
    legs: list[tuple[int, tuple[int, int], int]],
    damaged: list[int],
    missing: int | None,
) -> None:
    """``legs``: steps that count, ranks and the workers of each, steps that are lost; of ``damaged`` and ``missing``
    what there is."""
    total = sum(sizes)
    bad = set(list(dict.fromkeys(number % total for number in damaged))[: total // 2])
    with tempfile.TemporaryDirectory() as folder:
        dataset = packed(sizes, noise_sample, Path(folder))
        for number in bad:
            flip(dataset, number)
        if missing is not None and missing < len(sizes):
            Path(folder, dataset.manifest.shards[missing].name).unlink()
            bad |= set(np.flatnonzero(dataset.index.shard == missing).tolist())
        split = dataset.split("train")
        if len(bad) == total:
            with pytest.raises(V2FError, match="found no usable sample of train"):
                Job(split, window).leg(1, 1)
            return
        steps = sum(leg[0] for leg in legs) + -(-total // BATCH)
        whole, job = Job(split, window), Job(split, window)
        undisturbed = whole.leg(steps, 1)
        went_on = [batch for steps, setup, lost in legs for batch in job.leg(steps, *setup, lost)]
        went_on += job.leg(steps - len(went_on), 1)
    for one, two in zip(went_on, undisturbed, strict=True):
        assert_equal(one, two)
    assert job.quarantine == whole.quarantine
    keys = [key for batch in went_on for key in batch["key"]]
    weights = [weight for batch in went_on for weight in batch["weight"].tolist()]
    names = [split.key(number) for number in range(total)]
    for start in range(0, len(keys) - total + 1, total):
        assert sorted(keys[start : start + total]) == names
    unusable = {split.key(number) for number in bad}
    assert [weight == 0 for weight in weights] == [key in unusable for key in keys]
    assert {split.key(number) for number in job.quarantine} == unusable & set(keys)


# ------------------------------------------------------------------------------------------------ what stands in


def test_a_bad_slot_holds_the_first_sample_that_verifies_drawn_with_its_own_randomness(
    make_dataset: Make, copy_of: Copy
) -> None:
    whole = make_dataset([20, 33])
    dataset = copy_of(whole)
    for number in (0, 17, 40):
        flip(dataset, number)
    split = dataset.split("train")
    batches = joined(Job(split, 5).leg(3, 1))
    rows = {key: row for row, key in enumerate(batches["key"][:53])}
    undamaged = whole.split("train").key(1)
    wav = joined(list(read_usable(split, {"wav": Waveform(0.05)}, 1, [], samples=[1])))["wav"][0]
    windows = wav.unfold(0, 480, 1)
    starts = []
    for number in (0, 17, 40):
        row = rows[split.key(number)]
        assert batches["weight"][row] == 0
        assert batches["identity"][row] == split.identity_N[number]
        at = (windows == batches["wav"][row]).all(1).nonzero()
        assert len(at) == 1, undamaged
        starts.append(int(at))
    assert len(set(starts)) > 1  # another slot, another crop


def test_a_sample_that_a_transform_refuses_is_quarantined_and_another_stands_in(make_dataset: Make) -> None:
    split = make_dataset([53]).split("train")
    with Loader(split, order(split), {"x": Picky()}, batch=BATCH, seed=0) as loader:
        batch = joined(list(islice(loader, 3)))
        (entry,) = loader.quarantine.news()
    assert (entry.key, entry.reason) == ("s00020", "not this one")
    assert entry.slot == batch["slot"][batch["key"].index("s00020")]
    assert str(entry).endswith(f"train-00000.tar: sample s00020 at byte {split.byte(20)}: not this one")


def test_where_nothing_verifies_that_is_the_error(make_dataset: Make) -> None:
    """A transform that refuses everything: after some tries, and not after reading the whole data set."""

    class Refuses:
        tried = 0

        def __call__(self, sample: object, rng: object) -> np.ndarray:
            Refuses.tried += 1
            raise V2FError(f"sample {sample.key}: no such thing in it")  # type: ignore[attr-defined]

    split = make_dataset([200], photos=1, frames=100).split("train")
    problem = r"train-00000\.tar: sample s00000 at byte 0: no such thing in it"
    message = f"found no usable sample of train; the first problem: .*{problem}"
    with pytest.raises(V2FError, match=message):
        next(iter(Loader(split, order(split), {"x": Refuses()}, batch=BATCH, seed=0)))
    assert Refuses.tried < 130


# ------------------------------------------------------------------------------------------------ again, and not


def flaky(monkeypatch: pytest.MonkeyPatch, *answers: Callable[[bytes], bytes]) -> list[tuple[str, int, int]]:
    """The next reads from the store give what the ``answers`` make of their bytes; the list of all reads."""
    real, left, asked = store.read_range, list(answers), []

    def read_range(path: str, offset: int, length: int) -> bytes:
        asked.append((path, offset, length))
        return (left.pop(0) if left else bytes)(real(path, offset, length))

    monkeypatch.setattr(store, "read_range", read_range)
    return asked


def fails(content: bytes) -> bytes:
    raise V2FError("the store is tired")


def turned(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


@pytest.mark.parametrize("answer", [fails, turned])
def test_a_second_look_helps_where_the_store_was_wrong_and_the_shard_is_whole(
    make_dataset: Make, monkeypatch: pytest.MonkeyPatch, answer: Callable[[bytes], bytes]
) -> None:
    split = make_dataset([53]).split("train")
    expected = Job(split, 5).leg(4, 1)
    asked = flaky(monkeypatch, answer)
    job = Job(split, 5)
    for one, two in zip(job.leg(4, 1), expected, strict=True):
        assert_equal(one, two)
    assert job.quarantine == ()
    first, *later = [(offset, offset + length) for _, offset, length in asked]
    assert any(first[0] <= start < stop <= first[1] for start, stop in later)


def test_a_damaged_entry_of_the_cache_is_read_from_the_store_again(make_dataset: Make, tmp_path: Path) -> None:
    split = make_dataset([53]).split("train")

    def read() -> int:
        """Reads all in runs of five; how often the store was asked."""
        reader = fetch.Reader(split, Cache(str(tmp_path / "cache"), 10_000_000))
        for at in range(0, 50, 5):
            for number, raw in reader.read(np.arange(at, at + 5)).items():
                assert not isinstance(raw, Bad)
                assert crc32(raw) == split.extents.crc32[number]
        return reader.requests

    assert (read(), read()) == (10, 0)
    entries = sorted(path for path in (tmp_path / "cache").iterdir() if path.stat().st_size > 1000)
    for path in entries[:3]:
        content = path.read_bytes()
        path.write_bytes(content[:700] + bytes([content[700] ^ 255]) + content[701:])
    assert [read() for _ in range(3)] == [3, 3, 0]  # the sample past the cache; the next time the entry


def test_ranks_of_a_node_read_each_byte_once_through_the_cache(make_dataset: Make, tmp_path: Path) -> None:
    """Eight ranks and two partitions: four ranks need the same blocks, and the store is asked for them once."""
    split = make_dataset([60, 40]).split("train")
    plan = Order.for_batches(split.shard_sizes, seed=1, batch=BATCH, partitions=2, window=10)
    cache = Cache(str(tmp_path / "cache"), 10_000_000)
    loaders = [
        Loader(split, plan, TRANSFORMS, batch=BATCH, seed=4, rank=rank, world_size=8, cache=cache) for rank in range(8)
    ]
    streams = [iter(loader) for loader in loaders]
    for _ in range(100 // BATCH + 1):
        for stream in streams:
            next(stream)
    stored = int(split.extents.length.sum())
    total = sum(loader.bytes_read for loader in loaders)
    for loader in loaders:
        loader.close()
    assert stored <= total <= 1.25 * stored + 2 * 2 * 10 * stored / 100  # with what is read ahead of the last batch


def test_a_shard_that_is_not_there_is_asked_for_once_in_a_while(
    make_dataset: Make, copy_of: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = copy_of(make_dataset([20, 60, 20]))
    path = dataset.shard_path(25)
    Path(path).unlink()
    asked = flaky(monkeypatch)
    split = dataset.split("train")
    job = Job(split, 5)
    job.leg(10, 1)
    assert job.quarantine == tuple(range(20, 80))
    assert sum(where == path for where, _, _ in asked) <= 8  # of 12 and more blocks; several threads ask at once
    asked.clear()
    monkeypatch.setattr(fetch, "LOST_FOR_S", 0.0)
    Job(split, 5).leg(10, 1)
    assert sum(where == path for where, _, _ in asked) > 8


def test_a_shard_whose_reads_fail_slowly_is_given_up(make_dataset: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one after the first failure, until that has cost enough: not the store's whole patience a sample."""
    dataset = make_dataset([30, 30])
    real, asked, clock = store.read_range, [], [0.0]

    def read_range(path: str, offset: int, length: int) -> bytes:
        if path.endswith("train-00001.tar"):
            asked.append(offset)
            clock[0] += 25.0
            raise V2FError(f"{path}: cannot read it (time-out)")
        return real(path, offset, length)

    monkeypatch.setattr(store, "read_range", read_range)
    monkeypatch.setattr(fetch.time, "monotonic", lambda: clock[0])
    reader = fetch.Reader(dataset.split("train"))
    found = reader.read(np.arange(60))
    assert [isinstance(found[n], Bad) for n in range(60)] == [n >= 30 for n in range(60)]
    assert found[31].reason == "cannot read it (time-out)"
    assert len(asked) == 3
    assert reader.lost(45) == "cannot read it (time-out)"
    assert reader.lost(3) is None


# ------------------------------------------------------------------------------------------------ what is remembered


def test_what_is_in_quarantine_is_not_asked_for(make_dataset: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    split = make_dataset([20, 33]).split("train")
    known = (3, 25, 26)
    asked = flaky(monkeypatch)
    job = Job(split, 5, quarantine=known)
    batches = job.leg(5, 2)
    extents = split.extents
    for number in known:
        begin, path = int(extents.offset[number]), split.shard_path(number)
        assert not any(where == path and at <= begin < at + length for where, at, length in asked)
    assert job.quarantine == known
    bad = {split.key(number) for number in known}
    for batch in batches:
        assert [weight == 0 for weight in batch["weight"].tolist()] == [key in bad for key in batch["key"]]


def test_a_sample_that_is_read_ahead_and_quarantined_meanwhile_is_left_out_as_after_a_resume(
    make_dataset: Make,
) -> None:
    """Another rank has met it: from the moment at which this one learns it, its batches are those of a resumed run."""
    split = make_dataset([20, 33]).split("train")
    expected = Job(split, 5, step=1, quarantine=(7, 8)).leg(6, 1)
    loader = Loader(split, order(split), TRANSFORMS, batch=BATCH, seed=4, workers=1)
    other = Quarantine(split)
    other.add(7, 0, "met elsewhere")
    other.add(8, 1, "met elsewhere")
    with loader:
        batches = iter(loader)
        next(batches)
        loader.quarantine.adopt(other.news())
        for batch in expected:
            assert_equal(next(batches), batch)
    assert loader.quarantine.numbers == [7, 8]
    assert loader.quarantine.news() == []


def test_a_quarantine_names_each_sample_once_and_in_order(make_dataset: Make) -> None:
    split = make_dataset([20, 33]).split("train")
    quarantine = Quarantine(split, [4])
    for number, slot in ((21, 100), (4, 101), (21, 102), (0, 103)):
        quarantine.add(number, slot, f"sample {split.key(number)}: no good")
    assert quarantine.numbers == [0, 4, 21]
    assert 21 in quarantine
    assert 5 not in quarantine
    assert [(e.number, e.slot, e.reason) for e in quarantine.news()] == [(21, 100, "no good"), (0, 103, "no good")]
    assert quarantine.news() == []
    with pytest.raises(V2FError, match="a quarantine of other samples than the 53 of train"):
        Quarantine(split, [53])


# ------------------------------------------------------------------------------------------------ mixes


def test_a_mix_of_damaged_data_sets_knows_what_is_bad_and_where(make_dataset: Make, tmp_path: Path) -> None:
    """Sources of the same keys and people, as copies would have: they are told apart."""
    one, two = make_dataset([20, 7], root=tmp_path / "one"), make_dataset([9], root=tmp_path / "two")
    flip(one, 21)
    flip(two, 5)
    mixed = Union([one.split("train"), two.split("train")])
    assert (mixed.samples, mixed.key(27), mixed.root(27)) == (36, "s00000", two.root)
    assert mixed.where(32) == f"{two.shard_path(5)}: sample s00005 at byte {int(two.index.offset[5])}"
    assert sorted(set(mixed.identity_N.tolist())) == list(range(10))
    plan = MixOrder([[20, 7], [9]], [1, 1], seed=0, batch=BATCH, partitions=4, window=5)
    with Loader(mixed, plan, TRANSFORMS, batch=BATCH, seed=0) as loader:
        batch = joined(list(islice(loader, 4)))
        news = loader.quarantine.news()
    assert {(entry.shard, entry.key) for entry in news} == {
        (one.shard_path(21), "s00021"),
        (two.shard_path(5), "s00005"),
    }
    places = plan.places(batch["slot"].numpy())
    assert torch.equal(batch["identity"], torch.from_numpy(mixed.identity_N[places.sample_S]))
    assert [weight == 0 for weight in batch["weight"].tolist()] == [n in (21, 32) for n in places.sample_S.tolist()]


def test_splits_of_one_data_set_share_its_people(make_dataset: Make) -> None:
    dataset = make_dataset([10], [5])
    mixed = Union([dataset.split("train"), dataset.split("valid")])
    assert mixed.identity_N.max() == 4
    assert mixed.fingerprint != Union([dataset.split("valid"), dataset.split("train")]).fingerprint
