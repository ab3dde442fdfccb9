"""The contract, for every system of the table: steps, moves only its own parameters, samples, resumes bit-equal."""

import pytest
import torch
from systems.reading import fixed, training
from systems.small import SMALL, STREAMS

from v2f.config import build
from v2f.data.loader import read_split
from v2f.data.manifest import open_dataset
from v2f.engine import Engine
from v2f.evaluation.protocols import PROTOCOLS
from v2f.runs import checkpoint
from v2f.runs.config import RunConfig
from v2f.runs.run import Run, build_system
from v2f.system import Embedding, Label, Picture, Sound, Tokens, by_stream, of_kind, part_of, trained
from v2f.systems import SYSTEMS
from v2f.training.trainer import fit

SYSTEM = pytest.mark.parametrize("name", sorted(SYSTEMS))


def test_every_system_has_a_small_configuration():
    assert SMALL.keys() == SYSTEMS.keys()
    assert STREAMS.keys() <= SMALL.keys()


def first_batch(config: RunConfig, system) -> dict:
    with training(open_dataset(config.data.path).split("train"), system, 8) as streams:
        return next(iter(streams))


def masked(batch: dict) -> dict:
    """With the weight 0 in the second half of every stream."""
    if "slot" not in batch:
        return {stream: masked(own) for stream, own in by_stream(batch).items()}
    return batch | {"weight": torch.tensor([1.0] * 4 + [0.0] * 4)}


@SYSTEM
def test_what_sampling_reads_is_among_the_transforms(run_values, name):
    system = build_system(build(RunConfig, run_values(name), "test"))
    streams = list(system.streams())
    assert streams == list(STREAMS.get(name, [""]))
    assert system.streams()[streams[0]].keys() <= system.transforms().keys()
    assert system.asks().keys() <= system.transforms().keys()


@SYSTEM
def test_each_phase_moves_its_own_parameters_and_nothing_else(run_values, name):
    config = build(RunConfig, run_values(name), "test")
    system = build_system(config)
    engine = Engine("fp32")
    engine.wrap(system, share=8, micro_batch=None)
    batch = first_batch(config, system)
    system.train()
    for phase in system.phases():
        before = {n: t.clone() for n, t in system.state_dict().items()}
        owned = {id(t) for m in phase.modules.values() for t in m.state_dict(keep_vars=True).values()}
        for step in range(3):
            result = engine.step(phase, batch, step, micro_batch=None, seen=step * 8, total=100)
            assert not result.skipped
            assert "total" in result.losses
        for n, tensor in system.state_dict(keep_vars=True).items():
            assert torch.equal(tensor, before[n]) != (id(tensor) in owned), f"{phase.name}: {n}"


@SYSTEM
def test_the_total_is_the_weighted_sum_of_its_terms_and_a_slot_of_weight_zero_adds_nothing(run_values, name):
    config = build(RunConfig, run_values(name), "test")
    system = build_system(config).eval()  # running statistics, so that samples do not see each other
    batch = first_batch(config, system)
    for phase in system.phases():
        whole = system.loss(phase.name, batch, 0)
        half = system.loss(phase.name, part_of(batch, 0, 2), 0)
        for key, value in system.loss(phase.name, masked(batch), 0).items():
            torch.testing.assert_close(value, half[key] / 2, rtol=1e-4, atol=1e-6)
        assert not torch.equal(whole["total"], half["total"])


@SYSTEM
def test_a_sample_has_the_promised_shape_and_range(run_values, name):
    config = build(RunConfig, run_values(name), "test")
    system = build_system(config).eval()
    split = open_dataset(config.data.path).split("valid")
    batch = next(iter(read_split(split, system.transforms(), 4)))
    made, labels = system.sample(batch), [name for name, _ in of_kind(system.makes(), Label)]
    tokens = dict(of_kind(system.makes(), Tokens))
    assert made
    for name, value in made.items():
        assert value.shape[0] == 4
        assert not value.requires_grad
        if name in tokens:
            assert value.dtype == torch.int64
            assert value.min() >= 0
            assert value.max() < tokens[name].vocabulary
            continue
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        assert name in labels or value.abs().max() <= 1
    meters = system.meters([next(iter(fixed(split, system, 4)))])
    assert meters
    assert all(isinstance(v, float) for v in meters.values())


@SYSTEM
def test_what_is_made_of_what_is_asked_for_is_what_was_declared(run_values, name):
    config = build(RunConfig, run_values(name), "test")
    system = build_system(config).eval()
    split = open_dataset(config.data.path).split("valid")
    batch = next(iter(read_split(split, system.transforms(), 4)))
    assert system.asks().keys() <= batch.keys()
    made = system.sample({name: batch[name] for name in system.asks()})
    assert made.keys() == system.makes().keys()
    for name, kind in system.makes().items():
        if isinstance(kind, Embedding):
            assert made[name].shape == (4, kind.width)
        elif isinstance(kind, Label):
            assert made[name].shape == (4, len(kind.names))
        elif isinstance(kind, Tokens):
            assert made[name].shape == (4, kind.length)
        elif isinstance(kind, Sound):
            assert made[name].shape == (4, 1, kind.frames)
        else:
            assert isinstance(kind, Picture), (
                "the systems of the table make pictures, sounds, embeddings, labels, tokens"
            )
            assert made[name].shape == (4, kind.channels, kind.size, kind.size)
    assert system.protocol in PROTOCOLS


@SYSTEM
def test_frozen_nets_stay_out_of_the_checkpoint(run_values, name):
    config = build(RunConfig, run_values(name, steps=1), "test")
    folder = checkpoint.latest(f"{fit(config)}/checkpoints")
    tensors, _ = checkpoint.load(folder)
    modules = trained(build_system(config))
    kinds = {n.split("/")[0] for n in tensors}
    assert kinds <= {"model", "ema", "optim"}
    assert all(n.split("/")[2 if n.startswith("optim") else 1].split(".")[0] in modules for n in tensors)


@SYSTEM
def test_a_trained_run_gives_the_same_pictures_after_loading(run_values, name):
    config = build(RunConfig, run_values(name, steps=3, validate_every=3), "test")
    folder = fit(config)
    one, other = Run.open(folder).system(), Run.open(folder).system()
    batch = next(iter(read_split(open_dataset(config.data.path).split("valid"), one.transforms(), 4)))
    for key, value in one.sample(batch).items():
        assert torch.equal(value, other.sample(batch)[key])
    tensors, _ = checkpoint.load(checkpoint.latest(f"{folder}/checkpoints"))
    averages = {n for n in tensors if n.startswith("ema/")}
    for n in averages:
        module, _, key = n.removeprefix("ema/").partition(".")
        assert torch.equal(trained(one)[module].state_dict()[key], tensors[n])
