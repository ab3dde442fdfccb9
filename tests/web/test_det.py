"""The drawing of a DET curve."""

import re
from statistics import NormalDist

import numpy as np
import pytest

from v2f.web.det import SIDE, det


def test_normal_scores_give_a_straight_line_that_crosses_the_equal_error_rate() -> None:
    same, different = NormalDist(1.5), NormalDist()
    alarm = [0.05, 0.1, 0.2, 0.3, 0.4, 0.6]
    miss = [same.cdf(different.inv_cdf(1 - each)) for each in alarm]
    drawn = det({"false_alarm": alarm, "miss": miss}, NormalDist().cdf(-0.75))
    x, y = np.array(re.findall(r"[ML](\S+) ([^ML]+)", drawn.path), float).T
    slope, _ = np.polyfit(x, y, 1)
    assert np.diff(y) == pytest.approx(slope * np.diff(x), abs=0.2)
    assert np.interp(drawn.equal, x, SIDE - y) == pytest.approx(drawn.equal, abs=0.2)


def test_the_curve_stays_in_its_box() -> None:
    drawn = det({"false_alarm": [0.0, 1.0], "miss": [1.0, 0.0]}, 0.0)
    assert drawn.path == f"M{SIDE:.1f} {SIDE:.1f}"  # a point above the box is left out
    assert drawn.equal == 0
