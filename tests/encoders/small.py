"""Every voice encoder and every mapping as a small variant with random weights, by its ``net`` (and what is set)."""

from typing import Any

SPEECH: dict[
    str, Any
] = {  # the architecture of a small speech transformer: a frame sees 165 samples and comes every 160
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8, 8, 8],
    "conv_stride": [5, 8, 4],
    "conv_kernel": [10, 8, 4],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}

ENCODERS: dict[str, dict[str, Any]] = {
    "unispeech_sat": {"net": "unispeech_sat", "random": True, "depths": [0, 1, 3], "architecture": SPEECH},
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
    "wavlm": {"net": "wavlm", "random": True, "depths": [0, 1, 3], "architecture": SPEECH},
    "waveform_vector": {
        "net": "waveform",
        "channels": [4, 8, 12],
        "blocks": [1, 1, 1],
        "strides": [4, 10, 10],  # of at most half a second, one frame is left
        "stem_stride": 20,
        "out_channels": 12,
        "bn_group": 4,  # of two numbers, batch norm would leave the signs
    },
    "spectrogram": {
        "net": "spectrogram",
        "channels": [8, 12, 16],
        "blocks": [1, 1, 1],
        "strides": [1, 2, 2],
        "kernel": 3,
        "out_channels": 16,
        "bn_group": 2,
        "bands": 20,
    },
    "spectrogram_2d": {
        "net": "spectrogram",
        "dims": 2,
        "channels": [8, 12, 16],
        "blocks": [1, 1, 1],
        "strides": [1, 2, 2],
        "out_channels": 16,
        "bn_group": 2,
        "bands": 20,
    },
    "ge2e": {"net": "ge2e", "random": True, "output": "frames", "width": 8},
    "wen": {"net": "wen", "random": True, "widths": [12, 16], "embedding": 12},
    "wen_trained": {"net": "wen", "random": True, "thaw": "all", "widths": [12, 16], "embedding": 12, "bn_group": 2},
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
        "bn_group": 4,  # of two pooled numbers, batch norm would leave the signs
    },
    "linear": {"net": "linear", "init_gain": 0.5},
    "vector_cascade": {"net": "vector_cascade", "channels": [4, 8], "strides": [4, 4], "kernel": 3, "pool": "mean"},
}

VECTORS = {
    "waveform_vector",
    "wen",
    "wen_trained",
    *(name for name, values in ENCODERS.items() if values.get("output") == "vector"),
}
"""The encoders whose deepest map has one frame."""
OF_VECTORS = {"vector_cascade"}
"""The mappings that take nothing else; ``linear`` takes both."""
