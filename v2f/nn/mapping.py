"""The mapping networks of the voice-styled-face system: the voice encoder's three maps -> a style for each layer.

Letters: B batch, C channels, T frames, L styles, D style width.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from v2f.config import Config
from v2f.errors import V2FError
from v2f.nn.stylegan2 import EqualLinear
from v2f.nn.waveform import Conv

SLOPE = 0.01  # of the leaky ReLU, as in pSp's map2style (Richardson et al. 2021, arXiv 2008.00951, section 3)


class Vec2Style(nn.Module):
    """One style from one map: [B,C,T] -> ``convs`` times (Conv1d, leaky ReLU) -> the maximum over time -> [B,D].

    The last layer is StyleGAN's equalised linear layer. Two convolutions of 512 channels and 3 taps and a style
    width of 512 have 1,836,544 parameters.
    """

    def __init__(
        self, channels: int, style_dim: int, convs: int, kernel: int, stride: int, init_gain: float = 1.0
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Conv(channels, channels, kernel, stride, bias=True) for _ in range(convs))
        self.linear = EqualLinear(channels, style_dim)
        with torch.no_grad():
            self.linear.weight.mul_(init_gain)

    def forward(self, x_BCT: Tensor) -> Tensor:
        x = x_BCT[:, :, None]
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
        # Equal results; ONNX has no adaptive pooling, and amax has another gradient for ties.
        loudest_BC = x.amax((2, 3)) if torch.compiler.is_exporting() else F.adaptive_max_pool2d(x, 1).flatten(1)
        w_BD: Tensor = self.linear(loudest_BC)
        return w_BD


class StyleMapping(nn.Module):
    """Three maps (shallow, middle, deep), each [B,C,T_i] -> styles w [B,L,D], a :class:`Vec2Style` for each.

    Styles 0 to 2 (coarse) read the deep map, 3 to 6 the middle one, 7 and on (fine) the shallow one, as in pSp.
    18 full-size styles have 33,057,792 parameters. The result is an offset from the generator's mean style.

    The styles run one after another: grouped convolutions were not faster, on one core or two.
    """

    class Config(Config):
        """The defaults are the thesis's final mapping; ``stride`` is reconstructed."""

        convs: Annotated[int, Field(ge=0)] = 2
        kernel: Annotated[int, Field(ge=1)] = 3
        stride: Annotated[int, Field(ge=1)] = 2
        coarse: Annotated[int, Field(ge=0)] = 3  # styles from the deep map
        middle: Annotated[int, Field(ge=0)] = 4  # styles from the middle map; the others read the shallow one
        init_gain: Annotated[float, Field(gt=0)] = (
            1.0  # factor on the last layers' initial weights; if small, all faces start as the mean face
        )

    def __init__(self, config: "StyleMapping.Config", channels: int, n_styles: int, style_dim: int) -> None:
        super().__init__()
        if config.kernel % 2 == 0:
            raise V2FError(f"mapping: kernel {config.kernel} is even; set an odd one, which keeps the length")
        self.config = config
        self.styles = nn.ModuleList(
            Vec2Style(channels, style_dim, config.convs, config.kernel, config.stride, config.init_gain)
            for _ in range(n_styles)
        )

    def forward(self, maps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        shallow, middle, deep = maps
        first_middle = self.config.coarse
        first_fine = first_middle + self.config.middle
        w_BD = [
            style(deep if i < first_middle else middle if i < first_fine else shallow)
            for i, style in enumerate(self.styles)
        ]
        return torch.stack(w_BD, dim=1)
