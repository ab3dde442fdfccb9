"""IR-SE50 against a second, slow implementation, on random weights in the published file's layout."""

import pytest
import torch
from nn import slow_irse
from torch import Tensor

from bench.random_weights import ir_se50
from v2f.nn.irse import IRSE50
from v2f.nn.strict import misfit


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return ir_se50()


@pytest.fixture(scope="module")
def net(state) -> IRSE50:
    with torch.device("meta"):
        net = IRSE50()
    net.load_state_dict(state, assign=True)
    return net.eval().requires_grad_(False)


def picture(seed: int, batch: int = 1, side: int = 112) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_names_shapes_and_counts_are_the_published_ones(state):
    with torch.device("meta"):
        net = IRSE50()
    own = net.state_dict()
    assert len(own) == 397
    assert sum(p.numel() for p in net.parameters()) == 43_797_696
    assert misfit(own, state) is None


def test_the_embedding_is_that_of_the_slow_net(state, net):
    img = picture(0, batch=2)
    x = slow_irse.batch_norm(state, "output_layer.0", slow_irse.units(state, "", img)[-1])
    x = x.reshape(2, -1) @ state["output_layer.3.weight"].T + state["output_layer.3.bias"]
    x = slow_irse.batch_norm(state, "output_layer.4", x)
    torch.testing.assert_close(net(img), x / x.pow(2).sum(dim=1, keepdim=True).sqrt(), rtol=0, atol=1e-5)


def test_maps_are_those_behind_the_units_that_are_asked_for(state, net):
    img = picture(1, side=32)
    every = slow_irse.units(state, "", img)
    for found, after in zip(net.maps(img, (6, 20, 23)), (6, 20, 23), strict=True):
        torch.testing.assert_close(found, every[after], rtol=1e-4, atol=1e-4)
    assert [tuple(m.shape[1:]) for m in net.maps(img, (6, 20))] == [(128, 8, 8), (256, 4, 4)]


def test_the_embedding_has_length_one_in_float32_under_autocast_too(net):
    img = picture(2)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = net(img)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.norm(dim=1), torch.ones(1), rtol=0, atol=1e-6)
    assert torch.cosine_similarity(narrow, net(img)).item() > 0.99
