"""pSp over batches of aligned photos: their styles w+, and the pictures that StyleGAN2 generates from those.

    uint8 [N, H, W, 3] -> pSp's encoder -> w+ [N, L, D] -> StyleGAN2, pooled -> uint8 [N, size, size, 3]

Richardson et al. 2021, "Encoding in Style"; their frontalization model renders a face of any pose from the front, in
even light. A process loads pSp once.

Shape letters: N photos, B photos at once, H height, W width, L styles, D style width.
"""

import functools
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from v2f.errors import V2FError
from v2f.nn.psp import PSP
from v2f.prepare.processes import inference, torch_device
from v2f.prepare.steps import PspConfig
from v2f.system import to_picture
from v2f.weights import load_psp

Pixels = npt.NDArray[np.uint8]
Model = Literal["encode", "frontalization"]


def checksum(config: PspConfig) -> str:
    """The SHA-256 of the file; it is loaded, so that an unsuitable file is refused before packing starts."""
    torch_device(config.device, "psp.device")
    return load_psp(config.file, config.sha256, _model(config))[1]


def encode_and_render(
    config: PspConfig, photo_NHWC: Pixels, size: int
) -> tuple[npt.NDArray[np.float32], Pixels | None]:
    """w+ [N, L, D] of photos, and with ``config.pictures`` the pictures generated from them, uint8 [N, size, size, 3].

    Pictures are generated from w+ rounded to float16, as stored in samples.
    """
    device = torch_device(config.device, "psp.device")
    psp = _loaded(config.file, config.sha256, _model(config), device)
    codes, pictures = [], []
    with inference(config.batch, "psp.batch"):
        for at in range(0, len(photo_NHWC), config.batch):
            photo_B3HW = torch.from_numpy(photo_NHWC[at : at + config.batch]).permute(0, 3, 1, 2).to(device)
            w_BLD = psp.codes(to_picture(photo_B3HW)).half()
            codes.append(_finite(w_BLD, config))
            if config.pictures:
                picture_B3HW = _finite(psp.pictures(w_BLD.float(), size), config)
                pictures.append(((picture_B3HW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
    drawn_NHWC = torch.cat(pictures).permute(0, 2, 3, 1).cpu().numpy() if pictures else None
    return torch.cat(codes).float().cpu().numpy(), drawn_NHWC


def _finite(values: torch.Tensor, config: PspConfig) -> torch.Tensor:
    if not values.isfinite().all():
        raise V2FError(f"{config.file}: its output for a photo is NaN or infinite; the file is damaged, copy it again")
    return values


@functools.lru_cache(maxsize=1)
def _loaded(file: str, sha256: str | None, model: Model, device: str) -> PSP:
    return load_psp(file, sha256, model)[0].to(device)


def _model(config: PspConfig) -> Model:
    """Which of the two published files to look for in a folder: the one that renders faces from the front, or the one
    that encodes them as they are."""
    return "frontalization" if config.pictures else "encode"
