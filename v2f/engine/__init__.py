"""The engine: the only package that knows accelerate and deepspeed. Wraps phases, runs backward, clips, steps, reduces.

Data flow of a step, for each phase: batch -> micro-batches -> :class:`~v2f.engine.phase.PhaseModule` (its forward *is*
``system.loss``) -> gradient, the mean over the global batch whatever the ranks and micro-batches -> all ranks agree
whether the step counts -> clip, Adam, running statistics committed once (promise 3), moving averages. How gradients
and moments lie on the ranks is the strategy's: ``ddp.py``, ``zero.py``; ``launcher.py`` reads which one is asked for.
"""

import contextlib
import gc
import itertools
import logging
import math
import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from v2f.engine import launcher, memory, zero
from v2f.engine.ddp import DDPPhase
from v2f.engine.launcher import Asked
from v2f.engine.phase import MOMENTS, PhaseEngine, PhaseModule, autocast
from v2f.errors import V2FError
from v2f.nn import computes_bf16, float32_products, statistics
from v2f.nn.statistics import Turn
from v2f.runs import checkpoint
from v2f.system import Batch, Losses, Phase, Stepped, System, by_stream, first_stream, part_of, trained

Precision = Literal["fp32", "tf32", "bf16", "fp64"]
AskedPrecision = Literal["auto", "fp32", "tf32", "bf16", "fp64"]
Skipped = Literal["", "loss", "gradient", "spike"]
T = TypeVar("T")

log = logging.getLogger(__name__)

_LATER, _NO_END = 5.0, 24 * 60.0  # minutes
_BUCKET = 64 << 20  # bytes that go to the other ranks together
_STEP_BYTES = 4  # Adam's count of a parameter's steps is one float32


@dataclass(frozen=True)
class StepResult:
    """One phase's step on this rank: losses, gradient norm before clipping, rates, and what all ranks agreed on.

    ``skipped``: why the step was not taken, "" if it was: a loss of some rank or the gradient is not finite, or the
    gradient's norm is above the limit. ``stop``: the largest wish of all ranks. ``forward_seconds``: this rank's
    forward passes, without waiting for others.
    """

    losses: dict[str, Tensor]
    grad_norm: float
    rate: dict[str, float]
    skipped: Skipped
    stop: int
    forward_seconds: float


class Engine:
    """One process of a data-parallel job (or the only one)."""

    def __init__(
        self, precision: AskedPrecision = "fp32", strategy: Asked = "auto", *, patience_minutes: float | None = None
    ) -> None:
        """``patience_minutes``: how long a rank may wait for the others; a collective fails some minutes later."""
        self._launch = launcher.read(strategy, precision)
        self.strategy = self._launch.strategy
        with launcher.without_deepspeed():
            # Without being told, Accelerate takes every rank of a torchrun on CPUs for the only one.
            cpu = "LOCAL_RANK" in os.environ and not torch.cuda.is_available()
            # find_unused_parameters keeps DDP from re-bucketing after its first step, which would make a resumed run
            # on three or more ranks differ from the undisturbed one in the last bits (promise 5).
            kwargs = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
            # NCCL's own 10 minutes would end a long save or validation, and all ranks before any watchdog has told why.
            minutes = _NO_END if patience_minutes is None else patience_minutes + _LATER
            group = InitProcessGroupKwargs(timeout=timedelta(minutes=minutes))
            self._accelerator = Accelerator(
                cpu=cpu, mixed_precision="no", kwargs_handlers=[kwargs, group], step_scheduler_with_optimizer=False
            )
        self.device = self._accelerator.device
        self.rank = self._accelerator.process_index
        self.local_rank = self._accelerator.local_process_index
        self.world_size = self._accelerator.num_processes
        self.precision = self._agreed(precision)
        float32_products(tf32=self.precision == "tf32")
        self._bf16 = self.precision == "bf16"
        self.dtype = torch.float64 if self.precision == "fp64" else torch.float32
        self._phases: dict[str, PhaseEngine] = {}
        self._modules: dict[str, nn.Module] = {}
        self._share = self._seed = 0
        self._evaluated = False  # since the process began
        self._watch = _Stopwatch(self.device)

    def _agreed(self, asked: AskedPrecision) -> Precision:
        """The precision of all ranks; ``auto`` is bf16 where every device has it, else fp32. Collective."""
        if asked == "fp32" or asked == "tf32" or asked == "fp64":
            return asked
        every = all(self.gather(computes_bf16(self.device)))
        if asked == "auto":
            return "bf16" if every else "fp32"
        if not every and self.rank == 0:
            log.warning(
                "train.precision bf16: a device here only emulates it, many times slower than fp32; take auto or fp32"
            )
        return asked

    def wrap(self, system: System, *, share: int, micro_batch: int | None, seed: int = 0) -> None:
        """Move the system here and prepare every phase. Frozen modules are moved, never wrapped.

        ``share``: samples of a global batch (of the first stream) on this rank; they come ``micro_batch`` at a time,
        None: at once. ``seed``: the run's, which with the slots keys what modules and systems draw.
        """
        _check_divides(share, micro_batch)
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

        ``seen`` of ``total`` samples were used before it. All ranks skip alike: where a loss of any of them or the
        gradient is not finite, or its norm is above ``limit``. ``stop`` is this rank's wish; the largest is told.
        """
        own = self._phases[phase.name]
        try:
            losses = self.backward(phase, batch, step, micro_batch)
            norm = own.norm()
            bad_loss, largest, value = self._agree(losses["total"], norm, stop)
            skipped = _reason(bad_loss, value, limit)
            rate = own.set_rates(phase.optimizer.schedule.at(seen, total))
            if skipped:
                own.forget()
                statistics.discard(own.module)
            else:
                own.update(norm)
        except RuntimeError as error:
            if own.first and memory.is_out_of_memory(error):
                what, now = f"the first step of the phase {phase.name!r}", micro_batch or self._share
                raise memory.explained(error, what, self._where, self._modules, self._share, now, memory.STEP) from None
            raise
        own.first = False
        if not skipped:
            sums, turn = self._commit_statistics(own.module), self._turn(batch, step)
            with torch.no_grad():
                self._system.after_step(phase.name, Stepped(**vars(turn), statistics=sums))
            self._average(own, seen, len(first_stream(batch)["slot"]) * self.world_size * phase.every)
        return StepResult(losses, value, rate, skipped, largest, self._watch.seconds())

    def backward(self, phase: Phase, batch: Batch, step: int, micro_batch: int | None) -> dict[str, Tensor]:
        """Make the global batch's mean gradient; gives the losses' means over this rank's share.

        What other phases train gets no gradient meanwhile, and keeps its running statistics.
        """
        own = self._phases[phase.name]
        parts = list(_split(batch, micro_batch))
        means: dict[str, Tensor] = {}
        own.forget()
        self._watch.restart()
        statistics.begin(own.module, self._turn(batch, step))
        others = [module for name, module in self._modules.items() if name not in phase.modules]
        with _still(others):
            for i, part in enumerate(parts):
                placed = self.place(part)
                with own.micro_batch(last=i == len(parts) - 1):
                    with self._watch:
                        losses: Losses = own.forward(placed, step)
                    own.backward(losses["total"] / len(parts))
                for name, value in losses.items():
                    means[name] = means.get(name, 0) + value.detach() / len(parts)
        for module in others:
            statistics.discard(module)
        return means

    def gradients(self, phase: Phase) -> dict[str, Tensor]:
        """Names and whole gradients of what a phase trains, between ``backward`` and the next step; collective."""
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

    def broadcast(self, tensors: Sequence[Tensor], source: int) -> None:
        """Overwrite ``tensors``, contiguous and on the CPU, by those of the rank ``source``; collective.

        They are as many there, and alike in shape and kind. This takes the memory of a bucket, here and on the device.
        """
        if self.world_size == 1:
            return
        pieces = [piece for t in tensors if t.numel() for piece in t.reshape(-1).view(torch.uint8).split(_BUCKET)]
        while pieces:
            count = _fitting(pieces)
            some, pieces = pieces[:count], pieces[count:]
            bucket = torch.cat(some).to(self._wire)
            dist.broadcast(bucket, source)
            if self.rank != source:
                for piece, sent in zip(some, bucket.cpu().split([len(piece) for piece in some]), strict=True):
                    piece.copy_(sent)

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
            for own in self._phases.values():
                own.close()
            self._phases.clear()
            self._accelerator.free_memory()
            gc.collect()
            zero.leave()

    @contextlib.contextmanager
    def averaged(self, system: System) -> Iterator[None]:
        """Inside, the system is in eval mode and holds the moving averages, where a phase keeps them."""
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
        """Inside, the system is :meth:`averaged` and computes as in a step, and nothing of it reaches the next one:
        no gradient, no statistics (a step begins by discarding), no random number. What draws without a key draws the
        same each time. ``size``: samples of a forward pass."""
        devices = [self.device] if self.device.type == "cuda" else []
        computing = autocast(self.device, self._bf16)
        try:
            with torch.random.fork_rng(devices), self.averaged(system), torch.no_grad(), computing:
                torch.manual_seed(self._seed)
                yield
        except RuntimeError as error:
            if not self._evaluated and memory.is_out_of_memory(error):
                what, then = "the first validation", memory.VALIDATION
                raise memory.explained(error, what, self._where, self._modules, self._share, size, then) from None
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

    def sizes(self, system: System) -> dict[str, int]:
        """Bytes of every tensor that a checkpoint would hold now, by name; the same on all ranks, no collective."""
        found = {name: _bytes(tensor) for name, tensor in self._replicated(system).items()}
        for own in self._phases.values():
            if own.stepped:
                for name, parameter in own.parameters.items():
                    prefix = f"optim/{own.phase.name}/{name}"
                    found[f"{prefix}/step"] = _STEP_BYTES
                    found |= {f"{prefix}/{key}": _bytes(parameter) for key in MOMENTS}
        return found

    def copy(self, system: System, names: Collection[str]) -> dict[str, Tensor]:
        """Copies on the CPU of what a checkpoint holds under ``names``, which may differ by rank; collective."""
        wanted = set(names)
        found = {name: _copied(tensor) for name, tensor in self._replicated(system).items() if name in wanted}
        for own in self._phases.values():
            for name, tensor in own.moments():
                if (full := f"optim/{own.phase.name}/{name}") in wanted:
                    found[full] = _copied(tensor)
        return found

    def load(self, system: System, tensors: dict[str, Tensor], where: str) -> None:
        """Take up the tensors of a checkpoint, strictly, whatever strategy and world size wrote it; collective.

        A phase has the moments of all its parameters or, before its first step, of none.
        """
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optim": {}}
        for name, tensor in tensors.items():
            groups.setdefault(name.partition("/")[0], {})[name] = tensor
        unknown = sorted(groups.keys() - {"model", "ema", "optim"})
        if unknown:
            raise V2FError(f"{where}: the tensor {min(groups[unknown[0]])!r} is not part of this system")
        checkpoint.fill(checkpoint.module_tensors(system), groups["model"], where)
        averages = {f"ema/{n}": t for own in self._phases.values() for n, t in own.averages.items()}
        checkpoint.fill(averages, groups["ema"], where)
        for own in self._phases.values():
            self._load_moments(own, groups["optim"], where)
        if groups["optim"]:
            raise V2FError(f"{where}: the tensor {min(groups['optim'])!r} is not part of this system")

    def _load_moments(self, own: PhaseEngine, tensors: dict[str, Tensor], where: str) -> None:
        """Move the phase's moments out of ``tensors`` into its optimizer."""
        prefix = f"optim/{own.phase.name}/"
        moments = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        assert moments or not own.stepped, "a checkpoint without moments is for an engine that has none"
        shapes = {f"{name}/{key}": p.shape for name, p in own.parameters.items() for key in MOMENTS}
        shapes |= {f"{name}/step": torch.Size() for name in own.parameters}
        shapes = shapes if moments else {}
        for name in sorted(shapes.keys() ^ moments.keys()):
            raise V2FError(
                f"{where}: the tensor {prefix + name!r} is {'missing' if name in shapes else 'not part of this system'}"
            )
        for name, shape in shapes.items():
            if moments[name].shape != shape:
                found = list(moments[name].shape)
                raise V2FError(f"{where}: {prefix + name!r} has shape {found}, this system {list(shape)}")
        own.loaded(moments)

    def _replicated(self, system: System) -> dict[str, Tensor]:
        """What every rank holds whole under every strategy: weights, statistics, moving averages."""
        averages = {f"ema/{name}": t for own in self._phases.values() for name, t in own.averages.items()}
        return checkpoint.module_tensors(system) | averages

    @property
    def _where(self) -> str:
        return f"rank {self.rank}, {self.device}"

    @property
    def _wire(self) -> torch.device:
        return self.device if dist.get_backend() == "nccl" else torch.device("cpu")

    def _agree(self, loss: Tensor, norm: Tensor, stop: int) -> tuple[bool, int, float]:
        """Whether some rank's loss is not finite, the largest wish to stop, and the norm; one small all-reduce.

        The numbers come to the CPU together: this is where a step waits for its GPU.
        """
        flags = torch.stack([(~torch.isfinite(loss)).float(), torch.full_like(loss, stop, dtype=torch.float32)])
        if self.world_size > 1:
            flags = flags.to(self._wire)
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        bad, largest, value = torch.cat([flags.to(norm.device, norm.dtype), norm.detach().reshape(1)]).tolist()
        return bool(bad), int(largest), float(value)

    def _commit_statistics(self, module: nn.Module) -> dict[str, Tensor]:
        """Statistics over all samples of all ranks and micro-batches, once (promise 3); gives the sums by module."""
        sums = statistics.collect(module)
        if sums and self.world_size > 1:
            flat = torch.cat(list(sums.values()))
            dist.all_reduce(flat)
            sums = dict(zip(sums, flat.split([len(own) for own in sums.values()]), strict=True))
        statistics.commit(module, sums)
        return sums

    def _turn(self, batch: Batch, step: int) -> Turn:
        """Where the step of this rank's share of a global batch stands."""
        spans = {}
        for stream, own in by_stream(batch).items():
            share = len(own["slot"])
            spans[stream] = int(own["slot"][0]) - self.rank * share, share * self.world_size
        slot, slots = next(iter(spans.values()))
        return Turn(seed=self._seed, step=step, slot=slot, slots=slots, streams={} if "" in spans else spans)

    def _average(self, own: PhaseEngine, seen: int, since: int) -> None:
        """The moving average: its half-life in samples is at most a tenth of the run so far (the ramp-up of ADA, 2020).

        ``since``: samples that the run has seen since the phase's step before. Buffers (running statistics) are copied.
        """
        if own.phase.ema is None:
            return
        half_life = min(own.phase.ema, max(since, 0.1 * seen))
        keep = 0.5 ** (since / half_life)
        for name, tensor in own.tensors().items():
            if isinstance(tensor, nn.Parameter):
                own.averages[name].lerp_(tensor.detach(), 1 - keep)
            else:
                own.averages[name].copy_(tensor)


class _Stopwatch:
    """Seconds inside its blocks. A GPU's are those of its stream: read them once the stream was waited for."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        self._seconds = 0.0
        self._events: list[Any] = []

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def __enter__(self) -> None:
        self._start = self._now()

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            self._events.append((self._start, self._now()))
        else:
            self._seconds += self._now() - self._start

    def seconds(self) -> float:
        return self._seconds + sum(start.elapsed_time(end) for start, end in self._events) / 1000


def _fitting(pieces: Sequence[Tensor]) -> int:
    """How many of the first pieces, each of which does, go into a bucket together."""
    filled = itertools.accumulate(len(piece) for piece in pieces)
    return sum(1 for _ in itertools.takewhile(lambda size: size <= _BUCKET, filled))


def _reason(bad_loss: bool, norm: float, limit: float | None) -> Skipped:
    """Why a step is skipped, or "": the same on all ranks, for so are the numbers."""
    if bad_loss:
        return "loss"
    if not math.isfinite(norm):
        return "gradient"
    return "spike" if limit is not None and norm > limit else ""


@contextlib.contextmanager
def _still(modules: list[nn.Module]) -> Iterator[None]:
    """Inside, no parameter of ``modules`` gathers a gradient; gradients pass through them."""
    stilled = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in stilled:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in stilled:
            parameter.requires_grad_(True)


def _refuse_shared(phases: list[Phase]) -> None:
    """Under ZeRO a phase's weights lie in buffers of its own."""
    seen: dict[str, str] = {}
    for phase in phases:
        for name in phase.modules:
            if name in seen:
                raise V2FError(
                    f"the phases {seen[name]!r} and {phase.name!r} both train {name!r}, which ZeRO cannot deal out "
                    "twice; take train.strategy=ddp"
                )
            seen[name] = phase.name


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU, with memory of its own and contiguous."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _check_divides(share: int, micro_batch: int | None) -> None:
    if share % (micro_batch or share):
        raise V2FError(f"train.micro_batch: {micro_batch} does not divide a rank's {share} samples of a global batch")


def _split(batch: Batch, size: int | None) -> Iterator[Batch]:
    """Consecutive micro-batches of ``size`` slots; their number times ``size`` is the rank's share. Of several streams
    these are the first one's; the others are cut into as many parts."""
    n = len(first_stream(batch)["slot"])
    _check_divides(n, size)
    parts = n // (size or n)
    yield from (part_of(batch, number, parts) for number in range(parts))
