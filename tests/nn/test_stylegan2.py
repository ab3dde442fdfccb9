"""The generator against formulas: a second, slow one is written here from the papers, with other operations."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import signal
from torch import Tensor

from v2f.errors import V2FError
from v2f.nn.stylegan2 import Blur, EqualLinear, Generator, ModulatedConv, Upsample, channels_at, truncate, upfirdn


def narrow(size: int = 32, dtype: torch.dtype = torch.float64, seed: int = 0) -> Generator:
    """A narrow generator whose noise strengths and biases are not at their neutral start."""
    torch.manual_seed(seed)
    width = max(1 / 64, size / 4096)  # four channels at the most pixels
    return off_neutral(Generator(size, style_dim=12, n_mlp=3, channel_multiplier=width, channel_max=10).to(dtype))


def off_neutral(generator: Generator) -> Generator:
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith(("noise.weight", "bias")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return generator


@pytest.mark.parametrize(
    ("size", "parameters", "styles", "keys"), [(1024, 30_370_060, 18, 171), (256, 30_034_338, 14, 135)]
)
def test_the_public_sizes_have_their_public_counts(size: int, parameters: int, styles: int, keys: int) -> None:
    with torch.device("meta"):
        generator = Generator(size)
    assert sum(p.numel() for p in generator.parameters()) == parameters
    assert generator.n_latent == styles
    assert generator.n_noises == styles - 1 == len(generator.fixed_noise())
    assert len(generator.state_dict()) == keys


def test_the_names_of_a_state_dict_are_the_public_ones() -> None:
    state = Generator(16, style_dim=8, n_mlp=2, channel_max=4).state_dict()
    layer = ["conv.weight", "conv.modulation.weight", "conv.modulation.bias", "noise.weight", "activate.bias"]
    rgb = ["bias", "conv.weight", "conv.modulation.weight", "conv.modulation.bias"]
    wanted = {"input.input", *(f"style.{i}.{n}" for i in (1, 2) for n in ("weight", "bias"))}
    wanted |= {f"noises.noise_{i}" for i in range(5)}
    wanted |= {f"{conv}.{n}" for conv in ("conv1", "convs.0", "convs.1", "convs.2", "convs.3") for n in layer}
    wanted |= {"convs.0.conv.blur.kernel", "convs.2.conv.blur.kernel"}
    wanted |= {f"{to}.{n}" for to in ("to_rgb1", "to_rgbs.0", "to_rgbs.1") for n in rgb}
    wanted |= {"to_rgbs.0.upsample.kernel", "to_rgbs.1.upsample.kernel"}
    assert set(state) == wanted
    assert state["convs.0.conv.weight"].shape == (1, 4, 4, 3, 3)
    assert state["to_rgbs.0.bias"].shape == (1, 3, 1, 1)
    assert state["noises.noise_3"].shape == state["noises.noise_4"].shape == (1, 1, 16, 16)


def test_channels_follow_the_public_table_and_taper_when_bounded() -> None:
    assert [channels_at(r, 2, None) for r in (4, 32, 64, 128, 256, 512, 1024)] == [512, 512, 512, 256, 128, 64, 32]
    assert [channels_at(r, 1, None) for r in (32, 64, 1024)] == [512, 256, 16]
    assert [channels_at(r, 1 / 16, 128) for r in (4, 8, 16, 32, 64)] == [128, 128, 64, 32, 16]


# --- the slow generator ------------------------------------------------------------------------------------------


def slow_linear(state: dict[str, Tensor], name: str, x: Tensor, lr_mul: float = 1.0) -> Tensor:
    weight = state[f"{name}.weight"]
    return torch.einsum("bi,oi->bo", x, weight * lr_mul / math.sqrt(weight.shape[1])) + state[f"{name}.bias"] * lr_mul


def slow_activation(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)


def slow_modulated_weight(state: dict[str, Tensor], name: str, w_BD: Tensor, demodulate: bool) -> Tensor:
    """The weight of each sample, [B,O,I,K,K]: StyleGAN2, eq. 1 and 3."""
    weight = state[f"{name}.weight"]
    scale = 1 / math.sqrt(weight[0, 0].numel())
    weight = scale * weight * slow_linear(state, f"{name}.modulation", w_BD)[:, None, :, None, None]
    if demodulate:
        weight = weight / torch.sqrt(weight.pow(2).sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
    return weight


def slow_conv(x: Tensor, weight: Tensor) -> Tensor:
    """One direct convolution a sample, from shifted products."""
    pad = weight.shape[-1] // 2
    rows, columns = x.shape[2:]
    padded = F.pad(x, (pad, pad, pad, pad))
    out = torch.zeros(len(x), weight.shape[1], rows, columns, dtype=x.dtype)
    for i in range(weight.shape[-2]):
        for j in range(weight.shape[-1]):
            out += torch.einsum("bihw,boi->bohw", padded[:, :, i : i + rows, j : j + columns], weight[:, :, :, i, j])
    return out


def slow_up(x: Tensor, taps: Tensor, pad: int) -> Tensor:
    """Zeros between the pixels, then a plain correlation with the (symmetric) filter."""
    batch, channels, rows, columns = x.shape
    zeros = torch.zeros(batch, channels, 2 * rows, 2 * columns, dtype=x.dtype)
    zeros[:, :, ::2, ::2] = x
    padded = F.pad(zeros, (pad, 1, pad, 1)).reshape(-1, 1, 2 * rows + pad + 1, 2 * columns + pad + 1)
    return F.conv2d(padded, taps[None, None]).reshape(batch, channels, 2 * rows, 2 * columns)


def slow_conv_up(x: Tensor, weight: Tensor, taps: Tensor) -> Tensor:
    """Up by zeros, convolve with the flipped weight (that is the transposed convolution), then the filter."""
    batch, _, rows, columns = x.shape
    zeros = torch.zeros(batch, x.shape[1], 2 * rows + 3, 2 * columns + 3, dtype=x.dtype)
    zeros[:, :, 2 : 2 + 2 * rows : 2, 2 : 2 + 2 * columns : 2] = x
    out = torch.stack([F.conv2d(z[None], w.flip(2, 3))[0] for z, w in zip(zeros, weight, strict=True)])
    out = F.pad(out, (1, 1, 1, 1))
    flat = out.reshape(-1, 1, *out.shape[2:])
    return F.conv2d(flat, taps[None, None]).reshape(batch, -1, 2 * rows, 2 * columns)


def slow_picture(state: dict[str, Tensor], w_BLD: Tensor, noise: list[Tensor]) -> Tensor:
    def layer(x: Tensor, name: str, w_BD: Tensor, noise_map: Tensor, up: bool) -> Tensor:
        weight = slow_modulated_weight(state, f"{name}.conv", w_BD, demodulate=True)
        x = slow_conv_up(x, weight, state[f"{name}.conv.blur.kernel"]) if up else slow_conv(x, weight)
        x = x + state[f"{name}.noise.weight"] * noise_map + state[f"{name}.activate.bias"][None, :, None, None]
        return slow_activation(x)

    def rgb(x: Tensor, name: str, w_BD: Tensor) -> Tensor:
        return (
            slow_conv(x, slow_modulated_weight(state, f"{name}.conv", w_BD, demodulate=False)) + state[f"{name}.bias"]
        )

    x = state["input.input"].repeat(len(w_BLD), 1, 1, 1)
    x = layer(x, "conv1", w_BLD[:, 0], noise[0], up=False)
    picture = rgb(x, "to_rgb1", w_BLD[:, 1])
    resolutions = len([name for name in state if name.endswith("upsample.kernel")])
    for i in range(resolutions):
        x = layer(x, f"convs.{2 * i}", w_BLD[:, 1 + 2 * i], noise[1 + 2 * i], up=True)
        x = layer(x, f"convs.{2 * i + 1}", w_BLD[:, 2 + 2 * i], noise[2 + 2 * i], up=False)
        skip = slow_up(picture, state[f"to_rgbs.{i}.upsample.kernel"], pad=2)
        picture = rgb(x, f"to_rgbs.{i}", w_BLD[:, 3 + 2 * i]) + skip
    return picture


@pytest.mark.parametrize("size", [16, 64])
def test_synthesis_agrees_with_the_slow_generator(size: int) -> None:
    generator = narrow(size)
    w_BLD = torch.randn(3, generator.n_latent, 12, dtype=torch.float64)
    noise = generator.random_noise(3, torch.Generator().manual_seed(1))
    with torch.no_grad():
        picture = generator.synthesis(w_BLD, noise)
        slow = slow_picture(generator.state_dict(), w_BLD, noise)
    assert picture.shape == (3, 3, size, size)
    assert slow.std() > 0.1
    torch.testing.assert_close(picture, slow, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [64, 256, 1024])
def test_single_precision_agrees_with_the_slow_generator(size: int) -> None:
    generator = narrow(size, torch.float32)
    assert_like_slow(generator, torch.randn(2 if size < 1024 else 1, generator.n_latent, 12))


@pytest.mark.slow
def test_the_public_1024_px_agree_with_the_slow_generator() -> None:
    torch.manual_seed(0)
    generator = off_neutral(Generator(1024))
    assert_like_slow(generator, torch.randn(1, 18, 512))


def assert_like_slow(generator: Generator, w_BLD: Tensor) -> None:
    noise = generator.random_noise(len(w_BLD), torch.Generator().manual_seed(1))
    with torch.no_grad():
        slow = slow_picture(generator.state_dict(), w_BLD, noise)
        assert slow.std() > 0.1
        torch.testing.assert_close(generator.synthesis(w_BLD, noise), slow, rtol=0, atol=1e-4)


def test_one_style_is_taken_by_every_layer_and_two_mix_by_layer() -> None:
    generator = narrow()
    state, noise = generator.state_dict(), generator.fixed_noise()
    w_BD, other_BD = generator.mapping(torch.randn(2, 3, 12, dtype=torch.float64))
    with torch.no_grad():
        rows = [w_BD] * generator.n_latent
        torch.testing.assert_close(
            generator.synthesis(w_BD), slow_picture(state, torch.stack(rows, 1), noise), rtol=0, atol=1e-10
        )
        coarse = generator.expand(w_BD)[:, :3]
        mixed = torch.cat([coarse, generator.expand(other_BD)[:, 3:]], dim=1)
        rows[3:] = [other_BD] * (generator.n_latent - 3)
        torch.testing.assert_close(
            generator.synthesis(mixed), slow_picture(state, torch.stack(rows, 1), noise), rtol=0, atol=1e-10
        )


def test_mapping_agrees_with_its_formula() -> None:
    generator, z = narrow(), torch.randn(5, 12, dtype=torch.float64)
    state = generator.state_dict()
    x = z / torch.sqrt((z**2).mean(dim=1, keepdim=True) + 1e-8)
    for i in (1, 2, 3):
        x = slow_activation(slow_linear(state, f"style.{i}", x, lr_mul=0.01))
    torch.testing.assert_close(generator.mapping(z), x, rtol=0, atol=1e-12)


# --- the pieces --------------------------------------------------------------------------------------------------


def test_equalized_rate_follows_its_definition() -> None:
    torch.manual_seed(0)
    layer = EqualLinear(300, 400, lr_mul=0.1, bias_init=1.0)
    assert layer.weight.std().item() == pytest.approx(10, rel=0.02)  # stored: N(0, 1) / lr_mul
    output = layer(torch.randn(2000, 300))
    assert output.var().item() == pytest.approx(1, rel=0.05)  # used: the He constant at run time
    assert output.mean().item() == pytest.approx(0.1, abs=0.01)  # the bias, times lr_mul


def test_modulation_is_a_convolution_with_the_modulated_weight() -> None:
    torch.manual_seed(0)
    conv = ModulatedConv(6, 5, 3, style_dim=4).double()
    x, w = torch.randn(3, 6, 8, 8, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    style = conv.modulation(w)
    output = conv(x, style) * conv.demodulation(style)[:, :, None, None]
    state = {f"conv.{name}": value for name, value in conv.state_dict().items()}
    weight = slow_modulated_weight(state, "conv", w, demodulate=True)
    grouped = F.conv2d(x.reshape(1, 18, 8, 8), weight.reshape(15, 6, 3, 3), padding=1, groups=3).reshape(3, 5, 8, 8)
    torch.testing.assert_close(output, grouped, rtol=0, atol=1e-12)


def test_demodulated_outputs_of_white_noise_have_unit_variance() -> None:
    torch.manual_seed(0)
    conv = ModulatedConv(16, 8, 3, style_dim=4)
    style = conv.modulation(3 * torch.randn(1, 4))
    output = conv(torch.randn(1, 16, 96, 96), style) * conv.demodulation(style)[:, :, None, None]
    torch.testing.assert_close(output.var(dim=(0, 2, 3)), torch.ones(8), rtol=0, atol=0.15)


def scipy_upfirdn(
    x: np.ndarray, rows: np.ndarray, columns: np.ndarray, up: int, down: int, pad: tuple[int, int]
) -> np.ndarray:
    """Every place that the filter touches, then padded or cut to what is asked for."""
    for taps, axis in ((rows, -2), (columns, -1)):
        x = np.moveaxis(np.asarray(signal.upfirdn(taps, x, up=up, axis=axis)), axis, -1)
        x = np.pad(x, [(0, 0)] * 3 + [(0, up - 1)])  # the zeros behind the last pixel, which scipy leaves out
        before, after = (side - len(taps) + 1 for side in pad)
        x = np.pad(x, [(0, 0)] * 3 + [(max(before, 0), max(after, 0))])
        x = x[..., max(-before, 0) : x.shape[-1] - max(-after, 0)][..., ::down]
        x = np.moveaxis(x, -1, axis)
    return x


@pytest.mark.parametrize("pad", [(0, 0), (1, 1), (2, 1), (1, 2), (0, 3), (5, 4), (-1, 0), (2, -2), (-1, -2)])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (3, 1), (1, 2), (1, 3), (2, 3)])
@pytest.mark.parametrize("taps", [3, 4])
def test_upfirdn_agrees_with_scipy(taps: int, up: int, down: int, pad: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x, rows, columns = rng.normal(size=(2, 3, 8, 9)), rng.normal(size=taps), rng.normal(size=taps)
    kernel = torch.from_numpy(np.outer(rows, columns))
    ours = upfirdn(torch.from_numpy(x), kernel, up, down, pad)
    assert ours.shape[2] == (8 * up + sum(pad) - taps) // down + 1
    np.testing.assert_allclose(ours.numpy(), scipy_upfirdn(x, rows, columns, up, down, pad), atol=1e-12)


def test_the_generators_resampling_agrees_with_scipy() -> None:
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    taps = np.array([1.0, 3.0, 3.0, 1.0]) / 4  # a gain of two in each direction makes up for the zeros
    doubled = scipy_upfirdn(x.numpy(), taps, taps, 2, 1, (2, 1))
    np.testing.assert_allclose(Upsample().double()(x).numpy(), doubled, atol=1e-12)
    blurred = scipy_upfirdn(x.numpy(), taps, taps, 1, 1, (1, 1))
    np.testing.assert_allclose(Blur().double()(x).numpy(), blurred, atol=1e-12)


def test_the_picture_keeps_its_precision_where_autocast_would_round_it() -> None:
    x = torch.randn(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        doubled = Upsample()(x)
    torch.testing.assert_close(doubled, Upsample()(x), rtol=0, atol=0)


def test_the_stored_filter_is_the_one_that_is_used() -> None:
    x, blur, up = torch.randn(1, 2, 5, 5), Blur(), Upsample()
    blur.kernel.zero_()
    up.kernel.zero_()
    assert not blur(x).any()
    assert not up(x).any()


# --- behavior ---------------------------------------------------------------------------------------------------


def test_fixed_noise_repeats_a_picture_and_other_noise_changes_it() -> None:
    generator = narrow(dtype=torch.float32)
    w_BLD = generator.expand(generator.mapping(torch.randn(2, 12)))
    first = generator.synthesis(w_BLD)
    torch.testing.assert_close(generator.synthesis(w_BLD), first, rtol=0, atol=0)
    torch.testing.assert_close(generator.synthesis(w_BLD, generator.fixed_noise()), first, rtol=0, atol=0)
    other = generator.synthesis(w_BLD, generator.random_noise(2, torch.Generator().manual_seed(5)))
    assert (other - first).abs().max() > 0.01


def test_every_style_reaches_the_picture_and_no_sample_another() -> None:
    generator = narrow()
    w_BLD = torch.randn(2, generator.n_latent, 12, dtype=torch.float64, requires_grad=True)
    generator.synthesis(w_BLD)[0].square().sum().backward()
    assert w_BLD.grad is not None
    assert (w_BLD.grad[0].norm(dim=1) > 0).all()
    assert not w_BLD.grad[1].any()


def test_gradients_agree_with_finite_differences() -> None:
    generator = narrow()
    names, parameters = zip(*generator.named_parameters(), strict=True)
    z_BD = torch.randn(1, 12, dtype=torch.float64, requires_grad=True)
    offset_BLD = torch.zeros(1, generator.n_latent, 12, dtype=torch.float64, requires_grad=True)
    noise = [n.requires_grad_() for n in generator.random_noise(1, torch.Generator().manual_seed(1))]

    def picture(z: Tensor, offset: Tensor, *rest: Tensor) -> Tensor:
        maps, values = rest[: len(noise)], rest[len(noise) :]
        state = {f"g.{name}": value for name, value in zip(names, values, strict=True)}
        drawn: Tensor = torch.func.functional_call(Drawing(generator), state, (z, offset, maps))
        return drawn

    assert torch.autograd.gradcheck(picture, (z_BD, offset_BLD, *noise, *parameters), fast_mode=True)


class Drawing(torch.nn.Module):
    """From latent to picture, with an offset for each style of each layer."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.g = generator

    def forward(self, z_BD: Tensor, offset_BLD: Tensor, noise: tuple[Tensor, ...]) -> Tensor:
        return self.g.synthesis(self.g.expand(self.g.mapping(z_BD)) + offset_BLD, noise)


def test_bfloat16_changes_a_picture_little() -> None:
    generator = narrow(32, torch.float32)
    w_BLD = torch.randn(2, generator.n_latent, 12)
    with torch.no_grad():
        exact = generator.synthesis(w_BLD)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = generator.synthesis(w_BLD.bfloat16().float())
            from_half = generator.synthesis(w_BLD.bfloat16())
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(from_half, rounded, rtol=0, atol=0)
    assert (rounded - exact).square().mean().sqrt() < 0.02 * exact.std()


def test_truncation_and_mean_style() -> None:
    generator = narrow(dtype=torch.float32)
    mean = generator.mean_w(5000, torch.Generator().manual_seed(0))
    w = generator.mapping(torch.randn(20000, 12, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(mean, w.mean(dim=0), rtol=0, atol=5 * w.std().item() / 5000**0.5)
    torch.testing.assert_close(truncate(w, mean, 1.0), w)
    torch.testing.assert_close(truncate(w, mean, 0.0), mean.expand_as(w))
    torch.testing.assert_close(truncate(w, mean, 0.5), (w + mean) / 2)


def test_wrong_shapes_are_named() -> None:
    generator = narrow()
    with pytest.raises(V2FError, match=r"takes styles \[batch, 8, 12\] or \[batch, 12\], got \[1, 7, 12\]"):
        generator.synthesis(torch.zeros(1, 7, 12, dtype=torch.float64))
    with pytest.raises(V2FError, match=r"or \[batch, 12\], got \[1, 8\]"):
        generator.synthesis(torch.zeros(1, 8, dtype=torch.float64))
    with pytest.raises(V2FError, match="takes 7 noise maps, got 1"):
        generator.synthesis(torch.zeros(1, 8, 12, dtype=torch.float64), [torch.zeros(1, 1, 4, 4)])
    with pytest.raises(V2FError, match="size 48 is not a power of two"):
        Generator(48)


# --- a generator that fits its weights ---------------------------------------------------------------------------


CONFIGS: list[dict[str, Any]] = [
    {"size": 8},
    {"size": 32},
    {"size": 64, "channel_multiplier": 0.5},
    {"size": 256, "channel_multiplier": 1},
    {"size": 1024},
    {"size": 1024, "channel_multiplier": 4},
    {"size": 256, "channel_multiplier": 1, "channel_max": 128, "style_dim": 64, "n_mlp": 2},
    {"size": 64, "channel_multiplier": 700 / 16384, "channel_max": 100, "style_dim": 24, "n_mlp": 0},
    {"size": 16, "channel_multiplier": 44 / 16384, "channel_max": 100, "style_dim": 24, "n_mlp": 12},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_size_widths_and_layers_are_read_off_the_weights(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        wanted = Generator(**config)
    state = {name: torch.full((1,), 0.5).expand(value.shape) for name, value in wanted.state_dict().items()}
    found = Generator.fitting(state, "g.pt")
    assert (found.size, found.style_dim) == (wanted.size, wanted.style_dim)
    assert {n: v.shape for n, v in found.state_dict().items()} == {n: v.shape for n, v in wanted.state_dict().items()}
    assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in wanted.parameters()]
    everything = [*found.parameters(), *found.buffers()]
    assert {v.device.type for v in everything} == {"cpu"}
    assert len({v.data_ptr() for v in everything}) == len(everything)  # a copy, although all values were one


def test_the_fitting_generator_draws_the_same_and_shares_no_memory() -> None:
    original = narrow(dtype=torch.float32)
    state = original.state_dict()
    copy = Generator.fitting(state, "g.pt")
    z = torch.randn(2, 12)
    expected = original(z)
    torch.testing.assert_close(copy(z), expected, rtol=0, atol=0)
    assert not copy.latent_avg.any()
    assert copy.latent_avg.shape == (12,)
    assert "latent_avg" not in copy.state_dict()
    for value in state.values():
        value.zero_()
    torch.testing.assert_close(copy(z), expected, rtol=0, atol=0)


def test_weights_that_do_not_fit_are_named() -> None:
    state = narrow(dtype=torch.float32).state_dict()

    def refused(change: dict[str, Tensor], without: str = "-") -> str:
        with pytest.raises(V2FError) as error:
            Generator.fitting({n: v for n, v in state.items() if not n.startswith(without)} | change, "g.pt")
        what, _, why = str(error.value).partition(" generator")
        assert what == "g.pt: these are not the weights of a StyleGAN2"
        assert "\n" not in why
        return why

    assert refused({}, without="") == ": the tensor 'to_rgb1.conv.weight' is missing"
    assert refused({}, without="to_rgbs.1.") == ": the tensor 'to_rgbs.1.conv.weight' is missing"
    wanted = " of 32 px: the tensor 'convs.2.conv.weight' is missing (and 5 more)"
    assert refused({}, without="convs.2.").startswith(wanted)
    assert refused({}, without="style.2.weight") == " of 32 px: the tensor 'style.2.weight' is missing"
    assert refused({}, without="noises.noise_6") == " of 32 px: the tensor 'noises.noise_6' is missing"
    latent_avg = refused({"latent_avg": torch.zeros(12)})
    assert latent_avg == " of 32 px: the tensor 'latent_avg' is unknown"
    far = "to_rgbs.999999999.bias"  # no reason to build a generator of that size
    assert refused({far: torch.zeros(1, 3, 1, 1)}) == f" of 32 px: the tensor '{far}' is unknown"

    def changed(name: str, value: Tensor) -> str:
        return refused({name: value})

    kernel = changed("convs.0.conv.blur.kernel", torch.zeros(3, 3))
    assert kernel == " of 32 px: 'convs.0.conv.blur.kernel' has the shape [3, 3], expected [4, 4]"
    double = changed("conv1.noise.weight", torch.zeros(1, dtype=torch.float64))
    assert double == " of 32 px: 'conv1.noise.weight' is float64, expected float32"
    flat = changed("conv1.conv.modulation.weight", torch.zeros(10))
    assert flat == ": 'conv1.conv.modulation.weight' has the shape [10], expected [C, D]"
    none = changed("to_rgb1.conv.weight", torch.zeros(1, 3, 0, 1, 1))
    assert none == ": 'to_rgb1.conv.weight' has the shape [1, 3, 0, 1, 1], expected [1, 3, C, 1, 1]"
    odd = changed("to_rgbs.0.conv.weight", torch.zeros(1, 3, 7, 1, 1))
    assert odd == ": 'to_rgbs.0.conv.weight' has 7 channels, expected 10 from the channels of the other resolutions"
