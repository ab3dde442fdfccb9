"""The schema: what is encoded comes back, and what the schema does not promise is refused by name."""

import io
import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from v2f.data.encoding import encode
from v2f.data.sample import Sample
from v2f.data.tar import Members, split_members
from v2f.errors import V2FError

RNG = np.random.default_rng(0)
WAV = RNG.uniform(-1, 1, 1600).astype(np.float32)
RAMP = np.add.outer(5 * np.arange(12), 4 * np.arange(10))[..., None] + np.array([0, 40, 90])
PHOTOS = [(RAMP + 20 * i).astype(np.uint8) for i in range(3)]


def members(**kinds: object) -> Members:
    defaults = {"identity": "Žofie", "split": "train", "source": "test"}
    return encode("k", WAV, 16000, PHOTOS[:1], **{**defaults, **kinds})  # type: ignore[arg-type]


@pytest.mark.parametrize("audio_format", ["flac", "wav"])
@pytest.mark.parametrize("photo_format", ["png", "jpg", "webp"])
@pytest.mark.parametrize("photos", [1, 3])
def test_round_trip(audio_format: str, photo_format: str, photos: int) -> None:
    encoded = encode(
        "k", WAV, 16000, PHOTOS[:photos], identity="Žofie", split="seen", source="test", extra={"clip": 3},
        audio_format=audio_format, photo_format=photo_format,  # type: ignore[arg-type]
    )  # fmt: skip
    names = [photo_format] if photos == 1 else [f"{i}.{photo_format}" for i in range(photos)]
    assert set(encoded) == {audio_format, "json", *names}
    sample = Sample("k", encoded)
    assert sample.waveform().dtype == np.float32
    assert np.abs(sample.waveform() - WAV).max() < 1e-4
    assert sample.photo_count == photos
    for i in range(photos):
        error = np.abs(sample.photo(i).astype(int) - PHOTOS[i])
        assert error.max() == 0 if photo_format == "png" else error.max() < 25
    assert (sample.identity, sample.sample_rate, sample.meta["split"]) == ("Žofie", 16000, "seen")
    assert sample.meta["seconds"] == 0.1
    assert sample.meta["clip"] == 3


def test_loud_audio_is_clipped_not_wrapped() -> None:
    sample = Sample("k", encode("k", 3 * WAV, 16000, PHOTOS[:1], identity="a", split="train", source="test"))
    assert (np.sign(sample.waveform()) * np.sign(WAV) >= 0).all()


def wav_bytes(data: np.ndarray, rate: int = 16000, subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, data, rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


def png_bytes(mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


NOT_FINITE = np.where(np.arange(1600) == 9, np.nan, 0.1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("wav", wav_bytes(np.zeros((100, 2))), "2 channels"),
        ("wav", wav_bytes(np.zeros(100), rate=8000), "8000 frames a second, its JSON says 16000"),
        ("wav", wav_bytes(NOT_FINITE, subtype="FLOAT"), "not finite"),
        ("wav", wav_bytes(np.zeros(0)), "0 of 0 frames"),
        ("wav", b"RIFFnonsense", "wav cannot be decoded"),
        ("png", png_bytes("L"), "mode L"),
        ("png", png_bytes("I;16"), "mode I;16"),
        ("png", png_bytes("RGBA"), "mode RGBA"),
        ("png", members()["png"][:50], "png cannot be decoded"),
        ("png", b"", "png cannot be decoded"),
        ("json", b"{", "JSON cannot be read"),
        ("json", b"[]", "its JSON is not an object"),
        ("json", json.dumps({"identity": 3}).encode(), "needs 'identity' of type str, got 3"),
        ("json", json.dumps({**json.loads(members()["json"]), "split": "tran"}).encode(), "names the split 'tran'"),
    ],
)
def test_what_the_schema_does_not_promise_is_refused_with_the_key(name: str, content: bytes, message: str) -> None:
    sample = Sample("k", {**members(audio_format="wav"), name: content})
    with pytest.raises(V2FError, match=rf"sample k: .*{message}"):
        _ = (sample.meta, sample.waveform(), sample.photo())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"png": None}, "a photo wanted"),
        ({"json": None}, "a JSON wanted"),
        ({"flac": None}, "one audio wanted"),
        ({"wav": b""}, "one audio wanted"),
        ({"txt": b""}, "does not know: txt"),
        ({"png": None, "1.png": b""}, "not numbered 0 to 0"),
    ],
)
def test_a_partial_or_foreign_sample_is_refused(change: dict[str, bytes | None], message: str) -> None:
    changed = {name: content for name, content in {**members(), **change}.items() if content is not None}
    with pytest.raises(V2FError, match=rf"sample k: .*{message}"):
        Sample("k", changed)


def test_a_photo_too_large_to_be_one_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("v2f.data.sample.MAX_PIXELS", 100)
    with pytest.raises(V2FError, match="sample k: photo png of 10 x 12 pixels is too large"):
        Sample("k", members()).photo()


def test_audio_too_long_to_be_a_clip_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("v2f.data.sample.MAX_SECONDS", 0.05)
    with pytest.raises(V2FError, match="sample k: its audio is longer"):
        Sample("k", members()).waveform()


CODES = RNG.normal(size=(3, 14, 6))


def test_codes_come_back_in_float16() -> None:
    encoded = encode("k", WAV, 16000, PHOTOS, identity="a", split="train", source="test", codes_PLD=CODES)
    sample = Sample("k", encoded)
    assert sample.has_codes
    for number in range(3):
        codes_LD = sample.codes(number)
        assert codes_LD.dtype == np.float32
        assert np.array_equal(codes_LD, CODES[number].astype(np.float16))
    assert Sample("k", {name: memoryview(content) for name, content in encoded.items()}).codes().shape == (14, 6)
    assert np.array_equal(np.load(io.BytesIO(encoded["codes.npy"]), allow_pickle=False), CODES.astype(np.float16))


def test_a_sample_without_codes_says_how_to_get_them() -> None:
    sample = Sample("k", members())
    assert not sample.has_codes
    with pytest.raises(V2FError, match=r"sample k: it has no codes \(codes\.npy\); `v2f shards precompute` writes"):
        sample.codes()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


HUGE = (
    npy(CODES[:1].astype(np.float16)).replace(b"(1, 14, 6)", b"(9999999, 14, 999999)").replace(b" " * 11 + b"\n", b"\n")
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "codes.npy cannot be decoded"),
        (b"PK\3\4", "codes.npy cannot be decoded"),
        (npy(np.array([print], dtype=object)), "codes.npy cannot be decoded"),
        (npy(CODES[:1].astype(np.float16))[:-2], "166 bytes are no float16"),
        (npy(CODES[:1].astype(np.float16)) + b"..", "170 bytes are no float16"),
        (HUGE, r"168 bytes are no float16 \[9999999, 14, 999999\]"),
        (npy(CODES[:1]), "float64 .*, expected float16"),
        (npy(CODES.astype(np.float16)), r"\[3, 14, 6\], expected float16 \[1, styles, width\]"),
        (npy(CODES[0].astype(np.float16)), "float16"),
        (npy(np.full((1, 2, 2), np.inf, np.float16)), "not finite"),
    ],
)
def test_codes_that_the_schema_does_not_promise_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(V2FError, match=rf"sample k: .*{message}"):
        Sample("k", {**members(), "codes.npy": content}).codes()


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (CODES[:2], r"codes of shape \(2, 14, 6\), expected \[3, styles, width\]"),
        (CODES[0], "codes of shape"),
        (CODES[:, :0], "codes of shape"),
        (CODES * np.nan, "not finite in float16"),
        (CODES * 1e6, "not finite in float16"),
    ],
)
def test_no_codes_are_encoded_that_would_be_refused(codes: np.ndarray, message: str) -> None:
    with pytest.raises(V2FError, match=f"sample k: .*{message}"):
        encode("k", WAV, 16000, PHOTOS, identity="a", split="train", source="test", codes_PLD=codes)


@pytest.mark.parametrize("key", ["a.b", "", "a/b", "ä", "k" * 81])
def test_a_key_that_a_tar_could_not_hold_is_refused(key: str) -> None:
    with pytest.raises(V2FError, match="a key has"):
        encode(key, WAV, 16000, PHOTOS, identity="a", split="train", source="test")


@pytest.mark.parametrize(
    ("wav", "photos", "split", "message"),
    [
        (NOT_FINITE, PHOTOS, "train", "not finite"),
        (WAV[:0], PHOTOS, "train", "at least one frame"),
        (WAV[None], PHOTOS, "train", "mono"),
        (WAV, [], "train", "no photo"),
        (WAV, [PHOTOS[0][..., 0]], "train", "photo of shape"),
        (WAV, PHOTOS, "dev", "the split 'dev'"),
    ],
)
def test_nothing_is_encoded_that_would_be_refused(wav: np.ndarray, photos: list, split: str, message: str) -> None:
    with pytest.raises(V2FError, match=rf"sample k: .*{message}"):
        encode("k", wav, 16000, photos, identity="a", split=split, source="test")


def test_members_of_another_sample_are_refused() -> None:
    with pytest.raises(V2FError, match="sample k: its tar header at byte 0"):
        split_members("k", b"\1" * 1024)
