"""A small data set of noise, with what the tests need to know about it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from v2f.data.encoding import encode
from v2f.data.manifest import Dataset
from v2f.data.shards import write_manifest, write_shard
from v2f.keyed import keyed_rng


def _noise_sample(number: int, split: str, *, photos: int = 2, frames: int = 800, size: int = 8) -> tuple:
    """(key, identity, members) of a sample whose content is a function of its number."""
    rng = keyed_rng(7, number)
    wav_T = rng.uniform(-0.5, 0.5, frames + 40 * (number % 3))
    photos_HWC = [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(photos)]
    key, identity = f"s{number:05d}", f"person{number % 5}"
    members = encode(key, wav_T, 16000, photos_HWC, identity=identity, split=split, source="noise", audio_format="wav")
    return key, identity, members


@pytest.fixture(scope="session")
def noise_sample() -> Callable[..., tuple]:
    return _noise_sample


@pytest.fixture(scope="session")
def make_dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Dataset]:
    def make(train: list[int], valid: list[int] | None = None, root: Path | None = None, **kinds: int) -> Dataset:
        """A data set with shards of these sizes; samples are numbered through."""
        folder = str(root or tmp_path_factory.mktemp("dataset"))
        shards, number = [], 0
        for split, sizes in (("train", train), ("valid", valid or [])):
            for i, size in enumerate(sizes):
                items = [_noise_sample(number + k, split, **kinds) for k in range(size)]
                shards.append(write_shard(folder, f"{split}-{i:05d}.tar", split, items))
                number += size
        return write_manifest(folder, shards, {"recipe": "noise"})

    return make


@pytest.fixture(scope="session")
def dataset(make_dataset: Callable[..., Dataset]) -> Dataset:
    """53 training samples in uneven shards, 5 for validation."""
    return make_dataset([20, 7, 1, 25], [5])


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Dataset], Dataset]:
    """A copy that a test may damage."""

    def copy(dataset: Dataset) -> Dataset:
        folder = tmp_path / "copy"
        shutil.copytree(dataset.root, folder)
        return Dataset(str(folder), dataset.manifest, dataset.index)

    return copy
