"""A Transformer over codes: a class or coarse codes in, the distribution of each next code out.

    class, or BEGIN and coarse codes [B,S] -> encoder -> memory [B,S,E] --\\
    BEGIN and codes [B,T] ------------------> decoder, which sees no later code -> logits of codes and END [B,T,V]

Vaswani et al. 2017, "Attention is all you need" (arXiv 1706.03762). The weights are those of
:class:`torch.nn.Transformer` with its final norms. Encoder and decoder share one embedding, whose vectors are
multiplied by sqrt(E) (section 3.4). Positions are sines and cosines, which have no parameters (section 3.5). The
vocabulary is the codes and four tokens more.

The layers are computed here, not by torch's own modules, so that one function serves training and cached decoding, and
attention always goes through ``scaled_dot_product_attention``.

Shape letters: B batch, S condition, T decoder tokens, E width, V vocabulary, H heads, D width of a head, P 1 to 3
projections.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SPECIAL = 4
"""Tokens after the codes: BEGIN, END, MASKED, and one without a use (the document has four and does not name them)."""
_LONGEST_WAVE = 10_000.0  # of the positions, in tokens over 2 pi
KeysValues = tuple[Tensor, Tensor]
"""[B,H,T,D] each."""


class TokenTransformer(nn.Module):
    """``condition`` None: the condition is a class [B,1]; else so many coarse codes [B,condition]. ``length``: codes of
    a sequence; ``layers``: of encoder and decoder; ``ff``: width of the feed-forward layers.

    ``norm_first``: norms stand before attention and feed-forward, not after each sum; this trains without a long
    warm-up (Xiong et al. 2020, arXiv 2002.04745). ``aligned``: the memory at the same place in time is added to the
    decoder's input, so that attention does not have to learn where that is. Neither adds a parameter. ``shared`` False:
    the encoder has an embedding of its own, because equal numbers of two codebooks mean different things.
    """

    place_T: Tensor
    position_TE: Tensor

    def __init__(
        self,
        codes: int,
        condition: int | None,
        length: int,
        *,
        width: int,
        heads: int,
        layers: tuple[int, int],
        ff: int,
        norm_first: bool = False,
        aligned: bool = False,
        shared: bool = True,
    ) -> None:
        super().__init__()
        self.codes, self.condition, self.length, self.width, self.aligned = codes, condition, length, width, aligned
        self.begin, self.end, self.masked = codes, codes + 1, codes + 2
        self.embedding = nn.Embedding(codes + SPECIAL, width)
        self.own_embedding = None if shared else nn.Embedding(codes + SPECIAL, width)
        layer = nn.TransformerEncoderLayer(width, heads, ff, dropout=0.0, batch_first=True, norm_first=norm_first)
        encoder = nn.TransformerEncoder(layer, layers[0], nn.LayerNorm(width), enable_nested_tensor=False)
        self.transformer = nn.Transformer(
            width, heads, 0, layers[1], ff, 0.0, custom_encoder=encoder, batch_first=True, norm_first=norm_first
        )
        self.output = nn.Linear(width, codes + SPECIAL)
        for each in (self.embedding, self.own_embedding):
            if each is not None:
                nn.init.normal_(each.weight, 0.0, width**-0.5)
        sources = 1 if condition is None else condition + 1
        positions = sinusoids(max(sources, length + 1), width).to(torch.get_default_dtype())
        self.register_buffer("position_TE", positions, persistent=False)
        self.register_buffer("place_T", aligned_places(condition, length), persistent=False)

    def forward(self, condition_BS: Tensor, read_BT: Tensor) -> Tensor:
        """Logits [B,T,V]: at each place, those of the token after the ones read so far; the first one read is BEGIN."""
        memory_BSE = self.encode(condition_BS)
        x_BTE = self.embedded(read_BT)
        if self.aligned:
            x_BTE = x_BTE + memory_BSE[:, self.place_T[: read_BT.shape[1]]]
        for layer in _layers(self.transformer.decoder):
            own = layer.self_attn

            def attention(y_BTE: Tensor, own: nn.MultiheadAttention = own) -> Tensor:
                return _attended(own, *_projected(own, y_BTE, 0, 3), causal=True)

            x_BTE = _decoded(layer, x_BTE, attention, _memory(layer, memory_BSE))
        return self.logits(x_BTE)

    def encode(self, condition_BS: Tensor) -> Tensor:
        """The memory [B,S,E] of classes [B,1] or coarse codes [B,condition]."""
        token_BS = condition_BS if self.condition is None else F.pad(condition_BS, (1, 0), value=self.begin)
        x_BSE = self.embedded(token_BS, embedding=self.own_embedding)
        for layer in _layers(self.transformer.encoder):
            own = layer.self_attn

            def attention(y_BSE: Tensor, own: nn.MultiheadAttention = own) -> Tensor:
                return _attended(own, *_projected(own, y_BSE, 0, 3))

            x_BSE = _added(x_BSE, layer.norm1, attention, layer.norm_first)
            x_BSE = _added(x_BSE, layer.norm2, _feed_forward(layer), layer.norm_first)
        memory_BSE: Tensor = self.transformer.encoder.norm(x_BSE)
        return memory_BSE

    def embedded(self, token_BT: Tensor, start: int = 0, embedding: nn.Embedding | None = None) -> Tensor:
        """The vectors [B,T,E] of tokens at the positions from ``start`` on; ``embedding`` None: the decoder's."""
        x_BTE: Tensor = (self.embedding if embedding is None else embedding)(token_BT) * math.sqrt(self.width)
        return x_BTE + self.position_TE[start : start + token_BT.shape[1]]

    def logits(self, x_BTE: Tensor) -> Tensor:
        """[B,T,V] of the last layer's vectors."""
        logits_BTV: Tensor = self.output(self.transformer.decoder.norm(x_BTE))
        return logits_BTV


class Decoding:
    """Cached decoding: :meth:`step` takes the next token of each sequence and gives the logits of the one after it.

    Keys and values of the condition are computed once. Those of the tokens are written into memory that is allocated
    once, for as many tokens as a sequence has, so a step costs one token's layers and its attention to earlier ones.
    """

    def __init__(self, net: TokenTransformer, condition_BS: Tensor) -> None:
        self.net, self.at = net, 0
        self._layers = _layers(net.transformer.decoder)
        memory_BSE = net.encode(condition_BS)
        self._memory = [_memory(layer, memory_BSE) for layer in self._layers]
        self._aligned_BSE = memory_BSE if net.aligned else None
        batch, heads, _, width = self._memory[0][0].shape
        place = (batch, heads, net.length + 1, width)
        self._own = [(keys.new_empty(place), keys.new_empty(place)) for keys, _ in self._memory]

    def step(self, token_B: Tensor) -> Tensor:
        """Logits [B,V]; the first token is BEGIN. IndexError after the last token of a sequence."""
        net, at = self.net, self.at
        if at > net.length:
            raise IndexError(f"a sequence has {net.length} codes, and all of them are decoded")
        x_B1E = net.embedded(token_B[:, None], at)
        if self._aligned_BSE is not None:
            x_B1E = x_B1E + self._aligned_BSE[:, net.place_T[at : at + 1]]
        for layer, cache, memory in zip(self._layers, self._own, self._memory, strict=True):
            own = layer.self_attn

            def attention(y_B1E: Tensor, own: nn.MultiheadAttention = own, cache: KeysValues = cache) -> Tensor:
                query, key, value = _projected(own, y_B1E, 0, 3)
                cache[0][:, :, at : at + 1], cache[1][:, :, at : at + 1] = key, value
                return _attended(own, query, cache[0][:, :, : at + 1], cache[1][:, :, : at + 1])

            x_B1E = _decoded(layer, x_B1E, attention, memory)
        self.at += 1
        return net.logits(x_B1E)[:, 0]


def sinusoids(length: int, width: int) -> Tensor:
    """The encodings [length,width] of positions (Vaswani et al. 2017, section 3.5), float64; ``width`` is even."""
    wave_W = _LONGEST_WAVE ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle_TW = torch.arange(length, dtype=torch.float64)[:, None] * wave_W
    return torch.stack([angle_TW.sin(), angle_TW.cos()], dim=2).flatten(1)


def aligned_places(condition: int | None, length: int) -> Tensor:
    """[length+1]: for each code, and for END, the place in the memory that is the same in time. The memory of coarse
    codes has BEGIN before them; that of a class is one place."""
    if condition is None:
        return torch.zeros(length + 1, dtype=torch.int64)
    return 1 + torch.arange(length + 1).clamp(max=length - 1) * condition // length


def _layers(stack: nn.Module) -> list[nn.TransformerDecoderLayer]:
    """The layers of an encoder or a decoder; one of an encoder has no ``multihead_attn`` and no ``norm3``."""
    return cast(list[nn.TransformerDecoderLayer], [*cast(nn.ModuleList, stack.layers)])


def _projected(attention: nn.MultiheadAttention, x_BTE: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
    """[B,H,T,D] of the projections ``start`` to ``stop`` of query, key and value."""
    rows, heads = slice(start * attention.embed_dim, stop * attention.embed_dim), attention.num_heads
    x_BTP = F.linear(x_BTE, attention.in_proj_weight[rows], attention.in_proj_bias[rows])
    return x_BTP.unflatten(2, (stop - start, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def _attended(
    attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False
) -> Tensor:
    """[B,T,E] of what the queries find; ``causal``: none sees a later place."""
    found_BHTD = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    x_BTE: Tensor = attention.out_proj(found_BHTD.transpose(1, 2).flatten(2))
    return x_BTE


def _memory(layer: nn.TransformerDecoderLayer, memory_BSE: Tensor) -> KeysValues:
    """Keys and values of the condition in a layer of the decoder."""
    key, value = _projected(layer.multihead_attn, memory_BSE, 1, 3)
    return key, value


def _decoded(
    layer: nn.TransformerDecoderLayer, x_BTE: Tensor, own: Callable[[Tensor], Tensor], memory: KeysValues
) -> Tensor:
    """A layer of the decoder: attention to its ``own`` tokens, to the condition, feed-forward."""

    def condition(y_BTE: Tensor) -> Tensor:
        (query,) = _projected(layer.multihead_attn, y_BTE, 0, 1)
        return _attended(layer.multihead_attn, query, *memory)

    x_BTE = _added(x_BTE, layer.norm1, own, layer.norm_first)
    x_BTE = _added(x_BTE, layer.norm2, condition, layer.norm_first)
    return _added(x_BTE, layer.norm3, _feed_forward(layer), layer.norm_first)


def _feed_forward(layer: nn.TransformerDecoderLayer) -> Callable[[Tensor], Tensor]:
    return lambda x_BTE: cast(Tensor, layer.linear2(F.relu(layer.linear1(x_BTE))))


def _added(x_BTE: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor], norm_first: bool) -> Tensor:
    """The sum of the vectors and what a part makes of them, with its norm before the part or after the sum."""
    if norm_first:
        return x_BTE + part(norm(x_BTE))
    total_BTE: Tensor = norm(x_BTE + part(x_BTE))
    return total_BTE
