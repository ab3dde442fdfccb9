"""Data sets with labels: digits drawn as strokes, and people of the synthetic world by bands of their face factors."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from v2f.config import build
from v2f.data.loader import read_split
from v2f.data.manifest import open_dataset
from v2f.data.transforms import ClassNumber, Factors, Photo, Waveform, bound
from v2f.errors import V2FError
from v2f.prepare.pack import PackConfig, load_recipe, pack
from v2f.prepare.synthetic import Synthetic, SyntheticConfig
from v2f.prepare.things import Things
from v2f.world import labels, scenes, shapes, sounds, things
from v2f.world.people import FACE, World

SHARDS = Path(__file__).parents[2] / "shards"


def test_a_pack_of_digits_has_the_pictures_the_labels_and_the_factors(tmp_path: Path) -> None:
    few = ["shapes.train=40", "shapes.valid=10", "shapes.test=20", "workers=1", f"out={tmp_path / 'one'}"]
    recipe = load_recipe(str(SHARDS / "shapes.yaml"), few)
    dataset = pack(recipe)
    assert dataset.fingerprint == pack(recipe.model_copy(update={"out": str(tmp_path / "other")})).fingerprint
    assert dataset.manifest.provenance["classes"] == {"label": list(shapes.CLASSES)}
    assert set(dataset.manifest.holds) == {"gray", "photos"}
    reads = bound({"image": Photo(28, channels=1), "label": ClassNumber(), "factors": Factors("shape")}, [dataset])
    (batch,) = read_split(dataset.split("test"), reads, 20)
    ids = np.array([int(key[1:]) for key in batch["key"]])
    assert sorted(ids.tolist()) == list(range(90_000_000, 90_000_020))
    drawn = shapes.render_shapes(shapes.classes(ids), shapes.factors(ids), 28)
    assert np.array_equal(batch["image"].numpy(), drawn.transpose(0, 3, 1, 2))
    assert batch["label"].tolist() == shapes.classes(ids).tolist()
    np.testing.assert_allclose(batch["factors"].numpy(), shapes.factors(ids), atol=1e-5)


def test_too_many_digits_are_one_clear_line() -> None:
    recipe = build(PackConfig, {"out": "x", "source": "shapes", "shapes": {"train": 1, "test": 20_000_000}}, "test")
    with pytest.raises(V2FError, match=r"shapes\.test: at most 10000000, got 20000000"):
        recipe.converter().plan()


def test_people_with_labels_are_the_first_that_have_them_all(tmp_path: Path) -> None:
    crowd = ["train.people=12", "train.clips=2", "valid.people=3", "test.people=4", "size=32"]
    few = [f"synthetic.{each}" for each in crowd]
    dataset = pack(load_recipe(str(SHARDS / "labelled-faces.yaml"), [*few, "workers=1", f"out={tmp_path}"]))
    assert open_dataset(str(tmp_path)).manifest.provenance["classes"]["hair"] == ["black", "brown", "fair"]
    reads = bound({name: ClassNumber(name) for name in ("glasses", "hair", "age")}, [dataset])
    (batch,) = read_split(dataset.split("train"), reads | {"face": Factors("face")}, 24)
    face = dict(zip(FACE, batch["face"].numpy().T, strict=True))
    for label, factor, edges in (("glasses", "glasses", [0.35]), ("hair", "hair_tone", [-0.5, 0.8])):
        assert batch[label].tolist() == np.digitize(face[factor], edges).tolist()
    people = sorted({int(key[1:8]) for key in batch["key"]})
    everybody = World().face(np.arange(people[-1] + 1))
    named = [labels.labels_of(label, everybody) for label in ("glasses", "hair", "age")]
    assert people == [n for n, own in enumerate(zip(*named, strict=True)) if None not in own]


def test_without_labels_nothing_changes_and_bands_do_not_touch() -> None:
    plain = Synthetic(build(SyntheticConfig, {"train": {"people": 5}}, "test")).plan()
    assert [item.what[0] for item in plain.items] == [0, 1, 2, 3, 4]
    assert plain.provenance.keys() == {"world_version", "world_hash"}
    for label in ("glasses", "hair", "age"):
        ends = list(labels.bands(label).values())
        assert all(one[1] + 0.25 < other[0] for one, other in pairwise(ends))


def test_a_pack_of_sounding_things_has_sounds_pictures_classes_and_factors(tmp_path: Path) -> None:
    few = ["train.things=8", "valid.things=4", "test.things=8", "seen.things=4", "train.takes=2", "test.takes=1"]
    some = [*(f"things.{each}" for each in few), "workers=1"]
    recipe = load_recipe(str(SHARDS / "sounding-things.yaml"), [*some, f"out={tmp_path / 'one'}"])
    dataset = pack(recipe)
    assert dataset.fingerprint == pack(recipe.model_copy(update={"out": str(tmp_path / "other")})).fingerprint
    assert dataset.manifest.provenance["classes"] == {"class": ["bark", "meow", "bell", "engine"]}
    counts = {name: split.samples for name, split in dataset.manifest.splits.items()}
    assert counts == {"train": 16, "valid": 8, "test": 8, "seen": 4}
    reads = bound(
        {
            "wav": Waveform(1.8, 4000),
            "image": Photo(64),
            "class": ClassNumber("class"),
            "sound": Factors("sound"),
            "picture": Factors("picture"),
        },
        [dataset],
    )
    (batch,) = read_split(dataset.split("seen"), reads, 8)
    key_N2 = np.array([[int(part) for part in key[1:].split("-")] for key in batch["key"]])
    assert sorted(key_N2.tolist()) == [[0, 2], [1, 2], [2, 2], [3, 2]]  # takes that train does not have
    ids, takes = key_N2.T
    assert batch["class"].tolist() == things.classes(ids).tolist()
    heard_NF, seen_NF = things.sound_factors(ids, takes), things.picture_factors(ids, takes)
    np.testing.assert_allclose(batch["sound"].numpy(), heard_NF, atol=1e-5)
    np.testing.assert_allclose(batch["picture"].numpy(), seen_NF, atol=1e-5)
    wav_NT = sounds.render_sounds(things.classes(ids), heard_NF, key_N2, 1.8)
    np.testing.assert_allclose(batch["wav"].numpy(), wav_NT, atol=2e-4)
    drawn = scenes.render_things(things.classes(ids), seen_NF)
    assert np.array_equal(batch["image"].numpy(), drawn.transpose(0, 3, 1, 2))


def test_too_many_things_are_one_clear_line() -> None:
    recipe = build(PackConfig, {"out": "x", "source": "things", "things": {"train": {"things": 20}}}, "test")
    group = recipe.things
    assert group is not None
    for split, count, told in (("test", 2_000_000, "at most 1000000, got 2000000"), ("seen", 21, "21, but only 20")):
        more = group.model_copy(update={split: Things(things=count)})
        with pytest.raises(V2FError, match=rf"things\.{split}\.things: {told}"):
            recipe.model_copy(update={"things": more}).converter().plan()
