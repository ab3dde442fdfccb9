"""The observers, referee and judge: frozen nets that look at pictures.

    pictures [M,3,H,W] --observers--> identity embeddings [M,D] and pooled maps [M,P], by each observer

The nets always see batches of the same size (the last one is padded), so that the result for a picture does not depend
on the pictures that share its batch.

Shape letters: B batch, M pictures, D embedding width, P features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v2f import weights
from v2f.errors import V2FError
from v2f.evaluation import referee
from v2f.runs.evaluated import BY as BY
from v2f.runs.run import Run
from v2f.system import Judged, System, device_of, to_picture

BATCH = 32  # always; it changes results by no more than rounding

Name = Literal["referee", "judge"]


@dataclass(frozen=True)
class Observer:
    """Frozen nets that look at pictures [B, 3, H, W] (or of one channel) in [-1, 1]."""

    name: Name
    look: Callable[[Tensor], tuple[Tensor, Sequence[Tensor]]]
    """Pictures -> identity embeddings [B, D] of length one, and feature maps [B, C, h, w]."""

    def __call__(self, img_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, D] and features [B, P]: mean and standard deviation of each channel of the maps."""
        if img_BCHW.shape[1] == 1:
            img_BCHW = img_BCHW.expand(-1, 3, -1, -1)
        emb_BD, maps = self.look(img_BCHW.clamp(-1, 1))
        pooled = [statistic for m in maps for statistic in (m.mean((2, 3)), m.std((2, 3), correction=0))]
        return emb_BD, torch.cat([each.float() for each in pooled], 1)


@dataclass(frozen=True)
class Look:
    """What an observer saw of M pictures: identity embeddings and pooled maps."""

    emb_MD: NDArray[np.float32]
    features_MP: NDArray[np.float32]


Looks = dict[Name, Look]
"""What each observer saw of the same pictures, the referee first."""


def observers_of(run: Run, system: System) -> tuple[list[Observer], dict[str, Any]]:
    """The observers of the pictures of ``system``, the referee first if there is one; and a description of the referee,
    or ``why_not`` if there is none."""
    judges: list[Observer] = []
    if isinstance(system, Judged):
        own = system
        judges.append(Observer("judge", lambda img: (own.embed(img), own.maps(img))))
    nets = run.config.system.nets
    if nets is None:
        return judges, {"why_not": "the configuration of this system names no frozen nets, so there is no referee"}
    try:
        net, digest = referee.load(nets, system.weights.get("identity"))
    except V2FError as error:
        return judges, {"why_not": f"{error}; these numbers come from the nets that the losses look at"}
    second = weights.described("referee", nets.effective_referee, digest)
    return [Observer("referee", cast(Any, net.to(device_of(system))).look), *judges], second


def first_observer(split: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The first observer of a split of ``eval.json`` (the referee, if there is one), and its numbers."""
    return next(iter(split["by"].items()))


def in_batches(
    function: Callable[[Tensor], tuple[Tensor, ...]], rows: Tensor, device: torch.device
) -> list[NDArray[np.float32]]:
    """``function`` of all rows, ``BATCH`` at a time; the result for a row does not depend on the other rows.

    A net chooses its kernels by the shape of the batch, and another kernel rounds differently. So the last batch is
    padded with copies of its last row, whose results are dropped.
    """
    parts: list[tuple[NDArray[np.float32], ...]] = []
    for part in rows.split(BATCH):
        full = torch.cat([part, part[-1:].expand(BATCH - len(part), *part.shape[1:])])
        with torch.no_grad():
            outputs = function(full.to(device))
        parts.append(tuple(output[: len(part)].float().cpu().numpy() for output in outputs))
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def seen(observers: Sequence[Observer], img_BCHW: Tensor) -> tuple[Tensor, ...]:
    """What each observer sees of pictures, as a flat tuple for :func:`looks`."""
    return tuple(column for observer in observers for column in observer(img_BCHW))


def looks(observers: Sequence[Observer], columns: Sequence[NDArray[np.float32]]) -> Looks:
    """The columns of :func:`seen`, by observer."""
    return {each.name: Look(columns[2 * at], columns[2 * at + 1]) for at, each in enumerate(observers)}


def look(observers: Sequence[Observer], photo_MCHW: NDArray[np.uint8], device: torch.device) -> Looks:
    """What the observers see of uint8 pictures [M, 3, H, W]."""
    columns = in_batches(lambda img: seen(observers, to_picture(img)), torch.from_numpy(photo_MCHW), device)
    return looks(observers, columns)
