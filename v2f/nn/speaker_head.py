"""Recognizing speakers: from a voice encoder's maps to embeddings, and to a score for each person seen in training.

    map [B,C,T] -> mean over time -> linear, activation -> hidden [B,W] -> linear -> logits [B,N]

Everything here is computed in float32 (or float64), also under autocast: a margin of angles does not survive bfloat16.

Letters: B batch, C channels, T frames, W hidden width, N people.
"""

import contextlib
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2f.nn import at_least_float32

Activation = Literal["relu", "leaky_relu", "prelu", "none"]

_SINE = 1e-6  # least square of a sine: the gradient of its root is infinite at 0


class SpeakerHead(nn.Module):
    """Two linear layers on the mean over time of one map, or only the last one if ``width`` is None: W is then C.

    ``cosine``: the logits are the cosines of the hidden vector and each person's weights, without a bias, as ArcFace
    needs them; else the last layer is an ordinary one.
    """

    def __init__(self, channels: int, width: int | None, people: int, activation: Activation, cosine: bool) -> None:
        super().__init__()
        self.hidden = nn.Identity() if width is None else nn.Linear(channels, width)
        self.width = channels if width is None else width
        self.activation = nn.Identity() if width is None else _activation(activation, width)
        self.people = nn.Linear(self.width, people, bias=not cosine)
        self.cosine = cosine

    def embed(self, map_BCT: Tensor) -> Tensor:
        """The hidden vectors [B,W]."""
        with in_float32(map_BCT):
            hidden_BW: Tensor = self.activation(self.hidden(at_least_float32(map_BCT).mean(dim=2)))
            return hidden_BW

    def forward(self, hidden_BW: Tensor) -> Tensor:
        """The logits [B,N] of hidden vectors, in [-1,1] if they are cosines."""
        with in_float32(hidden_BW):
            if self.cosine:
                return F.linear(F.normalize(at_least_float32(hidden_BW)), F.normalize(self.people.weight))
            logit_BN: Tensor = self.people(at_least_float32(hidden_BW))
            return logit_BN


def with_margin(cosine_BN: Tensor, person_B: Tensor, margin: float) -> Tensor:
    """Cosines [B,N] with the angle of each sample's own person enlarged by ``margin`` (radians): ArcFace.

    Deng et al. 2019 (arXiv 1801.07698), eq. 3: cos(theta + m) in place of cos(theta). Beyond theta + m = pi the cosine
    would rise again; there, as in the authors' code, it is cos(theta) - m sin(m), which keeps falling.
    """
    own_B1 = cosine_BN.gather(1, person_B[:, None])
    sine_B1 = (1 - own_B1.square()).clamp(min=_SINE).sqrt()
    enlarged_B1 = own_B1 * math.cos(margin) - sine_B1 * math.sin(margin)
    beyond_B1 = own_B1 - margin * math.sin(margin)
    return cosine_BN.scatter(1, person_B[:, None], torch.where(own_B1 > -math.cos(margin), enlarged_B1, beyond_B1))


def in_float32(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """A context without autocast on the device of ``x``."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


def _activation(name: Activation, width: int) -> nn.Module:
    if name == "prelu":
        return nn.PReLU(width)
    return {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "none": nn.Identity}[name]()
