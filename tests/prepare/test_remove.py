"""`v2f shards remove`: a person is gone, everybody else is as before, whenever the process is killed."""

import functools
import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from v2f.cli import main
from v2f.data.encoding import encode
from v2f.data.manifest import Dataset, open_dataset
from v2f.data.shards import write_manifest, write_shard
from v2f.errors import V2FError
from v2f.prepare import LeftOut, yields
from v2f.prepare.remove import _rows, remove
from v2f.prepare.verify import verify
from v2f.storage import lease, store


def item(number: int, identity: str, split: str) -> tuple[str, str, dict[str, bytes]]:
    rng = np.random.default_rng(number)
    photo_HWC = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    key = f"{identity}-{number:03d}"
    members = encode(
        key,
        rng.uniform(-1, 1, 400),
        16000,
        [photo_HWC],
        identity=identity,
        split=split,
        source="test",
        extra={"audio": f"clips/{identity}/{number}.wav"},
    )
    return key, identity, members


PEOPLE = {"train": ["ada", "bob", "cy", "dee"], "test": ["eve", "flo"], "seen": ["ada", "bob"]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three shards to train on, of which ada is in two; bob is in all, eve is nearly all of `test`."""
    folder = tmp_path / "d"
    layout = [
        ("train-00000.tar", "train", ["ada", "bob", "cy"]),
        ("train-00001.tar", "train", ["bob", "dee", "cy"]),
        ("train-00002.tar", "train", ["ada", "bob", "ada"]),
        ("test-00000.tar", "test", ["eve", "flo", "eve"]),
        ("seen-00000.tar", "seen", ["ada", "bob"]),
    ]
    number = itertools.count()
    shards = [
        write_shard(str(folder), name, split, [item(next(number), who, split) for who in people])
        for name, split, people in layout
    ]
    left_out = [LeftOut("clip 9", "ada", "audio is empty"), LeftOut("clip 8", "gil", "audio is empty")]
    (folder / "left_out.jsonl").write_text("".join(json.dumps(vars(each)) + "\n" for each in left_out))
    kept = {(split, who): people.count(who) for _, split, people in layout for who in people}
    report = yields.yield_report(kept, left_out, [LeftOut("a.jpg", "ada", "no face was found")])
    (folder / "yield.json").write_bytes(yields.to_json(report))
    write_manifest(str(folder), shards, {"recipe": "test"})
    return folder


def raw(dataset: Dataset) -> dict[str, bytes]:
    """Key -> all bytes of a sample."""
    index, names = dataset.index, [shard.name for shard in dataset.manifest.shards]
    content = {name: (Path(dataset.root) / name).read_bytes() for name in names}
    return {
        bytes(key).decode(): content[names[shard]][offset : offset + length]
        for key, shard, offset, length in zip(index.key, index.shard, index.offset, index.length, strict=True)
    }


def every_byte(root: Path) -> bytes:
    return b"".join(str(path).encode() + path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())


def test_the_person_is_gone_and_everybody_else_is_as_before(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = open_dataset(str(root))
    kept = {key: content for key, content in raw(before).items() if not key.startswith("ada-")}
    assert verify(str(root)) == []
    assert main(["shards", "remove", str(root), "--identity", "ada"]) == 0
    said = capsys.readouterr().out
    assert "ada removed: 4 samples in 3 of 5 shards; 10 samples of 5 people stay" in said
    after = open_dataset(str(root))
    assert raw(after) == kept
    assert after.fingerprint != before.fingerprint
    assert after.fingerprint in said
    assert after.manifest.identities == ["bob", "cy", "dee", "eve", "flo"]
    assert [after.manifest.splits[name].people for name in ("train", "test", "seen")] == [3, 2, 1]
    assert verify(str(root), ["ada"]) == []
    assert "ada is absent: not in the manifest" in capsys.readouterr().out
    (mark,) = {match[1] for shard in after.manifest.shards if (match := re.search(r"(-r[0-9a-f]{16})\.", shard.name))}
    assert sorted(path.name for path in root.iterdir()) == [
        *(f"index{mark}.npz", "left_out.jsonl", "manifest.json", f"seen-00000{mark}.tar", "test-00000.tar"),
        *(f"train-00000{mark}.tar", "train-00001.tar", f"train-00002{mark}.tar", "yield.json"),
    ]
    assert b"ada" not in every_byte(root)
    assert after.manifest.shards[1] == before.manifest.shards[1]


def test_the_reports_count_the_others_only(root: Path) -> None:
    remove(str(root), ["ada"])
    (line,) = (root / "left_out.jsonl").read_text().splitlines()
    assert json.loads(line)["identity"] == "gil"
    report = json.loads((root / "yield.json").read_text())
    assert report["kept"] == {"samples": 10, "people": 5, "splits": {"seen": 1, "test": 3, "train": 6}}
    assert report["left_out"] == {"samples": 1, "reasons": {"audio is empty": 1}}
    assert report["rejected_photos"] == {"no face was found": 1}
    assert sorted(report["people"]) == ["bob", "cy", "dee", "eve", "flo", "gil"]


def test_several_people_one_after_the_other_and_at_once_are_the_same(root: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(root, tmp_path / "other"))
    remove(str(root), ["ada"])
    one = remove(str(root), ["eve"])
    two = remove(str(other), ["eve", "ada"])
    assert raw(one) == raw(two)
    before = {path.name for path in root.iterdir()}
    three = remove(str(root), ["bob"])
    assert not (before & {path.name for path in root.glob("train-*.tar")})
    assert {path.name for path in root.glob("*.tar")} == {shard.name for shard in three.manifest.shards}
    assert all(len(shard.name) == len("train-00000-r0123456789abcdef.tar") for shard in three.split("train").shards)
    assert "seen" not in open_dataset(str(root)).splits
    assert verify(str(root), ["ada", "bob", "eve"]) == []


def test_who_is_named_in_a_report_only_is_removed_there(root: Path) -> None:
    fingerprint = open_dataset(str(root)).fingerprint
    assert any("left_out.jsonl names 'gil'" in str(problem) for problem in verify(str(root), ["gil"]))
    assert remove(str(root), ["gil"]).fingerprint == fingerprint
    assert verify(str(root), ["gil"]) == []


@pytest.mark.parametrize("asked", ["Jos\u00e9", "Jose\u0301", " Jos\u00e9\u00a0"])
def test_all_spellings_of_a_name_are_removed(tmp_path: Path, asked: str) -> None:
    """Of a data set that a version packed which took them for two people; who is called nearly so stays."""
    people = ["Jos\u00e9", "Jose\u0301", "Jose", "jos\u00e9"]
    items = [(f"k{number}", who, item(number, "x", "train")[2]) for number, who in enumerate(people)]
    write_manifest(str(tmp_path), [write_shard(str(tmp_path), "train-00000.tar", "train", items)], {})
    yields.write_left_out(str(tmp_path), [LeftOut("1", who, "audio is empty") for who in people])
    assert remove(str(tmp_path), [asked]).manifest.identities == ["Jose", "jos\u00e9"]
    assert [each.identity for each in yields.read_left_out(str(tmp_path))] == ["Jose", "jos\u00e9"]
    with pytest.raises(V2FError, match="it has nobody called 'Jos\u00e9'"):
        remove(str(tmp_path), [asked])


def test_a_name_that_is_not_there_changes_nothing(root: Path) -> None:
    before = every_byte(root)
    with pytest.raises(V2FError, match="it has nobody called 'adda'; the nearest is 'ada'"):
        remove(str(root), ["bob", "adda"])
    assert every_byte(root) == before


def test_the_last_person_is_not_removed(root: Path) -> None:
    with pytest.raises(V2FError, match="it has nobody else; remove the whole folder"):
        remove(str(root), ["ada", "bob", "cy", "dee", "eve", "flo"])
    assert verify(str(root)) == []


def test_damage_of_another_sample_is_not_made_sound(root: Path) -> None:
    path = root / "train-00000.tar"
    content = bytearray(path.read_bytes())
    dataset = open_dataset(str(root))
    content[int(dataset.index.offset[1]) + 600] ^= 1
    path.write_bytes(content)
    remove(str(root), ["ada"])
    (problem,) = verify(str(root), ["ada"])
    assert re.fullmatch(r"train-00000-r\w+\.tar: sample bob-001: its CRC-32 is not the index's", str(problem))


def test_a_shard_that_is_cut_is_not_rewritten(root: Path) -> None:
    path = root / "train-00000.tar"
    path.write_bytes(path.read_bytes()[:-1024])
    with pytest.raises(V2FError, match=r"train-00000\.tar has \d+ bytes, the manifest says \d+; restore it first"):
        remove(str(root), ["ada"])


class Killed(BaseException):
    """What a process cannot catch."""


def test_killed_before_any_change_and_run_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each moment there is the old data set, or the new one; and the same command ends with the new one."""
    old = open_dataset(str(root)).fingerprint
    new = remove(shutil.copytree(root, str(tmp_path / "whole")), ["ada"]).fingerprint
    seen = set()
    for change in itertools.count():
        copy = shutil.copytree(root, str(tmp_path / f"killed-{change}"))
        count = itertools.count()

        def counted(
            act: Callable[[str], Any], path: str, change: int = change, count: "itertools.count[int]" = count
        ) -> Any:
            if f"/{lease.FOLDER}/" not in path and next(count) == change:  # this process lives on
                raise Killed
            return act(path)

        with monkeypatch.context() as patch:
            for act in (store.replacing, store.remove):
                patch.setattr(store, act.__name__, functools.partial(counted, act))
            try:
                remove(copy, ["ada"])
                break
            except Killed:
                pass
        dataset = open_dataset(copy)
        seen.add(dataset.fingerprint)
        assert len(raw(dataset)) == len(dataset.index.key)
        assert [p for p in verify(copy) if p.shard] == [], f"killed at change {change}"
        try:
            assert remove(copy, ["ada"]).fingerprint == new
        except V2FError as error:  # all was done but the very last step
            assert "it has nobody called 'ada'" in str(error)  # noqa: PT017
        assert open_dataset(copy).fingerprint == new
        assert verify(copy, ["ada"]) == []
        assert b"ada" not in every_byte(Path(copy))
    assert seen == {old, new}


def test_another_removal_after_one_that_was_killed_leaves_nothing_behind(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("v2f.prepare.remove.write_manifest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            remove(str(root), ["ada"])
    left = list(root.glob("train-00002-r*.tar"))
    assert left
    remove(str(root), ["dee"])
    assert not any(path.exists() for path in left)
    assert verify(str(root), ["dee"]) == []


def test_a_removal_that_a_former_version_had_begun_is_finished(root: Path) -> None:
    """It wrote what will be into a folder `removing`, and had removed the old manifest."""
    dataset, before = open_dataset(str(root)), raw(open_dataset(str(root)))
    ada, index, rows = dataset.manifest.identities.index("ada"), dataset.index, []
    gone = [shard.name for i, shard in enumerate(dataset.manifest.shards) if ada in index.identity[index.shard == i]]
    for number, shard in enumerate(dataset.manifest.shards):
        if shard.name not in gone:
            rows.append(_rows(dataset, shard, np.flatnonzero(index.shard == number)))
    write_manifest(str(root / "removing"), rows, {"removals": 1})
    (root / "removing" / "what.json").write_text(json.dumps({"identities": ["ada"], "shards": gone}))
    (root / "manifest.json").unlink()
    with pytest.raises(V2FError, match="run the same `v2f shards remove` again"):
        open_dataset(str(root))
    after = raw(remove(str(root), ["ada"]))
    assert len(after) == 6
    assert after == {key: before[key] for key in after}
    assert {path.name for path in root.glob("*.tar")} == {"train-00001.tar", "test-00000.tar"}
    assert verify(str(root), ["ada"]) == []
    assert b"ada" not in every_byte(root)


def test_a_training_that_goes_on_with_other_data_is_refused(root: Path) -> None:
    """The fingerprint that a run remembers is another one."""
    before = open_dataset(str(root)).split("train").fingerprint
    assert remove(str(root), ["dee"]).split("train").fingerprint != before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s["members"].update(key="eve-ada-9"), "sample eve-ada-9: its key names 'ada'"),
        (lambda s: s["extra"].update(image="photos/ada/1.jpg"), "sample eve-9: its JSON names 'ada'"),
        (lambda s: s["extra"].update(friends=["ada"]), "sample eve-9: its JSON names 'ada'"),
        (lambda s: s["provenance"].update(csv="/corpora/ada/pairs.csv"), "manifest.json names 'ada'"),
        (lambda s: s.update(identity="ada"), "manifest.json names 'ada'"),
    ],
    ids=["key", "path", "list", "provenance", "identity"],
)
def test_a_person_who_is_not_absent_is_found_wherever_it_is(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    s: dict[str, Any] = {"identity": "eve", "members": {"key": "eve-9"}, "extra": {}, "provenance": {}}
    change(s)
    key = s["members"]["key"]
    photo_HWC = np.zeros((8, 8, 3), np.uint8)
    kinds = {"identity": s["identity"], "split": "train", "source": "test", "extra": s["extra"]}
    members = encode(key, np.zeros(400), 16000, [photo_HWC], **kinds)
    shard = write_shard(str(tmp_path), "train-00000.tar", "train", [(key, s["identity"], members)])
    write_manifest(str(tmp_path), [shard], s["provenance"])
    assert verify(str(tmp_path)) == []
    assert any(str(problem).endswith(told) for problem in verify(str(tmp_path), ["ada"]))
    assert main(["shards", "verify", str(tmp_path), "--absent", "ada"]) == 1


def test_a_name_inside_another_name_is_another_name(tmp_path: Path) -> None:
    shard = write_shard(str(tmp_path), "train-00000.tar", "train", [item(1, "ada-lovelace", "train")])
    write_manifest(str(tmp_path), [shard], {})
    assert verify(str(tmp_path), ["ada", "lovelace"]) == []
    assert len(verify(str(tmp_path), ["ada-lovelace"])) == 2


@pytest.mark.parametrize(
    ("dropped", "told"),
    [(0, r"sample bob-001: \d+ bytes before it belong to no sample"), (2, "bytes behind its last sample belong to no")],
)
def test_samples_that_the_index_does_not_list_are_found(root: Path, dropped: int, told: str) -> None:
    """Somebody's bytes in a tar are read by other programs, and would escape who verifies by the index."""
    (shard, *others), index = open_dataset(str(root)).manifest.shards, open_dataset(str(root)).index
    kept = np.array([row for row in range(3) if row != dropped])
    rows = [_rows(open_dataset(str(root)), shard.model_copy(update={"samples": 2}), kept)]
    rows += [_rows(open_dataset(str(root)), each, np.flatnonzero(index.shard == i)) for i, each in enumerate(others, 1)]
    write_manifest(str(root), rows, {})
    (problem,) = verify(str(root))
    assert re.match(rf"train-00000\.tar: {told}", str(problem))


def test_on_an_object_store(root: Path, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed there, too, before the new manifest."""
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)  # there is nobody else
    for path in root.iterdir():
        store.write_bytes(f"{s3_root}/d/{path.name}", path.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr("v2f.prepare.remove._clean_beside", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            remove(f"{s3_root}/d", ["ada"])
    assert open_dataset(f"{s3_root}/d").fingerprint == open_dataset(str(root)).fingerprint
    assert remove(f"{s3_root}/d", ["ada"]).fingerprint == remove(str(root), ["ada"]).fingerprint
    assert verify(f"{s3_root}/d", ["ada"]) == []
    assert store.tree(f"{s3_root}/d") == sorted(path.name for path in root.iterdir())
