"""The files that ship with the code: recipes of runs and data sets, and configurations of accelerate.

    v2f/shipped (in a clone links to launch/ and shards/, in a wheel their copies) --copy--> launch/..., shards/...

After ``v2f recipes copy quickstart``, the commands in the documentation work in any folder as they do in a clone.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from v2f.errors import V2FError
from v2f.storage import local as files

SHIPPED = Path(__file__).parent / "shipped"
_LISTED = ("launch/recipes/*.yaml", "shards/*.yaml", "launch/accelerate/*.yaml")


def shipped() -> list[str]:
    """The paths of all shipped files in the repository; all end with .yaml."""
    return [path.relative_to(SHIPPED).as_posix() for pattern in _LISTED for path in sorted(SHIPPED.glob(pattern))]


def named(name: str) -> list[str]:
    """The shipped paths with a name such as ``quickstart`` (the recipes of a run and its data set), or ``name`` itself
    if it is a shipped path. V2FError if there are none."""
    if name in (all_of_them := shipped()):
        return [name]
    stem = name.removesuffix(".yaml")
    found = [path for path in all_of_them if Path(path).stem == stem]
    if not found:
        names = ", ".join(dict.fromkeys(Path(path).stem for path in all_of_them))
        raise V2FError(f"no recipe {name!r} ships with v2f; choose one of {names}")
    return found


def text_of(path: str) -> str:
    """The content of a shipped file."""
    return (SHIPPED / path).read_text(encoding="utf-8")


def listing() -> str:
    """A line for each file: its path, whether a run needs weights of yours, and the first sentence of its comment."""
    width = max(map(len, shipped()), default=0)
    return "\n".join(f"{path:{width}}  {_needs(path):12}  {_first_sentence(path)}" for path in shipped())


def copy(name: str, folder: str = ".") -> list[str]:
    """Copy the files with this name into ``folder``, under their paths in the repository; returns the new paths.

    V2FError, before anything is written, if one of them exists already.
    """
    if "://" in folder:
        raise V2FError(f"{folder}: recipes can only be copied to a local folder; name one")
    paths = list(dict.fromkeys(each for path in named(name) for each in (path, *_referred(path))))
    targets = [Path(folder, path) for path in paths]
    for target in targets:
        if os.path.lexists(target):
            raise V2FError(f"{target}: it exists already and is not overwritten; move it, or choose another folder")
    for path, target in zip(paths, targets, strict=True):
        with files.explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "x", encoding="utf-8") as file:
                file.write(text_of(path))
    return [str(target) for target in targets]


def hint(path: str | os.PathLike[str]) -> str:
    """An addition to the error for a missing recipe: the command that copies the shipped one of this name, or ''."""
    with contextlib.suppress(V2FError):
        name = Path(path).stem
        if named(name):
            return f"; one of that name ships with v2f: `v2f recipes copy {name}`"
    return ""


def _referred(path: str) -> Iterator[str]:
    """The DeepSpeed files that a launcher's file refers to."""
    yield from re.findall(r"launch/deepspeed/[\w-]+\.json", text_of(path))


def _needs(path: str) -> str:
    if not path.startswith("launch/recipes/"):
        return ""
    system = yaml.safe_load(text_of(path))["system"]
    return "your weights" if "path" in {**system, **system.get("frozen", {})} else "no weights"


def _first_sentence(path: str) -> str:
    """The first sentence of the comment at the start of a file."""
    lines: list[str] = []
    for line in text_of(path).splitlines():
        if not line.startswith("# "):
            break
        lines.append(line[2:].strip())
    return re.split(r"(?<=\.)\s", " ".join(lines), maxsplit=1)[0]
