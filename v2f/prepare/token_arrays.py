"""The codes of each sound at every level of a sound coder, a run of :class:`~v2f.roles.SoundCoder`.

    sound -> the window that evaluation takes -> the run's encoder -> KEY.codes_LEVEL.npy, uint16 [N]

Letters: B sounds at once, T samples, N codes of a level.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from v2f.data.codes import ARRAY
from v2f.data.manifest import ArrayKind
from v2f.data.sample import Sample
from v2f.errors import V2FError
from v2f.prepare.processes import inference
from v2f.roles import SoundCoder


def load(run: str) -> tuple[SoundCoder, str]:
    """The sound coder that ``run`` trained, and the SHA-256 of its trained tensors. V2FError if it is none."""
    # imported late: a run imports all systems, which packing processes do not need
    from v2f.runs.pretrained import digest_of
    from v2f.runs.run import Run

    system = Run.open(run).system()
    if not isinstance(system, SoundCoder):
        raise V2FError(f"{run}: --tokens needs a run that codes sounds (vq_audio, for example), this one does not")
    return system, digest_of(system)


def described(coder: SoundCoder, digest: str) -> dict[str, Any]:
    """What identifies the codes: the coder's tensors, the sound that it codes, its levels."""
    levels = {name: [level.length, level.vocabulary] for name, level in coder.levels.items()}
    return {"sha256": digest, "sample_rate": coder.sound.rate, "seconds": coder.sound.seconds, "levels": levels}


def kinds(coder: SoundCoder) -> dict[str, ArrayKind]:
    """Array -> its type and shape."""
    return {
        ARRAY.format(level=name): ArrayKind(dtype="uint16", shape=[level.length])
        for name, level in coder.levels.items()
    }


def compute(
    coder: SoundCoder, samples: Sequence[Sample], batch: int, device: str
) -> list[dict[str, npt.NDArray[np.uint16]]]:
    """The arrays of each sample."""
    (read,) = (coder.transforms()[asked] for asked in coder.asks())
    found: list[dict[str, npt.NDArray[np.uint16]]] = []
    with inference(batch, "batch"):
        for at in range(0, len(samples), batch):
            wav_BT = np.stack([read(sample, None) for sample in samples[at : at + batch]])
            codes = coder.encode(torch.from_numpy(wav_BT).to(device))
            arrays = {
                ARRAY.format(level=name): number_BN.cpu().numpy().astype(np.uint16) for name, number_BN in codes.items()
            }
            found += [{name: array_BN[row] for name, array_BN in arrays.items()} for row in range(len(wav_BT))]
    return found
