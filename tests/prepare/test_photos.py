"""Photos as cameras and programs write them: turned by one tag, from a list of formats, with a range of values; and
none of them stops a pack."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from media import with_exif
from PIL import EpsImagePlugin, ExifTags, Image

from v2f.config import build
from v2f.data.audio import UnusableError
from v2f.data.manifest import Dataset
from v2f.prepare import align, pairs, steps
from v2f.prepare.pack import PackConfig, pack

Y, X = np.mgrid[:48, :64]
PICTURE = Image.fromarray(np.stack([4 * X, 5 * Y, 0 * X + 90], axis=2).astype(np.uint8))


def encoded(picture: Image.Image, kind: str, **kinds: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **kinds)
    return buffer.getvalue()


def read(folder: Path, content: bytes) -> np.ndarray:
    (folder / "photo").write_bytes(content)
    return np.asarray(steps.read_photo(str(folder / "photo"), 2048)[0])


def refused(folder: Path, content: bytes) -> str:
    with pytest.raises(UnusableError) as caught:
        read(folder, content)
    return str(caught.value)


def packed(folder: Path, photos: dict[str, bytes], **kinds: Any) -> tuple[Dataset, dict[str, str]]:
    """A data set of one recording and these photos; and why some were left out, by their names."""
    soundfile.write(folder / "a.wav", 0.4 * np.sin(np.arange(16000) / 9), 16000)
    for name, content in photos.items():
        (folder / name).write_bytes(content)
    rows = "".join(f"a.wav,{name},{name}\n" for name in photos)
    (folder / "pairs.csv").write_text(f"audio,image,identity\n{rows}")
    people = {"train": 1.0, "valid": 0.0, "test": 0.0}
    config = {"csv": str(folder / "pairs.csv"), "size": 32, "people": people, "seen": 0.0, **kinds}
    values = {"out": str(folder / "out"), "source": "pairs", "pairs": config, "workers": 1}
    dataset = pack(build(PackConfig, values, "the test"))
    lines = map(json.loads, (folder / "out" / "left_out.jsonl").read_text().splitlines())
    return dataset, {line["identity"]: line["reason"] for line in lines}


# ------------------------------------------------------------------------------------------------- turned


ORIENTATION = (0x112, 3, 1, b"\6\0")
SUB = 8 + 2 + 2 * 12 + 4  # where what lies behind two entries begins
ODD = {
    "a brightness of -1/0": [ORIENTATION, (0x8769, 4, 1, struct.pack("<I", SUB))],
    "a sub-IFD beyond the end": [ORIENTATION, (0x8769, 4, 1, struct.pack("<I", 1 << 30))],
    "a sub-IFD that is a text": [ORIENTATION, (0x8769, 2, 4, b"what")],
    "a GPS that is a number of floats": [ORIENTATION, (0x8825, 12, 9, struct.pack("<I", SUB))],
    "a text that lies beyond the end": [ORIENTATION, (0x10F, 2, 1 << 20, struct.pack("<I", 1 << 20))],
    "a resolution of 1/0": [ORIENTATION, (0x11A, 5, 1, struct.pack("<I", SUB))],
}
BRIGHTNESS = struct.pack("<HHHII", 1, 0x9203, 10, 1, SUB + 18) + bytes(4) + struct.pack("<ii", -1, 0)


@pytest.mark.parametrize("what", ODD)
def test_odd_exif_does_not_keep_a_photo_from_being_turned(tmp_path: Path, what: str) -> None:
    jpeg = encoded(PICTURE, "JPEG")
    upright = np.asarray(Image.open(io.BytesIO(jpeg)).transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(read(tmp_path, with_exif(jpeg, ODD[what], BRIGHTNESS)), upright)


@pytest.mark.parametrize("entry", [(0x112, 2, 4, b"six"), (0x112, 10, 1, b""), (0x112, 7, 9, b"")])
def test_an_orientation_that_is_none_leaves_the_photo_as_it_lies(
    tmp_path: Path, entry: tuple[int, int, int, bytes]
) -> None:
    jpeg = encoded(PICTURE, "JPEG")
    assert np.array_equal(read(tmp_path, with_exif(jpeg, [entry])), read(tmp_path, jpeg))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_in_every_format_is_as_pillow_turns_it(tmp_path: Path, kind: str, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encoded(PICTURE, kind, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    (tmp_path / "photo").write_bytes(content)
    photo, shrunk = steps.read_photo(str(tmp_path / "photo"), 32)
    assert photo.size == ((24, 32) if orientation > 4 else (32, 24))
    assert shrunk.tolist() == [0.5, 0.5]  # of the upright photo's sides
    assert np.array_equal(read(tmp_path, content), upright)


# ------------------------------------------------------------------------------------------ formats, ranges


def test_no_program_is_started_for_a_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ghostscript(*_: Any, **__: Any) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n"
    assert refused(tmp_path, eps) == "photo cannot be decoded (unknown picture format)"


@pytest.mark.parametrize("kind", steps.PICTURES)
def test_every_format_of_the_list_is_read(tmp_path: Path, kind: str) -> None:
    flat = Image.new("RGB", (64, 48), (200, 160, 120))
    assert np.abs(read(tmp_path, encoded(flat, kind)).astype(int) - [200, 160, 120]).max() < 8


@pytest.mark.parametrize(("pixels", "said"), [
    (X / 63, "floating point a pixel"),
    (X * 65535.0 / 63, "floating point a pixel"),
    (X * 1000, "32 bits a pixel"),
    (X * 20_000_000, "32 bits a pixel"),
])  # fmt: skip
def test_values_without_a_range_are_left_out(tmp_path: Path, pixels: np.ndarray, said: str) -> None:
    kind = np.float32 if pixels.dtype.kind == "f" else np.int32
    content = encoded(Image.fromarray(pixels.astype(kind)), "TIFF")
    assert refused(tmp_path, content).startswith(f"photo has no range of values ({said}")


def test_16_bits_are_scaled_and_12_bits_in_them_are_left_out(tmp_path: Path) -> None:
    for kind in ("TIFF", "PNG", "PPM"):
        deep = Image.fromarray((X * 1040).astype(np.uint16))
        assert np.abs(read(tmp_path, encoded(deep, kind))[..., 0].astype(int) - X * 1040 // 256).max() <= 1, kind
    twelve = encoded(Image.fromarray((X * 65).astype(np.uint16)), "TIFF")
    assert refused(tmp_path, twelve).startswith("photo has no range of values (16 bits a pixel, but none is above 4095")


@pytest.mark.parametrize("kind", steps.PICTURES)
def test_a_photo_that_was_cut_is_left_out(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 60, (48, 64, 3), np.uint8)
    content = encoded(Image.fromarray(np.asarray(PICTURE) // 2 + noise), kind)
    for share in (0.1, 0.5, 0.9):
        assert refused(tmp_path, content[: int(share * len(content))]).startswith("photo cannot be decoded")


def test_of_several_pictures_the_first_is_taken(tmp_path: Path) -> None:
    others = [Image.new("RGB", PICTURE.size, color) for color in ("red", "blue")]
    for kind in ("PNG", "GIF", "TIFF", "WEBP"):
        lossless = {"lossless": True} if kind == "WEBP" else {}
        several = encoded(PICTURE, kind, save_all=True, append_images=others, **lossless)
        assert np.array_equal(read(tmp_path, several), read(tmp_path, encoded(PICTURE, kind, **lossless))), kind


# ------------------------------------------------------------------------------------------- in a pack


SIZES = [(300, 19), (19, 300), (1, 1), (6000, 50), (50, 6000), (20, 20), (21, 300), (2, 2)]


def test_photos_in_which_no_face_can_be_cost_no_other(tmp_path: Path) -> None:
    from corpora import portrait

    good = {"good.png": encoded(portrait(0), "PNG")}
    odd = {f"{w}x{h}.png": encoded(Image.new("RGB", (w, h), "gray"), "PNG") for w, h in SIZES}
    dataset, left_out = packed(tmp_path, good | odd)
    assert dataset.manifest.identities == ["good.png"]
    assert left_out == dict.fromkeys(odd, "no face was found")
    (tmp_path / "alone").mkdir()
    alone, _ = packed(tmp_path / "alone", good)
    assert alone.manifest.shards[0].sha256 == dataset.manifest.shards[0].sha256


@pytest.mark.parametrize("size", SIZES)
def test_the_middle_of_a_photo_of_any_shape_is_taken(tmp_path: Path, size: tuple[int, int]) -> None:
    dataset, left_out = packed(tmp_path, {"a.png": encoded(Image.new("RGB", size, "gray"), "PNG")}, align="none")
    assert dataset.manifest.shards[0].samples == 1
    assert left_out == {}


def test_whatever_a_detector_raises_costs_one_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Detector:
        def detect(self, photo: Image.Image, landmarks: bool) -> None:
            raise AttributeError("it has no boxes")

    monkeypatch.setattr(align, "_detector", lambda weights: Detector())
    with pytest.raises(UnusableError, match=r"no face could be looked for \(AttributeError: it has no boxes\)"):
        align.find_faces(PICTURE, 0.9)


@pytest.mark.parametrize("error", [OverflowError("too large"), struct.error("odd"), MemoryError(), AssertionError()])
def test_whatever_a_decoder_raises_costs_one_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    assert refused(tmp_path, b"any").startswith(f"photo cannot be decoded ({type(error).__name__}")


def test_a_defect_of_ours_names_the_input_that_brought_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(photo_HWC: np.ndarray, size: int) -> None:
        raise KeyError("size")

    monkeypatch.setattr(pairs, "square", broken)
    with pytest.raises(RuntimeError, match=r"at line 2 \(a\.wav, a\.png\): KeyError: 'size'"):
        packed(tmp_path, {"a.png": encoded(PICTURE, "PNG")}, align="none")


def test_numbers_that_are_no_landmarks_are_left_out() -> None:
    for name, content in [
        ("a.json", b"[[1" + b"0" * 400 + b", 1]]"),
        ("a.json", b"[" * 99999),
        ("a.npy", b"\x93NUMPY\1\0\4\0{[("),
    ]:
        with pytest.raises(UnusableError, match="landmarks cannot be read"):
            align.read_landmarks(content, name)
