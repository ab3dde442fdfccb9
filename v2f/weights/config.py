"""The configuration of frozen nets: which net plays which role, and which file its weights come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from v2f.config import Config, MayChange, Place
from v2f.nn.ecapa import ECAPA
from v2f.nn.speech import Architecture, Kind, WavLMArchitecture
from v2f.nn.wen import VoiceEmbedding
from v2f.weights.catalogue import CATALOGUE, Published
from v2f.weights.runs import RunModule

LEAST_SIDE = {"alex": 31, "vgg": 16, "squeeze": 17}  # pixels; LPIPS' backbone pools a smaller picture down to nothing


class StandInWeights(Config):
    """The synthetic world's own small net."""

    net: Literal["stand_in"] = "stand_in"


class UserWeights(Config):
    """Weights that the user provides."""

    file: MayChange[Place | None] = Field(
        None, description="a path, or a name in frozen.path; null: the usual names there"
    )
    sha256: MayChange[str | None] = Field(None, pattern=r"^[0-9a-f]{64}$", description="refuse any other file")

    @property
    def published(self) -> Published:
        raise NotImplementedError


class StyleGAN2Weights(UserWeights):
    """StyleGAN2 in the layout of rosinality's port: its ``.pt``, or what ``v2f weights convert`` writes."""

    net: Literal["stylegan2"]
    size: Literal[32, 64, 128, 256, 512, 1024] = Field(1024, description="side of its pictures in pixels")

    @model_validator(mode="after")
    def _is_published(self) -> "StyleGAN2Weights":
        if self.file is None and f"stylegan2-ffhq-{self.size}" not in CATALOGUE:
            raise ValueError(f"no FFHQ generator of {self.size} px is published: name your own file in `file`")
        return self

    @property
    def published(self) -> Published:
        return CATALOGUE.get(f"stylegan2-ffhq-{self.size}", CATALOGUE["stylegan2-ffhq-1024"])


class PSPDecoderWeights(UserWeights):
    """The generator inside a pSp file."""

    net: Literal["psp"]

    @property
    def published(self) -> Published:
        return CATALOGUE["psp-ffhq-encode"]


class IRSE50Weights(UserWeights):
    """ArcFace on IR-SE-50 (Deng et al. 2019). It was trained on BGR; pSp, and therefore the thesis, feeds it RGB."""

    net: Literal["ir_se50"]
    channels: Literal["rgb", "bgr"]
    crop: bool = Field(True, description="cut out pSp's face box before pooling to 112 px: for FFHQ-aligned pictures")

    @property
    def published(self) -> Published:
        return CATALOGUE["ir-se50"]


class FaceNetWeights(UserWeights):
    """InceptionResnetV1 of facenet-pytorch (FaceNet's loss: Schroff et al. 2015)."""

    net: Literal["facenet"]
    trained_on: Literal["vggface2", "casia-webface"] = "vggface2"
    crop: bool = Field(True, description="cut out pSp's face box before pooling to 160 px")

    @property
    def published(self) -> Published:
        return CATALOGUE[f"facenet-{self.trained_on}"]


class DlibWeights(UserWeights):
    """dlib's face recognition net (:mod:`v2f.nn.dlib_face`)."""

    net: Literal["dlib"]
    crop: bool = Field(
        True,
        description="cut out about what dlib would, before pooling to 150 px: for FFHQ-aligned pictures",
    )

    @property
    def published(self) -> Published:
        return CATALOGUE["dlib-face"]


class LPIPSWeights(UserWeights):
    """LPIPS (Zhang et al. 2018): the user provides the backbone, the package lpips the linear weights."""

    net: Literal["lpips"]
    backbone: Literal["alex", "vgg", "squeeze"] = "alex"

    @property
    def published(self) -> Published:
        return CATALOGUE[f"lpips-{self.backbone}"]


class PSPEncoderWeights(UserWeights):
    """pSp's encoder (Richardson et al. 2021), run on the reference in every step."""

    net: Literal["psp"]

    @property
    def published(self) -> Published:
        return CATALOGUE["psp-ffhq-encode"]


class ECAPAWeights(UserWeights, ECAPA.Config):
    """SpeechBrain's ECAPA-TDNN, a voice encoder (:mod:`v2f.encoders.ecapa`)."""

    net: Literal["ecapa"]

    @property
    def published(self) -> Published:
        return CATALOGUE["ecapa-voxceleb"]


class TransformerWeights(UserWeights):
    """A speech transformer as ``transformers`` writes it: ``pytorch_model.bin`` or ``model.safetensors``."""

    net: Kind
    architecture: Architecture | None = Field(
        None, description="null: the config.json beside the file, else the published base net"
    )


class UniSpeechSATWeights(TransformerWeights):
    """UniSpeech-SAT (Chen et al. 2022, arXiv 2110.05752)."""

    net: Literal["unispeech_sat"]

    @property
    def published(self) -> Published:
        return CATALOGUE["unispeech-sat-base"]


class WavLMWeights(TransformerWeights):
    """WavLM (Chen et al. 2022, arXiv 2110.13900)."""

    net: Literal["wavlm"]
    architecture: WavLMArchitecture | None = None

    @property
    def published(self) -> Published:
        return CATALOGUE["wavlm-base"]


class GE2EWeights(UserWeights):
    """The speaker encoder of the package ``resemblyzer`` (GE2E: Wan et al. 2018, arXiv 1710.10467)."""

    net: Literal["ge2e"]

    @property
    def published(self) -> Published:
        return CATALOGUE["ge2e-resemblyzer"]


class WenWeights(UserWeights, VoiceEmbedding.Config):
    """The speaker embedding of Wen et al., a voice encoder (:mod:`v2f.encoders.wen`)."""

    net: Literal["wen"]

    @property
    def published(self) -> Published:
        return CATALOGUE["wen-voice-embedding"]


class WenGeneratorWeights(UserWeights):
    """The generator of Wen et al., of 64 px, that belongs to their speaker embedding."""

    net: Literal["wen_generator"]

    @property
    def published(self) -> Published:
        return CATALOGUE["wen-generator"]


class ResNet50Weights(UserWeights):
    """ResNet-50 as torchvision has it (He et al. 2016, arXiv 1512.03385), a backbone of picture classifiers."""

    net: Literal["torchvision_resnet50"]

    @property
    def published(self) -> Published:
        return CATALOGUE["resnet50"]


class Precomputed(Config):
    """Values stored in the shards, by `v2f shards precompute` or, for codes, by ``pairs.psp.codes`` while packing."""

    net: Literal["precomputed"]


@dataclass(frozen=True)
class Requirements:
    """The weights from outside the package that a configuration names, by role."""

    folder: str = "weights"
    """Folder or mirror that is searched for the files by name."""
    user_weights: Mapping[str, UserWeights] = field(default_factory=dict)
    run_modules: Mapping[str, RunModule] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.user_weights or self.run_modules)


class JudgeConfig(Config):
    """The frozen nets that look at pictures.

    ``identity`` and ``perceptual`` are the *judge*: losses and meters use them, so a system learns to please them.
    The *referee* is a second identity net that only ``v2f eval`` loads (:mod:`v2f.evaluation.referee`).
    """

    path: MayChange[Place] = Field(
        "weights", description="folder or s3:// mirror that is searched for the files by name"
    )
    identity: Annotated[
        StandInWeights | IRSE50Weights | FaceNetWeights | DlibWeights | RunModule, Field(discriminator="net")
    ] = StandInWeights()
    perceptual: Annotated[StandInWeights | LPIPSWeights | RunModule, Field(discriminator="net")] = StandInWeights()
    referee: MayChange[
        Annotated[StandInWeights | IRSE50Weights | FaceNetWeights | DlibWeights, Field(discriminator="net")] | None
    ] = Field(
        None,
        description="identity net that no loss sees and `v2f eval` reports first; null: the stand-in beside a "
        "stand-in, facenet beside ir_se50, ir_se50 beside facenet and dlib",
    )

    @model_validator(mode="after")
    def _referee_differs_from_judge(self) -> "JudgeConfig":
        if isinstance(self.referee, UserWeights) and self.referee.net == self.identity.net:
            other = "facenet" if self.referee.net == "ir_se50" else "ir_se50"
            raise ValueError(
                f"frozen.referee is {self.referee.net}, which is also frozen.identity, the net that the losses use: "
                f"set frozen.referee to {other} or null"
            )
        return self

    @property
    def effective_referee(self) -> StandInWeights | IRSE50Weights | FaceNetWeights | DlibWeights:
        """``referee`` if it is set, else an identity net of another kind than ``identity``."""
        if self.referee is not None:
            return self.referee
        if isinstance(self.identity, StandInWeights):
            return StandInWeights()
        return (
            FaceNetWeights(net="facenet")
            if self.identity.net == "ir_se50"
            else IRSE50Weights(net="ir_se50", channels="bgr")
        )

    def user_weights(self, with_referee: bool = False) -> dict[str, UserWeights]:
        """Role -> weights that the user provides, for training; ``with_referee``: for evaluation as well."""
        roles = self.roles() | ({"referee": self.effective_referee} if with_referee else {})
        return {role: net for role, net in roles.items() if isinstance(net, UserWeights)}

    def run_modules(self) -> dict[str, RunModule]:
        """Role -> the module of another run that plays it in training."""
        return {role: net for role, net in self.roles().items() if isinstance(net, RunModule)}

    def requirements(self, with_referee: bool = False) -> Requirements:
        """All weights from outside; arguments as for :meth:`user_weights`."""
        return Requirements(self.path, self.user_weights(with_referee), self.run_modules())

    def roles(self) -> dict[str, Any]:
        """Role -> its weights, for training."""
        return {"identity": self.identity, "perceptual": self.perceptual}


class FrozenConfig(JudgeConfig):
    """The frozen nets of a system built around a generator."""

    generator: Annotated[
        StandInWeights | StyleGAN2Weights | PSPDecoderWeights | RunModule, Field(discriminator="net")
    ] = StandInWeights()
    codes: (
        Annotated[StandInWeights | PSPEncoderWeights | Precomputed | RunModule, Field(discriminator="net")] | None
    ) = Field(StandInWeights(), description="source of the reference's w+; null: none")
    embeddings: Precomputed | None = Field(
        None, description="source of the reference's identity embedding in a step; null: the net identity"
    )

    def roles(self) -> dict[str, Any]:
        return {"generator": self.generator, **super().roles(), "codes": self.codes}
