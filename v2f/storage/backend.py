"""The interface of a back end: a local disk, S3, or another store that fsspec supports.

A method makes one or more requests, each through :meth:`Backend.request`. Exceptions of the operating system,
:mod:`v2f.storage.s3` and fsspec pass through; :mod:`v2f.storage.store` turns them into messages.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from v2f.errors import V2FError
from v2f.storage import local as files
from v2f.storage import s3
from v2f.storage.credentials import redacted
from v2f.storage.retry import Attempts

# Not retried: the answer is final, or the program has a defect.
_FINAL = (
    *(V2FError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, ImportError),
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError, NotImplementedError),
)
_T = TypeVar("_T")


class ConflictError(V2FError):
    """The content to be replaced has changed since it was read."""


class GoneError(V2FError, FileNotFoundError):
    """The local folder of a file to be replaced no longer exists."""


@dataclass(frozen=True)
class Staged:
    """An empty local file to be written and then moved to its destination.

    ``temporary``: its path. ``where`` and ``place``: how messages name the destination, and which disk they are about.
    """

    temporary: str
    where: str
    place: str


class Backend(ABC):
    """One operation, which ``verb`` names in messages, on a file, object, folder or prefix."""

    def __init__(self, path: str, verb: str) -> None:
        self.path, self.verb = path, verb

    def request(self, act: Callable[[], _T]) -> _T:
        """Call ``act`` and return its result; retry while it fails for a reason that may pass."""
        attempts = Attempts(self.path, self.verb)
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

    @abstractmethod
    def exists(self) -> bool:
        """Whether a file or object of this path, or any below it, exists."""

    @abstractmethod
    def size(self) -> int:
        """Bytes of a file or object."""

    @abstractmethod
    def names(self) -> list[str]:
        """The names in a folder; duplicates are possible."""

    @abstractmethod
    def tree(self) -> list[str]:
        """All files below a folder, relative to it, with slashes."""

    @abstractmethod
    def read(self, start: int, stop: int | None) -> bytes:
        """Bytes [start, stop), or to the end if ``stop`` is None; fewer if the file is shorter."""

    @abstractmethod
    def read_tagged(self) -> tuple[bytes | None, str | None]:
        """The content, None if the file does not exist; and its ETag, if the store has ETags."""

    def stage(self) -> Staged:
        """A temporary file for :meth:`put`, in this machine's scratch folder."""
        where, place = f"{redacted(self.path)}: by way of {files.scratch()} ({files.SCRATCH})", files.scratch()
        with files.explained(where, place=place):
            return Staged(files.scratch_file(), where, place)

    @abstractmethod
    def put(self, temporary: str) -> None:
        """Move a staged file to its destination; a reader sees all of it or nothing."""

    @abstractmethod
    def create(self, data: bytes) -> bool:
        """Write ``data`` if the file does not exist; False if it does."""

    @abstractmethod
    def renew(self, data: bytes, tag: str | None) -> str | None:
        """Replace the content that has ``tag``; returns the new tag. ConflictError if the content has another tag."""

    @abstractmethod
    def remove(self) -> None:
        """Remove a file or object; FileNotFoundError if it does not exist."""

    def lacks_bucket(self) -> bool:
        """Whether an object is missing because its bucket is."""
        return False
