"""Files and ``s3://`` objects alike: ranged reads, listings, and writes that are there whole or not at all.

A path is a ``str``, because it may be remote. Local paths may be written plainly or as ``file://``; anything
else goes through fsspec (S3 by s3fs, whose endpoint, profile and keys come from the environment as boto3
users know them). Errors are :class:`V2FError` with the path and the way out, never with a credential.
"""

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import fsspec

from v2f.errors import V2FError

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


def exists(path: str) -> bool:
    """Whether a file, an object, or a folder that holds one, is there."""
    local = local_path(path)
    if local is not None:
        return os.path.exists(local)
    with _explained(path, "look up"):
        return bool(_filesystem(path).exists(path))


def size(path: str) -> int:
    """Bytes of one file or object."""
    with _explained(path, "look up"):
        local = local_path(path)
        return os.path.getsize(local) if local is not None else int(_filesystem(path).size(path))


def names(path: str) -> list[str]:
    """Names (without folder) of what a folder or prefix holds, sorted; empty where it does not exist."""
    with _explained(path, "list"):
        local = local_path(path)
        if local is not None:
            return sorted(os.listdir(local)) if os.path.isdir(local) else []
        filesystem = _filesystem(path)
        filesystem.invalidate_cache(path)
        try:
            found = filesystem.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted({str(name).rstrip("/").rsplit("/", 1)[-1] for name in found})


def read_bytes(path: str) -> bytes:
    """The whole content."""
    with _explained(path, "read"):
        local = local_path(path)
        if local is None:
            return bytes(_filesystem(path).cat_file(path))
        with open(local, "rb") as file:
            return file.read()


def read_range(path: str, offset: int, length: int) -> bytes:
    """Exactly ``length`` bytes from ``offset``; fewer are an error."""
    with _explained(path, "read"):
        local = local_path(path)
        if local is None:
            try:
                data = bytes(_filesystem(path).cat_file(path, start=offset, end=offset + length))
            except OSError as error:
                if error.errno != errno.EINVAL:  # S3's answer (416) to a range that starts beyond the end
                    raise
                data = b""
        else:
            with open(local, "rb") as file:
                file.seek(offset)
                data = file.read(length)
    if len(data) != length:
        raise V2FError(
            f"{_shown(path)}: only {len(data)} of the {length} bytes from byte {offset} on are there: "
            "it was cut or replaced; copy it anew"
        )
    return data


def write_bytes(path: str, data: bytes) -> None:
    """Write ``data`` so that a reader sees either the former content or all of the new one."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """A temporary local file that takes the place of ``path`` when the block ends without an error.

    Locally it is synced and renamed, remotely it is put as one object (S3 shows an object only when whole).
    """
    local = local_path(path)
    folder = os.path.dirname(local) or "." if local is not None else None
    with _explained(path, "write"):
        if folder is not None:
            os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".writing-", dir=folder)
        os.close(handle)
    try:
        yield temporary
        with _explained(path, "write"):
            if local is None:
                _filesystem(path).put_file(temporary, path)
            else:
                _commit(temporary, local)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def remove(path: str) -> None:
    """Remove one file or object; it is no error if it is not there."""
    with _explained(path, "remove"), contextlib.suppress(FileNotFoundError):
        local = local_path(path)
        if local is not None:
            os.unlink(local)
        else:
            _filesystem(path).rm_file(path)


def remove_folder(path: str, first: str) -> None:
    """Remove a flat folder or prefix of files, ``first`` before the others: it is what tells that the rest is whole."""
    remove(join(path, first))
    for name in names(path):
        remove(join(path, name))
    local = local_path(path)
    if local is not None and os.path.isdir(local):
        with _explained(path, "remove"):
            os.rmdir(local)


def _commit(temporary: str, local: str) -> None:
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(temporary, 0o666 & ~mask)  # mkstemp's 0600 would hide shards from other users
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, local)
    folder = os.open(os.path.dirname(local) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _filesystem(path: str) -> Any:
    if "@" in path.split("://", 1)[1].split("/", 1)[0]:
        raise V2FError(f"{_shown(path)}: a path carries no credentials; put them into the environment or a profile")
    return fsspec.core.url_to_fs(path)[0]


def _shown(path: str) -> str:
    """``path`` without what may stand before an @ of its bucket, and without a query."""
    return re.sub(r"^(\w[\w+.-]*://)[^/]*@", r"\1***@", path).split("?", 1)[0] if "://" in path else path


@contextlib.contextmanager
def _explained(path: str, verb: str) -> Iterator[None]:
    """Turns what a file system or a library raises into one line; foreign texts stay out of it."""
    try:
        yield
    except V2FError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise V2FError(f"{_shown(path)}: cannot {verb} it, there is no such file") from None
    except PermissionError:
        raise V2FError(f"{_shown(path)}: cannot {verb} it, access is denied; check its rights or credentials") from None
    except OSError as error:
        reason = (
            "the disk is full" if error.errno == errno.ENOSPC else os.strerror(error.errno) if error.errno else None
        )
        raise V2FError(f"{_shown(path)}: cannot {verb} it ({reason or type(error).__name__})") from None
    except (ImportError, ValueError) as error:
        raise V2FError(f"{_shown(path)}: cannot {verb} it, this kind of path is not understood") from error
    except Exception as error:
        if local_path(path) is not None:
            raise
        raise V2FError(
            f"{_shown(path)}: cannot {verb} it ({type(error).__name__}); check endpoint and credentials"
        ) from None
