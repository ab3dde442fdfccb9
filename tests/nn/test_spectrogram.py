import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from v2f import config
from v2f.errors import V2FError
from v2f.nn.batchnorm import GhostBatchNorm
from v2f.nn.spectrogram import LogMel, LogMelConfig, SpectrogramEncoder
from v2f.nn.waveform import WaveformEncoder

DIMS = pytest.mark.parametrize("dims", [1, 2])


def small(**values: object) -> SpectrogramEncoder:
    torch.manual_seed(0)
    base = {
        "channels": [4, 8, 8, 12],
        "blocks": [1, 2, 1, 1],
        "strides": [1, 2, 3, 2],
        "out_channels": 6,
        "bn_group": 2,
        "bands": 20,
        "f_min": 100.0,
    }
    return SpectrogramEncoder(config.build(SpectrogramEncoder.Config, base | values, "test"))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("dims", "parameters", "gflop"), [(1, 37_735_040, 4.6), (2, 37_711_040, 60)])
def test_the_full_encoder_is_as_large_as_the_waveform_encoder(dims: int, parameters: int, gflop: float) -> None:
    with torch.device("meta"):
        waveform = WaveformEncoder(WaveformEncoder.Config())
        encoder = SpectrogramEncoder(SpectrogramEncoder.Config(dims=dims))  # type: ignore[arg-type]
    assert count(encoder) == parameters
    assert count(encoder) == pytest.approx(count(waveform), rel=1e-3)
    encoder = encoder.to_empty(device="cpu")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), FlopCounterMode(display=False) as counter:
        maps = encoder(torch.empty(4, 96_000))
    assert [tuple(m.shape) for m in maps] == [(4, 512, 151), (4, 512, 76), (4, 512, 38)]
    assert counter.get_total_flops() / 4 == pytest.approx(gflop * 1e9, rel=0.01)


def slow_log_mel(wav_T: Tensor, c: LogMelConfig) -> Tensor:
    """[M,T'] by its definition, in float64: frame by frame, band by band."""
    window, hop = round(c.window * c.sample_rate / 1000), round(c.hop * c.sample_rate / 1000)
    size = 2 ** math.ceil(math.log2(window))
    hann_S = np.zeros(size)
    start = (size - window) // 2
    hann_S[start : start + window] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.pad(wav_T.double().numpy(), size // 2)
    frames = [padded[at : at + size] for at in range(0, len(wav_T) + 1, hop)]
    power_TF = np.abs(np.fft.rfft(np.stack(frames) * hann_S)) ** 2

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    high = c.sample_rate / 2 if c.f_max is None else c.f_max
    edges = 700 * (10 ** (np.linspace(mel(c.f_min), mel(high), c.bands + 2) / 2595) - 1)
    hertz_F = np.linspace(0, c.sample_rate / 2, size // 2 + 1)
    bands = []
    for low, middle, top in zip(edges, edges[1:], edges[2:], strict=False):
        triangle_F = np.minimum((hertz_F - low) / (middle - low), (top - hertz_F) / (top - middle)).clip(min=0)
        bands.append(np.log(np.maximum(power_TF @ triangle_F, c.eps)))
    log_MT = np.stack(bands)
    if c.normalize:
        log_MT = (log_MT - log_MT.mean(1, keepdims=True)) / log_MT.std(1, keepdims=True)
    return torch.from_numpy(log_MT)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"normalize": False, "eps": 1e-3},
        {"normalize": False, "bands": 10, "window": 32.0, "hop": 12.5, "f_min": 0.0, "f_max": 3000.0},
        {"normalize": False, "sample_rate": 8000, "bands": 16, "window": 20.0},
    ],
)
def test_the_log_mel_spectrogram_follows_its_definition(values: dict[str, object]) -> None:
    c = config.build(LogMelConfig, {"bands": 20, "f_min": 100.0} | values, "test")
    wav_BT = 0.2 * torch.randn(2, 1700, generator=torch.Generator().manual_seed(0))
    wav_BT[:, 600:900] *= 1e-4
    found = LogMel(c)(wav_BT)
    assert found.dtype == torch.float32
    expected = torch.stack([slow_log_mel(wav_T, c) for wav_T in wav_BT])
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(LogMel(c).double()(wav_BT.double()), expected, rtol=1e-5, atol=1e-5)


def test_silence_is_not_amplified() -> None:
    wav_BT = 1e-9 * torch.randn(2, 1600)
    assert LogMel(LogMelConfig(bands=20))(wav_BT).abs().max() < 1e-2


def test_the_front_end_stays_in_float32_under_autocast_and_out_of_a_checkpoint() -> None:
    encoder, wav_BT = small(), torch.randn(2, 3200)
    exact = encoder.log_mel(wav_BT)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.log_mel(wav_BT), exact)
        assert torch.equal(encoder.log_mel(wav_BT.bfloat16()), encoder.log_mel(wav_BT.bfloat16().float()))
    assert list(encoder.log_mel.buffers())
    assert not [name for name in encoder.state_dict() if "mel" in name]


def slow(encoder: SpectrogramEncoder, wav_BT: Tensor) -> list[Tensor]:
    """The encoder with PyTorch's own 1-D or 2-D operations."""
    state, c = encoder.state_dict(), encoder.config
    convolve, pool = (F.conv1d, F.max_pool1d) if c.dims == 1 else (F.conv2d, F.max_pool2d)

    def norm(x: Tensor, name: str) -> Tensor:
        parts = [F.batch_norm(g, None, None, state[f"{name}.weight"], state[f"{name}.bias"], True) for g in x.split(2)]
        return torch.cat(parts)

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return convolve(x, weight, state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    x = encoder.log_mel(wav_BT) if c.dims == 1 else encoder.log_mel(wav_BT)[:, None]
    x = F.prelu(norm(conv(x, "stem.0", c.stem_stride), "stem.1"), state["stem.2.weight"])
    depths = []
    for s, blocks in enumerate(c.blocks):
        for b in range(blocks):
            name, stride = f"stages.{s}.{b}", c.strides[s] if b == 0 else 1
            y = F.prelu(conv(norm(x, f"{name}.body.0"), f"{name}.body.1"), state[f"{name}.body.2.weight"])
            y = norm(conv(y, f"{name}.body.3", stride), f"{name}.body.4")
            if f"{name}.shortcut.0.weight" in state:
                x = norm(conv(x, f"{name}.shortcut.0", stride), f"{name}.shortcut.1")
            else:
                x = pool(x, stride, ceil_mode=True)
            x = x + c.residual_scale * y
        depths.append(x if c.dims == 1 else x.mean(dim=2))

    def lateral(x: Tensor, name: str) -> Tensor:
        return F.conv1d(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def stretch(x: Tensor, length: int) -> Tensor:
        return F.interpolate(x, length, mode="linear", align_corners=True)

    deep = lateral(depths[-1], "lateral_deep")
    middle = lateral(depths[-2], "lateral_middle")
    middle = middle + stretch(deep, middle.shape[-1])
    shallow = lateral(depths[-3], "lateral_shallow")
    return [shallow + stretch(middle, shallow.shape[-1]), middle, deep]


@DIMS
@pytest.mark.parametrize("samples", [6400, 7000])
def test_maps_agree_with_plain_operations(samples: int, dims: int) -> None:
    encoder, wav_BT = small(dims=dims).double(), torch.randn(4, samples, dtype=torch.float64)
    for each in encoder.parameters():
        if each.ndim == 1:  # slopes and norms: no two channels alike
            each.data += 0.1 * torch.rand_like(each)
    for here, there in zip(encoder(wav_BT), slow(encoder, wav_BT), strict=True):
        torch.testing.assert_close(here, there, rtol=0, atol=1e-10)


@DIMS
def test_everything_is_trained(dims: int) -> None:
    encoder = small(dims=dims)
    shallow, middle, deep = encoder(torch.randn(4, 6400))
    (shallow.square().mean() + middle.mean() + deep.mean()).backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


@DIMS
def test_layers_keep_the_fast_layout(dims: int) -> None:
    seen: list[bool] = []
    encoder = small(dims=dims)
    for norm in encoder.modules():
        if isinstance(norm, GhostBatchNorm):
            norm.register_forward_hook(lambda m, i, o: seen.append(o.is_contiguous(memory_format=torch.channels_last)))
    encoder(torch.randn(2, 6400))
    assert seen
    assert all(seen)


def test_the_kernel_is_a_square_of_as_many_taps_unless_it_is_set() -> None:
    assert [small(dims=dims).config.kernel for dims in (1, 2)] == [9, 3]
    assert small(dims=2, kernel=5).config.kernel == 5
    again = config.build(SpectrogramEncoder.Config, small(dims=2).config.model_dump(), "test")
    assert again == small(dims=2).config


def test_configurations_that_cannot_be_are_refused() -> None:
    with pytest.raises(V2FError, match="f_min must be below f_max, and f_max at most 8000 Hz"):
        small(f_max=9000.0)
    with pytest.raises(V2FError, match="f_min must be below f_max"):
        small(f_max=100.0)
    with pytest.raises(V2FError, match=r"at least one sample, 0\.0625 ms"):
        small(hop=0.01)
    with pytest.raises(
        V2FError, match=r"band 1 of 200 is narrower than the resolution of a window of 25 ms; set fewer"
    ):
        small(bands=200)
    with pytest.raises(V2FError, match="one entry per stage"):
        small(blocks=[1, 2, 3])
    with pytest.raises(V2FError, match=r"of shape \[batch, samples\], got \[2, 1, 600\]"):
        small()(torch.zeros(2, 1, 600))
