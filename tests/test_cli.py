"""The command line: complete help, one clear line for a mistake, a traceback only with --debug."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from v2f import cli
from v2f.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent
VERBS = [name.split() for name in cli.VERBS]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_the_help_of_every_verb_explains_every_argument(verb, capsys):
    with pytest.raises(SystemExit) as left:
        main([*verb, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    usage, _, rest = text.partition("\n\n")
    for word in usage.replace("[", " ").replace("]", " ").split():
        if word.isupper() and len(word) > 2:
            assert word in rest, f"{word} is not explained"
    lines = rest.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.strip().startswith("--") and line.strip() != "--debug":  # a long option has its help on the next line
            assert "  " in line.strip() or following.startswith(" " * 20), line


def test_the_main_help_names_every_verb(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(verb[0] in text for verb in VERBS)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml: cannot read this configuration"),
        (["eval", "nowhere"], "nowhere: no run there"),
        (["generate", "nowhere", "voice.wav", "-o", "face.png"], "nowhere: no run there"),
        (["shards", "pack", "nowhere.yaml"], "nowhere.yaml: cannot read this configuration"),
        (["shards", "pack", "nowhere.yaml", "--part", "0/2"], "nowhere.yaml: cannot read this configuration"),
        (["shards", "finalize", "nowhere.yaml"], "nowhere.yaml: cannot read this configuration"),
        (["shards", "index", "nowhere.tar", "-o", "new"], "nowhere.tar"),
        (["shards", "verify", "nowhere"], "nowhere: no data set here"),
        (["shards", "stats", "nowhere"], "nowhere: no data set here"),
        (["shards", "show", "nowhere"], "nowhere: no data set here"),
        (["shards", "remove", "nowhere", "--identity", "ada"], "nowhere: no data set here"),
        (["shards", "precompute", "nowhere", "codes.net=stand_in", "--out", "new"], "nowhere: no data set here"),
        (["report", "nowhere"], "nowhere: no run there"),
        (["compare", "nowhere"], "a comparison needs at least two runs, got nowhere"),
        (["compare", "nowhere", "there", "-o", "x.html"], "nowhere: no run there"),
        (["compare", "nowhere", "there", "-o", "x.png"], "x.png: the comparison is written as a page"),
        (["weights", "table", "nowhere.yaml"], "nowhere.yaml: cannot read this configuration"),
        (["weights", "convert", "nowhere.pkl", "out.safetensors"], "nowhere.pkl: cannot"),
        (["weights", "mirror", "somewhere", "nowhere.yaml"], "nowhere.yaml: cannot read this configuration"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(arguments, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a lease makes the folder of the new data set
    assert main(arguments) == (78 if arguments[0] == "train" else 1)  # a scheduler must know that it would happen again
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_debug_shows_where_it_happened():
    from v2f.errors import V2FError

    with pytest.raises(V2FError):
        main(["eval", "nowhere", "--debug"])


def test_a_defect_is_one_line_too(monkeypatch, capsys):
    from v2f.runs import config

    monkeypatch.setattr(config, "load_config", lambda *_: 1 / 0)
    assert main(["train", "--config", "x.yaml"]) == 1
    error = capsys.readouterr().err
    assert error == "v2f: unexpected ZeroDivisionError: division by zero (run again with --debug for the traceback)\n"


def test_a_wrong_key_on_the_command_line_names_the_nearest(run_values, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(run_values()))
    assert main(["train", "--config", str(recipe), "train.step=3"]) == 78
    assert "unknown key 'train.step'; did you mean 'train.steps'?" in capsys.readouterr().err
    assert main(["train", "--config", str(recipe), "system.losses.lpip=3"]) == 78
    assert (
        "recipe.yaml with overrides: unknown key 'system.losses.lpip'; did you mean 'system.losses.lpips'?"
        in capsys.readouterr().err
    )


def test_overrides_may_stand_before_and_behind_options(tmp_path, capsys):
    pack = ["shards", "pack", str(REPOSITORY / "shards" / "quickstart.yaml"), f"out={tmp_path}/d"]
    assert main([*pack, "--part", "0/2", "synthetic.hats=3"]) == 1
    assert "unknown key 'synthetic.hats'" in capsys.readouterr().err
    for others in (["extra"], ["--extra=1"], ["a=1", "--extra"]):
        with pytest.raises(SystemExit):
            main([*pack, "--part", "0/2", *others])
        assert "unrecognized arguments" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["shards", "verify", "nowhere", "a=1"])


def test_every_recipe_that_ships_is_valid():
    from v2f.runs.config import load_config

    recipes = sorted((REPOSITORY / "launch" / "recipes").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        assert load_config(str(recipe)).name == recipe.stem


def test_as_a_script_it_shadows_nobody(tmp_path):
    """`import evaluate` and `import config` from v2f/train.py must not find the package's own files."""
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import importlib.util, runpy, sys\n"
        f"sys.path.insert(0, {str(REPOSITORY / 'v2f')!r})\n"
        f"sys.argv = [{str(REPOSITORY / 'v2f' / 'train.py')!r}, '--config', 'nowhere.yaml']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as left:\n    print(left.code, importlib.util.find_spec('metrics'))\n"
    )
    done = subprocess.run(
        [sys.executable, str(probe)], capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""}
    )
    assert done.stdout.strip() == "78 None", done.stderr
