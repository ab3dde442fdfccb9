"""One rule for every format: a recording is whole and alone, or it is not used; and its samples lie in -1 to 1."""

import numpy as np
import pytest
from media import RATE, STREAMS, WHOLE, by_libsndfile, tone, without_length

from v2f.data import whole
from v2f.data.audio import UnusableError, decode_voice, resample
from v2f.data.encoding import encode
from v2f.data.sample import Sample
from v2f.data.transforms import Waveform

ONE, OTHER = tone(), tone(hertz=210.0)


def heard(content: bytes, seconds: float = 3600.0) -> np.ndarray:
    return decode_voice(content, sample_rate=RATE, min_seconds=0.1, max_seconds=seconds)


def refused(content: bytes) -> str:
    with pytest.raises(UnusableError) as caught:
        heard(content)
    return str(caught.value)


@pytest.mark.parametrize("kind", [*WHOLE, *STREAMS])
def test_a_whole_recording_is_heard_whole(kind: str) -> None:
    wav = heard((WHOLE | STREAMS)[kind](ONE))
    assert len(wav) / RATE == pytest.approx(1.5, abs=0.15)  # codecs pad
    assert np.abs(np.fft.rfft(wav[:RATE])).argmax() == 150


@pytest.mark.parametrize("kind", WHOLE)
def test_what_was_cut_is_left_out_wherever_it_was(kind: str) -> None:
    content = WHOLE[kind](ONE)
    for share in np.linspace(0.04, 0.99, 24):
        assert refused(content[: int(share * len(content))]), share


@pytest.mark.parametrize("kind", WHOLE)
def test_what_is_joined_is_left_out(kind: str) -> None:
    one, other = WHOLE[kind](ONE), WHOLE[kind](OTHER)
    for content in (one + one, one + other, other + one + one):
        assert refused(content) == "audio is more than one recording"


@pytest.mark.parametrize("kind", ["wav", "ogg opus", "mp3", "m4a", "webm"])
@pytest.mark.parametrize("other", ["wav", "flac", "ogg vorbis", "m4a"])
def test_what_is_joined_of_two_formats_is_left_out(kind: str, other: str) -> None:
    assert refused(WHOLE[kind](ONE) + WHOLE[other](OTHER)) == "audio is more than one recording"


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_that_says_no_end_is_heard_to_its_end(kind: str) -> None:
    assert len(heard(STREAMS[kind](ONE) * 2)) / RATE == pytest.approx(3.0, abs=0.3)


@pytest.mark.parametrize("kind", ["flac", "wav", "piped wav"])
def test_a_header_that_says_no_length_costs_nothing(kind: str) -> None:
    content = WHOLE[kind.split()[-1]](ONE)
    assert np.array_equal(heard(without_length(kind, content)), heard(content))
    assert refused(without_length(kind, content) * 2) == "audio is more than one recording"
    with pytest.raises(UnusableError, match=r"audio is too long \(.* s of at most 1 s\)"):
        heard(without_length(kind, content), 1.0)


def test_tags_behind_a_recording_are_not_another_one() -> None:
    tag = b"TAG" + bytes(125)
    picture = b"ID3\x03\0\0\0\0\x10\0" + bytes(2048)
    for content in (WHOLE["mp3"](ONE) + tag, picture * 2 + WHOLE["mp3 by ffmpeg"](ONE), WHOLE["wav"](ONE) + tag):
        assert len(heard(content)) / RATE == pytest.approx(1.5, abs=0.15)


def test_a_header_that_counts_itself_is_no_cut() -> None:
    content = bytearray(WHOLE["wav"](ONE))
    content[40:44] = (len(content) - 8).to_bytes(4, "little")
    assert np.array_equal(heard(bytes(content)), heard(WHOLE["wav"](ONE)))


@pytest.mark.parametrize(("scale", "said"), [
    (20000.0, r"its peak is .*, 100 % of it would be clipped; scale it to -1 to 1"),
    (2e9, "beyond full scale"),
    (6.0, "beyond full scale"),
])  # fmt: skip
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_float_samples_beyond_full_scale_are_left_out(scale: float, said: str, subtype: str) -> None:
    with pytest.raises(UnusableError, match=said):
        heard(by_libsndfile("WAV", subtype)(scale * ONE.astype(np.float64)))


def test_an_overshoot_is_kept_as_it_is() -> None:
    wav = ONE.copy()
    wav[::40] = 1.5
    assert np.array_equal(heard(by_libsndfile("WAV", "FLOAT")(wav)), wav)
    wav[::8] = 1.5
    assert "12 % of it would be clipped" in refused(by_libsndfile("WAV", "FLOAT")(wav))


@pytest.mark.parametrize("rate", [1, 999, 1 << 20, (1 << 31) - 1])
def test_a_rate_that_cannot_be_meant_is_left_out(rate: int) -> None:
    content = bytearray(WHOLE["wav"](np.tile(ONE, 2)))
    content[24:28] = rate.to_bytes(4, "little")
    with pytest.raises(UnusableError, match=f"audio has a rate that cannot be meant \\({rate} Hz\\)"):
        decode_voice(bytes(content), sample_rate=RATE, min_seconds=0.0, max_seconds=1e9)


def level_db(wav: np.ndarray) -> float:
    return float(10 * np.log10(2 * np.mean(wav.astype(np.float64) ** 2)))


@pytest.mark.parametrize(("rate", "wanted"), [(44100, 16000), (48000, 16000), (8000, 16000), (96001, 16000)])
def test_resampling_keeps_the_band_and_suppresses_aliases(rate: int, wanted: int) -> None:
    nyquist = min(rate, wanted) / 2
    inside, beyond = (np.sin(2 * np.pi * share * nyquist * np.arange(rate) / rate) for share in (0.8, 1.2))
    kept = resample(inside.astype(np.float32), rate, wanted)
    assert (len(kept), kept.dtype) == (wanted, np.float32)
    assert level_db(kept[1000:-1000]) == pytest.approx(0.0, abs=0.1)
    if rate > wanted:
        assert level_db(resample(beyond.astype(np.float32), rate, wanted)[1000:-1000]) < -50


def test_generation_hears_the_samples_that_training_reads() -> None:
    wav = np.sin(2 * np.pi * 440 * np.arange(44100) / 44100) / 2
    members = encode("k", wav, 44100, identity="a", split="train", source="test")
    trained = Waveform(1.0, 16000)(Sample("k", members), None)
    assert np.array_equal(decode_voice(members["flac"], sample_rate=16000, min_seconds=0.1), trained)


def test_many_channels_are_mixed_and_too_much_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = by_libsndfile("WAV")(np.tile(ONE[:, None], 255))
    assert np.abs(heard(content) - ONE).max() < 1e-3
    monkeypatch.setattr("v2f.data.audio._MAX_VALUES", 100_000)
    assert refused(content) == "audio is too long (24000 frames of 255 channels, at 16000 Hz)"
    assert "channels, at 48000 Hz" in refused(WHOLE["m4a"](np.tile(ONE, 2)))


def test_what_no_container_begins_is_nobodys_business() -> None:
    for content in (b"", b"\xff", b"\xff\xfe", b"just text", bytes(5000), b"\xff\xfb\x90\x64" * 2):
        assert whole.wrong(content) == ""
