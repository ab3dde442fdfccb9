"""One tiny run of the synthetic world, and voices of people whom it has not met."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

Clip = Callable[..., str]


REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A few steps of training: its faces mean nothing, but every part of an answer can be had from it, because there
    are people enough to compare with."""
    from systems.small import SMALL

    from v2f.config import build
    from v2f.prepare.pack import load_recipe, pack
    from v2f.runs.config import RunConfig
    from v2f.training.trainer import fit

    folder = tmp_path_factory.mktemp("page")
    sizes = {"train.people": 12, "valid.people": 24, "test.people": 4, "seen.people": 4, "seconds": 0.5}
    changes = [f"out={folder}/shards", *(f"synthetic.{key}={value}" for key, value in sizes.items())]
    pack(load_recipe(str(REPOSITORY / "shards" / "quickstart.yaml"), changes))
    values = {
        "name": "tiny",
        "out": str(folder / "run"),
        "seed": 3,
        "system": SMALL["voice_styled_face"],
        "data": {"path": f"{folder}/shards", "batch": 8, "workers": 0, "window": 8, "partitions": 4},
        "train": {"steps": 2, "threads": 1, "log_every": 1, "validate_every": 2, "validate_samples": 6},
        "tracking": {"uri": None},
    }
    return fit(build(RunConfig, values, "test"))


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    """Writes a clip of a synthetic voice and gives its path."""
    from v2f.world.voices import render_voices

    def write(name: str = "voice.wav", seconds: float = 3.0, key: int = 7, rate: int = 16000) -> str:
        voice_1V = np.random.default_rng(key).normal(size=(1, 6)).clip(-2, 2)
        wav_1T = render_voices(voice_1V, np.zeros((1, 6)), np.array([key]), seconds, rate)
        soundfile.write(tmp_path / name, wav_1T[0], rate)
        return str(tmp_path / name)

    return write


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Trains the toy of a name for one step and gives its run's folder; the toys are in the table meanwhile."""
    from toys import TOYS
    from toys.data import make_data

    from v2f.config import build
    from v2f.runs.config import RunConfig
    from v2f.systems import SYSTEMS
    from v2f.training.trainer import fit

    folder = tmp_path_factory.mktemp("toys")
    make_data(str(folder / "shards"))

    @functools.cache
    def run(name: str) -> str:
        values = {
            "name": name.replace("_", "-"),
            "out": str(folder / name),
            "seed": 3,
            "system": {"name": name},
            "data": {"path": f"{folder}/shards", "batch": 8, "workers": 0, "window": 8, "partitions": 4},
            "train": {"steps": 1, "threads": 1, "validate_every": 1, "validate_samples": 6},
            "tracking": {"uri": None},
        }
        return fit(build(RunConfig, values, "test"))

    with pytest.MonkeyPatch.context() as patch:
        for name, toy in TOYS.items():
            patch.setitem(SYSTEMS, name, toy)
        yield run
