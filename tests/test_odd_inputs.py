"""A bad file affects only itself: it raises only our own exceptions, takes bounded memory and time, and the other
inputs of a pack are stored bit for bit as without it."""

import contextlib
import io
import json
import resource
import struct
import time
import warnings
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import soundfile
from corpora import portrait
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from media import STREAMS, WHOLE, tone, with_exif, without_length
from PIL import Image

from v2f.config import build
from v2f.data.audio import UnusableError
from v2f.errors import V2FError
from v2f.given import read_voice
from v2f.prepare.pack import PackConfig, pack
from v2f.runs.run import Run
from v2f.web.answer import Listener

MOST_MB, MOST_S = 1500, 30.0  # limits for a handful of small files; a decompression bomb takes more
EXTENSIONS = (
    "wav",
    "flac",
    "ogg",
    "opus",
    "mp3",
    "m4a",
    "aac",
    "webm",
    "mkv",
    "mp4",
    "avi",
    "ts",
    "jpg",
    "png",
    "x",
    "",
)
KINDS = tuple(WHOLE | STREAMS)
PHOTO_KINDS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "MPO", "APNG", "ICO", "TGA")
MODES = ("RGB", "1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F")


# ------------------------------------------------------------------------------------- what files may hold


@cache
def sound(kind: str) -> bytes:
    return (WHOLE | STREAMS)[kind](tone(0.6))


@cache
def photo(kind: str, mode: str) -> bytes:
    """A photo in this format, in this mode if the format supports it."""
    y, x = np.mgrid[:24, :32]
    deep = Image.fromarray((x * 2000).astype(np.uint16))
    plain = Image.fromarray(np.stack([8 * x, 9 * y, 0 * x], axis=2).astype(np.uint8))
    picture = deep if mode == "I;16" else plain.convert("L").convert(mode) if mode in "PAIF1LA" else plain.convert(mode)
    for each in (picture, plain):
        several = {"save_all": True, "append_images": [each]} if kind in ("MPO", "APNG", "GIF") else {}
        buffer = io.BytesIO()
        with warnings.catch_warnings(), contextlib.suppress(OSError, ValueError, KeyError):
            warnings.simplefilter("ignore")
            each.save(buffer, "PNG" if kind == "APNG" else kind, **several)
            return buffer.getvalue()
    raise AssertionError(f"Pillow writes no {kind}")


shares = st.floats(0, 1, exclude_max=True)
words = st.sampled_from([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\1\0\0", b"\1\0\0\0"])
whole_sounds = st.builds(sound, st.sampled_from(KINDS))
whole_photos = st.builds(photo, st.sampled_from(PHOTO_KINDS), st.sampled_from(MODES))


def at(content: bytes, share: float) -> int:
    return int(share * len(content))


def overwritten(content: bytes, share: float, by: bytes) -> bytes:
    return content[: at(content, share)] + by + content[at(content, share) + len(by) :]


def spoiled(whole: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Contents that are cut, spliced, overwritten or random; the first bytes, which are headers, more often."""
    places = shares | shares.map(lambda share: share**4)
    return st.one_of(
        whole,
        st.builds(lambda one, share: one[: at(one, share)], whole, shares),
        st.builds(lambda one, two: one + two, whole, whole),
        st.builds(lambda one, two, a, b: one[: at(one, a)] + two[at(two, b) :], whole, whole, shares, shares),
        st.builds(overwritten, whole, shares, st.integers(1, 600).map(bytes)),
        st.builds(overwritten, whole, places, words),
        st.builds(overwritten, whole, places, st.binary(min_size=1, max_size=1)),
        st.builds(lambda one, n, noise: one[:n] + noise, whole, st.integers(0, 64), st.binary(max_size=300)),
        st.binary(max_size=300),
    )


tags = st.sampled_from([0x112, 0x112, 0x11A, 0x128, 0x10F, 0x8769, 0x8825, 0xA005, 0x9203, 0x927C]) | st.integers(
    0, 65535
)
entries = st.tuples(tags, st.integers(0, 18), st.integers(0, 4) | st.integers(0, 2**32 - 1), st.binary(max_size=4))
odd_exif = st.builds(
    lambda tags, more: with_exif(photo("JPEG", "RGB"), tags, more),
    st.lists(entries, max_size=6),
    st.binary(max_size=80),
)
sounds = spoiled(whole_sounds)
photos = odd_exif | spoiled(whole_photos)


def float_wav(samples: list[float]) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array(samples, np.float32), 8000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def wav_header(channels: int, rate: int, bits: int, size: int) -> bytes:
    """A WAV with an arbitrary header, followed by sound."""
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * frame % 2**32, frame % 65536, bits)
    head = b"RIFF" + struct.pack("<I", size) + b"WAVEfmt " + struct.pack("<I", 16) + form
    return head + b"data" + struct.pack("<I", size) + sound("wav")[44:]


odd_waves = st.builds(
    wav_header,
    st.sampled_from([0, 1, 2, 255, 1024, 65535]) | st.integers(0, 65535),
    st.sampled_from([0, 1, 8000, 192000, 655350, 2**31 - 1, 2**32 - 1]) | st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 8, 12, 16, 24, 32, 64, 65535]),
    st.sampled_from([0, 1, 100, 19200, 2**31, 2**32 - 1]),
)
any_float = st.floats(width=32) | st.floats(-2, 2, width=32)
odd_floats = st.builds(
    lambda few, n: float_wav((few * 8000)[:n]), st.lists(any_float, min_size=1, max_size=8), st.integers(1, 9000)
)
sounds = sounds | odd_waves | odd_floats


# ---------------------------------------------------------------------------------------- who reads them


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MOST_MB, f"{grown:.0f} MB"
    assert time.process_time() - start < MOST_S


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import_module("scipy.signal")  # imported here, so that its memory and time are not counted
    folder = tmp_path_factory.mktemp("good")
    soundfile.write(folder / "good.wav", tone(0.6), 16000)
    portrait(0, size=96).save(folder / "good.png")
    return folder


def packed(folder: Path, rows: list[str], align: str) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Each sample's bytes by key, and the records of what was left out."""
    (folder / "pairs.csv").write_text("\n".join(["audio,image,identity", *rows]) + "\n")
    people = {"train": 1.0, "valid": 0.0, "test": 0.0}
    config = {
        "csv": str(folder / "pairs.csv"),
        "align": align,
        "size": 32,
        "min_seconds": 0.1,
        "people": people,
        "seen": 0.0,
    }
    out = folder / f"out-{len(list(folder.iterdir()))}"
    values = {"out": str(out), "source": "pairs", "pairs": config, "workers": 1}
    dataset = pack(build(PackConfig, values, "the test"))
    index = dataset.index
    found = {}
    for number, key in enumerate(index.key.tolist()):
        raw = Path(dataset.shard_path(number)).read_bytes()
        found[key.decode()] = raw[index.offset[number] :][: index.length[number]]
    return found, [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]


def costs_only_itself(good: Path, odd_sounds: list[bytes], odd_photos: list[bytes], extension: str, align: str) -> None:
    alone, _ = packed(good, ["good.wav,good.png,ada"], align)
    rows = ["good.wav,good.png,ada"]
    for number, content in enumerate(odd_sounds):
        (good / f"sound{number}.{extension}").write_bytes(content)
        rows.append(f"sound{number}.{extension},good.png,bob")
    for number, content in enumerate(odd_photos):
        (good / f"photo{number}.{extension}").write_bytes(content)
        rows.append(f"good.wav,photo{number}.{extension},eve")
    with bounded():
        found, left_out = packed(good, rows, align)
    assert found.items() >= alone.items()
    assert len(found) + len(left_out) == len(rows)  # none is lost silently
    assert all(each["reason"] and each["name"].startswith("line ") for each in left_out)


def few(examples: int) -> settings:
    return settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])


@few(10)
@given(st.lists(sounds, min_size=9, max_size=9), st.lists(photos, min_size=9, max_size=9), st.sampled_from(EXTENSIONS))
@example([without_length("flac", sound("flac")), without_length("wav", sound("wav"))], [photo("TIFF", "F")], "wav")
def test_an_odd_input_costs_a_pack_nothing_but_itself(
    good: Path, odd_sounds: list[bytes], odd_photos: list[bytes], extension: str
) -> None:
    costs_only_itself(good, odd_sounds, odd_photos, extension, "none")


@few(3)
@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(1, 40)), min_size=4, max_size=4),
    st.lists(photos, min_size=4, max_size=4),
)
def test_nor_does_a_photo_in_which_a_face_is_looked_for(
    good: Path, sizes: list[tuple[int, int]], odd_photos: list[bytes]
) -> None:
    for size in sizes:
        buffer = io.BytesIO()
        Image.effect_noise(size, 90).save(buffer, "PNG")
        odd_photos = [*odd_photos, buffer.getvalue()]
    costs_only_itself(good, [], odd_photos, "png", "mtcnn")


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    folder = tmp_path_factory.mktemp("listener")
    with pytest.MonkeyPatch.context() as patch:
        fakes.register(patch)
        run, system = fakes.make_run(folder / "run", folder / "data")
        patch.setattr(Run, "system", lambda self, which=None: system)
        patch.setattr(Run, "step_of", lambda self, which: 1)
        yield Listener(run)


@few(60)
@given(sounds | photos, st.sampled_from(EXTENSIONS))
def test_generate_and_the_page_take_any_file_or_say_why_not(
    good: Path, listener: Listener, content: bytes, extension: str
) -> None:
    path = good / f"voice.{extension}"
    path.write_bytes(content)
    with bounded():
        try:
            wav_T = read_voice(str(path), 8000)
            refused = ""
        except V2FError as error:
            refused = str(error)
            assert refused.startswith(f"{path}: ")
            assert "\n" not in refused
        try:
            answer = listener.answer(content)
            said = ""
        except UnusableError as error:
            said = str(error)
        assert said in refused
        assert bool(said) == bool(refused)
        if not said:
            assert answer.seconds == len(wav_T) / 8000
            assert np.isfinite(wav_T).all()
            assert np.abs(wav_T).max() < 10
