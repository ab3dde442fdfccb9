"""Messages for the person at the terminal."""

import sys


def say(message: str) -> None:
    """Print one line to stderr, above a progress bar if one is drawn."""
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)
