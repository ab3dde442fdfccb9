"""Networks in plain PyTorch: they know tensors, not batches, losses, files or ranks."""

from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """``x`` in float32 where it is narrower, as under autocast: for norms, means and distances."""
    return x.float() if x.dtype.itemsize < 4 else x
