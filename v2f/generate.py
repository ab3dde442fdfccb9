"""What a trained system makes of what it is given: a face of a voice, a picture of a label, a sound of a video.

    files and words --by the kinds that the system asks for--> batch --sample--> the kind that it makes --> a file

The file says what it is (:mod:`v2f.data.media`): a face of a voice shows what a voice of this kind goes with in the
training data; it is no photograph and identifies nobody.

Shape letters: B batch, C channels, F frames, H side, T samples of the file, W windows, L styles, D style width.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from v2f import __version__
from v2f.data import media
from v2f.data.audio import UnusableError, decode_voice, likeness
from v2f.data.sample import MAX_SECONDS
from v2f.data.transforms import Waveform, square
from v2f.errors import V2FError
from v2f.keyed import keyed_rng
from v2f.runs.run import Run
from v2f.storage import store
from v2f.system import (
    Batch,
    Embedding,
    Kind,
    Label,
    Noise,
    Picture,
    Sound,
    Styled,
    System,
    Tokens,
    Video,
    device_of,
)

DISCLAIMER = "Estimated from a voice; not a photograph, and not a likeness that could identify anyone."

SHORTEST_S = 0.25
_QUIET_WINDOW = 0.03  # of the loudest window's RMS: a pause
_MOST_WINDOWS = 64
_BATCH = 16
_NOISE = 0x6E01  # what a key draws, so that no two draws share a stream
_LARGEST_SIDE = 4096  # of a photo that is given
_MADE_FROM: dict[type[Kind], str] = {
    Sound: "estimated from a voice",
    Label: "made from a label",
    Picture: "made from a photo",
    Video: "made from a video",
}


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a person gives to be made something of. Files: by their paths, or as the bytes that are in them."""

    voice: str | bytes | None = None
    """A recording: of a voice, or of whatever sound the system asks for."""
    photo: str | bytes | None = None
    video: str | bytes | None = None
    label: str | None = None
    seed: int = 0
    """Of what is drawn by chance."""


def generate(
    run: Run,
    voice: str | None,
    output: str,
    *,
    photo: str | None = None,
    video: str | None = None,
    label: str | None = None,
    seed: int = 0,
    size: int | None = None,
    system: System | None = None,
) -> str:
    """Write what ``run`` makes of what is given (see :class:`Given`) to ``output``; returns ``output``.

    The suffix says what is written: ``.png`` a picture, ``.wav`` a sound, ``.mp4`` the given video with the sound that
    was made for it, ``.json`` labels, tokens or an embedding. The whole file or nothing is written. ``size``: side of a
    face in pixels, up to the generator's own; None: that of the training. ``system``: the run's system, where it is
    loaded already.

    A voice is any file that libsndfile or FFmpeg reads; channels are averaged, other rates resampled. A clip shorter
    than what the system was trained on is repeated to its length. A longer one that a face is made of is cut into
    windows that overlap by half (at most 64, spread evenly; pauses are left out), and their codes w+ are averaged: a
    mean in W is again a clean face (Karras et al. 2020, "Analyzing and improving", section 5.2 on W), a mean of
    pictures is a ghost. A system without codes hears the middle window. Of a sound that is hardly speech a face is
    drawn, and it is said.

    V2FError in one line where what the system asks for is not given, or something else is, and for a file that is
    missing, empty, silent, too short, or of another kind.
    """
    system = run.system() if system is None else system
    given = Given(voice=voice, photo=photo, video=video, label=label, seed=seed)
    if is_face_of_voice(system):
        return _face(run, system, given, output, size)
    if size is not None:
        raise V2FError(f"this system makes things of one size only; leave out the {size} px")
    name, kind = _wanted(system, output)
    made, told = make(system, given)[name], told_of(run, system, given)
    store.write_bytes(output, _content(kind, made, told, given))
    print(f"{output}: {told['Title'][0].lower()}{told['Title'][1:]}")
    return output


def _face(run: Run, system: System, given: Given, output: str, size: int | None) -> str:
    """:func:`generate`, of a face of a voice."""
    if Path(output).suffix.lower() != ".png":
        raise V2FError(f"{output}: the face is written as PNG; name the output something.png")
    hears, wav_T, wav_WT = heard(run, system, given)
    picture = face_of(system, torch.from_numpy(wav_WT), size, given.seed)
    told = provenance(run, system) | {"Voice": f"{len(wav_T) / hears.sample_rate:.2f} s, {len(wav_WT)} window(s)"}
    doubt = likeness(wav_T, hears.sample_rate).doubt
    if doubt:
        told["Doubt"] = doubt
    store.write_bytes(output, media.png(picture, told))
    print(f"{output}: a face estimated from {len(wav_T) / hears.sample_rate:.1f} s of voice ({len(wav_WT)} window(s))")
    if doubt and given.voice is not None:
        print(f"{_called(given.voice, 'recording')}: {doubt}; the face means nothing")
    return output


def heard(run: Run, system: System, given: Given) -> tuple[Waveform, NDArray[np.float32], NDArray[np.float32]]:
    """Of a system that makes a face of a voice: how it hears, the given voice [T], and its windows [W, length]."""
    if given.voice is None or given.photo or given.video or given.label:
        raise V2FError("this system makes a face of a voice: give a recording of one, and nothing else")
    hears = ear(run, system)
    wav_T = read_voice(given.voice, hears.sample_rate)
    return hears, wav_T, windows(wav_T, hears.frames)


# ------------------------------------------------------------------------------------- any kind of system


GIVEN_AS: dict[type[Kind], str] = {Sound: "voice", Picture: "photo", Video: "video", Label: "label", Noise: "seed"}
"""Which field of :class:`Given` an input is taken from."""


@torch.no_grad()
def make(system: System, given: Given, max_seconds: float = MAX_SECONDS) -> dict[str, Tensor]:
    """What the system makes of what is given, by name, without the batch axis; V2FError where that cannot be used (see
    :func:`batch_of`), or what is made is not finite."""
    sampled = system.sample(batch_of(system, given, max_seconds))
    made = {name: sampled[name][0] for name in system.makes()}
    if not all(one.isfinite().all() for one in made.values()):
        raise V2FError("what the system made is not finite; its training has diverged, use an earlier checkpoint")
    return made


def told_of(run: Run, system: System, given: Given, *, step: int | None = None) -> dict[str, str]:
    """:func:`provenance`, with the label and the seed that it was made of, where the system asks for them."""
    asked = {GIVEN_AS.get(type(kind)) for kind in system.asks().values()}
    words = {each: str(value) for each, value in (("label", given.label), ("seed", given.seed)) if each in asked}
    return provenance(run, system, step=step) | {each.title(): value for each, value in words.items()}


def batch_of(system: System, given: Given, max_seconds: float = MAX_SECONDS) -> Batch:
    """What :meth:`System.asks` asks for, as a batch of one on the system's device; V2FError where something is missing,
    or given and not asked for. ``max_seconds``: of a recording."""
    asked = system.asks()
    takes = {GIVEN_AS.get(type(kind)) for kind in asked.values()}
    there = [each for each, value in asdict(given).items() if each != "seed" and value is not None]
    spare = [each for each in there if each not in takes]
    if spare:
        verb = {"voice": "hear", "label": "know"}.get(spare[0], "see")
        raise V2FError(f"this system does not {verb} a {spare[0]}; it asks for {asked_in_words(system)}")
    if given.seed < 0:
        raise V2FError(f"{given.seed}: a seed is a whole number from 0 on")
    rng = keyed_rng(_NOISE, given.seed)
    batch = {
        name: torch.from_numpy(_input(kind, given, rng, system, max_seconds))[None] for name, kind in asked.items()
    }
    return {name: value.to(device_of(system)) for name, value in batch.items()}


def _input(kind: Kind, given: Given, rng: np.random.Generator, system: System, max_seconds: float) -> NDArray[Any]:
    """One input without its batch axis."""
    if isinstance(kind, Noise):
        return rng.standard_normal(kind.width, dtype=np.float32)
    what = GIVEN_AS.get(type(kind))
    value = asdict(given).get(what or "")
    if what is None:
        raise V2FError(f"this system asks for {asked_in_words(system)}, which cannot be given by hand")
    if value is None:
        raise V2FError(f"this system asks for {asked_in_words(system)}: give the {what}")
    if isinstance(kind, Sound):
        wav_T = read_voice(value, kind.rate, max_seconds)
        start = max(0, (len(wav_T) - kind.frames) // 2)
        return np.resize(wav_T[start : start + kind.frames], kind.frames)
    if isinstance(kind, Label):
        if value not in kind.names:
            raise V2FError(f"there is no label {value!r}; there are {', '.join(kind.names)}")
        return np.array(kind.names.index(value), dtype=np.int64)
    if isinstance(kind, Picture):
        return _pixels(read_photo(value), kind)
    assert isinstance(kind, Video)
    return np.stack([_pixels(frame, Picture(kind.size)) for frame in read_frames(value, kind.frames)])


def _pixels(image: Image.Image, kind: Picture) -> NDArray[np.uint8]:
    """uint8 [C, H, H] of an upright photo."""
    square_HWC = square(np.asarray(image.convert("RGB")), kind.size, kind.share)
    if kind.channels == 1:
        square_HWC = np.asarray(Image.fromarray(square_HWC).convert("L"))[..., None]
    return np.ascontiguousarray(square_HWC.transpose(2, 0, 1))


def asked_in_words(system: System) -> str:
    """What a system asks people for, in words."""
    words = []
    for kind in system.asks().values():
        if isinstance(kind, Label):
            words.append(f"a label ({', '.join(kind.names[:8])}{', ...' if len(kind.names) > 8 else ''})")
        elif isinstance(kind, Sound):
            words.append("a voice" if kind.voice else "a sound")
        elif not isinstance(kind, Noise):
            words.append(f"a {type(kind).__name__.lower()}" if not isinstance(kind, Picture) else "a photo")
    return " and ".join(words) or "nothing"


_SUFFIXES: dict[type[Kind], tuple[str, ...]] = {
    Picture: (".png",),
    Sound: (".wav", ".mp4"),
    Label: (".json",),
    Tokens: (".json",),
    Embedding: (".json",),
}


def _wanted(system: System, output: str) -> tuple[str, Kind]:
    """Which of what the system makes goes into a file of that suffix."""
    for name, kind in system.makes().items():
        if Path(output).suffix.lower() in _SUFFIXES.get(type(kind), ()):
            return name, kind
    fitting = [suffix for kind in system.makes().values() for suffix in _SUFFIXES.get(type(kind), ())]
    if not fitting:
        raise V2FError("this system makes nothing that can be written to a file")
    raise V2FError(f"{output}: this system makes {', '.join(system.makes())}; name the output something{fitting[0]}")


def _content(kind: Kind, made: Tensor, told: Mapping[str, str], given: Given) -> bytes:
    """The file of one thing that was made."""
    if isinstance(kind, Picture):
        return media.png(made, told)
    if isinstance(kind, Sound):
        sound_T = made.flatten().float().cpu().numpy()
        if given.video is None:
            return media.wav(sound_T, kind.rate, told)
        try:
            return media.mp4(_read(given.video), sound_T, kind.rate, told)
        except UnusableError as error:
            raise V2FError(f"{_called(given.video, 'video')}: {error}; write a .wav") from error
    found: dict[str, Any] = {"about": dict(told)}
    if isinstance(kind, Label):
        found |= {"label": kind.names[int(made.argmax())], "shares": shares(kind, made)}
    else:
        found["values"] = made.tolist()
    return json.dumps(found, ensure_ascii=False, indent=1).encode() + b"\n"


def shares(kind: Label, score_K: Tensor) -> dict[str, float]:
    """The share of each label, by the softmax of its scores."""
    return dict(zip(kind.names, score_K.float().softmax(0).tolist(), strict=True))


def _read(file: str | bytes) -> bytes:
    return file if isinstance(file, bytes) else store.read_bytes(file)


def _called(file: str | bytes, what: str) -> str:
    """What a message calls a file: its path, where it has one."""
    return f"the {what}" if isinstance(file, bytes) else file


def read_photo(file: str | bytes) -> Image.Image:
    """An upright photo; V2FError in one line if the file is none."""
    from v2f.prepare import steps  # slow to import, and a voice needs none of it

    try:
        return steps.read_photo(file, _LARGEST_SIDE)[0]
    except UnusableError as error:
        raise V2FError(f"{_called(file, 'photo')}: {error}; give a photo, such as a JPEG") from error


def read_frames(file: str | bytes, count: int) -> list[Image.Image]:
    """``count`` pictures spread evenly over a video; V2FError in one line if the file is none."""
    from v2f.prepare import video

    try:
        with video.opened(file) as container:
            seconds = float(container.duration or 0) / 1e6
            return video.pictures(container, [seconds * (each + 0.5) / count for each in range(count)])
    except UnusableError as error:
        raise V2FError(f"{_called(file, 'video')}: {error}; give a video, such as an MP4") from error


# --------------------------------------------------------------------------------------- a face of a voice


def ear(run: Run, system: System) -> Waveform:
    """How long a clip the system of ``run`` hears, at which rate; V2FError if it makes no face from a voice."""
    if not is_face_of_voice(system):
        raise V2FError(f"{run.path}: its system does not hear a voice, so there is nothing to make a face from")
    (heard,) = (kind for kind in system.asks().values() if isinstance(kind, Sound))
    return Waveform(heard.seconds, heard.rate)


def is_face_of_voice(system: System) -> bool:
    """Whether a voice is asked for, alone or with noise, and a picture is made of it."""
    asked = [kind for kind in system.asks().values() if not isinstance(kind, Noise)]
    makes = system.makes().values()
    heard = len(asked) == 1 and isinstance(asked[0], Sound) and asked[0].voice
    return heard and isinstance(next(iter(makes), None), Picture)


def read_voice(file: str | bytes, sample_rate: int, max_seconds: float = MAX_SECONDS) -> NDArray[np.float32]:
    """The mono waveform [T] of a recording at ``sample_rate``; V2FError in one line if it holds no usable voice, or is
    longer than ``max_seconds``."""
    content = _read(file)
    try:
        return decode_voice(content, sample_rate=sample_rate, min_seconds=SHORTEST_S, max_seconds=max_seconds)
    except UnusableError as error:
        raise V2FError(
            f"{_called(file, 'recording')}: {error}; give a recording of a voice, such as a WAV of two seconds"
        ) from error


def windows(wav_T: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Windows [W, length] of a waveform: repeated where it is shorter, else overlapping by half and without pauses."""
    if len(wav_T) <= length:
        return np.resize(wav_T, length)[None]  # np.resize repeats
    count = min(_MOST_WINDOWS, -(-2 * (len(wav_T) - length) // length) + 1)
    starts = np.linspace(0, len(wav_T) - length, count).round().astype(int)
    wav_WT = np.stack([wav_T[start : start + length] for start in starts])
    loudness_W = np.sqrt((wav_WT**2).mean(1))
    return wav_WT[loudness_W >= _QUIET_WINDOW * loudness_W.max()]


@torch.no_grad()
def face_of(system: System, wav_WT: Tensor, size: int | None = None, seed: int = 0) -> Tensor:
    """One picture [3, H, W] in [-1, 1] of all windows of a voice; V2FError if it is not finite.

    ``size``: another side than that of the training, where the system has a generator that can draw it; ``seed``: of
    the noise, where it asks for some.
    """
    w_WLD = codes_of(system, wav_WT)
    if w_WLD is not None:
        return draw(system, w_WLD.mean(0, keepdim=True), size)[0]
    if size is not None:
        raise V2FError(f"this system draws pictures of one size only; leave out the {size} px")
    middle = len(wav_WT) // 2
    made = system.sample(with_noise(system, wav_WT[middle : middle + 1], seed))
    return _finite(next(iter(made.values())))[0]


def with_noise(system: System, wav_BT: Tensor, seed: int = 0) -> Batch:
    """What a system that makes a face of a voice asks for, on its device: voices, with the same noise for all."""
    rng, batch = keyed_rng(_NOISE, seed), dict[str, Any]()
    for name, kind in system.asks().items():
        if isinstance(kind, Noise):
            noise_Z = torch.from_numpy(rng.standard_normal(kind.width, dtype=np.float32))
            batch[name] = noise_Z.expand(len(wav_BT), -1)
        else:
            batch[name] = wav_BT
    return {name: value.to(device_of(system)) for name, value in batch.items()}


@torch.no_grad()
def codes_of(system: System, wav_WT: Tensor) -> Tensor | None:
    """w+ [W, L, D] of windows of a voice; None: the system is not built around a generator of styles."""
    if not isinstance(system, Styled):
        return None
    return torch.cat([system.styles(part) for part in wav_WT.to(device_of(system)).split(_BATCH)])


def faces_of(system: System, wav_N: Sequence[NDArray[np.float32]], frames: int) -> tuple[Tensor | None, Tensor]:
    """What the system makes of each of some waveforms, cut into windows of ``frames`` samples: w+ [N, L, D], None where
    it has no codes, and pictures [N, 3, H, W] in [-1, 1], each as :func:`face_of` makes it."""
    wav_NWT = [torch.from_numpy(windows(wav_T, frames)) for wav_T in wav_N]
    w_WLD = codes_of(system, torch.cat(wav_NWT))
    if w_WLD is None:
        return None, torch.stack([face_of(system, wav_WT) for wav_WT in wav_NWT])
    w_NLD = torch.stack([part.mean(0) for part in w_WLD.split([len(wav_WT) for wav_WT in wav_NWT])])
    return w_NLD, draw(system, w_NLD)


@torch.no_grad()
def draw(system: System, w_NLD: Tensor, size: int | None = None) -> Tensor:
    """Pictures [N, 3, H, W] in [-1, 1] of codes w+ that :func:`codes_of` gave; V2FError if one is not finite."""
    assert isinstance(system, Styled), "codes are those of a system that has styles"
    return _finite(torch.cat([system.face(part, size) for part in w_NLD.split(_BATCH)]))


def _finite(picture_NCHW: Tensor) -> Tensor:
    if not picture_NCHW.isfinite().all():
        raise V2FError(
            "the system made a picture that is not finite; its training has diverged, use an earlier checkpoint"
        )
    return picture_NCHW.clamp(-1, 1)


def provenance(run: Run, system: System, *, step: int | None = None) -> dict[str, str]:
    """What a face that ``run`` makes now should carry with it; see :func:`notes`.

    ``step``: that of the checkpoint that was loaded; None: the newest.
    """
    return notes(run.config.name, system, run.step if step is None else step)


def notes(name: str, system: System, step: int | None) -> dict[str, str]:
    """What a picture that the run ``name`` makes now should carry with it: what it is, what made it, and when."""
    asked = [type(kind) for kind in system.asks().values()]
    name_of, kind = next(iter(system.makes().items()))
    what = "sound" if isinstance(kind, Sound) else name_of
    source = next((words for each, words in _MADE_FROM.items() if each in asked), "made from noise")
    if source == _MADE_FROM[Sound]:
        disclaimer = DISCLAIMER
    elif isinstance(kind, Sound):
        disclaimer = "Made by a program; not a recording of anything."
    else:
        by_chance = source == "made from noise"
        disclaimer = (
            f"{'Drawn by chance' if by_chance else 'Made by a program'}; not a photograph, and nobody's likeness."
        )
    return {
        "Title": f"A {what} {source}, not a {'recording' if isinstance(kind, Sound) else 'photograph'}",
        "Disclaimer": disclaimer,
        "Software": f"v2f {__version__}",
        "Run": name,
        "Step": str(step if step is not None else "unknown"),
        "Stand-ins": ", ".join(system.stand_ins) or "none",
        "Creation Time": media.now(),
    }
