"""Frozen networks with weights that the user provides, in the form that losses and evaluation use.

Each takes RGB pictures [B,3,H,W] of any size in [-1,1] and passes gradients through to them. If no weights are
configured, the stand-ins of :mod:`v2f.nn.standin_nets` take their place, with the same methods.

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

from v2f.nn import BOX, at_least_float32, face_box, perceptual_distance
from v2f.nn.strict import check, fill

Backbone = Literal["alex", "vgg", "squeeze"]
CLASSIFIERS: dict[Backbone, Callable[[], nn.Module]] = {
    "alex": torchvision.models.alexnet,
    "vgg": torchvision.models.vgg16,
    "squeeze": torchvision.models.squeezenet1_1,
}


class FaceIdentity(nn.Module):
    """A face identity net, with the preprocessing of its training: [B,3,H,W] -> [B,E] of length one.

    With ``crop`` the picture is cut to ``box``, by default pSp's face box; it is then average-pooled to ``size`` px,
    its channels are ordered as ``channels``, and it is multiplied by ``scale``. IR-SE50 takes 112 px and a scale of 1
    (pSp's identity loss crops and feeds it "rgb", though it was trained on "bgr"); facenet takes 160 px and a scale of
    127.5 / 128, which is (x - 127.5) / 128 for numbers up to 255. dlib's net takes 150 px and has a box and averages
    of its own (:mod:`v2f.nn.dlib_face`). The embedding is float32. ``taps``: the submodules of ``net``
    whose outputs are the maps of :meth:`look`.
    """

    def __init__(
        self,
        net: nn.Module,
        size: int,
        crop: bool,
        channels: Literal["rgb", "bgr"],
        scale: float = 1.0,
        taps: Sequence[str] = (),
        box: tuple[float, float, float, float] = BOX,
    ) -> None:
        super().__init__()
        self.net = net
        self.size = size
        self.crop = crop
        self.channels = channels
        self.scale = scale
        self.taps = tuple(taps)
        self.box = box

    def look(self, img_B3HW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The embedding, and the maps [B,C,h,w] of the taps, shallow ones first."""
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
            img_B3HW = face_box(img_B3HW, self.box)
        img_B3HW = F.adaptive_avg_pool2d(img_B3HW, self.size)
        if self.channels == "bgr":
            img_B3HW = img_B3HW.flip(1)
        return F.normalize(at_least_float32(self.net(_channels_last(img_B3HW * self.scale))), dim=1)


class LPIPS(nn.Module):
    """LPIPS 0.1 (Zhang et al. 2018, arXiv 1801.03924): maps of an image classifier with perceptual channel weights.

    The channel weights come with the package ``lpips``; :meth:`load_backbone` must load the classifier's before
    anything is computed. :meth:`forward` gives the maps, [B,C,H,W] each.
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
        """Loads copies of torchvision's tensors; V2FError, which begins with ``where`` (a file), if they do not fit.

        ``features.*`` are required; ``classifier.*`` are optional, checked if present, and not kept.
        """
        with torch.device("meta"):
            wanted = CLASSIFIERS[self.backbone]().state_dict()
        if not any(name.startswith("classifier.") for name in state):
            wanted = {name: tensor for name, tensor in wanted.items() if name.startswith("features.")}
        network = f"torchvision's {CLASSIFIERS[self.backbone].__name__}"
        check(wanted, state, where, network)
        # the package cuts the classifier's layers into slices and keeps their numbers: sliceS.N.weight
        own = {name: state[f"features.{name.partition('.')[2]}"] for name in self.features.state_dict()}
        fill(self.features, own, where, network)

    def forward(self, img_B3HW: Tensor) -> list[Tensor]:
        return list(self.features(self.scaling(_channels_last(img_B3HW))))

    def distance(self, output_B3HW: Tensor, reference_B3HW: Tensor) -> Tensor:
        """LPIPS of two pictures: [B]; a gradient flows to the output only."""
        weights = [self.get_buffer(f"weight_{layer}") for layer in range(self.layers)]
        return perceptual_distance(self, output_B3HW, reference_B3HW, weights)


def _channels_last(x_BCHW: Tensor) -> Tensor:
    """The memory layout with the fastest convolutions, on a CPU by a tenth to a half."""
    return x_BCHW.contiguous(memory_format=torch.channels_last)
