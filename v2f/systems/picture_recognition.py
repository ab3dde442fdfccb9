"""Picture recognition: the labels of a picture, several at once, and on request the known factors of a synthetic one.

    picture [B,C,H,H] -> backbone -> features [B,F] -> heads (:mod:`v2f.recognition`) -> scores [B,K], factors [B,G]

It judges systems that make pictures from labels (``v2f eval RUN --classifier RUN``): do their pictures show the label
that was asked for, and do restyled pictures keep what the label does not say? It also labels the frames of videos
(:class:`v2f.roles.FrameLabeler`), as in *Sound for pictures* (2024): there a ResNet-50 with published weights, of which
only the head is trained (``backbone.net: torchvision_resnet50``, ``trains: heads``).

Shape letters: B batch, C channels, H side, F features, K classes of a label, G factors.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from v2f import weights
from v2f.config import MayChange, Place
from v2f.data.transforms import ClassNumber, Factors, Photo
from v2f.errors import V2FError
from v2f.nn import freeze, picture_resnet
from v2f.nn.picture_resnet import Backbone, ResNet50, SmallResNet
from v2f.recognition import Recognition, RecognitionConfig
from v2f.roles import PictureReader, Reading
from v2f.system import Batch, Kind, Picture, Transform, to_picture
from v2f.weights import Requirements, ResNet50Weights


class PublishedResNet50(ResNet50Weights):
    """ResNet-50 with published weights, whose batch norms keep the statistics that they came with."""

    random: bool = Field(False, description="random weights instead of a file: for tests")

    def source(self) -> ResNet50Weights:
        """The weights alone, as :func:`v2f.weights.read` takes them."""
        return ResNet50Weights(net=self.net, file=self.file, sha256=self.sha256)


class PictureRecognition(Recognition, PictureReader):
    """The whole system: one phase, which trains the backbone and the heads, or the heads alone."""

    protocol = "labels_of_pictures"

    class Config(RecognitionConfig):
        name: Literal["picture_recognition"]
        image_size: int = Field(gt=0, description="side of the pictures in pixels")
        share: float = Field(1.0, gt=0, le=1, description="share of a picture's side, kept around its center")
        channels: Literal[1, 3] = Field(3, description="1: gray")
        factors: Literal["shape", "face", "picture"] | None = Field(
            None, description="known factors of synthetic pictures that it estimates, too"
        )
        backbone: Annotated[SmallResNet | ResNet50 | PublishedResNet50, Field(discriminator="net")] = SmallResNet()
        path: MayChange[Place] = Field("weights", description="where the file of a published backbone is")
        trains: Literal["all", "heads"] = Field(
            "all", description="heads: a published backbone stays as it is, and outside the checkpoint"
        )

        @property
        def trained(self) -> tuple[str, ...]:
            return ("backbone", "heads") if self.trains == "all" else ("heads",)

        def requirements(self, with_referee: bool = False) -> Requirements:
            if not isinstance(self.backbone, PublishedResNet50) or self.backbone.random:
                return Requirements(self.path)
            return Requirements(self.path, {"backbone": self.backbone.source()})

        @model_validator(mode="after")
        def _fits(self) -> "PictureRecognition.Config":
            if isinstance(self.backbone, PublishedResNet50) and self.channels != 3:
                raise ValueError("backbone.net is torchvision_resnet50, which sees RGB: set channels to 3")
            if self.trains == "heads" and not isinstance(self.backbone, PublishedResNet50):
                raise ValueError(
                    "trains is heads, but this backbone has no weights before training: set trains to all, or "
                    "backbone.net to torchvision_resnet50"
                )
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = self._new_backbone()
        self.heads = self.new_heads(self.backbone.features)

    def _new_backbone(self) -> Backbone:
        c = self.config
        if not isinstance(c.backbone, PublishedResNet50):
            return picture_resnet.build(c.backbone, c.channels, c.bn_group)
        net: nn.Module
        if c.backbone.random:
            net = picture_resnet.published()
        else:
            source = c.backbone.source()
            try:
                net, digest = weights.read(source, weights.locate(c.path, source))
            except V2FError as error:
                raise error.at("system.backbone") from error
            self.weights = {"backbone": digest}
        assert isinstance(net, Backbone)
        return freeze(net) if c.trains == "heads" else net

    def transforms(self) -> dict[str, Transform]:
        c = self.config
        reads: dict[str, Transform] = {"image": Photo(c.image_size, c.share, c.channels)}
        reads |= {f"label_{label}": ClassNumber(label, tuple(names)) for label, names in c.labels.items()}
        return reads | ({"factors": Factors(c.factors)} if c.factors else {})

    def asks(self) -> Mapping[str, Kind]:
        c = self.config
        return {"image": Picture(c.image_size, c.channels, c.share)}

    def read(self, img_BCHW: Tensor) -> Reading:
        return self.read_off(self.backbone(img_BCHW))

    def reading(self, batch: Batch) -> Reading:
        return self.read(to_picture(batch["image"], like=next(self.parameters())))
