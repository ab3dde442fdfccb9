"""The Transformer over codes: its size, torch's own forward pass, what it may see, and cached decoding."""

import math

import pytest
import torch
from torch import Tensor, nn

from v2f.nn.code_transformer import SPECIAL, Decoding, TokenTransformer, aligned_places, sinusoids

CODES, LENGTH, COARSE = 11, 12, 3


def net(condition: int | None = COARSE, seed: int = 0, **keys: bool) -> TokenTransformer:
    torch.manual_seed(seed)
    return TokenTransformer(CODES, condition, LENGTH, width=16, heads=2, layers=(2, 3), ff=24, **keys)


def inputs(own: TokenTransformer, batch: int = 3) -> tuple[Tensor, Tensor]:
    """A condition, and BEGIN with all codes."""
    torch.manual_seed(1)
    condition = torch.randint(CODES, (batch, own.condition or 1))
    code_BT = torch.randint(CODES, (batch, LENGTH))
    return condition, torch.cat([torch.full((batch, 1), own.begin), code_BT], 1)


@pytest.mark.parametrize(("condition", "length"), [(None, 900), (900, 3600)])
def test_the_documents_nets_have_exactly_its_parameters(condition: int | None, length: int) -> None:
    with torch.device("meta"):
        own = TokenTransformer(2048, condition, length, width=100, heads=4, layers=(6, 12), ff=1024)
    assert sum(each.numel() for each in own.parameters()) == 5_341_084
    assert sum(each.numel() for each in own.transformer.parameters()) == 4_928_632
    assert own.position_TE.shape == (length + 1, 100)  # 901 and 3,601 tokens
    assert own.state_dict().keys() == dict(own.named_parameters()).keys()


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("condition", [None, COARSE])
def test_a_forward_pass_is_that_of_torchs_transformer(condition: int | None, norm_first: bool) -> None:
    own = net(condition, norm_first=norm_first).double()
    given, read_BT = inputs(own)
    source = given if condition is None else torch.cat([torch.full((3, 1), own.begin), given], 1)
    vectors = [own.embedding(each) * 4 + own.position_TE[: each.shape[1]] for each in (source, read_BT)]
    mask = nn.Transformer.generate_square_subsequent_mask(LENGTH + 1, dtype=torch.float64)
    own.transformer.train()  # else torch takes another path
    wanted = own.output(own.transformer(*vectors, tgt_mask=mask, tgt_is_causal=True))
    torch.testing.assert_close(own(given, read_BT), wanted, rtol=1e-10, atol=1e-12)


def test_positions_are_the_papers_sines_and_cosines() -> None:
    found = sinusoids(50, 6)
    assert found.shape == (50, 6)
    assert found[0].tolist() == [0, 1, 0, 1, 0, 1]
    assert found[7, 2].item() == pytest.approx(math.sin(7 / 10_000 ** (2 / 6)))
    assert found[7, 5].item() == pytest.approx(math.cos(7 / 10_000 ** (4 / 6)))


def test_no_logits_depend_on_later_codes_and_all_on_the_condition() -> None:
    for aligned in (False, True):
        own = net(aligned=aligned, norm_first=True).double().eval()
        given, read_BT = inputs(own)
        before = own(given, read_BT)
        later = read_BT.clone()
        later[:, 7] = (later[:, 7] + 1) % CODES
        moved = (own(given, later) - before).abs().amax((0, 2)) > 1e-9
        assert moved.tolist() == [False] * 7 + [True] * (LENGTH + 1 - 7)
        other = given.clone()
        other[:, 2] = (other[:, 2] + 1) % CODES
        assert ((own(other, read_BT) - before).abs().amax((0, 2)) > 1e-9).all()


def test_the_encoder_may_have_an_embedding_of_its_own() -> None:
    one, own = net().eval(), net(shared=False).eval()
    assert own.own_embedding is not None
    given, read_BT = inputs(own)
    with torch.no_grad():
        own.load_state_dict(one.state_dict() | {"own_embedding.weight": one.embedding.weight})
        assert torch.equal(own(given, read_BT), one(given, read_BT))
        own.own_embedding.weight[given[0, 0]] += 1
        assert not torch.equal(own.encode(given), one.encode(given))
        assert torch.equal(own.embedded(read_BT), one.embedded(read_BT))


def test_a_code_is_aligned_with_the_coarse_code_of_the_same_time() -> None:
    assert aligned_places(3, 12).tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3]  # place 0 is BEGIN
    assert aligned_places(None, 4).tolist() == [0, 0, 0, 0, 0]
    own = net(aligned=True).eval()
    nn.init.zeros_(own.transformer.encoder.norm.weight)
    with torch.no_grad():
        own.transformer.encoder.norm.bias.copy_(torch.arange(16.0))
    given, read_BT = inputs(own)
    plain = net(aligned=False).eval()
    plain.load_state_dict(own.state_dict())
    plain.position_TE = plain.position_TE + torch.arange(16.0)  # every place of the memory is this vector
    plain.encode = own.encode  # type: ignore[method-assign]
    torch.testing.assert_close(own(given, read_BT), plain(given, read_BT))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("condition", [None, COARSE])
@torch.no_grad()
def test_cached_logits_are_those_of_a_forward_pass(condition: int | None, norm_first: bool, aligned: bool) -> None:
    own = net(condition, norm_first=norm_first, aligned=aligned).eval()
    given, read_BT = inputs(own)
    decoding = Decoding(own, given)
    found = torch.stack([decoding.step(token_B) for token_B in read_BT.T], 1)
    assert found.shape == (3, LENGTH + 1, CODES + SPECIAL)
    assert (found - own(given, read_BT)).abs().max() <= 1e-5
    with pytest.raises(IndexError, match="12 codes"):
        decoding.step(read_BT[:, 0])


@torch.no_grad()
def test_cached_logits_of_the_documents_net_are_equal_to_1e_5() -> None:
    torch.manual_seed(0)
    own = TokenTransformer(2048, 20, 80, width=100, heads=4, layers=(6, 12), ff=1024).eval()
    given, code_BT = torch.randint(2048, (2, 20)), torch.randint(2048, (2, 80))
    read_BT = torch.cat([torch.full((2, 1), own.begin), code_BT], 1)
    decoding, wanted = Decoding(own, given), own(given, read_BT)
    found = torch.stack([decoding.step(token_B) for token_B in read_BT.T], 1)
    assert wanted.std() > 0.1
    assert (found - wanted).abs().max() <= 1e-5
