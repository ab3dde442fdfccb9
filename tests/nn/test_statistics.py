"""What modules keep of a step's samples, and what after_step sees of it; over ranks: tests/engine/test_zero.py."""

from typing import Any

import pytest
import torch
from codebook import BATCH, GROUP, NOISE, STEPS, Codebook, D, K, N, Quantized, batches, trained
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from v2f.engine import Engine
from v2f.keyed import keyed_rng
from v2f.nn.statistics import KeyedVectorSample, Turn, begin, collect
from v2f.system import Batch, Losses, Stepped

Tensors = dict[str, Tensor]


def whole(engine: Engine, system: Quantized) -> Tensors:
    return engine.copy(system, engine.sizes(system))


def furthest(one: Tensors, other: Tensors) -> float:
    assert one.keys() == other.keys()
    return max(float((t.double() - other[name].double()).abs().max()) for name, t in one.items())


@pytest.fixture(scope="module")
def undisturbed() -> tuple[Tensors, Quantized]:
    engine, system = trained("ddp", "fp64", None)
    return whole(engine, system), system


# ------------------------------------------------------------------------------------------------ a codebook


def test_the_codebook_starts_loses_codes_and_revives_them(undisturbed):
    tensors, _ = undisturbed
    assert tensors["model/codebook.started"]
    assert tensors["model/codebook.revived"] >= 2
    assert len(tensors["model/codebook.codes_KD"].unique(dim=0)) == K


@pytest.mark.parametrize("micro", [8, 4])
def test_micro_batches_change_nothing(undisturbed, micro):
    engine, system = trained("ddp", "fp64", micro)
    assert furthest(whole(engine, system), undisturbed[0]) <= 1e-9


def test_after_step_sees_seed_and_slot_and_what_was_added_up(undisturbed):
    tensors, system = undisturbed
    assert [(s.seed, s.step, s.slot, s.slots) for s in system.told] == [(3, i, i * BATCH, BATCH) for i in range(STEPS)]
    for stepped in system.told:
        assert stepped.statistics.keys() == {"encoder.1", "codebook"}
        assert stepped.statistics["encoder.1"][-1] == BATCH // GROUP
        assert stepped.statistics["codebook"][:K].sum() == (BATCH - 1) * N  # one slot weighs 0
    drawn = keyed_rng(NOISE, 3, (STEPS - 1) * BATCH).random()
    assert tensors["model/decoder.noise"] == tensors["ema/decoder.noise"] == drawn  # the averages have it, too


# ------------------------------------------------------------------------------------------------ steps


def wrapped() -> tuple[Engine, Quantized]:
    engine, system = Engine("fp64", "ddp"), Quantized()
    engine.wrap(system, share=BATCH, micro_batch=4, seed=3)
    system.train()
    return engine, system


def step(engine: Engine, system: Quantized, first: int, last: int, spoil: float = 1.0) -> list[Any]:
    (phase,), stream, skipped = system.phases(), batches(start=first), []
    for at in range(first, last):
        batch = next(stream)
        batch["weight"] = batch["weight"] * spoil
        skipped.append(engine.step(phase, batch, at, micro_batch=4, seen=at * BATCH, total=STEPS * BATCH).skipped)
    return skipped


@pytest.mark.parametrize("at", [0, 5])
def test_a_skipped_step_keeps_nothing_and_is_not_told(at):
    engine, system = wrapped()
    step(engine, system, 0, at)
    before, told = whole(engine, system), len(system.told)
    assert step(engine, system, at, at + 1, spoil=float("nan")) == ["loss"]
    assert furthest(whole(engine, system), before) == 0
    assert len(system.told) == told
    step(engine, system, at, 8)
    again, other = wrapped()
    step(again, other, 0, 8)
    assert furthest(whole(engine, system), whole(again, other)) == 0


@pytest.mark.parametrize("at", [0, 5])
def test_a_step_that_was_broken_off_leaves_nothing(at, monkeypatch):
    engine, system = wrapped()
    step(engine, system, 0, at)
    with monkeypatch.context() as patch:

        def broken(*_: Any) -> Any:
            raise KeyboardInterrupt

        patch.setattr(system.decoder, "forward", broken)
        with pytest.raises(KeyboardInterrupt):
            step(engine, system, at, at + 1)
    step(engine, system, at, 8)
    again, other = wrapped()
    step(again, other, 0, 8)
    assert furthest(whole(engine, system), whole(again, other)) == 0


@pytest.mark.parametrize("at", [0, 1, 5])
def test_a_codebook_that_is_loaded_goes_on_bit_for_bit(at):
    engine, system = wrapped()
    step(engine, system, 0, at)
    saved = whole(engine, system)
    step(engine, system, at, STEPS)
    again, other = wrapped()
    again.load(other, saved, "here")
    step(again, other, at, STEPS)
    assert furthest(whole(again, other), whole(engine, system)) == 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_forward_does_not_collect_twice(reentrant):
    z, slot, weight = torch.randn(4, N, D, requires_grad=True), torch.arange(4), torch.ones(4)
    found = []
    for saving in (False, True):
        codebook = Codebook()
        begin(codebook, Turn(seed=0, step=0, slot=0, slots=4))

        def commitment(z: Tensor, codebook: Codebook = codebook) -> Tensor:
            return codebook(z, slot, weight).commitment_B

        made_B = checkpoint(commitment, z, use_reentrant=reentrant) if saving else commitment(z)
        made_B.sum().backward()
        found.append(collect(codebook)[""])
    assert torch.equal(*found)
    assert found[0][:K].sum() == 4 * N


def test_evaluation_collects_nothing():
    codebook = Codebook().eval()
    begin(codebook, Turn(seed=0, step=0, slot=0, slots=4))
    codebook(torch.randn(4, N, D), torch.arange(4), torch.ones(4))
    assert not collect(codebook)[""].any()


# ------------------------------------------------------------------------------------------------ streams


class OfFew(Codebook):
    def begin(self, turn: Turn) -> None:
        super().begin(turn.of("few"))


class TwoStreams(Quantized):
    """Looks at the second of its streams alone, whose batches are the smaller ones."""

    def __init__(self) -> None:
        super().__init__()
        self.codebook = OfFew()

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        return super().loss(phase, batch["few"], step)

    def after_step(self, phase: str, stepped: Stepped) -> None:
        assert (stepped.slot, stepped.slots) == (stepped.step * 2 * BATCH, 2 * BATCH)
        super().after_step(phase, stepped.of("few"))


@pytest.mark.parametrize("micro", [None, 8])
def test_a_codebook_of_a_stream_draws_from_the_slots_of_that_stream(micro, undisturbed):
    engine, system = Engine("fp64", "ddp"), TwoStreams()
    engine.wrap(system, share=2 * BATCH, micro_batch=micro, seed=3)
    system.train()
    (phase,) = system.phases()
    for step, few in zip(range(STEPS), batches(), strict=False):
        many = {"slot": torch.arange(step * 2 * BATCH, (step + 1) * 2 * BATCH)}
        engine.step(phase, {"many": many, "few": few}, step, micro_batch=micro, seen=step, total=STEPS)
    alone = {name: tensor for name, tensor in undisturbed[0].items() if name.startswith("model/")}
    assert furthest({name: whole(engine, system)[name] for name in alone}, alone) <= 1e-9


# ------------------------------------------------------------------------------------------------ drawn vectors

TURN = Turn(seed=1, step=2, slot=16, slots=8)
X_BND = torch.arange(8 * 3 * 2, dtype=torch.float32).view(8, 3, 2)


def drawn(count: int, cuts: list[int], turn: Turn = TURN, purpose: int = 7, weight: Tensor | None = None) -> Tensor:
    """What each part, on a rank of its own, has collected, added up."""
    weight = torch.ones(8) if weight is None else weight
    sums = []
    for x, slot, w in zip(
        X_BND.split(cuts), (turn.slot + torch.arange(8)).split(cuts), weight.split(cuts), strict=True
    ):
        one = KeyedVectorSample(2, purpose)
        one.begin(turn, count)
        one.collect(x, slot, w)
        sums.append(one.sums(x.device))
    return one.read(torch.stack(sums).sum(dim=0))


@pytest.mark.parametrize("count", [1, 5, 8, 20])
def test_the_vectors_are_the_same_however_a_batch_is_cut(count):
    one = drawn(count, [8])
    assert one.shape == (count, 2)
    assert one.dtype == torch.float64
    assert len(one.unique(dim=0)) == count  # none twice
    slots = (one[:, 0] // 6).long()
    assert len(slots[:8].unique()) == min(count, 8)  # each slot once, before any is drawn again
    for cuts in ([4, 4], [1, 7], [2, 2, 2, 2], [1] * 8):
        assert torch.equal(drawn(count, cuts), one)


def test_other_steps_seeds_and_purposes_draw_others():
    one = drawn(6, [8])
    others = [
        drawn(6, [8], turn=Turn(seed=1, step=3, slot=24, slots=8)),
        drawn(6, [8], turn=Turn(seed=2, step=2, slot=16, slots=8)),
        drawn(6, [8], purpose=8),
    ]
    assert not any(torch.equal(one, other) for other in others)


def test_what_weighs_nothing_is_not_drawn_and_there_are_no_more_vectors_than_there_are():
    weight = torch.tensor([1.0] * 5 + [0.0] * 3)
    found = drawn(8, [3, 5], weight=weight)
    assert sorted((found[:, 0] // 6).long().tolist()) == [0, 1, 2, 3, 4]
    assert len(drawn(100, [8])) == 8 * 3
    assert len(drawn(0, [8])) == 0
