"""People are a pure function of (seed, person), and the tie of voice and face is what the settings say."""

import numpy as np
import pytest

from v2f.errors import V2FError
from v2f.world.people import CLIP, FACE, FACTORS, LIMIT, PHOTO, VOICE, World, WorldConfig, names

MANY = np.arange(20_000)


def test_groups_partition_the_factors() -> None:
    assert [*VOICE, *FACE, *PHOTO, *CLIP] == [factor.name for factor in FACTORS]
    assert len({factor.name for factor in FACTORS}) == len(FACTORS)
    assert VOICE == ("pitch", "tract", "breathiness", "tilt", "liveliness", "rate")
    with pytest.raises(V2FError, match="'hair'"):
        names("hair")


@pytest.mark.parametrize("make", ["voice", "face"])
def test_a_person_does_not_depend_on_who_else_is_asked_for(make: str) -> None:
    world = World(WorldConfig(seed=3))
    everybody = getattr(world, make)(np.arange(50))
    assert everybody.dtype == np.float32
    np.testing.assert_array_equal(everybody[[41, 7]], getattr(world, make)(np.array([41, 7])))
    assert not np.array_equal(everybody, getattr(World(WorldConfig(seed=4)), make)(np.arange(50)))


def test_photos_and_clips_differ_from_number_to_number_only() -> None:
    world, ids = World(), np.array([5, 5, 9])
    for make in (world.photo, world.clip):
        first = make(ids, np.array([0, 1, 0]))
        np.testing.assert_array_equal(first[1:2], make(np.array([5]), np.array([1])))
        assert not (first[0] == first[1]).any()
        assert not (first[0] == first[2]).any()


def test_people_stay_who_they_are() -> None:
    # Of version 1; a change of the numbers changes everybody and needs a new version.
    voice = World().voice(np.array([0, 12345]))
    np.testing.assert_allclose(voice[:, :2], [[0.8794547, -1.2492648], [-1.1415598, -0.00738108]], atol=1e-6)


def test_factors_are_independent_truncated_standard_normals() -> None:
    world = World()
    table = np.concatenate([world.face(MANY), world.photo(MANY, MANY * 0), world.clip(MANY, MANY * 0)], axis=1)
    assert np.abs(table).max() <= LIMIT
    assert np.abs(table.mean(0)).max() < 0.03
    np.testing.assert_allclose(table.std(0), 0.917, atol=0.02)  # of a standard normal cut off at +-2.2
    assert np.abs(np.corrcoef(table.T) - np.eye(table.shape[1])).max() < 0.04


@pytest.mark.parametrize("link", [0.0, 0.6, 1.0])
def test_link_is_the_correlation_of_voice_and_face(link: float) -> None:
    world = World(WorldConfig(link=link, visible=4))
    voice, face = world.voice(MANY), world.face(MANY)
    for k in range(6):
        expected = link if k < 4 else 0.0
        assert np.corrcoef(voice[:, k], face[:, k])[0, 1] == pytest.approx(expected, abs=0.03)
    assert np.abs(np.corrcoef(voice.T, face[:, 6:].T)[:6, 6:]).max() < 0.04


def test_posterior_is_what_people_with_that_voice_look_like() -> None:
    world = World(WorldConfig(link=0.6))
    voice, face = world.voice(MANY), world.face(MANY)
    slope = (voice[:, 1] * face[:, 1]).mean() / (voice[:, 1] ** 2).mean()
    expected = world.expected_face(voice)
    np.testing.assert_allclose(expected[:, 1], slope * voice[:, 1], atol=0.06)
    assert not expected[:, 6:].any()
    draws = world.posterior_face(voice[:40], draws=400)
    np.testing.assert_allclose(draws.mean(0), expected[:40], atol=0.25)
    residual = (face - expected).std(0)
    np.testing.assert_allclose((draws - expected[:40]).std((0, 1)), residual, atol=0.03)


def test_posterior_draws_are_keyed() -> None:
    world = World()
    voice = world.voice(np.arange(3))
    draws = world.posterior_face(voice, draws=4, key=1)
    assert draws.shape == (4, 3, len(FACE))
    np.testing.assert_array_equal(draws[:2], world.posterior_face(voice, draws=2, key=1))
    assert not np.array_equal(draws, world.posterior_face(voice, draws=4, key=2))
    np.testing.assert_array_equal(draws[..., :6], np.broadcast_to(voice, (4, 3, 6)))  # link 1: the voice says it all


def test_any_photo_is_nobodys_photo() -> None:
    world = World()
    ids = np.arange(6)
    photos = world.any_photo(6, draws=2)
    assert photos.shape == (2, 6, len(PHOTO))
    assert not (photos[0] == world.photo(ids, ids * 0)).any()


@pytest.mark.parametrize("ids", [np.array([0.5]), np.array([-1])])
def test_people_are_counted_by_natural_numbers(ids: np.ndarray) -> None:
    with pytest.raises(V2FError, match="non-negative integers"):
        World().voice(ids)


@pytest.mark.parametrize("bad", [{"link": 1.5}, {"visible": 7}, {"seed": -1}, {"links": 1.0}])
def test_settings_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        WorldConfig(**bad)  # type: ignore[arg-type]
