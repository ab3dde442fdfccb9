"""Paths and addresses as users write them, in every key and argument that takes one."""

import argparse
from pathlib import Path
from typing import Any, get_args

import pytest

from v2f import cli
from v2f.config import Config, Place
from v2f.errors import V2FError
from v2f.prepare.pack import PackConfig
from v2f.prepare.precompute import PrecomputeConfig
from v2f.runs.config import RunConfig, load_config
from v2f.storage.address import argument, place
from v2f.systems import SYSTEMS


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("s3:/lab/x", r"two slashes after the colon: s3://lab/x; a folder of this name is \./s3:/lab/x"),
        ("S3:lab/x", "two slashes after the colon: s3://lab/x"),
        ("file:/x", "two slashes after the colon: file:///x"),
        ("gs:/lab", "two slashes after the colon: gs://lab"),
        ("file://x/y", "a local file has three slashes: file:///x/y"),
        ("s3:///x", "it names no bucket; use s3://bucket/x"),
        ("s3://", "it names no bucket"),
        ("~nobody-of-this-name/x", "there is no home folder ~nobody-of-this-name; a file of this name is ./~nobody"),
        ("$HOME/x", r"\$HOME is not expanded here"),
        ("/scratch/${USER}/x", r"\$\{USER\} is not expanded here"),
        ("", "at least one character"),
        ("  ", "at least one character"),
        ("a\0b", "no NUL"),
    ],
)
def test_what_would_be_taken_for_an_odd_folder_is_refused(text, told):
    with pytest.raises(ValueError, match=told):
        place(text)
    with pytest.raises(argparse.ArgumentTypeError, match=told):
        argument(text)


def test_home_is_filled_in_and_addresses_are_made_alike(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert place("~/x") == "/home/ada/x"
    assert place("~") == "/home/ada"
    for text, meant in (("S3://Lab/X", "s3://Lab/X"), ("file:///a b", "/a b"), ("File://localhost/a", "/a")):
        assert place(text) == meant
    for text in ("x", "/x/~/y", "./~/x", "a:b", "try #2", "$5.wav", "a$b/c", "memory://b/x", "sqlite:////x.db", "x "):
        assert place(text) == text


def test_a_file_that_has_such_a_name_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("$HOME").touch()
    Path("s3:").mkdir()
    Path("s3:/x").touch()
    assert [place("$HOME"), place("s3:/x")] == ["$HOME", "s3:/x"]


def _models(annotation: Any) -> set[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        found = {annotation}
        for field in annotation.model_fields.values():
            found |= _models(field.annotation)
        return found
    return {model for each in get_args(annotation) for model in _models(each)}


TELLING = ("path", "out", "file", "csv", "folder", "mtcnn", "videos", "voices", "faces", "meta", "uri")


def test_every_key_that_names_a_place_is_checked():
    models = {model for config in (RunConfig, PackConfig, PrecomputeConfig) for model in _models(config)}
    models |= {model for system in SYSTEMS.values() for model in _models(system.Config)}
    validator = Place.__metadata__[0]
    unchecked, checked = [], 0
    for model in models:
        for name, field in model.model_fields.items():
            if name.split("_")[-1] in TELLING and "str" in str(field.annotation):
                told = validator in field.metadata or str(validator) in str(field.annotation)
                checked += told
                unchecked += [] if told else [f"{model.__name__}.{name}"]
    assert unchecked == []
    assert checked >= 12


def test_a_recipes_key_says_which_address_was_meant():
    recipe = str(Path(__file__).resolve().parents[2] / "launch/recipes/quickstart.yaml")
    with pytest.raises(V2FError, match=r"yaml with overrides: out: an address has two slashes .*: s3://lab/x; "):
        load_config(recipe, ["out=s3:/lab/x"])
    with pytest.raises(V2FError, match=r"data\.path: \$HOME is not expanded here"):
        load_config(recipe, ["data.path=$HOME/x"])
    with pytest.raises(V2FError, match=r"system\.frozen\.path: an address has two slashes"):
        load_config(recipe, ["system.frozen.path=s3:/lab"])
    assert load_config(recipe, ["out=o/try #2"]).folder == "o/try #2"


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--config", "s3:/x"],
        ["eval", "s3:/x"],
        ["eval", "run", "--data", "s3:/x"],
        ["generate", "s3:/x", "v.wav", "-o", "f.png"],
        ["generate", "run", "s3:/x", "-o", "f.png"],
        ["generate", "run", "v.wav", "-o", "s3:/x"],
        ["serve", "s3:/x"],
        ["report", "s3:/x"],
        ["compare", "run", "s3:/x"],
        ["compare", "run", "run", "-o", "s3:/x"],
        ["compare", "run", "run", "--voice", "s3:/x"],
        ["compare", "run", "run", "--data", "s3:/x"],
        ["track", "s3:/x"],
        ["register", "s3:/x"],
        ["checkpoint", "show", "s3:/x"],
        ["checkpoint", "verify", "s3:/x"],
        ["checkpoint", "export", "s3:/x", "-o", "d"],
        ["checkpoint", "export", "run", "-o", "s3:/x"],
        ["shards", "pack", "s3:/x"],
        ["shards", "finalize", "s3:/x"],
        ["shards", "verify", "s3:/x"],
        ["shards", "stats", "s3:/x"],
        ["shards", "stats", "d", "-o", "s3:/x"],
        ["shards", "show", "s3:/x"],
        ["shards", "show", "d", "-o", "s3:/x"],
        ["shards", "precompute", "s3:/x", "--out", "d"],
        ["shards", "precompute", "d", "--out", "s3:/x"],
        ["shards", "precompute", "d", "--out", "e", "--recipe", "s3:/x"],
        ["shards", "remove", "s3:/x", "--identity", "ada"],
        ["weights", "convert", "s3:/x", "o"],
        ["weights", "convert", "p", "s3:/x"],
        ["weights", "mirror", "s3:/x"],
        ["weights", "mirror", "d", "--from", "s3:/x"],
        ["doctor", "--run-config", "s3:/x"],
        ["doctor", "--store", "s3:/x"],
        ["doctor", "--weights", "s3:/x"],
    ],
    ids=" ".join,
)
def test_every_verb_says_which_address_was_meant(command, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(command)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "'s3:/x': an address has two slashes after the colon: s3://x; a folder of this name is ./s3:/x" in error
