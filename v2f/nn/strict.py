"""The strict loader of state_dicts: the first tensor that does not fit is reported before anything is loaded."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from v2f.errors import V2FError

M = TypeVar("M", bound=nn.Module)


def misfit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], prefix: str = "") -> str | None:
    """Why ``found`` cannot replace ``wanted``: the first problem in the order of ``wanted``; None if everything fits.

    Names, shapes and dtypes must be equal, and the numbers finite: rounding or broadcasting a tensor on loading would
    be an unnoticed mistake. ``prefix``: prefix of the names in the file.
    """
    missing = [prefix + name for name in wanted if name not in found]
    unknown = [prefix + name for name in found if name not in wanted]
    if missing:
        instead = f"; the unknown tensor {unknown[0]!r} is present" if unknown else ""
        return f"the tensor {missing[0]!r} is missing{_more(missing)}{instead}"
    if unknown:
        return f"the tensor {unknown[0]!r} is unknown{_more(unknown)}"
    for name, tensor in wanted.items():
        wrong = _unlike(tensor, found[name])
        if wrong is not None:
            return f"{prefix + name!r} {wrong}"
    return None


def _unlike(wanted: Tensor, found: Tensor) -> str | None:
    if found.shape != wanted.shape:
        return f"has the shape {list(found.shape)}, expected {list(wanted.shape)}"
    if found.dtype != wanted.dtype:
        return f"is {_named(found.dtype)}, expected {_named(wanted.dtype)}"
    if found.is_meta or found.layout != torch.strided:
        return "is not a plain array of numbers"
    if found.is_floating_point() and not found.isfinite().all():
        return "contains numbers that are not finite"
    return None


def check(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str, what: str, prefix: str = "") -> None:
    """V2FError unless ``found`` can replace ``wanted``, as :func:`misfit` judges.

    ``where`` (a file) and ``what`` (its layout) begin the message. ``prefix``: prefix of the names in the file.
    """
    problem = misfit(wanted, found, prefix)
    if problem is not None:
        raise V2FError(f"{where}: these are not the weights of {what}: {problem}")


def fill(module: M, state: Mapping[str, Tensor], where: str, what: str, prefix: str = "") -> M:
    """``module`` with the tensors of ``state``; errors as for :func:`check`.

    A module built on the meta device takes copies of the tensors as its own, which saves the time for drawing random
    weights that would be thrown away.
    """
    wanted = module.state_dict()
    check(wanted, state, where, what, prefix)
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
