"""The pictures of :mod:`v2f.world.things`, drawn as shaded signed-distance shapes in color, and short videos of them.

Every shape is a formula of the pixel's place, so a picture is the same drawing at any size, with smooth edges. In a
video the thing moves as it sounds: a mouth opens at each call, a bell swings at each stroke, an engine's wheel turns.

Pixels are computed in float32 with +, -, *, /, square roots, minima and maxima only, as in :mod:`v2f.world.portraits`,
so they are the same on all machines.

Shapes: N pictures, F factors, M frames, H = W = size; a picture's number is [N,1,1], a field over it [N,H,W].
Places are in widths of the thing, x to the right and y down, 0 in its middle; colors are sRGB in 0..1.
"""

import math

import numpy as np
from numpy.typing import NDArray

from v2f.errors import V2FError
from v2f.world.canvas import Canvas, Color, Field, Tone, blob, color_at, ellipse, gray, mix, times, unit
from v2f.world.things import CLASSES, PICTURE, Call, calls, classes, picture_factors, sound_factors

_PIXELS = 1 << 15  # drawn at a time

_COATS = ((0.16, 0.12, 0.11), (0.38, 0.22, 0.12), (0.62, 0.42, 0.22), (0.83, 0.69, 0.47), (0.90, 0.86, 0.80))
_FURS = ((0.20, 0.20, 0.23), (0.47, 0.46, 0.46), (0.70, 0.52, 0.36), (0.88, 0.56, 0.27), (0.93, 0.88, 0.79))
_METALS = ((0.58, 0.40, 0.24), (0.80, 0.60, 0.22), (0.93, 0.80, 0.36), (0.78, 0.79, 0.80))
_PAINTS = ((0.60, 0.17, 0.15), (0.72, 0.50, 0.16), (0.25, 0.45, 0.30), (0.20, 0.33, 0.55), (0.38, 0.38, 0.40))
_BACKDROPS = ((0.80, 0.66, 0.54), (0.74, 0.74, 0.58), (0.60, 0.74, 0.66), (0.58, 0.70, 0.82), (0.70, 0.64, 0.78))
_SPAN = 1.0  # factors lie in (-1, 1)


def render_things(class_N: NDArray[np.int64], factor_NF: NDArray[np.float64], size: int = 64) -> NDArray[np.uint8]:
    """Pictures of the classes ``class_N`` with the factors ``factor_NF`` (:data:`v2f.world.things.PICTURE`): uint8 RGB
    [N,size,size,3].

    Row i depends on row i of the arguments only. V2FError if the shapes do not fit or the size is below 32 px.
    """
    class_N, factor_NF = np.asarray(class_N), np.asarray(factor_NF)
    if factor_NF.shape != (len(class_N), len(PICTURE)):
        raise V2FError(
            f"render_things takes classes [N] and factors [N,{len(PICTURE)}] of the same N; got {list(class_N.shape)} "
            f"and {list(factor_NF.shape)}"
        )
    if size < 32:
        raise V2FError(f"a picture of {size} pixels is too small to show a thing; pass a size of 32 or more")
    out = np.empty((len(class_N), size, size, 3), np.uint8)
    step = max(1, _PIXELS // size**2)
    for number in range(len(CLASSES)):
        rows = np.flatnonzero(class_N == number)
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            out[some] = _Scene(factor_NF[some].astype(np.float32), size).painted(CLASSES[number])
    return out


def render_frames(
    thing: int, take: int, seconds: float, rate: float = 12.5, size: int = 64, seed: int = 0
) -> NDArray[np.uint8]:
    """The frames of a silent video of a take, ``rate`` of them a second: uint8 RGB [M,size,size,3]."""
    ids, takes = np.array([thing]), np.array([take])
    factor_F = picture_factors(ids, takes, seed)[0]
    sounding = calls(int(classes(ids)[0]), sound_factors(ids, takes, seed)[0], seconds)
    frames = max(1, round(seconds * rate))
    factor_MF = np.tile(factor_F, (frames, 1))
    moves = _wheel if CLASSES[classes(ids)[0]] == "engine" else _mouth
    factor_MF[:, PICTURE.index("open")] = [moves(sounding, (frame + 0.5) / rate) for frame in range(frames)]
    factor_MF[:, PICTURE.index("y")] -= 0.15 * (0.5 + 0.5 * factor_MF[:, PICTURE.index("open")])  # it nods
    return render_things(np.repeat(classes(ids), frames), factor_MF, size)


def _mouth(sounding: list[Call], second: float) -> float:
    """The factor ``open`` at a time: 1 in the middle of a call, -1 between calls."""
    most = -1.0
    for call in sounding:
        length = min(max(call.length, 0.2), 0.8)
        away = abs(second - call.start - 0.5 * length) / (0.5 * length)
        most = max(most, 1.0 - 2.0 * away * away)
    return most


def _wheel(sounding: list[Call], second: float) -> float:
    """The factor ``open`` of a wheel that turns by a spoke 2.3 times a second."""
    turns = 2.3 * second
    return 2.0 * (turns - math.floor(turns)) - 1.0


class _Scene:
    """A batch of pictures of one class, painted from the back to the front; X, Y are places in the thing."""

    def __init__(self, factor_NF: NDArray[np.float32], size: int) -> None:
        self.f = f = {name: factor_NF[:, i, None, None] for i, name in enumerate(PICTURE)}
        self.canvas = Canvas(len(factor_NF), size)
        axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(1.0 / size)
        gx, gy = axis[None, None, :], axis[None, :, None]
        scale = 0.86 + 0.12 * f["size"]
        half = 0.09 * f["turn"]  # the tangent of half the angle: at most 10 degrees
        cos, sin = (1.0 - half * half) / (1.0 + half * half), 2.0 * half / (1.0 + half * half)
        dx, dy = gx - (0.5 + 0.06 * f["x"]), gy - (0.5 + 0.05 * f["y"])
        self.X, self.Y = (dx * cos + dy * sin) / scale, (dy * cos - dx * sin) / scale
        self.ink = size * scale  # pixels a width of the thing
        self.open = 0.5 + 0.5 * f["open"]
        self.stout = 1.0 + 0.08 * f["build"]
        ground = color_at(_BACKDROPS, f["backdrop"], _SPAN)
        self.canvas.fill(ground, 1.06 - 0.28 * gy)

    def painted(self, name: str) -> NDArray[np.uint8]:
        """The pictures, uint8 [N,H,W,3]."""
        {"bark": self._dog, "meow": self._cat, "bell": self._bell, "engine": self._engine}[name]()
        bright = 1.0 + 0.15 * self.f["light"]
        out_NHWC = np.empty((*self.canvas.rgb[0].shape, 3), np.uint8)
        for i, plane in enumerate(self.canvas.rgb):
            out_NHWC[..., i] = unit(plane * bright) * 255.0 + 0.5
        return out_NHWC

    def _tinted(self, palette: tuple[tuple[float, float, float], ...]) -> Color:
        return times(color_at(palette, self.f["hue"], _SPAN), 1.0 + 0.15 * self.f["shade"])

    def _fill(self, distance: Field, color: Color, light: Tone = 1.0) -> None:
        """Paint the shape whose inside has positive distance."""
        self.canvas.paint(unit(distance * self.ink + 0.5), color, light)

    def _oval(self, x: Tone, y: Tone, rx: Tone, ry: Tone) -> Field:
        return ellipse(self.X - x, self.Y - y, rx, ry)

    def _pair(self, x: float, y: float, rx: Tone, ry: Tone) -> Field:
        """An oval on each side."""
        return ellipse(np.abs(self.X) - x, self.Y - y, rx, ry)

    def _box(self, x: Tone, y: Tone, hx: Tone, hy: Tone) -> Field:
        return np.minimum(hx - np.abs(self.X - x), hy - np.abs(self.Y - y))

    def _light(self) -> Field:
        """Shading of a round body lit from the upper left."""
        return 0.86 + 0.30 * blob(self.X + 0.12, self.Y + 0.16, 0.55, 0.55)

    def _dog(self) -> None:
        coat = self._tinted(_COATS)
        dark, pale = times(coat, 0.62), mix(coat, (0.97, 0.93, 0.87), 0.55)
        self._fill(self._oval(0.0, 0.62, 0.34 * self.stout, 0.34), times(coat, 0.88))
        self._fill(self._oval(0.0, 0.58, 0.15, 0.22), pale, 0.92)
        self._fill(self._oval(0.0, 0.0, 0.29 * self.stout, 0.31), coat, self._light())
        self._fill(self._pair(0.30, 0.03, 0.095, 0.25), dark)
        drop = 0.08 * self.open
        self._fill(self._oval(0.0, 0.15 + 0.5 * drop, 0.17, 0.14 + 0.6 * drop), pale)
        self._fill(self._oval(0.0, 0.21 + drop, 0.085, 0.012 + drop), (0.24, 0.08, 0.09))
        self._fill(self._oval(0.0, 0.235 + 1.6 * drop, 0.055, 0.001 + 0.6 * drop), (0.86, 0.42, 0.45))
        self._fill(self._oval(0.0, 0.08, 0.066, 0.046), (0.08, 0.07, 0.08))
        self._fill(self._pair(0.125, -0.08, 0.042, 0.046), (0.98, 0.97, 0.95))
        self._fill(self._pair(0.122, -0.075, 0.030, 0.034), (0.12, 0.08, 0.06))

    def _cat(self) -> None:
        fur = self._tinted(_FURS)
        dark, pale = times(fur, 0.70), mix(fur, (1.0, 0.97, 0.94), 0.65)
        self._fill(self._oval(0.0, 0.62, 0.27 * self.stout, 0.36), times(fur, 0.90))
        across = np.abs(self.X)
        ear = _inside(across, self.Y, ((0.03, -0.20), (0.27, -0.46), (0.30, -0.04)))
        self._fill(ear, dark)
        self._fill(ear - 0.035, (0.88, 0.62, 0.62))
        self._fill(self._oval(0.0, 0.0, 0.31 * self.stout, 0.26), fur, self._light())
        for x in (-0.07, 0.0, 0.07):
            self._fill(self._oval(x, -0.19, 0.017, 0.055), dark)
        self._fill(self._pair(0.055, 0.11, 0.075, 0.06), pale)
        wide = 0.075 * self.open
        self._fill(self._oval(0.0, 0.165 + wide, 0.05, 0.008 + wide), (0.45, 0.14, 0.17))
        self._fill(_inside(self.X, self.Y, ((-0.035, 0.05), (0.035, 0.05), (0.0, 0.095))), (0.86, 0.47, 0.49))
        self._fill(self._pair(0.135, -0.04, 0.060, 0.052), (0.66, 0.80, 0.34))
        self._fill(self._pair(0.135, -0.04, 0.013, 0.046), (0.06, 0.07, 0.05))
        for rise in (-0.10, 0.08):
            line = np.abs(self.Y - 0.10 - rise * (across - 0.10))
            span = np.minimum(across - 0.10, 0.42 - across)
            self._fill(np.minimum(0.0055 - line, span), gray(0.96))

    def _bell(self) -> None:
        metal = self._tinted(_METALS)
        swing = 0.30 * (self.open - 0.5)
        self.X, self.Y = self.X + swing * (self.Y + 0.35), self.Y - 0.5 * swing * self.X
        ring = self._oval(0.0, -0.38, 0.085, 0.085)
        self._fill(np.minimum(ring, 0.035 - ring), times(metal, 0.75))
        self._fill(self._oval(-2.2 * swing, 0.36, 0.070, 0.070), (0.30, 0.26, 0.22))
        down = unit((self.Y + 0.32) * (1.0 / 0.62))
        half = (0.13 + 0.10 * down + 0.13 * down * down * down) * self.stout
        body = np.minimum(half - np.abs(self.X), np.minimum(self.Y + 0.32, 0.30 - self.Y))
        shade = 0.78 + 0.40 * blob(self.X + 0.10, self.Y, 0.22, 0.60)
        self._fill(body, metal, shade)
        self._fill(self._oval(0.0, -0.30, 0.13 * self.stout, 0.07), metal, shade)
        self._fill(self._box(0.0, 0.29, 0.39 * self.stout, 0.035), times(metal, 0.82))
        self._fill(self._box(0.0, 0.13, 0.25 * self.stout, 0.012), times(metal, 0.70))

    def _engine(self) -> None:
        paint = self._tinted(_PAINTS)
        steel = (0.52, 0.53, 0.55)
        for at in range(3):  # puffs rise while the wheel turns
            up = (self.open + at) * (1.0 / 3.0)
            puff = blob(self.X + 0.34 - 0.10 * up, self.Y + 0.36 + 0.20 * up, 0.07 + 0.07 * up, 0.07 + 0.07 * up)
            self.canvas.paint(0.8 * (1.0 - up) * puff, gray(0.42))
        self._fill(self._box(-0.34, -0.17, 0.035, 0.17), times(steel, 0.65))
        self._fill(self._box(-0.29, 0.0, 0.07, 0.035), times(steel, 0.65))
        self._fill(self._box(0.0, 0.36, 0.40 * self.stout, 0.045), (0.20, 0.20, 0.22))
        for x in (-0.17, 0.0, 0.17):
            self._fill(self._box(x, -0.19, 0.065, 0.12), steel)
            for y in (-0.27, -0.21, -0.15):
                self._fill(self._box(x, y, 0.080, 0.012), (0.30, 0.30, 0.33))
        self._fill(self._box(0.0, 0.13, 0.28 * self.stout, 0.21), paint, self._light())
        self._fill(self._box(-0.08, 0.02, 0.15, 0.018), times(paint, 0.62))
        x, y, half = self.X - 0.24, self.Y - 0.16, 0.41421357 * self.open  # a quarter of a turn at most
        cos, sin = (1.0 - half * half) / (1.0 + half * half), 2.0 * half / (1.0 + half * half)
        u, v = x * cos + y * sin, y * cos - x * sin
        rim = ellipse(x, y, 0.19, 0.19)
        self._fill(rim, (0.17, 0.17, 0.19))
        self._fill(rim - 0.035, (0.74, 0.75, 0.77))
        spokes = np.maximum(0.018 - np.abs(u), 0.018 - np.abs(v))
        self._fill(np.minimum(spokes, rim - 0.03), (0.17, 0.17, 0.19))
        self._fill(ellipse(x, y, 0.05, 0.05), (0.17, 0.17, 0.19))


def _inside(x: Field, y: Field, corners: tuple[tuple[float, float], ...]) -> Field:
    """Distance to the edge of a convex polygon, positive inside; corners are in clockwise order on the screen."""
    distance: Field | None = None
    for (ax, ay), (bx, by) in zip(corners, (*corners[1:], corners[0]), strict=True):
        length = math.sqrt((bx - ax) * (bx - ax) + (by - ay) * (by - ay))
        edge = ((bx - ax) * (1.0 / length)) * (y - ay) - ((by - ay) * (1.0 / length)) * (x - ax)
        distance = edge if distance is None else np.minimum(distance, edge)
    assert distance is not None
    return distance
