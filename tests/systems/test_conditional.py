"""Pictures with a label as condition: the losses by hand, who gets which gradient, what is made of label and code."""

import base64
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from systems import small, test_contract
from torch import Tensor

from v2f import latent
from v2f.cli import main
from v2f.config import build
from v2f.data.loader import read_split
from v2f.data.manifest import open_dataset
from v2f.errors import V2FError
from v2f.generate import make
from v2f.given import Given, batch_of, inputs_in_words
from v2f.keyed import keyed_rng
from v2f.nn.variational import kl_to_normal, reparametrized, unlikeness
from v2f.roles import Restyling
from v2f.runs.config import RunConfig
from v2f.runs.peers import ALONE
from v2f.runs.run import Run, build_system, start_from
from v2f.system import Batch, Label, Noise, Picture, to_picture
from v2f.systems.conditional import Conditional
from v2f.training.trainer import fit
from v2f.web.maker import Maker

Values = Callable[..., dict[str, Any]]
CVAE: dict[str, Any] = {"kind": "cvae", "beta": 0.5}
CGAN: dict[str, Any] = {"kind": "cgan", "every": 2, "smooth": 0.1}
CVAE_GAN: dict[str, Any] = small.SMALL["conditional"]["model"]
CLASSES = ["black", "brown", "fair"]


def values_of(run_values: Values, model: dict[str, Any], **train: Any) -> dict[str, Any]:
    values = run_values("conditional", **train)
    return values | {"system": values["system"] | {"model": model}}


def made(run_values: Values, model: dict[str, Any]) -> Conditional:
    system = build_system(build(RunConfig, values_of(run_values, model), "test"))
    assert isinstance(system, Conditional)
    return system.double().eval()


def batch_for(system: Conditional, root: str, size: int = 6) -> Batch:
    batch = next(iter(read_split(open_dataset(root).split("train"), system.transforms(), size)))
    noise = {name: batch[name].double() for name in ("noise", "posterior_noise") if name in batch}
    if "posterior_noise" in noise:  # outside of training, both are the same numbers
        noise["posterior_noise"] = torch.from_numpy(keyed_rng(3).standard_normal(noise["noise"].shape))
    return batch | noise | {"weight": torch.ones(size, dtype=torch.float64)}


@pytest.mark.parametrize(
    "check",
    [value for name, value in vars(test_contract).items() if name.startswith("test_") and "small" not in name],
    ids=lambda check: check.__name__,
)
@pytest.mark.parametrize("model", [CVAE, CGAN], ids=["cvae", "cgan"])
def test_the_other_kinds_keep_the_contract(
    check: Any, model: dict[str, Any], run_values: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(small.SMALL, "conditional", small.SMALL["conditional"] | {"model": model})
    check(run_values, "conditional")


# ------------------------------------------------------------------------------------------- the equations


def test_the_divergence_is_the_integral_and_a_code_is_drawn_from_its_gaussian() -> None:
    mean, log_variance = torch.tensor([[0.3, -1.0], [0.0, 0.0]]), torch.tensor([[0.4, -0.5], [0.0, 0.0]])
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, torch.exp(0.5 * log_variance)), torch.distributions.Normal(0.0, 1.0)
    ).sum(1)
    torch.testing.assert_close(kl_to_normal(mean, log_variance), wanted)
    by_hand = 0.5 * (0.09 + math.exp(0.4) - 1 - 0.4) + 0.5 * (1 + math.exp(-0.5) - 1 + 0.5)
    assert kl_to_normal(mean, log_variance).tolist() == pytest.approx([by_hand, 0.0])
    noise = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    torch.testing.assert_close(reparametrized(mean, log_variance, noise), mean + noise * (log_variance / 2).exp())
    one, other = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    density = torch.distributions.Normal(one, 1.0)
    lost = (density.log_prob(one) - density.log_prob(other)).flatten(1).sum(1)
    torch.testing.assert_close(unlikeness(one, other), lost)


def test_the_cvae_restores_pixels_and_keeps_codes_near_the_prior(run_values: Values, tiny_shards: str) -> None:
    system = made(run_values, CVAE)
    batch = batch_for(system, tiny_shards)
    img = to_picture(batch["image"], like=batch["noise"])
    mean, log_variance = system.posterior(img, batch["label"])
    restored = system.decode(mean + torch.exp(0.5 * log_variance) * batch["posterior_noise"], batch["label"])
    found = system.loss("autoencoder", batch, 0)
    torch.testing.assert_close(found["likeness"], 0.5 * ((restored - img) ** 2).sum() / 6)
    torch.testing.assert_close(found["prior"], kl_to_normal(mean, log_variance).mean())
    torch.testing.assert_close(found["total"], found["likeness"] + 0.5 * found["prior"])


def told(system: Conditional, picture: Tensor, label: Tensor) -> Tensor:
    """D, the probability that pictures are real."""
    return torch.sigmoid(system.discriminator(picture, label))


def test_the_discriminator_of_the_cgan_is_told_apart_by_cross_entropy(run_values: Values, tiny_shards: str) -> None:
    system = made(run_values, CGAN)
    batch = batch_for(system, tiny_shards)
    label, img = batch["label"], to_picture(batch["image"], like=batch["noise"])
    real, fake = told(system, img, label), told(system, system.decode(batch["noise"], label), label)
    found = system.loss("discriminator", batch, 0)
    torch.testing.assert_close(found["real"], F.binary_cross_entropy(real, torch.full_like(real, 0.9)))
    torch.testing.assert_close(found["fake"], -torch.log(1 - fake).mean())
    torch.testing.assert_close(found["total"], found["real"] + found["fake"])
    torch.testing.assert_close(system.loss("generator", batch, 0)["total"], -torch.log(fake).mean())
    minimax = made(run_values, CGAN | {"loss": "minimax"})
    torch.testing.assert_close(minimax.loss("generator", batch, 0)["total"], torch.log(1 - fake).mean())
    other = system.loss("discriminator", batch | {"label": (label + 1) % 3}, 0)
    assert not torch.equal(other["real"], found["real"])  # a real picture of another class is another question


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_cvae_gan_is_algorithm_one_with_the_signs_of_its_words(
    run_values: Values, tiny_shards: str, layer: int
) -> None:
    system = made(run_values, CVAE_GAN | {"layer": layer, "smooth": 0.0})
    batch = batch_for(system, tiny_shards)
    label, img = batch["label"], to_picture(batch["image"], like=batch["noise"])
    mean, log_variance = system.posterior(img, label)
    restored = system.decode(mean + torch.exp(0.5 * log_variance) * batch["posterior_noise"], label)
    drawn = system.decode(batch["noise"], label)
    seen: list[Tensor] = []
    net: Any = [*system.discriminator.convs, system.discriminator.linear][layer - 1]
    norm = [*system.discriminator.norms, torch.nn.Identity()][layer - 1]
    with net.register_forward_hook(lambda module, inputs, output: seen.append(F.leaky_relu(norm(output), 0.2))):
        told(system, img, label), told(system, restored, label)
    likeness = 0.5 * ((seen[0] - seen[1]) ** 2).flatten(1).sum(1).mean()
    prior = kl_to_normal(mean, log_variance).mean()
    d_real, d_drawn, d_restored = (told(system, each, label) for each in (img, drawn, restored))
    gan = (torch.log(d_real) + torch.log(1 - d_drawn) + torch.log(1 - d_restored)).mean()
    torch.testing.assert_close(system.loss("encoder", batch, 0)["total"], 0.5 * prior + likeness)
    decoder = system.loss("decoder", batch, 0)
    deceived = -(torch.log(d_drawn) + torch.log(d_restored)).mean()
    torch.testing.assert_close(decoder["total"], 0.01 * likeness + deceived)
    torch.testing.assert_close(system.loss("discriminator", batch, 0)["total"], -gan)  # it maximizes L_GAN
    minimax = made(run_values, CVAE_GAN | {"layer": layer, "smooth": 0.0, "loss": "minimax"})
    descended = minimax.loss("decoder", batch, 0)["gan"] + torch.log(d_real).mean()
    torch.testing.assert_close(descended, gan)  # its side of L_GAN, which it minimizes


def test_who_gets_which_gradient(run_values: Values, tiny_shards: str) -> None:
    system = made(run_values, CVAE_GAN | {"layer": 1})
    batch = batch_for(system, tiny_shards)
    modules = {"encoder": system.encoder, "decoder": system.decoder, "discriminator": system.discriminator}

    def moved(phase: str) -> dict[str, set[str]]:
        system.zero_grad(set_to_none=True)
        system.loss(phase, batch, 0)["total"].backward()  # type: ignore[no-untyped-call]
        return {
            name: {n for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}
            for name, module in modules.items()
        }

    discriminate = moved("discriminator")
    assert discriminate["encoder"] == discriminate["decoder"] == set()
    assert discriminate["discriminator"] == {n for n, _ in system.discriminator.named_parameters()}
    assert moved("decoder")["encoder"] == set()
    encode = moved("encoder")
    assert encode["encoder"] == {n for n, _ in system.encoder.named_parameters()}
    assert encode["discriminator"] <= {"convs.0.weight", "convs.0.bias"}  # nothing behind layer l, where D decides
    own = {phase: system.loss(phase, batch, 0)["total"].item() for phase in modules}
    with torch.no_grad():  # another verdict of D: the encoder does not know it, the others do
        system.discriminator.logit.weight += 1.0
    now = {phase: system.loss(phase, batch, 0)["total"].item() for phase in own}
    assert {phase for phase in own if own[phase] != now[phase]} == {"decoder", "discriminator"}
    assert "likeness" not in system.loss("discriminator", batch, 0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": CVAE_GAN | {"layer": 4}}, "model.layer is 4, but the discriminator of 16 px has 3 layers"),
        ({"classes": ["black", "black"]}, "classes names a class twice"),
        ({"image_size": 30}, "such as 16, 20, 24, 28"),
        ({"model": CGAN | {"generator": {"lr": {"generator": 1e-3}}}}, "optimizer.lr names generator"),
        ({"model": {"kind": "vae"}}, "'cvae', 'cgan', 'cvae_gan'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_clear_line(
    run_values: Values, change: dict[str, Any], told: str
) -> None:
    values = run_values("conditional")
    with pytest.raises(V2FError, match=told) as caught:
        build(RunConfig, values | {"system": values["system"] | change}, "test")
    assert "\n" not in str(caught.value)


def test_a_verdict_names_a_code_that_says_nothing_and_a_discriminator_that_won(run_values: Values) -> None:
    fine = {"variety": 0.9, "variety_nearest": 0.8, "code_nats": 5.0}
    cvae, gan = made(run_values, CVAE), made(run_values, CVAE_GAN)
    logged = {"loss/autoencoder/total": [1.0] * 10}
    assert cvae.verdict(fine, logged) is None
    assert str(cvae.verdict(fine | {"code_nats": 0.01}, logged)).startswith(
        "POSTERIOR COLLAPSE: a code holds 0.01 nats"
    )
    assert cvae.verdict(fine | {"code_nats": 0.01}, {"loss/autoencoder/total": [1.0] * 9}) is None
    even = {"encoder/total": 1.0, "decoder/gan": 1.4, "discriminator/real": 0.7, "discriminator/fake": 0.7}
    even |= {"discriminator/total": 2.1, "discriminator/accuracy_real": 0.6, "discriminator/accuracy_fake": 0.6}
    history = {f"loss/{name}": [value] * 20 for name, value in even.items()}
    assert gan.verdict(fine, history) is None
    won = history | {"loss/discriminator/real": [0.05] * 20, "loss/discriminator/fake": [0.3] * 20}
    sure = {f"loss/discriminator/accuracy_{each}": [1.0] * 20 for each in ("real", "fake")}
    assert "NOT CONVERGING: the discriminator has won" in str(gan.verdict(fine, won | sure))
    assert str(gan.verdict(fine | {"variety": 0.02}, history)).startswith("MODE COLLAPSE")


# ------------------------------------------------------------------------------------------ label and code


class Tones(Restyling):
    """A code is the mean of a picture; it is restored exactly under the class whose tone it has."""

    tones = torch.tensor([-0.5, 0.0, 0.5])

    def posterior(self, img_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        code_B1 = img_BCHW.mean((1, 2, 3))[:, None] * 0
        return code_B1, code_B1

    def decode(self, code_BZ: Tensor, label_B: Tensor) -> Tensor:
        return (self.tones[label_B][:, None, None, None] + code_BZ[:, :, None, None]).expand(-1, 1, 4, 4)

    def asks(self) -> dict[str, Any]:
        return {"label": Label(("low", "middle", "high")), "noise": Noise(1)}

    def makes(self) -> dict[str, Any]:
        return {"picture": Picture(4, 1)}

    def phases(self) -> list[Any]:
        return []

    def loss(self, phase: str, batch: Batch, step: int) -> dict[str, Tensor]:
        raise AssertionError

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        return {"picture": self.decode(batch["noise"], batch["label"])}

    def meters(self, batches: Any) -> dict[str, float]:
        raise AssertionError

    def transforms(self) -> dict[str, Any]:
        return {}


def test_the_likeliest_class_is_the_one_that_restores_a_picture_best() -> None:
    tones = torch.tensor([0.45, -0.6, 0.1])
    assert latent.likeliest(Tones(), tones[:, None, None, None].expand(-1, 1, 4, 4)).tolist() == [2, 0, 1]


def test_a_walk_goes_along_the_sphere_from_end_to_end() -> None:
    start, end = torch.from_numpy(keyed_rng(8).standard_normal((2, 16))).float()
    walk_NZ = latent.between(start, end, 7)
    torch.testing.assert_close(walk_NZ[[0, -1]], torch.stack([start, end]))
    lengths = walk_NZ.norm(dim=1)
    torch.testing.assert_close(lengths, torch.linspace(float(start.norm()), float(end.norm()), 7))
    turns = torch.cosine_similarity(walk_NZ[1:], walk_NZ[:-1], dim=1)
    torch.testing.assert_close(turns, turns[:1].expand(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(latent.between(start, -start, 3)[1], torch.zeros(16))


def test_a_grid_has_the_pictures_that_generate_makes(run_values: Values) -> None:
    system = build_system(build(RunConfig, values_of(run_values, CGAN), "test")).eval()
    rows = latent.grid(system, 3, size=2)
    assert list(rows) == CLASSES
    for name in CLASSES:
        for seed in range(3):
            one = make(system, Given(label=name, seed=seed))["picture"]
            torch.testing.assert_close(one, rows[name][seed])
    double = latent.grid(system.double(), 1)  # as in a training in double precision
    torch.testing.assert_close(double["fair"].float(), rows["fair"][:1], atol=1e-4, rtol=1e-4)


def test_a_run_makes_restyles_and_walks(run_values: Values, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(build(RunConfig, values_of(run_values, CVAE_GAN, steps=4, validate_every=2), "test"))
    sheets = sorted(Path(folder, "samples").glob("*.png"))
    assert [Image.open(each).size for each in sheets] == [(8 * 17 + 1, 3 * 17 + 1)] * 2  # 8 codes of each class
    assert Image.open(sheets[0]).info["Rows"] == "black, brown, fair"
    run = Run.open(folder)
    system = run.system()
    rows = latent.grid(system, 8)
    tile = np.asarray(Image.open(sheets[1]), np.float64)[18:34, 35:51] / 127.5 - 1  # the second row, the third column
    np.testing.assert_allclose(tile, rows["brown"][2].permute(1, 2, 0).numpy(), atol=0.02)
    pixels = keyed_rng(9).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    photo = tmp_path / "p.png"
    Image.fromarray(pixels).save(photo)
    out = str(tmp_path / "out.png")
    assert main(["generate", folder, "--photo", str(photo), "--label", "fair", "-o", out]) == 0
    restyled = Image.open(out)
    assert restyled.info["Title"] == "A picture made from a photo and a label, not a photograph"
    square = batch_of(system, Given(photo=str(photo), label="fair"))  # type: ignore[arg-type]
    assert square["label"].tolist() == [2]
    wanted = system.decode(square["noise"], square["label"])[0]  # type: ignore[attr-defined]
    np.testing.assert_allclose(np.asarray(restyled) / 127.5 - 1, wanted.detach().permute(1, 2, 0).numpy(), atol=0.01)
    page = Maker(run, system=system)
    assert list(page.asked) == ["label", "seed", "photo"]
    (thing,) = page.make(Given(label="fair", photo=str(photo))).things
    content = base64.b64decode(thing.uri.partition(",")[2])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(restyled))
    assert main(["generate", folder, "--photo", str(photo), "-o", out]) == 1
    assert (
        "asks for a label (black, brown, fair), and takes a photo to restyle: give the label" in capsys.readouterr().err
    )
    assert main(["generate", folder, "--label", "fair", "--seed", "4", "--walk", "5", "-o", out]) == 0
    row = np.asarray(Image.open(out))
    assert row.shape == (16, 80, 3)
    for seed, part in ((4, row[:, :16]), (5, row[:, -16:])):
        one = make(system, Given(label="fair", seed=seed))["picture"]
        np.testing.assert_allclose(part / 127.5 - 1, one.permute(1, 2, 0).numpy(), atol=0.01)
    assert main(["generate", folder, "--label", "fair", "--walk", "1", "-o", out]) == 1
    assert "needs at least 2" in capsys.readouterr().err


def test_a_cgan_restyles_nothing(run_values: Values, tmp_path: Path) -> None:
    system = build_system(build(RunConfig, values_of(run_values, CGAN), "test"))
    assert inputs_in_words(system) == "a label (black, brown, fair)"
    with pytest.raises(V2FError, match="does not see a photo"):
        make(system, Given(label="fair", photo=b"x"))


def test_a_gan_starts_from_the_decoder_of_a_cvae(run_values: Values) -> None:
    folder = fit(build(RunConfig, values_of(run_values, CVAE, steps=3), "test"))
    trained: Any = Run.open(folder).system()
    values = values_of(run_values, CGAN) | {"init_from": [{"run": folder, "module": "decoder"}]}
    config = build(RunConfig, values | {"out": f"{folder}-gan"}, "test")
    system: Any = build_system(config)
    before = system.decoder.state_dict()["linear.weight"].clone()
    (about,) = start_from(config, system, ALONE)
    assert about["averaged"]
    for name, tensor in trained.decoder.state_dict().items():
        assert torch.equal(system.decoder.state_dict()[name], tensor), name
    assert not torch.equal(system.decoder.state_dict()["linear.weight"], before)
    wide = values | {"system": values["system"] | {"width": 5}}
    other = build(RunConfig, wide, "test")
    with pytest.raises(V2FError, match=r"init_from\.0: .*code\.weight"):
        start_from(other, build_system(other), ALONE)
