import pytest
import torch
import torch.nn.functional as F

from v2f.errors import V2FError
from v2f.nn.mapping import StyleMapping


def maps(batch: int = 2, channels: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    shallow, middle, deep = (torch.randn(batch, channels, t, generator=rng) for t in (40, 20, 10))
    return shallow, middle, deep


def test_the_full_mapping_has_its_count() -> None:
    with torch.device("meta"):
        mapping = StyleMapping(StyleMapping.Config(), channels=[512] * 3, n_styles=18, style_dim=512)
    assert sum(p.numel() for p in mapping.parameters()) == 33_057_792


@pytest.mark.parametrize(("convs", "stride"), [(2, 2), (3, 1), (0, 2)])
def test_a_style_follows_its_formula(convs: int, stride: int) -> None:
    torch.manual_seed(0)
    mapping = StyleMapping(StyleMapping.Config(convs=convs, stride=stride), channels=[6] * 3, n_styles=1, style_dim=5)
    (style,) = mapping.styles
    x = maps()[2]
    for i in range(convs):
        state = style.convs[i].state_dict()  # type: ignore[union-attr, index]
        x = F.leaky_relu(F.conv1d(x, state["weight"], state["bias"], stride, padding=1), 0.01)
    linear = style.linear.state_dict()  # type: ignore[union-attr]
    expected = x.max(dim=2).values @ linear["weight"].T / 6**0.5 + linear["bias"]
    torch.testing.assert_close(mapping(maps())[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_each_depth_feeds_its_styles() -> None:
    torch.manual_seed(0)
    mapping = StyleMapping(StyleMapping.Config(), channels=[6] * 3, n_styles=10, style_dim=5)
    base = mapping(maps())
    assert base.shape == (2, 10, 5)
    fed = {"shallow": set(range(7, 10)), "middle": set(range(3, 7)), "deep": set(range(3))}
    for i, name in enumerate(fed):
        changed = list(maps())
        changed[i] = changed[i] + 1
        moved = (mapping((changed[0], changed[1], changed[2])) - base).abs().amax(dim=(0, 2)) > 1e-6
        assert set(moved.nonzero().flatten().tolist()) == fed[name]


def test_styles_keep_full_precision_under_autocast() -> None:
    mapping = StyleMapping(StyleMapping.Config(), channels=[6] * 3, n_styles=2, style_dim=5)
    with torch.autocast("cpu", torch.bfloat16):
        assert mapping(maps()).dtype == torch.float32


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(V2FError, match="kernel 4 is even"):
        StyleMapping(StyleMapping.Config(kernel=4), channels=[6] * 3, n_styles=2, style_dim=5)
