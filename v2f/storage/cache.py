"""A bounded cache of ranged reads on a node's disk, shared by all of its ranks.

    read -> is there an entry? -> its bytes
              | no: lock it; one process asks the store, the others wait for its file
              v
            space in the ledger (least recently used entries are evicted) -> file of this size -> bytes -> renamed

An entry is a file named by a hash of what it holds: the data set's fingerprint, path, offset, length. While it is being
fetched, its name ends with ``.part`` and the fetching process holds a lock on it; the kernel releases the lock of a
process that dies, and the next one takes over. Files are grown and renamed, and the ledger of their bytes is updated,
under one lock, so that the total never exceeds its limit, whatever the number of processes. The time of last use is the
file's modification time. An entry that is evicted while it is read stays readable until then.

The cache never makes a read fail: if the disk is full, the folder disappears or a process is stopped while it holds a
lock, the store is asked instead, and one warning says so.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator

from v2f.errors import V2FError
from v2f.storage.local import opened, strerror

log = logging.getLogger("v2f")

PATIENCE_S = 480.0  # wait for a process that fetches: longer than all retries at a store that stalls
LEDGER_PATIENCE_S = 20.0  # making room takes milliseconds
ROOM = 0.1  # share of the limit that one eviction frees, so that the folder is not listed for each entry

_LEDGER = "ledger"
_FILE = re.compile(r"[0-9a-f]{64}(\.part)?")  # our files; no others in the folder are touched


class Cache:
    """At most ``max_bytes`` of ranged reads in the local folder ``folder``. Safe with any number of threads and
    processes of one machine; use one for all data sets of a run. Counts ``hits`` and ``misses`` of this process."""

    def __init__(self, folder: str, max_bytes: int):
        if max_bytes <= 0:
            raise V2FError(f"cache {folder}: its size is {max_bytes} bytes; set a positive size, or no cache")
        self.folder, self.max_bytes = folder, max_bytes
        self.hits = 0
        self.misses = 0
        self._lock = threading.Lock()
        self._counted = False  # the ledger may be wrong after a crash, so each process counts the files once
        self._said = False

    def read(self, path: str, offset: int, length: int, fetch: Callable[[], bytes], *, fingerprint: str) -> bytes:
        """The ``length`` bytes of ``path`` from ``offset`` on, of the data set with ``fingerprint``.

        ``fetch`` reads them from the store if no process of this node has done so; its errors pass through.
        """
        entry = self._entry(path, offset, length, fingerprint)
        content = self._content(entry, length)
        if content is None:
            with self._fetching(entry, length) as part:
                # The previous holder of the lock may have fetched it.
                content = self._content(entry, length)
                if content is None:
                    self._count(hit=False)
                    content = fetch()
                    if part is not None and len(content) == length:
                        self._keep(entry, part, content)
                    return content
        self._count(hit=True)
        return content

    def forget(self, path: str, offset: int, length: int, *, fingerprint: str) -> None:
        """Remove an entry that turned out to be damaged, so that the next read asks the store."""
        with self._excused():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._entry(path, offset, length, fingerprint))

    def _entry(self, path: str, offset: int, length: int, fingerprint: str) -> str:
        key = "\n".join([fingerprint, path, str(offset), str(length)])
        return os.path.join(self.folder, hashlib.sha256(key.encode()).hexdigest())

    def _content(self, entry: str, length: int) -> bytes | None:
        """The content of an entry, which is marked as used; None if it does not exist or a crash left it incomplete."""
        with self._excused(), contextlib.suppress(FileNotFoundError):
            with opened(entry) as file:
                content = file.read()
                if len(content) == length:
                    os.utime(file.fileno(), ns=(now := time.time_ns(), now))
                    return content
                os.unlink(entry)
        return None

    @contextlib.contextmanager
    def _fetching(self, entry: str, length: int) -> Iterator[int | None]:
        """Yields the entry's ``.part`` file, open and locked; None if the entry exists by now, or the read has to
        bypass the cache."""
        part = None
        with self._excused():
            if length <= self.max_bytes:
                os.makedirs(self.folder, mode=0o700, exist_ok=True)
                part = self._locked_part(entry)
        try:
            yield part
        finally:
            if part is not None:
                with self._excused():  # it still has this name if fetching or storing failed
                    if _is(part, entry + ".part"):
                        os.unlink(entry + ".part")
                os.close(part)

    def _locked_part(self, entry: str) -> int | None:
        file = os.open(entry + ".part", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _flock(file, PATIENCE_S, entry)
            if _is(file, entry + ".part"):
                return file
        except BaseException:
            os.close(file)
            raise
        # Its former holder has renamed it, so that the entry exists; or could not fetch it. In that case all that
        # waited ask the store at the same time, instead of one after the other with all its retries.
        os.close(file)
        return None

    def _keep(self, entry: str, part: int, content: bytes) -> None:
        """Turn a locked part into an entry: make room, write the bytes, rename."""
        with self._excused():
            if not self._make_room(part, len(content)):
                return
            view, done = memoryview(content), 0
            while done < len(view):
                done += os.pwrite(part, view[done:], done)
            os.utime(part, ns=(now := time.time_ns(), now))
            with (
                self._ledger()
            ):  # a process that counts must not miss it: a listing can skip a file that is being renamed
                os.rename(entry + ".part", entry)

    def _make_room(self, part: int, length: int) -> bool:
        """Grow the part to ``length``, evicting entries if necessary; False if the limit does not allow it."""
        with self._ledger() as ledger:
            text = os.pread(ledger, 32, 0)
            total = int(text) if text.isdigit() else 0
            if total + length > self.max_bytes or not self._counted or not text.isdigit():
                total = self._evict(max(0, min(int(self.max_bytes * (1 - ROOM)), self.max_bytes - length)))
                if total + length > self.max_bytes:  # the rest is being written by other processes
                    return False
                self._counted = True
            # Ledger first: after a crash between the two it counts too much, which the next eviction corrects.
            os.pwrite(ledger, b"%032d" % (total + length), 0)
            os.ftruncate(part, length)
            return True

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[int]:
        """The ledger, open and locked."""
        ledger = os.open(os.path.join(self.folder, _LEDGER), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _flock(ledger, LEDGER_PATIENCE_S, self.folder)
            yield ledger
        finally:
            os.close(ledger)

    def _evict(self, target: int) -> int:
        """Remove the parts of dead processes, then the least recently used entries, until at most ``target`` bytes are
        left; returns the bytes left."""
        entries, total = [], 0
        with os.scandir(self.folder) as found:
            for item in found:
                if _FILE.fullmatch(item.name):
                    with contextlib.suppress(FileNotFoundError):
                        about = item.stat()
                        total += about.st_size
                        entries.append((not item.name.endswith(".part"), about.st_mtime_ns, about.st_size, item.path))
        for is_entry, _, size, path in sorted(entries):
            if is_entry and total <= target:
                break
            with contextlib.suppress(FileNotFoundError):
                if is_entry:
                    os.unlink(path)
                elif not _unlink_abandoned(path):
                    continue
                total -= size
        return total

    def _count(self, *, hit: bool) -> None:
        with self._lock:
            self.hits += hit
            self.misses += not hit

    @contextlib.contextmanager
    def _excused(self) -> Iterator[None]:
        """Ignores errors of the cache itself, after one warning: the read continues without it."""
        try:
            yield
        except OSError as error:
            with self._lock:
                said, self._said = self._said, True
            if not said:
                reason = strerror(error)
                log.warning("cache %s: %s; what it cannot hold is read from the store", self.folder, reason)


def _is(file: int, path: str) -> bool:
    """Whether ``path`` still names this open file."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _unlink_abandoned(path: str) -> bool:
    """Remove a part that no process has locked; False if one has."""
    file = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is(file, path):
            return False
        os.unlink(path)  # while it is locked, so that no other process takes it over in between
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(file)


def _flock(file: int, patience_s: float, what: str) -> None:
    """Lock an open file, by polling: flock has no time limit, and the holder may be stopped."""
    deadline, pause = time.monotonic() + patience_s, 0.0005
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process has held {what} locked for {patience_s:.0f} s") from None
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
