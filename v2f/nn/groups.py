"""Groups of samples: what a module computes of a sample may depend on others, but only on those of its group.

A group is ``group`` consecutive slots of the global batch. Ranks and micro-batches hold whole groups, so any split of a
batch computes the same function (promise 3, docs/architecture.md).
"""

import math
from collections.abc import Iterable

from torch import nn


class Grouped:
    """A base of modules that look at several samples together."""

    group: int
    """The number of consecutive samples in a group."""


def common_group(modules: Iterable[nn.Module]) -> int:
    """The smallest number of samples that divides into whole groups for every :class:`Grouped` module; 1 if none."""
    inside = (own for module in modules for own in module.modules())
    return math.lcm(*(own.group for own in inside if isinstance(own, Grouped)))
