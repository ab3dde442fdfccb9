"""Randomness that is a function of its key, never of what was drawn before it (promise 1)."""

import numpy as np


def keyed_rng(*key: int) -> np.random.Generator:
    """A generator that depends on the non-negative integers ``key`` alone.

    Every crop, choice of photo, augmentation and draw of the synthetic world takes its generator from
    here, so neither the number of ranks and workers nor a restart can change it. Philox is counter
    based (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"); ``SeedSequence`` mixes
    keys that differ in one bit into unrelated streams. It pads with zeros, so ``(a, b)`` and ``(a, b, 0)`` are one
    stream: start a key with a constant of its purpose, and give one purpose keys of one length.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
