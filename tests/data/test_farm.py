"""What decodes batches: workers give what this process gives, arrays stay what they are, damage becomes a bad row."""

import itertools
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from farm_transforms import Block, Flag, Nothing, Number, Object, Refuses, Turned
from odd_transforms import Uneven

from v2f.data import farm, worker
from v2f.data.farm import Decoded, Farm, Inline, Work
from v2f.data.fetch import BatchPlan, Reader
from v2f.data.manifest import Dataset, Split
from v2f.data.quarantine import Bad, Raw
from v2f.data.transforms import Photo, Transform, Waveform
from v2f.errors import V2FError

SIZE = 6
STAND_IN = 1  # the number of the sample that stands in


@pytest.fixture(scope="module")
def train(dataset: Dataset) -> Split:
    return dataset.split("train")


class Source:
    """Tasks over a split, and what fetching gives for them; the samples ``missing`` cannot be had."""

    def __init__(self, split: Split, batches: int, missing: tuple[int, ...] = ()):
        self.split, self.batches, self.missing = split, batches, missing
        self.raw = Reader(split).read(np.arange(split.samples))
        self.asked = 0

    def tasks(self) -> Iterator[BatchPlan]:
        for i in range(self.batches):
            slot_b = np.arange(i * SIZE, (i + 1) * SIZE, dtype=np.int64)
            yield BatchPlan(slot_b % self.split.samples, slot_b)

    def fetch(self, task: BatchPlan) -> list[Raw]:
        return [Bad("it is gone") if n in self.missing else self.raw[n] for n in task.sample_b.tolist()]

    def substitute(self) -> tuple[str, bytes]:
        self.asked += 1
        raw = self.raw[STAND_IN]
        assert isinstance(raw, memoryview)
        return self.split.key(STAND_IN), bytes(raw)

    def decoder(
        self, transforms: dict[str, Transform], workers: int, *, seed: int | None = 4, substitute: bool = True
    ) -> Inline | Farm:
        give = self.substitute if substitute else None
        work = Work(self.split, self.tasks(), self.fetch, transforms, seed, give)
        return Farm(work, workers) if workers else Inline(work)


def take_all(decoder: Inline | Farm) -> list[Decoded]:
    def until_the_end() -> Iterator[Decoded]:
        while True:
            try:
                yield decoder.next()
            except StopIteration:
                return

    try:
        return list(until_the_end())
    finally:
        decoder.close()


def assert_same(ones: list[Decoded], others: list[Decoded]) -> None:
    for one, other in zip(ones, others, strict=True):
        assert one[0].slot_b.tolist() == other[0].slot_b.tolist()
        assert list(one[1]) == list(other[1])
        for name, array in one[1].items():
            assert (array.dtype, array.shape) == (other[1][name].dtype, other[1][name].shape)
            np.testing.assert_array_equal(array, other[1][name], err_msg=name)
        assert one[2] == other[2]


ALL_KINDS = {
    "wav": Waveform(0.03),
    "number": Number(),
    "turned": Turned(),
    "nothing": Nothing(),
    "flag": Flag(),
    "half": Block(3, "<f2"),
    "swapped": Block(7, ">i4"),
    "image": Photo(8),
}


def test_workers_give_what_this_process_gives_whatever_the_arrays_are(train: Split) -> None:
    source = Source(train, 12)
    here = take_all(source.decoder(ALL_KINDS, 0))
    assert here[2][1]["number"].tolist() == list(range(12, 18))
    assert here[2][1]["turned"].shape == (SIZE, 3, 8, 8)
    assert_same(here, take_all(source.decoder(ALL_KINDS, 2)))
    assert_same(here[:1], take_all(Source(train, 1).decoder(ALL_KINDS, 3)))
    assert take_all(source.decoder({}, 1))[0][1] == {}
    assert source.asked == 0


def test_where_there_are_no_files_in_memory_others_do(train: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(train, 4)
    here = take_all(source.decoder(ALL_KINDS, 0))

    def forbidden(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "memfd_create", forbidden, raising=False)
    assert_same(here, take_all(source.decoder(ALL_KINDS, 1)))
    monkeypatch.delattr(os, "memfd_create")
    assert_same(here, take_all(source.decoder(ALL_KINDS, 1)))


# ------------------------------------------------------------------------------------------------ memory


def test_an_array_stays_what_it_is_while_it_is_held(train: Split) -> None:
    """Whatever else of its batch is dropped, however many are held, and when the workers are gone."""
    transforms = {"a": Block(20_000), "b": Block(3)}
    expected = take_all(Source(train, 40).decoder(transforms, 0))
    decoder = Source(train, 40).decoder(transforms, 2)
    held = []
    for i in range(40):
        _, arrays, _ = decoder.next()
        if i % 3 == 0:
            held.append((i, "b", arrays["b"][2:]))
        elif i > 30:
            held.append((i, "a", arrays["a"]))
    decoder.close()
    for i, name, array in held:
        np.testing.assert_array_equal(array, expected[i][1][name][-len(array) :])
        assert array.flags.writeable


def test_trays_are_lent_come_back_and_are_never_more_than_four(train: Split) -> None:
    decoder = Source(train, 80).decoder({"a": Block(100_000)}, 1)
    assert isinstance(decoder, Farm)
    files = decoder._workers[0]._files
    held = [decoder.next()[1]["a"] for _ in range(10)]
    assert [in_tray(array) for array in held] == [True, True] + 8 * [False]
    held.clear()
    assert sum(in_tray(decoder.next()[1]["a"]) for _ in range(50)) > 25
    assert 0 < sum(os.fstat(file.fileno()).st_blocks * 512 for file in files) <= 4 * 1.2 * SIZE * 100_000 * 4
    decoder.close()


def in_tray(array: np.ndarray) -> bool:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base is not None


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at open files through /proc")
def test_nothing_stays_open(train: Split) -> None:
    source = Source(train, 5)
    take_all(source.decoder({"a": Block(3)}, 2))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        take_all(source.decoder({"a": Block(3)}, 2))
        decoder = source.decoder({"a": Block(3)}, 2)
        decoder.close()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("v2f-")]


def test_a_tray_grows_on_both_sides_and_earlier_views_stay() -> None:
    with farm._nameless_file() as file:
        ours, theirs = worker.Tray(file.fileno()), worker.Tray(file.fileno())
        ours.put([b"abc", b"", b"de"])
        first = ours.view(5)
        assert bytes(theirs.view(5)[:5]) == b"abcde"
        theirs.put([bytes(5000), b"x" * 3000])
        assert bytes(ours.view(8000)[4998:5002]) == b"\0\0xx"
        assert bytes(first[:3]) == b"\0\0\0"
        assert os.fstat(file.fileno()).st_size == 8192
    with pytest.raises(V2FError, match=r"no memory of 9000 bytes can be shared .*decode with 0 workers"):
        ours.view(9000)


# ------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("missing", [(), (7, 20, 21), tuple(range(6, 12)), (0, 53)])
@pytest.mark.parametrize("refused", [(), (8, 20), (0, 12, 13, 14, 15, 16, 17)])
def test_a_row_that_cannot_be_used_holds_the_stand_in(
    train: Split, workers: int, missing: tuple[int, ...], refused: tuple[int, ...]
) -> None:
    """Its own slot draws, its reason goes with the batch, and all other rows are as ever."""
    good = Source(train, 10)
    transforms = {"wav": Waveform(0.01), "same": Block(4), "x": Refuses(refused, "same")}
    expected = take_all(good.decoder({"wav": Waveform(0.01), "same": Block(4), "x": Block(5, draws_as="same")}, 0))
    source = Source(train, 10, missing)
    got = take_all(source.decoder(transforms, workers))
    for (task, arrays, bad), (_, right, _) in zip(got, expected, strict=True):
        key, raw = good.substitute()
        for row, (number, slot) in enumerate(zip(task.sample_b.tolist(), task.slot_b.tolist(), strict=True)):
            if number in missing:
                assert bad.pop(row) == "it is gone"
            elif number in refused:
                assert bad.pop(row) == f"sample s{number:05d}: refused"
            else:
                for name in transforms:
                    np.testing.assert_array_equal(arrays[name][row], right[name][row])
                continue
            stand_in, _ = worker.decode([key], [raw], [slot], 4, transforms)
            for name in transforms:
                np.testing.assert_array_equal(arrays[name][row], stand_in[name][0])
        assert bad == {}
    assert (source.asked > 0) == bool(set(missing) - {53} or refused)  # there is no sample 53


@pytest.mark.parametrize("workers", [0, 2])
def test_without_a_stand_in_it_is_an_error_that_names_the_sample(train: Split, workers: int) -> None:
    """Where its turn comes, not earlier."""
    for transforms, missing, message in (
        ({"x": Block(2)}, (21,), r"train-00001\.tar: sample s00021 at byte \d+: it is gone$"),
        ({"x": Refuses((21,))}, (), r"train-00001\.tar: sample s00021: refused \(at byte \d+ of the shard\)$"),
    ):
        decoder = Source(train, 6, missing).decoder(transforms, workers, substitute=False)
        assert [decoder.next()[0].slot_b[0] for _ in range(3)] == [0, 6, 12]
        with pytest.raises(V2FError, match=message):
            decoder.next()
        decoder.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stand_in_that_is_no_better_is_an_error(train: Split, workers: int) -> None:
    decoder = Source(train, 2).decoder({"x": Refuses((8, STAND_IN))}, workers)
    with pytest.raises(V2FError, match=r"^sample s00001: refused; it was to stand in for sample s00001, which cannot"):
        take_all(decoder)

    def none() -> tuple[str, bytes]:
        raise V2FError("no sample verifies")

    for missing, transforms in (((3,), {"x": Block(2)}), ((), {"x": Refuses((3,))})):
        source = Source(train, 3, missing)
        source.substitute = none  # type: ignore[method-assign]
        with pytest.raises(V2FError, match=r"^no sample verifies$"):
            take_all(source.decoder(transforms, workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_no_samples_fault_is_an_error_also_with_a_stand_in(train: Split, workers: int) -> None:
    with pytest.raises(V2FError, match=r"s00020: the transform 'x' gives float64 \[2\], of .* float64 \[1\] \(at byte"):
        take_all(Source(train, 9).decoder({"x": Uneven()}, workers))
    if workers:
        with pytest.raises(RuntimeError, match="a transform gives object, numbers are required"):
            take_all(Source(train, 9).decoder({"x": Object()}, workers))


def test_a_stand_in_that_is_larger_than_all_else_is_the_same_with_workers(
    train: Split, noise_sample: Callable[..., tuple]
) -> None:
    _, _, members = noise_sample(900, "train", frames=2_000_000)
    raw = b"".join(_tar_member(f"s00900.{name}", content) for name, content in members.items())
    source = Source(train, 12, missing=tuple(range(7, 50, 4)))
    source.substitute = lambda: ("s00900", raw)  # type: ignore[method-assign]
    transforms = {"x": Refuses((9, 30)), "wav": Waveform(0.02)}
    here, there = (take_all(source.decoder(transforms, workers)) for workers in (0, 2))
    assert_same(here, there)
    assert sum(len(bad) for _, _, bad in here) > 12


def _tar_member(name: str, content: bytes) -> bytes:
    import tarfile

    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


# ------------------------------------------------------------------------------------------------ messages


def test_messages_arrive_as_they_were_sent_and_an_end_in_the_middle_is_seen() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for payloads in ([], [b"abc"], [b"", memoryview(b"xy"), bytearray(3)]):
            worker.send(ours, {"a": [1, None, "é"]}, payloads)
            header, got = worker.receive(theirs) or ({}, [])
            assert header["a"] == [1, None, "é"]
            assert [bytes(payload) for payload in got] == [bytes(payload) for payload in payloads]
        text = json.dumps({"bytes": [10]}).encode()
        whole = worker._LENGTHS.pack(len(text), 1) + text + b"0123456789"
        for end in itertools.chain(range(0, len(whole), 3), [len(whole) - 1]):
            one, other = socket.socketpair()
            with one, other:
                one.sendall(whole[:end])
                one.shutdown(socket.SHUT_WR)
                assert worker.receive(other) is None
