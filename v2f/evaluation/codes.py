"""Codes of sounds: how well does a system predict the codes of held-out sounds, and how sure is it of those it draws?

Cross-entropy, perplexity and accuracy are of held-out codes, each predicted from the condition and the codes before it.
Beside them stands what the frequencies of the codes in training reach. The perplexity of drawn codes is the number that
the document tells (2024): codes are drawn by top-k sampling with k = 6 for the conditions of held-out samples, and
scored by the system itself. It says how sure the system is, not whether it is right.

Shape letters: N samples, S condition, T codes, V vocabulary.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from v2f import metrics
from v2f.data.loader import read_usable
from v2f.data.manifest import Dataset, Split
from v2f.data.transforms import bound
from v2f.errors import V2FError
from v2f.evaluation.observers import BATCH, BY
from v2f.evaluation.protocol import (
    HELD_OUT,
    Job,
    Measured,
    Metric,
    Protocol,
    no_usable_sample,
    of_each,
    print_remarks,
    summary_of,
)
from v2f.keyed import keyed_rng
from v2f.nn.sampling import Sampling
from v2f.roles import CodePredictor
from v2f.system import Label, Tokens, device_of, of_kind

_DRAWN = 32  # samples for whose conditions codes are drawn
_HOW = Sampling(kind="top-k", k=6)
_DRAW_KEY = 0x6E05  # first part of the random key, so that no two uses share a stream
_RANKS = (1, 5, 20)
_FEWEST = 1.0  # added to the count of each code in training, so that none has the probability 0


class CodesOfSounds(Protocol):
    """Codes that a system predicts and draws."""

    own = "coded"
    compared = (
        Metric("cross_entropy", "nats a code", -1, "likelihood", digits=3),
        *(Metric(f"accuracy_{rank}", f"among the {rank} likeliest, %", 1, "likelihood", "", 100, 1) for rank in _RANKS),
        Metric("perplexity", "perplexity", -1, "likelihood", digits=2),
        Metric("drawn_perplexity", "perplexity of drawn codes", 0, "likelihood", digits=2),
    )
    explained = (
        "nats a code: minus the mean logarithm of the probability of each held-out code, given the condition and the "
        "codes before it; perplexity: its exponential; among the k likeliest: how often the code is; frequencies: the "
        "same codes predicted by how often each is in training, whatever stands before; drawn: codes that the system "
        "draws itself, top-k with k = 6"
    )
    observed = False

    def splits(self, dataset: Dataset) -> list[str]:
        return [name for name in HELD_OUT if name in dataset.splits][:1]

    def measure(self, job: Job, name: str) -> Measured:
        system, left_out = job.system, list[str]()
        if not isinstance(system, CodePredictor):
            raise V2FError("this system predicts no codes")
        found = _read(job.dataset.split(name), system, left_out, job.limit)
        if found is None:
            raise no_usable_sample(job.dataset.root, name, left_out)
        condition_NS, code_NT, number_N = found
        nats_N, right = _scored(system, condition_NS, code_NT)
        ((level, _),) = of_kind(system.makes(), Tokens)
        line: dict[str, Any] = {"cross_entropy": metrics.over_people(nats_N).as_dict()}
        line["perplexity"] = {each: math.exp(value) for each, value in line["cross_entropy"].items()}
        line |= {f"accuracy_{rank}": metrics.over_people(right_N).as_dict() for rank, right_N in right.items()}
        line["drawn_perplexity"] = _drawn_perplexity(system, condition_NS[:_DRAWN])
        lines, notes = {self.own: line}, []
        trained = job.run.config.data.split
        if trained in job.dataset.splits:
            lines["frequencies"] = _by_frequencies(job.dataset.split(trained), system, code_NT)
        else:
            notes.append(f"this data set has no split {trained!r}, so the row of the codes' frequencies is missing")
        verdict = None
        if "frequencies" in lines and line["cross_entropy"]["low"] >= lines["frequencies"]["cross_entropy"]["value"]:
            verdict = "the codes are predicted no better than by their frequencies in training"
        result = {
            "what": f"{level} codes of held-out samples ({name})",
            "people": len(number_N),
            "left_out": summary_of(left_out),
            "by": {"likelihood": {"lines": lines}},
            "level": level,
            "codes": code_NT.numel(),
            "notes": notes,
            "verdict": verdict,
        }
        shares = {"cross_entropy": nats_N} | {f"accuracy_{rank}": right_N for rank, right_N in right.items()}
        return result, of_each(number_N.tolist(), {"likelihood": shares})

    def show(self, name: str, result: Mapping[str, Any], console: Console) -> None:
        """Print a table with the system and the frequencies."""
        split = result["splits"][name]
        title = f"{name}: {split['what']}, {split['people']} samples, {split['codes']} codes; {BY['likelihood']}"
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for metric in self.compared:
            table.add_column(metric.title, justify="right")
        for line, numbers in split["by"]["likelihood"]["lines"].items():
            cells = []
            for metric in self.compared:
                value = numbers.get(metric.key)
                between = isinstance(value, Mapping)
                cells.append(metric.interval(metrics.Interval(**value)) if between else metric.shown(value))
            table.add_row(self.title(line, {}), *cells, style="bold" if line == self.own else None)
        console.print(table)
        print_remarks(split, console)

    def title(self, line: str, observed: Mapping[str, Any]) -> str:
        return "this run" if line == self.own else "frequencies in training"


def _read(
    split: Split, system: CodePredictor, left_out: list[str], limit: int | None
) -> tuple[Tensor, Tensor, NDArray[np.int64]] | None:
    """Conditions [N,S], codes [N,T] and the numbers [N] of the usable samples; None if there are none."""
    ((condition, kind),) = [(name, each) for name, each in system.asks().items() if isinstance(each, Label | Tokens)]
    ((level, _),) = of_kind(system.makes(), Tokens)
    reads = bound({name: system.transforms()[name] for name in (condition, level)}, split.datasets)
    batches = list(read_usable(split, reads, BATCH, left_out, limit=limit))
    if not batches:
        return None
    condition_NS, code_NT, number_N = (
        torch.cat([batch[name] for batch in batches]) for name in (condition, level, "slot")
    )
    return condition_NS[:, None] if isinstance(kind, Label) else condition_NS, code_NT, number_N.numpy()


def _scored(
    system: CodePredictor, condition_NS: Tensor, code_NT: Tensor
) -> tuple[NDArray[np.float64], dict[int, NDArray[np.float64]]]:
    """Nats a code [N], and for each rank the share [N] of codes among so many likeliest."""
    nats, ranks, device = [], [], device_of(system)
    for condition, code in zip(condition_NS.split(BATCH), code_NT.split(BATCH), strict=True):
        found = system.score(condition.to(device), code.to(device))
        nats.append(found.nats.double().mean(1).cpu())
        ranks.append(torch.stack([(found.rank < rank).double().mean(1).cpu() for rank in _RANKS], 1))
    return torch.cat(nats).numpy(), dict(zip(_RANKS, torch.cat(ranks).numpy().T, strict=True))


def _drawn_perplexity(system: CodePredictor, condition_NS: Tensor) -> float:
    """The perplexity under the whole distribution of codes that the system draws."""
    numbers = np.stack([keyed_rng(_DRAW_KEY, n).random(system.target.length) for n in range(len(condition_NS))])
    condition_NS = condition_NS.to(device_of(system))
    drawn_NT = system.draw(condition_NS, torch.from_numpy(numbers).to(condition_NS.device), _HOW)
    return math.exp(float(system.score(condition_NS, drawn_NT).nats.double().mean()))


def _by_frequencies(trained: Split, system: CodePredictor, code_NT: Tensor) -> dict[str, Any]:
    """The numbers of held-out codes that are predicted by their frequencies in the split ``trained``."""
    ((level, kind),) = of_kind(system.makes(), Tokens)
    count_V = torch.full((kind.vocabulary,), _FEWEST, dtype=torch.float64)
    for batch in read_usable(trained, bound({level: system.transforms()[level]}, trained.datasets), BATCH, []):
        count_V += batch[level].flatten().bincount(minlength=kind.vocabulary)
    nats_N = -(count_V / count_V.sum()).log()[code_NT].mean(1).numpy()
    rank_V = count_V.argsort(descending=True, stable=True).argsort()
    line: dict[str, Any] = {"cross_entropy": metrics.over_people(nats_N).as_dict()}
    line["perplexity"] = {each: math.exp(value) for each, value in line["cross_entropy"].items()}
    for rank in _RANKS:
        right_N = (rank_V[code_NT] < rank).double().mean(1).numpy()
        line[f"accuracy_{rank}"] = metrics.over_people(right_N).as_dict()
    return line
