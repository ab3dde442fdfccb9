"""Primitive monochrome pictures: a version of them never changes, and the class says nothing about the factors."""

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from v2f.errors import V2FError
from v2f.world import shapes


@pytest.fixture
def unverified() -> Iterator[None]:
    shapes.shapes_hash.cache_clear()
    yield
    shapes.shapes_hash.cache_clear()


def test_a_version_draws_what_it_always_drew() -> None:
    assert shapes.OUTPUT_HASHES[shapes.VERSION] == shapes.outputs_hash() == shapes.shapes_hash()


def test_a_changed_stroke_is_refused(monkeypatch: pytest.MonkeyPatch, unverified: None) -> None:
    lines = list(shapes._LINES)
    lines[7] = (((-0.27, -0.50), (0.27, -0.50), (-0.08, 0.49)),)
    monkeypatch.setattr(shapes, "_LINES", tuple(lines))
    found = shapes.outputs_hash()
    with pytest.raises(V2FError, match=f'recorded for version 1.*add "NUMBER": "{found}" to its OUTPUT_HASHES'):
        shapes.shapes_hash()


def test_a_cpu_with_fewer_instructions_draws_the_same() -> None:
    old = {"NPY_DISABLE_CPU_FEATURES": "X86_V4 X86_V3 AVX512_ICL AVX2 FMA3"}
    code = "from v2f.world.shapes import outputs_hash; print(outputs_hash())"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=os.environ | old, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == shapes.OUTPUT_HASHES[shapes.VERSION], done.stderr


def test_factors_are_uniform_and_independent_of_the_class() -> None:
    ids = np.arange(4000)
    factor_NF, class_N = shapes.factors(ids), shapes.classes(ids)
    assert np.bincount(class_N).tolist() == [400] * 10
    assert np.abs(factor_NF).max() < 1
    np.testing.assert_allclose(factor_NF.std(0), 3**-0.5, atol=0.02)
    assert np.abs(np.corrcoef(factor_NF.T) - np.eye(len(shapes.FACTORS))).max() < 0.06
    for number in range(10):
        assert np.abs(factor_NF[class_N == number].mean(0)).max() < 0.1
    assert not np.array_equal(factor_NF, shapes.factors(ids, seed=1))


def test_a_picture_depends_on_its_own_number_alone_and_shows_its_factors() -> None:
    ids = np.arange(200)
    class_N, factor_NF = shapes.classes(ids), shapes.factors(ids)
    whole = shapes.render_shapes(class_N, factor_NF, 28)
    assert np.array_equal(shapes.render_shapes(class_N[7:9], factor_NF[7:9], 28), whole[7:9])
    assert (whole[:, 0].max(), whole[:, -1].max(), whole[:, :, 0].max(), whole[:, :, -1].max()) == (0, 0, 0, 0)
    place = (whole[..., 0].astype(float) * np.arange(28)).sum((1, 2)) / whole.sum((1, 2, 3))
    of = {name: factor_NF[:, column] for column, name in enumerate(shapes.NAMES)}
    assert np.corrcoef(place, of["x"])[0, 1] > 0.9
    assert np.corrcoef(whole.max((1, 2, 3)), of["gray"])[0, 1] > 0.95


def test_what_cannot_be_drawn_is_one_clear_line() -> None:
    ids = np.arange(3)
    with pytest.raises(V2FError, match=r"factors \[N,7\] of the same N; got \[2\] and \[3, 7\]"):
        shapes.render_shapes(ids[:2], shapes.factors(ids))
    with pytest.raises(V2FError, match="16 or more"):
        shapes.render_shapes(ids, shapes.factors(ids), 12)
    with pytest.raises(V2FError, match="non-negative"):
        shapes.factors(np.array([-1]))
