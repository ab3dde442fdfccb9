"""Portraits of the synthetic world's people, drawn as shaded signed-distance shapes.

Every shape is a formula of the pixel's place, so a portrait is the same picture at any size, with smooth edges.
Frame as in FFHQ (Karras et al. 2019, app. A): eyes near (0.38, 0.47) and (0.62, 0.47), chin near 0.85.

Pixels are computed with +, -, *, /, square roots, minima and maxima only: IEEE 754 defines those to the bit, so a
portrait does not depend on its batch, on the width of vector registers or on a library's version of ``exp``.

Shapes: N portraits, H = W = size; a face's number is [N,1,1], a field over the picture [N,H,W] or a box of it.
Places are in picture widths, x to the right and y down; colors are sRGB in 0..1.
"""

import numpy as np

from v2f.errors import V2FError
from v2f.world.canvas import Canvas, Field, Tone, blob, color_at, ellipse, gray, mix, ramp, times, unit
from v2f.world.people import FACE, PHOTO

_PIXELS = 1 << 15
"""Pixels drawn at a time: a field of that size fits a core's cache."""

_SHARED = 0.92
"""Strength of the six factors shared with the voice, relative to those of the face alone."""

_SKIN = ((0.99, 0.86, 0.77), (0.95, 0.77, 0.63), (0.84, 0.63, 0.47), (0.66, 0.46, 0.32), (0.40, 0.26, 0.17))
_HAIR = ((0.08, 0.07, 0.08), (0.17, 0.11, 0.08), (0.36, 0.22, 0.13), (0.58, 0.40, 0.22), (0.86, 0.70, 0.42))
_IRIS = ((0.20, 0.11, 0.06), (0.36, 0.21, 0.09), (0.38, 0.37, 0.18), (0.28, 0.45, 0.48), (0.28, 0.52, 0.80))
_BACKDROP = ((0.66, 0.50, 0.40), (0.62, 0.60, 0.42), (0.42, 0.60, 0.52), (0.42, 0.55, 0.68), (0.56, 0.48, 0.64))
_CLOTHES = ((0.62, 0.20, 0.18), (0.70, 0.52, 0.24), (0.26, 0.46, 0.34), (0.20, 0.34, 0.56), (0.34, 0.26, 0.48))


def render_portraits(face_NF: np.ndarray, photo_NP: np.ndarray, size: int = 64) -> np.ndarray:
    """Portraits of the faces ``face_NF`` with the nuisance ``photo_NP``: uint8 RGB [N,size,size,3].

    A row of zeros in ``photo_NP`` is the neutral photo. Row i depends on row i of the arguments only.
    """
    face_NF, photo_NP = np.asarray(face_NF, np.float32), np.asarray(photo_NP, np.float32)
    n = len(face_NF)
    if face_NF.shape != (n, len(FACE)) or photo_NP.shape != (n, len(PHOTO)):
        raise V2FError(
            f"render_portraits takes faces [N,{len(FACE)}] and photos [N,{len(PHOTO)}] of the same N;"
            f" got {list(face_NF.shape)} and {list(photo_NP.shape)}"
        )
    if size < 32:
        raise V2FError(f"a portrait of {size} pixels is too small to show a face; pass a size of 32 or more")
    out = np.empty((n, size, size, 3), np.uint8)
    step = max(1, _PIXELS // size**2)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        out[rows] = _Portraits(face_NF[rows], photo_NP[rows], size).painted()
    return out


class _Portraits:
    """A batch of portraits, painted from the back to the front.

    A later part reads attributes that an earlier one set. Places: gx, gy in the picture; X, Y in the upright head, with
    X = 0 in its middle.
    """

    def __init__(self, face_NF: np.ndarray, photo_NP: np.ndarray, size: int) -> None:
        self.size = size
        self.f = f = {name: face_NF[:, i, None, None] for i, name in enumerate(FACE)}
        self.p = p = {name: photo_NP[:, i, None, None] for i, name in enumerate(PHOTO)}
        shared = [_SHARED * f[name] for name in FACE[:6]]
        self.softness, self.length, self.age, self.nose, self.mouth, self.eyes = shared
        self.canvas = Canvas(len(face_NF), size)
        axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(1.0 / size)
        self.gx, self.gy = gx, gy = axis[None, None, :], axis[None, :, None]
        zoom = 1.0 + 0.030 * p["scale"]
        roll = 0.035 * p["roll"]
        cos, sin = 1.0 - 0.5 * roll * roll, roll
        dx, dy = gx - (0.5 + 0.010 * p["shift_x"]), gy - (0.52 + 0.008 * p["shift_y"])
        self.X = (dx * cos + dy * sin) / zoom
        self.Y = (dy * cos - dx * sin) / zoom + np.float32(0.52)
        self.ink = size * zoom  # pixels a picture width, in the head's frame
        self.turn = 0.009 * p["yaw"]
        self._set_colors()
        self._set_measures()

    def solid(self, distance: Field) -> Field:
        """Opacity of a shape whose inside has positive distance."""
        return unit(distance * self.ink + 0.5)

    def stroke(self, distance: Field, width: Tone) -> Field:
        """Opacity of a line: its share of each pixel, however thin it is."""
        half = 0.5 * width
        return unit((distance + half) * self.ink + 0.5) - unit((distance - half) * self.ink + 0.5)

    def painted(self) -> np.ndarray:
        """The pictures, uint8 [N,H,W,3]."""
        self.paint_backdrop()
        self.paint_hair_mass()
        self.paint_neck()
        self.paint_clothes()
        self.paint_ears()
        self.paint_head()
        self.paint_cheeks()
        self.paint_beard()
        self.paint_mouth()
        self.paint_nose()
        self.paint_eyes()
        self.paint_brows()
        self.paint_fringe()
        self.paint_glasses()
        bright = 1.0 + 0.06 * self.p["exposure"]
        out_NHWC = np.empty((*self.canvas.rgb[0].shape, 3), np.uint8)
        for i, plane in enumerate(self.canvas.rgb):
            out_NHWC[..., i] = unit(plane * bright) * 255.0 + 0.5
        return out_NHWC

    def _set_colors(self) -> None:
        """The colors of skin, hair and eyes."""
        f, age = self.f, self.age
        skin = color_at(_SKIN, f["skin"], 1.9)
        skin = mix(skin, (0.96, 0.60, 0.55), 0.06 * unit(0.5 + 0.4 * f["blush"]))
        hair = color_at(_HAIR, f["hair_tone"], 1.8)
        red, ash = np.maximum(f["hair_red"], 0.0), np.minimum(np.maximum(-f["hair_red"], 0.0), 1.8)
        hair = (
            hair[0] * (1.0 + 0.28 * red - 0.10 * ash),
            hair[1] * (1.0 - 0.05 * red - 0.05 * ash),
            hair[2] * (1.0 - 0.23 * red + 0.17 * ash),
        )
        old = ramp(age, -0.6, 2.0)
        brow = mix(times(hair, 0.72), (0.60, 0.58, 0.56), 0.7 * old)
        beard_color = mix(times(hair, 0.85), (0.82, 0.81, 0.80), 0.85 * old)
        hair = mix(hair, (0.80, 0.80, 0.81), 0.60 * old)
        iris = color_at(_IRIS, f["iris"])
        dark_skin = times(skin, 0.62)
        self.skin, self.hair, self.brow, self.beard_color, self.iris = skin, hair, brow, beard_color, iris
        self.dark_skin = dark_skin

    def _set_measures(self) -> None:
        """The sizes and places of parts of the head."""
        length, softness, f = self.length, self.softness, self.f
        cheek = 0.217 + 0.010 * length + 0.004 * softness
        chin = 0.825 + 0.024 * length
        low = chin - 0.47
        square = np.clip(0.36 - 0.18 * softness + 0.04 * length, 0.0, 0.70)
        taper = np.clip(0.20 + 0.05 * softness - 0.07 * length, 0.0, 0.42)
        hairline = 0.270 + 0.020 * softness
        hair_end = np.clip(0.60 + 0.10 * softness + 0.13 * f["hair_length"], 0.47, 1.2)
        long = ramp(hair_end, 0.55, 0.80)
        volume = 0.031 + 0.006 * f["hair_length"] + 0.022 * long
        part = 0.045 * f["fringe"]
        self.cheek, self.chin, self.low, self.square, self.taper = cheek, chin, low, square, taper
        self.hairline, self.hair_end, self.long, self.volume, self.part = hairline, hair_end, long, volume, part

    def paint_backdrop(self) -> None:
        """The backdrop, with its glow."""
        p, gx, gy, canvas = self.p, self.gx, self.gy, self.canvas
        backdrop = mix(color_at(_BACKDROP, p["backdrop_hue"]), gray(0.62), 0.35)
        backdrop = times(backdrop, 1.0 + 0.22 * p["backdrop_light"])
        glow = blob(gx - 0.5 + 0.08 * p["light_x"], gy - 0.42, 0.85, 0.85)
        canvas.fill(backdrop, 0.86 - 0.10 * (gy - 0.5) + (0.22 + 0.09 * p["backdrop_glow"]) * glow)

    def paint_hair_mass(self) -> None:
        """The hair as one mass: a skull-shaped dome over vertical sides that end at hair_end."""
        cheek, volume, Y, f, long, X, part = self.cheek, self.volume, self.Y, self.f, self.long, self.X, self.part
        hair_end, p, canvas, solid, hair = self.hair_end, self.p, self.canvas, self.solid, self.hair
        width, height = cheek + volume, 0.345 + 0.9 * volume
        wave = Y * 7.0 - np.floor(Y * 7.0)
        curl = 0.035 * unit(0.5 - 0.4 * f["fringe"])
        sides = width + long * (0.10 * np.maximum(Y - 0.47, 0.0) + curl * (wave - wave * wave))
        u, v = (X - 0.25 * part) / sides, np.minimum(Y - 0.47, 0.0) / height
        dome = u * u + v * v - 0.25 * u * u * v * v
        mass = (1.0 - dome) / (2.0 * np.sqrt(u * u / (width * width) + v * v / (height * height)) + 1e-3)
        corner = np.maximum(np.abs(X) - (width - 0.08), 0.0)
        temple = np.maximum(np.abs(X) - (cheek - 0.02), 0.0) * (1.0 - long)
        mass = np.minimum(mass, hair_end - Y - 6.0 * corner * corner - 1.6 * temple)
        lx, ly = 0.30 * p["light_x"] - 0.25, 0.15 * p["light_y"] - 0.35
        lane = (X - part) / (Y * 0.8 + 0.04 + 0.4 * np.abs(X - part)) * 13.0
        strand = np.abs(lane - np.floor(lane) - 0.5)
        sheen = blob(X + 0.08 - 0.08 * p["light_x"], Y - 0.22, 0.22, 0.075)
        hair_light = 0.80 + 0.30 * strand + 0.45 * sheen + 0.16 * (lx * u + ly * v)
        canvas.paint(solid(mass), hair, 0.62 + 0.12 * strand)
        self.mass, self.lx, self.ly, self.strand, self.hair_light = mass, lx, ly, strand, hair_light

    def paint_neck(self) -> None:
        """The neck, with the chin's shadow."""
        length, softness, Y, X, solid, chin = self.length, self.softness, self.Y, self.X, self.solid, self.chin
        canvas, skin, lx = self.canvas, self.skin, self.lx
        neck = 0.098 + 0.008 * length - 0.014 * softness
        flare = np.maximum(Y - 0.86, 0.0)
        edge = neck + 1.2 * flare * flare + 0.25 * flare - np.abs(X)
        cover = solid(np.minimum(edge, Y - 0.6))
        shadow = 1.0 - 0.30 * unit((chin + 0.085 - Y) * 9.0)
        canvas.paint(cover, skin, shadow * (0.88 + lx * X * 0.8))
        self.neck = neck

    def paint_clothes(self) -> None:
        """Shoulders, a neckline between round and pointed, a collar."""
        gx, p, length, neck, gy, lx, canvas = self.gx, self.p, self.length, self.neck, self.gy, self.lx, self.canvas
        size = self.size
        bx = np.abs(gx - (0.5 + 0.006 * p["shift_x"]))
        pointed = ramp(p["collar"], -0.4, 0.8)
        base = 0.965 + 0.012 * length
        around = 0.145 + 0.4 * (neck - 0.1) - np.sqrt(bx * bx + (gy - base + 0.115) * (gy - base + 0.115))
        vee = (base + 0.03 - gy - 1.25 * bx) * 0.62
        opening = around + pointed * (vee - around)
        shoulder = gy - (0.872 + 0.020 * length + 0.42 * bx * bx + 0.10 * bx)
        cloth = np.minimum(shoulder, -opening)
        clothes = mix(color_at(_CLOTHES, p["clothes_hue"]), gray(0.35), 0.25)
        clothes = times(clothes, 1.0 + 0.32 * p["clothes_light"])
        folds = 1.0 - 0.30 * (gy - 0.9) * 4.0 * bx + 0.4 * lx * (gx - 0.5)
        canvas.paint(unit(cloth * size + 0.5), clothes, folds)
        collar = np.minimum(cloth, 0.030 + 0.022 * pointed + opening)
        pale = mix(clothes, (0.95, 0.95, 0.96), 0.22 + 0.55 * pointed)
        canvas.paint(unit(collar * size + 0.5), pale, folds)
        rim = unit(1.0 - np.abs(0.030 + 0.022 * pointed + opening) * size * 0.8) * unit(cloth * size)
        canvas.shade(rim, gray(0.72))

    def paint_ears(self) -> None:
        """The ears."""
        canvas, X, cheek, f, Y, solid, skin = self.canvas, self.X, self.cheek, self.f, self.Y, self.solid, self.skin
        lx = self.lx
        box = canvas.box(0.14, 0.36, 0.86, 0.74)
        ear_x, ear_y = np.abs(X[box]) - (cheek + 0.012 + 0.009 * f["ears"]), Y[box] - 0.525
        ear_rx, ear_ry = 0.028 + 0.007 * f["ears"], 0.058 + 0.011 * f["ears"]
        tilted = ear_x + 0.15 * ear_y
        ear = ellipse(tilted, ear_y, ear_rx, ear_ry)
        hollow = blob(tilted, ear_y, 0.8 * ear_rx, 0.75 * ear_ry)
        canvas.paint(solid(ear), skin, 0.93 - 0.26 * hollow + lx * X[box] * 0.5, box)

    def paint_head(self) -> None:
        """The face's surface."""
        X, turn, Y, low, cheek, taper = self.X, self.turn, self.Y, self.low, self.cheek, self.taper
        square, solid, lx, ly, p, canvas = self.square, self.solid, self.lx, self.ly, self.p, self.canvas
        skin = self.skin
        U = X - 0.4 * turn
        down, up = np.clip((Y - 0.47) / low, 0.0, 1.3), np.minimum(Y - 0.47, 0.0) * (1.0 / 0.325)
        v = down + up
        u = U / (cheek * (1.0 - taper * down * down))
        uu, vv = u * u, v * v
        q = uu + vv - np.where(v > 0.0, square, np.float32(0.25)) * uu * np.minimum(vv, 1.0)
        gradient = 2.0 * np.sqrt(uu / (cheek * cheek) + vv * 8.0) + 1e-3
        head = (1.0 - q) / gradient
        inside = solid(head)
        q = np.minimum(q, 1.2)
        light = 1.03 + 0.20 * (lx * u + ly * v) - 0.17 * q * q + 0.05 * p["light_y"] * v
        canvas.paint(inside, skin, light)
        self.U, self.head, self.inside = U, head, inside

    def paint_cheeks(self) -> None:
        """Blush, freckles, and the hollows and folds of age."""
        canvas, X, Y, inside, turn, f, age = self.canvas, self.X, self.Y, self.inside, self.turn, self.f, self.age
        cheek, low, mouth, nose, hairline = self.cheek, self.low, self.mouth, self.nose, self.hairline
        stroke = self.stroke
        box = canvas.box(0.18, 0.18, 0.82, 0.92)
        Xc, Yc, inside_c = X[box], Y[box], inside[box]
        Xf = Xc - turn
        side = np.abs(Xf)
        rosy = unit(0.45 + 0.30 * f["blush"])
        canvas.shade(0.75 * rosy * blob(side - 0.125, Yc - 0.63, 0.085, 0.070) * inside_c, (1.04, 0.78, 0.78), box)
        lane = Xf * 31.0 + Yc * 11.0
        row = Yc * 37.0 - Xf * 7.0
        lane = lane + np.floor(row) * 0.618
        row = row + np.floor(lane) * 0.372
        freckle = blob(lane - np.floor(lane) - 0.5, row - np.floor(row) - 0.5, 0.36, 0.36)
        freckle = freckle * blob(side - 0.09, Yc - 0.60, 0.13, 0.075) * ramp(f["blush"], 0.4, 1.6)
        canvas.shade(freckle, (0.80, 0.64, 0.55), box)
        lines = ramp(age, -0.7, 2.0)
        hollows = blob(side - (cheek - 0.065), Yc - 0.47 - 0.50 * low, 0.075, 0.115)
        canvas.shade(0.68 * lines * hollows * inside_c, (0.66, 0.60, 0.58), box)
        plump = blob(side - 0.125, Yc - 0.60, 0.075, 0.06) * (1.0 - lines)
        canvas.shade(plump, gray(1.06), box)
        mouth_y = 0.47 + 0.755 * low
        mouth_w = 0.084 + 0.0185 * mouth
        nose_y, nose_w = 0.628 + 0.021 * nose, 0.056 - 0.0150 * nose
        # From the wings of the nose past the corners of the mouth.
        t = (Yc - nose_y + 0.01) / (mouth_y - nose_y + 0.035)
        fold = side - (nose_w + 0.012 + (mouth_w - nose_w + 0.018) * t * (1.5 - 0.5 * t))
        crease = np.maximum(1.0 - np.abs(fold) * 90.0, 0.0) * unit(12.0 * t) * unit(6.0 * (1.0 - t)) * inside_c
        for i in range(3):
            bend = Yc - (hairline + 0.040 + 0.031 * i) + 0.25 * (side - 0.02) * (side - 0.02)
            reach = unit((0.135 - 0.015 * i - side) * 30.0)
            crease = np.maximum(crease, stroke(bend, 0.0055) * reach * inside_c)
        canvas.shade(lines * crease * 0.85, (0.60, 0.50, 0.46), box)
        self.lines, self.mouth_y, self.mouth_w, self.nose_y, self.nose_w = lines, mouth_y, mouth_w, nose_y, nose_w

    def paint_beard(self) -> None:
        """The lower face, a moustache, free lips."""
        canvas, X, turn, Y, f, softness = self.canvas, self.X, self.turn, self.Y, self.f, self.softness
        mouth_y, mouth_w, head, ink, lx = self.mouth_y, self.mouth_w, self.head, self.ink, self.lx
        strand, beard_color = self.strand, self.beard_color
        box = canvas.box(0.16, 0.46, 0.84, 0.98)
        Xb, Yb = X[box] - turn, Y[box]
        side = np.abs(Xb)
        grown = ramp(f["beard"], 0.1, 1.1) * (1.0 - ramp(softness, 0.2, 1.4))
        cut = Yb - (mouth_y - 0.050 + 0.9 * np.maximum(0.105 - side, 0.0) * 0.4 - 1.4 * np.maximum(side - 0.12, 0.0))
        lips = ellipse(Xb, Yb - mouth_y - 0.004, mouth_w + 0.010, 0.036)
        tache = blob(side - 0.035, Yb - mouth_y + 0.036, 0.065, 0.022)
        furry = np.maximum(unit(cut * 45.0) * unit(-lips * 60.0), unit(2.5 * tache))
        furry = furry * unit(head[box] * ink + 0.9)
        grain = 0.86 + 0.16 * (0.5 + lx * Xb * 3.0) + 0.10 * strand[box]
        canvas.paint(0.88 * grown * furry, beard_color, grain, box)

    def paint_mouth(self) -> None:
        """Lips, teeth and the corners of the mouth."""
        canvas, X, turn, Y, mouth, p = self.canvas, self.X, self.turn, self.Y, self.mouth, self.p
        mouth_w, mouth_y, skin, f, solid = self.mouth_w, self.mouth_y, self.skin, self.f, self.solid
        stroke = self.stroke
        box = canvas.box(0.28, 0.58, 0.72, 0.92)
        Xm, Ym = X[box] - 1.2 * turn, Y[box]
        smile = 0.005 + 0.011 * mouth + 0.006 * p["smile"]
        u = Xm / (mouth_w + 0.004 * p["smile"])
        uu = u * u
        arc = np.maximum(1.0 - uu, 0.0)
        line = Ym - (mouth_y - smile * (uu - 0.4) * 1.6)
        full = np.maximum(1.0 + 0.42 * mouth, 0.25)
        cupid = 1.0 - 0.35 * np.maximum(1.0 - 3.5 * np.abs(u), 0.0)
        upper, lower = 0.0185 * full * arc * cupid, 0.0270 * full * arc
        gap = np.maximum(0.006 * p["open"] - 0.001, 0.0) * arc
        lip = mix(times(skin, 0.80), (0.78, 0.30, 0.30), 0.50 + 0.13 * f["blush"])
        edge = solid((1.0 - np.abs(u)) * mouth_w)
        canvas.shade(0.5 * blob(Xm, line - 0.050, 0.060, 0.020), gray(0.80), box)
        canvas.paint(solid(np.minimum(line + upper + gap, gap - line)) * edge, times(lip, 0.84), 1.0, box)
        tint = 1.02 + 0.10 * blob(u, line - gap - 0.011, 0.6, 0.010)
        canvas.paint(solid(np.minimum(lower + gap - line, line + gap)) * edge, lip, tint, box)
        within = solid(gap - np.abs(line)) * edge * unit(gap * 400.0)
        canvas.paint(within, gray(0.16), 1.0, box)
        canvas.paint(within * solid(0.4 * gap - line), (0.93, 0.91, 0.88), 1.0, box)
        canvas.paint(stroke(line, 0.0065) * edge * (1.0 - unit(gap * 250.0)), times(lip, 0.42), 1.0, box)
        corners = blob(np.abs(u) - 1.0, line, 0.16, 0.012)
        canvas.shade(0.8 * corners, gray(0.62), box)

    def paint_nose(self) -> None:
        """Two shaded flanks, a lit ridge, wings, nostrils and the shadow below."""
        canvas, X, turn, Y, nose_y, nose_w = self.canvas, self.X, self.turn, self.Y, self.nose_y, self.nose_w
        lx, p, stroke, solid, dark_skin = self.lx, self.p, self.stroke, self.solid, self.dark_skin
        box = canvas.box(0.36, 0.40, 0.64, 0.76)
        Xn, Yn = X[box] - 1.8 * turn, Y[box]
        side = np.abs(Xn)
        t = unit((Yn - 0.43) / (nose_y - 0.43))
        flank = side - (0.016 + (nose_w * 0.78 - 0.016) * t * t)
        fade = unit((Yn - 0.42) * 14.0) * unit((nose_y + 0.004 - Yn) * 40.0)
        weak = np.where(Xn * lx > 0.0, np.float32(0.55), np.float32(1.0))
        canvas.shade(0.9 * weak * fade * np.maximum(1.0 - np.abs(flank) * 62.0, 0.0), (0.66, 0.57, 0.53), box)
        ridge = np.maximum(1.0 - side * 70.0, 0.0) * fade
        tip = blob(Xn - 0.006 * p["light_x"], Yn - nose_y + 0.024, 0.7 * nose_w, 0.026)
        canvas.shade(np.maximum(0.55 * ridge, tip), gray(1.12), box)
        below = blob(Xn, Yn - nose_y - 0.012, nose_w * 1.35, 0.020)
        canvas.shade(below, (0.64, 0.55, 0.52), box)
        wing = ellipse(side - 0.70 * nose_w, Yn - nose_y + 0.014, 0.36 * nose_w, 0.021)
        canvas.shade(stroke(wing, 0.006) * unit((side - 0.62 * nose_w) * 60.0) * 0.9, (0.58, 0.48, 0.45), box)
        nostril = ellipse(side - 0.48 * nose_w, Yn - nose_y - 0.001, 0.28 * nose_w, 0.0085)
        canvas.paint(0.85 * solid(nostril), times(dark_skin, 0.45), 1.0, box)

    def paint_eyes(self) -> None:
        """Sockets, eyes and lashes."""
        canvas, X, turn, Y, eyes, p, stroke = self.canvas, self.X, self.turn, self.Y, self.eyes, self.p, self.stroke
        lines, solid, iris = self.lines, self.solid, self.iris
        box = canvas.box(0.18, 0.30, 0.82, 0.60)
        Xe, Ye = X[box] - turn, Y[box] - 0.47
        side = np.abs(Xe)
        sign = np.where(Xe < 0.0, np.float32(-1.0), np.float32(1.0))
        eye_x, eye_w = 0.119 + 0.0105 * eyes, 0.048 + 0.0078 * eyes
        eye_h = (0.0255 + 0.0062 * eyes) * (1.0 - 0.07 * p["lids"])
        out = side - eye_x
        u = out / eye_w
        arc = np.maximum(1.0 - u * u, 0.0)
        rise = Ye + 0.10 * out
        socket = blob(out, rise + 0.008, 2.0 * eye_w, 2.6 * eye_h)
        canvas.shade(0.55 * socket, (0.80, 0.72, 0.70), box)
        bag = stroke(rise - 1.55 * eye_h - 0.004 + 0.010 * u * u, 0.007) * unit(2.0 - 2.0 * u * u)
        canvas.shade(0.75 * lines * bag, (0.66, 0.56, 0.54), box)
        crow = stroke(np.abs(rise) - 0.32 * np.maximum(out - 1.12 * eye_w, 0.0) - 0.003, 0.005)
        crow = crow * unit((out - 1.15 * eye_w) * 90.0) * unit((1.15 * eye_w + 0.035 - out) * 60.0)
        canvas.shade(0.7 * lines * crow, (0.62, 0.52, 0.48), box)
        top, bottom = rise + eye_h * arc, 0.85 * eye_h * arc - rise
        white = solid(np.minimum(top, bottom)) * unit(arc * 8.0)
        canvas.paint(white, (0.96, 0.95, 0.94), 1.0 - 0.22 * unit(1.0 - top * 90.0), box)
        gaze = np.sqrt(out * out + (rise + 0.001) * (rise + 0.001))
        ball = 0.0225 + 0.0025 * eyes
        canvas.paint(white * solid(ball - gaze), iris, 1.15 - 0.45 * unit((gaze - 0.6 * ball) * 120.0), box)
        canvas.paint(white * solid(0.45 * ball - gaze), gray(0.05), 1.0, box)
        glint = np.abs(out * sign + 0.33 * ball) + np.abs(rise + 0.40 * ball)
        canvas.paint(0.9 * solid(np.minimum(0.36 * ball - glint, white - 0.5)), gray(1.0), 1.0, box)
        lash = stroke(top, 0.0085) * unit(arc * 6.0 + 0.25) * unit(2.2 - u * u * 2.0)
        canvas.paint(0.92 * lash, (0.13, 0.09, 0.08), 1.0, box)
        canvas.shade(0.55 * stroke(rise + 1.45 * eye_h * arc + 0.006, 0.006) * unit(arc * 5.0), (0.62, 0.52, 0.48), box)
        canvas.shade(0.45 * stroke(bottom, 0.005) * unit(arc * 5.0), (0.60, 0.48, 0.46), box)
        self.box, self.Ye, self.side, self.eye_x, self.eye_h = box, Ye, side, eye_x, eye_h

    def paint_brows(self) -> None:
        """The brows."""
        side, eye_x, mouth, eye_h, Ye = self.side, self.eye_x, self.mouth, self.eye_h, self.Ye
        softness, canvas, solid, brow, box = self.softness, self.canvas, self.solid, self.brow, self.box
        u = (side - 0.5 * (eye_x + 0.119)) * (1.0 / 0.066)
        arch = 0.012 + 0.0115 * mouth
        above = 0.066 + 0.004 * mouth + 0.60 * np.maximum(eye_h - 0.0255, 0.0)
        bow = Ye + above + arch * (1.0 - (u - 0.25) * (u - 0.25) * 1.6)
        thick = np.maximum(0.0110 - 0.0040 * softness, 0.0032) * (1.0 - 0.55 * unit(u)) * unit((1.0 - u * u) * 3.0)
        canvas.paint(0.92 * solid(thick - np.abs(bow)) * unit(thick * 500.0), brow, 1.0, box)

    def paint_fringe(self) -> None:
        """The hair in front: the mass without the opening that shows the face."""
        Y, part, X, hairline, cheek, long, U = self.Y, self.part, self.X, self.hairline, self.cheek, self.long, self.U
        mass, solid, canvas, hair, hair_light = self.mass, self.solid, self.canvas, self.hair, self.hair_light
        slanted = Y + 2.5 * part * X + 0.030 * blob(X - part, Y - hairline, 0.07, 0.14)
        gap_w = cheek * (0.955 - 0.09 * long)
        u, v = U / gap_w, np.minimum(slanted - 0.56, 0.0) / (0.56 - hairline)
        uu, vv = u * u, v * v
        hole = (1.0 - uu - vv + 0.72 * uu * vv) / (2.0 * np.sqrt(uu / (gap_w * gap_w) + vv * 14.0) + 1e-3)
        front = np.minimum(mass, -hole)
        cover = solid(front)
        canvas.shade(blob(u, v + 0.95, 1.2, 0.22) * (1.0 - cover) * 0.35, gray(0.70))
        canvas.paint(cover, hair, hair_light - 0.30 * unit(1.0 - front * 40.0) * unit(mass * 60.0))

    def paint_glasses(self) -> None:
        """The glasses."""
        canvas, f, X, turn, Y, cheek, solid = self.canvas, self.f, self.X, self.turn, self.Y, self.cheek, self.solid
        stroke = self.stroke
        box = canvas.box(0.14, 0.36, 0.86, 0.64)
        worn = ramp(f["glasses"], 0.30, 0.42)
        Xg, Yg = X[box] - 1.1 * turn, Y[box] - 0.478
        side = np.abs(Xg)
        thick = 0.007 + 0.004 * np.maximum(f["glasses"], 0.0)
        gu, gv = np.abs(side - 0.118) - 0.052, np.abs(Yg) - 0.034
        rx, ry = np.maximum(gu, 0.0), np.maximum(gv, 0.0)
        lens = 0.026 - np.sqrt(rx * rx + ry * ry) - np.minimum(np.maximum(gu, gv), 0.0)
        bridge = np.minimum(0.045 - side, 0.5 * thick - np.abs(Yg + 0.010 - 2.0 * Xg * Xg))
        arm = np.minimum(np.minimum(side - 0.190, cheek + 0.012 - side), 0.5 * thick - np.abs(Yg + 0.014))
        canvas.paint(worn * 0.10 * solid(lens), (0.80, 0.90, 1.0), 1.0, box)
        metal = np.maximum(stroke(lens, thick), np.maximum(solid(bridge), solid(arm)))
        canvas.paint(worn * metal, (0.10, 0.09, 0.10), 1.0, box)
