"""What a trained system makes from its inputs: a face from a voice, a picture from a label, a sound from a video.

    files and words --by the kinds that the system asks for--> batch --sample--> the kind that it makes --> a file

The file says what it is (:mod:`v2f.data.media`): a face from a voice shows what goes with such a voice in the training
data; it is not a photograph and identifies nobody.

Shape letters: B batch, C channels, F frames, H side, T samples of the file, W windows, L styles, D style width.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from v2f import __version__, latent
from v2f.data import media, pieces
from v2f.data.audio import likeness
from v2f.data.sample import MAX_SECONDS
from v2f.data.transforms import Waveform
from v2f.errors import V2FError
from v2f.given import GIVEN_AS, Given, batch_of, file_name, labeled, opened_video, read_voice
from v2f.pipeline import Opened
from v2f.roles import Labeling
from v2f.storage import store
from v2f.system import (
    Batch,
    Embedding,
    Generative,
    Kind,
    Label,
    Noise,
    Picture,
    Sound,
    Styled,
    Tokens,
    Video,
    of_kind,
)

DISCLAIMER = "Estimated from a voice; not a photograph, and not a likeness that could identify anyone."

_QUIET_WINDOW = 0.03  # relative to the RMS of the loudest window; anything below is a pause
_MOST_WINDOWS = 64
_BATCH = 16
_PIECES = 8  # of a long sound, at a time
_MADE_FROM: dict[type[Kind], str] = {
    Sound: "estimated from a voice",
    Label: "made from a label",
    Picture: "made from a photo",
    Video: "made from a video",
}


def generate(
    run: Opened,
    voice: str | None,
    output: str,
    *,
    photo: str | None = None,
    video: str | None = None,
    label: str | None = None,
    seed: int = 0,
    size: int | None = None,
    walk: int | None = None,
    system: Generative | None = None,
) -> str:
    """Write what ``run`` makes from the inputs (see :class:`Given`) to ``output``; returns ``output``.

    The suffix decides what is written: ``.png`` a picture, ``.wav`` a sound, ``.mp4``, ``.mov``, ``.mkv`` or ``.webm``
    the given video with the generated sound, ``.json`` labels, tokens or an embedding. The file is written completely
    or not at all. ``size``: side of a face in pixels, up to that of the generator; None: that of the training.
    ``walk``: a row of so many pictures, from the code of the seed, or of the photo, to that of the next seed.
    ``system``: the run's system, if it is already loaded. A sound for a video is as long as its pictures
    (:mod:`v2f.data.pieces`).

    A voice is any file that libsndfile or FFmpeg reads; channels are averaged, other sample rates are resampled. A clip
    shorter than those of the training is repeated to their length. For a face, a longer clip is cut into windows that
    overlap by half (at most 64, evenly spread; pauses are skipped), and their codes w+ are averaged: a mean in W is a
    clean face again (Karras et al. 2020, "Analyzing and improving", section 5.2 on W), whereas a mean of pictures is a
    ghost. A system without codes uses the middle window. If the sound is hardly speech, a face is made all the same,
    with a warning.

    V2FError if an input is missing or not asked for, or if a file is missing, empty, silent, too short, or of another
    kind.
    """
    system = run.system() if system is None else system
    given = Given(voice=voice, photo=photo, video=video, label=label, seed=seed)
    if walk is not None:
        row_CHW = latent.walk(system, batch_of(system, given), given.seed + 1, walk)
        store.write_bytes(output, media.png(_finite(row_CHW), provenance(run, system, given)))
        print(f"{output}: {walk} pictures between two codes")
        return output
    if is_face_of_voice(system):
        return _face(run, system, given, output, size)
    if size is not None:
        raise V2FError(f"this system has one output size only; leave out the {size} px")
    name, kind = _output_for(system, output, given)
    given, shares_by_label = labeled(system, given)
    made, about = make(system, given, progress=True)[name], provenance(run, system, given)
    _write(output, kind, made, about, given)
    found = f" (label {given.label}, {shares_by_label[given.label or '']:.0%})" if shares_by_label else ""
    print(f"{output}: {about['Title'][0].lower()}{about['Title'][1:]}{found}")
    return output


def _face(run: Opened, system: Generative, given: Given, output: str, size: int | None) -> str:
    """:func:`generate` for a face from a voice."""
    if Path(output).suffix.lower() != ".png":
        raise V2FError(f"{output}: a face is written as PNG; name the output something.png")
    sample_rate = voice_input(run, system).sample_rate
    wav_T, wav_WT = given_voice(run, system, given)
    picture = face_of(system, torch.from_numpy(wav_WT), size, given.seed)
    seconds = len(wav_T) / sample_rate
    about = provenance(run, system) | {"Voice": f"{seconds:.2f} s, {len(wav_WT)} window(s)"}
    doubt = likeness(wav_T, sample_rate).doubt
    if doubt:
        about["Doubt"] = doubt
    store.write_bytes(output, media.png(picture, about))
    print(f"{output}: a face estimated from {seconds:.1f} s of voice ({len(wav_WT)} window(s))")
    if doubt and given.voice is not None:
        print(f"{file_name(given.voice, 'recording')}: {doubt}; the face means nothing")
    return output


def given_voice(run: Opened, system: Generative, given: Given) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The voice [T] that was given to a system that makes a face from one, and its windows [W, length]."""
    if given.voice is None or given.photo or given.video or given.label:
        raise V2FError("this system makes a face from a voice: give a recording of one, and nothing else")
    hears = voice_input(run, system)
    wav_T = read_voice(given.voice, hears.sample_rate)
    return wav_T, windows(wav_T, hears.frames)


# ------------------------------------------------------------------------------------- any kind of system


@torch.no_grad()
def make(
    system: Generative, given: Given, max_seconds: float = MAX_SECONDS, *, progress: bool = False
) -> dict[str, Tensor]:
    """The system's outputs by name, without the batch axis; V2FError if the inputs cannot be used (see
    :func:`v2f.given.batch_of`) or an output is not finite.

    A sound for a video is as long as its pictures: it is joined from pieces of the system's length, each with noise of
    its own. ``progress``: show it in a terminal.
    """
    given = labeled(system, given, max_seconds)[0] if given.label is None else given
    batch, count, seconds = batch_of(system, given, max_seconds), 1, None
    sounds = of_kind(system.makes(), Sound)
    if sounds and given.video is not None:
        with opened_video(given.video, max_seconds) as (_, seconds):
            piece = sounds[0][1]
            count = pieces.count_of(round(seconds * piece.rate), piece.frames, piece.rate)
    alike = count == 1 or not of_kind(system.asks(), Noise)
    sampled = _in_parts(system, batch if alike else latent.pieces(system, batch, given.seed, count), progress)
    made = {}
    for name, kind in system.makes().items():
        if seconds is None or not isinstance(kind, Sound):
            made[name] = sampled[name][0]
        else:
            sound_PT = sampled[name].flatten(1).float().cpu().expand(count, -1).numpy()
            made[name] = torch.from_numpy(pieces.joined(sound_PT, round(seconds * kind.rate), kind.rate))[None]
    if not all(one.isfinite().all() for one in made.values()):
        raise V2FError("the system's output is not finite: its training diverged; use an earlier checkpoint")
    return made


def _in_parts(system: Generative, rows: Batch, progress: bool) -> dict[str, Tensor]:
    """What the system makes from ``rows``, a few at a time."""
    parts: dict[str, list[Tensor]] = {name: [] for name in system.makes()}
    size = max((len(value) for value in rows.values()), default=1)
    with tqdm(total=size, unit="piece", desc="making", disable=None if progress and size > 1 else True) as bar:
        for start in range(0, size, _PIECES):
            part = {name: value[start : start + _PIECES] for name, value in rows.items()}
            sampled = system.sample(part)
            for name, done in parts.items():
                done.append(sampled[name])
            bar.update(min(_PIECES, size - start))
    return {name: torch.cat(done) for name, done in parts.items()}


_SUFFIXES: dict[type[Kind], tuple[str, ...]] = {
    Picture: (".png",),
    Sound: (".wav", *media.VIDEOS),
    Label: (".json",),
    Tokens: (".json",),
    Embedding: (".json",),
}


def _output_for(system: Generative, output: str, given: Given) -> tuple[str, Kind]:
    """The name and kind of the output that a file with this suffix can hold."""
    suffix = Path(output).suffix.lower()
    for name, kind in system.makes().items():
        if suffix in _SUFFIXES.get(type(kind), ()):
            if suffix in media.VIDEOS and given.video is None:
                raise V2FError(f"{output}: no video is given to put the sound under; name the output something.wav")
            return name, kind
    fitting = [suffix for kind in system.makes().values() for suffix in _SUFFIXES.get(type(kind), ())]
    if not fitting:
        raise V2FError("this system has no output that can be written to a file")
    raise V2FError(f"{output}: this system makes {', '.join(system.makes())}; name the output something{fitting[0]}")


def _write(output: str, kind: Kind, made: Tensor, about: Mapping[str, str], given: Given) -> None:
    """Write one output to its file."""
    suffix = Path(output).suffix.lower()
    if given.video is None or suffix not in media.VIDEOS:
        store.write_bytes(output, _content(kind, made, about))
        return
    assert isinstance(kind, Sound)
    with store.replacing(output) as temporary:
        with_sound(given.video, temporary, suffix, made, kind, about)


def with_sound(
    video: str | bytes, target: str | io.BytesIO, suffix: str, sound: Tensor, kind: Sound, about: Mapping[str, str]
) -> None:
    """Write ``video`` with ``sound`` of this kind to ``target``; see :func:`v2f.data.media.mux`."""
    try:
        with opened_video(video) as (container, _):
            media.mux(container, target, suffix, sound.flatten().float().cpu().numpy(), kind.rate, about)
    except media.MisfitError as error:
        raise media.MisfitError(f"{file_name(video, 'video')}: {error}") from error


def _content(kind: Kind, made: Tensor, about: Mapping[str, str]) -> bytes:
    """The content of a file for one output."""
    if isinstance(kind, Picture):
        return media.png(made, about)
    if isinstance(kind, Sound):
        return media.wav(made.flatten().float().cpu().numpy(), kind.rate, about)
    found: dict[str, Any] = {"about": dict(about)}
    if isinstance(kind, Label):
        found |= {"label": kind.names[int(made.argmax())], "shares": shares(kind, made)}
    else:
        found["values"] = made.tolist()
    return json.dumps(found, ensure_ascii=False, indent=1).encode() + b"\n"


def shares(kind: Label, score_K: Tensor) -> dict[str, float]:
    """Each label's share: the softmax of the scores [K]."""
    return dict(zip(kind.names, score_K.float().softmax(0).tolist(), strict=True))


# ------------------------------------------------------------------------------------- a face from a voice


def voice_input(run: Opened, system: Generative) -> Waveform:
    """The length and sample rate of the clips that the system hears; V2FError if it makes no face from a voice."""
    if not is_face_of_voice(system):
        raise V2FError(f"{run.path}: its system does not hear a voice, so there is nothing to make a face from")
    (heard,) = (kind for kind in system.asks().values() if isinstance(kind, Sound))
    return Waveform(heard.seconds, heard.rate)


def is_face_of_voice(system: Generative) -> bool:
    """Whether the system asks for a voice, alone or with noise, and makes a picture from it."""
    asked = [kind for kind in system.asks().values() if not isinstance(kind, Noise)]
    makes = system.makes().values()
    heard = len(asked) == 1 and isinstance(asked[0], Sound) and asked[0].voice
    return heard and isinstance(next(iter(makes), None), Picture)


def windows(wav_T: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Windows [W, length] of a waveform, overlapping by half and without pauses; a shorter waveform is repeated."""
    if len(wav_T) <= length:
        return np.resize(wav_T, length)[None]  # np.resize repeats
    count = min(_MOST_WINDOWS, -(-2 * (len(wav_T) - length) // length) + 1)
    starts = np.linspace(0, len(wav_T) - length, count).round().astype(int)
    wav_WT = np.stack([wav_T[start : start + length] for start in starts])
    loudness_W = np.sqrt((wav_WT**2).mean(1))
    return wav_WT[loudness_W >= _QUIET_WINDOW * loudness_W.max()]


@torch.no_grad()
def face_of(system: Generative, wav_WT: Tensor, size: int | None = None, seed: int = 0) -> Tensor:
    """One picture [3, H, W] in [-1, 1] from all windows of a voice; V2FError if it is not finite.

    ``size``: a side other than that of the training, if the system's generator supports it; ``seed``: seed of the
    noise, if the system asks for noise.
    """
    w_WLD = codes_of(system, wav_WT, seed)
    if w_WLD is not None:
        return draw(system, w_WLD.mean(0, keepdim=True), size)[0]
    if size is not None:
        raise V2FError(f"this system has one output size only; leave out the {size} px")
    middle = len(wav_WT) // 2
    made = system.sample(latent.with_noise(system, wav_WT[middle : middle + 1], seed))
    return _finite(next(iter(made.values())))[0]


@torch.no_grad()
def codes_of(system: Generative, wav_WT: Tensor, seed: int = 0) -> Tensor | None:
    """w+ [W, L, D] of windows of a voice, all with the noise of ``seed``; None if the system has no style generator."""
    if not isinstance(system, Styled):
        return None
    return torch.cat([system.styles(latent.with_noise(system, part, seed)) for part in wav_WT.split(_BATCH)])


def faces_of(system: Generative, wav_N: Sequence[NDArray[np.float32]], frames: int) -> tuple[Tensor | None, Tensor]:
    """What the system makes from waveforms, cut into windows of ``frames`` samples: w+ [N, L, D] (None if it has no
    codes) and pictures [N, 3, H, W] in [-1, 1], each the one of :func:`face_of`."""
    wav_NWT = [torch.from_numpy(windows(wav_T, frames)) for wav_T in wav_N]
    w_WLD = codes_of(system, torch.cat(wav_NWT))
    if w_WLD is None:
        return None, torch.stack([face_of(system, wav_WT) for wav_WT in wav_NWT])
    w_NLD = torch.stack([part.mean(0) for part in w_WLD.split([len(wav_WT) for wav_WT in wav_NWT])])
    return w_NLD, draw(system, w_NLD)


@torch.no_grad()
def draw(system: Generative, w_NLD: Tensor, size: int | None = None) -> Tensor:
    """Pictures [N, 3, H, W] in [-1, 1] of codes w+ from :func:`codes_of`; V2FError if one is not finite."""
    assert isinstance(system, Styled), "only a system with a style generator has codes"
    return _finite(torch.cat([system.face(part, size) for part in w_NLD.split(_BATCH)]))


def _finite(picture_NCHW: Tensor) -> Tensor:
    if not picture_NCHW.isfinite().all():
        raise V2FError("the system's picture is not finite: its training diverged; use an earlier checkpoint")
    return picture_NCHW.clamp(-1, 1)


def provenance(
    run: Opened, system: Generative, given: Given | None = None, *, step: int | str | None = None
) -> dict[str, str]:
    """The metadata of an output of ``run``: :func:`notes`, and the label and seed of ``given`` if the system uses them.

    ``step``: that of the loaded checkpoint; None: the newest one.
    """
    restyled = given is not None and given.photo is not None and latent.restyles(system)
    seen = None
    if given is not None and isinstance(system, Labeling):
        seen = Video if given.video is not None else Picture if given.photo is not None else None
    words = notes(run.name, system, run.step if step is None else step, restyled, seen)
    asked = {GIVEN_AS.get(type(kind)) for kind in system.asks().values()}
    inputs = {} if given is None else {"label": given.label, "seed": given.seed}
    return words | {name.title(): str(value) for name, value in inputs.items() if name in asked}


def notes(
    name: str, system: Generative, step: int | str | None, restyled: bool = False, seen: type[Kind] | None = None
) -> dict[str, str]:
    """The metadata of a picture or sound that the run ``name`` makes now: what it is, what made it, and when;
    ``restyled``: a photo was given besides the label; ``seen``: the kind of the input that showed the label."""
    asked = [type(kind) for kind in system.asks().values()] if seen is None else [seen]
    name_of, kind = next(iter(system.makes().items()))
    what = "sound" if isinstance(kind, Sound) else "vector" if isinstance(kind, Embedding) else name_of
    source = next((words for each, words in _MADE_FROM.items() if each in asked), "made from noise")
    source = "made from a photo and a label" if restyled else source
    if isinstance(kind, Embedding):
        disclaimer = "Numbers that a program computed; those of a real person's voice or photo are biometric data."
    elif source == _MADE_FROM[Sound]:
        disclaimer = DISCLAIMER
    elif isinstance(kind, Sound):
        disclaimer = "Made by a program; not a recording of anything."
    else:
        by_chance = source == "made from noise"
        disclaimer = (
            f"{'Drawn by chance' if by_chance else 'Made by a program'}; not a photograph, and nobody's likeness."
        )
    return {
        "Title": f"A {what} {source}, not a {'recording' if isinstance(kind, Sound | Embedding) else 'photograph'}",
        "Disclaimer": disclaimer,
        "Software": f"v2f {__version__}",
        "Run": name,
        "Step": str(step if step is not None else "unknown"),
        "Stand-ins": ", ".join(system.stand_ins) or "none",
        "Creation Time": media.now(),
    }
