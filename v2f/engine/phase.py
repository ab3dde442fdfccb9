"""One phase under one strategy: what the engine asks of DDP and of ZeRO, and what is the same under both.

``PhaseModule.forward`` is ``system.loss``; its only submodules are those that the phase trains, so that a strategy
synchronises these and leaves the rest alone. Masters are float32 (or float64) under every precision: bf16 is torch's
autocast around the forward, here, so that it means the same whatever the launcher.
"""

import abc
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from v2f.errors import V2FError
from v2f.nn import widened
from v2f.system import Batch, Losses, Phase, System

MOMENTS = ("exp_avg", "exp_avg_sq")


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    """How a forward pass computes: matrix products and convolutions in bf16, or all as it is."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


class PhaseModule(nn.Module):
    """What a strategy wraps: forward is the system's loss; only the phase's modules are registered."""

    def __init__(self, system: System, phase: Phase, device: torch.device, bf16: bool) -> None:
        super().__init__()
        for name, module in phase.modules.items():
            self.add_module(name, module)
        self._loss = system.loss
        self._phase = phase.name
        self._device = device
        self._bf16 = bf16

    def forward(self, batch: Batch | None, step: int) -> Losses:
        """The losses of a micro-batch; of None, a zero that every parameter has a gradient of (zero) from."""
        if batch is None:
            return {"total": torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * 0}
        with autocast(self._device, self._bf16):
            losses = self._loss(self._phase, batch, step)
        return {name: widened(value) for name, value in losses.items()}


class PhaseEngine(abc.ABC):
    """A phase, its parameters by name (as in a checkpoint), and the Adam that moves them."""

    def __init__(self, phase: Phase, module: PhaseModule) -> None:
        self.phase, self.module = phase, module
        self.first = True  # no step was taken since the process began
        self.parameters: dict[str, nn.Parameter] = {}
        groups: list[dict[str, Any]] = []
        for name, part in phase.modules.items():
            if name not in phase.optimizer.lr:
                raise V2FError(f"phase {phase.name!r}: optimizer.lr has no rate for the module {name!r}")
            own = {f"{name}.{key}": p for key, p in part.named_parameters() if p.requires_grad}
            if own:
                groups.append({"params": list(own.values()), "lr": phase.optimizer.lr[name], "name": name})
            self.parameters |= own
        self.adam = torch.optim.Adam(
            groups,
            betas=(phase.optimizer.betas[0], phase.optimizer.betas[1]),
            eps=phase.optimizer.eps,
            weight_decay=phase.optimizer.weight_decay,
        )
        self.averages: dict[str, Tensor] = {}

    def start_averages(self) -> None:
        """Begin the moving averages at the weights that all ranks now share."""
        if self.phase.ema is not None:
            self.averages = {name: t.detach().clone() for name, t in self.tensors().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers of the phase, named as in a checkpoint without its prefix."""
        return {
            f"{name}.{key}": tensor
            for name, module in self.phase.modules.items()
            for key, tensor in module.state_dict(keep_vars=True).items()
        }

    def set_rates(self, factor: float) -> dict[str, float]:
        """The learning rate of each module for the next step."""
        for group in self.adam.param_groups:
            group["lr"] = self.phase.optimizer.lr[group["name"]] * factor
        return {group["name"]: group["lr"] for group in self.adam.param_groups}

    @property
    def stepped(self) -> bool:
        """Whether Adam has moments: after a first step, or where a checkpoint had them."""
        return bool(self.adam.state)

    @abc.abstractmethod
    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around the forward and backward of a micro-batch; ranks exchange gradients in the ``last`` of a step."""

    @abc.abstractmethod
    def forward(self, batch: Batch, step: int) -> Losses:
        """The losses of one micro-batch."""

    @abc.abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's share of the loss."""

    @abc.abstractmethod
    def norm(self) -> Tensor:
        """The L2 norm of the global batch's gradient, not finite where that is not; the same on all ranks."""

    @abc.abstractmethod
    def gradients(self) -> dict[str, Tensor]:
        """The global batch's gradient by parameter, after the backward; collective."""

    @abc.abstractmethod
    def update(self, norm: Tensor) -> None:
        """Clip the gradient, whose norm is ``norm``, step, and forget it."""

    @abc.abstractmethod
    def forget(self) -> None:
        """Drop the gradient: weights, moments and Adam's count stay as they are."""

    @abc.abstractmethod
    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """``MODULE.PARAM/{step,exp_avg,exp_avg_sq}`` of each parameter, whole; none before a first step. Collective:
        all ranks walk alike."""

    @abc.abstractmethod
    def loaded(self, moments: Mapping[str, Tensor]) -> None:
        """Follow weights that were just written into the parameters, and take up all that :meth:`moments` gives, or
        nothing; collective."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the wrapped module and what it holds."""
