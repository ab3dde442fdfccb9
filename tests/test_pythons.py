"""The Pythons that v2f is for: named alike everywhere, and found where they may lie; ``make pythons`` tries them."""

import re
import sys
from pathlib import Path

import pytest
from pythons import find, versions
from wheels import REPOSITORY

PROJECT = (REPOSITORY / "pyproject.toml").read_text()
THIS = f"{sys.version_info.major}.{sys.version_info.minor}"


def program(path: Path, does: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)
    return path


def test_all_that_names_the_pythons_names_the_same() -> None:
    (requires,) = re.findall(r'^requires-python = "(.+)"', PROJECT, re.MULTILINE)
    allowed = versions(requires)
    assert re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT) == allowed
    for name in ("README.md", "Makefile"):
        assert f"Python {allowed[0]} to {allowed[-1]}" in (REPOSITORY / name).read_text(), name
    for tool, lowest in (("ruff", f'target-version = "py{allowed[0].replace(".", "")}"'), ("mypy", f'"{allowed[0]}"')):
        assert lowest in PROJECT.split(f"[tool.{tool}]")[1].split("[tool.")[0], tool


def test_no_python_is_the_highest_where_every_later_one_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"names no highest Python: add one that is tried, as in <3\.14"):
        versions(">=3.10")


def test_a_python_that_runs_is_found_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = str(program(tmp_path / "uv", "exit 2"))
    knows = str(program(tmp_path / "knows" / "uv", f"echo {sys.executable}"))
    program(tmp_path / "shims" / f"python{THIS}", "echo not found >&2; exit 127")  # as pyenv's
    monkeypatch.setenv("PATH", str(tmp_path / "shims"), prepend=":")
    assert find(THIS, tmp_path, silent) is None
    assert find(THIS, tmp_path, knows) == sys.executable
    assert find("3.99", tmp_path, knows) is None  # what uv names is another version
    there = program(tmp_path / "versions" / f"{THIS}.9" / "bin" / "python", f'exec "{sys.executable}" "$@"')
    assert find(THIS, tmp_path, silent) == sys.executable
    there.unlink()
    program(tmp_path / "shims" / f"python{THIS}", f'exec "{sys.executable}" "$@"')
    assert find(THIS, tmp_path, silent) == sys.executable
