"""One writer of a data set at a time, however several are interleaved, killed, paused for long and woken again."""

import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schedule import STORES, Killed, World

from v2f.config import build
from v2f.data.encoding import encode
from v2f.data.manifest import MANIFEST, Dataset, open_dataset
from v2f.data.shards import write_manifest, write_shard
from v2f.errors import V2FError
from v2f.prepare import Item, LeftOut, Made, Plan, yields
from v2f.prepare.pack import CONVERTERS, PackConfig, finalize, pack, pack_part
from v2f.prepare.parts import Part
from v2f.prepare.precompute import load, precompute
from v2f.prepare.remove import remove
from v2f.prepare.verify import verify
from v2f.storage import lease, store
from v2f.storage.lease import HeldError

PEOPLE = ("ada", "bob", "cy", "dee")
SECONDS = (0.1, 0.2)  # what one recipe and another say

ACTION = st.tuples(
    st.sampled_from(["run", "run", "run", "run", "pause", "wake", "late", "kill"]),
    st.integers(0, 2),
    st.integers(1, 60),
)
ACTIONS = st.lists(ACTION, max_size=14)


@functools.cache
def members(identity: str, number: int, seconds: float) -> dict[str, bytes]:
    rng = np.random.default_rng(number)
    photo_HWC = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    wav_T = rng.uniform(-1, 1, int(1000 * seconds))
    return encode(f"{identity}-{number}", wav_T, 8000, [photo_HWC], identity=identity, split="train", source="test")


class Converter:
    """Two small samples of each person."""

    def __init__(self, config: Any) -> None:
        self._seconds = config.seconds

    def plan(self) -> Plan:
        return Plan([Item(f"{who}-{n}", "train", who, f"{who} {n}", n) for who in PEOPLE for n in range(2)])

    def inputs(self, item: Item) -> list[str]:
        return []

    def make(self, items: Sequence[Item]) -> list[Made | LeftOut]:
        return [Made(item, members(item.identity, item.what, self._seconds), self._seconds) for item in items]


@pytest.fixture(autouse=True)
def converter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONVERTERS, "synthetic", Converter)


def recipe(out: str, which: int = 0) -> PackConfig:
    synthetic = {"train": {"people": 1}, "seconds": SECONDS[which]}
    values = {"out": out, "source": "synthetic", "synthetic": synthetic, "workers": 1, "shard_mb": 0.005}
    return build(PackConfig, values, "the test")


@pytest.fixture
def worlds(tmp_path: Path) -> Callable[[str], World]:
    """New worlds of a kind, each with a folder or prefix of its own."""
    number = itertools.count()
    return lambda kind: World(kind, str(tmp_path / f"d{next(number)}") if kind == "disk" else "s3://bucket/d")


def raw(dataset: Dataset) -> dict[str, tuple[str, int]]:
    """Key -> person and CRC-32 of all bytes, of samples that all are as packed."""
    found, index = {}, dataset.index
    content = {shard.name: store.read_bytes(store.join(dataset.root, shard.name)) for shard in dataset.manifest.shards}
    for row, key in enumerate(index.key):
        shard = content[dataset.manifest.shards[index.shard[row]].name]
        run = shard[index.offset[row] : index.offset[row] + index.length[row]]
        assert crc32(run) == index.crc32[row], f"{bytes(key).decode()} is damaged"
        found[bytes(key).decode()] = dataset.manifest.identities[index.identity[row]], int(index.crc32[row])
    return found


def check_errors(world: World) -> None:
    for process in world.processes:
        assert process.error is None or isinstance(process.error, (V2FError, Killed)), repr(process.error)


def again(world: World, act: Callable[[], Any], refused: str | None = None) -> bool:
    """Run a command once more, as its user would: whether it was done. It has not to wait long for who is gone."""
    process = world.alone("again", act)
    assert process.waited is None or process.waited <= 60
    if process.error is not None:
        assert isinstance(process.error, V2FError), repr(process.error)
        assert refused is not None, str(process.error)
        assert refused in str(process.error)
    return process.error is None


# ------------------------------------------------------------------------------------------------ two recipes


@functools.cache
def packed(which: int) -> dict[str, tuple[str, int]]:
    """What a recipe's data set holds."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        return raw(pack(recipe(folder, which)))


def packs(world: World, actions: Sequence[tuple[str, int, int]], third: str) -> None:
    out = world.root
    with world:
        acts = [functools.partial(pack, recipe(out)), functools.partial(pack, recipe(out, 1))]
        acts.append(functools.partial(finalize, recipe(out)) if third == "finalize" else acts[0])
        for name, act in zip(["one", "two", "three"], acts, strict=True):
            world.start(name, act)

        def watch() -> None:
            if store.exists(store.join(out, MANIFEST)):
                try:
                    dataset = open_dataset(out)
                except V2FError:
                    return  # a reader says so
                assert raw(dataset) in (packed(0), packed(1))

        world.play(actions, watch)
        world.finish(watch)
        check_errors(world)
        done = [process.result.fingerprint for process in world.processes if process.result is not None]
        if done:
            assert {open_dataset(out).fingerprint} == {*done}
        again(world, acts[0], "another recipe")
        again(world, acts[1], "another recipe")
        dataset = open_dataset(out)
        which = SECONDS.index(dataset.manifest.provenance["recipe"]["synthetic"]["seconds"])
        assert raw(dataset) == packed(which)
        assert not done or dataset.fingerprint in done
        assert [str(problem) for problem in verify(out)] == []


# ------------------------------------------------------------------------------------------------ parts


def in_parts(world: World, actions: Sequence[tuple[str, int, int]], third: str) -> None:
    """Two parts, and a third process: the second part once more, a finalize, or the whole."""
    out, expected = world.root, packed(0)
    with world:
        one, two = (functools.partial(pack_part, recipe(out), Part(number, 2)) for number in range(2))
        commit = functools.partial(finalize, recipe(out))
        thirds: dict[str, Callable[[], Any]] = {"two": two, "finalize": commit, "pack": lambda: pack(recipe(out))}
        for name, act in (("one", one), ("two", two), ("three", thirds[third])):
            world.start(name, act)

        def watch() -> None:
            if store.exists(store.join(out, MANIFEST)):
                assert raw(open_dataset(out)) == expected

        world.play(actions, watch)
        world.finish(watch)
        check_errors(world)
        if again(world, one, "a pack in 1 is under way here" if third != "pack" else "a pack in 1"):
            again(world, two)
            again(world, commit)
        else:
            again(world, thirds["pack"])
        assert raw(open_dataset(out)) == expected
        assert [str(problem) for problem in verify(out)] == []


# ------------------------------------------------------------------------------------------------ removals


def data_set(root: str) -> Dataset:
    """Two shards with everybody in both, one with dee alone; ada and bob are in the reports, too."""
    layout = [
        ("train-00000.tar", "train", PEOPLE),
        ("train-00001.tar", "train", PEOPLE),
        ("train-00002.tar", "train", ["dee"]),
    ]
    number, shards = itertools.count(), []
    for name, split, people in layout:
        samples = [(f"{who}-{n}", who, members(who, n, SECONDS[0])) for who, n in zip(people, number, strict=False)]
        shards.append(write_shard(root, name, split, samples))
    left_out = [LeftOut("clip 9", "ada", "audio is empty"), LeftOut("clip 8", "bob", "audio is empty")]
    lines = "".join(f'{{"name": "{o.name}", "identity": "{o.identity}", "reason": "{o.reason}"}}\n' for o in left_out)
    store.write_bytes(store.join(root, "left_out.jsonl"), lines.encode())
    kept = {("train", who): 3 if who == "dee" else 2 for who in PEOPLE}
    store.write_bytes(store.join(root, "yield.json"), yields.to_json(yields.yield_report(kept, left_out)))
    return write_manifest(root, shards, {"recipe": "test"})


def removals(world: World, actions: Sequence[tuple[str, int, int]], third: str) -> None:
    """ada and bob go, by two processes, and a third one does the same as the first or removes dee."""
    root = world.root
    with world:
        before = raw(data_set(root))
        gone = ["ada", "bob", third] if third == "dee" else ["ada", "bob"]
        for who in ("ada", "bob", third):
            world.start(who, functools.partial(remove, root, [who]))

        def watch() -> None:
            now = raw(open_dataset(root))  # at each moment there is a whole one
            assert {key: before[key] for key in now} == now
            missing = {who for who, _ in (before[key] for key in before.keys() - now.keys())}
            assert missing <= {*gone}
            assert not [key for key in now if before[key][0] in missing], "somebody is half removed"

        world.play(actions, watch)
        world.finish(watch)
        check_errors(world)
        now = raw(open_dataset(root))
        for process in world.processes:
            if process.error is None:
                assert process.name not in {who for who, _ in now.values()}, "said to be removed, and is there"
        for who in gone:
            again(world, functools.partial(remove, root, [who]), "it has nobody called")
        assert raw(open_dataset(root)) == {key: value for key, value in before.items() if value[0] not in gone}
        problems = [str(problem) for problem in verify(root, gone)]
        # A request that came late to a store may have left a file that nothing names.
        assert [p for p in problems if world.kind == "disk" or "does not belong" not in p] == [], problems


SCENARIOS = {
    "two recipes": (packs, ["pack", "finalize"]),
    "parts": (in_parts, ["two", "finalize", "pack"]),
    "removals": (removals, ["ada", "dee"]),
}


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("what", SCENARIOS)
@pytest.mark.parametrize("examples", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_whatever_happens_to_several_writers_nothing_is_lost_or_mixed(
    kind: str, what: str, examples: int, worlds: Callable[[str], World]
) -> None:
    act, thirds = SCENARIOS[what]
    packed(0), packed(1)

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(ACTIONS, st.sampled_from(thirds))
    def check(actions: list[tuple[str, int, int]], third: str) -> None:
        act(worlds(kind), actions, third)

    check()


# ------------------------------------------------------------------------------------------------ what is said


@pytest.mark.parametrize("what", ["pack", "part", "finalize", "remove", "precompute"])
def test_every_writer_is_refused_while_another_one_lives(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out, source = str(tmp_path / "out"), str(tmp_path / "source")
    acts: dict[str, Callable[[], Any]] = {
        "pack": lambda: pack(recipe(out)),
        "part": lambda: pack_part(recipe(out), Part(1, 2)),
        "finalize": lambda: finalize(recipe(out)),
        "remove": lambda: remove(source, ["ada"]),
        "precompute": lambda: precompute(source, out, load(["identity.net=stand_in"])),
    }
    data_set(source)
    if what in ("part", "finalize"):
        pack_part(recipe(out), Part(0, 2))
    root = source if what == "remove" else out
    with lease.Lease.take(root, "v2f shards elsewhere", renewing=False, lasting=False) as owner:

        class Ticking(lease.Clock):
            time = 0.0

            def now(self) -> float:
                return self.time

            def pause(self, seconds: float) -> None:
                self.time += seconds
                owner.renew()

        monkeypatch.setattr(lease, "Clock", Ticking)
        before = files(tmp_path)
        with pytest.raises(HeldError, match=rf"{root}: in use by v2f shards elsewhere \(.* on .*\), which is running"):
            acts[what]()
        assert files(tmp_path) == before
    assert "); waiting up to 45 s for it to finish" in caplog.text


def files(root: Path) -> dict[str, bytes]:
    """All files, without the leases."""
    found = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if f"/{lease.FOLDER}/" not in name}


def test_a_folder_without_a_data_set_stays_as_it_is(tmp_path: Path) -> None:
    """Also where a lease would be looked for, which makes a folder."""
    for act in (lambda: remove(str(tmp_path / "typo"), ["ada"]), lambda: finalize(recipe(str(tmp_path / "typo")))):
        with pytest.raises(V2FError, match=r"no data set here|nothing was packed here yet"):
            act()
    (tmp_path / "thesis.pdf").write_text("years of work")
    with pytest.raises(V2FError, match="it is not empty"):
        pack(recipe(str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.pdf"]


# ------------------------------------------------------------------------------------------------ a real store


def at_once(*acts: Callable[[], Any]) -> list[Any]:
    """What each gives, or its V2FError; all begin together."""

    def done(act: Callable[[], Any]) -> Any:
        try:
            return act()
        except V2FError as error:
            return error

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(done, acts))


def test_two_recipes_at_once_on_a_real_store(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 1.0)
    results = at_once(lambda: pack(recipe(f"{s3_root}/d")), lambda: pack(recipe(f"{s3_root}/d", 1)))
    (done,) = (which for which in range(2) if isinstance(results[which], Dataset))
    assert "another recipe is there" in str(results[1 - done])
    assert raw(open_dataset(f"{s3_root}/d")) == packed(done)
    assert verify(f"{s3_root}/d") == []


def test_two_removals_at_once_on_a_real_store(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 1.0)
    before = raw(data_set(s3_root))
    results = at_once(lambda: remove(s3_root, ["ada"]), lambda: remove(s3_root, ["bob"]))
    assert all(isinstance(result, Dataset) for result in results)
    after = raw(open_dataset(s3_root))
    assert after == {key: value for key, value in before.items() if value[0] in ("cy", "dee")}
    assert verify(s3_root, ["ada", "bob"]) == []
