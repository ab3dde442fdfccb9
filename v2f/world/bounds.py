"""The best retrieval in the synthetic world for a listener who knows all voice factors exactly.

Each bound is a set of queries, one per person. As with a system's outputs, an identity net matches them against a real
photo of each person:

- U1: the expected face given the true voice factors, rendered as a neutral photo: one sharp, average face per voice.
  A system trained against the identity net itself can draw a face that the net recognizes more often.
- U2: the mean identity embedding over all faces that are possible given the voice. It is the best single query under
  squared error, needs no picture, and is higher than U1.
- U3: a random person with exactly the same voice factors, in a random photo. A crisp picture has to commit to what the
  voice cannot tell, and this is what it gets if it commits by chance: the bound of a system that draws faces.
- U4: of many such people, the one whose embedding is nearest to U2's: the best crisp picture that is still somebody.
- A single factor: U1 for a listener who knows that factor alone. If it were high, the task would be trivial.

Shapes: N people, V voice factors, H = W = size, D the embedding's width.
"""

from collections.abc import Iterator

import numpy as np

from v2f.errors import V2FError
from v2f.world.people import PHOTO, VOICE, World
from v2f.world.portraits import render_portraits


def u1_pictures(world: World, voice_NV: np.ndarray, size: int = 64) -> np.ndarray:
    """U1's queries: each voice's expected face in the neutral photo, uint8 [N,size,size,3]."""
    neutral = np.zeros((len(voice_NV), len(PHOTO)), np.float32)
    return render_portraits(world.expected_face(voice_NV), neutral, size)


def factor_pictures(world: World, voice_NV: np.ndarray, factor: str, size: int = 64) -> np.ndarray:
    """U1's queries if only ``factor`` is known and the other voice factors are 0: uint8 [N,size,size,3]."""
    if factor not in VOICE:
        raise V2FError(f"no voice factor is named {factor!r}; choose {', '.join(VOICE)}")
    known = np.zeros_like(voice_NV)
    column = VOICE.index(factor)
    known[:, column] = voice_NV[:, column]
    return u1_pictures(world, known, size)


def possible_pictures(
    world: World, voice_NV: np.ndarray, draws: int, key: int = 0, size: int = 64
) -> Iterator[np.ndarray]:
    """U3's queries, ``draws`` times: random people with these voices, in photos that belong to nobody, each uint8
    [N,size,size,3]. U2 is the mean embedding of many (:func:`v2f.metrics.mean_embedding`), U4 the one nearest to it."""
    faces, photos = world.posterior_face(voice_NV, draws, key), world.any_photo(len(voice_NV), draws, key)
    for face_NF, photo_NP in zip(faces, photos, strict=True):
        yield render_portraits(face_NF, photo_NP, size)
