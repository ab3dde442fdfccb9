"""Recordings in every format that we can write, as bytes, and what odd programs make of them and of photos."""

import io
import struct
from collections.abc import Callable

import av
import numpy as np
import soundfile

Wav = np.ndarray
RATE = 16000


def tone(seconds: float = 1.5, hertz: float = 150.0) -> Wav:
    """A tone that becomes louder and softer, with a little noise: something for every codec to do."""
    t = np.arange(round(seconds * RATE)) / RATE
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(t))
    return (0.3 * np.sin(2 * np.pi * hertz * t) * (0.6 + 0.4 * np.sin(6 * np.pi * t)) + noise).astype(np.float32)


def by_libsndfile(kind: str, subtype: str | None = None) -> Callable[[Wav], bytes]:
    def write(wav: Wav, rate: int = RATE) -> bytes:
        buffer = io.BytesIO()
        soundfile.write(buffer, wav, rate, format=kind, subtype=subtype)
        return buffer.getvalue()

    return write


def by_ffmpeg(container: str, codec: str, rate: int = 48000, **options: str) -> Callable[[Wav], bytes]:
    def write(wav: Wav) -> bytes:
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=container, options=options) as file:
            stream = file.add_stream(codec, rate=rate, layout="mono")
            context = stream.codec_context
            frame = av.AudioFrame.from_ndarray(wav[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = RATE, 0
            resampler = av.AudioResampler(context.format, "mono", rate, context.frame_size)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                file.mux(stream.encode(part))
            file.mux(stream.encode(None))
        return buffer.getvalue()

    return write


WHOLE: dict[str, Callable[[Wav], bytes]] = {
    "wav": by_libsndfile("WAV"),
    "float wav": by_libsndfile("WAV", "FLOAT"),
    "rf64": by_libsndfile("RF64"),
    "w64": by_libsndfile("W64"),
    "aiff": by_libsndfile("AIFF"),
    "au": by_libsndfile("AU"),
    "caf": by_libsndfile("CAF"),
    "flac": by_libsndfile("FLAC"),
    "ogg vorbis": by_libsndfile("OGG", "VORBIS"),
    "ogg opus": by_libsndfile("OGG", "OPUS"),
    "ogg flac": by_ffmpeg("ogg", "flac", RATE),
    "mp3": by_libsndfile("MP3"),
    "mp3 by ffmpeg": by_ffmpeg("mp3", "mp3", RATE),
    "m4a": by_ffmpeg("mp4", "aac"),
    "m4a in fragments": by_ffmpeg("mp4", "aac", movflags="+frag_keyframe+empty_moov"),
    "mov": by_ffmpeg("mov", "aac"),
    "webm": by_ffmpeg("webm", "libopus"),
    "live webm": by_ffmpeg("webm", "libopus", live="1"),
    "mkv": by_ffmpeg("matroska", "aac"),
    "avi": by_ffmpeg("avi", "mp3", RATE),
}
"""Formats that say where they end."""

STREAMS: dict[str, Callable[[Wav], bytes]] = {
    "adts": by_ffmpeg("adts", "aac"),
    "mpegts": by_ffmpeg("mpegts", "aac"),
    "mp3 without a length": by_ffmpeg("mp3", "mp3", RATE, write_xing="0", id3v2_version="0"),
}
"""Formats that do not."""


def without_length(kind: str, content: bytes) -> bytes:
    """What a program writes that cannot go back to the header when it knows the length: ``ffmpeg -f flac -``."""
    odd = bytearray(content)
    if kind == "flac":
        odd[21] &= 0xF0
        odd[22:26] = bytes(4)
    elif kind == "wav":  # of a recorder
        odd[4:8] = odd[40:44] = bytes(4)
    elif kind == "piped wav":
        odd[4:8] = odd[40:44] = b"\xff" * 4
    return bytes(odd)


def with_exif(jpeg: bytes, tags: list[tuple[int, int, int, bytes]], more: bytes = b"") -> bytes:
    """A JPEG with EXIF of these entries: tag, type, count, value or offset; ``more`` lies behind them."""
    entries = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in tags)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + more
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
