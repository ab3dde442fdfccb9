"""Drawing the next code from its logits, by a uniform number that the caller provides.

The number decides alone: equal logits and equal numbers give equal codes, whatever else is in the batch. So a caller
that keys its numbers draws the same codes on every machine that computes the same logits.

Shape letters: B batch, V codes, K codes that may still be drawn.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from v2f.config import Config


class Sampling(Config):
    """Which codes may be drawn, and how likely each is."""

    kind: Literal["naive", "greedy", "top-k", "top-p"] = Field(
        "naive",
        description="naive: any code, by its probability; greedy: the likeliest; top-k: one of the k likeliest; top-p: "
        "one of the likeliest that together have the probability p",
    )
    k: int = Field(6, gt=0, description="for top-k")
    p: float = Field(0.9, gt=0, le=1, description="for top-p")
    temperature: float = Field(1.0, gt=0, description="logits are divided by it; not for greedy")


def pick(logits_BV: Tensor, uniform_B: Tensor, how: Sampling) -> Tensor:
    """A code [B], int64, for each row of logits, by inversion: ``uniform_B`` in [0, 1) is the share of the probability
    that lies before it.

    ``top-k`` keeps the k highest logits (Fan et al. 2018, arXiv 1805.04833, section 5.4). ``top-p`` keeps the smallest
    set of the likeliest codes whose probability is at least p (Holtzman et al. 2020, arXiv 1904.09751, section 3.1).
    """
    if how.kind == "greedy":
        return logits_BV.argmax(1)
    probability_BV = (logits_BV.double() / how.temperature).softmax(1)
    if how.kind == "naive":
        return _inverted(probability_BV, uniform_B)
    if how.kind == "top-k":
        probability_BK, code_BK = probability_BV.topk(min(how.k, probability_BV.shape[1]), dim=1)
    else:
        probability_BK, code_BK = probability_BV.sort(dim=1, descending=True, stable=True)
        before_BK = probability_BK.cumsum(1) - probability_BK
        probability_BK = probability_BK.where(before_BK < how.p, 0.0)
    return code_BK.gather(1, _inverted(probability_BK, uniform_B)[:, None])[:, 0]


def _inverted(weight_BK: Tensor, uniform_B: Tensor) -> Tensor:
    """The place [B] at which the running sum of weights, as a share of their sum, first exceeds the number."""
    sum_BK = weight_BK.cumsum(1)
    wanted_B1 = uniform_B.to(sum_BK)[:, None] * sum_BK[:, -1:]
    return torch.searchsorted(sum_BK, wanted_B1, right=True)[:, 0].clamp(max=weight_BK.shape[1] - 1)
