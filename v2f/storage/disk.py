"""Local files as a back end."""

import contextlib
import errno
import functools
import logging
import os
import tempfile
from collections.abc import Callable
from typing import TypeVar

from v2f.storage import local as files
from v2f.storage.backend import Backend, GoneError, Staged
from v2f.storage.credentials import redacted
from v2f.storage.retry import count

log = logging.getLogger("v2f")

_T = TypeVar("_T")

# Reading the mask requires setting it, for all threads: only here, while there is one.
_MASK = os.umask(0)
os.umask(_MASK)

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK)


class Disk(Backend):
    """Local files. Nothing is retried; only reads and writes count as requests."""

    def __init__(self, path: str, verb: str, local: str) -> None:
        super().__init__(path, verb)
        self.local, self.folder = local, os.path.dirname(local) or "."

    def request(self, act: Callable[[], _T]) -> _T:
        count(requests=1)
        return act()

    def exists(self) -> bool:
        return os.path.exists(self.local)

    def size(self) -> int:
        return files.check_file(self.local).st_size

    def names(self) -> list[str]:
        return os.listdir(self.local) if os.path.isdir(self.local) else []

    def tree(self) -> list[str]:
        found: list[str] = []
        # folder -> device and inode of each folder above it: a link to one of these would be followed forever
        above: dict[str, frozenset[tuple[int, int]]] = {}
        for folder, folders, names in os.walk(self.local, followlinks=True, onerror=_unlisted):
            ancestors = above.pop(folder, frozenset())
            try:
                status = os.stat(folder)
            except FileNotFoundError:  # removed after it was listed
                folders.clear()
                continue
            itself = (status.st_dev, status.st_ino)
            if itself in ancestors:
                folders.clear()
                continue
            above.update((os.path.join(folder, name), ancestors | {itself}) for name in folders)
            below = os.path.relpath(folder, self.local).replace(os.sep, "/")
            found += names if below == "." else [f"{below}/{name}" for name in names]
        return found

    def read(self, start: int, stop: int | None) -> bytes:
        def act() -> bytes:
            with files.opened(self.local) as file:
                file.seek(start)
                data: bytes = file.read(-1 if stop is None else stop - start)
                return data

        return self.request(act)

    def read_tagged(self) -> tuple[bytes | None, str | None]:
        try:
            return self.read(0, None), None
        except (FileNotFoundError, NotADirectoryError):
            return None, None

    def stage(self) -> Staged:
        with contextlib.suppress(FileNotFoundError):  # only a file may be replaced
            if os.path.isdir(self.local):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.local)
            files.check_file(self.local)
        os.makedirs(self.folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".writing-", dir=self.folder)
        os.close(handle)
        return Staged(temporary, redacted(self.path), self.local)

    def put(self, temporary: str) -> None:
        self.request(functools.partial(self._commit, temporary))

    def _commit(self, temporary: str) -> None:
        os.chmod(temporary, 0o666 & ~_MASK)  # mkstemp's 0600 would hide shards from other users
        _sync(temporary)
        os.replace(temporary, self.local)
        _sync(self.folder)

    def create(self, data: bytes) -> bool:
        os.makedirs(self.folder, exist_ok=True)
        temporary = self._written(data)
        try:
            _sync(temporary)
            os.link(temporary, self.local)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return self._create_in_place(data)
        finally:
            os.unlink(temporary)
        _sync(self.folder)
        return True

    def _create_in_place(self, data: bytes) -> bool:
        """:meth:`create` on a file system without hard links, where a reader can see the beginning of ``data``."""
        try:
            handle = os.open(self.local, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            return False
        try:
            with open(handle, "wb") as file:
                file.write(data)
            _sync(self.local)
            _sync(self.folder)
        except BaseException:
            os.unlink(self.local)
            raise
        return True

    def renew(self, data: bytes, tag: str | None) -> str | None:
        try:
            temporary = self._written(data)
            try:
                os.replace(temporary, self.local)
            except BaseException:
                os.unlink(temporary)
                raise
        except FileNotFoundError:
            raise GoneError(f"{redacted(self.path)}: cannot {self.verb} it, its folder no longer exists") from None
        return None

    def _written(self, data: bytes) -> str:
        """A temporary file with ``data`` in the path's folder, which must exist."""
        handle, temporary = tempfile.mkstemp(prefix=".writing-", dir=self.folder)
        try:
            with open(handle, "wb") as file:
                file.write(data)
            os.chmod(temporary, 0o666 & ~_MASK)
        except BaseException:
            os.unlink(temporary)
            raise
        return temporary

    def remove(self) -> None:
        os.unlink(self.local)


def _sync(path: str) -> None:
    """Have the disk write a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unlisted(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        log.warning("%s: cannot list it (%s); its files are ignored", error.filename, error.strerror)
