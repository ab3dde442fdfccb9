"""Queries of people by their voices: lines of embeddings that look for their people in a gallery of photos.

Shape letters: N people, Q queries, M clips, D embedding width, P features, V voice factors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from v2f import metrics
from v2f.evaluation.clips import Clips
from v2f.evaluation.observers import Looks, Name, Observer, look
from v2f.evaluation.protocol import SPLITS, Metric, summary_of
from v2f.world import bounds
from v2f.world.people import VOICE, World

U2_DRAWS, U4_DRAWS = 32, 64
"""People with the same voice: those whose mean embedding is U2, and those of whom U4 is the best."""


@dataclass(frozen=True, kw_only=True)
class QuerySet:
    """The faces of one line of the table, as queries of the retrieval."""

    line: str
    """Name in ``eval.json``."""
    emb_QD: NDArray[np.float32]
    person_Q: NDArray[np.int64]
    drawn_NP: NDArray[np.float32] | None = None
    """Features of one picture of each person; None if there are no pictures."""


@dataclass(frozen=True, kw_only=True)
class Reachable:
    """What is possible in the synthetic world, as one observer sees it."""

    queries: list[QuerySet]
    strongest: str
    """The voice factor that tells most."""
    spread: float
    """The mean of 1 - cos over pairs of people with the same voice."""


def reachable(
    world: World,
    clips: Clips,
    observers: Sequence[Observer],
    reference: Looks,
    gallery: int,
    device: torch.device,
) -> dict[Name, Reachable]:
    """Observer -> the best that retrieval can reach in the synthetic world, with all factors and with the most
    informative one alone."""
    voice_NV, size, everyone = np.stack(clips.voice_N), clips.photo_N[0].shape[-1], np.arange(len(clips.names))

    def watched(pictures_NHWC: NDArray[np.uint8]) -> Looks:
        return look(observers, pictures_NHWC.transpose(0, 3, 1, 2), device)

    known = watched(bounds.u1_pictures(world, voice_NV, size))
    possible_K = [watched(pictures) for pictures in bounds.possible_pictures(world, voice_NV, U4_DRAWS, size=size)]
    single = {factor: watched(bounds.factor_pictures(world, voice_NV, factor, size)) for factor in VOICE}
    k = max(metrics.KS)
    found: dict[Name, Reachable] = {}
    for by in (observer.name for observer in observers):

        def recall(factor: str, by: Name = by) -> float:
            own = metrics.retrieval(single[factor][by].emb_MD, reference[by].emb_MD, everyone, gallery=gallery, ks=(k,))
            return own.recall[k].value

        strongest = max(VOICE, key=recall)
        emb_KND = np.stack([each[by].emb_MD for each in possible_K])
        features_KNP = np.stack([each[by].features_MP for each in possible_K])
        u1, u2_ND = known[by], metrics.mean_embedding(emb_KND[:U2_DRAWS])
        best_N = metrics.nearest_draw(emb_KND, u2_ND)
        best_ND, best_NP = emb_KND[best_N, everyone], features_KNP[best_N, everyone]
        possible = [
            QuerySet(line="U1", emb_QD=u1.emb_MD, person_Q=everyone, drawn_NP=u1.features_MP),
            QuerySet(line="U2", emb_QD=u2_ND, person_Q=everyone),
            QuerySet(line="U3", emb_QD=emb_KND[0], person_Q=everyone, drawn_NP=features_KNP[0]),
            QuerySet(line="U4", emb_QD=best_ND, person_Q=everyone, drawn_NP=best_NP),
            QuerySet(line="strongest", emb_QD=single[strongest][by].emb_MD, person_Q=everyone),
        ]
        apart = float(metrics.spread(emb_KND).mean())
        found[by] = Reachable(queries=possible, strongest=strongest, spread=apart)
    return found


def described(name: str, clips: Clips, gallery: int) -> dict[str, Any]:
    """What ``eval.json`` says of a split besides its numbers."""
    people = len(clips.names)
    return {
        "what": SPLITS[name],
        "people": people,
        "clips": len(clips.person_M),
        "left_out": summary_of(clips.left_out),
        "gallery": gallery if people > 1 else None,
        "gallery_too_small": people < metrics.GALLERY,
        "chance": {f"R@{k}": v for k, v in metrics.chance(gallery).items()} if people > 1 else None,
    }


def notes_of(clips: Clips, world: World | str) -> list[str]:
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


def held_equal(
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


def numbers_of(
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


def metrics_by(by: str, identity: str, maps: str) -> tuple[Metric, ...]:
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
