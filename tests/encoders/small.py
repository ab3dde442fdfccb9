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
    "ge2e": {"net": "ge2e", "random": True, "output": "frames", "width": 8},
}

MAPPINGS: dict[str, dict[str, Any]] = {
    "vec2style": {"net": "vec2style", "convs": 1, "stride": 2, "width": 8},
}
