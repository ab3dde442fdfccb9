import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from v2f import config
from v2f.errors import V2FError
from v2f.nn.batchnorm import GhostBatchNorm
from v2f.nn.statistics import collect
from v2f.nn.waveform import WaveformEncoder, other_split


def small(**values: object) -> WaveformEncoder:
    torch.manual_seed(0)
    base = {
        "channels": [4, 8, 8, 12],
        "blocks": [1, 2, 1, 1],
        "strides": [2, 3, 2, 2],
        "stem_stride": 2,
        "stem_kernel": 9,
        "kernel": 5,
        "out_channels": 6,
        "bn_group": 2,
    }
    return WaveformEncoder(config.build(WaveformEncoder.Config, base | values, "test"))


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_thesis_encoder_has_its_counts(device: str) -> None:
    with torch.device(device):
        encoder = WaveformEncoder(WaveformEncoder.Config())
    assert sum(len(stage) for stage in encoder.stages) == 32  # type: ignore[arg-type]
    assert count(encoder.stages) == 37_511_616
    assert count(encoder.stem) == 1_792
    assert count(encoder.lateral_middle, encoder.lateral_shallow) == 197_632
    assert isinstance(encoder.lateral_deep, nn.Identity)
    assert count(encoder) == 37_711_040


def test_the_full_encoder_takes_182_gflop_for_6_s() -> None:
    with FakeTensorMode(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        WaveformEncoder(WaveformEncoder.Config())(torch.empty(4, 96_000))
    assert counter.get_total_flops() / 4 == pytest.approx(182e9, abs=0.5e9)


def test_another_split_is_told_by_its_tensors() -> None:
    def shapes(**values: object) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in small(**values).state_dict().items()}

    here = small().config
    assert other_split(here, shapes()) is None
    assert other_split(here, shapes(channels=[4, 8, 8, 16])) is None  # another matter
    assert other_split(here, {"stages.0": [], "stages.0.0.body.1.weight": []}) is None
    deeper, wider = shapes(blocks=[1, 2, 11, 3]), shapes(kernel=7, stem_activation="leaky_relu")
    told = "its encoder has blocks {}, kernel {} and {} in the stem, this configuration has blocks 1/2/1/1, kernel 5"
    assert str(other_split(here, deeper)).startswith(told.format("1/2/11/3", 5, "prelu"))
    assert str(other_split(here, wider)).startswith(told.format("1/2/1/1", 7, "leaky_relu"))
    assert "corrected" not in str(other_split(here, wider))
    assert "corrected" in str(other_split(small(kernel=9).config, wider))


def test_the_full_encoder_has_the_promised_lengths() -> None:
    with torch.device("meta"):
        maps = WaveformEncoder(WaveformEncoder.Config())(torch.empty(4, 96_000))
    assert [tuple(m.shape) for m in maps] == [(4, 512, 6000), (4, 512, 3000), (4, 512, 1500)]


def slow(encoder: WaveformEncoder, wav_BT: Tensor) -> list[Tensor]:
    """The thesis's description with PyTorch's own 1-D operations."""
    state, c = encoder.state_dict(), encoder.config

    def norm(x: Tensor, name: str) -> Tensor:
        parts = [F.batch_norm(g, None, None, state[f"{name}.weight"], state[f"{name}.bias"], True) for g in x.split(2)]
        return torch.cat(parts)

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv1d(x, weight, state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    x = norm(conv(wav_BT[:, None], "stem.0", c.stem_stride), "stem.1")
    x = F.prelu(x, state["stem.2.weight"]) if c.stem_activation == "prelu" else F.leaky_relu(x, 0.25)
    depths = []
    for s, blocks in enumerate(c.blocks):
        for b in range(blocks):
            name, stride = f"stages.{s}.{b}", c.strides[s] if b == 0 else 1
            y = conv(norm(x, f"{name}.body.0"), f"{name}.body.1")
            y = F.prelu(y, state[f"{name}.body.2.weight"])
            y = norm(conv(y, f"{name}.body.3", stride), f"{name}.body.4")
            if f"{name}.shortcut.0.weight" in state:
                x = norm(conv(x, f"{name}.shortcut.0", stride), f"{name}.shortcut.1")
            else:
                x = F.max_pool1d(x, stride, ceil_mode=True)
            x = x + c.residual_scale * y
        depths.append(x)

    def stretch(x: Tensor, length: int) -> Tensor:
        return F.interpolate(x, length, mode="linear", align_corners=True)

    deep = conv(depths[-1], "lateral_deep")
    middle = conv(depths[-2], "lateral_middle")
    middle = middle + stretch(deep, middle.shape[-1])
    shallow = conv(depths[-3], "lateral_shallow")
    return [shallow + stretch(middle, shallow.shape[-1]), middle, deep]


@pytest.mark.parametrize("stem", ["prelu", "leaky_relu"])
@pytest.mark.parametrize("samples", [480, 517])
def test_maps_agree_with_plain_1d_operations(samples: int, stem: str) -> None:
    encoder, wav_BT = small(stem_activation=stem).double(), torch.randn(4, samples, dtype=torch.float64)
    for each in encoder.parameters():
        if each.ndim == 1:  # slopes and norms: no two channels alike
            each.data += 0.1 * torch.rand_like(each)
    for here, there in zip(encoder(wav_BT), slow(encoder, wav_BT), strict=True):
        torch.testing.assert_close(here, there, rtol=0, atol=1e-10)


def test_everything_is_trained_and_collected() -> None:
    encoder = small(conv_bias=True)
    shallow, middle, deep = encoder(torch.randn(4, 600))
    (shallow.square().mean() + middle.mean() + deep.mean()).backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []
    assert collect(encoder)
    assert all(m.collected()[2] == 2 for m in encoder.modules() if isinstance(m, GhostBatchNorm))


def test_activations_with_and_without_parameters() -> None:
    counts = {
        (stem, block): sum(p.numel() for p in small(stem_activation=stem, block_activation=block).parameters())
        for stem in ("prelu", "leaky_relu")
        for block in ("prelu", "leaky_relu")
    }
    assert counts["prelu", "prelu"] - counts["leaky_relu", "prelu"] == 4
    assert counts["prelu", "prelu"] - counts["prelu", "leaky_relu"] == 4 + 8 + 8 + 8 + 12


def test_layers_keep_the_fast_layout() -> None:
    """With one input channel, PyTorch takes [B,1,1,T] for the slow layout, and everything behind it follows."""
    seen: list[bool] = []
    encoder = small()
    for norm in encoder.modules():
        if isinstance(norm, GhostBatchNorm):
            norm.register_forward_hook(lambda m, i, o: seen.append(o.is_contiguous(memory_format=torch.channels_last)))
    encoder(torch.randn(2, 600))
    assert len(seen) == len([m for m in encoder.modules() if isinstance(m, GhostBatchNorm)])
    assert all(seen)


def test_runs_in_bfloat16() -> None:
    encoder, wav_BT = small(), torch.randn(4, 600)
    exact = encoder(wav_BT)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encoder(wav_BT)
    for a, b in zip(exact, rounded, strict=True):
        assert (a - b.float()).square().mean().sqrt() < 0.05 * a.std()


def test_configurations_that_cannot_be_are_refused() -> None:
    with pytest.raises(V2FError, match="one entry per stage"):
        small(blocks=[1, 2, 3])
    with pytest.raises(V2FError, match="odd"):
        small(kernel=4)
    with pytest.raises(V2FError, match="at least 3"):
        small(channels=[4, 8], blocks=[1, 1], strides=[2, 2])
    with pytest.raises(V2FError, match=r"of shape \[batch, samples\], got \[2, 1, 600\]"):
        small()(torch.zeros(2, 1, 600))
