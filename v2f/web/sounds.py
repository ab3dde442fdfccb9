"""Drawings of coded sounds: originals beside what their codes restore, and the codes of each level by class.

    held-out sounds --encode--> codes --decode--> restored sounds
                                  \\--how often each code occurs--> principal components: a point for each sound

Shape letters: N sounds, T samples, J codes of a sound, V codes of a level, D principal components.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from v2f.data.audio import resample
from v2f.data.loader import read_usable
from v2f.data.manifest import Split
from v2f.data.transforms import ClassNumber, Transform, Waveform, bound
from v2f.metrics.arrays import distances
from v2f.roles import SoundCoder
from v2f.system import device_of
from v2f.web import spectrum
from v2f.web.page import sound_uri

SIDE = 300
PLAYED_HZ = 8000
"""The lowest rate that browsers play."""
_BATCH = 32
_NEAREST = 5
_DRAWN = 400  # sounds of a report


@dataclass(frozen=True)
class Clip:
    """A sound as a page shows it: a player and drawings."""

    title: str
    sound: str
    """A data URI."""
    drawn: spectrum.Heard


@dataclass(frozen=True)
class Restored:
    """A held-out sound and what its codes restore."""

    name: str
    label: str
    original: Clip
    restored: Clip


@dataclass(frozen=True)
class Plane:
    """The sounds of a level in the plane of their first two principal components, a point for each."""

    title: str
    names: Sequence[str]
    points: list[tuple[float, float, int]]
    """Position in a box of SIDE x SIDE, and the number of the class."""
    explained: float
    """Share of the variance that lies in the plane."""
    alike: float
    """Share of the five nearest other points that are of a point's own class, over all points."""
    chance: float
    """The same share if the classes were dealt at random."""


@dataclass(frozen=True)
class Figures:
    """The drawings of a coder's held-out sounds."""

    restored: list[Restored]
    planes: list[Plane]
    width: int = spectrum.WIDTH
    height: int = spectrum.HEIGHT
    side: int = SIDE


@dataclass(frozen=True)
class Coded:
    """Held-out sounds with their codes."""

    key: list[str]
    wav_NT: NDArray[np.float32]
    restored_NT: NDArray[np.float32]
    codes: dict[str, NDArray[np.int64]]
    """Level -> codes [N,J]."""
    class_N: NDArray[np.int64]
    names: tuple[str, ...]
    """The classes."""
    rate: int


def clip(title: str, wav_T: NDArray[np.float32], rate: int) -> Clip:
    """A sound with its player and drawings."""
    played = max(rate, PLAYED_HZ)
    return Clip(title, sound_uri(resample(wav_T, rate, played), played), spectrum.heard(wav_T, rate))


@torch.no_grad()
def coded(coder: SoundCoder, split: Split, label: str, names: tuple[str, ...] = (), limit: int | None = None) -> Coded:
    """The sounds of a split, as ``coder`` codes and restores them. ``label``: where the samples have their class;
    ``names``: the classes, by default those of the data set. V2FError if it has no classes of this label."""
    sound = coder.sound
    asked: dict[str, Transform] = {"wav": Waveform(sound.seconds, sound.rate), "class": ClassNumber(label, names)}
    reads = bound(asked, split.datasets)
    classes = reads["class"]
    assert isinstance(classes, ClassNumber)
    keys, wavs, restored, numbers = list[str](), [], [], []
    codes: dict[str, list[NDArray[np.int64]]] = {level: [] for level in coder.levels}
    for batch in read_usable(split, reads, _BATCH, [], limit=limit):
        wav_BT = batch["wav"].to(device_of(coder))
        found = coder.encode(wav_BT)
        keys += batch["key"]
        wavs.append(batch["wav"].numpy())
        restored.append(coder.decode(found).flatten(1).float().cpu().numpy())
        numbers.append(batch["class"].numpy())
        for level, code_BJ in found.items():
            codes[level].append(code_BJ.cpu().numpy())
    whole = {level: np.concatenate(parts) for level, parts in codes.items()}
    return Coded(
        keys,
        np.concatenate(wavs),
        np.concatenate(restored),
        whole,
        np.concatenate(numbers),
        classes.classes,
        sound.rate,
    )


def figures(split: Split, coder: SoundCoder, label: str) -> Figures:
    """The first sound of every class beside what its codes restore, and the planes of the first sounds of a split."""
    found = coded(coder, split, label, limit=_DRAWN)
    vocabularies = {level: kind.vocabulary for level, kind in coder.levels.items()}
    return Figures(restored(found, 1), planes(found, vocabularies))


def restored(found: Coded, of_each: int) -> list[Restored]:
    """The first ``of_each`` sounds of every class, beside what their codes restore."""
    shown = []
    for number, name in enumerate(found.names):
        for row in np.flatnonzero(found.class_N == number)[:of_each].tolist():
            one, other = (clip(t, wav_T, found.rate) for t, wav_T in _two(found, row))
            shown.append(Restored(found.key[row], name, one, other))
    return shown


def _two(found: Coded, row: int) -> list[tuple[str, NDArray[np.float32]]]:
    return [("original", found.wav_NT[row]), ("restored from codes", found.restored_NT[row])]


def planes(found: Coded, vocabularies: Mapping[str, int]) -> list[Plane]:
    """A plane for each level; ``vocabularies``: codes of each level."""
    return [plane(level, codes_NJ, vocabularies[level], found) for level, codes_NJ in found.codes.items()]


def plane(title: str, codes_NJ: NDArray[np.int64], vocabulary: int, found: Coded) -> Plane:
    """The principal components (Pearson 1901) of how often each code occurs in a sound.

    Square roots of the shares, so that frequent codes do not decide alone: their distance is Hellinger's.
    """
    share_NV = np.stack([np.bincount(codes_J, minlength=vocabulary) for codes_J in codes_NJ]) / codes_NJ.shape[1]
    centered_NV = np.sqrt(share_NV) - np.sqrt(share_NV).mean(0)
    left_ND, scale_D, _ = np.linalg.svd(centered_NV, full_matrices=False)
    place_N2 = (left_ND * scale_D)[:, :2]
    if place_N2.shape[1] < 2:
        place_N2 = np.pad(place_N2, ((0, 0), (0, 2 - place_N2.shape[1])))
    power = float((scale_D**2).sum())
    low_2, high_2 = place_N2.min(0), place_N2.max(0)
    there_N2 = (place_N2 - low_2) / np.maximum(high_2 - low_2, 1e-12) * SIDE
    numbers = found.class_N.tolist()
    return Plane(
        title=title,
        names=found.names,
        points=[(x, SIDE - y, number) for (x, y), number in zip(there_N2.tolist(), numbers, strict=True)],
        explained=float((scale_D[:2] ** 2).sum()) / power if power > 0 else 0.0,
        alike=_alike(place_N2, found.class_N),
        chance=_chance(found.class_N),
    )


def _alike(place_N2: NDArray[np.float64], class_N: NDArray[np.int64]) -> float:
    """The share of the nearest other points that are of a point's own class."""
    apart_NN = distances(place_N2, place_N2)
    np.fill_diagonal(apart_NN, np.inf)
    near_NK = np.argsort(apart_NN, axis=1, kind="stable")[:, : min(_NEAREST, len(class_N) - 1)]
    return float((class_N[near_NK] == class_N[:, None]).mean()) if near_NK.size else float("nan")


def _chance(class_N: NDArray[np.int64]) -> float:
    count_K, total = np.bincount(class_N), len(class_N)
    return float((count_K * (count_K - 1)).sum() / (total * (total - 1))) if total > 1 else float("nan")
