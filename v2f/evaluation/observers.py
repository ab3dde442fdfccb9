"""Who looks at pictures: the referee and the judge, and what they see, the same whatever the company of a row.

    pictures [M,3,H,W] --observers--> identity embeddings [M,D] and pooled maps [M,P], by each observer

The nets always see batches of one size, the last one filled up: what a picture gives is a function of the picture.

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
from v2f.runs.run import Run
from v2f.system import Judged, System, device_of, to_picture

BATCH = 32  # what the nets see at once, always; a table depends on it no more than rounding does

Name = Literal["referee", "judge"]
BY: dict[str, str] = {
    "referee": "by the referee, which no loss ever saw",
    "judge": "by the judge, the nets that losses and meters use",
    "pixels": "in pixels, by no net",
    "spectra": "in log-mel spectra, by no net",
}
"""Who tells a number, the referee first, and how that is said."""


@dataclass(frozen=True)
class Observer:
    """Frozen nets that look at pictures [B, 3, H, W] (or of one channel) in [-1, 1]."""

    name: Name
    look: Callable[[Tensor], tuple[Tensor, Sequence[Tensor]]]
    """Identity embeddings [B, D] of length one, and maps [B, C, h, w] of what is there."""

    def __call__(self, img_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, D] and features [B, P]: mean and spread of each channel, what is there and how sharply."""
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
    """Who looks at the pictures of ``system``, the referee first where there is one; and what the referee is, or
    ``why_not`` there is none."""
    judges: list[Observer] = []
    if isinstance(system, Judged):
        own = system
        judges.append(Observer("judge", lambda img: (own.embed(img), own.maps(img))))
    nets = run.config.system.nets
    if nets is None:
        return judges, {"why_not": "the configuration of this system names no frozen nets, and so no referee"}
    try:
        net, digest = referee.load(nets, system.weights.get("identity"))
    except V2FError as error:
        return judges, {"why_not": f"{error}; these numbers are told by the nets that the losses look at"}
    second = weights.described("referee", nets.effective_referee, digest)
    return [Observer("referee", cast(Any, net.to(device_of(system))).look), *judges], second


def told_first(split: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Of a split of ``eval.json``: who tells it first, the referee where there is one, and that observer's numbers."""
    return next(iter(split["by"].items()))


def in_batches(
    function: Callable[[Tensor], tuple[Tensor, ...]], rows: Tensor, device: torch.device
) -> list[NDArray[np.float32]]:
    """``function`` of all rows, computed ``BATCH`` at a time: what a row gives does not depend on its company.

    A net chooses its kernels by the shape of the batch, and another kernel rounds differently: so the last batch
    is filled up with copies of its last row, which are then dropped.
    """
    parts: list[tuple[NDArray[np.float32], ...]] = []
    for part in rows.split(BATCH):
        full = torch.cat([part, part[-1:].expand(BATCH - len(part), *part.shape[1:])])
        with torch.no_grad():
            outputs = function(full.to(device))
        parts.append(tuple(output[: len(part)].float().cpu().numpy() for output in outputs))
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def seen(observers: Sequence[Observer], img_BCHW: Tensor) -> tuple[Tensor, ...]:
    """What the observers see of pictures, one after the other: to be put together by :func:`looks`."""
    return tuple(column for observer in observers for column in observer(img_BCHW))


def looks(observers: Sequence[Observer], columns: Sequence[NDArray[np.float32]]) -> Looks:
    return {each.name: Look(columns[2 * at], columns[2 * at + 1]) for at, each in enumerate(observers)}


def look(observers: Sequence[Observer], photo_MCHW: NDArray[np.uint8], device: torch.device) -> Looks:
    """What is seen of uint8 pictures [M, 3, H, W]."""
    columns = in_batches(lambda img: seen(observers, to_picture(img)), torch.from_numpy(photo_MCHW), device)
    return looks(observers, columns)
