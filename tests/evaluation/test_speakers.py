"""The protocol of speaker recognition, on systems whose numbers are known: trials drawn and listed, classes, notes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from fakes import FULL, RATE, SECONDS, FakeSystem, make_data, make_run
from torch import Tensor

from v2f.cli import main
from v2f.data.manifest import Dataset, open_dataset
from v2f.data.transforms import PersonNumber, Transform, Waveform
from v2f.errors import V2FError
from v2f.evaluation.compare import compare
from v2f.evaluation.evaluate import evaluate
from v2f.evaluation.subjects import gather
from v2f.evaluation.trials import read_trials
from v2f.runs.evaluated import Evaluated
from v2f.runs.run import Run
from v2f.storage.records import problem_of
from v2f.system import Embedding, Kind, Recognizer, Sound, SystemConfig
from v2f.systems import SYSTEMS
from v2f.web.comparison import comparison
from v2f.web.report import report

PEOPLE = {"train": range(20), "seen": range(10), "test": range(30, 50)}


class Listener(Recognizer):
    """``copy``: a direction for each voice level, and its person's class; ``constant``: the same for every voice;
    ``pairs``: two people in a row share a direction."""

    protocol = "speakers"

    class Config(SystemConfig):
        name: Literal["fake"] = "fake"
        kind: Literal["copy", "constant", "pairs"] = "copy"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.kind = config.kind

    def phases(self) -> list[Any]:
        return []

    def loss(self, phase: str, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        raise AssertionError("nothing is trained here")

    def meters(self, batches: Any) -> dict[str, float]:
        raise AssertionError("nothing is trained here")

    def transforms(self) -> dict[str, Transform]:
        return {"wav": Waveform(SECONDS, RATE), "person": PersonNumber()}

    def asks(self) -> dict[str, Kind]:
        return {"wav": Sound(RATE, SECONDS, voice=True)}

    def makes(self) -> dict[str, Kind]:
        return {"embedding": Embedding(FULL)}

    def people(self, wav_BT: Tensor) -> Tensor:
        person_B = (wav_BT.mean(1) * FULL).round().long() - 1
        return {"copy": person_B, "constant": 0 * person_B, "pairs": person_B // 2}[self.kind]

    def sample(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"embedding": torch.eye(FULL)[self.people(batch["wav"])]}

    def scores(self, wav_BT: Tensor) -> Tensor:
        return torch.eye(FULL)[self.people(wav_BT)][:, : len(PEOPLE["train"])]


@pytest.fixture(autouse=True)
def _listener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SYSTEMS, "fake", Listener)


Made = Callable[..., Run]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A run of a listener on a data set that it was trained on."""

    def make(
        name: str = "run", kind: str = "copy", people: dict[str, Sequence[int]] | None = None, clips: int = 3
    ) -> Run:
        root = tmp_path / "data"
        dataset = open_dataset(str(root)) if root.exists() else make_data(root, people or PEOPLE, clips=clips)
        run, _ = make_run(tmp_path / name, root, kind)
        (tmp_path / name / "run.json").write_text(json.dumps({"fingerprint": dataset.fingerprint}))
        return Run.open(run.path)

    return make


def measured(run: Run, **options: Any) -> dict[str, Any]:
    assert isinstance(run.config.system, Listener.Config)
    options = {"system": Listener(run.config.system).eval(), "progress": False, "device": "cpu"} | options
    found = evaluate(run, **options)
    assert problem_of(Evaluated, found) is None
    return found


def lines_of(split: dict[str, Any]) -> dict[str, Any]:
    return {key: value for by in split["by"].values() for key, value in by["lines"]["speaker"].items()}


# ------------------------------------------------------------------------------------------------ drawn trials


def test_a_system_that_knows_everybody_makes_no_error(made: Made) -> None:
    splits = measured(made())["splits"]
    assert list(splits) == ["test", "seen"]
    exact = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert lines_of(splits["test"]) == {"eer": exact, "min_dcf_0.01": exact, "min_dcf_0.05": exact}
    assert splits["test"]["trials"] == {"same": 20 * 3, "different": 60 * 57 // 2, "list": None}
    assert (splits["test"]["people"], splits["test"]["clips"]) == (20, 60)
    assert lines_of(splits["seen"])["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert splits["seen"]["chance"] == {"eer": 0.5, "min_dcf_0.01": 1.0, "min_dcf_0.05": 1.0, "accuracy": 1 / 20}
    assert [split["verdict"] for split in splits.values()] == [None, None]


def test_one_embedding_for_every_voice_is_chance_and_said(made: Made) -> None:
    splits = measured(made(kind="constant"))["splits"]
    numbers = lines_of(splits["test"])
    assert {key: value["value"] for key, value in numbers.items()} == {"eer": 0.5, "min_dcf_0.01": 1, "min_dcf_0.05": 1}
    assert "do not tell people apart: the equal error rate is 50 %" in splits["test"]["verdict"]
    assert (
        lines_of(splits["seen"])["accuracy"]["value"] == 1 / 10
    )  # of ten people, one is the class that is always given


def test_two_people_with_one_embedding_give_the_error_that_follows(made: Made) -> None:
    numbers = lines_of(measured(made(kind="pairs"))["splits"]["test"])
    share = 10 * 9 / (60 * 57 / 2)  # of the different-person trials, those within a pair
    assert numbers["min_dcf_0.05"]["value"] == pytest.approx(19 * share)
    assert numbers["eer"]["value"] == pytest.approx(share / (1 + share))  # between (0, share) and (1, 0)
    assert numbers["eer"]["low"] < numbers["eer"]["value"] < numbers["eer"]["high"]


def test_the_tables_have_chance_and_intervals(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    measured(made(kind="pairs"), progress=True)
    printed = " ".join(capsys.readouterr().out.split())
    assert "60 same-person trials, 1,710 of different people" in printed
    assert "EER, % " in printed
    assert " to " in printed
    assert "chance │ 50.00 │ 1.000 │ 1.000" in printed
    assert "no referee" not in printed


def test_one_clip_of_each_person_verifies_nothing_but_identifies(made: Made) -> None:
    splits = measured(made(clips=1))["splits"]
    assert set(lines_of(splits["test"]).values()) == {None}
    assert splits["test"]["notes"] == ["there are no two clips of the same person, so nothing is verified"]
    assert splits["test"]["clips"] == 20
    assert lines_of(splits["seen"])["accuracy"]["value"] == 1


def test_one_person_alone_is_not_verified(made: Made) -> None:
    test = measured(made(people={"train": range(2), "test": [7]}))["splits"]["test"]
    assert test["notes"] == ["there are no two clips of different people, so nothing is verified"]


def test_a_clip_that_cannot_be_used_takes_its_trials_along(made: Made, tmp_path: Path) -> None:
    run = made()
    dataset = open_dataset(str(tmp_path / "data"))
    sample = dataset.split("test").first + 4
    with open(dataset.shard_path(sample), "r+b") as file:
        file.seek(int(dataset.index.offset[sample]) + 700)
        file.write(b"\xff\x00\xff")
    test = measured(run)["splits"]["test"]
    assert test["left_out"]["samples"] == 1
    assert test["clips"] == 59
    assert test["trials"] == {"same": 60 - 2, "different": 60 * 57 // 2 - 57, "list": None}
    assert test["notes"] == ["59 trials are left out, because a clip of theirs cannot be used"]
    assert lines_of(test)["eer"]["value"] == 0


def test_people_of_other_data_have_no_class(made: Made, tmp_path: Path) -> None:
    run = made()
    make_data(tmp_path / "other", PEOPLE, clips=2)
    seen = measured(run, data=str(tmp_path / "other"))["splits"]["seen"]
    assert list(seen["by"]) == ["trials"]
    assert seen["notes"] == [f"nobody is identified: {tmp_path}/other is not the data set that the run was trained on"]


def test_the_limit_is_of_samples(made: Made) -> None:
    splits = measured(made(), limit=9)["splits"]
    assert [(split["clips"], split["people"]) for split in splits.values()] == [(9, 3), (9, 3)]


def test_a_system_that_makes_no_embedding_of_a_voice_is_one_line(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Listener, "makes", lambda self: {})
    with pytest.raises(V2FError, match="no embedding of a voice: this system asks for wav"):
        measured(made())


# ------------------------------------------------------------------------------------------------ listed trials


def listed(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "trials.txt"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


LINES = (
    "1 test/030/0.wav test/030/1.wav",  # the keys of these data are test-030-0, ...
    "0 wav/test/030/0.wav test-031-1",
    "",
    "0 test/031/1.m4a test/032/2",
)


def test_a_list_replaces_the_trials_of_the_split(made: Made, tmp_path: Path) -> None:
    path = listed(tmp_path, *LINES)
    splits = measured(made(), trials=path)["splits"]
    test = splits["test"]
    assert (test["trials"]["same"], test["trials"]["different"]) == (1, 2)
    assert len(test["trials"]["list"]) == 64
    assert (test["clips"], test["people"]) == (4, 3)
    assert lines_of(test)["eer"]["value"] == 0
    assert test["notes"] == []
    assert splits["seen"]["trials"]["list"] is None


def test_clips_that_are_not_there_are_counted_and_people_of_the_training_named(made: Made, tmp_path: Path) -> None:
    path = listed(tmp_path, *LINES, "0 test/030/0.wav test/999/0.wav", "0 train/001/0.wav test/030/1.wav")
    test = measured(made(), trials=path)["splits"]["test"]
    assert test["trials"]["different"] == 3
    missing, trained = test["notes"]
    assert missing == (
        f"1 of the 5 trials in {path} are left out: {tmp_path}/data does not have their clips, the first in line 5: "
        "test/999/0.wav"
    )
    assert trained == f"1 of the 4 people in {path} were in training"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("2 test/030/0.wav test/030/1.wav", "line 2 is no trial; write `1 CLIP CLIP`"),
        ("1 test/030/0.wav", "line 2 is no trial"),
        ("1 a b c", "line 2 is no trial"),
        ("1 test/030/0.wav test/031/0.wav", "line 2 says 1, but its clips are of id030 and id031 in "),
        ("0 test/030/0.wav test/030/1.wav", "line 2 says 0, but its clips are of id030 and id030 in "),
    ],
)
def test_a_wrong_line_is_one_error_with_its_number(made: Made, tmp_path: Path, line: str, why: str) -> None:
    path = listed(tmp_path, LINES[0], line)
    with pytest.raises(V2FError, match=why) as caught:
        measured(made(), trials=path)
    assert str(caught.value).startswith(path)


def test_a_list_of_other_data_is_an_error(made: Made, tmp_path: Path) -> None:
    made()
    dataset: Dataset = open_dataset(str(tmp_path / "data"))
    with pytest.raises(V2FError, match="has the clips of none of its 1 trials"):
        read_trials(listed(tmp_path, "1 id10270/x/00001.wav id10270/y/00002.wav"), dataset)
    with pytest.raises(V2FError, match="nowhere"):
        read_trials(str(tmp_path / "nowhere.txt"), dataset)


def test_the_published_names_are_those_of_the_converters_keys() -> None:
    from v2f.evaluation.trials import _keys
    from v2f.prepare.voxceleb import _CLIP, _key

    name = "id10270/5r0dWxy17C8/00001.wav"
    match = _CLIP.fullmatch(f"vox1_test_wav/wav/{name}")
    assert match is not None
    key = _key("/".join(match.groups()))
    for written in (name, f"wav/{name}", name.removesuffix(".wav"), key):
        assert key in _keys(written)


def test_the_option_is_for_systems_that_recognize_speakers(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = made(), listed(tmp_path, *LINES)
    monkeypatch.setattr(Run, "system", lambda self, **_: Listener(self.config.system).eval())
    assert main(["eval", run.path, "--trials", path]) == 0
    assert "1 same-person trials, 2 of different people" in " ".join(capsys.readouterr().out.split())
    face = FakeSystem(FakeSystem.Config())
    with pytest.raises(V2FError, match="this system recognizes no speakers, so it cannot be measured on a list"):
        evaluate(run, system=face, trials=path, progress=False, device="cpu")
    make_data(tmp_path / "untested", {"train": range(3)})
    with pytest.raises(
        V2FError, match="no split test, so it cannot be measured on a list of trials; leave out --trials"
    ):
        measured(run, data=str(tmp_path / "untested"), trials=path)


# ------------------------------------------------------------------------------------------------ shown, compared


@pytest.fixture
def two(made: Made, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Run]:
    monkeypatch.setattr(Run, "system", lambda self, **_: Listener(self.config.system).eval())
    return made("one"), made("two", "constant")


def test_runs_are_compared_person_by_person(two: tuple[Run, Run], tmp_path: Path) -> None:
    for run in two:
        measured(run)
    found = compare(gather([run.path for run in two]))
    tested = {(each.split, each.metric.key): each for each in found.outcomes if each.p is not None}
    assert {key for split, key in tested if split == "test"} == {"eer", "min_dcf_0.01", "min_dcf_0.05"}
    assert tested["test", "eer"].difference.value == pytest.approx(0.5)
    assert tested["test", "eer"].direction == -1  # the first one is better
    assert tested["seen", "accuracy"].difference.value == pytest.approx(-0.9)
    assert "EER, %: B is above A by 50.00" in tested["test", "eer"].sentence()
    comparison([run.path for run in two], str(tmp_path / "compare.html"))
    page = (tmp_path / "compare.html").read_text()
    assert "minDCF at 0.01" in page
    assert "shows no faces" not in page
    assert "<b>50.00</b>" in page  # chance, and B


def test_other_trials_are_not_compared(two: tuple[Run, Run], tmp_path: Path) -> None:
    lines = ["1 test/030/0 test/030/1", "1 test/031/0 test/031/1", "0 test/030/0 test/031/1", "0 test/032/0 test/031/1"]
    for run, last in zip(two, ("0 test/032/1 test/030/0", "0 test/032/1 test/030/1"), strict=True):
        measured(run, trials=listed(tmp_path, *lines, last))
    found = compare(gather([run.path for run in two]))
    why = {each.why_not for each in found.outcomes if each.split == "test"}
    assert "A and B were measured on different trials" in why


def test_the_report_has_the_numbers_with_interval_and_chance(two: tuple[Run, Run]) -> None:
    run, _ = two
    before = Path(report(run)).read_text()
    assert "Not measured yet" in before
    measured(run)
    page = " ".join(Path(report(run)).read_text().split())
    assert "<td>100.0 <small>100.0 to 100.0</small></td>" in page
    assert "<tr><td>chance</td><td>50.00</td><td>1.000</td><td>1.000</td></tr>" in page
    assert page.count('aria-label="Unseen people: DET curve"') == 1
