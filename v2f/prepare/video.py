"""Cuts out of videos that lie locally or in a store: the sound between two seconds, the pictures at some of them.

    video --seek, decode--> wav_T [T]
                      \\---> RGB pictures

A remote video is read in ranges, so that a segment of three seconds does not cost the whole file.

Shape letters: T samples.
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image

from v2f.data.audio import UnusableError, decoding
from v2f.data.sample import MAX_PIXELS
from v2f.errors import V2FError
from v2f.storage import local as files
from v2f.storage import store

_READ = 1 << 20  # bytes that are asked of a store at once
_LATE_S = 0.5  # a video's last picture stands for seconds that are so little beyond it


@contextmanager
def opened(path: str | bytes) -> Iterator[Any]:
    """The PyAV container of a video, by its path or its bytes; whatever FFmpeg cannot read of it is an
    :class:`UnusableError`."""
    if isinstance(path, bytes):  # somebody's upload: it may name no file at all
        with _decoded(io.BytesIO(path), "none") as container:
            yield container
        return
    local = store.local_path(path)
    try:
        # FFmpeg takes names for addresses, and playlists for orders to read other files: neither is meant
        if local is not None:
            with store.explained(path, "read"):
                files.check_file(local)  # FFmpeg would wait for a FIFO
        file: Any = f"file:{os.path.abspath(local)}" if local is not None else io.BufferedReader(_Remote(path), _READ)
        with _decoded(file, "file") as container:
            yield container
    except V2FError as error:
        raise UnusableError("video cannot be read", str(error)) from error


@contextmanager
def _decoded(file: Any, protocols: str) -> Iterator[Any]:
    """``protocols``: by which what the file names may be read."""
    import av

    with (
        decoding("video cannot be decoded", "FFmpeg cannot read it"),
        av.open(file, "r", options={"protocol_whitelist": protocols}, metadata_errors="ignore") as container,
    ):
        for stream in container.streams.video:
            stream.codec_context.thread_count = 1  # the packing processes share the cores already
        yield container


def pictures(container: Any, seconds: Sequence[float]) -> list[Image.Image]:
    """The RGB pictures that a video shows at ``seconds``."""
    if not container.streams.video:
        raise UnusableError("video cannot be decoded", "the file has no pictures")
    stream = container.streams.video[0]
    _check_size(stream.codec_context)
    return [_picture(container, stream, second) for second in seconds]


def _check_size(shown: Any) -> None:
    if shown.width * shown.height > MAX_PIXELS:
        raise UnusableError("video is too large", f"{shown.width} x {shown.height} pixels")


def _picture(container: Any, stream: Any, second: float) -> Image.Image:
    """The last picture that begins at ``second`` or before."""
    import av

    origin = (container.start_time or 0) / av.time_base
    container.seek(int(second * av.time_base) + (container.start_time or 0))
    shown = None
    for frame in container.decode(stream):
        if shown is not None and (frame.time or 0.0) - origin > second + 1e-3:  # containers round to milliseconds
            break
        shown = frame
    else:
        if shown is None or (shown.time or 0.0) - origin + _LATE_S < second:
            raise UnusableError("the video ends before the segment does", f"there is no picture at {second:.2f} s")
    _check_size(shown)  # a stream may change its size
    image: Image.Image = shown.to_image()
    return image


class _Remote(io.RawIOBase):
    """A stored file as FFmpeg reads it."""

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
