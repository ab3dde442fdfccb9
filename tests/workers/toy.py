"""One rank, or the only one, of a training run of the toy of two streams: the recipe is the argument."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from systems.toy_streams import ToyStreams  # noqa: E402

from v2f.runs.config import load_config  # noqa: E402
from v2f.systems import SYSTEMS  # noqa: E402
from v2f.training.trainer import fit  # noqa: E402

SYSTEMS["toy_streams"] = ToyStreams
fit(load_config(sys.argv[1]))
