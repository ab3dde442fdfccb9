"""Promise 1 where it counts: the batches that ranks get, however many they are, wherever they start."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import TRANSFORMS, assert_equal, joined
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_transforms import Deadly, Picky, Uneven, Wrong

from v2f.data.encoding import encode
from v2f.data.farm import Farm
from v2f.data.loader import Batch, Loader, check_batch, micro_batch_of, read_split
from v2f.data.manifest import Dataset, Split
from v2f.data.order import Order
from v2f.data.shards import write_manifest, write_shard
from v2f.data.transforms import Photo, StoredCodes, Waveform
from v2f.errors import V2FError

BATCH = 12


def order(split: Split, window: int = 5, seed: int = 3) -> Order:
    return Order.for_batches(split.shard_sizes, seed=seed, batch=BATCH, partitions=4, window=window)


@pytest.fixture(scope="module")
def train(dataset: Dataset) -> Split:
    return dataset.split("train")


def take(split: Split, steps: int, **kinds: int) -> list[Batch]:
    defaults = {"batch": BATCH, "seed": 9}
    with Loader(split, order(split), TRANSFORMS, **{**defaults, **kinds}) as loader:
        return list(islice(loader, steps))


class Batches(list[Batch]):
    def __repr__(self) -> str:
        return f"{len(self)} batches"


@pytest.fixture(scope="module")
def undisturbed(train: Split) -> Batches:
    """Two epochs and a bit, in one process without workers."""
    return Batches(take(train, 12))


def test_what_a_batch_is(train: Split, undisturbed: list[Batch]) -> None:
    first = undisturbed[0]
    assert (first["wav"].shape, first["wav"].dtype) == ((12, 480), torch.float32)
    assert (first["image"].shape, first["image"].dtype) == ((12, 3, 8, 8), torch.uint8)
    assert torch.equal(first["slot"], torch.arange(12))
    assert torch.equal(first["weight"], torch.ones(12))
    numbers = order(train).sample_numbers(0, 12).tolist()
    assert first["key"] == [train.key(n) for n in numbers]
    assert torch.equal(first["identity"], torch.from_numpy(train.identity_N[numbers]))
    keys = [key for batch in undisturbed for key in batch["key"]]
    assert len(set(keys[:53])) == len(set(keys[53:106])) == 53


def test_crops_and_photos_are_drawn_anew_for_each_slot(train: Split, undisturbed: list[Batch]) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    for batch in undisturbed[:8]:
        for key, wav in zip(batch["key"], batch["wav"], strict=True):
            seen.setdefault(key, []).append(wav)
    pairs = [wavs for wavs in seen.values() if len(wavs) > 1]
    assert sum(not torch.equal(*wavs[:2]) for wavs in pairs) > 0.9 * len(pairs)
    other_seed = take(train, 1, seed=10)[0]
    assert other_seed["key"] == undisturbed[0]["key"]
    assert not torch.equal(other_seed["wav"], undisturbed[0]["wav"])


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_any_world_size_and_any_workers_see_the_same_global_batches(
    train: Split, undisturbed: list[Batch], world_size: int, workers: int
) -> None:
    steps = 6  # more than an epoch of 53
    ranks = [take(train, steps, rank=r, world_size=world_size, workers=workers) for r in range(world_size)]
    for step in range(steps):
        assert_equal(joined([batches[step] for batches in ranks]), undisturbed[step])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.integers(0, 11), world_sizes=st.tuples(st.sampled_from([1, 2, 3, 4, 6]), st.sampled_from([1, 2, 3, 4])))
def test_a_run_that_goes_on_elsewhere_is_the_undisturbed_one(
    train: Split, undisturbed: list[Batch], steps: int, world_sizes: tuple[int, int]
) -> None:
    before, after = world_sizes
    parts = [take(train, steps, rank=r, world_size=before) for r in range(before)]
    rest = [take(train, 12 - steps, rank=r, world_size=after, start_slot=steps * BATCH) for r in range(after)]
    went_on = [joined(list(ranks)) for ranks in [*zip(*parts, strict=True), *zip(*rest, strict=True)]]
    for one, two in zip(went_on, undisturbed, strict=True):
        assert_equal(one, two)


def test_a_resume_may_start_at_any_slot(train: Split, undisturbed: list[Batch]) -> None:
    whole = joined(undisturbed)
    for start in (1, 17, 52, 53, 54):
        batch = take(train, 1, start_slot=start)[0]
        assert torch.equal(batch["wav"], whole["wav"][start : start + 12])


@pytest.mark.parametrize(("workers", "reverse"), [(0, False), (2, False), (0, True)])
def test_codes_are_those_of_the_photo_in_the_same_batch(tmp_path: Path, workers: int, reverse: bool) -> None:
    """Each photo and its codes hold one number; whatever stands first or decodes, they are the same one."""
    items = []
    for n in range(30):
        about = {"identity": f"p{n}", "split": "train", "source": "test"}
        photos = [np.full((8, 8, 3), 5 * n + i, np.uint8) for i in range(5)]
        codes_PLD = np.stack([np.full((2, 4), photo[0, 0, 0], np.float32) for photo in photos])
        items.append((f"s{n}", f"p{n}", encode(f"s{n}", np.ones(800), 16000, photos, codes_PLD=codes_PLD, **about)))
    split = write_manifest(str(tmp_path), [write_shard(str(tmp_path), "train-00000.tar", "train", items)], {}).split(
        "train"
    )
    named = {
        "wav": Waveform(0.03),
        "image": Photo(8),
        "codes": StoredCodes(2, 4),
        "other": StoredCodes(2, 4, draws_as="other"),
    }
    transforms = dict(reversed(named.items())) if reverse else named
    with Loader(split, order(split), transforms, batch=BATCH, seed=9, workers=workers) as loader:
        batches = list(islice(loader, 5))
    shown = torch.cat([batch["image"][:, 0, 0, 0] for batch in batches]).float()
    codes, other = (torch.cat([batch[name] for batch in batches]) for name in ("codes", "other"))
    assert torch.equal(codes, shown[:, None, None].expand(-1, 2, 4))
    assert 5 < (other[:, 0, 0] != shown).sum() < 60  # a draw of its own is another one
    assert len(set((shown % 5).tolist())) == 5
    (batch,) = read_split(split, transforms, 30)
    assert torch.equal(batch["codes"][:, 0, 0], batch["image"][:, 0, 0, 0].float())
    assert (batch["image"][:, 0, 0, 0] % 5 == 0).all()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_whole_job_reads_each_byte_about_once_an_epoch(
    make_dataset: Callable[..., Dataset], world_size: int
) -> None:
    split = make_dataset([90, 10, 100, 40]).split("train")
    plan = order(split, window=10)
    stored = sum(int(n) for n in split.dataset.index.length)
    epochs, steps = 3, 3 * 240 // BATCH
    total = requests = 0
    for rank in range(world_size):
        with Loader(split, plan, TRANSFORMS, batch=BATCH, seed=0, rank=rank, world_size=world_size) as loader:
            for _ in islice(loader, steps):
                pass
            total, requests = total + loader.bytes_read, requests + loader.requests
    assert stored * epochs <= total <= 1.25 * stored * epochs
    assert total / requests >= 0.75 * 10 * stored / 240  # a request is a window, but for the ends of shards and runs


def test_evaluation_reads_the_manifests_order_without_chance(dataset: Dataset) -> None:
    valid = dataset.split("valid")
    batches = list(read_split(valid, TRANSFORMS, 3))
    assert [batch["key"] for batch in batches] == [["s00053", "s00054", "s00055"], ["s00056", "s00057"]]
    again = joined(list(read_split(valid, TRANSFORMS, 2, workers=1)))
    assert_equal(joined(batches), again)
    assert joined(list(read_split(valid, TRANSFORMS, 2, limit=3)))["key"] == ["s00053", "s00054", "s00055"]
    assert joined(list(read_split(valid, TRANSFORMS, 2, samples=[4, 0])))["key"] == ["s00057", "s00053"]
    assert list(read_split(valid, TRANSFORMS, 2, limit=0)) == []
    with pytest.raises(V2FError, match="samples 0 to 4"):
        read_split(valid, TRANSFORMS, 2, samples=[5])


@pytest.mark.parametrize(
    ("batch", "world_size", "bn_group", "message"),
    [
        (48, 5, 8, "cannot be dealt to 5 processes; valid numbers of processes: 1, 2, 3, 6$"),
        (12, 8, 1, "valid numbers of processes: 1, 2, 3, 4, 6, 12$"),
        (10, 1, 4, "not a multiple of 4, the samples of a group"),
        (0, 1, 1, "at least 1"),
    ],
)
def test_a_world_size_that_would_change_the_mathematics_is_refused(
    batch: int, world_size: int, bn_group: int, message: str
) -> None:
    with pytest.raises(V2FError, match=message):
        check_batch(batch, world_size, bn_group)


@given(groups=st.integers(1, 96), bn_group=st.integers(1, 12), most=st.integers(1, 600))
def test_a_micro_batch_is_the_most_that_deals_a_share_in_whole_norm_groups(
    groups: int, bn_group: int, most: int
) -> None:
    share = groups * bn_group
    fits = [size for size in range(bn_group, min(most, share) + 1, bn_group) if share % size == 0]
    if not fits:
        with pytest.raises(V2FError, match=f"train.micro_batch: {most} is less than a group of {bn_group}"):
            micro_batch_of(share, most, bn_group)
    else:
        assert (micro_batch_of(share, most, bn_group) or share) == max(fits)
    assert micro_batch_of(share, None, bn_group) is None


def test_what_does_not_fit_together_is_refused(dataset: Dataset, train: Split) -> None:
    plan = order(train)
    with pytest.raises(V2FError, match="order is over 53 samples, the split valid has 5"):
        Loader(dataset.split("valid"), plan, TRANSFORMS, batch=BATCH, seed=0)
    with pytest.raises(V2FError, match="rank 2 is not one of the 2 ranks"):
        Loader(train, plan, TRANSFORMS, batch=BATCH, seed=0, rank=2, world_size=2)
    with pytest.raises(V2FError, match="cannot be called 'slot'"):
        Loader(train, plan, {"slot": Photo(8)}, batch=BATCH, seed=0)


# ------------------------------------------------------------------------------------------------ damage


def damaged(dataset: Dataset, folder: Path, change: Callable[[Path], None]) -> Split:
    shutil.copytree(dataset.root, folder)
    change(folder / "train-00001.tar")
    return Dataset(str(folder), dataset.manifest, dataset.index).split("train")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[600] ^= 1  # in the first sample's first photo
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


DAMAGES = [
    (flip, r"train-00001\.tar: sample s00020 at byte 0: its checksum differs"),
    (cut, r"train-00001\.tar: sample s00020 at byte 0: its shard ends at byte 3000, before the sample does"),
    (Path.unlink, r"train-00001\.tar: sample s00020 at byte 0: cannot read it, there is no such file"),
]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("change", "message"), DAMAGES, ids=["flipped bit", "cut", "missing"])
def test_where_nothing_stands_in_damage_is_an_error_that_names_shard_and_sample(
    dataset: Dataset, tmp_path: Path, change: Callable[[Path], None], message: str, workers: int
) -> None:
    split = damaged(dataset, tmp_path / "copy", change)
    with pytest.raises(V2FError, match=message):
        list(read_split(split, TRANSFORMS, 7, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_cannot_be_decoded_is_named(train: Split, workers: int) -> None:
    match = r"train-00001\.tar: sample s00020: not this one \(at byte 0 of the shard\)"
    with pytest.raises(V2FError, match=match):
        list(read_split(train, {"x": Picky()}, 8, workers=workers))
    with pytest.raises(V2FError, match=r"s00020: the transform 'x' gives float64 \[2\], .* float64 \[1\]"):
        list(read_split(train, {"x": Uneven()}, 8, workers=workers))


def test_a_mistake_in_a_transform_shows_its_traceback(train: Split) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)in __call__.*ZeroDivisionError: a mistake in a transform"):
        list(read_split(train, {"x": Wrong()}, 8, workers=1))
    with pytest.raises(ZeroDivisionError):
        list(read_split(train, {"x": Wrong()}, 8))


# ------------------------------------------------------------------------------------------------ workers


def processes(batches: object) -> list[subprocess.Popen[bytes]]:
    farm = batches._decoder  # type: ignore[attr-defined]
    assert isinstance(farm, Farm)
    return [w.process for w in farm._workers]


def assert_gone(started: list[subprocess.Popen[bytes]]) -> None:
    assert all(process.poll() is not None for process in started)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("v2f-fetch", "v2f-decode"))]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_is_an_error_not_a_hang(train: Split, workers: int) -> None:
    batches = read_split(train, {"x": Deadly()}, 8, workers=workers)
    started = processes(batches)
    with pytest.raises(V2FError, match=r"a decode worker died \(process \d+, signal 9\) probably for lack of memory"):
        list(batches)
    assert_gone(started)


def test_what_a_scheduler_sends_to_a_whole_job_is_not_for_the_workers(train: Split) -> None:
    loader = Loader(train, order(train), TRANSFORMS, batch=BATCH, seed=0, workers=2)
    with loader:
        batches = iter(loader)
        next(batches)
        for process in processes(batches):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
                process.send_signal(number)
        for _ in range(8):
            next(batches)
        assert all(process.poll() is None for process in processes(batches))


def test_a_worker_that_cannot_start_is_an_error_not_a_hang(train: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("v2f.data.farm._BOOT", "raise SystemExit(3)")
    with pytest.raises(V2FError, match=r"a decode worker died \(process \d+, exit code 3\)"):
        next(read_split(train, TRANSFORMS, 8, workers=1))


def test_workers_end_when_the_consumer_raises_or_drops_the_iterator(train: Split) -> None:
    loader = Loader(train, order(train), TRANSFORMS, batch=BATCH, seed=0, workers=2)
    batches = iter(loader)
    started = processes(batches)
    next(batches)
    with pytest.raises(ZeroDivisionError), loader:
        raise ZeroDivisionError
    assert_gone(started)
    assert list(batches) == []

    batches = iter(loader)
    started = processes(batches)
    next(batches)
    del batches
    gc.collect()
    assert_gone(started)


SCRIPT = """
import sys, torch
from v2f.data.loader import Loader
from v2f.data.manifest import open_dataset
from v2f.data.order import Order
from v2f.data.transforms import Waveform

print("main is run")
if __name__ == "__main__":
    split = open_dataset(sys.argv[1]).split("train")
    loader = Loader(split, Order.for_batches(split.shard_sizes, seed=0, batch=4), {"x": Waveform(0.01)}, batch=4,
                    seed=0, workers=2)
    batches = iter(loader)
    next(batches)
    pids = [w.process.pid for w in batches._decoder._workers]
    maps = [open(f"/proc/{pid}/maps").read() for pid in pids]
    print("torch in worker:", any("libtorch" in m for m in maps), "numpy:", all("numpy" in m for m in maps))
    print("pids", *pids, flush=True)
    if sys.argv[2] == "raise":
        raise ZeroDivisionError
    if sys.argv[2] == "killed":
        sys.stdin.read()
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at processes through /proc")
def test_workers_of_a_script_do_not_import_it_or_torch_and_outlive_no_parent(dataset: Dataset, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parents = {
        end: subprocess.Popen(
            [sys.executable, str(script), dataset.root, end],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for end in ("raise", "killed")
    }
    for end, parent in parents.items():
        assert parent.stdout is not None
        lines = [parent.stdout.readline() for _ in range(3)]
        assert lines[:2] == ["main is run\n", "torch in worker: False numpy: True\n"]
        pids = [int(word) for word in lines[2].split()[1:]]
        if end == "killed":
            parent.kill()
        rest, errors = parent.communicate(timeout=30)
        assert rest == ""
        assert parent.returncode == {"raise": 1, "killed": -9}[end]
        assert errors == "" or (end == "raise" and "ZeroDivisionError" in errors)
        deadline = time.monotonic() + 10
        while any(map(is_running, pids)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(map(is_running, pids))


def test_a_transform_of_the_script_itself_is_refused(train: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Picky, "__module__", "__main__")
    with pytest.raises(V2FError, match="the transform 'x' is defined in the script that runs"):
        read_split(train, {"x": Picky()}, 8, workers=1)
