"""A file of RANDOM weights in the format of dlib's face recognition net, for tests and for measurements.

dlib itself reads such a file: so the net can be compared with dlib's for any weights, not only for the published ones.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from v2f.keyed import keyed_rng

Array = npt.NDArray[np.float32]
NAME = "dlib_face_recognition_resnet_model_v1.dat"
_STREAM = 0xD11B
_BLOCKS = 3 * [(32, 32, 1)] + [(32, 64, 2)] + 3 * [(64, 64, 1)] + [(64, 128, 2)] + 2 * [(128, 128, 1)]
_BLOCKS += [(128, 256, 2)] + 2 * [(256, 256, 1)] + [(256, 256, 2)]


def integer(number: int) -> bytes:
    """Sign and count of bytes, then the bytes."""
    size = max(1, (abs(number).bit_length() + 7) // 8)
    return bytes([(0x80 if number < 0 else 0) | size]) + abs(number).to_bytes(size, "little")


def integers(*numbers: int) -> bytes:
    return b"".join(map(integer, numbers))


def text(name: str) -> bytes:
    return integer(len(name)) + name.encode()


def number(value: float, digits: int) -> bytes:
    """m * 2^e, a number of so many binary digits; empty bytes at the end of m, up to eight, are left out."""
    fraction, exponent = math.frexp(value)
    mantissa, exponent = round(fraction * 2**digits), exponent - digits
    for _ in range(8):
        if mantissa % 256 == 0:
            mantissa, exponent = mantissa // 256, exponent + 8
    return integers(mantissa, exponent)


def numbers(*values: float, digits: int = 24) -> bytes:
    return b"".join(number(value, digits) for value in values)


def tensor(values: Array, *shape: int) -> bytes:
    return integers(2, *shape) + values.astype("<f4").tobytes()


EMPTY = integers(2, 0, 0, 0, 0)
MULTIPLIERS = numbers(1, 1, 1, 0, digits=53)


@dataclass
class Writer:
    """Puts layers on top of each other, as dlib's templates nest them."""

    versions: list[int] = field(default_factory=list)
    layers: list[bytes] = field(default_factory=list)

    def add(self, details: bytes, version: int = 2, own: bytes = b"") -> None:
        self.versions.append(version)
        self.layers.append(details + b"110" + 3 * EMPTY + own)

    def mark(self, count: int = 1) -> None:
        self.versions += count * [1]

    def convolution(self, state: dict[str, Array], at: str, kernel: int, stride: int, first: bool = False) -> None:
        weight_OIKK, bias_O = state[f"{at}.conv.weight"], state[f"{at}.conv.bias"]
        count, padding = len(bias_O), kernel // 2 if stride == 1 else 0
        values = np.concatenate([weight_OIKK.ravel(), bias_O])
        settings = integers(count, kernel, kernel, stride, stride, padding, padding)
        divided = integers(1, *weight_OIKK.shape, 1, 1, count, 1, 1)
        details = text("con_4") + tensor(values, len(values), 1, 1, 1) + settings + divided + MULTIPLIERS
        self.add(details, 3 if first else 2, integer(1) if first else b"")
        values = np.concatenate([state[f"{at}.scale"], state[f"{at}.offset"]])
        divided = integers(1, 1, count, 1, 1) * 2 + integer(0)
        self.add(text("affine_") + tensor(values, len(values), 1, 1, 1) + divided)

    def content(self) -> bytes:
        head = integer(1) + text("loss_metric_2") + numbers(0.04, 0.6) + integers(*reversed(self.versions))
        averages = numbers(122.782, 117.001, 104.298)
        return head + text("input_rgb_image_sized") + averages + integers(150, 150) + b"".join(self.layers)


def written(state: dict[str, Array]) -> bytes:
    """The file with these weights."""
    writer = Writer()
    writer.convolution(state, "input", 7, 2, first=True)
    writer.add(text("relu_"))
    writer.add(text("max_pool_2") + integers(3, 3, 2, 2, 0, 0))
    for block, (_, _, stride) in enumerate(_BLOCKS):
        writer.mark()
        writer.convolution(state, f"blocks.{block}.first", 3, stride)
        writer.add(text("relu_"))
        writer.convolution(state, f"blocks.{block}.second", 3, 1)
        if stride == 2:
            writer.mark(2)
            writer.add(text("avg_pool_2") + integers(2, 2, 2, 2, 0, 0))
        writer.add(text("add_prev_"))
        writer.add(text("relu_"))
    writer.add(text("avg_pool_2") + integers(0, 0, 1, 1, 0, 0))
    divided = integers(1, 256, 128, 1, 1, 1, 0, 0, 0, 0, 1)
    weight_IE = state["linear.weight"].T
    writer.add(text("fc_2") + integers(128, 256) + tensor(weight_IE, 256, 128, 1, 1) + divided + MULTIPLIERS)
    return writer.content()


def random_state(seed: int = 0) -> dict[str, Array]:
    """Random weights, the same on every machine, for which the embedding has about the length of a trained net's."""
    rng = keyed_rng(_STREAM, seed)

    def uniform(deviation: float, *shape: int, mean: float = 0.0) -> Array:
        values = rng.integers(-(1 << 15), 1 << 15, shape) * (3**0.5 * deviation / (1 << 15)) + mean
        return np.asarray(values, np.float32)

    state = {}
    convolutions = [("input", 3, 32, 7)]
    for block, (inputs, outputs, _) in enumerate(_BLOCKS):
        convolutions += [(f"blocks.{block}.first", inputs, outputs, 3), (f"blocks.{block}.second", outputs, outputs, 3)]
    for at, inputs, outputs, kernel in convolutions:
        state[f"{at}.conv.weight"] = uniform((inputs * kernel**2) ** -0.5, outputs, inputs, kernel, kernel)
        state[f"{at}.conv.bias"] = uniform(0.1, outputs)
        state[f"{at}.scale"] = uniform(0.2, outputs, mean=0.7)
        state[f"{at}.offset"] = uniform(0.1, outputs)
    state["linear.weight"] = uniform(256**-0.5, 128, 256)
    return state


def random_file(seed: int = 0) -> bytes:
    """``dlib_face_recognition_resnet_model_v1.dat``: 5,614,592 parameters."""
    return written(random_state(seed))
