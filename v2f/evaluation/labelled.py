"""Labeled pictures and sounds: does an output made from a label look, or sound, like real samples with that label?

For each held-out sample, the system makes one output from its label. The outputs are compared with the held-out
samples: the five samples nearest to an output vote for its label, and the two sets are compared. Next to the run's own
line is one of as many training samples with the same labels, which is what perfect memorization would reach. Features
are the pooled maps of the observers and, without a net, a picture's pixels at 16 px, or the mean and standard deviation
of a sound's log-mel bands. Sounds are also compared with all training samples: a generator that repeats them is nearer
to them than held-out sounds are (:mod:`v2f.evaluation.copies`).

Shape letters: N samples, M outputs, P features, K labels, C channels, H side.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from v2f import metrics
from v2f.data.loader import read_usable
from v2f.data.manifest import Dataset, Split
from v2f.data.transforms import Photo, Waveform, bound
from v2f.errors import V2FError
from v2f.evaluation import copies, readings
from v2f.evaluation.label_numbers import label_verdict, numbers_of, spectra
from v2f.evaluation.observers import BATCH, BY, first_observer, in_batches, seen
from v2f.evaluation.protocol import (
    HELD_OUT,
    Job,
    Measured,
    Metric,
    Protocol,
    no_usable_sample,
    number,
    of_each,
    percent,
    print_remarks,
    share,
    summary_of,
)
from v2f.roles import Restyling
from v2f.system import Kind, Label, Noise, Picture, Sound, System, Transform, device_of, of_kind, to_picture

_SIDE = 16  # px, of pictures that are compared pixel by pixel

Features = dict[str, NDArray[np.float32]]
"""Observer -> features [M, P]."""
Look = Callable[[Tensor], tuple[Features, NDArray[np.int64] | None]]
"""Pictures or sounds [M, ...] -> features, and the label [M] that a classifier reads, None without one."""


def _read_by(by: str) -> tuple[Metric, ...]:
    """What a classifier reads in pictures made from labels, and in restyled ones."""
    return (
        Metric("agreement", "label read, %", 1, by, by, 100, 1),
        Metric("restyled", "restyled: label read, %", 1, by, by, 100, 1),
        Metric("kept_labels", "restyled: other labels kept, %", 1, by, by, 100, 1),
        Metric("kept_factors", "restyled: correlation of other factors", 1, by, by),
    )


_CODES = (
    Metric("restored_error", "restored: squared error of a pixel", -1, "codes", digits=4, of_pictures=True),
    Metric("code_nats", "nats of a code", 0, "codes", digits=1),
)


def _metrics_by(by: str, net: str, pictures: bool = True) -> tuple[Metric, ...]:
    return (
        Metric("accuracy", "label found, %", 1, by, net, 100, 1),
        Metric("nearest", "nearest", 0, by, net, of_pictures=pictures),
        Metric("energy", "energy", -1, by, net, digits=3, of_pictures=pictures),
        Metric("precision", "precision, %", 1, by, net, 100, 1, of_pictures=pictures),
        Metric("recall", "recall, %", 1, by, net, 100, 1, of_pictures=pictures),
        Metric("variety_within", "variety within a label", 0, by, net),
    )


def _copies_by(by: str, net: str = "") -> tuple[Metric, ...]:
    return (
        Metric("from_training", "from training", 0, by, net),
        Metric("copied", "copied, %", -1, by, net, 100, 1),
    )


class Labelled(Protocol):
    """What both protocols share; ``kind`` is the kind of the output."""

    kind: type[Kind]
    takes_classifier = True
    explained = (
        "label found: how often the five nearest held-out samples vote for the requested label; nearest and energy: "
        "distance from held-out samples (best: 1 and 0); precision and recall: outputs that look or sound real, and "
        "real samples that are like one of them, in %; variety within a label: mean distance between two outputs of "
        "one label, relative to that of real ones (0: always the same); label read: pictures in which the classifier "
        "reads the requested label; restyled: held-out pictures, each with another label; restored: the same with "
        "their own"
    )

    def splits(self, dataset: Dataset) -> list[str]:
        return [name for name in HELD_OUT if name in dataset.splits][:1]

    def measure(self, job: Job, name: str) -> Measured:
        dataset, system = job.dataset, job.system
        asked, made, kind = asked_and_made(system, self.kind)
        left_out: list[str] = []
        real = _real(dataset.split(name), system, kind, left_out, job.limit)
        if real is None:
            raise no_usable_sample(dataset.root, name, left_out)
        batch, things, numbers_N = real
        label_N = batch[asked].numpy()
        look = _features_of(job, kind)
        sets = {self.own: (_outputs(system, batch, made), label_N)}
        notes = []
        trained = _trained(job, kind, label_N)
        if trained is None:
            notes.append(
                f"this data set has no split {job.run.config.data.split!r}, so the row for training samples is missing"
            )
        else:
            sets["trained"] = trained
        shown, right_N = look(things)
        share_K = np.bincount(label_N) / len(label_N)
        chance = float((share_K**2).sum())
        by: dict[str, dict[str, Any]] = {who: {"lines": {}} for who in shown}
        each: dict[str, dict[str, NDArray[np.float64]]] = {}
        for line, (pictures, requested_M) in sets.items():
            features, read_M = look(pictures)
            for who, made_MP in features.items():
                numbers, shares = numbers_of(made_MP, requested_M, shown[who], label_N)
                if who == "classifier" and read_M is not None:
                    shares["agreement"] = (read_M == requested_M).astype(np.float64)
                    numbers |= dict.fromkeys(("restyled", "kept_labels", "kept_factors"))
                    numbers["agreement"] = metrics.over_people(shares["agreement"]).as_dict()
                by[who]["lines"][line] = numbers
                if line == self.own:
                    each[who] = shares
            if line == self.own:
                self._copies(job, kind, look, features, shown, by, each)
        what = f"{self.kind.__name__.lower()}s"
        if right_N is not None:
            right = 100 * float((right_N == label_N).mean())
            notes.append(f"the classifier reads the label of {right:.1f} % of the real held-out {what} right")
        else:
            notes.append(f"no classifier reads these {what}; name its run: v2f eval RUN --classifier RUN")
        if isinstance(system, Restyling) and system.restyles and isinstance(kind, Picture):
            notes += self._restored(job, system, things, label_N, by, each)
        result: dict[str, Any] = {
            "what": f"held-out samples ({name})",
            "people": len(label_N),
            "labels": len(share_K),
            "left_out": summary_of(left_out),
            "chance": {"accuracy": chance, "agreement": chance, "restyled": chance},
            "by": by,
            "notes": notes,
        }
        result["verdict"] = label_verdict(first_observer(result)[1]["lines"][self.own], chance)
        return result, of_each(numbers_N.tolist(), each)

    def _copies(
        self,
        job: Job,
        kind: Any,
        look: Look,
        made: Features,
        held: Features,
        by: dict[str, dict[str, Any]],
        each: dict[str, dict[str, NDArray[np.float64]]],
    ) -> None:
        """Add how far outputs are from the training samples, if the protocol measures it."""

    def _restored(
        self,
        job: Job,
        system: Restyling,
        photos: Tensor,
        label_N: NDArray[np.int64],
        by: dict[str, dict[str, Any]],
        each: dict[str, dict[str, NDArray[np.float64]]],
    ) -> list[str]:
        """Add what the codes of photos hold and, with a classifier, how photos are restyled; returns notes."""
        held, each["codes"] = readings.codes(system, photos, label_N)
        by["codes"] = {"lines": {self.own: held}}
        if job.classifier is None:
            return []
        classes = len(of_kind(system.asks(), Label)[0][1].names)
        found, shares, notes = readings.restyled(job.classifier, system, photos, label_N, classes)
        by["classifier"]["lines"][self.own] |= found
        each["classifier"] |= shares
        return notes

    def show(self, name: str, result: Mapping[str, Any], console: Console) -> None:
        """Print a table for each observer."""
        split = result["splits"][name]
        of = f"{name}: {split['what']}, {split['people']} samples, {split['labels']} labels"
        for by, observed in split["by"].items():
            if by == "codes":
                self._show_own(f"{of}; {BY[by]}", "codes", observed, console)
                continue
            table = Table(title=f"{of}; {BY[by]}", title_justify="left")
            table.add_column(f"chance of a label {100 * split['chance']['accuracy']:.1f} %")
            further = [each for each in self.compared if each.by == by and each.key in ("from_training", "copied")]
            columns = ("label found, %", "nearest", "energy", "precision", "recall", "variety within a label")
            for column in (*columns, *(each.title for each in further)):
                table.add_column(column, justify="right")
            for line, numbers in observed["lines"].items():
                table.add_row(
                    self.title(line, observed),
                    percent(numbers["accuracy"]),
                    number(numbers["picture"]["nearest"], 2),
                    number(numbers["picture"]["energy"], 3),
                    *[share(numbers["picture"].get(name)) for name in ("precision", "recall")],
                    number(numbers["variety_within"], 2),
                    *[_cell(each, numbers.get(each.key)) for each in further],
                    style="bold" if line == self.own else None,
                )
            console.print(table)
            if by == "classifier":
                self._show_own(f"{of}; what it reads", by, observed, console)
        print_remarks(split, console)

    def _show_own(self, title: str, by: str, observed: Mapping[str, Any], console: Console) -> None:
        """Print the numbers of an observer that do not compare features."""
        shown = [metric for metric in self.compared if metric in (*_read_by("classifier"), *_CODES) and metric.by == by]
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for metric in shown:
            table.add_column(metric.title, justify="right")
        for line, numbers in observed["lines"].items():
            values = [numbers.get(metric.key) for metric in shown]
            cells = [_cell(metric, value) for metric, value in zip(shown, values, strict=True)]
            table.add_row(self.title(line, observed), *cells, style="bold" if line == self.own else None)
        console.print(table)

    def title(self, line: str, observed: Mapping[str, Any]) -> str:
        return "made from the labels (this run)" if line == self.own else "training samples with the same labels"


class LabelledPictures(Labelled):
    """Pictures made from labels."""

    own, kind = "labelled", Picture
    compared = (
        *_metrics_by("referee", "referee"),
        *_metrics_by("judge", "perceptual"),
        *_read_by("classifier"),
        *_metrics_by("classifier", "classifier"),
        *_metrics_by("pixels", ""),
        *_CODES,
    )


class LabelledSounds(Labelled):
    """Sounds made from labels."""

    own, kind = "sounded", Sound
    compared = (
        *_read_by("classifier")[:1],
        *_metrics_by("classifier", "classifier", pictures=False),
        *_copies_by("classifier", "classifier"),
        *_metrics_by("spectra", "", pictures=False),
        *_copies_by("spectra"),
    )
    explained = (
        f"{Labelled.explained}; from training: median distance of an output to the nearest training sample, relative "
        "to that of held-out samples; copied: outputs nearer to one than half of that distance, in %"
    )

    def _copies(
        self,
        job: Job,
        kind: Any,
        look: Look,
        made: Features,
        held: Features,
        by: dict[str, dict[str, Any]],
        each: dict[str, dict[str, NDArray[np.float64]]],
    ) -> None:
        name = job.run.config.data.split
        if name not in job.dataset.splits:
            return
        reads: dict[str, Transform] = {"thing": Waveform(kind.seconds, kind.rate)}
        batches = read_usable(job.dataset.split(name), reads, copies.AT_ONCE, [], limit=copies.MOST)
        found = copies.from_training((look(batch["thing"])[0] for batch in batches), made, held)
        for who, ratio_M in found.items():
            copied_M = (ratio_M < copies.NEAR).astype(np.float64)
            by[who]["lines"][self.own] |= {
                "from_training": float(np.median(ratio_M)),
                "copied": metrics.over_people(copied_M).as_dict(),
            }
            each[who]["copied"] = copied_M


def _cell(metric: Metric, value: Any) -> str:
    """A number, or a number with its interval, in a table; "-" for None."""
    if value is None:
        return "-"
    return metric.interval(metrics.Interval(**value)) if isinstance(value, Mapping) else metric.shown(value)


def asked_and_made(system: System, kind: type[Kind]) -> tuple[str, str, Any]:
    """The name of the label that a system asks for, and the name and kind of the output of type ``kind``.

    V2FError if the system asks for anything else but noise, or makes no such output.
    """
    labels = [name for name, _ in of_kind(system.asks(), Label)]
    others = [each for each in system.asks().values() if not isinstance(each, Label | Noise)]
    made = of_kind(system.makes(), kind)
    if len(labels) != 1 or others or not made:
        asks, makes = ", ".join(system.asks()) or "nothing", ", ".join(system.makes())
        raise V2FError(f"no output to judge by its label: this system asks for {asks}, and makes {makes}")
    return labels[0], *made[0]


def _real(
    split: Split, system: System, kind: Any, left_out: list[str], limit: int | None
) -> tuple[dict[str, Tensor], Tensor, NDArray[np.int64]] | None:
    """A split's usable samples: the system's inputs, the real pictures or sounds, and the samples' numbers; None if
    there are none."""
    reads: dict[str, Transform] = {name: system.transforms()[name] for name in system.asks()}
    reads = bound(reads, split.datasets)
    thing: Transform = (
        Photo(kind.size, kind.share, 1 if kind.channels == 1 else 3)
        if isinstance(kind, Picture)
        else Waveform(kind.seconds, kind.rate)
    )
    batches = list(read_usable(split, {**reads, "thing": thing}, BATCH, left_out, limit=limit))
    if not batches:
        return None
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in (*reads, "thing", "slot")}
    return {name: whole[name] for name in reads}, whole["thing"], whole["slot"].numpy()


def _trained(job: Job, kind: Any, label_N: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]] | None:
    """As many training samples with the same labels, as far as there are, and their labels; None without the split."""
    name = job.run.config.data.split
    if name not in job.dataset.splits:
        return None
    found = _real(job.dataset.split(name), job.system, kind, [], 8 * len(label_N))
    if found is None:
        return None
    batch, things, _ = found
    asked = asked_and_made(job.system, type(kind))[0]
    own_S = batch[asked].numpy()
    chosen = [row for label in np.unique(label_N) for row in np.flatnonzero(own_S == label)[: (label_N == label).sum()]]
    return things[chosen], own_S[chosen]


def real_of_each(dataset: Dataset, system: System, count: int) -> dict[str, Tensor]:
    """Class -> the first ``count`` held-out pictures of it, uint8 [n,C,H,W], for a system that makes pictures from a
    label; empty without held-out samples."""
    splits = [name for name in HELD_OUT if name in dataset.splits]
    asked, _, kind = asked_and_made(system, Picture)
    found = _real(dataset.split(splits[0]), system, kind, [], None) if splits else None
    if found is None:
        return {}
    batch, things, _ = found
    names = of_kind(system.asks(), Label)[0][1].names
    return {name: things[(batch[asked] == number).nonzero()[:count, 0]] for number, name in enumerate(names)}


def _outputs(system: System, batch: Mapping[str, Tensor], made: str) -> Tensor:
    """The system's output for each row of ``batch``, on the CPU."""
    rows = next(iter(batch.values()))
    parts = []
    for start in range(0, len(rows), BATCH):
        part = {name: value[start : start + BATCH].to(device_of(system)) for name, value in batch.items()}
        with torch.no_grad():
            parts.append(system.sample(part)[made].float().cpu())
    return torch.cat(parts)


def _features_of(job: Job, kind: Any) -> Look:
    """The function that computes features of outputs (floats in [-1, 1]) and real samples (uint8 pictures, waves), and
    the label [M] that a classifier reads, None without one."""
    device, classifier = device_of(job.system), job.classifier

    def sounds(wav: Tensor) -> tuple[Features, NDArray[np.int64] | None]:
        found: Features = {"spectra": spectra(wav.flatten(1), kind.rate)}
        if classifier is None:
            return found, None
        reading = classifier.read(wav)
        return {"classifier": reading.features_NP} | found, reading.classes[classifier.label]

    def pictures(img: Tensor) -> tuple[Features, NDArray[np.int64] | None]:
        def function(part: Tensor) -> tuple[Tensor, ...]:
            picture = to_picture(part) if part.dtype == torch.uint8 else part.clamp(-1, 1)
            small = F.interpolate(picture, (_SIDE, _SIDE), mode="area").flatten(1)
            return (small, *seen(job.observers, picture)[1::2])

        small_MP, *maps = in_batches(function, img, device)
        found: Features = {each.name: own for each, own in zip(job.observers, maps, strict=True)}
        if classifier is None:
            return found | {"pixels": small_MP}, None
        reading = classifier.read(img)
        return found | {"classifier": reading.features_NP, "pixels": small_MP}, reading.classes[classifier.label]

    return sounds if isinstance(kind, Sound) else pictures
