"""One long sound of several short ones: they overlap, and each fades into the next.

Shape letters: P pieces, T samples.
"""

import numpy as np
from numpy.typing import NDArray

OVERLAP_S = 0.1
"""Seconds for which two pieces sound together, at most a quarter of a piece."""
_FADE_S = 0.02  # at the end of a sound that is cut, against a click


def overlap_of(piece: int, rate: int) -> int:
    """The samples for which two pieces of ``piece`` samples overlap."""
    return min(round(OVERLAP_S * rate), piece // 4)


def count_of(length: int, piece: int, rate: int) -> int:
    """How many pieces of ``piece`` samples a sound of ``length`` samples is joined from; at least one."""
    step = piece - overlap_of(piece, rate)
    return 1 + max(0, -(-(length - piece) // step))


def joined(piece_PT: NDArray[np.float32], length: int, rate: int) -> NDArray[np.float32]:
    """A sound of ``length`` samples from as many pieces as :func:`count_of` says; what is too long is cut.

    The squares of the weights of two overlapping pieces add up to 1: unrelated sounds keep their power.
    """
    pieces, piece = piece_PT.shape
    overlap = overlap_of(piece, rate)
    assert pieces == count_of(length, piece, rate), f"{pieces} pieces of {piece} samples for {length}"
    rise = np.sin(np.pi / 2 * (np.arange(overlap) + 0.5) / max(1, overlap)).astype(np.float32)
    sound_T = np.zeros(pieces * (piece - overlap) + overlap, np.float32)
    for number, piece_T in enumerate(piece_PT):
        weight_T = np.ones(piece, np.float32)
        if number > 0:
            weight_T[:overlap] = rise
        if number < pieces - 1:
            weight_T[piece - overlap :] = rise[::-1]
        start = number * (piece - overlap)
        sound_T[start : start + piece] += weight_T * piece_T
    if length < len(sound_T):
        fade = min(round(_FADE_S * rate), length)
        sound_T = sound_T[:length]
        sound_T[length - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
    return np.clip(sound_T, -1, 1)
