"""The mapping of ECAPA-TDNN networks: its styles, its batch norms, what it refuses."""

import pytest
import torch
from encoders.small import MAPPINGS
from pydantic import ValidationError
from torch import Tensor

from v2f.errors import V2FError
from v2f.nn.ecapa_mapping import ECAPAMapping
from v2f.nn.groups import common_group
from v2f.nn.mappings import build_mapping

CONFIG = ECAPAMapping.Config.model_validate(MAPPINGS["ecapa_tdnn"] | {"bn_group": 2})


def maps(batch: int = 2, channels: int = 6) -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(batch, channels, frames, generator=rng) for frames in (40, 20, 10)]


def mapping(styles: int = 10, seed: int = 0, **keys: object) -> ECAPAMapping:
    torch.manual_seed(seed)
    built = build_mapping(CONFIG.model_copy(update=keys), [6] * 3, styles, 5)
    assert isinstance(built, ECAPAMapping)
    return built


def test_the_default_sizes_have_their_count() -> None:
    with torch.device("meta"):
        built = ECAPAMapping(ECAPAMapping.Config(net="ecapa_tdnn"), [768] * 3, 18, 512)
    assert sum(p.numel() for p in built.parameters()) == 53_630_784


def test_each_depth_feeds_its_styles() -> None:
    net = mapping().eval()
    base = net(maps())
    assert base.shape == (2, 10, 5)
    for depth, own in enumerate((range(7, 10), range(3, 7), range(3))):
        changed = maps()
        changed[depth] = changed[depth].flip(2) * 2
        moved = (net(changed) - base).abs().amax(dim=(0, 2)) > 1e-6
        assert moved.nonzero().flatten().tolist() == list(own)


def test_a_batch_is_a_number_of_groups_and_evaluation_knows_no_batch() -> None:
    net = mapping().double()
    assert common_group([net]) == 2
    whole = [map_BCF.double() for map_BCF in maps(batch=4)]
    halves = [[map_BCF[part] for map_BCF in whole] for part in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(net(whole), torch.cat([net(half) for half in halves]), rtol=0, atol=1e-12)
    net.eval()
    ones = [net([map_BCF[i : i + 1] for map_BCF in whole]) for i in range(4)]
    torch.testing.assert_close(net(whole), torch.cat(ones), rtol=0, atol=1e-12)


def test_styles_keep_full_precision_under_autocast() -> None:
    net = mapping(styles=2).eval()
    full = net(maps())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(maps())
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, full, rtol=0, atol=0.05 * float(full.detach().abs().max()))


def test_styles_start_small_if_asked() -> None:
    torch.testing.assert_close(mapping(init_gain=0.25)(maps()), mapping()(maps()) / 4, rtol=1e-4, atol=1e-6)


def test_a_vector_and_a_group_of_one_are_refused_in_one_line() -> None:
    with pytest.raises(
        V2FError, match=r"ecapa_tdnn pools over frames, but the encoder gives a vector; .*output=frames"
    ):
        mapping()([torch.randn(2, 6, 1)] * 3)
    with pytest.raises(V2FError, match="its kernels need 3 frames, got 2"):
        mapping()([torch.randn(2, 6, 2)] * 3)
    with pytest.raises(ValidationError, match="bn_group"):
        ECAPAMapping.Config(net="ecapa_tdnn", bn_group=1)
