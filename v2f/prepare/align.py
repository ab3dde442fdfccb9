"""Aligning faces: found by MTCNN or given by the user's landmarks, and transformed to FFHQ's pose by a similarity.

    photo --MTCNN--> faces --choose--> landmarks --FFHQ's square--> uint8 [size, size, 3]
    the user's file ------------------> landmarks --^

MTCNN: Zhang et al. 2016, "Joint face detection and alignment using multi-task cascaded convolutional networks"; the
weights are part of facenet-pytorch. The crop is that of FFHQ (Karras et al. 2019, appendix A: the vectors eye to eye
and eye to mouth span an oriented square), from its 68 landmarks or from MTCNN's five.

An input that cannot be used raises :class:`UnusableError`. Only :func:`find_faces` imports torch.
"""

import csv
import functools
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from v2f.data.audio import UnusableError, decoding
from v2f.data.sample import read_npy

FaceChoice = Literal["largest", "nearest", "only"]

_SMALLEST = 20  # pixels: MTCNN finds no smaller face, and fails on a photo smaller than this
_BEYOND = 0.25  # how far outside the photo a landmark may lie, as a share of the photo's side


@dataclass(frozen=True)
class Face:
    """One face in a photo. ``landmarks`` [5, 2] (x, y), left and right as seen in the picture: left eye, right eye,
    nose, left and right corner of the mouth. ``box`` [2, 2]: top left and bottom right corner (x, y)."""

    landmarks: npt.NDArray[np.float64]
    box: npt.NDArray[np.float64]
    confidence: float

    @property
    def area(self) -> float:
        return float(np.prod(self.box[1] - self.box[0]))


@functools.cache
def _detector(weights: str | None) -> Any:
    from v2f.weights import load_mtcnn

    return load_mtcnn(weights)[0]


def find_faces(photo: Image.Image, min_confidence: float, weights: str | None = None) -> list[Face]:
    """The faces in an RGB photo, largest first; ``weights``: of MTCNN, if not the package's own."""
    import torch

    if min(photo.size) < _SMALLEST:
        return []
    detector = _detector(weights)
    with torch.inference_mode(), decoding("no face could be looked for"):
        boxes, confidences, landmarks = detector.detect(photo, landmarks=True)
    if boxes is None:
        return []
    faces = [
        Face(np.asarray(points, np.float64), np.asarray(box, np.float64).reshape(2, 2), float(confidence))
        for box, confidence, points in zip(boxes, confidences, landmarks, strict=True)
        if confidence is not None and confidence >= min_confidence
    ]
    return sorted(faces, key=lambda face: face.area, reverse=True)


def choose_face(faces: Sequence[Face], choice: FaceChoice, point: npt.NDArray[np.float64] | None = None) -> Face:
    """Choose one of the faces, which are sorted by size: the largest, the one whose box center is nearest to ``point``
    (x, y in pixels), or the only one.

    A point marks the speaker's face. If it is more than a face's size outside the nearest box, the speaker's face was
    not found and the nearest one is somebody else's.
    """
    if choice == "only" and len(faces) > 1:
        raise UnusableError("several faces", f"found {len(faces)}, expected one")
    if choice != "nearest":
        return faces[0]
    assert point is not None
    nearest = min(faces, key=lambda face: float(np.hypot(*(face.box.mean(axis=0) - point))))
    away = np.abs(nearest.box.mean(axis=0) - point) / (nearest.box[1] - nearest.box[0])
    if not (away <= 1.5).all():
        detail = f"the nearest of {len(faces)} is {away.max():.1f} times its size away"
        raise UnusableError("no face at the point", detail)
    return nearest


def read_landmarks(content: bytes, name: str) -> npt.NDArray[np.float64]:
    """The landmarks (x, y) in a file's ``content``, [5, 2] or [68, 2]; ``name`` ends in .json (a list of pairs),
    .npy, or .csv (one pair per line, with or without the header x,y)."""
    with decoding("landmarks cannot be read"):
        if name.lower().endswith(".json"):
            points = np.asarray(json.loads(content), np.float64)
        elif name.lower().endswith(".npy"):
            points = read_npy(content).astype(np.float64)
        elif name.lower().endswith(".csv"):
            lines = [line for line in csv.reader(io.StringIO(content.decode("utf-8-sig"))) if line]
            titled = bool(lines) and [word.strip() for word in lines[0]] == ["x", "y"]
            points = np.asarray(lines[titled:], np.float64)
        else:
            raise UnusableError("landmarks cannot be read", f"{name}: expected .json, .npy or .csv")
    if points.shape not in ((5, 2), (68, 2)):
        raise UnusableError("landmarks cannot be read", f"shape {list(points.shape)}, expected [5, 2] or [68, 2]")
    return points


def check_landmarks(landmarks: npt.NDArray[np.float64], photo: Image.Image) -> npt.NDArray[np.float64]:
    """``landmarks`` (in pixels of ``photo``) if they can belong to a face: on or near the photo, left before right."""
    used = np.stack(_eyes_and_mouth(landmarks))
    near = (used >= -_BEYOND * np.array(photo.size)) & (used <= (1 + _BEYOND) * np.array(photo.size))
    if not near.all():  # also if not finite
        raise UnusableError("landmarks are outside of the photo", "use pixels of the upright photo")
    left_eye, right_eye, left_mouth, right_mouth = used
    across, down = right_eye - left_eye, (left_mouth + right_mouth - left_eye - right_eye) / 2
    if across[0] * down[1] - across[1] * down[0] <= 0:
        raise UnusableError("landmarks do not form a face", "the eye on the left of the picture comes first")
    return landmarks


def _eyes_and_mouth(
    landmarks: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Left eye, right eye, left and right corner of the mouth, from [5, 2] points or, as in FFHQ, from [68, 2]."""
    if len(landmarks) == 5:
        left_eye, right_eye, _, left_mouth, right_mouth = landmarks
        return left_eye, right_eye, left_mouth, right_mouth
    return landmarks[36:42].mean(axis=0), landmarks[42:48].mean(axis=0), landmarks[48], landmarks[54]


def face_square(landmarks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """FFHQ's oriented square around a face with [5, 2] or [68, 2] landmarks: corners [4, 2], counterclockwise from the
    top left."""
    left_eye, right_eye, left_mouth, right_mouth = _eyes_and_mouth(landmarks)
    eyes = (left_eye + right_eye) / 2
    eye_to_eye = right_eye - left_eye
    eye_to_mouth = (left_mouth + right_mouth) / 2 - eyes
    x = eye_to_eye - eye_to_mouth[::-1] * [-1, 1]
    x = x / max(float(np.hypot(*x)), 1e-9)
    x = x * max(np.hypot(*eye_to_eye) * 2.0, np.hypot(*eye_to_mouth) * 1.8)
    y = x[::-1] * [-1, 1]
    center = eyes + eye_to_mouth * 0.1
    return np.stack([center - x - y, center - x + y, center + x + y, center + x - y])


def align_face(
    photo: Image.Image, landmarks: npt.NDArray[np.float64], size: int, min_face: float
) -> npt.NDArray[np.uint8]:
    """The face with these landmarks, cut from an RGB photo, uint8 [size, size, 3]. ``min_face``: minimum side of its
    square in pixels of ``photo``; UnusableError below it."""
    corners = face_square(landmarks)
    side = float(np.hypot(*(corners[3] - corners[0])))
    if not side >= min_face:  # also if not finite
        raise UnusableError("face is too small", f"a square of {side:.1f} pixels, expected at least {min_face:g}")
    return cut_square(photo, corners, size)


def cut_square(photo: Image.Image, corners: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.uint8]:
    """The oriented square ``corners`` of an RGB photo, uint8 [size, size, 3].

    Areas outside the photo are filled as in FFHQ: mirrored, then faded to a blur and the median color.
    """
    side = float(np.hypot(*(corners[3] - corners[0])))
    shrink = int(side / size / 2)
    if shrink > 1:
        photo = photo.resize(
            (max(1, round(photo.width / shrink)), max(1, round(photo.height / shrink))), Image.Resampling.BOX
        )
        corners, side = corners / shrink, side / shrink
    photo, corners = _crop(photo, corners, side)
    photo, corners = _pad(photo, corners, side)
    scale = min(4, max(1, int(np.ceil(side / size))))  # drawn larger and then reduced, against aliasing
    data = tuple((corners + 0.5).reshape(-1).tolist())
    drawn = photo.transform((size * scale, size * scale), Image.Transform.QUAD, data, Image.Resampling.BILINEAR)
    if scale > 1:
        drawn = drawn.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(drawn)


def _crop(
    photo: Image.Image, corners: npt.NDArray[np.float64], side: float
) -> tuple[Image.Image, npt.NDArray[np.float64]]:
    border = max(round(side * 0.1), 3)
    low = np.maximum(np.floor(corners.min(axis=0)).astype(int) - border, 0)
    high = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + border, photo.size)
    if (high - low < 2).any():
        return photo, corners
    return photo.crop((int(low[0]), int(low[1]), int(high[0]), int(high[1]))), corners - low


def _pad(
    photo: Image.Image, corners: npt.NDArray[np.float64], side: float
) -> tuple[Image.Image, npt.NDArray[np.float64]]:
    border = max(round(side * 0.1), 3)
    before = np.maximum(-np.floor(corners.min(axis=0)).astype(int) + border, 0)
    after = np.maximum(np.ceil(corners.max(axis=0)).astype(int) - photo.size + border, 0)
    if max(*before, *after) <= border - 4:
        return photo, corners
    least = round(side * 0.3)
    (left, top), (right, bottom) = np.maximum(before, least).tolist(), np.maximum(after, least).tolist()
    padded = np.pad(np.asarray(photo), ((top, bottom), (left, right), (0, 0)), "reflect")
    height, width, _ = padded.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    inside = np.minimum(
        np.minimum(x / left, (width - 1 - x) / right), np.minimum(y / top, (height - 1 - y) / bottom)
    )  # 0 at the outer edge, 1 where the photo begins
    outside = (1.0 - inside)[..., None]
    image = Image.fromarray(padded)
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(side * 0.02)), dtype=np.float32)
    mixed: Any = padded.astype(np.float32)
    mixed += (blurred - mixed) * np.clip(outside * 3.0 + 1.0, 0.0, 1.0)
    mixed += (np.median(padded, axis=(0, 1)).astype(np.float32) - mixed) * np.clip(outside, 0.0, 1.0)
    faded = Image.fromarray(np.clip(np.rint(mixed), 0, 255).astype(np.uint8))
    return faded, corners + np.array([left, top])
