"""What the tests of the loader do with batches."""

import torch

from v2f.data.loader import Batch
from v2f.data.transforms import Photo, Waveform

TRANSFORMS = {"wav": Waveform(0.03), "image": Photo(8)}


def joined(parts: list[Batch]) -> Batch:
    """The global batch of the ranks' batches."""
    return {
        name: [key for part in parts for key in part[name]]
        if name == "key"
        else torch.cat([part[name] for part in parts])
        for name in parts[0]
    }


def assert_equal(one: Batch, two: Batch) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert one[name] == two[name] if name == "key" else torch.equal(one[name], two[name]), name
