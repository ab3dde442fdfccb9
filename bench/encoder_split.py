"""Which encoders of S1 have the parameters that the thesis's table 5.1 gives? Counts them all; there is one.

    python bench/encoder_split.py       # two seconds

Four stages of 64, 128, 256 and 512 channels and one block or more, 32 blocks in all; the two convolutions of a block
without bias, of odd kernels 1 to 25, each its own; PReLU with one slope or one a channel; all else as in
:class:`v2f.nn.resnet.Block`. The text gives 199,424 parameters more than the table adds up to: a stem with PReLU and
two laterals with bias, so that the table's "encoder" is the blocks alone. Exit code 1 unless there is one split, and it
gives the text's count.
"""

import sys
from collections.abc import Iterator
from itertools import combinations, pairwise, product

import torch

from v2f.nn.resnet import Block
from v2f.nn.waveform import WaveformEncoder

BODY, MAPPING, GENERATOR = 37_511_616, 33_057_792, 30_370_060  # table 5.1
WHOLE = 101_138_892  # the text
WIDTHS, BLOCKS = (64, 128, 256, 512), 32
KERNELS = range(1, 26, 2)

Split = tuple[tuple[int, ...], int, int, bool]
"""Blocks of each stage, kernels of a block's two convolutions, whether PReLU has a slope for each channel."""

FIRST_READING: Split = ((8, 9, 7, 8), 7, 7, True)  # v2f's until 2026-11-30, with no parameters in the stem's activation


def block(inputs: int, outputs: int, kernel1: int, kernel2: int, per_channel: bool) -> int:
    """Parameters of one block."""
    count = 2 * inputs + inputs * outputs * kernel1 + (outputs if per_channel else 1)
    count += outputs * outputs * kernel2 + 2 * outputs
    return count + (inputs * outputs + 2 * outputs if inputs != outputs else 0)


def body(split: Split) -> int:
    """Parameters of all blocks; the first gets 64 channels from the stem."""
    blocks, *rest = split
    first = sum(block(inputs, outputs, *rest) for inputs, outputs in pairwise((WIDTHS[0], *WIDTHS)))
    return first + sum((n - 1) * block(width, width, *rest) for n, width in zip(blocks, WIDTHS, strict=True))


def splits(wanted: int = BODY) -> Iterator[Split]:
    """Every split whose blocks have ``wanted`` parameters."""
    cuts = torch.tensor([(0, *cut, BLOCKS) for cut in combinations(range(1, BLOCKS), len(WIDTHS) - 1)])
    blocks_NS = cuts.diff(dim=1)
    for rest in product(KERNELS, KERNELS, (True, False)):
        least = body(((1,) * len(WIDTHS), *rest))
        more_S = torch.tensor([block(width, width, *rest) for width in WIDTHS])
        counts_N = least + ((blocks_NS - 1) * more_S).sum(dim=1)
        for blocks_S in blocks_NS[counts_N == wanted].tolist():
            yield tuple(blocks_S), *rest


def around(stem: str) -> int:
    """Parameters of stem and laterals, which are the same for every split, as v2f builds them."""
    with torch.device("meta"):
        encoder = WaveformEncoder(WaveformEncoder.Config(stem_activation=stem))  # type: ignore[arg-type]
    blocks = [p for module in encoder.modules() if isinstance(module, Block) for p in module.parameters()]
    return sum(p.numel() for p in encoder.parameters()) - sum(p.numel() for p in blocks)


def line(split: Split, stem: str) -> str:
    """What a split counts to, and by how much it misses."""
    blocks, kernel1, kernel2, per_channel = split
    slopes = "per channel" if per_channel else "single"
    count, encoder = body(split), body(split) + around(stem)
    whole = encoder + MAPPING + GENERATOR
    return (
        f"blocks {blocks}, k1 {kernel1}, k2 {kernel2}, PReLU {slopes}, stem {stem}: "
        f"body {count:,} ({count - BODY:+,}), encoder {encoder:,}, whole {whole:,} ({whole - WHOLE:+,})"
    )


def main() -> int:
    """Prints every split and, beside them, the first reading."""
    found = list(splits())
    for split in found:
        print(line(split, "prelu"))
    print(f"first reading: {line(FIRST_READING, 'leaky_relu')}")
    if len(found) != 1 or body(found[0]) + around("prelu") + MAPPING + GENERATOR != WHOLE:
        print(f"{len(found)} splits, and not one that gives the text's count", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
