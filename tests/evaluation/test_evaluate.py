"""Evaluation of systems with known results, on data sets that are packed for the test."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FULL, SIZE, FakeSystem, make_data, make_run, portrait, register
from torch import Tensor, nn

from v2f import metrics
from v2f.data.manifest import open_dataset
from v2f.data.mix import Union
from v2f.errors import V2FError
from v2f.evaluation.evaluate import evaluate
from v2f.evaluation.observers import in_batches, look, observers_of
from v2f.runs.run import Run
from v2f.system import Noise, Styled
from v2f.world import bounds
from v2f.world.people import World

PEOPLE = {"train": range(50, 52), "test": range(30), "seen": range(30, 40)}


@pytest.fixture(autouse=True)
def _fake_system(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def measured(tmp_path: Path, kind: str = "copy", data: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    make_data(tmp_path / "data", **({"people": PEOPLE} if data is None else data))
    run, system = make_run(tmp_path / "run", tmp_path / "data", kind)
    return evaluate(run, system=system, progress=False, device="cpu", **options)


def test_a_system_that_gives_the_reference_is_always_found(tmp_path: Path) -> None:
    test = measured(tmp_path)["splits"]["test"]
    assert test["people"] == 30
    assert test["clips"] == 60
    assert test["by"]["judge"]["lines"]["voice"]["R@1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert test["by"]["judge"]["lines"]["voice"]["median_rank"] == 1
    assert test["by"]["judge"]["lines"]["voice"]["identity_distance_ratio"] == pytest.approx(1.0)
    system = FakeSystem(FakeSystem.Config())
    observers, _ = observers_of(Run.open(str(tmp_path / "run")), system)
    photos = np.stack([portrait(p) for p in range(30)]).transpose(0, 3, 1, 2)
    one_each = look(observers, photos, torch.device("cpu"))["judge"].emb_MD
    assert test["by"]["judge"]["meters"]["identity_distance"] == pytest.approx(metrics.identity_distance(one_each))
    assert test["verdict"] is None


def test_one_face_for_everyone_is_chance_and_named(tmp_path: Path) -> None:
    result = measured(tmp_path, "constant")
    for split in result["splits"].values():
        voice = split["by"]["judge"]["lines"]["voice"]
        for k in (1, 5, 10):
            assert voice[f"R@{k}"]["value"] == pytest.approx(split["chance"][f"R@{k}"])
        assert voice["identity_distance_ratio"] == pytest.approx(0.0, abs=1e-6)
        assert "one face for everyone" in split["verdict"]
        assert voice["picture"]["energy"] > 0.1


def test_eval_json_holds_what_is_returned_and_where_it_comes_from(tmp_path: Path) -> None:
    result = measured(tmp_path)
    written = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert written == result
    assert written["stand_ins"] == ["identity", "perceptual"]
    assert written["data"]["fingerprint"] == open_dataset(str(tmp_path / "data")).fingerprint
    assert written["data"]["trained_on"] == "f" * 64
    assert written["seconds"] == 0.5
    assert [name.name for name in (tmp_path / "run").iterdir() if "writing" in name.name] == []


def test_each_persons_share_is_kept_beside_it(tmp_path: Path) -> None:
    result = measured(tmp_path)
    content = (tmp_path / "run" / "eval-people.json").read_bytes()
    assert result["people"] == {"file": "eval-people.json", "sha256": hashlib.sha256(content).hexdigest()}
    splits = json.loads(content)["splits"]
    assert splits.keys() == result["splits"].keys()
    for name, split in splits.items():
        numbers = result["splits"][name]
        voice = numbers["by"]["judge"]["lines"]["voice"]
        assert len(split["people"]) == len(set(split["people"])) == numbers["people"]
        shares = {key: np.array(share_N) for key, share_N in split["shares"]["judge"].items()}
        assert all(share_N.shape == (numbers["people"],) for share_N in shares.values())
        for k in metrics.KS:
            assert metrics.over_people(shares[f"R@{k}"]).as_dict() == voice[f"R@{k}"]
        assert shares["margin"].mean() == pytest.approx(numbers["by"]["judge"]["meters"]["margin"])
        assert shares["identity_distance_ratio"].mean() == pytest.approx(voice["identity_distance_ratio"])
        assert shares["nearest"].mean() == pytest.approx(voice["picture"]["nearest"])
        assert shares["energy"].mean() == pytest.approx(voice["picture"]["energy"], abs=0.01)
    assert b"id0" not in content  # numbers instead of names of people


def test_consistency_over_a_speakers_clips_is_measured_where_people_have_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_data(tmp_path / "data", PEOPLE)
    run, system = make_run(tmp_path / "run", tmp_path / "data")
    found = evaluate(run, system=system, device="cpu")["splits"]["test"]["by"]["judge"]
    alike = found["consistency"]
    assert alike["same"] == pytest.approx(1.0)  # it draws the person's first photo for each clip
    assert alike["different"] == pytest.approx(1 - found["meters"]["identity_distance"])
    assert alike["margin"] == found["lines"]["voice"]["consistency"]
    assert alike["margin"]["low"] < alike["margin"]["value"] < alike["margin"]["high"]
    shares = json.loads((tmp_path / "run" / "eval-people.json").read_text())["splits"]["test"]["shares"]["judge"]
    assert np.mean(shares["consistency"]) == pytest.approx(alike["margin"]["value"], abs=0.01)
    assert f"margin {alike['margin']['value']:.3f} (" in " ".join(capsys.readouterr().out.split())
    constant = measured(tmp_path / "constant", "constant")["splits"]["test"]["by"]["judge"]["consistency"]
    assert constant["margin"]["value"] == pytest.approx(0.0, abs=1e-6)
    single = {"people": PEOPLE, "clips": 1}
    assert measured(tmp_path / "single", data=single)["splits"]["test"]["by"]["judge"]["consistency"] is None


def test_too_small_a_gallery_is_said_and_not_hidden(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_data(tmp_path / "data", {"test": range(3)})
    run, system = make_run(tmp_path / "run", tmp_path / "data")
    test = evaluate(run, system=system, device="cpu")["splits"]["test"]
    assert test["gallery"] == 3
    assert test["gallery_too_small"]
    assert test["chance"]["R@1"] == pytest.approx(1 / 3)
    assert test["chance"]["R@5"] == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "gallery is too small: 3 people" in printed


def test_with_one_person_nothing_is_retrieved(tmp_path: Path) -> None:
    test = measured(tmp_path, data={"people": {"test": [4]}})["splits"]["test"]
    assert test["gallery"] is None
    assert test["chance"] is None
    assert "R@1" not in test["by"]["judge"]["lines"]["voice"]
    assert any("nothing is retrieved" in note for note in test["notes"])


def test_no_split_to_evaluate_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(V2FError, match="no split to evaluate; it has train, but not test or seen"):
        measured(tmp_path, data={"people": {"train": range(4)}})


def test_real_people_have_no_upper_bounds_and_it_says_why(tmp_path: Path) -> None:
    test = measured(tmp_path)["splits"]["test"]
    assert not {"U1", "U2", "strongest"} & set(test["by"]["judge"]["lines"])
    assert any("no upper bound" in note for note in test["notes"])


def test_synthetic_people_have_upper_bounds(tmp_path: Path) -> None:
    people = {"test": range(60)}
    test = measured(tmp_path, data={"people": people, "synthetic": True, "clips": 1})["splits"]["test"]
    assert {"voice", "U1", "U2", "strongest", "photo"} <= set(test["by"]["judge"]["lines"])
    assert test["by"]["judge"]["strongest_factor"] in ("pitch", "tract", "breathiness", "tilt", "liveliness", "rate")
    held = test["by"]["judge"]["held_equal"]
    assert held["factor"] == test["by"]["judge"]["strongest_factor"]
    assert held["gallery"] == 20
    assert held["lines"]["voice"]["R@1"]["value"] == 1
    assert held["chance"]["R@1"] == 0.05


def test_the_strongest_factor_is_the_one_that_tells_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_tilt(world: World, voice_NV: np.ndarray, factor: str, size: int) -> np.ndarray:
        return np.stack([portrait(person if factor == "tilt" else 0) for person in range(len(voice_NV))])

    monkeypatch.setattr(bounds, "factor_pictures", only_tilt)
    data = {"people": {"test": range(60)}, "synthetic": True, "clips": 1}
    test = measured(tmp_path, data=data)["splits"]["test"]
    assert test["by"]["judge"]["strongest_factor"] == "tilt"
    assert test["by"]["judge"]["lines"]["strongest"]["R@1"]["value"] == 1


def test_people_of_another_world_have_no_upper_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fakes.world_hash", lambda: "0" * 64)
    test = measured(tmp_path, data={"people": {"test": range(4)}, "synthetic": True})["splits"]["test"]
    assert "U1" not in test["by"]["judge"]["lines"]
    assert any("pack the data again" in note for note in test["notes"])


def test_the_other_photo_of_a_person_is_a_different_one(tmp_path: Path) -> None:
    lines = measured(tmp_path, data={"people": PEOPLE, "photos": 2, "clips": 1})["splits"]["test"]["by"]["judge"][
        "lines"
    ]
    assert lines["photo"]["people"] == 30
    assert lines["photo"]["R@1"]["value"] > 0.9  # the noise between two photos is small
    assert lines["photo"]["picture"]["nearest"] > 0.01  # not the gallery's own photo


def test_people_with_one_photo_have_no_line_for_another(tmp_path: Path) -> None:
    test = measured(tmp_path, data={"people": PEOPLE, "photos": 1})["splits"]["test"]
    assert "photo" not in test["by"]["judge"]["lines"]
    assert "generator" not in test["by"]["judge"]["lines"]
    assert any("second photo" in note for note in test["notes"])


class Inverting(FakeSystem, Styled):
    """A system with a generator whose codes are the squares of a portrait."""

    inverts = True

    def invert(self, img_BCHW: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(img_BCHW, SIZE // 4).flatten(2)

    def styles(self, batch: dict[str, Any]) -> Tensor:
        return self.invert(self.sample(batch)["face"])

    def face(self, w_BLD: Tensor, size: int | None = None) -> Tensor:
        return w_BLD.unflatten(2, (4, 4)).repeat_interleave(SIZE // 4, 2).repeat_interleave(SIZE // 4, 3)


def test_what_the_generator_allows_is_the_other_photo_through_its_codes(tmp_path: Path) -> None:
    make_data(tmp_path / "data", PEOPLE)
    run, _fake = make_run(tmp_path / "run", tmp_path / "data")
    test = evaluate(run, system=Inverting(run.config.system), progress=False, device="cpu")["splits"]["test"]
    assert test["by"]["judge"]["lines"]["generator"]["R@1"]["value"] > 0.9
    # the codes average out the noise of the photo
    picture = (
        test["by"]["judge"]["lines"]["generator"]["picture"]["nearest"],
        test["by"]["judge"]["lines"]["photo"]["picture"]["nearest"],
    )
    assert picture[0] < picture[1]
    assert test["by"]["judge"]["meters"]["w_variance_ratio"] == pytest.approx(1.0, abs=0.05)


def damage(data: Path, sample: int) -> str:
    dataset = open_dataset(str(data))
    with open(dataset.shard_path(sample), "r+b") as file:
        file.seek(int(dataset.index.offset[sample]) + 700)
        file.write(b"\xff\x00\xff")
    return bytes(dataset.index.key[sample]).decode()


def test_a_damaged_sample_is_left_out_counted_and_named(tmp_path: Path) -> None:
    make_data(tmp_path / "data", {"test": range(30)})
    run, system = make_run(tmp_path / "run", tmp_path / "data")
    before = evaluate(run, system=system, progress=False, device="cpu")["splits"]["test"]
    key = damage(tmp_path / "data", 41)
    test = evaluate(run, system=system, progress=False, device="cpu")["splits"]["test"]
    assert test["clips"] == 59
    assert test["people"] == 30
    assert test["left_out"]["samples"] == 1
    assert key in test["left_out"]["first"][0]
    assert (
        test["by"]["judge"]["lines"]["voice"]["R@1"]["value"] == before["by"]["judge"]["lines"]["voice"]["R@1"]["value"]
    )


def test_only_damaged_samples_are_an_error(tmp_path: Path) -> None:
    make_data(tmp_path / "data", {"test": [1]}, clips=1)
    run, system = make_run(tmp_path / "run", tmp_path / "data")
    damage(tmp_path / "data", 0)
    with pytest.raises(V2FError, match="no sample of test can be used"):
        evaluate(run, system=system, progress=False, device="cpu")


def test_the_same_evaluation_is_the_same_file(tmp_path: Path) -> None:
    measured(tmp_path)
    first = (tmp_path / "run" / "eval.json").read_bytes()
    run, system = make_run(tmp_path / "run", tmp_path / "data")
    evaluate(run, system=system, progress=False, device="cpu")
    assert (tmp_path / "run" / "eval.json").read_bytes() == first


def test_a_row_does_not_depend_on_its_company() -> None:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 16, 3, stride=2), nn.LeakyReLU(), nn.Conv2d(16, 32, 3)]
    net = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32 * 25, 24))
    rows = torch.randn(75, 3, 16, 16)

    def together(part: Tensor) -> np.ndarray:
        return in_batches(lambda x: (net(x),), part, torch.device("cpu"))[0]

    whole = together(rows)
    for cut in (1, 7, 33):  # bit-identical with other batches
        pieces = np.concatenate([together(rows[:cut]), together(rows[cut:])])
        assert np.array_equal(pieces, whole)


def test_a_limit_takes_the_first_samples(tmp_path: Path) -> None:
    assert measured(tmp_path, limit=10)["splits"]["test"]["people"] == 5


def test_another_data_set_can_be_named(tmp_path: Path) -> None:
    make_data(tmp_path / "other", {"test": range(7)})
    make_data(tmp_path / "data", {"test": range(5)})
    run, system = make_run(tmp_path / "run", tmp_path / "data")
    result = evaluate(run, str(tmp_path / "other"), system=system, progress=False, device="cpu")
    assert result["splits"]["test"]["people"] == 7
    assert result["data"]["path"] == str(tmp_path / "other")


def test_what_was_not_trained_on_is_said_of_a_mix_as_of_one_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {name: tmp_path / name for name in ("one", "two", "other")}
    sets = [make_data(folder, {"train": [n], "test": range(n)}) for n, folder in enumerate(folders.values(), start=3)]
    run, system = make_run(tmp_path / "run", folders["one"])

    def notes(run: Run) -> list[bool]:
        found = []
        for folder in folders.values():
            evaluate(run, str(folder), system=system, device="cpu")
            found.append("that fake-run was trained on" in " ".join(capsys.readouterr().out.split()))
        return found

    def trained(**data: Any) -> Run:
        values = json.loads((tmp_path / "run" / "config.yaml").read_text())
        (tmp_path / "run" / "config.yaml").write_text(json.dumps(values | {"data": {"batch": 8, **data}}))
        mixed = Union([dataset.split("train") for dataset in sets[:2]]).fingerprint
        (tmp_path / "run" / "run.json").write_text(
            json.dumps({"fingerprint": mixed if "mix" in data else sets[0].fingerprint})
        )
        return Run(run.path)

    assert notes(trained(path=str(folders["one"]))) == [False, True, True]
    mix = [{"path": str(folders["one"])}, {"path": str(folders["two"]), "split": "train"}]
    assert notes(trained(mix=mix)) == [False, False, True]
    make_data(folders["two"], {"train": [8], "test": range(2)})
    assert notes(trained(mix=mix)) == [True, True, True]  # nobody can tell which of the two was replaced
    (folders["two"] / "manifest.json").rename(tmp_path / "gone")
    del folders["two"]
    assert notes(trained(mix=mix)) == [True, True]


def test_a_diverged_system_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(V2FError, match="not finite"):
        measured(tmp_path, "broken")


def test_a_system_without_voice_or_noise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeSystem, "asks", lambda self: {})
    with pytest.raises(
        V2FError, match=r"no face from a voice: this system asks for nothing, and makes face \(Picture\)"
    ):
        measured(tmp_path)


class Drawing(FakeSystem):
    """Draws the person's face, or by the sign of the noise that of the next person."""

    def asks(self) -> dict[str, Any]:
        return super().asks() | {"noise": Noise(2)}

    def sample(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        shifted = batch["wav"] + (batch["noise"][:, :1] > 0) / FULL
        return super().sample({"wav": shifted})


def test_several_draws_are_measured_by_their_mean_and_their_spread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_data(tmp_path / "data", {"test": range(30)}, synthetic=True)
    run, alone = make_run(tmp_path / "run", tmp_path / "data")
    system = Drawing(run.config.system).eval()  # type: ignore[arg-type]
    one = evaluate(run, system=system, progress=False, device="cpu")["splits"]["test"]["by"]["judge"]
    judged = evaluate(run, system=system, device="cpu", draws=6)["splits"]["test"]["by"]["judge"]
    assert Run.open(run.path).evaluated is not None
    lines = judged["lines"]
    assert lines["voice"] == one["lines"]["voice"]  # the first draw is the one that is drawn alone
    assert one["draws"] is None
    assert {"draws", "chosen", "U3", "U4"} <= lines.keys()
    assert lines["voice"]["R@1"]["value"] < 0.7
    assert lines["draws"]["R@5"]["value"] > lines["voice"]["R@5"]["value"]
    assert lines["chosen"]["picture"] is not None
    assert judged["draws"]["count"] == 6
    assert 0.1 < judged["draws"]["spread"] < 1.0
    assert judged["draws"]["possible"] > 0
    assert "6 draws of each clip" in capsys.readouterr().out
    with pytest.raises(V2FError, match="2 draws: only a system"):
        evaluate(run, system=alone, progress=False, device="cpu", draws=2)
