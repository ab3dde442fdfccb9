"""The interface of every voice encoder and every mapping of ``small.py``."""

from itertools import accumulate

import pytest
import torch
from encoders.small import ENCODERS, MAPPINGS, OF_VECTORS, VECTORS
from pydantic import TypeAdapter
from torch import Tensor

from v2f import encoders
from v2f.encoders import EncoderConfig
from v2f.errors import V2FError
from v2f.nn.groups import common_group
from v2f.nn.mapping import MappingNetwork
from v2f.nn.mappings import MappingConfig, build_mapping
from v2f.nn.voice import VoiceEncoder

ENCODER = pytest.mark.parametrize("name", ENCODERS)
MAPPING = pytest.mark.parametrize("name", MAPPINGS)
SAMPLES = 8000
CHANNELS, STYLES, WIDTH = (6, 8, 10), 10, 5
BATCH = 8


def encoder(name: str) -> VoiceEncoder:
    torch.manual_seed(0)
    config = TypeAdapter(EncoderConfig).validate_python(ENCODERS[name])
    built = encoders.build(config, "there is no such folder").encoder
    assert tuple(built.trained()) == encoders.trained(config)
    return built


def mapping(name: str) -> MappingNetwork:
    torch.manual_seed(0)
    config = TypeAdapter(MappingConfig).validate_python(MAPPINGS[name])
    return build_mapping(config, CHANNELS, STYLES, WIDTH)


def waves() -> Tensor:
    """Half a second of tones that fade in; no two alike."""
    time_T = torch.arange(SAMPLES) / 16_000
    pitch_B1 = 100.0 * torch.arange(1, BATCH + 1)[:, None]
    noise_BT = 0.01 * torch.randn(BATCH, SAMPLES, generator=torch.Generator().manual_seed(1))
    return 0.3 * torch.sin(2 * torch.pi * pitch_B1 * time_T) * time_T + noise_BT


def maps(name: str) -> list[Tensor]:
    """What an encoder may give this mapping."""
    lengths = (1, 1, 1) if name in OF_VECTORS else (40, 20, 10)
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(BATCH, *shape, generator=rng) for shape in zip(CHANNELS, lengths, strict=True)]


def near(rounded: Tensor, exact: Tensor, share: float) -> bool:
    """Whether the difference is a small share of how much the exact values vary."""
    return float((rounded.double() - exact.double()).std()) < share * float(exact.double().std())


@ENCODER
def test_maps_have_the_promised_channels_and_shape(name: str) -> None:
    net = encoder(name)
    made = net(waves())
    assert isinstance(made, tuple)
    assert tuple(each.shape[:2] for each in made) == tuple((BATCH, channels) for channels in net.channels)
    lengths = [each.shape[2] for each in made]
    assert lengths == list(accumulate(lengths, min)), "shallow maps are the long ones"
    assert (lengths[-1] == 1) == (name in VECTORS)
    for each in made:
        assert each.dtype == torch.float32
        assert each.isfinite().all()
        assert float(torch.pdist(each.detach().flatten(1)).min()) > 0, "no two voices have the same map"


@ENCODER
def test_a_voice_is_encoded_alone_and_in_training_in_its_group(name: str) -> None:
    net, wav_BT = encoder(name).double(), waves().double()
    group = common_group([net])
    for size in (1, group):
        net.train(size == group)
        with torch.no_grad():
            whole = net(wav_BT)
            parts = [net(part_BT) for part_BT in wav_BT.split(size)]
        for one, others in zip(whole, zip(*parts, strict=True), strict=True):
            torch.testing.assert_close(torch.cat(others), one, rtol=1e-9, atol=1e-9)


@ENCODER
def test_training_changes_what_trained_names_and_nothing_else(name: str) -> None:
    net = encoder(name)
    parts = net.trained()
    own = [parameter for part in parts.values() for parameter in part.parameters()]
    assert len({id(parameter) for parameter in own}) == len(own), "two parts share a parameter"
    if own:
        sum(each.square().mean() for each in net.train()(waves())).backward()
    assert all(any(parameter.grad is not None for parameter in part.parameters()) for part in parts.values())
    for key, parameter in net.named_parameters():
        trained = any(parameter is each for each in own)
        assert parameter.requires_grad == trained, key
        assert trained or parameter.grad is None, key


@ENCODER
def test_an_encoder_computes_in_each_precision_and_the_same_each_time(name: str) -> None:
    net, wav_BT = encoder(name), waves()
    for training in (True, False):
        net.train(training)
        with torch.no_grad():
            single, again = net(wav_BT), net(wav_BT)
            with torch.autocast("cpu", torch.bfloat16):
                rounded = net(wav_BT)
            exact = net.double()(wav_BT.double())
        net.float()
        assert all(torch.equal(one, other) for one, other in zip(single, again, strict=True))
        assert all(each.dtype == torch.float64 for each in exact)
        assert all(near(one, other, 1e-3) for one, other in zip(single, exact, strict=True))
        assert all(near(one, other, 0.1) for one, other in zip(rounded, exact, strict=True))


@MAPPING
def test_a_mapping_makes_every_style_from_each_voice_alone(name: str) -> None:
    net, given = mapping(name).double().eval(), [each.double() for each in maps(name)]
    with torch.no_grad():
        whole = net(given)
        parts = [net([each[row : row + 1] for each in given]) for row in range(BATCH)]
    assert whole.shape == (BATCH, STYLES, WIDTH)
    assert float(whole.std(dim=0).min()) > 0
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-9, atol=1e-9)


@MAPPING
def test_all_of_a_mapping_is_trained(name: str) -> None:
    net = mapping(name)
    net(maps(name)).square().mean().backward()
    assert [key for key, parameter in net.named_parameters() if parameter.grad is None] == []


@MAPPING
def test_a_mapping_computes_in_each_precision_and_the_same_each_time(name: str) -> None:
    net, given = mapping(name), maps(name)
    with torch.no_grad():
        single, again = net(given), net(given)
        with torch.autocast("cpu", torch.bfloat16):
            rounded, halved = net(given), net([each.bfloat16() for each in given])
        exact = net.double()([each.double() for each in given])
    assert torch.equal(single, again)
    assert rounded.dtype == halved.dtype == torch.float32, "bfloat16 would be visible in the picture"
    assert exact.dtype == torch.float64
    assert near(single, exact, 1e-3)
    assert near(rounded, exact, 0.05)


@MAPPING
def test_a_mapping_for_vectors_refuses_frames(name: str) -> None:
    shallow, middle, deep = (torch.zeros(BATCH, channels, 7) for channels in CHANNELS)
    if name in OF_VECTORS:
        with pytest.raises(
            V2FError, match=r"system\.mapping: vector_cascade takes one vector, but .* has 7 frames; set"
        ):
            mapping(name)((shallow, middle, deep))
    else:
        assert isinstance(mapping(name)((shallow, middle, deep)), Tensor)


def test_the_tables_name_every_net_that_can_be_chosen() -> None:
    def nets(union: object) -> set[str]:
        return set(TypeAdapter(union).json_schema()["discriminator"]["mapping"])

    assert {values["net"] for values in ENCODERS.values()} == nets(EncoderConfig)
    assert {values["net"] for values in MAPPINGS.values()} == nets(MappingConfig)
