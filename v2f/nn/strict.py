"""A state_dict into a module, strictly: what does not fit is named before anything is loaded."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from v2f.errors import V2FError

M = TypeVar("M", bound=nn.Module)


def misfit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], prefix: str = "") -> str | None:
    """What first keeps ``found`` from taking the place of ``wanted``, in the order of ``wanted``; None where all fits.

    Names, shapes and number formats have to be equal, and the numbers finite: a tensor that is rounded or broadcast on
    loading is a mistake that nobody sees. ``prefix``: what the names have before them in the file.
    """
    missing = [prefix + name for name in wanted if name not in found]
    unknown = [prefix + name for name in found if name not in wanted]
    if missing:
        instead = f"; it has the unknown {unknown[0]!r}" if unknown else ""
        return f"the tensor {missing[0]!r} is missing{_more(missing)}{instead}"
    if unknown:
        return f"the tensor {unknown[0]!r} is not known{_more(unknown)}"
    for name, tensor in wanted.items():
        wrong = _unlike(tensor, found[name])
        if wrong is not None:
            return f"{prefix + name!r} {wrong}"
    return None


def _unlike(wanted: Tensor, found: Tensor) -> str | None:
    if found.shape != wanted.shape:
        return f"has the shape {list(found.shape)}, {list(wanted.shape)} is wanted"
    if found.dtype != wanted.dtype:
        return f"is {_named(found.dtype)}, {_named(wanted.dtype)} is wanted"
    if found.is_meta or found.layout != torch.strided:
        return "holds no plain array of numbers"
    if found.is_floating_point() and not found.isfinite().all():
        return "holds numbers that are not finite"
    return None


def fill(module: M, state: Mapping[str, Tensor], where: str, what: str, prefix: str = "") -> M:
    """``module`` with the tensors of ``state``; ``where`` (a file) and ``what`` (its layout) begin a V2FError's line.

    ``prefix``: what the names have before them in the file.

    A module that was built on the meta device takes copies of the tensors as its own, so that no time is lost on
    drawing weights that are thrown away.
    """
    wanted = module.state_dict()
    wrong = misfit(wanted, state, prefix)
    if wrong is not None:
        raise V2FError(f"{where}: these are not the weights of {what}: {wrong}")
    if any(tensor.is_meta for tensor in wanted.values()):
        own = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
        module.load_state_dict(own, assign=True)
    else:
        module.load_state_dict(dict(state))
    return module


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
