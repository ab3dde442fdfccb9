"""A voice in, a face out: one audio file through a trained system, written as a PNG that says what it is.

The picture carries its provenance in PNG text chunks and in XMP: it is estimated from a voice and shows what a voice of
this kind goes with in the training data; it is no photograph and identifies nobody.

Shape letters: T samples of the file, W windows, L styles, D style width.
"""

import datetime
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from v2f import __version__, store
from v2f.data.audio import UnusableError, decode_voice, likeness
from v2f.data.transforms import Waveform
from v2f.errors import V2FError
from v2f.run import Run
from v2f.system import Picture, Sound, Styled, System, device_of

DISCLAIMER = "Estimated from a voice; not a photograph, and not a likeness that could identify anyone."

SHORTEST_S = 0.25
_QUIET_WINDOW = 0.03  # of the loudest window's RMS: a pause
_MOST_WINDOWS = 64
_BATCH = 16


def generate(run: Run, voice: str, output: str, *, size: int | None = None, system: System | None = None) -> str:
    """Write the face that ``run`` makes of the audio file ``voice`` to ``output`` (a PNG); returns ``output``.

    ``size``: side of the picture in pixels, up to the generator's own; None: that of the training.

    Any file that libsndfile or FFmpeg reads; channels are averaged, other rates resampled. A clip shorter than what
    the system was trained on is repeated to its length. A longer one is cut into windows that overlap by half (at
    most 64, spread evenly; pauses are left out), and their codes w+ are averaged: a mean in W is again a clean face
    (Karras et al. 2020, "Analyzing and improving", section 5.2 on W), a mean of pictures is a ghost. A system
    without codes hears the middle window. The whole file or nothing is written.

    ``system``: the run's system, where it is loaded already. V2FError in one line for a file that is missing, empty,
    silent, shorter than 0.25 s, or no audio. Of a sound that is hardly speech a face is drawn, and it is said.
    """
    if Path(output).suffix.lower() != ".png":
        raise V2FError(f"{output}: the face is written as PNG; name the output something.png")
    system = run.system() if system is None else system
    hears = ear(run, system)
    wav_T = read_voice(voice, hears.sample_rate)
    wav_WT = windows(wav_T, hears.frames)
    picture = face_of(system, torch.from_numpy(wav_WT), size)
    told = provenance(run, system) | {"Voice": f"{len(wav_T) / hears.sample_rate:.2f} s, {len(wav_WT)} window(s)"}
    doubt = likeness(wav_T, hears.sample_rate).doubt
    if doubt:
        told["Doubt"] = doubt
    store.write_bytes(output, png(picture, told))
    print(f"{output}: a face estimated from {len(wav_T) / hears.sample_rate:.1f} s of voice ({len(wav_WT)} window(s))")
    if doubt:
        print(f"{voice}: {doubt}; the face means nothing")
    return output


def ear(run: Run, system: System) -> Waveform:
    """How long a clip the system of ``run`` hears, at which rate; V2FError if it makes no face from a voice."""
    for kind in system.asks().values():
        if (
            isinstance(kind, Sound)
            and kind.voice
            and any(isinstance(made, Picture) for made in system.makes().values())
        ):
            return Waveform(kind.seconds, kind.rate)
    raise V2FError(f"{run.path}: its system does not hear a voice, so there is nothing to make a face from")


def read_voice(path: str, sample_rate: int) -> NDArray[np.float32]:
    """The mono waveform [T] of a recording at ``sample_rate``; V2FError in one line if it holds no usable voice."""
    content = store.read_bytes(path)
    try:
        return decode_voice(content, sample_rate=sample_rate, min_seconds=SHORTEST_S)
    except UnusableError as error:
        raise V2FError(f"{path}: {error}; give a recording of a voice, such as a WAV of two seconds") from error


def windows(wav_T: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Windows [W, length] of a waveform: repeated where it is shorter, else overlapping by half and without pauses."""
    if len(wav_T) <= length:
        return np.resize(wav_T, length)[None]  # np.resize repeats
    count = min(_MOST_WINDOWS, -(-2 * (len(wav_T) - length) // length) + 1)
    starts = np.linspace(0, len(wav_T) - length, count).round().astype(int)
    wav_WT = np.stack([wav_T[start : start + length] for start in starts])
    loudness_W = np.sqrt((wav_WT**2).mean(1))
    return wav_WT[loudness_W >= _QUIET_WINDOW * loudness_W.max()]


@torch.no_grad()
def face_of(system: System, wav_WT: Tensor, size: int | None = None) -> Tensor:
    """One picture [3, H, W] in [-1, 1] of all windows of a voice; V2FError if it is not finite.

    ``size``: another side than that of the training, where the system has a generator that can draw it.
    """
    w_WLD = codes_of(system, wav_WT)
    if w_WLD is not None:
        return draw(system, w_WLD.mean(0, keepdim=True), size)[0]
    if size is not None:
        raise V2FError(f"this system draws pictures of one size only; leave out the {size} px")
    middle = len(wav_WT) // 2
    asked = next(iter(system.asks()))
    made = system.sample({asked: wav_WT[middle : middle + 1].to(device_of(system))})
    return _finite(next(iter(made.values())))[0]


@torch.no_grad()
def codes_of(system: System, wav_WT: Tensor) -> Tensor | None:
    """w+ [W, L, D] of windows of a voice; None: the system is not built around a generator of styles."""
    if not isinstance(system, Styled):
        return None
    return torch.cat([system.styles(part) for part in wav_WT.to(device_of(system)).split(_BATCH)])


def faces_of(system: System, wav_N: Sequence[NDArray[np.float32]], frames: int) -> tuple[Tensor | None, Tensor]:
    """What the system makes of each of some waveforms, cut into windows of ``frames`` samples: w+ [N, L, D], None where
    it has no codes, and pictures [N, 3, H, W] in [-1, 1], each as :func:`face_of` makes it."""
    wav_NWT = [torch.from_numpy(windows(wav_T, frames)) for wav_T in wav_N]
    w_WLD = codes_of(system, torch.cat(wav_NWT))
    if w_WLD is None:
        return None, torch.stack([face_of(system, wav_WT) for wav_WT in wav_NWT])
    w_NLD = torch.stack([part.mean(0) for part in w_WLD.split([len(wav_WT) for wav_WT in wav_NWT])])
    return w_NLD, draw(system, w_NLD)


@torch.no_grad()
def draw(system: System, w_NLD: Tensor, size: int | None = None) -> Tensor:
    """Pictures [N, 3, H, W] in [-1, 1] of codes w+ that :func:`codes_of` gave; V2FError if one is not finite."""
    assert isinstance(system, Styled), "codes are those of a system that has styles"
    return _finite(torch.cat([system.face(part, size) for part in w_NLD.split(_BATCH)]))


def _finite(picture_NCHW: Tensor) -> Tensor:
    if not picture_NCHW.isfinite().all():
        raise V2FError(
            "the system made a picture that is not finite; its training has diverged, use an earlier checkpoint"
        )
    return picture_NCHW.clamp(-1, 1)


def provenance(run: Run, system: System, *, step: int | None = None) -> dict[str, str]:
    """What a face that ``run`` makes now should carry with it; see :func:`notes`.

    ``step``: that of the checkpoint that was loaded; None: the newest.
    """
    return notes(run.config.name, system, run.step if step is None else step)


def notes(name: str, system: System, step: int | None) -> dict[str, str]:
    """What a picture that the run ``name`` makes now should carry with it: what it is, what made it, and when."""
    voice = any(isinstance(kind, Sound) for kind in system.asks().values())
    return {
        "Title": f"A face {'estimated from a voice' if voice else 'made from noise'}, not a photograph",
        "Disclaimer": DISCLAIMER if voice else "Drawn by chance; not a photograph, and nobody's likeness.",
        "Software": f"v2f {__version__}",
        "Run": name,
        "Step": str(step if step is not None else "unknown"),
        "Stand-ins": ", ".join(system.stand_ins) or "none",
        "Creation Time": now(),
    }


def now() -> str:
    """The time in UTC, in ISO 8601 to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def to_image(picture: Tensor) -> Image.Image:
    """The picture of a tensor [3, H, W] in [-1, 1]."""
    pixels: Any = ((picture.float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels)


def png(picture: Tensor, notes: Mapping[str, str]) -> bytes:
    """The PNG of a tensor [3, H, W] in [-1, 1] with ``notes`` (of :func:`provenance`) as text chunks, and with the XMP
    by which other programs know synthetic media; without notes, of pixels alone."""
    text = PngInfo()
    for key, value in notes.items():
        text.add_itxt(key, value) if not value.isascii() else text.add_text(key, value)
    if notes:
        text.add_itxt("XML:com.adobe.xmp", _xmp(notes))
    buffer = io.BytesIO()
    to_image(picture).save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def _xmp(notes: Mapping[str, str]) -> str:
    """An XMP packet (ISO 16684-1) that says what :func:`provenance` says; IPTC's digital source type is the one for
    media that a trained model made."""
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
