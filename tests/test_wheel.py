"""The wheel: built, installed into a fresh environment, and a tiny quickstart from an empty folder.

Without a network, the other packages are those of this environment; ``make pythons`` has those that the wheel asks for.
"""

import sys
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from wheels import REPOSITORY, build, copy_source, quickstart, run

from v2f.standins import KINDS

# A file of each kind that may lie about in somebody's clone.
PRIVATE = (
    "v2f/.env",
    "v2f/credentials.json",
    "launch/recipes/id_rsa",
    "shards/key.pem",
    "v2f/standins/weights/ffhq.pkl",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    copy_source(source)
    for name in PRIVATE:
        (source / name).write_text("secret")
    return build(source, dist)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with the wheel, and with the other packages of this one.

    They are found by their folder, whose own .pth files, such as that of an editable v2f, are not read so.
    """
    root = tmp_path_factory.mktemp("environment")
    venv.create(root, symlinks=True)
    python = str(root / "bin" / "python")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        str(wheel),
        cwd=root,
    )
    (packages,) = root.glob("lib/python*/site-packages")
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    assert others
    (packages / "others.pth").write_text("\n".join(others) + "\n")
    return root / "bin"


def test_it_holds_the_package_its_nets_and_recipes_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    about = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info/"
    inside = {name for name in names if not name.startswith(about)}
    assert {name.split("/")[0] for name in inside} == {"v2f"}
    kinds = {".py", ".pyi", ".typed", ".j2", ".yaml", ".json", ".safetensors"}
    assert {PurePosixPath(name).suffix or PurePosixPath(name).name for name in inside} <= kinds
    assert not [name for name in inside if "test" in name.lower().split("/") or "tests" in name.split("/")]
    assert not inside & set(PRIVATE)
    assert "v2f/py.typed" in inside
    weights = {name for name in inside if name.endswith(".safetensors")}
    assert weights == {f"v2f/standins/weights/{kind}.safetensors" for kind in KINDS}
    modules = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "v2f").rglob("*.py")}
    assert {name for name in inside if name.endswith(".py")} == modules
    shipped = {name.removeprefix("v2f/shipped/") for name in inside if name.startswith("v2f/shipped/")}
    patterns = ("launch/recipes/*.yaml", "launch/accelerate/*.yaml", "launch/deepspeed/*.json", "shards/*.yaml")
    there = {path.relative_to(REPOSITORY).as_posix() for pattern in patterns for path in REPOSITORY.glob(pattern)}
    assert shipped == there


def test_a_tiny_quickstart_runs_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    quickstart(installed, tmp_path)
