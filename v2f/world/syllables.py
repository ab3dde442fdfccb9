"""What a synthetic voice says: nonsense syllables as tracks of amplitudes, pitch and formants over time.

Consonants, vowels and prosody follow the literature that :mod:`v2f.world.voices` names.
"""

from dataclasses import dataclass, field

import numpy as np
import scipy.ndimage

GRID_HZ = 1000  # amplitudes and f0 are set once every millisecond
FRAME_HZ = 100  # the filters are set once every 10 ms

# Peterson & Barney (1952), Table II, men: F1, F2, F3 in Hz of heed, hid, head, had, hod, hawed, hood, who'd, hud and
# heard.
_VOWELS = np.array(
    [
        [270, 2290, 3010],
        [390, 1990, 2550],
        [530, 1840, 2480],
        [660, 1720, 2410],
        [730, 1090, 2440],
        [570, 840, 2410],
        [440, 1020, 2240],
        [300, 870, 2240],
        [640, 1190, 2390],
        [490, 1350, 1690],
    ]
)
_NEUTRAL = 1.08
_SCHWA = _NEUTRAL * np.array([500.0, 1500.0, 2500.0])  # the neutral tube


@dataclass(frozen=True)
class _Consonant:
    """How a syllable begins: levels relative to a vowel's 1.0, formant targets in Hz, band of the noise in Hz."""

    voicing: float  # amplitude of the pulses during the consonant
    frication: float  # amplitude of the noise
    burst: bool  # the noise is only a short burst at the release of a closure
    locus: tuple[float, float, float]
    band: tuple[float, float]  # center of the noise in Hz, width in octaves


_CONSONANTS = (
    _Consonant(0.0, 0.55, False, (320, 1700, 2600), (6300, 0.45)),  # s
    _Consonant(0.0, 0.60, False, (320, 1850, 2400), (3300, 0.45)),  # sh
    _Consonant(0.0, 0.22, False, (340, 1000, 2300), (4500, 1.80)),  # f
    _Consonant(0.0, 0.45, True, (300, 800, 2200), (900, 1.00)),  # p
    _Consonant(0.0, 0.75, True, (300, 1750, 2650), (4800, 0.60)),  # t
    _Consonant(0.0, 0.65, True, (300, 2000, 2300), (2000, 0.40)),  # k
    _Consonant(0.07, 0.25, True, (260, 800, 2200), (900, 1.00)),  # b
    _Consonant(0.07, 0.35, True, (260, 1750, 2650), (4200, 0.60)),  # d
    _Consonant(0.07, 0.35, True, (260, 2000, 2300), (1900, 0.40)),  # g
    _Consonant(0.22, 0.0, False, (260, 1050, 2200), (1000, 1.0)),  # m
    _Consonant(0.22, 0.0, False, (260, 1450, 2500), (1000, 1.0)),  # n
    _Consonant(0.26, 0.0, False, (300, 700, 2200), (1000, 1.0)),  # w
    _Consonant(0.26, 0.0, False, (360, 1150, 2700), (1000, 1.0)),  # l
    _Consonant(0.26, 0.0, False, (280, 2200, 2950), (1000, 1.0)),  # y
)
_LOCUS = np.array([c.locus for c in _CONSONANTS], dtype=np.float64)
BAND = np.array([c.band for c in _CONSONANTS], dtype=np.float64)


@dataclass(frozen=True)
class Script:
    """What is said when: tracks on G points, 1 ms apart, and F frames, 10 ms apart."""

    voicing_G: np.ndarray
    aspiration_G: np.ndarray
    frication_G: np.ndarray
    semitone_G: np.ndarray  # f0 relative to the speaker's mean, in semitones
    formant_F3: np.ndarray  # Hz, of the neutral tract
    consonant_F: np.ndarray  # index into _CONSONANTS


@dataclass(frozen=True)
class _Knots:
    """The corners of piecewise linear tracks: (seconds, value), and formant targets with their seconds."""

    voice: list[tuple[float, float]]
    breath: list[tuple[float, float]]
    hiss: list[tuple[float, float]]
    tone: list[tuple[float, float]]
    time: list[float]  # of the formant targets
    target: list[np.ndarray]
    begin: list[float]  # of each syllable
    consonant: list[int] = field(default_factory=list)  # of each syllable


def script_of(rng: np.random.Generator, rate: float, accent: float, grid: int, frames: int) -> Script:
    """Draw syllables for ``grid`` ms, at ``rate`` per second, with pitch accents of ``accent`` semitones."""
    seconds = grid / GRID_HZ
    most = int(seconds * rate * 2) + 8
    draw_S6 = rng.random((most, 6))
    vowel_S = rng.integers(len(_VOWELS), size=most)
    consonant_S = rng.integers(len(_CONSONANTS), size=most)
    mean = 1.0 / rate
    # The clip starts inside a word, as a crop of running speech does.
    now = -2.5 * mean * float(rng.random())
    left = 1 + int(rng.integers(4))  # syllables until the next pause
    since = now  # start of the phrase, from which the pitch declines

    knots = _Knots([(now - 0.02, 0.0)], [(now - 0.02, 0.0)], [(now - 0.02, 0.0)], [], [], [], [])
    voice, breath, hiss, tone = knots.voice, knots.breath, knots.hiss, knots.tone
    lift = min(0.6 * accent, 4.5)  # dB from an even to a stressed syllable: a lively speaker stresses more (Fry 1958)
    fall = -1.5 * (0.4 + 0.3 * accent)  # semitones per second
    for s in range(most):
        if now >= seconds:
            break
        u = draw_S6[s].tolist()
        kind = _CONSONANTS[consonant_S[s]]
        length = mean * (0.88 + 0.24 * u[0])
        split = now + min(max(0.32 * length, 0.045), 0.150)  # where the vowel begins
        end = now + length
        held = end - 0.20 * (end - split)
        rise = min(0.018, 0.25 * (end - split))
        stress = 10.0 ** (lift * (2.0 * u[1] - 1.0) / 20.0)
        knots.begin.append(now)
        knots.consonant.append(consonant_S[s])

        edge = min(0.008, 0.2 * (split - now))
        release = split - (0.016 if kind.voicing else 0.35 * (split - now))
        voice += [(now + edge, kind.voicing), (split, kind.voicing), (split + rise, stress)]
        voice += [(held, 0.72 * stress), (end, 0.05)]
        breath += [(split - edge, 0.3 * kind.voicing), (split + rise, stress), (held, 0.8 * stress), (end, 0.15)]
        if kind.burst:
            hiss += [(release, 0.0), (release + 0.002, kind.frication), (release + 0.010, 0.6 * kind.frication)]
            hiss += [(max(split, release + 0.014) + 0.006, 0.0)]
        elif kind.frication:
            hiss += [(now, 0.0), (now + 0.3 * (split - now), kind.frication), (split - edge, kind.frication)]
            hiss += [(split + edge, 0.0)]

        weight = accent * (0.75 + 0.5 * u[1])  # a loud syllable has a large accent
        tone += [(now, -0.55 * weight + fall * (now - since))]
        tone += [(split + (0.25 + 0.35 * u[2]) * (end - split), 0.75 * weight + fall * (split - since))]

        glide = min(0.05, 0.3 * (end - split))
        knots.time.extend([now + 0.5 * (split - now), split - 0.004, split + glide, held])
        locus = _LOCUS[consonant_S[s]]
        vowel = _NEUTRAL * _VOWELS[vowel_S[s]] * (0.96 + 0.08 * u[3])
        # Halfway to the vowel at the release (coarticulation), and slightly reduced toward the end.
        knots.target.extend([locus, 0.55 * locus + 0.45 * vowel, vowel, 0.9 * vowel + 0.1 * _SCHWA])

        now, left = end, left - 1
        if left == 0:
            voice.append((now + 0.015, 0.0))
            breath += [(now + 0.025, 0.25), (now + 0.065, 0.0)]  # each word ends with an exhalation
            tone.append((now, -0.55 * weight + fall * (now - since)))
            now += (0.09 + 0.45 * mean) * (0.75 + 0.5 * u[4])
            voice.append((now, 0.0))
            breath.append((now, 0.0))
            left, since = 2 + int(3 * u[5]), now
    return _sampled(rng, knots, grid, frames)


def _sampled(rng: np.random.Generator, knots: _Knots, grid: int, frames: int) -> Script:
    """The tracks through the knots, with jitter and shimmer."""
    at_G = np.arange(grid) / GRID_HZ
    at_F = (np.arange(frames) + 1) / FRAME_HZ  # the middles of the frames
    track = np.stack(knots.target)
    slow = np.interp(at_G, np.arange(grid // 8 + 2) * 0.008, rng.standard_normal(grid // 8 + 2))
    voicing_G = _lines(at_G, knots.voice)
    tone_G = scipy.ndimage.uniform_filter1d(_lines(at_G, knots.tone), 35, mode="nearest")
    tone_G -= np.sum(tone_G * voicing_G) / max(np.sum(voicing_G), 1e-6)
    formant_F3 = np.stack([np.interp(at_F, knots.time, track[:, i]) for i in range(3)], axis=1)
    spoken_F = np.clip(np.searchsorted(knots.begin, at_F, side="right") - 1, 0, len(knots.begin) - 1)
    return Script(
        voicing_G=voicing_G * (1.0 + 0.05 * slow),  # shimmer
        aspiration_G=_lines(at_G, knots.breath),
        frication_G=_lines(at_G, knots.hiss),
        semitone_G=tone_G + 0.06 * slow[::-1],  # jitter, about 0.4 %
        formant_F3=scipy.ndimage.uniform_filter1d(formant_F3, 3, axis=0, mode="nearest"),
        consonant_F=np.array(knots.consonant)[spoken_F],
    )


def _lines(at_G: np.ndarray, knots: list[tuple[float, float]]) -> np.ndarray:
    """Straight lines through (seconds, value) knots, at the G points."""
    knot_K2 = np.array(knots)
    return np.interp(at_G, knot_K2[:, 0], knot_K2[:, 1])
