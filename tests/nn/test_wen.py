"""The nets of the voice-to-face GAN: the published sizes, other sides, and what a deeper net adds."""

import pytest
import torch
from torch import nn

from v2f.errors import V2FError
from v2f.nn.wen import FaceGenerator, FaceTrunk, ResidualTrunk, VoiceEmbedding, keep_variance


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_the_published_nets_have_their_parameters() -> None:
    embedding = VoiceEmbedding(VoiceEmbedding.Config())
    assert parameters(embedding) == 2_670_720
    assert len(embedding.state_dict()) == 26
    assert embedding.state_dict()["model.0.weight"].shape == (256, 64, 3)
    assert parameters(FaceGenerator(64)) == 12_191_875
    assert parameters(FaceTrunk()) == 3_310_720
    assert parameters(FaceTrunk(kernel=3)) == 2_092_160  # the document's


@pytest.mark.parametrize("size", [28, 32, 64, 128])
def test_other_sides_have_more_or_fewer_layers(size: int) -> None:
    picture = FaceGenerator(5, size, 2)(torch.randn(2, 5))
    assert picture.shape == (2, 3, size, size)
    for trunk in (FaceTrunk(size, 2, 3, 7), FaceTrunk(size, 2, 4, 7), ResidualTrunk(size, 2, 2, 7)):
        assert trunk(picture).shape == (2, 7)
    with pytest.raises(V2FError, match="4 to 7 times a power of two"):
        FaceGenerator(5, size + 1, 2)


def test_the_end_is_linear_or_a_tanh() -> None:
    torch.manual_seed(0)
    linear, limited = FaceGenerator(5, 16, 4), FaceGenerator(5, 16, 4, last="tanh")
    limited.load_state_dict(linear.state_dict())
    embedding = 500 * torch.randn(2, 5)
    assert linear(embedding).abs().max() > 1
    torch.testing.assert_close(limited(embedding), linear(embedding).tanh())


def test_a_deeper_generator_has_more_convolutions_of_each_side() -> None:
    plain, deeper = FaceGenerator(5, 32, 4), FaceGenerator(5, 32, 4, extra=2)
    added = parameters(deeper) - parameters(plain)
    assert added == 2 * sum(9 * width**2 + width for width in (32, 16, 8, 4))
    assert deeper(torch.randn(2, 5)).shape == (2, 3, 32, 32)


def test_an_embedding_is_the_mean_over_time_and_of_each_clip_alone() -> None:
    torch.manual_seed(0)
    net = VoiceEmbedding(VoiceEmbedding.Config(widths=[6, 8], embedding=5)).eval()
    x_B64F = torch.randn(3, 64, 41)
    torch.testing.assert_close(net(x_B64F), net.model(x_B64F).mean(2))
    torch.testing.assert_close(net(x_B64F)[1:2], net(x_B64F[1:2]))


@pytest.mark.parametrize("extra", [0, 1])
def test_initial_weights_can_keep_the_variance(extra: int) -> None:
    torch.manual_seed(0)
    embedding = nn.functional.normalize(torch.randn(16, 64))
    generator, trunk = FaceGenerator(64, 32, 16, extra=extra), FaceTrunk(32, 16)
    before = generator(embedding).std(0).mean()
    for net in (generator, trunk):
        keep_variance(net)
    picture = generator(embedding)
    assert before < 0.01
    assert 0.1 < float(picture.std(0).mean()) < 1.0
    assert 0.2 < float(trunk(picture / picture.std()).std(0).mean()) < 3.0
