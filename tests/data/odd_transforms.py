"""Transforms that misbehave at one sample. Without torch, because decode workers import this module."""

import os
import signal

import numpy as np

from v2f.data.sample import Sample
from v2f.errors import V2FError


class Picky:
    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> np.ndarray:
        if sample.key == "s00020":
            raise V2FError(f"sample {sample.key}: not this one")
        return np.zeros(1)


class Uneven:
    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> np.ndarray:
        return np.zeros(2 if sample.key == "s00020" else 1)


class Wrong:
    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> np.ndarray:
        raise ZeroDivisionError("a mistake in a transform")


class Deadly:
    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> np.ndarray:
        if sample.key == "s00020":
            os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros(1)
