"""One small configuration for each system of the table: what the tests of the contract train."""

from typing import Any

from encoders.small import ENCODERS

SMALL: dict[str, dict[str, Any]] = {
    "voice_styled_face": {
        "name": "voice_styled_face",
        "seconds": 0.4,
        "image_size": 64,
        "encoder": {
            "channels": [8, 12, 16],
            "blocks": [1, 2, 1],
            "strides": [2, 2, 2],
            "kernel": 7,
            "stem_stride": 8,
            "stem_activation": "leaky_relu",
            "out_channels": 16,
            "bn_group": 2,
        },
        "mapping": {"convs": 1},
        "losses": {
            "mse": 1.0,
            "l1": 0.5,
            "lpips": 1.0,
            "id": 0.1,
            "w_norm": 0.0005,
            "style": 0.5,
            "mse_crop": 0.3,
            "lpips_crop": 0.2,
        },
        "optimizer": {
            "lr": {"encoder": 1e-3, "mapping": 5e-4},
            "clip": 5.0,
            "weight_decay": 1e-4,
            "schedule": {"warmup": 32, "decay": "exponential", "factor": 0.95, "every": 64},
        },
        "ema": 64,
    },
    "speaker_recognition": {
        "name": "speaker_recognition",
        "people": 30,
        "seconds": 0.4,
        "encoder": ENCODERS["waveform"],
        "heads": "all",
        "width": 12,
        "activation": "prelu",
        "loss": {"kind": "arcface", "scale": 16.0, "margin": 0.2},
        "optimizer": {"lr": {"encoder": 1e-3, "head": 5e-3}, "clip": 5.0, "weight_decay": 1e-4},
        "ema": 64,
    },
    "picture_recognition": {
        "name": "picture_recognition",
        "image_size": 16,
        "share": 0.75,
        "labels": {"glasses": ["none", "worn"], "hair": ["black", "brown", "fair"]},
        "factors": "face",
        "factor_weight": 0.5,
        "backbone": {"net": "small", "width": 4, "blocks": [1, 2], "grid": 2},
        "bn_group": 2,
        "optimizer": {"lr": {"backbone": 1e-3, "heads": 2e-3}, "clip": 5.0, "weight_decay": 1e-4},
        "ema": 64,
    },
    "face_gan": {
        "name": "face_gan",
        "image_size": 16,
        "share": 0.75,
        "noise": 6,
        "width": 8,
        "bn_group": 2,
        "smooth": 0.1,
        "every": 2,
        "discriminator": {"lr": {"discriminator": 2e-4}, "betas": [0.5, 0.999], "clip": 5.0},
        "generator": {"lr": {"generator": 5e-4}, "betas": [0.5, 0.999], "schedule": {"warmup": 16}},
        "ema": 64,
    },
}
