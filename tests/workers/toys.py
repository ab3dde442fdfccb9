"""One rank of a training run of each toy in turn; arguments: recipes, each followed by a colon and a free port."""

import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from accelerate.state import AcceleratorState  # noqa: E402
from toys import TOYS  # noqa: E402

from v2f.runs.config import load_config  # noqa: E402
from v2f.systems import SYSTEMS  # noqa: E402
from v2f.training.trainer import fit  # noqa: E402

SYSTEMS.update(TOYS)
os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # the launcher's store knows one process group alone
for argument in sys.argv[1:]:
    recipe, os.environ["MASTER_PORT"] = argument.rsplit(":", 1)
    fit(load_config(recipe))
    AcceleratorState._reset_state(reset_partial_state=True)
