"""What all voice encoders have in common: a voice in, feature maps of several depths out.

    wave [B,T] -> VoiceEncoder -> maps [B,C_i,T_i], shallow ones first -> a mapping (:mod:`v2f.nn.mapping`)

Letters: B batch, T samples or frames, C channels, K depths, M maps.
"""

import abc

import torch
from torch import Tensor, nn


class VoiceEncoder(nn.Module, abc.ABC):
    """Waves [B,T] in [-1,1] -> maps [B,C_i,T_i], shallow ones first.

    An encoder that makes one vector of a voice returns it as a map of one frame, [B,E,1].
    """

    channels: tuple[int, ...]
    """C_i of each map."""

    @abc.abstractmethod
    def forward(self, wav_BT: Tensor) -> tuple[Tensor, ...]:
        """The maps."""

    def trained(self) -> dict[str, nn.Module]:
        """The parts that training changes, by their names in a phase. A frozen encoder has none."""
        return {"encoder": self}


class LayerWeights(nn.Module):
    """K maps of one shape -> M maps, each a weighted sum of all of them: softmax weights, equal at the start.

    The weighted sum is that of SUPERB (Yang et al. 2021, arXiv 2105.01051, section 3.1), with weights for each map.
    """

    def __init__(self, depths: int, maps: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(maps, depths))

    def forward(self, maps_KBCT: Tensor) -> tuple[Tensor, ...]:
        return torch.einsum("mk,kbct->mbct", self.logits.softmax(dim=1), maps_KBCT).unbind(0)
