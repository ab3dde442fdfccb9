"""What all pages share: templates, formatted numbers, histograms, and files embedded in the page.

A page is self-contained: pictures, sounds and plots are inside, it loads nothing and runs no script.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
import numpy as np
import soundfile
from numpy.typing import NDArray

_TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "m4a": "audio/mp4",
    "ogg": "audio/ogg",
    "wav": "audio/wav",
    "mp4": "video/mp4",
    "mkv": "video/x-matroska",
}


def environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("v2f.web", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "fixed": fixed}
    return environment


def number(value: float | None, digits: int = 3) -> str:
    """A number with ``digits`` significant digits; a dash if it is undefined."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def fixed(value: float | None, digits: int, scale: float = 1.0) -> str:
    """``scale`` times a number, with ``digits`` decimals, for a column of a table; a dash if it is undefined."""
    return (
        "–"
        if value is None or not math.isfinite(value)
        else f"{round(scale * value, digits) + 0.0:.{digits}f}".replace("-", "−")
    )


def data_uri(content: bytes | memoryview, extension: str) -> str:
    """A file, unchanged, as a data URI; its extension gives the media type."""
    return f"data:{_TYPES[extension]};base64,{base64.b64encode(content).decode()}"


def sound_uri(wav_T: NDArray[np.float32], rate: int) -> str:
    """A clip as a FLAC data URI."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wav_T, -1, 1), rate, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class Histogram:
    """Bars from left to right, each with its height from 0 to 1 and its label."""

    title: str
    unit: str
    bars: list[tuple[float, str]]
    tallest: str
    low: str
    high: str
    middle: str


def histogram(title: str, unit: str, values: Sequence[float], most: int = 24) -> Histogram:
    """The histogram of ``values`` (at least one) in at most ``most`` bins of a round width."""
    array = np.asarray(values, float)
    low, high = float(array.min()), float(array.max())
    whole = bool((array == np.rint(array)).all())
    width = _round_up((high - low) / most) if high > low else 1.0
    width = max(width, 1.0) if whole else width
    first = math.floor(low / width) * width
    edges = first + width * np.arange(max(1, math.floor((high - first) / width) + 1) + 1)
    counts, _ = np.histogram(array, edges)

    def span(left: float) -> str:
        if whole and width == 1.0:
            return f"{left:,.0f}"
        return f"{number(left, 4)} to {number(left + width, 4)}"

    top = max(1, int(counts.max()))
    bars = [
        (count / top, f"{span(left)} {unit}: {count:,}")
        for left, count in zip(edges[:-1].tolist(), counts.tolist(), strict=True)
    ]
    return Histogram(
        title,
        unit,
        bars,
        f"{top:,}",
        number(low),
        number(high),
        number(float(np.percentile(array, 50, method="inverted_cdf"))),
    )


def _round_up(width: float) -> float:
    """The smallest of ..., 0.5, 1, 2, 5, 10, 20, ... that is at least ``width``."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= width * (1 - 1e-9))
