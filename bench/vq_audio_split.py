"""Which networks like v2f's VQ-VAE-2 of sound have the parameters of the document that it follows? Counts them all.

    python bench/vq_audio_split.py       # a second

The document tells the codebooks (2,048 x 32, parameters), the convolutions of stride 2 (three and two, mirrored) and
the blocks (seven residual convolutions of kernel 3), and that the network has 580,641 parameters. It does not tell the
width, which is taken as the same everywhere, the kernel of the convolutions of stride 2, how many blocks there are, nor
the kernels of the decoders' first and last convolutions. Exit code 1 unless v2f's defaults are among the networks with
this count.
"""

import sys
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from v2f.nn.vq_audio import NetConfig

WHOLE = 580_641
CODES, WIDTH, LAYERS = 2048, 32, 7
WIDTHS, KERNELS, BLOCKS, OTHER = range(8, 129), range(2, 9), range(4, 13), (1, 3, 5, 7)


class Split(NamedTuple):
    """What the document does not tell."""

    width: int
    kernel: int
    """Of the convolutions of stride 2."""
    blocks: int
    """In encoder and decoder; there are four gaps between convolutions in each."""
    top: int
    """Kernel of the first convolution of the top codes' decoder."""
    first: int
    """Kernel of the first convolution of the decoder."""
    last: int
    """Kernel of the last convolution of the decoder."""


OURS = Split(NetConfig().bottom.channels[0], NetConfig().kernel, 8, 1, 3, 3)


def count(split: Split) -> int:
    """Parameters of the network."""

    def conv(inputs: int, outputs: int, kernel: int = 1) -> int:
        return inputs * outputs * kernel + outputs

    w, k = split.width, split.kernel
    encoder = conv(1, w, k) + 4 * conv(w, w, k)
    top = conv(w, WIDTH) + conv(WIDTH, w, split.top) + conv(w, w, k) + conv(w, WIDTH, k)
    bottom = conv(w + WIDTH, WIDTH)
    decoder = 2 * conv(WIDTH, WIDTH, k) + conv(2 * WIDTH, w, split.first) + 3 * conv(w, w, k) + conv(w, 1, split.last)
    blocks = split.blocks * LAYERS * conv(w, w, 3)
    return encoder + top + bottom + decoder + blocks + 2 * CODES * WIDTH


def splits(wanted: int = WHOLE) -> Iterator[Split]:
    """Every network with ``wanted`` parameters."""
    for numbers in product(WIDTHS, KERNELS, BLOCKS, OTHER, OTHER, OTHER):
        if count(split := Split(*numbers)) == wanted:
            yield split


def main() -> int:
    """Prints every network with the document's count."""
    found = list(splits())
    for split in found:
        told = ", ".join(f"{name} {value}" for name, value in split._asdict().items())
        print(f"{told}: {count(split):,}{' (v2f)' if split == OURS else ''}")
    return 0 if OURS in found else 1


if __name__ == "__main__":
    sys.exit(main())
