"""The bounds know the voice and nothing else, and knowing more of it is worth more."""

import numpy as np
import pytest

from v2f.errors import V2FError
from v2f.metrics import mean_embedding, nearest_draw
from v2f.world.bounds import factor_pictures, possible_pictures, u1_pictures
from v2f.world.people import PHOTO, VOICE, World, WorldConfig
from v2f.world.portraits import render_portraits

WORLD = World(WorldConfig(seed=1))
IDS = np.arange(100)


def embed(pictures_NHWC: np.ndarray) -> np.ndarray:
    """A stand-in for an identity net: the inner face, coarsely, at length 1."""
    n = len(pictures_NHWC)
    face = pictures_NHWC[:, 16:56, 16:48].astype(np.float64).reshape(n, 20, 2, 16, 2, 3).mean((2, 4, 5))
    flat = (face - face.mean((1, 2), keepdims=True)).reshape(n, -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def u2(voice_NV: np.ndarray, draws: int, key: int = 0) -> np.ndarray:
    return mean_embedding(np.stack([embed(pictures) for pictures in possible_pictures(WORLD, voice_NV, draws, key)]))


def recall_at_10(queries_ND: np.ndarray, reals_ND: np.ndarray) -> float:
    q, r = queries_ND - reals_ND.mean(0), reals_ND - reals_ND.mean(0)
    q, r = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, r))
    score = q @ r.T
    return float(((score > np.diag(score)[:, None]).sum(1) < 10).mean())


def test_u1_is_the_neutral_picture_of_the_expected_face() -> None:
    voice = WORLD.voice(IDS[:4])
    pictures = u1_pictures(WORLD, voice)
    neutral = np.zeros((4, len(PHOTO)), np.float32)
    np.testing.assert_array_equal(pictures, render_portraits(WORLD.expected_face(voice), neutral))
    assert u1_pictures(WORLD, voice, 32).shape == (4, 32, 32, 3)
    assert len({picture.tobytes() for picture in pictures}) == 4


def test_nothing_of_an_unlinked_voice_shows() -> None:
    world = World(WorldConfig(visible=0))
    pictures = u1_pictures(world, world.voice(IDS[:3]))
    assert len({picture.tobytes() for picture in pictures}) == 1


@pytest.mark.parametrize("factor", VOICE)
def test_a_single_factor_hides_the_others(factor: str) -> None:
    voice = WORLD.voice(IDS[:3])
    others = voice.copy()
    others[:, [k for k, name in enumerate(VOICE) if name != factor]] += 1.0
    known = factor_pictures(WORLD, voice, factor)
    np.testing.assert_array_equal(known, factor_pictures(WORLD, others, factor))
    assert len({picture.tobytes() for picture in known}) == 3
    with pytest.raises(V2FError, match="'loudness'"):
        factor_pictures(WORLD, voice, "loudness")


def test_u2_has_length_one_and_converges_to_one_answer() -> None:
    voice = WORLD.voice(IDS[:6])
    few = u2(voice, 2)
    assert few.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(few, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(few, u2(voice, 2))
    apart = [np.linalg.norm(u2(voice, n, 1) - u2(voice, n, 2)) for n in (2, 24)]
    assert apart[1] < 0.6 * apart[0]


def test_knowing_more_is_worth_more() -> None:
    voice = WORLD.voice(IDS)
    reals = embed(render_portraits(WORLD.face(IDS), WORLD.photo(IDS, IDS * 0)))
    u1 = recall_at_10(embed(u1_pictures(WORLD, voice)), reals)
    singles = [recall_at_10(embed(factor_pictures(WORLD, voice, name)), reals) for name in VOICE]
    assert u1 > 0.3
    assert max(singles) < u1
    assert np.mean(singles) < 0.6 * u1
    assert recall_at_10(u2(voice, 8), reals) > 0.3
    drawn = np.stack([embed(pictures) for pictures in possible_pictures(WORLD, voice, 8)])
    u3, u4 = drawn[0], drawn[nearest_draw(drawn, drawn.mean(0)), np.arange(len(IDS))]
    assert recall_at_10(u3, reals) < recall_at_10(u4, reals)
    assert recall_at_10(u3, reals) > 0.15  # chance is 0.1
