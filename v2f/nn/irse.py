"""IR-SE50: a face identity net whose body pSp's encoder shares. Written from the papers.

    picture [B,3,H,W] -> input layer [B,64,H,W] -> 24 units [B,512,H/16,W/16] -> output layer -> embedding [B,512]

The improved residual unit and the head are from ArcFace (Deng et al. 2019, arXiv 1801.07698, section 3.1), squeeze and
excitation from Hu et al. 2018 (arXiv 1709.01507, section 3). A ``state_dict`` has the keys and shapes of the widely
used ``model_ir_se50.pth``, which therefore loads strictly. The nets are meant for evaluation mode.

Letters: B batch, C channels, H/W pixels.
"""

from collections.abc import Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2f.nn import at_least_float32
from v2f.nn.resnet import PReLU

STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))  # channels and units; the first unit of each halves the sides
REDUCTION = 16  # of the channels inside squeeze and excitation
SIDE = 112  # pixels of the picture that the identity net takes


class SqueezeExcite(nn.Module):
    """Scales each channel by a number in (0,1) computed from the means of all channels: [B,C,H,W] -> [B,C,H,W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // REDUCTION, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // REDUCTION, channels, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        gate_BC11 = self.fc2(F.relu(self.fc1(x_BCHW.mean(dim=(2, 3), keepdim=True))))
        return x_BCHW * torch.sigmoid(gate_BC11)


class Unit(nn.Module):
    """Residual unit [B,I,H,W] -> [B,O,H/stride,W/stride]; the second convolution has the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module
        if inputs == outputs:
            self.shortcut_layer = nn.MaxPool2d(1, stride)  # keeps every stride-th pixel
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            SqueezeExcite(outputs),
        )

    def forward(self, x_BIHW: Tensor) -> Tensor:
        x_BOHW: Tensor = self.res_layer(x_BIHW) + self.shortcut_layer(x_BIHW)
        return x_BOHW


class IRSE50Trunk(nn.Module):
    """The input layer and the 24 units."""

    def __init__(self) -> None:
        super().__init__()
        width = STAGES[0][0]
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), PReLU(width)
        )
        units = []
        for channels, count in STAGES:
            units += [Unit(width, channels, 2), *(Unit(channels, channels, 1) for _ in range(count - 1))]
            width = channels
        self.body = nn.Sequential(*units)

    def maps(self, img_B3HW: Tensor, after: Sequence[int]) -> list[Tensor]:
        """The maps after the units with the numbers ``after``, in ascending order; later units are not run."""
        x = self.input_layer(img_B3HW.contiguous(memory_format=torch.channels_last))
        found = []
        for number, unit in enumerate(islice(self.body, max(after) + 1)):
            x = unit(x)
            if number in after:
                found.append(x)
        return found


class IRSE50(IRSE50Trunk):
    """The identity of a face: picture [B,3,112,112] in [-1,1] -> embedding [B,512] of length one, in float32.

    43,797,696 parameters, 397 keys. The published weights were trained on aligned faces in BGR channel order.
    """

    def __init__(self) -> None:
        super().__init__()
        width = STAGES[-1][0]
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Dropout(0.6),
            nn.Flatten(),
            nn.Linear(width * (SIDE // 2 ** len(STAGES)) ** 2, 512),
            nn.BatchNorm1d(512),
        )

    def forward(self, img_B3HW: Tensor) -> Tensor:
        x_BCHW = self.maps(img_B3HW, [len(self.body) - 1])[0]
        return F.normalize(at_least_float32(self.output_layer(x_BCHW)), dim=1)
