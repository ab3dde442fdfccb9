"""Out of memory in a first step or validation: an error that names what to reduce."""

import re

import torch
from torch import nn

from v2f.errors import V2FError
from v2f.nn.groups import common_group

STEP = (
    "a smaller data.batch, shorter clips or smaller pictures; on several ranks train.strategy=zero2 partitions "
    "gradients and moments"
)
VALIDATION = "fewer train.validate_samples or train.validate_pictures, shorter clips or smaller pictures"
_REQUESTED = re.compile(r"tried to allocate ([\d.]+ ?\w+)", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's or the CPU's allocator failed; the CPU's raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def advise(
    error: BaseException,
    what: str,
    where: str,
    modules: dict[str, nn.Module],
    share: int,
    samples: int,
    last_resort: str,
) -> V2FError:
    """An error with advice: first a smaller micro-batch, which does not change the mathematics, then ``last_resort``.

    ``what`` ran out of memory ``where``, with ``samples`` in a forward pass. A micro-batch divides a rank's ``share``
    of the global batch, and is a multiple of the group of every module in ``modules`` that has one.
    """
    group = common_group(modules.values())
    smaller = [size for size in range(group, samples, group) if share % size == 0]
    requested = _REQUESTED.search(str(error))
    size = f", which requested {requested[1]}" if requested else ""
    first = (
        f"set train.micro_batch={smaller[-1]} (now {samples}; the same mathematics), then"
        if smaller
        else f"train.micro_batch={samples} is already the smallest, so"
    )
    return V2FError(f"out of memory in {what} ({where}{size}): {first} {last_resort}")
