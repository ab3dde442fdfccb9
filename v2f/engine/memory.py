"""Out of memory in a first step or validation: one line that names what to turn down."""

import re

import torch
from torch import nn

from v2f.errors import V2FError
from v2f.nn.batchnorm import common_group

STEP = (
    "a smaller data.batch, shorter clips or smaller pictures; on several ranks train.strategy=zero2 deals gradients "
    "and moments out"
)
VALIDATION = "fewer train.validate_samples or train.validate_pictures, shorter clips or smaller pictures"
_WANTED = re.compile(r"tried to allocate ([\d.]+ ?\w+)", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is a GPU's or the CPU allocator's refusal; the latter is a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def explained(
    error: BaseException, what: str, where: str, modules: dict[str, nn.Module], share: int, now: int, then: str
) -> V2FError:
    """What to turn down, the mildest first: nothing that changes the mathematics before what does (``then``).

    ``now``: samples of a forward pass. A micro-batch divides a rank's ``share`` of the global batch and is a multiple
    of every batch norm's group.
    """
    group = common_group(modules.values())
    smaller = [size for size in range(group, now, group) if share % size == 0]
    wanted = _WANTED.search(str(error))
    size = f", it wanted {wanted[1]}" if wanted else ""
    first = (
        f"set train.micro_batch={smaller[-1]} (now {now}; the same mathematics), then"
        if smaller
        else f"train.micro_batch={now} is the smallest already, so"
    )
    return V2FError(f"out of memory in {what} ({where}{size}): {first} {then}")
