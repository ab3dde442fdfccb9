"""Sound for pictures, whole: four small runs, the pipeline of them, what it is worth, and one page: `make sound`.

    python bench/sound.py                # packs, trains, evaluates, writes runs/sound/report.html
    python bench/sound.py --compare      # also the flat coder and the one of spectrograms
    python bench/sound.py --page         # only judges the pipeline and writes the page anew

    sounding things --> frame-labels, sound-classifier, sounds-vq
    codes of sounds-vq --> sounds-top, sounds-bottom
    all four --> runs/sound/sound.yaml --> generated sounds, judged by the classifier

Everything is synthetic. A run that is evaluated already is not repeated, one that was stopped is resumed.

Shape letters: N held-out sounds, M generated sounds, B sounds at once, T samples, P features.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from v2f import latent, metrics
from v2f.data.loader import read_usable
from v2f.data.manifest import Split, open_dataset
from v2f.data.transforms import ClassNumber, Waveform
from v2f.generate import generate
from v2f.metrics.arrays import distances
from v2f.pipeline import LABEL, NOISE, Pipeline, SoundOfPicture
from v2f.roles import SoundCoder, SoundReader
from v2f.runs.config import load_config
from v2f.runs.run import Run, build_system
from v2f.system import trained
from v2f.web import sounds
from v2f.web.curves import read_curves
from v2f.web.page import environment, fixed
from v2f.web.report import last_verdict
from v2f.web.spectrum import HEIGHT, WIDTH

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.machine import cpus
from bench.runs import REPOSITORY, finished, v2f, write
from bench.siblings import Table, about, tables

HOME = REPOSITORY / "runs" / "sound"
PIPELINE, JUDGED, PAGE = HOME / "sound.yaml", HOME / "judged.json", HOME / "report.html"
DATA, CODES = "data/sound", "data/sound-codes"
JUDGE, LABEL_NAME = "sound-classifier", "class"
OF_EACH = 100
"""Generated sounds of each class."""
SHOWN = 2
"""Sounds of each class on the page."""
_BATCH = 25
_METERS = ("accuracy", "perplexity", "perplexity_top", "perplexity_bottom", "si_sdr")
_FILM_S = 6.0


@dataclass(frozen=True)
class Part:
    """A run: its title, the key of the pipeline file that it has (empty: none), and its data set."""

    title: str
    key: str = ""
    data: str = DATA
    needs: tuple[str, ...] = ()


PARTS = {
    "frame-labels": Part("Labels of frames", "labels"),
    JUDGE: Part("The judge of the sounds"),
    "sounds-vq": Part("Codes of sounds: VQ-VAE-2 on the wave", "sound"),
    "sounds-top": Part("Top codes from a label", "top", CODES, ("sounds-vq",)),
    "sounds-bottom": Part("Bottom codes from top codes", "bottom", CODES, ("sounds-vq",)),
}
"""Recipe -> its run; one that is needed comes before those that need it."""
OTHERS = {
    "sounds-vq-flat": Part("Codes of sounds: one level"),
    "sounds-vq-mel": Part("Codes of sounds: VQ-VAE-2 on spectrograms"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--together", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    parser.add_argument("--compare", action="store_true", help="train the other two coders as well")
    parser.add_argument("--page", action="store_true", help="train nothing: judge the pipeline again, write the page")
    args = parser.parse_args()
    if not args.page:
        train_all({**PARTS, **(OTHERS if args.compare else {})}, args.together)
    HOME.mkdir(parents=True, exist_ok=True)
    PIPELINE.write_text(pipeline_file({name: folder_of(name) for name in PARTS}))
    pipeline = Pipeline(str(PIPELINE))
    judged = judge(pipeline, Run.open(folder_of(JUDGE)), str(REPOSITORY / DATA))
    judged["film"] = film(pipeline)
    write(JUDGED, {"device": cpus(), **judged})
    folders = {name: folder_of(name) for name in {**PARTS, **OTHERS}}
    PAGE.write_text(page(folders, pipeline, judged, str(REPOSITORY / DATA)))
    print(PAGE)
    return 0


# ------------------------------------------------------------------------------------------------ runs


def train_all(parts: Mapping[str, Part], together: int) -> None:
    """Pack the world, train and evaluate the runs, ``together`` at a time, each after those that it needs."""
    if not Path(REPOSITORY, DATA, "manifest.json").exists():
        v2f("shards", "pack", "shards/sounding-things.yaml", f"out={DATA}")
    runs: dict[str, Future[str]] = {}
    with ThreadPoolExecutor(together) as pool:
        coded: Future[None] | None = None
        for name, part in parts.items():
            if part.data == CODES and coded is None:
                coded = pool.submit(codes_once, runs["sounds-vq"])
            waits: list[Future[Any]] = [runs[each] for each in part.needs]
            runs[name] = pool.submit(
                trained_once, name, part, waits + ([coded] if part.data == CODES and coded else [])
            )
        for future in runs.values():
            future.result()


def codes_once(coder: "Future[str]") -> None:
    """Write the codes of the sounds beside them, unless they are there."""
    run = coder.result()
    if not Path(REPOSITORY, CODES, "manifest.json").exists():
        v2f("shards", "precompute", DATA, "--tokens", run, "--out", CODES)


def trained_once(name: str, part: Part, waits: Sequence[Future[Any]]) -> str:
    """Train and evaluate a run as soon as what it needs is there; its folder."""
    for future in waits:
        future.result()
    recipe = REPOSITORY / "launch" / "recipes" / f"{name}.yaml"
    steps = load_config(str(recipe)).train.steps
    return finished(str(recipe), f"sound-{name}", steps, {}, data=part.data)


def folder_of(name: str) -> str:
    """The folder of a run."""
    return str(REPOSITORY / "runs" / f"sound-{name}")


def pipeline_file(folders: Mapping[str, str]) -> str:
    """The pipeline file of the runs: recipe -> folder."""
    keys = {part.key: folders[name] for name, part in PARTS.items() if part.key}
    return yaml.safe_dump({**keys, "sampling": {"kind": "top-p", "p": 0.9}}, sort_keys=False)


# ----------------------------------------------------------------------------------------------- judging


@dataclass(frozen=True)
class Heard:
    """What the judge hears in a set of sounds."""

    named: dict[str, float]
    """Class -> share of its sounds that the judge gives this class."""
    accuracy: float
    frechet: float
    """Frechet distance of the judge's features to those of the held-out sounds."""
    recall: float
    """Share of the held-out sounds as near to a sound of the set as its third nearest in the set."""
    nearest: float
    """Median distance to the nearest training sound, relative to that of the held-out sounds."""


@dataclass
class Sounds:
    """A set of sounds with their classes and the judge's answers."""

    class_N: NDArray[np.int64]
    said_N: NDArray[np.int64]
    feature_NP: NDArray[np.float64]
    wav_NT: NDArray[np.float32] = field(repr=False)


@torch.no_grad()
def judge(pipeline: Pipeline, judge_run: Run, data: str, of_each: int = OF_EACH) -> dict[str, Any]:
    """What the judge hears in held-out sounds, in what the coder restores of them, in as many training sounds, and in
    ``of_each`` generated sounds of every class."""
    system, reader = pipeline.system(), judge_run.system()
    assert isinstance(reader, SoundReader), f"{judge_run.path} reads no sounds"
    names = system.names
    dataset = open_dataset(data)
    train = heard(reader, real(system, dataset.split("train")), names)
    held = heard(reader, real(system, dataset.split("test")), names)
    coder = heard(reader, _restored(system.coder, held), names)
    began = time.monotonic()
    made = heard(reader, drawn(system, of_each), names)
    seconds = time.monotonic() - began
    few = np.random.default_rng(0).permutation(len(train.class_N))[: len(held.class_N)]
    some = Sounds(train.class_N[few], train.said_N[few], train.feature_NP[few], train.wav_NT[few])
    kind = system.coder.sound
    lines = {"generated": made, "restored by the coder": coder, "training sounds": some, "held out": held}
    return {
        "lines": {line: _told(numbers(each, held, train, names)) for line, each in lines.items()},
        "counts": {line: len(each.class_N) for line, each in lines.items()},
        "seconds": seconds / (len(made.class_N) * kind.seconds),
        "judge": judge_run.name,
        "width": int(held.feature_NP.shape[1]),
    }


def _told(found: Heard) -> dict[str, Any]:
    """As JSON has it, which knows no NaN."""
    return {key: None if value != value else value for key, value in asdict(found).items()}


Parts = Iterator[tuple[Tensor, Tensor]]
"""Sounds [B,T] and their class numbers [B], a few at a time."""


def real(system: SoundOfPicture, split: Split) -> Parts:
    """The sounds of a split."""
    kind = system.coder.sound
    reads = {"wav": Waveform(kind.seconds, kind.rate), "class": ClassNumber(LABEL_NAME, system.names)}
    for batch in read_usable(split, reads, _BATCH, []):
        yield batch["wav"], batch["class"]


def _restored(coder: SoundCoder, found: Sounds) -> Parts:
    for start in range(0, len(found.class_N), _BATCH):
        rows = slice(start, start + _BATCH)
        yield (
            coder.decode(coder.encode(torch.from_numpy(found.wav_NT[rows])))[:, 0],
            torch.from_numpy(found.class_N[rows]),
        )


def drawn(system: SoundOfPicture, of_each: int) -> Parts:
    """Generated sounds, those of the seeds 0 to ``of_each`` - 1 for every class."""
    noise_MZ = torch.stack([latent.noise_of(system, seed)[NOISE] for seed in range(of_each)])
    for number in range(len(system.names)):
        for noise_BZ in noise_MZ.split(_BATCH):
            class_B = torch.full((len(noise_BZ),), number)
            yield system.sample({LABEL: class_B, NOISE: noise_BZ})["sound"][:, 0], class_B


@torch.no_grad()
def heard(reader: SoundReader, parts: Parts, names: Sequence[str]) -> Sounds:
    """Sounds with the judge's answers, as numbers of ``names``."""
    order = torch.tensor([names.index(name) for name in reader.labels[LABEL_NAME]])
    wavs, classes, said, features = [], [], [], []
    for wav_BT, class_B in parts:
        found = reader.read(wav_BT)
        wavs.append(wav_BT.numpy())
        classes.append(class_B.numpy())
        said.append(order[found.scores[LABEL_NAME].argmax(1)].numpy())
        features.append(found.features.double().numpy())
    return Sounds(np.concatenate(classes), np.concatenate(said), np.concatenate(features), np.concatenate(wavs))


def numbers(some: Sounds, held: Sounds, train: Sounds, names: Sequence[str]) -> Heard:
    """What is told of a set of sounds. Of the held-out ones themselves, distances to themselves mean nothing: NaN."""
    right = some.said_N == some.class_N
    named = {name: float(right[some.class_N == number].mean()) for number, name in enumerate(names)}
    own = some is held
    return Heard(
        named=named,
        accuracy=float(right.mean()),
        frechet=float("nan") if own else metrics.frechet_distance(some.feature_NP, held.feature_NP),
        recall=float("nan") if own else metrics.picture_distance(some.feature_NP, held.feature_NP).recall,
        nearest=_nearest(some, train) / _nearest(held, train),
    )


def _nearest(some: Sounds, train: Sounds) -> float:
    """The median distance to the nearest training sound that is not the sound itself."""
    scale_P = np.maximum(train.feature_NP.std(0), 1e-6)
    apart = np.concatenate([distances(part / scale_P, train.feature_NP / scale_P) for part in _split(some.feature_NP)])
    same = (some.wav_NT[:, None, :8] == train.wav_NT[None, :, :8]).all(2) & (apart < 1e-6)
    return float(np.median(np.where(same, np.inf, apart).min(1)))


def _split(feature_NP: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    return [feature_NP[start : start + 256] for start in range(0, len(feature_NP), 256)]


def film(pipeline: Pipeline) -> dict[str, Any]:
    """How long a silent film of six seconds takes to get its sound, the loading of the runs included."""
    silent, loud = HOME / "silent.mp4", HOME / "with-sound.mp4"
    if not silent.exists():
        v2f("shards", "film", "bark", "-o", str(silent), "--seconds", f"{_FILM_S:g}")
    began = time.monotonic()
    generate(pipeline, None, str(loud), video=str(silent))
    return {"seconds": time.monotonic() - began, "of": _FILM_S, "file": str(loud)}


# -------------------------------------------------------------------------------------------------- page


@dataclass(frozen=True)
class Row:
    """A line of the table of all runs."""

    name: str
    title: str
    parameters: int
    steps: int | None
    minutes: float
    numbers: dict[str, float | None]
    """``accuracy``, ``perplexity`` and others, from the last validation."""


@dataclass(frozen=True)
class Shown:
    """What the page shows of a run besides its line."""

    row: Row
    about: str
    verdict: str | None
    tables: list[Table]


def page(folders: Mapping[str, str], pipeline: Pipeline, judged: Mapping[str, Any], data: str) -> str:
    """The page: recipe -> folder of its run; runs that are not evaluated are left out."""
    done = {name: folder for name, folder in folders.items() if Path(folder, "eval.json").exists()}
    system = pipeline.system()
    split = open_dataset(data).split("test")
    coded = sounds.coded(system.coder, split, LABEL_NAME, system.names)
    vocabularies = {level: kind.vocabulary for level, kind in system.coder.levels.items()}
    base = environment()
    base.filters["fixed"] = fixed
    own = jinja2.FileSystemLoader(Path(__file__).parent)
    template = base.overlay(loader=jinja2.ChoiceLoader([own, base.loader or own])).get_template("sound.html.j2")
    return template.render(
        runs=[shown(name, folder) for name, folder in done.items()],
        judged=judged,
        device=cpus(),
        generated=generated(system, SHOWN),
        restored=sounds.restored(coded, SHOWN),
        planes={"VQ-VAE-2 on the wave": sounds.planes(coded, vocabularies)} | other_planes(done, split),
        side=sounds.SIDE,
        width=WIDTH,
        height=HEIGHT,
    )


def other_planes(done: Mapping[str, str], split: Split) -> dict[str, list[sounds.Plane]]:
    """The codes of the other coders that were trained."""
    found = {}
    for name in OTHERS.keys() & done.keys():
        coder = Run.open(done[name]).system()
        assert isinstance(coder, SoundCoder)
        vocabularies = {level: kind.vocabulary for level, kind in coder.levels.items()}
        found[OTHERS[name].title] = sounds.planes(sounds.coded(coder, split, LABEL_NAME), vocabularies)
    return found


def shown(name: str, folder: str) -> Shown:
    """What the page shows of the run in ``folder``."""
    from v2f.evaluation.subjects import Subject

    run = Run.open(folder)
    system = build_system(run.config)
    curves = read_curves(str(Path(folder, "metrics.jsonl")))
    last = {key.removeprefix("valid/"): points[-1][1] for key, points in curves.items() if key.startswith("valid/")}
    row = Row(
        name=name,
        title={**PARTS, **OTHERS}[name].title,
        parameters=sum(each.numel() for module in trained(system).values() for each in module.parameters()),
        steps=run.step if isinstance(run.step, int) else None,
        minutes=training_seconds(folder) / 60,
        numbers={
            key: last.get(key) for key in ("accuracy", "perplexity", "perplexity_top", "perplexity_bottom", "si_sdr")
        },
    )
    recipe = REPOSITORY / "launch" / "recipes" / f"{name}.yaml"
    return Shown(row, about(recipe), last_verdict(system, curves), tables(Subject("A", run)))


def training_seconds(folder: str) -> float:
    """How long a run trained: of each start, the time from it to its last logged point."""
    starts = sorted(json.loads(line)["time"] for line in Path(folder, "starts.jsonl").read_text().splitlines())
    times = [json.loads(line)["time"] for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    total = 0.0
    for start, end in zip(starts, [*starts[1:], float("inf")], strict=True):
        total += max((each for each in times if start <= each < end), default=start) - start
    return total


@torch.no_grad()
def generated(system: SoundOfPicture, count: int) -> dict[str, list[sounds.Clip]]:
    """Class -> the sounds of the first seeds."""
    kind = system.coder.sound
    found: dict[str, list[sounds.Clip]] = {name: [] for name in system.names}
    for wav_BT, class_B in drawn(system, count):
        for wav_T, number in zip(wav_BT.numpy(), class_B.tolist(), strict=True):
            name = system.names[number]
            found[name].append(sounds.clip(f"generated, seed {len(found[name])}", wav_T, kind.rate))
    return found


if __name__ == "__main__":
    sys.exit(main())
