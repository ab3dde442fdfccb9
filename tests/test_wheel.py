"""The wheel: built, installed into a fresh environment, and a tiny quickstart from an empty folder."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from v2f.standins import KINDS

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCE = ("v2f", "launch", "shards", "tests", "pyproject.toml", "README.md", "LICENSE")
# A file of each kind that may lie about in somebody's clone.
PRIVATE = (
    "v2f/.env",
    "v2f/credentials.json",
    "launch/recipes/id_rsa",
    "shards/key.pem",
    "v2f/standins/weights/ffhq.pkl",
)

pytestmark = pytest.mark.slow


def run(*command: str, cwd: Path, **environment: str) -> str:
    """What it prints; without this checkout's modules, and without anything to track."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    done = subprocess.run(command, cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since a build leaves folders in its source."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in SOURCE:
        path = REPOSITORY / name
        if path.is_file():
            shutil.copy(path, source)
        else:
            shutil.copytree(path, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in PRIVATE:
        (source / name).write_text("secret")
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(dist),
        cwd=source,
    )
    (built,) = dist.iterdir()
    return built


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
    def v2f(*words: str) -> str:
        return run(str(installed / "v2f"), *words, cwd=tmp_path, OMP_NUM_THREADS="1")

    python = str(installed / "python")
    said = run(python, "-c", "import v2f.cli, v2f.recipes; print(v2f.__file__, v2f.recipes.SHIPPED)", cwd=tmp_path)
    assert all(Path(place).is_relative_to(installed.parent) for place in said.split())
    for name in ("quickstart", "one-process"):
        v2f("recipes", "copy", name)
    people = ["train.people=24", "valid.people=6", "test.people=6", "seen.people=6", "seconds=0.5"]
    v2f("shards", "pack", "shards/quickstart.yaml", "workers=1", *(f"synthetic.{each}" for each in people))
    small = ["train.steps=4", "train.log_every=2", "train.validate_every=4", "train.validate_samples=6"]
    small += ["train.threads=1", "data.batch=8", "data.window=8", "data.workers=1", "system.seconds=0.5"]
    accelerate = [python, "-m", "accelerate.commands.launch", "--config_file", "launch/accelerate/one-process.yaml"]
    train = ["-m", "v2f.train", "--config", "launch/recipes/quickstart.yaml", "tracking.uri=null", *small]
    run(*accelerate, *train, cwd=tmp_path, OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    v2f("eval", "runs/quickstart")
    v2f("report", "runs/quickstart")
    assert (tmp_path / "runs/quickstart/eval.json").stat().st_size > 100
    assert "<svg" in (tmp_path / "runs/quickstart/report.html").read_text()
