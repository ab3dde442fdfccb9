"""Pictures from a label and a code: all classes in a grid, a walk between two codes, a picture in another class.

A *code* is the Noise that a system asks for. The codes of a grid are those of the seeds 0, 1, 2, ..., so that a column
is what ``v2f generate RUN --label NAME --seed N`` makes.

Shape letters: B batch, C channels, H W picture, Z code, N steps of a walk.
"""

import numpy as np
import torch
from torch import Tensor

from v2f.errors import V2FError
from v2f.keyed import keyed_rng
from v2f.nn.variational import kl_to_normal, unlikeness
from v2f.roles import Restyling
from v2f.system import Batch, Generative, Label, Noise, Picture, System, device_of, of_kind

_NOISE_KEY, _PIECE_KEY = 0x6E01, 0x6E03  # first part of the random key, so that no two uses share a stream


def noise_of(system: Generative, seed: int) -> dict[str, Tensor]:
    """The noise inputs of a system for a seed, by name: float32 [Z] each."""
    rng = keyed_rng(_NOISE_KEY, seed)
    asked = of_kind(system.asks(), Noise)
    return {name: torch.from_numpy(rng.standard_normal(kind.width, dtype="float32")) for name, kind in asked}


def pieces(system: Generative, batch: Batch, seed: int, count: int) -> Batch:
    """``count`` rows of ``batch``, a batch of one: the first with its own noise, each other one with noise of its own
    from the seed."""
    rows = {name: value.expand(count, *value.shape[1:]) for name, value in batch.items()}
    for name, kind in of_kind(system.asks(), Noise):
        drawn = [
            keyed_rng(_PIECE_KEY, seed, piece).standard_normal(kind.width, dtype="float32") for piece in range(1, count)
        ]
        more = torch.from_numpy(np.stack(drawn)) if drawn else torch.empty(0, kind.width)
        rows[name] = torch.cat([batch[name], more.to(batch[name])])
    return rows


def with_noise(system: Generative, rows_B: Tensor, seed: int = 0) -> Batch:
    """The batch for a system that asks for one input, ``rows_B``, and noise, on its device; each row has the same
    noise."""
    noise = {name: noise_Z.expand(len(rows_B), -1) for name, noise_Z in noise_of(system, seed).items()}
    batch = {name: noise.get(name, rows_B) for name in system.asks()}
    return {name: value.to(device_of(system)) for name, value in batch.items()}


def restyles(system: Generative) -> bool:
    """Whether a photo may be given besides what the system asks for: its code then takes the place of the noise."""
    return isinstance(system, Restyling) and system.restyles


def asked_label(system: Generative) -> tuple[str, Label] | None:
    """The label that a system asks for, by name, if it makes a picture from that and noise alone; else None."""
    labels = of_kind(system.asks(), Label)
    alone = len(labels) == 1 and len(labels) + len(of_kind(system.asks(), Noise)) == len(system.asks())
    return labels[0] if alone and of_kind(system.makes(), Picture) else None


@torch.no_grad()
def grid(system: System, columns: int, size: int | None = None) -> dict[str, Tensor]:
    """Class -> pictures [columns,C,H,W] of the seeds 0 to ``columns`` - 1, for every class of the label that the system
    asks for (:func:`asked_label`). ``size``: the largest batch; None: a row at once."""
    found = asked_label(system)
    assert found is not None, "the system makes no picture from a label"
    label, kind = found
    made, _ = of_kind(system.makes(), Picture)[0]
    drawn = [noise_of(system, seed) for seed in range(columns)]
    like = next(system.parameters(), torch.empty(0))  # a net in double precision takes no other numbers
    noise = {name: torch.stack([each[name] for each in drawn]).to(like) for name in drawn[0]}
    rows = {}
    for number, name in enumerate(kind.names):
        class_B = torch.full((columns,), number, device=device_of(system))
        batch = {**noise, label: class_B}
        parts = [
            system.sample({each: value[start : start + (size or columns)] for each, value in batch.items()})[made]
            for start in range(0, columns, size or columns)
        ]
        rows[name] = torch.cat(parts)
    return rows


@torch.no_grad()
def likeliest(system: Restyling, img_BCHW: Tensor) -> Tensor:
    """The class [B] under which pictures are likeliest: that of the highest evidence lower bound, with a unit variance
    of the pixels (Kingma and Welling 2014, eq. 3), at the mean of the posterior."""
    ((_, kind),) = of_kind(system.asks(), Label)
    costs = []
    for number in range(len(kind.names)):
        class_B = torch.full((len(img_BCHW),), number, device=img_BCHW.device)
        mean_BZ, log_variance_BZ = system.posterior(img_BCHW, class_B)
        restored = system.decode(mean_BZ, class_B)
        costs.append(unlikeness(restored, img_BCHW) + kl_to_normal(mean_BZ, log_variance_BZ))
    return torch.stack(costs).argmin(0)


@torch.no_grad()
def code_of(system: Restyling, img_BCHW: Tensor, class_B: Tensor | None = None) -> Tensor:
    """The codes [B,Z] of pictures in [-1,1] of the classes ``class_B``; None: of the likeliest ones."""
    return system.posterior(img_BCHW, likeliest(system, img_BCHW) if class_B is None else class_B)[0]


def between(start_Z: Tensor, end_Z: Tensor, steps: int) -> Tensor:
    """A walk [N,Z] of ``steps`` codes from one to another along a great circle, its length changing evenly.

    White 2016 (arXiv 1609.04468, section 2.1): codes from N(0, 1) in many dimensions lie near a sphere. A straight line
    crosses the inside, where no codes were in training.
    """
    start, end = start_Z.double(), end_Z.double()
    one, other = torch.linalg.vector_norm(start), torch.linalg.vector_norm(end)
    t_N1 = torch.linspace(0, 1, steps, dtype=torch.float64, device=start.device)[:, None]
    cosine = (start @ end / (one * other).clamp(min=1e-12)).clamp(-1, 1)
    angle = torch.arccos(cosine)
    if torch.sin(angle) < 1e-6:  # the same direction, or opposite ones: no great circle is the shortest
        return (start + t_N1 * (end - start)).to(start_Z)
    share, rest = torch.sin(t_N1 * angle), torch.sin((1 - t_N1) * angle)
    unit_NZ = (rest * start / one + share * end / other) / torch.sin(angle)
    return (unit_NZ * (one + t_N1 * (other - one))).to(start_Z)


@torch.no_grad()
def walk(system: Generative, batch: Batch, seed: int, steps: int) -> Tensor:
    """A row of ``steps`` pictures [C,H,steps*W] from the code in ``batch``, a batch of one, to that of ``seed``; every
    other input stays. V2FError if the system does not ask for one code, or makes no picture."""
    asked, made = of_kind(system.asks(), Noise), of_kind(system.makes(), Picture)
    if len(asked) != 1 or not made:
        raise V2FError("this system makes no pictures from codes, so there is nothing to walk between")
    if steps < 2:
        raise V2FError(f"a walk of {steps} picture has no two ends; it needs at least 2")
    ((noise, _),) = asked
    end_Z = noise_of(system, seed)[noise].to(device_of(system))
    rows = {name: value.expand(steps, *value.shape[1:]) for name, value in batch.items()}
    rows[noise] = between(batch[noise][0], end_Z, steps)
    return torch.cat([*system.sample(rows)[made[0][0]]], dim=2)
