"""Speakers: do a system's embeddings tell people apart, and does it recognize the people seen in training?

*Verification*, on people who were not in training and on held-out clips of people who were: trials of two clips with
the cosine of their embeddings as the score; the equal error rate (EER) and the least detection cost (minDCF) of
:mod:`v2f.metrics.verification`. The trials are drawn from the split, or are those of a list (``v2f eval --trials``).
*Identification*, on held-out clips of people who were in training: the share of clips whose highest score is that of
their own person, each person with the same weight.

Shape letters: M clips, T trials, W embedding width, B batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from v2f import metrics
from v2f.data.loader import read_usable
from v2f.data.manifest import Split, open_dataset
from v2f.data.transforms import PersonNumber
from v2f.errors import V2FError
from v2f.evaluation.observers import BATCH, BY, in_batches
from v2f.evaluation.protocol import (
    SPLITS,
    Job,
    Measured,
    Metric,
    Protocol,
    no_usable_sample,
    of_each,
    print_remarks,
    summary_of,
)
from v2f.evaluation.trials import ListedTrials, read_trials
from v2f.metrics import Interval, Trials
from v2f.metrics.people import mean_of_each
from v2f.metrics.verification import P_TARGETS
from v2f.system import Embedding, Recognizer, Sound, System, Transform, device_of, of_kind

VERIFIED = {"eer": 0.5, **{f"min_dcf_{p}": 1.0 for p in P_TARGETS}}
"""The numbers of verification, and what a system reaches that tells nothing."""


@dataclass
class EmbeddedClips:
    """What the system made of clips. ``*_M``: a row per clip."""

    row_of: dict[tuple[str, int], int] = field(default_factory=dict)
    """Split and number of a sample -> its row; clips that could not be used have none."""
    emb_M: list[NDArray[np.float32]] = field(default_factory=list)
    person_M: list[int] = field(default_factory=list)
    """Numbers in the manifest."""
    right_M: list[float] = field(default_factory=list)
    """Whether the clip was recognized; NaN if its person was not in training."""
    left_out: list[str] = field(default_factory=list)
    """A line for each sample that could not be used."""


class Speakers(Protocol):
    """Verification of unseen people, identification of the people seen in training."""

    own = "speaker"
    compared = (
        Metric("accuracy", "identified, %", 1, "classes", scale=100, digits=1),
        Metric("eer", "EER, %", -1, "trials", scale=100),
        *(Metric(f"min_dcf_{p}", f"minDCF at {p}", -1, "trials", digits=3) for p in P_TARGETS),
    )
    explained = (
        "identified: clips whose highest score is that of their own person, among the people seen in training; EER: "
        "the error rate at the threshold where same-person and different-person trials are misjudged equally often; "
        "minDCF: the least detection cost if a trial is of the same person with this probability, relative to always "
        "giving the same answer"
    )
    observed = False
    takes_trials = True

    def splits(self, dataset: Any) -> list[str]:
        return [name for name in SPLITS if name in dataset.splits]

    def measure(self, job: Job, name: str) -> Measured:
        split, listed = job.dataset.split(name), None
        if job.trials is not None and name == "test":
            listed = read_trials(job.trials, job.dataset)
        numbering = _numbering(job) if name == "seen" else "only the people seen in training have a class"
        clips, trials, dropped = _heard(job, split, listed, None if isinstance(numbering, str) else numbering)
        people = np.array(clips.person_M)
        lines, each, curve = _verified(clips, trials)
        by: dict[str, dict[str, Any]] = {"trials": {"lines": {self.own: lines}}}
        chance, shares = dict(VERIFIED), {"trials": each}
        notes = _notes(job, trials, listed, dropped)
        if isinstance(numbering, PersonNumber):
            accuracy_P = mean_of_each(np.array(clips.right_M), people)
            known_P = accuracy_P[np.isfinite(accuracy_P)]
            accuracy = metrics.over_people(known_P).as_dict() if len(known_P) else None
            by["classes"] = {"lines": {self.own: {"accuracy": accuracy}}}
            chance["accuracy"], shares["classes"] = 1 / len(numbering.people), {"accuracy": accuracy_P}
        elif name == "seen":
            notes.append(f"nobody is identified: {numbering}")
        result = {
            "what": SPLITS[name],
            "people": len(np.unique(people)),
            "clips": len(people),
            "trials": {
                "same": int(trials.same_T.sum()),
                "different": int((~trials.same_T).sum()),
                "list": None if listed is None else listed.sha256,
            },
            "left_out": summary_of(clips.left_out),
            "chance": chance,
            "det": curve,
            "by": by,
            "notes": notes,
            "verdict": verdict(by, chance),
        }
        return result, of_each(np.unique(people).tolist(), shares)

    def show(self, name: str, result: Mapping[str, Any], console: Console) -> None:
        """Print a table for verification, and one for identification if there is one."""
        split = result["splits"][name]
        same, different = split["trials"]["same"], split["trials"]["different"]
        counts = {"trials": f"{same:,} same-person trials, {different:,} of different people", "classes": ""}
        for by, observed in split["by"].items():
            title = f"{name}: {split['what']}, {split['people']:,} people, {split['clips']:,} clips; {BY[by]}"
            table = Table(title=title, title_justify="left")
            table.add_column(counts[by])
            shown = [metric for metric in self.compared if metric.by == by]
            for metric in shown:
                table.add_column(metric.title, justify="right")
            for line, numbers in observed["lines"].items():
                values = [numbers[metric.key] for metric in shown]
                cells = [
                    "-" if value is None else metric.interval(Interval(**value))
                    for metric, value in zip(shown, values, strict=True)
                ]
                table.add_row(self.title(line, observed), *cells, style="bold")
            table.add_row("chance", *(metric.shown(split["chance"][metric.key]) for metric in shown))
            console.print(table)
        print_remarks(split, console)

    def title(self, line: str, observed: Mapping[str, Any]) -> str:
        return "this run"


def heard_and_embedded(system: System) -> tuple[str, str]:
    """The names of the voice that a system takes and of the embedding that it makes from it; V2FError if it takes
    anything else, or makes no embedding."""
    heard = [name for name, sound in of_kind(system.asks(), Sound) if sound.voice]
    made = [name for name, _ in of_kind(system.makes(), Embedding)]
    if len(heard) != 1 or len(system.asks()) != 1 or not made:
        asks, makes = ", ".join(system.asks()) or "nothing", ", ".join(system.makes())
        raise V2FError(f"no embedding of a voice: this system asks for {asks}, and makes {makes}")
    return heard[0], made[0]


def verdict(by: Mapping[str, Any], chance: Mapping[str, float]) -> str | None:
    """What is wrong with the embeddings, in a sentence; None if nothing is."""
    eer = by["trials"]["lines"][Speakers.own]["eer"]
    if eer is not None and eer["high"] >= chance["eer"]:
        return f"the embeddings do not tell people apart: the equal error rate is {100 * eer['value']:.0f} %"
    if "classes" in by:
        accuracy = by["classes"]["lines"][Speakers.own]["accuracy"]
        if accuracy is not None and accuracy["low"] <= chance["accuracy"]:
            return "the people seen in training are not recognized more often than by chance"
    return None


def _numbering(job: Job) -> PersonNumber | str:
    """The numbers of the people seen in training, or the reason why they are not known."""
    if not isinstance(job.system, Recognizer):
        return "this system has no classes"
    if not job.trained:
        return f"{job.dataset.root} is not the data set that the run was trained on"
    sources = job.run.config.data.sources
    try:  # an export does not know where its data set is
        return PersonNumber().bind(
            [job.dataset] if len(sources) == 1 else [open_dataset(each.path) for each in sources]
        )
    except V2FError as error:
        return str(error)


def _heard(
    job: Job, split: Split, listed: ListedTrials | None, numbering: PersonNumber | None
) -> tuple[EmbeddedClips, Trials, int]:
    """The clips of the trials (of the whole split for identification), the trials between the usable ones, and how many
    trials were dropped because a clip of theirs cannot be used. V2FError if no clip is usable."""
    clips = EmbeddedClips()
    ends: list[tuple[str, int]]
    if listed is None:
        trials = metrics.draw_trials(split.identity_N[: job.limit])
        wanted = np.unique(np.concatenate([trials.one_T, trials.other_T])).tolist()
        if numbering is not None or not trials.complete:
            wanted = list(range(split.samples))[: job.limit]
        _hear(job, split, wanted, numbering, clips)
        ends = [(split.name, number) for number in range(split.samples)]
    else:
        trials, ends = listed.trials, [("", 0)] * len(listed.samples)
        for part in map(job.dataset.split, job.dataset.splits):
            rows = [row for row, at in enumerate(listed.samples) if 0 <= at - part.first < part.samples]
            for row in rows:
                ends[row] = part.name, listed.samples[row] - part.first
            _hear(job, part, sorted(ends[row][1] for row in rows), None, clips)
    if not clips.person_M:
        raise no_usable_sample(job.dataset.root, split.name, clips.left_out)
    row_M = np.array([clips.row_of.get(end, -1) for end in ends])
    one_T, other_T = row_M[trials.one_T], row_M[trials.other_T]
    kept_T = (one_T >= 0) & (other_T >= 0)
    return clips, Trials(one_T[kept_T], other_T[kept_T], trials.same_T[kept_T]), int((~kept_T).sum())


def _hear(job: Job, split: Split, samples: Sequence[int], numbering: PersonNumber | None, clips: EmbeddedClips) -> None:
    """Add the embeddings of samples of ``split`` to ``clips``, and with a numbering whether they were recognized."""
    if not samples:
        return
    system, console = job.system, job.console
    heard, made = heard_and_embedded(system)
    reads: dict[str, Transform] = {heard: system.transforms()[heard]}
    if numbering is not None:
        reads["person"] = numbering

    def function(wav_BT: Tensor) -> tuple[Tensor, ...]:
        embedding_BW = system.sample({heard: wav_BT})[made]
        if numbering is None:
            return (embedding_BW,)
        return embedding_BW, cast(Recognizer, system).scores(wav_BT).argmax(dim=1, keepdim=True)

    batches = read_usable(split, reads, BATCH, clips.left_out, samples=samples)
    steps, what = -(-len(samples) // BATCH), f"{split.name}: voices"
    for batch in track(batches, what, total=steps, console=console, disable=console.quiet, transient=True):
        columns = in_batches(function, batch[heard], device_of(system))
        for number in batch["slot"].tolist():
            clips.row_of[split.name, number] = len(clips.row_of)
        clips.emb_M.extend(columns[0])
        clips.person_M += batch["identity"].tolist()
        if numbering is not None:
            person_B = batch["person"].numpy()
            clips.right_M += np.where(person_B >= 0, columns[1][:, 0] == person_B, np.nan).tolist()


def _verified(
    clips: EmbeddedClips, trials: Trials
) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]], dict[str, list[float]] | None]:
    """The numbers of verification, each person's share, and the DET curve; no numbers if all trials are of one kind."""
    if not trials.complete:
        return dict.fromkeys(VERIFIED), {}, None
    found = metrics.verification(trials.scores(np.stack(clips.emb_M)), trials, clips.person_M)
    numbers = {f"min_dcf_{p}": interval.as_dict() for p, interval in found.min_dcf.items()}
    curve = metrics.det_curve(found.miss_K, found.alarm_K)
    return {"eer": found.eer.as_dict(), **numbers}, dict(found.each), curve


def _notes(job: Job, trials: Trials, listed: ListedTrials | None, dropped: int) -> list[str]:
    """What the numbers of a split lack, and why."""
    notes = []
    if dropped:
        notes.append(f"{dropped} trials are left out, because a clip of theirs cannot be used")
    if not trials.complete:
        kind = "of the same person" if not trials.same_T.any() else "of different people"
        notes.append(f"there are no two clips {kind}, so nothing is verified")
    if listed is None:
        return notes
    if listed.missing:
        count, whole = len(listed.missing), len(listed.missing) + len(listed.trials)
        notes.append(
            f"{count} of the {whole} trials in {job.trials} are left out: {job.dataset.root} does not have their "
            f"clips, the first in {listed.missing[0]}"
        )
    if job.trained:
        names, identity_N = job.dataset.manifest.identities, job.dataset.index.identity
        people, trained = {names[identity_N[each]] for each in listed.samples}, set(job.dataset.trained)
        if people & trained:
            notes.append(f"{len(people & trained)} of the {len(people)} people in {job.trials} were in training")
    return notes
