"""The numbers of outputs that were made from labels, by their features; and features of sounds that need no net.

Shape letters: N samples, M outputs, P features, K neighbors, T samples of a sound, F frequencies, B bands.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v2f import metrics
from v2f.metrics.arrays import distances

_NEIGHBORS = 5


def spectra(wav_MT: Tensor, rate: int) -> NDArray[np.float32]:
    """Mean and standard deviation over time of each log-mel band of sounds [M, T]: [M, 2 x 40]."""
    mel_MBT = metrics.log_mel(wav_MT, rate)
    found_MP = torch.cat([mel_MBT.mean(2), mel_MBT.std(2, correction=0)], 1)
    return np.asarray(found_MP.numpy(), dtype=np.float32)


def numbers_of(
    made_MP: NDArray[np.float32],
    requested_M: NDArray[np.int64],
    real_NP: NDArray[np.float32],
    label_N: NDArray[np.int64],
) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    """The numbers of outputs that were made for the labels ``requested_M``, and each output's share."""
    scale_P = real_NP.std(0)
    scale_P = np.where(scale_P > 1e-6, scale_P, np.inf).astype(np.float64)
    made, real = made_MP / scale_P, real_NP / scale_P
    hit_M = (voted(made, real, label_N) == requested_M).astype(np.float64)
    picture = metrics.picture_distance(made_MP, real_NP)
    within = metrics.ratio(_within(made, requested_M), _within(real, label_N))
    numbers = {
        "accuracy": metrics.over_people(hit_M).as_dict(),
        "picture": picture.as_dict(),
        "variety_within": within,
    }
    return numbers, {"accuracy": hit_M, **picture.each}


def voted(made_MP: NDArray[np.float64], real_NP: NDArray[np.float64], label_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """The most frequent label of the five nearest real samples; with a tie, that of the nearest one."""
    square_MN = ((made_MP**2).sum(1)[:, None] + (real_NP**2).sum(1)[None]) - 2 * made_MP @ real_NP.T
    near_MK = np.argsort(square_MN, axis=1, kind="stable")[:, :_NEIGHBORS]
    votes_MK = label_N[near_MK]
    found = []
    for votes in votes_MK:
        labels, first, count = np.unique(votes, return_index=True, return_counts=True)
        found.append(labels[np.lexsort((first, -count))[0]])
    return np.array(found, dtype=np.int64)


def _within(rows_MP: NDArray[np.float64], label_M: NDArray[np.int64]) -> float:
    """Mean distance between two rows with the same label, averaged over labels; NaN if no label has two rows."""
    means = []
    for label in np.unique(label_M):
        own = rows_MP[label_M == label]
        if len(own) > 1:
            means.append(distances(own, own)[~np.eye(len(own), dtype=bool)].mean())
    return float(np.mean(means)) if means else float("nan")


def label_verdict(numbers: Mapping[str, Any], chance: float) -> str | None:
    """What is wrong with the outputs, in a sentence; None if nothing is."""
    if numbers["variety_within"] < 0.1:
        return (
            f"MODE COLLAPSE: outputs of one label are all alike ({100 * numbers['variety_within']:.0f} % of real ones)"
        )
    if numbers["accuracy"]["high"] <= 1.25 * chance:
        found = f"found in {100 * numbers['accuracy']['value']:.0f} % of cases, by chance in {100 * chance:.0f} %"
        return f"the output does not follow the label, which is {found}"
    return None
