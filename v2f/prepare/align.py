"""Faces in photos: found by MTCNN, brought to FFHQ's pose by a similarity transform.

MTCNN: Zhang et al. 2016, "Joint face detection and alignment using multi-task cascaded convolutional networks"; the
weights lie inside facenet-pytorch. The crop is that of FFHQ (Karras et al. 2019, appendix A: the vectors eye to eye
and eye to mouth span an oriented square), with five landmarks in place of 68.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from facenet_pytorch import MTCNN
from PIL import Image, ImageFilter

Floats = npt.NDArray[np.float64]

_SMALLEST_SQUARE = 16.0  # pixels; a smaller face holds nothing to learn from


@dataclass(frozen=True)
class Face:
    """One face of a photo: its landmarks [5, 2] (x, y) as the picture shows them: left eye, right eye, nose, left and
    right corner of the mouth."""

    landmarks: Floats
    confidence: float
    area: float


@functools.cache
def _detector() -> MTCNN:
    return MTCNN(keep_all=True, device=torch.device("cpu")).eval()


def find_faces(photo: Image.Image, min_confidence: float) -> list[Face]:
    """The faces in an RGB photo, largest first."""
    with torch.inference_mode():
        boxes, confidences, landmarks = _detector().detect(photo, landmarks=True)
    if boxes is None:
        return []
    faces = [
        Face(np.asarray(points, dtype=np.float64), float(confidence), float((box[2] - box[0]) * (box[3] - box[1])))
        for box, confidence, points in zip(boxes, confidences, landmarks, strict=True)
        if confidence is not None and confidence >= min_confidence
    ]
    return sorted(faces, key=lambda face: face.area, reverse=True)


def face_square(landmarks: Floats) -> Floats:
    """FFHQ's oriented square around a face: corners [4, 2] from the top left on, counter-clockwise as seen."""
    left_eye, right_eye, _, left_mouth, right_mouth = landmarks
    eyes = (left_eye + right_eye) / 2
    eye_to_eye = right_eye - left_eye
    eye_to_mouth = (left_mouth + right_mouth) / 2 - eyes
    x = eye_to_eye - eye_to_mouth[::-1] * [-1, 1]
    x = x / max(float(np.hypot(*x)), 1e-9)
    x = x * max(np.hypot(*eye_to_eye) * 2.0, np.hypot(*eye_to_mouth) * 1.8)
    y = x[::-1] * [-1, 1]
    centre = eyes + eye_to_mouth * 0.1
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def cut_square(photo: Image.Image, corners: Floats, size: int) -> npt.NDArray[np.uint8] | None:
    """The oriented square ``corners`` of an RGB photo as uint8 [size, size, 3]; None where it is too small.

    What lies outside of the photo is filled as FFHQ does: mirrored, then faded into blur and the median colour.
    """
    side = float(np.hypot(*(corners[3] - corners[0])))
    if not np.isfinite(corners).all() or side < _SMALLEST_SQUARE:
        return None
    shrink = int(side / size / 2)
    if shrink > 1:
        photo = photo.resize(
            (max(1, round(photo.width / shrink)), max(1, round(photo.height / shrink))), Image.Resampling.BOX
        )
        corners, side = corners / shrink, side / shrink
    photo, corners = _crop(photo, corners, side)
    photo, corners = _pad(photo, corners, side)
    scale = min(4, max(1, int(np.ceil(side / size))))  # drawn larger and averaged, so that nothing is aliased
    data = tuple((corners + 0.5).reshape(-1).tolist())
    drawn = photo.transform((size * scale, size * scale), Image.Transform.QUAD, data, Image.Resampling.BILINEAR)
    if scale > 1:
        drawn = drawn.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(drawn)


def align_face(photo: Image.Image, size: int, min_confidence: float) -> npt.NDArray[np.uint8] | None:
    """The largest face of an RGB photo, aligned: uint8 [size, size, 3]; None where no face is found."""
    for face in find_faces(photo, min_confidence):
        aligned = cut_square(photo, face_square(face.landmarks), size)
        if aligned is not None:
            return aligned
    return None


def _crop(photo: Image.Image, corners: Floats, side: float) -> tuple[Image.Image, Floats]:
    border = max(round(side * 0.1), 3)
    low = np.maximum(np.floor(corners.min(axis=0)).astype(int) - border, 0)
    high = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + border, photo.size)
    if (high - low < 2).any():
        return photo, corners
    return photo.crop((int(low[0]), int(low[1]), int(high[0]), int(high[1]))), corners - low


def _pad(photo: Image.Image, corners: Floats, side: float) -> tuple[Image.Image, Floats]:
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
