"""Synthetic data sets for the benchmarks."""

import contextlib
import sys
from pathlib import Path

from v2f.prepare.pack import load_recipe, pack

REPOSITORY = Path(__file__).resolve().parent.parent


def packed(folder: Path, people: int, seconds: float, size: int = 64, photo: str = "png") -> str:
    """One clip of each of so many people in the split train, eight more in each of the others; returns the folder."""
    options = {"train.people": people, "valid.people": 8, "test.people": 8, "seen.people": 8, "seconds": seconds}
    options |= {"train.clips": 1, "size": size, "photo": photo}
    overrides = [f"out={folder}", *(f"synthetic.{name}={value}" for name, value in options.items())]
    with contextlib.redirect_stdout(sys.stderr):
        pack(load_recipe(str(REPOSITORY / "shards" / "quickstart.yaml"), overrides))
    return str(folder)
