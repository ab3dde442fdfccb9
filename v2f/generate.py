"""What a trained system makes from its inputs: a face from a voice, a picture from a label, a sound from a video.

    files and words --by the kinds that the system asks for--> batch --sample--> the kind that it makes --> a file

The file says what it is (:mod:`v2f.data.media`): a face from a voice shows what goes with such a voice in the training
data; it is not a photograph and identifies nobody.

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

from v2f import __version__, latent
from v2f.data import media
from v2f.data.audio import UnusableError, decode_voice, likeness
from v2f.data.sample import MAX_SECONDS
from v2f.data.transforms import Waveform, square
from v2f.errors import V2FError
from v2f.roles import Restyling
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
    of_kind,
    to_picture,
)

DISCLAIMER = "Estimated from a voice; not a photograph, and not a likeness that could identify anyone."

SHORTEST_S = 0.25
_QUIET_WINDOW = 0.03  # relative to the RMS of the loudest window; anything below is a pause
_MOST_WINDOWS = 64
_BATCH = 16
MAX_PHOTO_SIDE = 4096
"""Pixels; larger photos are refused."""
_MADE_FROM: dict[type[Kind], str] = {
    Sound: "estimated from a voice",
    Label: "made from a label",
    Picture: "made from a photo",
    Video: "made from a video",
}


@dataclass(frozen=True, kw_only=True)
class Given:
    """The inputs that a person gives. A file is a path, or its content as bytes."""

    voice: str | bytes | None = None
    """A recording of a voice, or of any other sound that the system asks for."""
    photo: str | bytes | None = None
    """A photo that the system asks for, or one to restyle (:class:`v2f.roles.Restyling`)."""
    video: str | bytes | None = None
    label: str | None = None
    seed: int = 0
    """Seed of the noise."""


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
    walk: int | None = None,
    system: System | None = None,
) -> str:
    """Write what ``run`` makes from the inputs (see :class:`Given`) to ``output``; returns ``output``.

    The suffix decides what is written: ``.png`` a picture, ``.wav`` a sound, ``.mp4`` the given video with the
    generated sound, ``.json`` labels, tokens or an embedding. The file is written completely or not at all. ``size``:
    side of a face in pixels, up to that of the generator; None: that of the training. ``walk``: a row of so many
    pictures, from the code of the seed, or of the photo, to that of the next seed. ``system``: the run's system, if it
    is already loaded.

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
    name, kind = _output_for(system, output)
    made, about = make(system, given)[name], provenance(run, system, given)
    store.write_bytes(output, _content(kind, made, about, given))
    print(f"{output}: {about['Title'][0].lower()}{about['Title'][1:]}")
    return output


def _face(run: Run, system: System, given: Given, output: str, size: int | None) -> str:
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
        print(f"{_file_name(given.voice, 'recording')}: {doubt}; the face means nothing")
    return output


def given_voice(run: Run, system: System, given: Given) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The voice [T] that was given to a system that makes a face from one, and its windows [W, length]."""
    if given.voice is None or given.photo or given.video or given.label:
        raise V2FError("this system makes a face from a voice: give a recording of one, and nothing else")
    hears = voice_input(run, system)
    wav_T = read_voice(given.voice, hears.sample_rate)
    return wav_T, windows(wav_T, hears.frames)


# ------------------------------------------------------------------------------------- any kind of system


GIVEN_AS: dict[type[Kind], str] = {Sound: "voice", Picture: "photo", Video: "video", Label: "label", Noise: "seed"}
"""Kind of an input -> the field of :class:`Given` that it is taken from."""


@torch.no_grad()
def make(system: System, given: Given, max_seconds: float = MAX_SECONDS) -> dict[str, Tensor]:
    """The system's outputs by name, without the batch axis; V2FError if the inputs cannot be used (see
    :func:`batch_of`) or an output is not finite."""
    sampled = system.sample(batch_of(system, given, max_seconds))
    made = {name: sampled[name][0] for name in system.makes()}
    if not all(one.isfinite().all() for one in made.values()):
        raise V2FError("the system's output is not finite: its training diverged; use an earlier checkpoint")
    return made


def batch_of(system: System, given: Given, max_seconds: float = MAX_SECONDS) -> Batch:
    """What :meth:`System.asks` asks for, as a batch of one on the system's device; V2FError if an input is missing or
    not asked for. ``max_seconds``: limit for a recording."""
    asked = system.asks()
    takes = {GIVEN_AS.get(type(kind)) for kind in asked.values()} | ({"photo"} if latent.restyles(system) else set())
    fields = [field for field, value in asdict(given).items() if field != "seed" and value is not None]
    unused = [field for field in fields if field not in takes]
    if unused:
        verb = {"voice": "hear", "label": "know"}.get(unused[0], "see")
        raise V2FError(f"this system does not {verb} a {unused[0]}; it asks for {inputs_in_words(system)}")
    if given.seed < 0:
        raise V2FError(f"{given.seed}: a seed must be a whole number, 0 or larger")
    batch = latent.noise_of(system, given.seed)
    for name, kind in asked.items():
        if name not in batch:
            batch[name] = torch.from_numpy(_input(kind, given, system, max_seconds))
    placed = {name: batch[name][None].to(device_of(system)) for name in asked}
    if given.photo is not None and isinstance(system, Restyling) and system.restyles:
        kind = of_kind(system.makes(), Picture)[0][1]
        img_1CHH = to_picture(torch.from_numpy(_pixels(read_photo(given.photo), kind))[None].to(device_of(system)))
        placed[of_kind(asked, Noise)[0][0]] = latent.code_of(system, img_1CHH)
    return placed


def _input(kind: Kind, given: Given, system: System, max_seconds: float) -> NDArray[Any]:
    """One input without its batch axis."""
    what = GIVEN_AS.get(type(kind))
    value = asdict(given).get(what or "")
    if what is None:
        raise V2FError(f"this system asks for {inputs_in_words(system)}, which cannot be given by hand")
    if value is None:
        raise V2FError(f"this system asks for {inputs_in_words(system)}: give the {what}")
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
    return np.array(square_HWC.transpose(2, 0, 1))  # a copy: Pillow's own memory cannot be written


def inputs_in_words(system: System) -> str:
    """The inputs that a person must give to a system, in words."""
    words = []
    for kind in system.asks().values():
        if isinstance(kind, Label):
            words.append(f"a label ({', '.join(kind.names[:8])}{', ...' if len(kind.names) > 8 else ''})")
        elif isinstance(kind, Sound):
            words.append("a voice" if kind.voice else "a sound")
        elif not isinstance(kind, Noise):
            words.append(f"a {type(kind).__name__.lower()}" if not isinstance(kind, Picture) else "a photo")
    return (" and ".join(words) or "nothing") + (", and takes a photo to restyle" if latent.restyles(system) else "")


_SUFFIXES: dict[type[Kind], tuple[str, ...]] = {
    Picture: (".png",),
    Sound: (".wav", ".mp4"),
    Label: (".json",),
    Tokens: (".json",),
    Embedding: (".json",),
}


def _output_for(system: System, output: str) -> tuple[str, Kind]:
    """The name and kind of the output that a file with this suffix can hold."""
    for name, kind in system.makes().items():
        if Path(output).suffix.lower() in _SUFFIXES.get(type(kind), ()):
            return name, kind
    fitting = [suffix for kind in system.makes().values() for suffix in _SUFFIXES.get(type(kind), ())]
    if not fitting:
        raise V2FError("this system has no output that can be written to a file")
    raise V2FError(f"{output}: this system makes {', '.join(system.makes())}; name the output something{fitting[0]}")


def _content(kind: Kind, made: Tensor, about: Mapping[str, str], given: Given) -> bytes:
    """The content of the file for one output."""
    if isinstance(kind, Picture):
        return media.png(made, about)
    if isinstance(kind, Sound):
        sound_T = made.flatten().float().cpu().numpy()
        if given.video is None:
            return media.wav(sound_T, kind.rate, about)
        try:
            return media.mp4(_read(given.video), sound_T, kind.rate, about)
        except UnusableError as error:
            raise V2FError(f"{_file_name(given.video, 'video')}: {error}; write a .wav instead") from error
    found: dict[str, Any] = {"about": dict(about)}
    if isinstance(kind, Label):
        found |= {"label": kind.names[int(made.argmax())], "shares": shares(kind, made)}
    else:
        found["values"] = made.tolist()
    return json.dumps(found, ensure_ascii=False, indent=1).encode() + b"\n"


def shares(kind: Label, score_K: Tensor) -> dict[str, float]:
    """Each label's share: the softmax of the scores [K]."""
    return dict(zip(kind.names, score_K.float().softmax(0).tolist(), strict=True))


def _read(file: str | bytes) -> bytes:
    return file if isinstance(file, bytes) else store.read_bytes(file)


def _file_name(file: str | bytes, what: str) -> str:
    """The name of a file in a message: its path, if it has one."""
    return f"the {what}" if isinstance(file, bytes) else file


def read_photo(file: str | bytes) -> Image.Image:
    """A photo, turned upright; V2FError if the file is not a photo."""
    from v2f.prepare import steps  # slow to import, and not needed for a voice

    try:
        return steps.read_photo(file, MAX_PHOTO_SIDE)[0]
    except UnusableError as error:
        raise V2FError(f"{_file_name(file, 'photo')}: {error}; give a photo, such as a JPEG") from error


def read_frames(file: str | bytes, count: int) -> list[Image.Image]:
    """``count`` pictures, evenly spread over a video; V2FError if the file is not a video."""
    from v2f.prepare import video

    try:
        with video.opened(file) as container:
            seconds = float(container.duration or 0) / 1e6
            return video.pictures(container, [seconds * (each + 0.5) / count for each in range(count)])
    except UnusableError as error:
        raise V2FError(f"{_file_name(file, 'video')}: {error}; give a video, such as an MP4") from error


# ------------------------------------------------------------------------------------- a face from a voice


def voice_input(run: Run, system: System) -> Waveform:
    """The length and sample rate of the clips that the system hears; V2FError if it makes no face from a voice."""
    if not is_face_of_voice(system):
        raise V2FError(f"{run.path}: its system does not hear a voice, so there is nothing to make a face from")
    (heard,) = (kind for kind in system.asks().values() if isinstance(kind, Sound))
    return Waveform(heard.seconds, heard.rate)


def is_face_of_voice(system: System) -> bool:
    """Whether the system asks for a voice, alone or with noise, and makes a picture from it."""
    asked = [kind for kind in system.asks().values() if not isinstance(kind, Noise)]
    makes = system.makes().values()
    heard = len(asked) == 1 and isinstance(asked[0], Sound) and asked[0].voice
    return heard and isinstance(next(iter(makes), None), Picture)


def read_voice(file: str | bytes, sample_rate: int, max_seconds: float = MAX_SECONDS) -> NDArray[np.float32]:
    """The mono waveform [T] of a recording at ``sample_rate``; V2FError if it has no usable voice or is longer than
    ``max_seconds``."""
    content = _read(file)
    try:
        return decode_voice(content, sample_rate=sample_rate, min_seconds=SHORTEST_S, max_seconds=max_seconds)
    except UnusableError as error:
        raise V2FError(
            f"{_file_name(file, 'recording')}: {error}; give a recording of a voice, such as a WAV of two seconds"
        ) from error


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
def face_of(system: System, wav_WT: Tensor, size: int | None = None, seed: int = 0) -> Tensor:
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
def codes_of(system: System, wav_WT: Tensor, seed: int = 0) -> Tensor | None:
    """w+ [W, L, D] of windows of a voice, all with the noise of ``seed``; None if the system has no style generator."""
    if not isinstance(system, Styled):
        return None
    return torch.cat([system.styles(latent.with_noise(system, part, seed)) for part in wav_WT.split(_BATCH)])


def faces_of(system: System, wav_N: Sequence[NDArray[np.float32]], frames: int) -> tuple[Tensor | None, Tensor]:
    """What the system makes from waveforms, cut into windows of ``frames`` samples: w+ [N, L, D] (None if it has no
    codes) and pictures [N, 3, H, W] in [-1, 1], each the one of :func:`face_of`."""
    wav_NWT = [torch.from_numpy(windows(wav_T, frames)) for wav_T in wav_N]
    w_WLD = codes_of(system, torch.cat(wav_NWT))
    if w_WLD is None:
        return None, torch.stack([face_of(system, wav_WT) for wav_WT in wav_NWT])
    w_NLD = torch.stack([part.mean(0) for part in w_WLD.split([len(wav_WT) for wav_WT in wav_NWT])])
    return w_NLD, draw(system, w_NLD)


@torch.no_grad()
def draw(system: System, w_NLD: Tensor, size: int | None = None) -> Tensor:
    """Pictures [N, 3, H, W] in [-1, 1] of codes w+ from :func:`codes_of`; V2FError if one is not finite."""
    assert isinstance(system, Styled), "only a system with a style generator has codes"
    return _finite(torch.cat([system.face(part, size) for part in w_NLD.split(_BATCH)]))


def _finite(picture_NCHW: Tensor) -> Tensor:
    if not picture_NCHW.isfinite().all():
        raise V2FError("the system's picture is not finite: its training diverged; use an earlier checkpoint")
    return picture_NCHW.clamp(-1, 1)


def provenance(run: Run, system: System, given: Given | None = None, *, step: int | None = None) -> dict[str, str]:
    """The metadata of an output of ``run``: :func:`notes`, and the label and seed of ``given`` if the system uses them.

    ``step``: that of the loaded checkpoint; None: the newest one.
    """
    restyled = given is not None and given.photo is not None and latent.restyles(system)
    words = notes(run.config.name, system, run.step if step is None else step, restyled)
    asked = {GIVEN_AS.get(type(kind)) for kind in system.asks().values()}
    inputs = {} if given is None else {"label": given.label, "seed": given.seed}
    return words | {name.title(): str(value) for name, value in inputs.items() if name in asked}


def notes(name: str, system: System, step: int | None, restyled: bool = False) -> dict[str, str]:
    """The metadata of a picture or sound that the run ``name`` makes now: what it is, what made it, and when;
    ``restyled``: a photo was given besides the label."""
    asked = [type(kind) for kind in system.asks().values()]
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
