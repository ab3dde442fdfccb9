"""Identities of voices: does the embedding of a voice find its person among embeddings of photos?

For a system that places voices among the embeddings of its own identity net, the judge. A gallery has one real photo of
each person, as for faces (:mod:`v2f.evaluation.faces_of_voices`); a query is the embedding of one clip, or the mean of
those of all clips of a person. No picture is made, so a score here says what is *heard*, not what a face would show;
and it is a score in the space that the training aligned the voices to, in which no referee can look.

Shape letters: N people, M clips, D embedding width.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from v2f import metrics
from v2f.data.manifest import Dataset
from v2f.data.transforms import Photo
from v2f.errors import V2FError
from v2f.evaluation.clips import Clips, gather_made, world_of
from v2f.evaluation.observers import BY, Look, Looks, in_batches, look
from v2f.evaluation.protocol import SPLITS, Job, Measured, Protocol, number, of_each, percent, print_remarks
from v2f.evaluation.queries import QuerySet, described, held_equal, metrics_by, notes_of, numbers_of, reachable
from v2f.system import Embedding, Sound, System, device_of, of_kind
from v2f.world.people import World


def heard_and_placed(system: System) -> tuple[str, Sound, str, Photo]:
    """The voice that a system takes, the embedding that it makes of it, and what reads a photo for its identity net;
    V2FError if it takes anything else, or has none of them."""
    heard = [(name, sound) for name, sound in of_kind(system.asks(), Sound) if sound.voice]
    made = [name for name, _ in of_kind(system.makes(), Embedding)]
    photo = system.transforms().get("image")
    if len(heard) != 1 or len(system.asks()) != 1 or not made or not isinstance(photo, Photo):
        asks, makes = ", ".join(system.asks()) or "nothing", ", ".join(system.makes())
        raise V2FError(f"no embedding of a voice beside photos: this system asks for {asks}, and makes {makes}")
    return *heard[0], made[0], photo


def _measure(name: str, clips: Clips, job: Job) -> Measured:
    """All numbers of one split."""
    people, device = len(clips.names), device_of(job.system)
    judges = [each for each in job.observers if each.name == "judge"]
    photo_NCHW, person_M = np.stack(clips.photo_N), np.array(clips.person_M)
    reference, gallery = look(judges, photo_NCHW, device), min(metrics.GALLERY, people)
    reference_ND, emb_MD = reference["judge"].emb_MD, np.stack(clips.face_M["judge"])
    everyone = np.arange(people)
    mean_ND = np.stack([emb_MD[person_M == person].mean(0) for person in everyone])
    queries = [
        QuerySet(line="embedding", emb_QD=emb_MD, person_Q=person_M),
        QuerySet(line="clips", emb_QD=mean_ND, person_Q=everyone),
    ]
    world, strongest = world_of(job.dataset), None
    if isinstance(world, World) and people > 1:
        found = reachable(world, clips, judges, reference, gallery, device)["judge"]
        queries += [QuerySet(line=one.line, emb_QD=one.emb_QD, person_Q=one.person_Q) for one in found.queries]
        strongest = found.strongest
    if clips.other_N:
        others = np.array(sorted(clips.other_N))
        other = look(judges, np.stack([clips.other_N[person] for person in others.tolist()]), device)["judge"]
        queries.append(QuerySet(line="photo", emb_QD=other.emb_MD, person_Q=others))
    measured = {one.line: numbers_of(one, reference_ND, reference["judge"].features_MP, gallery) for one in queries}
    each = measured["embedding"][1] | {"margin": metrics.margin_shares(emb_MD, reference_ND, person_M)}
    alike = metrics.consistency(emb_MD, person_M)
    if alike is not None:
        each["consistency"] = alike.each_N
        measured["embedding"][0]["consistency"] = alike.margin.as_dict()
    meters = metrics.collapse_meters(face=emb_MD, reference=reference_ND[person_M], identity=person_M)
    observed: dict[str, Any] = {
        "lines": {line: numbers for line, (numbers, _) in measured.items()},
        "held_equal": held_equal(queries, reference_ND, clips, strongest),
        "strongest_factor": strongest,
        "consistency": None if alike is None else alike.as_dict(),
        "meters": meters,
    }
    result = described(name, clips, gallery) | {"by": {"judge": observed}, "notes": notes_of(clips, world)}
    result["verdict"] = job.system.verdict(meters, {})
    return result, of_each(clips.names, {"judge": each})


class IdentitiesOfVoices(Protocol):
    """Retrieval of a person by the embedding of their voice, in the space of the system's own identity net."""

    own = "embedding"
    compared = tuple(each for each in metrics_by("judge", "identity", "perceptual") if not each.of_pictures)
    explained = (
        "all numbers are in the space of the identity net that the voices were aligned to; identity: distance between "
        "different people's embeddings relative to that of their photos (0: one embedding for everyone); U2 is the "
        "expected embedding of a face for the true voice factors"
    )

    def splits(self, dataset: Dataset) -> list[str]:
        return [name for name in SPLITS if name in dataset.splits]

    def measure(self, job: Job, name: str) -> Measured:
        hears, sound, made, photo = heard_and_placed(job.system)
        if not any(each.name == "judge" for each in job.observers):
            raise V2FError("no identity net to compare voices with: derive the system from Judged")

        def makes(given: Mapping[str, Tensor]) -> tuple[Looks, NDArray[np.float32]]:
            def function(wav_BT: Tensor) -> tuple[Tensor, ...]:
                return (job.system.sample({hears: wav_BT})[made],)

            (emb_MD,) = in_batches(function, given[hears], device_of(job.system))
            nothing = np.zeros((len(emb_MD), 0), np.float32)
            return {"judge": Look(emb_MD, nothing)}, nothing

        clips = gather_made(job, job.dataset.split(name), hears, sound, photo, makes)
        with job.console.status(f"{name}: upper bounds"):
            return _measure(name, clips, job)

    def show(self, name: str, result: Mapping[str, Any], console: Console) -> None:
        """Print the table of a split."""
        split = result["splits"][name]
        observed = split["by"]["judge"]
        of = f"{name}: {split['what']}, {split['people']} people, {split['clips']} clips of {result['seconds']} s"
        table = Table(title=f"{of}; {BY['judge']}", title_justify="left")
        table.add_column(f"gallery of {split['gallery']}, % (95 % interval)" if split["gallery"] else "no gallery")
        for column in ("R@1", "R@5", "R@10", "median rank", "identity"):
            table.add_column(column, justify="right")
        if split["chance"] is not None:
            shares = [f"{100 * v:.1f}" for v in split["chance"].values()]
            table.add_row("chance", *shares, f"{(split['gallery'] + 1) / 2:.1f}", "")
        for line, numbers in observed["lines"].items():
            table.add_row(
                self.title(line, observed),
                *[percent(numbers.get(f"R@{k}")) for k in metrics.KS],
                number(numbers.get("median_rank"), 1),
                number(numbers["identity_distance_ratio"], 2),
                style="bold" if line == self.own else None,
            )
        console.print(table)
        print_remarks(split, console)

    def title(self, line: str, observed: Mapping[str, Any]) -> str:
        return {
            "embedding": "embedding of one clip (this run)",
            "clips": "mean embedding of a person's clips",
            "U1": "U1: true voice factors, others average",
            "U2": "U2: expected embedding for that voice",
            "U3": "U3: somebody with that voice, by chance",
            "U4": "U4: of 64 such people, the nearest to U2",
            "strongest": f"knows only the strongest factor ({observed.get('strongest_factor')})",
            "photo": "other photo itself",
            "chance": "chance",
        }[line]
