"""Files and ``s3://`` objects alike: ranged reads, listings, and writes that are there whole or not at all.

    path -> explained -> backend_of(path): a disk | S3 | what fsspec knows -> its requests, made again where that helps

A path is a ``str``, because it may be remote. Local paths may be written plainly or as ``file://``. What is missing or
forbidden is not asked for again. Errors are :class:`V2FError` with the path and the way out, never with a credential.
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
from v2f.storage.credentials import shown, user_in
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
    """The path as the operating system knows it, or None where ``path`` is remote."""
    scheme = _SCHEME.match(path)
    if scheme is None:
        return path
    return path[len("file://") :] if scheme[1].lower() == "file" else None


def backend_of(path: str, verb: str) -> Backend:
    """The back end of a path, for one operation that ``verb`` names; V2FError where the path holds credentials."""
    local = local_path(path)
    if local is not None:
        return Disk(path, verb, local)
    if user_in(path):
        raise V2FError(f"{shown(path)}: a path carries no credentials; put them into the environment or a profile")
    return (Objects if path.partition("://")[0].lower() in ("s3", "s3a") else OtherStore)(path, verb)


@contextlib.contextmanager
def _backend(path: str, verb: str) -> Iterator[Backend]:
    """The back end of ``path``, whose errors are explained: the one way to a disk or a store."""
    with explained(path, verb):
        yield backend_of(path, verb)


def exists(path: str) -> bool:
    """Whether a file, an object, or a folder that holds one, is there."""
    with _backend(path, "look up") as backend:
        return backend.exists()


def size(path: str) -> int:
    """Bytes of one file or object."""
    with _backend(path, "look up") as backend:
        return backend.size()


def names(path: str) -> list[str]:
    """Names (without folder) of what a folder or prefix holds, sorted; empty where it does not exist."""
    with _backend(path, "list") as backend:
        try:
            return sorted(set(backend.names()))
        except FileNotFoundError:
            return []


def tree(path: str) -> list[str]:
    """All files below a folder or prefix, relative to it with slashes, sorted; empty where it does not exist.

    Links to folders are followed, but not back into a folder that they lie in.
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
    """Exactly ``length`` bytes from ``offset``; fewer are an error."""
    with _backend(path, "read") as backend:
        data = backend.read(offset, offset + length)
    if len(data) != length:
        raise V2FError(
            f"{shown(path)}: only {len(data)} of the {length} bytes from byte {offset} on are there: "
            "it was cut or replaced; copy it anew"
        )
    count(bytes_read=length)
    return data


def chunks(path: str, length: int = 16 << 20) -> Iterator[bytes]:
    """The whole content in pieces of at most ``length`` bytes, of which one is held at a time."""
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
    """The content of a small file or object, None where there is none; and its ETag, where its store has such."""
    with _backend(path, "read") as backend:
        content, tag = backend.read_tagged()
    count(bytes_read=len(content or b""))
    return content, tag


def write_bytes(path: str, data: bytes) -> None:
    """Write ``data`` so that a reader sees either the former content or all of the new one."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """A temporary local file that takes the place of ``path`` when the block ends without an error.

    Locally it is synced and renamed, remotely it is put as one object (S3 shows an object only when whole), by way of
    this machine's scratch folder. What the block's own writing to the file runs into is explained, too.
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
        with contextlib.suppress(OSError):  # the first error is the one to tell
            os.unlink(staged.temporary)


def create(path: str, data: bytes) -> bool:
    """Write ``data`` where nothing is yet, whole or not at all; False where something else is there already.

    Of several that try at once one succeeds: on a disk by a link, on S3 by ``If-None-Match``. Stores that do not know
    it, and Swift, which looks before it writes, may let a second one through: read it back.
    """
    with _backend(path, "write") as backend:
        made = backend.create(data)
    if made:
        count(bytes_written=len(data))
    return made or read_tagged(path)[0] == data  # an attempt before, whose answer was lost


def renew(path: str, data: bytes, tag: str | None) -> str | None:
    """Replace the content of a small file that is its caller's alone, and that has ``tag``; its new tag.

    :class:`ConflictError` where a store that can compare finds another; FileNotFoundError where a local folder is gone,
    which is not made anew.
    """
    with _backend(path, "write") as backend:
        return backend.renew(data, tag)


@contextlib.contextmanager
def _explained_of(temporary: str, where: str, place: str) -> Iterator[None]:
    """Explains what writing ``temporary`` raises, and nothing of other files."""
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
    """Remove one file or object; it is no error if it is not there."""
    with _backend(path, "remove") as backend, contextlib.suppress(FileNotFoundError):
        backend.remove()


def remove_folder(path: str, first: str, only: Collection[str] | None = None) -> None:
    """Remove a flat folder or prefix of files, ``first`` before the others: it is what tells that the rest is whole.

    One that cannot be removed does not keep the others; the error comes at the end. ``only``: the files that may go;
    others stay, and with them the folder.
    """
    local = local_path(path)
    if local is not None and os.path.isfile(local):
        raise V2FError(f"{path}: cannot remove it, it is a file and no folder")
    if only is None or first in only:
        remove(join(path, first))
    failures: list[V2FError] = []
    for name in names(path):
        if only is not None and name not in only:
            continue
        try:
            remove(join(path, name))
        except UnreachableError:  # nor would it take the next
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
    """Turns what a file system or a library raises into one line; foreign texts stay out of it.

    Also for who writes a local file by other means than :func:`replacing`.
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
    name, remote = shown(path), local_path(path) is None
    if isinstance(error, s3.DeniedError):
        return V2FError(f"{name}: cannot {verb} it, access is denied ({error}); check its rights or credentials")
    if isinstance(error, s3.S3Error):
        return V2FError(f"{name}: cannot {verb} it: {error}")
    missing = remote and isinstance(error, FileNotFoundError) and error.filename is None  # else one of this machine
    if missing and (verb == "write" or backend_of(path, verb).lacks_bucket()):
        return V2FError(f"{name}: cannot {verb} it: {s3.NO_BUCKET}")
    line = files.explanation(name, verb, error, local_path(path))
    if line is not None:
        return line
    if isinstance(error, (ImportError, ValueError)):
        return V2FError(f"{name}: cannot {verb} it, this kind of path is not understood")
    if remote:
        return V2FError(f"{name}: cannot {verb} it ({type(error).__name__}); check endpoint and credentials")
    return None
