"""Faces are found, the largest first, and brought to one pose; nothing is made of a picture without a face."""

import numpy as np
import pytest
from PIL import Image

from v2f.prepare.align import align_face, cut_square, face_square, find_faces
from v2f.world.people import World
from v2f.world.portraits import render_portraits

LANDMARKS = np.array([[40.0, 50.0], [80.0, 50.0], [60.0, 72.0], [46.0, 94.0], [74.0, 94.0]])
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]


def turned(degrees: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    angle = np.deg2rad(degrees)
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return LANDMARKS @ rotation.T + shift


def dotted(landmarks: np.ndarray, side: int = 400) -> Image.Image:
    """Grey, with a coloured disc at each landmark."""
    y, x = np.mgrid[:side, :side]
    picture = np.full((side, side, 3), 128, np.uint8)
    for (cx, cy), colour in zip(landmarks, COLOURS, strict=True):
        picture[(x - cx) ** 2 + (y - cy) ** 2 < 16] = colour
    return Image.fromarray(picture)


def found(crop: np.ndarray) -> np.ndarray:
    """Where the discs are in a crop, as shares of its side."""
    grey = crop.astype(float) - 128
    places = []
    for colour in COLOURS:
        weight = np.clip(grey @ (np.array(colour) - 128.0), 0, None) ** 3
        weight[weight < weight.max() / 4] = 0
        y, x = np.mgrid[: len(crop), : len(crop)] + 0.5
        places.append([(weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()])
    return np.array(places) / len(crop)


@pytest.mark.parametrize(
    ("degrees", "scale", "shift"),
    [(0, 1, (100, 100)), (25, 1, (150, 80)), (-40, 1.4, (60, 160)), (180, 1.2, (300, 330))],
)
@pytest.mark.parametrize("size", [64, 200])
def test_landmarks_come_to_the_same_place_whatever_the_pose(
    degrees: float, scale: float, shift: tuple[float, float], size: int
) -> None:
    landmarks = turned(degrees, scale, shift)
    crop = cut_square(dotted(landmarks), face_square(landmarks), size)
    assert crop is not None
    assert crop.shape == (size, size, 3)
    # The eyes are 40 apart, the mouth 44 below: half a side is max(2 * 40, 1.8 * 44), the centre 4.4 below the eyes.
    expected = (LANDMARKS - [60.0, 50.0 + 4.4]) / (2 * 80) + 0.5
    assert np.abs(found(crop) - expected).max() < 1.2 / size


def test_a_face_at_the_border_is_filled_up_not_cut() -> None:
    """The face stays in its place; what lies outside is a mirror that fades into blur, without a black edge."""
    landmarks = turned(10, 1.0, (-10, -25))
    crop = cut_square(dotted(landmarks, side=130), face_square(landmarks), 128)
    inner = cut_square(dotted(turned(10, 1.0, (190, 175))), face_square(turned(10, 1.0, (190, 175))), 128)
    assert crop is not None
    assert inner is not None
    assert np.abs(found(crop) - found(inner)).max() < 0.02
    assert (crop.min(axis=(0, 1)) > 60).sum() == 0  # the discs themselves
    assert np.abs(crop[:8].astype(int) - 128).max() < 60


def test_degenerate_landmarks_give_nothing() -> None:
    assert cut_square(dotted(LANDMARKS), face_square(np.full((5, 2), 7.0)), 64) is None
    assert cut_square(dotted(LANDMARKS), face_square(np.full((5, 2), np.nan)), 64) is None
    assert cut_square(dotted(LANDMARKS), face_square(LANDMARKS / 20), 64) is None


@pytest.fixture(scope="module")
def portraits() -> list[Image.Image]:
    world, ids = World(), np.array([2, 3])
    return [Image.fromarray(photo) for photo in render_portraits(world.face(ids), world.photo(ids, ids * 0), 128)]


def test_the_largest_face_is_taken(portraits: list[Image.Image]) -> None:
    scene = Image.new("RGB", (400, 260), "grey")
    scene.paste(portraits[0].resize((90, 90)), (10, 10))
    scene.paste(portraits[1].resize((240, 240)), (150, 10))
    faces = find_faces(scene, 0.9)
    assert len(faces) == 2
    assert faces[0].area > 2 * faces[1].area
    alone = Image.new("RGB", (400, 260), "grey")
    alone.paste(portraits[1].resize((240, 240)), (150, 10))
    both, one = align_face(scene, 64, 0.9), align_face(alone, 64, 0.9)
    assert both is not None
    assert one is not None
    assert np.abs(both.astype(int) - one).mean() < 12


def test_a_picture_without_a_face_gives_nothing() -> None:
    ramp = np.add.outer(np.arange(120), np.arange(160)).astype(np.uint8)
    assert align_face(Image.fromarray(np.stack([ramp] * 3, axis=2)), 64, 0.9) is None
