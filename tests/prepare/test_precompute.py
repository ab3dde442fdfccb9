"""`v2f shards precompute`: what frozen nets say of the photos, beside each sample, whoever computes which part."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from v2f import standins
from v2f.cli import main
from v2f.config import build
from v2f.data.encoding import encode
from v2f.data.manifest import Dataset, open_dataset
from v2f.data.sample import Sample
from v2f.data.shards import write_manifest, write_shard
from v2f.data.transforms import StoredCodes
from v2f.errors import V2FError
from v2f.prepare import precompute as module
from v2f.prepare.parts import Part
from v2f.prepare.precompute import PrecomputeConfig, load, precompute
from v2f.prepare.remove import remove
from v2f.prepare.verify import verify
from v2f.storage import store
from v2f.system import to_picture
from v2f.world.people import World, WorldConfig
from v2f.world.portraits import render_portraits

BOTH = ["identity.net=stand_in", "codes.net=stand_in", "workers=1"]


def portraits(person: int, count: int, size: int) -> list[np.ndarray[Any, Any]]:
    world, ids = World(WorldConfig()), np.full(count, person)
    return list(render_portraits(world.face(ids), world.photo(ids, np.arange(count)), size))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four shards; samples with one photo and with two, of two sizes, one of them not square."""
    root = str(tmp_path_factory.mktemp("precompute") / "source")
    shards = []
    for name, split, people in (
        ("train-00000.tar", "train", [0, 1, 2]),
        ("train-00001-r1.tar", "train", [3, 4]),
        ("test-00000.tar", "test", [5]),
        ("seen-00000.tar", "seen", [0]),
    ):
        samples = []
        for person in people:
            photos = portraits(person, 1 + person % 2, 48 if person == 2 else 64)
            photos = [photo_HWC[8:] for photo_HWC in photos] if person == 4 else photos
            key, who = f"{split}-{person}", f"p{person}"
            members = encode(key, np.ones(160), 16000, photos, identity=who, split=split, source="test")
            samples.append((key, who, members))
        shards.append(write_shard(root, name, split, samples))
    return write_manifest(root, shards, {"recipe": "test"})


def samples(dataset: Dataset) -> dict[str, Sample]:
    index = dataset.index
    found = {}
    for row, key in enumerate(bytes(k).decode() for k in index.key):
        raw = store.read_range(dataset.shard_path(row), int(index.offset[row]), int(index.length[row]))
        found[key] = Sample.from_tar(key, raw)
    return found


@pytest.fixture(scope="module")
def computed(source: Dataset) -> Dataset:
    dataset = precompute(source.root, source.root + "-computed", load(BOTH))
    assert dataset is not None
    return dataset


def test_every_sample_gains_what_the_nets_say_of_each_photo(source: Dataset, computed: Dataset) -> None:
    identity, codes = standins.load("identity"), standins.load("codes")
    before, after = samples(source), samples(computed)
    assert list(after) == list(before)
    for key, sample in after.items():
        assert sample.meta == before[key].meta
        assert sample.photo_count == before[key].photo_count
        for number in range(sample.photo_count):
            photo_HWC = sample.photo(number)
            np.testing.assert_array_equal(photo_HWC, before[key].photo(number))
            top = (photo_HWC.shape[1] - photo_HWC.shape[0]) // 2
            photo_HWC = photo_HWC[:, top : top + photo_HWC.shape[0]]  # the middle, where it is wider than high
            picture_B3HW = to_picture(torch.from_numpy(np.ascontiguousarray(photo_HWC)).permute(2, 0, 1)[None])
            np.testing.assert_allclose(sample.embedding(number), identity(picture_B3HW)[0], rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(sample.codes(number), codes(picture_B3HW)[0], rtol=1e-3, atol=1e-3)
    assert verify(computed.root) == []
    first = after["train-1"]
    assert StoredCodes(codes.n_styles, codes.style_dim)(first, None).shape == (codes.n_styles, codes.style_dim)
    assert abs(float(np.linalg.norm(first.embedding(1))) - 1.0) < 1e-3


def test_people_are_told_apart_by_what_is_stored(computed: Dataset) -> None:
    after = samples(computed)
    one, same, other = after["train-1"].embedding(0), after["train-1"].embedding(1), after["train-3"].embedding(0)
    assert one @ same > one @ other


def test_the_new_data_set_says_where_it_comes_from(source: Dataset, computed: Dataset) -> None:
    assert computed.fingerprint != source.fingerprint
    about = computed.manifest.provenance["precomputed"]
    assert about["of"] == source.fingerprint
    assert about["identity"] == {"net": "stand_in", "sha256": standins.checksum("identity")}
    assert computed.manifest.splits == source.manifest.splits
    assert computed.manifest.identities == source.manifest.identities
    assert {path.name for path in Path(computed.root).iterdir()} == {
        *("manifest.json", "index.npz", "train-00000.tar", "train-00001.tar", "test-00000.tar", "seen-00000.tar")
    }


def test_any_parts_on_any_machines_are_the_same_bytes(source: Dataset, computed: Dataset, tmp_path: Path) -> None:
    """Even where two machines disagree about the number of parts; what is missing at the end is done there."""
    out = str(tmp_path / "d")
    assert precompute(source.root, out, load(BOTH), Part(1, 2)) is None
    assert precompute(source.root, out, load(BOTH), Part(0, 3)) is None
    with pytest.raises(V2FError, match="packing was not finished here"):
        open_dataset(out)
    dataset = precompute(source.root, out, load(BOTH))
    assert dataset is not None
    assert dataset.fingerprint == computed.fingerprint


@pytest.mark.slow
def test_several_processes_are_the_same_bytes(source: Dataset, computed: Dataset, tmp_path: Path) -> None:
    dataset = precompute(source.root, str(tmp_path / "d"), load([*BOTH, "workers=2"]))
    assert dataset is not None
    assert dataset.fingerprint == computed.fingerprint


def test_what_is_done_is_not_done_again(
    source: Dataset,
    computed: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done, compute = [], module._compute

    def killed(*what: Any) -> int:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(what[-1])
        return compute(*what)

    monkeypatch.setattr(module, "_compute", killed)
    with pytest.raises(KeyboardInterrupt):
        precompute(source.root, str(tmp_path / "d"), load(BOTH))
    monkeypatch.setattr(module, "_compute", lambda *what: done.append(what[-1]) or compute(*what))
    dataset = precompute(source.root, str(tmp_path / "d"), load(BOTH))
    assert dataset is not None
    assert dataset.fingerprint == computed.fingerprint
    assert sorted(done) == [0, 1, 2, 3]
    precompute(source.root, str(tmp_path / "d"), load(BOTH))
    assert "computed already by these nets, nothing to do" in capsys.readouterr().out


def test_another_data_set_in_the_way_is_refused(source: Dataset, computed: Dataset, tmp_path: Path) -> None:
    for out in (source.root, computed.root):
        with pytest.raises(V2FError, match="another data set is there; choose another --out"):
            precompute(source.root, out, load(["identity.net=stand_in"]))
    assert precompute(source.root, str(tmp_path / "d"), load(BOTH), Part(0, 2)) is None
    with pytest.raises(V2FError, match="parts of another recipe are packed here"):
        precompute(source.root, str(tmp_path / "d"), load(["identity.net=stand_in"]), Part(1, 2))


def test_one_net_after_another_is_both_at_once(source: Dataset, computed: Dataset, tmp_path: Path) -> None:
    first = precompute(source.root, str(tmp_path / "first"), load(["identity.net=stand_in", "workers=1"]))
    assert first is not None
    then = precompute(first.root, str(tmp_path / "then"), load(["codes.net=stand_in", "workers=1"]))
    assert then is not None
    assert then.fingerprint == computed.fingerprint
    both = computed.manifest.provenance["precomputed"]
    assert then.manifest.provenance["precomputed"] == both | {"of": first.fingerprint}


def test_what_is_stored_already_is_not_replaced(computed: Dataset, tmp_path: Path) -> None:
    with pytest.raises(V2FError, match=r"sample train-0 has its codes\.npy already; set codes=null to keep it"):
        precompute(computed.root, str(tmp_path / "d"), load(["codes.net=stand_in", "workers=1"]))


def test_damage_is_not_made_sound(source: Dataset, tmp_path: Path) -> None:
    root = Path(shutil.copytree(source.root, tmp_path / "damaged"))
    content = bytearray((root / "test-00000.tar").read_bytes())
    content[700] ^= 1
    (root / "test-00000.tar").write_bytes(content)
    with pytest.raises(V2FError, match=r"test-00000\.tar: sample test-5: its checksum differs"):
        precompute(str(root), str(tmp_path / "d"), load(BOTH))
    with pytest.raises(V2FError, match="packing was not finished here"):
        open_dataset(str(tmp_path / "d"))


def test_a_source_that_changes_meanwhile_is_an_error(
    source: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else somebody who was removed from it would be in what is made of it."""
    root, fill = shutil.copytree(source.root, str(tmp_path / "copy")), module._fill

    def removed(*values: Any) -> None:
        fill(*values)
        remove(root, ["p4"])

    monkeypatch.setattr(module, "_fill", removed)
    with pytest.raises(V2FError, match=r"copy: the data set changed during this command; remove .*d and start again"):
        precompute(root, str(tmp_path / "d"), load(BOTH))
    assert not (tmp_path / "d" / "manifest.json").exists()


def test_people_can_be_removed_from_it(computed: Dataset, tmp_path: Path) -> None:
    root = shutil.copytree(computed.root, str(tmp_path / "copy"))
    remove(root, ["p0"])
    assert verify(root, ["p0"]) == []


def test_the_recipe_of_a_run_names_the_nets(tmp_path: Path) -> None:
    recipes = Path(__file__).parents[2] / "launch" / "recipes"
    config = load(["path=elsewhere"], str(recipes / "thesis-final.yaml"))
    assert config.path == "elsewhere"
    assert config.identity is not None
    assert config.identity.model_dump()["channels"] == "rgb"
    assert config.codes is not None
    assert config.codes.net == "psp"
    assert load([], str(recipes / "quickstart.yaml")).identity is not None


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ([], "name at least one net"),
        (["identity.net=facenett"], "unknown value 'facenett'"),
        (["identity.net=stand_in", "batch_size=3"], "unknown key 'batch_size'; did you mean 'batch'"),
        (["codes.net=psp", "path=nowhere"], "nowhere"),
    ],
)
def test_a_wrong_net_is_one_clear_line(
    source: Dataset, tmp_path: Path, assignments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shards", "precompute", source.root, *assignments, "--out", str(tmp_path / "d")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_command_line(source: Dataset, computed: Dataset, tmp_path: Path) -> None:
    command = ["shards", "precompute", source.root, *BOTH, "--out", str(tmp_path / "d")]
    assert main([*command, "--part", "0/2"]) == main([*command, "--part", "1/2"]) == main(command) == 0
    assert open_dataset(str(tmp_path / "d")).fingerprint == computed.fingerprint


def test_the_files_of_the_nets_are_part_of_what_was_computed(
    source: Dataset, random_weights: Path, tmp_path: Path
) -> None:
    identity = {"net": "ir_se50", "channels": "bgr"}
    values = {"path": str(random_weights), "identity": identity, "workers": 1}
    dataset = precompute(source.root, str(tmp_path / "d"), build(PrecomputeConfig, values, "the test"))
    assert dataset is not None
    about = dataset.manifest.provenance["precomputed"]["identity"]
    assert (about["net"], about["channels"], len(about["sha256"])) == ("ir_se50", "bgr", 64)
    assert samples(dataset)["train-0"].embedding().shape == (512,)
