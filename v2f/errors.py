"""The one error that a user is meant to read: what is wrong, where, and what to do, in one line."""

import logging
import sys
import traceback
from collections.abc import Callable


class V2FError(Exception):
    """A mistake in the input or in the surroundings, not in the program.

    The command line prints its message as one line and leaves with a non-zero code; the traceback is
    shown with ``--debug`` only. Say what is wrong, where (file, shard, sample, key) and the way out.
    """

    again = False
    """Whether starting again, with nothing changed, may help."""


def guarded(command: Callable[[], int | None], *, debug: bool, mistake: int = 1) -> int:
    """Run a command; its exit code: 0 done, ``mistake`` one that a line explains, 1 it broke, 130 interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        return command() or 0
    except V2FError as error:
        if debug:
            raise
        print(f"v2f: {error}", file=sys.stderr)
        return 1 if error.again else mistake
    except KeyboardInterrupt:
        print("v2f: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # a defect of ours: one line for the user, the traceback for whoever asks
        if debug:
            raise
        print(f"v2f: {unexpected(error)} (run again with --debug for the traceback)", file=sys.stderr)
        return 1


def unexpected(error: BaseException) -> str:
    """An error that nobody has foreseen in one line: its kind, its text, and, where it has none, where it arose."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if not text:
        frames = traceback.extract_tb(error.__traceback__)
        text = f"at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else "without a word"
    return f"unexpected {type(error).__name__}: {text}"
