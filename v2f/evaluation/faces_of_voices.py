"""Faces of voices: does the face find its person in a gallery, compared with what is possible at all?

A gallery has one real photo of each person: photo 0 of the person's first sample. A query is the face made from one
clip (SF2F: Bai et al., MM 2022, section 4.2). The run's own line is shown next to chance, the upper bounds of the
synthetic world (U1, U2), and what the generator and the identity net allow.

Shape letters: N people, M clips, Q queries, D embedding width, P features, L styles, V voice factors.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from v2f import metrics
from v2f.data.manifest import Dataset
from v2f.errors import V2FError
from v2f.evaluation import agreement, attributes
from v2f.evaluation.clips import Clips, codes_of, gather, heard_and_drawn, through_generator, world_of
from v2f.evaluation.observers import BY, Looks, Name, Observer, first_observer, look
from v2f.evaluation.protocol import (
    SPLITS,
    Job,
    Measured,
    Metric,
    Protocol,
    number,
    of_each,
    percent,
    print_remarks,
    share,
    summary_of,
)
from v2f.system import Styled, device_of
from v2f.world import bounds
from v2f.world.people import VOICE, World


@dataclass(frozen=True, kw_only=True)
class QuerySet:
    """The faces of one line of the table, as queries of the retrieval."""

    line: str
    """Name in ``eval.json``."""
    emb_QD: NDArray[np.float32]
    person_Q: NDArray[np.int64]
    drawn_NP: NDArray[np.float32] | None = None
    """Features of one picture of each person; None if there are no pictures."""


def _measure(name: str, clips: Clips, job: Job) -> Measured:
    """All numbers of one split."""
    people, device = len(clips.names), device_of(job.system)
    photo_NCHW, person_M = np.stack(clips.photo_N), np.array(clips.person_M)
    reference = look(job.observers, photo_NCHW, device)
    gallery = min(metrics.GALLERY, people)
    queries: dict[Name, list[QuerySet]] = {
        by: [QuerySet(line="voice", emb_QD=np.stack(face_M), person_Q=person_M, drawn_NP=np.stack(clips.drawn_N[by]))]
        for by, face_M in clips.face_M.items()
    }
    strongest: dict[Name, str] = {}
    world = world_of(job.dataset)
    if isinstance(world, World) and people > 1:
        for by, (possible, factor) in _bounds(world, clips, job.observers, reference, gallery, device).items():
            queries[by] += possible
            strongest[by] = factor
    inverting = job.system if isinstance(job.system, Styled) and job.system.inverts else None
    for line, each_look, others in _other_photos(job, clips, inverting):
        for by, one in each_look.items():
            queries[by].append(QuerySet(line=line, emb_QD=one.emb_MD, person_Q=others, drawn_NP=one.features_MP))
    w_MLD = np.stack(clips.w_M) if isinstance(job.system, Styled) else None
    codes_NLD = None if inverting is None else codes_of(inverting, photo_NCHW)
    identities = [job.dataset.manifest.identities[number] for number in clips.names]
    groups, remarks = attributes.attributes_of(clips, identities, job.people)
    by_observer: dict[Name, dict[str, Any]] = {}
    each: dict[Name, dict[str, NDArray[np.float64]]] = {}
    for by, own in queries.items():
        reference_ND, face_MD = reference[by].emb_MD, own[0].emb_QD
        clips_alike = metrics.consistency(face_MD, person_M)
        measured = {one.line: _numbers_of(one, reference_ND, reference[by].features_MP, gallery) for one in own}
        each[by] = measured["voice"][1] | {"margin": metrics.margin_shares(face_MD, reference_ND, person_M)}
        if clips_alike is not None:
            each[by]["consistency"] = clips_alike.each_N
            measured["voice"][0]["consistency"] = clips_alike.margin.as_dict()
        by_observer[by] = {
            "lines": {line: numbers for line, (numbers, _) in measured.items()},
            "held_equal": _held_equal(own, reference_ND, clips, strongest.get(by)),
            "strongest_factor": strongest.get(by),
            "consistency": None if clips_alike is None else clips_alike.as_dict(),
            "attributes": agreement.measured(groups, _lines_of(own), reference_ND, each[by]) if groups else {},
            "meters": metrics.collapse_meters(
                face=face_MD, reference=reference_ND[person_M], identity=person_M, w=w_MLD, codes=codes_NLD
            ),
        }
    result: dict[str, Any] = {
        "what": SPLITS[name],
        "people": people,
        "clips": len(person_M),
        "left_out": summary_of(clips.left_out),
        "gallery": gallery if people > 1 else None,
        "gallery_too_small": people < metrics.GALLERY,
        "chance": {f"R@{k}": v for k, v in metrics.chance(gallery).items()} if people > 1 else None,
        "attributes": agreement.described(groups),
        "by": by_observer,
        "notes": [*_notes(clips, world), *remarks],
    }
    result["verdict"] = metrics.collapse_verdict(first_observer(result)[1]["meters"])
    return result, of_each(clips.names, each)


def _lines_of(queries: Sequence[QuerySet]) -> dict[str, agreement.Faces]:
    """The faces whose agreement is measured."""
    return {one.line: (one.emb_QD, one.person_Q) for one in queries if one.line in (agreement.OWN, agreement.U1)}


def _other_photos(job: Job, clips: Clips, inverting: Styled | None) -> Iterator[tuple[str, Looks, NDArray[np.int64]]]:
    """The lines that show what generator and identity net allow: name, what is seen of another photo of each person
    who has one, and who these people are."""
    if not clips.other_N:
        return
    others = np.array(sorted(clips.other_N))
    other_NCHW = np.stack([clips.other_N[person] for person in others.tolist()])
    if inverting is not None:
        yield "generator", through_generator(inverting, job.observers, other_NCHW), others
    yield "photo", look(job.observers, other_NCHW, device_of(job.system)), others


def _notes(clips: Clips, world: World | str) -> list[str]:
    """What the numbers of a split lack, and why."""
    people = len(clips.names)
    notes = [world] if isinstance(world, str) else []
    if not clips.other_N:
        notes.append(
            "nobody has a second photo, so the row for what the generator and the identity net allow is missing"
        )
    if people < 2:
        notes.append("one person only: there is nobody to tell apart, so nothing is retrieved")
    elif people < metrics.GALLERY:
        notes.append(
            f"the gallery is too small: {people} people instead of {metrics.GALLERY}; R@K among {people} is easier "
            "and cannot be compared with R@K in galleries of another size"
        )
    return notes


def _held_equal(
    queries: Sequence[QuerySet], reference_ND: NDArray[np.float32], clips: Clips, strongest: str | None
) -> dict[str, Any] | None:
    """Retrieval among people who are alike in the most informative factor; None with too few people."""
    if strongest is None or len(reference_ND) < 2 * metrics.HELD_EQUAL:
        return None
    factor_N = np.stack(clips.voice_N)[:, VOICE.index(strongest)]
    return {
        "factor": strongest,
        "gallery": metrics.HELD_EQUAL,
        "chance": {f"R@{k}": v for k, v in metrics.chance(metrics.HELD_EQUAL).items()},
        "lines": {
            one.line: metrics.retrieval_held_equal(one.emb_QD, reference_ND, one.person_Q, factor_N).as_dict()
            for one in queries
        },
    }


def _bounds(
    world: World,
    clips: Clips,
    observers: Sequence[Observer],
    reference: Looks,
    gallery: int,
    device: torch.device,
) -> dict[Name, tuple[list[QuerySet], str]]:
    """Observer -> the best that retrieval can reach in the synthetic world, with all factors and with the most
    informative one alone; and the name of that factor."""
    voice_NV, size, everyone = np.stack(clips.voice_N), clips.photo_N[0].shape[-1], np.arange(len(clips.names))

    def watched(pictures_NHWC: NDArray[np.uint8]) -> Looks:
        return look(observers, pictures_NHWC.transpose(0, 3, 1, 2), device)

    def embeds(observer: Observer) -> bounds.Embed:
        return lambda pictures: look([observer], pictures.transpose(0, 3, 1, 2), device)[observer.name].emb_MD

    known = watched(bounds.u1_pictures(world, voice_NV, size))
    expected = bounds.u2_embeddings(world, voice_NV, [embeds(observer) for observer in observers], size=size)
    single = {factor: watched(bounds.factor_pictures(world, voice_NV, factor, size)) for factor in VOICE}
    k = max(metrics.KS)
    found: dict[Name, tuple[list[QuerySet], str]] = {}
    for observer, u2_ND in zip(observers, expected, strict=True):
        by = observer.name

        def recall(factor: str, by: Name = by) -> float:
            own = metrics.retrieval(single[factor][by].emb_MD, reference[by].emb_MD, everyone, gallery=gallery, ks=(k,))
            return own.recall[k].value

        strongest = max(VOICE, key=recall)
        u1 = known[by]
        possible = [
            QuerySet(line="U1", emb_QD=u1.emb_MD, person_Q=everyone, drawn_NP=u1.features_MP),
            QuerySet(line="U2", emb_QD=u2_ND, person_Q=everyone),
            QuerySet(line="strongest", emb_QD=single[strongest][by].emb_MD, person_Q=everyone),
        ]
        found[by] = possible, strongest
    return found


def _numbers_of(
    queries: QuerySet, reference_ND: NDArray[np.float32], real_NP: NDArray[np.float32], gallery: int
) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    """The numbers of one line of the table, and each person's share in them."""
    numbers: dict[str, Any] = {}
    each: dict[str, NDArray[np.float64]] = {}
    if len(reference_ND) > 1:
        found = metrics.retrieval(queries.emb_QD, reference_ND, queries.person_Q, gallery=gallery)
        numbers |= found.as_dict()
        each |= {f"R@{k}": share_N for k, share_N in found.each.items()}
    real = metrics.identity_distance(reference_ND[np.unique(queries.person_Q)])
    numbers["identity_distance_ratio"] = metrics.ratio(
        metrics.identity_distance(queries.emb_QD, queries.person_Q), real
    )
    if real > 0:
        each["identity_distance_ratio"] = metrics.identity_distance_shares(queries.emb_QD, queries.person_Q) / real
    numbers["picture"] = None
    if queries.drawn_NP is not None:
        picture = metrics.picture_distance(queries.drawn_NP, real_NP)
        numbers["picture"] = picture.as_dict()
        each |= picture.each
    return numbers, each


def _metrics_by(by: str, identity: str, maps: str) -> tuple[Metric, ...]:
    """The metrics of an observer, which uses these nets for identity and for feature maps."""
    return (
        *(Metric(f"R@{k}", f"R@{k}, %", 1, by, identity, 100, 1) for k in metrics.KS),
        Metric("margin", "margin", 1, by, identity, digits=3),
        Metric("consistency", "consistency over clips", 1, by, identity, digits=3),
        Metric("identity_distance_ratio", "identity distance", 0, by, identity),
        # below 1 is an average face, which is not better
        Metric("nearest", "picture: nearest", 0, by, maps, of_pictures=True),
        Metric("energy", "picture: energy", -1, by, maps, digits=3, of_pictures=True),
        Metric("precision", "picture: precision, %", 1, by, maps, 100, 1, of_pictures=True),
        Metric("recall", "picture: recall, %", 1, by, maps, 100, 1, of_pictures=True),
    )


class FacesOfVoices(Protocol):
    """Retrieval of a person by the face made from a clip, the variety of faces, and the pictures themselves."""

    own = "voice"
    groups_people = True
    compared = (*_metrics_by("referee", "referee", "referee"), *_metrics_by("judge", "identity", "perceptual"))
    explained = (
        "identity: distance between different people's faces relative to that of their photos (0: one face for "
        "everyone); nearest and energy: distance of the pictures from real ones (best: 1 and 0); precision and recall: "
        "pictures that look real, and real pictures that are like one of them, in %; a likeness that only the judge "
        "finds is none"
    )

    def splits(self, dataset: Dataset) -> list[str]:
        return [name for name in SPLITS if name in dataset.splits]

    def measure(self, job: Job, name: str) -> Measured:
        heard_and_drawn(job.system)
        if not job.observers:
            raise V2FError("no net looks at the faces: configure frozen nets for the system, or derive it from Judged")
        clips = gather(job, job.dataset.split(name))
        with job.console.status(f"{name}: upper bounds and distances"):
            return _measure(name, clips, job)

    def show(self, name: str, result: Mapping[str, Any], console: Console) -> None:
        """Print the tables of a split, one for each observer."""
        split = result["splits"][name]
        of = f"{name}: {split['what']}, {split['people']} people, {split['clips']} clips of {result['seconds']} s"
        for by, observed in split["by"].items():
            table = Table(title=f"{of}; {BY[by]}", title_justify="left")
            table.add_column(f"gallery of {split['gallery']}, % (95 % interval)" if split["gallery"] else "no gallery")
            for column in ("R@1", "R@5", "R@10", "median rank", "identity", "nearest", "energy", "precision", "recall"):
                table.add_column(column, justify="right")
            if split["chance"] is not None:
                shares = [f"{100 * v:.1f}" for v in split["chance"].values()]
                table.add_row("chance", *shares, f"{(split['gallery'] + 1) / 2:.1f}", *[""] * 5)
            for line, numbers in observed["lines"].items():
                picture = numbers["picture"] or {}
                table.add_row(
                    self.title(line, observed),
                    *[percent(numbers.get(f"R@{k}")) for k in metrics.KS],
                    number(numbers.get("median_rank"), 1),
                    number(numbers["identity_distance_ratio"], 2),
                    number(picture.get("nearest"), 2),
                    number(picture.get("energy"), 3),
                    *[share(picture.get(name)) for name in ("precision", "recall")],
                    style="bold" if line == "voice" else None,
                )
            console.print(table)
            held = observed["held_equal"]
            if held is not None:
                shown = ", ".join(f"{line} {percent(held['lines'][line]['R@1'])}" for line in held["lines"])
                console.print(
                    f"{held['factor']} held equal (galleries of the {held['gallery']} people nearest in it), R@1 %, "
                    f"by the {by}: chance {100 * held['chance']['R@1']:.1f}, {shown}"
                )
            alike = observed.get("consistency")
            if alike is not None:
                console.print(
                    f"consistency over a speaker's clips, by the {by}: the mean cosine of two faces is "
                    f"{alike['same']:.3f} for one speaker, {alike['different']:.3f} for different ones; margin "
                    "{value:.3f} ({low:.3f} to {high:.3f})".format(**alike["margin"])
                )
        by, observed = first_observer(split)
        agreement.show(f"{name}: attributes of the speakers; {BY[by]}", observed["attributes"], console)
        print_remarks(split, console)

    def title(self, line: str, observed: Mapping[str, Any]) -> str:
        return {
            "voice": "face from the voice (this run)",
            "U1": "U1: true voice factors, others average",
            "U2": "U2: expected embedding for that voice",
            "strongest": f"knows only the strongest factor ({observed.get('strongest_factor')})",
            "generator": "other photo through the generator",
            "photo": "other photo itself",
            "chance": "chance",
        }[line]
