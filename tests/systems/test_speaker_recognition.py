"""Speaker recognition: its losses by hand, what its meters say of held-out people, and what S1 takes of it."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import torch.nn.functional as F
from corpora import voice
from encoders.small import ENCODERS
from systems.small import SMALL
from torch import Tensor

from v2f.cli import main
from v2f.config import build
from v2f.data.loader import read_split
from v2f.data.manifest import open_dataset
from v2f.errors import V2FError
from v2f.generate import generate
from v2f.runs import checkpoint
from v2f.runs.config import RunConfig, load_config
from v2f.runs.peers import ALONE
from v2f.runs.run import Run, build_system, start_from
from v2f.system import Batch
from v2f.systems.speaker_recognition import SpeakerRecognition
from v2f.training.trainer import fit

RECIPES = Path(__file__).parents[2] / "launch" / "recipes"
Values = Callable[..., dict[str, Any]]
SOFTMAX, ARCFACE = {"kind": "softmax"}, {"kind": "arcface", "scale": 16.0, "margin": 0.2}


def values_of(run_values: Values, system: dict[str, Any] | None = None, **train: Any) -> dict[str, Any]:
    values = run_values("speaker_recognition", **train)
    return values | {"system": values["system"] | (system or {})}


def made(run_values: Values, **system: Any) -> SpeakerRecognition:
    found = build_system(build(RunConfig, values_of(run_values, system), "test"))
    assert isinstance(found, SpeakerRecognition)
    return found.eval()


def batch_of(system: SpeakerRecognition, root: str, split: str, count: int = 6) -> Batch:
    return next(iter(read_split(open_dataset(root).split(split), system.transforms(), count)))


# ------------------------------------------------------------------------------------------------ losses


@pytest.mark.parametrize("heads", ["last", "all"])
def test_the_loss_is_the_cross_entropy_of_each_head(run_values: Values, tiny_shards: str, heads: str) -> None:
    system = made(run_values, heads=heads, loss=SOFTMAX)
    batch = batch_of(system, tiny_shards, "train")
    found = system.loss("supervised", batch, 0)
    maps = system.encoder(batch["wav"])
    each = []
    for head, map_BCT in zip(system.head, maps[-len(system.head) :], strict=True):
        hidden = head.activation(map_BCT.mean(2) @ head.hidden.weight.T + head.hidden.bias)
        each.append(F.cross_entropy(hidden @ head.people.weight.T + head.people.bias, batch["person"]))
    assert len(each) == {"last": 1, "all": 3}[heads]
    torch.testing.assert_close(found["total"], torch.stack(each).mean())
    depths = [found[name] for name in found if name.startswith("depth_")]
    torch.testing.assert_close(depths, each if heads == "all" else [])


def test_without_a_hidden_layer_the_embedding_is_the_mean_of_the_map(run_values: Values, tiny_shards: str) -> None:
    own = {"width": None, "activation": "none", "heads": "last", "loss": SOFTMAX, "encoder": ENCODERS["wen_trained"]}
    system = made(run_values, **own, optimizer={"lr": {"encoder": 1e-3, "head": 1e-3}})
    batch = batch_of(system, tiny_shards, "train")
    mean = system.encoder(batch["wav"])[-1].mean(2)
    torch.testing.assert_close(system.sample(batch)["embedding"], F.normalize(mean))
    (head,) = system.head
    wanted = F.cross_entropy(mean @ head.people.weight.T + head.people.bias, batch["person"])
    torch.testing.assert_close(system.loss("supervised", batch, 0)["total"], wanted)
    assert system.makes()["embedding"].width == 12  # type: ignore[attr-defined]
    assert {name for name, _ in head.named_parameters()} == {"people.weight", "people.bias"}


def test_arcface_is_equation_three(run_values: Values, tiny_shards: str) -> None:
    system = made(run_values, heads="last", loss=ARCFACE)
    batch = batch_of(system, tiny_shards, "train")
    (head,) = system.head
    hidden = F.normalize(head.embed(system.encoder(batch["wav"])[-1]))
    angle_BN = (hidden @ F.normalize(head.people.weight).T).detach().double().acos()
    expected = []
    for row, own in enumerate(batch["person"].tolist()):
        own_term = math.exp(16 * math.cos(angle_BN[row, own] + 0.2))
        others = sum(math.exp(16 * math.cos(angle)) for n, angle in enumerate(angle_BN[row].tolist()) if n != own)
        expected.append(-math.log(own_term / (own_term + others)))
    with torch.no_grad():
        total = system.loss("supervised", batch, 0)["total"]
    assert float(total) == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_people_who_were_not_in_training_are_not_in_the_loss(run_values: Values, tiny_shards: str) -> None:
    system = made(run_values)
    known, unknown = (batch_of(system, tiny_shards, split, 4) for split in ("seen", "valid"))
    assert (known["person"] >= 0).all()
    assert (unknown["person"] == -1).all()
    both = {name: torch.cat([known[name], unknown[name]]) for name in ("wav", "person", "weight")}
    alone, mixed = (system.loss("supervised", batch, 0) for batch in (known, both))
    for name, value in alone.items():
        torch.testing.assert_close(mixed[name], value / 2)  # sum(w l) / B


def test_the_last_head_alone_trains_all_that_leads_to_it(run_values: Values) -> None:
    values = values_of(run_values, {"heads": "last"}, steps=2)
    before = build_system(build(RunConfig, values, "test")).state_dict()
    after = Run.open(fit(build(RunConfig, values, "test"))).system(ema=False).state_dict()
    moved = {name.split(".")[1] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {"stem", "stages", "0"} <= moved


@pytest.mark.parametrize("loss", [SOFTMAX, ARCFACE], ids=lambda loss: loss["kind"])
def test_it_memorizes_a_batch(run_values: Values, tiny_shards: str, loss: dict[str, Any]) -> None:
    system = made(run_values, loss=loss).train()
    batch = batch_of(system, tiny_shards, "train", 16)
    parameters = [p for phase in system.phases() for module in phase.modules.values() for p in module.parameters()]
    adam, first = torch.optim.Adam(parameters, 1e-2), system.loss("supervised", batch, 0)
    for step in range(30):
        found = system.loss("supervised", batch, step)
        adam.zero_grad()
        found["total"].backward()  # type: ignore[no-untyped-call]
        adam.step()
    assert found["total"] < first["total"] / 4
    assert first["accuracy"] < 0.3
    assert found["accuracy"] > 0.9


# ------------------------------------------------------------------------------------------------ people


def test_more_people_than_classes_are_one_clear_error_before_the_first_step(run_values: Values) -> None:
    with pytest.raises(
        V2FError, match=r"24 people are seen in training, the system tells 23 apart; set system\.people=24"
    ):
        fit(build(RunConfig, values_of(run_values, {"people": 23}), "test"))
    fit(build(RunConfig, values_of(run_values, {"people": 24}, steps=1), "test"))


@pytest.mark.parametrize(
    ("splits", "there", "absent"),
    [
        ("seen", {"accuracy", "cross_entropy"}, {"eer"}),
        (["seen", "valid"], {"accuracy", "cross_entropy"}, {"eer"}),  # one clip of each person in valid: no trials
        ("valid", set(), {"accuracy", "eer"}),
        (["seen", "test"], {"accuracy", "eer"}, set()),
    ],
)
def test_meters_are_those_that_the_validation_splits_allow(
    run_values: Values, splits: Any, there: set[str], absent: set[str]
) -> None:
    values = values_of(run_values, steps=1, validate_samples=20)
    folder = fit(build(RunConfig, values | {"data": values["data"] | {"valid": splits}}, "test"))
    meters = checkpoint.read_state(checkpoint.latest(f"{folder}/checkpoints") or "")["state"]["metrics"]
    assert there | {"distance"} <= meters.keys()
    assert not absent & meters.keys()
    assert all(math.isfinite(value) for value in meters.values())
    if "eer" in meters:
        assert 0 <= meters["eer"] <= 1


def test_of_several_splits_each_gives_an_equal_part(run_values: Values, monkeypatch: pytest.MonkeyPatch) -> None:
    people: list[int] = []
    real = SpeakerRecognition.meters

    def looking(self: SpeakerRecognition, batches: list[Batch]) -> dict[str, float]:
        people.extend(number for batch in batches for number in batch["person"].tolist())
        return real(self, batches)

    monkeypatch.setattr(SpeakerRecognition, "meters", looking)
    values = values_of(run_values, steps=1, validate_samples=8)
    fit(build(RunConfig, values | {"data": values["data"] | {"valid": ["seen", "valid"]}}, "test"))
    assert [number >= 0 for number in people] == [True] * 4 + [False] * 4


def test_a_split_that_is_absent_is_said(run_values: Values, capsys: pytest.CaptureFixture[str]) -> None:
    values = values_of(run_values, steps=1)
    fit(build(RunConfig, values | {"data": values["data"] | {"valid": ["seen", "nobody"]}}, "test"))
    assert "there is no split 'nobody', so training runs without these samples" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ verdicts


def test_a_collapse_and_an_accuracy_of_chance_are_named(run_values: Values) -> None:
    system = made(run_values)
    learned = {"loss/supervised/accuracy": [0.4] * 10}
    assert system.verdict({"distance": 0.3, "accuracy": 0.4}, learned) is None
    assert str(system.verdict({"distance": 1e-5}, learned)).startswith("COLLAPSED: one embedding for every voice")
    stuck = str(system.verdict({"distance": 0.3}, {"loss/supervised/accuracy": [0.5] * 5 + [0.05] * 10}))
    assert stuck.startswith("AT CHANCE: 5 % of the training clips are recognized, a guess is right in 3.3 %")
    assert system.verdict({"distance": 0.3}, {"loss/supervised/accuracy": [0.0] * 9}) is None  # too early to say


def test_one_embedding_for_every_voice_has_no_distance(run_values: Values, tiny_shards: str) -> None:
    system = made(run_values)
    for head in system.head:
        head.hidden.weight.data.zero_()
        head.hidden.bias.data.fill_(1.0)
    meters = system.meters([batch_of(system, tiny_shards, "valid")])
    assert meters["distance"] == pytest.approx(0, abs=1e-9)
    assert str(system.verdict(meters, {})).startswith("COLLAPSED")


# ------------------------------------------------------------------------------------------------ what it gives


def encoder_state(run: Run | Any) -> dict[str, Tensor]:
    return {name: t for name, t in run.state_dict().items() if name.startswith("encoder.")}


@pytest.mark.parametrize("heads", ["last", "all"])
def test_a_face_run_starts_from_its_encoder(run_values: Values, tmp_path: Path, heads: str) -> None:
    encoder = SMALL["voice_styled_face"]["encoder"]
    speaker = values_of(run_values, {"encoder": encoder, "heads": heads}, steps=2)
    folder = fit(build(RunConfig, speaker | {"out": str(tmp_path / "speaker")}, "test"))
    init_from = [{"run": folder, "module": "encoder"}]
    config = build(RunConfig, run_values(steps=1) | {"init_from": init_from, "out": str(tmp_path / "face")}, "test")
    system = build_system(config)
    fresh = {name: tensor.clone() for name, tensor in encoder_state(system).items()}
    (record,) = start_from(config, system, ALONE)
    assert (record["source"], record["into"], record["averaged"]) == (folder, "encoder", True)
    taken, wanted = encoder_state(system), encoder_state(Run.open(folder).system())
    assert taken.keys() == wanted.keys()
    assert all(torch.equal(taken[name], wanted[name]) for name in taken)
    assert not all(torch.equal(taken[name], fresh[name]) for name in taken)
    fit(config)


def test_the_recipes_that_belong_together_have_the_same_encoder() -> None:
    def encoder(name: str) -> Any:
        return load_config(str(RECIPES / f"{name}.yaml")).system.encoder  # type: ignore[attr-defined]

    assert encoder("speaker-pretrain") == encoder("thesis-pretrained") == encoder("thesis-final")
    assert encoder("speaker-synthetic") == encoder("quickstart")
    whole, other = (load_config(str(RECIPES / f"thesis-{name}.yaml")) for name in ("final", "pretrained"))
    assert (whole.system, whole.data, whole.train) == (other.system, other.data, other.train)
    (source,) = other.init_from
    assert (source.run, source.module) == (load_config(str(RECIPES / "speaker-pretrain.yaml")).folder, "encoder")


def test_the_embedding_has_unit_length_and_is_what_the_graph_and_the_file_say(
    run_values: Values, tmp_path: Path, tiny_shards: str
) -> None:
    folder = fit(build(RunConfig, values_of(run_values, steps=1), "test"))
    system = Run.open(folder).system().eval()
    batch = batch_of(system, tiny_shards, "valid")  # type: ignore[arg-type]
    embedding = system.sample(batch)["embedding"]
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(6))
    assert main(["checkpoint", "export", folder, "-o", str(tmp_path / "export"), "--format", "torch-export"]) == 0
    graph = torch.export.load(tmp_path / "export" / "model.pt2").module()
    torch.testing.assert_close(graph(batch["wav"]), embedding, atol=1e-5, rtol=0)
    assert "the cosine of two says how likely" in (tmp_path / "export" / "README.md").read_text()
    soundfile.write(tmp_path / "voice.wav", voice(3), 16000)
    generate(Run.open(folder), str(tmp_path / "voice.wav"), str(tmp_path / "out.json"))
    found = json.loads((tmp_path / "out.json").read_text())
    assert sum(value**2 for value in found["values"]) == pytest.approx(1, abs=1e-5)
    assert "biometric" in found["about"]["Disclaimer"]


def test_a_frozen_encoder_trains_the_heads_alone_and_has_no_rate(run_values: Values) -> None:
    values = values_of(run_values, {"encoder": ENCODERS["ge2e"], "heads": "last"})
    values["system"].pop("optimizer", None)
    config = build(RunConfig, values, "test")
    assert config.system.optimizer.lr.keys() == {"head"}  # type: ignore[attr-defined]
    (phase,) = build_system(config).phases()
    assert phase.modules.keys() == {"head"}
    rate = {"optimizer": {"lr": {"encoder": 1e-3, "head": 1e-3}}}
    with pytest.raises(V2FError, match=r"optimizer\.lr names encoder, which this configuration does not train"):
        build(RunConfig, values | {"system": values["system"] | rate}, "test")


def test_weights_of_another_encoder_are_said_in_words(run_values: Values, tmp_path: Path) -> None:
    folder = fit(build(RunConfig, values_of(run_values, steps=1), "test"))
    speaker = values_of(run_values, {"encoder": SMALL["voice_styled_face"]["encoder"]})
    config = build(RunConfig, speaker | {"init_from": [{"run": folder, "module": "encoder"}]}, "test")
    with pytest.raises(V2FError, match="its encoder has blocks 1/1/1, kernel 9 and prelu"):
        start_from(config, build_system(config), ALONE)
