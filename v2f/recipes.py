"""What ships beside the code: recipes of runs and of data sets, and accelerate's files, under the repository's paths.

    v2f/shipped (in a clone links to launch/ and shards/, in a wheel their copies) --copy--> launch/..., shards/...

After ``v2f recipes copy quickstart`` the documents' commands run in any folder as they run in a clone.
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
    """Paths of all that ships, as they stand in the repository; all of them end with .yaml."""
    return [path.relative_to(SHIPPED).as_posix() for pattern in _LISTED for path in sorted(SHIPPED.glob(pattern))]


def named(name: str) -> list[str]:
    """The shipped paths of a name such as ``quickstart`` (a run's recipe and its data set's), or the one of a path."""
    if name in (all_of_them := shipped()):
        return [name]
    stem = name.removesuffix(".yaml")
    found = [path for path in all_of_them if Path(path).stem == stem]
    if not found:
        names = ", ".join(dict.fromkeys(Path(path).stem for path in all_of_them))
        raise V2FError(f"no recipe {name!r} ships with v2f, but {names}")
    return found


def text_of(path: str) -> str:
    """What the file of a shipped path holds."""
    return (SHIPPED / path).read_text(encoding="utf-8")


def listing() -> str:
    """A line for each: its path, of a run whether it needs weights that one brings, the first sentence of its file."""
    width = max(map(len, shipped()), default=0)
    return "\n".join(f"{path:{width}}  {_needs(path):12}  {_first_sentence(path)}" for path in shipped())


def copy(name: str, folder: str = ".") -> list[str]:
    """Copy the files of a name below ``folder``, under the repository's paths; the new files' paths.

    V2FError, with nothing written, where one of them is there already.
    """
    if "://" in folder:
        raise V2FError(f"{folder}: recipes are copied into a folder of this machine only")
    paths = list(dict.fromkeys(each for path in named(name) for each in (path, *_referred(path))))
    targets = [Path(folder, path) for path in paths]
    for target in targets:
        if os.path.lexists(target):
            raise V2FError(
                f"{target}: it is there already, and nothing is overwritten; move it, or name another folder"
            )
    for path, target in zip(paths, targets, strict=True):
        with files.explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "x", encoding="utf-8") as file:
                file.write(text_of(path))
    return [str(target) for target in targets]


def hint(path: str | os.PathLike[str]) -> str:
    """What the error of a recipe that is not there adds: the command that copies the one of its name, or nothing."""
    with contextlib.suppress(V2FError):
        name = Path(path).stem
        if named(name):
            return f"; one of that name ships with v2f: `v2f recipes copy {name}`"
    return ""


def _referred(path: str) -> Iterator[str]:
    """What a launcher's file names by its path and cannot do without: DeepSpeed's."""
    yield from re.findall(r"launch/deepspeed/[\w-]+\.json", text_of(path))


def _needs(path: str) -> str:
    if not path.startswith("launch/recipes/"):
        return ""
    frozen = yaml.safe_load(text_of(path))["system"].get("frozen", {})
    return "your weights" if "path" in frozen else "no weights"


def _first_sentence(path: str) -> str:
    """Of the first paragraph of the comment that a file begins with."""
    lines: list[str] = []
    for line in text_of(path).splitlines():
        if not line.startswith("# "):
            break
        lines.append(line[2:].strip())
    return re.split(r"(?<=\.)\s", " ".join(lines), maxsplit=1)[0]
