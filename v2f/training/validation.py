"""Validation while training: the held-out batches, and what the system makes of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from v2f import latent
from v2f.data.loader import read_usable
from v2f.data.manifest import open_dataset
from v2f.data.streams import numbered, side_by_side
from v2f.data.transforms import Transform
from v2f.engine import Engine
from v2f.runs.config import DataConfig, RunConfig
from v2f.system import Batch, System, first_stream
from v2f.tracking.console import say

_COLUMNS = 8  # pictures of each class


@dataclass(frozen=True)
class HeldOut:
    """The batches of every validation, and how many samples were ``left_out`` of them because they are unusable."""

    batches: list[Batch] = field(default_factory=list)
    left_out: int = 0


@dataclass(frozen=True)
class Validation:
    """What a system scored: its own ``meters``, each phase's ``losses`` (``loss/PHASE/PART``), and some ``samples``."""

    meters: dict[str, float]
    losses: dict[str, float]
    samples: dict[str, Tensor]


def read_held_out(
    config: RunConfig,
    streams: Mapping[str, DataConfig],
    reads: Mapping[str, Mapping[str, Transform]],
    people: Mapping[str, int] | None,
    size: int,
    engine: Engine,
) -> HeldOut:
    """Read the validation batches, each of at most ``size`` samples of the first stream, onto the engine's device.

    Each stream has batches of its own data, as large against the first stream's as in training; ``reads``: its
    transforms; ``people`` numbers the identities. Of several splits, each gives an equal part of
    ``train.validate_samples``, in batches of its own. Unusable samples are left out and counted, not replaced.
    """
    left_out: list[str] = []
    most = config.train.validate_samples
    found: dict[str, list[Batch]] = {}
    for name, data in streams.items():
        if not data.held_out:
            return HeldOut()
        dataset = open_dataset(data.home)
        splits = [dataset.split(each) for each in data.held_out if each in dataset.splits]
        absent = [repr(each) for each in data.held_out if each not in dataset.splits]
        if absent:
            less = "without these samples" if splits else "without meters and samples"
            say(f"{data.home}: there is no split {' or '.join(absent)}, so training runs {less}")
        if not splits:
            return HeldOut()
        own_size, limit = (max(1, count * data.batch // config.data.batch) for count in (size, most))
        if found:  # as many batches as the first stream has, else some of its samples would have no partner
            parts = max(1, len(next(iter(found.values()))))
            there = [min(split.samples, max(1, limit // len(splits))) for split in splits]
            if sum(-(-samples // own_size) for samples in there) != parts:
                own_size = max(1, min(own_size, sum(there) // parts))
                limit = own_size * parts
        found[name] = []
        for split in splits:
            identity_N = None if people is None else numbered(split, people)
            part = max(1, limit // len(splits))
            found[name] += read_usable(split, reads[name], own_size, left_out, limit=part, identity_N=identity_N)
    if left_out:
        say(f"validation leaves out {len(left_out)} samples that cannot be used; the first: {left_out[0]}")
    return HeldOut([engine.place(batch) for batch in side_by_side(found)], len(left_out))


def validate(engine: Engine, system: System, batches: list[Batch], step: int, pictures: int) -> Validation:
    """Score the averaged weights on ``batches``, and sample from the first ``pictures`` of their samples; a system that
    makes pictures from a label samples each class instead, from the same noise in every validation.

    Not collective: one rank does it alone.
    """
    losses: dict[str, float] = {}
    size = max(len(first_stream(batch)["slot"]) for batch in batches)
    with engine.evaluating(system, size=size):
        meters = dict(system.meters(batches))
        for phase in system.phases():
            means = engine.losses(phase, batches, step)
            losses |= {f"loss/{phase.name}/{part}": value for part, value in means.items()}
        if latent.asked_label(system) is not None:
            return Validation(meters, losses, latent.grid(system, min(pictures, _COLUMNS), size))
        return Validation(meters, losses, _sample(system, batches, pictures))


def _sample(system: System, batches: list[Batch], left: int) -> dict[str, Tensor]:
    """What the system generates for the first ``left`` samples of the first stream, one batch at a time."""
    parts: list[dict[str, Tensor]] = []
    for batch in map(first_stream, batches):
        parts.append(system.sample({k: v[:left] for k, v in batch.items()}))
        left -= len(batch["key"])
        if left <= 0:
            break
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
