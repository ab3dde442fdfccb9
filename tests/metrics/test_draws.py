"""Several draws for one voice, by hand."""

import numpy as np
import pytest

from v2f.metrics import identity_distance, mean_embedding, nearest_draw, spread

DRAWS = np.array([[[2.0, 0.0], [1.0, 0.0]], [[0.0, 3.0], [1.0, 0.0]], [[1.0, 1.0], [5.0, 0.0]]], np.float32)  # [3,2,2]


def test_the_mean_the_middle_and_the_spread() -> None:
    mean_ND = mean_embedding(DRAWS)
    assert mean_ND.dtype == np.float32
    np.testing.assert_allclose(mean_ND, [[0.5**0.5, 0.5**0.5], [1.0, 0.0]], atol=1e-6)
    assert nearest_draw(DRAWS, mean_ND)[0] == 2
    assert spread(DRAWS)[1] == pytest.approx(0.0, abs=1e-12)
    assert spread(DRAWS)[0] == pytest.approx(identity_distance(DRAWS[:, 0]))
    assert spread(DRAWS)[0] == pytest.approx((1 + 2 * (1 - 0.5**0.5)) / 3)
