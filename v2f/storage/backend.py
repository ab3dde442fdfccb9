"""What a back end does: one interface for a disk, for S3, and for the other stores that fsspec knows.

A method makes one or more requests, each through :meth:`Backend.request`. It raises what the operating system,
:mod:`v2f.storage.s3` or fsspec raises; :mod:`v2f.storage.store` explains it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from v2f.errors import V2FError
from v2f.storage import local as files
from v2f.storage import s3
from v2f.storage.credentials import shown
from v2f.storage.retry import Attempts

# What asking again cannot mend: the answer is known, or the mistake is in the program.
_FINAL = (
    *(V2FError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, ImportError),
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError, NotImplementedError),
)
_T = TypeVar("_T")


class ConflictError(V2FError):
    """What was to be replaced is not what it was."""


class GoneError(V2FError, FileNotFoundError):
    """The local folder of a file that was to be replaced does not exist any more."""


@dataclass(frozen=True)
class Staged:
    """An empty local file to be filled and then put in its place: its path, and how errors of writing it name it."""

    temporary: str
    where: str
    place: str


class Backend(ABC):
    """One operation on a file, an object, a folder or a prefix."""

    def __init__(self, path: str, verb: str) -> None:
        self.path, self.verb = path, verb

    def request(self, act: Callable[[], _T]) -> _T:
        """What ``act`` returns, which is called again while it fails for a reason that may pass."""
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
        """Whether a file, an object, or a folder that holds one, is there."""

    @abstractmethod
    def size(self) -> int:
        """Bytes of a file or object."""

    @abstractmethod
    def names(self) -> list[str]:
        """What a folder holds, without the folder's own path; each name may come more than once."""

    @abstractmethod
    def tree(self) -> list[str]:
        """All files below a folder, relative to it, with slashes."""

    @abstractmethod
    def read(self, start: int, stop: int | None) -> bytes:
        """Bytes [start, stop) (None: to the end), or as many of them as there are."""

    @abstractmethod
    def read_tagged(self) -> tuple[bytes | None, str | None]:
        """The whole content, None where there is none; and its ETag, where the store has such."""

    def stage(self) -> Staged:
        """A temporary file for :meth:`put`, in this machine's scratch folder."""
        where, place = f"{shown(self.path)}: by way of {files.scratch()} ({files.SCRATCH})", files.scratch()
        with files.explained(where, place=place):
            return Staged(files.scratch_file(), where, place)

    @abstractmethod
    def put(self, temporary: str) -> None:
        """Put a staged file in its place, whole."""

    @abstractmethod
    def create(self, data: bytes) -> bool:
        """Write ``data`` where nothing is; False where something is."""

    @abstractmethod
    def renew(self, data: bytes, tag: str | None) -> str | None:
        """Replace the content that has ``tag``; the new tag. ConflictError where another is found."""

    @abstractmethod
    def remove(self) -> None:
        """Remove a file or object; FileNotFoundError where none is."""

    def lacks_bucket(self) -> bool:
        """Whether an object is missing because its bucket is."""
        return False
