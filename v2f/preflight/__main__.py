"""``python -m v2f.preflight`` on each rank, see ``launch/preflight``."""

import sys

from v2f.preflight.command import main

if __name__ == "__main__":
    sys.exit(main())
