"""Labels of pictures and sounds: how often does a system read those of held-out samples right, what does it confuse?

The accuracy of each label has an interval over samples; beside it stands the share of the most frequent class, which is
what a system reaches that always gives the same answer. The factors of synthetic samples are compared with the true
ones by their correlation.

Shape letters: N samples, K classes of a label, G factors.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from v2f import metrics
from v2f.data.loader import read_usable
from v2f.data.manifest import Dataset
from v2f.data.transforms import ClassNumber, Factors
from v2f.errors import V2FError
from v2f.evaluation import readings
from v2f.evaluation.observers import BATCH, BY
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
    summary_of,
)
from v2f.roles import Reader
from v2f.system import Kind, Picture, Sound, Transform, of_kind


class LabelsRead(Protocol):
    """What both protocols share; ``kind`` is the kind of the input."""

    kind: type[Kind]
    compared = (
        Metric("accuracy", "labels right, %", 1, "labels", scale=100, digits=1),
        Metric("factors", "correlation of the factors", 1, "labels", digits=3),
    )
    explained = (
        "right: held-out samples whose highest score is that of their own class; always the same: the share of the "
        "most frequent class; correlation: of the true factors of synthetic samples with the estimated ones"
    )
    observed = False

    def splits(self, dataset: Dataset) -> list[str]:
        return [name for name in HELD_OUT if name in dataset.splits][:1]

    def measure(self, job: Job, name: str) -> Measured:
        reader, split, left_out = job.system, job.dataset.split(name), list[str]()
        if not isinstance(reader, Reader) or len(of_kind(reader.asks(), self.kind)) != 1:
            raise V2FError(f"this system reads no labels of {self.kind.__name__.lower()}s")
        ((asked, _),) = of_kind(reader.asks(), self.kind)
        own = reader.transforms()
        known = [each for each in own.values() if isinstance(each, Factors)]
        reads: dict[str, Transform] = {"thing": own[asked]}
        reads |= {f"label {label}": ClassNumber(label, tuple(names)) for label, names in reader.labels.items()}
        if known:
            reads["factors"] = known[0]
        batches = list(read_usable(split, reads, BATCH, left_out, limit=job.limit))
        if not batches:
            raise no_usable_sample(job.dataset.root, name, left_out)
        whole = {each: torch.cat([batch[each] for batch in batches]).numpy() for each in (*reads, "slot")}
        found = readings.read(reader, torch.from_numpy(whole["thing"]))
        line: dict[str, Any] = {}
        confusion: dict[str, list[list[int]]] = {}
        right, chance = [], []
        for label, names in reader.labels.items():
            true_N, found_N = whole[f"label {label}"], found.classes[label]
            right.append((true_N == found_N).astype(np.float64))
            line[f"accuracy_{label}"] = metrics.over_people(right[-1]).as_dict()
            count = np.bincount(true_N * len(names) + found_N, minlength=len(names) ** 2)
            confusion[label] = count.reshape(len(names), -1).tolist()
            chance.append(float(np.bincount(true_N).max() / len(true_N)))
        right_N = np.mean(right, axis=0)
        line["accuracy"] = metrics.over_people(right_N).as_dict()
        alike = (
            dict(zip(reader.factors, readings.correlations(whole["factors"], found.factors_NG), strict=True))
            if known
            else {}
        )
        line["factors"] = float(np.mean([*alike.values()])) if alike else None
        result = {
            "what": f"held-out samples ({name})",
            "people": len(right_N),
            "left_out": summary_of(left_out),
            "chance": {"accuracy": float(np.mean(chance))}
            | {f"accuracy_{label}": value for label, value in zip(reader.labels, chance, strict=True)},
            "by": {"labels": {"lines": {self.own: line}}},
            "classes": {label: list(names) for label, names in reader.labels.items()},
            "confusion": confusion,
            "correlations": alike,
            "notes": [],
            "verdict": None,
        }
        if line["accuracy"]["high"] <= np.mean(chance):
            result["verdict"] = "the labels are not read more often than by always giving the same answer"
        return result, of_each(whole["slot"].tolist(), {"labels": {"accuracy": right_N}})

    def show(self, name: str, result: Mapping[str, Any], console: Console) -> None:
        """Print a table of all labels, then the confusions of each."""
        split = result["splits"][name]
        line = split["by"]["labels"]["lines"][self.own]
        table = Table(title=f"{name}: {split['what']}, {split['people']} samples; {BY['labels']}", title_justify="left")
        for column in ("label", "right, %", "always the same, %"):
            table.add_column(column, justify="left" if column == "label" else "right")
        for label in (*split["classes"], ""):
            key = f"accuracy_{label}" if label else "accuracy"
            chance = f"{100 * split['chance'][key]:.1f}"
            table.add_row(label or "all labels", percent(line[key]), chance, style=None if label else "bold")
        console.print(table)
        for label, names in split["classes"].items():
            table = Table(title=f"{label}: rows are true, columns are what was read", title_justify="left")
            table.add_column("")
            for each in names:
                table.add_column(each, justify="right")
            for each, row in zip(names, split["confusion"][label], strict=True):
                table.add_row(each, *map(str, row))
            console.print(table)
        if split["correlations"]:
            some = ", ".join(f"{factor} {number(value, 2)}" for factor, value in split["correlations"].items())
            console.print(f"correlation of the factors: {some}")
        print_remarks(split, console)

    def title(self, line: str, observed: Mapping[str, Any]) -> str:
        return "this run"


class LabelsOfPictures(LabelsRead):
    """The labels that a system reads in pictures."""

    own, kind = "recognized", Picture


class LabelsOfSounds(LabelsRead):
    """The labels that a system reads in sounds."""

    own, kind = "heard", Sound
