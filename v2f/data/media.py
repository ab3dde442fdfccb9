"""Writing what a system makes as PNG, WAV or MP4, each with its provenance in the file.

The provenance says what the file is, what it is not, and what made it. It is in the text chunks and the XMP of a PNG,
in the INFO chunk of a WAV, and in the metadata of an MP4.

Shape letters: T samples, H height, W width, C channels.
"""

import datetime
import io
import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from v2f.data.audio import UnusableError, decoding, resample

_LEAST_HZ = 16_000  # of the sound in an MP4: AAC does not support 4 kHz, and few players support rates below this one


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


def mp4(video: bytes, sound_T: NDArray[np.float32], rate: int, notes: Mapping[str, str]) -> bytes:
    """``video`` as MP4 with its sound replaced by ``sound_T`` in [-1, 1] and ``notes`` in its metadata; its pictures
    are copied. UnusableError if an MP4 cannot hold pictures of their codec."""
    import av

    if rate < _LEAST_HZ:
        sound_T, rate = resample(sound_T, rate, _LEAST_HZ), _LEAST_HZ
    buffer = io.BytesIO()
    with (
        decoding("video cannot be written with another sound", "its pictures do not fit into an MP4"),
        av.open(io.BytesIO(video), "r", metadata_errors="ignore") as source,
        av.open(buffer, "w", format="mp4") as target,
    ):
        if not source.streams.video:
            raise UnusableError("video cannot be decoded", "the file has no pictures")
        target.metadata.update({"title": notes.get("Title", ""), "comment": _as_json(notes)} if notes else {})
        pictures = target.add_stream_from_template(source.streams.video[0])
        hears = target.add_stream("aac", rate=rate, layout="mono")
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = pictures
                target.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.clip(sound_T, -1, 1)[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler: Any = av.AudioResampler("fltp", "mono", rate, hears.codec_context.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            target.mux(hears.encode(part))
        target.mux(hears.encode(None))
    return buffer.getvalue()


def _as_json(notes: Mapping[str, str]) -> str:
    return json.dumps(dict(notes), ensure_ascii=False)
