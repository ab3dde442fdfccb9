"""The people of the synthetic world: the factors of a person, and those that a single clip or photo adds.

A person is a row of standardized numbers. Six of them are audible (``voice``) and, through the setting ``link``,
visible (the first six columns of ``face``); the other face factors are independent of the voice. Photos and clips add
nuisance factors. The model is linear and close to Gaussian on purpose: the expected face of a voice and the posterior
of faces given a voice are then exact, and so are the upper bounds of ``v2f.world.bounds``.

Shapes: N people (or photos, or clips), V = 6 voice factors, F face factors, P photo factors, C clip factors.
"""

from typing import NamedTuple

import numpy as np
from pydantic import Field

from v2f.config import Config
from v2f.errors import V2FError

VERSION = "1"
"""Changes whenever a person, a portrait or a voice changes; ``v2f.world.OUTPUT_HASHES`` has each version's hash."""

LIMIT = 2.2
"""Every factor is a standard normal number truncated at plus and minus this."""


class Factor(NamedTuple):
    """One factor: its name, its group and words for its two ends."""

    name: str
    group: str
    low: str
    high: str


FACTORS: tuple[Factor, ...] = (
    # The person in a clip.
    Factor("pitch", "voice", "low", "high"),
    Factor("tract", "voice", "short vocal tract", "long vocal tract"),
    Factor("breathiness", "voice", "clear", "breathy"),
    Factor("tilt", "voice", "dark", "bright"),
    Factor("liveliness", "voice", "monotonous", "lively"),
    Factor("rate", "voice", "slow", "fast"),
    # The person in a photo: first the six that follow from the voice, in the same order, ...
    Factor("softness", "face", "angular, heavy brows, shorter hair", "soft, thin brows, longer hair"),
    Factor("length", "face", "small and short", "large, long, heavy jaw"),
    Factor("age", "face", "smooth", "lined, gray, hollow cheeks"),
    Factor("nose", "face", "broad and short", "narrow and long"),
    Factor("mouth", "face", "narrow, thin, drooping", "wide, full, upturned"),
    Factor("eyes", "face", "small and close-set", "large and wide-set"),
    # ... then those of the face alone.
    Factor("skin", "face", "fair", "dark"),
    Factor("hair_tone", "face", "black", "fair"),
    Factor("hair_red", "face", "ash", "red"),
    Factor("hair_length", "face", "cropped", "long and full"),
    Factor("fringe", "face", "parted left, wavy", "parted right, straight"),
    Factor("iris", "face", "brown", "blue"),
    Factor("glasses", "face", "none", "heavy rims"),
    Factor("beard", "face", "none", "full"),
    Factor("blush", "face", "pale", "rosy, freckled"),
    Factor("ears", "face", "small, close", "large, standing out"),
    # The nuisance of a photo.
    Factor("shift_x", "photo", "left", "right"),
    Factor("shift_y", "photo", "up", "down"),
    Factor("scale", "photo", "far", "near"),
    Factor("roll", "photo", "tilted left", "tilted right"),
    Factor("yaw", "photo", "turned left", "turned right"),
    Factor("light_x", "photo", "lit from the left", "lit from the right"),
    Factor("light_y", "photo", "lit from above", "lit from below"),
    Factor("exposure", "photo", "dim", "bright"),
    Factor("smile", "photo", "serious", "smiling"),
    Factor("open", "photo", "lips closed", "lips parted"),
    Factor("lids", "photo", "eyes wide", "eyes narrowed"),
    Factor("backdrop_hue", "photo", "warm", "cold"),
    Factor("backdrop_light", "photo", "dark", "light"),
    Factor("backdrop_glow", "photo", "flat", "glowing"),
    Factor("clothes_hue", "photo", "warm", "cold"),
    Factor("clothes_light", "photo", "dark", "light"),
    Factor("collar", "photo", "round neck", "shirt collar"),
    # The nuisance of a clip.
    Factor("loudness", "clip", "quiet", "loud"),
    Factor("mood", "clip", "lower than usual", "higher than usual"),
    Factor("effort", "clip", "relaxed", "pressed"),
    Factor("room", "clip", "dry", "reverberant"),
    Factor("noise", "clip", "clean", "noisy"),
    Factor("microphone", "clip", "dull", "sharp"),
)


def names(group: str) -> tuple[str, ...]:
    """The names of a group's factors ("voice", "face", "photo" or "clip") in the order of its columns."""
    found = tuple(factor.name for factor in FACTORS if factor.group == group)
    if not found:
        raise V2FError(f"no group of factors is named {group!r}; choose voice, face, photo or clip")
    return found


VOICE, FACE, PHOTO, CLIP = names("voice"), names("face"), names("photo"), names("clip")


class WorldConfig(Config):
    """One world. ``link`` and ``visible`` weaken the relation of voice and face, to provoke collapse."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Different seeds have different people."""
    link: float = Field(default=1.0, ge=0.0, le=1.0)
    """Correlation of a voice factor with its face factor."""
    visible: int = Field(default=len(VOICE), ge=0, le=len(VOICE))
    """Number of voice factors, counted from the first, that show in the face."""


class World:
    """People, photos and clips as pure functions of (seed, person, number), without any state."""

    Config = WorldConfig

    def __init__(self, config: WorldConfig | None = None) -> None:
        self.config = config or WorldConfig()

    def voice(self, ids: np.ndarray) -> np.ndarray:
        """The voice factors of the people ``ids`` (integers [N]): float32 [N,V]."""
        return _factors((self.config.seed, 1), (ids,), len(VOICE))

    def face(self, ids: np.ndarray) -> np.ndarray:
        """The face factors of the people ``ids`` (integers [N]): float32 [N,F], the voice's six first."""
        return self._face(self.voice(ids), _factors((self.config.seed, 2), (ids,), len(FACE)))

    def photo(self, ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """The nuisance of photo ``numbers[i]`` of person ``ids[i]``: float32 [N,P]."""
        return _factors((self.config.seed, 3), (ids, numbers), len(PHOTO))

    def clip(self, ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """The nuisance of clip ``numbers[i]`` of person ``ids[i]``: float32 [N,C]."""
        return _factors((self.config.seed, 4), (ids, numbers), len(CLIP))

    def expected_face(self, voice_NV: np.ndarray) -> np.ndarray:
        """The mean face given a voice: float32 [N,F], with 0 for the factors that are independent of it."""
        return self._face(voice_NV, np.zeros((len(voice_NV), len(FACE)), np.float32))

    def posterior_face(self, voice_NV: np.ndarray, draws: int, key: int = 0) -> np.ndarray:
        """Faces from the posterior given a voice: float32 [draws,N,F], a pure function of (seed, key, draw, row)."""
        draw_D, row_N = np.arange(draws), np.arange(len(voice_NV))
        own = _factors((self.config.seed, 5, key), (draw_D[:, None], row_N[None, :]), len(FACE))
        return self._face(np.broadcast_to(voice_NV, (draws, *np.shape(voice_NV))), own)

    def any_photo(self, people: int, draws: int, key: int = 0) -> np.ndarray:
        """Nuisance of photos that belong to nobody, for ``posterior_face``: float32 [draws,people,P]."""
        indices = (np.arange(draws)[:, None], np.arange(people)[None, :])
        return _factors((self.config.seed, 6, key), indices, len(PHOTO))

    def _face(self, voice: np.ndarray, own: np.ndarray) -> np.ndarray:
        """The face from voice [...,V] and independent numbers [...,F]; the first ``visible`` columns are correlated."""
        face, k, link = own.copy(), self.config.visible, self.config.link
        face[..., :k] = np.float32(link) * voice[..., :k] + np.float32((1.0 - link**2) ** 0.5) * own[..., :k]
        return face


def _factors(key: tuple[int, ...], indices: tuple[np.ndarray, ...], columns: int) -> np.ndarray:
    """Truncated standard normal numbers, float32 [..., columns]: a pure function of (key, indices, column).

    A hash rather than a NumPy generator: it needs no generator for each person, and NumPy may change its streams in a
    later release (NEP 19), but a version of the world always has the same people.
    """
    state = np.zeros((1,), np.uint64)
    for part in key:
        state = split_mix(state ^ np.uint64(part))
    for index in indices:
        index = np.asarray(index)
        if not np.issubdtype(index.dtype, np.integer) or (index.size and int(index.min()) < 0):
            raise V2FError("people, photos and clips are numbered by non-negative integers; pass an array of them")
        state = split_mix(state ^ index.astype(np.uint64))
    state = split_mix(state[..., None] ^ np.arange(columns, dtype=np.uint64))
    uniform = ((state >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return _quantile(uniform).astype(np.float32)


def split_mix(state: np.ndarray) -> np.ndarray:
    """One step of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", fig. 17)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


_TAIL = 0.013903447513498597
"""Mass of the normal distribution below -LIMIT."""


def _quantile(uniform: np.ndarray) -> np.ndarray:
    """Quantiles of the standard normal distribution within +-LIMIT; absolute error below 4.5e-4.

    Hastings 1955, "Approximations for digital computers", sheet 68 (Abramowitz and Stegun 26.2.23).
    """
    share = _TAIL + uniform * (1.0 - 2.0 * _TAIL)
    tail = np.minimum(share, 1.0 - share)
    t = np.sqrt(-2.0 * np.log(tail))
    upper = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308)))
    return np.clip(np.where(share < 0.5, -upper, upper), -LIMIT, LIMIT)
