"""Every voice encoder and every mapping as a small variant with random weights, by its ``net``."""

from typing import Any

ENCODERS: dict[str, dict[str, Any]] = {
    "waveform": {
        "net": "waveform",
        "channels": [8, 12, 16],
        "blocks": [1, 1, 1],
        "strides": [2, 2, 2],
        "stem_stride": 8,
        "out_channels": 16,
        "bn_group": 2,
    },
    "ecapa": {
        "net": "ecapa",
        "random": True,
        "output": "frames",
        "depths": [0, 1, 2],
        "channels": 16,
        "mfa": 24,
        "kernels": [5, 3, 3, 1],
        "dilations": [1, 2, 3, 1],
        "attention": 4,
        "scale": 4,
        "se": 4,
        "outputs": 12,
        "bn_group": 2,
    },
}

MAPPINGS: dict[str, dict[str, Any]] = {
    "vec2style": {"net": "vec2style", "convs": 1, "stride": 2, "width": 8},
    "ecapa_tdnn": {
        "net": "ecapa_tdnn",
        "channels": 8,
        "mfa": 12,
        "kernels": [5, 3, 1],
        "dilations": [1, 2, 1],
        "attention": 4,
        "scale": 4,
        "se": 4,
        "bn_group": 2,
    },
}
