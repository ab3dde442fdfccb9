"""The features of a frozen voice encoder for one window of each clip, and what storing them costs.

    clip -> the window that evaluation takes, seconds * rate samples -> the encoder -> float16 [K,C,T']

Letters: B clips at once, K depths, C channels, T samples, T' frames.
"""

import math
import os
import shutil
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from v2f.data.manifest import ArrayKind
from v2f.data.sample import MAX_ARRAY, Sample
from v2f.data.transforms import Waveform
from v2f.encoders import ForeignEncoder
from v2f.errors import V2FError
from v2f.prepare.processes import inference
from v2f.storage import store

_HEADER = 1536  # bytes that a further member takes in a tar besides its content, at most


def kind(encoder: ForeignEncoder, seconds: float, device: str) -> ArrayKind:
    """Type and shape of a clip's features, found by a pass over silence."""
    silence_BT = torch.zeros(1, round(seconds * encoder.config.sample_rate), device=device)
    with inference(1, "batch"):
        shape = encoder.features(silence_BT).shape[1:]
    found = ArrayKind(dtype="float16", shape=list(shape))
    if size(found) > MAX_ARRAY:
        raise V2FError(
            f"the features of a clip are {found}, {size(found) / 1e6:.0f} MB, a sample may hold arrays of "
            f"{MAX_ARRAY / 1e6:.0f} MB; name fewer encoder.depths, or set fewer seconds"
        )
    return found


def size(features: ArrayKind) -> int:
    """Bytes of a clip's features."""
    return int(np.prod([length or 1 for length in features.shape])) * np.dtype(features.dtype).itemsize


def compute(
    encoder: ForeignEncoder, samples: Sequence[Sample], seconds: float, batch: int, device: str
) -> list[npt.NDArray[np.float16]]:
    """The features of each sample, [K,C,T']."""
    window = Waveform(seconds, encoder.config.sample_rate)
    found: list[npt.NDArray[np.float16]] = []
    with inference(batch, "batch"):
        for at in range(0, len(samples), batch):
            wav_BT = np.stack([window(sample, None) for sample in samples[at : at + batch]])
            found += list(encoder.features(torch.from_numpy(wav_BT).to(device)).half().cpu().numpy())
    return found


def tell_cost(features: ArrayKind, seconds: float, clips: int, held: int, out: str, despite: bool) -> None:
    """Print what storing the features of ``clips`` clips costs, and what is stored.

    ``held``: bytes that the clips have without them. V2FError if the disk of a local ``out`` is too small for both,
    unless ``despite``.
    """
    depths, channels, frames = (length or 1 for length in features.shape)
    each = size(features)
    print(
        f"{out}: {depths} depths of {channels} channels x {frames} frames ({frames / seconds:.0f} Hz) in float16: "
        f"{each / 1e6:.2f} MB a clip, {_bytes(each * clips)} for {clips} clips"
    )
    print(
        f"{out}: of each clip one window of {seconds:g} s, its middle, as evaluation reads it; a shorter clip is "
        "repeated. Training on the waves would draw another window of a longer clip each time"
    )
    needed = held + clips * (each + _HEADER)
    free = _free(out)
    if free is not None and needed > free:
        problem = f"{out}: it needs {_bytes(needed)}, and its disk has {_bytes(free)} free"
        if not despite:
            raise V2FError(f"{problem}; choose another --out or fewer encoder.depths, or start anyway with --yes")
        print(f"{problem}; starting anyway (--yes)")


def tell_time(out: str, clips: int, seconds: float, left: int, processes: int) -> str:
    """How long ``left`` more clips take, if the first ``clips`` took ``seconds`` in one of ``processes``."""
    minutes = math.ceil(left * seconds / clips / processes / 60)
    return f"{out}: {clips} clips in {seconds:.1f} s; about {minutes} min for the other {left}"


def _bytes(count: int) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1e6:.1f} MB"


def _free(out: str) -> int | None:
    """The bytes that are free on the disk of a local folder, which need not exist yet; None if it is remote."""
    local = store.local_path(out)
    if local is None:
        return None
    where = os.path.abspath(local)
    while not os.path.isdir(where):
        where = os.path.dirname(where)
    return shutil.disk_usage(where).free
