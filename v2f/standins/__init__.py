"""Stand-ins: small networks for the synthetic world, used where nobody named real weights.

``train`` makes them (``python -m v2f.standins.train``), ``weights/KIND.safetensors`` holds them in float16. They
know one version of the world; with another one :func:`load` refuses them.
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
RADIUS = 6.0  # the constant coordinate of a latent: about the length of all its factors together


@dataclass(frozen=True)
class StandIn:
    """What a file of weights says of itself."""

    kind: Kind
    world_version: str
    world_hash: str
    torch_version: str
    config: dict[str, Any]
    """The arguments that its class is built with."""
    quality: dict[str, float]
    """Measured on people and photos that the training never saw."""


def info(kind: Kind, folder: Path = WEIGHTS) -> StandIn:
    """What the file of a stand-in says of itself; :class:`V2FError` if there is none or it is of another world."""
    path = _path(kind, folder)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        about = StandIn(
            kind=metadata["kind"],  # type: ignore[arg-type]
            world_version=metadata["world_version"],
            world_hash=metadata["world_hash"],
            torch_version=metadata["torch_version"],
            config=json.loads(metadata["config"]),
            quality=json.loads(metadata["quality"]),
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise V2FError(f"{path}: not a stand-in's weights ({error}); make them again: {_command(kind)}") from error
    if about.kind != kind:
        raise V2FError(f"{path}: holds the stand-in {about.kind!r}, not {kind!r}; make it again: {_command(kind)}")
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
    """The stand-in network in evaluation mode and frozen; see its class in ``v2f.nn`` for what it takes and gives.

    ``generator`` also has its mean style in ``latent_avg``. Errors are those of :func:`info`, and one for weights
    that do not fit the class.
    """
    about = info(kind, folder)
    path = _path(kind, folder)
    try:
        module = CLASSES[kind](**about.config)
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a mapping
        if isinstance(module, Generator):
            module.latent_avg.copy_(state.pop("latent_avg"))
        module.load_state_dict(state, strict=True)
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise V2FError(f"{path}: its weights do not fit ({reason}); make them again: {_command(kind)}") from error
    return module.eval().requires_grad_(False)


def factor_latent(face_NF: np.ndarray, photo_NP: np.ndarray, style_dim: int) -> Tensor:
    """The generator's latent of a portrait: face [N,F] and photo [N,P] factors -> z [N,D].

    The factors, a constant and zeros. The mapping network scales z to a fixed length; the constant keeps what the
    factors' own length says.
    """
    z_ND = torch.zeros(len(face_NF), style_dim)
    factors = torch.from_numpy(np.concatenate([face_NF, photo_NP], axis=1))
    z_ND[:, : factors.shape[1]] = factors
    z_ND[:, factors.shape[1]] = RADIUS
    return z_ND


def _path(kind: Kind, folder: Path) -> Path:
    if kind not in KINDS:
        raise V2FError(f"no stand-in is called {kind!r}; there are {', '.join(KINDS)}")
    path = folder / f"{kind}.safetensors"
    if not path.is_file():
        raise V2FError(f"{path}: the stand-in's weights are missing; make them: {_command(kind)}")
    return path


def _command(kind: str) -> str:
    return f"python -m v2f.standins.train {kind}"
