"""A run on one self-contained page: reference photos beside generated faces, then its evaluation.

    RUN/{config.yaml, run.json, metrics.jsonl, eval.json, checkpoints} + its data set -> RUN/report.html

A run that makes faces from noise has another page: generated pictures, samples by step, the verdict.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jinja2 import UndefinedError
from numpy.typing import NDArray
from torch import Tensor

from v2f import __version__, generate, latent, metrics
from v2f.config import dump_yaml
from v2f.data import media
from v2f.data.loader import read_usable
from v2f.data.manifest import Dataset, open_dataset
from v2f.data.transforms import Factors, Photo, Waveform
from v2f.errors import V2FError
from v2f.evaluation import evaluate, protocols
from v2f.evaluation.attributes import FEW
from v2f.evaluation.clips import heard_and_drawn, world_of
from v2f.evaluation.faces_of_voices import FacesOfVoices
from v2f.evaluation.observers import BY, first_observer
from v2f.evaluation.pictures_from_noise import PicturesFromNoise, noise_input_and_picture_output, people_of
from v2f.evaluation.protocol import HELD_OUT, SPLITS, percent
from v2f.evaluation.speakers import Speakers
from v2f.roles import SoundCoder
from v2f.runs.run import Run
from v2f.storage import store
from v2f.system import System, Transform, device_of, to_picture
from v2f.tracking.rollback import outdated_pictures
from v2f.web import sounds
from v2f.web.curves import HEIGHT, WIDTH, Curves, charts, duel, read_curves
from v2f.web.det import SIDE, Det, det
from v2f.web.page import data_uri, environment, sound_uri
from v2f.world import bounds
from v2f.world.people import FACTORS, VOICE, World

FILE = "report.html"
PEOPLE_SHOWN = 12
PICTURES_SHOWN = 48
SHEETS_SHOWN = 5
_SHEET = re.compile(r"step-\d+\.png")
_NOTABLE = 0.8  # standard deviations beyond which a voice is called low, breathy, ...


@dataclass(frozen=True)
class Pair:
    """One person of the figure; pictures and sound are data URIs."""

    name: str
    reference: str
    face: str
    possible: str | None
    """U1: the face of the true voice factors, with everything else average."""
    sound: str
    words: str
    """What the voice is like; synthetic data only."""


def report(run: str | Run, *, system: System | None = None, people: int = PEOPLE_SHOWN) -> str:
    """Write ``report.html`` into the run and return its path.

    ``run``: the run or its name; ``system``: the run's system, if it is loaded already; ``people``: how many pairs of
    each split are shown, the first ones in the order of the data set. V2FError if the run has no
    committed checkpoint or its data set cannot be opened; without ``eval.json`` the page says how to get it.
    """
    run = Run.open(run) if isinstance(run, str) else run
    system = (run.system() if system is None else system).eval()
    dataset = open_dataset(run.config.data.home)
    curves = read_curves(store.join(run.path, "metrics.jsonl"))
    protocol = protocols.PROTOCOLS.get(system.protocol or "")
    shared: dict[str, Any] = {
        "run": run,
        "step": run.step,
        "stand_ins": list(system.stand_ins),
        "what": SPLITS,
        "evaluated": run.evaluated,
        "titles": None if protocol is None else protocol.title,
        "first_observer": first_observer,
        "by": BY,
        "losses": charts([curves], "loss/"),
        "meters": charts([curves], "valid/"),
        "machine": charts([curves], "grad_norm/", "rate/", "speed/"),
        "dataset": dataset,
        "synthetic": "world_hash" in dataset.manifest.provenance,
        "config": dump_yaml(run.config),
        "info": run.info,
        "width": WIDTH,
        "height": HEIGHT,
        "version": __version__,
    }
    own: dict[str, Any]
    if isinstance(protocol, PicturesFromNoise):
        drawn, photos = from_noise(dataset, run, system, PICTURES_SHOWN)
        own = {"verdict": last_verdict(system, curves), "pictures": drawn, "photos": photos, "sheets": _sheets(run)}
        own["duel"] = duel(curves)
        page = _page("noise.html.j2", run, shared | own)
    elif not isinstance(protocol, FacesOfVoices):
        own = {
            "title": generate.provenance(run, system)["Title"],
            "sheets": _sheets(run),
            "metrics": () if protocol is None else protocol.compared,
            "own": None if protocol is None else protocol.own,
            "curves": _det_curves(run.evaluated),
            "side": SIDE,
            "explained": "no protocol judges this system" if protocol is None else protocol.explained,
            "coded": _coded(dataset, system),
        }
        page = _page("things.html.j2", run, shared | own)
    else:
        splits = [split for split in SPLITS if split in dataset.splits]
        figures = {split: pairs(dataset, split, run, system, people) for split in splits}
        own = {
            "hears": generate.voice_input(run, system).seconds,
            "figures": {split: shown for split, shown in figures.items() if shown},
            "disclaimer": generate.DISCLAIMER,
            "percent": percent,
            "grouped": grouped(run.evaluated),
            "few": FEW,
            "ks": metrics.KS,
            "held_equal": metrics.HELD_EQUAL,
            "has_possible": isinstance(world_of(dataset), World),
        }
        page = _page("report.html.j2", run, shared | own)
    path = store.join(run.path, FILE)
    store.write_bytes(path, page.encode())
    return path


def grouped(evaluated: Mapping[str, Any] | None) -> dict[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Split -> the first observer, its numbers by attribute, and what is known of the attributes; only splits that have
    any, which evaluations of an earlier version do not."""
    found = {}
    for name, split in (evaluated or {"splits": {}})["splits"].items():
        who, observed = first_observer(split)
        if observed.get("attributes"):
            found[name] = who, observed["attributes"], split["attributes"]
    return found


def _coded(dataset: Dataset, system: System) -> sounds.Figures | None:
    """The drawings of held-out sounds that ``system`` codes; None if it codes none, or names no classes of them."""
    held_out = [name for name in HELD_OUT if name in dataset.splits]
    if not isinstance(system, SoundCoder) or system.label is None or not held_out:
        return None
    return sounds.figures(dataset.split(held_out[0]), system, system.label)


def _det_curves(evaluated: Mapping[str, Any] | None) -> dict[str, Det]:
    """Split -> its DET curve, if verification was measured by a version that keeps it."""
    found = {}
    for name, split in (evaluated or {"splits": {}})["splits"].items():
        if split.get("det") is not None:
            found[name] = det(split["det"], split["by"]["trials"]["lines"][Speakers.own]["eer"]["value"])
    return found


def _page(template: str, run: Run, values: dict[str, Any]) -> str:
    try:
        return environment().get_template(template).render(**values)
    except UndefinedError as error:  # only an evaluation may lack a value that the template uses
        where = store.join(run.path, evaluate.FILE)
        raise V2FError(
            f"{where}: a value that the page shows is missing ({error}); run `v2f eval` on this run again"
        ) from error


# ---------------------------------------------------------------------------------------------- the figure


def pairs(dataset: Dataset, name: str, run: Run, system: System, count: int) -> list[Pair]:
    """The first clip of each of the split's first ``count`` people, and the face that ``run``'s system made from it."""
    split, notes = dataset.split(name), generate.provenance(run, system)
    _, sound, _, drawn = heard_and_drawn(system)
    hears, sees = Waveform(sound.seconds, sound.rate), Photo(drawn.size, drawn.share)
    # Inputs that only losses need, such as codes, are not read: another data set may lack them.
    transforms: dict[str, Transform] = {"wav": hears, "image": sees}
    world = world_of(dataset)
    if isinstance(world, World):
        transforms["voice"] = Factors("voice")
    firsts = np.sort(np.unique(split.identity_N, return_index=True)[1])[:count]
    # Damaged samples are left out; `v2f eval` counts and names them.
    batches = list(read_usable(split, transforms, 32, [], samples=firsts.tolist()))
    shown: list[Pair] = []
    for batch in batches:
        with torch.no_grad():
            faces_BCHW = next(iter(system.sample(latent.with_noise(system, batch["wav"])).values()))
        possible: list[str | None] = [None] * len(faces_BCHW)
        words = [""] * len(faces_BCHW)
        if isinstance(world, World):
            voice_BV = batch["voice"].numpy()
            known = bounds.u1_pictures(world, voice_BV, sees.size)
            possible = [picture_uri(to_picture(torch.from_numpy(one).permute(2, 0, 1))) for one in known]
            words = [voice_in_words(voice_V) for voice_V in voice_BV]
        for row, key in enumerate(batch["key"]):
            shown.append(
                Pair(
                    name=key,
                    reference=picture_uri(to_picture(batch["image"][row])),
                    face=picture_uri(faces_BCHW[row], notes),
                    possible=possible[row],
                    sound=sound_uri(batch["wav"][row].numpy(), hears.sample_rate),
                    words=words[row],
                )
            )
    return shown


# ------------------------------------------------------------------------------------- pictures from noise


def from_noise(dataset: Dataset, run: Run, system: System, count: int) -> tuple[list[str], list[str]]:
    """Up to ``count`` generated pictures, and photos of as many people: unseen ones, or of the training split if the
    data set has no others."""
    held_out = [split for split in (*SPLITS, run.config.data.split) if split in dataset.splits]
    found = people_of(dataset.split(held_out[0]), system, count, [])
    if found is None:
        return [], []
    photo_NCHW, noise_NZ, _ = found
    with torch.no_grad():
        asked = noise_input_and_picture_output(system)[0]
        made_NCHW = next(iter(system.sample({asked: noise_NZ.to(device_of(system))}).values()))
    notes = generate.provenance(run, system)
    return [picture_uri(one, notes) for one in made_NCHW], [picture_uri(one) for one in to_picture(photo_NCHW)]


def last_verdict(system: System, curves: Curves) -> str | None:
    """The system's verdict on the end of its training, if it has one."""
    meters = {
        name.removeprefix("valid/"): points[-1][1]
        for name, points in curves.items()
        if name.startswith("valid/") and not name.startswith("valid/loss/")
    }
    return system.verdict(meters, {name: [value for _, value in points] for name, points in curves.items()})


def _sheets(run: Run) -> list[tuple[int, str]]:
    """Step and data URI of some of the sample sheets written during training, including the first and the last."""
    folder = store.join(run.path, "samples")
    old = outdated_pictures(run.path)
    found = [name for name in store.names(folder) if _SHEET.fullmatch(name) and f"samples/{name}" not in old]
    count = min(SHEETS_SHOWN, len(found))
    chosen = [round(i * (len(found) - 1) / max(1, count - 1)) for i in range(count)]
    shown = []
    for name in (found[i] for i in chosen):
        content = store.read_bytes(store.join(folder, name))
        shown.append((int(name[5:-4]), data_uri(content, "png")))
    return shown


def voice_in_words(voice_V: NDArray[np.float32]) -> str:
    """The factors in which a voice stands out most, at most three, in words."""
    ends = {factor.name: (factor.low, factor.high) for factor in FACTORS if factor.group == "voice"}
    strongest = sorted(range(len(VOICE)), key=lambda i: -abs(float(voice_V[i])))[:3]
    words = [ends[VOICE[i]][int(voice_V[i] > 0)] for i in strongest if abs(float(voice_V[i])) >= _NOTABLE]
    return ", ".join(words) or "an average voice"


def picture_uri(picture: Tensor, notes: Mapping[str, str] = MappingProxyType({})) -> str:
    """A picture [3, H, W] in [-1, 1] as a PNG data URI. ``notes``: provenance, for a picture that a system made."""
    return data_uri(media.png(picture, notes), "png")
