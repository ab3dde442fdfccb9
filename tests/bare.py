"""A system without inputs and outputs, for tests of what does not use them, such as the engine."""

from typing import Any

from torch import Tensor

from v2f.system import Batch, Losses, System


class BareSystem(System):
    """A subclass defines ``phases`` and whatever else its test uses; every other method fails when it is called."""

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        raise NotImplementedError

    def asks(self) -> dict[str, Any]:
        raise NotImplementedError

    def makes(self) -> dict[str, Any]:
        raise NotImplementedError

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def meters(self, batches: Any) -> dict[str, float]:
        raise NotImplementedError

    def transforms(self) -> dict[str, Any]:
        return {}
