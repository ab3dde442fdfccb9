"""Does the face share what the voice betrays? Retrieval, distances and pictures of a run, beside what is possible.

For each split (``test``: unseen people; ``seen``: unseen clips of trained people) a gallery holds one real photo of
each person, photo 0 of the person's first sample; a query is the face made from one clip. Beside the run's own line
stand chance, the upper bounds of the synthetic world, and what the frozen nets allow::

    samples -> faces, photos -> observers: identity embeddings + pooled maps -> lines of numbers -> eval.json, a table
                                                               each person's share in the run's -> eval-people.json

Every number is told by two observers. The *referee*, an identity net that no loss and no meter has seen, comes first:
the *judge*, the run's own frozen nets, is what the training learned to please (:mod:`v2f.referee`).

A system that makes faces from noise is measured on the first of the splits alone: as many generated pictures as there
are people, and as many photos of trained people, each beside the photos that were held out.

The nets always see batches of one size, the last one filled up, and everything after them is in float64 over whole
sets: the table is a function of run and data, not of how the data were read (promise 5).

Shape letters: N people, M clips, D embedding width, P features, L styles, V voice factors.
"""

import hashlib
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from v2f import metrics, referee, store, tracking, weights
from v2f.config import build
from v2f.data.loader import read_usable
from v2f.data.manifest import Dataset, Split, open_dataset, read_manifest
from v2f.data.mix import union_fingerprint
from v2f.data.sample import Sample
from v2f.data.streams import joint_fingerprint
from v2f.data.transforms import Factors, Photo, square
from v2f.errors import V2FError
from v2f.nn import float32_products
from v2f.run import EVALUATION as FILE
from v2f.run import Run
from v2f.system import System, device_of, to_picture
from v2f.world import bounds, world_hash
from v2f.world.people import VOICE, World, WorldConfig

SPLITS = {"test": "unseen people", "seen": "seen people, unseen clips"}
PEOPLE_FILE = "eval-people.json"
_BATCH = 32  # what the nets see at once, always; the table depends on it no more than rounding does
_HELD_EQUAL = 20
_EXPLAINED = (
    "identity: distance of different people's faces over that of their photos (0: one face for everyone); nearest and "
    "energy: distance of the pictures from real ones (1 and 0: none); what the judge alone finds is no likeness"
)
_EXPLAINED_PICTURES = (
    "Frechet: distance of the distributions in identity features, which falls with the number of pictures; nearest and "
    "energy: distance from the photos in maps (1 and 0: none); variety, over that of the photos: mean distance in "
    "pixels, distance to the nearest other picture, distance between people (1: as photos)"
)


class Judges(Protocol):
    """What evaluation needs of a system, beyond the contract: two frozen nets that look at pictures."""

    def identity(self, img_BCHW: Tensor) -> Tensor: ...

    def perceptual(self, img_BCHW: Tensor) -> Sequence[Tensor]: ...


Name = Literal["referee", "judge"]
OBSERVERS: dict[Name, str] = {
    "referee": "by the referee, which no loss ever saw",
    "judge": "by the judge, the nets that losses and meters use",
}
"""Who looks at pictures, the referee first, and how that is said."""


@dataclass(frozen=True)
class Observer:
    """Frozen nets that look at pictures [B, 3, H, W] in [-1, 1]."""

    name: Name
    look: Callable[[Tensor], tuple[Tensor, Sequence[Tensor]]]
    """Identity embeddings [B, D] of length one, and maps [B, C, h, w] of what is there."""

    def __call__(self, img_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, D] and features [B, P]: mean and spread of each channel, what is there and how sharply."""
        emb_BD, maps = self.look(img_BCHW.clamp(-1, 1))
        pooled = [statistic for m in maps for statistic in (m.mean((2, 3)), m.std((2, 3), correction=0))]
        return emb_BD, torch.cat([each.float() for each in pooled], 1)


@dataclass(frozen=True)
class Look:
    """What an observer saw of M pictures: identity embeddings and pooled maps."""

    emb_MD: NDArray[np.float32]
    features_MP: NDArray[np.float32]


class Styled(Protocol):
    """A system around a generator of styles."""

    def styles(self, wav_BT: Tensor) -> Tensor: ...

    def face(self, w_BLD: Tensor) -> Tensor: ...


class Inverts(Styled, Protocol):
    """One with a net that sends real photos through the generator, too."""

    def codes(self, img_BCHW: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class OtherPhoto:
    """The sample's last photo, uint8 [3, size, size], made as :class:`Photo` makes the first."""

    size: int

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> NDArray[np.uint8]:
        return square(sample.photo(sample.photo_count - 1), self.size).transpose(2, 0, 1)


@dataclass
class Clips:
    """A split as the system sees it. Rows of ``*_M`` are clips, of ``*_N`` people in the order of their first clip."""

    names: list[int] = field(default_factory=list)
    """Each person's number in the manifest."""
    person_M: list[int] = field(default_factory=list)
    face_M: dict[Name, list[NDArray[np.float32]]] = field(default_factory=dict)
    """By each observer: identity embeddings of the faces made from clips."""
    drawn_N: dict[Name, list[NDArray[np.float32]]] = field(default_factory=dict)
    """By each observer: features of the face made from each person's first clip."""
    w_M: list[NDArray[np.float32]] = field(default_factory=list)
    photo_N: list[NDArray[np.uint8]] = field(default_factory=list)
    """The gallery's photos."""
    other_N: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    """Another photo of a person, where there is one."""
    voice_N: list[NDArray[np.float32]] = field(default_factory=list)
    """Voice factors, on synthetic data."""
    left_out: list[str] = field(default_factory=list)
    """One line for each sample that could not be used."""


def evaluate(
    run: Run,
    data: str | None = None,
    *,
    limit: int | None = None,
    progress: bool = True,
    system: System | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Measure ``run`` on its own data set, or on ``data``: print the table, write ``eval.json`` into the run.

    Beside it lies ``eval-people.json``, what ``v2f compare`` needs to compare runs person by person: of each split the
    people, by their numbers in the manifest (no names), and each one's share in the run's numbers. ``eval.json`` is
    written last and holds its checksum.

    ``limit``: samples of each split, the first ones; None: all. ``system``: the run's system, where it is loaded
    already. ``device``: None takes the GPU if there is one. Samples that cannot be read or decoded are left out,
    counted and named. A split with fewer people than a gallery of 100 is measured with the gallery that there is,
    and says so; with fewer than two people nothing is retrieved. V2FError if the data set has neither split, or no
    sample of one can be used.
    """
    console = Console(quiet=not progress, width=None if sys.stdout.isatty() else 132)  # a log is no narrow terminal
    dataset = open_dataset(data or run.config.data.home)
    splits = [name for name in SPLITS if name in dataset.splits]
    if not splits:
        raise V2FError(f"{dataset.root}: no split to evaluate; it has {', '.join(dataset.splits)}, not test or seen")
    system = run.system() if system is None else system
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    float32_products(tf32=False)
    system = system.to(device).eval()
    observers, second = observers_of(run, system)
    result = about(run, dataset, system, device) | {"referee": second, "splits": {}}
    if second.get("net") == "stand_in":
        result["stand_ins"] = [*result["stand_ins"], "referee"]
    people: dict[str, Any] = {}
    if result["stand_ins"]:
        nets = ", ".join(result["stand_ins"])
        console.print(f"stand-ins, so that these numbers hold for the synthetic world only: {nets}")
    if second.get("why_not"):
        console.print(f"no referee: {second['why_not']}", style="bold red")
    if dataset.fingerprint not in trained_on(run, dataset):
        several = run.config.data.mix or run.config.data.streams
        what = "known to be one of the data sets" if several else "the data set"
        console.print(f"note: {dataset.root} is not {what} that {run.config.name} was trained on")
    if from_noise(system):
        name = splits[0]
        result["splits"][name], people[name] = _measure_pictures(run, dataset, name, system, observers, limit)
        show_pictures(name, result, console)
        console.print(_EXPLAINED_PICTURES, style="dim")
    else:
        for name in splits:
            clips = gather(dataset.split(name), system, observers, limit=limit, console=console)
            with console.status(f"{name}: upper bounds and distances"):
                result["splits"][name], people[name] = _measure(name, clips, dataset, system, observers)
            show(name, result, console)
        console.print(_EXPLAINED, style="dim")
    of_each = json.dumps(_finite({"splits": people}), allow_nan=False).encode()
    store.write_bytes(store.join(run.path, PEOPLE_FILE), of_each)
    result["people"] = {"file": PEOPLE_FILE, "sha256": hashlib.sha256(of_each).hexdigest()}
    text = json.dumps(_finite(result), indent=1, ensure_ascii=False, allow_nan=False)
    store.write_bytes(store.join(run.path, FILE), text.encode() + b"\n")
    console.print(f"written: {store.join(run.path, FILE)}")
    _to_mlflow(run, result, console)
    return cast(dict[str, Any], json.loads(text))


def points(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of the run itself as MLflow has them: ``eval/SPLIT/OBSERVER/NUMBER``, such as
    ``eval/test/referee/recall_at_10``, and the upper bounds' beside them (``.../U1_recall_at_10``)."""
    found = {}
    for split, numbers in result["splits"].items():
        for by, told in numbers["by"].items():
            for line, own in told["lines"].items():
                if line not in ("voice", "generated", "U1", "U2"):
                    continue
                values = own | (own.get("picture") or {}) | (told.get("meters", {}) if line == "voice" else {})
                for key, value in values.items():
                    value = value["value"] if isinstance(value, Mapping) and "value" in value else value
                    if isinstance(value, float) and np.isfinite(value):
                        name = key.replace("R@", "recall_at_")
                        name = f"{line}_{name}" if line in ("U1", "U2") else name
                        found[f"eval/{split}/{by}/{name}"] = value
    return found


def _to_mlflow(run: Run, result: Mapping[str, Any], console: Console) -> None:
    """The numbers into the MLflow run that ``run`` is tracked as, if it is; what fails there is said and no more."""
    samples = (result["step"] or 0) * run.config.data.batch
    try:
        if tracking.note(run.path, points(result), samples):
            console.print("and in the run's MLflow, as eval/...")
    except V2FError as error:
        console.print(f"not in MLflow: {error}")


def read(run: Run) -> dict[str, Any] | None:
    """What ``eval.json`` of ``run`` holds; None where it was not measured. V2FError where it was damaged."""
    return run.evaluated


def trained_on(run: Run, dataset: Dataset) -> list[str]:
    """Fingerprints of the data sets that ``run`` was trained on; of a mix or of streams, of which the run keeps one for
    all together, those that lie there now, if they are still the same. ``dataset`` is taken for trained on where
    nothing is known."""
    data, kept = run.config.data, run.info.get("fingerprint", dataset.fingerprint)
    if (data.mix is None and data.streams is None) or kept == dataset.fingerprint:
        return [kept]
    try:
        there = {source.path: read_manifest(source.path).fingerprint for source in data.sources}
    except V2FError:
        return []
    streams = {}
    for name, own in data.by_stream().items():
        splits = [f"{there[source.path]}/{source.split}" for source in own.sources]
        streams[name] = there[own.home] if own.mix is None else union_fingerprint(splits)
    return list(there.values()) if joint_fingerprint(streams) == kept else []


def about(run: Run, dataset: Dataset, system: System, device: str) -> dict[str, Any]:
    """What was measured, on which data, with what: without it a number means nothing."""
    provenance = dataset.manifest.provenance
    return {
        "run": run.config.name,
        "step": run.step,
        "stand_ins": list(getattr(system, "stand_ins", [])),
        "weights": dict(getattr(system, "weights", {})),
        "data": {
            "path": dataset.root,
            "fingerprint": dataset.fingerprint,
            "trained_on": run.info.get("fingerprint"),
            "world_version": provenance.get("world_version"),
            "world_hash": provenance.get("world_hash"),
        },
        "seconds": getattr(system.transforms().get("wav"), "seconds", None),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("torch", "numpy", "scipy")}},
    }


def observers_of(run: Run, system: System) -> tuple[list[Observer], dict[str, Any]]:
    """Who looks at the pictures of ``system``, the referee first where there is one; and what the referee is, or
    ``why_not`` there is none."""
    judges = cast(Judges, system)
    judge = Observer("judge", lambda img: (judges.identity(img), judges.perceptual(img)))
    frozen = getattr(run.config.system, "frozen", None)
    if not isinstance(frozen, weights.Judges):
        return [judge], {"why_not": "the configuration of this system names no frozen nets, and so no referee"}
    try:
        net, digest = referee.load(frozen, system.weights.get("identity"))
    except V2FError as error:
        return [judge], {"why_not": f"{error}; these numbers are told by the nets that the losses look at"}
    second = weights.described("referee", frozen.second_opinion, digest)
    return [Observer("referee", cast(Any, net.to(device_of(system))).look), judge], second


def told_first(split: Mapping[str, Any]) -> tuple[Name, dict[str, Any]]:
    """Of a split of ``eval.json``: who tells it first, the referee where there is one, and that observer's numbers."""
    name: Name = "referee" if "referee" in split["by"] else "judge"
    return name, split["by"][name]


def from_noise(system: System) -> bool:
    """Whether the system makes its pictures of nobody in particular."""
    return {"noise", "image"} <= system.transforms().keys()


# ------------------------------------------------------------------------------------------------ the nets


def gather(
    split: Split, system: System, observers: Sequence[Observer], *, limit: int | None, console: Console
) -> Clips:
    """Everything that evaluation wants of a split, in one pass over its samples."""
    read = system.transforms()
    photo = read.get("image")
    if not isinstance(photo, Photo) or "wav" not in read:
        raise V2FError(
            f"this system reads {', '.join(read)}; only systems that make faces from voices or noise are evaluated"
        )
    # not what only the losses want, such as codes: another data set need not hold that
    transforms = {"wav": read["wav"], "image": photo, "other": OtherPhoto(photo.size)}
    if isinstance(world_of(split.dataset), World):
        transforms["voice"] = Factors("voice")
    clips, people = Clips(), dict[int, int]()
    for observer in observers:
        clips.face_M[observer.name], clips.drawn_N[observer.name] = [], []
    batches = read_usable(split, transforms, _BATCH, clips.left_out, limit=limit)
    steps = -(-(split.samples if limit is None else min(limit, split.samples)) // _BATCH)
    what = f"{split.name}: faces"
    for batch in track(batches, what, total=steps, console=console, disable=console.quiet, transient=True):
        looks, w_B = _faces(system, observers, batch["wav"])
        for by, look in looks.items():
            clips.face_M[by].extend(look.emb_MD)
        clips.w_M.extend(w_B)
        for row, name in enumerate(batch["identity"].tolist()):
            if name not in people:
                people[name] = len(people)
                clips.names.append(name)
                clips.photo_N.append(batch["image"][row].numpy())
                for by, look in looks.items():
                    clips.drawn_N[by].append(look.features_MP[row])
                if "voice" in batch:
                    clips.voice_N.append(batch["voice"][row].numpy())
            person = people[name]
            clips.person_M.append(person)
            for other in (batch["other"][row].numpy(), batch["image"][row].numpy()):
                if person not in clips.other_N and not np.array_equal(other, clips.photo_N[person]):
                    clips.other_N[person] = other
    if not clips.person_M:
        raise V2FError(f"{split.dataset.root}: no sample of {split.name} can be used; the first: {clips.left_out[0]}")
    return clips


def world_of(dataset: Dataset) -> World | str:
    """The synthetic world that the people are from, or why there are no upper bounds."""
    provenance = dataset.manifest.provenance
    if "world_hash" not in provenance:
        return "real people: what a voice can tell of them is not known, so there is no upper bound U1 or U2"
    if provenance["world_hash"] != world_hash():
        packed = f"version {provenance['world_version']} of the world, which is not this program's"
        return f"these people are from {packed}: no upper bound U1 or U2; pack the data anew"
    return World(build(WorldConfig, provenance["recipe"]["synthetic"]["world"], f"{dataset.root}: world"))


def in_batches(
    function: Callable[[Tensor], tuple[Tensor, ...]], rows: Tensor, device: torch.device
) -> list[NDArray[np.float32]]:
    """``function`` of all rows, computed ``_BATCH`` at a time: what a row gives does not depend on its company.

    A net chooses its kernels by the shape of the batch, and another kernel rounds differently: so the last batch
    is filled up with copies of its last row, which are then dropped.
    """
    parts: list[tuple[NDArray[np.float32], ...]] = []
    for part in rows.split(_BATCH):
        full = torch.cat([part, part[-1:].expand(_BATCH - len(part), *part.shape[1:])])
        with torch.no_grad():
            outputs = function(full.to(device))
        parts.append(tuple(output[: len(part)].float().cpu().numpy() for output in outputs))
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


Looks = dict[Name, Look]
"""What each observer saw of the same pictures, the referee first."""


def _seen(observers: Sequence[Observer], img_BCHW: Tensor) -> tuple[Tensor, ...]:
    """What the observers see of pictures, one after the other: to be put together by :func:`_looks`."""
    return tuple(column for observer in observers for column in observer(img_BCHW))


def _looks(observers: Sequence[Observer], columns: Sequence[NDArray[np.float32]]) -> Looks:
    return {each.name: Look(columns[2 * at], columns[2 * at + 1]) for at, each in enumerate(observers)}


def _faces(system: System, observers: Sequence[Observer], wav_MT: Tensor) -> tuple[Looks, NDArray[np.float32]]:
    """Of voices: what is seen of their faces, and codes [M, L, D] (of width 0 without a generator)."""
    styled = _styled(system)

    def function(wav_BT: Tensor) -> tuple[Tensor, ...]:
        if styled is not None:
            w = styled.styles(wav_BT)
            return (*_seen(observers, styled.face(w)), w)
        return (*_seen(observers, system.sample({"wav": wav_BT})["face"]), wav_BT.new_zeros(len(wav_BT), 0))

    *columns, w_M = in_batches(function, wav_MT, device_of(system))
    return _looks(observers, columns), w_M


def look(observers: Sequence[Observer], photo_MCHW: NDArray[np.uint8], device: torch.device) -> Looks:
    """What is seen of uint8 pictures [M, 3, H, W]."""
    columns = in_batches(lambda img: _seen(observers, to_picture(img)), torch.from_numpy(photo_MCHW), device)
    return _looks(observers, columns)


def _through_generator(
    system: System, inverts: Inverts, observers: Sequence[Observer], photo_MCHW: NDArray[np.uint8]
) -> tuple[Looks, NDArray[np.float32]]:
    """As :func:`look`, of what the generator makes of the photos' codes, and the codes."""

    def function(img_BCHW: Tensor) -> tuple[Tensor, ...]:
        w = inverts.codes(to_picture(img_BCHW))
        return (*_seen(observers, inverts.face(w)), w)

    *columns, w_M = in_batches(function, torch.from_numpy(photo_MCHW), device_of(system))
    return _looks(observers, columns), w_M


def _styled(system: System) -> Styled | None:
    return cast(Styled, system) if all(hasattr(system, name) for name in ("styles", "face")) else None


def _inverts(system: System) -> Inverts | None:
    net = getattr(system, "codes", None)  # None: the recipe names none, or the shards hold the codes
    return cast(Inverts, system) if _styled(system) is not None and net is not None else None


# --------------------------------------------------------------------------------------------- the numbers


@dataclass(frozen=True, kw_only=True)
class Line:
    """One way to make faces: queries, whose they are, and the features of one picture a person where it has any."""

    name: str
    emb_QD: NDArray[np.float32]
    person_Q: NDArray[np.int64]
    drawn_NP: NDArray[np.float32] | None = None


Measured = tuple[dict[str, Any], dict[str, Any]]
"""Of one split: all numbers; and the people, with each one's share in those of the run itself."""


def _measure(name: str, clips: Clips, dataset: Dataset, system: System, observers: Sequence[Observer]) -> Measured:
    """All numbers of one split."""
    people, device = len(clips.names), device_of(system)
    photo_NCHW, person_M = np.stack(clips.photo_N), np.array(clips.person_M)
    reference = look(observers, photo_NCHW, device)
    lines: dict[Name, list[Line]] = {
        by: [Line(name="voice", emb_QD=np.stack(face_M), person_Q=person_M, drawn_NP=np.stack(clips.drawn_N[by]))]
        for by, face_M in clips.face_M.items()
    }
    notes = []
    gallery, strongest = min(metrics.GALLERY, people), dict[Name, str]()
    world = world_of(dataset)
    if isinstance(world, World) and people > 1:
        for by, (possible, factor) in _bounds(world, clips, observers, reference, gallery, device).items():
            lines[by] += possible
            strongest[by] = factor
    elif isinstance(world, str):
        notes.append(world)
    w_MLD = None if _styled(system) is None else np.stack(clips.w_M)
    inverts = _inverts(system)
    codes_NLD = None if inverts is None else _through_generator(system, inverts, observers, photo_NCHW)[1]
    if clips.other_N:
        others = np.array(sorted(clips.other_N))
        other_NCHW = np.stack([clips.other_N[person] for person in others.tolist()])
        seen = {"photo": look(observers, other_NCHW, device)}
        if inverts is not None:
            seen = {"generator": _through_generator(system, inverts, observers, other_NCHW)[0]} | seen
        for line, looks in seen.items():
            for by, one in looks.items():
                lines[by].append(Line(name=line, emb_QD=one.emb_MD, person_Q=others, drawn_NP=one.features_MP))
    else:
        notes.append("nobody has a second photo: there is no line for what the generator and the identity net allow")
    if people < 2:
        notes.append("one person only: nobody to be told apart from, so nothing is retrieved")
    elif people < metrics.GALLERY:
        notes.append(
            f"the gallery is too small: {people} people, {metrics.GALLERY} are wanted; R@K is among {people}, easier "
            "than it should be, and not to be compared with any other"
        )
    by_observer: dict[Name, dict[str, Any]] = {}
    each: dict[Name, dict[str, NDArray[np.float64]]] = {}
    for by, own in lines.items():
        reference_ND, face_MD = reference[by].emb_MD, own[0].emb_QD
        measured = {line.name: _numbers(line, reference_ND, reference[by].features_MP, gallery) for line in own}
        each[by] = measured["voice"][1] | {"margin": metrics.margin_shares(face_MD, reference_ND, person_M)}
        by_observer[by] = {
            "lines": {line: numbers for line, (numbers, _) in measured.items()},
            "held_equal": _held_equal(own, reference_ND, clips, strongest.get(by)),
            "strongest_factor": strongest.get(by),
            "meters": metrics.collapse_meters(
                face=face_MD, reference=reference_ND[person_M], identity=person_M, w=w_MLD, codes=codes_NLD
            ),
        }
    result: dict[str, Any] = {
        "what": SPLITS[name],
        "people": people,
        "clips": len(person_M),
        "left_out": {"samples": len(clips.left_out), "first": clips.left_out[:5]},
        "gallery": gallery if people > 1 else None,
        "gallery_too_small": people < metrics.GALLERY,
        "chance": {f"R@{k}": v for k, v in metrics.chance(gallery).items()} if people > 1 else None,
        "by": by_observer,
        "notes": notes,
    }
    result["verdict"] = metrics.verdict(told_first(result)[1]["meters"])
    return result, _of_each(clips.names, each)


def _held_equal(
    lines: Sequence[Line], reference_ND: NDArray[np.float32], clips: Clips, strongest: str | None
) -> dict[str, Any] | None:
    """Retrieval among people who are alike in the factor that tells most; None with too few people."""
    if strongest is None or len(reference_ND) < 2 * _HELD_EQUAL:
        return None
    factor_N = np.stack(clips.voice_N)[:, VOICE.index(strongest)]
    return {
        "factor": strongest,
        "gallery": _HELD_EQUAL,
        "chance": {f"R@{k}": v for k, v in metrics.chance(_HELD_EQUAL).items()},
        "lines": {
            line.name: metrics.retrieval_held_equal(
                line.emb_QD, reference_ND, line.person_Q, factor_N, gallery=_HELD_EQUAL
            ).as_dict()
            for line in lines
        },
    }


def _of_each(people: list[int], each: Mapping[Any, dict[str, NDArray[np.float64]]]) -> dict[str, Any]:
    shares = {by: {name: share_N.tolist() for name, share_N in own.items()} for by, own in each.items()}
    return {"people": people, "shares": shares}


def _bounds(
    world: World,
    clips: Clips,
    observers: Sequence[Observer],
    reference: Looks,
    gallery: int,
    device: torch.device,
) -> dict[Name, tuple[list[Line], str]]:
    """By each observer: what retrieval can reach at best in the synthetic world, and by the one factor that tells
    most, with that factor's name."""
    voice_NV, size, everyone = np.stack(clips.voice_N), clips.photo_N[0].shape[-1], np.arange(len(clips.names))

    def seen(pictures_NHWC: NDArray[np.uint8]) -> Looks:
        return look(observers, pictures_NHWC.transpose(0, 3, 1, 2), device)

    def embeds(observer: Observer) -> bounds.Embed:
        return lambda pictures: look([observer], pictures.transpose(0, 3, 1, 2), device)[observer.name].emb_MD

    known = seen(bounds.u1_pictures(world, voice_NV, size))
    expected = bounds.u2_embeddings(world, voice_NV, [embeds(observer) for observer in observers], size=size)
    single = {factor: seen(bounds.factor_pictures(world, voice_NV, factor, size)) for factor in VOICE}
    k = max(metrics.KS)
    found: dict[Name, tuple[list[Line], str]] = {}
    for observer, u2_ND in zip(observers, expected, strict=True):
        by = observer.name

        def recall(factor: str, by: Name = by) -> float:
            own = metrics.retrieval(single[factor][by].emb_MD, reference[by].emb_MD, everyone, gallery=gallery, ks=(k,))
            return own.recall[k].value

        strongest = max(VOICE, key=recall)
        u1 = known[by]
        lines = [
            Line(name="U1", emb_QD=u1.emb_MD, person_Q=everyone, drawn_NP=u1.features_MP),
            Line(name="U2", emb_QD=u2_ND, person_Q=everyone),
            Line(name="strongest", emb_QD=single[strongest][by].emb_MD, person_Q=everyone),
        ]
        found[by] = lines, strongest
    return found


def _numbers(
    line: Line, reference_ND: NDArray[np.float32], real_NP: NDArray[np.float32], gallery: int
) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    """The numbers of a line, and each person's share in them."""
    numbers: dict[str, Any] = {}
    each: dict[str, NDArray[np.float64]] = {}
    if len(reference_ND) > 1:
        found = metrics.retrieval(line.emb_QD, reference_ND, line.person_Q, gallery=gallery)
        numbers |= found.as_dict()
        each |= {f"R@{k}": share_N for k, share_N in found.each.items()}
    real = metrics.identity_distance(reference_ND[np.unique(line.person_Q)])
    numbers["identity_distance_ratio"] = metrics.ratio(metrics.identity_distance(line.emb_QD, line.person_Q), real)
    if real > 0:
        each["identity_distance_ratio"] = metrics.identity_distance_shares(line.emb_QD, line.person_Q) / real
    numbers["picture"] = None
    if line.drawn_NP is not None:
        picture = metrics.picture_distance(line.drawn_NP, real_NP)
        numbers["picture"] = picture.as_dict()
        each |= picture.each
    return numbers, each


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is undefined becomes null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


# ------------------------------------------------------------------------------------- pictures from noise


def _measure_pictures(
    run: Run, dataset: Dataset, name: str, system: System, observers: Sequence[Observer], limit: int | None
) -> Measured:
    """All numbers of a system that makes pictures from noise; ``limit``: people."""
    left_out: list[str] = []
    held_out = people_of(dataset.split(name), system, limit, left_out)
    if held_out is None:
        raise V2FError(f"{dataset.root}: no sample of {name} can be used; the first: {left_out[0]}")
    photos, noise_NZ, people = held_out

    def looked(draw: Callable[[Tensor], Tensor], rows: Tensor) -> tuple[NDArray[np.float32], Looks]:
        def function(row_B: Tensor) -> tuple[Tensor, ...]:
            picture_B3HW = draw(row_B)
            return (picture_B3HW.flatten(1), *_seen(observers, picture_B3HW))

        pixels_MP, *columns = in_batches(function, rows, device_of(system))
        return pixels_MP, _looks(observers, columns)

    sets = {"generated": looked(lambda noise: system.sample({"noise": noise})["face"], noise_NZ)}
    notes = []
    if run.config.data.split in dataset.splits:
        others = people_of(dataset.split(run.config.data.split), system, len(photos), [])
        if others is not None:
            sets["trained"] = looked(to_picture, others[0])
    else:
        notes.append(f"no split {run.config.data.split!r} here: nothing to say what other photos would measure")
    real_pixels_MP, real = looked(to_picture, photos)
    width = max(look.emb_MD.shape[1] for look in real.values())
    if len(photos) <= width:
        notes.append(
            f"{len(photos)} people are few for {width} features: the Frechet distance means something only beside that "
            "of other photos"
        )
    by: dict[str, dict[str, Any]] = {who: {"lines": {}} for who in (*real, "pixels")}
    each: dict[str, dict[str, NDArray[np.float64]]] = {}
    for line, (pixels_MP, looks) in sets.items():
        own = {"made": pixels_MP, "real": real_pixels_MP}
        by["pixels"]["lines"][line] = metrics.pixel_variety(**own)
        if line == "generated":
            each["pixels"] = metrics.pixel_variety_shares(**own)
        for who, seen in looks.items():
            picture = metrics.picture_distance(seen.features_MP, real[who].features_MP)
            by[who]["lines"][line] = {
                "frechet": metrics.frechet_distance(seen.emb_MD, real[who].emb_MD),
                "picture": picture.as_dict(),
                "variety_identity": metrics.identity_variety(seen.emb_MD, real[who].emb_MD),
            }
            if line == "generated":
                shares = metrics.identity_variety_shares(seen.emb_MD, real[who].emb_MD)
                each[who] = picture.each | {"variety_identity": shares}
    result = {
        "what": SPLITS[name],
        "people": len(photos),
        "left_out": {"samples": len(left_out), "first": left_out[:5]},
        "by": by,
        "notes": notes,
    }
    meters = by["pixels"]["lines"]["generated"] | told_first(result)[1]["lines"]["generated"]
    result["verdict"] = metrics.mode_collapse(meters)
    return result, _of_each(people.tolist(), each)


def people_of(
    split: Split, system: System, limit: int | None, left_out: list[str]
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Photo [N,3,H,W] and noise [N,Z] of the first sample of each of the first ``limit`` people, and these people's
    numbers [N]; None: of nobody."""
    read = {name: transform for name, transform in system.transforms().items() if name in ("image", "noise")}
    firsts = np.sort(np.unique(split.identity_N, return_index=True)[1])[:limit]
    batches = list(read_usable(split, read, _BATCH, left_out, samples=firsts.tolist()))
    if not batches:
        return None
    photo, noise, people = (torch.cat([batch[name] for batch in batches]) for name in ("image", "noise", "identity"))
    return photo, noise, people


# ----------------------------------------------------------------------------------------------- the table


def title(line: str, strongest: str | None) -> str:
    """What a line of the table is, in words."""
    return {
        "voice": "face from the voice (this run)",
        "U1": "U1: true voice factors, others average",
        "U2": "U2: expected embedding for that voice",
        "strongest": f"knows only the strongest factor ({strongest})",
        "generator": "other photo through the generator",
        "photo": "other photo itself",
        "generated": "generated (this run)",
        "trained": "photos of trained people",
        "chance": "chance",
    }[line]


def show(name: str, result: dict[str, Any], console: Console) -> None:
    """Print one split's tables, one by each observer."""
    split = result["splits"][name]
    of = f"{name}: {split['what']}, {split['people']} people, {split['clips']} clips of {result['seconds']} s"
    for by, told in split["by"].items():
        table = Table(title=f"{of}; {OBSERVERS[by]}", title_justify="left")
        table.add_column(f"gallery of {split['gallery']}, % (95 % interval)" if split["gallery"] else "no gallery")
        for column in ("R@1", "R@5", "R@10", "median rank", "identity", "nearest", "energy"):
            table.add_column(column, justify="right")
        if split["chance"] is not None:
            shares = [f"{100 * v:.1f}" for v in split["chance"].values()]
            table.add_row("chance", *shares, f"{(split['gallery'] + 1) / 2:.1f}", "", "", "")
        for line, numbers in told["lines"].items():
            picture = numbers["picture"] or {}
            table.add_row(
                title(line, told["strongest_factor"]),
                *[percent(numbers.get(f"R@{k}")) for k in metrics.KS],
                _number(numbers.get("median_rank"), 1),
                _number(numbers["identity_distance_ratio"], 2),
                _number(picture.get("nearest"), 2),
                _number(picture.get("energy"), 3),
                style="bold" if line == "voice" else None,
            )
        console.print(table)
        held = told["held_equal"]
        if held is not None:
            shown = ", ".join(f"{line} {percent(held['lines'][line]['R@1'])}" for line in held["lines"])
            console.print(
                f"{held['factor']} held equal (galleries of the {held['gallery']} people nearest in it), R@1 %, "
                f"by the {by}: chance {100 * held['chance']['R@1']:.1f}, {shown}"
            )
    _tell(split, console)


def _tell(split: dict[str, Any], console: Console) -> None:
    """What was left out, the notes and the verdict, below the table of a split."""
    left_out = split["left_out"]
    if left_out["samples"]:
        console.print(f"left out: {left_out['samples']} samples that cannot be used, the first: {left_out['first'][0]}")
    for note in split["notes"]:
        console.print(f"note: {note}")
    if split["verdict"]:
        console.print(split["verdict"], style="bold red")


def show_pictures(name: str, result: dict[str, Any], console: Console) -> None:
    """Print the tables of a system that makes pictures from noise: by each observer, and of the pixels alone."""
    split = result["splits"][name]
    of = f"{name}: {split['what']}, as many pictures as people: {split['people']}"
    for by, told in split["by"].items():
        pixels = by == "pixels"
        table = Table(title=f"{of}; {'in pixels, by no net' if pixels else OBSERVERS[by]}", title_justify="left")
        table.add_column("against the photos of these people")
        columns = ("variety", "to the nearest") if pixels else ("Frechet", "nearest", "energy", "between people")
        for column in columns:
            table.add_column(column, justify="right")
        for line, numbers in told["lines"].items():
            picture = numbers.get("picture") or {}
            values = (
                [_number(numbers[key], 2) for key in ("variety", "variety_nearest")]
                if pixels
                else [
                    _number(numbers["frechet"], 3),
                    _number(picture.get("nearest"), 2),
                    _number(picture.get("energy"), 3),
                    _number(numbers["variety_identity"], 2),
                ]
            )
            table.add_row(title(line, None), *values, style="bold" if line == "generated" else None)
        console.print(table)
    _tell(split, console)


def percent(interval: dict[str, float] | None) -> str:
    """A share with its interval, in percent."""
    if interval is None:
        return "-"
    return f"{100 * interval['value']:.1f} ({100 * interval['low']:.0f}-{100 * interval['high']:.0f})"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"
