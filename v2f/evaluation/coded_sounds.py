"""Sounds restored from codes: how near are held-out sounds to what their bit rate allows, class by class?

Beside the SI-SDR of each class stands the rate-distortion bound of Gaussian processes with the sounds' spectra
(:func:`v2f.metrics.rate_distortion`) at the coder's bits a sample, as if all codes were equally likely. There are two
bounds: with each sound's own spectrum, as if the decoder knew it for free, and with the mean spectrum of the class, in
which each sound has the same power. The gap is the first bound minus the SI-SDR.

Shape letters: N sounds, T samples, K codes, B batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from v2f import metrics
from v2f.data.loader import read_usable
from v2f.data.manifest import Dataset
from v2f.data.transforms import ClassNumber, Transform, bound
from v2f.errors import V2FError
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
    print_remarks,
    summary_of,
)
from v2f.roles import SoundCoder
from v2f.system import device_of

_CLASS = "class: "  # begins the line of a class
_OF_EACH = ("si_sdr", "log_mel", "bound", "gap")

Numbers = NDArray[np.float64]


class CodedSounds(Protocol):
    """Reconstruction and use of the codes, of all sounds and of each class."""

    own = "coded"
    compared = (
        Metric("si_sdr", "SI-SDR, dB", 1, "waves", digits=1),
        Metric("log_mel", "log-mel distance, dB", -1, "waves", digits=1),
        Metric("gap", "below the bound, dB", -1, "waves", digits=1),
        Metric("perplexity_top", "perplexity of the top codes", 1, "codes", digits=0),
        Metric("perplexity_bottom", "perplexity of the bottom codes", 1, "codes", digits=0),
    )
    explained = (
        "SI-SDR: power of the sound over that of the error; bound: the best SI-SDR of any code of as many bits for "
        "Gaussian noise with the sound's spectrum; class bound: with the mean spectrum of the class; gap: bound minus "
        "SI-SDR; log-mel distance: root mean square over the bands; perplexity: of the frequencies of the codes"
    )
    observed = False

    def splits(self, dataset: Dataset) -> list[str]:
        return [name for name in HELD_OUT if name in dataset.splits][:1]

    def measure(self, job: Job, name: str) -> Measured:
        coder, dataset, left_out = job.system, job.dataset, list[str]()
        if not isinstance(coder, SoundCoder):
            raise V2FError("this system has no codes of sounds")
        split = dataset.split(name)
        reads: dict[str, Transform] = {each: coder.transforms()[each] for each in coder.asks()}
        names: Sequence[str] = ()
        if coder.label is not None:
            reads |= bound({"class": ClassNumber(coder.label)}, split.datasets)
            names = _names(reads["class"])
        (asked,) = coder.asks()
        batches = list(read_usable(split, bound(reads, split.datasets), BATCH, left_out, limit=job.limit))
        if not batches:
            raise no_usable_sample(dataset.root, name, left_out)
        slot_N = torch.cat([batch["slot"] for batch in batches]).numpy()
        each, numbers, spectra = _measured(coder, [batch[asked] for batch in batches])
        lines, codes = {self.own: _summary(each, spectra, coder.bits)}, {self.own: _use(coder, numbers)}
        if names:
            class_N = torch.cat([batch["class"] for batch in batches]).numpy()
            for at, label in enumerate(names):
                chosen = class_N == at
                if chosen.any():
                    some = {key: value_N[chosen] for key, value_N in each.items()}
                    lines[_CLASS + label] = _summary(some, spectra[chosen], coder.bits)
                    codes[_CLASS + label] = _use(coder, {key: value[chosen] for key, value in numbers.items()})
        result = {
            "what": f"held-out samples ({name})",
            "people": len(slot_N),
            "left_out": summary_of(left_out),
            "chance": {},
            "bits": coder.bits,
            "levels": {key: [level.length, level.vocabulary] for key, level in coder.levels.items()},
            "by": {"waves": {"lines": lines}, "codes": {"lines": codes}},
            "notes": [] if names else ["no classes to tell apart: this run's system.label is null"],
            "verdict": None,
        }
        if lines[self.own]["si_sdr"]["high"] <= 0:
            result["verdict"] = "the sounds are not restored: the error has more power than the sound"
        shares = {key: each[key] for key in ("si_sdr", "log_mel", "gap")}
        return result, of_each(slot_N.tolist(), {"waves": shares})

    def show(self, name: str, result: Mapping[str, Any], console: Console) -> None:
        """Print a table of the reconstruction, then one of the codes."""
        split = result["splits"][name]
        of = f"{name}: {split['what']}, {split['people']} samples, {split['bits']:.2f} bits a sample"
        waves = split["by"]["waves"]
        columns = ("SI-SDR, dB", "bound, dB", "gap, dB", "class bound, dB", "log-mel distance, dB")
        table = _table(f"{of}; {BY['waves']}", columns)
        for line, found in waves["lines"].items():
            some = [_decibels(found[key]) for key in ("si_sdr", "bound", "gap")]
            some += [number(found["class_bound"], 1), _decibels(found["log_mel"])]
            table.add_row(self.title(line, waves), *some, style="bold" if line == self.own else None)
        console.print(table)
        levels = split["levels"].items()
        uses = [f"{level}: {what}" for level, (_, codes) in levels for what in (f"used of {codes}", "perplexity")]
        table = _table(f"{name}: {BY['codes']}", uses)
        for line, found in split["by"]["codes"]["lines"].items():
            some = []
            for level, (_, codes) in levels:
                some += [f"{codes * found[f'used_{level}']:.0f}", number(found[f"perplexity_{level}"], 0)]
            table.add_row(self.title(line, waves), *some, style="bold" if line == self.own else None)
        console.print(table)
        print_remarks(split, console)

    def title(self, line: str, observed: Mapping[str, Any]) -> str:
        return "all sounds (this run)" if line == self.own else line.removeprefix(_CLASS)


def _names(transform: Transform) -> Sequence[str]:
    assert isinstance(transform, ClassNumber)
    return transform.classes


def _measured(
    coder: SoundCoder, parts: Sequence[torch.Tensor]
) -> tuple[dict[str, Numbers], dict[str, NDArray[np.int64]], Numbers]:
    """Numbers of each sound [N], the codes of each level [N,K], and the sounds' spectra [N,F]."""
    device, rate = device_of(coder), coder.sound.rate
    each: dict[str, list[Numbers]] = {name: [] for name in _OF_EACH}
    numbers: dict[str, list[NDArray[np.int64]]] = {level: [] for level in coder.levels}
    spectra = []
    for wav_BT in parts:
        codes = coder.encode(wav_BT.to(device))
        made_BT = coder.decode(codes)[:, 0].float().cpu()
        spectra.append(metrics.power_spectra(wav_BT, rate))
        each["si_sdr"].append(metrics.si_sdr(made_BT, wav_BT))
        each["log_mel"].append(metrics.log_mel_distance(made_BT, wav_BT, rate))
        each["bound"].append(metrics.rate_distortion(spectra[-1], coder.bits))
        each["gap"].append(each["bound"][-1] - each["si_sdr"][-1])
        for level, number_BK in codes.items():
            numbers[level].append(number_BK.cpu().numpy())
    whole = {name: np.concatenate(values) for name, values in each.items()}
    return whole, {level: np.concatenate(values) for level, values in numbers.items()}, np.concatenate(spectra)


def _summary(each: Mapping[str, Numbers], power_NF: Numbers, bits: float) -> dict[str, Any]:
    """The means of the numbers of sounds, with intervals, and the bound of their mean spectrum."""
    total_N1 = power_NF.sum(1, keepdims=True)
    heard = total_N1[:, 0] > 0  # silence has no spectrum
    mean_1F = (power_NF[heard] / total_N1[heard]).mean(0, keepdims=True) if heard.any() else power_NF[:1]
    found: dict[str, Any] = {name: metrics.over_people(each[name]).as_dict() for name in _OF_EACH}
    return found | {"class_bound": float(metrics.rate_distortion(mean_1F, bits)[0]), "sounds": len(power_NF)}


def _use(coder: SoundCoder, numbers: Mapping[str, NDArray[np.int64]]) -> dict[str, float | None]:
    """The share of the codes that occur, and their perplexity, of each level; None of a level that there is not."""
    found: dict[str, float | None] = {m.key: None for m in CodedSounds.compared if m.by == "codes"}
    for level, number_NK in numbers.items():
        count_K = metrics.code_counts(number_NK, coder.levels[level].vocabulary)
        found |= {f"used_{level}": metrics.used(count_K), f"perplexity_{level}": metrics.perplexity(count_K)}
    return found


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _decibels(interval: Mapping[str, float]) -> str:
    return f"{interval['value']:.1f} ({interval['low']:.1f} to {interval['high']:.1f})"
