"""Encoding a sample: its audio, photos, codes and arrays as the members of the schema in ``sample.py``.

Shape letters: T audio frames, H height, W width, P photos, L styles, D style width, E embedding.
"""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from v2f.data.sample import (
    AUDIO,
    CODES,
    GRAY,
    ORIGINALS,
    PHOTOS,
    SPLITS,
    USUAL,
    AudioFormat,
    PhotoFormat,
    array_problem,
    check_key,
    is_array_name,
    pillow_image,
)
from v2f.data.tar import Members
from v2f.errors import V2FError

_NAME_LENGTH = 100  # of a tar member (USTAR)


def encode(
    key: str,
    wav_T: npt.NDArray[np.floating[Any]] | None = None,
    sample_rate: int | None = None,
    photos_HWC: Sequence[npt.NDArray[np.uint8]] | None = None,
    *,
    identity: str,
    split: str,
    source: str,
    extra: Mapping[str, Any] | None = None,
    originals_HWC: Sequence[npt.NDArray[np.uint8]] | None = None,
    codes_PLD: npt.NDArray[np.floating[Any]] | None = None,
    arrays: Mapping[str, npt.NDArray[Any]] | None = None,
    audio_format: AudioFormat = "flac",
    photo_format: PhotoFormat = "png",
    quality: int = 95,
) -> Members:
    """The members of one sample, extension to content.

    ``wav_T`` is clipped to [-1, 1]; ``photos_HWC`` are uint8, all RGB [H, W, 3] or all gray [H, W, 1]; None means that
    the sample has none on purpose. ``extra`` goes into the JSON beside the required keys; ``originals_HWC`` are the
    photos before they were redrawn, one for each; ``codes_PLD`` are the photos' w+; ``arrays`` are custom arrays by
    name; ``quality`` (1 to 100) applies to JPEG and WebP. V2FError names the key and what cannot be encoded.
    """
    check_key(key)
    if split not in SPLITS:
        raise V2FError(f"sample {key}: the split {split!r} is none of {', '.join(SPLITS)}")
    if photos_HWC is not None and not photos_HWC:
        raise V2FError(f"sample {key}: it has no photo")
    if "holds" in (extra or {}):
        raise V2FError(f"sample {key}: `holds` in its JSON says what it holds, a source cannot add it")
    if (wav_T is None) != (sample_rate is None):
        raise V2FError(f"sample {key}: audio and its sample rate are given together, or neither")
    members: Members = {}
    meta: dict[str, Any] = {"identity": identity, "split": split}
    if wav_T is not None and sample_rate is not None:
        members[audio_format] = encode_audio(key, wav_T, sample_rate, audio_format)
        meta |= {"sample_rate": sample_rate, "seconds": round(len(wav_T) / sample_rate, 6)}
    if originals_HWC is not None and len(originals_HWC) != len(photos_HWC or ()):
        raise V2FError(f"sample {key}: {len(originals_HWC)} originals for {len(photos_HWC or ())} photos")
    for prefix, pictures in (("", photos_HWC or ()), ("original.", originals_HWC or ())):
        for number, photo_HWC in enumerate(pictures):
            name = photo_format if len(pictures) == 1 else f"{number}.{photo_format}"
            members[prefix + name] = encode_photo(key, photo_HWC, photo_format, quality)
    if codes_PLD is not None:
        members[CODES] = encode_codes(key, codes_PLD, len(photos_HWC or ()))
    for name, values in (arrays or {}).items():
        members[f"{name}.npy"] = encode_array(key, name, values)
    if not members:
        raise V2FError(f"sample {key}: it has neither audio nor photos nor an array")
    channels = {photo_HWC.shape[2] for photo_HWC in photos_HWC or ()}
    if len(channels) > 1:
        raise V2FError(f"sample {key}: its photos are all RGB or all gray, it has both")
    parts = ((AUDIO, wav_T is not None), (GRAY, channels == {1}), (ORIGINALS, originals_HWC), (PHOTOS, channels))
    held = tuple(part for part, has in parts if has)
    meta |= {"source": source, **({} if held == USUAL else {"holds": list(held)}), **(extra or {})}
    members["json"] = json.dumps(meta, ensure_ascii=False, allow_nan=False).encode()
    return members


def encode_audio(key: str, wav_T: npt.NDArray[np.floating[Any]], sample_rate: int, audio_format: AudioFormat) -> bytes:
    """``wav_T`` in [-1, 1] as 16-bit FLAC or WAV."""
    if wav_T.ndim != 1 or not wav_T.size:
        raise V2FError(f"sample {key}: audio of shape {wav_T.shape}, expected mono of at least one frame")
    if not np.isfinite(wav_T).all():
        raise V2FError(f"sample {key}: its audio holds values that are not finite")
    pcm_T = np.round(np.clip(wav_T, -1.0, 1.0) * 32767.0).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm_T, sample_rate, format=audio_format.upper(), subtype="PCM_16")
    return buffer.getvalue()


def encode_photo(key: str, photo_HWC: npt.NDArray[np.uint8], photo_format: PhotoFormat, quality: int) -> bytes:
    """A uint8 photo, RGB [H, W, 3] or gray [H, W, 1], as PNG (lossless), JPEG or (RGB only) WebP."""
    if photo_HWC.ndim != 3 or photo_HWC.shape[2] not in (1, 3) or photo_HWC.dtype != np.uint8:
        wanted = "expected [H, W, 3] or [H, W, 1] uint8"
        raise V2FError(f"sample {key}: photo of shape {photo_HWC.shape} {photo_HWC.dtype}, {wanted}")
    if photo_HWC.shape[2] == 1 and photo_format == "webp":
        raise V2FError(f"sample {key}: WebP has no grayscale; store gray photos as png or jpg")
    buffer = io.BytesIO()
    image = pillow_image(photo_HWC)
    if photo_format == "png":
        image.save(buffer, "PNG", compress_level=6)
    elif photo_format == "jpg":
        image.save(buffer, "JPEG", quality=quality, subsampling=0)
    else:
        image.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def encode_array(key: str, name: str, values: npt.NDArray[Any]) -> bytes:
    """A custom array in NumPy's format: finite floats or integers of at most 8 bytes each, 1 to ``MAX_ARRAY`` bytes in
    all."""
    if not is_array_name(name):
        raise V2FError(
            f"sample {key}: an array cannot be called {name!r}: 1 to 40 of the characters A-Z a-z 0-9 _, and neither "
            "codes nor identity"
        )
    if len(f"{key}.{name}.npy") > _NAME_LENGTH:
        raise V2FError(f"sample {key}: {key}.{name}.npy has more than a tar's {_NAME_LENGTH} characters")
    problem = array_problem(values)
    if problem:
        raise V2FError(f"sample {key}: its array {name!r} {problem}")
    buffer = io.BytesIO()
    plain = np.asarray(values, values.dtype.newbyteorder("<"), order="C")
    np.lib.format.write_array(buffer, plain, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def encode_codes(key: str, codes_PLD: npt.NDArray[np.floating[Any]], photos: int) -> bytes:
    """w+ [P, L, D] of the ``photos`` photos of a sample in NumPy's format, float16."""
    if codes_PLD.ndim != 3 or len(codes_PLD) != photos or not codes_PLD.size:
        raise V2FError(f"sample {key}: codes of shape {codes_PLD.shape}, expected [{photos}, styles, width]")
    return _encode_npy(key, "codes", codes_PLD)


def encode_embedding(key: str, embedding_PE: npt.NDArray[np.floating[Any]], photos: int) -> bytes:
    """Identity embeddings [P, E] of the ``photos`` photos of a sample in NumPy's format, float16."""
    if embedding_PE.ndim != 2 or len(embedding_PE) != photos or not embedding_PE.size:
        raise V2FError(f"sample {key}: embeddings of shape {embedding_PE.shape}, expected [{photos}, width]")
    return _encode_npy(key, "embeddings", embedding_PE)


def _encode_npy(key: str, what: str, values: npt.NDArray[np.floating[Any]]) -> bytes:
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(values, np.float16)
    if not np.isfinite(half).all():
        raise V2FError(f"sample {key}: its {what} hold values that are not finite in float16")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, half, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
