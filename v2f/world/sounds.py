"""The sounds of :mod:`v2f.world.things`, synthesized at any sample rate with NumPy only.

* **bark**: bursts of pulses and noise of about 0.16 s. The pitch rises and falls by a third (barks have a fundamental
  of 200 to 600 Hz); both pass two formants.
* **meow**: one or two gliding harmonic tones of 0.3 to 1 s. The mouth opens and closes, so a formant moves up and down
  again (Nicastro 2004, "Perceptual and acoustic evidence for species-level differences in meow vocalizations").
* **bell**: inharmonic partials that decay exponentially, high ones faster. Their ratios are those of a church bell
  (hum, prime, tierce, quint, nominal, ...; Fletcher & Rossing, "The physics of musical instruments", section 21.11).
  Each is a pair that beats.
* **engine**: a train of pulses of 24 to 62 Hz with its harmonics, through the resonances of an exhaust. The four
  strokes of a cycle differ, and the speed swells.

Partials end at 8 kHz at any rate, and are faded out below half the sample rate, so that a sound at 4 kHz is about the
one at 16 kHz without what a 4 kHz recording cannot hold. Noise has the same power per Hz at any rate, but other
samples. A floor of white noise lies 60 dB below the peak.

A sound is computed from its own row and key alone: it is the same in any batch.

Shape letters: N sounds, F factors, T samples of a sound, E samples of a call, K partials.
"""

import numpy as np
from numpy.typing import NDArray

from v2f.errors import V2FError
from v2f.keyed import keyed_rng
from v2f.world.things import CLASSES, SOUND, Call, calls

_STREAM = 0x7468696E  # "thin": a key that no other random stream of the worlds has

Floats = NDArray[np.float64]

_HIGHEST_HZ = 8000.0  # of a partial
_FLOOR = 1e-3  # RMS of the background against the peak
_PEAK, _PEAK_STEP = 0.55, 0.5  # peak = 0.55 * 2^(0.5 x)
_BARK_HZ, _BARK_STEP = 340.0, 0.75  # pitch = 340 * 2^(0.75 x): 202 to 572 Hz
_MEOW_HZ, _MEOW_STEP = 520.0, 0.55  # 355 to 761 Hz
_BELL_HZ, _BELL_STEP = 430.0, 0.6  # of the prime: 284 to 652 Hz
_ENGINE_HZ, _ENGINE_STEP = 38.0, 0.7  # strokes a second: 23 to 62
_BELL_RATIOS = np.array([0.5, 1.0, 1.183, 1.506, 2.0, 2.514, 2.662, 3.011, 4.166, 5.433])
_BELL_LEVELS = np.array([0.5, 1.0, 0.8, 0.45, 0.9, 0.3, 0.25, 0.35, 0.25, 0.15])
_TABLE = 8192  # samples of an engine's cycle


def render_sounds(
    class_N: NDArray[np.int64],
    factor_NF: Floats,
    key_N2: NDArray[np.int64],
    seconds: float,
    sample_rate: int = 4000,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Sounds of the classes ``class_N`` with the factors ``factor_NF`` (:data:`v2f.world.things.SOUND`): float32 [N,T]
    in [-1, 1], T = round(seconds * sample_rate).

    ``key_N2`` [N,2]: thing and take, which with ``seed`` key the noise. Row i depends on row i of the arguments only.
    V2FError for arrays that do not fit together, fewer than 0.1 s, or a rate below 1,000 Hz.
    """
    class_N, factor_NF, key_N2 = np.asarray(class_N), np.asarray(factor_NF, np.float64), np.asarray(key_N2)
    if factor_NF.shape != (len(class_N), len(SOUND)) or key_N2.shape != (len(class_N), 2):
        raise V2FError(
            f"render_sounds takes classes [N], factors [N,{len(SOUND)}] and keys [N,2] of the same N; got "
            f"{list(class_N.shape)}, {list(factor_NF.shape)} and {list(key_N2.shape)}"
        )
    if not 0.1 <= seconds <= 3600.0 or sample_rate < 1000:
        raise V2FError(
            f"a sound of {seconds:g} s at {sample_rate} Hz: pass 0.1 to 3600 s and a sample rate of at least 1000 Hz"
        )
    wav_NT = np.empty((len(class_N), round(seconds * sample_rate)), np.float32)
    for row, (class_, factor_F, key) in enumerate(zip(class_N.tolist(), factor_NF, key_N2.tolist(), strict=True)):
        wav_NT[row] = _Sound(class_, factor_F, (seed, *key), seconds, sample_rate).rendered()
    return wav_NT


class _Sound:
    """One take being rendered."""

    def __init__(self, class_: int, factor_F: Floats, key: tuple[int, ...], seconds: float, rate: int) -> None:
        self.name, self.rate = CLASSES[class_], rate
        self.of = dict(zip(SOUND, factor_F.tolist(), strict=True))
        self.calls = calls(class_, factor_F, seconds)
        self.samples = round(seconds * rate)
        raw = keyed_rng(_STREAM, *key).bytes(4 * self.samples)
        # uniform, of RMS sqrt(rate / 4000): the same power per Hz at any rate
        whole_2T = np.frombuffer(raw, dtype="<i2").astype(np.float64) * (3.0**0.5 / 32768.0) * (rate / 4000.0) ** 0.5
        self.white_T, self.floor_T = whole_2T[: self.samples], whole_2T[self.samples :]

    def rendered(self) -> NDArray[np.float32]:
        wav_T = np.zeros(self.samples)
        voice = {"bark": self._bark, "meow": self._meow, "bell": self._bell, "engine": self._engine}[self.name]
        for number, call in enumerate(self.calls):
            first = min(round(call.start * self.rate), self.samples)
            last = min(first + max(1, round(call.length * self.rate)), self.samples)
            if last > first:
                wav_T[first:last] += voice(call, number, first, last)
        wav_T /= max(float(np.abs(wav_T).max()), 1e-9)
        wav_T += _FLOOR * self.floor_T
        wav_T *= _PEAK * 2.0 ** (_PEAK_STEP * self.of["loudness"])
        return np.clip(wav_T, -1.0, 1.0).astype(np.float32)

    def _hz(self, base: float, step: float) -> float:
        return float(base * 2.0 ** (step * self.of["pitch"]))

    def _partials(self, hz_E: Floats) -> Floats:
        """The frequencies of the harmonics of a tone whose pitch is ``hz_E``, which may move: [K,E]."""
        most = max(1, int(min(_HIGHEST_HZ, 0.5 * self.rate) / float(hz_E.min())))
        return np.arange(1, most + 1)[:, None] * hz_E

    def _below(self, hz: Floats) -> Floats:
        """1, and smoothly 0 towards half the sample rate and 8 kHz."""
        return _rise((min(_HIGHEST_HZ, 0.48 * self.rate) - hz) / (0.05 * self.rate))

    def _sum(self, hz_KE: Floats, level_KE: Floats) -> Floats:
        """The sum of partials that start at phase 0: [E]."""
        turns_KE = np.cumsum(hz_KE, axis=1) / self.rate
        return np.asarray((level_KE * self._below(hz_KE) * np.sin(2.0 * np.pi * turns_KE)).sum(0))

    def _bark(self, call: Call, number: int, first: int, last: int) -> Floats:
        of, u_E = self.of, np.arange(last - first) / (call.length * self.rate)
        arch_E = _rise(u_E / 0.25) * (1.0 - _rise((u_E - 0.25) / 0.75))
        hz_E = self._hz(_BARK_HZ, _BARK_STEP) * (0.8 + 0.35 * arch_E)
        hz_KE = self._partials(hz_E)
        order_K1 = np.arange(1, len(hz_KE) + 1)[:, None]
        pulses_E = self._sum(hz_KE, order_K1 ** (-0.9 + 0.3 * of["brightness"]) * self._throat(hz_KE))
        noise_E = self._filtered(self.white_T[first:last])
        share = 10.0 ** ((-4.0 + 6.0 * of["texture"]) / 20.0)
        envelope_E = _rise(u_E / 0.08) * (1.0 - u_E) ** 1.5
        return envelope_E * (0.9**number) * (_level(pulses_E) + share * _level(noise_E))

    def _throat(self, hz: Floats) -> Floats:
        """The gain of a dog's two formants, which lie higher in a small dog."""
        low = 620.0 * 2.0 ** (0.3 * self.of["pitch"])
        high = (1250.0 + 200.0 * self.of["brightness"]) * 2.0 ** (0.2 * self.of["pitch"])
        return _resonance(hz, low, 160.0) + (0.5 + 0.3 * self.of["brightness"]) * _resonance(hz, high, 220.0)

    def _filtered(self, noise_E: Floats) -> Floats:
        size = 1 << (2 * len(noise_E) - 1).bit_length()  # the second half keeps the ringing from wrapping around
        hz_B = np.asarray(np.fft.rfftfreq(size, 1.0 / self.rate), np.float64)
        spectrum_B = np.fft.rfft(noise_E, size) * self._throat(hz_B) * self._below(hz_B)
        return np.fft.irfft(spectrum_B, size)[: len(noise_E)]

    def _meow(self, call: Call, number: int, first: int, last: int) -> Floats:
        of, s_E = self.of, np.arange(last - first) / self.rate
        u_E = s_E / call.length
        arch_E = _rise(u_E / 0.35) * (1.0 - _rise((u_E - 0.35) / 0.65))
        vibrato_E = 1.0 + (0.008 + 0.008 * of["texture"]) * np.sin(2.0 * np.pi * 6.5 * s_E)
        hz_E = self._hz(_MEOW_HZ, _MEOW_STEP) * (0.85 + (0.3 + 0.2 * of["bend"]) * arch_E) * vibrato_E
        hz_KE = self._partials(hz_E)
        order_K1 = np.arange(1, len(hz_KE) + 1)[:, None]
        mouth_E = 600.0 + (750.0 + 250.0 * of["brightness"]) * arch_E
        level_KE = order_K1 ** (-0.8 + 0.3 * of["brightness"]) * (0.15 + _resonance(hz_KE, mouth_E, 260.0))
        envelope_E = _rise(u_E / 0.15) * (1.0 - _rise((u_E - 0.45) / 0.55))
        return envelope_E * (0.9**number) * self._sum(hz_KE, level_KE)

    def _bell(self, call: Call, number: int, first: int, last: int) -> Floats:
        of, s_E = self.of, np.arange(last - first) / self.rate
        hz_K1 = (self._hz(_BELL_HZ, _BELL_STEP) * _BELL_RATIOS)[:, None]
        decay_K1 = (0.45 * 2.0 ** (0.8 * of["length"]) * _BELL_RATIOS**-0.8)[:, None]
        level_K1 = (_BELL_LEVELS * _BELL_RATIOS ** (-0.5 + 0.5 * of["brightness"]))[:, None]
        beat_K1 = 1.0 + (0.0012 + 0.0010 * of["texture"]) * np.cos(np.arange(len(hz_K1)))[:, None]
        level_KE = level_K1 * np.exp(-s_E / decay_K1)
        ones_E = np.ones_like(s_E)
        rings_E = self._sum(hz_K1 * ones_E, level_KE) + 0.5 * self._sum(hz_K1 * beat_K1 * ones_E, level_KE)
        return _rise(s_E / 0.004) * (0.85**number) * rings_E

    def _engine(self, call: Call, number: int, first: int, last: int) -> Floats:
        of, s_E = self.of, np.arange(last - first) / self.rate
        mean = self._hz(_ENGINE_HZ, _ENGINE_STEP)
        swells = 0.7 + 0.5 * of["count"]  # a second
        swell_E = np.sin(2.0 * np.pi * (swells * s_E + 0.5 * of["start"]))
        hz_E = mean * (1.0 + 0.08 * (1.0 + of["bend"]) * swell_E)
        cycle = self._cycle(mean)
        at_E = np.cumsum(hz_E / 4.0) / self.rate * _TABLE
        whole_E = at_E.astype(np.int64)
        part_E = at_E - whole_E
        strokes_E = (1.0 - part_E) * cycle[whole_E % _TABLE] + part_E * cycle[(whole_E + 1) % _TABLE]
        ends_E = _rise(s_E / 0.03) * _rise((call.length - s_E) / 0.03)
        return ends_E * (1.0 + 0.15 * swell_E) * (strokes_E + 0.06 * self.white_T[first:last])

    def _cycle(self, mean: float) -> Floats:
        """One cycle of four strokes at ``mean`` strokes a second, of RMS 1: [_TABLE]."""
        of = self.of
        hz_K = np.asarray(np.arange(_TABLE // 2 + 1) * mean / 4.0, np.float64)
        uneven = 0.15 + 0.12 * of["texture"]
        stroke_S = np.array([1.0, 1.0 - 2.0 * uneven, 1.0 + uneven, 1.0 - uneven])
        turn_SK = np.exp(-0.5j * np.pi * np.arange(4)[:, None] * np.arange(len(hz_K)))
        slope_K = np.maximum(hz_K / mean, 0.25) ** (-0.7 + 0.3 * of["brightness"])
        exhaust_K = 0.25 + _resonance(hz_K, 150.0, 60.0) + 0.8 * _resonance(hz_K, 420.0 + 80.0 * of["brightness"], 90.0)
        exhaust_K += 0.5 * _resonance(hz_K, 1000.0, 200.0)
        spectrum_K = (stroke_S[:, None] * turn_SK).sum(0) * slope_K * exhaust_K * self._below(1.2 * hz_K)
        spectrum_K[0] = 0.0
        return _level(np.fft.irfft(spectrum_K, _TABLE))


def _rise(x: Floats) -> Floats:
    """0 below 0, 1 above 1, smooth between."""
    t = np.clip(x, 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t))


def _level(wav_E: Floats) -> Floats:
    """Scaled to RMS 1."""
    return np.asarray(wav_E / max(float(np.sqrt(np.mean(wav_E * wav_E))), 1e-9))


def _resonance(hz: Floats, center: Floats | float, width: float) -> Floats:
    """The gain of a resonance with half of its power ``width`` Hz from its center."""
    away = (hz - center) / width
    return np.asarray(1.0 / np.sqrt(1.0 + away * away))
