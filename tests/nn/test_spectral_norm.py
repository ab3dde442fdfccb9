"""Spectral norm: the largest singular value, its gradient, and vectors that move once a step whatever else happens."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from v2f.engine import Engine
from v2f.nn import statistics
from v2f.nn.dcgan import DCGANDiscriminator
from v2f.nn.spectral_norm import SpectralConv2d, SpectralLinear, SpectralNorm


def layers() -> list[SpectralNorm]:
    torch.manual_seed(0)
    return [SpectralConv2d(5, 7, 3, stride=2, padding=1, bias=True).double(), SpectralLinear(9, 4).double()]


@pytest.mark.parametrize("number", [0, 1])
def test_sigma_becomes_the_largest_singular_value_and_a_single_iteration_comes_closer(number: int) -> None:
    layer = layers()[number]
    nn.init.normal_(layer.weight)
    exact = torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
    found = []
    for _ in range(300):
        found.append(layer.sigma.item())
        statistics.commit(layer, statistics.collect(layer))
    assert found[-1] == pytest.approx(exact, rel=1e-12)
    assert all(later >= one * (1 - 1e-14) for one, later in pairwise(found))  # W^T W never lowers |W v|
    assert found[0] < found[1]
    assert torch.linalg.matrix_norm(layer.normalized().flatten(1), 2).item() == pytest.approx(1, rel=1e-12)


def test_output_and_gradient_are_those_of_torchs_spectral_norm_once_both_have_converged() -> None:
    ours = layers()[0]
    ours.iterate(500)
    plain = nn.Conv2d(5, 7, 3, stride=2, padding=1).double()
    plain.load_state_dict({"weight": ours.weight.detach(), "bias": ours.bias.detach()})
    theirs = spectral_norm(plain, n_power_iterations=500)
    x = torch.randn(3, 5, 8, 8, dtype=torch.float64)
    theirs(x)  # iterates
    theirs.eval()
    found, wanted = ours(x), theirs(x)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    found.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.parametrizations.weight.original.grad, rtol=1e-8, atol=1e-10)


def test_the_linear_layer_is_a_linear_layer_with_the_normalized_weight() -> None:
    layer = layers()[1]
    x = torch.randn(3, 9, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight / layer.sigma, layer.bias))


def test_nothing_but_a_commit_moves_the_vector() -> None:
    layer = layers()[0].train()
    before = layer.v.clone()
    x = torch.randn(2, 5, 8, 8, dtype=torch.float64)
    for _ in range(3):
        layer(x)
    layer.eval()(x)
    statistics.discard(layer)
    assert torch.equal(layer.v, before)
    with torch.no_grad():
        layer.weight.mul_(-1).add_(0.3)
    statistics.commit(layer, statistics.collect(layer))
    assert not torch.equal(layer.v, before)
    assert layer.v.norm().item() == pytest.approx(1)
    assert "v" in dict(layer.named_buffers())


def test_sigma_is_exact_under_autocast_and_in_half_precision() -> None:
    torch.manual_seed(0)
    layer = SpectralLinear(64, 32)
    exact = layer.sigma.item()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.sigma.item() == exact
        assert layer(torch.randn(2, 64)).dtype == torch.bfloat16
    layer.half()
    assert layer.v.dtype == torch.float32
    assert layer.sigma.item() == pytest.approx(exact, rel=1e-3)


def test_a_discriminator_has_it_in_all_layers_under_the_names_of_the_others() -> None:
    torch.manual_seed(0)
    plain = DCGANDiscriminator(16, 8, bn_group=2, norm="none")
    spectral = DCGANDiscriminator(16, 8, bn_group=2, norm="spectral")
    assert {n for n, _ in plain.named_parameters()} == {n for n, _ in spectral.named_parameters()}
    normed = [m for m in spectral.modules() if isinstance(m, SpectralNorm)]
    assert len(normed) == 3
    for layer in normed:  # the vectors follow the weights that DCGAN's initialization drew
        exact = torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
        assert 0.9 * exact < layer.sigma.item() <= exact * (1 + 1e-6)
    batch = DCGANDiscriminator(16, 8, bn_group=2)
    assert sum(p.numel() for p in batch.parameters()) == sum(p.numel() for p in plain.parameters()) + 16


def test_a_step_is_the_same_for_any_micro_batch() -> None:
    """Two steps with whole batches and with micro-batches of two, in float64."""
    from systems.small import SMALL

    from v2f.config import build
    from v2f.systems.face_gan import FaceGAN

    found = []
    for micro in (None, 2):
        torch.manual_seed(0)
        system = FaceGAN(build(FaceGAN.Config, SMALL["face_gan"], "test"))
        engine = Engine("fp64", "ddp")
        engine.wrap(system, share=8, micro_batch=micro)
        system.train()
        rng = torch.Generator().manual_seed(1)
        for step in range(3):
            batch = {
                "image": torch.randint(0, 256, (8, 3, 16, 16), generator=rng, dtype=torch.uint8),
                "noise": torch.randn(8, 6, generator=rng),
                "weight": torch.ones(8),
                "slot": torch.arange(8 * step, 8 * step + 8),
                "augment_real": torch.rand(8, 7, generator=rng),
                "augment_made": torch.rand(8, 7, generator=rng),
            }
            for phase in system.phases():
                if step % phase.every == 0:
                    engine.step(phase, batch, step, micro_batch=micro, seen=8 * step, total=24)
        found.append({name: t.clone() for name, t in system.state_dict().items() if not name.startswith("identity")})
    vectors = [name for name in found[0] if name.endswith(".v")]
    assert len(vectors) == 3
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-9, atol=1e-12, msg=name)
