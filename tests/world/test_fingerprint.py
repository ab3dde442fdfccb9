"""A version of the world is identified by what it draws: a change of an output changes its hash, a rename does not."""

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from v2f import standins, world
from v2f.errors import V2FError
from v2f.world import OUTPUT_HASHES, WORLD_HASHES, fingerprint, people, portraits, voices
from v2f.world.fingerprint import STEP, outputs, outputs_hash


@pytest.fixture
def unverified() -> Iterator[None]:
    world.world_hash.cache_clear()
    yield
    world.world_hash.cache_clear()


def test_the_world_is_frozen() -> None:
    assert OUTPUT_HASHES[people.VERSION] == outputs_hash(), "give people.VERSION a new number, or undo the change"


def test_files_of_version_1_carry_the_hash_that_they_always_had() -> None:
    assert people.VERSION == "1"
    assert world.world_hash() == world.recorded_hash() == WORLD_HASHES["1"]
    assert WORLD_HASHES["1"] == "92e2ce40d7e98f212c0c68e5768734c2a69dd19b7ce6de9db6f1f6f08482a315"


CHANGES = [
    (people, "_TAIL", people._TAIL * 1.01),
    (people, "LIMIT", 2.0),
    (portraits, "_SHARED", 0.93),
    (portraits, "_IRIS", ((0.21, 0.11, 0.06), *portraits._IRIS[1:])),
    (voices, "_MOOD_STEP", 0.026),
    (voices, "_FLOOR_DB", -47.0),
    (voices, "_ROOM_STEP", 3.2),
]


@pytest.mark.parametrize(("module", "name", "value"), CHANGES, ids=[name for _, name, _ in CHANGES])
def test_a_changed_constant_changes_the_hash(
    module: object, name: str, value: object, monkeypatch: pytest.MonkeyPatch, unverified: None
) -> None:
    monkeypatch.setattr(module, name, value)
    with pytest.raises(V2FError, match=r"does not draw the outputs recorded for version 1.*people\.VERSION"):
        world.world_hash()


def test_a_version_without_a_record_is_told_the_line_to_add(monkeypatch: pytest.MonkeyPatch, unverified: None) -> None:
    monkeypatch.setattr(world, "VERSION", "2")
    with pytest.raises(V2FError, match=rf'add "NUMBER": "{outputs_hash()}" to OUTPUT_HASHES'):
        world.world_hash()


def test_no_output_lies_where_the_last_bits_could_round_it_another_way() -> None:
    """CPUs differ by less than 1e-6 in projections of clips, and by a few 1e-7 in factors."""
    for name, values in outputs():
        if values.dtype != np.uint8:
            step = values.astype(np.float64) / STEP
            assert np.abs(step - np.floor(step) - 0.5).min() * STEP > (2e-5 if "clips" in name else 2e-6), name


def test_a_cpu_with_fewer_instructions_gives_the_same_hash() -> None:
    old = {"NPY_DISABLE_CPU_FEATURES": "X86_V4 X86_V3 AVX512_ICL AVX2 FMA3", "OPENBLAS_CORETYPE": "Prescott"}
    code = "from v2f.world.fingerprint import outputs_hash; print(outputs_hash())"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=os.environ | old, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == OUTPUT_HASHES[people.VERSION], done.stderr


def test_reading_a_stand_in_draws_nothing(monkeypatch: pytest.MonkeyPatch, unverified: None) -> None:
    """It takes longer than drawing one face."""
    monkeypatch.setattr(fingerprint, "outputs_hash", lambda: pytest.fail("drawn"))
    assert standins.info("generator").world_hash == world.recorded_hash()


def test_outputs_are_verified_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    first = world.world_hash()
    monkeypatch.setattr(fingerprint, "outputs_hash", lambda: pytest.fail("drawn again"))
    assert world.world_hash() == first
