"""v2f under the lowest and the highest Python of pyproject.toml, as a user gets it: ``make pythons``, a script.

    wheel --> a fresh environment, with what the wheel declares and nothing else --> every module, a quickstart, tests

The versions are the newest that pyproject.toml allows: a release of somebody else's that breaks v2f is seen here. uv
installs, since its cache holds each wheel once for all environments: the second torch with its CUDA takes seconds.
A Python that is not on this machine is named and left out.
"""

import email
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.specifiers import SpecifierSet
from wheels import REPOSITORY, build, copy_source, quickstart, run

UV = str(Path(sys.executable).parent / "uv")
PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
# Where Pythons and the newest packages differ: types and their hints, files, processes, codecs.
TESTS = [f"tests/data/test_{name}.py" for name in ("order", "sample", "manifest", "audio", "loader")]
TESTS += ["tests/test_config.py", "tests/runs/test_checkpoint.py"]
IMPORT_ALL = """
import importlib, pkgutil, v2f
names = [module.name for module in pkgutil.walk_packages(v2f.__path__, "v2f.")]
for name in names: importlib.import_module(name)
print(len(names))
"""


def versions(requires: str) -> list[str]:
    """The minor versions of Python 3 that ``requires-python`` allows, the lowest first.

    Raises:
        ValueError: it allows every later one, so that none is the highest.
    """
    allowed = [f"3.{minor}" for minor in range(100) if SpecifierSet(requires).contains(f"3.{minor}")]
    if "3.99" in allowed:
        raise ValueError(f"requires-python = {requires!r} names no highest Python: add one that is tried, as in <3.14")
    return allowed


def find(version: str, pyenv: Path = PYENV, uv: str = UV) -> str | None:
    """A Python of this minor version that runs: on the PATH, of pyenv, or one that uv knows."""
    known = subprocess.run([uv, "python", "find", "--no-project", version], capture_output=True, text=True).stdout
    for python in (f"python{version}", *map(str, pyenv.glob(f"versions/{version}.*/bin/python")), known.strip()):
        try:  # pyenv puts names on the PATH that run nothing
            ask = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
            said = subprocess.run([python, "-c", ask], capture_output=True, text=True).stdout.split(maxsplit=1)
        except OSError:
            continue
        if said[:1] == [version]:
            return said[1].strip()
    return None


def install(python: str, wheel: Path, environment: Path) -> Path:
    """The programs of a fresh environment with the wheel and what it declares."""
    run(UV, "-q", "venv", "--no-project", "--python", python, str(environment), cwd=wheel.parent)
    pip(environment, "install", str(wheel))
    pip(environment, "check")
    pip(environment, "install", "--dry-run", f"{wheel}[dev]")
    return environment / "bin"


def pip(environment: Path, verb: str, *words: str) -> None:
    run(UV, "-q", "pip", verb, "--python", str(environment), *words, cwd=environment)


def import_all(programs: Path, folder: Path) -> str:
    """The command and every module load, from the empty ``folder``."""
    run(str(programs / "v2f"), "--help", cwd=folder)
    return f"{run(str(programs / 'python'), '-c', IMPORT_ALL, cwd=folder).strip()} modules imported"


def fast_tests(programs: Path, wheel: Path) -> str:
    """A part of the clone's fast tests, with what development needs.

    Another version of Hypothesis draws other examples; only what users install may differ from the clone's tests.
    """
    pip(programs.parent, "install", f"{wheel}[dev]", f"hypothesis=={importlib.metadata.version('hypothesis')}")
    said = run(str(programs / "python"), "-m", "pytest", "-m", "not slow", *TESTS, cwd=REPOSITORY)
    return said.strip().splitlines()[-1]


def main() -> None:
    began = time.monotonic()

    def tell(version: str, what: str) -> None:
        print(f"Python {version}: {what} ({time.monotonic() - began:.0f} s)", flush=True)

    (REPOSITORY / "build").mkdir(exist_ok=True)  # beside .venv, so that uv's cache can be linked, not copied
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "build") as scratch:
        source, dist = Path(scratch, "source"), Path(scratch, "dist")
        source.mkdir()
        copy_source(source)
        wheel = build(source, dist)
        (about,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
        allowed = versions(email.message_from_bytes(zipfile.ZipFile(wheel).read(about))["Requires-Python"])
        installed: list[tuple[str, Path]] = []
        for version in (allowed[0], allowed[-1]):
            if python := find(version):
                installed.append((version, install(python, wheel, Path(scratch, version))))
                tell(version, f"{wheel.name} and what it declares installed in a fresh environment of {python}")
            else:
                tell(version, "not tried, since it is neither on the PATH nor known to pyenv or uv")

        def try_out(number: int) -> None:
            version, programs = installed[number]
            folder = Path(scratch, f"empty-{version}")
            folder.mkdir()
            tell(version, import_all(programs, folder))
            if number == 0:
                quickstart(programs, folder)
                tell(version, "a tiny quickstart ran from an empty folder")
            if number == len(installed) - 1:  # the newest packages are for the highest Python
                tell(version, f"tests: {fast_tests(programs, wheel)}")

        with ThreadPoolExecutor() as pool:  # one core each
            list(pool.map(try_out, range(len(installed))))


if __name__ == "__main__":
    main()
