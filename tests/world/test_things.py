"""Sounding things: a version never changes, sounds are what their factors say, pictures and videos show the thing."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from v2f.cli import main
from v2f.data.audio import resample
from v2f.errors import V2FError
from v2f.evaluation.label_numbers import spectra
from v2f.metrics.arrays import distances
from v2f.world import scenes, sounds, things
from v2f.world.fingerprint import STEP

BARK, MEOW, BELL, ENGINE = range(4)


@pytest.fixture
def unverified() -> Iterator[None]:
    things.things_hash.cache_clear()
    yield
    things.things_hash.cache_clear()


def sounding(ids: np.ndarray, rate: int = 4000, seconds: float = 1.8, **factors: float) -> np.ndarray:
    """Sounds of take 0 of things, with some factors set: [N,T]."""
    heard_NF = things.sound_factors(ids, ids * 0)
    for name, value in factors.items():
        heard_NF[:, things.SOUND.index(name)] = value
    return sounds.render_sounds(things.classes(ids), heard_NF, np.stack([ids, ids * 0], 1), seconds, rate)


def of_class(number: int, count: int = 20) -> np.ndarray:
    return np.arange(count) * 4 + number


def test_a_version_makes_what_it_always_made_and_rounds_far_from_an_edge() -> None:
    assert things.OUTPUT_HASHES[things.VERSION] == things.outputs_hash() == things.things_hash()
    for name, values in things.outputs():
        if name.startswith("sounds"):
            from_edge = np.abs(values / STEP - np.floor(values / STEP) - 0.5)
            assert from_edge.min() > 5e-4, name
            assert np.abs(values / STEP).max() < 1000


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [(things, "_PAUSE_S", 0.3), (sounds, "_MEOW_HZ", 521.0), (scenes, "_SPAN", 1.01)],
    ids=["calls", "sounds", "scenes"],
)
def test_a_change_is_refused(
    module: object, name: str, value: float, monkeypatch: pytest.MonkeyPatch, unverified: None
) -> None:
    monkeypatch.setattr(module, name, value)
    if name == "_PAUSE_S":
        monkeypatch.setattr(things, "_LATEST_S", 0.34)  # takes of 1.8 s have one group of calls
    with pytest.raises(V2FError, match=r'recorded for version 1.*add "NUMBER": "[0-9a-f]{64}" to its OUTPUT_HASHES'):
        things.things_hash()


def test_a_cpu_with_fewer_instructions_makes_the_same() -> None:
    old = {"NPY_DISABLE_CPU_FEATURES": "X86_V4 X86_V3 AVX512_ICL AVX2 FMA3"}
    code = "from v2f.world.things import outputs_hash; print(outputs_hash())"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=os.environ | old, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == things.OUTPUT_HASHES[things.VERSION], done.stderr


def test_factors_are_uniform_independent_and_those_of_a_thing_stay() -> None:
    ids = np.repeat(np.arange(2000), 2)
    takes = np.tile([0, 1], 2000)
    heard_NF, seen_NF = things.sound_factors(ids, takes), things.picture_factors(ids, takes)
    both = np.concatenate([heard_NF, seen_NF], 1)
    assert np.bincount(things.classes(ids)).tolist() == [1000] * 4
    assert np.abs(both).max() < 1
    np.testing.assert_allclose(both.std(0), 3**-0.5, atol=0.02)
    assert np.abs(np.corrcoef(both.T) - np.eye(both.shape[1])).max() < 0.06
    for values in (heard_NF, seen_NF):
        assert np.array_equal(values[::2, :3], values[1::2, :3])
        assert (values[::2, 3:] != values[1::2, 3:]).all()
    assert not np.array_equal(heard_NF, things.sound_factors(ids, takes, seed=1))


def test_a_sound_depends_on_its_own_row_alone_and_is_in_range() -> None:
    ids = np.arange(24)
    whole = sounding(ids)
    assert whole.shape == (24, 7200)
    assert np.array_equal(sounding(ids[5:8]), whole[5:8])
    assert np.abs(whole).max() <= 1
    assert np.abs(whole).max(1).min() > 0.35
    assert np.array_equal(
        scenes.render_things(ids[3:5] % 4, things.picture_factors(ids, ids * 0)[3:5]).shape[1:], (64, 64, 3)
    )


def test_pitch_is_the_frequency_that_sounds() -> None:
    low, high = (sounding(of_class(BELL, 6), pitch=each, count=-1.0) for each in (-0.9, 0.9))
    for wav_NT, prime in ((low, 430 * 2**-0.54), (high, 430 * 2**0.54)):
        power_NK = np.abs(np.fft.rfft(wav_NT, axis=1)) ** 2
        hz_K = np.fft.rfftfreq(7200, 1 / 4000)
        at_prime = power_NK[:, np.abs(hz_K - prime) < 4].sum(1)
        beside = power_NK[:, (np.abs(hz_K - 1.09 * prime) < 4)].sum(1)
        assert (at_prime > 100 * beside).all()
    fast = sounding(of_class(ENGINE, 4), pitch=1.0, bend=-1.0)
    strokes = 38 * 2**0.7
    lag = round(4000 / strokes * 4)  # one cycle of four strokes
    for wav_T in fast:
        alike = np.corrcoef(wav_T[:-lag], wav_T[lag:])[0, 1]
        assert alike > 0.8


def test_meows_and_bells_are_tonal_and_barks_are_not() -> None:
    """Spectral flatness of the loudest 64 ms: near 0 for partials, higher for noise."""
    flat = {}
    for number, name in enumerate(things.CLASSES):
        flat[name] = []
        for wav_T in sounding(of_class(number), texture=0.5):
            frame_FW = np.lib.stride_tricks.sliding_window_view(wav_T, 256)[::64] * np.hanning(256)
            loud = frame_FW[(frame_FW**2).sum(1).argmax()]
            power_K = np.abs(np.fft.rfft(loud))[4:] ** 2
            flat[name].append(np.exp(np.log(power_K).mean()) / power_K.mean())
    assert max(np.median(flat[name]) for name in things.TONAL) < 0.02
    assert np.median(flat["bark"]) > 0.1


def test_a_listener_tells_the_classes_apart_and_length_count_and_start_are_heard() -> None:
    ids = np.arange(160)
    features = spectra(torch.from_numpy(sounding(ids)), 4000)
    apart = distances(*[(features / features.std(0)).astype(np.float64)] * 2)
    np.fill_diagonal(apart, np.inf)
    assert (things.classes(ids[apart.argmin(1)]) == things.classes(ids)).mean() > 0.97
    assert [len(things.calls(BARK, np.array([0, 0, 0, 0, each, 0, 0, 0.0]), 1.8)) for each in (-0.9, -0.1, 0.9)] == [
        1,
        2,
        4,
    ]
    late, soon = (sounding(of_class(MEOW), start=each) for each in (1.0, -1.0))
    begins = [(np.abs(each) > 0.05).argmax(1) / 4000 for each in (late, soon)]
    assert (begins[0] - begins[1]).min() > 0.2
    assert (np.abs(sounding(of_class(BARK, 4), seconds=6.0)[:, 8000:]) > 0.1).any(1).all()  # it goes on


def test_the_sound_of_another_rate_has_the_same_spectrum() -> None:
    for number in (MEOW, BELL, ENGINE):
        ids = of_class(number, 4)
        for low_T, high_T in zip(sounding(ids), sounding(ids, 16_000), strict=True):
            levels = []
            for wav_T in (low_T, resample(high_T, 16_000, 4000)):
                power_K = np.abs(np.fft.rfft(wav_T)[:2880]) ** 2  # below 1.6 kHz
                levels.append(np.log(power_K.reshape(48, -1).sum(1) + 1e-3))
            assert np.corrcoef(*levels)[0, 1] > 0.95, things.CLASSES[number]


def test_what_cannot_be_made_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = np.arange(3)
    with pytest.raises(V2FError, match=r"factors \[N,8\] and keys \[N,2\] of the same N; got \[2\], \[3, 8\]"):
        sounds.render_sounds(ids[:2], things.sound_factors(ids, ids), np.stack([ids, ids], 1), 1.0)
    with pytest.raises(V2FError, match=r"a sound of 1 s at 10 Hz"):
        sounding(ids, rate=10, seconds=1.0)
    with pytest.raises(V2FError, match=r"factors \[N,10\] of the same N"):
        scenes.render_things(ids[:2], things.picture_factors(ids, ids))
    with pytest.raises(V2FError, match="32 or more"):
        scenes.render_things(ids, things.picture_factors(ids, ids), 20)
    with pytest.raises(V2FError, match="non-negative"):
        things.sound_factors(-ids, ids)
    for words, told in ((["moo"], "no class is named 'moo'; choose bark"), (["bark", "--size", "65"], "an even side")):
        assert main(["shards", "film", *words, "-o", str(tmp_path / "x.mp4")]) == 1
        assert told in capsys.readouterr().err
    assert main(["shards", "film", "bark", "-o", str(tmp_path / "x.gif")]) == 1
    assert "name the output something.mp4" in capsys.readouterr().err


@pytest.mark.parametrize("with_sound", [False, True])
def test_a_film_shows_the_thing_as_it_sounds(with_sound: bool, tmp_path: Path) -> None:
    path = str(tmp_path / "dog.mp4")
    assert main(["shards", "film", "bark", "--number", "3", "-o", path, *(["--sound"] if with_sound else [])]) == 0
    with av.open(path) as container:
        assert len(container.streams.audio) == with_sound
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    drawn = scenes.render_frames(12, 0, 1.8)
    assert frames.shape == drawn.shape == (22, 64, 64, 3)
    assert np.abs(frames.astype(float) - drawn).mean() < 6
    still = np.abs(np.diff(drawn.astype(float), axis=0)).mean((1, 2, 3))
    assert still.max() > 1  # its mouth moves
    sounding_calls = things.calls(BARK, things.sound_factors(np.array([12]), np.array([0]))[0], 1.8)
    assert still[: int(sounding_calls[0].start * 12.5) - 1].sum() == 0  # and rests before it barks
