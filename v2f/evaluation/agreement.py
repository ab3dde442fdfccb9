"""Attribute agreement and the numbers of each group, as `v2f eval` measures and prints them.

    Attributes --+--> the faces of each line: do the people nearest to a face belong to its speaker's group?
                 \\--> R@K of the run's own faces, for the speakers of each group alone

:mod:`v2f.metrics.agreement` has the definition.

Shape letters: N people, Q faces, D embedding width, P people with faces, C numbers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from v2f import metrics
from v2f.evaluation.attributes import FEW, Attribute
from v2f.evaluation.protocol import percent

OWN, U1, OWN_PHOTO = "voice", "U1", "own_photo"
"""The lines: the run's faces, those of the true voice factors (synthetic people), and each speaker's gallery photo."""

_MOST_SHOWN = 6  # groups of an attribute in the table of the terminal

Faces = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Embeddings [Q, D] of faces, and the speaker of each [Q]."""


def described(attributes: Sequence[Attribute]) -> dict[str, Any]:
    """What ``eval.json`` says about the groups of a split: where they come from, and how many people they have."""
    return {
        each.name: {
            "source": each.source,
            "groups": dict(zip(each.groups, each.people, strict=True)),
            "unknown": int((each.group_N < 0).sum()),
            "edges": list(each.edges),
        }
        for each in attributes
    }


def measured(
    attributes: Sequence[Attribute],
    lines: Mapping[str, Faces],
    gallery_ND: NDArray[np.float32],
    each: Mapping[str, NDArray[np.float64]],
) -> dict[str, Any]:
    """The numbers of one observer by attribute. ``lines``: the faces of :data:`OWN` and other lines; ``each``: each
    person's R@K [N] in the run's faces, by its name."""
    groups = {attribute.name: attribute.group_N for attribute in attributes}
    photos = gallery_ND, np.arange(len(gallery_ND))
    found = {
        line: metrics.agreement(emb_QD, gallery_ND, person_Q, groups)
        for line, (emb_QD, person_Q) in {**lines, OWN_PHOTO: photos}.items()
    }
    recalls = [f"R@{k}" for k in metrics.KS]
    numbers: dict[str, Any] = {}
    for attribute in attributes:
        own = found[OWN][attribute.name]
        group_P = attribute.group_N[own.person_P]
        value_PC = np.stack([own.each_P, *(each[name][own.person_P] for name in recalls)], 1)
        slices: dict[str, Any] = {}
        for number, group in enumerate(attribute.groups):
            if not (group_P == number).any():  # nobody of the group has a face
                continue
            agreement, *recall = metrics.each_over_people(value_PC[group_P == number])
            slices[group] = {
                "people": int((group_P == number).sum()),
                "agreement": agreement.as_dict(),
                "chance": float(own.chance_G[number]),
                **{name: interval.as_dict() for name, interval in zip(recalls, recall, strict=True)},
            }
        numbers[attribute.name] = {
            "agreement": {
                line: metrics.over_people(of_line[attribute.name].each_P).as_dict() for line, of_line in found.items()
            },
            "chance": own.chance,
            "held_equal": _held_equal(lines[OWN], gallery_ND, attribute.group_N),
            "slices": slices,
        }
    return numbers


def _held_equal(faces: Faces, gallery_ND: NDArray[np.float32], group_N: NDArray[np.int64]) -> dict[str, Any] | None:
    """R@K of the run's faces in galleries of people of the speaker's group; None if no group is large enough."""
    each = metrics.recall_in_groups(faces[0], gallery_ND, faces[1], group_N)
    people = len(each[metrics.KS[0]])
    if not people:
        return None
    chance = metrics.chance(metrics.HELD_EQUAL)
    return {
        "gallery": metrics.HELD_EQUAL,
        "people": people,
        "chance": {f"R@{k}": value for k, value in chance.items()},
        **{f"R@{k}": metrics.over_people(own).as_dict() for k, own in each.items()},
    }


def show(title: str, observed: Mapping[str, Any], console: Console) -> None:
    """Print the table of one observer; nothing without attributes."""
    if not observed:
        return
    lines = {line: None for one in observed.values() for line in one["agreement"]}
    table = Table(title=title, title_justify="left")
    table.add_column("attribute")
    table.add_column("agreement, % (95 %)", justify="right")
    table.add_column("chance", justify="right")
    titles = {U1: "U1", OWN_PHOTO: "own photo"}
    others = [line for line in titles if line in lines]
    for line in others:
        table.add_column(titles[line], justify="right")
    held = any(numbers["held_equal"] for numbers in observed.values())
    if held:
        table.add_column("held equal", justify="right")
    table.add_column(f"R@10, % of each group; * fewer than {FEW} people")
    for name, numbers in observed.items():
        values = [numbers["agreement"].get(line) for line in others]
        table.add_row(
            name,
            percent(numbers["agreement"][OWN]),
            f"{100 * numbers['chance']:.1f}",
            *("-" if value is None else f"{100 * value['value']:.1f}" for value in values),
            *([percent((numbers["held_equal"] or {}).get("R@1"))] if held else []),
            _of_groups(numbers["slices"]),
        )
    console.print(table)
    console.print(
        "agreement: the five people nearest to a face, without its speaker, vote for the speaker's group; chance: the "
        "same faces, dealt at random; own photo, U1: the same for the speaker's photo, and for the true voice factors; "
        f"held equal: R@1, % among {metrics.HELD_EQUAL} people of the speaker's group (chance "
        f"{100 / metrics.HELD_EQUAL:.0f})",
        style="dim",
    )


def _of_groups(slices: Mapping[str, Any]) -> str:
    """R@10 of each group; of many, those with enough people."""
    shown = slices if len(slices) <= _MOST_SHOWN else {k: v for k, v in slices.items() if v["people"] >= FEW}
    said = [f"{name}{'*' * (of['people'] < FEW)} {percent(of['R@10'])}" for name, of in shown.items()]
    if len(shown) < len(slices):
        said.append(f"{len(slices) - len(shown)} smaller groups: eval.json")
    return ", ".join(said)
