"""The voice-to-face GAN: its losses by hand, both kinds of step, labels, encoders, and what a run says and makes."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from corpora import voice
from encoders.small import ENCODERS
from systems.reading import fixed, training
from systems.small import SMALL

from bench.random_weights import wen_embedding, wen_generator
from v2f.config import build, override
from v2f.data.encoding import encode
from v2f.data.manifest import open_dataset
from v2f.data.shards import write_manifest, write_shard
from v2f.engine import Engine
from v2f.errors import V2FError
from v2f.evaluation.evaluate import evaluate
from v2f.generate import generate
from v2f.keyed import keyed_rng
from v2f.runs.config import RunConfig
from v2f.runs.peers import ALONE
from v2f.runs.run import Run, build_system, start_from
from v2f.system import Batch
from v2f.systems.voice_gan import VoiceGAN
from v2f.training.trainer import fit
from v2f.web.report import report
from v2f.weights import FaceNetWeights, WenWeights

Values = Callable[..., dict[str, Any]]
ALTERNATING = {
    "step": "alternating",
    "discriminator": {"lr": {"trunk": 2e-4, "discriminator": 2e-4}},
    "classifier": {"lr": {"trunk": 2e-4, "classifier": 1e-3}},
}


def values_of(
    run_values: Values, *overrides: str, system: dict[str, Any] | None = None, **train: Any
) -> dict[str, Any]:
    values = run_values("voice_gan", **train)
    return override(values | {"system": values["system"] | (system or {})}, overrides)


def made(run_values: Values, *overrides: str, **system: Any) -> VoiceGAN:
    found = build_system(build(RunConfig, values_of(run_values, *overrides, system=system), "test"))
    assert isinstance(found, VoiceGAN)
    return found


def batch_of(system: VoiceGAN, shards: str) -> Batch:
    with training(open_dataset(shards).split("train"), system, 8) as streams:
        return next(iter(streams))


# ---------------------------------------------------------------------------------------------- the losses


@pytest.mark.parametrize("step", [{}, ALTERNATING], ids=["joint", "alternating"])
def test_the_losses_are_those_of_the_algorithm(run_values: Values, tiny_shards: str, step: dict[str, Any]) -> None:
    system = made(run_values, smooth=0.0, label_smoothing=0.25, picture_noise=0.2, **step).eval()
    batch = batch_of(system, tiny_shards)
    voice_, face = batch["voice"], batch["face"]
    embedding = F.normalize(system.encoder(voice_["wav"])[-1].squeeze(2))
    embedding = F.normalize(embedding + 0.1 * voice_["noise"])

    def seen(picture: torch.Tensor, grain: torch.Tensor) -> torch.Tensor:
        return system.trunk(picture + 0.2 * grain.reshape(picture.shape))  # type: ignore[no-any-return]

    real = seen(face["image"] / 127.5 - 1, face["grain"])
    fake = seen(system.generator(embedding), voice_["grain"])

    def judged(feature: torch.Tensor, target: float) -> torch.Tensor:
        logit = (feature @ system.discriminator.weight.T).squeeze(1)
        return F.binary_cross_entropy(torch.sigmoid(logit), torch.full_like(logit, target))

    def classified(feature: torch.Tensor, person: torch.Tensor) -> torch.Tensor:
        head = system.classifier["person"]
        return F.nll_loss(F.log_softmax(feature @ head.weight.T, 1), person)  # type: ignore[operator]

    phases = [phase.name for phase in system.phases()]
    found = {name: system.loss(name, batch, 0) for name in phases}
    logit = real @ system.classifier["person"].weight.T  # type: ignore[operator]
    smoothed = 0.75 * classified(real, face["person"]) - 0.25 * F.log_softmax(logit, 1).mean()
    adversarial, person = judged(real, 1) + judged(fake, 0), smoothed
    torch.testing.assert_close(found["discriminator"]["adversarial"], adversarial)
    if step:
        assert phases == ["discriminator", "classifier", "generator"]
        torch.testing.assert_close(found["discriminator"]["total"], adversarial)
        torch.testing.assert_close(found["classifier"]["total"], person)
        assert "person" not in found["discriminator"]
    else:
        assert phases == ["discriminator", "generator"]
        torch.testing.assert_close(found["discriminator"]["total"], adversarial + person)
    deceived = judged(fake, 1) + 0.5 * classified(fake, voice_["person"])
    torch.testing.assert_close(found["generator"]["total"], deceived)
    right = (fake @ system.classifier["person"].weight.T).argmax(1) == voice_["person"]  # type: ignore[operator]
    assert found["generator"]["accuracy_person"].item() == right.double().mean()


def test_a_step_hears_each_voice_once(run_values: Values, tiny_shards: str) -> None:
    system = made(run_values)
    system.train()
    batch = batch_of(system, tiny_shards)
    heard: list[int] = []

    def hear(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        heard.append(len(inputs[0]))

    assert isinstance(system.encoder, torch.nn.Module)
    system.encoder.register_forward_hook(hear)
    first = [system.loss(phase.name, batch, 0)["total"] for phase in system.phases()]
    assert heard == [8]
    batch["voice"]["wav"].copy_(batch["voice"]["wav"].roll(1, 0))
    changed = [system.loss(phase.name, batch, 0)["total"] for phase in system.phases()]
    assert heard == [8, 8]
    assert all(one != other for one, other in zip(first, changed, strict=True))


def test_a_phase_gives_gradients_to_its_own_modules_alone(run_values: Values, tiny_shards: str) -> None:
    system = made(run_values, **ALTERNATING)
    batch = batch_of(system, tiny_shards)
    for phase in system.phases():
        system.zero_grad()
        system.loss(phase.name, batch, 0)["total"].backward()
        with_gradient = {name.split(".")[0] for name, p in system.named_parameters() if p.grad is not None}
        assert phase.modules.keys() <= with_gradient
        assert "encoder" not in with_gradient
        assert "generator" not in with_gradient or phase.name == "generator"


def test_both_kinds_of_step_learn_and_zero_refuses_only_the_alternating_one(
    run_values: Values, tiny_shards: str
) -> None:
    for step in ({}, ALTERNATING):
        system = made(run_values, every=1, init="torch", **step)
        engine = Engine("fp32")
        engine.wrap(system, share=8, micro_batch=None)
        system.train()
        losses: dict[str, list[float]] = {}
        with training(open_dataset(tiny_shards).split("train"), system, 8) as streams:
            for number, batch in zip(range(30), streams, strict=False):
                for phase in system.phases():
                    taken = engine.step(phase, batch, number, micro_batch=None, seen=8 * number, total=240)
                    for name, value in taken.losses.items():
                        losses.setdefault(f"{phase.name}/{name}", []).append(float(value))
        owner = "classifier" if step else "discriminator"
        learned = losses[f"{owner}/person"]
        assert np.mean(learned[-5:]) < np.mean(learned[:5])
        assert np.mean(losses["discriminator/adversarial"][-5:]) < losses["discriminator/adversarial"][0]
    refused = Engine("fp32", "zero1")
    with pytest.raises(V2FError, match=r"both train 'trunk', which ZeRO cannot partition twice; use"):
        refused.wrap(made(run_values, **ALTERNATING), share=8, micro_batch=None)


def test_people_who_were_not_in_training_do_not_count_for_the_classifier(run_values: Values, tiny_shards: str) -> None:
    system = made(run_values).eval()
    batch = next(fixed(open_dataset(tiny_shards).split("valid"), system, 6))
    assert batch["face"]["person"].tolist() == [-1] * 6
    for phase in ("discriminator", "generator"):
        losses = system.loss(phase, batch, 0)
        assert losses["person"] == losses["accuracy_person"] == 0
        assert losses["adversarial"] > 0


# ------------------------------------------------------------------------------------------- labels, people


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Data sets of people with a gender in the JSON of their samples, two of each."""

    def make(name: str, people: range, split: str = "train") -> str:
        root, samples = str(tmp_path_factory.mktemp(name) / "shards"), []
        for person, clip in itertools.product(people, range(2)):
            rng, key = keyed_rng(0x1AB, person, clip), f"id{person}-{clip}"
            wav_T = rng.integers(-8192, 8193, 4000).astype(np.float32) / 32768
            photo = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
            about: dict[str, Any] = {"identity": f"id{person}", "split": split, "source": "test"}
            extra = {"gender": "fm"[person % 2]}
            samples.append((key, f"id{person}", encode(key, wav_T, 16_000, [photo], extra=extra, **about)))
        return write_manifest(root, [write_shard(root, f"{split}-00000.tar", split, samples)], {"source": "test"}).root

    return make


def test_any_label_is_a_further_signal(run_values: Values, labeled: Callable[..., str]) -> None:
    system = made(run_values, labels={"gender": ["f", "m"]}, terms={"person": 0.0, "labels": 2.0}).eval()
    assert system.classifier["gender"].weight.shape == (2, 8)
    batch = batch_of(system, labeled("one", range(8)))
    critic, generator = system.loss("discriminator", batch, 0), system.loss("generator", batch, 0)
    feature = system.trunk(batch["face"]["image"] / 127.5 - 1)
    wanted = F.cross_entropy(system.classifier["gender"](feature), batch["face"]["gender"])
    torch.testing.assert_close(critic["gender"], wanted)
    torch.testing.assert_close(critic["total"], critic["adversarial"] + critic["person"] + critic["gender"])
    torch.testing.assert_close(generator["total"], generator["adversarial"] + 2.0 * generator["gender"])
    assert 0 <= generator["accuracy_gender"] <= 1


def test_a_person_has_one_number_in_both_streams_wherever_they_are_stored(
    run_values: Values, labeled: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voices, faces = labeled("voices", range(8)), labeled("faces", range(5, 13))
    places = (f"data.streams.voice.path={voices}", f"data.streams.face.path={faces}", "data.path=null")
    values = values_of(run_values, *places, "data.valid=null", "train.steps=2")
    seen: dict[tuple[int, int], set[str]] = {}
    loss = VoiceGAN.loss

    def watched(self: VoiceGAN, phase: str, batch: Batch, step: int) -> Any:
        for stream, own in batch.items():
            for identity, person in zip(own["identity"].tolist(), own["person"].tolist(), strict=True):
                seen.setdefault((identity, person), set()).add(stream)
        return loss(self, phase, batch, step)

    monkeypatch.setattr(VoiceGAN, "loss", watched)
    fit(build(RunConfig, values, "test"))
    assert len(seen) == len({identity for identity, _ in seen}) == len({person for _, person in seen}) == 13
    assert sum(len(streams) == 2 for streams in seen.values()) == 3
    few = build(RunConfig, override(values, ["system.people=12", f"out={tmp_path / 'other'}"]), "test")
    with pytest.raises(
        V2FError, match=r"13 people are seen in training, the system tells 12 apart; set system\.people"
    ):
        fit(few)


# ------------------------------------------------------------------------------------------------ encoders


def test_the_encoder_of_another_run_is_taken_with_its_front_end(run_values: Values, tmp_path: Path) -> None:
    speakers = run_values("speaker_recognition", steps=2) | {"out": str(tmp_path / "speakers")}
    rates = {"lr": {"encoder": 1e-2, "head": 1e-2}}
    speakers["system"] |= {"encoder": ENCODERS["wen_trained"] | {"silence": 20.0}, "heads": "last", "optimizer": rates}
    folder = fit(build(RunConfig, speakers, "test"))
    chosen = {"net": "run", "path": folder, "module": "encoder"}
    run = Run.open(fit(build(RunConfig, values_of(run_values, steps=1, system={"encoder": chosen}), "test")))
    system, before = run.system(), Run.open(folder).system()
    assert isinstance(system, VoiceGAN)
    wav = torch.from_numpy(voice(3)).float()[None]
    assert torch.equal(system.encoder(wav)[0], before.encoder(wav)[0])  # type: ignore[operator]
    assert system.encoder.silence == 20.0  # type: ignore[attr-defined]
    assert system.weights["encoder"] == run.info["weights"]["encoder"]
    assert run.config.system.requirements().run_modules.keys() == {"encoder"}
    with pytest.raises(V2FError, match=r"system\.encoder: head of .* is a ModuleList, not a voice encoder; name"):
        made(run_values, encoder=chosen | {"module": "head"})


def test_the_front_end_is_the_same_in_training_evaluation_and_generation(
    run_values: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[torch.Tensor] = []
    run = Run.open(fit(build(RunConfig, values_of(run_values, "system.sample_noise=false", steps=1), "test")))
    system = run.system()
    assert isinstance(system, VoiceGAN)
    forward = system.encoder.net.forward
    monkeypatch.setattr(system.encoder.net, "forward", lambda x: heard.append(x) or forward(x))
    wav_T = voice(3, 0.4)
    soundfile.write(tmp_path / "voice.wav", wav_T, 16_000, subtype="FLOAT")
    generate(run, str(tmp_path / "voice.wav"), str(tmp_path / "face.png"), system=system)
    system.train()
    system.embedding(torch.from_numpy(wav_T).float()[None])
    torch.testing.assert_close(heard[0], heard[1])
    assert Path(tmp_path / "face.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ({"encoder": ENCODERS["wen_trained"]}, "the encoder is frozen here: remove thaw and weighted"),
        ({"encoder": {"net": "ecapa", "precomputed": True}}, "precomputed features are not read here"),
        (
            {"encoder": {"net": "waveform"}},
            "system.encoder.net: unknown value 'waveform'; known: 'ecapa', .* 'wen', 'run'",
        ),
        ({"sample_rate": 8000}, "sample_rate is 8000, wen takes 16000 Hz"),
        ({"image_size": 30}, "system.image_size: .* 4 to 7 times a power of two"),
        ({"labels": {"person": ["a", "b"]}}, "labels: 'person' is the name of something else here; rename"),
        ({"step": "alternating"}, "discriminator.lr names classifier, which .* it trains discriminator and trunk"),
        ({"classifier": {"lr": {"trunk": 1e-3}}}, "classifier is trained with the discriminator where step is joint"),
        (ALTERNATING | {"classifier": None}, "classifier needs an optimizer where step is alternating"),
        ({"trunk": {"kernel": 5}}, "system.trunk.kernel"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_line(run_values: Values, system: dict[str, Any], message: str) -> None:
    with pytest.raises(V2FError, match=message) as caught:
        build(RunConfig, values_of(run_values, system=system), "test")
    assert "\n" not in str(caught.value)


def test_defaults_are_wens_and_need_the_published_weights(run_values: Values) -> None:
    config = build(VoiceGAN.Config, {"name": "voice_gan", "people": 924}, "test")
    assert config.requirements(with_referee=False).user_weights == {"encoder": WenWeights(net="wen")}
    assert (config.noise, config.step, config.last, config.trunk.net) == (0.05, "joint", "linear", "plain")
    judged = config.model_copy(
        update={"frozen": config.frozen.model_copy(update={"identity": FaceNetWeights(net="facenet")})}
    )
    assert judged.requirements().user_weights.keys() == {"encoder", "identity"}
    assert build(VoiceGAN.Config, config.model_dump(), "test") == config


@pytest.mark.parametrize(
    "system",
    [
        {"trunk": {"net": "resnet", "width": 4, "blocks": 2}, "last": "tanh"},
        {"image_size": 28, "sample_noise": False},
        {"encoder": ENCODERS["ge2e"], "noise": 0.0},
    ],
    ids=["resnet", "28 px", "ge2e"],
)
def test_other_nets_train_and_sample(run_values: Values, tiny_shards: str, system: dict[str, Any]) -> None:
    built = made(run_values, **system)
    batch = batch_of(built, tiny_shards)
    for phase in built.phases():
        built.loss(phase.name, batch, 0)["total"].backward()
    face = built.sample({name: batch["voice"][name] for name in built.asks()})["face"]
    assert face.shape == (8, 3, built.config.image_size, built.config.image_size)


# ------------------------------------------------------------------------------------------------- the run


def test_a_run_is_measured_shown_and_called_by_name_if_it_collapses(
    run_values: Values, labeled: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    values = values_of(run_values, "system.image_size=32", "system.init=torch", steps=12, validate_every=6)
    run = Run.open(fit(build(RunConfig, values, "test")))
    assert "step 6: COLLAPSED: one face for everyone" in capsys.readouterr().err  # of so few steps
    lines = Path(run.path, "metrics.jsonl").read_text().splitlines()
    names = {name for line in lines for name in json.loads(line).get("metrics", {})}
    for phase, parts in {
        "discriminator": ("real", "fake", "accuracy_real", "accuracy_fake", "person", "accuracy_person"),
        "generator": ("total", "adversarial", "person", "accuracy_person"),
    }.items():
        assert {f"loss/{phase}/{part}" for part in parts} <= names
    assert {"valid/identity_distance_ratio", "valid/margin", "valid/variety", "valid/variety_nearest"} <= names
    strangers = labeled("strangers", range(50, 56), "test")
    found = evaluate(run, strangers, device="cpu", progress=False)["splits"]["test"]["by"]["referee"]
    assert 0 <= found["lines"]["voice"]["picture"]["precision"] <= 1
    assert found["consistency"]["same"] >= found["consistency"]["different"] - 0.01
    assert "Consistency over a speaker" in Path(report(run, people=1)).read_text()


def test_the_verdict_names_the_game_by_the_losses_of_the_game_alone(run_values: Values) -> None:
    system = made(run_values, smooth=0.0)
    meters = {"identity_distance_ratio": 0.9, "margin": 0.2, "variety": 0.9, "variety_nearest": 0.9}
    points = 20

    def history(adversarial: float, accuracy: float) -> dict[str, list[float]]:
        return {
            "loss/generator/adversarial": [1.0 + 0.1 * n for n in range(points)],
            "loss/generator/total": [50.0] * points,
            "loss/discriminator/adversarial": [adversarial] * points,
            "loss/discriminator/total": [adversarial + 6.9] * points,  # with the classifier's
            "loss/discriminator/accuracy_real": [accuracy] * points,
            "loss/discriminator/accuracy_fake": [accuracy] * points,
        }

    assert system.verdict(meters, history(1.0, 0.7)) is None
    won = system.verdict(meters, history(0.01, 1.0))
    assert won is not None
    assert won.startswith("NOT CONVERGING: the discriminator has won")
    both = system.verdict(meters | {"identity_distance_ratio": 0.05}, history(0.01, 1.0))
    assert both is not None
    assert both.startswith("COLLAPSED: one face for everyone")
    assert "; NOT CONVERGING" in both


def test_meters_of_people_in_one_stream_only_have_no_margin(run_values: Values, tiny_shards: str) -> None:
    system = made(run_values).eval()
    batch = next(fixed(open_dataset(tiny_shards).split("valid"), system, 6))
    assert "margin" in system.meters([batch])
    batch["face"] = batch["face"] | {"identity": batch["face"]["identity"] + 1000}
    strangers = system.meters([batch])
    assert "margin" not in strangers
    assert strangers["identity_distance_ratio"] >= 0


def test_the_small_configuration_covers_the_keys_that_change_a_batch() -> None:
    assert SMALL["voice_gan"]["augment"] == {"noise": 0.5, "stutters": 0.5, "flip": 0.5}
    assert SMALL["voice_gan"]["sample_noise"]


def test_wens_generator_is_a_start_and_draws_with_wens_embedding(run_values: Values, tmp_path: Path) -> None:
    torch.save(wen_generator(), tmp_path / "generator.pth")
    torch.save(wen_embedding(), tmp_path / "voice_embedding.pth")
    own = {"name": "voice_gan", "people": 30, "seconds": 0.4, "frozen": {"path": str(tmp_path)}}
    start = [{"file": str(tmp_path / "generator.pth"), "into": "generator"}]
    config = build(RunConfig, run_values("voice_gan") | {"system": own, "init_from": start}, "test")
    system = build_system(config)
    start_from(config, system, ALONE)
    weight = torch.load(tmp_path / "generator.pth", weights_only=True)["model.0.weight"]
    assert torch.equal(system.generator.model[0].weight, weight)  # type: ignore[union-attr, index]
    face = system.eval().sample({"wav": torch.from_numpy(voice(3, 0.4)).float()[None]})["face"]
    assert face.shape == (1, 3, 64, 64)
    assert face.abs().max() <= 1
