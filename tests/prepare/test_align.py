"""Faces are found or told, chosen, and brought to one pose; what cannot be a face is refused with its reason."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from v2f.data.audio import UnusableError
from v2f.prepare.align import (
    Face,
    align_face,
    check_landmarks,
    choose_face,
    cut_square,
    face_square,
    find_faces,
    read_landmarks,
)
from v2f.world.people import World
from v2f.world.portraits import render_portraits

LANDMARKS = np.array([[40.0, 50.0], [80.0, 50.0], [60.0, 72.0], [46.0, 94.0], [74.0, 94.0]])
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]


def turned(degrees: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    angle = np.deg2rad(degrees)
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return LANDMARKS @ rotation.T + shift


def dotted(landmarks: np.ndarray, side: int = 400) -> Image.Image:
    """Gray, with a colored disc at each landmark."""
    y, x = np.mgrid[:side, :side]
    picture = np.full((side, side, 3), 128, np.uint8)
    for (cx, cy), color in zip(landmarks, COLORS, strict=True):
        picture[(x - cx) ** 2 + (y - cy) ** 2 < 16] = color
    return Image.fromarray(picture)


def found(crop: np.ndarray) -> np.ndarray:
    """Where the discs are in a crop, as shares of its side."""
    gray = crop.astype(float) - 128
    places = []
    for color in COLORS:
        weight = np.clip(gray @ (np.array(color) - 128.0), 0, None) ** 3
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
    assert crop.shape == (size, size, 3)
    # The eyes are 40 apart, the mouth 44 below: half a side is max(2 * 40, 1.8 * 44), the center 4.4 below the eyes.
    expected = (LANDMARKS - [60.0, 50.0 + 4.4]) / (2 * 80) + 0.5
    assert np.abs(found(crop) - expected).max() < 1.2 / size


def test_a_face_at_the_border_is_filled_up_not_cut() -> None:
    """The face stays in its place; what lies outside is a mirror that fades into blur, without a black edge."""
    landmarks = turned(10, 1.0, (-10, -25))
    crop = cut_square(dotted(landmarks, side=130), face_square(landmarks), 128)
    inner = cut_square(dotted(turned(10, 1.0, (190, 175))), face_square(turned(10, 1.0, (190, 175))), 128)
    assert np.abs(found(crop) - found(inner)).max() < 0.02
    assert (crop.min(axis=(0, 1)) > 60).sum() == 0  # the discs themselves
    assert np.abs(crop[:8].astype(int) - 128).max() < 60


@pytest.mark.parametrize(
    ("landmarks", "said"),
    [
        (np.full((5, 2), 7.0), r"a square of 0\.0 pixels, expected at least 16"),
        (np.full((5, 2), np.nan), "a square of nan pixels"),
        (LANDMARKS / 20, r"a square of 8\.0 pixels"),
        (LANDMARKS / 10.1, r"a square of 15\.8 pixels"),
    ],
)
def test_a_face_too_small_is_refused(landmarks: np.ndarray, said: str) -> None:
    with pytest.raises(UnusableError, match=rf"face is too small \({said}"):
        align_face(dotted(LANDMARKS), landmarks, 64, 16.0)
    assert align_face(dotted(LANDMARKS), LANDMARKS / 9.9, 64, 16.0).shape == (64, 64, 3)


def points_68(landmarks: np.ndarray) -> np.ndarray:
    """68 points whose eyes' means and mouth's corners are these five's; all others lie anywhere."""
    points = np.random.default_rng(0).uniform(-500, 500, (68, 2))
    ring = 5 * np.array([[-2, 0], [-1, -1], [1, -1], [2, 0], [1, 1], [-1, 1]])
    points[36:42], points[42:48] = landmarks[0] + ring, landmarks[1] + ring
    points[48], points[54] = landmarks[3], landmarks[4]
    return points


def test_68_landmarks_mean_what_they_mean_to_ffhq() -> None:
    """By hand: eyes 40 apart and 44 above the mouth; half a side is max(2 * 40, 1.8 * 44) = 80 around (60, 54.4)."""
    expected = [[-20.0, -25.6], [-20.0, 134.4], [140.0, 134.4], [140.0, -25.6]]
    assert np.allclose(face_square(points_68(LANDMARKS)), expected)
    assert np.allclose(face_square(LANDMARKS), expected)
    long = LANDMARKS + np.array([[0, 0], [0, 0], [0, 0], [0, 20], [0, 20]])  # 64 from eyes to mouth: 1.8 * 64 = 115.2
    assert np.allclose(face_square(points_68(long))[0], [60 - 115.2, 50 + 6.4 - 115.2])
    points = turned(25, 1.3, (120, 60))
    assert np.allclose(face_square(points_68(points)), face_square(points))


def csv_of(points: np.ndarray, header: str = "") -> bytes:
    return (header + "".join(f"{x},{y}\n" for x, y in points.tolist())).encode()


def npy_of(points: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, points, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("points", [LANDMARKS, points_68(LANDMARKS)], ids=["5", "68"])
def test_landmarks_are_read_from_each_kind_of_file(points: np.ndarray) -> None:
    files = {
        "a.json": json.dumps(points.tolist()).encode(),
        "a.npy": npy_of(points),
        "fortran.NPY": npy_of(np.asfortranarray(points)),
        "a.csv": csv_of(points),
        "b.csv": b"\xef\xbb\xbf" + csv_of(points, "x, y\n"),
    }
    for name, content in files.items():
        assert np.array_equal(read_landmarks(content, name), points), name
    assert np.allclose(read_landmarks(npy_of(points.astype(np.int32)), "a.npy"), points.astype(int))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "a.txt: expected .json, .npy or .csv"),
        ("a.json", b"[[1, 2], [3, 4]]", r"shape \[2, 2\], expected \[5, 2\] or \[68, 2\]"),
        ("a.json", b'{"face": [1, 2]}', "float"),
        ("a.json", b"[[1, 2], [3]]", "inhomogeneous"),
        ("a.json", b"nothing", "Expecting value"),
        ("a.json", b"[" * 100_000, "recursion"),
        ("a.csv", b"x,y\n1,two\n", "could not convert"),
        ("a.csv", b"", r"shape \[0\]"),
        ("a.npy", npy_of(np.array([{"a": 1}], dtype=object)), "no object|bytes are"),
        ("a.npy", npy_of(LANDMARKS)[:-1], r"79 bytes are no float64 \[5, 2\]"),
        ("a.npy", b"PK\3\4 a zip", "magic"),
    ],
)
def test_what_holds_no_landmarks_is_refused(name: str, content: bytes, said: str) -> None:
    with pytest.raises(UnusableError, match=rf"landmarks cannot be read \(.*({said})"):
        read_landmarks(content, name)


def test_landmarks_that_cannot_be_a_faces_are_refused() -> None:
    photo = dotted(LANDMARKS, side=100)
    for points in (
        LANDMARKS,
        points_68(LANDMARKS),
        LANDMARKS + 20,
        turned(180, 1, (120, 120)),
        turned(-100, 1, (0, 90)),
    ):
        assert check_landmarks(points, photo) is points
    for points in (LANDMARKS * 3, LANDMARKS - 70, LANDMARKS * np.inf, points_68(LANDMARKS * np.nan)):
        with pytest.raises(UnusableError, match="are outside of the photo"):
            check_landmarks(points, photo)
    for points in (
        LANDMARKS[[1, 0, 2, 4, 3]],
        LANDMARKS * 0 + 7,
    ):  # named as the person would, not as the picture shows
        with pytest.raises(UnusableError, match="do not form a face"):
            check_landmarks(points, photo)


# -------------------------------------------------------------------------------------------------- choice


def face(x: float, y: float, side: float) -> Face:
    return Face(LANDMARKS, np.array([[x, y], [x + side, y + side]]), 0.99)


FACES = [face(100, 100, 60), face(300, 100, 40), face(20, 20, 30)]  # centers (130, 130), (320, 120), (35, 35)


@pytest.mark.parametrize(
    ("point", "nearest"),
    [((128, 135), 0), ((318, 100), 1), ((35, 35), 2), ((60, 70), 2), ((220, 130), 0), ((235, 121), None)],
)
def test_the_face_at_the_point_is_taken(point: tuple[float, float], nearest: int | None) -> None:
    """(60, 70) is inside of no face, and nearer to the small one's center than to the large one's; at (235, 121) the
    nearest is more than its own size away."""
    if nearest is None:
        with pytest.raises(UnusableError, match=r"no face at the point \(the nearest of 3 is 2\.1 times its size away"):
            choose_face(FACES, "nearest", np.array(point))
    else:
        assert choose_face(FACES, "nearest", np.array(point)) is FACES[nearest]


def test_the_largest_or_the_only_face_is_taken() -> None:
    assert choose_face(FACES, "largest") is FACES[0]
    assert choose_face(FACES[1:2], "only") is FACES[1]
    with pytest.raises(UnusableError, match=r"several faces \(found 3, expected one\)"):
        choose_face(FACES, "only")


@pytest.fixture(scope="module")
def portraits() -> list[Image.Image]:
    world, ids = World(), np.array([2, 3])
    return [Image.fromarray(photo) for photo in render_portraits(world.face(ids), world.photo(ids, ids * 0), 128)]


def test_the_largest_face_is_taken(portraits: list[Image.Image]) -> None:
    scene = Image.new("RGB", (400, 260), "gray")
    scene.paste(portraits[0].resize((90, 90)), (10, 10))
    scene.paste(portraits[1].resize((240, 240)), (150, 10))
    faces = find_faces(scene, 0.9)
    assert len(faces) == 2
    assert faces[0].area > 2 * faces[1].area
    for found_face, place in zip(faces, [(150, 10, 390, 250), (10, 10, 100, 100)], strict=True):
        center = found_face.box.mean(axis=0)
        assert (place[:2] < center).all()
        assert (center < place[2:]).all()
    alone = Image.new("RGB", (400, 260), "gray")
    alone.paste(portraits[1].resize((240, 240)), (150, 10))
    both, one = (align_face(each, find_faces(each, 0.9)[0].landmarks, 64, 16.0) for each in (scene, alone))
    assert np.abs(both.astype(int) - one).mean() < 12


def test_a_picture_without_a_face_gives_nothing() -> None:
    ramp = np.add.outer(np.arange(120), np.arange(160)).astype(np.uint8)
    assert find_faces(Image.fromarray(np.stack([ramp] * 3, axis=2)), 0.9) == []
