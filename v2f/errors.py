"""The error that is meant for the user (one line: what is wrong, where, what to do), and the output and exit codes of
commands."""

import contextlib
import functools
import io
import logging
import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

UNREAD = 141
"""The exit code of a command whose output is no longer read, as after ``| head``: the same as for SIGPIPE."""

P = ParamSpec("P")
T = TypeVar("T")


class V2FError(Exception):
    """An error in the input or the environment, not in the program.

    The command line prints the message as one line and exits with a non-zero code; only ``--debug`` shows the
    traceback. The message says what is wrong, where (file, shard, sample, key), and what to do.
    """

    retryable = False
    """Whether starting again without changes may help."""

    def at(self, where: str) -> "V2FError":
        """The same error, with its place before the message."""
        located = V2FError(f"{where}: {self}")
        located.retryable = self.retryable
        return located


def entry_point(main: Callable[P, T]) -> Callable[P, T | int]:
    """Make ``main`` an entry point that handles problems of its output.

    Characters that a stream cannot encode are written as escapes. If nobody reads the output any more, ``main`` ends
    without a message and returns :data:`UNREAD`. All output is flushed when it returns, so that nothing can fail at
    Python's exit.
    """

    @functools.wraps(main)
    def entered(*args: P.args, **kwargs: P.kwargs) -> T | int:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            try:
                return main(*args, **kwargs)
            finally:
                _flush()
        except BrokenPipeError:
            if not _unread():
                raise
            return UNREAD
        except SystemExit as left:
            if isinstance(left.__context__, BrokenPipeError):  # rich exits this way
                return UNREAD
            raise

    return entered


def _flush() -> None:
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a terminal that hung up
        _drop([sys.stdout.fileno()])
        _print_error(f"v2f: cannot write to stdout ({error.strerror}); free space, or redirect it elsewhere")
        raise SystemExit(1) from None


def _unread() -> bool:
    """Whether nobody reads stdout or stderr any more; if so, further output there is dropped."""
    gone: list[int] = []
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # it is closed, or has no file descriptor
            poll = select.poll()
            poll.register(stream.fileno(), 0)  # no events but those that are always reported: an error, a hang-up
            if poll.poll(0):
                gone.append(stream.fileno())
    _drop(gone)
    return bool(gone)


def _drop(numbers: Sequence[int]) -> None:
    """Redirect these file descriptors to /dev/null."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in numbers:
        os.dup2(nowhere, number)
    os.close(nowhere)


def guarded(command: Callable[[], int | None], *, debug: bool, error_code: int = 1) -> int:
    """Run a command and return its exit code: 0 success, ``error_code`` for a V2FError, 1 for an unexpected error or
    one where starting again may help, 130 interrupted, :data:`UNREAD` if nobody reads its output."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        return command() or 0
    except V2FError as error:
        if debug:
            raise
        _print_error(f"v2f: {error}")
        return 1 if error.retryable else error_code
    except KeyboardInterrupt:
        _print_error("v2f: interrupted")
        return 130
    except Exception as error:  # a defect in v2f: one line, and the traceback on request
        if isinstance(error, BrokenPipeError) and _unread():
            return UNREAD
        if debug:
            raise
        _print_error(f"v2f: {unexpected(error)} (run again with --debug for the traceback)")
        return 1


def _print_error(line: str) -> None:
    with contextlib.suppress(OSError):  # if stderr cannot be written, the exit code still matters
        print(line, file=sys.stderr)


def first_line(text: object, otherwise: str = "") -> str:
    """The first line of an error's or a program's text that is not empty, or ``otherwise``."""
    return next((line.strip() for line in str(text).splitlines() if line.strip()), otherwise)


def unexpected(error: BaseException) -> str:
    """An unexpected error in one line: its type and its text or, without a text, where it was raised."""
    text = first_line(error)
    if not text:
        frames = traceback.extract_tb(error.__traceback__)
        text = f"at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else "no message"
    return f"unexpected {type(error).__name__}: {text}"
