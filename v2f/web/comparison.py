"""Several runs on one self-contained page: differences, which of them are larger than noise, curves, the same voices.

    RUN, RUN, ... --compare--> numbers and verdicts ------------------------------\\
                  their metrics.jsonl -> curves over each other -------------------+-> compare.html
                  their systems + the same voices -> faces beside each other -----/

If a run lacks a checkpoint, ``eval.json``, logged points or its data, the page is written without them and says so.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from v2f import __version__, generate, latent
from v2f.data.manifest import Dataset, open_dataset
from v2f.data.transforms import Waveform
from v2f.errors import V2FError
from v2f.evaluation import protocols
from v2f.evaluation.attributes import FEW
from v2f.evaluation.compare import Comparison, compare
from v2f.evaluation.comparison_tables import show
from v2f.evaluation.labelled import LabelledPictures, real_of_each
from v2f.evaluation.observers import BY
from v2f.evaluation.pictures_from_noise import PicturesFromNoise
from v2f.evaluation.protocol import MEASURED, SPLITS, percent
from v2f.evaluation.subjects import Subject, gather
from v2f.given import read_voice
from v2f.storage import store
from v2f.system import System, to_picture
from v2f.web import report
from v2f.web.curves import HEIGHT, WIDTH, charts, read_curves
from v2f.web.dataset import is_synthetic
from v2f.web.page import environment, sound_uri

VOICES = 6
_DRAWN = 24  # pictures from noise per run
_OF_EACH = 5  # pictures of each class per run
_RATE = 16_000
_PLAYED_S = 30  # of a long recording
_SAID = 8  # verdicts at the top of the page


@dataclass
class Heard:
    """One voice, and the face that each run makes from it; pictures and sound are data URIs."""

    name: str
    words: str = ""
    reference: str | None = None
    possible: str | None = None
    sound: str = ""
    seconds: float = 0.0
    """How much of it can be played: the longest that any of the runs hears."""
    faces: dict[str, str] = field(default_factory=dict)
    """By the run's letter."""


@dataclass
class Shown:
    """What the runs make from the same voices or the same noise."""

    heard: dict[str, Heard] = field(default_factory=dict)
    split: str | None = None
    """The split whose people are shown; None: recordings that the user named."""
    dataset: Dataset | None = None
    drawn: dict[str, list[str]] = field(default_factory=dict)
    """Letter -> pictures from noise, in the order of the noise."""
    photos: list[str] = field(default_factory=list)
    labelled: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Letter -> class -> pictures made from it, of the same codes for all runs."""
    labelled_real: dict[str, list[str]] = field(default_factory=dict)
    """Class -> held-out pictures of it."""
    notes: list[str] = field(default_factory=list)


def comparison(
    names: Sequence[str],
    output: str,
    *,
    voices: int | None = None,
    recordings: Sequence[str] = (),
    data: str | None = None,
) -> Comparison:
    """Compare the runs ``names``, write the page ``output``, print the table.

    ``voices``: how many unseen people are shown, the first ones of the data set; None: 6, or none if ``recordings``
    (audio files) are given. ``data``: the data set of these people; None: the one that all runs were trained on.
    V2FError unless 2 to 8 different runs are named, and for a recording without a usable voice.
    """
    if not output.lower().endswith((".html", ".htm")):
        raise V2FError(f"{output}: the comparison is written as a page; give the output a name that ends in .html")
    subjects = gather(names)
    found = compare(subjects)
    show(found, Console(width=None if sys.stdout.isatty() else 132))
    count = voices if voices is not None else 0 if recordings else VOICES
    shown = look(subjects, count, recordings, data)
    curves = [read_curves(store.join(subject.run.path, "metrics.jsonl")) for subject in subjects]
    stand_ins = sorted({name for subject in subjects for name in (subject.evaluated or {}).get("stand_ins", [])})
    first = found.splits[0] if found.splits else None
    said = [outcome for outcome in found.larger if outcome.split == first]
    page = (
        environment()
        .get_template("comparison.html.j2")
        .render(
            comparison=found,
            letters=[subject.letter for subject in subjects],
            place={subject.letter: number for number, subject in enumerate(subjects)},
            without_curves=[s for s, of in zip(subjects, curves, strict=True) if not of],
            losses=charts(curves, "loss/"),
            meters=charts(curves, "valid/"),
            machine=charts(curves, "grad_norm/", "rate/", "speed/"),
            shown=shown,
            real=shown.dataset is not None and not is_synthetic(shown.dataset),
            what=MEASURED,
            by=BY,
            few=FEW,
            percent=percent,
            stand_ins=stand_ins,
            verdicts=[
                f"{subject.letter}, {MEASURED[split]}: {numbers['verdict']}"
                for subject in subjects
                for split, numbers in (subject.evaluated or {"splits": {}})["splits"].items()
                if numbers["verdict"]
            ],
            first=first,
            said=said[:_SAID],
            more=len(found.larger) - len(said[:_SAID]),
            disclaimer=generate.DISCLAIMER,
            width=WIDTH,
            height=HEIGHT,
            version=__version__,
        )
    )
    store.write_bytes(output, page.encode())
    for note in shown.notes:
        print(f"note: {note}")
    print(f"written: {output}")
    return found


def look(subjects: Sequence[Subject], count: int, recordings: Sequence[str], data: str | None) -> Shown:
    """Run the same voices, or the same noise, through each run's system, one after the other."""
    shown = Shown()
    for path in recordings:
        read_voice(path, _RATE)  # fails here if the user's file is unusable, before any run is loaded
    try:
        shown.dataset = _dataset(subjects, data)
    except V2FError as error:
        if data is not None:
            raise
        if count:
            shown.notes.append(f"no people of a data set are shown: {error}")
    if shown.dataset is not None:
        shown.split = next((split for split in SPLITS if split in shown.dataset.splits), None)
        if shown.split is None:
            shown.notes.append(f"{shown.dataset.root} has neither unseen people nor unseen clips to show")
    for subject in subjects:
        try:
            system = subject.run.system()
            if generate.is_face_of_voice(system):
                _hear(shown, subject, system, generate.voice_input(subject.run, system), count, recordings)
            elif isinstance(protocols.of(system), PicturesFromNoise) and shown.dataset is not None and count:
                drawn, photos = report.from_noise(shown.dataset, subject.run, system, _DRAWN)
                shown.drawn[subject.letter] = drawn
                shown.photos = shown.photos or photos
            elif isinstance(protocols.of(system), LabelledPictures) and latent.asked_label(system) is not None:
                _from_labels(shown, subject, system)
        except V2FError as error:
            shown.notes.append(f"{subject.letter} shows no faces: {error}")
    letters = {*shown.drawn, *shown.labelled}
    widths = {s.run.config.system.model_dump().get("noise") for s in subjects if s.letter in letters}
    if len(widths) > 1:
        shown.notes.append("the noise of these runs has different widths, so their pictures are of different noise")
    return shown


def _dataset(subjects: Sequence[Subject], data: str | None) -> Dataset:
    if data is not None:
        return open_dataset(data)
    found: dict[str, Dataset] = {}
    absent: dict[str | None, V2FError] = {}
    for subject in subjects:
        try:
            dataset = open_dataset(subject.run.config.data.home)
            found.setdefault(dataset.fingerprint, dataset)
        except V2FError as error:  # an export does not know where its data is
            absent[subject.run.info.get("fingerprint")] = error
    for fingerprint in absent.keys() - found.keys():
        raise absent[fingerprint]
    if len(found) > 1:
        raise V2FError("the runs have different data; name one data set (--data PATH) or recordings (--voice FILE)")
    return next(iter(found.values()))


def _from_labels(shown: Shown, subject: Subject, system: System) -> None:
    """Add the pictures that one system makes of each class, and real ones beside the first system's."""
    notes = generate.provenance(subject.run, system)
    rows = latent.grid(system, _OF_EACH)
    shown.labelled[subject.letter] = {
        name: [report.picture_uri(one, notes | {"Label": name}) for one in pictures] for name, pictures in rows.items()
    }
    if shown.dataset is not None and not shown.labelled_real:
        real = real_of_each(shown.dataset, system, _OF_EACH)
        shown.labelled_real = {
            name: [report.picture_uri(one) for one in to_picture(pictures)] for name, pictures in real.items()
        }


def _hear(
    shown: Shown, subject: Subject, system: System, hears: Waveform, count: int, recordings: Sequence[str]
) -> None:
    """Add the faces that one system makes."""
    letter, notes = subject.letter, generate.provenance(subject.run, system)
    for path in recordings:
        wav_T = read_voice(path, hears.sample_rate)
        heard = shown.heard.setdefault(path, Heard(Path(path).name))
        wav_WT = torch.from_numpy(generate.windows(wav_T, round(hears.seconds * hears.sample_rate)))
        heard.faces[letter] = report.picture_uri(generate.face_of(system, wav_WT), notes)
        if not heard.sound:
            played_T = wav_T[: _PLAYED_S * hears.sample_rate]
            heard.sound, heard.seconds = (
                sound_uri(played_T, hears.sample_rate),
                len(played_T) / hears.sample_rate,
            )
    if shown.dataset is None or shown.split is None or not count:
        return
    for pair in report.pairs(shown.dataset, shown.split, subject.run, system, count):
        heard = shown.heard.setdefault(pair.name, Heard(pair.name, pair.words, pair.reference, pair.possible))
        heard.faces[letter] = pair.face
        if hears.seconds > heard.seconds:
            heard.sound, heard.seconds = pair.sound, hears.seconds
