"""One process of the engine: what a step must not change, what it returns, what a checkpoint holds."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from two_phases import GROUP, TwoPhases, batches

import v2f.engine as engine_module
from v2f.engine import Engine, StepResult, memory
from v2f.errors import V2FError
from v2f.nn import float32_products
from v2f.nn.batchnorm import GhostBatchNorm
from v2f.system import Phase, Schedule

REST: dict[str, Any] = {"seen": 0, "total": 320}


def wrapped(micro: int | None = None) -> tuple[Engine, TwoPhases]:
    engine, system = Engine("fp32", "ddp"), TwoPhases()
    engine.wrap(system, share=8, micro_batch=micro)
    system.train()
    return engine, system


def stepped(
    engine: Engine, system: TwoPhases, steps: int, start: int = 0, micro: int | None = None
) -> list[StepResult]:
    results = []
    stream = batches(8, start=start)
    for step in range(start, start + steps):
        batch = next(stream)
        for phase in system.phases():
            if step % phase.every == 0:
                results.append(engine.step(phase, batch, step, micro_batch=micro, seen=step * 8, total=320))
    return results


def whole(engine: Engine, system: TwoPhases) -> dict[str, torch.Tensor]:
    return engine.copy(system, engine.sizes(system))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], t) for name, t in other.items())


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp64"])
def test_float32_is_rounded_to_tf32_only_on_request(precision):
    try:
        engine = Engine(precision, "ddp")
        asked = precision == "tf32"
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (asked, asked)
        assert engine.dtype == (torch.float64 if precision == "fp64" else torch.float32)
    finally:
        float32_products(tf32=False)


@pytest.mark.parametrize("has_bf16", [True, False])
def test_auto_is_bf16_if_the_device_has_it_and_an_emulated_bf16_is_reported(monkeypatch, caplog, has_bf16):
    monkeypatch.setattr(engine_module, "computes_bf16", lambda device: has_bf16)
    assert Engine("auto", "ddp").precision == ("bf16" if has_bf16 else "fp32")
    assert not caplog.records
    assert Engine("bf16", "ddp").precision == "bf16"
    assert [record.message for record in caplog.records if "emulates" in record.message] == (
        []
        if has_bf16
        else ["train.precision bf16: some device only emulates it, many times slower than fp32; use auto or fp32"]
    )


# ------------------------------------------------------------------------------------------------ phases


def test_a_phase_trains_its_own_modules_and_moves_its_own_statistics():
    engine, system = wrapped()
    batch = next(batches(8))
    for phase, own, other in zip(system.phases(), "dg", "gd", strict=True):
        before = {name: t.clone() for name, t in system.state_dict().items()}
        engine.step(phase, batch, 0, micro_batch=4, **REST)
        moved = {name for name, t in system.state_dict().items() if not torch.equal(t, before[name])}
        assert {name.split(".")[0] for name in moved} == {own}
        assert f"{own}.layers.1.running_mean" in moved
        assert f"{own}.frozen" not in moved
        still = system.g if other == "g" else system.d
        assert all(p.grad is None for p in still.parameters())
        norm = still.layers[1]
        assert isinstance(norm, GhostBatchNorm)
        assert norm.collected()[2] == 0  # what it saw as a guest is forgotten


def test_while_a_phase_runs_what_others_train_gathers_no_gradient_and_then_may_again(monkeypatch):
    engine, system = wrapped()
    seen = {}
    loss = system.loss

    def watched(phase: str, batch: Any, step: int) -> Any:
        seen[phase] = {name for name, p in system.named_parameters() if p.requires_grad}
        return loss(phase, batch, step)

    for own in engine._phases.values():
        monkeypatch.setattr(own.module, "_loss", watched)
    before = {name for name, p in system.named_parameters() if p.requires_grad}
    stepped(engine, system, 1)
    assert {phase: {name[0] for name in names} for phase, names in seen.items()} == {
        "discriminator": {"d"},
        "generator": {"g"},
    }
    assert {name for name, p in system.named_parameters() if p.requires_grad} == before
    assert "d.frozen" not in before


def test_a_parameter_that_no_loss_touches_decays_and_is_counted_as_under_zero():
    engine, system = wrapped()
    stepped(engine, system, 3)
    tensors = whole(engine, system)
    assert tensors["optim/discriminator/d.unused/step"] == 3
    assert not torch.equal(tensors["model/d.unused"], torch.ones(5))  # weight decay
    assert torch.equal(tensors["model/g.unused"], torch.ones(5))
    assert not any("frozen" in name for name in tensors if name.startswith("optim/"))


def test_the_half_life_of_a_moving_average_is_in_samples_seen_however_seldom_its_phase_steps(monkeypatch):
    """Two half-lives, 64 samples, in 4 steps of a phase that steps every second time: a quarter is left."""
    engine, system = wrapped()
    own = engine._phases["generator"]
    name = next(name for name in own.averages if name.endswith("layers.0.weight"))
    monkeypatch.setattr(own, "update", lambda norm: None)  # the weights stay
    own.averages[name].copy_(own.tensors()[name] + 1.0)
    phase = system.phases()[1]
    for step in range(0, 8, 2):
        batch = next(batches(8, start=step))
        engine.step(phase, batch, step, micro_batch=4, seen=10_000 + step * 8, total=20_000)
    left = own.averages[name] - own.tensors()[name]
    torch.testing.assert_close(left, torch.full_like(left, 0.25))


# ------------------------------------------------------------------------------------------------ skipped steps


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("why", ["loss", "gradient", "spike"])
def test_a_skipped_step_leaves_everything_as_it_was(why, steps):
    engine, system = wrapped()
    stepped(engine, system, steps)
    before = whole(engine, system)
    batch, phase = next(batches(8, start=steps)), system.phases()[0]
    factor = {"loss": float("inf"), "gradient": 1e37, "spike": 1.0}[why]
    spoiled = batch | {"weight": batch["weight"] * factor}
    limit = 1e-6 if why == "spike" else None
    result = engine.step(phase, spoiled, steps, micro_batch=4, seen=steps * 8, total=320, limit=limit)
    assert result.skipped == why
    assert math.isfinite(result.losses["total"]) == (why != "loss")
    assert math.isfinite(result.grad_norm) == (why == "spike")
    assert same(whole(engine, system), before)
    result = engine.step(phase, batch, steps, micro_batch=4, seen=steps * 8, total=320, limit=1e6)
    undisturbed, other = wrapped()
    stepped(undisturbed, other, steps)
    undisturbed.step(phase := other.phases()[0], batch, steps, micro_batch=4, seen=steps * 8, total=320)
    assert result.skipped == ""
    assert same(whole(engine, system), whole(undisturbed, other))


def test_the_stop_request_and_the_seconds_of_the_forward_are_reported():
    engine, system = wrapped()
    batch = next(batches(8))
    result = engine.step(system.phases()[0], batch, 0, micro_batch=4, **REST, stop=2)
    assert result.stop == 2
    assert 0 < result.forward_seconds < 10
    assert engine.step(system.phases()[0], batch, 0, micro_batch=4, **REST).stop == 0


# ------------------------------------------------------------------------------------------------ checkpoints


def test_sizes_and_copies_are_those_of_a_checkpoint_and_copies_are_ones_own():
    engine, system = wrapped()
    assert {name.split("/")[0] for name in engine.sizes(system)} == {"model", "ema"}
    stepped(engine, system, 1)
    sizes = engine.sizes(system)
    assert sizes["optim/generator/g.layers.0.weight/exp_avg_sq"] == system.g.layers[0].weight.numel() * 4
    mine = engine.copy(system, list(sizes)[::3])
    assert list(mine) == list(sizes)[::3]
    assert all(t.numel() * t.element_size() == sizes[name] for name, t in mine.items())
    before = {name: t.clone() for name, t in mine.items()}
    stepped(engine, system, 1, start=2)
    assert same(mine, before)  # training on does not move them


def test_a_loaded_run_continues_bit_for_bit():
    engine, system = wrapped(micro=4)
    stepped(engine, system, 4, micro=4)
    saved = whole(engine, system)
    again, other = wrapped(micro=4)
    again.load(other, saved, "here")
    assert same(whole(again, other), saved)
    for one, its in ((engine, system), (again, other)):
        stepped(one, its, 4, start=4, micro=4)
    assert same(whole(again, other), whole(engine, system))
    saved["optim/generator/g.unused/exp_avg"].fill_(9.0)
    assert not same(whole(again, other), saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model/d.layers.0.weight": None}, r"here: the tensor 'model/d\.layers\.0\.weight' is missing"),
        ({"model/d.more": torch.ones(1)}, r"'model/d\.more' is not part of this system"),
        ({"ema/g.unused": None}, r"'ema/g\.unused' is missing"),
        ({"optim/generator/g.unused/exp_avg": None}, r"'optim/generator/g\.unused/exp_avg' is missing"),
        ({"optim/generator/g.unused/other": torch.ones(5)}, r"g\.unused/other' is not part of this system"),
        ({"optim/nobody/g.unused/step": torch.ones(())}, r"'optim/nobody/g\.unused/step' is not part of this system"),
        ({"optim/generator/g.unused/exp_avg": torch.ones(4)}, r"has shape \[4\], this system \[5\]"),
        ({"stray": torch.ones(1)}, r"'stray' is not part of this system"),
    ],
)
def test_a_checkpoint_is_loaded_strictly(change, message):
    engine, system = wrapped()
    stepped(engine, system, 1)
    tensors = whole(engine, system) | change
    fresh, other = wrapped()
    with pytest.raises(V2FError, match=message):
        fresh.load(other, {name: t for name, t in tensors.items() if t is not None}, "here")


def test_averages_replace_the_weights_for_a_while():
    engine, system = wrapped()
    stepped(engine, system, 5)
    before = whole(engine, system)
    with engine.averaged(system):
        assert torch.equal(system.g.layers[0].weight, before["ema/g.layers.0.weight"])
        assert not torch.equal(system.g.layers[0].weight, before["model/g.layers.0.weight"])
        assert torch.equal(system.d.layers[0].weight, before["model/d.layers.0.weight"])
        assert not system.g.training
    assert system.g.training
    assert same(whole(engine, system), before)


# ------------------------------------------------------------------------------------------------ mistakes


def test_a_module_of_two_phases_is_for_ddp_only():
    for strategy in ("ddp", "zero2"):
        engine, system = Engine("fp32", strategy), TwoPhases(shared=True)
        if strategy == "ddp":
            engine.wrap(system, share=8, micro_batch=None)
            assert [result.skipped for result in stepped(engine, system, 1)] == ["", ""]
        else:
            with pytest.raises(V2FError, match=r"'discriminator' and 'generator' both train 'd', which ZeRO"):
                engine.wrap(system, share=8, micro_batch=None)


def test_a_module_without_a_rate_is_named():
    class Forgetful(TwoPhases):
        def phases(self) -> list[Phase]:
            return [replace(phase, modules={"h": self.g}) for phase in super().phases()]

    with pytest.raises(V2FError, match=r"phase 'discriminator': optimizer\.lr has no rate for the module 'h'"):
        Engine("fp32", "ddp").wrap(Forgetful(), share=8, micro_batch=None)


def test_a_micro_batch_divides_a_ranks_share():
    with pytest.raises(V2FError, match=r"train\.micro_batch: 3 does not divide a rank's 8 samples"):
        wrapped(micro=3)


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total"), "20.00 GiB"),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes."
            ),
            "4000 bytes",
        ),
    ],
)
def test_out_of_memory_in_a_first_step_names_what_to_reduce(monkeypatch, error, wanted):
    engine, system = wrapped()
    batch, phase = next(batches(8)), system.phases()[0]

    def full(*_: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(engine._phases[phase.name].module, "_loss", full)
        with pytest.raises(V2FError, match=r"out of memory in the first step of the phase 'discriminator'") as caught:
            engine.step(phase, batch, 0, micro_batch=None, **REST)
        assert f"which requested {wanted}" in str(caught.value)
        assert "set train.micro_batch=4 (now 8; the same mathematics), then a smaller data.batch" in str(caught.value)
        assert "\n" not in str(caught.value)
        with pytest.raises(V2FError, match=r"train\.micro_batch=4 is already the smallest, so a smaller data\.batch"):
            engine.step(phase, batch, 0, micro_batch=GROUP, **REST)
    engine.step(phase, batch, 0, micro_batch=None, **REST)
    with monkeypatch.context() as patch:
        patch.setattr(engine._phases[phase.name].module, "_loss", full)
        with pytest.raises(type(error)):  # it fitted before: something else grew, and another start may help
            engine.step(phase, batch, 1, micro_batch=None, **REST)


def test_out_of_memory_is_explained_in_a_first_validation_only():
    engine, system = wrapped()
    for expected in (V2FError, torch.OutOfMemoryError):
        with pytest.raises(expected), engine.evaluating(system, size=8):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        with engine.evaluating(system, size=8):
            pass
    assert system.training


def test_a_failure_of_the_real_allocator_is_recognized():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.float64)
    assert memory.is_out_of_memory(caught.value)
    assert not memory.is_out_of_memory(RuntimeError("shapes do not fit"))


# ------------------------------------------------------------------------------------------------ schedules


def test_a_schedule_warms_up_and_decays_as_its_words_say():
    warm = Schedule(warmup=100)
    assert [warm.at(s, 1000) for s in (0, 49, 99, 100, 900)] == [0.01, 0.5, 1.0, 1.0, 1.0]
    epochs = Schedule(decay="exponential", factor=0.95, every=200)
    assert [epochs.at(s, 10**9) for s in (0, 200, 400)] == pytest.approx([1, 0.95, 0.95**2])
    cosine = Schedule(warmup=100, decay="cosine", factor=0.1)
    assert [cosine.at(s, 1100) for s in (100, 600, 1100, 2000)] == pytest.approx([1.0, 0.55, 0.1, 0.1])
