"""pSp against a second, slow implementation, on random weights in the published file's layout."""

import math

import pytest
import torch
from nn import slow_irse
from torch import Tensor, nn

from bench.random_weights import psp
from v2f.nn.psp import PSP, GradualStyleEncoder, PSPCodeEncoder
from v2f.nn.strict import misfit
from v2f.nn.stylegan2 import Generator


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    prefix = "encoder."
    return {n.removeprefix(prefix): t for n, t in psp(decoder_size=32)["state_dict"].items() if n.startswith(prefix)}


@pytest.fixture(scope="module")
def encoder(state) -> GradualStyleEncoder:
    with torch.device("meta"):
        encoder = GradualStyleEncoder()
    # without copies: a gigabyte of weights that lie in one small pool
    encoder.load_state_dict(state, assign=True)
    return encoder.eval().requires_grad_(False)


class Probe(nn.Module):
    """In the place of an encoder: keeps the picture, and says of each style the mean and its number."""

    def __init__(self, styles: int, width: int) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.arange(float(styles * width)).reshape(styles, width))
        self.seen = torch.empty(0)

    def forward(self, img: Tensor) -> Tensor:
        self.seen = img
        return img.mean(dim=(1, 2, 3))[:, None, None] + self.numbers


def narrow_psp() -> PSP:
    torch.manual_seed(0)
    decoder = Generator(32, style_dim=6, n_mlp=1, channel_max=8)
    return PSP(Probe(8, 6), decoder, torch.randn(8, 6)).eval().requires_grad_(False)


FINE = 6 * (512 * 512 * 9 + 512) + 512 * 512 + 512  # parameters of one fine style's net, of 14 tensors


@pytest.mark.parametrize(
    ("size", "styles", "keys", "parameters"),
    [(1024, 18, 621, 267_136_704), (256, 14, 621 - 4 * 14, 267_136_704 - 4 * FINE)],
)
def test_names_shapes_and_counts_are_the_published_ones(size, styles, keys, parameters):
    file = psp(styles, decoder_size=size)
    with torch.device("meta"):
        encoder = GradualStyleEncoder(styles)
        net = PSP(encoder, Generator(size), torch.zeros(styles, 512))
    assert len(encoder.state_dict()) == keys
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert misfit(net.state_dict(), file["state_dict"]) is None


def slow_stretch(x: Tensor, side: int) -> Tensor:
    """Linear interpolation with the corners aligned, as a matrix for each axis."""
    at = torch.arange(side) * (x.shape[-1] - 1) / (side - 1)
    matrix = (1 - (at[:, None] - torch.arange(x.shape[-1])).abs()).clamp(min=0)
    return torch.einsum("ih,jw,bchw->bcij", matrix, matrix, x)


def test_the_offsets_are_those_of_the_slow_encoder(state, encoder):
    side = 64  # a quarter of the published side; the small nets' last convolutions then see one pixel
    img = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    maps = slow_irse.units(state, "", img)
    deep = maps[23]
    middle = slow_irse.conv(maps[20], state["latlayer1.weight"], bias=state["latlayer1.bias"]) + slow_stretch(deep, 8)
    shallow = slow_irse.conv(maps[6], state["latlayer2.weight"], bias=state["latlayer2.bias"]) + slow_stretch(
        middle, 16
    )
    wanted = []
    for style in range(18):
        x, halvings = (deep, 4) if style < 3 else (middle, 5) if style < 7 else (shallow, 6)
        for layer in range(halvings):
            at = f"styles.{style}.convs.{2 * layer}"
            x = slow_irse.conv(x, state[f"{at}.weight"], stride=2, bias=state[f"{at}.bias"])
            x = torch.where(x > 0, x, 0.01 * x)
        x = x[:, :, 0, 0] @ state[f"styles.{style}.linear.weight"].T / math.sqrt(512)
        wanted.append(x + state[f"styles.{style}.linear.bias"])
    torch.testing.assert_close(encoder(img), torch.stack(wanted, dim=1), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_picture_of_256_px_has_18_styles_in_float32_under_autocast_too(encoder):
    img = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        offsets = encoder(img)
    assert offsets.shape == (1, 18, 512)
    assert offsets.dtype == torch.float32
    assert offsets.isfinite().all()


def test_codes_are_the_encoders_offsets_plus_the_mean_styles():
    net = narrow_psp()
    img = torch.rand(2, 3, 256, 256)
    assert isinstance(net.encoder, Probe)
    wanted = img.mean(dim=(1, 2, 3))[:, None, None] + net.encoder.numbers + net.latent_avg
    torch.testing.assert_close(net.codes(img), wanted)
    assert torch.equal(net.encoder.seen, img)


def test_a_larger_picture_is_averaged_over_areas_and_a_smaller_one_stretched():
    net = narrow_psp()
    assert isinstance(net.encoder, Probe)
    large = torch.rand(1, 3, 512, 512)
    net.codes(large)
    torch.testing.assert_close(net.encoder.seen, large.unflatten(2, (256, 2)).unflatten(4, (256, 2)).mean(dim=(3, 5)))
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    net.codes(ramp)
    assert net.encoder.seen.shape == (1, 3, 256, 256)
    columns = net.encoder.seen[0, 0, 0]
    # a quarter of the step between two pixels, from half a small pixel on; the edge repeats
    inner = (torch.arange(256.0) + 0.5) / 4 - 0.5
    torch.testing.assert_close(columns, (inner.clamp(0, 63) * 2 / 63 - 1), rtol=0, atol=1e-5)


def test_pictures_are_the_generators_average_pooled_and_always_the_same():
    net = narrow_psp()
    w_BLD = torch.randn(2, 8, 6)
    whole = net.decoder.synthesis(w_BLD)
    pooled = whole.unflatten(2, (8, 4)).unflatten(4, (8, 4)).mean(dim=(3, 5))
    torch.testing.assert_close(net.pictures(w_BLD, size=8), pooled)
    torch.testing.assert_close(net.pictures(w_BLD, size=32), whole)
    img = torch.rand(1, 3, 256, 256)
    torch.testing.assert_close(net(img), net.pictures(net.codes(img)))
    assert net(img).shape == (1, 3, 256, 256)


def test_the_mean_styles_move_with_the_net_but_are_no_part_of_its_state():
    net = narrow_psp()
    assert {name.partition(".")[0] for name in net.state_dict()} == {"encoder", "decoder"}
    assert net.double().latent_avg.dtype == torch.float64


def test_the_codes_of_a_psp_without_its_decoder():
    net = narrow_psp()
    codes = PSPCodeEncoder(net)
    img = torch.rand(2, 3, 100, 100)
    assert torch.equal(codes(img), net.codes(img))
    assert (codes.n_styles, codes.style_dim) == (8, 6)
    assert {name.partition(".")[0] for name, _ in codes.named_parameters()} == {"encoder"}
