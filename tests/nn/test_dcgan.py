import pytest
import torch

from v2f.errors import V2FError
from v2f.nn.batchnorm import GhostBatchNorm
from v2f.nn.dcgan import DCGANDiscriminator, DCGANGenerator, doublings


@pytest.mark.parametrize(("size", "least"), [(28, 7), (32, 4), (64, 4), (16, 4), (40, 5), (24, 6)])
def test_sides_halve_and_double_to_one_least_side(size: int, least: int) -> None:
    steps = doublings(size)
    assert size == least << steps
    generator, discriminator = DCGANGenerator(6, size, 4, bn_group=2), DCGANDiscriminator(size, 4, bn_group=2)
    picture = generator(torch.randn(4, 6))
    assert picture.shape == (4, 3, size, size)
    assert picture.abs().max() < 1
    assert discriminator(picture).shape == (4,)


@pytest.mark.parametrize("kernel", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("size", [28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_kernel_of_any_size_doubles_and_halves_the_side_exactly(kernel: int, size: int, channels: int) -> None:
    generator = DCGANGenerator(6, size, 2, bn_group=2, channels=channels, kernel=kernel)
    sides = []
    for conv in generator.convs:
        conv.register_forward_hook(lambda _, inputs, output: sides.append((inputs[0].shape[2], output.shape[2])))
    picture = generator(torch.randn(2, 6))
    assert picture.shape == (2, channels, size, size)
    assert all(after == 2 * before for before, after in sides)
    for norm in ("batch", "none", "spectral"):
        discriminator = DCGANDiscriminator(size, 2, bn_group=2, channels=channels, kernel=kernel, norm=norm)
        assert discriminator(picture).shape == (2,)
        assert {conv.kernel_size for conv in discriminator.convs} == {(kernel, kernel)}


@pytest.mark.parametrize("size", [4, 7, 9, 30, 36, 100])
def test_other_sides_are_refused_with_the_nearest_right_ones(size: int) -> None:
    with pytest.raises(V2FError, match="such as 16, 20, 24, 28, 32"):
        doublings(size)


def test_the_nets_of_64_px_are_those_of_the_paper() -> None:
    """Figure 1 of Radford et al.: 1024 maps of 4 px, then 512, 256, 128; 5 x 5 kernels, norms but at the pictures."""
    generator, discriminator = DCGANGenerator(100, 64, 128, bn_group=2), DCGANDiscriminator(64, 128, bn_group=2)
    convs = [*generator.convs]
    assert [(c.in_channels, c.out_channels) for c in convs] == [(1024, 512), (512, 256), (256, 128), (128, 3)]
    assert {c.kernel_size for c in [*convs, *discriminator.convs]} == {(5, 5)}
    weights = 100 * 1024 * 16 + 25 * (1024 * 512 + 512 * 256 + 256 * 128 + 128 * 3) + 3
    norms = 2 * (1024 + 512 + 256 + 128)
    assert sum(p.numel() for p in generator.parameters()) == weights + norms
    weights = 25 * (3 * 128 + 128 * 256 + 256 * 512 + 512 * 1024) + 128 + 1024 * 16 + 1
    assert sum(p.numel() for p in discriminator.parameters()) == weights + 2 * (256 + 512 + 1024)
    first = next(m for m in discriminator.modules() if isinstance(m, GhostBatchNorm))
    assert first.channels == 256  # none over the first map


def test_a_generator_without_norms_has_biases_instead() -> None:
    plain, normed = (DCGANGenerator(6, 16, 8, bn_group=2, norm=norm) for norm in ("none", "batch"))  # type: ignore[arg-type]
    assert not any(isinstance(module, GhostBatchNorm) for module in plain.modules())
    assert sum(p.numel() for p in plain.parameters()) - sum(p.numel() for p in normed.parameters()) == (
        16 * 16 + 8 - 2 * (16 + 8)
    )
    alone, beside = plain(torch.ones(1, 6)), plain(torch.stack([torch.ones(6), torch.randn(6)]))[:1]
    torch.testing.assert_close(alone, beside)


def test_weights_begin_small_and_gains_near_one() -> None:
    torch.manual_seed(0)
    net = DCGANDiscriminator(32, 32, bn_group=2)
    assert net.convs[1].weight.std().item() == pytest.approx(0.02, rel=0.05)
    gains = torch.cat([m.weight for m in net.modules() if isinstance(m, GhostBatchNorm)])
    assert gains.mean().item() == pytest.approx(1, abs=0.01)
    assert gains.std().item() == pytest.approx(0.02, rel=0.2)


def test_a_cut_between_groups_changes_nothing() -> None:
    torch.manual_seed(0)
    generator, discriminator = (
        DCGANGenerator(6, 28, 4, bn_group=4).double(),
        DCGANDiscriminator(28, 4, bn_group=4).double(),
    )
    z = torch.randn(8, 6, dtype=torch.float64)
    whole = discriminator(generator(z))
    parts = torch.cat([discriminator(generator(part)) for part in z.split(4)])
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
