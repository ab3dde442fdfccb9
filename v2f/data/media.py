"""Writing what a system makes as PNG, WAV or a video, each with its provenance in the file.

The provenance says what the file is, what it is not, and what made it. It is in the text chunks and the XMP of a PNG,
in the INFO chunk of a WAV, and in the metadata of a video.

Shape letters: T samples, H height, W width, C channels.
"""

import datetime
import errno
import io
import json
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from v2f.data.audio import UnusableError, resample
from v2f.errors import V2FError

_LEAST_HZ = 16_000  # of the sound in a video: AAC does not support 4 kHz, and few players support rates below this one


def now() -> str:
    """The time in UTC, in ISO 8601 to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def to_image(picture: Tensor) -> Image.Image:
    """The Pillow image of a tensor [3, H, W], or a gray one [1, H, W], in [-1, 1]."""
    pixels: Any = ((picture.float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def png(picture: Tensor, notes: Mapping[str, str]) -> bytes:
    """The PNG of a tensor [C, H, W] in [-1, 1] with ``notes`` (of :func:`v2f.generate.provenance`) as text chunks,
    and the XMP by which other programs recognize synthetic media; without notes, pixels only."""
    text = PngInfo()
    for key, value in notes.items():
        text.add_itxt(key, value) if not value.isascii() else text.add_text(key, value)
    if notes:
        text.add_itxt("XML:com.adobe.xmp", _xmp(notes))
    buffer = io.BytesIO()
    to_image(picture).save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def _xmp(notes: Mapping[str, str]) -> str:
    """An XMP packet (ISO 16684-1) with the facts of :func:`v2f.generate.provenance`; IPTC's digital source type is the
    one for media made by a trained model."""
    title, disclaimer, software, made = (
        escape(notes.get(key, ""), {'"': "&quot;"}) for key in ("Title", "Disclaimer", "Software", "Creation Time")
    )
    return f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmp:CreatorTool="{software}" xmp:CreateDate="{made}"
 Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia">
<dc:title><rdf:Alt><rdf:li xml:lang="x-default">{title}</rdf:li></rdf:Alt></dc:title>
<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{disclaimer}</rdf:li></rdf:Alt></dc:description>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


def wav(sound_T: NDArray[np.float32], rate: int, notes: Mapping[str, str]) -> bytes:
    """A 16-bit WAV of a sound in [-1, 1], with ``notes`` (of :func:`v2f.generate.provenance`) in its INFO chunk:
    the title, the software, the date, and all of them as JSON in the comment."""
    import soundfile

    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", samplerate=rate, channels=1, format="WAV", subtype="PCM_16") as file:
        if notes:
            file.title, file.software = notes.get("Title", ""), notes.get("Software", "")
            file.date, file.comment = notes.get("Creation Time", ""), _as_json(notes)
        file.write(np.clip(sound_T, -1, 1))
    return buffer.getvalue()


class TargetError(V2FError):
    """A video cannot be written; the one that is read is no reason."""


class MisfitError(TargetError):
    """A video file cannot hold pictures of their codec."""


@dataclass(frozen=True)
class _Container:
    """A kind of video file: FFmpeg's names of its format and of the codec of its sound."""

    format: str
    sound: str


VIDEOS = {
    ".mp4": _Container("mp4", "aac"),
    ".mov": _Container("mov", "aac"),
    ".mkv": _Container("matroska", "aac"),
    ".webm": _Container("webm", "libopus"),
}
"""The video files that :func:`mux` writes, by suffix."""


def mux(
    source: Any,
    target: str | io.BytesIO,
    suffix: str,
    sound_T: NDArray[np.float32],
    rate: int,
    notes: Mapping[str, str],
) -> None:
    """Write the pictures of ``source``, an open PyAV container, with the sound ``sound_T`` in [-1, 1] to ``target``.

    Pictures are copied packet by packet, with their rotation; they and the sound begin together. ``suffix``: of
    :data:`VIDEOS`. ``notes`` become the title and the comment of the file. Raises UnusableError if ``source`` has no
    pictures or is damaged, MisfitError if such a file cannot hold pictures of their codec, TargetError if there is no
    room for ``target``.
    """
    import av

    if not source.streams.video:
        raise UnusableError("video cannot be decoded", "the file has no pictures")
    shown, kind = source.streams.video[0], VIDEOS[suffix]
    begin, step = shown.start_time or 0, shown.time_base
    with _writing(target), av.open(target, "w", format=kind.format) as file:
        file.metadata.update({"title": notes.get("Title", ""), "comment": _as_json(notes)} if notes else {})
        rate, sound_T = _rated(sound_T, rate, kind.sound)
        heard = file.add_stream(kind.sound, rate=rate, layout="mono")
        try:
            pictures = file.add_stream_from_template(shown)
            file.start_encoding()
        except (av.error.FFmpegError, ValueError) as error:
            codec, other = shown.codec_context.name, "a .wav" if suffix == ".mkv" else "a .mkv, which holds any codec"
            raise MisfitError(f"pictures in the codec {codec} do not fit into a {suffix}; write {other}") from error
        sounds = deque(_packets(heard, sound_T, rate))
        for packet in source.demux(shown):
            if not packet.size:  # the end
                continue
            packet.pts, packet.dts = (None if at is None else at - begin for at in (packet.pts, packet.dts))
            at = packet.pts if packet.dts is None else packet.dts  # Matroska has no other than presentation times
            while sounds and at is not None and sounds[0].pts * sounds[0].time_base <= at * step:
                file.mux(sounds.popleft())  # in the order of their times
            packet.stream = pictures
            file.mux(packet)
        file.mux(list(sounds))


@contextmanager
def _writing(target: str | io.BytesIO) -> Iterator[None]:
    """A full disk is no fault of the video that is read meanwhile."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            where = "the video" if isinstance(target, io.BytesIO) else target
            raise TargetError(
                f"{where}: cannot be written ({error.strerror}); make room, or write elsewhere"
            ) from error
        raise


def _rated(sound_T: NDArray[np.float32], rate: int, codec: str) -> tuple[int, NDArray[np.float32]]:
    """A rate that the codec supports, and the sound at that rate."""
    import av

    supported = av.Codec(codec, "w").audio_rates or [rate]
    at = next(each for each in (rate, _LEAST_HZ, 48_000) if each >= _LEAST_HZ and each in supported and each >= rate)
    return at, resample(sound_T, rate, at)


def _packets(stream: Any, sound_T: NDArray[np.float32], rate: int) -> Iterator[Any]:
    """The packets of a sound, in the codec of ``stream``."""
    import av

    frame = av.AudioFrame.from_ndarray(np.clip(sound_T, -1, 1)[None].astype(np.float32), "fltp", "mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    context = stream.codec_context
    resampler = av.AudioResampler(context.format, "mono", rate, context.frame_size)
    for part in [*resampler.resample(frame), *resampler.resample(None), None]:
        yield from stream.encode(part)


def _as_json(notes: Mapping[str, str]) -> str:
    return json.dumps(dict(notes), ensure_ascii=False)
