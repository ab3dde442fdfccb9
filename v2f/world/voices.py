"""The voices of the synthetic world: source-filter speech of nonsense syllables, with NumPy and SciPy only.

A clip follows Fant's model of speech ("Acoustic Theory of Speech Production", 1960): a *source* (glottal
pulses, aspiration) is shaped by a *filter* (the resonances of the vocal tract), and radiated.

* **Glottal source.** One period of Rosenberg's polynomial pulse (1971, "Effect of glottal pulse shape on the
  quality of natural vowels", pulse B), differentiated because the lips radiate the flow's derivative
  (Fant 1960), band-limited below the Nyquist frequency and read as a wave table at the running phase of f0.
  A breathy voice has more aspiration, a longer open phase and softer closing (Klatt & Klatt 1990, "Analysis,
  synthesis, and perception of voice quality variations among female and male talkers"). The factor tilt slopes
  pulses and aspiration alike, which makes it independent of breathiness.
* **Vocal tract.** The cascade of second-order digital resonators of Klatt (1980, "Software for a
  cascade/parallel formant synthesizer", eq. 1-3). F1..F3 follow the vowels of Peterson & Barney (1952, Table
  II, men, times 1.08: the middle between their men and women); F4 and up are those of a neutral tube
  (Fant 1960: one per 1000 Hz). A tract k times as long divides all of them by k.
* **Consonants.** Voiceless fricatives and the bursts of stops are noise in the band of their place; stops have
  a closure before the burst and move the formants out of the place's locus (Delattre, Liberman & Cooper 1955);
  nasals and approximants are voiced, weaker than vowels, with formants of their own.
* **Prosody.** Words of two to four syllables with pauses between them, declination that resets at a pause, an
  accent on every syllable, which is higher and louder (Fry 1958, "Experiments in the perception of stress"), jitter
  and shimmer.

Both filters vary over time: the source is cut into Hann frames of 20 ms every 10 ms; each is filtered in the
frequency domain by its own response, and overlap-added (Allen & Rabiner 1977). Amplitudes and f0 change on a grid of
1 ms, so that bursts stay sharp.

Every clip is computed separately from its own row and key, so it has the same bytes in any batch.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
import scipy.signal

from v2f.errors import V2FError
from v2f.keyed import keyed_rng
from v2f.world.people import CLIP, VOICE
from v2f.world.syllables import BAND, FRAME_HZ, GRID_HZ, Script, script_of

_STREAM = 0x766F6963  # "voic": a key that no other random stream of the world has

# What the factors mean. x: a factor, N(0, 1) truncated at +-2.2; s: a nuisance, N(0, 1).
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


@dataclass(frozen=True)
class _Tables:
    """Tables that depend on the sample rate alone."""

    window_W: np.ndarray  # periodic Hann: copies half a window apart sum to one
    freq_K: np.ndarray  # Hz of the rfft's bins
    octave_K: np.ndarray  # octaves above 500 Hz, flat below 100 Hz
    resonator_QK: np.ndarray  # complex64 response of a resonator at each of Q center frequencies
    size: int  # samples of the FFT


_Q, _Q_LOW_HZ, _Q_HIGH_HZ = 490, 150.0, 4200.0  # 0.7 % from one tabled resonator to the next


def _resonator(center_Q: np.ndarray, freq_K: np.ndarray, sample_rate: int) -> np.ndarray:
    """Klatt (1980) eq. 1-3: H(z) = A / (1 - B z^-1 - C z^-2), gain 1 at 0 Hz, at the Q centers in Hz -> complex [Q,K].

    The bandwidth grows with the frequency as in Klatt's Table I: about 55 Hz at 500, 110 at 2500, 230 at 4500.
    """
    width_Q1 = (52.0 * (1.0 + center_Q**2 / 6.0e6))[:, None]
    c_Q1 = -np.exp(-2.0 * np.pi * width_Q1 / sample_rate)
    b_Q1 = 2.0 * np.exp(-np.pi * width_Q1 / sample_rate) * np.cos(2.0 * np.pi * center_Q / sample_rate)[:, None]
    z_K = np.exp(-2j * np.pi * freq_K / sample_rate)
    return (1.0 - b_Q1 - c_Q1) / (1.0 - b_Q1 * z_K - c_Q1 * z_K**2)


@lru_cache(maxsize=4)
def _tables(sample_rate: int) -> _Tables:
    window = 2 * sample_rate // FRAME_HZ
    # The second half holds the ringing of the frame's filter, which would otherwise wrap around to its start.
    size = 2 * window
    freq_K = np.arange(size // 2 + 1) * (sample_rate / size)
    center_Q = np.geomspace(_Q_LOW_HZ, _Q_HIGH_HZ, _Q)
    return _Tables(
        window_W=scipy.signal.get_window("hann", window).astype(np.float32),
        freq_K=freq_K,
        octave_K=np.log2(np.maximum(freq_K, 100.0) / 500.0),
        resonator_QK=_resonator(center_Q, freq_K, sample_rate).astype(np.complex64),
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


def _dense(track_G: np.ndarray, step: int) -> np.ndarray:
    """Linear interpolation from the grid to samples: [G] -> float32 [(G-1) * step]."""
    track_G = track_G.astype(np.float32)
    ramp = np.arange(step, dtype=np.float32) / step
    return (track_G[:-1, None] + np.diff(track_G)[:, None] * ramp).reshape(-1)


def _gain(db: np.ndarray | float) -> np.ndarray:
    return np.power(10.0, np.asarray(db) / 20.0)


def _frames(wav_T: np.ndarray, which_F: np.ndarray, hop: int, tables: _Tables) -> np.ndarray:
    """Spectra of Hann frames; frame f starts at sample f * hop: [T], F indices -> complex64 [F,K]."""
    cut_FW = np.lib.stride_tricks.sliding_window_view(wav_T, 2 * hop)[::hop][which_F]
    return scipy.fft.rfft(cut_FW * tables.window_W, tables.size, axis=1)


def _overlap_add(spectrum_FK: np.ndarray, hop: int, tables: _Tables) -> np.ndarray:
    """Sum of the frames' signals, ``hop`` samples apart: complex64 [F,K] -> float32 [(F + 4) * hop]."""
    wav_FW = scipy.fft.irfft(spectrum_FK, tables.size, axis=1)
    frames, parts = len(wav_FW), tables.size // hop
    out = np.zeros((frames + parts, hop), np.float32)
    for part in range(parts):
        out[part : part + frames] += wav_FW[:, part * hop : (part + 1) * hop]
    return out.reshape(-1)


def _source(
    rng: np.random.Generator, script: Script, f0: float, breathiness: float, white_T: np.ndarray, sample_rate: int
) -> np.ndarray:
    """The differentiated glottal source: pulses at the phase of f0, and aspiration, stronger while the glottis is open.

    ``f0`` in Hz is the clip's mean; ``white_T`` is noise of RMS 1. Returns float32 [T], of RMS about 1 in a vowel for
    any breathiness.
    """
    step = sample_rate // GRID_HZ
    f0_G = np.clip(f0 * np.exp2(script.semitone_G / 12.0), 50.0, 500.0)
    harmonics = int(0.47 * sample_rate / np.quantile(f0_G, 0.95))
    flow, pulse = _pulse(0.60 + 0.06 * breathiness, _SOFT_STEP * breathiness, harmonics)
    phase_T = np.cumsum(_dense(f0_G, step), dtype=np.float64) / sample_rate + rng.random()
    index_T = (phase_T * _TABLE).astype(np.int64) & (_TABLE - 1)
    noise = _gain(_NOISE_DB + _NOISE_STEP * breathiness)
    share = 1.0 / np.hypot(1.0, noise)
    density = np.sqrt(sample_rate / 16000.0)  # the same noise per Hz at any sample rate
    source_T = pulse[index_T] * _dense(share * script.voicing_G, step)
    source_T += white_T * (0.5 + flow[index_T]) * _dense(share * noise * density * script.aspiration_G, step)
    return source_T


def _tract(formant_F3: np.ndarray, short: float, tables: _Tables, sample_rate: int) -> np.ndarray:
    """Response of the vocal tract, with all formants multiplied by ``short``: complex64 [F,K]."""
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
    """Filter that turns white noise into each consonant's noise: float64 [C,K], RMS 1 over the bins."""
    band_C2 = BAND * (short, 1.0)
    away_CK = np.log2(np.maximum(tables.freq_K, 50.0) / band_C2[:, :1]) / band_C2[:, 1:]
    shape_CK = np.exp(-0.5 * away_CK * away_CK) + 0.03
    return shape_CK / np.sqrt(np.mean(shape_CK * shape_CK, axis=1, keepdims=True))


def _room(rng: np.random.Generator, dry_T: np.ndarray, db: float, sample_rate: int) -> np.ndarray:
    """A small room: sixteen decaying echoes within 0.1 s, together at ``db`` relative to the direct sound."""
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
    hop, step = sample_rate // FRAME_HZ, sample_rate // GRID_HZ
    frames = -(-samples // hop) + 1  # half a frame before the clip and after it
    padded = (frames + 1) * hop

    syllables = _RATE_HZ * np.exp(_RATE_STEP * rate)
    accent = _ACCENT_ST * np.exp(_ACCENT_STEP * liveliness)
    script = script_of(rng, syllables, accent, padded // step + 1, frames)
    integer_T = np.frombuffer(rng.bytes(2 * padded), dtype="<i2")
    white_T = integer_T.astype(np.float32) * np.float32(np.sqrt(3.0) / 32768.0)  # uniform, RMS 1

    short = np.exp(-_TRACT_STEP * tract)
    tilt_K = (_TILT_DB + _TILT_STEP * tilt + _EFFORT_STEP * effort) * tables.octave_K  # dB
    f0 = _F0_HZ * np.exp(_F0_STEP * pitch + _MOOD_STEP * mood)
    source_T = _source(rng, script, f0, breathiness, white_T, sample_rate)
    speech_FK = _frames(source_T, np.arange(frames), hop, tables)
    speech_FK *= _tract(script.formant_F3, short, tables, sample_rate)
    speech_FK *= _gain(tilt_K).astype(np.float32)
    # A dark voice also has softer consonants; half of the tilt, so that they stay audible.
    hiss_CK = _bands(short, tables) * _gain(0.5 * tilt_K + _HISS_DB)
    hissing_P = np.any(script.frication_G[:-1].reshape(frames + 1, -1) > 0, axis=1)
    hissing_H = np.flatnonzero(hissing_P[:-1] | hissing_P[1:])  # the frames that contain noise
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

    ``voice_NV`` [N,6]: the person's factors in the order of ``people.VOICE`` (the high end is a long tract, a bright
    tilt). ``clip_NC`` [N,6]: the clip's nuisance in the order of ``people.CLIP``. ``keys_N`` [N]: non-negative
    integers; a clip's key seeds its syllables and all its noise, so the same row and key give the same bytes in any
    batch. V2FError for shapes, values, lengths and rates that cannot be rendered.
    """
    voice_NV, clip_NC, keys_N = np.asarray(voice_NV), np.asarray(clip_NC), np.asarray(keys_N)
    for name, array, columns, most in (
        ("voice_NV", voice_NV, VOICE, 4.0),
        ("clip_NC", clip_NC, CLIP, 8.0),
    ):
        if array.ndim != 2 or array.shape[1] != len(columns):
            expected = f"[N,{len(columns)}]: {', '.join(columns)}"
            raise V2FError(f"render_voices: {name} has shape {array.shape}; pass {expected}")
        if not np.all(np.abs(array) <= most):  # NaN as well
            raise V2FError(f"render_voices: {name} has a value outside -{most:g}..{most:g}; pass draws from N(0, 1)")
    if not len(voice_NV) == len(clip_NC) == keys_N.size or keys_N.ndim != 1:
        shapes = f"{voice_NV.shape}, {clip_NC.shape} and {keys_N.shape}"
        raise V2FError(f"render_voices: voice_NV, clip_NC and keys_N have shapes {shapes}; pass as many rows of each")
    if keys_N.dtype.kind not in "iu" or np.any(keys_N < 0):
        raise V2FError("render_voices: keys_N has other values than non-negative integers; pass integers from 0")
    if sample_rate % GRID_HZ or not 8000 <= sample_rate <= 48000:
        raise V2FError(f"render_voices: sample_rate is {sample_rate}; pass a multiple of 1000 Hz from 8000 to 48000")
    if not 0.05 <= seconds <= 600.0:
        raise V2FError(f"render_voices: seconds is {seconds}; pass 0.05 to 600")
    samples = round(seconds * sample_rate)
    wav_NT = np.empty((len(keys_N), samples), np.float32)
    for n, key in enumerate(keys_N.tolist()):
        wav_NT[n] = _render(voice_NV[n], clip_NC[n], key, samples, sample_rate)
    return wav_NT
