"""IR-SE50's units a second time, slowly: from the papers and the names of a state_dict, with other operations."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTHS = [64] * 3 + [128] * 4 + [256] * 14 + [512] * 3
FIRST = (0, 3, 7, 21)  # the units that halve the sides


def conv(x: Tensor, weight: Tensor, stride: int = 1, bias: Tensor | None = None) -> Tensor:
    """A convolution with "same" padding as a product of matrices."""
    side = weight.shape[-1]
    columns = F.unfold(x, side, padding=side // 2, stride=stride)
    out = torch.einsum("oi,bip->bop", weight.flatten(1), columns)
    out = out.unflatten(2, tuple((n + stride - 1) // stride for n in x.shape[2:]))
    return out if bias is None else out + bias[:, None, None]


def batch_norm(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    shape = (1, -1) + (1,) * (x.ndim - 2)
    mean, var, weight, bias = (
        state[f"{name}.{part}"].reshape(shape) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return x.clamp(min=0) + slope[:, None, None] * x.clamp(max=0)


def units(state: Mapping[str, Tensor], prefix: str, img: Tensor) -> list[Tensor]:
    """The maps behind all 24 units."""
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    x = batch_norm(state, "input_layer.1", conv(img, state["input_layer.0.weight"]))
    x = prelu(x, state["input_layer.2.weight"])
    maps = []
    for unit, width in enumerate(WIDTHS):
        at, stride = f"body.{unit}", 2 if unit in FIRST else 1
        y = conv(batch_norm(state, f"{at}.res_layer.0", x), state[f"{at}.res_layer.1.weight"])
        y = conv(prelu(y, state[f"{at}.res_layer.2.weight"]), state[f"{at}.res_layer.3.weight"], stride)
        y = batch_norm(state, f"{at}.res_layer.4", y)
        hidden = (y.mean(dim=(2, 3)) @ state[f"{at}.res_layer.5.fc1.weight"].flatten(1).T).clamp(min=0)
        gate = 1 / (1 + torch.exp(-hidden @ state[f"{at}.res_layer.5.fc2.weight"].flatten(1).T))
        shortcut = x[:, :, ::stride, ::stride]
        if x.shape[1] != width:
            shortcut = torch.einsum("oi,bihw->bohw", state[f"{at}.shortcut_layer.0.weight"].flatten(1), shortcut)
            shortcut = batch_norm(state, f"{at}.shortcut_layer.1", shortcut)
        x = y * gate[:, :, None, None] + shortcut
        maps.append(x)
    return maps
