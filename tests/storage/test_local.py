"""Local files: only files are opened, lines are whole, and whatever fails is told with its way out."""

import contextlib
import errno
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from v2f import config
from v2f.errors import V2FError, guarded
from v2f.storage import cache, local, store
from v2f.storage.local import Lines, PassingError
from v2f.training import stopping

KINDS = {"fifo": "a FIFO (named pipe)", "socket": "a socket", "device": "a device", "folder": "a folder"}


@pytest.fixture(autouse=True)
def never_held() -> Iterator[None]:
    """Whoever waits for the other end of a FIFO waits for ever: that is to fail, not to hang."""

    def held(*_: object) -> None:
        raise AssertionError("opening it has held us up")

    before = signal.signal(signal.SIGALRM, held)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=KINDS)
def strange(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    path = tmp_path / request.param
    with contextlib.ExitStack() as stack:
        if request.param == "fifo":
            os.mkfifo(path)
        elif request.param == "socket":
            monkeypatch.chdir(tmp_path)  # a socket's path is short
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(path.name)
        elif request.param == "device":
            try:
                os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
            except PermissionError:  # who may not make one cannot harm this one
                path = Path("/dev/zero")
        else:
            path.mkdir()
        yield str(path)


@pytest.mark.parametrize(
    "read",
    [
        store.read_bytes,
        lambda path: store.read_range(path, 0, 8),
        store.size,
        config.read_yaml,
        lambda path: local.append_line(path, "x"),
        lambda path: store.write_bytes(path, b"x"),
    ],
    ids=["read_bytes", "read_range", "size", "read_yaml", "append_line", "write_bytes"],
)
def test_what_is_no_file_is_refused_at_once(strange: str, read: Callable[[str], object]) -> None:
    what = KINDS.get(Path(strange).name, KINDS["device"])
    with pytest.raises(V2FError) as caught:
        read(strange)
    assert not caught.value.retryable
    assert str(caught.value).startswith(f"{strange}: ")
    assert what in str(caught.value)
    assert not os.path.isfile(strange)


def test_a_cache_that_finds_a_fifo_asks_the_store(tmp_path: Path) -> None:
    made = cache.Cache(str(tmp_path), 1000)
    os.mkfifo(made._entry("shard", 0, 3, "data"))
    assert made.read("shard", 0, 3, lambda: b"abc", fingerprint="data") == b"abc"


LASTING = {
    errno.EROFS: "the file system is read-only; ",
    errno.EACCES: "access is denied; ",
    errno.EPERM: "access is denied; ",
    errno.ENAMETOOLONG: "its name is too long for the file system; ",
    errno.ELOOP: "its links form a loop; ",
    errno.EFBIG: "it is larger than the file system or `ulimit -f` allows; ",
    errno.ENOTDIR: " is in the way; ",
    errno.EEXIST: " is in the way; ",
    errno.EISDIR: " is in the way; ",
    errno.ENOENT: "its folder no longer exists; ",
}
PASSING = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the quota of this disk is used up; make room",
    errno.EIO: "the disk or its connection fails",
    errno.ESTALE: "the network disk has lost it",
    errno.EBUSY: os.strerror(errno.EBUSY),
}


@pytest.mark.parametrize("code", [*LASTING, *PASSING], ids=errno.errorcode.get)
def test_every_failed_write_is_told_with_path_and_way_out_and_whether_to_start_again(
    code: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = str(tmp_path / "run" / "x")

    def command() -> int:
        with store.explained(path):
            raise OSError(code, os.strerror(code), path)

    left = guarded(command, debug=False, error_code=stopping.MISTAKE)
    told = capsys.readouterr().err
    assert told.startswith(f"v2f: {path}: cannot write it")
    assert told.count("\n") == 1
    assert (LASTING | PASSING)[code] in told
    assert left == (1 if code in PASSING else stopping.MISTAKE)


def test_what_a_library_in_rust_says_of_the_system_is_understood_and_other_errors_are_left_alone() -> None:
    with pytest.raises(PassingError, match="x: cannot write it, the disk is full"):
        with local.explained("x"):
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(ZeroDivisionError):
        with local.explained("x"):
            raise ZeroDivisionError


def test_the_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for path, what in (
        (f"{tmp_path}/file/a/b", f"the file {tmp_path}/file is in the way"),
        (f"file://{tmp_path}/file/a", f"the file {tmp_path}/file is in the way"),
        (f"{tmp_path}/folder", "a folder is in the way"),
    ):
        with pytest.raises(V2FError, match=f"^{path}: cannot write it, {what}; move it away"):
            store.write_bytes(path, b"x")


@contextlib.contextmanager
def no_file_beyond(largest: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 3])
def test_a_line_is_there_whole_or_not_at_all(tmp_path: Path, room: int) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ncut by a ki")
    with contextlib.closing(Lines(path)) as lines:
        with no_file_beyond(4 + room), pytest.raises(OSError, match=r"too large|No space"):
            lines.write(b"twotwo\n")
        assert path.read_bytes() == b"one\ntwotwo\n"[: 4 + room]
        lines.write(b"three\n")
        assert path.read_bytes() == b"one\nthree\n"
        with no_file_beyond(12), pytest.raises(OSError, match=r"too large|No space"):
            lines.write(b"fourfour\n")
    assert path.read_bytes() == b"one\nthree\n"


def test_what_goes_to_a_store_passes_through_the_scratch_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    monkeypatch.setenv(local.SCRATCH, str(tmp_path / "scratch"))
    with store.replacing("memory://scratch/f") as temporary:
        Path(temporary).write_bytes(b"x")
    assert os.path.dirname(temporary) == str(tmp_path / "scratch")
    assert os.listdir(tmp_path / "scratch") == []
    with local.scratch_folder() as folder:
        assert os.path.dirname(folder) == str(tmp_path / "scratch")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv(local.SCRATCH, str(tmp_path / "file"))
    with pytest.raises(V2FError, match=rf"memory://scratch/f: by way of {tmp_path}/file \(V2F_SCRATCH\): cannot write"):
        store.write_bytes("memory://scratch/f", b"x")


def test_only_what_the_block_writes_is_explained(tmp_path: Path) -> None:
    for raised in (FileNotFoundError(2, "no", "another"), ConnectionResetError(104, "reset")):
        with pytest.raises(type(raised)):
            with store.replacing(str(tmp_path / "f")):
                raise raised
    with pytest.raises(PassingError, match="f: cannot write it, the disk is full"):
        with store.replacing(str(tmp_path / "f")):
            raise OSError(errno.ENOSPC, "full")
    assert os.listdir(tmp_path) == []


FULL = """
import json, os, sys
from pathlib import Path
import torch
from v2f.runs import checkpoint
from v2f.runs.saver import write_tensors
from v2f.storage import local, store
from v2f.data.shards import write_runs
from v2f.errors import V2FError

disk = Path(sys.argv[1])
os.environ[local.SCRATCH] = str(disk / "scratch")
writes = {
    "a/b": lambda path: store.write_bytes(path, bytes(100_000)),
    "part.safetensors": lambda path: write_tensors(path, {"a": torch.zeros(100_000)}),
    "lines": lambda path: local.append_line(path, "x" * 100_000),
    "s.tar": lambda path: write_runs(str(disk), "s.tar", "train", ["a"], ["i"], [bytes(100_000)], [0]),
    "": lambda path: store.write_bytes("memory://x", bytes(100_000)),
}
found = {}
for state in ("full", "read-only"):
    if state == "full":
        room = os.statvfs(disk)
        (disk / "fill").write_bytes(bytes(room.f_bavail * room.f_frsize - 5000))
    else:
        (disk / "fill").unlink()
        assert os.system(f"mount -o remount,ro {disk}") == 0
    for name, write in writes.items():
        try:
            write(str(disk / name))
        except V2FError as error:
            found[f"{state} {name}"] = [str(error), error.retryable]
    found[f"{state}: rests"] = [name for name in store.tree(str(disk)) if name not in ("fill", "lines")]
print(json.dumps(found))
"""


def test_a_disk_that_is_full_and_one_that_is_read_only(tmp_path: Path) -> None:
    """A disk of 1 MB in a mount namespace of its own."""
    mount = f"mount -t tmpfs -o size=1m d {tmp_path}"
    unshare = ["unshare", "--mount"] + ([] if os.getuid() == 0 else ["--user", "--map-root-user"])
    if subprocess.run([*unshare, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount in a namespace of its own")
    done = subprocess.run(
        [*unshare, "sh", "-c", f'{mount} && exec "$0" -c "$1" {tmp_path}', sys.executable, FULL],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    names = ["a/b", "part.safetensors", "lines", "s.tar", ""]
    for state, why, again in (("full", "the disk is full", True), ("read-only", "the file system is read-only", False)):
        for name in names:
            told, may_pass = found[f"{state} {name}"]
            where = f"{tmp_path}/{name}" if name else f"memory://x: by way of {tmp_path}/scratch (V2F_SCRATCH)"
            assert told.startswith(f"{where}: cannot write it, {why}; ")
            assert may_pass is again
        assert found[f"{state}: rests"] == []


def test_an_error_without_a_word_is_told_with_where_it_arose(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise AssertionError

    assert guarded(command, debug=False) == 1
    told = capsys.readouterr().err
    assert told.startswith("v2f: unexpected AssertionError: ")
    assert "test_local.py" in told
    assert told.count("\n") == 1
