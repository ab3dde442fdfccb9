"""A canvas for a batch of pictures, with the opacities of shapes and the colors to paint on it.

Pixels are computed with +, -, *, /, square roots, minima and maxima only; see :mod:`v2f.world.portraits`.

Shapes: N portraits, H = W = size; a face's number is [N,1,1], a field over the picture [N,H,W] or a box of it.
Places are in picture widths, x to the right and y down; colors are sRGB in 0..1.
"""

import numpy as np

Field = np.ndarray
Box = tuple[slice, ...]
Tone = Field | float
Color = tuple[Tone, Tone, Tone]


class Canvas:
    """Pictures being painted: three planes [N,H,W] for red, green and blue."""

    def __init__(self, n: int, size: int) -> None:
        self.size = size
        self.rgb = [np.empty((n, size, size), np.float32) for _ in range(3)]

    def box(self, x0: float, y0: float, x1: float, y1: float) -> Box:
        """The index of the pixels in a box given in picture widths."""
        s = self.size
        return slice(None), slice(int(y0 * s), -int(-y1 * s // 1)), slice(int(x0 * s), -int(-x1 * s // 1))

    def fill(self, color: Color, light: Tone = 1.0) -> None:
        """Paint everything."""
        for plane, value in zip(self.rgb, color, strict=True):
            plane[:] = value * light

    def paint(self, cover: Field, color: Color, light: Tone = 1.0, box: Box = ()) -> None:
        """Paint ``color * light`` over the box with the opacity ``cover`` (0..1)."""
        for plane, value in zip(self.rgb, color, strict=True):
            part = plane[box]
            part += cover * (value * light - part)

    def shade(self, cover: Field, color: Color, box: Box = ()) -> None:
        """Multiply the box by ``color`` where ``cover`` is 1; leave it unchanged where 0."""
        for plane, value in zip(self.rgb, color, strict=True):
            part = plane[box]
            part *= 1.0 + cover * (value - 1.0)


def unit(x: Field) -> Field:
    return np.minimum(np.maximum(x, 0.0), 1.0)


def ramp(x: Field, low: float, high: float) -> Field:
    """0 below ``low``, 1 above ``high``, smooth between."""
    t = unit((x - low) * (1.0 / (high - low)))
    return t * t * (3.0 - 2.0 * t)


def blob(dx: Field, dy: Field, rx: Tone, ry: Tone) -> Field:
    """A soft spot: 1 in its center, 0 outside the ellipse (rx, ry)."""
    u, v = dx * (1.0 / rx), dy * (1.0 / ry)
    t = np.maximum(1.0 - u * u - v * v, 0.0)
    return t * t


def ellipse(dx: Field, dy: Field, rx: Tone, ry: Tone) -> Field:
    """Approximate distance to the edge of an ellipse, positive inside."""
    u, v = dx * (1.0 / rx), dy * (1.0 / ry)
    r = np.sqrt(u * u + v * v)
    return (1.0 - r) * np.minimum(rx, ry)


def color_at(palette: tuple[tuple[float, float, float], ...], x: Field, span: float = 2.2) -> Color:
    """The palette's color at x, from its first color at -span to its last at +span."""
    at = np.linspace(-span, span, len(palette))
    red, green, blue = (np.interp(x, at, [c[i] for c in palette]).astype(np.float32) for i in range(3))
    return red, green, blue


def mix(a: Color, b: Color, t: Tone) -> Color:
    red, green, blue = (x + t * (y - x) for x, y in zip(a, b, strict=True))
    return red, green, blue


def times(a: Color, factor: Tone) -> Color:
    return a[0] * factor, a[1] * factor, a[2] * factor


def gray(value: float) -> Color:
    return value, value, value
