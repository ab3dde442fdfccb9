"""The frozen networks that users bring, as the losses and the evaluation want them.

Each takes pictures [B,3,H,W] of any size, red, green, blue, in [-1,1], and lets gradients through to them. Where no
weights are named, the stand-ins of :mod:`v2f.nn.standin_nets` answer to the same calls.

Letters: B batch, C channels, H/W pixels.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import lpips
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from v2f.errors import V2FError
from v2f.nn import face_box, perceptual_distance, widened
from v2f.nn.strict import misfit

Backbone = Literal["alex", "vgg", "squeeze"]
CLASSIFIERS: dict[Backbone, Callable[[], nn.Module]] = {
    "alex": torchvision.models.alexnet,
    "vgg": torchvision.models.vgg16,
    "squeeze": torchvision.models.squeezenet1_1,
}


class FaceIdentity(nn.Module):
    """A face identity net behind the preparation that its weights were trained with: [B,3,H,W] -> [B,E], length one.

    ``crop`` cuts to pSp's face box; then the picture is average-pooled to ``size`` px, its channels are turned to
    ``channels``, and it is multiplied by ``scale``. IR-SE50 takes 112 px and a scale of 1 (pSp's identity loss crops
    and gives it "rgb", though it was trained on "bgr"); facenet takes 160 px and, for (x - 127.5) / 128 of numbers
    up to 255, a scale of 127.5 / 128. The embedding is in float32. ``taps``: the parts of ``net`` whose outputs are the
    maps of :meth:`look`.
    """

    def __init__(
        self,
        net: nn.Module,
        size: int,
        crop: bool,
        channels: Literal["rgb", "bgr"],
        scale: float = 1.0,
        taps: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.net = net
        self.size = size
        self.crop = crop
        self.channels = channels
        self.scale = scale
        self.taps = tuple(taps)

    def look(self, img_B3HW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The embedding, and the maps [B,C,h,w] that led to it, shallow ones first."""
        maps: list[Tensor] = []
        hooks = [
            self.net.get_submodule(tap).register_forward_hook(lambda _, __, output: maps.append(output))
            for tap in self.taps
        ]
        try:
            return self(img_B3HW), maps
        finally:
            for hook in hooks:
                hook.remove()

    def forward(self, img_B3HW: Tensor) -> Tensor:
        if self.crop:
            img_B3HW = face_box(img_B3HW)
        img_B3HW = F.adaptive_avg_pool2d(img_B3HW, self.size)
        if self.channels == "bgr":
            img_B3HW = img_B3HW.flip(1)
        return F.normalize(widened(self.net(_channels_last(img_B3HW * self.scale))), dim=1)


class LPIPS(nn.Module):
    """LPIPS 0.1 (Zhang et al. 2018, arXiv 1801.03924): maps of a classifier of photos, weighted as people see.

    The weights of the channels come with the package ``lpips``; the classifier's are brought by
    :meth:`load_backbone`, before which nothing can be computed. :meth:`forward` gives the maps, [B,C,H,W] each.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")  # torchvision's, about an argument that the package passes
            net = lpips.LPIPS(net=backbone, pretrained=False, pnet_rand=True, verbose=False)
        self.scaling = lpips.ScalingLayer()
        self.features = net.net
        path = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{backbone}.pth"
        learned = torch.load(path, map_location="cpu", weights_only=True)
        for layer in range(net.L):
            self.register_buffer(f"weight_{layer}", learned[f"lin{layer}.model.1.weight"].flatten())
        self.layers = net.L

    def load_backbone(self, state: Mapping[str, Tensor], where: str) -> None:
        """Takes copies of torchvision's tensors; ``where`` (a file) begins the V2FError if they are others.

        ``features.*`` are needed; ``classifier.*`` may be there and are not kept, but have to fit if they are.
        """
        with torch.device("meta"):
            wanted = CLASSIFIERS[self.backbone]().state_dict()
        if not any(name.startswith("classifier.") for name in state):
            wanted = {name: tensor for name, tensor in wanted.items() if name.startswith("features.")}
        wrong = misfit(wanted, state)
        if wrong is not None:
            network = CLASSIFIERS[self.backbone].__name__
            raise V2FError(f"{where}: these are not the weights of torchvision's {network}: {wrong}")
        # the package cuts the classifier's layers into slices, and leaves them their numbers: sliceS.N.weight
        own = {name: state[f"features.{name.partition('.')[2]}"].clone() for name in self.features.state_dict()}
        self.features.load_state_dict(own, assign=True)

    def forward(self, img_B3HW: Tensor) -> list[Tensor]:
        return list(self.features(self.scaling(_channels_last(img_B3HW))))

    def distance(self, output_B3HW: Tensor, reference_B3HW: Tensor) -> Tensor:
        """LPIPS of two pictures: [B]; a gradient flows to the output only."""
        weights = [self.get_buffer(f"weight_{layer}") for layer in range(self.layers)]
        return perceptual_distance(self, output_B3HW, reference_B3HW, weights)


def _channels_last(x_BCHW: Tensor) -> Tensor:
    """In the layout in which convolutions are fastest, on a CPU by a tenth to a half."""
    return x_BCHW.contiguous(memory_format=torch.channels_last)
