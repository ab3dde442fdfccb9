"""The voice encoder of the voice-styled-face system: a 1-D ResNet on the raw wave with maps at three depths, as in pSp.

    wave [B,T] -> stem -> stages of residual blocks -> three maps [B,C,T_i], shallow (long), middle, deep (short)

*Voice Styled Face* (a master's thesis, 2022) names the parts, and its two parameter counts allow only one architecture.
Table 5.1 gives 37,511,616 parameters for the 32 blocks. The whole system has 101,138,892, which is 199,424 more than
the table's sum: the stem (1,792) and the laterals (197,632). ``bench/encoder_split.py`` searches all architectures. The
defaults of :class:`WaveformEncoder.Config` are this encoder, with 37,711,040 parameters; its strides are reconstructed.
A forward pass over 6 s then takes 182 GFLOP (a multiply-add counts as 2; ``torch.utils.flop_counter``):

- stem: convolution of 25 taps without bias, batch norm, PReLU with a slope for each channel;
- stages of 11, 9, 6, 6 blocks with 64, 128, 256, 512 channels, 9 taps, convolutions without bias, the blocks of
  :mod:`v2f.nn.resnet`;
- maps as in :mod:`v2f.nn.resnet`: the deepest already has the output width, laterals bring 256 and 128 channels to 512.

Letters: B batch, T samples or frames, C channels.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from torch import Tensor

from v2f.nn.resnet import Activation, ResNetConfig, ResNetEncoder, channels_last


class WaveformEncoder(ResNetEncoder):
    """wave [B,T] in [-1,1] -> three maps (shallow, middle, deep), each [B,C,T_i].

    With the defaults and 6 s at 16 kHz: T = 96,000, T_i = 6,000 / 3,000 / 1,500 and C = 512.
    """

    class Config(ResNetConfig):
        """The defaults are the thesis's final encoder; ``stem_stride`` and ``strides`` are reconstructed."""

        net: Literal["waveform"] = "waveform"
        strides: list[Annotated[int, Field(ge=1)]] = [2, 2, 2, 2]
        stem_kernel: int = 25
        stem_stride: Annotated[int, Field(ge=1)] = 4

    def __init__(self, config: "WaveformEncoder.Config") -> None:
        super().__init__(config, inputs=1)
        self.config = config

    def signal(self, wav_BT: Tensor) -> Tensor:
        return channels_last(wav_BT[:, None, None])


class Split(NamedTuple):
    """The part of an encoder's architecture that the thesis does not state, derived from its parameter counts."""

    blocks: tuple[int, ...]
    kernel: int
    stem: Activation

    def __str__(self) -> str:
        return f"blocks {'/'.join(map(str, self.blocks))}, kernel {self.kernel} and {self.stem} in the stem"


def other_split(config: WaveformEncoder.Config, shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Why an encoder with these tensor shapes, by name, does not fit ``config``, and what to do; None if both have the
    same split, or if the tensors are not those of a waveform encoder."""
    weight, first = shapes.get("stages.0.0.body.1.weight"), shapes.get("stem.0.weight")
    if not weight or not first or (len(first), first[1]) != (3, 1):
        return None
    places = {each.groups() for each in map(re.compile(r"stages\.(\d+)\.(\d+)\.").match, shapes) if each}
    blocks = Counter(int(stage) for stage, _ in places)
    stem: Activation = "prelu" if "stem.2.weight" in shapes else "leaky_relu"
    found = Split(tuple(blocks[stage] for stage in sorted(blocks)), weight[-1], stem)
    expected = Split(tuple(config.blocks), config.kernel, config.stem_activation)
    if found == expected:
        return None
    corrected = found[1:] == (7, "leaky_relu") and expected[1:] == (9, "prelu")
    why = " (the split of launch/recipes/thesis-*.yaml was corrected from the one to the other)" if corrected else ""
    return (
        f"its encoder has {found}, this configuration has {expected}{why}; use the config.yaml of its run (also in a "
        "checkpoint's record: state.config), or start a new run under another name"
    )
