"""The script for launchers: ``accelerate launch v2f/train.py --config RECIPE.yaml [dotted.key=value ...]``, or, without
a clone of the repository, ``accelerate launch -m v2f.train ...``.

It is never imported: ``v2f.train`` is a function (docs/api.md).
"""

import signal

if __name__ == "__main__":
    # First of all: until the loop installs its handler, the signal that requests a profile would end the process.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)

import sys
from pathlib import Path

if __name__ == "__main__":
    if globals()["__spec__"] is None:  # not `python -m v2f.train`
        # A script's folder comes first on sys.path, where config.py and others would shadow those of other packages.
        here = Path(__file__).resolve().parent
        sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p or ".").resolve() != here)]
    from v2f.errors import entry_point
    from v2f.training.command import main

    sys.exit(entry_point(main)())
