"""The portraits that stand-ins are trained on: rendered once, shared by all training runs."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from v2f.errors import V2FError
from v2f.keyed import keyed_rng
from v2f.standins import Kind, factor_latent
from v2f.world.people import World, WorldConfig
from v2f.world.portraits import render_portraits

SEED = 1000  # of the world of the people that all stand-ins but the referee are trained on
REFEREE_SEED = 2000  # of the referee's world, which has nobody in common with the other
SIZE = 64
HELD_OUT = 1_000_000  # the first person outside every training run
STYLE_DIM = 128


@dataclass(frozen=True)
class Portraits:
    """Rendered photos, sorted by person: person = row // photos."""

    pictures: np.ndarray  # uint8 [N,64,64,3]
    face: np.ndarray  # float32 [N,F]
    photo: np.ndarray  # float32 [N,P]
    photos: int

    def __len__(self) -> int:
        return len(self.pictures)

    def images(self, rows: Any) -> Tensor:
        """Pictures [B,3,64,64] in [-1,1], channels last."""
        return torch.tensor(self.pictures[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1

    def factors(self, rows: Any) -> Tensor:
        """All factors [B,F+P], those of the face first."""
        return torch.from_numpy(np.concatenate([self.face[rows], self.photo[rows]], axis=1))

    def latents(self, rows: Any) -> Tensor:
        return factor_latent(self.face[rows], self.photo[rows], STYLE_DIM)

    def save(self, folder: Path) -> None:
        for name in ("pictures", "face", "photo"):
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path, photos: int) -> "Portraits":
        pictures, face, photo = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("pictures", "face", "photo")
        )
        return cls(pictures, np.array(face), np.array(photo), photos)


def render(first: int, count: int, photos: int, processes: int = 1, seed: int = SEED) -> Portraits:
    """The first ``photos`` photos of each of ``count`` people, starting with person ``first`` of the world ``seed``."""
    step = 128
    jobs = [(seed, start, min(step, first + count - start), photos) for start in range(first, first + count, step)]
    if processes > 1:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            parts = list(pool.map(_render, jobs))
    else:
        parts = [_render(job) for job in jobs]
    pictures, face, photo = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Portraits(pictures, face, photo, photos)


def _render(job: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    seed, first, count, photos = job
    world = World(WorldConfig(seed=seed))
    ids = np.repeat(np.arange(first, first + count), photos)
    face, photo = world.face(ids), world.photo(ids, np.tile(np.arange(photos), count))
    return render_portraits(face, photo, SIZE), face, photo


def seed_of(kind: Kind) -> int:
    """The seed of the world that a stand-in is trained on."""
    return REFEREE_SEED if kind == "referee" else SEED


def batches(rows: int, batch: int, key: int) -> Iterator[np.ndarray]:
    """Endless batches of rows, in a different order each epoch."""
    if rows < batch:
        raise V2FError(f"stand-ins: {rows} portraits are fewer than a batch of {batch}; render more people")
    epoch = 0
    while True:
        order = keyed_rng(SEED, key, epoch).permutation(rows)
        for start in range(0, rows - batch + 1, batch):
            yield order[start : start + batch]
        epoch += 1


def two_photos(data: Portraits, person_P: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows [2P] of two different photos of each person: first all first photos, then all second ones."""
    first = rng.integers(data.photos, size=len(person_P))
    second = (first + rng.integers(1, data.photos, size=len(person_P))) % data.photos
    return np.concatenate([person_P * data.photos + first, person_P * data.photos + second])
