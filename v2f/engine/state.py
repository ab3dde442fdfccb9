"""What a checkpoint holds of an engine: weights, statistics, moving averages, and Adam's moments, by name.

``model/...`` and ``ema/...`` are whole on every rank under every strategy; ``optim/PHASE/PARAMETER/...`` may be dealt
out to the ranks, so that whoever reads or writes them does it collectively.
"""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from v2f.engine.phase import MOMENTS, PhaseEngine
from v2f.errors import V2FError
from v2f.runs import checkpoint
from v2f.system import System

_STEP_BYTES = 4  # Adam counts a parameter's steps in one float32


def sizes(system: System, phases: Iterable[PhaseEngine]) -> dict[str, int]:
    """Bytes of every tensor that a checkpoint would hold now, by name; the same on all ranks, not collective."""
    phases = list(phases)
    found = {name: _bytes(tensor) for name, tensor in _replicated(system, phases).items()}
    for phase in phases:
        if phase.stepped:
            for name, parameter in phase.parameters.items():
                prefix = f"optim/{phase.phase.name}/{name}"
                found[f"{prefix}/step"] = _STEP_BYTES
                found |= {f"{prefix}/{key}": _bytes(parameter) for key in MOMENTS}
    return found


def copy(system: System, phases: Iterable[PhaseEngine], names: Collection[str]) -> dict[str, Tensor]:
    """Copies on the CPU of the tensors with these ``names``, which may differ by rank; collective."""
    phases, wanted = list(phases), set(names)
    found = {name: _copied(tensor) for name, tensor in _replicated(system, phases).items() if name in wanted}
    for phase in phases:
        for name, tensor in phase.moments():
            if (full := f"optim/{phase.phase.name}/{name}") in wanted:
                found[full] = _copied(tensor)
    return found


def load(system: System, phases: Iterable[PhaseEngine], tensors: dict[str, Tensor], where: str) -> None:
    """Load a checkpoint's ``tensors``, strictly, whatever strategy and world size wrote them; collective.

    For each phase there are the moments of all its parameters or, before its first step, none. ``where`` names the
    checkpoint in errors.
    """
    phases = list(phases)
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optim": {}}
    for name, tensor in tensors.items():
        groups.setdefault(name.partition("/")[0], {})[name] = tensor
    unknown = sorted(groups.keys() - {"model", "ema", "optim"})
    if unknown:
        raise V2FError(f"{where}: the tensor {min(groups[unknown[0]])!r} is not part of this system")
    checkpoint.fill(checkpoint.module_tensors(system), groups["model"], where)
    checkpoint.fill(_averages(phases), groups["ema"], where)
    for phase in phases:
        _load_moments(phase, groups["optim"], where)
    if groups["optim"]:
        raise V2FError(f"{where}: the tensor {min(groups['optim'])!r} is not part of this system")


def _load_moments(phase: PhaseEngine, tensors: dict[str, Tensor], where: str) -> None:
    """Move the phase's moments out of ``tensors`` into its optimizer."""
    prefix = f"optim/{phase.phase.name}/"
    moments = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
    assert moments or not phase.stepped, "a checkpoint without moments is for an engine that has none"
    shapes = {f"{name}/{key}": p.shape for name, p in phase.parameters.items() for key in MOMENTS}
    shapes |= {f"{name}/step": torch.Size() for name in phase.parameters}
    shapes = shapes if moments else {}
    for name in sorted(shapes.keys() ^ moments.keys()):
        raise V2FError(
            f"{where}: the tensor {prefix + name!r} is {'missing' if name in shapes else 'not part of this system'}"
        )
    for name, shape in shapes.items():
        if moments[name].shape != shape:
            found = list(moments[name].shape)
            raise V2FError(f"{where}: {prefix + name!r} has shape {found}, this system {list(shape)}")
    phase.restore(moments)


def _replicated(system: System, phases: Iterable[PhaseEngine]) -> dict[str, Tensor]:
    """What every rank holds whole under every strategy: weights, statistics, moving averages."""
    return checkpoint.module_tensors(system) | _averages(phases)


def _averages(phases: Iterable[PhaseEngine]) -> dict[str, Tensor]:
    return {f"ema/{name}": t for phase in phases for name, t in phase.averages.items()}


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU, with memory of its own and contiguous."""
    return tensor.detach().to("cpu", copy=True).contiguous()
