"""What is installed: Python, and the packages that pyproject.toml requires."""

import contextlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from v2f.doctor.findings import Finding, Setup, Step, some

_EXTRAS = {
    "serve": "v2f serve",
    "server": "an MLflow server with a login",
    "transformers": "the voice encoders unispeech_sat and wavlm",
    "dev": "tests",
}
_CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"


def python(setup: Setup) -> Iterator[Step]:
    where = "a virtual environment" if sys.prefix != sys.base_prefix else "no virtual environment"
    about = f"{platform.python_version()}, {where} ({sys.prefix}), {platform.system()} {platform.machine()}"
    if platform.system() != "Linux":
        yield Finding("python", "wrong", about, "run v2f on Linux: it needs Linux's shared memory and signals")
    else:
        yield Finding("python", "ok", about)
    beside = os.path.dirname(sys.executable)
    for program in ("accelerate", "torchrun"):
        found = shutil.which(program)
        if found is None or os.path.realpath(os.path.dirname(found)) != os.path.realpath(beside):
            what = "not on the PATH" if found is None else f"the one on the PATH, {found}, is of another environment"
            yield Finding("python", "look", f"{program}: {what}", f"source {sys.prefix}/bin/activate")


def packages(
    setup: Setup,
    *,
    version: Callable[[str], str] = metadata.version,
    requires: Sequence[str] | None = None,
    constraints: Path = _CONSTRAINTS,
) -> Iterator[Step]:
    """The requirements of pyproject.toml against what is installed; in a checkout, also the pinned versions."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    if requires is None:
        try:
            requires = metadata.requires("v2f") or []
        except metadata.PackageNotFoundError:
            yield Finding(
                "packages", "wrong", "v2f can be imported, but is not installed", "pip install -e . (or make check)"
            )
            return
    wanted: dict[str, list[Requirement]] = {"": []}
    for requirement in map(Requirement, requires):
        for extra in ("", *_EXTRAS):
            marker = requirement.marker
            if marker is None or marker.evaluate({"extra": extra}):
                wanted.setdefault(extra, []).append(requirement)
                break
    wrong = [text for text in (_unmet(each, version) for each in wanted[""]) if text]
    if wrong:
        yield Finding(
            "packages",
            "wrong",
            "; ".join(wrong),
            "install what pyproject.toml requires: make check, or pip install -e .",
        )
    else:
        names = ("torch", "accelerate", "deepspeed", "facenet-pytorch", "mlflow")
        yield Finding("packages", "ok", ", ".join(f"{name} {version(name)}" for name in names))
    for extra, what in _EXTRAS.items():
        unmet = [(each, text) for each in wanted.get(extra, []) if (text := _unmet(each, version))]
        absent = [each.name for each, text in unmet if text.endswith("is missing")]
        other = [text for each, text in unmet if each.name not in absent]
        if other:
            yield Finding(
                "packages", "look", f"[{extra}], for {what}: {'; '.join(other)}", f"pip install -e '.[{extra}]'"
            )
        elif absent:
            found = f"[{extra}], for {what}: not installed ({', '.join(absent)}); only needed for that"
            yield Finding("packages", "ok", found, f"pip install -e '.[{extra}]' installs it")
    if constraints.is_file() and sys.version_info[:2] == (3, 11):
        pinned = [line.split("==") for line in constraints.read_text().split() if "==" in line]
        differ = []
        for name, pin in pinned:
            with contextlib.suppress(metadata.PackageNotFoundError):
                if version(name).partition("+")[0] != pin.partition("+")[0]:
                    differ.append(f"{canonicalize_name(name)} {version(name)} (tested: {pin})")
        if differ:
            yield Finding(
                "packages",
                "look",
                f"{len(differ)} of {len(pinned)} are not the versions that CI tests: {some(differ)}",
                "pip install -c constraints.txt -e '.[dev]' if something behaves oddly",
            )


def _unmet(requirement: Any, version: Callable[[str], str]) -> str:
    """Why a requirement is not met; empty if it is."""
    try:
        found = version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    if requirement.specifier.contains(found, prereleases=True):
        return ""
    return f"{requirement.name} {found} is installed, {requirement.name}{requirement.specifier} is needed"
