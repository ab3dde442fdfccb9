"""Losses for training the stand-ins, and measures of what the trained nets do on people they never saw."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2f.standins.portraits import Portraits
from v2f.world import people


def picture_loss(output: Tensor, reference: Tensor) -> Tensor:
    """4 MSE + L1 + L1 of the differences between neighboring pixels, which keeps edges sharp."""
    error = output.float() - reference
    across = (error[..., 1:] - error[..., :-1]).abs().mean()
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return 4 * error.square().mean() + error.abs().mean() + across + down


def info_nce(e_BE: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE: match embeddings in the first half to the same person's in the second; ``scale``: log of the factor."""
    a, b = e_BE.chunk(2)
    logits = scale.clamp(max=math.log(30.0)).exp() * (a.float() @ b.float().T)
    label = torch.arange(len(a))
    return (F.cross_entropy(logits, label) + F.cross_entropy(logits.T, label)) / 2


def disturbed(img_B3HW: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures as other cameras would take them, with random color, contrast, place, size, tilt, blur and noise."""
    count = len(img_B3HW)

    def drawn(*shape: int, scale: float) -> Tensor:
        return torch.from_numpy(scale * rng.standard_normal(shape, dtype=np.float32))

    turn, size = drawn(count, scale=0.05), torch.exp(drawn(count, scale=0.05))
    row = [size * turn.cos(), -size * turn.sin(), drawn(count, scale=0.06)]
    next_row = [size * turn.sin(), size * turn.cos(), drawn(count, scale=0.06)]
    grid = F.affine_grid(torch.stack([*row, *next_row], 1).view(-1, 2, 3), list(img_B3HW.shape), align_corners=False)
    moved = F.grid_sample(img_B3HW, grid, padding_mode="border", align_corners=False)
    soft = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    moved = torch.lerp(moved, soft, torch.from_numpy(rng.random((count, 1, 1, 1), dtype=np.float32)))
    colored = moved * torch.exp(drawn(count, 3, 1, 1, scale=0.08)) * torch.exp(drawn(count, 1, 1, 1, scale=0.12))
    colored = colored + drawn(count, 3, 1, 1, scale=0.06) + drawn(count, 1, 1, 1, scale=0.08)
    return (colored + drawn(*img_B3HW.shape, scale=1.0) * drawn(count, 1, 1, 1, scale=0.08).abs()).clamp(-1, 1)


@torch.no_grad()
def in_parts(function: Callable[[Any], Tensor], rows: int, part: int = 128) -> Tensor:
    """``function`` of consecutive slices of the rows, concatenated."""
    return torch.cat([function(slice(start, min(start + part, rows))) for start in range(0, rows, part)])


def psnr(output: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [-1,1]."""
    return -10 * math.log10(((output.clamp(-1, 1) - reference) / 2).square().mean().item())


def explained(estimate: Tensor, truth: Tensor) -> Tensor:
    """R^2 of each column."""
    return 1 - (estimate - truth).square().mean(dim=0) / truth.var(dim=0, correction=0)


def tells_apart(net: nn.Module, data: Portraits, held_out: Portraits) -> dict[str, float]:
    """How well an identity net recognizes people it never saw, and which factors of a face its embedding contains."""
    known = in_parts(lambda part: net(data.images(part)), min(len(data), 8192))
    unseen = in_parts(lambda part: net(held_out.images(part)), len(held_out))
    a, b = unseen[:: held_out.photos], unseen[1 :: held_out.photos]
    cosine = a @ b.T
    own = cosine.diagonal()
    others = (cosine.sum() - own.sum()) / (cosine.numel() - len(own))
    estimate = _linear(known, torch.from_numpy(data.face[: len(known)]), unseen)
    return {
        "recall_at_1": (cosine.argmax(dim=1) == torch.arange(len(own))).float().mean().item(),
        "gallery": len(own),
        "own_cosine": own.mean().item(),
        "other_cosine": others.item(),
        **by_factor(explained(estimate, torch.from_numpy(held_out.face))),
    }


def _linear(inputs: Tensor, targets: Tensor, at: Tensor) -> Tensor:
    """A ridge regression from ``inputs`` to ``targets``, evaluated at ``at``."""
    mean, middle = inputs.mean(dim=0), targets.mean(dim=0)
    x = (inputs - mean).double()
    gram = x.T @ x + 1e-3 * len(x) * torch.eye(x.shape[1], dtype=x.dtype) * x.var()
    weight = torch.linalg.solve(gram, x.T @ (targets - middle).double())
    return ((at - mean).double() @ weight).float() + middle


def by_factor(r2: Tensor) -> dict[str, float]:
    names = [*people.FACE, *people.PHOTO][: len(r2)]
    by_name = {f"r2_{name}": value.item() for name, value in zip(names, r2, strict=True)}
    return {"r2_mean": r2.mean().item(), "r2_least": r2.min().item(), **by_name}
