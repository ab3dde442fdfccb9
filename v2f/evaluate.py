"""Does the face share what the voice betrays? Retrieval, distances and pictures of a run, beside what is possible.

For each split (``test``: unseen people; ``seen``: unseen clips of trained people) a gallery holds one real photo of
each person, photo 0 of the person's first sample; a query is the face made from one clip. Beside the run's own line
stand chance, the upper bounds of the synthetic world, and what the frozen nets allow::

    samples -> faces, photos -> identity embeddings + perceptual features -> lines of numbers -> eval.json, a table
                                                           each person's share in the run's -> eval-people.json

A system that makes faces from noise is measured on the first of the splits alone: as many generated pictures as there
are people, and as many photos of trained people, each beside the photos that were held out.

The nets always see batches of one size, the last one filled up, and everything after them is in float64 over whole
sets: the table is a function of run and data, not of how the data were read (promise 5).

Shape letters: N people, M clips, D embedding width, P features, V voice factors.
"""

import hashlib
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from v2f import metrics, store
from v2f.config import build
from v2f.data.loader import read_usable
from v2f.data.manifest import Dataset, Split, open_dataset, read_manifest
from v2f.data.mix import union_fingerprint
from v2f.data.sample import Sample
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
    "energy: distance of the pictures from real ones (1 and 0: none)"
)
_EXPLAINED_PICTURES = (
    "Frechet: distance of the distributions in the identity net's features, which falls with the number of pictures; "
    "nearest and energy: distance from the photos in the perceptual net's (1 and 0: none); variety, over that of the "
    "photos: mean distance in pixels, distance to the nearest other picture, distance between people (1: as photos)"
)


class Judges(Protocol):
    """What evaluation needs of a system, beyond the contract: two frozen nets that look at pictures."""

    def identity(self, img_BCHW: Tensor) -> Tensor: ...

    def perceptual(self, img_BCHW: Tensor) -> Sequence[Tensor]: ...


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
    face_M: list[NDArray[np.float32]] = field(default_factory=list)
    """Identity embeddings of the faces made from clips."""
    drawn_N: list[NDArray[np.float32]] = field(default_factory=list)
    """Perceptual features of the face made from each person's first clip."""
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
    result = about(run, dataset, system, device) | {"splits": {}}
    people: dict[str, Any] = {}
    if result["stand_ins"]:
        nets = ", ".join(result["stand_ins"])
        console.print(f"stand-ins, so that these numbers hold for the synthetic world only: {nets}")
    if dataset.fingerprint not in trained_on(run, dataset):
        what = "known to be one of the data sets" if run.config.data.mix else "the data set"
        console.print(f"note: {dataset.root} is not {what} that {run.config.name} was trained on")
    if from_noise(system):
        name = splits[0]
        result["splits"][name], people[name] = _measure_pictures(run, dataset, name, system, limit)
        show_pictures(name, result, console)
        console.print(_EXPLAINED_PICTURES, style="dim")
    else:
        for name in splits:
            clips = gather(dataset.split(name), system, limit=limit, console=console)
            with console.status(f"{name}: upper bounds and distances"):
                result["splits"][name], people[name] = _measure(name, clips, dataset, system)
            show(name, result, console)
        console.print(_EXPLAINED, style="dim")
    of_each = json.dumps(_finite({"splits": people}), allow_nan=False).encode()
    store.write_bytes(store.join(run.path, PEOPLE_FILE), of_each)
    result["people"] = {"file": PEOPLE_FILE, "sha256": hashlib.sha256(of_each).hexdigest()}
    text = json.dumps(_finite(result), indent=1, ensure_ascii=False, allow_nan=False)
    store.write_bytes(store.join(run.path, FILE), text.encode() + b"\n")
    console.print(f"written: {store.join(run.path, FILE)}")
    return cast(dict[str, Any], json.loads(text))


def read(run: Run) -> dict[str, Any] | None:
    """What ``eval.json`` of ``run`` holds; None where it was not measured. V2FError where it was damaged."""
    return run.evaluated


def trained_on(run: Run, dataset: Dataset) -> list[str]:
    """Fingerprints of the data sets that ``run`` was trained on; of a mix, of which the run keeps one for all together,
    those that lie there now, if they are still the same. ``dataset`` is taken for trained on where nothing is known."""
    data, kept = run.config.data, run.info.get("fingerprint", dataset.fingerprint)
    if data.mix is None or kept == dataset.fingerprint:
        return [kept]
    try:
        there = [read_manifest(source.path).fingerprint for source in data.mix]
    except V2FError:
        return []
    splits = [f"{of}/{source.split or data.split}" for of, source in zip(there, data.mix, strict=True)]
    return there if union_fingerprint(splits) == kept else []


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


def from_noise(system: System) -> bool:
    """Whether the system makes its pictures of nobody in particular."""
    return {"noise", "image"} <= system.transforms().keys()


# ------------------------------------------------------------------------------------------------ the nets


def gather(split: Split, system: System, *, limit: int | None, console: Console) -> Clips:
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
    batches = read_usable(split, transforms, _BATCH, clips.left_out, limit=limit)
    steps = -(-(split.samples if limit is None else min(limit, split.samples)) // _BATCH)
    what = f"{split.name}: faces"
    for batch in track(batches, what, total=steps, console=console, disable=console.quiet, transient=True):
        face_BD, drawn_BP, w_B = _faces(system, batch["wav"])
        clips.face_M.extend(face_BD)
        clips.w_M.extend(w_B)
        for row, name in enumerate(batch["identity"].tolist()):
            if name not in people:
                people[name] = len(people)
                clips.names.append(name)
                clips.photo_N.append(batch["image"][row].numpy())
                clips.drawn_N.append(drawn_BP[row])
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


def _faces(system: System, wav_MT: Tensor) -> list[NDArray[np.float32]]:
    """Of voices: identity embeddings and perceptual features of their faces, and codes (empty without a generator)."""
    styled = _styled(system)

    def function(wav_BT: Tensor) -> tuple[Tensor, ...]:
        if styled is not None:
            w = styled.styles(wav_BT)
            return (*_judged(system, styled.face(w)), w)
        return (*_judged(system, system.sample({"wav": wav_BT})["face"]), wav_BT.new_zeros(len(wav_BT), 0))

    return in_batches(function, wav_MT, device_of(system))


def judge(system: System, photo_MCHW: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Identity embeddings [M, D] and perceptual features [M, P] of uint8 pictures [M, 3, H, W]."""
    return in_batches(lambda img: _judged(system, to_picture(img)), torch.from_numpy(photo_MCHW), device_of(system))


def _through_generator(system: System, inverts: Inverts, photo_MCHW: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """As :func:`judge`, of what the generator makes of the photos' codes, and the codes."""

    def function(img_BCHW: Tensor) -> tuple[Tensor, ...]:
        w = inverts.codes(to_picture(img_BCHW))
        return (*_judged(system, inverts.face(w)), w)

    return in_batches(function, torch.from_numpy(photo_MCHW), device_of(system))


def _judged(system: System, img_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    judges = cast(Judges, system)
    img_BCHW = img_BCHW.clamp(-1, 1)
    maps = judges.perceptual(img_BCHW)
    # Mean and spread of each channel: what is there, and how sharply.
    pooled = [statistic for m in maps for statistic in (m.mean((2, 3)), m.std((2, 3), correction=0))]
    return judges.identity(img_BCHW), torch.cat(pooled, 1)


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


def _measure(name: str, clips: Clips, dataset: Dataset, system: System) -> Measured:
    """All numbers of one split."""
    people = len(clips.names)
    reference_ND, real_NP = judge(system, np.stack(clips.photo_N))
    face_MD, person_M = np.stack(clips.face_M), np.array(clips.person_M)
    lines = [Line(name="voice", emb_QD=face_MD, person_Q=person_M, drawn_NP=np.stack(clips.drawn_N))]
    notes = []
    gallery, strongest = min(metrics.GALLERY, people), None
    world = world_of(dataset)
    if isinstance(world, World) and people > 1:
        possible, strongest = _bounds(world, clips, system, reference_ND, gallery)
        lines += possible
    elif isinstance(world, str):
        notes.append(world)
    w_MLD = None if _styled(system) is None else np.stack(clips.w_M)
    inverts = _inverts(system)
    codes_NLD = None if inverts is None else _through_generator(system, inverts, np.stack(clips.photo_N))[2]
    if clips.other_N:
        others = np.array(sorted(clips.other_N))
        other_NCHW = np.stack([clips.other_N[person] for person in others.tolist()])
        if inverts is not None:
            emb_ND, drawn_NP, _ = _through_generator(system, inverts, other_NCHW)
            lines.append(Line(name="generator", emb_QD=emb_ND, person_Q=others, drawn_NP=drawn_NP))
        emb_ND, drawn_NP = judge(system, other_NCHW)
        lines.append(Line(name="photo", emb_QD=emb_ND, person_Q=others, drawn_NP=drawn_NP))
    else:
        notes.append("nobody has a second photo: there is no line for what the generator and the identity net allow")
    if people < 2:
        notes.append("one person only: nobody to be told apart from, so nothing is retrieved")
    elif people < metrics.GALLERY:
        notes.append(
            f"the gallery is too small: {people} people, {metrics.GALLERY} are wanted; R@K is among {people}, easier "
            "than it should be, and not to be compared with any other"
        )
    meters = metrics.collapse_meters(
        face=face_MD, reference=reference_ND[person_M], identity=person_M, w=w_MLD, codes=codes_NLD
    )
    measured = {line.name: _numbers(line, reference_ND, real_NP, gallery) for line in lines}
    each = measured["voice"][1] | {"margin": metrics.margin_shares(face_MD, reference_ND, person_M)}
    result: dict[str, Any] = {
        "what": SPLITS[name],
        "people": people,
        "clips": len(person_M),
        "left_out": {"samples": len(clips.left_out), "first": clips.left_out[:5]},
        "gallery": gallery if people > 1 else None,
        "gallery_too_small": people < metrics.GALLERY,
        "chance": {f"R@{k}": v for k, v in metrics.chance(gallery).items()} if people > 1 else None,
        "lines": {line: numbers for line, (numbers, _) in measured.items()},
        "held_equal": None,
        "meters": meters,
        "verdict": metrics.verdict(meters),
        "notes": notes,
    }
    if strongest is not None and people >= 2 * _HELD_EQUAL:
        factor_N = np.stack(clips.voice_N)[:, VOICE.index(strongest)]
        result["held_equal"] = {
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
    result["strongest_factor"] = strongest
    return result, _of_each(clips.names, each)


def _of_each(people: list[int], each: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    return {"people": people, "shares": {name: share_N.tolist() for name, share_N in each.items()}}


def _bounds(
    world: World, clips: Clips, system: System, reference_ND: NDArray[np.float32], gallery: int
) -> tuple[list[Line], str]:
    """What retrieval can reach at best in the synthetic world, and by the one factor that tells most."""
    voice_NV, size, everyone = np.stack(clips.voice_N), clips.photo_N[0].shape[-1], np.arange(len(clips.names))

    def embed(pictures_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        return judge(system, pictures_NHWC.transpose(0, 3, 1, 2))[0]

    emb_ND, drawn_NP = judge(system, bounds.u1_pictures(world, voice_NV, size).transpose(0, 3, 1, 2))
    lines = [Line(name="U1", emb_QD=emb_ND, person_Q=everyone, drawn_NP=drawn_NP)]
    lines.append(Line(name="U2", emb_QD=bounds.u2_embeddings(world, voice_NV, embed, size=size), person_Q=everyone))
    single = {factor: embed(bounds.factor_pictures(world, voice_NV, factor, size)) for factor in VOICE}
    k = max(metrics.KS)
    found = {f: metrics.retrieval(e, reference_ND, everyone, gallery=gallery, ks=(k,)) for f, e in single.items()}
    strongest = max(VOICE, key=lambda factor: found[factor].recall[k].value)
    lines.append(Line(name="strongest", emb_QD=single[strongest], person_Q=everyone))
    return lines, strongest


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


def _measure_pictures(run: Run, dataset: Dataset, name: str, system: System, limit: int | None) -> Measured:
    """All numbers of a system that makes pictures from noise; ``limit``: people."""
    left_out: list[str] = []
    held_out = people_of(dataset.split(name), system, limit, left_out)
    if held_out is None:
        raise V2FError(f"{dataset.root}: no sample of {name} can be used; the first: {left_out[0]}")
    photos, noise_NZ, people = held_out
    sets = {"generated": in_batches(lambda noise: _drawn(system, noise), noise_NZ, device_of(system))}
    notes = []
    if run.config.data.split in dataset.splits:
        others = people_of(dataset.split(run.config.data.split), system, len(photos), [])
        if others is not None:
            sets["trained"] = in_batches(lambda img: _seen(system, img), others[0], device_of(system))
    else:
        notes.append(f"no split {run.config.data.split!r} here: nothing to say what other photos would measure")
    real = in_batches(lambda img: _seen(system, img), photos, device_of(system))
    if len(photos) <= real[1].shape[1]:
        notes.append(
            f"{len(photos)} people are few for {real[1].shape[1]} features: the Frechet distance means something only "
            "beside that of other photos"
        )
    lines: dict[str, Any] = {}
    each: dict[str, dict[str, NDArray[np.float64]]] = {}
    for line, (pixels_MP, emb_MD, drawn_MF) in sets.items():
        spread: dict[str, Any] = {"made": pixels_MP, "real": real[0], "made_identity": emb_MD, "real_identity": real[1]}
        picture = metrics.picture_distance(drawn_MF, real[2])
        lines[line] = {
            "frechet": metrics.frechet_distance(emb_MD, real[1]),
            "picture": picture.as_dict(),
            **metrics.variety_meters(**spread),
        }
        each[line] = picture.each | metrics.variety_shares(**spread)
    return {
        "what": SPLITS[name],
        "people": len(photos),
        "left_out": {"samples": len(left_out), "first": left_out[:5]},
        "lines": lines,
        "verdict": metrics.mode_collapse(lines["generated"]),
        "notes": notes,
    }, _of_each(people.tolist(), each["generated"])


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


def _drawn(system: System, noise_BZ: Tensor) -> tuple[Tensor, ...]:
    """Of noise: the generated pictures' pixels, identity embeddings and perceptual features."""
    made_B3HW = system.sample({"noise": noise_BZ})["face"]
    return (made_B3HW.flatten(1), *_judged(system, made_B3HW))


def _seen(system: System, img_B3HW: Tensor) -> tuple[Tensor, ...]:
    """As :func:`_drawn`, of uint8 photos."""
    picture_B3HW = to_picture(img_B3HW)
    return (picture_B3HW.flatten(1), *_judged(system, picture_B3HW))


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
    """Print one split's table."""
    split = result["splits"][name]
    heading = f"{name}: {split['what']}, {split['people']} people, {split['clips']} clips of {result['seconds']} s"
    table = Table(title=heading, title_justify="left")
    table.add_column(f"gallery of {split['gallery']}, % (95 % interval)" if split["gallery"] else "no gallery")
    for column in ("R@1", "R@5", "R@10", "median rank", "identity", "nearest", "energy"):
        table.add_column(column, justify="right")
    if split["chance"] is not None:
        shares = [f"{100 * v:.1f}" for v in split["chance"].values()]
        table.add_row("chance", *shares, f"{(split['gallery'] + 1) / 2:.1f}", "", "", "")
    for line, numbers in split["lines"].items():
        picture = numbers["picture"] or {}
        table.add_row(
            title(line, split["strongest_factor"]),
            *[percent(numbers.get(f"R@{k}")) for k in metrics.KS],
            _number(numbers.get("median_rank"), 1),
            _number(numbers["identity_distance_ratio"], 2),
            _number(picture.get("nearest"), 2),
            _number(picture.get("energy"), 3),
            style="bold" if line == "voice" else None,
        )
    console.print(table)
    held = split["held_equal"]
    if held is not None:
        shown = ", ".join(f"{line} {percent(held['lines'][line]['R@1'])}" for line in held["lines"])
        console.print(
            f"{held['factor']} held equal (galleries of the {held['gallery']} people nearest in it), R@1 %: "
            f"chance {100 * held['chance']['R@1']:.1f}, {shown}"
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
    """Print the table of a system that makes pictures from noise."""
    split = result["splits"][name]
    heading = f"{name}: {split['what']}, as many pictures as people: {split['people']}"
    table = Table(title=heading, title_justify="left")
    table.add_column("against the photos of these people")
    for column in ("Frechet", "nearest", "energy", "variety", "to the nearest", "between people"):
        table.add_column(column, justify="right")
    for line, numbers in split["lines"].items():
        table.add_row(
            title(line, None),
            _number(numbers["frechet"], 3),
            _number(numbers["picture"]["nearest"], 2),
            _number(numbers["picture"]["energy"], 3),
            *[_number(numbers[key], 2) for key in ("variety", "variety_nearest", "variety_identity")],
            style="bold" if line == "generated" else None,
        )
    console.print(table)
    _tell(split, console)


def percent(interval: dict[str, float] | None) -> str:
    """A share with its interval, in percent."""
    if interval is None:
        return "-"
    return f"{100 * interval['value']:.1f} ({100 * interval['low']:.0f}-{100 * interval['high']:.0f})"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"
