"""A system, a data set and a run so small that every number of an evaluation is known beforehand.

Person p's voice is a constant level, (p + 1) / 64; the person's picture is a pattern of colored squares that is a
function of p. So a system can read the person off the voice exactly, or ignore it, and nothing is trained.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from v2f.data.augment import Augment
from v2f.data.encoding import encode
from v2f.data.manifest import Dataset
from v2f.data.shards import write_manifest, write_shard
from v2f.data.transforms import Photo, Waveform
from v2f.keyed import keyed_rng
from v2f.runs.run import Run
from v2f.system import Judged, Kind, Optimizer, Phase, Picture, Sound, SystemConfig, Transform
from v2f.systems import SYSTEMS
from v2f.world import world_hash
from v2f.world.people import VERSION, WorldConfig, names

SIZE, RATE, SECONDS = 32, 8000, 0.5
FULL = 64  # voice levels there are


def level(person: int) -> float:
    return (person + 1) / FULL


def portrait(person: int, photo: int = 0) -> np.ndarray:
    """uint8 [SIZE, SIZE, 3]: the person's squares, with a little noise that differs from photo to photo."""
    squares = keyed_rng(1, person).integers(40, 215, size=(4, 4, 3))
    noise = keyed_rng(2, person, photo).integers(-8, 9, size=(SIZE, SIZE, 3)) if photo else 0
    return (np.kron(squares, np.ones((SIZE // 4, SIZE // 4, 1))) + noise).astype(np.uint8)


class FakeSystem(Judged):
    """``copy``: the person's first photo; ``constant``: one face for everyone; ``broken``: not a number."""

    protocol = "faces_of_voices"

    class Config(SystemConfig):
        name: Literal["fake"] = "fake"
        kind: Literal["copy", "constant", "broken"] = "copy"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.kind = config.kind  # type: ignore[attr-defined]
        self.stand_ins = ["identity", "perceptual"]
        projection = keyed_rng(3).normal(size=(3 * 16, 24)).astype(np.float32)
        self.register_buffer("projection", torch.from_numpy(projection))

    def phases(self) -> list[Any]:
        return []

    def loss(self, phase: str, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        raise AssertionError("nothing is trained here")

    def meters(self, batches: Any) -> dict[str, float]:
        raise AssertionError("nothing is trained here")

    def transforms(self) -> dict[str, Transform]:
        return {"wav": Augment(Waveform(SECONDS, RATE), ()), "image": Photo(SIZE)}  # nobody may ask for the class

    def asks(self) -> dict[str, Kind]:
        return {"wav": Sound(RATE, SECONDS, voice=True)}

    def makes(self) -> dict[str, Kind]:
        return {"face": Picture(SIZE)}

    def sample(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        people = (batch["wav"].mean(1) * FULL).round().long() - 1
        if self.kind == "constant":
            people = torch.zeros_like(people)
        pictures = torch.from_numpy(np.stack([portrait(max(0, p)) for p in people.tolist()])).permute(0, 3, 1, 2)
        face = pictures / 127.5 - 1
        return {"face": face * float("nan") if self.kind == "broken" else face}

    def embed(self, img_BCHW: Tensor) -> Tensor:
        rows = torch.nn.functional.avg_pool2d(img_BCHW, SIZE // 4).flatten(1) @ self.projection
        return torch.nn.functional.normalize(rows)

    def maps(self, img_BCHW: Tensor) -> list[Tensor]:
        return [img_BCHW, torch.nn.functional.avg_pool2d(img_BCHW, SIZE // 4)]


def make_data(
    root: Path,
    people: dict[str, Sequence[int]],
    *,
    clips: int = 2,
    photos: int = 2,
    synthetic: bool = False,
    about: Callable[[int], dict[str, Any]] | None = None,
) -> Dataset:
    """A packed data set of the ``people`` of each split; ``about`` a person: what the JSON of the samples says."""
    rows = []
    for split, chosen in people.items():
        samples = []
        for person in chosen:
            for clip in range(clips):
                wav_T = np.full(round(SECONDS * RATE), level(person), np.float32)
                pictures = [portrait(person, photo) for photo in range(photos)]
                voice = dict(zip(names("voice"), keyed_rng(4, person).normal(size=6).clip(-2, 2).tolist(), strict=True))
                own = keyed_rng(5, person).normal(size=10).clip(-2, 2).tolist()  # what the voice does not tell
                face = dict(zip(names("face"), [*voice.values(), *own], strict=True))
                extra = {"factors": {"voice": voice, "face": face}} if synthetic else about(person) if about else {}
                key, identity = f"{split}-{person:03d}-{clip}", f"id{person:03d}"
                members = encode(key, wav_T, RATE, pictures, identity=identity, split=split, source="fake", extra=extra)
                samples.append((key, identity, members))
        rows.append(write_shard(str(root), f"{split}-00000.tar", split, samples))
    provenance: dict[str, Any] = {"recipe": {"source": "fake"}}
    if synthetic:  # as `v2f shards pack` writes it
        recipe = {"source": "synthetic", "synthetic": {"world": WorldConfig().model_dump()}}
        provenance = {"recipe": recipe, "world_version": VERSION, "world_hash": world_hash()}
    return write_manifest(str(root), rows, provenance)


def make_run(root: Path, data: Path, kind: str = "copy") -> tuple[Run, FakeSystem]:
    """A run's folder of the fake system, and the system. Needs ``SYSTEMS["fake"]`` (see :func:`register`)."""
    root.mkdir(parents=True, exist_ok=True)
    config = {
        "name": "fake-run",
        "system": {"name": "fake", "kind": kind},
        "data": {"path": str(data), "batch": 8},
        "train": {"steps": 1},
    }
    (root / "config.yaml").write_text(json.dumps(config))
    (root / "run.json").write_text(json.dumps({"fingerprint": "f" * 64, "code": "v2f-test", "device": "cpu"}))
    run = Run.open(str(root))
    return run, FakeSystem(run.config.system).eval()  # type: ignore[arg-type]


def register(monkeypatch: Any) -> None:
    """Make ``system: {name: fake}`` a system for one test."""
    monkeypatch.setitem(SYSTEMS, "fake", FakeSystem)


class Plain:
    """A system with one parameter, so that a run of it can be trained and opened."""

    def phases(self) -> list[Phase]:
        return [Phase(name="all", modules={"net": self.net}, optimizer=Optimizer(lr={"net": 1e-3}))]  # type: ignore[attr-defined]

    def loss(self, phase: str, batch: Any, step: int) -> dict[str, Tensor]:
        return {"total": self.net.weight.sum() * batch["weight"].mean()}  # type: ignore[attr-defined]

    def meters(self, batches: Any) -> dict[str, float]:
        return {"nothing": 0.0}
