"""Face GAN: its losses follow the equations; both failures are provoked and named, and healthy training is not."""

import math
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from v2f import metrics
from v2f.config import build
from v2f.data.encoding import encode
from v2f.data.loader import Loader, read_split
from v2f.data.manifest import open_dataset
from v2f.data.order import Order
from v2f.data.sample import Sample
from v2f.data.transforms import NoiseVector, Photo
from v2f.engine import Engine
from v2f.errors import V2FError
from v2f.evaluation.evaluate import evaluate
from v2f.generate import generate
from v2f.keyed import keyed_rng
from v2f.nn.diffaugment import NUMBERS, diffaugment
from v2f.runs import checkpoint
from v2f.runs.config import RunConfig
from v2f.runs.run import Run
from v2f.systems.face_gan import FaceGAN
from v2f.training.trainer import fit
from v2f.web.report import report

TINY = {"name": "face_gan", "image_size": 16, "share": 0.75, "width": 8, "bn_group": 8}


def made(**changes: Any) -> FaceGAN:
    torch.manual_seed(0)
    return FaceGAN(build(FaceGAN.Config, TINY | changes, "test"))


def rates(discriminator: float, generator: float) -> dict[str, Any]:
    return {
        name: {"lr": {name: rate}, "betas": [0.5, 0.999]}
        for name, rate in (("discriminator", discriminator), ("generator", generator))
    }


def batch_of(system: FaceGAN, size: int = 8) -> dict[str, Any]:
    side = system.config.image_size
    return {
        "image": torch.from_numpy(keyed_rng(5).integers(0, 256, (size, 3, side, side)).astype(np.uint8)),
        "noise": torch.from_numpy(keyed_rng(6).normal(size=(size, system.config.noise))),
        "augment_real": torch.from_numpy(keyed_rng(7).random((size, NUMBERS))),
        "augment_made": torch.from_numpy(keyed_rng(8).random((size, NUMBERS))),
        "weight": torch.ones(size),
    }


# ------------------------------------------------------------------------------------------- the equations


@pytest.mark.parametrize("smooth", [0.0, 0.1])
def test_the_discriminators_loss_is_cross_entropy(smooth: float) -> None:
    system = made(smooth=smooth).double()
    batch = batch_of(system)
    losses = system.loss("discriminator", batch, 0)
    real = system.discriminator(batch["image"].double() / 127.5 - 1)
    fake = system.discriminator(system.generator(batch["noise"]))
    wanted = F.binary_cross_entropy(torch.sigmoid(real), torch.full((8,), 1 - smooth, dtype=torch.float64))
    torch.testing.assert_close(losses["real"], wanted)
    torch.testing.assert_close(losses["fake"], -torch.log(1 - torch.sigmoid(fake)).mean())
    torch.testing.assert_close(losses["total"], losses["real"] + losses["fake"])
    assert losses["accuracy_real"].item() == (torch.sigmoid(real) > 0.5).double().mean()
    assert losses["accuracy_fake"].item() == (torch.sigmoid(fake) <= 0.5).double().mean()


@pytest.mark.parametrize("loss", ["non_saturating", "minimax"])
def test_the_generators_loss_is_the_one_that_is_named(loss: str) -> None:
    system = made(loss=loss).double()
    batch = batch_of(system)
    told = system.loss("generator", batch, 0)["total"]
    believed = torch.sigmoid(system.discriminator(system.generator(batch["noise"])))
    wanted = -torch.log(believed).mean() if loss == "non_saturating" else torch.log(1 - believed).mean()
    torch.testing.assert_close(told, wanted)


def test_the_discriminators_phase_gives_the_generator_no_gradient() -> None:
    system = made()
    system.loss("discriminator", {k: v.float() for k, v in batch_of(system).items()}, 0)["total"].backward()
    assert all(p.grad is None for p in system.generator.parameters())
    assert all(p.grad is not None for p in system.discriminator.parameters())


@pytest.mark.parametrize("norm", ["batch", "none", "spectral"])
def test_r1_is_added_every_few_steps_and_counts_as_often(norm: str) -> None:
    with_r1 = made(norm=norm, r1=3.0, r1_every=4).double()
    without = made(norm=norm).double()
    batch = batch_of(with_r1)
    plain = without.loss("discriminator", batch, 4)
    for step in (0, 4):
        losses = with_r1.loss("discriminator", batch, step)
        torch.testing.assert_close(losses["total"], plain["total"] + 4 * losses["r1"])
        assert losses["r1"] > 0
    for step in (1, 3):
        losses = with_r1.loss("discriminator", batch, step)
        assert "r1" not in losses
        torch.testing.assert_close(losses["total"], plain["total"])

    photo = (batch["image"].double() / 127.5 - 1).requires_grad_()
    (gradient,) = torch.autograd.grad(with_r1.discriminator(photo).sum(), photo)
    torch.testing.assert_close(
        with_r1.loss("discriminator", batch, 0)["r1"], 1.5 * gradient.square().sum((1, 2, 3)).mean()
    )
    with torch.no_grad():
        measured = with_r1.loss("discriminator", batch, 0)
    torch.testing.assert_close(measured["total"], with_r1.loss("discriminator", batch, 0)["total"].detach())
    assert not any(value.requires_grad for value in measured.values())


def test_the_discriminator_sees_photos_and_generated_pictures_augmented_alike_in_both_phases() -> None:
    chosen: list[Any] = ["color", "translation", "cutout"]
    system, plain = made(augment=chosen).double(), made()
    batch = batch_of(system)
    seen: list[torch.Tensor] = []
    system.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    system.loss("discriminator", batch, 0)
    told = system.loss("generator", batch, 0)["total"]
    with torch.no_grad():
        generated = system.generator(batch["noise"])
    wanted = {
        "real": diffaugment(batch["image"].double() / 127.5 - 1, batch["augment_real"], chosen),
        "made": diffaugment(generated, batch["augment_made"], chosen),
    }
    for found, kind in zip(seen, ("real", "made", "made"), strict=True):
        torch.testing.assert_close(found.detach(), wanted[kind])
    told.backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in system.generator.parameters() if p.grad is not None)
    assert system.transforms().keys() - plain.transforms().keys() == {"augment_real", "augment_made"}
    assert "augment_made" not in system.asks()


def test_a_run_with_all_of_it_resumes_bit_equal(run_values: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    def tensors(folder: str) -> dict[str, torch.Tensor]:
        return checkpoint.load(checkpoint.latest(f"{folder}/checkpoints") or "")[0]

    values = run_values("face_gan", steps=5, checkpoint_every=3)
    whole = tensors(fit(build(RunConfig, values, "test")))
    assert len([name for name in whole if name.startswith("model/discriminator") and name.endswith(".v")]) == 3
    values["out"] = str(tmp_path / "in-two")
    fit(build(RunConfig, values | {"train": values["train"] | {"steps": 3}}, "test"))
    resumed = tensors(fit(build(RunConfig, values, "test"), "auto", allow_changes=True))
    assert whole.keys() == resumed.keys()
    assert [name for name, tensor in whole.items() if not torch.equal(tensor, resumed[name])] == []


def test_a_side_without_a_net_is_one_clear_line() -> None:
    with pytest.raises(V2FError, match=r"^test: image_size: .* such as 16, 20, 24, 28.*got 30 \(int\)$"):
        made(image_size=30)


# ------------------------------------------------------------------------------------------------ the data


def test_noise_is_of_the_slot_in_training_and_of_the_sample_in_evaluation(tiny_shards: str) -> None:
    split = open_dataset(tiny_shards).split("train")
    order = Order.for_batches(split.shard_sizes, seed=0, batch=8, window=8)

    def noise(**options: Any) -> torch.Tensor:
        with Loader(split, order, {"noise": NoiseVector(5)}, batch=8, seed=1, **options) as loader:
            return next(iter(loader))["noise"]

    first = noise()
    assert torch.equal(first, noise(workers=1))
    assert torch.equal(first[4:], noise(rank=1, world_size=2))
    assert not torch.equal(first, noise(start_slot=8))
    fixed = [next(iter(read_split(split, {"noise": NoiseVector(5)}, n)))["noise"] for n in (3, 4)]
    assert torch.equal(fixed[0], fixed[1][:3])
    assert len({row.tobytes() for row in fixed[1].numpy()}) == 4
    many = np.stack([NoiseVector(100)(object(), keyed_rng(7, slot)) for slot in range(200)])  # type: ignore[arg-type]
    assert many.dtype == np.float32
    assert many.mean() == pytest.approx(0, abs=0.03)
    assert many.std() == pytest.approx(1, abs=0.03)


def test_a_share_of_a_photo_is_its_middle() -> None:
    photo = np.zeros((20, 12, 3), np.uint8)
    photo[7:13, 3:9] = 255  # the middle half of the 12 columns, and as many rows
    sample = Sample("a", encode("a", None, None, [photo], identity="ada", split="train", source="test"))
    assert (Photo(6, 0.5)(sample, None) == 255).all()
    assert (Photo(6)(sample, None) == 0).any()


# -------------------------------------------------------------------------------------------- the troubles

STEPS, LOG = 48, 4


def play(system: FaceGAN, shards: str) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Train for ``STEPS`` steps; the meters over the people in train, and the means over ``LOG`` steps."""
    split = open_dataset(shards).split("train")
    order = Order.for_batches(split.shard_sizes, seed=0, batch=32, window=8)
    engine = Engine("fp32")
    engine.wrap(system, share=32, micro_batch=None)
    system.train()
    sums: dict[str, list[float]] = {}
    with Loader(split, order, system.transforms(), batch=32, seed=0) as loader:
        for step, batch in zip(range(STEPS), loader, strict=False):
            for phase in system.phases():
                result = engine.step(phase, batch, step, micro_batch=None, seen=32 * step, total=32 * STEPS)
                assert not result.skipped
                for name, value in result.losses.items():
                    sums.setdefault(f"loss/{phase.name}/{name}", []).append(float(value))
    history = {name: np.reshape(values, (-1, LOG)).mean(1).tolist() for name, values in sums.items()}
    meters = system.eval().meters(read_split(split, system.transforms(), 16))
    return meters, history


@pytest.fixture(scope="module")
def healthy(tiny_shards: str) -> tuple[FaceGAN, dict[str, float], dict[str, list[float]]]:
    system = made(**rates(1e-3, 1e-3))
    return (system, *play(system, tiny_shards))


def test_a_healthy_run_is_not_accused(healthy: tuple[FaceGAN, dict[str, float], dict[str, list[float]]]) -> None:
    system, meters, history = healthy
    assert system.verdict(meters, history) is None
    assert meters["variety_nearest"] > 2 * 0.25 * meters["variety"]  # and not by a hair
    assert np.mean(history["loss/discriminator/total"][-10:]) > 2 * 0.05
    assert metrics.oscillation(np.array(history["loss/generator/total"])) < 0.25 / 2


def test_a_generator_that_knows_two_pictures_is_called_mode_collapse(tiny_shards: str) -> None:
    system = made(**rates(1e-3, 1e-3))
    cripple = lambda net, inputs: (inputs[0][:, :1].sign().expand_as(inputs[0]),)  # noqa: E731
    system.generator.register_forward_pre_hook(cripple)
    meters, history = play(system, tiny_shards)
    verdict = system.verdict(meters, history)
    assert verdict is not None
    assert verdict.startswith("MODE COLLAPSE: the generated pictures repeat themselves (")
    assert "0 % of the distance to the nearest other" in verdict
    assert meters["variety"] > 0.1  # which alone would not have shown it


def test_a_discriminator_that_wins_is_called_not_converging(tiny_shards: str) -> None:
    system = made(**rates(5e-3, 1e-5), smooth=0.1)
    meters, history = play(system, tiny_shards)
    assert history["loss/discriminator/total"][-1] > 0.3  # smoothed labels leave that to one that knows all
    verdict = system.verdict(meters, history)
    assert verdict is not None
    assert verdict.startswith("NOT CONVERGING: the discriminator has won")
    assert "the generator's loss grew from" in verdict


def test_the_training_says_it_and_the_run_is_measured_and_shown(
    run_values: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = run_values("face_gan", steps=40, log_every=2, validate_every=20, validate_samples=20)
    values["system"] = TINY | rates(2e-2, 1e-5) | {"channels": 1, "kernel": 4}  # absurd rates, and gray pictures
    run = Run.open(fit(build(RunConfig, values, "test")))
    assert "step 40: NOT CONVERGING: the discriminator has won" in capsys.readouterr().err
    assert "Not measured yet" in Path(report(run)).read_text()

    measured = evaluate(run, device="cpu")
    printed = capsys.readouterr().out
    test = measured["splits"]["test"]
    assert list(measured["splits"]) == ["test"]
    assert test["people"] == 6
    assert list(test["by"]) == ["referee", "judge", "pixels"]
    assert test["by"]["pixels"]["lines"]["trained"]["variety"] == pytest.approx(1, abs=0.5)
    for by in ("referee", "judge"):
        made, trained = test["by"][by]["lines"]["generated"], test["by"][by]["lines"]["trained"]
        assert made["picture"]["energy"] > 2 * abs(trained["picture"]["energy"])  # it knows nothing
        assert made["frechet"] > 0 < trained["frechet"]  # of six people it says no more
    assert "6 people are few for 128 features" in " ".join(printed.split())
    assert "stand-ins" in printed

    page = Path(report(run)).read_text()
    assert page.index("When the training ended: NOT CONVERGING") < page.index("What it draws now")
    assert page.count('alt="a generated face"') == page.count('alt="a portrait from the data set"') == 6
    assert [f"samples at step {step}" in page for step in (20, 30, 40)] == [True, False, True]
    assert "photos of people seen in training" in page
    assert page.count('class="mark"') == 1  # what a guess costs, in the discriminator's chart
    assert "the discriminator&#39;s loss: between 0 and" in page  # not logarithmic, as its part is below
    assert ", log" in page[page.index('aria-label="discriminator / total') :][:600]
    with pytest.raises(V2FError, match="does not hear a voice"):
        generate(run, "voice.wav", str(tmp_path / "face.png"))


# ------------------------------------------------------------------------------------------- the verdict alone

FINE = {"variety": 0.9, "variety_nearest": 1.0, "variety_identity": 0.9}


def curves(generator: Any, total: float = 0.6, accuracy: float = 0.9) -> Mapping[str, Any]:
    points = len(generator)
    return {
        "loss/generator/total": deque(generator),
        "loss/discriminator/total": deque([total] * points),
        "loss/discriminator/accuracy_real": deque([accuracy] * points),
        "loss/discriminator/accuracy_fake": deque([accuracy] * points),
    }


def test_a_generators_loss_that_swings_is_named_and_one_that_moves_one_way_is_not() -> None:
    swings = metrics.gan_verdict(FINE, curves([1.0, 4.0] * 10))
    assert swings is not None
    assert swings.startswith("MODE COLLAPSE threatens: the generator's loss swings between 1 and 4")
    assert metrics.gan_verdict(FINE, curves([2 + 0.3 * math.sin(i) for i in range(40)])) is None
    assert metrics.gan_verdict(FINE, curves(range(1, 30))) is None
    both = metrics.gan_verdict(FINE | {"variety_nearest": 0.05}, curves([1.0, 4.0] * 10))
    assert both is not None
    assert "repeat themselves" in both
    assert "swings between" in both


def test_a_discriminator_that_is_worse_than_a_guess_is_named() -> None:
    verdict = metrics.gan_verdict(FINE, curves([2.0] * 20, total=1.7, accuracy=0.4))
    assert verdict is not None
    assert verdict.startswith("NOT CONVERGING: the discriminator is worse than a guess (its loss is 1.7")
    assert metrics.gan_verdict(FINE, curves([0.7] * 20, total=2 * math.log(2), accuracy=0.5)) is None  # equilibrium


def test_a_penalty_in_the_discriminators_total_is_not_its_loss() -> None:
    logged = dict(curves([2.0] * 20, total=7.0))
    assert "worse than a guess" in str(metrics.gan_verdict(FINE, logged))
    logged |= {f"loss/discriminator/{kind}": [0.3] * 20 for kind in ("real", "fake")}
    assert metrics.gan_verdict(FINE, logged) is None
    logged |= {f"loss/discriminator/{kind}": [0.01] * 20 for kind in ("real", "fake", "accuracy_real")}
    logged |= {f"loss/discriminator/accuracy_{kind}": [1.0] * 20 for kind in ("real", "fake")}
    assert "has won (its loss is 0.02; right on" in str(metrics.gan_verdict(FINE, logged))


def test_nothing_is_said_before_there_is_something_to_see() -> None:
    gray = dict.fromkeys(FINE, 0.01)
    pale = FINE | {"variety": 0.15, "variety_nearest": 0.19}
    assert metrics.gan_verdict(gray, {}) is None
    assert metrics.gan_verdict(gray, curves([0.7] * 9)) is None
    assert metrics.gan_verdict(gray, curves([0.7] * 10)) is not None
    assert metrics.gan_verdict(pale, curves([0.7] * 10)) is None
    assert metrics.gan_verdict(dict.fromkeys(FINE, float("nan")), curves([0.7] * 10)) is None


def test_real_pictures_have_all_the_variety_and_few_pictures_do_not() -> None:
    rng = keyed_rng(8)
    real, other = rng.normal(size=(2, 200, 30))
    whole = metrics.variety_meters(made=other, real=real, made_identity=other, real_identity=real)
    assert list(whole.values()) == pytest.approx([1, 1, 1], abs=0.05)
    modes = other[np.arange(200) % 10]
    few = metrics.variety_meters(made=modes, real=real, made_identity=modes, real_identity=real)
    assert few["variety"] > 0.8
    assert few["variety_nearest"] == pytest.approx(0, abs=1e-6)
    alone = metrics.variety_meters(made=real[:1], real=real[:1], made_identity=real[:1], real_identity=real[:1])
    assert all(math.isnan(value) for value in alone.values())
