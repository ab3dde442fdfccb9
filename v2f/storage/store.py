"""One interface to local files and remote objects: ranged reads, listings, and atomic writes.

    path -> explained -> backend_of(path): local disk | S3 | another store of fsspec -> requests, retried if that helps

A path is a ``str``, because it may be remote. Local paths may be plain or begin with ``file://``. Requests for missing
or forbidden files are not retried. Errors are :class:`V2FError` with the path and what to do, without credentials.
"""

import contextlib
import os
import re
from collections.abc import Collection, Iterator

from v2f.errors import V2FError
from v2f.storage import local as files
from v2f.storage import s3
from v2f.storage.backend import Backend
from v2f.storage.backend import ConflictError as ConflictError
from v2f.storage.credentials import redacted, user_in
from v2f.storage.disk import Disk
from v2f.storage.objects import Objects
from v2f.storage.other import OtherStore
from v2f.storage.retry import UnreachableError as UnreachableError
from v2f.storage.retry import count
from v2f.storage.retry import statistics as statistics

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://")


def join(root: str, *parts: str) -> str:
    """``root`` and ``parts`` with one slash between them."""
    return "/".join([root.rstrip("/") if root != "/" else "", *(part.strip("/") for part in parts)])


def local_path(path: str) -> str | None:
    """The path for the operating system; None if ``path`` is remote."""
    scheme = _SCHEME.match(path)
    if scheme is None:
        return path
    return path[len("file://") :] if scheme[1].lower() == "file" else None


def backend_of(path: str, verb: str) -> Backend:
    """The back end of a path, for one operation that ``verb`` names; V2FError if the path contains credentials."""
    local = local_path(path)
    if local is not None:
        return Disk(path, verb, local)
    if user_in(path):
        raise V2FError(
            f"{redacted(path)}: a path must not contain credentials; set them in the environment or a profile"
        )
    return (Objects if path.partition("://")[0].lower() in ("s3", "s3a") else OtherStore)(path, verb)


@contextlib.contextmanager
def _backend(path: str, verb: str) -> Iterator[Backend]:
    """The back end of ``path``; errors in the block are explained."""
    with explained(path, verb):
        yield backend_of(path, verb)


def exists(path: str) -> bool:
    """Whether a file or object of this path, or any below it, exists."""
    with _backend(path, "look up") as backend:
        return backend.exists()


def size(path: str) -> int:
    """Bytes of one file or object."""
    with _backend(path, "look up") as backend:
        return backend.size()


def names(path: str) -> list[str]:
    """The names directly in a folder or prefix, sorted; [] if it does not exist."""
    with _backend(path, "list") as backend:
        try:
            return sorted(set(backend.names()))
        except FileNotFoundError:
            return []


def tree(path: str) -> list[str]:
    """All files below a folder or prefix, relative to it with slashes, sorted; [] if it does not exist.

    Links to folders are followed, except to a folder that contains the link.
    """
    with _backend(path, "list") as backend:
        try:
            return sorted(backend.tree())
        except FileNotFoundError:
            return []


def read_bytes(path: str) -> bytes:
    """The whole content."""
    with _backend(path, "read") as backend:
        data = backend.read(0, None)
    count(bytes_read=len(data))
    return data


def read_range(path: str, offset: int, length: int) -> bytes:
    """Exactly ``length`` bytes from ``offset``; V2FError if the file is shorter."""
    with _backend(path, "read") as backend:
        data = backend.read(offset, offset + length)
    if len(data) != length:
        raise V2FError(
            f"{redacted(path)}: found only {len(data)} of the {length} bytes from byte {offset} on: "
            "the file was truncated or replaced; copy it again"
        )
    count(bytes_read=length)
    return data


def chunks(path: str, length: int = 16 << 20) -> Iterator[bytes]:
    """The whole content in pieces of at most ``length`` bytes, one of them in memory at a time."""
    local = local_path(path)
    if local is None:
        there = size(path)
        for offset in range(0, there, length):
            yield read_range(path, offset, min(length, there - offset))
        return
    with explained(path, "read"):
        file = files.opened(local)
    with file:
        count(requests=1)
        while True:
            with explained(path, "read"):
                piece: bytes = file.read(length)
            if not piece:
                return
            count(bytes_read=len(piece))
            yield piece


def read_tagged(path: str) -> tuple[bytes | None, str | None]:
    """The content of a small file or object, None if it does not exist; and its ETag, if the store has ETags."""
    with _backend(path, "read") as backend:
        content, tag = backend.read_tagged()
    count(bytes_read=len(content or b""))
    return content, tag


def write_bytes(path: str, data: bytes) -> None:
    """Write ``data`` atomically: a reader sees either the old content or all of the new."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """A temporary local file that replaces ``path`` if the block ends without an error.

    A local file is synced and renamed. A remote one is written to this machine's scratch folder and then uploaded as
    one object, which S3 shows only when it is complete. Errors of the block's own writes to it are explained, too.
    """
    with _backend(path, "write") as backend:
        staged = backend.stage()
    try:
        with _explained_of(staged.temporary, staged.where, staged.place):
            yield staged.temporary
        with explained(path):
            length = os.path.getsize(staged.temporary)
            backend.put(staged.temporary)
            count(bytes_written=length)
    finally:
        with contextlib.suppress(OSError):  # report the first error
            os.unlink(staged.temporary)


def create(path: str, data: bytes) -> bool:
    """Write ``data`` atomically if the file does not exist; False if it exists with other content.

    If several writers try at once, one succeeds: on a disk by a link, on S3 by ``If-None-Match``. Stores that do not
    support it, and Swift, which checks before it writes, may let a second writer through: read the file back.
    """
    with _backend(path, "write") as backend:
        made = backend.create(data)
    if made:
        count(bytes_written=len(data))
    return made or read_tagged(path)[0] == data  # it may be from an earlier attempt whose answer was lost


def renew(path: str, data: bytes, tag: str | None) -> str | None:
    """Replace the content, which has ``tag``, of a small file that only the caller writes; returns the new tag.

    :class:`ConflictError` if the store compares tags and finds another one; FileNotFoundError if the local folder no
    longer exists (it is not created again).
    """
    with _backend(path, "write") as backend:
        return backend.renew(data, tag)


@contextlib.contextmanager
def _explained_of(temporary: str, where: str, place: str) -> Iterator[None]:
    """Explains errors of writing ``temporary``; errors of other files pass through."""
    try:
        yield
    except Exception as error:
        others = {getattr(error, name, None) for name in ("filename", "filename2")} - {None}
        if isinstance(error, (V2FError, ConnectionError, TimeoutError)) or (others and temporary not in others):
            raise
        line = files.explanation(where, "write", error, place)
        if line is None or (isinstance(error, OSError) and error.errno is None):
            raise
        raise line from None


def remove(path: str) -> None:
    """Remove one file or object; no error if it does not exist."""
    with _backend(path, "remove") as backend, contextlib.suppress(FileNotFoundError):
        backend.remove()


def remove_folder(path: str, first: str, only: Collection[str] | None = None) -> None:
    """Remove a flat folder or prefix of files, beginning with ``first``, the file that marks the folder as complete.

    If a file cannot be removed, the others are removed anyway, and the error is raised at the end. ``only``: the
    files to remove; any others stay, and with them the folder.
    """
    local = local_path(path)
    if local is not None and os.path.isfile(local):
        raise V2FError(f"{path}: cannot remove it, it is a file, not a folder")
    if only is None or first in only:
        remove(join(path, first))
    failures: list[V2FError] = []
    for name in names(path):
        if only is not None and name not in only:
            continue
        try:
            remove(join(path, name))
        except UnreachableError:  # the next request would fail, too
            raise
        except V2FError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    if local is not None and os.path.isdir(local):
        with explained(path, "remove"):
            try:
                os.rmdir(local)
            except OSError:
                if only is None or not os.listdir(local):
                    raise


@contextlib.contextmanager
def explained(path: str, verb: str = "write") -> Iterator[None]:
    """Turns exceptions of a file system or library into a V2FError of one line, without the library's text.

    Also for code that writes a local file by other means than :func:`replacing`.
    """
    try:
        yield
    except V2FError:
        raise
    except Exception as error:
        line = _explanation(path, verb, error)
        if line is None:
            raise
        raise line from (error if isinstance(error, (ImportError, ValueError)) else None)


def _explanation(path: str, verb: str, error: Exception) -> V2FError | None:
    name, remote = redacted(path), local_path(path) is None
    if isinstance(error, s3.DeniedError):
        return V2FError(f"{name}: cannot {verb} it, access is denied ({error}); check your permissions and credentials")
    if isinstance(error, s3.S3Error):
        return V2FError(f"{name}: cannot {verb} it: {error}")
    missing = (
        remote and isinstance(error, FileNotFoundError) and error.filename is None
    )  # otherwise it is about a local file
    if missing and (verb == "write" or backend_of(path, verb).lacks_bucket()):
        return V2FError(f"{name}: cannot {verb} it: {s3.NO_BUCKET}")
    line = files.explanation(name, verb, error, local_path(path))
    if line is not None:
        return line
    if isinstance(error, (ImportError, ValueError)):
        return V2FError(f"{name}: cannot {verb} it, this kind of path is not supported")
    if remote:
        return V2FError(f"{name}: cannot {verb} it ({type(error).__name__}); check the endpoint and your credentials")
    return None
