"""What a trained classifier reads in pictures or sounds: in real ones, in those made from a label, in restyled ones.

    pictures [N,C,H,H], sounds [N,T] --classifier--> class of each of its labels [N], estimated factors [N,G],
                                                     features [N,P]

Restyling is judged by two questions. Does the classifier read the label that was asked for? And is the rest kept: its
other labels, and the factors that the label does not determine?

Shape letters: N pictures or sounds, C channels, H side, T samples, K classes, G factors, P features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from v2f import metrics
from v2f.data.audio import resample
from v2f.data.transforms import ClassNumber
from v2f.errors import V2FError
from v2f.evaluation.observers import in_batches
from v2f.nn.variational import kl_to_normal
from v2f.roles import PictureReader, Reader, Restyling, SoundReader
from v2f.runs import pretrained
from v2f.runs.run import Run
from v2f.system import Picture, Sound, System, device_of, of_kind, to_picture

_DETERMINED = 0.5  # share of a factor's variance between classes, above which the label says it

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

Numbers = dict[str, Any]
Shares = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Reading:
    """What was read in N pictures or sounds."""

    classes: Mapping[str, NDArray[np.int64]]
    """Label -> class [N]."""
    factors_NG: NDArray[np.float32]
    features_NP: NDArray[np.float32]


def read(reader: Reader, rows: Tensor) -> Reading:
    """What ``reader`` reads in pictures of its size and channels, uint8 or floats in [-1,1], or in sounds of its rate
    and length."""

    def function(part: Tensor) -> tuple[Tensor, ...]:
        found = reader.read(to_picture(part) if part.dtype == torch.uint8 else part.clamp(-1, 1))
        return (*(score_BK.argmax(1) for score_BK in found.scores.values()), found.factors, found.features)

    *classes, factors_NG, features_NP = in_batches(function, rows, device_of(reader))
    named = dict(zip(reader.labels, (each.astype(np.int64) for each in classes), strict=True))
    return Reading(named, factors_NG, features_NP)


@dataclass(frozen=True)
class Classifier:
    """A trained run that reads the label from which another system makes pictures or sounds."""

    reader: Reader
    label: str
    """The label, by its name in the samples."""
    numbers: NDArray[np.int64]
    """The reader's class -> that of the other system, -1 if it has no such class."""
    about: dict[str, Any]
    """What identifies the run."""
    made: Picture | Sound
    """What the other system makes."""

    @classmethod
    def of(cls, path: str, system: System, asked: str, made: Picture | Sound, device: str) -> "Classifier":
        """The classifier in the run ``path`` for the label ``asked`` and what ``system`` makes; V2FError if it reads
        another label, other classes, another kind of output, or another part of a photo."""
        run = Run.open(path)
        reader, own = run.system(), system.transforms()[asked]
        of_pictures = isinstance(made, Picture)
        if not isinstance(reader, PictureReader if of_pictures else SoundReader) or not isinstance(own, ClassNumber):
            what, name = ("pictures", "picture") if of_pictures else ("sounds", "sound")
            raise V2FError(f"{path}: this run reads no labels of {what}; name one of {name}_recognition")
        known = list(reader.labels.get(own.name, ()))
        lacking = [name for name in own.classes if name not in known]
        if lacking:
            raise V2FError(
                f"{path}: it reads the labels {', '.join(reader.labels)}, but not the class {lacking[0]!r} of "
                f"{own.name!r}"
            )
        for _, sees in of_kind(reader.asks(), Picture):
            if isinstance(made, Picture) and sees.share != made.share:
                raise V2FError(
                    f"{path}: it sees {sees.share:g} of a photo's side, these pictures show {made.share:g}; train a "
                    f"classifier with system.share={made.share:g}"
                )
        numbers = np.array([list(own.classes).index(name) if name in own.classes else -1 for name in known])
        digest = pretrained.digest(dict(reader.state_dict()))
        about = {"run": run.config.name, "path": run.path, "step": run.step, "sha256": digest}
        return cls(reader.to(device).eval(), own.name, numbers, about, made)

    def read(self, rows: Tensor) -> Reading:
        """What it reads in pictures of any size and channels, uint8 or floats in [-1,1], or in sounds [N,T] or [N,1,T]
        as the other system makes them; the classes of its label are numbered as in the other system."""
        ((_, kind),) = self.reader.asks().items()
        if isinstance(kind, Sound):
            assert isinstance(self.made, Sound)
            found = read(self.reader, _heard(rows.flatten(1), self.made, kind))
        else:
            assert isinstance(kind, Picture)
            found = read(self.reader, _seen(rows, kind))
        own = {self.label: self.numbers[found.classes[self.label]]}
        return Reading({**found.classes, **own}, found.factors_NG, found.features_NP)


def _seen(img: Tensor, sees: Picture) -> Tensor:
    """Pictures in [-1,1] with the channels and the size that a reader sees."""
    picture = to_picture(img) if img.dtype == torch.uint8 else img.clamp(-1, 1)
    if picture.shape[1] != sees.channels:
        gray_N1HH = (picture * picture.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
        picture = gray_N1HH if sees.channels == 1 else picture.expand(-1, 3, -1, -1)
    if picture.shape[-1] != sees.size:
        side = (sees.size, sees.size)
        picture = F.interpolate(picture, side, mode="bilinear", antialias=True, align_corners=False)
    return picture


def _heard(wav_NT: Tensor, made: Sound, hears: Sound) -> Tensor:
    """Sounds at the rate and of the length that a reader hears: the middle of a longer one, a shorter one repeated."""
    rows = []
    for wav_T in wav_NT.float().cpu().numpy():
        heard_T = resample(wav_T, made.rate, hears.rate)
        start = max(0, (len(heard_T) - hears.frames) // 2)
        rows.append(np.resize(heard_T[start : start + hears.frames], hears.frames))
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def correlations(one_NG: NDArray[Any], other_NG: NDArray[Any]) -> list[float]:
    """Pearson's correlation of each column with the same column of the other; NaN for a constant one."""
    found: list[float] = _standardized(one_NG, other_NG).mean(0).tolist()
    return found


def _standardized(one_NG: NDArray[Any], other_NG: NDArray[Any]) -> NDArray[np.float64]:
    """Each row's products of standard scores, whose mean over the rows is the correlation."""
    one, other = (each.astype(np.float64) - each.mean(0, dtype=np.float64) for each in (one_NG, other_NG))
    with np.errstate(divide="ignore", invalid="ignore"):
        found: NDArray[np.float64] = one * other / np.sqrt((one**2).mean(0) * (other**2).mean(0))
    return found


def free_factors(factor_NG: NDArray[Any], class_N: NDArray[np.int64]) -> list[int]:
    """The columns of factors that a label does not determine: less than half of their variance lies between its
    classes."""
    within = np.zeros(factor_NG.shape[1])
    for number in np.unique(class_N):
        own = factor_NG[class_N == number].astype(np.float64)
        within += ((own - own.mean(0)) ** 2).sum(0)
    whole = ((factor_NG - factor_NG.mean(0, dtype=np.float64)) ** 2).sum(0)
    return [int(column) for column in np.flatnonzero(within > (1 - _DETERMINED) * whole)]


def codes(system: Restyling, img: Tensor, class_N: NDArray[np.int64]) -> tuple[Numbers, Shares]:
    """How well codes hold pictures: mean squared error of restored pixels, and nats of divergence from N(0, 1)."""

    def function(part: Tensor) -> tuple[Tensor, ...]:
        picture, class_B = part[:, :-1], part[:, -1, 0, 0].long()
        mean_BZ, log_variance_BZ = system.posterior(picture, class_B)
        apart_B = (system.decode(mean_BZ, class_B) - picture).square().flatten(1).mean(1)
        return apart_B, kl_to_normal(mean_BZ, log_variance_BZ)

    error_N, nats_N = in_batches(function, _with_class(img, class_N), device_of(system))
    each = {"restored_error": error_N.astype(np.float64), "code_nats": nats_N.astype(np.float64)}
    return {name: metrics.over_people(share_N).as_dict() for name, share_N in each.items()}, each


def restyled(
    classifier: Classifier, system: Restyling, img: Tensor, class_N: NDArray[np.int64], classes: int
) -> tuple[Numbers, Shares, list[str]]:
    """How pictures look after each was restyled by another class; numbers, each picture's share, and notes.

    ``restyled``: the classifier reads the class that was asked for. ``kept_labels``: its other labels are as in the
    original. ``kept_factors``: correlation of the estimated factors with those of the original, the mean over factors
    that the label does not determine.
    """
    number_N = np.arange(len(class_N))
    target_N = (class_N + 1 + number_N % (classes - 1)) % classes

    def function(part: Tensor) -> tuple[Tensor, ...]:
        picture, pair_B2 = part[:, :-2], part[:, -2:, 0, 0].long()
        return (system.decode(system.posterior(picture, pair_B2[:, 0])[0], pair_B2[:, 1]),)

    (made_NCHW,) = in_batches(function, _with_class(img, class_N, target_N), device_of(system))
    before, after = classifier.read(img), classifier.read(torch.from_numpy(made_NCHW))
    each: Shares = {"restyled": (after.classes[classifier.label] == target_N).astype(np.float64)}
    numbers: Numbers = {"kept_labels": None, "kept_factors": None}
    others = [label for label in before.classes if label != classifier.label]
    if others:
        same = [before.classes[label] == after.classes[label] for label in others]
        each["kept_labels"] = np.mean(same, axis=0, dtype=np.float64)
    notes = []
    free = free_factors(before.factors_NG, class_N)
    if free and after.factors_NG[:, free].std(0).all():
        products_NG = _standardized(before.factors_NG[:, free], after.factors_NG[:, free])
        each["kept_factors"] = products_NG.mean(1)
        names = [classifier.reader.factors[column] for column in free]
        kept = ", ".join(f"{name} {value:.2f}" for name, value in zip(names, products_NG.mean(0), strict=True))
        notes.append(f"restyled pictures keep these factors, by their correlation with the original: {kept}")
    numbers |= {name: metrics.over_people(share_N).as_dict() for name, share_N in each.items()}
    return numbers, each, notes


def _with_class(img: Tensor, *class_N: NDArray[np.int64]) -> Tensor:
    """Pictures in [-1,1] with a further channel for each row of classes, so that they are cut into batches together."""
    picture = to_picture(img) if img.dtype == torch.uint8 else img
    maps = [
        torch.from_numpy(np.asarray(each, np.float32))[:, None, None, None].expand(-1, 1, *img.shape[2:])
        for each in class_N
    ]
    return torch.cat([picture, *maps], dim=1)
