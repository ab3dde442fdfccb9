"""Encoders and mappings in pairs that cover each: they train, go on bit for bit, and equal themselves on two ranks.

In float64 and without the frozen nets, which have their own tests: the losses are those of codes stored in the shards.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders.small import ENCODERS, MAPPINGS, OF_VECTORS, VECTORS
from ports import free_ports

from v2f import encoders
from v2f.config import build, dump_yaml
from v2f.data.encoding import encode
from v2f.data.shards import write_manifest, write_shard
from v2f.keyed import keyed_rng
from v2f.runs import checkpoint
from v2f.runs.config import RunConfig
from v2f.runs.run import build_system
from v2f.system import trained
from v2f.systems.voice_styled_face import VoiceStyledFace
from v2f.training.trainer import fit

BATCH, STEPS = 8, 20
PEOPLE, RATE, STYLES, WIDTH = 8, 16_000, 10, 128  # styles and width of the stand-in of the generator


def pairs() -> list[tuple[str, str]]:
    """Each encoder that gives a vector with a mapping that takes one, each other one with a mapping of frames, until
    all encoders and all mappings have had their turn."""
    found = []
    groups = [
        ([name for name in ENCODERS if name in VECTORS], [*sorted(OF_VECTORS), "linear"]),
        ([name for name in ENCODERS if name not in VECTORS], [name for name in MAPPINGS if name not in OF_VECTORS]),
    ]
    for own, mappings in groups:
        turns = max(len(own), len(mappings))
        found += [pair for pair, _ in zip(zip(cycle(own), cycle(mappings), strict=False), range(turns), strict=False)]
    return found


PAIR = pytest.mark.parametrize(("encoder", "mapping"), pairs())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Half a second of noise, a gray photo and codes of each person."""
    root, samples = str(tmp_path_factory.mktemp("pairs") / "shards"), []
    for person in range(PEOPLE):
        rng, key = keyed_rng(0x9A125, person), f"id{person}"
        wav_T = rng.integers(-8192, 8193, RATE // 2).astype(np.float32) / 32768
        codes_PLD = rng.standard_normal((1, STYLES, WIDTH)).astype(np.float32)
        photos = [np.full((8, 8, 3), 20 * person, np.uint8)]
        about = {"identity": key, "split": "train", "source": "test"}
        samples.append((key, key, encode(key, wav_T, RATE, photos, codes_PLD=codes_PLD, **about)))
    return write_manifest(root, [write_shard(root, "train-00000.tar", "train", samples)], {"source": "test"}).root


@pytest.fixture
def config(data: str, tmp_path: Path) -> Callable[..., RunConfig]:
    def make(encoder: str, mapping: str, out: str = "run") -> RunConfig:
        system = {
            "name": "voice_styled_face",
            "seconds": 0.5,
            "image_size": 64,
            "encoder": ENCODERS[encoder],
            "mapping": MAPPINGS[mapping],
            "frozen": {"codes": {"net": "precomputed"}},
            "losses": {"mse": 0.0, "lpips": 0.0, "id": 0.0, "style": 1.0},
        }
        values: dict[str, Any] = {
            "name": f"{encoder}-{mapping}".replace("_", "-"),
            "out": str(tmp_path / out / f"{encoder}-{mapping}"),
            "seed": 3,
            "system": system,
            "data": {"path": data, "valid": None, "batch": BATCH, "workers": 0, "window": 8, "partitions": 4},
            "train": {"steps": STEPS, "precision": "fp64", "threads": 1, "checkpoint_every": STEPS // 2},
            "tracking": {"uri": None},
        }
        return build(RunConfig, values, "test")

    return make


def saved(folder: str) -> dict[str, torch.Tensor]:
    return dict(checkpoint.load(checkpoint.latest(f"{folder}/checkpoints") or "")[0])


def test_the_pairs_cover_every_encoder_and_every_mapping() -> None:
    assert {encoder for encoder, _ in pairs()} == ENCODERS.keys()
    assert {mapping for _, mapping in pairs()} == MAPPINGS.keys()
    assert len(set(pairs())) == len(pairs())


@PAIR
def test_a_pair_trains_goes_on_bit_for_bit_and_saves_what_it_trains(
    config: Callable[..., RunConfig], encoder: str, mapping: str
) -> None:
    wanted = config(encoder, mapping)
    folder = fit(wanted)
    whole = saved(folder)
    shutil.rmtree(checkpoint.latest(f"{folder}/checkpoints") or "")
    assert (checkpoint.latest(f"{folder}/checkpoints") or "").endswith(f"{STEPS // 2:08d}")
    fit(wanted, resume="auto")
    again = saved(folder)
    assert whole.keys() == again.keys()
    assert [name for name, tensor in whole.items() if not torch.equal(again[name], tensor)] == []

    assert isinstance(wanted.system, VoiceStyledFace.Config)
    system = build_system(wanted)
    modules = trained(system)
    assert modules.keys() == {*encoders.trained(wanted.system.encoder), "mapping"}
    ours = not isinstance(wanted.system.encoder, encoders.ForeignConfig) or encoder == "wen_trained"
    assert ("encoder" in modules) == ours
    before = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
    after = {name.removeprefix("model/"): t for name, t in whole.items() if name.startswith("model/")}
    assert before.keys() == after.keys(), "what is frozen is not in a checkpoint, what is thawed is"
    for name in modules:
        moved = [key for key, t in before.items() if key.startswith(f"{name}.") and not torch.equal(after[key], t)]
        assert moved, f"{name} was not trained"
    assert all(tensor.isfinite().all() for tensor in whole.values())


@pytest.mark.slow
def test_two_ranks_train_the_same(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    recipes = []
    for pair, port in zip(pairs(), free_ports(len(pairs())), strict=True):
        recipe = tmp_path / f"{'-'.join(pair)}.yaml"
        recipe.write_text(dump_yaml(config(*pair, out="two")))
        recipes.append(f"{recipe}:{port}")
    tests = Path(__file__).resolve().parent.parent
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(tests / "workers" / "toys.py"), *recipes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for pair in pairs():
        one, two = saved(fit(config(*pair, out="one"))), saved(str(tmp_path / "two" / "-".join(pair)))
        assert one.keys() == two.keys()
        for key, tensor in one.items():
            torch.testing.assert_close(
                two[key], tensor, rtol=1e-9, atol=1e-10, msg=lambda text, place=(*pair, key): f"{place}: {text}"
            )
