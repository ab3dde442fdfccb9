"""Random generators that depend on a key alone, not on earlier draws (promise 1 in CONTRIBUTING.md: order is a pure
function of data and seed)."""

import numpy as np


def keyed_rng(*key: int) -> np.random.Generator:
    """A generator that depends on the non-negative integers ``key`` alone.

    Every crop, choice of photo, augmentation and draw of the synthetic world takes its generator from
    here, so the result does not depend on the number of ranks and workers or on restarts. Philox is counter
    based (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"); ``SeedSequence`` mixes
    keys that differ in one bit into unrelated streams. It pads with zeros, so ``(a, b)`` and ``(a, b, 0)`` give the
    same stream: start each key with a constant for its purpose, and use keys of the same length for one purpose.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
