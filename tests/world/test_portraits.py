"""A portrait is a pure function of its row, the same picture at any size, and shows what its factors say."""

import numpy as np
import pytest

from v2f.errors import V2FError
from v2f.world.people import FACE, PHOTO, World
from v2f.world.portraits import render_portraits

NEUTRAL = np.zeros((1, len(PHOTO)), np.float32)


def faces(count: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.arange(count)
    return World().face(ids), World().photo(ids, ids * 0)


def with_factor(name: str, value: float) -> np.ndarray:
    face = np.zeros((1, len(FACE)), np.float32)
    face[0, FACE.index(name)] = value
    return face


def test_shape_and_range() -> None:
    face, photo = faces(3)
    pictures = render_portraits(face, photo)
    assert pictures.shape == (3, 64, 64, 3)
    assert pictures.dtype == np.uint8
    assert render_portraits(face[:0], photo[:0], 32).shape == (0, 32, 32, 3)
    assert (pictures.max((1, 2, 3)) > 150).all()
    assert (pictures.min((1, 2, 3)) < 70).all()


@pytest.mark.parametrize("size", [33, 64])
def test_a_portrait_is_byte_equal_alone_and_in_any_batch(size: int) -> None:
    face, photo = faces(37)
    together = render_portraits(face, photo, size)
    for i in (0, 7, 8, 31, 36):
        np.testing.assert_array_equal(together[i : i + 1], render_portraits(face[i : i + 1], photo[i : i + 1], size))
    order = np.arange(37)[::-1]
    np.testing.assert_array_equal(together[order], render_portraits(face[order], photo[order], size))


def test_the_same_picture_at_any_size() -> None:
    face, photo = faces(6)
    small = render_portraits(face, photo, 64).astype(float)
    for factor in (2, 4):
        large = render_portraits(face, photo, 64 * factor).astype(float)
        shrunk = large.reshape(6, 64, factor, 64, factor, 3).mean((2, 4))
        assert np.abs(shrunk - small).mean() < 3.0
        others = np.abs(shrunk - np.roll(small, 1, axis=0)).mean()
        assert others > 15.0


@pytest.mark.parametrize("name", FACE)
def test_every_face_factor_is_visible(name: str) -> None:
    low, high = (render_portraits(with_factor(name, value), NEUTRAL).astype(float) for value in (-1.8, 1.8))
    changed = np.abs(low - high).max(-1)[0]
    least = 10 if name == "iris" else 25 if name in FACE[6:] else 60
    assert (changed > 20).sum() >= least, f"{name} changes too few of the 4096 pixels"


@pytest.mark.parametrize("name", PHOTO)
def test_every_photo_differs_by_its_nuisance(name: str) -> None:
    photos = np.zeros((2, len(PHOTO)), np.float32)
    photos[:, PHOTO.index(name)] = -1.8, 1.8
    low, high = render_portraits(np.zeros((2, len(FACE)), np.float32), photos).astype(float)
    assert np.abs(low - high).mean() > 0.02


def test_factors_go_the_way_their_words_say() -> None:
    def picture(name: str, value: float) -> np.ndarray:
        return render_portraits(with_factor(name, value), NEUTRAL)[0].astype(float) / 255

    def fair(name: str, value: float, rows: slice, columns: slice) -> float:
        return float(picture(name, value)[rows, columns].mean())

    cheek, crown, beside_jaw = (
        (slice(34, 40), slice(22, 26)),
        (slice(10, 14), slice(26, 38)),
        (slice(42, 47), slice(14, 18)),
    )
    assert fair("skin", -1.5, *cheek) > fair("skin", 1.5, *cheek) + 0.2
    assert fair("hair_tone", 1.5, *crown) > fair("hair_tone", -1.5, *crown) + 0.2
    assert fair("age", 1.8, *crown) > fair("age", -1.8, *crown) + 0.2, "gray hair"
    assert np.abs(picture("softness", 1.8) - picture("softness", -1.8))[beside_jaw].mean() > 0.1, "longer hair"
    red = picture("hair_red", 1.8)[crown]
    assert red[..., 0].mean() > 1.6 * red[..., 2].mean()


def test_the_face_stands_where_ffhq_puts_it() -> None:
    """The pupils of the neutral mean face are near (0.38, 0.47) and (0.62, 0.47): its darkest spots up there."""
    picture = render_portraits(np.zeros((1, len(FACE)), np.float32), NEUTRAL, 256)[0].astype(float).mean(-1)
    for x in (0.38, 0.62):
        window = picture[112:130, int(256 * x) - 12 : int(256 * x) + 12]
        assert window.min() < 45
        y_at, x_at = np.unravel_index(window.argmin(), window.shape)
        assert abs((y_at + 112) / 256 - 0.47) < 0.02
        assert abs(x_at - 12) / 256 < 0.03


def test_bad_input_is_one_clear_line() -> None:
    face, photo = faces(2)
    with pytest.raises(V2FError, match="size of 32 or more"):
        render_portraits(face, photo, 16)
    with pytest.raises(V2FError, match=r"of the same N; got \[2, 16\] and \[1, 17\]"):
        render_portraits(face, photo[:1])
