"""Transforms that give arrays of all kinds, and some that fail. Without torch, because decode workers import this."""

from dataclasses import dataclass

import numpy as np

from v2f.data.sample import Sample
from v2f.errors import V2FError


class Number:
    """The sample's number, a scalar."""

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> np.ndarray:
        return np.array(int(sample.key[1:]), np.int64)


@dataclass(frozen=True)
class Block:
    """``count`` values that tell samples and draws apart."""

    count: int
    dtype: str = "<f4"
    draws_as: str = "block"

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> np.ndarray:
        drawn = 0 if rng is None else int(rng.integers(1000))
        return np.arange(self.count).astype(self.dtype) + np.array(int(sample.key[1:]) + drawn).astype(self.dtype)


class Turned:
    """Not contiguous."""

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> np.ndarray:
        return sample.photo().transpose(2, 1, 0)


class Nothing:
    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> np.ndarray:
        return np.zeros((3, 0), np.float16)


class Flag:
    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> np.ndarray:
        return np.array([sample.key > "s00020", True])


@dataclass(frozen=True)
class Refuses:
    """Cannot decode the samples with these numbers."""

    numbers: tuple[int, ...]
    draws_as: str = "block"

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> np.ndarray:
        if int(sample.key[1:]) in self.numbers:
            raise V2FError(f"sample {sample.key}: refused")
        return Block(5)(sample, rng)


class Object:
    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> np.ndarray:
        return np.array([sample.key, None], object)
