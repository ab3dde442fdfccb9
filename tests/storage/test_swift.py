"""What is read from and written to a real object store, on a good day and through a bad network."""

import os
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import KINDS, Faults, faulty
from swift import Swift

from v2f.data.encoding import encode
from v2f.data.loader import Loader
from v2f.data.manifest import open_dataset
from v2f.data.order import Order
from v2f.data.shards import write_manifest, write_shard
from v2f.data.transforms import Photo, Waveform
from v2f.errors import V2FError
from v2f.prepare.pack import load_recipe, pack
from v2f.prepare.verify import verify
from v2f.storage import objects, retry, s3, store

CONTENT = np.random.default_rng(5).integers(0, 256, 300_000, dtype=np.uint8).tobytes()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same number of attempts, in a test's time."""
    monkeypatch.setattr(retry, "BACKOFF_S", 0.001)


@pytest.fixture
def through(swift: Swift, s3_root: str, monkeypatch: pytest.MonkeyPatch, hasty: None) -> Iterator[Faults]:
    """The environment points at a proxy that spoils nothing yet."""
    with faulty(swift.endpoint, seed=1, share=0) as faults:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faults.endpoint)
        yield faults


def test_files_are_written_found_read_and_removed(s3_root: str) -> None:
    a, empty = f"{s3_root}/d/a", f"{s3_root}/empty"
    assert not store.exists(a)
    assert store.names(s3_root) == []
    store.write_bytes(a, b"0123456789")
    store.write_bytes(empty, b"")
    assert store.exists(a)
    assert store.exists(f"{s3_root}/d")
    assert not store.exists(f"{s3_root}/dd")
    assert store.names(s3_root) == ["d", "empty"]
    assert store.tree(s3_root) == ["d/a", "empty"]
    assert (store.size(a), store.size(empty)) == (10, 0)
    assert (store.read_bytes(a), store.read_bytes(empty)) == (b"0123456789", b"")
    assert store.read_range(a, 3, 4) == b"3456"
    assert store.read_range(a, 3, 0) == b""
    store.write_bytes(a, b"new")
    assert store.read_bytes(a) == b"new"
    store.remove_folder(s3_root, first="empty")
    store.remove(a)
    store.remove(a)
    assert store.tree(s3_root) == []


def test_more_names_than_one_answer_holds(s3_root: str, swift: Swift, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"n{i}" for i in range(5)]
    for name in names:
        store.write_bytes(f"{s3_root}/{name}", b"")
    page = s3.page
    monkeypatch.setattr(s3, "page", lambda *values, **kinds: page(*values, **{"limit": 2, **kinds}))
    assert store.names(s3_root) == names


NO_BUCKET = ": there is no such bucket; create it, or correct its name or AWS_ENDPOINT_URL"


def test_what_is_not_there_or_not_enough_is_one_line_and_asked_for_once(through: Faults, s3_root: str) -> None:
    store.write_bytes(f"{s3_root}/f", b"0123456789")
    for offset, there in ((6, 4), (10, 0), (99, 0)):
        with pytest.raises(V2FError, match=f"f: found only {there} of the 8 bytes from byte {offset} on: the file was"):
            store.read_range(f"{s3_root}/f", offset, 8)
    through.asked.clear()
    for path, why in ((f"{s3_root}/nothing", ", there is no such file"), ("s3://no-such-bucket/x", NO_BUCKET)):
        for act in (store.read_bytes, store.size, lambda path: store.read_range(path, 0, 1)):
            with pytest.raises(V2FError, match=f"cannot (read|look up) it{why}$"):
                act(path)
    assert len(through.asked) <= 12  # and once where the bucket is
    for act in (store.exists, store.names, store.tree, store.remove, lambda path: store.write_bytes(path, b"x")):
        with pytest.raises(V2FError, match=f"s3://no-such-bucket/x: cannot .* it{NO_BUCKET}$"):
            act("s3://no-such-bucket/x")
    with pytest.raises(V2FError, match="it names a bucket, not an object; add a key"):
        store.write_bytes("s3://bucket", b"")


def test_wrong_keys_are_one_line_without_them_and_asked_with_once(
    through: Faults, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-SECRET")
    with pytest.raises(V2FError, match=r"access is denied \(HTTP 403 SignatureDoesNotMatch\)") as caught:
        store.read_bytes(f"{s3_root}/f")
    assert len(through.asked) == 1
    assert "SECRET" not in str(caught.value)
    assert os.environ["AWS_ACCESS_KEY_ID"] not in str(caught.value)


def test_keys_and_endpoint_of_a_profile(
    swift: Swift, s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in swift.environment():
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with pytest.raises(V2FError, match="no credentials found; set AWS_ACCESS_KEY_ID"):
        store.read_bytes(f"{s3_root}/f")
    monkeypatch.setenv("AWS_PROFILE", "cluster")
    with pytest.raises(V2FError, match="AWS_PROFILE names a profile that is in none"):
        store.read_bytes(f"{s3_root}/f")
    (tmp_path / "config").write_text(f"[profile cluster]\nendpoint_url = {swift.endpoint}\nregion = us-east-1\n")
    keys = f"aws_access_key_id = {swift.access_key}\naws_secret_access_key = {swift.secret_key}\n"
    (tmp_path / "credentials").write_text(f"[cluster]\n{keys}")
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")  # any change of AWS_* makes a new client
    store.write_bytes(f"{s3_root}/f", b"by profile")
    assert store.read_bytes(f"{s3_root}/f") == b"by profile"


def test_a_forked_process_reads_with_a_client_of_its_own(swift: Swift, s3_root: str) -> None:
    """And does not close its parent's, whose connections and event loop are not its own."""
    code = """
import gc, os, sys
import s3fs
from v2f.storage import store
path = sys.argv[1]
closing, parent = s3fs.S3FileSystem.close_session, os.getpid()
def close(*session):
    if os.getpid() != parent:
        print("closed", flush=True)
    closing(*session)
s3fs.S3FileSystem.close_session = staticmethod(close)
store.write_bytes(path, b"0123")
child = os.fork()
if not child:
    print(store.read_bytes(path), store.size(path), flush=True)
    gc.collect()
    os._exit(0)
os.waitpid(child, 0)
print(store.read_range(path, 1, 2))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, f"{s3_root}/f"],
        env=os.environ | swift.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout, done.stderr) == ("b'0123' 4\nb'12'\n", "")


def test_nobody_there_is_given_up_after_the_set_attempts(
    s3_root: str, hasty: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nothing listens there
    before = store.statistics()
    with pytest.raises(
        store.UnreachableError, match=rf"{retry.ATTEMPTS} attempts in \d+ s failed \(the last: no connection to the en"
    ):
        store.read_bytes(f"{s3_root}/f")
    after = store.statistics()
    assert (after.requests - before.requests, after.retries - before.retries) == (retry.ATTEMPTS, retry.ATTEMPTS - 1)
    assert len(caplog.messages) == 1
    assert "cannot read it yet (no connection to the endpoint); trying again" in caplog.messages[0]


def test_pauses_grow_up_to_a_limit_and_are_drawn_from_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, pauses = [], []
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: limits.append((low, high)) or high / 2)
    monkeypatch.setattr(retry.time, "sleep", pauses.append)

    def fails() -> None:
        raise s3.TransientError("it")

    with pytest.raises(store.UnreachableError):
        store.backend_of("s3://b/k", "read").request(fails)
    tops = [high for _, high in limits]
    assert [low for low, _ in limits] == [0] * len(tops)
    assert tops[:3] == [retry.BACKOFF_S, 2 * retry.BACKOFF_S, 4 * retry.BACKOFF_S]
    assert max(tops) == retry.LONGEST_BACKOFF_S
    assert len(tops) == retry.ATTEMPTS - 1
    assert pauses == [high / 2 for high in tops]


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_is_right_whatever_goes_wrong(
    kind: str, through: Faults, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    through.kinds, through.share = (kind,), 0.4
    if kind == "stall":
        through.share = 0.12
        monkeypatch.setattr(s3, "READ_S", 0.4)
    for i in range(3):
        store.write_bytes(f"{s3_root}/{i}", CONTENT[i:])
    assert store.names(s3_root) == ["0", "1", "2"]
    assert store.size(f"{s3_root}/1") == len(CONTENT) - 1
    assert store.read_bytes(f"{s3_root}/2") == CONTENT[2:]
    for i in range(0, 12_000, 1000):
        assert store.read_range(f"{s3_root}/0", i, 90_000) == CONTENT[i : i + 90_000]
    store.remove(f"{s3_root}/1")
    assert store.names(s3_root) == ["0", "2"]
    assert through.happened()[kind] >= 3


def test_a_read_goes_on_at_the_byte_at_which_it_broke_off(
    through: Faults, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "PROGRESS", 1 << 16)
    path, length = f"{s3_root}/f", 1 << 20
    content = (CONTENT * 20)[:length]
    store.write_bytes(path, content)
    through.asked.clear()
    through.share, through.kinds = 1, ("drop",)  # each answer breaks off in its middle; all succeed at something
    with pytest.raises(store.UnreachableError):
        store.read_bytes(path)
    starts = [int(asked.range.removeprefix("bytes=").split("-")[0]) for asked in through.asked]
    assert starts[:3] == [0, length // 2, length // 2 + length // 4]
    # Four of them bring what counts as progress, the following ones less and less.
    assert len(starts) == 4 + retry.ATTEMPTS - 1
    through.asked.clear()
    through.kinds = ("truncate",)
    before = store.statistics()
    through.share = 0.5
    assert store.read_range(path, 1000, length - 1000) == content[1000:]
    after = store.statistics()
    assert after.bytes_read - before.bytes_read == length - 1000
    assert after.requests - before.requests == len(through.asked) == 1 + after.retries - before.retries


def test_an_object_that_is_replaced_in_the_middle_is_no_mixture(
    through: Faults, s3_root: str, swift: Swift, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{s3_root}/f"
    store.write_bytes(path, CONTENT)
    through.share, through.kinds = 1, ("truncate",)
    get = s3.get

    def replacing_get(path: str, offset: int, stop: int | None, etag: str | None):
        if offset:
            through.share = 0
            bucket, key = path.removeprefix("s3://").split("/", 1)
            swift.client().put_object(Bucket=bucket, Key=key, Body=CONTENT[::-1])
        return get(path, offset, stop, etag)

    monkeypatch.setattr(s3, "get", replacing_get)
    with pytest.raises(V2FError, match="f: cannot read it: it was replaced while it was being read"):
        store.read_bytes(path)
    assert store.read_bytes(path) == CONTENT[::-1]


def test_a_large_file_goes_in_parts(through: Faults, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PART", 50_000)
    store.write_bytes(f"{s3_root}/good", CONTENT)
    assert Counter(asked.method for asked in through.asked) == {"POST": 2, "PUT": 6}
    assert store.read_bytes(f"{s3_root}/good") == CONTENT
    # The upload is done, and its answer is lost.
    once = iter([True])
    through.share, through.kinds = 1, ("drop",)
    through.may = lambda method, path: method == "POST" and "uploadId=" in path and next(once, False)
    store.write_bytes(f"{s3_root}/again", CONTENT[::-1])
    assert through.happened() == {"drop": 1}
    assert store.read_bytes(f"{s3_root}/again") == CONTENT[::-1]
    # So it is here, but the store no longer knows of such an upload.
    finish, outcomes = s3.finish_upload, iter([s3.TransientError("lost"), FileNotFoundError()])

    def finish_once(*values: Any) -> None:
        outcome = next(outcomes)
        if isinstance(outcome, s3.TransientError):
            finish(*values)
        raise outcome

    monkeypatch.setattr(s3, "finish_upload", finish_once)
    store.write_bytes(f"{s3_root}/once", CONTENT[::-1])
    assert store.read_bytes(f"{s3_root}/once") == CONTENT[::-1]
    # It fails for good: no part is left to pay for.
    through.kinds, through.may = ("slow_down",), lambda method, path: method == "PUT"
    with pytest.raises(store.UnreachableError, match=r"cannot write it, .* \(the last: HTTP 503 SlowDown\)"):
        store.write_bytes(f"{s3_root}/bad", CONTENT)
    assert through.asked[-1].method == "DELETE"
    assert not store.exists(f"{s3_root}/bad")


def test_a_data_set_is_packed_verified_and_read_there(s3_root: str, tmp_path: Path, capsys) -> None:
    people = ["train.people=4", "valid.people=2", "test.people=2", "seen.people=2", "seconds=0.5"]
    recipe = str(Path(__file__).parents[2] / "shards" / "quickstart.yaml")
    roots = [s3_root, str(tmp_path / "here")]
    for root in roots:
        pack(load_recipe(recipe, [f"out={root}", *(f"synthetic.{p}" for p in people)]))
        assert verify(root) == []
    remote, local = (open_dataset(root) for root in roots)
    assert remote.fingerprint == local.fingerprint
    assert store.names(remote.root) == store.names(local.root)
    batches = [epoch(dataset.root, batch=4) for dataset in (remote, local)]
    assert_same(*batches)
    # Damage: verify sees it through the store, too.
    shard = f"{s3_root}/{remote.manifest.shards[0].name}"
    content = bytearray(store.read_bytes(shard))
    content[700] ^= 1
    store.write_bytes(shard, bytes(content))
    assert len(verify(s3_root)) >= 1


def epoch(root: str, batch: int) -> list[dict]:
    """One epoch of the training split, read with four threads and decoded here."""
    split = open_dataset(root).split("train")
    order = Order.for_batches(split.shard_sizes, seed=3, batch=batch, partitions=4, window=8)
    with Loader(split, order, {"wav": Waveform(0.03), "image": Photo(8)}, batch=batch, seed=9) as loader:
        return list(islice(loader, split.samples // batch))


def assert_same(one: list[dict], two: list[dict]) -> None:
    assert [batch["key"] for batch in one] == [batch["key"] for batch in two]
    for a, b in zip(one, two, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a if name != "key")


def damaged_epoch(faults: Faults, root: str, folder: Path, monkeypatch: pytest.MonkeyPatch, shards: int) -> None:
    """Shards of two samples, put and read through faults on a tenth of the requests, against the same ones here."""
    rng = np.random.default_rng(2)

    def samples(number: int) -> list[tuple]:
        wav_T = rng.uniform(-0.5, 0.5, 700)
        photo_HWC = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        kinds = {"identity": f"p{number % 7}", "split": "train", "source": "noise", "audio_format": "wav"}
        keys = [f"s{number:05d}-{i}" for i in range(2)]
        return [(key, kinds["identity"], encode(key, wav_T, 16000, [photo_HWC], **kinds)) for key in keys]

    local = str(folder)
    rows = [write_shard(local, f"train-{i:05d}.tar", "train", samples(i)) for i in range(shards)]
    write_manifest(local, rows, {"recipe": "noise"})
    faults.share = 0.1
    monkeypatch.setattr(s3, "READ_S", 0.5)
    with ThreadPoolExecutor(8) as pool:
        names = sorted(os.listdir(local), key="manifest.json".__eq__)
        list(pool.map(lambda name: store.write_bytes(f"{root}/{name}", (folder / name).read_bytes()), names))
    assert store.names(root) == sorted(os.listdir(local))
    before = store.statistics()
    faults.asked.clear()
    there, here = epoch(root, batch=2), epoch(local, batch=2)
    after = store.statistics()
    assert_same(there, here)
    keys = [key for batch in there for key in batch["key"]]
    assert len(keys) == len(set(keys)) == 2 * shards
    assert all(batch["weight"].tolist() == [1, 1] for batch in there)
    assert 0.05 < sum(faults.happened().values()) / len(faults.asked) < 0.2
    assert after.retries > before.retries


def test_an_epoch_through_a_bad_network_is_the_same(through: Faults, s3_root: str, tmp_path: Path, monkeypatch) -> None:
    damaged_epoch(through, s3_root, tmp_path, monkeypatch, shards=24)


@pytest.mark.slow
def test_a_thousand_shards_through_a_bad_network(through: Faults, s3_root: str, tmp_path: Path, monkeypatch) -> None:
    damaged_epoch(through, s3_root, tmp_path, monkeypatch, shards=1000)
    assert set(through.happened()) == set(KINDS)


def test_the_store_ends_with_those_who_started_it(tmp_path: Path, swift: Swift) -> None:
    """Even where the tests are killed."""
    code = (
        "import pathlib, sys; from swift import serving\n"
        "with serving(pathlib.Path(sys.argv[1])) as swift: print(*swift.pids, flush=True); sys.stdin.read()"
    )
    tests = Path(__file__).parents[1]
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=tests, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    pids = [int(pid) for pid in child.stdout.readline().split()]
    assert len(pids) == len(swift.pids)
    ends = [os.pidfd_open(pid) for pid in pids]
    child.kill()
    child.communicate()
    for end in ends:
        assert select.select([end], [], [], 30)[0]  # readable when its process is gone
        os.close(end)
