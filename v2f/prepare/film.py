"""``v2f shards film``: a short video of a thing of :mod:`v2f.world.things`, silent or with its own sound.

    class, thing, take --> frames --> MP4 (H.264); with sound: beside it, AAC

Shape letters: M frames, H = W = size, T samples.
"""

import io
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2f.data import media
from v2f.errors import V2FError
from v2f.storage import store
from v2f.world import scenes, sounds, things

FRAMES = Fraction(25, 2)
"""Frames a second."""
_RATE = 16_000  # Hz, of the sound


def film(
    class_: str,
    output: str,
    *,
    number: int = 0,
    take: int = 0,
    seconds: float = 1.8,
    size: int = 64,
    sound: bool = False,
    seed: int = 0,
) -> str:
    """Write an MP4 of the ``number``-th thing of a class to ``output``; returns ``output``.

    ``sound``: with what it sounds like, at 16 kHz; else without a sound stream. The thing is the one that packs have:
    thing ``4 * number`` plus the class's number. V2FError for an unknown class or another type of file, and for a
    length or size that cannot be rendered.
    """
    if class_ not in things.CLASSES:
        raise V2FError(f"no class is named {class_!r}; choose {', '.join(things.CLASSES)}")
    if not output.lower().endswith(".mp4"):
        raise V2FError(f"{output}: a film is written as MP4; name the output something.mp4")
    if not 0.2 <= seconds <= 600.0:
        raise V2FError(f"a film of {seconds:g} s: choose 0.2 to 600 s")
    if size % 2:
        raise V2FError(f"a film of {size} px: H.264 needs an even side; choose {size + 1}")
    thing = number * len(things.CLASSES) + things.CLASSES.index(class_)
    content = silent_mp4(scenes.render_frames(thing, take, seconds, float(FRAMES), size, seed), FRAMES)
    if sound:
        ids, takes = np.array([thing]), np.array([take])
        factor_NF = things.sound_factors(ids, takes, seed)
        wav_NT = sounds.render_sounds(things.classes(ids), factor_NF, np.array([[thing, take]]), seconds, _RATE, seed)
        content = _with_sound(content, wav_NT[0])
    store.write_bytes(output, content)
    print(f"{output}: {seconds:g} s of thing {thing}, a {class_}, {'with its sound' if sound else 'silent'}")
    return output


def _with_sound(video: bytes, wav_T: NDArray[np.float32]) -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(io.BytesIO(video)) as silent:
        media.mux(silent, buffer, ".mp4", wav_T, _RATE, {})
    return buffer.getvalue()


def silent_mp4(frame_MHW3: NDArray[np.uint8], rate: Fraction) -> bytes:
    """Frames, uint8 RGB [M,H,W,3] with even sides, as an MP4 of ``rate`` frames a second without sound."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("h264", rate=rate)
        stream.height, stream.width = frame_MHW3.shape[1:3]
        stream.pix_fmt, stream.time_base, stream.codec_context.thread_count = "yuv420p", 1 / rate, 1
        for number, frame_HW3 in enumerate(frame_MHW3):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HW3), format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
