"""Local files: what is opened is a file, what is appended is a whole line, and what fails is said with its way out.

    OSError, or what a library in Rust makes of one -> V2FError: path, why, what to do; may it help to start again?

A FIFO, a socket or a device in the place of a file would hold whoever opens it for ever. Every error of a write comes
through :func:`explained`, with which :mod:`v2f.storage.store` writes, too.
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
# Why, and the way out; what stands here stays so until somebody mends it, whatever else may pass.
_LASTING = {
    errno.EROFS: f"the file system is read-only; {_PLACE}, or have it mounted for writing",
    errno.EACCES: "access is denied; check its rights or credentials",
    errno.EPERM: "access is denied; check its rights or credentials",
    errno.ENAMETOOLONG: "its name is too long for the file system; choose a shorter one",
    errno.ELOOP: "its links lead in a circle; mend them",
    errno.EFBIG: f"it is larger than the file system or `ulimit -f` allows; raise the limit, or {_PLACE}",
    errno.EMFILE: "too many files are open; raise the limit (`ulimit -n`)",
    errno.EINVAL: f"the system does not take it (Invalid argument); {_PLACE}",
}
_PASSING = {
    errno.ENOSPC: f"the disk is full; make room, or {_PLACE}",
    errno.EDQUOT: f"the quota of this disk is used up; make room, or {_PLACE}",
    errno.EIO: "the disk or its connection fails (Input/output error); look into the machine's log",
    errno.ESTALE: "the network disk has lost it (Stale file handle); look whether its server is well",
}
_MISSING = (errno.ENOENT, errno.ENOTDIR)
_IN_THE_WAY = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY)
_RUST = re.compile(r"\(os error (\d+)\)")


class PassingError(V2FError):
    """The disk could not do it now; later, or with more room, it may."""

    again = True


class NotAFileError(OSError):
    """What would be opened is something else than a file; the text says what."""


def opened(path: str | os.PathLike[str], mode: str = "rb", **kinds: Any) -> IO[Any]:
    """``open`` of a file, and of nothing else: :class:`NotAFileError` at once for what has no content of its own."""
    return open(path, mode, opener=_regular, **kinds)


def _regular(path: str, flags: int) -> int:
    try:
        # Without O_NONBLOCK, to open a FIFO waits for whoever opens its other end; to a file it means nothing.
        file = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket; a FIFO that nobody reads; no such device
            check_file(path)
        raise
    try:
        _check(os.fstat(file).st_mode)
    except BaseException:
        os.close(file)
        raise
    return file


def check_file(path: str | os.PathLike[str]) -> os.stat_result:
    """What the system knows of a file; :class:`NotAFileError` if it is something else."""
    known = os.stat(path)
    _check(known.st_mode)
    return known


def _check(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NotAFileError(f"it is {_KINDS.get(stat.S_IFMT(mode), 'something else')} and no file")


@contextlib.contextmanager
def explained(path: str | os.PathLike[str], verb: str = "write", place: str | None = None) -> Iterator[None]:
    """Turns an error of the operating system into one line: ``path``, why it cannot be read, written, ..., what to do.

    ``place``: where it really lies, if ``path`` is what it is called. :class:`PassingError` where starting again may
    help, a full disk for example. What else a library raises passes.
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
    """The line for an error of the operating system, see :func:`explained`; None for another."""
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
        return V2FError(f"{begins}it is a folder and no file; name a file")
    if code in _LASTING:
        return V2FError(begins + _LASTING[code])
    if code in _PASSING:
        return PassingError(begins + _PASSING[code])
    if code is None:
        return V2FError(f"{path}: cannot {verb} it ({type(error).__name__})")
    return PassingError(f"{path}: cannot {verb} it ({os.strerror(code)})")


def strerror(error: OSError) -> str:
    """Why, in few words, for a message that goes on."""
    return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__


def _code(error: Exception) -> int | None:
    """The system's number of an error; but what Python's ssl keeps there is OpenSSL's."""
    if isinstance(error, OSError):
        return error.errno if type(error).__module__ in ("builtins", __name__) else None
    found = _RUST.search(str(error))  # safetensors: Error while serializing: I/O error: ... (os error 28)
    return int(found[1]) if found else None


def _in_the_way(path: str) -> str:
    """The file where ``path`` wants a folder, or the folder where it wants a file."""
    at = path = path.removeprefix("file://")
    while (above := os.path.dirname(at)) not in ("", at):
        if os.path.lexists(above):
            return f"the file {above}" if not os.path.isdir(above) else "a folder" if os.path.isdir(at) else "a file"
        at = above
    return "a folder" if os.path.isdir(path) else f"the file {at}"


# ---------------------------------------------------------------------------------------------- what grows


class Lines:
    """A file that grows by whole lines: what a full disk took of one that failed is cut off before the next.

    So is, when it is opened, the end of a line that a kill has cut. OSError where the file cannot be written.
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
        """Append ``line``, which ends a line, all of it or nothing."""
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
    """The bytes of a file up to the end of its last whole line."""
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
    """One more whole line of a file; V2FError where that cannot be."""
    with explained(path), contextlib.closing(Lines(path)) as lines:
        lines.write(line.encode() + b"\n")


# ------------------------------------------------------------------------------------------------ scratch


def scratch() -> str:
    """The folder for what is here only for a while: V2F_SCRATCH, else one of this user in the temporary folder."""
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
    """A new folder in :func:`scratch`, which goes with all that is in it."""
    with explained(scratch()):
        os.makedirs(scratch(), exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=scratch())
    with folder as path:
        yield path
