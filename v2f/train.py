"""What ``accelerate launch v2f/train.py --config RECIPE.yaml [dotted.key=value ...]`` runs, or, where no clone is,
``accelerate launch -m v2f.train ...``.

A script, never imported: ``v2f.train`` is a function (docs/api.md).
"""

import signal

if __name__ == "__main__":
    # Before anything else: until the loop runs, the signal that asks for a profile would end the process.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)

import sys
from pathlib import Path

if __name__ == "__main__":
    if globals()["__spec__"] is None:  # and not `python -m v2f.train`
        # A script's own folder stands first on sys.path, where evaluate.py or config.py would shadow other packages'.
        here = Path(__file__).resolve().parent
        sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p or ".").resolve() != here)]
    from v2f.errors import spoken
    from v2f.training.command import main

    sys.exit(spoken(main)())
