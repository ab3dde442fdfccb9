"""The engine: the only package that knows accelerate and deepspeed. It runs a phase's step on all ranks.

    batch -> micro-batches -> PhaseModule, whose forward is ``system.loss`` -> gradient of the global batch's mean
      -> all ranks agree whether the step counts -> clip, Adam -> running statistics, once -> moving averages

The result does not depend on the number of ranks and micro-batches (promise 3: the mathematics does not know the
machine). Where gradients and moments are kept is up to the strategy (``ddp.py``, ``zero.py``), and which strategy the
launcher asks for is read by ``launcher.py``.
"""

import contextlib
import gc
import logging
import math
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from v2f.engine import launcher, memory, state, zero
from v2f.engine.ddp import DDPPhase
from v2f.engine.launcher import RequestedStrategy
from v2f.engine.micro_batches import check_divides, split
from v2f.engine.phase import PhaseEngine, PhaseModule, autocast
from v2f.engine.ranks import Ranks
from v2f.engine.stopwatch import Stopwatch
from v2f.errors import V2FError
from v2f.nn import computes_bf16, float32_products, statistics
from v2f.nn.statistics import Turn
from v2f.system import Batch, Losses, Phase, Stepped, System, by_stream, first_stream, trained

Precision = Literal["fp32", "tf32", "bf16", "fp64"]
RequestedPrecision = Literal["auto", "fp32", "tf32", "bf16", "fp64"]
Skipped = Literal["", "loss", "gradient", "spike"]

log = logging.getLogger(__name__)

_LATER, _NO_END = 5.0, 24 * 60.0  # minutes


@dataclass(frozen=True)
class StepResult:
    """One phase's step on this rank: losses, gradient norm before clipping, rates, and what all ranks agreed on.

    ``skipped``: why the step was not taken, "" if it was: a rank's loss or the gradient is not finite, or the
    gradient's norm is above the limit. ``stop``: the most urgent stop request of all ranks. ``forward_seconds``: this
    rank's forward passes, without waiting for others.
    """

    losses: dict[str, Tensor]
    grad_norm: float
    rate: dict[str, float]
    skipped: Skipped
    stop: int
    forward_seconds: float


class Engine(Ranks):
    """One process of a data-parallel job (or the only one)."""

    def __init__(
        self,
        precision: RequestedPrecision = "fp32",
        strategy: RequestedStrategy = "auto",
        *,
        patience_minutes: float | None = None,
    ) -> None:
        """``patience_minutes``: how long a rank may wait for the others; a collective fails some minutes later."""
        self._launch = launcher.read(strategy, precision)
        self.strategy = self._launch.strategy
        with launcher.without_deepspeed():
            # Unless told to use the CPU, Accelerate takes every rank of a torchrun on CPUs for the only one.
            cpu = "LOCAL_RANK" in os.environ and not torch.cuda.is_available()
            # find_unused_parameters keeps DDP from rebuilding its buckets after the first step: on three or more ranks
            # a resumed run would then differ from an undisturbed one in the last bits (promise 5).
            kwargs = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
            # NCCL's default of 10 minutes would end a long save or validation, and all ranks before the watchdog
            # has reported why.
            minutes = _NO_END if patience_minutes is None else patience_minutes + _LATER
            group = InitProcessGroupKwargs(timeout=timedelta(minutes=minutes))
            self._accelerator = Accelerator(
                cpu=cpu, mixed_precision="no", kwargs_handlers=[kwargs, group], step_scheduler_with_optimizer=False
            )
        accelerator = self._accelerator
        super().__init__(accelerator.process_index, accelerator.num_processes, accelerator.device)
        self.precision = self._agree_on_precision(precision)
        float32_products(tf32=self.precision == "tf32")
        self._bf16 = self.precision == "bf16"
        self.dtype = torch.float64 if self.precision == "fp64" else torch.float32
        self._phases: dict[str, PhaseEngine] = {}
        self._modules: dict[str, nn.Module] = {}
        self._share = self._seed = 0
        self._evaluated = False  # since the process began
        self._forward = Stopwatch(self.device)

    def _agree_on_precision(self, requested: RequestedPrecision) -> Precision:
        """The precision of all ranks; ``auto`` is bf16 where every device has it, else fp32. Collective."""
        if requested == "fp32" or requested == "tf32" or requested == "fp64":
            return requested
        every = all(self.gather(computes_bf16(self.device)))
        if requested == "auto":
            return "bf16" if every else "fp32"
        if not every and self.rank == 0:
            log.warning(
                "train.precision bf16: some device only emulates it, many times slower than fp32; use auto or fp32"
            )
        return requested

    def wrap(self, system: System, *, share: int, micro_batch: int | None, seed: int = 0) -> None:
        """Move the system to the device, and prepare every phase. Frozen modules are moved, never wrapped.

        ``share``: samples of a global batch (of the first stream) on this rank, ``micro_batch`` at a time (None: all at
        once). ``seed``: the run's; together with the slots it keys what modules and systems draw.
        """
        check_divides(share, micro_batch)
        system.to(device=self.device, dtype=self.dtype)
        self._system, self._share, self._modules, self._seed = system, share, trained(system), seed
        if self.strategy != "ddp":
            _refuse_shared(system.phases())
        for phase in system.phases():
            module = PhaseModule(system, phase, self.device, self._bf16)
            own: PhaseEngine
            if self.strategy == "ddp":
                own = DDPPhase(phase, module, self._accelerator)
            else:
                stage: zero.Stage = 1 if self.strategy == "zero1" else 2
                own = zero.ZeroPhase(phase, module, self.device, stage, self._launch.options, share)
            own.start_averages()
            self._phases[phase.name] = own

    def close(self) -> None:
        """Leave the process group; the last collective call.

        The wrapped modules go first: if DDP's reducer drops the last reference to a gloo group, it holds the
        interpreter's lock while it waits for a thread that needs that lock, and now and then the process never ends.
        """
        if dist.is_initialized():
            self.barrier()
            for own in self._phases.values():
                own.close()
            self._phases.clear()
            self._accelerator.free_memory()
            gc.collect()
            zero.leave()

    # ---------------------------------------------------------------------------------------------------- training

    def step(
        self,
        phase: Phase,
        batch: Batch,
        step: int,
        *,
        micro_batch: int | None,
        seen: int,
        total: int,
        limit: float | None = None,
        stop: int = 0,
    ) -> StepResult:
        """One optimizer step of ``phase`` on this rank's share of the global batch; collective.

        ``seen`` of ``total`` samples were used before it. All ranks skip the step if the loss of any of them or the
        gradient is not finite, or if the gradient's norm is above ``limit``. ``stop`` is this rank's stop request; the
        result has the most urgent one of all ranks.
        """
        own = self._phases[phase.name]
        try:
            losses = self.backward(phase, batch, step, micro_batch)
            norm = own.norm()
            bad_loss, urgent, value = self._agree(losses["total"], norm, stop)
            skipped = _skip_reason(bad_loss, value, limit)
            rate = own.set_rates(phase.optimizer.rates(seen, total))
            if skipped:
                own.forget()
                statistics.discard(own.module)
            else:
                own.update(norm)
        except RuntimeError as error:
            if own.first and memory.is_out_of_memory(error):
                what = f"the first step of the phase {phase.name!r}"
                raise self._out_of_memory(error, what, micro_batch or self._share, memory.STEP) from None
            raise
        own.first = False
        if not skipped:
            sums, turn = self._commit_statistics(own.module), self._turn(batch, step)
            with torch.no_grad():
                self._system.after_step(phase.name, Stepped(**vars(turn), statistics=sums))
            own.update_averages(seen, len(first_stream(batch)["slot"]) * self.world_size * phase.every)
        return StepResult(losses, value, rate, skipped, urgent, self._forward.seconds())

    def backward(self, phase: Phase, batch: Batch, step: int, micro_batch: int | None) -> dict[str, Tensor]:
        """Compute the gradient of the global batch's mean loss; returns the losses' means over this rank's share.

        The modules of other phases get no gradient, and keep their running statistics.
        """
        own = self._phases[phase.name]
        parts = list(split(batch, micro_batch))
        means: dict[str, Tensor] = {}
        own.forget()
        self._forward.restart()
        statistics.begin(own.module, self._turn(batch, step))
        others = [module for name, module in self._modules.items() if name not in phase.modules]
        with _without_gradients(others):
            for i, part in enumerate(parts):
                placed = self.place(part)
                with own.micro_batch(last=i == len(parts) - 1):
                    with self._forward:
                        losses: Losses = own.forward(placed, step)
                    own.backward(losses["total"] / len(parts))
                for name, value in losses.items():
                    means[name] = means.get(name, 0) + value.detach() / len(parts)
        for module in others:
            statistics.discard(module)
        return means

    def gradients(self, phase: Phase) -> dict[str, Tensor]:
        """The gradient of each parameter of the phase, whole, between ``backward`` and the next step; collective."""
        return self._phases[phase.name].gradients()

    def place(self, batch: Batch) -> Batch:
        """The batch's tensors on this rank's device; floating-point ones in the engine's precision."""
        if "slot" not in batch:
            return {stream: self.place(own) for stream, own in batch.items()}
        return {
            k: v.to(self.device, self.dtype if v.is_floating_point() else v.dtype, non_blocking=True)
            if isinstance(v, Tensor)
            else v
            for k, v in batch.items()
        }

    def _agree(self, loss: Tensor, norm: Tensor, stop: int) -> tuple[bool, int, float]:
        """Whether some rank's loss is not finite, the most urgent stop request, and the norm; one small all-reduce.

        The numbers come to the CPU together: this is where a step waits for its GPU.
        """
        flags = torch.stack([(~torch.isfinite(loss)).float(), torch.full_like(loss, stop, dtype=torch.float32)])
        flags = self.maximum(flags)
        bad, urgent, value = torch.cat([flags.to(norm.device, norm.dtype), norm.detach().reshape(1)]).tolist()
        return bool(bad), int(urgent), float(value)

    def _commit_statistics(self, module: nn.Module) -> dict[str, Tensor]:
        """Commit the statistics over all samples of all ranks and micro-batches; returns the sums by module."""
        sums = statistics.collect(module)
        if sums and self.world_size > 1:
            flat = torch.cat(list(sums.values()))
            dist.all_reduce(flat)
            sums = dict(zip(sums, flat.split([len(own) for own in sums.values()]), strict=True))
        statistics.commit(module, sums)
        return sums

    def _turn(self, batch: Batch, step: int) -> Turn:
        """The step's number, and the slots of the global batch that this rank's share belongs to."""
        spans = {}
        for stream, own in by_stream(batch).items():
            share = len(own["slot"])
            spans[stream] = int(own["slot"][0]) - self.rank * share, share * self.world_size
        slot, slots = next(iter(spans.values()))
        return Turn(seed=self._seed, step=step, slot=slot, slots=slots, streams={} if "" in spans else spans)

    # -------------------------------------------------------------------------------------------------- evaluating

    @contextlib.contextmanager
    def averaged(self, system: System) -> Iterator[None]:
        """Inside, the system is in eval mode, and phases that keep moving averages use them as their weights."""
        kept: list[tuple[Tensor, Tensor]] = []
        for own in self._phases.values():
            for name, tensor in own.tensors().items():
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

    @contextlib.contextmanager
    def evaluating(self, system: System, *, size: int) -> Iterator[None]:
        """Inside, the system is :meth:`averaged` and computes in the precision of a step; ``size``: samples of a
        forward pass.

        Nothing done inside affects the next step: no gradients, no statistics (a step begins by discarding them), no
        random numbers. What draws without a key draws the same each time.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        computing = autocast(self.device, self._bf16)
        try:
            with torch.random.fork_rng(devices), self.averaged(system), torch.no_grad(), computing:
                torch.manual_seed(self._seed)
                yield
        except RuntimeError as error:
            if not self._evaluated and memory.is_out_of_memory(error):
                raise self._out_of_memory(error, "the first validation", size, memory.VALIDATION) from None
            raise
        self._evaluated = True

    def losses(self, phase: Phase, batches: Iterable[Batch], step: int) -> dict[str, float]:
        """Each loss's mean over the samples of ``batches``, inside :meth:`evaluating`; of this rank alone."""
        sums: dict[str, Tensor] = {}
        samples: dict[str, int] = {}
        for batch in batches:
            size = len(first_stream(batch)["slot"])
            for name, value in self._phases[phase.name].module(batch, step).items():
                sums[name] = sums.get(name, 0) + value.detach().double() * size
                samples[name] = samples.get(name, 0) + size
        return {name: float(value) / samples[name] for name, value in sums.items()}

    # ------------------------------------------------------------------------------------------------- checkpoints

    def sizes(self, system: System) -> dict[str, int]:
        """Bytes of every tensor that a checkpoint would hold now, by name; the same on all ranks, not collective."""
        return state.sizes(system, self._phases.values())

    def copy(self, system: System, names: Collection[str]) -> dict[str, Tensor]:
        """Copies on the CPU of a checkpoint's tensors with these ``names``, which may differ by rank; collective."""
        return state.copy(system, self._phases.values(), names)

    def load(self, system: System, tensors: dict[str, Tensor], where: str) -> None:
        """Load the tensors of the checkpoint ``where``, strictly, whatever strategy and world size wrote it;
        collective."""
        state.load(system, self._phases.values(), tensors, where)

    def _out_of_memory(self, error: BaseException, what: str, samples: int, last_resort: str) -> V2FError:
        """The error to raise for ``what`` with ``samples`` in a forward pass: :func:`v2f.engine.memory.advise`."""
        where = f"rank {self.rank}, {self.device}"
        return memory.advise(error, what, where, self._modules, self._share, samples, last_resort)


def _skip_reason(bad_loss: bool, norm: float, limit: float | None) -> Skipped:
    """Why a step is skipped, or "". The numbers are the same on all ranks, and so is the reason."""
    if bad_loss:
        return "loss"
    if not math.isfinite(norm):
        return "gradient"
    return "spike" if limit is not None and norm > limit else ""


@contextlib.contextmanager
def _without_gradients(modules: list[nn.Module]) -> Iterator[None]:
    """Inside, the parameters of ``modules`` collect no gradient; gradients still pass through the modules."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _refuse_shared(phases: list[Phase]) -> None:
    """ZeRO keeps a phase's weights in buffers of that phase, so no other phase can train them."""
    seen: dict[str, str] = {}
    for phase in phases:
        for name in phase.modules:
            if name in seen:
                raise V2FError(
                    f"the phases {seen[name]!r} and {phase.name!r} both train {name!r}, which ZeRO cannot partition "
                    "twice; use train.strategy=ddp"
                )
            seen[name] = phase.name
