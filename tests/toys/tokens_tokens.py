"""Tokens in, tokens out."""

import torch
from torch import Tensor

from toys.toy import Toy
from v2f.data.transforms import TokenWindow
from v2f.system import Batch, Kind, Tokens, Transform

LENGTH, WORDS = 6, 5


class TokensTokens(Toy):
    sizes = (LENGTH, LENGTH)

    def asks(self) -> dict[str, Kind]:
        return {"tokens": Tokens(LENGTH, WORDS)}

    def makes(self) -> dict[str, Kind]:
        return {"next": Tokens(LENGTH, WORDS)}

    def transforms(self) -> dict[str, Transform]:
        return {"tokens": TokenWindow("tokens", LENGTH)}

    def inputs(self, batch: Batch) -> Tensor:
        return batch["tokens"].to(self.net.weight)

    def target(self, batch: Batch) -> Tensor:
        return (self.inputs(batch).roll(-1, 1) / WORDS).clamp(-1, 1)

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        return {"next": (self.made(batch).detach() * WORDS).round().clamp(0, WORDS - 1).to(torch.int64)}
