"""A run's folder under s3://: what grows is never older than the checkpoint, wherever the run goes on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from v2f.runs.folder import SCRATCH, RunFolder


@pytest.fixture
def on(s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], RunFolder]:
    def folder(machine: str) -> RunFolder:
        monkeypatch.setenv(SCRATCH, str(tmp_path / machine))
        return RunFolder(f"{s3_root}/run")

    return folder


def grow(folder: RunFolder, attempt: str) -> None:
    with (folder.local / "starts.jsonl").open("a") as file:
        file.write(attempt + "\n")


def starts(folder: RunFolder) -> list[str]:
    path = folder.local / "starts.jsonl"
    return path.read_text().split() if path.exists() else []


def started(folder: RunFolder, attempt: str) -> RunFolder:
    folder.fetch(attempt)
    grow(folder, attempt)
    return folder


def test_a_machine_keeps_what_it_has_beyond_the_last_publication(on) -> None:
    started(on("one"), "a").publish()
    started(on("one"), "b")  # killed before it publishes
    third = started(on("one"), "c")
    assert starts(third) == ["a", "b", "c"]
    third.publish()
    assert starts(started(on("another"), "d")) == ["a", "b", "c", "d"]


def test_what_another_machine_has_published_since_wins(on) -> None:
    started(on("one"), "a").publish()
    started(on("another"), "b").publish()
    assert starts(started(on("one"), "c")) == ["a", "b", "c"]


def test_what_was_never_published_does_not_outlive_its_run(on) -> None:
    started(on("one"), "a")
    assert starts(started(on("one"), "b")) == ["b"]
    assert starts(started(on("another"), "c")) == ["c"]


def test_what_was_rolled_back_is_published_with_the_points(on) -> None:
    folder = started(on("one"), "a")
    for name in ("metrics.jsonl", "rolled-back.jsonl"):
        (folder.local / name).write_text(name)
    folder.publish()
    there = started(on("another"), "b")
    assert [(there.local / name).read_text() for name in ("metrics.jsonl", "rolled-back.jsonl")] == [
        "metrics.jsonl",
        "rolled-back.jsonl",
    ]


def test_a_folder_on_a_disk_is_its_own_place(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "run"))
    assert (folder.remote, folder.local) == (False, tmp_path / "run")
    started(folder, "a").publish()
    assert [path.name for path in folder.local.iterdir()] == ["starts.jsonl"]
