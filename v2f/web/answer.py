"""The answer to one clip: everything that the served page says about it. No server is involved, nothing is written.

    bytes --decode--> wav_T --windows--> w+ --mean--> the face
                        |--parts of it, one at a time--> other moments of the same voice
                        |--its halves, the share of speech, its sound--> how sure the answer is
    w+ + what a voice does not determine (:class:`Reference`) --> other people who could have such a voice

The system is deterministic: one clip has one face. The other faces are either those of other moments of the same voice
or samples of what a voice does not determine; the page labels each kind. All randomness is keyed by the clip.

Shape letters: T samples, P parts, L styles, D style width.
"""

from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray

from v2f import generate
from v2f.data import media
from v2f.data.audio import HARDLY_SPEECH, Likeness, decode_voice, likeness, resample
from v2f.data.sample import MAX_SECONDS
from v2f.errors import V2FError
from v2f.evaluation.observers import first_observer
from v2f.given import SHORTEST_S
from v2f.keyed import keyed_rng
from v2f.runs.run import Run
from v2f.system import System
from v2f.web import reference, spectrum
from v2f.web.page import data_uri, number, sound_uri
from v2f.web.reference import Reference

MOMENTS, OTHERS = 4, 6
_OTHERS_STREAM = 0x6F746865  # "othe"; unique to this stream
_QUIET = 0.03  # of the loudest part's RMS; below it is a pause
_PLAYED_HZ = 8000  # the lowest rate that browsers play


@dataclass(frozen=True)
class Gauge:
    """One measure of how sure the answer is, as a bar; positions are fractions of the bar's length."""

    title: str
    words: str
    detail: str
    doubtful: bool
    value: float | None = None
    low: float = 0.0
    high: float = 0.0
    """``low`` to ``high`` is the usual range."""
    limit: float | None = None
    limit_words: str = ""


@dataclass(frozen=True)
class Answer:
    """What the page shows for a clip. Pictures and sound are data URIs; every face carries its provenance."""

    seconds: float
    windows: int
    face: str
    side: int
    """Of the face, in pixels."""
    moments: list[tuple[str, str]]
    """Picture, and the seconds of the clip that it is from."""
    others: list[str]
    gauges: list[Gauge]
    heard: spectrum.Heard
    sound: str

    @property
    def doubtful(self) -> bool:
        return any(gauge.doubtful for gauge in self.gauges)


class Listener:
    """A run that answers clips. ``without``: why there is no reference to compare with; empty if there is one."""

    def __init__(self, run: Run, which: str | int = "latest", system: System | None = None) -> None:
        """Load the checkpoint ``which`` (see :meth:`Run.checkpoint`), or use ``system``, which was loaded from it; on a
        GPU if there is one. Then measure the reference. V2FError if the system does not make a face from a voice."""
        self.run, self.step = run, run.step_of(which)
        system = run.system(which=which) if system is None else system
        self.system = system.to("cuda" if torch.cuda.is_available() else "cpu")
        self.ear = generate.voice_input(run, self.system)
        self.observer = reference.observer_of(run, self.system)
        self.reference: Reference | None = None
        self.without = ""
        try:
            self.reference = reference.measure(run, self.system, self.observer)
        except V2FError as error:
            self.without = str(error)
        self.retrieval = _retrieval(run)

    def answer(self, content: bytes, max_seconds: float = MAX_SECONDS) -> Answer:
        """The answer to the bytes of a recording. UnusableError if it cannot be decoded, is silent, or is shorter than
        0.25 s or longer than ``max_seconds``; V2FError if the system's pictures are not finite."""
        rate, frames = self.ear.sample_rate, self.ear.frames
        wav_T = decode_voice(content, sample_rate=rate, min_seconds=SHORTEST_S, max_seconds=max_seconds)
        parts = moments(len(wav_T), frames)
        loud_P = [float(np.sqrt((wav_T[start:stop] ** 2).mean())) for start, stop in parts]
        parts = [part for part, loud in zip(parts, loud_P, strict=True) if loud >= _QUIET * max(loud_P)]
        pieces = [wav_T, *(wav_T[start:stop] for start, stop in parts), *reference.halves(wav_T)]
        w_PLD, face_P3HW = generate.faces_of(self.system, pieces, frames)
        like = likeness(wav_T, rate)
        notes = generate.provenance(self.run, self.system, step=self.step)
        notes |= {"Doubt": like.doubt} if like.doubt else {}
        others: list[str] = []
        if w_PLD is not None and self.reference is not None:
            rng = keyed_rng(_OTHERS_STREAM, crc32(wav_T.tobytes()))
            w_OLD = self.reference.others(w_PLD[0], OTHERS, rng)
            others = [] if w_OLD is None else [_uri(one, notes) for one in generate.draw(self.system, w_OLD)]
        spans = [f"{start / rate:.1f} to {stop / rate:.1f} s" for start, stop in parts]
        return Answer(
            seconds=len(wav_T) / rate,
            windows=len(generate.windows(wav_T, frames)),
            face=_uri(face_P3HW[0], notes),
            side=face_P3HW.shape[-1],
            moments=[(_uri(one, notes), span) for one, span in zip(face_P3HW[1:-2], spans, strict=True)],
            others=others,
            gauges=self._gauges(wav_T, like, reference.identities(self.observer, face_P3HW[-2:])),
            heard=spectrum.heard(wav_T, rate),
            sound=_sound(wav_T, rate),
        )

    def _gauges(self, wav_T: NDArray[np.float32], like: Likeness, halves_2E: NDArray[np.float64] | None) -> list[Gauge]:
        gauges = [_speech(like)]
        known = self.reference
        if known is None:
            return gauges
        gauges.append(_sounds_known(known, known.how_far(wav_T, self.ear.sample_rate)))
        if halves_2E is not None and known.halves_N is not None and known.strangers is not None:
            apart = float(reference.distance(halves_2E[:1], halves_2E[1:])[0])
            gauges.append(_steady(known.halves_N, known.strangers, apart))
        return gauges


def moments(length: int, window: int) -> list[tuple[int, int]]:
    """Start and end, in samples, of evenly spread parts of a clip. A part is as long as the system's window, but at
    least a quarter and at most half of the clip."""
    part = max(min(length // 2, window), length // 4)
    starts = np.linspace(0, length - part, MOMENTS).round().astype(int).tolist()
    return [(start, start + part) for start in starts]


def _uri(picture: torch.Tensor, notes: dict[str, str]) -> str:
    return data_uri(media.png(picture, notes), "png")


def _sound(wav_T: NDArray[np.float32], rate: int) -> str:
    if rate < _PLAYED_HZ:
        wav_T, rate = resample(wav_T, rate, _PLAYED_HZ), _PLAYED_HZ
    return sound_uri(wav_T, rate)


def _retrieval(run: Run) -> dict[str, Any] | None:
    """What ``v2f eval`` found on unseen people: R@10 with interval, chance and gallery; None if not measured."""
    try:
        split = (run.evaluated or {})["splits"]["test"]
        by, told = first_observer(split)
        found = {"gallery": split["gallery"], "chance": split["chance"]["R@10"], "by": by}
        return found | told["lines"]["voice"]["R@10"]
    except (V2FError, KeyError, TypeError):
        return None  # unseen people were not measured, or the system is of another kind


# ------------------------------------------------------------------------------------------------ in words


def _speech(like: Likeness) -> Gauge:
    share = like.share
    words = (
        "Hardly: music, noise and animals get a face, too, but it means nothing."
        if share < HARDLY_SPEECH
        else "Hardly: it is as steady as noise or a tone. Those get a face, too, but it means nothing."
        if like.steady
        else "Most of it could be."
        if share >= 0.6
        else "Part of it could be; the rest is heard as well."
    )
    detail = (
        f"{100 * share:.0f} % of the clip, by WebRTC’s voice activity detector, which also takes steady noise and "
        f"tones for speech; its level varies by {number(like.swing, 2)} dB, that of speech by more than 3"
    )
    return Gauge(
        "Is it speech?", words, detail, bool(like.doubt), value=share, limit=HARDLY_SPEECH, limit_words="hardly speech"
    )


def _sounds_known(known: Reference, far: float) -> Gauge:
    """A sound that is farther than the farthest known voice is called unknown."""
    most = float(known.sound_N.max())
    low, high = np.quantile(known.sound_N, [0.05, 0.95]).tolist()
    doubtful = far > most
    words = (
        "Unlike every voice this run knows: another kind of voice, microphone, room or noise. It draws a face "
        "anyway, but has no basis for it."
        if doubtful
        else "It sounds like voices this run knows."
        if far <= high
        else "At the edge of what this run knows."
    )
    detail = (
        f"distance to the nearest of {known.people} known voices {number(far)}, usually {number(low)} to {number(high)}"
    )
    scale = 1.5 * most
    return Gauge(
        "Does it know such voices?", words, detail, doubtful, min(1.0, far / scale), low / scale, high / scale,
        most / scale, "farthest known voice",
    )  # fmt: skip


def _steady(halves_N: NDArray[np.float64], strangers: float, apart: float) -> Gauge:
    low, middle, high = np.quantile(halves_N, [0.1, 0.5, 0.9]).tolist()
    if strangers <= high:
        words = "Unknown: this run draws nearly the same face for everyone."
    elif apart <= middle:
        words = "Steady: the first and the second half lead to nearly the same face."
    elif apart <= high:
        words = "As steady as usual: what is said changes the face a little."
    elif apart < strangers:
        words = "Unsteady: the two halves lead to faces that differ more than usual. Try a longer clip, without noise."
    else:
        words = "The two halves lead to two different people. Read nothing into this face."
    detail = (
        f"the faces of the two halves are {number(apart, 2)} apart, usually {number(low, 2)} to {number(high, 2)}; "
        f"two people’s {number(strangers, 2)} (1 − cosine of identity embeddings)"
    )
    doubtful = strangers <= high or apart > high
    scale = 1.25 * max(strangers, high, 1e-6)
    return Gauge(
        "Would it draw the same again?", words, detail, doubtful, min(1.0, apart / scale), low / scale,
        high / scale, strangers / scale, "two people",
    )  # fmt: skip
