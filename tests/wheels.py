"""The wheel: built from a copy of the checkout, and a tiny quickstart by an environment that has it."""

import os
import shutil
import subprocess
import sys
import wave
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCE = ("v2f", "launch", "shards", "tests", "pyproject.toml", "README.md", "LICENSE")


# This checkout's modules; where to track; and a fresh environment has no bytecode but what its first programs write.
LEFT_OUT = ("PYTHONPATH", "MLFLOW_TRACKING_URI", "PYTHONDONTWRITEBYTECODE")


def run(*command: str, cwd: Path, **environment: str) -> str:
    """What it prints, in this process's environment without ``LEFT_OUT``."""
    kept = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
    done = subprocess.run(command, cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}{done.stderr[-3000:]}"
    return done.stdout


def copy_source(folder: Path) -> None:
    """What a wheel is built from: a build leaves folders in its source."""
    for name in SOURCE:
        path = REPOSITORY / name
        if path.is_file():
            shutil.copy(path, folder)
        else:
            shutil.copytree(path, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))


def build(source: Path, dist: Path) -> Path:
    """The wheel of the copy in ``source``, written to the empty folder ``dist``; no network is needed."""
    command = ("-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(dist))
    run(sys.executable, *command, cwd=source)
    (built,) = dist.iterdir()
    return built


def quickstart(programs: Path, folder: Path) -> None:
    """Pack, train, evaluate, report and generate in the empty ``folder``, by the ``programs`` of an environment."""

    def v2f(*words: str) -> str:
        return run(str(programs / "v2f"), *words, cwd=folder, OMP_NUM_THREADS="1")

    python = str(programs / "python")
    said = run(python, "-c", "import v2f.cli, v2f.recipes; print(v2f.__file__, v2f.recipes.SHIPPED)", cwd=folder)
    assert all(Path(place).is_relative_to(programs.parent) for place in said.split())
    for name in ("quickstart", "one-process"):
        v2f("recipes", "copy", name)
    people = ["train.people=24", "valid.people=6", "test.people=6", "seen.people=6", "seconds=0.5"]
    v2f("shards", "pack", "shards/quickstart.yaml", "workers=1", *(f"synthetic.{each}" for each in people))
    small = ["train.steps=4", "train.log_every=2", "train.validate_every=4", "train.validate_samples=6"]
    small += ["train.threads=1", "data.batch=8", "data.window=8", "data.workers=1", "system.seconds=0.5"]
    accelerate = [python, "-m", "accelerate.commands.launch", "--config_file", "launch/accelerate/one-process.yaml"]
    train = ["-m", "v2f.train", "--config", "launch/recipes/quickstart.yaml", "tracking.uri=null", *small]
    run(*accelerate, *train, cwd=folder, OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    v2f("eval", "runs/quickstart")
    v2f("report", "runs/quickstart")
    assert (folder / "runs/quickstart/eval.json").stat().st_size > 100
    assert "<svg" in (folder / "runs/quickstart/report.html").read_text()
    with wave.open(str(folder / "voice.wav"), "wb") as voice:
        voice.setparams((1, 2, 16_000, 0, "NONE", ""))
        voice.writeframes(bytes(range(256)) * 125)  # one second of a saw
    v2f("generate", "runs/quickstart", "voice.wav", "-o", "face.png")
    assert (folder / "face.png").read_bytes().startswith(b"\x89PNG")
