"""The voices of the synthetic world: source-filter speech of nonsense syllables, numpy and scipy only.

A clip is made as Fant explains speech ("Acoustic Theory of Speech Production", 1960): a *source* (glottal
pulses, aspiration) is coloured by a *filter* (the resonances of the vocal tract), and radiated.

* **Glottal source.** One period of Rosenberg's polynomial pulse (1971, "Effect of glottal pulse shape on the
  quality of natural vowels", pulse B), differentiated because the lips radiate the flow's derivative
  (Fant 1960), band-limited below the Nyquist frequency and read as a wave table at the running phase of f0.
  A breathy voice has more aspiration, a longer open phase and softer closing (Klatt & Klatt 1990, "Analysis,
  synthesis, and perception of voice quality variations among female and male talkers"). The factor tilt slopes
  pulses and aspiration alike, so that it is another thing than breathiness.
* **Vocal tract.** The cascade of second-order digital resonators of Klatt (1980, "Software for a
  cascade/parallel formant synthesizer", eq. 1-3). F1..F3 follow the vowels of Peterson & Barney (1952, Table
  II, men, times 1.08: the middle between their men and women); F4 and up are those of a neutral tube
  (Fant 1960: one per 1000 Hz). A tract that is k times as long divides all of them by k.
* **Consonants.** Voiceless fricatives and the bursts of stops are noise in the band of their place; stops have
  a closure before the burst and move the formants out of the place's locus (Delattre, Liberman & Cooper 1955);
  nasals and approximants are voiced, weaker than vowels, with formants of their own.
* **Prosody.** Words of two to four syllables with pauses between them, declination that resets at a pause, an
  accent on every syllable, which is higher and louder (Fry 1958, "Experiments in the perception of stress"), jitter
  and shimmer.

Both filters vary in time: the source is cut into Hann frames of 20 ms every 10 ms, each is filtered in the
frequency domain by its own frame's response, and overlap-added (Allen & Rabiner 1977). Amplitudes and f0 move
on a grid of 1 ms, so that a burst stays a burst.

Every clip is computed by itself from its own row and key, so it has the same bytes in any batch.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
import scipy.ndimage
import scipy.signal

from v2f.errors import V2FError
from v2f.keyed import keyed_rng
from v2f.world.people import CLIP, VOICE

_STREAM = 0x766F6963  # "voic": no other stream of the world shares keys with this one
_GRID_HZ = 1000  # amplitudes and f0 are set once a millisecond
_FRAME_HZ = 100  # the filters are set once in 10 ms

# What the factors mean. x stands for a factor, N(0, 1) cut at +-2.2; s for a nuisance, N(0, 1).
_F0_HZ, _F0_STEP = 155.0, 0.30  # f0 = 155 exp(0.30 x): 80 to 300 Hz
_TRACT_STEP = 0.085  # formants times exp(-0.085 x): 1.20 to 0.83, a short to a long tract
_NOISE_DB, _NOISE_STEP = -15.0, 8.0  # aspiration against pulses: -33 to +3 dB
_SOFT_STEP = 0.12  # the k-th harmonic times k^(-0.12 x)
_TILT_DB, _TILT_STEP = -2.0, 2.4  # dB per octave on top of the pulse's own -6: -7.3 to +3.3
_ACCENT_ST, _ACCENT_STEP = 2.0, 0.60  # size of an accent = 2 exp(0.60 x) semitones: 0.5 to 7.5
_RATE_HZ, _RATE_STEP = 3.7, 0.285  # syllables a second within a word = 3.7 exp(0.285 x): 2.0 to 6.9
_MOOD_STEP = 0.025  # f0 times exp(0.025 s)
_EFFORT_STEP = 0.4  # dB per octave
_LEVEL_DB, _LEVEL_STEP = -22.0, 2.0  # RMS of a clip, dB of full scale
_FLOOR_DB, _FLOOR_STEP = -48.0, 4.0  # background against the clip's RMS
_ROOM_DB, _ROOM_STEP = -22.0, 3.0  # reverberation against the direct sound
_HISS_DB = -3.0  # the noise of consonants against the pulses, before the tilt
_MICROPHONE_DB = 1.5  # presence around 2.8 kHz

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
    """How a syllable begins: levels against a vowel's 1.0, formant targets in Hz, the noise's band in Hz."""

    voicing: float  # amplitude of the pulses while it lasts
    frication: float  # amplitude of the noise
    burst: bool  # noise only in a short release after a closure
    locus: tuple[float, float, float]
    band: tuple[float, float]  # centre of the noise in Hz, width in octaves


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
_BAND = np.array([c.band for c in _CONSONANTS], dtype=np.float64)


@dataclass(frozen=True)
class _Tables:
    """What depends on the sample rate alone."""

    window_W: np.ndarray  # periodic Hann: copies half a window apart sum to one
    freq_K: np.ndarray  # Hz of the rfft's bins
    octave_K: np.ndarray  # octaves above 500 Hz, flat below 100 Hz
    resonator_QK: np.ndarray  # complex64 response of a resonator at each of Q centre frequencies
    size: int  # samples of the FFT


_Q, _Q_LOW_HZ, _Q_HIGH_HZ = 490, 150.0, 4200.0  # 0.7 % from one tabled resonator to the next


def _resonator(centre_Q: np.ndarray, freq_K: np.ndarray, sample_rate: int) -> np.ndarray:
    """Klatt (1980) eq. 1-3: H(z) = A / (1 - B z^-1 - C z^-2), gain 1 at 0 Hz, at the Q centres in Hz -> complex [Q,K].

    The bandwidth grows with the frequency as in Klatt's Table I: about 55 Hz at 500, 110 at 2500, 230 at 4500.
    """
    width_Q1 = (52.0 * (1.0 + centre_Q**2 / 6.0e6))[:, None]
    c_Q1 = -np.exp(-2.0 * np.pi * width_Q1 / sample_rate)
    b_Q1 = 2.0 * np.exp(-np.pi * width_Q1 / sample_rate) * np.cos(2.0 * np.pi * centre_Q / sample_rate)[:, None]
    z_K = np.exp(-2j * np.pi * freq_K / sample_rate)
    return (1.0 - b_Q1 - c_Q1) / (1.0 - b_Q1 * z_K - c_Q1 * z_K**2)


@lru_cache(maxsize=4)
def _tables(sample_rate: int) -> _Tables:
    window = 2 * sample_rate // _FRAME_HZ
    # The second half takes the ringing of the frame's filter, which would else wrap around to its start.
    size = 2 * window
    freq_K = np.arange(size // 2 + 1) * (sample_rate / size)
    centre_Q = np.geomspace(_Q_LOW_HZ, _Q_HIGH_HZ, _Q)
    return _Tables(
        window_W=scipy.signal.get_window("hann", window).astype(np.float32),
        freq_K=freq_K,
        octave_K=np.log2(np.maximum(freq_K, 100.0) / 500.0),
        resonator_QK=_resonator(centre_Q, freq_K, sample_rate).astype(np.complex64),
        size=size,
    )


_TABLE = 8192


def _pulse(open_quotient: float, softness: float, harmonics: int) -> tuple[np.ndarray, np.ndarray]:
    """One period of the glottal flow and of its derivative, float32 [_TABLE] each.

    Rosenberg (1971), pulse B: opening 3 x^2 - 2 x^3, closing 1 - x^2, shut for the rest. The derivative has an RMS of 1
    and no harmonic above ``harmonics``, else it would alias; the k-th is times k^-softness.
    """
    phase = np.arange(_TABLE) / _TABLE
    opening, closing = 0.68 * open_quotient, 0.32 * open_quotient
    up = phase / opening
    down = (phase - opening) / closing
    flow = np.where(phase < opening, up * up * (3.0 - 2.0 * up), np.clip(1.0 - down * down, 0.0, None) * (down < 1.0))
    order = np.arange(1, harmonics + 1)
    spectrum = np.zeros(harmonics + 1, np.complex128)
    spectrum[1:] = scipy.fft.rfft(flow)[1 : harmonics + 1] * 1j * order ** (1.0 - softness)
    wave = scipy.fft.irfft(spectrum, _TABLE)
    return flow.astype(np.float32), (wave / np.sqrt(np.mean(wave * wave))).astype(np.float32)


@dataclass(frozen=True)
class _Script:
    """What is said when: G points of 1 ms, F frames of 10 ms."""

    voicing_G: np.ndarray
    aspiration_G: np.ndarray
    frication_G: np.ndarray
    semitone_G: np.ndarray  # f0 against the speaker's mean
    formant_F3: np.ndarray  # Hz, of the neutral tract
    consonant_F: np.ndarray  # index into _CONSONANTS


def _script(rng: np.random.Generator, rate: float, accent: float, grid: int, frames: int) -> _Script:
    """Draws syllables at ``rate`` per second with accents of ``accent`` semitones over ``grid`` ms."""
    seconds = grid / _GRID_HZ
    most = int(seconds * rate * 2) + 8
    draw_S6 = rng.random((most, 6))
    vowel_S = rng.integers(len(_VOWELS), size=most)
    consonant_S = rng.integers(len(_CONSONANTS), size=most)
    mean = 1.0 / rate
    # The clip starts somewhere within a word, as a crop of running speech does.
    now = -2.5 * mean * float(rng.random())
    left = 1 + int(rng.integers(4))  # syllables until the next pause
    since = now  # start of the phrase, for the declination

    voice: list[tuple[float, float]] = [(now - 0.02, 0.0)]
    breath: list[tuple[float, float]] = [(now - 0.02, 0.0)]
    hiss: list[tuple[float, float]] = [(now - 0.02, 0.0)]
    tone: list[tuple[float, float]] = []
    time: list[float] = []  # of the formant targets
    target: list[np.ndarray] = []
    begin: list[float] = []
    lift = min(0.6 * accent, 4.5)  # dB from an even syllable to a stressed one: who is lively stresses more (Fry 1958)
    fall = -1.5 * (0.4 + 0.3 * accent)  # semitones a second
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
        begin.append(now)

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
        time += [now + 0.5 * (split - now), split - 0.004, split + glide, held]
        locus = _LOCUS[consonant_S[s]]
        vowel = _NEUTRAL * _VOWELS[vowel_S[s]] * (0.96 + 0.08 * u[3])
        # Halfway to the vowel at the release (a consonant leans to what follows), and a little less of it at the end.
        target += [locus, 0.55 * locus + 0.45 * vowel, vowel, 0.9 * vowel + 0.1 * _SCHWA]

        now, left = end, left - 1
        if left == 0:
            voice.append((now + 0.015, 0.0))
            breath += [(now + 0.025, 0.25), (now + 0.065, 0.0)]  # the end of a word is breathed out
            tone.append((now, -0.55 * weight + fall * (now - since)))
            now += (0.09 + 0.45 * mean) * (0.75 + 0.5 * u[4])
            voice.append((now, 0.0))
            breath.append((now, 0.0))
            left, since = 2 + int(3 * u[5]), now

    at_G = np.arange(grid) / _GRID_HZ
    at_F = (np.arange(frames) + 1) / _FRAME_HZ  # the middles of the frames
    track = np.stack(target)
    slow = np.interp(at_G, np.arange(grid // 8 + 2) * 0.008, rng.standard_normal(grid // 8 + 2))
    voicing_G = _lines(at_G, voice)
    tone_G = scipy.ndimage.uniform_filter1d(_lines(at_G, tone), 35, mode="nearest")
    tone_G -= np.sum(tone_G * voicing_G) / max(np.sum(voicing_G), 1e-6)
    formant_F3 = np.stack([np.interp(at_F, time, track[:, i]) for i in range(3)], axis=1)
    return _Script(
        voicing_G=voicing_G * (1.0 + 0.05 * slow),  # shimmer
        aspiration_G=_lines(at_G, breath),
        frication_G=_lines(at_G, hiss),
        semitone_G=tone_G + 0.06 * slow[::-1],  # jitter, about 0.4 %
        formant_F3=scipy.ndimage.uniform_filter1d(formant_F3, 3, axis=0, mode="nearest"),
        consonant_F=consonant_S[np.clip(np.searchsorted(begin, at_F, side="right") - 1, 0, len(begin) - 1)],
    )


def _lines(at_G: np.ndarray, knots: list[tuple[float, float]]) -> np.ndarray:
    """Straight lines through (seconds, value) knots, read at the G points."""
    knot_K2 = np.array(knots)
    return np.interp(at_G, knot_K2[:, 0], knot_K2[:, 1])


def _dense(track_G: np.ndarray, step: int) -> np.ndarray:
    """Straight lines from the grid's points to samples: [G] -> float32 [(G-1) * step]."""
    track_G = track_G.astype(np.float32)
    ramp = np.arange(step, dtype=np.float32) / step
    return (track_G[:-1, None] + np.diff(track_G)[:, None] * ramp).reshape(-1)


def _gain(db: np.ndarray | float) -> np.ndarray:
    return np.power(10.0, np.asarray(db) / 20.0)


def _frames(wav_T: np.ndarray, which_F: np.ndarray, hop: int, tables: _Tables) -> np.ndarray:
    """Spectra of Hann frames, frame f from sample f * hop on: [T], F indices -> complex64 [F,K]."""
    cut_FW = np.lib.stride_tricks.sliding_window_view(wav_T, 2 * hop)[::hop][which_F]
    return scipy.fft.rfft(cut_FW * tables.window_W, tables.size, axis=1)


def _overlap_add(spectrum_FK: np.ndarray, hop: int, tables: _Tables) -> np.ndarray:
    """Sum of the frames' signals, each hop samples after the last: complex64 [F,K] -> float32 [(F + 4) * hop]."""
    wav_FW = scipy.fft.irfft(spectrum_FK, tables.size, axis=1)
    frames, parts = len(wav_FW), tables.size // hop
    out = np.zeros((frames + parts, hop), np.float32)
    for part in range(parts):
        out[part : part + frames] += wav_FW[:, part * hop : (part + 1) * hop]
    return out.reshape(-1)


def _source(
    rng: np.random.Generator, script: _Script, f0: float, breathiness: float, white_T: np.ndarray, sample_rate: int
) -> np.ndarray:
    """What leaves the glottis, derived: pulses at the phase of f0, and aspiration, stronger while the glottis is open.

    ``f0`` in Hz is the clip's mean; ``white_T`` noise of RMS 1. Returns float32 [T], of RMS about 1 in a vowel whatever
    the breathiness.
    """
    step = sample_rate // _GRID_HZ
    f0_G = np.clip(f0 * np.exp2(script.semitone_G / 12.0), 50.0, 500.0)
    harmonics = int(0.47 * sample_rate / np.quantile(f0_G, 0.95))
    flow, pulse = _pulse(0.60 + 0.06 * breathiness, _SOFT_STEP * breathiness, harmonics)
    phase_T = np.cumsum(_dense(f0_G, step), dtype=np.float64) / sample_rate + rng.random()
    index_T = (phase_T * _TABLE).astype(np.int64) & (_TABLE - 1)
    noise = _gain(_NOISE_DB + _NOISE_STEP * breathiness)
    share = 1.0 / np.hypot(1.0, noise)
    density = np.sqrt(sample_rate / 16000.0)  # as much noise per Hz at any sample rate
    source_T = pulse[index_T] * _dense(share * script.voicing_G, step)
    source_T += white_T * (0.5 + flow[index_T]) * _dense(share * noise * density * script.aspiration_G, step)
    return source_T


def _tract(formant_F3: np.ndarray, short: float, tables: _Tables, sample_rate: int) -> np.ndarray:
    """Response of the vocal tract, all formants times ``short``: complex64 [F,K]."""
    nyquist = 0.5 * sample_rate
    upper = np.arange(3500.0, nyquist, 1000.0) * short
    upper_K = np.prod(_resonator(upper[upper < 0.97 * nyquist], tables.freq_K, sample_rate), axis=0)
    per_log = (_Q - 1) / np.log(_Q_HIGH_HZ / _Q_LOW_HZ)
    which_F3 = np.rint(np.log(formant_F3 * (short / _Q_LOW_HZ)) * per_log).astype(np.int64).clip(0, _Q - 1)
    response_FK = tables.resonator_QK[which_F3[:, 0]] * upper_K.astype(np.complex64)
    response_FK *= tables.resonator_QK[which_F3[:, 1]]
    response_FK *= tables.resonator_QK[which_F3[:, 2]]
    return response_FK


def _bands(short: float, tables: _Tables) -> np.ndarray:
    """Spectrum of each consonant's noise for white noise in: float64 [C,K], RMS 1 over the bins."""
    band_C2 = _BAND * (short, 1.0)
    away_CK = np.log2(np.maximum(tables.freq_K, 50.0) / band_C2[:, :1]) / band_C2[:, 1:]
    shape_CK = np.exp(-0.5 * away_CK * away_CK) + 0.03
    return shape_CK / np.sqrt(np.mean(shape_CK * shape_CK, axis=1, keepdims=True))


def _room(rng: np.random.Generator, dry_T: np.ndarray, db: float, sample_rate: int) -> np.ndarray:
    """A small room: sixteen echoes within 0.1 s that die away, together ``db`` against the direct sound."""
    delay_E = np.sort(rng.uniform(0.004, 0.1, 16))
    gain_E = rng.choice([-1.0, 1.0], 16) * np.exp(-delay_E / 0.03)
    gain_E *= _gain(db) / np.sqrt(np.sum(gain_E * gain_E))
    wet_T = dry_T.copy()
    for delay, gain in zip((delay_E * sample_rate).astype(int).tolist(), gain_E.astype(np.float32), strict=True):
        wet_T[delay:] += gain * dry_T[: max(len(dry_T) - delay, 0)]
    return wet_T


def _render(voice: np.ndarray, clip: np.ndarray, key: int, samples: int, sample_rate: int) -> np.ndarray:
    """One clip: factors [6], nuisance [6], key -> float32 [samples]."""
    pitch, tract, breathiness, tilt, liveliness, rate = voice.astype(np.float64).tolist()
    loudness, mood, effort, room, floor, microphone = clip.astype(np.float64).tolist()
    rng = keyed_rng(_STREAM, key)
    tables = _tables(sample_rate)
    hop, step = sample_rate // _FRAME_HZ, sample_rate // _GRID_HZ
    frames = -(-samples // hop) + 1  # half a frame before the clip and after it
    padded = (frames + 1) * hop

    syllables = _RATE_HZ * np.exp(_RATE_STEP * rate)
    accent = _ACCENT_ST * np.exp(_ACCENT_STEP * liveliness)
    script = _script(rng, syllables, accent, padded // step + 1, frames)
    integer_T = np.frombuffer(rng.bytes(2 * padded), dtype="<i2")
    white_T = integer_T.astype(np.float32) * np.float32(np.sqrt(3.0) / 32768.0)  # uniform, RMS 1

    short = np.exp(-_TRACT_STEP * tract)
    tilt_K = (_TILT_DB + _TILT_STEP * tilt + _EFFORT_STEP * effort) * tables.octave_K  # dB
    f0 = _F0_HZ * np.exp(_F0_STEP * pitch + _MOOD_STEP * mood)
    source_T = _source(rng, script, f0, breathiness, white_T, sample_rate)
    speech_FK = _frames(source_T, np.arange(frames), hop, tables)
    speech_FK *= _tract(script.formant_F3, short, tables, sample_rate)
    speech_FK *= _gain(tilt_K).astype(np.float32)
    # A dark voice has softer consonants too; half of the tilt, so that they stay audible.
    hiss_CK = _bands(short, tables) * _gain(0.5 * tilt_K + _HISS_DB)
    hissing_P = np.any(script.frication_G[:-1].reshape(frames + 1, -1) > 0, axis=1)
    hissing_H = np.flatnonzero(hissing_P[:-1] | hissing_P[1:])  # the frames that hold any of it
    hiss_HK = _frames(white_T * _dense(script.frication_G, step), hissing_H, hop, tables)
    hiss_HK *= hiss_CK.astype(np.float32)[script.consonant_F[hissing_H]]
    speech_FK[hissing_H] += hiss_HK

    presence_K = np.exp(-0.5 * (np.log2(np.maximum(tables.freq_K, 50.0) / 2800.0) / 0.6) ** 2)
    rumble_K = (tables.freq_K / 60.0) ** 2
    speech_FK *= (_gain(_MICROPHONE_DB * microphone * presence_K) * rumble_K / (1.0 + rumble_K)).astype(np.float32)
    dry_T = _overlap_add(speech_FK, hop, tables)[hop : hop + samples]

    wav_T = _room(rng, dry_T, _ROOM_DB + _ROOM_STEP * room, sample_rate)
    wav_T /= max(float(np.sqrt(np.mean(wav_T * wav_T))), 1e-3)  # a clip may be shorter than a pause
    brown_T = scipy.signal.lfilter([0.35], [1.0, -0.8], white_T[::-1][:samples]).astype(np.float32)
    wav_T += np.float32(_gain(_FLOOR_DB + _FLOOR_STEP * floor)) * brown_T
    wav_T *= np.float32(_gain(_LEVEL_DB + _LEVEL_STEP * loudness))
    wav_T *= np.float32(min(1.0, 0.99 / max(float(np.abs(wav_T).max()), 1e-6)))
    return wav_T


def render_voices(
    voice_NV: np.ndarray, clip_NC: np.ndarray, keys_N: np.ndarray, seconds: float, sample_rate: int = 16000
) -> np.ndarray:
    """Clips of people speaking nonsense syllables: float32 [N,T] in [-1, 1], T = round(seconds * sample_rate).

    ``voice_NV`` [N,6]: the person's factors in the order of ``people.VOICE`` (tract: long at the high end; tilt: bright
    at the high end). ``clip_NC`` [N,6]: the clip's nuisance in the order of ``people.CLIP``. ``keys_N`` [N], integers
    from 0: a clip's key seeds what is said and every noise in it, so that the same row and key give the same bytes in
    any batch. Raises V2FError for shapes, values, lengths and rates that cannot be rendered.
    """
    voice_NV, clip_NC, keys_N = np.asarray(voice_NV), np.asarray(clip_NC), np.asarray(keys_N)
    for name, array, columns, most in (
        ("voice_NV", voice_NV, VOICE, 4.0),
        ("clip_NC", clip_NC, CLIP, 8.0),
    ):
        if array.ndim != 2 or array.shape[1] != len(columns):
            wanted = f"[N,{len(columns)}]: {', '.join(columns)}"
            raise V2FError(f"render_voices: {name} has shape {array.shape}; give {wanted}")
        if not np.all(np.abs(array) <= most):  # NaN as well
            raise V2FError(f"render_voices: {name} holds a value outside -{most:g}..{most:g}; give draws from N(0, 1)")
    if not len(voice_NV) == len(clip_NC) == keys_N.size or keys_N.ndim != 1:
        shapes = f"{voice_NV.shape}, {clip_NC.shape} and {keys_N.shape}"
        raise V2FError(f"render_voices: voice_NV, clip_NC and keys_N have shapes {shapes}; give as many rows of each")
    if keys_N.dtype.kind not in "iu" or np.any(keys_N < 0):
        raise V2FError("render_voices: keys_N has to hold integers from 0 on")
    if sample_rate % _GRID_HZ or not 8000 <= sample_rate <= 48000:
        raise V2FError(f"render_voices: sample_rate {sample_rate}; give a multiple of 1000 Hz from 8000 to 48000")
    if not 0.05 <= seconds <= 600.0:
        raise V2FError(f"render_voices: seconds {seconds}; give 0.05 to 600")
    samples = round(seconds * sample_rate)
    wav_NT = np.empty((len(keys_N), samples), np.float32)
    for n, key in enumerate(keys_N.tolist()):
        wav_NT[n] = _render(voice_NV[n], clip_NC[n], key, samples, sample_rate)
    return wav_NT
