"""Reading parts of local or remote videos: the sound between two times, and pictures at given times.

    video --seek, decode--> wav_T [T]
                      \\---> RGB pictures

A remote video is read in ranges, so that a segment of three seconds does not require the whole file.

Shape letters: T samples.
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image

from v2f.data.audio import UnusableError, decoding
from v2f.data.media import TargetError
from v2f.data.sample import MAX_PIXELS
from v2f.errors import V2FError
from v2f.storage import local as files
from v2f.storage import store

_READ = 1 << 20  # bytes per request to a store
_LATE_S = 0.5  # a video's last picture is used for times up to this much later
_TURNS = {  # by the degrees counterclockwise that a phone's video asks for
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    -180: Image.Transpose.ROTATE_180,
    -90: Image.Transpose.ROTATE_270,
}


@contextmanager
def opened(path: str | bytes) -> Iterator[Any]:
    """Open the PyAV container of a video, given as path or bytes; any error of reading it, in the block as well, is an
    :class:`UnusableError`."""
    if isinstance(path, bytes):  # an upload may not refer to any file
        with _decoded(io.BytesIO(path), "none") as container:
            yield container
        return
    local = store.local_path(path)
    try:
        # FFmpeg would treat names as URLs and follow playlists to other files; neither is allowed
        if local is not None:
            with store.explained(path, "read"):
                files.check_file(local)  # FFmpeg would block on a FIFO
        file: Any = f"file:{os.path.abspath(local)}" if local is not None else io.BufferedReader(_Remote(path), _READ)
        with _decoded(file, "file") as container:
            yield container
    except TargetError:
        raise
    except V2FError as error:
        raise UnusableError("video cannot be read", str(error)) from error


@contextmanager
def _decoded(file: Any, protocols: str) -> Iterator[Any]:
    """``protocols``: those that FFmpeg may use for files that the video refers to."""
    import av

    with (
        decoding("video cannot be decoded", "FFmpeg cannot read it"),
        av.open(file, "r", options={"protocol_whitelist": protocols}, metadata_errors="ignore") as container,
    ):
        for stream in container.streams.video:
            stream.codec_context.thread_count = 1  # packing processes use all cores already
        yield container


def pictures(container: Any, seconds: Sequence[float], late: float = _LATE_S) -> list[Image.Image]:
    """The RGB pictures of a video at the times ``seconds``, turned upright as players show them; ``late``: for how many
    seconds the last picture is shown."""
    stream = _stream(container)
    _check_size(stream.codec_context)
    return [_picture(container, stream, second, late) for second in seconds]


def seconds_of(container: Any) -> float:
    """How long the pictures of a video last; above 0."""
    import av

    stream = _stream(container)
    if stream.duration:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration:
        seconds = container.duration / av.time_base
    else:  # a stream without a header that says it
        times = [(packet.pts, packet.duration or 0) for packet in container.demux(stream) if packet.pts is not None]
        ticks = max(at + lasts for at, lasts in times) - min(at for at, _ in times) if times else 0
        seconds = float(ticks * stream.time_base)
        container.seek(0)  # to the beginning again
    if not seconds > 0:
        raise UnusableError("video cannot be decoded", "it has no pictures")
    return seconds


def _stream(container: Any) -> Any:
    if not container.streams.video:
        raise UnusableError("video cannot be decoded", "the file has no pictures")
    return container.streams.video[0]


def _check_size(shown: Any) -> None:
    if shown.width * shown.height > MAX_PIXELS:
        raise UnusableError("video is too large", f"{shown.width} x {shown.height} pixels")


def _picture(container: Any, stream: Any, second: float, late: float) -> Image.Image:
    """The last picture that starts at or before ``second``."""
    import av

    origin = (container.start_time or 0) / av.time_base
    until = origin + second + 1e-3  # containers round times to milliseconds
    shown, last = _sought(container, stream, int((origin + second) * av.time_base), until)
    if shown is None:  # in some formats, such as MPEG-TS, FFmpeg guesses where to go on, and may skip a key frame
        shown, last = _sought(container, stream, 0, until)
    if shown is None or (last and (shown.time or 0.0) - origin + late < second):
        raise UnusableError("the video ends before the segment does", f"there is no picture at {second:.2f} s")
    _check_size(shown)  # the size may change within a stream
    image: Image.Image = shown.to_image()
    turn = _TURNS.get(shown.rotation)
    return image if turn is None else image.transpose(turn)


def _sought(container: Any, stream: Any, start: int, until: float) -> tuple[Any, bool]:
    """The last frame that starts by second ``until``, decoded from the key frame before ``start`` (microseconds), and
    whether it is the last one of the video; None if there is none."""
    container.seek(start)
    shown = None
    for frame in container.decode(stream):
        if shown is not None and (frame.time or 0.0) > until:
            return shown, False
        shown = frame
    return shown, True


class _Remote(io.RawIOBase):
    """A remote file as a seekable stream for FFmpeg."""

    def __init__(self, path: str):
        self._path, self._size, self._at = path, store.size(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._at))
        if length:
            buffer[:length] = store.read_range(self._path, self._at, length)
            self._at += length
        return length
