from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from v2f import config
from v2f.errors import V2FError
from v2f.nn.vector_mapping import LinearMapping, VectorCascade


def cascade(width: int = 192, styles: int = 2, **values: object) -> VectorCascade:
    torch.manual_seed(0)
    built = config.build(VectorCascade.Config, values, "test")
    return VectorCascade(built, channels=[width], n_styles=styles, style_dim=5)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_full_mappings_have_their_counts() -> None:
    with torch.device("meta"):
        full = VectorCascade(VectorCascade.Config(), channels=[192], n_styles=18, style_dim=512)
        linear = LinearMapping(LinearMapping.Config(), channels=[192], n_styles=18, style_dim=512)
    assert count(full) == 18 * 1_134_208
    assert count(linear) == 1_778_688


def slow(net: VectorCascade, vector_BE: Tensor) -> Tensor:
    c, styles = net.config, []
    for style in range(len(net.styles)):
        state = net.styles[style].state_dict()
        x = vector_BE[:, None]
        for layer, stride in enumerate(c.strides):
            weight, bias = (state[f"convs.{2 * layer}.{name}"] for name in ("weight", "bias"))
            x = F.conv1d(x, weight, bias, stride, c.kernel // 2)
            x = (
                F.leaky_relu(x, 0.01)
                if c.activation == "leaky_relu"
                else F.prelu(x, state[f"convs.{2 * layer + 1}.weight"])
            )
        x = x.max(dim=2).values if c.pool == "max" else x.mean(dim=2)
        styles.append(x @ state["linear.weight"].T / x.shape[1] ** 0.5 + state["linear.bias"])
    return torch.stack(styles, dim=1)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"channels": [4, 8, 12], "strides": [8, 8, 3], "kernel": 7, "activation": "prelu"},
        {"channels": [4, 8], "strides": [4, 2], "pool": "mean"},
        {"channels": [4, 8], "strides": [4, 2], "pool": "max", "init_gain": 0.1},
    ],
)
def test_a_cascade_follows_its_formula(values: dict[str, object]) -> None:
    net, vector_BE = cascade(**values).double(), torch.randn(3, 192, dtype=torch.float64)
    torch.testing.assert_close(net([vector_BE[:, :, None]]), slow(net, vector_BE), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("width", [1, 3, 80, 192, 255, 256])
def test_the_usual_strides_leave_one_position_of_any_usual_vector(width: int) -> None:
    net = cascade(width, styles=1)
    assert net.styles[0].convs(torch.zeros(1, 1, 1, width)).shape == (1, 512, 1, 1)  # type: ignore[operator, union-attr]


@pytest.mark.parametrize(("width", "left"), [(257, 2), (512, 2), (513, 3), (1024, 4)])
def test_strides_that_leave_several_positions_need_a_pool(width: int, left: int) -> None:
    with pytest.raises(
        V2FError, match=rf"strides leave {left} positions of the encoder's vector of {width}, and pool is none; set"
    ):
        cascade(width)
    net = cascade(width, styles=1, pool="mean")
    assert net.styles[0].convs(torch.zeros(1, 1, 1, width)).shape == (1, 512, 1, left)  # type: ignore[operator, union-attr]


def given(frames: Sequence[int]) -> list[Tensor]:
    return [torch.randn(3, 7, length, generator=torch.Generator().manual_seed(length)) for length in frames]


def test_the_linear_mapping_averages_the_deepest_map() -> None:
    torch.manual_seed(0)
    net = LinearMapping(LinearMapping.Config(init_gain=0.5), channels=[7, 7], n_styles=4, style_dim=5)
    torch.manual_seed(0)
    drawn = torch.randn(20, 7)
    for frames in ((40, 20), (20, 1)):
        maps = given(frames)
        expected = maps[-1].mean(dim=2) @ (0.5 * drawn).T / 7**0.5
        torch.testing.assert_close(net(maps), expected.reshape(3, 4, 5))


def test_the_last_layers_may_begin_small() -> None:
    one, tenth = (cascade(pool="mean", init_gain=gain) for gain in (1.0, 0.1))
    maps = [torch.randn(3, 192, 1)]
    torch.testing.assert_close(tenth(maps), 0.1 * one(maps))


def test_configurations_that_cannot_be_are_refused() -> None:
    with pytest.raises(V2FError, match="channels and strides need one entry per layer"):
        cascade(channels=[4, 8])
    with pytest.raises(V2FError, match="kernel 4 is even"):
        cascade(kernel=4)
    with pytest.raises(V2FError, match="vector_cascade takes one vector, but the encoder's deepest map has 20 frames"):
        VectorCascade(VectorCascade.Config(), channels=[7], n_styles=1, style_dim=5)(given((40, 20)))
