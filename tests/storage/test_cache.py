"""The node's cache: one fetch for all, never over its limit, never in the way."""

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from v2f.errors import V2FError
from v2f.storage import cache as module
from v2f.storage.cache import Cache

LENGTH = 1000


def content(number: int) -> bytes:
    return bytes([number % 251]) * LENGTH


class Source:
    """A store that counts."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, number: int) -> Callable[[], bytes]:
        def fetch() -> bytes:
            self.asked.append(number)
            return content(number)

        return fetch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def source() -> Source:
    return Source()


def read(cache: Cache, source: Source, *numbers: int) -> None:
    for number in numbers:
        found = cache.read("s3://b/shard.tar", LENGTH * number, LENGTH, source(number), fingerprint="f")
        assert found == content(number)


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != "ledger")


def test_what_was_read_is_not_asked_for_again(folder: Path, source: Source) -> None:
    cache = Cache(str(folder), 10 * LENGTH)
    read(cache, source, 0, 1, 0, 1)
    read(Cache(str(folder), 10 * LENGTH), source, 1, 0)  # as another process, or the next start
    assert source.asked == [0, 1]
    assert (cache.hits, cache.misses) == (2, 2)
    assert os.stat(folder).st_mode & 0o077 == 0


def test_an_entry_belongs_to_data_path_offset_and_length(folder: Path) -> None:
    cache = Cache(str(folder), 100)
    keys = [("a", 0, 2, "f"), ("b", 0, 2, "f"), ("a", 1, 2, "f"), ("a", 0, 3, "f"), ("a", 0, 2, "g")]
    for i, (path, offset, length, fingerprint) in enumerate(keys * 2):
        expected = bytes([i % len(keys)]) * length
        assert cache.read(path, offset, length, lambda expected=expected: expected, fingerprint=fingerprint) == expected
    assert (cache.hits, cache.misses) == (5, 5)


def test_those_longest_unused_go_first_and_the_limit_holds(folder: Path, source: Source) -> None:
    cache = Cache(str(folder), 10 * LENGTH)
    (tmp := folder / "notes.txt").parent.mkdir()
    tmp.write_text("not ours")
    read(cache, source, *range(10))
    read(cache, source, 0, 1)  # used again
    read(cache, source, 10)  # one too many
    assert held(folder) - len("not ours") <= 10 * LENGTH
    source.asked.clear()
    read(cache, source, 0, 1, 9, 10)
    assert source.asked == []
    read(cache, source, 2)
    assert source.asked == [2]
    assert tmp.read_text() == "not ours"


def test_what_does_not_fit_is_read_past_it(folder: Path, source: Source) -> None:
    cache = Cache(str(folder), LENGTH - 1)
    read(cache, source, 0, 0)
    assert source.asked == [0, 0]
    assert not folder.exists()
    with pytest.raises(V2FError, match="its size is 0 bytes"):
        Cache(str(folder), 0)


def test_the_limit_may_shrink_between_runs(folder: Path, source: Source) -> None:
    read(Cache(str(folder), 10 * LENGTH), source, *range(10))
    read(Cache(str(folder), 4 * LENGTH), source, 10)
    assert held(folder) <= 4 * LENGTH


def test_room_is_taken_before_bytes_are_written(folder: Path, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whoever counts the folder meanwhile counts this entry."""
    real, sizes = os.pwrite, []

    def looked_at(file: int, data: bytes, offset: int) -> int:
        sizes.append(held(folder))
        return real(file, data, offset)

    monkeypatch.setattr(os, "pwrite", looked_at)
    read(Cache(str(folder), 10 * LENGTH), source, 0, 1)
    assert sizes == [0, LENGTH, LENGTH, 2 * LENGTH]  # ledger, entry, ledger, entry


@pytest.mark.parametrize("text", ["", "x", "0" * 32], ids=["lost", "garbled", "of before a crash"])
def test_a_ledger_that_is_wrong_is_mended(folder: Path, source: Source, text: str) -> None:
    read(Cache(str(folder), 10 * LENGTH), source, *range(10))
    (folder / "ledger").write_text(text)
    read(Cache(str(folder), 10 * LENGTH), source, *range(10, 15))
    assert held(folder) <= 10 * LENGTH


def test_a_damaged_entry_is_forgotten_and_a_cut_one_is_not_used(folder: Path, source: Source) -> None:
    cache = Cache(str(folder), 10 * LENGTH)
    read(cache, source, 0, 1)
    entries = [path for path in folder.iterdir() if path.name != "ledger"]
    for entry in entries:
        entry.write_bytes(b"?" * LENGTH)
    assert cache.read("s3://b/shard.tar", 0, LENGTH, source(0), fingerprint="f") == b"?" * LENGTH
    cache.forget("s3://b/shard.tar", 0, LENGTH, fingerprint="f")
    cache.forget("s3://b/shard.tar", 0, LENGTH, fingerprint="f")
    read(cache, source, 0)
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-1])  # a machine that crashed while it wrote
    read(cache, source, 0, 1, 0, 1)
    assert source.asked == [0, 1, 0, 0, 1]


def test_the_error_of_a_fetch_is_the_readers_and_leaves_nothing(folder: Path, source: Source) -> None:
    cache = Cache(str(folder), 10 * LENGTH)

    for error in (V2FError("no such shard"), OSError(errno.EIO, "a fetch may raise this, too")):

        def fails(error: Exception = error) -> bytes:
            raise error

        with pytest.raises(type(error)):
            cache.read("s3://b/shard.tar", 0, LENGTH, fails, fingerprint="f")
    assert list(folder.iterdir()) == []
    read(cache, source, 0, 0)
    assert source.asked == [0]


def test_threads_that_want_the_same_ask_once(folder: Path, source: Source) -> None:
    cache = Cache(str(folder), 100 * LENGTH)
    together = threading.Barrier(8)

    def reader(_: int) -> None:
        together.wait()
        read(cache, source, *range(20))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(reader, range(8)))
    assert sorted(source.asked) == list(range(20))
    assert (cache.hits, cache.misses) == (7 * 20, 20)


def test_those_who_waited_in_vain_ask_all_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not one after the other, each with all of the store's patience."""
    cache = Cache(str(folder), 100 * LENGTH)
    fetching, at_the_lock, together = threading.Event(), threading.Semaphore(0), threading.Barrier(4, timeout=30)
    flock = module._flock

    def counted_flock(file: int, patience_s: float, what: str) -> None:
        at_the_lock.release()
        flock(file, patience_s, what)

    monkeypatch.setattr(module, "_flock", counted_flock)

    def fails() -> bytes:
        fetching.set()
        for _ in range(1 + 4):
            assert at_the_lock.acquire(timeout=30)
        raise V2FError("gone")

    def asks() -> bytes:
        together.wait()  # passes only where all are here at the same time
        return content(0)

    with ThreadPoolExecutor(5) as pool:
        failing = pool.submit(cache.read, "p", 0, LENGTH, fails, fingerprint="f")
        assert fetching.wait(30)
        found = [pool.submit(cache.read, "p", 0, LENGTH, asks, fingerprint="f") for _ in range(4)]
        assert isinstance(failing.exception(), V2FError)
        assert [one.result() for one in found] == [content(0)] * 4


_RANK = """
import json, sys
from v2f.storage.cache import Cache
folder, limit, count, seed = sys.argv[1], *map(int, sys.argv[2:])
cache = Cache(folder, limit)
asked = []
def fetch(number):
    asked.append(number)
    return bytes([number % 251]) * 1000
print("ready", flush=True); sys.stdin.readline()
for i in range(count):
    number = i if seed == 0 else (i * 7919 + seed * 104729) % 100
    found = cache.read("p", number, 1000, lambda: fetch(number), fingerprint="f")
    assert found == bytes([number % 251]) * 1000
print(json.dumps(asked))
"""


def ranks(folder: Path, limit: int, count: int, seeds: list[int]) -> list[subprocess.Popen]:
    """Processes that read ``count`` ranges each, all started before the first one reads."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(folder), *map(str, (limit, count, seed))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )
        for seed in seeds
    ]  # fmt: skip
    for rank in started:
        assert rank.stdout.readline() == "ready\n"
    for rank in started:
        rank.stdin.write("\n")
        rank.stdin.flush()
    return started


def test_the_ranks_of_a_node_ask_once_together(folder: Path) -> None:
    answers = [rank.communicate()[0] for rank in ranks(folder, 1_000_000, 200, [0] * 4)]
    assert sorted(number for answer in answers for number in json.loads(answer)) == list(range(200))
    assert held(folder) == 200_000


def test_many_processes_never_hold_more_than_the_limit(folder: Path) -> None:
    limit, most = 20 * LENGTH, 0
    folder.mkdir()
    started = ranks(folder, limit, 120, [1, 2, 3, 4])
    with open(folder / "ledger", "a+b") as ledger:
        while started[0].poll() is None:
            fcntl.flock(ledger, fcntl.LOCK_EX)  # now no file grows, and none gets its name
            total = 0
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):  # an empty one, which found no room
                    total += path.stat().st_size if path.name != "ledger" else 0
            fcntl.flock(ledger, fcntl.LOCK_UN)
            most = max(most, total)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started[0].wait(0.005)  # so that the ranks get at the lock, too
    for rank in started:
        rank.communicate()
        assert rank.returncode == 0
    assert 10 * LENGTH < most <= limit


def test_no_file_changes_its_name_while_another_process_counts(
    folder: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is renamed while its folder is listed may not be in the list: it would be counted as nothing."""
    named, rename = [], os.rename

    def locked(old: str, new: str) -> None:
        with open(folder / "ledger", "a+b") as ledger, pytest.raises(BlockingIOError):
            fcntl.flock(ledger, fcntl.LOCK_EX | fcntl.LOCK_NB)
        named.append(new)
        rename(old, new)

    monkeypatch.setattr(module.os, "rename", locked)
    read(Cache(str(folder), 10 * LENGTH), source, 0, 1)
    assert len(named) == 2
    assert held(folder) == 2 * LENGTH


def test_the_entry_of_a_process_that_was_killed_is_taken_over(folder: Path, source: Source) -> None:
    code = (
        "import sys; from v2f.storage.cache import Cache\n"
        "def fetch(): print('fetching', flush=True); sys.stdin.read()\n"
        "Cache(sys.argv[1], 10_000).read('s3://b/shard.tar', 0, 1000, fetch, fingerprint='f')"
    )
    victim = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert victim.stdout.readline() == "fetching\n"
    cache = Cache(str(folder), 10_000)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(read, cache, source, 0)
        victim.kill()
        victim.communicate()
        waiting.result(timeout=30)
    read(cache, source, 0)
    assert source.asked == [0]
    # And one that nobody asks for again makes room for others.
    (folder / f"{'0' * 64}.part").write_bytes(b"?" * 9500)
    read(Cache(str(folder), 10_000), source, *range(1, 5))
    assert held(folder) == 5 * LENGTH


def test_a_process_that_stops_is_waited_for_only_so_long(
    folder: Path, source: Source, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    monkeypatch.setattr(module, "LEDGER_PATIENCE_S", 0.05)
    cache = Cache(str(folder), 10 * LENGTH)
    with ThreadPoolExecutor(1) as pool:
        go = threading.Event()
        started = threading.Event()

        def slow() -> bytes:
            started.set()
            go.wait()
            return content(0)

        stopped = pool.submit(cache.read, "s3://b/shard.tar", 0, LENGTH, slow, fingerprint="f")
        started.wait()
        read(cache, source, 0)
        go.set()
        assert stopped.result() == content(0)
    assert "another process has held" in caplog.text
    with open(folder / "ledger", "r+b") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)
        read(cache, source, 1, 1)
    read(cache, source, 1, 1)
    assert source.asked == [0, 1, 1, 1]


def test_a_full_disk_is_said_once_and_stops_nothing(
    folder: Path, source: Source, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(str(folder), 10 * LENGTH)
    real = os.pwrite

    def full(file: int, data: bytes, offset: int) -> int:
        if len(data) < 100:
            return real(file, data, offset)  # the ledger
        if offset >= 600:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data[:600], offset)

    monkeypatch.setattr(os, "pwrite", full)
    read(cache, source, 0, 0, 1)
    assert source.asked == [0, 0, 1]
    assert [path.name for path in folder.iterdir()] == ["ledger"]
    assert len(caplog.messages) == 1
    assert "No space left on device; what it cannot hold is read from the store" in caplog.messages[0]
    monkeypatch.undo()
    read(cache, source, 2, 2)
    assert source.asked == [0, 0, 1, 2]


@pytest.mark.parametrize("make", [lambda p: p.write_text("a file"), lambda p: p.symlink_to(p)], ids=["file", "loop"])
def test_a_folder_that_cannot_be_is_said_once_and_stops_nothing(
    folder: Path, source: Source, make: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    make(folder)
    cache = Cache(str(folder), 10 * LENGTH)
    read(cache, source, 0, 0)
    cache.forget("s3://b/shard.tar", 0, LENGTH, fingerprint="f")
    assert source.asked == [0, 0]
    assert len(caplog.messages) == 1


def test_a_folder_that_is_wiped_in_the_middle_is_made_again(folder: Path, source: Source) -> None:
    cache = Cache(str(folder), 10 * LENGTH)
    read(cache, source, 0)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    read(cache, source, 0, 0, 1)
    assert source.asked == [0, 0, 1]
    assert held(folder) == 2 * LENGTH
