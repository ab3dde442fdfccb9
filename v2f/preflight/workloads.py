"""What each device is measured by: a matrix product, copies, and a training step.

Letters: N side of a square matrix.
"""

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from v2f.data.loader import micro_batch_of, read_usable
from v2f.data.manifest import open_dataset
from v2f.data.streams import side_by_side
from v2f.errors import V2FError
from v2f.nn import computes_bf16, float32_products
from v2f.nn.groups import common_group
from v2f.nn.statistics import discard
from v2f.nn.waveform import WaveformEncoder
from v2f.runs.config import DataConfig, load_config
from v2f.runs.run import build_system, streams_of
from v2f.system import Batch, Transform, by_stream, trained

# Large enough that a GPU is limited by the work itself, and a fraction of a second on a CPU.
SIDE_N = {"cuda": 8192, "cpu": 1024}
COPIED = {"cuda": 1024 << 20, "cpu": 64 << 20}
"""Bytes of a copy."""
_LEAST_REPEATS = 5
_ROWS = 1024  # of a matrix, converted to float64 at a time


@dataclass(frozen=True)
class Workload:
    """What is timed: ``amount`` of ``unit`` per call of ``run``, whose result must be the ``same`` at each call."""

    unit: str
    amount: float
    run: Callable[[], Any]
    same: Callable[[Any], bool]
    answers: dict[str, str] = field(default_factory=dict)


def matmul(device: torch.device) -> Workload:
    """A product whose entries are exact in bfloat16, checked against the CPU's in float64 (Freivalds 1977)."""
    side = SIDE_N[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    draw = torch.Generator().manual_seed(0)
    # -1, 0 and 1, two thirds of them 0: sums of 8,192 products stay far below 256, above which bfloat16 skips integers.
    dice = [torch.randint(6, (side, side), dtype=torch.int8, generator=draw) for _ in range(2)]
    a_NN, b_NN = ((die == 0).to(torch.int8) - (die == 5).to(torch.int8) for die in dice)
    sign_N = torch.randint(2, (side,), generator=draw).double() * 2 - 1
    right_N = _times(a_NN, _times(b_NN, sign_N))
    a_NN, b_NN = a_NN.to(device, dtype), b_NN.to(device, dtype)
    first_NN = a_NN @ b_NN
    if not torch.equal(_times(first_NN, sign_N), right_N):
        raise V2FError("the product of two matrices of whole numbers is wrong")
    return Workload("matmul TFLOP/s", 2e-12 * side**3, lambda: a_NN @ b_NN, lambda c_NN: torch.equal(c_NN, first_NN))


def _times(matrix_NN: Tensor, vector_N: Tensor) -> Tensor:
    """The product in float64 on the CPU, some rows at a time."""
    return torch.cat([rows.to("cpu", torch.float64) @ vector_N for rows in matrix_NN.split(_ROWS)])


def memory(device: torch.device) -> Workload:
    """A copy from one half of the device's buffer to the other: read once, written once."""
    source = torch.arange(COPIED[device.type] // 4, dtype=torch.int32, device=device)
    target = torch.zeros_like(source)
    return Workload(
        "memory GB/s", 2e-9 * COPIED[device.type], lambda: target.copy_(source), lambda _: torch.equal(target, source)
    )


def transfer(device: torch.device) -> Workload:
    """A copy from pinned memory to the GPU."""
    source = torch.arange(COPIED[device.type] // 16, dtype=torch.int32).pin_memory()
    target = torch.zeros_like(source, device=device)
    total = source.sum(dtype=torch.int64).item()
    return Workload(
        "transfer GB/s",
        1e-9 * 4 * len(source),
        lambda: target.copy_(source, non_blocking=True),
        lambda _: target.sum(dtype=torch.int64).item() == total,
    )


def encoder_step(device: torch.device) -> Workload:
    """A step of the voice-styled face's voice encoder on noise (on a CPU a small one): without data set and weights."""
    small = {"channels": [16, 32, 64], "blocks": [1, 1, 1], "strides": [2, 2, 2], "stem_stride": 8}
    config = WaveformEncoder.Config() if device.type == "cuda" else WaveformEncoder.Config(**small, out_channels=32)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, wav_BT = WaveformEncoder(config).to(device), torch.randn(8, 96_000 if device.type == "cuda" else 8_000)
    wav_BT = wav_BT.to(device)

    def loss() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return torch.stack([map_BCT.float().square().mean() for map_BCT in encoder(wav_BT)]).sum()

    return _stepping(encoder, [(loss, list(encoder.parameters()))], len(wav_BT))


def recipe_step(device: torch.device, recipe: str, overrides: Sequence[str], world_size: int) -> Workload:
    """A step of a recipe's system, through all its phases, on the first samples of its data: one rank's micro-batch."""
    config = load_config(recipe, overrides)
    for data in config.data.by_stream().values():
        if data.batch % world_size:
            raise V2FError(f"data.batch: {data.batch} is not a multiple of {world_size} ranks")
    system = build_system(config)
    streams = streams_of(config, system)
    share, *others = [data.batch // world_size for data in streams.values()]
    size = micro_batch_of(share, config.train.micro_batch, common_group(trained(system).values()), others) or share
    parts = {
        name: _first(data, system.streams()[name], size * data.batch // config.data.batch)
        for name, data in streams.items()
    }
    batch = next(side_by_side(parts))
    precision = config.train.precision
    bf16 = precision == "bf16" or (precision == "auto" and computes_bf16(device))
    dtype = torch.float64 if precision == "fp64" else torch.float32
    float32_products(tf32=precision == "tf32")
    system.to(device, dtype).train()
    for own in by_stream(batch).values():
        for key, value in own.items():
            if isinstance(value, Tensor):
                own[key] = value.to(device, dtype if value.is_floating_point() else value.dtype)

    def loss(phase: str) -> Callable[[], Tensor]:
        def total() -> Tensor:
            torch.manual_seed(config.seed)  # so that dropout does not look like a broken device
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                return system.loss(phase, batch, 0)["total"]

        return total

    phases = [
        (loss(phase.name), [p for module in phase.modules.values() for p in module.parameters()])
        for phase in system.phases()
    ]
    return _stepping(system, phases, size)


def _first(data: DataConfig, reads: Mapping[str, Transform], size: int) -> list[Batch]:
    """One batch of the first samples of a stream's data."""
    left_out: list[str] = []
    split = open_dataset(data.home).split(data.split)
    batches = list(read_usable(split, reads, size, left_out, limit=size))
    if not batches or left_out or len(batches[0]["slot"]) < size:
        reason = left_out[0] if left_out else f"the split {split.name} has fewer"
        raise V2FError(f"the first {size} samples of {data.home} cannot be used: {reason}")
    return batches


def _stepping(
    module: nn.Module, phases: Sequence[tuple[Callable[[], Tensor], list[nn.Parameter]]], samples: int
) -> Workload:
    """Forward, backward and Adam of each phase. The learning rate is 0, so every call must give the same losses."""
    optimizers = [torch.optim.Adam(parameters, lr=0.0) for _, parameters in phases]

    def step() -> list[float]:
        totals = []
        for (loss, _), optimizer in zip(phases, optimizers, strict=True):
            total = loss()
            total.backward()
            optimizer.step()
            module.zero_grad(set_to_none=True)
            discard(module)
            totals.append(total.detach())
        return [float(total) for total in totals]

    first = step()
    if not all(torch.isfinite(torch.tensor(first))):
        raise V2FError(f"the loss is not finite: {first}")
    bits = hashlib.sha256(json.dumps([value.hex() for value in first]).encode()).hexdigest()
    return Workload("step samples/s", samples, step, lambda found: found == first, {"loss of the same batch": bits})


def timed(workload: Workload, device: torch.device, seconds: float) -> float:
    """The rate of a workload that runs for ``seconds``; V2FError if one run gives another result than the first."""
    spent: list[float] = []
    end = time.perf_counter() + seconds
    while len(spent) < _LEAST_REPEATS or time.perf_counter() < end:
        wait_for(device)
        start = time.perf_counter()
        found = workload.run()
        wait_for(device)
        spent.append(time.perf_counter() - start)
        if not workload.same(found):
            raise V2FError(f"the same work gave another result the {len(spent)}th time")
    return workload.amount / statistics.median(spent)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
