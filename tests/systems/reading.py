"""What a system reads of a split, as in training and as in validation, whether it has one stream or several."""

from collections.abc import Iterator
from typing import Any

from v2f.data.loader import Loader, read_split
from v2f.data.manifest import Split
from v2f.data.order import Order
from v2f.data.streams import Streams, numbered_alike, side_by_side, stream_seed
from v2f.system import Batch, System


def training(split: Split, system: System, batch: int, seed: int = 0, partitions: int = 8, **place: Any) -> Streams:
    """The loaders of all streams over ``split``, each with ``batch`` samples of a global batch."""
    reads = numbered_alike(system.streams(), dict.fromkeys(system.streams(), split))
    loaders = {}
    for name, own in reads.items():
        key = stream_seed(seed, name)
        order = Order.for_batches(split.shard_sizes, seed=key, batch=batch, window=8, partitions=partitions)
        loaders[name] = Loader(split, order, own, batch=batch, seed=key, **place)
    return Streams(loaders)


def fixed(split: Split, system: System, size: int) -> Iterator[Batch]:
    """All samples of ``split`` in every stream, in batches of ``size``, without random choices."""
    return side_by_side({name: read_split(split, reads, size) for name, reads in system.streams().items()})
