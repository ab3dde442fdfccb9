"""``python -m v2f``: what the command ``v2f`` does."""

import sys

from v2f.cli import main

if __name__ == "__main__":
    sys.exit(main())
