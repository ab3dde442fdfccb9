"""Stand-ins: small networks for the synthetic world, used where no real weights are configured.

``python -m v2f.standins.train`` trains them, ``weights/KIND.safetensors`` stores them in float16. They are trained on
one version of the world; :func:`load` refuses those of another.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from v2f.errors import V2FError
from v2f.nn.standin_nets import CodeEncoder, IdentityNet, PerceptualNet, RefereeNet
from v2f.nn.strict import fill
from v2f.nn.stylegan2 import Generator
from v2f.world import people, recorded_hash

Kind = Literal["generator", "identity", "perceptual", "codes", "referee"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CLASSES: dict[Kind, type[nn.Module]] = {
    "generator": Generator,
    "identity": IdentityNet,
    "perceptual": PerceptualNet,
    "codes": CodeEncoder,
    "referee": RefereeNet,
}
WEIGHTS = Path(__file__).parent / "weights"
RADIUS = 6.0  # the constant coordinate of a latent: about the norm of all its factors


@dataclass(frozen=True)
class StandInInfo:
    """The metadata of a stand-in's file."""

    kind: Kind
    world_version: str
    world_hash: str
    torch_version: str
    config: dict[str, Any]
    """The arguments of its class."""
    quality: dict[str, float]
    """Measured on people and photos outside the training."""


def info(kind: Kind, folder: Path = WEIGHTS) -> StandInInfo:
    """The metadata of a stand-in's file; :class:`V2FError` if there is none or it belongs to another world."""
    path = _path(kind, folder)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        about = StandInInfo(
            kind=metadata["kind"],  # type: ignore[arg-type]
            world_version=metadata["world_version"],
            world_hash=metadata["world_hash"],
            torch_version=metadata["torch_version"],
            config=json.loads(metadata["config"]),
            quality=json.loads(metadata["quality"]),
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise V2FError(f"{path}: not a stand-in's file ({error}); train it again: {_command(kind)}") from error
    if about.kind != kind:
        raise V2FError(f"{path}: contains the stand-in {about.kind!r}, not {kind!r}; train it again: {_command(kind)}")
    if about.world_hash != recorded_hash():
        raise V2FError(
            f"{path}: was trained on world {about.world_version} ({about.world_hash[:12]}), this is world "
            f"{people.VERSION} ({recorded_hash()[:12]}); train the stand-ins for it: {_command('all')}"
        )
    return about


def checksum(kind: Kind, folder: Path = WEIGHTS) -> str:
    """The SHA-256 of a stand-in's file."""
    return hashlib.sha256(_path(kind, folder).read_bytes()).hexdigest()


def load(kind: Kind, folder: Path = WEIGHTS) -> Any:
    """The stand-in network, frozen and in evaluation mode; its class in ``v2f.nn`` documents inputs and outputs.

    ``generator`` also has its mean style in ``latent_avg``. Errors as for :func:`info`, and V2FError for weights that
    do not fit the class.
    """
    about = info(kind, folder)
    path = _path(kind, folder)
    try:
        module = CLASSES[kind](**about.config)
        with safe_open(path, framework="pt") as file:
            dtype = torch.get_default_dtype()
            state = {name: file.get_tensor(name).to(dtype) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if isinstance(module, Generator):
            module.latent_avg.copy_(state.pop("latent_avg"))
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise V2FError(f"{path}: cannot be loaded ({reason}); train it again: {_command(kind)}") from error
    try:
        fill(module, state, str(path), f"the stand-in {kind}")
    except V2FError as error:
        raise V2FError(f"{error}; train it again: {_command(kind)}") from error
    return module.eval().requires_grad_(False)


def factor_latent(face_NF: np.ndarray, photo_NP: np.ndarray, style_dim: int) -> Tensor:
    """The generator's latent of a portrait: face [N,F] and photo [N,P] factors -> z [N,D].

    It consists of the factors, a constant and zeros. The mapping network scales z to a fixed norm; the constant
    preserves the information in the norm of the factors.
    """
    z_ND = torch.zeros(len(face_NF), style_dim)
    factors = torch.from_numpy(np.concatenate([face_NF, photo_NP], axis=1))
    z_ND[:, : factors.shape[1]] = factors
    z_ND[:, factors.shape[1]] = RADIUS
    return z_ND


def _path(kind: Kind, folder: Path) -> Path:
    if kind not in KINDS:
        raise V2FError(f"no stand-in is named {kind!r}; choose {', '.join(KINDS)}")
    path = folder / f"{kind}.safetensors"
    if not path.is_file():
        raise V2FError(f"{path}: the stand-in's weights are missing; train them: {_command(kind)}")
    return path


def _command(kind: str) -> str:
    return f"python -m v2f.standins.train {kind}"
