"""Existing weights of one module: from a checkpoint of a run, an export, or a published file.

    checkpoint | model.safetensors | file -> Pretrained: tensors by their names below the module -> put -> a module

Moving averages are preferred, if a run has them. All names and shapes must match; other float formats are converted.
Loading runs no code.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from v2f.errors import V2FError
from v2f.nn.strict import fill
from v2f.runs import checkpoint
from v2f.system import System, trained
from v2f.weights import files


@dataclass(frozen=True)
class Pretrained:
    """The tensors of one module, on the CPU, and their source."""

    tensors: Mapping[str, Tensor]
    where: str
    """The checkpoint's folder, or the file."""
    module: str
    """Its name in the source; "": the whole file is one module."""
    sha256: str
    """Of the file; for a module of a run or an export, :func:`digest`."""
    step: int | None = None
    averaged: bool = False

    @property
    def about(self) -> dict[str, Any]:
        """What identifies these weights, wherever they are; plain JSON."""
        return {"module": self.module, "step": self.step, "averaged": self.averaged, "sha256": self.sha256}


def of_checkpoint(folder: str, module: str) -> Pretrained:
    """A module of the committed checkpoint in ``folder``; V2FError if it is missing or damaged."""
    prefixes = (f"model/{module}.", f"ema/{module}.")
    tensors, _ = checkpoint.load(folder, lambda name: name.startswith(prefixes))
    weights, averages = (_below(tensors, prefix) for prefix in prefixes)
    if not weights:
        raise _no_module(folder, module, checkpoint.shapes_of(folder))
    step = checkpoint.step_named(folder)
    return Pretrained(weights | averages, folder, module, digest(weights | averages), step, bool(averages))


def of_export(path: str, module: str, step: int | None, averaged: bool) -> Pretrained:
    """A module of a file that ``v2f checkpoint export`` wrote."""
    found = of_file(path, module)
    return Pretrained(found.tensors, path, module, digest(found.tensors), step, averaged)


def of_file(path: str, module: str = "", key: str | None = None, sha256: str | None = None) -> Pretrained:
    """The state_dict in a ``.safetensors``, ``.pt`` or ``.pth`` file, or under ``key`` in it: all tensors, or those
    of ``module``. Errors as for :func:`v2f.weights.files.read`."""
    content, found = files.read(path, sha256)
    state = files.tensors(content if key is None else files.part(content, key, path), path)
    tensors = _below(state, f"{module}.") if module else state
    if not tensors:
        raise _no_module(path, module, state)
    return Pretrained(tensors, path, module, found)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of a module's names, dtypes, shapes and values, independent of the file format."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def digest_of(system: System) -> str:
    """The SHA-256 of all tensors that ``system`` trains."""
    modules = trained(system).items()
    return digest({f"{name}.{key}": value for name, module in modules for key, value in module.state_dict().items()})


def put(system: System, into: str, found: Pretrained) -> nn.Module:
    """Fill the module ``into`` that ``system`` trains, and return it; V2FError for the first tensor that does not fit,
    before anything is changed."""
    module = submodule(system, into)
    wanted = module.state_dict()
    state = {name: _converted(tensor, wanted.get(name)) for name, tensor in found.tensors.items()}
    return fill(module, state, found.where, f"the module {into!r}", f"{found.module}." if found.module else "")


def submodule(system: System, name: str) -> nn.Module:
    """A module that ``system`` trains, or one inside (``encoder``, ``encoder.stem``); V2FError if there is none."""
    modules = trained(system)
    for own, module in modules.items():
        if name == own:
            return module
        if name.startswith(f"{own}."):
            inside = dict(module.named_modules())
            if (rest := name.removeprefix(f"{own}.")) in inside:
                return inside[rest]
            children = ", ".join(f"{own}.{child}" for child, _ in module.named_children()) or "nothing"
            raise V2FError(f"there is no module {name!r}; inside {own} there is {children}")
    raise V2FError(f"this system trains no module {name!r}; it trains {', '.join(modules)}")


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _no_module(where: str, module: str, names: Iterable[str]) -> V2FError:
    held = list(dict.fromkeys(name.split(".", 1)[0] for name in names))
    more = f" and {len(held) - 8} more" if held[8:] else ""
    return V2FError(f"{where}: it has no module {module!r}; it has {', '.join(held[:8])}{more}")


def _converted(tensor: Tensor, wanted: Tensor | None) -> Tensor:
    """A float tensor in the dtype of the ``wanted`` one; any other tensor unchanged."""
    both = wanted is not None and wanted.is_floating_point() and tensor.is_floating_point()
    return tensor.to(wanted.dtype) if both and wanted is not None else tensor
