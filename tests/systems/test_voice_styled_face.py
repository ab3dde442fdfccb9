"""Keys of the system that the contract's tests leave at their defaults: the mean style, and an optimizer's rates."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from encoders.small import ENCODERS
from fakes import make_data
from systems.small import SMALL
from torch import Tensor, nn

from v2f import encoders
from v2f.config import build, dump_yaml
from v2f.encoders.foreign import ForeignConfig, ForeignEncoder
from v2f.errors import V2FError
from v2f.evaluation.evaluate import evaluate
from v2f.runs import checkpoint, graphs
from v2f.runs.config import RunConfig
from v2f.runs.run import Run, build_system
from v2f.system import Exported, Optimizer, Schedule
from v2f.systems.voice_styled_face import VoiceStyledFace
from v2f.training.trainer import fit
from v2f.weights import UserWeights

SMALL_FACE = SMALL["voice_styled_face"]


def untrained(config: RunConfig) -> VoiceStyledFace:
    """The system in eval mode; with one seed, its weights are the same whatever ``mean_style`` is."""
    system = build_system(config).eval()
    assert isinstance(system, VoiceStyledFace)
    return system


def graph_of(exported: Exported, folder: Path) -> nn.Module:
    path = folder / "graph.pt2"
    path.write_bytes(graphs.content(exported, "torch-export"))
    return torch.export.load(path).module()


@torch.no_grad()
def test_without_the_mean_style_a_style_is_the_mapping_alone_wherever_it_is_made(
    tmp_path: Path,
) -> None:
    """With the mean style in the last layers' biases it is the system that adds it: in styles, faces, an evaluation."""
    make_data(tmp_path / "data", {"test": range(6)}, clips=1, photos=1)
    values = {"name": "tiny", "seed": 3, "data": {"path": str(tmp_path / "data"), "batch": 8}, "train": {"steps": 1}}
    with_mean, without = (
        build(RunConfig, values | {"system": SMALL_FACE | {"mean_style": mean}}, "test") for mean in ("add", "none")
    )
    added, bare, moved = (untrained(config) for config in (with_mean, without, without))
    mean_D = added.generator.latent_avg
    assert mean_D.abs().min() > 0
    for style in moved.mapping.styles:
        style.linear.bias += mean_D  # type: ignore[union-attr, operator]
    wav_BT = 0.1 * torch.randn(3, 6400, generator=torch.Generator().manual_seed(1))
    voice = {"wav": wav_BT}
    torch.testing.assert_close(bare.styles(voice), bare.mapping(bare.encoder(wav_BT)), rtol=0, atol=0)
    torch.testing.assert_close(bare.styles(voice) + mean_D, added.styles(voice))
    torch.testing.assert_close(moved.sample({"wav": wav_BT})["face"], added.sample({"wav": wav_BT})["face"])
    assert not torch.allclose(bare.sample({"wav": wav_BT})["face"], added.sample({"wav": wav_BT})["face"], atol=0.1)

    exported = bare.exports()
    assert exported is not None
    assert "mean style" not in exported.about
    torch.testing.assert_close(graph_of(exported, tmp_path)(wav_BT), bare.styles(voice), rtol=1e-4, atol=1e-5)

    (tmp_path / "config.yaml").write_text(dump_yaml(without))
    energy = {}
    for name, system in (("added", added), ("bare", bare), ("moved", moved)):
        found = evaluate(Run.open(str(tmp_path)), system=system, progress=False, device="cpu")
        energy[name] = found["splits"]["test"]["by"]["judge"]["lines"]["voice"]["picture"]["energy"]
    assert abs(energy["moved"] - energy["added"]) < 0.01 * abs(energy["bare"] - energy["added"])


RISING = {"warmup": 32, "decay": "constant"}
FALLING = {"decay": "exponential", "factor": 0.5, "every": 8}


def rates(folder: str) -> dict[tuple[int, str], float]:
    """The logged rate of each module, by step."""
    points = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return {
        (point["step"], name.removeprefix("rate/supervised/")): value
        for point in points
        for name, value in point.get("metrics", {}).items()
        if name.startswith("rate/")
    }


def test_each_module_has_its_own_schedule_also_when_a_run_goes_on(run_values: Callable[..., dict[str, Any]]) -> None:
    values = run_values(steps=4, checkpoint_every=2)
    optimizer = {"lr": {"encoder": 1e-3, "mapping": 4e-3}, "schedule": RISING, "schedules": {"mapping": FALLING}}
    light = {"losses": {"mse": 0.0, "lpips": 0.0, "id": 0.0}, "ema": None}
    config = build(RunConfig, values | {"system": SMALL_FACE | light | {"optimizer": optimizer}}, "test")
    folder = fit(config)
    told = rates(folder)
    for step in range(1, 5):
        seen = 8 * (step - 1)
        assert told[step, "encoder"] == pytest.approx(1e-3 * (seen + 1) / 32)
        assert told[step, "mapping"] == pytest.approx(4e-3 * 0.5 ** (step - 1))
    whole, _ = checkpoint.load(checkpoint.latest(f"{folder}/checkpoints") or "")
    shutil.rmtree(checkpoint.latest(f"{folder}/checkpoints") or "")
    fit(config, resume="auto")
    assert rates(folder) == told
    again, _ = checkpoint.load(checkpoint.latest(f"{folder}/checkpoints") or "")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_a_modules_schedule_stands_for_the_common_one() -> None:
    own, common = Schedule(**FALLING), Schedule(**RISING)
    optimizer = Optimizer(lr={"a": 1.0, "b": 3.0}, schedule=common, schedules={"b": own})
    for seen in (0, 5, 31, 32, 100):
        assert optimizer.rates(seen, 200) == {"a": common.at(seen, 200), "b": 3 * own.at(seen, 200)}


def configured(**values: Any) -> VoiceStyledFace.Config:
    return build(VoiceStyledFace.Config, SMALL_FACE | values, "recipe.yaml", "system.")


def test_a_schedule_of_an_unknown_module_is_one_line() -> None:
    with pytest.raises(
        V2FError, match=r"^recipe\.yaml: system\.optimizer: schedules names maping, which has no learning rate in lr$"
    ):
        configured(optimizer={"lr": {"encoder": 1e-3, "mapping": 1e-3}, "schedules": {"maping": RISING}})


@pytest.mark.parametrize("name", ENCODERS)
def test_the_rates_are_those_of_what_is_trained(name: str) -> None:
    values = {key: value for key, value in SMALL_FACE.items() if key != "optimizer"} | {"encoder": ENCODERS[name]}
    config = build(VoiceStyledFace.Config, values, "test")
    wanted = {*encoders.trained(config.encoder), "mapping"}
    assert config.optimizer == Optimizer(lr=dict.fromkeys(wanted, 1e-3))
    assert build(VoiceStyledFace.Config, config.model_dump(), "test") == config
    names = " and ".join(sorted(wanted))
    for other in {"encoder", "thawed", "layers"} - wanted:
        with pytest.raises(
            V2FError,
            match=rf"^recipe\.yaml: system: optimizer\.lr names {other}, which this configuration does not train; "
            rf"it trains {names}$",
        ):
            configured(encoder=ENCODERS[name], optimizer={"lr": dict.fromkeys([*wanted, other], 1e-3)})


class ForeignNet(ForeignEncoder):
    def features(self, wav_BT: Tensor) -> Tensor:
        raise NotImplementedError


class Foreign(ForeignConfig):
    """A foreign encoder of three blocks."""

    net: Literal["foreign"] = "foreign"
    random: bool = True

    def source(self) -> UserWeights:
        raise NotImplementedError

    def create(self) -> nn.ModuleList:
        return nn.ModuleList(nn.Linear(1, 1) for _ in range(3))

    def wrapped(self, net: nn.Module) -> ForeignNet:
        return ForeignNet(net, list(net.children()), channels=1, depths=3, config=self)


def test_a_frozen_encoder_trains_nothing_and_a_thawed_one_its_parts() -> None:
    told = {}
    for thaw in (0, 2, "all"):
        for weighted in (False, True):
            config = Foreign(thaw=thaw, weighted=weighted)  # type: ignore[arg-type]
            told[thaw, weighted] = encoders.trained(config)
            assert told[thaw, weighted] == tuple(encoders.build(config, "").encoder.trained())
    assert told == {
        (0, False): (),
        (0, True): ("layers",),
        (2, False): ("thawed",),
        (2, True): ("thawed", "layers"),
        ("all", False): ("thawed",),
        ("all", True): ("thawed", "layers"),
    }
    with pytest.raises(ValueError, match=r"^optimizer\.lr names encoder, which .* does not train; it trains mapping$"):
        Optimizer(lr={"encoder": 1e-3, "mapping": 1e-3}).check((*encoders.trained(Foreign()), "mapping"))


def test_a_wrong_key_of_the_encoder_is_told_alone() -> None:
    """Not also that the rates, which follow from the encoder, have no default."""
    values = {"name": "voice_styled_face", "encoder": {"blockz": [1, 1, 1]}}
    with pytest.raises(
        V2FError, match=r"unknown key 'system\.encoder\.blockz'; did you mean 'system\.encoder\.blocks'\?$"
    ):
        build(VoiceStyledFace.Config, values, "test", "system.")


def test_a_spectrogram_of_another_sample_rate_is_refused() -> None:
    with pytest.raises(V2FError, match=r"system: sample_rate is 16000, encoder\.sample_rate 8000; make them equal$"):
        configured(encoder={"net": "spectrogram", "sample_rate": 8000})
