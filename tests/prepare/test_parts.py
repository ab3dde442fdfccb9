"""`v2f shards pack --part i/n` and `finalize`: over machines that know nothing of each other, killed anywhere."""

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from v2f.cli import main
from v2f.config import build
from v2f.data.manifest import Dataset, open_dataset
from v2f.errors import V2FError
from v2f.prepare import Item, LeftOut, Made
from v2f.prepare.pack import PackConfig, finalize, pack, pack_part
from v2f.prepare.parts import Part
from v2f.prepare.synthetic import Synthetic
from v2f.prepare.verify import verify
from v2f.storage import lease, store

SMALL = {"train": {"people": 20, "clips": 2}, "valid": {"people": 3}, "seen": {"people": 4}, "seconds": 0.2, "size": 32}
SAMPLES = 20 * 2 + 3 + 4
SHARD_MB = 0.05


def recipe(out: Path, **kinds: Any) -> PackConfig:
    values = {"out": str(out), "source": "synthetic", "synthetic": SMALL, "workers": 1, "shard_mb": SHARD_MB}
    return build(PackConfig, values | kinds, "the test")


def content(root: Path | str) -> dict[str, tuple[str, str, int]]:
    """Key -> split, person, CRC-32 of all members: what a data set holds, wherever it holds it."""
    dataset = open_dataset(str(root))
    index, manifest = dataset.index, dataset.manifest
    return {
        bytes(key).decode(): (manifest.shards[shard].split, manifest.identities[identity], int(crc))
        for key, shard, identity, crc in zip(index.key, index.shard, index.identity, index.crc32, strict=True)
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return pack(recipe(tmp_path_factory.mktemp("parts") / "whole"))


@pytest.mark.parametrize("of", [2, 3, 30])
def test_any_number_of_parts_in_any_order_gives_the_same_samples(whole: Dataset, tmp_path: Path, of: int) -> None:
    """30 parts are more than there are people: some parts are empty."""
    what = recipe(tmp_path / "d")
    for number in reversed(range(of)):
        pack_part(what, Part(number, of))
    dataset = finalize(what)
    assert content(dataset.root) == content(whole.root)
    assert dataset.manifest.identities == whole.manifest.identities
    assert dataset.manifest.provenance == whole.manifest.provenance
    assert verify(dataset.root) == []
    names = {path.name for path in (tmp_path / "d").iterdir()}
    assert names == {"manifest.json", "index.npz", "left_out.jsonl", "yield.json"} | {
        s.name for s in dataset.manifest.shards
    }


def test_the_parts_again_are_the_same_bytes(tmp_path: Path) -> None:
    prints = []
    for root in (tmp_path / "one", tmp_path / "two"):
        for number in range(2):
            pack_part(recipe(root), Part(number, 2))
        prints.append(finalize(recipe(root)).fingerprint)
    assert prints[0] == prints[1]


def test_parts_are_whole_people_and_about_equal() -> None:
    items = [Item(f"k{p}-{c}", "train", f"p{p}", "") for p in range(50) for c in range(1 + p % 7)]
    parts = [Part(number, 4).deal(items) for number in range(4)]
    assert sorted(item.key for part in parts for item in part) == sorted(item.key for item in items)
    people = [{item.identity for item in part} for part in parts]
    assert all(not one & two for one, two in itertools.combinations(people, 2))
    assert max(map(len, parts)) - min(map(len, parts)) <= 7
    assert Part(1, 4).deal(items[::-1])[::-1] == parts[1]


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    what = recipe(tmp_path / "d")
    with pytest.raises(V2FError, match="nothing was packed here yet"):
        finalize(what)
    pack_part(what, Part(1, 4))
    with pytest.raises(V2FError, match=r"parts 0/4, 2/4, 3/4 are not packed yet; run `v2f shards pack` for them first"):
        finalize(what)
    with pytest.raises(V2FError, match="packing was not finished here"):
        open_dataset(what.out)


def test_a_shard_that_was_lost_is_packed_again(whole: Dataset, tmp_path: Path) -> None:
    what = recipe(tmp_path / "d")
    for number in range(2):
        pack_part(what, Part(number, 2))
    (tmp_path / "d" / "train-p00001-00000.tar").write_bytes(b"cut")
    with pytest.raises(V2FError, match=r"train-p00001-00000\.tar is not there or was cut; .* for part 1/2 again"):
        finalize(what)
    with pytest.raises(V2FError, match="part 1/2 is not packed yet"):
        finalize(what)
    pack_part(what, Part(1, 2))
    assert content(finalize(what).root) == content(whole.root)


def test_another_number_of_parts_or_another_recipe_is_refused(tmp_path: Path) -> None:
    what = recipe(tmp_path / "d")
    pack_part(what, Part(0, 2))
    before = sorted(path.name for path in (tmp_path / "d").iterdir())
    other = {**SMALL, "seconds": 0.3}
    for refused, message in (
        (lambda: pack_part(what, Part(0, 3)), "a pack in 2 parts is under way here, this is one in 3; start all parts"),
        (lambda: pack(what), "a pack in 2 parts is under way here, this is one in 1"),
        (lambda: pack_part(recipe(tmp_path / "d", synthetic=other), Part(1, 2)), "parts of another recipe are packed"),
        (lambda: finalize(recipe(tmp_path / "d", synthetic=other)), r"\(synthetic\.seconds differ\); name the one"),
    ):
        with pytest.raises(V2FError, match=message):
            refused()
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == before


def test_parts_that_see_other_inputs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what, plan = recipe(tmp_path / "d"), Synthetic.plan
    pack_part(what, Part(0, 2))
    monkeypatch.setattr(Synthetic, "plan", lambda self: replace(plan(self), items=plan(self).items[1:]))
    with pytest.raises(V2FError, match="the inputs are not those that the other parts have seen"):
        pack_part(what, Part(1, 2))


def test_what_is_done_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    what = recipe(tmp_path / "d")
    pack_part(what, Part(0, 2))
    make = Synthetic.make
    monkeypatch.setattr(Synthetic, "make", lambda self, items: 1 / 0)
    pack_part(what, Part(0, 2))
    monkeypatch.setattr(Synthetic, "make", make)
    pack_part(what, Part(1, 2))
    finalize(what)
    capsys.readouterr()
    for again in (lambda: pack_part(what, Part(0, 2)), lambda: finalize(what), lambda: pack(what)):
        again()
        assert "packed already from this recipe, nothing to do" in capsys.readouterr().out


class Killed(BaseException):
    """What a process cannot catch."""


def killed_at(monkeypatch: pytest.MonkeyPatch, change: int) -> None:
    """The process ends before the ``change``-th file from now on is put in place or removed. The lease's own do not
    count: this process lives on, and would have to be waited for."""
    count = itertools.count()

    def counted(act: Callable[[str], Any], path: str) -> Any:
        if f"/{lease.FOLDER}/" not in path and next(count) == change:
            raise Killed
        return act(path)

    for act in (store.replacing, store.remove):
        monkeypatch.setattr(store, act.__name__, functools.partial(counted, act))


@pytest.mark.parametrize("of", [1, 2])
def test_killed_before_any_change_and_run_again_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: int
) -> None:
    """And at no time is there a data set that says that it is whole and is not."""
    few = {**SMALL, "train": {"people": 6}, "valid": {"people": 0}, "seen": {"people": 3}}

    def run(root: Path) -> Dataset:
        what = recipe(root, synthetic=few)
        for number in range(of):
            pack_part(what, Part(number, of))
        return finalize(what)

    expected = run(tmp_path / "whole").fingerprint
    for change in itertools.count():
        root = tmp_path / f"killed-{change}"
        with monkeypatch.context() as patch:
            killed_at(patch, change)
            try:
                assert run(root).fingerprint == expected
                break
            except Killed:
                pass
        if (root / "manifest.json").exists():
            assert verify(str(root)) == []
        assert run(root).fingerprint == expected, f"killed at change {change}"
        assert verify(str(root)) == []
        assert len(list(root.iterdir())) == 4 + 2 * of
    assert change > 9


def test_a_killed_part_goes_on_after_its_last_whole_shard(
    whole: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        killed_at(patch, 9)  # packing.json, then shards with their records
        with pytest.raises(Killed):
            pack(recipe(tmp_path / "d"))
    shards = [json.loads(path.read_text()) for path in (tmp_path / "d").glob("*.rows.json")]
    assert len(shards) == 4
    made: list[str] = []
    make = Synthetic.make

    def counting(self: Synthetic, items: Sequence[Item]) -> list[Made | LeftOut]:
        made.extend(item.key for item in items)
        return make(self, items)

    monkeypatch.setattr(Synthetic, "make", counting)
    assert pack(recipe(tmp_path / "d")).fingerprint == whole.fingerprint
    assert {*made} == {*content(whole.root)} - {key for shard in shards for key in shard["rows"]["key"]}
    assert len(made) == len({*made}) > 0


@pytest.mark.parametrize("mended", [False, True])
def test_what_was_left_out_is_tried_again_when_a_killed_pack_goes_on(
    whole: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mended: bool
) -> None:
    """A folder was not mounted when the pack began; person 3's first clip lies there, and its held-out clip beside."""
    make = Synthetic.make

    def without(self: Synthetic, items: Sequence[Item]) -> list[Made | LeftOut]:
        return [
            LeftOut(each.item.name, each.item.identity, "audio is missing")
            if isinstance(each, Made) and each.item.identity == "p0000003"
            else each
            for each in make(self, items)
        ]

    monkeypatch.setattr(Synthetic, "make", without)
    unmended = pack(recipe(tmp_path / "unmended"))
    shards = sum(shard.split == "train" for shard in unmended.manifest.shards)
    with monkeypatch.context() as patch:
        killed_at(patch, 2 * shards + 2)
        with pytest.raises(Killed):
            pack(recipe(tmp_path / "d"))
    monkeypatch.setattr(Synthetic, "make", make if mended else without)
    dataset = pack(recipe(tmp_path / "d"))
    assert dataset.fingerprint == (whole if mended else unmended).fingerprint
    assert verify(dataset.root) == []
    left_out = (tmp_path / "d" / "left_out.jsonl").read_text().splitlines()
    assert len(left_out) == (0 if mended else 3)


def test_inputs_that_all_fail_can_be_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what, make = recipe(tmp_path / "d"), Synthetic.make
    monkeypatch.setattr(Synthetic, "make", lambda self, items: [LeftOut(i.name, i.identity, "no") for i in items])
    for number in range(2):
        pack_part(what, Part(number, 2))
    with pytest.raises(V2FError, match=f"all of the {SAMPLES} inputs were left out"):
        finalize(what)
    monkeypatch.setattr(Synthetic, "make", make)
    for number in range(2):
        pack_part(what, Part(number, 2))
    assert len(finalize(what).index.key) == SAMPLES


def test_temporary_files_of_other_machines_are_left_alone_until_all_is_committed(tmp_path: Path) -> None:
    what, other = recipe(tmp_path / "d"), tmp_path / "d" / ".writing-other"
    pack_part(what, Part(0, 2))
    other.write_bytes(b"half a shard")
    pack_part(what, Part(1, 2))
    assert other.exists()
    finalize(what)
    assert not other.exists()


@pytest.mark.parametrize("text", ["3", "2/2", "-1/2", "a/b", "1/0", "1/2/3", ""])
def test_a_part_that_cannot_be_is_one_clear_line(text: str) -> None:
    with pytest.raises(V2FError, match="a part is written i/n with i from 0 to n - 1"):
        Part.parse(text)


def test_the_command_line(whole: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe(tmp_path / "d").model_dump(exclude_none=True)))
    for number in range(2):
        assert main(["shards", "pack", str(file), "--part", f"{number}/2"]) == 0
    assert "part 1/2 is whole; `v2f shards finalize` with the same recipe" in capsys.readouterr().out
    assert main(["shards", "finalize", str(file)]) == 0
    assert f"{SAMPLES} samples of 23 people" in capsys.readouterr().out
    assert content(tmp_path / "d") == content(whole.root)
    assert main(["shards", "pack", str(file), "--part", "2/2"]) == 1


def test_over_an_object_store(whole: Dataset, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)  # there is nobody else
    what = recipe(Path("anywhere")).model_copy(update={"out": f"{s3_root}/d"})
    for number in range(2):
        pack_part(what, Part(number, 2))
    with pytest.raises(V2FError, match="a pack in 2 parts is under way here"):
        pack(what)
    dataset = finalize(what)
    assert content(dataset.root) == content(whole.root)
    assert verify(dataset.root) == []
    assert store.names(dataset.root) == sorted(
        ["manifest.json", "index.npz", "left_out.jsonl", "yield.json", *(s.name for s in dataset.manifest.shards)]
    )
