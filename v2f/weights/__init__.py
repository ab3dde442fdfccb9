"""The frozen nets of a system: the stand-ins of the synthetic world, weights that the user brings, or modules of runs.

    Frozen (a group of a recipe) -> find, check, read, fill (strictly) -> Nets: generator, identity, perceptual, codes

A file is a path of its own, or a usual name in ``Frozen.path``, a folder or an ``s3://`` mirror. It is told apart by
its SHA-256, loaded with ``weights_only=True`` or as safetensors, and has to fit name by name. Nothing is downloaded.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f import standins
from v2f.config import Config, MayChange, Place
from v2f.errors import V2FError
from v2f.nn.irse import IRSE50
from v2f.nn.psp import PSP, Codes, GradualStyleEncoder
from v2f.nn.strict import fill
from v2f.nn.stylegan2 import Generator
from v2f.storage import store
from v2f.weights import files
from v2f.weights.catalogue import CATALOGUE, Published
from v2f.weights.runs import OfRun, read_module

if TYPE_CHECKING:  # it imports torchvision and lpips, which take a second that the stand-ins do without
    from v2f.nn.frozen import LPIPS, FaceIdentity
    from v2f.nn.standin_nets import PerceptualNet

LEAST_SIDE = {"alex": 31, "vgg": 16, "squeeze": 17}  # pixels; of a smaller picture LPIPS' backbone has nothing left
ASKED_OF = {
    "generator": ("synthesis", "size", "n_latent", "style_dim", "latent_avg"),
    "perceptual": ("distance",),
    "codes": ("n_styles", "style_dim"),
}  # what is used of a net beside its call, by role
MEAN_W_SAMPLES = 20_000  # where a file has no mean style: its error is then a hundredth of w's deviation


class StandIn(Config):
    """The synthetic world's own small net."""

    net: Literal["stand_in"] = "stand_in"


class Brought(Config):
    """Weights that the user brings."""

    file: MayChange[Place | None] = Field(
        None, description="a path, or a name in frozen.path; null: the usual names there"
    )
    sha256: MayChange[str | None] = Field(None, pattern=r"^[0-9a-f]{64}$", description="refuse any other file")

    @property
    def published(self) -> Published:
        raise NotImplementedError


class StyleGAN2Weights(Brought):
    """StyleGAN2 in the layout of rosinality's port: its ``.pt``, or what ``v2f weights convert`` makes."""

    net: Literal["stylegan2"]
    size: Literal[32, 64, 128, 256, 512, 1024] = Field(1024, description="side of its pictures in pixels")

    @model_validator(mode="after")
    def _is_published(self) -> "StyleGAN2Weights":
        if self.file is None and f"stylegan2-ffhq-{self.size}" not in CATALOGUE:
            raise ValueError(f"no generator of {self.size} px is published for FFHQ: name the file of yours")
        return self

    @property
    def published(self) -> Published:
        return CATALOGUE.get(f"stylegan2-ffhq-{self.size}", CATALOGUE["stylegan2-ffhq-1024"])


class PSPDecoder(Brought):
    """The generator inside a pSp file."""

    net: Literal["psp"]

    @property
    def published(self) -> Published:
        return CATALOGUE["psp-ffhq-encode"]


class IRSE50Weights(Brought):
    """ArcFace on IR-SE-50 (Deng et al. 2019). It was trained on BGR; pSp, and so the thesis, feeds it RGB."""

    net: Literal["ir_se50"]
    channels: Literal["rgb", "bgr"]
    crop: bool = Field(True, description="pSp's face box before the pooling to 112 px: for pictures aligned as FFHQ is")

    @property
    def published(self) -> Published:
        return CATALOGUE["ir-se50"]


class FaceNetWeights(Brought):
    """InceptionResnetV1 of facenet-pytorch (FaceNet's loss: Schroff et al. 2015)."""

    net: Literal["facenet"]
    trained_on: Literal["vggface2", "casia-webface"] = "vggface2"
    crop: bool = Field(True, description="pSp's face box before the pooling to 160 px")

    @property
    def published(self) -> Published:
        return CATALOGUE[f"facenet-{self.trained_on}"]


class LPIPSWeights(Brought):
    """LPIPS (Zhang et al. 2018): the backbone is brought, its linear weights come with the package lpips."""

    net: Literal["lpips"]
    backbone: Literal["alex", "vgg", "squeeze"] = "alex"

    @property
    def published(self) -> Published:
        return CATALOGUE[f"lpips-{self.backbone}"]


class PSPCodes(Brought):
    """pSp's encoder (Richardson et al. 2021), run on the reference in every step."""

    net: Literal["psp"]

    @property
    def published(self) -> Published:
        return CATALOGUE["psp-ffhq-encode"]


class Precomputed(Config):
    """What the shards hold: `v2f shards precompute` wrote it, or codes ``pairs.psp.codes`` when they were packed."""

    net: Literal["precomputed"]


class Judges(Config):
    """The frozen nets that look at pictures, each by the kind of its weights.

    ``identity`` and ``perceptual`` are the *judge*: losses and meters use them, so that what pleases them is learned.
    The *referee* is another identity net, which ``v2f eval`` alone loads (:mod:`v2f.evaluation.referee`).
    """

    path: MayChange[Place] = Field(
        "weights", description="folder or s3:// mirror in which files are looked for by their names"
    )
    identity: Annotated[StandIn | IRSE50Weights | FaceNetWeights | OfRun, Field(discriminator="net")] = StandIn()
    perceptual: Annotated[StandIn | LPIPSWeights | OfRun, Field(discriminator="net")] = StandIn()
    referee: MayChange[Annotated[StandIn | IRSE50Weights | FaceNetWeights, Field(discriminator="net")] | None] = Field(
        None,
        description="identity net that no loss sees and `v2f eval` tells first; null: the stand-in beside a stand-in, "
        "facenet beside ir_se50, ir_se50 beside facenet",
    )

    @model_validator(mode="after")
    def _has_two_opinions(self) -> "Judges":
        if isinstance(self.referee, Brought) and self.referee.net == self.identity.net:
            other = "facenet" if self.referee.net == "ir_se50" else "ir_se50"
            raise ValueError(
                f"frozen.referee is {self.referee.net}, which the losses look at as frozen.identity: name {other}, or "
                "null for it"
            )
        return self

    @property
    def second_opinion(self) -> StandIn | IRSE50Weights | FaceNetWeights:
        """The referee: the one that is named, or of the other kind than the identity net."""
        if self.referee is not None:
            return self.referee
        if isinstance(self.identity, StandIn):
            return StandIn()
        return (
            FaceNetWeights(net="facenet")
            if self.identity.net == "ir_se50"
            else IRSE50Weights(net="ir_se50", channels="bgr")
        )

    def brought(self) -> dict[str, Brought]:
        """Role -> what the user brings for training."""
        return {role: net for role, net in self.roles().items() if isinstance(net, Brought)}

    def wanted(self) -> dict[str, Brought]:
        """Role -> what the user brings for training and for evaluation."""
        referee = self.second_opinion
        return self.brought() | ({"referee": referee} if isinstance(referee, Brought) else {})

    def of_runs(self) -> dict[str, OfRun]:
        """Role -> the module of a run that it is, for training."""
        return {role: net for role, net in self.roles().items() if isinstance(net, OfRun)}

    def roles(self) -> dict[str, Any]:
        """Role -> the kind of its weights, for training."""
        return {"identity": self.identity, "perceptual": self.perceptual}


class Frozen(Judges):
    """The frozen nets of a system around a generator."""

    generator: Annotated[StandIn | StyleGAN2Weights | PSPDecoder | OfRun, Field(discriminator="net")] = StandIn()
    codes: Annotated[StandIn | PSPCodes | Precomputed | OfRun, Field(discriminator="net")] | None = Field(
        StandIn(), description="what gives the reference's w+; null: nothing does"
    )
    embeddings: Precomputed | None = Field(
        None, description="what gives the reference's identity embedding in a step; null: the net identity"
    )

    def roles(self) -> dict[str, Any]:
        return {"generator": self.generator, **super().roles(), "codes": self.codes}


@dataclass
class Looking:
    """The nets that :class:`Judges` names, frozen and in evaluation mode."""

    identity: nn.Module
    perceptual: "LPIPS | PerceptualNet"
    stand_ins: list[str]
    sha256: dict[str, str]
    """Role -> checksum of the file that the user brought for it, or of the module of a run that it is."""


@dataclass
class Nets(Looking):
    """The nets that :class:`Frozen` names."""

    generator: Generator
    codes: nn.Module | None


def locate(folder: str, net: Brought) -> str:
    """The file of ``net``: its own path, a name in ``folder``, or one of the usual names there."""
    way_out = net.published.way_out
    if net.file is None:
        return files.find(folder, net.published.files, way_out)
    has_folder = "/" in net.file or "://" in net.file
    return files.find(net.file if has_folder else store.join(folder, net.file), net.published.files, way_out)


def load_judges(judges: Judges) -> Looking:
    """The nets of ``judges`` alone; as :func:`load`."""
    reader = _Reader(judges)
    identity, perceptual = reader.get("identity", judges.identity), reader.get("perceptual", judges.perceptual)
    return Looking(identity, perceptual, reader.stand_ins, reader.checksums)


def load(frozen: Frozen) -> Nets:
    """All nets of ``frozen``. Nothing is read before all files are found; one that two roles share is read once."""
    reader = _Reader(frozen)
    generator, identity = reader.get("generator", frozen.generator), reader.get("identity", frozen.identity)
    perceptual = reader.get("perceptual", frozen.perceptual)
    codes = None
    if frozen.codes is not None and not isinstance(frozen.codes, Precomputed):
        codes = reader.get("codes", frozen.codes)
        if (codes.n_styles, codes.style_dim) != (generator.n_latent, generator.style_dim):
            raise V2FError(
                f"system.frozen.codes: it gives codes of {codes.n_styles} styles x {codes.style_dim}, the generator "
                f"of {generator.size} px takes {generator.n_latent} x {generator.style_dim}; bring a pSp for that "
                "generator, or set system.frozen.codes=null (and losses.style=0)"
            )
    return Nets(identity, perceptual, reader.stand_ins, reader.checksums, generator, codes)


class _Reader:
    """Reads the nets of one configuration, a file only once."""

    def __init__(self, frozen: Judges) -> None:
        self._paths = _located(frozen)
        self._known: dict[str, tuple[Any, str]] = {}
        self.stand_ins: list[str] = []
        self.checksums: dict[str, str] = {}

    def get(self, role: str, net: Any) -> Any:
        """The net of a role, in evaluation mode and without gradients of its own."""
        if isinstance(net, StandIn):
            self.stand_ins.append(role)
            return standins.load(role)  # type: ignore[arg-type]
        if isinstance(net, OfRun):
            return self._of_run(role, net)
        path = self._paths[role]
        key = f"{type(net).__name__ if not isinstance(net, (PSPDecoder, PSPCodes)) else 'psp'}:{path}"
        if key not in self._known:
            self._known[key] = read(net, path)
        elif net.sha256 is not None:
            files.check(path, self._known[key][1], net.sha256)
        loaded, self.checksums[role] = self._known[key]
        if isinstance(loaded, PSP):
            loaded = loaded.decoder if role == "generator" else Codes(loaded)
        return loaded.eval().requires_grad_(False)

    def _of_run(self, role: str, net: OfRun) -> nn.Module:
        module, self.checksums[role] = read_module(net, f"system.frozen.{role}")
        for name in ASKED_OF.get(role, ()):
            if not hasattr(module, name):
                raise V2FError(
                    f"system.frozen.{role}: {net.module} of {net.path} is a {type(module).__name__}, which has no "
                    f"{name!r}: a net of this role has {', '.join(ASKED_OF[role])}"
                )
        return module


def _located(frozen: Judges) -> dict[str, str]:
    """Role -> its file; V2FError that names every role whose file is missing."""
    paths, missing = {}, {}
    for role, net in frozen.brought().items():
        try:
            paths[role] = locate(frozen.path, net)
        except V2FError as error:
            missing[role] = error
    if missing:
        first, *others = missing
        more = f" (missing, too: {', '.join(others)}; `v2f weights` lists all)" if others else ""
        raise V2FError(f"system.frozen.{first}: {missing[first]}{more}")
    return paths


def described(role: standins.Kind, net: StandIn | Brought | OfRun, sha256: str | None) -> dict[str, Any]:
    """What tells a net from all others: its kind, its options and the SHA-256 of its file or module, which for one that
    the user brings is given; not where that lies."""
    digest = standins.checksum(role) if isinstance(net, StandIn) else sha256
    return net.model_dump(mode="json", exclude={"file", "sha256", "path", "which"}) | {"sha256": digest}


def read(net: Brought, path: str) -> tuple[nn.Module, str]:
    """The net that the file ``path`` holds, and the file's SHA-256; every misfit is a V2FError of one line."""
    content, digest = files.read(path, net.sha256)
    return _READERS[type(net)](net, content, path), digest


def load_psp(
    file: str, sha256: str | None = None, model: Literal["encode", "frontalization"] = "frontalization"
) -> tuple[PSP, str]:
    """pSp, encoder and generator, from a file (or from a folder or mirror, where ``model`` says which), and the
    checksum."""
    published = CATALOGUE[f"psp-ffhq-{model}"]
    path = files.find(file, published.files, published.way_out)
    psp, digest = read(PSPCodes(net="psp", sha256=sha256), path)
    assert isinstance(psp, PSP)
    psp.eval().requires_grad_(False)
    return psp, digest


def load_mtcnn(path: str | None = None) -> tuple[Any, dict[str, str]]:
    """facenet-pytorch's MTCNN in evaluation mode, and the SHA-256 of each file that was brought for it.

    ``path``: a folder or mirror with ``pnet.pt``, ``rnet.pt`` and ``onet.pt``; None: those inside the package.
    """
    from facenet_pytorch import MTCNN

    mtcnn = MTCNN(keep_all=True, device=torch.device("cpu"))
    checksums = {}
    for part in ("pnet", "rnet", "onet") if path is not None else ():
        assert path is not None
        file = files.find(path, [f"{part}.pt"], "copy pnet.pt, rnet.pt and onet.pt of facenet-pytorch there")
        content, checksums[f"{part}.pt"] = files.read(file)
        fill(getattr(mtcnn, part), files.tensors(content, file), file, f"MTCNN's {part} (facenet-pytorch)")
    return mtcnn.eval().requires_grad_(False), checksums


def read_stylegan2(content: Any, path: str) -> Generator:
    """A generator from rosinality's ``{"g_ema": state_dict, "latent_avg": [512]}``, or the flat safetensors of
    ``v2f weights convert``; its size and widths are those of the tensors."""
    if isinstance(content, Mapping) and "g_ema" in content:
        state, mean, prefix = files.tensors(content["g_ema"], path), content.get("latent_avg"), "g_ema."
    elif isinstance(content, Mapping) and "state_dict" in content:
        raise V2FError(f"{path}: no file of StyleGAN2 alone; if it is pSp's, say so: generator.net is psp")
    else:
        state, prefix = files.tensors(content, path), ""
        mean = state.pop("latent_avg", None)
    generator = Generator.fitting(state, path, prefix)
    if mean is None:
        mean = generator.mean_w(MEAN_W_SAMPLES, torch.Generator().manual_seed(0))
    _put(generator.latent_avg, mean, "latent_avg", path)
    return generator


def _put(target: Tensor, value: Any, name: str, path: str) -> None:
    """Copy what a file keeps beside its state_dict: [D], or for pSp [L, D] or one [D] for all styles."""
    shapes = (target.shape, target.shape[-1:])
    if not isinstance(value, Tensor) or value.shape not in shapes or value.dtype != target.dtype:
        shown = f"{list(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise V2FError(f"{path}: {name} is {shown}, {list(target.shape)} {target.dtype} is wanted")
    if value.is_meta or value.layout != torch.strided or not value.isfinite().all():
        raise V2FError(f"{path}: {name} holds no finite numbers; copy the file anew")
    target.data.copy_(value)


def _stylegan2(net: StyleGAN2Weights, content: Any, path: str) -> Generator:
    generator = read_stylegan2(content, path)
    if generator.size != net.size:
        raise V2FError(f"{path}: a generator of {generator.size} px, system.frozen.generator.size says {net.size}")
    return generator


def _ir_se50(net: IRSE50Weights, content: Any, path: str) -> "FaceIdentity":
    from v2f.nn.frozen import FaceIdentity

    with torch.device("meta"):
        body = IRSE50()
    fill(body, files.tensors(content, path), path, "IR-SE50 (model_ir_se50.pth)")
    stages = ("body.2", "body.6", "body.20", "body.23")
    return FaceIdentity(body, size=112, crop=net.crop, channels=net.channels, taps=stages)


def _facenet(net: FaceNetWeights, content: Any, path: str) -> "FaceIdentity":
    from facenet_pytorch import InceptionResnetV1

    from v2f.nn.frozen import FaceIdentity

    state = files.tensors(content, path)
    classes = {"vggface2": 8631, "casia-webface": 10575}[net.trained_on]
    with torch.device("meta"):  # with the classifier, which the file has and the embedding does not need
        body = InceptionResnetV1(classify=True, num_classes=classes)
    fill(body, state, path, f"InceptionResnetV1 on {net.trained_on}")
    body.classify = False
    del body.logits
    stages = ("conv2d_4b", "repeat_1", "repeat_2", "repeat_3")
    return FaceIdentity(body, size=160, crop=net.crop, channels="rgb", scale=127.5 / 128, taps=stages)


def _lpips(net: LPIPSWeights, content: Any, path: str) -> "LPIPS":
    from v2f.nn.frozen import LPIPS

    lpips = LPIPS(net.backbone)
    lpips.load_backbone(files.tensors(content, path), path)
    return lpips


def _psp(net: Brought, content: Any, path: str) -> PSP:
    state = files.tensors(files.part(content, "state_dict", path), path)
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    for name, tensor in state.items():
        owner, _, rest = name.partition(".")
        if owner not in parts or not rest:
            raise V2FError(f"{path}: these are not the weights of pSp: the tensor {name!r} is not known")
        parts[owner][rest] = tensor
    _check_options(content.get("opts"), path)
    decoder = Generator.fitting(parts["decoder"], path, "decoder.")
    with torch.device("meta"):
        body = GradualStyleEncoder(decoder.n_latent)
    fill(body, parts["encoder"], path, f"pSp's encoder of {decoder.n_latent} styles", "encoder.")
    psp = PSP(body, decoder, torch.zeros(decoder.n_latent, decoder.style_dim))
    _put(psp.latent_avg, files.part(content, "latent_avg", path), "latent_avg", path)
    decoder.latent_avg.copy_(psp.latent_avg.mean(dim=0))  # pSp repeats the one mean style for every layer
    return psp


def _check_options(options: Any, path: str) -> None:
    """V2FError where a pSp file says that it was trained as another kind than is built here."""
    values = vars(options) if isinstance(options, argparse.Namespace) else options
    if not isinstance(values, Mapping):
        return
    wanted = {"encoder_type": "GradualStyleEncoder", "start_from_latent_avg": True, "learn_in_w": False}
    for name, value in wanted.items():
        if values.get(name, value) != value:
            raise V2FError(
                f"{path}: this pSp was trained with {name}={values[name]!r}, here it is {value!r}: take another"
            )


_READERS: dict[type[Brought], Callable[[Any, Any, str], nn.Module]] = {
    StyleGAN2Weights: _stylegan2,
    PSPDecoder: _psp,
    PSPCodes: _psp,
    IRSE50Weights: _ir_se50,
    FaceNetWeights: _facenet,
    LPIPSWeights: _lpips,
}
