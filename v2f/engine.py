"""The engine: the only file that knows accelerate. Wraps phases, runs backward, clips, steps, reduces.

For each phase it wraps a module whose ``forward`` is ``system.loss`` and that registers only what the phase
trains, so DDP synchronises that and leaves the rest alone. Gradients are means over the global batch whatever
the number of ranks and micro-batches; batch-norm statistics are committed once a step (promise 3).
"""

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from v2f import checkpoint
from v2f.errors import V2FError
from v2f.nn.batchnorm import collect_ghosts, commit_ghosts, discard_ghosts
from v2f.system import Batch, Losses, Phase, System

Precision = Literal["fp32", "bf16", "fp64"]
T = TypeVar("T")


class _PhaseModule(nn.Module):
    """What DDP wraps: forward is the system's loss; only the phase's modules are registered."""

    def __init__(self, system: System, phase: Phase) -> None:
        super().__init__()
        for name, module in phase.modules.items():
            self.add_module(name, module)
        self._loss = system.loss
        self._phase = phase.name

    def forward(self, batch: Batch, step: int) -> Losses:
        return self._loss(self._phase, batch, step)


@dataclass
class _Wrapped:
    """A phase with its wrapped module and optimizer."""

    phase: Phase
    module: nn.Module
    optimizer: Any
    parameters: dict[str, nn.Parameter]
    averages: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class StepResult:
    """One phase's step on this rank: losses, gradient norm before clipping, rates; ``skipped``: it was not finite."""

    losses: dict[str, Tensor]
    grad_norm: float
    rate: dict[str, float]
    skipped: bool


class Engine:
    """One process of a data-parallel job (or the only one)."""

    def __init__(self, precision: Precision = "fp32") -> None:
        # find_unused_parameters keeps DDP from re-bucketing after its first step, which would make a resumed run on
        # three or more ranks differ from the undisturbed one in the last bits (promise 5).
        kwargs = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
        self._accelerator = Accelerator(
            mixed_precision="bf16" if precision == "bf16" else "no",
            kwargs_handlers=[kwargs],
            step_scheduler_with_optimizer=False,
        )
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        self.device = self._accelerator.device
        self.rank = self._accelerator.process_index
        self.world_size = self._accelerator.num_processes
        self._phases: dict[str, _Wrapped] = {}

    def wrap(self, system: System) -> None:
        """Move the system here and prepare every phase. Frozen modules are moved, never wrapped."""
        system.to(device=self.device, dtype=self.dtype)
        for phase in system.phases():
            parameters = {f"{m}.{n}": p for m, module in phase.modules.items() for n, p in module.named_parameters()}
            groups = []
            for name, module in phase.modules.items():
                if name not in phase.optimizer.lr:
                    raise V2FError(f"phase {phase.name!r}: optimizer.lr has no rate for the module {name!r}")
                groups.append({"params": list(module.parameters()), "lr": phase.optimizer.lr[name], "name": name})
            adam = torch.optim.Adam(
                groups,
                betas=(phase.optimizer.betas[0], phase.optimizer.betas[1]),
                eps=phase.optimizer.eps,
                weight_decay=phase.optimizer.weight_decay,
            )
            wrapped, optimizer = self._accelerator.prepare(_PhaseModule(system, phase), adam)
            own = _Wrapped(phase, wrapped, optimizer, parameters)
            if phase.ema is not None:
                own.averages = {k: t.detach().clone() for k, t in _tensors(phase).items()}
            self._phases[phase.name] = own

    def step(
        self, phase: Phase, batch: Batch, step: int, *, micro_batch: int | None, seen: int, total: int
    ) -> StepResult:
        """One optimizer step of ``phase`` on this rank's share of the global batch; collective.

        ``seen`` of ``total`` samples were used before it. A non-finite loss or gradient skips the step on all
        ranks alike: after the reduction every rank holds the same gradient.
        """
        own = self._phases[phase.name]
        losses = self.backward(phase, batch, step, micro_batch)
        norm = torch.nn.utils.get_total_norm(self.gradients(phase).values())
        skipped = not bool(torch.isfinite(norm))
        factor = phase.optimizer.schedule.at(seen, total)
        rate = {}
        for group in own.optimizer.param_groups:
            group["lr"] = rate[group["name"]] = phase.optimizer.lr[group["name"]] * factor
        if skipped:
            discard_ghosts(own.module)
        else:
            if phase.optimizer.clip is not None:
                torch.nn.utils.clip_grads_with_norm_(own.parameters.values(), phase.optimizer.clip, norm)
            own.optimizer.step()
            self._commit_statistics(own.module)
            self._average(own, seen, len(batch["slot"]) * self.world_size)
        own.optimizer.zero_grad(set_to_none=True)
        return StepResult(losses, float(norm), rate, skipped)

    def backward(self, phase: Phase, batch: Batch, step: int, micro_batch: int | None) -> dict[str, Tensor]:
        """Leave the global batch's mean gradient in the parameters; gives the losses' means over this rank's share."""
        own = self._phases[phase.name]
        parts = list(_split(batch, micro_batch))
        means: dict[str, Tensor] = {}
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            with contextlib.nullcontext() if last else self._accelerator.no_sync(own.module):
                losses: Losses = own.module(self.place(part), step)
                self._accelerator.backward(losses["total"] / len(parts))
            for name, value in losses.items():
                means[name] = means.get(name, 0) + value.detach() / len(parts)
        return means

    def gradients(self, phase: Phase) -> dict[str, Tensor]:
        """Names and gradients of what a phase trains, between ``backward`` and the next step."""
        return {n: p.grad for n, p in self._phases[phase.name].parameters.items() if p.grad is not None}

    def place(self, batch: Batch) -> Batch:
        """The batch's tensors on this rank's device; floating-point ones in the engine's precision."""
        return {
            k: v.to(self.device, self.dtype if v.is_floating_point() else v.dtype, non_blocking=True)
            if isinstance(v, Tensor)
            else v
            for k, v in batch.items()
        }

    def reduce_mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean of each value over the ranks; collective."""
        if self.world_size == 1 or not values:
            return values
        flat = torch.tensor(list(values.values()), dtype=torch.float64, device=self._wire)
        dist.all_reduce(flat)
        return dict(zip(values, (flat / self.world_size).tolist(), strict=True))

    def gather(self, value: T) -> list[T]:
        """Every rank's ``value`` (small, picklable), in the order of the ranks, on all of them; collective."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the process group; the last collective call.

        The wrapped modules go first: where DDP's reducer drops the last reference to a gloo group, it waits with the
        interpreter's lock for a thread that needs that lock, and the process now and then never ends.
        """
        if dist.is_initialized():
            self.barrier()
            self._phases.clear()
            self._accelerator.free_memory()
            gc.collect()
            dist.destroy_process_group()

    @contextlib.contextmanager
    def averaged(self, system: System) -> Iterator[None]:
        """Inside, the system is in eval mode and holds the moving averages, where a phase keeps them."""
        kept: list[tuple[Tensor, Tensor]] = []
        for own in self._phases.values():
            for name, tensor in _tensors(own.phase).items():
                if name in own.averages:
                    kept.append((tensor, tensor.detach().clone()))
                    tensor.data.copy_(own.averages[name])
        system.eval()
        try:
            yield
        finally:
            for tensor, value in kept:
                tensor.data.copy_(value)
            system.train()

    def tensors(self, system: System) -> dict[str, Tensor]:
        """Everything that a checkpoint holds, by name: weights, moving averages, the optimizers' moments."""
        found = checkpoint.module_tensors(system)
        for own in self._phases.values():
            found |= {f"ema/{name}": t for name, t in own.averages.items()}
            for name, parameter in own.parameters.items():
                moments = own.optimizer.state.get(parameter, {})
                found |= {f"optim/{own.phase.name}/{name}/{k}": v for k, v in moments.items()}
        return found

    def load(self, system: System, tensors: dict[str, Tensor], where: str) -> None:
        """Take up the tensors of a checkpoint, strictly. Optimizer moments exist only after a first step."""
        checkpoint.fill(
            checkpoint.module_tensors(system), {n: t for n, t in tensors.items() if n.startswith("model/")}, where
        )
        averages = {f"ema/{n}": t for own in self._phases.values() for n, t in own.averages.items()}
        checkpoint.fill(averages, {n: t for n, t in tensors.items() if n.startswith("ema/")}, where)
        for own in self._phases.values():
            for name, parameter in own.parameters.items():
                prefix = f"optim/{own.phase.name}/{name}/"
                moments = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
                if moments:
                    own.optimizer.state[parameter] = {
                        k: t.clone() if t.ndim == 0 else t.to(parameter.device, parameter.dtype)
                        for k, t in moments.items()
                    }

    @property
    def _wire(self) -> torch.device:
        return self.device if dist.get_backend() == "nccl" else torch.device("cpu")

    def _commit_statistics(self, module: nn.Module) -> None:
        """Running statistics: the mean over all groups of all ranks and micro-batches, once (promise 3)."""
        sums = collect_ghosts(module)
        if sums is not None and self.world_size > 1:
            dist.all_reduce(sums)
        commit_ghosts(module, sums)

    def _average(self, own: _Wrapped, seen: int, batch: int) -> None:
        """The moving average: its half-life in samples is at most a tenth of the run so far (the ramp-up of ADA, 2020).

        Buffers (running statistics) are copied.
        """
        if own.phase.ema is None:
            return
        half_life = min(own.phase.ema, max(batch, 0.1 * seen))
        keep = 0.5 ** (batch / half_life)
        for name, tensor in _tensors(own.phase).items():
            if isinstance(tensor, nn.Parameter):
                own.averages[name].lerp_(tensor.detach(), 1 - keep)
            else:
                own.averages[name].copy_(tensor)


def _tensors(phase: Phase) -> dict[str, Tensor]:
    """Parameters and persistent buffers of a phase, named as in a checkpoint without its prefix."""
    return {
        f"{name}.{key}": tensor
        for name, module in phase.modules.items()
        for key, tensor in module.state_dict(keep_vars=True).items()
    }


def _split(batch: Batch, size: int | None) -> Iterator[Batch]:
    """Consecutive micro-batches of ``size`` slots; their number times ``size`` must be the rank's share."""
    n = len(batch["slot"])
    size = size or n
    if n % size:
        raise V2FError(f"train.micro_batch: {size} does not divide a rank's {n} samples of a global batch")
    for start in range(0, n, size):
        yield {k: v[start : start + size] for k, v in batch.items()}
