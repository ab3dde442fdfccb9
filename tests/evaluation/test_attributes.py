"""Attribute agreement and groups of speakers in `v2f eval`, on systems and people whose numbers are known."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from coded import with_codes
from fakes import SIZE, FakeSystem, make_data, make_run, register
from torch import Tensor

from v2f.cli import main
from v2f.config import build
from v2f.data.loader import read_split
from v2f.errors import V2FError
from v2f.evaluation.attributes import AGES, Attribute, attributes_of
from v2f.evaluation.clips import Clips
from v2f.evaluation.evaluate import evaluate
from v2f.evaluation.people_table import PeopleTable, read_people
from v2f.keyed import keyed_rng
from v2f.metrics import KS
from v2f.runs import modelcard
from v2f.runs.config import RunConfig
from v2f.runs.run import Run, build_system
from v2f.systems import SYSTEMS
from v2f.web.comparison import comparison
from v2f.web.report import report
from v2f.world.people import FACE, VOICE

PEOPLE = range(50)
WOMEN = 30


def sex(person: int) -> str:
    return "f" if person < WOMEN else "m"


def grouped(person: int, photo: int = 0) -> np.ndarray:
    """uint8 [SIZE, SIZE, 3]: a portrait that looks above all like those of the same sex."""
    squares = keyed_rng(8, person < WOMEN).integers(60, 195, size=(4, 4, 3)) + keyed_rng(9, person).integers(
        -9, 10, (4, 4, 3)
    )
    return (np.kron(squares, np.ones((SIZE // 4, SIZE // 4, 1))) + (photo > 0)).astype(np.uint8)


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    monkeypatch.setattr(Run, "system", lambda run: build_system(run.config).eval())
    monkeypatch.setattr(fakes, "portrait", grouped)


def about(person: int) -> dict[str, Any]:
    return {"gender": sex(person), "nationality": "Ireland" if person % 7 else "India"}


def measured(
    folder: Path, kind: str = "copy", system: FakeSystem | None = None, attributes: str | None = None, **data: Any
) -> dict[str, Any]:
    """What is measured of the split test."""
    if not (folder / "data").exists():
        make_data(folder / "data", {"test": PEOPLE}, **({"about": about} | data))
    run, own = make_run(folder / kind, folder / "data", kind)
    found = evaluate(run, system=system or own, progress=False, device="cpu", attributes=attributes)
    split: dict[str, Any] = found["splits"]["test"]
    return split


def numbers_of(split: Mapping[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = split["by"]["judge"]["attributes"][name]
    return found


def table(folder: Path, text: str) -> str:
    (folder / "people.csv").write_text(text, encoding="utf-8")
    return str(folder / "people.csv")


# ------------------------------------------------------------------------------------------ known systems


def test_the_true_photo_agrees_always_and_its_chance_is_that_of_the_groups(tmp_path: Path) -> None:
    split = measured(tmp_path)
    of = numbers_of(split, "gender")
    assert of["agreement"] == {line: {"value": 1.0, "low": 1.0, "high": 1.0} for line in ("voice", "own_photo")}
    assert of["chance"] == pytest.approx(0.6**2 + 0.4**2)
    assert split["attributes"]["gender"] == {
        "source": "metadata", "groups": {"f": 30, "m": 20}, "unknown": 0, "edges": []
    }  # fmt: skip


def test_one_face_for_everyone_is_chance_for_everyone_and_in_each_group(tmp_path: Path) -> None:
    split = measured(tmp_path, "constant")
    for name in ("gender", "nationality"):
        of = numbers_of(split, name)
        assert of["agreement"]["voice"]["value"] == pytest.approx(of["chance"])
        for group in of["slices"].values():
            assert group["agreement"]["value"] == pytest.approx(group["chance"])
    of = numbers_of(split, "gender")
    assert {name: group["chance"] for name, group in of["slices"].items()} == {"f": 1, "m": 0}
    assert of["agreement"]["voice"]["value"] == pytest.approx(0.6)


class Guessing(FakeSystem):
    """Draws the portrait of a person whom a coin chose, with or without regard to the speaker's sex."""

    regard = False

    def sample(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        people = (batch["wav"].mean(1) * fakes.FULL).round().long() - 1
        alike = [[n for n in PEOPLE if not self.regard or sex(n) == sex(p)] for p in people.tolist()]
        chosen = [
            some[int(keyed_rng(6, p).integers(len(some)))] for p, some in zip(people.tolist(), alike, strict=True)
        ]
        pictures = torch.from_numpy(np.stack([grouped(p) for p in chosen])).permute(0, 3, 1, 2)
        return {"face": pictures / 127.5 - 1}


@pytest.mark.parametrize("regard", [False, True])
def test_a_coin_gives_chance_and_knowing_the_sex_agrees_without_finding_anybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regard: bool
) -> None:
    monkeypatch.setattr(Guessing, "regard", regard)
    split = measured(tmp_path, system=Guessing(FakeSystem.Config()).eval())
    own = numbers_of(split, "gender")["agreement"]["voice"]
    chance = numbers_of(split, "gender")["chance"]
    assert split["by"]["judge"]["lines"]["voice"]["R@1"]["value"] < 0.2
    held = numbers_of(split, "gender")["held_equal"]
    assert (held["gallery"], held["people"], held["chance"]["R@1"]) == (20, 50, 0.05)
    assert held["R@10"]["low"] < 0.5 < held["R@10"]["high"]
    assert numbers_of(split, "nationality")["held_equal"]["people"] == 42  # too few are from India
    if regard:
        assert own["value"] == 1
        assert chance == pytest.approx(0.52)
    else:
        assert own["low"] < chance < own["high"]
        assert own["value"] == pytest.approx(chance, abs=0.2)


@pytest.mark.parametrize("kind", ["copy", "constant"])
def test_the_groups_add_up_to_the_whole(tmp_path: Path, kind: str) -> None:
    split = measured(tmp_path, kind)
    whole = split["by"]["judge"]["lines"]["voice"]
    for name in ("gender", "nationality"):
        of = numbers_of(split, name)
        people = {group: numbers["people"] for group, numbers in of["slices"].items()}
        assert people == split["attributes"][name]["groups"]
        assert sum(people.values()) == split["people"] == whole["people"]

        def mean(key: str, of: Mapping[str, Any] = of, people: Mapping[str, int] = people) -> float:
            values = [numbers[key] for numbers in of["slices"].values()]
            values = [value["value"] if isinstance(value, dict) else value for value in values]
            return float(np.average(values, weights=list(people.values())))

        for k in KS:
            assert mean(f"R@{k}") == pytest.approx(whole[f"R@{k}"]["value"])
        assert mean("agreement") == pytest.approx(of["agreement"]["voice"]["value"])
        assert mean("chance") == pytest.approx(of["chance"])


def test_a_groups_recall_is_that_of_its_people_alone(tmp_path: Path) -> None:
    """A system that draws women right and gives men one face; all are looked for among everybody."""

    class Partial(FakeSystem):
        def sample(self, batch: dict[str, Any]) -> dict[str, Tensor]:
            face, one = (
                super().sample(batch)["face"],
                super().sample({"wav": batch["wav"] * 0 + 1 / fakes.FULL})["face"],
            )
            men = (batch["wav"].mean(1) * fakes.FULL).round().long() - 1 >= WOMEN
            return {"face": torch.where(men[:, None, None, None], one, face)}

    split = measured(tmp_path, system=Partial(FakeSystem.Config()).eval())
    of = numbers_of(split, "gender")["slices"]
    assert of["f"]["R@1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert of["m"]["R@10"]["value"] == 0
    assert (of["f"]["agreement"]["value"], of["m"]["agreement"]["value"]) == (1, 0)


# ---------------------------------------------------------------------------------------------- a table


def test_a_table_adds_attributes_corrects_the_metadata_and_leaves_out_whom_it_does_not_know(tmp_path: Path) -> None:
    rows = [f"id{p:03d},{'F' if p < 5 else ''},{p + 3 if p < 48 else ''},{1 + p % 3}" for p in PEOPLE]
    path = table(tmp_path, "identity,gender,age,skin\n" + "\n".join(rows) + "\nnobody,m,7,2\n")
    split = measured(tmp_path, attributes=path)
    assert {name: of["source"] for name, of in split["attributes"].items()} == {
        "nationality": "metadata", "age": "table", "skin": "table"
    }  # fmt: skip
    assert split["attributes"]["age"] == {
        "source": "table",
        "groups": {"under 13": 10, "13 to 17": 5, "18 to 39": 22, "40 to 59": 11},
        "unknown": 2,
        "edges": list(map(float, AGES)),
    }
    assert split["attributes"]["skin"]["groups"] == {"1": 17, "2": 17, "3": 16}
    assert sum(of["people"] for of in numbers_of(split, "age")["slices"].values()) == 48
    notes = "\n".join(split["notes"])
    assert "gender is known of 5 people, too few to say anything about it" in notes
    assert "age is unknown for 2 of 50 people; they are left out of it" in notes
    assert "age: 3 of 4 groups have fewer than 20 people (under 13: 10, 13 to 17: 5, 40 to 59: 11)" in notes
    written = json.loads((tmp_path / "copy" / "eval.json").read_text())
    assert written["attributes"]["file"] == path
    assert re.fullmatch("[0-9a-f]{64}", written["attributes"]["sha256"])


def test_attributes_change_no_other_number(tmp_path: Path) -> None:
    bare = measured(tmp_path, about=None)
    assert (bare["attributes"], bare["by"]["judge"]["attributes"]) == ({}, {})
    people = (tmp_path / "copy" / "eval-people.json").read_bytes()
    path = table(tmp_path, "identity,sex\n" + "\n".join(f"id{p:03d},{sex(p)}" for p in PEOPLE))
    split = measured(tmp_path, attributes=path)
    assert split["attributes"].keys() == split["by"]["judge"]["attributes"].keys() == {"sex"}
    assert (tmp_path / "copy" / "eval-people.json").read_bytes() == people  # nobody's group is written down
    for each in (split, split["by"]["judge"]):
        each["attributes"] = {}
    assert split == bare


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"its header has to be identity and the names of attributes.*; it is empty"),
        ("identity\nid000\n", "it is identity"),
        ("person,sex\nid000,f\n", "it is person,sex"),
        ("identity,sex,sex\nid000,f,f\n", "it is identity,sex,sex"),
        ("identity,sex\nid000,f,7\n", r"line 2 does not fit the header, or names nobody \(id000, f, 7\)"),
        ("identity,sex\n,f\n", "line 2 does not fit the header, or names nobody"),
        (
            "identity,sex,age\nid000,f,3\nid001,m,4\nid000,f,5\n",
            "id000 has the age '3' in line 2 and '5' in line 4; correct one of the two",
        ),
        ("identity,sex\nVox 1,f\n", r"none of its 1 people is in .*data; .* for example 'id000'"),
        ("identity,sex\n\xff", "not a CSV file in UTF-8"),
    ],
)
def test_a_table_that_is_none_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    dataset = make_data(tmp_path / "data", {"test": [0, 1]})
    (tmp_path / "people.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(V2FError, match=message):
        read_people(str(tmp_path / "people.csv"), dataset)


def test_names_are_spelled_as_people_type_them(tmp_path: Path) -> None:
    dataset = make_data(tmp_path / "data", {"test": [0, 1]})
    names = ["Jos\u00e9", "Ann"]
    dataset.manifest.identities[:] = names
    path = table(tmp_path, "\ufeff identity ,sex,,\n Jose\u0301 , f ,,\n\n Ann,,\nAnn,\n")
    assert read_people(path, dataset).values_of("sex", names) == ["f", ""]


def test_the_verb_takes_a_table_and_a_protocol_without_groups_refuses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path, "identity,age\n" + "\n".join(f"id{p:03d},{20 + 30 * (p % 2)}" for p in PEOPLE))
    make_data(tmp_path / "data", {"test": PEOPLE}, about=about)
    run, _ = make_run(tmp_path / "run", tmp_path / "data")
    assert main(["eval", run.path, "--attributes", path]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "test: attributes of the speakers; by the judge" in said
    assert re.search(
        r"gender │ 100\.0 \(100-100\) │ 52\.0 │ 100\.0 │ 100\.0 \(100-100\) │ f 100\.0 \(100-100\), m 100\.0", said
    )
    assert re.search(r"nationality │ [^│]* │ [^│]* │ [^│]* │ [^│]* │ India\* 100\.0 \(100-100\), Ireland 100\.0", said)
    assert "18 to 39 100.0 (100-100), 40 to 59 100.0 (100-100)" in said
    monkeypatch.setattr(FakeSystem, "protocol", "labelled_pictures")
    monkeypatch.setattr("v2f.evaluation.labelled.Labelled.splits", lambda *_: ["test"])
    assert main(["eval", run.path, "--attributes", path]) != 0
    assert "the protocol labelled_pictures has no numbers for groups of people" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- the groups


def groups(values: list[str], name: str = "a") -> Attribute | list[str]:
    """The attribute of a table's column, or the notes if it is not used."""
    people = [f"p{n}" for n in range(len(values))]
    known = {person: value for person, value in zip(people, values, strict=True) if value}
    clips = Clips(names=list(range(len(values))), told_N={})
    found, notes = attributes_of(clips, people, PeopleTable("t.csv", "", {name: known}))
    return found[0] if found else notes


def shown(values: list[str], name: str = "a") -> dict[str, int]:
    found = groups(values, name)
    assert isinstance(found, Attribute)
    return dict(zip(found.groups, found.people, strict=True))


def test_texts_are_groups_and_numbers_are_divided() -> None:
    assert shown(["f", " F", "m", "M "] * 5) == {"f": 10, "m": 10}
    assert shown([str(n % 10 + 1) for n in range(40)]) == {str(n): 4 for n in range(1, 11)}  # a scale, in its order
    assert shown([str(n / 7) for n in range(33)]) == {"low": 11, "middle": 11, "high": 11}
    assert shown(["1", "2", "x"] * 9) == {"1": 9, "2": 9, "x": 9}
    assert shown(["12", "13", "59", "60", "61.5"] * 4, "Age") == {
        "under 13": 4, "13 to 17": 4, "40 to 59": 4, "60 and over": 8
    }  # fmt: skip
    found = groups([str(n) if n % 4 else "" for n in range(40)])
    assert isinstance(found, Attribute)
    assert found.edges == (pytest.approx(13 + 2 / 3, abs=0.7), pytest.approx(26 + 1 / 3, abs=0.7))
    assert [found.group_N[n] for n in (0, 1, 21, 39)] == [-1, 0, 1, 2]


@pytest.mark.parametrize(
    ("values", "note"),
    [
        (["f", "m"] * 4, ["a is known of 8 people, too few to say anything about it"]),
        (["f"] * 12, ["a is f for everybody of whom it is known; nothing can differ in it"]),
        ([f"n{n}" for n in range(61)], ["a has 61 values, more than 60: it is not a group of people"]),
        ([""] * 30, []),
    ],
)
def test_what_is_no_group_is_left_out_with_a_note(values: list[str], note: list[str]) -> None:
    assert groups(values) == note


def test_synthetic_people_are_divided_into_thirds_of_each_factor(tmp_path: Path) -> None:
    split = measured(tmp_path, synthetic=True)
    assert list(split["attributes"]) == list(FACE)  # the voice's six factors equal the first six
    assert {tuple(of["groups"].values()) for of in split["attributes"].values()} == {(17, 16, 17)}
    assert numbers_of(split, "skin")["agreement"].keys() == {"voice", "U1", "own_photo"}
    voice_NV, face_NF = (keyed_rng(1, n).normal(size=(30, n)).astype(np.float32) for n in (len(VOICE), len(FACE)))
    face_NF[:, :2] = voice_NV[:, :2]
    clips = Clips(voice_N=list(voice_NV), built_N=list(face_NF))
    found, _ = attributes_of(clips, [f"p{n}" for n in range(30)], None)
    assert [each.name for each in found] == [*FACE, *VOICE[2:]]  # where the link is weak, both are told


# ------------------------------------------------------------------------------------ pages, cards, others


def test_the_report_shows_groups_and_an_evaluation_from_before_has_none(tmp_path: Path) -> None:
    measured(tmp_path)
    run = Run.open(str(tmp_path / "copy"))
    page = Path(report(run)).read_text()
    assert "Which groups of people are drawn well?" in page
    assert "nothing was guessed from a voice or a photo" in page
    row = r'<td class="inner">India</td><td>8&thinsp;\*</td><td>[\d.]+ <small>\d+–\d+</small></td><td>[\d.]+</td><td>'
    assert re.search(row + r"</td><td></td><td>100\.0 <small>100–100</small></td>", page)
    assert re.search(
        r'<tr class="main"><td>gender</td><td>50</td><td>100\.0 <small>100–100</small></td><td>52\.0', page
    )
    path = tmp_path / "copy" / "eval.json"
    before = json.loads(path.read_text())
    for split in before["splits"].values():
        for each in (split, *split["by"].values()):
            del each["attributes"]
    path.write_text(json.dumps(before))
    again = Run.open(str(tmp_path / "copy"))
    assert again.evaluated == before
    assert "Which groups" not in Path(report(again)).read_text()
    path.write_text(json.dumps(before).replace('"lines"', '"attributes": {"sex": {"chance": "high"}}, "lines"', 1))
    with pytest.raises(V2FError, match=r"eval\.json: it is damaged"):
        _ = Run.open(str(tmp_path / "copy")).evaluated


def test_a_comparison_shows_groups_of_the_same_people_and_tests_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("copy", "constant"):
        measured(tmp_path, kind)
    runs = [str(tmp_path / "copy"), str(tmp_path / "constant")]
    found = comparison(runs, str(tmp_path / "both.html"))
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"gender: agreement, % │ 100\.0 \(100-100\), chance 52\.0 │ 60\.0 \(\d+-\d+\), chance 60\.0", said)
    page = (tmp_path / "both.html").read_text()
    assert "m (20): R@10, %" in page
    assert "India (8): R@10, %&thinsp;*" in page
    assert not [each for each in found.outcomes if "agreement" in each.metric.key]
    make_data(tmp_path / "other" / "data", {"test": range(30)}, about=about)
    measured(tmp_path / "other", "constant")
    others = comparison([runs[0], str(tmp_path / "other" / "constant")], str(tmp_path / "others.html"))
    assert others.groups("test") is None


def test_a_model_card_tells_of_groups_of_real_people_that_are_not_small(tmp_path: Path) -> None:
    about_run = {"metrics": {}, "fingerprint": "f", "step": 1}
    split = measured(tmp_path)
    card = "\n".join(modelcard._numbers(about_run, {"splits": {"test": split}}))
    assert "| gender: f | 30 | 100.0 % | 100.0 % | 60.0 % |" in card
    assert "Ireland" in card
    assert "India" not in card
    synthetic = measured(tmp_path / "synthetic", synthetic=True)
    assert "Groups of" not in "\n".join(modelcard._numbers(about_run, {"splits": {"test": synthetic}}))


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_the_metadata_says_changes_nothing_that_a_system_reads(
    name: str, run_values: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """It is in the samples; a system that read it would learn from it. The labels that a system is told to read do not
    count."""
    factors = {"face": dict.fromkeys(FACE, 0.0), "voice": dict.fromkeys(VOICE, 0.0)}
    labels = {"glasses": "none", "hair": "brown", "factors": factors}
    system = build_system(build(RunConfig, run_values(name), "test"))
    read = []
    for folder, said in (("one", about), ("other", lambda person: {"gender": sex(49 - person), "nationality": "USA"})):
        dataset = make_data(tmp_path / folder, {"train": range(8)}, about=lambda person, own=said: own(person) | labels)
        dataset = with_codes(dataset, str(tmp_path / f"{folder}-codes"))
        (batch,) = read_split(dataset.split("train"), system.transforms(), 16)
        read.append(batch)
    one, other = read
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one if key != "key")
