"""A small data set of labeled sounds, and a run that codes them."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
from systems.small import SMALL

from v2f.config import build
from v2f.data.encoding import encode
from v2f.data.manifest import Dataset
from v2f.data.shards import write_manifest, write_shard
from v2f.keyed import keyed_rng
from v2f.runs.config import RunConfig
from v2f.training.trainer import fit

CLASSES = ("hiss", "tone")
RATE, SECONDS = 4000, 0.1
SAMPLES = {"train": 16, "valid": 4, "test": 10}


def make_data(root: str, photos: bool = False) -> Dataset:
    """White noise and tones, by turns, two a person; or with ``photos`` pictures without sounds."""
    rows = []
    for split, count in SAMPLES.items():
        samples = []
        for number in range(count):
            rng, label = keyed_rng(0x736F, len(rows), number), CLASSES[number % 2]
            time_T = np.arange(round(SECONDS * RATE)) / RATE
            hiss_T = 0.1 * rng.standard_normal(len(time_T))
            tone_T = 0.4 * np.sin(2 * np.pi * rng.uniform(200, 900) * time_T) + 0.02 * hiss_T
            key, identity = f"{split}-{number}", f"{split}-{number // 2}"
            about: dict[str, Any] = {"identity": identity, "split": split, "source": "test", "extra": {"class": label}}
            photo = [np.zeros((8, 8, 3), np.uint8)] if photos else None
            wav_T = None if photos else (hiss_T if label == "hiss" else tone_T).astype(np.float32)
            samples.append((key, identity, encode(key, wav_T, None if photos else RATE, photo, **about)))
        rows.append(write_shard(root, f"{split}-00000.tar", split, samples))
    return write_manifest(root, rows, {"classes": {"class": list(CLASSES)}})


def run_on(data: str, folder: Path, steps: int = 3, **system: Any) -> str:
    """A run of a few steps."""
    values = {
        "name": "coder",
        "out": str(folder),
        "seed": 3,
        "system": copy.deepcopy(SMALL["vq_audio"]) | {"label": "class"} | system,
        "data": {"path": data, "batch": 8, "workers": 0, "window": 8, "partitions": 4},
        "train": {"steps": steps, "threads": 1, "log_every": 1, "validate_samples": 4},
        "tracking": {"uri": None},
    }
    return fit(build(RunConfig, values, "coder"))
