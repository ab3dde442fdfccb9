"""What a person gives, as a batch: recordings, photos, videos, labels and the seed of the noise.

    files and words --by the kinds that the system asks for--> batch of one

Shape letters: F frames, C channels, H side, T samples of the file, K labels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from v2f import latent
from v2f.data.audio import UnusableError, decode_voice
from v2f.data.sample import MAX_SECONDS
from v2f.data.transforms import square
from v2f.errors import V2FError
from v2f.roles import Labeling, Restyling
from v2f.storage import store
from v2f.system import Batch, Generative, Kind, Label, Noise, Picture, Sound, Video, device_of, of_kind, to_picture

SHORTEST_S = 0.25
MAX_PHOTO_SIDE = 4096
"""Pixels; larger photos are scaled down."""
_LEAST_SIDE = 8  # pixels; a smaller picture shows nothing


@dataclass(frozen=True, kw_only=True)
class Given:
    """The inputs that a person gives. A file is a path, or its content as bytes."""

    voice: str | bytes | None = None
    """A recording of a voice, or of any other sound that the system asks for."""
    photo: str | bytes | None = None
    """A photo that the system asks for, one to restyle (:class:`v2f.roles.Restyling`), or one that shows the label
    (:class:`v2f.roles.Labeling`)."""
    video: str | bytes | None = None
    """A video that the system asks for, that shows the label, or that a sound is made for."""
    label: str | None = None
    seed: int = 0
    """Seed of the noise."""


GIVEN_AS: dict[type[Kind], str] = {Sound: "voice", Picture: "photo", Video: "video", Label: "label", Noise: "seed"}
"""Kind of an input -> the field of :class:`Given` that it is taken from."""


def labeled(
    system: Generative, given: Given, max_seconds: float = MAX_SECONDS
) -> tuple[Given, dict[str, float] | None]:
    """``given`` with the label that the system finds in its photo or video (:class:`v2f.roles.Labeling`), and the share
    of each label.

    Without a photo or video, with a label besides the video, and for any other system: ``given`` itself, and None.
    V2FError for a photo besides a video or a label, and if the file cannot be used. ``max_seconds``: limit for a video.
    """
    seen = [what for what, file in (("photo", given.photo), ("video", given.video)) if file is not None]
    if not isinstance(system, Labeling) or not seen:
        return given, None
    if len(seen) == 2 or (given.label is not None and seen == ["photo"]):
        raise V2FError(f"a photo and a {'video' if len(seen) == 2 else 'label'} are given; give one of the two")
    if given.label is not None:
        return given, None
    if given.photo is not None:
        images = [read_photo(given.photo)]
    else:
        assert given.video is not None
        images = read_frames(given.video, system.frames, max_seconds)
    pixels_FCHH = torch.from_numpy(np.stack([_pixels(image, system.looks) for image in images]))
    number, share_K = system.label_of(to_picture(pixels_FCHH.to(device_of(system))))
    names = of_kind(system.asks(), Label)[0][1].names
    return replace(given, label=names[number]), dict(zip(names, share_K.tolist(), strict=True))


def batch_of(system: Generative, given: Given, max_seconds: float = MAX_SECONDS) -> Batch:
    """What :meth:`Generative.asks` asks for, as a batch of one on the system's device; V2FError if an input is missing
    or not asked for. ``max_seconds``: limit for a recording or a video."""
    asked = system.asks()
    takes = {GIVEN_AS.get(type(kind)) for kind in asked.values()} | ({"photo"} if latent.restyles(system) else set())
    takes |= {"photo", "video"} if isinstance(system, Labeling) else set()
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


def _input(kind: Kind, given: Given, system: Generative, max_seconds: float) -> NDArray[Any]:
    """One input without its batch axis."""
    what = GIVEN_AS.get(type(kind))
    value = asdict(given).get(what or "")
    if what is None:
        raise V2FError(f"this system asks for {inputs_in_words(system)}, which cannot be given by hand")
    if value is None:
        wanted = "one of them" if isinstance(system, Labeling) else f"the {what}"
        raise V2FError(f"this system asks for {inputs_in_words(system)}: give {wanted}")
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
    return np.stack([_pixels(frame, Picture(kind.size)) for frame in read_frames(value, kind.frames, max_seconds)])


def _pixels(image: Image.Image, kind: Picture) -> NDArray[np.uint8]:
    """uint8 [C, H, H] of an upright photo."""
    square_HWC = square(np.asarray(image.convert("RGB")), kind.size, kind.share)
    if kind.channels == 1:
        square_HWC = np.asarray(Image.fromarray(square_HWC).convert("L"))[..., None]
    return np.array(square_HWC.transpose(2, 0, 1))  # a copy: Pillow's own memory cannot be written


def inputs_in_words(system: Generative) -> str:
    """The inputs that a person must give to a system, in words."""
    words = []
    instead = "a photo, a video or " if isinstance(system, Labeling) else ""
    for kind in system.asks().values():
        if isinstance(kind, Label):
            words.append(f"{instead}a label ({', '.join(kind.names[:8])}{', ...' if len(kind.names) > 8 else ''})")
        elif isinstance(kind, Sound):
            words.append("a voice" if kind.voice else "a sound")
        elif not isinstance(kind, Noise):
            words.append(f"a {type(kind).__name__.lower()}" if not isinstance(kind, Picture) else "a photo")
    return (" and ".join(words) or "nothing") + (", and takes a photo to restyle" if latent.restyles(system) else "")


def read_file(file: str | bytes) -> bytes:
    """The bytes of a file that was given."""
    return file if isinstance(file, bytes) else store.read_bytes(file)


def file_name(file: str | bytes, what: str) -> str:
    """The name of a file in a message: its path, if it has one."""
    return f"the {what}" if isinstance(file, bytes) else file


def read_photo(file: str | bytes) -> Image.Image:
    """A photo, turned upright; V2FError if the file is not a photo."""
    from v2f.prepare import steps  # slow to import, and not needed for a voice

    try:
        return _large_enough(steps.read_photo(file, MAX_PHOTO_SIDE)[0], "photo")
    except UnusableError as error:
        raise V2FError(f"{file_name(file, 'photo')}: {error}; give a photo, such as a JPEG") from error


def read_frames(file: str | bytes, count: int, max_seconds: float = MAX_SECONDS) -> list[Image.Image]:
    """``count`` upright pictures, evenly spread over a video; V2FError if the file is not a video, or a longer one."""
    with opened_video(file, max_seconds) as (container, seconds):
        from v2f.prepare import video

        times = [seconds * (each + 0.5) / count for each in range(count)]
        return [_large_enough(image, "video") for image in video.pictures(container, times, late=seconds)]


@contextmanager
def opened_video(file: str | bytes, max_seconds: float = MAX_SECONDS) -> Iterator[tuple[Any, float]]:
    """The PyAV container of a video and the seconds that its pictures last; V2FError, also for what is raised in the
    block, if the file is not a video or is longer than ``max_seconds``."""
    from v2f.prepare import video

    try:
        with video.opened(file) as container:
            seconds = video.seconds_of(container)
            if seconds > max_seconds:
                raise UnusableError("video is too long", f"{seconds:.1f} s of at most {max_seconds:g} s")
            yield container, seconds
    except UnusableError as error:
        raise V2FError(f"{file_name(file, 'video')}: {error}; give a video, such as an MP4") from error


def _large_enough(image: Image.Image, what: str) -> Image.Image:
    if min(image.size) < _LEAST_SIDE:
        detail = f"{image.width} x {image.height} pixels, a side has at least {_LEAST_SIDE}"
        raise UnusableError(f"{what} is too small", detail)
    return image


def read_voice(file: str | bytes, sample_rate: int, max_seconds: float = MAX_SECONDS) -> NDArray[np.float32]:
    """The mono waveform [T] of a recording at ``sample_rate``; V2FError if it has no usable voice or is longer than
    ``max_seconds``."""
    content = read_file(file)
    try:
        return decode_voice(content, sample_rate=sample_rate, min_seconds=SHORTEST_S, max_seconds=max_seconds)
    except UnusableError as error:
        raise V2FError(
            f"{file_name(file, 'recording')}: {error}; give a recording of a voice, such as a WAV of two seconds"
        ) from error
