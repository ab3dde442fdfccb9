"""The recipes that ship: what is listed is what lies there, what is copied is whole, and nothing is overwritten."""

import subprocess
import sys
from pathlib import Path

import pytest

import v2f
from v2f import recipes
from v2f.cli import main
from v2f.runs.config import load_config

REPOSITORY = Path(__file__).resolve().parent.parent


def test_every_recipe_is_listed_with_what_it_is_and_whether_it_needs_weights(capsys):
    assert main(["recipes"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    folders = ("launch/recipes", "shards", "launch/accelerate")
    assert lines.keys() == {f"{each}/{path.name}" for each in folders for path in (REPOSITORY / each).glob("*.yaml")}
    assert lines["shards/quickstart.yaml"].endswith("a small crowd of the synthetic world.")
    for path, line in lines.items():
        assert len(line.split(maxsplit=1)[1]) > 20, f"{path} does not begin with what it is"
        if path.startswith("launch/recipes/"):
            system = load_config(str(REPOSITORY / path)).system
            brought = bool(system.requirements().user_weights)
            assert ("your weights" in line, "no weights" in line) == (brought, not brought), path


def test_a_name_shows_the_run_and_its_data_and_a_path_one_of_them(capsys):
    assert main(["recipes", "show", "quickstart"]) == 0
    both = capsys.readouterr().out
    assert all((REPOSITORY / each / "quickstart.yaml").read_text() in both for each in ("launch/recipes", "shards"))
    assert main(["recipes", "show", "shards/quickstart.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "source: synthetic" in shown
    assert "system:" not in shown


def test_a_copy_lies_where_the_documents_name_it_and_is_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", "quickstart"]) == 0
    assert main(["recipes", "copy", "zero1-8gpu", "else/where"]) == 0  # with DeepSpeed's file, which it names
    copied = ["launch/recipes/quickstart.yaml", "shards/quickstart.yaml"]
    copied += ["else/where/launch/accelerate/zero1-8gpu.yaml", "else/where/launch/deepspeed/zero1.json"]
    assert capsys.readouterr().out.splitlines() == copied
    for path in copied:
        assert Path(path).read_text() == (REPOSITORY / path.removeprefix("else/where/")).read_text()
    assert sorted(str(path) for path in Path().rglob("*") if path.is_file()) == sorted(copied)


@pytest.mark.parametrize("in_the_way", ["file", "link"])
def test_nothing_is_overwritten_and_nothing_is_copied_by_half(in_the_way, tmp_path, capsys):
    there = tmp_path / "shards" / "quickstart.yaml"
    there.parent.mkdir()
    there.write_text("mine: 1\n") if in_the_way == "file" else there.symlink_to("nowhere")
    assert main(["recipes", "copy", "quickstart", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{there}: it exists already" in line
    assert there.is_symlink() or there.read_text() == "mine: 1\n"
    assert not (tmp_path / "launch").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["copy", "quickstrat"], "no recipe 'quickstrat' ships with v2f; choose one of "),
        (["show", "../../pyproject.toml"], "no recipe '../../pyproject.toml' ships"),
        (["copy", "quickstart", "s3://lab/x"], "recipes can only be copied to a local folder"),
        (["copy", "quickstart", "file"], "launch"),
    ],
)
def test_a_mistake_is_one_line(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["recipes", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


@pytest.mark.parametrize(
    "command",
    [["train", "--config", "launch/recipes/pairs.yaml"], ["train", "--config", "pairs"], ["shards", "pack", "pairs"]],
    ids=" ".join,
)
def test_a_recipe_that_is_not_there_but_ships_is_told(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("No such file or directory); one of that name ships with v2f: `v2f recipes copy pairs`")
    assert main([*command[:-1], "mine.yaml"]) != 0
    assert "recipes copy" not in capsys.readouterr().err


def test_the_script_runs_as_a_module_and_the_function_of_its_name_stays_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "v2f.train", "--config", "none.yaml"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (78, 1), done.stderr
    assert "none.yaml: cannot read this configuration" in done.stderr
    assert v2f.train.__module__ == "v2f.api"


def test_what_is_beside_the_package_in_a_clone_is_what_ships():
    assert recipes.SHIPPED.is_relative_to(Path(v2f.__file__).parent)
    for name in ("launch", "shards"):
        assert (recipes.SHIPPED / name).resolve() == REPOSITORY / name
