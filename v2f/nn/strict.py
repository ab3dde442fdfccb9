"""A state_dict into a module, strictly: what does not fit is named before anything is loaded."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from v2f.errors import V2FError

M = TypeVar("M", bound=nn.Module)


def misfit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """What first keeps ``found`` from taking the place of ``wanted``, in the order of ``wanted``; None where all fits.

    Names, shapes and number formats have to be equal: a tensor that is rounded or broadcast on loading is a mistake
    that nobody sees.
    """
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    if missing:
        instead = f"; it has the unknown {unknown[0]!r}" if unknown else ""
        return f"the tensor {missing[0]!r} is missing{_more(missing)}{instead}"
    if unknown:
        return f"the tensor {unknown[0]!r} is not known{_more(unknown)}"
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            return f"{name!r} has the shape {list(found[name].shape)}, {list(tensor.shape)} is wanted"
        if found[name].dtype != tensor.dtype:
            return f"{name!r} is {_named(found[name].dtype)}, {_named(tensor.dtype)} is wanted"
    return None


def fill(module: M, state: Mapping[str, Tensor], where: str, what: str) -> M:
    """``module`` with the tensors of ``state``; ``where`` (a file) and ``what`` (its layout) begin a V2FError's line.

    A module that was built on the meta device takes copies of the tensors as its own, so that no time is lost on
    drawing weights that are thrown away.
    """
    wanted = module.state_dict()
    wrong = misfit(wanted, state)
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
