"""The reader of dlib's face recognition net, ``dlib_face_recognition_resnet_model_v1.dat``, in dlib's own format.

    bytes -> versions of all layers, outermost first -> averages of the input -> layers, innermost first -> state_dict

The format, from dlib's headers (serialize.h, float_details.h, dnn/core.h, dnn/layers.h, dnn/tensor.h):

- an integer is a byte with the sign in its highest bit and the count of bytes in its lowest four, then the bytes, the
  lowest first; a text is the integer of its length, and the text; a truth value is the character 0 or 1;
- a number of the configuration is two integers, m and e, of m * 2^e;
- a tensor is a version, four sizes and its float32 numbers as they lie in memory; an alias, which says how a layer's
  tensor is divided, is the same without numbers;
- a layer is a version, the layer below it, then its name, its tensor and its settings, three truth values of its state
  in training, and three tensors, which are empty once training is over.

Every name, version, size and setting is known before it is read and must be equal: the reader cannot read another net,
and what the file says allocates nothing.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from v2f.errors import V2FError
from v2f.nn.dlib_face import MEAN, SIDE, STAGES, WIDTH, blocks

NAME = "dlib_face_recognition_resnet_model_v1.dat"
MOST = 1 << 25
"""Bytes: more than the file has (22,466,066), so that a larger one need not be read."""

_MULTIPLIERS = (1.0, 1.0, 1.0, 0.0)  # of the learning rate and of weight decay, for weights and for offsets
_MARGIN, _THRESHOLD = 0.04, 0.6  # of the loss that it was trained with
_SPECIAL = 32_000  # from this exponent on: an infinity, or not a number
_SHOWN = 40  # characters of a wrong name in a message


def parse(data: bytes, path: str) -> dict[str, Tensor]:
    """The state_dict of :class:`v2f.nn.dlib_face.DlibFace` in the content ``data`` of the file ``path``.

    V2FError, in one line, for anything but the whole net: damaged, cut, longer, or another one.
    """
    stream = _Stream(data, path)
    stream.integers("the version of the loss", 1)
    stream.name("loss_metric_2")
    stream.numbers("the settings of the loss", _MARGIN, _THRESHOLD)
    stream.integers("the versions of the layers", *_versions())
    stream.name("input_rgb_image_sized")
    stream.numbers("the averages of red, green and blue", *MEAN)
    stream.integers("the sides of the picture", SIDE, SIDE)
    state = dict(_convolution(stream, "input", 3, STAGES[0][0], 7, 2))
    stream.plain("relu_")
    stream.plain("max_pool_2", 3, 3, 2, 2, 0, 0)
    for number, (inputs, outputs, stride) in enumerate(blocks()):
        state.update(_convolution(stream, f"blocks.{number}.first", inputs, outputs, 3, stride))
        stream.plain("relu_")
        state.update(_convolution(stream, f"blocks.{number}.second", outputs, outputs, 3, 1))
        if stride > 1:
            stream.plain("avg_pool_2", 2, 2, 2, 2, 0, 0)
        stream.plain("add_prev_")
        stream.plain("relu_")
    stream.plain("avg_pool_2", 0, 0, 1, 1, 0, 0)
    state["linear.weight"] = _linear(stream)
    stream.end()
    return state


def _versions() -> Iterator[int]:
    """The version of each layer, the outermost first: of a layer 2, of a mark that a shortcut needs 1, and of the
    layer on the input 3."""
    yield from (2, 2)  # linear, mean
    for _, _, stride in reversed(list(blocks())):
        if stride > 1:
            yield from (2, 2, 2, 1, 1)  # relu, sum, mean, and two marks
        else:
            yield from (2, 2)  # relu, sum
        yield from (2, 2, 2, 2, 2, 1)  # offset, convolution, relu, offset, convolution, and a mark
    yield from (2, 2, 2, 3)  # max, relu, offset, convolution


def _convolution(
    stream: "_Stream", at: str, inputs: int, outputs: int, kernel: int, stride: int
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a :class:`v2f.nn.dlib_face.Convolution`, which are two layers of dlib."""
    padding = kernel // 2 if stride == 1 else 0
    shape, count = (outputs, inputs, kernel, kernel), outputs * inputs * kernel * kernel
    stream.name("con_4")
    numbers = stream.tensor(count + outputs, 1, 1, 1)
    stream.integers("the settings of a convolution", outputs, kernel, kernel, stride, stride, padding, padding)
    stream.integers("how a convolution is divided", 1, *shape, 1, 1, outputs, 1, 1)
    stream.numbers("the multipliers of a convolution", *_MULTIPLIERS)
    stream.layer_end()
    if at == "input":
        stream.integers("the pictures of a sample", 1)
    yield f"{at}.conv.weight", numbers[:count].view(shape)
    yield f"{at}.conv.bias", numbers[count:]
    stream.name("affine_")
    numbers = stream.tensor(2 * outputs, 1, 1, 1)
    stream.integers("how scale and offset are divided", *(1, 1, outputs, 1, 1) * 2, 0)
    stream.layer_end()
    yield f"{at}.scale", numbers[:outputs]
    yield f"{at}.offset", numbers[outputs:]


def _linear(stream: "_Stream") -> Tensor:
    inputs = STAGES[-1][0]
    stream.name("fc_2")
    stream.integers("the settings of the linear layer", WIDTH, inputs)
    weight_IE = stream.tensor(inputs, WIDTH, 1, 1)
    stream.integers("how the linear layer is divided", 1, inputs, WIDTH, 1, 1, 1, 0, 0, 0, 0, 1)
    stream.numbers("the multipliers of the linear layer", *_MULTIPLIERS)
    stream.layer_end()
    return weight_IE.view(inputs, WIDTH).T.contiguous()


class _Stream:
    """The bytes of the file, read once from front to back, each value compared with the one that must be there."""

    def __init__(self, data: bytes, path: str) -> None:
        self.data, self.path, self.at = data, path, 0

    def integers(self, what: str, *expected: int) -> None:
        for number in expected:
            start, found = self.at, self._integer()
            if found != number:
                raise self._wrong(start, f"{what}: expected {number}, found {found}")

    def numbers(self, what: str, *expected: float) -> None:
        for number in expected:
            start, (mantissa, exponent) = self.at, (self._integer(), self._integer())
            try:
                found = math.ldexp(mantissa, exponent) if exponent < _SPECIAL else math.nan
            except OverflowError:
                found = math.nan
            if found != np.float32(number):
                raise self._wrong(start, f"{what}: expected {number}, found {mantissa} * 2^{exponent}")

    def name(self, expected: str) -> None:
        start, length = self.at, self._integer()
        found = self._take(len(expected) if length == len(expected) else max(0, min(length, self._left(), _SHOWN)))
        if length != len(expected) or found != expected.encode():
            raise self._wrong(start, f"expected the layer {expected!r}, found {found.decode('latin-1')!r}")

    def tensor(self, *shape: int) -> Tensor:
        """The float32 numbers [N] of a tensor that must have this shape."""
        self.integers("the version of a tensor", 2)
        self.integers("the shape of a tensor", *shape)
        numbers = np.frombuffer(self._take(4 * math.prod(shape)), "<f4")
        return torch.from_numpy(numbers.astype(np.float32))

    def plain(self, name: str, *settings: int) -> None:
        """A layer without a tensor."""
        self.name(name)
        self.integers(f"the settings of {name}", *settings)
        self.layer_end()

    def layer_end(self) -> None:
        start = self.at
        if not set(self._take(3)) <= set(b"01"):
            raise self._wrong(start, "the state of a layer is not three times 0 or 1")
        for _ in range(3):
            self.integers("what is left of training", 2, 0, 0, 0, 0)

    def end(self) -> None:
        if self._left():
            raise self._wrong(self.at, f"{self._left()} bytes too many")

    def _left(self) -> int:
        return len(self.data) - self.at

    def _take(self, count: int) -> bytes:
        if count > self._left():
            raise self._wrong(len(self.data), "the file ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def _integer(self) -> int:
        start, head = self.at, self._take(1)[0]
        count = head & 0x0F
        if head & 0x70 or not 1 <= count <= 8:
            raise self._wrong(start, f"no integer begins with {head:#04x}")
        value = int.from_bytes(self._take(count), "little")
        if head & 0x80 and value == 0:
            raise self._wrong(start, "a zero has a sign")
        return -value if head & 0x80 else value

    def _wrong(self, at: int, what: str) -> V2FError:
        return V2FError(
            f"{self.path}: not dlib's face recognition net ({NAME}): byte {at}: {what}; name that file or copy it again"
        )
