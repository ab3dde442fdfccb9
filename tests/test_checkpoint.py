"""Checkpoints (promise 4): one format for any world size, committed by the last file, never a half one."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from v2f import checkpoint, store
from v2f.errors import V2FError


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"model/a.weight": (64, 32), "model/a.bias": (64,), "optim/p/a.weight/step": (), "ema/a.weight": (64, 32)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_what_any_number_of_ranks_wrote_is_read_alike(tmp_path, world_size):
    barrier = Barrier(world_size, timeout=30)
    root = str(tmp_path)

    def write(rank: int) -> str:
        return checkpoint.save(
            root, 7, some_tensors(), {"slot": 70}, keep=2, rank=rank, world_size=world_size, barrier=barrier.wait
        )

    with ThreadPoolExecutor(world_size) as ranks:
        folders = set(ranks.map(write, range(world_size)))
    assert folders == {checkpoint.latest(root)}
    tensors, state = checkpoint.load(folders.pop())
    assert same(tensors, some_tensors())
    assert state == {"slot": 70}


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 10**9), max_size=40), st.integers(1, 9))
def test_every_tensor_is_dealt_to_one_rank_and_the_shares_are_even(sizes, parts):
    shares = checkpoint.deal(sizes, parts)
    assert len(shares) == parts
    assert sorted(name for share in shares for name in share) == sorted(sizes)
    filled = [sum(sizes[name] for name in share) for share in shares]
    assert max(filled) - min(filled) <= max(sizes.values(), default=0)


class Killed(Exception):
    pass


def kill_at_write(monkeypatch, number: int) -> None:
    """From the ``number``-th write on, nothing reaches the disk, as if the process had been killed there."""
    real, done = store.write_bytes, []

    def write(path: str, data: bytes) -> None:
        done.append(path)
        if len(done) > number:
            raise Killed
        real(path, data)

    monkeypatch.setattr(store, "write_bytes", write)


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_kill_at_any_write_leaves_the_previous_checkpoint_whole(tmp_path, monkeypatch, writes):
    root = str(tmp_path)
    first = checkpoint.save(root, 1, some_tensors(), {"n": 1}, keep=2)
    with monkeypatch.context() as patch:
        kill_at_write(patch, writes)
        with pytest.raises(Killed):
            checkpoint.save(root, 2, some_tensors(), {"n": 2}, keep=2)
    assert checkpoint.latest(root) == first
    assert same(checkpoint.load(first)[0], some_tensors())
    # The next attempt at the same step succeeds over the remains.
    assert checkpoint.load(checkpoint.save(root, 2, some_tensors(), {"n": 2}, keep=2))[1] == {"n": 2}


def test_only_the_newest_are_kept_and_none_goes_before_its_successor_is_committed(tmp_path):
    root = str(tmp_path)
    for step in range(1, 6):
        checkpoint.save(root, step, some_tensors(), {}, keep=2)
    assert [Path(f).name for f in checkpoint.committed(root)] == ["step-00000004", "step-00000005"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def test_the_remains_of_an_attempt_with_more_ranks_are_cleared_away(tmp_path):
    remains = tmp_path / "step-00000001" / "part-00001.safetensors"
    remains.parent.mkdir()
    remains.write_bytes(b"half")
    folder = checkpoint.save(str(tmp_path), 1, some_tensors(), {}, keep=2)
    assert store.names(folder) == ["checkpoint.json", "part-00000.safetensors", "part-00000.safetensors.json"]


def test_a_flipped_bit_is_found_and_named(tmp_path):
    folder = checkpoint.save(str(tmp_path), 1, some_tensors(), {}, keep=2)
    part = Path(folder) / "part-00000.safetensors"
    payload = bytearray(part.read_bytes())
    payload[-1] ^= 1
    part.write_bytes(payload)
    with pytest.raises(V2FError, match=r"part-00000\.safetensors: damaged"):
        checkpoint.load(folder)


def test_a_part_that_never_arrived_is_refused_at_the_commit(tmp_path):
    with pytest.raises(V2FError, match="rank 1's part is not there; all ranks must write to one shared folder"):
        checkpoint.save(str(tmp_path), 1, some_tensors(), {}, keep=2, rank=0, world_size=2)
    assert checkpoint.latest(str(tmp_path)) is None


def test_another_format_is_refused(tmp_path):
    folder = checkpoint.save(str(tmp_path), 1, some_tensors(), {}, keep=2)
    record = Path(folder) / "checkpoint.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"format": 99}))
    with pytest.raises(V2FError, match="checkpoint format 99, this version of v2f reads 1"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("model/a.bias"), "'model/a.bias' is missing"),
        (lambda t: t.update({"model/x": torch.zeros(1)}), "'model/x' is not part of this system"),
        (lambda t: t.update({"model/a.bias": torch.zeros(3)}), r"'model/a.bias' has shape \[3\], this system \[64\]"),
    ],
)
def test_filling_is_strict(change, told):
    source = some_tensors()
    change(source)
    with pytest.raises(V2FError, match=told):
        checkpoint.fill(some_tensors(), source, "here")
