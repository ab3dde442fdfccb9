"""Recordings, photos and videos of synthetic people, written as real m4a, mp4, webm, mkv and jpg files."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from PIL import Image

from v2f.data.manifest import Dataset
from v2f.data.sample import Sample
from v2f.world.people import World
from v2f.world.portraits import render_portraits
from v2f.world.voices import render_voices

CODECS = {"mp4": ("h264", "aac"), "mkv": ("h264", "aac"), "webm": ("libvpx", "libopus")}


@cache
def voice(person: int, seconds: float = 1.0) -> np.ndarray:
    """What a person says, 16 kHz."""
    world, ids = World(), np.array([person])
    return render_voices(world.voice(ids), world.clip(ids, ids * 0), ids, seconds, 16000)[0]


@cache
def portrait(person: int, number: int = 0, size: int = 128) -> Image.Image:
    """A photo in which MTCNN finds the face."""
    world, ids = World(), np.array([person])
    return Image.fromarray(render_portraits(world.face(ids), world.photo(ids, ids * 0 + number), size)[0])


def save_jpg(path: Path, picture: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=95)


def write_m4a(path: Path, wav: np.ndarray, rate: int = 16000, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        _add_sound(container, "aac", wav, rate, "mono" if channels == 1 else "stereo")()


def write_video(
    path: Path, wav: np.ndarray | None, pictures: Sequence[Image.Image], fps: int = 25, rate: int = 48000
) -> None:
    """``pictures`` one after the other, a key frame every second; ``wav`` of ``rate`` samples a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture_codec, sound_codec = CODECS[path.suffix[1:]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(picture_codec, rate=fps)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt, stream.gop_size, stream.bit_rate = "yuv420p", fps, 4_000_000
        stream.time_base = Fraction(1, fps)
        write_sound = _add_sound(container, sound_codec, wav, rate, "mono") if wav is not None else lambda: None
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_image(picture)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        write_sound()


def _add_sound(
    container: av.container.OutputContainer, codec: str, wav: np.ndarray, rate: int, layout: str
) -> Callable[[], None]:
    stream = container.add_stream(codec, rate=rate, layout=layout)

    def write() -> None:
        channels = 1 if layout == "mono" else 2
        frame = av.AudioFrame.from_ndarray(np.tile(wav.astype(np.float32), (channels, 1)), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate, stream.codec_context.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))

    return write


def samples(dataset: Dataset) -> dict[str, Sample]:
    """By key."""
    found = {}
    for i, key in enumerate(dataset.index.key.tolist()):
        raw = Path(dataset.shard_path(i)).read_bytes()[dataset.index.offset[i] :][: dataset.index.length[i]]
        found[key.decode()] = Sample.from_tar(key.decode(), raw)
    return found
