"""Weights of one module that exist already: in a checkpoint of a run, in an export of one, in a published file.

    checkpoint | model.safetensors | file -> Pretrained: tensors by their names below the module -> put -> a module

Of a run that keeps moving averages, the averages. Everything has to fit, name by name and shape by shape; numbers in
another float format are converted. Loading runs no code.
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
    """The tensors of one module, on the CPU, and where they are from."""

    tensors: Mapping[str, Tensor]
    where: str
    """The checkpoint's folder, or the file."""
    module: str
    """Its name there; "": the whole file is one module."""
    sha256: str
    """Of a file that is its own; of a run's module :func:`digest`, which is that of an export, too."""
    step: int | None = None
    averaged: bool = False

    @property
    def about(self) -> dict[str, Any]:
        """What tells these weights from others, plain JSON; not where they lie."""
        return {"module": self.module, "step": self.step, "averaged": self.averaged, "sha256": self.sha256}


def of_checkpoint(folder: str, module: str) -> Pretrained:
    """A module that the committed checkpoint in ``folder`` holds; V2FError if it holds none, or is damaged."""
    prefixes = (f"model/{module}.", f"ema/{module}.")
    tensors, _ = checkpoint.load(folder, lambda name: name.startswith(prefixes))
    weights, averages = (_below(tensors, prefix) for prefix in prefixes)
    if not weights:
        raise _no_module(folder, module, checkpoint.shapes_of(folder))
    step = checkpoint.step_named(folder)
    return Pretrained(weights | averages, folder, module, digest(weights | averages), step, bool(averages))


def of_export(path: str, module: str, step: int | None, averaged: bool) -> Pretrained:
    """A module of what ``v2f checkpoint export`` has written."""
    found = of_file(path, module)
    return Pretrained(found.tensors, path, module, digest(found.tensors), step, averaged)


def of_file(path: str, module: str = "", key: str | None = None, sha256: str | None = None) -> Pretrained:
    """A ``.safetensors``, ``.pt`` or ``.pth`` file that holds a state_dict, or one under ``key``: all of it, or what
    is named below ``module``. Errors as of :func:`v2f.weights.files.read`."""
    content, found = files.read(path, sha256)
    state = files.tensors(content if key is None else files.part(content, key, path), path)
    tensors = _below(state, f"{module}.") if module else state
    if not tensors:
        raise _no_module(path, module, state)
    return Pretrained(tensors, path, module, found)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of a module's names, number formats, shapes and numbers: the same however files hold them."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def put(system: System, into: str, found: Pretrained) -> nn.Module:
    """Fill the module ``into`` of what ``system`` trains, and give it; V2FError, with nothing changed, for the first
    tensor that does not fit."""
    module = submodule(system, into)
    wanted = module.state_dict()
    state = {name: _converted(tensor, wanted.get(name)) for name, tensor in found.tensors.items()}
    return fill(module, state, found.where, f"the module {into!r}", f"{found.module}." if found.module else "")


def submodule(system: System, name: str) -> nn.Module:
    """A module that ``system`` trains, or one inside it (``encoder``, ``encoder.stem``); V2FError if it has none."""
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
    raise V2FError(f"{name!r} is no module that this system trains; it trains {', '.join(modules)}")


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _no_module(where: str, module: str, names: Iterable[str]) -> V2FError:
    held = list(dict.fromkeys(name.split(".", 1)[0] for name in names))
    more = f" and {len(held) - 8} more" if held[8:] else ""
    return V2FError(f"{where}: it has no module {module!r}; it holds {', '.join(held[:8])}{more}")


def _converted(tensor: Tensor, wanted: Tensor | None) -> Tensor:
    """A float tensor in the format of the ``wanted`` one; every other as it is."""
    both = wanted is not None and wanted.is_floating_point() and tensor.is_floating_point()
    return tensor.to(wanted.dtype) if both and wanted is not None else tensor
