"""Faces drawn by chance: a draw is a function of voice and noise, and the training meets what it says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from systems.reading import training

from v2f.config import build
from v2f.data.manifest import open_dataset
from v2f.engine import Engine
from v2f.errors import V2FError
from v2f.runs.config import RunConfig, changes
from v2f.runs.run import build_system
from v2f.systems.voice_draws import VoiceDraws

Values = Callable[..., dict[str, Any]]


def system_of(values: dict[str, Any], **system: Any) -> VoiceDraws:
    values["system"] |= system
    built = build_system(build(RunConfig, values, "test"))
    assert isinstance(built, VoiceDraws)
    return built


def stepped(system: VoiceDraws, data: str, steps: int = 1) -> dict[str, Any]:
    """The last batch of a few steps."""
    engine = Engine("fp32")
    engine.wrap(system, share=8, micro_batch=None)
    system.train()
    with training(open_dataset(data).split("train"), system, 8) as streams:
        batches = iter(streams)
        for step in range(steps):
            batch = next(batches)
            engine.step(system.phases()[0], batch, step, micro_batch=None, seen=8 * step, total=100)
    return batch


def test_a_draw_is_a_function_of_voice_and_noise(run_values: Values, tiny_shards: str) -> None:
    system = system_of(run_values("voice_draws"))
    stepped(system, tiny_shards, 2)
    system.eval()
    rng = torch.Generator().manual_seed(1)
    wav_BT, noise_BK = 0.1 * torch.randn(3, 6400, generator=rng), torch.randn(3, 6, generator=rng)
    with torch.no_grad():
        one = system.styles({"wav": wav_BT, "noise": noise_BK})
        assert torch.equal(one, system.styles({"wav": wav_BT, "noise": noise_BK}))
        torch.testing.assert_close(one[1:], system.styles({"wav": wav_BT[1:], "noise": noise_BK[1:]}))
        assert not torch.allclose(one, system.styles({"wav": wav_BT, "noise": noise_BK.flip(0)}), atol=1e-3)
        assert not torch.allclose(one, system.styles({"wav": wav_BT.flip(0), "noise": noise_BK}), atol=1e-6)
        assert system.drawn(system.condition({"wav": wav_BT}), noise_BK).shape == one.shape
        assert system.face(one).shape == (3, 3, 64, 64)
        assert system.face(one, 32).shape == (3, 3, 32, 32)
        with pytest.raises(V2FError, match="48 px"):
            system.face(one, 48)


def test_the_components_are_fitted_to_the_photos_codes(run_values: Values, tiny_shards: str) -> None:
    system = system_of(run_values("voice_draws"))
    assert system.flow.components.missing == 8
    batch = stepped(system, tiny_shards)
    assert system.flow.components.missing == 0
    with torch.no_grad():
        codes_BX = system.codes(batch["image"] / 127.5 - 1).flatten(1)  # type: ignore[misc]
    torch.testing.assert_close(system.flow.components.kept_NX, codes_BX, rtol=0, atol=1e-5)
    torch.testing.assert_close(system.flow.components.mean_X, codes_BX.mean(dim=0), rtol=0, atol=1e-5)


def test_a_flow_learns_the_codes_of_a_few_photos(run_values: Values, tiny_shards: str) -> None:
    """Twenty photos at most, so the draws must come near their components, which noise does not."""
    values = run_values("voice_draws")
    flow = {"components": 4, "fit": 16, "width": 64, "blocks": 2, "pairs": 8, "drop": 0.0}
    draw = {"steps": 10, "solver": "heun", "guidance": 1.0}
    system = system_of(values, flow=flow, draw=draw, optimizer={"lr": {"encoder": 1e-3, "flow": 5e-3}}, ema=None)
    batch = stepped(system, tiny_shards, 2)
    engine, (phase,), found = Engine("fp32"), system.phases(), []
    engine.wrap(system, share=8, micro_batch=None)
    for step in range(2, 120):
        found.append(engine.step(phase, batch, step, micro_batch=None, seen=8 * step, total=1000).losses["total"])
    assert float(torch.stack(found[-10:]).mean()) < 0.6 * float(torch.stack(found[:5]).mean())


def test_how_a_face_is_drawn_may_change_after_the_training(run_values: Values) -> None:
    one, other = run_values("voice_draws"), run_values("voice_draws")
    other["system"]["draw"] = {"steps": 7, "solver": "euler", "guidance": 3.0}
    assert not changes(build(RunConfig, one, "test"), build(RunConfig, other, "test"))
    other["system"]["flow"] |= {"components": 5}
    assert changes(build(RunConfig, one, "test"), build(RunConfig, other, "test"))
    with pytest.raises(V2FError, match=r"set frozen\.codes"):
        build(RunConfig, one | {"system": one["system"] | {"frozen": {"codes": None}}}, "test")
