"""Files and ``s3://`` objects alike: ranged reads, listings, and writes that are there whole or not at all.

    path -> local: the operating system | s3://: v2f.storage.s3, attempt by attempt | another scheme: fsspec

A path is a ``str``, because it may be remote. Local paths may be written plainly or as ``file://``. A remote request
that fails is made again, up to ATTEMPTS times without progress, after pauses that grow and are random (so that the
ranks of a job do not come back all at once); a read goes on at the byte at which it broke off. What is missing or
forbidden is not asked for again. Errors are :class:`V2FError` with the path and the way out, never with a credential.
"""

import contextlib
import errno
import functools
import logging
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from v2f.errors import V2FError
from v2f.storage import local as files
from v2f.storage import s3
from v2f.storage.credentials import user_in

log = logging.getLogger("v2f")

ATTEMPTS = 10
BACKOFF_S = 0.25  # the longest pause after a first failure; twice as long after each that follows
LONGEST_BACKOFF_S = 30.0  # with the above: about 45 s of pauses on average before a request is given up
SAID_AT = 4  # the failure in a row at which the user is told why nothing happens
PART = 32 << 20  # a larger file is put in parts of this size or more; S3 takes 10,000 of them
_UPLOADS = 4  # parts of one file at a time

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://")
# What asking again cannot mend: the answer is known, or the mistake is in the program.
_FINAL = (
    *(V2FError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, ImportError),
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError, NotImplementedError),
)
_T = TypeVar("_T")

# To read the mask is to set it, for all threads: only here, where there is one.
_MASK = os.umask(0)
os.umask(_MASK)


class UnreachableError(V2FError):
    """The store failed at every attempt: of the object itself nothing is known."""

    again = True


@dataclass(frozen=True)
class Statistics:
    """What this process has asked of files and stores since it started. ``retries`` are among the ``requests``;
    bytes count once, however often they were asked for."""

    bytes_read: int = 0
    bytes_written: int = 0
    requests: int = 0
    retries: int = 0


_counting = threading.Lock()
_counted = Statistics()


def statistics() -> Statistics:
    return _counted


def _count(**more: int) -> None:
    global _counted
    with _counting:
        _counted = Statistics(**{name: value + more.get(name, 0) for name, value in asdict(_counted).items()})


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
    with explained(path, "look up"):
        if not _on_s3(path):
            filesystem = _filesystem(path)
            return _retried(path, "look up", lambda: bool(filesystem.exists(path)))
        try:
            _retried(path, "look up", lambda: s3.size(path))
        except FileNotFoundError:
            with contextlib.suppress(FileNotFoundError):
                return bool(_retried(path, "look up", lambda: s3.page(path, None, limit=1))[0])
            return False
        return True


def size(path: str) -> int:
    """Bytes of one file or object."""
    with explained(path, "look up"):
        local = local_path(path)
        if local is not None:
            return files.check_file(local).st_size
        if _on_s3(path):
            return _retried(path, "look up", lambda: s3.size(path))
        filesystem = _filesystem(path)
        return _retried(path, "look up", lambda: int(filesystem.size(path)))


def names(path: str) -> list[str]:
    """Names (without folder) of what a folder or prefix holds, sorted; empty where it does not exist."""
    with explained(path, "list"):
        local = local_path(path)
        if local is not None:
            return sorted(os.listdir(local)) if os.path.isdir(local) else []
        try:
            return _s3_names(path) if _on_s3(path) else _other_names(path)
        except FileNotFoundError:
            return []


def tree(path: str) -> list[str]:
    """All files below a folder or prefix, relative to it with slashes, sorted; empty where it does not exist.

    Links to folders are followed, but not back into a folder that they lie in.
    """
    with explained(path, "list"):
        local = local_path(path)
        if local is None:
            try:
                return _s3_names(path, deep=True) if _on_s3(path) else _other_tree(path)
            except FileNotFoundError:
                return []
        found: list[str] = []
        above: dict[str, frozenset[tuple[int, int]]] = {}  # folder -> those that lead to it, as the disk knows them
        for folder, folders, files in os.walk(
            local, followlinks=True, onerror=_unlisted
        ):  # corpora are linked together
            there = os.stat(folder)
            itself, leading = (there.st_dev, there.st_ino), above.pop(folder, frozenset())
            if itself in leading:
                folders.clear()
                continue
            above.update((os.path.join(folder, name), leading | {itself}) for name in folders)
            below = os.path.relpath(folder, local).replace(os.sep, "/")
            found += files if below == "." else [f"{below}/{name}" for name in files]
        return sorted(found)


def _unlisted(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        log.warning("%s: cannot list it (%s); what lies in it is not seen", error.filename, error.strerror)


def _s3_names(path: str, deep: bool = False) -> list[str]:
    found: set[str] = set()
    token: str | None = None
    while True:
        some, token = _retried(path, "list", functools.partial(s3.page, path, token, deep=deep))
        found.update(some)
        if token is None:
            return sorted(found)


def _other_names(path: str) -> list[str]:
    filesystem = _filesystem(path)

    def listed() -> list[str]:
        filesystem.invalidate_cache(path)
        return [str(name) for name in filesystem.ls(path, detail=False)]

    return sorted({name.rstrip("/").rsplit("/", 1)[-1] for name in _retried(path, "list", listed)})


def _other_tree(path: str) -> list[str]:
    filesystem = _filesystem(path)
    root = str(filesystem._strip_protocol(path)).rstrip("/") + "/"

    def listed() -> list[str]:
        filesystem.invalidate_cache(path)
        return [str(name) for name in filesystem.find(path)]

    return sorted(name.removeprefix(root) for name in _retried(path, "list", listed))


def read_bytes(path: str) -> bytes:
    """The whole content."""
    with explained(path, "read"):
        local = local_path(path)
        if local is not None:
            with files.opened(local) as file:
                data = file.read()
            _count(requests=1)
        elif _on_s3(path):
            data = _s3_bytes(path, 0, None)
        else:
            filesystem = _filesystem(path)
            data = _retried(path, "read", lambda: bytes(filesystem.cat_file(path)))
    _count(bytes_read=len(data))
    return data


def read_range(path: str, offset: int, length: int) -> bytes:
    """Exactly ``length`` bytes from ``offset``; fewer are an error."""
    with explained(path, "read"):
        local = local_path(path)
        if local is not None:
            with files.opened(local) as file:
                file.seek(offset)
                data = file.read(length)
            _count(requests=1)
        elif _on_s3(path):
            data = _s3_bytes(path, offset, offset + length)
        else:
            data = _other_range(path, offset, length)
    if len(data) != length:
        raise V2FError(
            f"{_shown(path)}: only {len(data)} of the {length} bytes from byte {offset} on are there: "
            "it was cut or replaced; copy it anew"
        )
    _count(bytes_read=length)
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
        _count(requests=1)
        while True:
            with explained(path, "read"):
                piece: bytes = file.read(length)
            if not piece:
                return
            _count(bytes_read=len(piece))
            yield piece


def _s3_bytes(path: str, offset: int, stop: int | None) -> bytes:
    """Bytes [offset, stop) of an object, or as many of them as it has."""
    attempts = _Attempts(path, "read")
    chunks: list[bytes] = []
    here, etag = offset, None
    while stop is None or here < stop:
        before = here
        try:
            attempts.begin()
            with s3.get(path, here, stop, etag) as answer:
                etag = answer.etag  # from now on this very object: one that was replaced would be half of each
                stop = answer.total if stop is None else min(stop, answer.total)
                for chunk in answer.chunks:
                    chunks.append(chunk[: stop - here])
                    here += len(chunks[-1])
            if here < stop:
                raise s3.TransientError("the answer was cut")
        except s3.BeyondEndError:
            # An empty object has no first byte, and nobody but its length says so.
            if stop is None and _retried(path, "read", lambda: s3.size(path)) != 0:
                attempts.failed(s3.TransientError("the answer was cut"))
                continue
            break
        except s3.TransientError as error:
            attempts.failed(error, progress=here - before >= s3.CHUNK)
    return b"".join(chunks)


def _other_range(path: str, offset: int, length: int) -> bytes:
    filesystem = _filesystem(path)

    def read() -> bytes:
        try:
            data = bytes(filesystem.cat_file(path, start=offset, end=offset + length))
        except OSError as error:
            if error.errno != errno.EINVAL:  # the answer of some to a range that starts beyond the end
                raise
            data = b""
        if len(data) < length and filesystem.size(path) >= offset + length:
            raise s3.TransientError("the answer was cut")
        return data

    return _retried(path, "read", read)


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
    local = local_path(path)
    shown = _shown(path)
    if local is None:
        where, place = f"{shown}: by way of {files.scratch()} ({files.SCRATCH})", files.scratch()
        with files.explained(where, place=place):
            temporary = files.scratch_file()
    else:
        where, place = shown, local
        with explained(path):
            _check_place(local)
            os.makedirs(os.path.dirname(local) or ".", exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".writing-", dir=os.path.dirname(local) or ".")
            os.close(handle)
    try:
        with _explained_of(temporary, where, place):
            yield temporary
        with explained(path):
            length = os.path.getsize(temporary)
            _put(temporary, path, local)
            _count(bytes_written=length)
    finally:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            os.unlink(temporary)


class ConflictError(V2FError):
    """What was to be replaced is not what it was."""


def create(path: str, data: bytes) -> bool:
    """Write ``data`` where nothing is yet, whole or not at all; False where something else is there already.

    Of several that try at once one succeeds: on a disk by a link, on S3 by ``If-None-Match``. Stores that do not know
    it, and Swift, which looks before it writes, may let a second one through: read it back.
    """
    with explained(path, "write"):
        local = local_path(path)
        if local is not None:
            made = _create_locally(local, data)
        elif _on_s3(path):
            made = _retried(path, "write", lambda: s3.create(path, data))
        else:
            filesystem = _filesystem(path)
            made = not _retried(path, "write", lambda: bool(filesystem.exists(path)))
            if made:
                _retried(path, "write", lambda: filesystem.pipe_file(path, data))
    if made:
        _count(bytes_written=len(data))
    return made or read_tagged(path)[0] == data  # an attempt before, whose answer was lost


def _create_locally(local: str, data: bytes) -> bool:
    folder = os.path.dirname(local) or "."
    os.makedirs(folder, exist_ok=True)
    temporary = _written(folder, data)
    try:
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.link(temporary, local)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            with open(local, "xb") as file:
                file.write(data)
        except FileExistsError:
            return False
    finally:
        os.unlink(temporary)
    return True


def _written(folder: str, data: bytes) -> str:
    """A temporary file with ``data`` in a folder that is there."""
    handle, temporary = tempfile.mkstemp(prefix=".writing-", dir=folder)
    with open(handle, "wb") as file:
        file.write(data)
    os.chmod(temporary, 0o666 & ~_MASK)
    return temporary


def read_tagged(path: str) -> tuple[bytes | None, str | None]:
    """The content of a small file or object, None where there is none; and its ETag, where its store has such."""
    with explained(path, "read"):
        try:
            if local_path(path) is None and _on_s3(path):
                content, tag = _retried(path, "read", lambda: s3.read(path))
                _count(bytes_read=len(content))
                return content, tag
            if local_path(path) is not None and not os.path.exists(str(local_path(path))):
                return None, None
        except FileNotFoundError:
            return None, None
    try:
        return read_bytes(path), None
    except V2FError:
        if exists(path):
            raise
        return None, None  # it went in between


def renew(path: str, data: bytes, tag: str | None) -> str | None:
    """Replace the content of a small file that is its caller's alone, and that has ``tag``; its new tag.

    :class:`ConflictError` where a store that can compare finds another; FileNotFoundError where a local folder is gone,
    which is not made anew.
    """
    local = local_path(path)
    if local is None and _on_s3(path):
        with explained(path, "write"):
            try:
                return _retried(path, "write", lambda: s3.put(path, data, match=tag))
            except (s3.ExistsError, FileNotFoundError):
                raise ConflictError(f"{_shown(path)}: another has written or removed it") from None
    if local is None:
        write_bytes(path, data)
        return None
    try:
        temporary = _written(os.path.dirname(local) or ".", data)
        os.replace(temporary, local)
    except FileNotFoundError:
        raise
    except OSError:
        with explained(path, "write"):
            raise
    return None


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


def _check_place(local: str) -> None:
    """Refuse to put a file in the place of a folder or, by its name, of a device."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.isdir(local):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), local)
        files.check_file(local)


def remove(path: str) -> None:
    """Remove one file or object; it is no error if it is not there."""
    with explained(path, "remove"), contextlib.suppress(FileNotFoundError):
        local = local_path(path)
        if local is not None:
            os.unlink(local)
        elif _on_s3(path):
            _retried(path, "remove", lambda: s3.delete(path))
        else:
            filesystem = _filesystem(path)
            _retried(path, "remove", lambda: filesystem.rm_file(path))


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


def _put(temporary: str, path: str, local: str | None) -> None:
    if local is not None:
        _count(requests=1)
        _commit(temporary, local)
    elif not _on_s3(path):
        filesystem = _filesystem(path)
        _retried(path, "write", lambda: filesystem.put_file(temporary, path))
    elif os.path.getsize(temporary) > PART:
        _put_in_parts(temporary, path)
    else:
        with open(temporary, "rb") as file:
            content = file.read()
        _retried(path, "write", lambda: s3.put(path, content))


def _put_in_parts(temporary: str, path: str) -> None:
    length = os.path.getsize(temporary)
    part = max(PART, -(-length // 9000))
    upload = _retried(path, "write", lambda: s3.start_upload(path))

    def put(number: int) -> str:
        with open(temporary, "rb") as file:
            file.seek((number - 1) * part)
            content = file.read(part)
        return _retried(path, "write", lambda: s3.put_part(path, upload, number, content))

    def finish() -> None:
        try:
            s3.finish_upload(path, upload, etags)
        except FileNotFoundError:
            # An earlier attempt was done, and only its answer was lost: then there is an object and no upload.
            if s3.size(path) != length:
                raise

    try:
        with ThreadPoolExecutor(_UPLOADS, thread_name_prefix="v2f-write") as pool:
            etags = list(pool.map(put, range(1, -(-length // part) + 1)))
        _retried(path, "write", finish)
    except BaseException:
        with contextlib.suppress(
            Exception
        ):  # parts that nobody finishes cost money; the first error is the one to tell
            s3.abort_upload(path, upload)
        raise


def _commit(temporary: str, local: str) -> None:
    os.chmod(temporary, 0o666 & ~_MASK)  # mkstemp's 0600 would hide shards from other users
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, local)
    folder = os.open(os.path.dirname(local) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _on_s3(remote: str) -> bool:
    """Whether a remote path is S3's; every one passes here, before anything else is told of it."""
    if user_in(remote):
        raise V2FError(f"{_shown(remote)}: a path carries no credentials; put them into the environment or a profile")
    return remote.partition("://")[0].lower() in ("s3", "s3a")


def _filesystem(path: str) -> Any:
    import fsspec  # here: neither a local path nor s3:// waits for its imports

    return fsspec.core.url_to_fs(path)[0]


class _Attempts:
    """How often a remote request may fail, and for how long to wait after each time."""

    def __init__(self, path: str, verb: str):
        self._path, self._verb = path, verb
        self._started = time.monotonic()
        self._made = 0
        self._failures = 0  # in a row, without progress

    def begin(self) -> None:
        self._made += 1
        _count(requests=1, retries=int(self._made > 1))

    def failed(self, error: Exception, *, progress: bool = False) -> None:
        """Wait before the next attempt; or the one line, after the last. ``progress``: it was not for nothing."""
        self._failures = 1 if progress else self._failures + 1
        reason = str(error) if isinstance(error, s3.S3Error) else type(error).__name__
        if self._failures >= ATTEMPTS:
            seconds = time.monotonic() - self._started
            raise UnreachableError(
                f"{_shown(self._path)}: cannot {self._verb} it, {self._made} attempts in {seconds:.0f} s failed "
                f"(the last: {reason}); check the endpoint, the network and the store"
            ) from None
        if self._failures == SAID_AT:
            log.warning("%s: cannot %s it yet (%s); trying again", _shown(self._path), self._verb, reason)
        # Full jitter, not keyed by anything: it changes nothing but time.
        time.sleep(random.uniform(0, min(LONGEST_BACKOFF_S, BACKOFF_S * 2 ** (self._failures - 1))))


def _retried(path: str, verb: str, act: Callable[[], _T]) -> _T:
    attempts = _Attempts(path, verb)
    while True:
        try:
            attempts.begin()
            return act()
        except s3.TransientError as error:
            attempts.failed(error)
        except (s3.S3Error, *_FINAL):
            raise
        except Exception as error:
            attempts.failed(error)


def _shown(path: str) -> str:
    """``path`` without who may be named before its bucket, and without a query."""
    user = user_in(path)
    shown = f"{user[1]}://***@{path[user.end() :]}" if user else path
    return shown.split("?", 1)[0] if "://" in path else path


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
    shown, remote = _shown(path), local_path(path) is None
    if isinstance(error, s3.DeniedError):
        return V2FError(f"{shown}: cannot {verb} it, access is denied ({error}); check its rights or credentials")
    if isinstance(error, s3.S3Error):
        return V2FError(f"{shown}: cannot {verb} it: {error}")
    missing = remote and isinstance(error, FileNotFoundError) and error.filename is None  # else one of this machine
    if missing and (verb == "write" or _has_no_bucket(path)):
        return V2FError(f"{shown}: cannot {verb} it: {s3.NO_BUCKET}")
    line = files.explanation(shown, verb, error, local_path(path))
    if line is not None:
        return line
    if isinstance(error, (ImportError, ValueError)):
        return V2FError(f"{shown}: cannot {verb} it, this kind of path is not understood")
    if remote:
        return V2FError(f"{shown}: cannot {verb} it ({type(error).__name__}); check endpoint and credentials")
    return None


def _has_no_bucket(path: str) -> bool:
    """Whether an object is missing because its bucket is: the answer to a HEAD, and of some stores to a GET, does not
    tell them apart."""
    if _on_s3(path):
        try:
            s3.page(path, None, limit=1)
        except s3.NoBucketError:
            return True
        except Exception:  # it was but a question; what is known already is told
            return False
    return False
