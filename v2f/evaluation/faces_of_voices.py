"""Faces of voices: does the face find its person in a gallery, compared with what is possible at all?

A gallery has one real photo of each person: photo 0 of the person's first sample. A query is the face made from one
clip (SF2F: Bai et al., MM 2022, section 4.2). The run's own line is shown next to chance, the upper bounds of the
synthetic world (U1, U2), and what the generator and the identity net allow.

Shape letters: N people, M clips, Q queries, D embedding width, P features, L styles, V voice factors.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from v2f import metrics
from v2f.data.manifest import Dataset
from v2f.errors import V2FError
from v2f.evaluation import agreement, attributes
from v2f.evaluation.clips import Clips, Draws, codes_of, gather, heard_and_drawn, through_generator, world_of
from v2f.evaluation.observers import BY, Looks, Name, first_observer, look
from v2f.evaluation.protocol import (
    SPLITS,
    Job,
    Measured,
    Protocol,
    number,
    of_each,
    percent,
    print_remarks,
    share,
)
from v2f.evaluation.queries import (
    QuerySet,
    Reachable,
    described,
    held_equal,
    metrics_by,
    notes_of,
    numbers_of,
    reachable,
)
from v2f.system import Styled, device_of
from v2f.world.people import World


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
    for by, several in clips.draws.items():
        queries[by] += [
            QuerySet(line="draws", emb_QD=np.stack(several.mean_M), person_Q=person_M),
            QuerySet(
                line="chosen",
                emb_QD=np.stack(several.chosen_M),
                person_Q=person_M,
                drawn_NP=np.stack(several.chosen_N),
            ),
        ]
    possible: dict[Name, Reachable] = {}
    world = world_of(job.dataset)
    if isinstance(world, World) and people > 1:
        possible = reachable(world, clips, job.observers, reference, gallery, device)
        for by, found in possible.items():
            queries[by] += found.queries
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
        strongest = possible[by].strongest if by in possible else None
        reference_ND, face_MD = reference[by].emb_MD, own[0].emb_QD
        clips_alike = metrics.consistency(face_MD, person_M)
        measured = {one.line: numbers_of(one, reference_ND, reference[by].features_MP, gallery) for one in own}
        each[by] = measured["voice"][1] | {"margin": metrics.margin_shares(face_MD, reference_ND, person_M)}
        if clips_alike is not None:
            each[by]["consistency"] = clips_alike.each_N
            measured["voice"][0]["consistency"] = clips_alike.margin.as_dict()
        by_observer[by] = {
            "lines": {line: numbers for line, (numbers, _) in measured.items()},
            "held_equal": held_equal(own, reference_ND, clips, strongest),
            "strongest_factor": strongest,
            "draws": _draws(job.draws, clips.draws.get(by), possible.get(by)),
            "consistency": None if clips_alike is None else clips_alike.as_dict(),
            "attributes": agreement.measured(groups, _lines_of(own), reference_ND, each[by]) if groups else {},
            "meters": metrics.collapse_meters(
                face=face_MD, reference=reference_ND[person_M], identity=person_M, w=w_MLD, codes=codes_NLD
            ),
        }
    result: dict[str, Any] = {
        **described(name, clips, gallery),
        "attributes": agreement.described(groups),
        "by": by_observer,
        "notes": [*notes_of(clips, world), *remarks],
    }
    result["verdict"] = metrics.collapse_verdict(first_observer(result)[1]["meters"])
    return result, of_each(clips.names, each)


def _draws(count: int, several: Draws | None, possible: Reachable | None) -> dict[str, Any] | None:
    """How far a voice's draws spread, beside people with the same voice; None if there is one draw."""
    if several is None:
        return None
    spread = None if possible is None else possible.spread
    return {"count": count, "spread": float(np.mean(several.spread_M)), "possible": spread}


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


class FacesOfVoices(Protocol):
    """Retrieval of a person by the face made from a clip, the variety of faces, and the pictures themselves."""

    own = "voice"
    groups_people = True
    compared = (*metrics_by("referee", "referee", "referee"), *metrics_by("judge", "identity", "perceptual"))
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
            several = observed.get("draws")
            if several is not None:
                possible = number(several["possible"], 3)
                console.print(
                    f"{several['count']} draws of each clip, by the {by}: the mean of 1 - cos of two draws is "
                    f"{several['spread']:.3f}, of two people with the same voice {possible}"
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
            "draws": "mean embedding of several draws",
            "chosen": "of these draws, the nearest to that mean",
            "U1": "U1: true voice factors, others average",
            "U2": "U2: expected embedding for that voice",
            "U3": "U3: somebody with that voice, by chance",
            "U4": "U4: of 64 such people, the nearest to U2",
            "strongest": f"knows only the strongest factor ({observed.get('strongest_factor')})",
            "generator": "other photo through the generator",
            "photo": "other photo itself",
            "chance": "chance",
        }[line]
