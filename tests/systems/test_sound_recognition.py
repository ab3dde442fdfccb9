"""Sound recognition: what it hears of a sound, what it refuses, and that it learns the classes of sounding things."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from v2f.config import build
from v2f.data.transforms import Waveform
from v2f.errors import V2FError
from v2f.evaluation.evaluate import evaluate
from v2f.prepare.pack import load_recipe, pack
from v2f.roles import SoundReader
from v2f.runs.config import RunConfig, load_config
from v2f.runs.run import Run, build_system
from v2f.systems.sound_recognition import SoundRecognition
from v2f.training.trainer import fit

REPOSITORY = Path(__file__).parents[2]
Values = Callable[..., dict[str, Any]]


def test_loudness_says_nothing_and_the_rate_is_that_of_the_spectrum(run_values: Values) -> None:
    values = run_values("sound_recognition")
    system = build_system(build(RunConfig, values, "test")).eval()
    assert isinstance(system, SoundRecognition)
    assert isinstance(system, SoundReader)
    assert system.transforms()["wav"] == Waveform(0.4, 4000)
    wav_BT = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (3, 1600)).astype(np.float32))
    one, other = system.read(wav_BT), system.read(0.5 * wav_BT)
    for label in ("glasses", "hair"):
        torch.testing.assert_close(one.scores[label], other.scores[label], rtol=1e-3, atol=1e-4)
    assert one.factors.shape == (3, 6)
    assert one.features.shape == (3, system.backbone.features)
    values["system"] |= {"seconds": 0.05}
    with pytest.raises(V2FError, match=r"seconds is 0\.05, less than front\.window, 64 ms"):
        build(RunConfig, values, "test")


@pytest.mark.slow
def test_it_learns_the_classes_of_sounding_things_from_a_few(tmp_path: Path) -> None:
    some = ["train.things=160", "train.takes=1", "valid.things=8", "test.things=60", "test.takes=1", "seen.things=0"]
    data = str(tmp_path / "things")
    pack(load_recipe(str(REPOSITORY / "shards/sounding-things.yaml"), [*(f"things.{e}" for e in some), f"out={data}"]))
    small = [f"data.path={data}", f"out={tmp_path / 'run'}", "train.steps=60", "train.threads=1", "data.workers=0"]
    small += ["tracking.uri=null", "system.ema=null", "train.validate_samples=8", "data.window=8", "data.partitions=4"]
    small += ["system.optimizer.schedule.warmup=160"]
    folder = fit(load_config(str(REPOSITORY / "launch/recipes/sound-classifier.yaml"), small))
    (split,) = evaluate(Run.open(folder), device="cpu", progress=False)["splits"].values()
    line = split["by"]["labels"]["lines"]["heard"]
    assert line["accuracy"]["value"] > 0.9
    assert split["classes"] == {"class": ["bark", "meow", "bell", "engine"]}
    assert split["correlations"]["pitch"] > 0.3
