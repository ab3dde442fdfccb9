"""The best retrieval in the synthetic world for a listener who knows all voice factors exactly.

Each bound is a set of queries, one per person. As with a system's outputs, an identity net matches them against a real
photo of each person:

- U1: the expected face given the true voice factors, rendered as a neutral photo: one sharp, average face per voice.
  A system trained against the identity net itself can draw a face that the net recognizes more often.
- U2: the mean identity embedding over all faces that are possible given the voice. It is the best single query under
  squared error, needs no picture, and is higher than U1.
- A single factor: U1 for a listener who knows that factor alone. If it were high, the task would be trivial.

Shapes: N people, V voice factors, H = W = size, D the embedding's width.
"""

from collections.abc import Callable, Sequence

import numpy as np

from v2f.errors import V2FError
from v2f.world.people import PHOTO, VOICE, World
from v2f.world.portraits import render_portraits

Embed = Callable[[np.ndarray], np.ndarray]
"""An identity net: uint8 pictures [N,H,W,3] -> embeddings [N,D]."""


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


def u2_embeddings(
    world: World, voice_NV: np.ndarray, embeds: Sequence[Embed], draws: int = 32, key: int = 0, size: int = 64
) -> list[np.ndarray]:
    """U2's queries for each net: float32 [N,D] of length 1, the mean embedding of ``draws`` faces for each voice.

    Monte Carlo over ``World.posterior_face`` and photos that belong to nobody, with the same pictures for all nets. The
    mean is taken over embeddings of length 1 and scaled to length 1.
    """
    if draws < 1:
        raise V2FError(f"u2_embeddings needs at least one draw per person, got draws={draws}")
    faces, photos = world.posterior_face(voice_NV, draws, key), world.any_photo(len(voice_NV), draws, key)
    totals: list[np.ndarray | float] = [0.0] * len(embeds)
    for face_NF, photo_NP in zip(faces, photos, strict=True):
        pictures = render_portraits(face_NF, photo_NP, size)
        totals = [total + _unit_length(embed(pictures)) for total, embed in zip(totals, embeds, strict=True)]
    return [_unit_length(np.asarray(total)).astype(np.float32) for total in totals]


def _unit_length(emb_ND: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, in float64."""
    emb_ND = np.asarray(emb_ND, np.float64)
    return emb_ND / np.maximum(np.linalg.norm(emb_ND, axis=1, keepdims=True), 1e-12)
