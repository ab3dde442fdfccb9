"""The frozen nets of a configuration, found, read and ready to use."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from v2f import standins
from v2f.errors import V2FError
from v2f.nn.psp import PSP, PSPCodeEncoder
from v2f.nn.strict import fill
from v2f.nn.stylegan2 import Generator
from v2f.storage import store
from v2f.weights import files
from v2f.weights.catalogue import CATALOGUE
from v2f.weights.config import (
    FrozenConfig,
    JudgeConfig,
    Precomputed,
    PSPDecoderWeights,
    PSPEncoderWeights,
    StandInWeights,
    UserWeights,
)
from v2f.weights.layouts import read
from v2f.weights.runs import RunModule, read_module

if TYPE_CHECKING:  # imports torchvision and lpips, a second that runs with stand-ins need not spend
    from v2f.nn.frozen import LPIPS
    from v2f.nn.standin_nets import PerceptualNet

USED_ATTRIBUTES = {
    "generator": ("synthesis", "size", "n_latent", "style_dim", "latent_avg"),
    "perceptual": ("distance",),
    "codes": ("n_styles", "style_dim"),
}  # role -> what the code uses of its net besides calling it


@dataclass
class JudgeNets:
    """The nets of a :class:`JudgeConfig`, frozen and in evaluation mode."""

    identity: nn.Module
    perceptual: "LPIPS | PerceptualNet"
    stand_ins: list[str]
    sha256: dict[str, str]
    """Role -> checksum of the user's file, or of the module of a run."""


@dataclass
class FrozenNets(JudgeNets):
    """The nets of a :class:`FrozenConfig`."""

    generator: Generator
    codes: nn.Module | None


def locate(folder: str, net: UserWeights) -> str:
    """The file of ``net``: its own path, a name in ``folder``, one of the usual names there, or the file inside the
    package that publishes it."""
    way_out = net.published.way_out
    if net.file is None:
        inside = net.published.installed()
        if inside is not None and not set(net.published.files) & set(store.names(folder)):
            return inside
        return files.find(folder, net.published.files, way_out)
    has_folder = "/" in net.file or "://" in net.file
    return files.find(net.file if has_folder else store.join(folder, net.file), net.published.files, way_out)


def load_judges(judges: JudgeConfig) -> JudgeNets:
    """The identity and the perceptual net; otherwise as :func:`load`."""
    reader = _Reader(judges)
    identity, perceptual = reader.get("identity", judges.identity), reader.get("perceptual", judges.perceptual)
    return JudgeNets(identity, perceptual, reader.stand_ins, reader.checksums)


def load(frozen: FrozenConfig) -> FrozenNets:
    """All nets of ``frozen``. All files are located before any is read; a file that two roles share is read once."""
    reader = _Reader(frozen)
    generator, identity = reader.get("generator", frozen.generator), reader.get("identity", frozen.identity)
    perceptual = reader.get("perceptual", frozen.perceptual)
    codes = None
    if frozen.codes is not None and not isinstance(frozen.codes, Precomputed):
        codes = reader.get("codes", frozen.codes)
        if (codes.n_styles, codes.style_dim) != (generator.n_latent, generator.style_dim):
            raise V2FError(
                f"system.frozen.codes: its codes have {codes.n_styles} styles x {codes.style_dim}, but the generator "
                f"of {generator.size} px takes {generator.n_latent} x {generator.style_dim}; use a pSp trained for "
                "that generator, or set system.frozen.codes=null (and losses.style=0)"
            )
    return FrozenNets(identity, perceptual, reader.stand_ins, reader.checksums, generator, codes)


class _Reader:
    """Reads the nets of one configuration, each file once."""

    def __init__(self, frozen: JudgeConfig) -> None:
        self._paths = _located(frozen)
        self._known: dict[str, tuple[Any, str]] = {}
        self.stand_ins: list[str] = []
        self.checksums: dict[str, str] = {}

    def get(self, role: str, net: Any) -> Any:
        """The net of a role, in evaluation mode and with gradients off for its own parameters."""
        if isinstance(net, StandInWeights):
            self.stand_ins.append(role)
            return standins.load(role)  # type: ignore[arg-type]
        if isinstance(net, RunModule):
            return self._of_run(role, net)
        path = self._paths[role]
        layout = "psp" if isinstance(net, PSPDecoderWeights | PSPEncoderWeights) else type(net).__name__
        key = f"{layout}:{path}"
        if key not in self._known:
            self._known[key] = read(net, path)
        elif net.sha256 is not None:
            files.check(path, self._known[key][1], net.sha256)
        loaded, self.checksums[role] = self._known[key]
        if isinstance(loaded, PSP):
            loaded = loaded.decoder if role == "generator" else PSPCodeEncoder(loaded)
        return loaded.eval().requires_grad_(False)

    def _of_run(self, role: str, net: RunModule) -> nn.Module:
        module, self.checksums[role] = read_module(net, f"system.frozen.{role}")
        for name in USED_ATTRIBUTES.get(role, ()):
            if not hasattr(module, name):
                raise V2FError(
                    f"system.frozen.{role}: {net.module} of {net.path} is a {type(module).__name__} without {name!r}; "
                    f"choose a module that has {', '.join(USED_ATTRIBUTES[role])}"
                )
        return module


def _located(frozen: JudgeConfig) -> dict[str, str]:
    """Role -> its file; V2FError that lists every role whose file is missing."""
    paths, missing = {}, {}
    for role, net in frozen.user_weights().items():
        try:
            paths[role] = locate(frozen.path, net)
        except V2FError as error:
            missing[role] = error
    if missing:
        first, *others = missing
        more = f" (also missing: {', '.join(others)}; `v2f weights` lists all)" if others else ""
        raise V2FError(f"system.frozen.{first}: {missing[first]}{more}")
    return paths


def described(role: standins.Kind, net: StandInWeights | UserWeights | RunModule, sha256: str | None) -> dict[str, Any]:
    """What identifies a net, wherever its file lies: its kind, its options, and a SHA-256.

    ``sha256``: checksum of the user's file or of the run's module; ignored for a stand-in, whose own is used.
    """
    digest = standins.checksum(role) if isinstance(net, StandInWeights) else sha256
    return net.model_dump(mode="json", exclude={"file", "sha256", "path", "which"}) | {"sha256": digest}


def load_psp(
    file: str, sha256: str | None = None, model: Literal["encode", "frontalization"] = "frontalization"
) -> tuple[PSP, str]:
    """pSp, encoder and generator, and the file's checksum. ``file``: the file itself, or a folder or mirror, in which
    ``model`` selects the file."""
    published = CATALOGUE[f"psp-ffhq-{model}"]
    path = files.find(file, published.files, published.way_out)
    psp, digest = read(PSPEncoderWeights(net="psp", sha256=sha256), path)
    assert isinstance(psp, PSP)
    psp.eval().requires_grad_(False)
    return psp, digest


def load_mtcnn(path: str | None = None) -> tuple[Any, dict[str, str]]:
    """facenet-pytorch's MTCNN in evaluation mode, and the SHA-256 of each file read for it.

    ``path``: a folder or mirror with ``pnet.pt``, ``rnet.pt`` and ``onet.pt``; None: those inside the package.
    """
    from facenet_pytorch import MTCNN

    mtcnn = MTCNN(keep_all=True, device=torch.device("cpu"))
    checksums = {}
    parts = {"pnet": mtcnn.pnet, "rnet": mtcnn.rnet, "onet": mtcnn.onet}
    for part, module in parts.items() if path is not None else ():
        assert path is not None
        file = files.find(path, [f"{part}.pt"], "copy pnet.pt, rnet.pt and onet.pt of facenet-pytorch there")
        content, checksums[f"{part}.pt"] = files.read(file)
        fill(module, files.tensors(content, file), file, f"MTCNN's {part} (facenet-pytorch)")
    return mtcnn.eval().requires_grad_(False), checksums
