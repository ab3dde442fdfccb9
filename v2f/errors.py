"""The one error that a user is meant to read (what is wrong, where, and what to do, in one line), and how a command
speaks to whoever reads it."""

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
"""The exit code of a command whose output nobody reads any more, as ``| head`` leaves it: what SIGPIPE gives."""

P = ParamSpec("P")
T = TypeVar("T")


class V2FError(Exception):
    """A mistake in the input or in the surroundings, not in the program.

    The command line prints its message as one line and leaves with a non-zero code; the traceback is
    shown with ``--debug`` only. Say what is wrong, where (file, shard, sample, key) and the way out.
    """

    again = False
    """Whether starting again, with nothing changed, may help."""


def spoken(main: Callable[P, T]) -> Callable[P, T | int]:
    """Make ``main`` an entry point, whose output is the business of whoever reads it.

    A character that a stream cannot encode is written as its escape. Where nobody reads any more, ``main`` ends
    quietly, with :data:`UNREAD`. All output is written when it returns: nothing is left to fail when Python ends.
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
            if isinstance(left.__context__, BrokenPipeError):  # rich's way to end quietly
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
        _tell(f"v2f: what it says cannot be written to where stdout leads ({error.strerror})")
        raise SystemExit(1) from None


def _unread() -> bool:
    """Whether nobody reads stdout or stderr any more; what is written there from now on is dropped."""
    gone: list[int] = []
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or no file of the operating system
            poll = select.poll()
            poll.register(stream.fileno(), 0)  # asks for nothing but what is always told: an error, a hang-up
            if poll.poll(0):
                gone.append(stream.fileno())
    _drop(gone)
    return bool(gone)


def _drop(numbers: Sequence[int]) -> None:
    """Let what is written to these files of the operating system go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in numbers:
        os.dup2(nowhere, number)
    os.close(nowhere)


def guarded(command: Callable[[], int | None], *, debug: bool, mistake: int = 1) -> int:
    """Run a command; its exit code: 0 done, ``mistake`` one that a line explains, 1 it broke, 130 interrupted,
    :data:`UNREAD` nobody reads what it says."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        return command() or 0
    except V2FError as error:
        if debug:
            raise
        _tell(f"v2f: {error}")
        return 1 if error.again else mistake
    except KeyboardInterrupt:
        _tell("v2f: interrupted")
        return 130
    except Exception as error:  # a defect of ours: one line for the user, the traceback for whoever asks
        if isinstance(error, BrokenPipeError) and _unread():
            return UNREAD
        if debug:
            raise
        _tell(f"v2f: {unexpected(error)} (run again with --debug for the traceback)")
        return 1


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # the exit code counts for more than the line, if nobody is there to read it
        print(line, file=sys.stderr)


def first_line(text: object, otherwise: str = "") -> str:
    """The first line of an error's or a program's text that is not empty, or ``otherwise``."""
    return next((line.strip() for line in str(text).splitlines() if line.strip()), otherwise)


def unexpected(error: BaseException) -> str:
    """One line for an error that we did not expect: its type and text, or, if it has no text, where it was raised."""
    text = first_line(error)
    if not text:
        frames = traceback.extract_tb(error.__traceback__)
        text = f"at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else "without a word"
    return f"unexpected {type(error).__name__}: {text}"
