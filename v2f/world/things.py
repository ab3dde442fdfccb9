"""Sounding things: dogs that bark, cats that meow, bells and engines, with a picture, a sound and their known factors.

A thing is a number, which also says its class. It has factors of its own (how deep its voice is, its color); each
*take*, one sound with one picture of it, adds more (how long it barks, where it is in the picture). All factors are
pure functions of (seed, thing, take), independent of each other and of the class.

    thing, take --> class and factors --> calls (when it sounds) --> sound (:mod:`v2f.world.sounds`)
                                                            \\------> mouth, swing, wheel --> picture, video
                                                                       (:mod:`v2f.world.scenes`)

Class, factors and pictures are computed with +, -, *, /, square roots, minima and maxima, which IEEE 754 defines to the
bit. Sounds need sines and exponentials, whose last bits differ between machines. This world has a version of its own,
:data:`VERSION`, and a hash of what it makes.

Shape letters: N takes, F factors, T samples, H = W = size.
"""

import functools
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from v2f.errors import V2FError
from v2f.world.people import Factor, split_mix

VERSION = "1"
"""Changes whenever a sound, a picture, a class or a factor changes; :data:`OUTPUT_HASHES` has each version's hash."""

OUTPUT_HASHES: dict[str, str] = {
    "1": "095a84a2c80bfafca84df0054b30c71dfbe9cac97a4dad60a1b586a91d945eee",
}
"""Version -> hash of its outputs (:func:`outputs_hash`). New outputs need a new version."""

CLASSES = ("bark", "meow", "bell", "engine")
"""The names of the classes; thing n is of class n modulo 4."""

TONAL = ("meow", "bell")
"""The classes whose sounds consist of partials, without noise of their own."""

FACTORS: tuple[Factor, ...] = (
    # Of the sound: first those of the thing, ...
    Factor("pitch", "sound", "low", "high"),
    Factor("brightness", "sound", "dark", "bright"),
    Factor("texture", "sound", "smooth", "rough: noise in a bark, vibrato, beating, uneven strokes"),
    # ... then those of the take.
    Factor("length", "sound", "short", "long: a call, the ringing of a bell, a swell of an engine"),
    Factor("count", "sound", "one call", "several"),
    Factor("start", "sound", "at once", "late"),
    Factor("loudness", "sound", "quiet", "loud"),
    Factor("bend", "sound", "steady", "gliding pitch, or calls far apart"),
    # Of the picture: of the thing, ...
    Factor("hue", "picture", "first color of the class", "last color"),
    Factor("shade", "picture", "dark", "light"),
    Factor("build", "picture", "slender", "stout"),
    # ... and of the take.
    Factor("x", "picture", "left", "right"),
    Factor("y", "picture", "up", "down"),
    Factor("size", "picture", "small", "large"),
    Factor("turn", "picture", "tilted left", "tilted right"),
    Factor("open", "picture", "mouth closed, bell and wheel at rest", "mouth open, bell and wheel turned"),
    Factor("backdrop", "picture", "warm", "cold"),
    Factor("light", "picture", "dim", "bright"),
)
"""What things and takes vary in besides the class: independent numbers, uniform in (-1, 1)."""

SOUND = tuple(factor.name for factor in FACTORS if factor.group == "sound")
PICTURE = tuple(factor.name for factor in FACTORS if factor.group == "picture")
_OWN = 3  # the first factors of each group belong to the thing

_PAUSE_S = 1.6  # between two groups of calls
_SOONEST_S, _LATEST_S = 0.03, 0.35  # the first call


class Call(NamedTuple):
    """One bark, meow or stroke, or an engine's whole run: when it begins and how long it is, in seconds."""

    start: float
    length: float


def classes(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The class of each of the things ``ids`` [N], as its number in :data:`CLASSES`: int64 [N]."""
    return np.asarray(ids % len(CLASSES), np.int64)


def sound_factors(ids: NDArray[np.int64], takes: NDArray[np.int64], seed: int = 0) -> NDArray[np.float64]:
    """The factors of the sounds of things ``ids`` [N] in takes ``takes`` [N], in the order of :data:`SOUND`:
    float64 [N,8] in (-1, 1). V2FError for a negative number."""
    return _factors(ids, takes, seed, 0x534E, len(SOUND))


def picture_factors(ids: NDArray[np.int64], takes: NDArray[np.int64], seed: int = 0) -> NDArray[np.float64]:
    """As :func:`sound_factors`, of the pictures, in the order of :data:`PICTURE`: float64 [N,10]."""
    return _factors(ids, takes, seed, 0x5043, len(PICTURE))


def _factors(
    ids: NDArray[np.int64], takes: NDArray[np.int64], seed: int, group: int, count: int
) -> NDArray[np.float64]:
    ids, takes = np.asarray(ids, np.int64), np.asarray(takes, np.int64)
    if ids.size and min(int(ids.min()), int(takes.min())) < 0:
        raise V2FError("things and takes are numbered by non-negative integers; pass arrays of them")
    thing_N = split_mix(split_mix(np.full(1, group, np.uint64) ^ np.uint64(seed)) ^ ids.astype(np.uint64))
    take_N = split_mix(thing_N ^ (takes.astype(np.uint64) + np.uint64(1)))
    column_F = np.arange(count, dtype=np.uint64)
    state_NF = split_mix(np.where(column_F < _OWN, thing_N[:, None], take_N[:, None]) ^ column_F)
    return ((state_NF >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-52 - 1.0


def calls(class_: int, factor_F: NDArray[np.float64], seconds: float) -> list[Call]:
    """When a thing of this class sounds in a take of ``seconds``, by its factors (:data:`SOUND`); one call at least.

    Barks come in groups of one to four, meows one or two at a time; groups are 1.6 s apart. A bell is struck one to
    three times in a group, and rings on. An engine runs all the time.
    """
    of = dict(zip(SOUND, factor_F.tolist(), strict=True))
    name, share = CLASSES[class_], 0.5 + 0.5 * of["count"]
    if name == "engine":
        return [Call(0.0, seconds)]
    stretch = 1.0 + 0.35 * of["length"]
    if name == "bark":
        count, length = 1 + int(4 * share), 0.16 * stretch
        gap = 0.16 + 0.06 * of["bend"]
    elif name == "meow":
        count = 1 + int(2 * share)
        length, gap = (0.75 if count == 1 else 0.45) * stretch, 0.12
    else:
        count, length, gap = 1 + int(3 * share), 0.0, 0.5 + 0.15 * of["bend"]
    first = _SOONEST_S + (_LATEST_S - _SOONEST_S) * (0.5 + 0.5 * of["start"])
    found: list[Call] = []
    while True:
        for at in range(count):
            start = first + at * (length + gap)
            if found and start + max(length, 0.25) > seconds:
                return found
            found.append(Call(start, length if length else max(seconds - start, 0.0)))
        first = found[-1].start + length + _PAUSE_S


def outputs_hash() -> str:
    """SHA-256 (hex) of the version, the names and what is made of some takes; takes about a second.

    Factors and pictures are hashed as they are. Sounds are projected on random signs and rounded, as those of
    :mod:`v2f.world.fingerprint`, so that the hash is the same on all CPUs.
    """
    from v2f.world.fingerprint import STEP

    digest = hashlib.sha256(repr((VERSION, CLASSES, [(each.name, each.group) for each in FACTORS])).encode())
    for name, values in outputs():
        whole = np.rint(values / STEP).astype("<i4") if name.startswith("sounds") else values
        digest.update(f"\0{name} {whole.dtype.str} {whole.shape}\0".encode() + np.ascontiguousarray(whole).tobytes())
    return digest.hexdigest()


def outputs() -> Iterator[tuple[str, NDArray[np.float64] | NDArray[np.uint8]]]:
    """What the hash is of, by name; sounds as projections that are not rounded yet."""
    from v2f.world.fingerprint import projected  # here: it imports SciPy, which readers do without
    from v2f.world.scenes import render_things
    from v2f.world.sounds import render_sounds

    for seed, size in ((0, 64), (7, 45)):
        ids = np.concatenate([np.arange(16), np.array([12_345, 9_000_002])])
        takes, class_N = ids % 3, classes(ids)
        yield "factors of sounds", sound_factors(ids, takes, seed)
        yield "factors of pictures", picture_factors(ids, takes, seed)
        yield "pictures", render_things(class_N, picture_factors(ids, takes, seed), size)
        key_N2 = np.stack([ids, takes], 1)
        for rate, some in ((4000, slice(0, 7)), (16_000, slice(3, 7))):
            wav_NT = render_sounds(class_N[some], sound_factors(ids, takes, seed)[some], key_N2[some], 1.8, rate, seed)
            yield f"sounds at {rate} Hz", projected(wav_NT)


def recorded_hash() -> str:
    """The hash of this version, without making anything: for a reader that only compares."""
    return OUTPUT_HASHES[VERSION]


@functools.cache
def things_hash() -> str:
    """:func:`recorded_hash`, once the outputs are verified: for code that makes things. V2FError if the outputs are not
    those of the version."""
    found = outputs_hash()
    if found != OUTPUT_HASHES.get(VERSION):
        raise V2FError(
            f"v2f/world/things.py does not make the outputs recorded for version {VERSION}: undo the change, or set "
            f'things.VERSION to a new number and add "NUMBER": "{found}" to its OUTPUT_HASHES'
        )
    return recorded_hash()
