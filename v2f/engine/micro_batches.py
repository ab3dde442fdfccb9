"""Cutting a rank's share of a global batch into micro-batches."""

from collections.abc import Iterator

from v2f.errors import V2FError
from v2f.system import Batch, first_stream, part_of


def check_divides(share: int, micro_batch: int | None) -> None:
    """V2FError if micro-batches of this size (None: all samples at once) do not make up the share."""
    if share % (micro_batch or share):
        raise V2FError(
            f"train.micro_batch: {micro_batch} does not divide a rank's {share} samples of a global batch; choose a "
            "divisor of it"
        )


def split(batch: Batch, micro_batch: int | None) -> Iterator[Batch]:
    """Consecutive micro-batches of ``micro_batch`` samples of the first stream (None: the batch as it is). The other
    streams are cut into as many parts."""
    share = len(first_stream(batch)["slot"])
    check_divides(share, micro_batch)
    parts = share // (micro_batch or share)
    yield from (part_of(batch, number, parts) for number in range(parts))
