"""Files of the operating system as a back end."""

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
from v2f.storage.credentials import shown
from v2f.storage.retry import count

log = logging.getLogger("v2f")

_T = TypeVar("_T")

# To read the mask is to set it, for all threads: only here, where there is one.
_MASK = os.umask(0)
os.umask(_MASK)


class Disk(Backend):
    """The operating system's files. What fails is not tried again; only reads and writes count as requests."""

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
        above: dict[str, frozenset[tuple[int, int]]] = {}  # folder -> those that lead to it, as the disk knows them
        # Corpora are linked together; but a link back into a folder that it lies in is not followed.
        for folder, folders, names in os.walk(self.local, followlinks=True, onerror=_unlisted):
            there = os.stat(folder)
            itself, leading = (there.st_dev, there.st_ino), above.pop(folder, frozenset())
            if itself in leading:
                folders.clear()
                continue
            above.update((os.path.join(folder, name), leading | {itself}) for name in folders)
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
        with contextlib.suppress(FileNotFoundError):  # nothing but a file may be replaced
            if os.path.isdir(self.local):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.local)
            files.check_file(self.local)
        os.makedirs(self.folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".writing-", dir=self.folder)
        os.close(handle)
        return Staged(temporary, shown(self.path), self.local)

    def put(self, temporary: str) -> None:
        self.request(functools.partial(self._commit, temporary))

    def _commit(self, temporary: str) -> None:
        os.chmod(temporary, 0o666 & ~_MASK)  # mkstemp's 0600 would hide shards from other users
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, self.local)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def create(self, data: bytes) -> bool:
        os.makedirs(self.folder, exist_ok=True)
        temporary = self._written(data)
        try:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.link(temporary, self.local)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                with open(self.local, "xb") as file:
                    file.write(data)
            except FileExistsError:
                return False
        finally:
            os.unlink(temporary)
        return True

    def renew(self, data: bytes, tag: str | None) -> str | None:
        try:
            os.replace(self._written(data), self.local)
        except FileNotFoundError:
            raise GoneError(f"{shown(self.path)}: cannot {self.verb} it, its folder is not there any more") from None
        return None

    def _written(self, data: bytes) -> str:
        """A temporary file with ``data`` beside the path, whose folder must exist."""
        handle, temporary = tempfile.mkstemp(prefix=".writing-", dir=self.folder)
        with open(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o666 & ~_MASK)
        return temporary

    def remove(self) -> None:
        os.unlink(self.local)


def _unlisted(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        log.warning("%s: cannot list it (%s); what lies in it is not seen", error.filename, error.strerror)
