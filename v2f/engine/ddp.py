"""DDP, or one process alone: every rank holds weights, gradients and moments whole."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from v2f.engine.phase import MOMENTS, PhaseEngine, PhaseModule
from v2f.system import Batch, Losses, Phase

# Weights are channels-last, DDP's buckets are not; the copy that it warns of is intended.
warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")


class DDPPhase(PhaseEngine):
    """A phase under Accelerate's DDP, which leaves the module as it is if there is one process."""

    def __init__(self, phase: Phase, module: PhaseModule, accelerator: Accelerator) -> None:
        super().__init__(phase, module)
        self._accelerator = accelerator
        self._wrapped = accelerator.prepare(module)

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if last else self._accelerator.no_sync(self._wrapped)

    def forward(self, batch: Batch, step: int) -> Losses:
        losses: Losses = self._wrapped(batch, step)
        return losses

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def gradients(self) -> dict[str, Tensor]:
        """As under ZeRO, a parameter that the loss does not depend on has the gradient zero."""
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return {name: p.grad for name, p in self.parameters.items() if p.grad is not None}

    def norm(self) -> Tensor:
        return torch.nn.utils.get_total_norm(self.gradients().values())

    def update(self, norm: Tensor) -> None:
        largest = self.phase.optimizer.clip
        if largest is not None and self.phase.optimizer.clip_by == "value":
            torch.nn.utils.clip_grad_value_(self.parameters.values(), largest)
        elif largest is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), largest, norm)
        self.adam.step()
        self.forget()

    def forget(self) -> None:
        self.adam.zero_grad(set_to_none=True)

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.parameters.items():
            for key, tensor in self.adam.state.get(parameter, {}).items():
                yield f"{name}/{key}", tensor

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items() if moments else ():
            whole = {key: moments[f"{name}/{key}"].to(parameter.device, parameter.dtype, copy=True) for key in MOMENTS}
            self.adam.state[parameter] = {"step": moments[f"{name}/step"].clone(), **whole}

    def close(self) -> None:
        del self._wrapped
