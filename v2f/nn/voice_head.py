"""From a voice encoder's maps to one vector of the voice, and to an embedding beside those of faces.

    maps [B,C_i,T_i] --mean and maximum over time--> vector [B,V], V = 2 sum C_i --norm, two linear layers--> [B,E]

Letters: B batch, C channels, T frames, V width of the vector, W hidden width, E width of an embedding.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2f.nn import at_least_float32
from v2f.nn.contrastive import InfoNCE
from v2f.nn.speaker_head import in_float32


def pooled(maps: Sequence[Tensor]) -> Tensor:
    """The mean and the maximum over time of every channel of every map [B,C_i,T_i], in float32: [B,V]."""
    parts = [part for each in map(at_least_float32, maps) for part in (each.mean(dim=2), each.amax(dim=2))]
    return torch.cat(parts, dim=1)


def pooled_width(channels: Sequence[int]) -> int:
    """V of an encoder whose maps have ``channels``."""
    return 2 * sum(channels)


class VoiceHead(nn.Module):
    """Maps of a voice -> an embedding [B,E] of unit length. Computed in float32 (or float64), also under autocast.

    ``contrast``: the contrastive loss of the embedding, if it has one. It has no parameters; it is kept here so that
    the head's group is known (:mod:`v2f.nn.groups`).
    """

    def __init__(self, channels: Sequence[int], width: int, embedding: int, contrast: InfoNCE | None = None) -> None:
        super().__init__()
        self.embedding = embedding
        self.norm = nn.LayerNorm(pooled_width(channels))
        self.hidden = nn.Linear(pooled_width(channels), width)
        self.last = nn.Linear(width, embedding)
        self.contrast = contrast

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        with in_float32(maps[0]):
            hidden_BW = F.leaky_relu(self.hidden(self.norm(pooled(maps))), 0.2)
            return F.normalize(self.last(hidden_BW), dim=1)
