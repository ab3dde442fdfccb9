"""How a token is drawn from a distribution over a vocabulary: the settings."""

from typing import Literal

from pydantic import Field

from v2f.config import Config


class Sampling(Config):
    """How tokens are drawn."""

    kind: Literal["naive", "greedy", "top-k", "top-p"] = "naive"
    k: int = Field(6, gt=0)
    p: float = Field(0.9, gt=0, le=1)
    temperature: float = Field(1.0, gt=0)
