"""Files and remote objects through one door; fsspec's memory file system stands for a remote store."""

import errno
import itertools
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import botocore.exceptions as known
import fsspec
import pytest
from botocore.parsers import ResponseParserError
from certificates import serving

from v2f.errors import V2FError
from v2f.storage import retry, s3, store


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
    with pytest.raises(V2FError, match="f: found only 4 of the 8 bytes from byte 6 on: the file was truncated"):
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


def test_writing_leaves_the_umask_of_all_threads_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("for a moment every thread writes with another mask"))
    store.write_bytes(str(tmp_path / "f"), b"x")
    assert store.read_bytes(str(tmp_path / "f")) == b"x"


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _no_links(*_: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("call", ["fsync", "chmod", "link", "fsync of the file itself"])
def test_a_file_that_cannot_be_created_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    if call in ("fsync", "chmod", "link"):
        monkeypatch.setattr(os, call, _full)
    else:  # where there are no links the file is written in its place
        syncs = itertools.chain([lambda handle: None], itertools.repeat(_full))
        monkeypatch.setattr(os, "link", _no_links)
        monkeypatch.setattr(os, "fsync", lambda handle: next(syncs)(handle))
    with pytest.raises(V2FError, match="the disk is full"):
        store.create(str(tmp_path / "f"), b"content")
    assert list(tmp_path.iterdir()) == []


def test_without_links_one_of_two_creates_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", _no_links)
    path = str(tmp_path / "f")
    assert store.create(path, b"one")
    assert not store.create(path, b"two")
    assert store.read_bytes(path) == b"one"
    assert store.names(str(tmp_path)) == ["f"]


def test_a_renewal_that_fails_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "f")
    store.write_bytes(path, b"before")
    for call in ("chmod", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, _full)
            with pytest.raises(V2FError, match="the disk is full"):
                store.renew(path, b"after", None)
        assert store.names(str(tmp_path)) == ["f"]
        assert store.read_bytes(path) == b"before"


def test_a_folder_that_goes_while_its_tree_is_listed_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/1.wav", "b/2.wav"):
        store.write_bytes(str(tmp_path / name), b"x")
    stat = os.stat

    def gone(path: str, **kinds: bool) -> os.stat_result:
        if str(path).endswith("/a"):
            raise FileNotFoundError(path)
        return stat(path, **kinds)

    monkeypatch.setattr(os, "stat", gone)
    assert store.tree(str(tmp_path)) == ["b/2.wav"]


def test_what_cannot_be_removed_of_a_folder_keeps_nothing_else_of_it(tmp_path: Path) -> None:
    for name in ("a/b", "c", "last"):
        store.write_bytes(store.join(str(tmp_path), name), b"x")
    with pytest.raises(V2FError, match=r"/a: cannot remove it"):
        store.remove_folder(str(tmp_path), first="last")
    assert store.tree(str(tmp_path)) == ["a/b"]
    with pytest.raises(V2FError, match=r"/b: cannot remove it, it is a file, not a folder$"):
        store.remove_folder(str(tmp_path / "a" / "b"), first="last")
    assert store.tree(str(tmp_path)) == ["a/b"]


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
    for path in (
        *("s3://KEY:SECRET@bucket/x", "s3://SECRET@bucket/x", "ftp://user:SECRET@host/x"),
        *("s3://KEY:SE/SECRET@bucket/x", "s3://KEY:/SECRET@bucket/x", "s3://KEY:SE@SECRET@bucket/x"),
        "s3://KEY:SE CRET/SECRET@bucket/x",
    ):
        for act in (store.read_bytes, store.exists, store.names):
            with pytest.raises(V2FError, match="must not contain credentials") as caught:
                act(path)
            assert "SECRET" not in str(caught.value)


def test_an_unknown_scheme_and_a_failing_library_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(V2FError, match="this kind of path is not supported"):
        store.read_bytes("nonsense://x/y")

    def fails(*_: object, **__: object) -> bytes:
        raise RuntimeError("endpoint https://user:SECRET@host refused")

    monkeypatch.setattr(retry, "BACKOFF_S", 0)
    monkeypatch.setattr(fsspec.filesystem("memory"), "cat_file", fails)
    with pytest.raises(
        store.UnreachableError,
        match=r"memory://x: cannot read it, 10 attempts in 0 s failed \(the last: RuntimeError\)",
    ) as caught:
        store.read_bytes("memory://x")
    assert "SECRET" not in str(caught.value)
    assert caught.value.__suppress_context__


class Flaky:
    """Every other call of a method fails, each time in another way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str):
        self._act = getattr(fsspec.filesystem("memory"), name)
        self._errors = itertools.cycle([ConnectionResetError(), TimeoutError(), RuntimeError(), OSError(5, "EIO")])
        self.calls = 0
        monkeypatch.setattr(retry, "BACKOFF_S", 0)
        monkeypatch.setattr(fsspec.filesystem("memory"), name, self)

    def __call__(self, *values: object, **kinds: object) -> object:
        self.calls += 1
        if self.calls % 2:
            raise next(self._errors)
        return self._act(*values, **kinds)


@pytest.mark.parametrize("root", ["memory://"], indirect=True)
def test_another_kind_of_store_is_asked_again(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flaky = [Flaky(monkeypatch, name) for name in ("cat_file", "put_file", "ls", "size", "rm_file", "find")]
    path = store.join(root, "f")
    before = store.statistics()
    for _ in range(4):
        store.write_bytes(path, b"0123456789")
        assert store.read_bytes(path) == b"0123456789"
        assert store.read_range(path, 2, 3) == b"234"
        assert store.names(root) == store.tree(root) == ["f"]
        assert store.size(path) == 10
        assert store.exists(path)
        store.remove(path)
    after = store.statistics()
    assert all(one.calls >= 8 and one.calls % 2 == 0 for one in flaky)
    assert after.retries - before.retries == sum(one.calls for one in flaky) // 2
    assert (after.bytes_read - before.bytes_read, after.bytes_written - before.bytes_written) == (4 * 13, 4 * 10)


@pytest.mark.parametrize("root", ["memory://"], indirect=True)
def test_a_failing_look_up_is_not_taken_for_an_absent_file(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.join(root, "f")
    store.write_bytes(path, b"x")
    flaky = Flaky(monkeypatch, "info")
    assert store.exists(path)
    assert flaky.calls == 2


def test_a_file_is_not_listed_below_itself(root: str) -> None:
    path = store.join(root, "f")
    store.write_bytes(path, b"x")
    assert store.names(path) == store.tree(path) == []


@pytest.mark.parametrize("root", ["memory://"], indirect=True)
def test_a_short_answer_is_not_taken_for_a_short_file(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.join(root, "f")
    store.write_bytes(path, b"0123456789")
    cat = fsspec.filesystem("memory").cat_file
    answers = iter([2, 5])
    monkeypatch.setattr(retry, "BACKOFF_S", 0)
    monkeypatch.setattr(
        fsspec.filesystem("memory"), "cat_file", lambda *values, **kinds: cat(*values, **kinds)[: next(answers, None)]
    )
    assert store.read_range(path, 1, 8) == b"12345678"


def test_what_was_asked_for_is_counted(tmp_path: Path) -> None:
    before = store.statistics()
    store.write_bytes(str(tmp_path / "f"), b"0123456789")
    store.read_bytes(str(tmp_path / "f"))
    store.read_range(str(tmp_path / "f"), 1, 4)
    after = store.statistics()
    assert retry.Statistics(*(b - a for a, b in zip(astuple(before), astuple(after), strict=True))) == retry.Statistics(
        bytes_read=14, bytes_written=10, requests=3, retries=0
    )


def test_local_reads_import_no_client() -> None:
    """Decode workers and plain runs start without botocore and s3fs."""
    code = "import sys; from v2f.storage import store; store.read_bytes(sys.executable); print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "v2f.storage.s3" in answer.stdout.split()
    assert not {"botocore", "aiobotocore", "aiohttp", "fsspec", "s3fs"} & set(answer.stdout.split())


def _client_error(status: int, code: str) -> known.ClientError:
    return known.ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (
            known.EndpointConnectionError(endpoint_url="http://SECRET"),
            s3.TransientError,
            "no connection to the endpoint",
        ),
        (known.ReadTimeoutError(endpoint_url="http://SECRET"), s3.TransientError, "no byte for 30 s"),
        (known.ResponseStreamingError(error="SECRET"), s3.TransientError, "the connection was interrupted"),
        (ResponseParserError("SECRET"), s3.TransientError, "the connection was interrupted"),
        (known.SSLError(endpoint_url="", error="EOF SECRET"), s3.TransientError, "the connection was interrupted"),
        (known.SSLError(endpoint_url="", error="CERTIFICATE_VERIFY_FAILED"), s3.S3Error, "certificate is not trusted"),
        (known.CredentialRetrievalError(provider="", error_msg="SECRET"), s3.TransientError, "could not be fetched"),
        (known.FlexibleChecksumError(error_msg="SECRET"), s3.TransientError, "damaged in transit"),
        (known.ParamValidationError(report="SECRET"), s3.S3Error, "allows no such bucket or key"),
        (known.UnknownRegionError(region_name="SECRET", error_msg=""), s3.S3Error, "UnknownRegionError"),
        (ValueError("Invalid endpoint: SECRET"), s3.S3Error, "not a URL"),
        (_client_error(503, "SlowDown"), s3.TransientError, "HTTP 503 SlowDown"),
        (_client_error(400, "RequestTimeout"), s3.TransientError, "HTTP 400 RequestTimeout"),
        (_client_error(429, "Whatever"), s3.TransientError, "HTTP 429 Whatever"),
        (_client_error(500, "a text with a SECRET"), s3.TransientError, "^HTTP 500$"),
        (_client_error(403, "InvalidAccessKeyId"), s3.DeniedError, "HTTP 403 InvalidAccessKeyId"),
        (_client_error(400, "ExpiredToken"), s3.S3Error, "HTTP 400 ExpiredToken"),
        (_client_error(404, "NoSuchKey"), FileNotFoundError, "404"),
        (_client_error(404, "NoSuchBucket"), s3.NoBucketError, "there is no such bucket"),
        (_client_error(416, "InvalidRange"), s3.BeyondEndError, "416"),
    ],
)
def test_what_the_client_raises_is_worth_another_attempt_or_not(error: Exception, kind: type, text: str) -> None:
    found = s3._translation(error)
    assert type(found) is kind
    assert re.search(text, str(found))
    assert "SECRET" not in str(found)


def test_a_store_that_lacks_something_for_a_plain_write_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []

    def lacks(method: str, **_: object) -> None:
        requests.append(method)
        raise s3._translation(_client_error(501, "NotImplemented"))

    monkeypatch.setattr(s3, "_request", lacks)
    with pytest.raises(V2FError, match="s3://b/k: cannot write it: the store does not support this request"):
        store.write_bytes("s3://b/k", b"x")
    assert requests == ["put_object"]


def test_a_store_that_ignores_ranges_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_content", lambda **_: ({"ETag": "x", "ContentLength": 10}, b"0123456789", None))
    with pytest.raises(V2FError, match="s3://b/k: cannot read it: this store does not support ranged reads"):
        store.read_range("s3://b/k", 5, 2)


def test_s3_paths_that_name_nothing_are_one_line() -> None:
    for path in ("s3://", "s3:///key"):
        with pytest.raises(V2FError, match="this kind of path is not supported"):
            store.read_bytes(path)
    with pytest.raises(V2FError, match="no such file"):
        store.size("s3://bucket")


def test_a_tree_is_all_files_below_a_folder_whatever_it_is_linked_of(tmp_path: Path) -> None:
    for name in ("a/b/1.wav", "a/2.wav", "3.wav", "aa/4.wav"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_bytes(b"x")
        store.write_bytes(f"memory://tree/root/{name}", b"x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/5.wav").write_bytes(b"x")
    (tmp_path / "root/linked").symlink_to(tmp_path / "elsewhere")
    assert store.tree(f"{tmp_path}/root") == ["3.wav", "a/2.wav", "a/b/1.wav", "aa/4.wav", "linked/5.wav"]
    assert store.tree("memory://tree/root/a") == ["2.wav", "b/1.wav"]
    assert store.tree(f"{tmp_path}/nowhere") == store.tree("memory://nowhere") == []


def test_a_link_back_into_its_own_folder_is_not_followed(tmp_path: Path) -> None:
    """Whether it leads to the root, to the folder itself, or by way of another link; other links are."""
    for name in ("a/b/1.wav", "a/2.wav", "c/3.wav"):
        store.write_bytes(str(tmp_path / "root" / name), b"x")
    (tmp_path / "root/a/b/top").symlink_to("../..")
    (tmp_path / "root/a/self").symlink_to(".")
    (tmp_path / "root/a/c").symlink_to("../c")
    (tmp_path / "root/c/a").symlink_to("../a")
    (tmp_path / "linked").symlink_to("root")
    found = ["a/2.wav", "a/b/1.wav", "a/c/3.wav", "c/3.wav", "c/a/2.wav", "c/a/b/1.wav"]
    assert store.tree(str(tmp_path / "root")) == found
    assert store.tree(str(tmp_path / "linked")) == found


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.write_bytes(str(tmp_path / "a/1.wav"), b"x")
    (tmp_path / "shut").mkdir()
    scan = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert store.tree(str(tmp_path)) == ["a/1.wav"]
    assert caplog.messages == [f"{tmp_path}/shut: cannot list it (Permission denied); its files are ignored"]


def test_a_certificate_that_is_not_trusted_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "x")
    (tmp_path / "junk.pem").write_text("no certificate")
    with serving(tmp_path) as (address, certificate):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        for bundle, why in (
            ("", "the endpoint's certificate is not trusted; set AWS_CA_BUNDLE to the file of its CA"),
            (f"{tmp_path}/none.pem", "the file named by AWS_CA_BUNDLE is missing or holds no certificate"),
            (f"{tmp_path}/junk.pem", "the file named by AWS_CA_BUNDLE is missing or holds no certificate"),
        ):
            if bundle:
                monkeypatch.setenv("AWS_CA_BUNDLE", bundle)
            before = store.statistics()
            for act in (store.read_bytes, store.names, lambda path: store.write_bytes(path, b"x")):
                with pytest.raises(V2FError, match=rf"s3://b/k: cannot \w+ it: {why}"):
                    act("s3://b/k")
            assert store.statistics().retries == before.retries
        monkeypatch.setenv("AWS_CA_BUNDLE", certificate)
        assert store.names("s3://b/k") == []
    with serving(tmp_path, tls=False) as (address, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(V2FError, match="the endpoint does not use TLS; should AWS_ENDPOINT_URL begin with http://"):
            store.names("s3://b/k")
