"""Files and remote objects through one door; fsspec's memory file system stands for a remote store."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from v2f import store
from v2f.errors import V2FError


@pytest.fixture(params=["plain", "file://", "memory://"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "memory://":
        yield "memory://bucket/prefix"
        memory = fsspec.filesystem("memory")
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]
    else:
        yield f"file://{tmp_path}" if request.param == "file://" else str(tmp_path)


def test_what_is_written_is_read(root: str) -> None:
    path = store.join(root, "a", "b.bin")
    assert not store.exists(path)
    store.write_bytes(path, b"0123456789")
    assert store.exists(path)
    assert store.exists(store.join(root, "a"))
    assert store.read_bytes(path) == b"0123456789"
    assert store.size(path) == 10
    assert store.read_range(path, 3, 4) == b"3456"
    store.write_bytes(path, b"new")
    assert store.read_bytes(path) == b"new"


def test_names_are_sorted_and_bare(root: str) -> None:
    for name in ("b", "a", "c/d"):
        store.write_bytes(store.join(root, name), b"x")
    assert store.names(root) == ["a", "b", "c"]
    assert store.names(store.join(root, "nowhere")) == []


def test_a_range_beyond_the_end_is_an_error_not_a_short_answer(root: str) -> None:
    path = store.join(root, "f")
    store.write_bytes(path, b"0123456789")
    with pytest.raises(V2FError, match="f: only 4 of the 8 bytes from byte 6 on are there"):
        store.read_range(path, 6, 8)


def test_a_missing_file_is_one_line(root: str) -> None:
    for act in (store.read_bytes, store.size):
        with pytest.raises(V2FError, match=r"nothing: cannot \w+( up)? it, there is no such file$"):
            act(store.join(root, "nothing"))
    store.remove(store.join(root, "nothing"))


def test_a_write_that_fails_leaves_the_former_content_and_no_rest(root: str) -> None:
    path = store.join(root, "f")
    store.write_bytes(path, b"before")
    temporary = ""

    def fail() -> None:
        nonlocal temporary
        with store.replacing(path) as temporary:
            Path(temporary).write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.read_bytes(path) == b"before"
    assert store.names(root) == ["f"]
    assert not os.path.exists(temporary)


def test_a_local_write_is_never_seen_half(tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    with store.replacing(path) as temporary:
        Path(temporary).write_bytes(b"half")
        assert os.path.dirname(temporary) == str(tmp_path)  # so that the rename is one step
        assert not os.path.exists(path)
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert stat.S_IMODE(os.stat(path).st_mode) == stat.S_IMODE(plain.stat().st_mode)  # others may read it, too


def test_removing(root: str) -> None:
    path = store.join(root, "f")
    store.write_bytes(path, b"x")
    store.remove(path)
    assert not store.exists(path)


def test_join_keeps_roots_and_schemes() -> None:
    assert store.join("s3://bucket/", "/a/", "b") == "s3://bucket/a/b"
    assert store.join("/", "a") == "/a"
    assert store.join("runs/one", "x") == "runs/one/x"


def test_no_secret_stands_in_a_message() -> None:
    for path in ("s3://KEY:SECRET@bucket/x", "s3://SECRET@bucket/x", "ftp://user:SECRET@host/x"):
        for act in (store.read_bytes, store.exists, store.names):
            with pytest.raises(V2FError, match="carries no credentials") as caught:
                act(path)
            assert "SECRET" not in str(caught.value)


def test_an_unknown_scheme_and_a_failing_library_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(V2FError, match="this kind of path is not understood"):
        store.read_bytes("nonsense://x/y")

    def fails(*_: object, **__: object) -> bytes:
        raise RuntimeError("endpoint https://user:SECRET@host refused")

    monkeypatch.setattr(fsspec.filesystem("memory"), "cat_file", fails)
    with pytest.raises(V2FError, match=r"memory://x: cannot read it \(RuntimeError\)") as caught:
        store.read_bytes("memory://x")
    assert "SECRET" not in str(caught.value)
    assert caught.value.__suppress_context__
