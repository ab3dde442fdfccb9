"""Local files: open regular files only, append whole lines, and explain errors.

    OSError, also one wrapped by a library in Rust -> V2FError: path, reason, what to do; whether to start again

Opening a FIFO, a socket or a device could block forever, so anything but a regular file is an error. All errors of
writes go through :func:`explained`; :mod:`v2f.storage.store` uses it, too.
"""

import contextlib
import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from v2f.errors import V2FError

SCRATCH = "V2F_SCRATCH"

_KINDS = {
    stat.S_IFIFO: "a FIFO (named pipe)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
_PLACE = "choose another place"
# The reason and what to do. These errors last until somebody acts; those in _PASSING may go away.
_LASTING = {
    errno.EROFS: f"the file system is read-only; {_PLACE}, or mount it for writing",
    errno.EACCES: "access is denied; check your permissions and credentials",
    errno.EPERM: "access is denied; check your permissions and credentials",
    errno.ENAMETOOLONG: "its name is too long for the file system; choose a shorter one",
    errno.ELOOP: "its links form a loop; correct them",
    errno.EFBIG: f"it is larger than the file system or `ulimit -f` allows; raise the limit, or {_PLACE}",
    errno.EMFILE: "too many files are open; raise the limit (`ulimit -n`)",
    errno.EINVAL: f"the system rejects it (Invalid argument); {_PLACE}",
}
_PASSING = {
    errno.ENOSPC: f"the disk is full; make room, or {_PLACE}",
    errno.EDQUOT: f"the quota of this disk is used up; make room, or {_PLACE}",
    errno.EIO: "the disk or its connection fails (Input/output error); check the machine's log",
    errno.ESTALE: "the network disk has lost it (Stale file handle); check its server",
}
_MISSING = (errno.ENOENT, errno.ENOTDIR)
_IN_THE_WAY = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY)
_RUST = re.compile(r"\(os error (\d+)\)")


class PassingError(V2FError):
    """The disk failed, but may succeed later or with more space."""

    retryable = True


class NotAFileError(OSError):
    """The path is not a regular file; the text says what it is."""


def opened(path: str | os.PathLike[str], mode: str = "rb", **kinds: Any) -> IO[Any]:
    """``open`` for regular files only: :class:`NotAFileError` for anything else, without blocking."""
    return open(path, mode, opener=_regular, **kinds)


def _regular(path: str, flags: int) -> int:
    try:
        # Without O_NONBLOCK, opening a FIFO waits for its other end; for a regular file the flag has no effect.
        file = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket, a FIFO without a reader, a missing device
            check_file(path)
        raise
    try:
        _check(os.fstat(file).st_mode)
    except BaseException:
        os.close(file)
        raise
    return file


def check_file(path: str | os.PathLike[str]) -> os.stat_result:
    """``os.stat`` of a regular file; :class:`NotAFileError` if it is anything else."""
    known = os.stat(path)
    _check(known.st_mode)
    return known


def _check(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NotAFileError(f"it is {_KINDS.get(stat.S_IFMT(mode), 'something else')} and no file")


@contextlib.contextmanager
def explained(path: str | os.PathLike[str], verb: str = "write", place: str | None = None) -> Iterator[None]:
    """Turns an error of the operating system into a V2FError of one line: ``path``, the reason, what to do.

    ``place``: the actual path, if ``path`` is only its name in messages. :class:`PassingError` if starting again may
    help, for example after a full disk. Other exceptions pass through.
    """
    try:
        yield
    except V2FError:
        raise
    except Exception as error:
        line = explanation(os.fspath(path), verb, error, place)
        if line is None:
            raise
        raise line from None


def explanation(path: str, verb: str, error: Exception, place: str | None = None) -> V2FError | None:
    """The V2FError for an error of the operating system, see :func:`explained`; None for any other error."""
    code = _code(error)
    if code is None and not isinstance(error, OSError):
        return None
    begins = f"{path}: cannot {verb} it, "
    if isinstance(error, NotAFileError):
        return V2FError(f"{begins}{error}; move it away, or name another path")
    if verb == "write" and code in _IN_THE_WAY:
        return V2FError(f"{begins}{_in_the_way(place or path)} is in the way; move it away, or {_PLACE}")
    if verb == "write" and code == errno.ENOENT:
        return V2FError(f"{begins}its folder no longer exists; restore it, or {_PLACE}")
    if code in _MISSING or isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return V2FError(f"{begins}there is no such file")
    if code == errno.EISDIR:
        return V2FError(f"{begins}it is a folder; name a file")
    if code in _LASTING:
        return V2FError(begins + _LASTING[code])
    if code in _PASSING:
        return PassingError(begins + _PASSING[code])
    if code is None:
        return V2FError(f"{path}: cannot {verb} it ({type(error).__name__})")
    return PassingError(f"{path}: cannot {verb} it ({os.strerror(code)})")


def strerror(error: OSError) -> str:
    """The reason in a few words, for use within a message."""
    return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__


def _code(error: Exception) -> int | None:
    """The errno of an error; None for errors of Python's ssl module, whose numbers are OpenSSL's."""
    if isinstance(error, OSError):
        return error.errno if type(error).__module__ in ("builtins", __name__) else None
    found = _RUST.search(str(error))  # safetensors: Error while serializing: I/O error: ... (os error 28)
    return int(found[1]) if found else None


def _in_the_way(path: str) -> str:
    """The file that stands where ``path`` needs a folder, or the folder where it needs a file."""
    at = path = path.removeprefix("file://")
    while (above := os.path.dirname(at)) not in ("", at):
        if os.path.lexists(above):
            return f"the file {above}" if not os.path.isdir(above) else "a folder" if os.path.isdir(at) else "a file"
        at = above
    return "a folder" if os.path.isdir(path) else f"the file {at}"


# -------------------------------------------------------------------------------------------- appending


class Lines:
    """A file that is appended to by whole lines. OSError if it cannot be written.

    An incomplete last line, which a full disk or a kill has left, is removed before the next line is written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = opened(path, "a+b", buffering=0)
        try:
            self._size = _whole(self._file)
            self._torn = self._size != os.fstat(self._file.fileno()).st_size
        except BaseException:
            self._file.close()
            raise

    def write(self, line: bytes) -> None:
        """Append ``line``, which ends with a newline: all of it or nothing."""
        if self._torn:
            os.truncate(self._file.fileno(), self._size)
        self._torn = True
        written = self._file.write(line)
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False
        self._size += written

    def close(self) -> None:
        if self._torn:
            with contextlib.suppress(OSError):
                os.truncate(self._file.fileno(), self._size)
        self._file.close()


def _whole(file: IO[bytes]) -> int:
    """The length of a file up to the end of its last complete line."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - (1 << 16))
        file.seek(start)
        chunk = file.read(end - start)
        if (found := chunk.rfind(b"\n")) >= 0:
            return start + found + 1
        end = start
    return 0


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Append one line to a file; V2FError if that fails."""
    with explained(path), contextlib.closing(Lines(path)) as lines:
        lines.write(line.encode() + b"\n")


# ------------------------------------------------------------------------------------------------ scratch


def scratch() -> str:
    """The folder for temporary files: V2F_SCRATCH, or else one for this user in the system's temporary folder."""
    return os.environ.get(SCRATCH) or os.path.join(tempfile.gettempdir(), f"v2f-scratch-{os.getuid()}")


def scratch_file() -> str:
    """The path of a new, empty file in :func:`scratch`."""
    folder = scratch()
    os.makedirs(folder, exist_ok=True)
    handle, path = tempfile.mkstemp(prefix=".writing-", dir=folder)
    os.close(handle)
    return path


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """A new folder in :func:`scratch`, removed with its content when the block ends."""
    with explained(scratch()):
        os.makedirs(scratch(), exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=scratch())
    with folder as path:
        yield path
