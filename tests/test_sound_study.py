"""What `make sound` trains, judges and shows: its recipes fit together, and its numbers are right where known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from bench import sound
from bench.siblings import about
from bench.sound import PARTS, Sounds
from v2f.pipeline import PipelineConfig, SoundOfPicture
from v2f.roles import SoundReader
from v2f.runs.config import load_config
from v2f.runs.run import build_system

NAMES = ("bark", "meow", "bell", "engine")


def recipe(name: str) -> Path:
    return sound.REPOSITORY / "launch" / "recipes" / f"{name}.yaml"


def test_every_run_has_its_recipe_and_comes_after_those_it_needs() -> None:
    before: set[str] = set()
    for name, part in {**PARTS, **sound.OTHERS}.items():
        assert load_config(str(recipe(name))).name == name
        assert len(about(recipe(name))) > 20
        assert set(part.needs) <= before
        before.add(name)
    file = yaml.safe_load(sound.pipeline_file({name: f"runs/{name}" for name in PARTS}))
    assert PipelineConfig.model_validate(file).runs.keys() == {"labels", "top", "bottom", "sound"}


@pytest.fixture(scope="module")
def untrained() -> SoundOfPicture:
    """The pipeline of the four recipes, with first weights."""
    file = PipelineConfig.model_validate(yaml.safe_load(sound.pipeline_file({name: name for name in PARTS})))
    systems = {part.key: build_system(load_config(str(recipe(name)))) for name, part in PARTS.items() if part.key}
    return SoundOfPicture(file, systems).eval()


def test_the_recipes_fit_together_and_their_judge_knows_their_labels(untrained: SoundOfPicture) -> None:
    assert untrained.names == NAMES
    judge = build_system(load_config(str(recipe(sound.JUDGE)))).eval()
    assert isinstance(judge, SoundReader)
    assert set(judge.labels[sound.LABEL_NAME]) == set(NAMES)
    img_FCHH = torch.zeros(3, untrained.looks.channels, untrained.looks.size, untrained.looks.size)
    number, share_K = untrained.label_of(img_FCHH)
    assert 0 <= number < 4
    assert float(share_K.sum()) == pytest.approx(1)
    held = sound.heard(judge, iter([(0.1 * torch.randn(6, 7200), torch.tensor([0, 1, 2, 3, 0, 1]))]), NAMES)
    assert held.feature_NP.shape[0] == 6
    assert set(held.said_N.tolist()) <= {0, 1, 2, 3}


def rows(feature_NP: np.ndarray, said: float = 1.0) -> Sounds:
    """Sounds of alternating classes, of which the share ``said`` is named right."""
    class_N = np.arange(len(feature_NP)) % 4
    wrong_N = np.arange(len(feature_NP)) >= said * len(feature_NP)
    wav_NT = np.random.default_rng(len(feature_NP)).random((len(feature_NP), 8)).astype(np.float32)
    return Sounds(class_N, np.where(wrong_N, (class_N + 1) % 4, class_N), feature_NP, wav_NT)


def test_copies_are_near_and_a_different_set_is_far() -> None:
    rng = np.random.default_rng(0)
    train, held = rows(rng.normal(size=(300, 4))), rows(rng.normal(size=(120, 4)))
    new = sound.numbers(rows(rng.normal(size=(120, 4)), 0.75), held, train, NAMES)
    assert new.accuracy == 0.75
    assert new.nearest == pytest.approx(1, abs=0.25)
    assert new.recall > 0.6
    assert new.frechet < 0.2
    copied = sound.numbers(rows(train.feature_NP[:120] + 1e-3), held, train, NAMES)
    assert copied.nearest < 0.05
    far = sound.numbers(rows(rng.normal(size=(120, 4)) + 3), held, train, NAMES)
    assert far.frechet == pytest.approx(4 * 9, rel=0.1)
    assert far.recall < 0.05
    collapsed = sound.numbers(
        rows(np.tile(held.feature_NP[:1], (120, 1)) + 1e-6 * rng.normal(size=(120, 4))), held, train, NAMES
    )
    assert collapsed.recall < 0.05


def test_training_samples_are_compared_with_the_other_ones() -> None:
    train, held = (
        rows(np.random.default_rng(0).normal(size=(300, 4))),
        rows(np.random.default_rng(1).normal(size=(99, 4))),
    )
    some = Sounds(train.class_N[:99], train.said_N[:99], train.feature_NP[:99], train.wav_NT[:99])
    assert sound.numbers(some, held, train, NAMES).nearest == pytest.approx(1, abs=0.25)
    assert np.isnan(sound.numbers(held, held, train, NAMES).frechet)


def test_the_time_of_a_run_leaves_out_the_time_between_its_starts(tmp_path: Path) -> None:
    lines = {"starts.jsonl": [{"time": 100.0}, {"time": 1000.0}]}
    lines["metrics.jsonl"] = [{"time": each} for each in (110.0, 160.0, 1005.0, 1030.0)]
    for name, values in lines.items():
        (tmp_path / name).write_text("".join(json.dumps(value) + "\n" for value in values))
    assert sound.training_seconds(str(tmp_path)) == 60 + 30
