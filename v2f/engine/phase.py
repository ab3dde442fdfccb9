"""One phase under one strategy: the interface that DDP and ZeRO implement, and what both have in common.

``PhaseModule.forward`` is ``system.loss``; its only submodules are those that the phase trains, so that a strategy
synchronizes these and nothing else. Master weights are float32 (or float64) in every precision: bf16 is torch's
autocast around the forward pass, done here so that it means the same under every launcher.
"""

import abc
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from v2f.errors import V2FError
from v2f.nn import at_least_float32
from v2f.system import Batch, Losses, Phase, System

MOMENTS = ("exp_avg", "exp_avg_sq")


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    """The context of a forward pass: matrix products and convolutions in bf16, or everything in its own precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


class PhaseModule(nn.Module):
    """The module that a strategy wraps: its forward is the system's loss; only the phase's modules are registered."""

    def __init__(self, system: System, phase: Phase, device: torch.device, bf16: bool) -> None:
        super().__init__()
        for name, module in phase.modules.items():
            self.add_module(name, module)
        self._loss = system.loss
        self._phase = phase.name
        self._device = device
        self._bf16 = bf16

    def forward(self, batch: Batch | None, step: int) -> Losses:
        """The losses of a micro-batch; of None, a loss of zero that gives every parameter a gradient of zero."""
        if batch is None:
            return {"total": torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * 0}
        with autocast(self._device, self._bf16):
            losses = self._loss(self._phase, batch, step)
        return {name: at_least_float32(value) for name, value in losses.items()}


class PhaseEngine(abc.ABC):
    """A phase, its parameters by name (as in a checkpoint), and the Adam that updates them."""

    def __init__(self, phase: Phase, module: PhaseModule) -> None:
        self.phase, self.module = phase, module
        self.first = True  # no step has been taken since the process began
        self.parameters: dict[str, nn.Parameter] = {}
        groups: list[dict[str, Any]] = []
        for name, part in phase.modules.items():
            if name not in phase.optimizer.lr:
                raise V2FError(f"phase {phase.name!r}: optimizer.lr has no rate for the module {name!r}; add one")
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
        """Start the moving averages from the weights that all ranks now share."""
        if self.phase.ema is not None:
            self.averages = {name: t.detach().clone() for name, t in self.tensors().items()}

    def update_averages(self, seen: int, since: int) -> None:
        """Update the moving averages of the weights; buffers (running statistics) are copied.

        ``since``: samples between the phase's previous step and this one, of the ``seen`` in all. The half-life in
        samples is at most a tenth of the run so far (the ramp-up of ADA, 2020).
        """
        if self.phase.ema is None:
            return
        half_life = min(self.phase.ema, max(since, 0.1 * seen))
        keep = 0.5 ** (since / half_life)
        for name, tensor in self.tensors().items():
            if isinstance(tensor, nn.Parameter):
                self.averages[name].lerp_(tensor.detach(), 1 - keep)
            else:
                self.averages[name].copy_(tensor)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers of the phase, named as in a checkpoint without its prefix."""
        return {
            f"{name}.{key}": tensor
            for name, module in self.phase.modules.items()
            for key, tensor in module.state_dict(keep_vars=True).items()
        }

    def set_rates(self, rates: Mapping[str, float]) -> dict[str, float]:
        """Set each module's learning rate for the next step; returns the rates of the modules that have parameters."""
        for group in self.adam.param_groups:
            group["lr"] = rates[group["name"]]
        return {group["name"]: group["lr"] for group in self.adam.param_groups}

    @property
    def stepped(self) -> bool:
        """Whether Adam has moments: after a first step, or if they came from a checkpoint."""
        return bool(self.adam.state)

    @abc.abstractmethod
    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around the forward and backward pass of a micro-batch; in a step's ``last`` one, ranks exchange gradients."""

    @abc.abstractmethod
    def forward(self, batch: Batch, step: int) -> Losses:
        """The losses of one micro-batch."""

    @abc.abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's share of the loss."""

    @abc.abstractmethod
    def norm(self) -> Tensor:
        """The L2 norm of the global batch's gradient, not finite if the gradient is not; the same on all ranks."""

    @abc.abstractmethod
    def gradients(self) -> dict[str, Tensor]:
        """The global batch's gradient by parameter, whole, after the backward pass; collective."""

    @abc.abstractmethod
    def update(self, norm: Tensor) -> None:
        """Clip the gradient, whose norm is ``norm``, take Adam's step, and drop the gradient."""

    @abc.abstractmethod
    def forget(self) -> None:
        """Drop the gradient; weights, moments and Adam's step count stay as they are."""

    @abc.abstractmethod
    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """``MODULE.PARAM/{step,exp_avg,exp_avg_sq}`` of each parameter, whole; none before a first step.

        Collective: all ranks iterate in step.
        """

    @abc.abstractmethod
    def restore(self, moments: Mapping[str, Tensor]) -> None:
        """Continue from the weights just written into the parameters and from these ``moments``, named as by
        :meth:`moments`, or none; collective."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release the wrapped module and what it holds."""
