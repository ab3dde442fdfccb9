"""dlib's face recognition net: an identity net whose published weights anyone may use. Written from its description.

    picture [B,3,150,150] -> convolution of 7 px, max pooling [B,32,35,35] -> 14 residual blocks [B,256,2,2] -> mean
                          -> linear layer [B,128]

It is a ResNet (He et al. 2016, arXiv 1512.03385) with 29 convolutions and half the channels of ResNet-34, described in
dlib's public example dnn_face_recognition_ex.cpp. A residual block has no learned shortcut: where it halves the sides,
the shortcut is a mean of 2 x 2 pixels, and the smaller of shortcut and block, in channels or in pixels, is filled up
with zeros. Of each batch norm a scale and an offset are left, so that training and evaluation mode are the same.

Letters: B batch, I/O channels, H/W pixels.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 150  # pixels of the picture that the net takes
WIDTH = 128  # of the embedding
STAGES = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))  # channels and blocks; all but the first halve the sides
MEAN = (122.782, 117.001, 104.298)  # red, green, blue of the faces that it was trained on, of 255

CHIP = (64.83, 246.21, 38.50, 219.88)
"""The part of an FFHQ-aligned picture of 256 px that dlib would cut out: rows from, to, columns from, to.

dlib turns, moves and scales a photo so that five landmarks fit those of its mean face (get_face_chip_details), whose
unit square it widens by a quarter on each side: to [-0.25, 1.25] squared. Its mean face of 68 landmarks has the eyes at
(0.22549, 0.21599) and (0.75476, 0.21599) and the corners of the mouth at (0.25415, 0.78023) and (0.72610, 0.78023). So
FFHQ's square around that face (Karras et al. 2019, appendix A) has its center at (0.49013, 0.27241), a tenth of the way
from the eyes to the mouth, and the side 4 * 0.52927 = 2.11708, four times the distance of the eyes. In it the chip
begins at (-0.25 - 0.49013) / 2.11708 + 0.5 = 0.15040 and (-0.25 - 0.27241) / 2.11708 + 0.5 = 0.25324, and its side is
1.5 / 2.11708 = 0.70852; times 256 px. The box is exact for the mean face and an approximation for every other one,
because dlib fits the landmarks of each photo.
"""


def blocks() -> Iterator[tuple[int, int, int]]:
    """Channels in, channels out and stride of each residual block."""
    inputs = STAGES[0][0]
    for stage, (channels, count) in enumerate(STAGES):
        yield inputs, channels, 2 if stage else 1
        yield from [(channels, channels, 1)] * (count - 1)
        inputs = channels


class Convolution(nn.Module):
    """A convolution, then a scale and an offset for each channel: [B,I,H,W] -> [B,O,h,w].

    With a stride of 1 the sides stay; a larger one has no padding.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2 if stride == 1 else 0)
        self.scale = nn.Parameter(torch.ones(outputs))
        self.offset = nn.Parameter(torch.zeros(outputs))

    def forward(self, x_BIHW: Tensor) -> Tensor:
        x_BOHW: Tensor = self.conv(x_BIHW)
        return x_BOHW * self.scale[:, None, None] + self.offset[:, None, None]


class Block(nn.Module):
    """Two convolutions beside a shortcut without parameters: [B,I,H,W] -> [B,O,H,W], or about half the sides."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = Convolution(inputs, outputs, 3, stride)
        self.second = Convolution(outputs, outputs, 3, 1)
        self.stride = stride

    def forward(self, x_BIHW: Tensor) -> Tensor:
        y_BOHW: Tensor = self.second(F.relu(self.first(x_BIHW)))
        if self.stride > 1:  # sides of an even length: the shortcut has a row and a column more
            x_BIHW = F.avg_pool2d(x_BIHW, self.stride)
            more = (x_BIHW.shape[3] - y_BOHW.shape[3], x_BIHW.shape[2] - y_BOHW.shape[2])
            y_BOHW = F.pad(y_BOHW, (0, more[0], 0, more[1]))
        return F.relu(y_BOHW + F.pad(x_BIHW, (0, 0, 0, 0, 0, y_BOHW.shape[1] - x_BIHW.shape[1])))


class DlibFace(nn.Module):
    """A face [B,3,150,150], RGB in [-1,1] -> embedding [B,128], 5,614,592 parameters.

    The embedding is as dlib computes it, not of length one. dlib's threshold for the same person, 0.6, is a Euclidean
    distance of such vectors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.input = Convolution(3, STAGES[0][0], 7, 2)
        self.blocks = nn.Sequential(*(Block(*block) for block in blocks()))
        self.linear = nn.Linear(STAGES[-1][0], WIDTH, bias=False)
        self.register_buffer("center_311", (127.5 - torch.tensor(MEAN))[:, None, None] / 256, persistent=False)
        self.center_311: Tensor

    def forward(self, img_B3HW: Tensor) -> Tensor:
        x_B3HW = img_B3HW * (127.5 / 256) + self.center_311  # (pixel - mean) / 256
        x_BCHW = F.max_pool2d(F.relu(self.input(x_B3HW)), 3, 2)
        embedding_BE: Tensor = self.linear(self.blocks(x_BCHW).mean(dim=(2, 3)))
        return embedding_BE
