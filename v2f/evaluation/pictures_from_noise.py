"""Pictures from noise: compared with one photo of each person of a split, and with as many photos of other people.

Shape letters: N people, M pictures, Z noise, D embedding width, P pixels or features.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from v2f import metrics
from v2f.data.loader import read_usable
from v2f.data.manifest import Dataset, Split
from v2f.data.transforms import NoiseVector, Photo
from v2f.errors import V2FError
from v2f.evaluation.observers import BATCH, BY, Looks, first_observer, in_batches, looks, seen
from v2f.evaluation.protocol import (
    SPLITS,
    Job,
    Measured,
    Metric,
    Protocol,
    no_usable_sample,
    number,
    of_each,
    print_remarks,
    share,
    summary_of,
)
from v2f.system import Noise, Picture, System, Transform, device_of, of_kind, to_picture


def noise_input_and_picture_output(system: System) -> tuple[str, Noise, str, Picture]:
    """The noise input and the picture output of a system: name and kind of each.

    V2FError if the system asks for anything else, or makes no picture.
    """
    asked = of_kind(system.asks(), Noise)
    drawn = of_kind(system.makes(), Picture)
    if len(asked) != len(system.asks()) or not asked or not drawn:
        inputs = ", ".join(system.asks()) or "nothing"
        raise V2FError(f"this system does not make pictures from noise alone: its input is {inputs}")
    return *asked[0], *drawn[0]


def people_of(
    split: Split, system: System, limit: int | None, left_out: list[str]
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Photo [N,C,H,W] and noise [N,Z] of the first sample of each of the first ``limit`` people, and these people's
    numbers [N]; None if no sample is usable."""
    _, kind, _, drawn = noise_input_and_picture_output(system)
    sees = Photo(drawn.size, drawn.share, 1 if drawn.channels == 1 else 3)
    read: dict[str, Transform] = {"image": sees, "noise": NoiseVector(kind.width)}
    firsts = np.sort(np.unique(split.identity_N, return_index=True)[1])[:limit]
    batches = list(read_usable(split, read, BATCH, left_out, samples=firsts.tolist()))
    if not batches:
        return None
    photo, noise, people = (torch.cat([batch[name] for batch in batches]) for name in ("image", "noise", "identity"))
    return photo, noise, people


def _metrics_by(by: str, identity: str, maps: str) -> tuple[Metric, ...]:
    """The metrics of an observer, which uses these nets for identity and for feature maps."""
    return (
        Metric("nearest", "picture: nearest", 0, by, maps, of_pictures=True),
        Metric("energy", "picture: energy", -1, by, maps, digits=3, of_pictures=True),
        Metric("precision", "picture: precision, %", 1, by, maps, 100, 1, of_pictures=True),
        Metric("recall", "picture: recall, %", 1, by, maps, 100, 1, of_pictures=True),
        Metric("variety_identity", "between people", 0, by, identity),
    )


_COLUMNS = ("Frechet", "nearest", "energy", "precision", "recall", "between people")


class PicturesFromNoise(Protocol):
    """How near generated pictures are to photos of unseen people, and whether they differ from each other."""

    own = "generated"
    compared = (
        *_metrics_by("referee", "referee", "referee"),
        *_metrics_by("judge", "identity", "perceptual"),
        Metric("variety", "variety", 0, "pixels", of_pictures=True),
        Metric("variety_nearest", "to the nearest", 0, "pixels", of_pictures=True),
    )
    explained = (
        "Frechet: distance between the distributions of identity features, which falls with the number of pictures; "
        "nearest and energy: distance from the photos in feature maps (best: 1 and 0); precision and recall: pictures "
        "that look real, and photos that are like one of them, in %; relative to photos: variety, "
        "mean distance in pixels; to the nearest, mean distance to the nearest other picture; between people, mean "
        "distance of identities"
    )

    def splits(self, dataset: Dataset) -> list[str]:
        return [name for name in SPLITS if name in dataset.splits][:1]

    def measure(self, job: Job, name: str) -> Measured:
        dataset, system, observers = job.dataset, job.system, job.observers
        left_out: list[str] = []
        asked = noise_input_and_picture_output(system)[0]
        held_out = people_of(dataset.split(name), system, job.limit, left_out)
        if held_out is None:
            raise no_usable_sample(dataset.root, name, left_out)
        photos, noise_NZ, people = held_out

        def observe(draw: Callable[[Tensor], Tensor], rows: Tensor) -> tuple[NDArray[np.float32], Looks]:
            def function(row_B: Tensor) -> tuple[Tensor, ...]:
                picture_BCHW = draw(row_B)
                return (picture_BCHW.flatten(1), *seen(observers, picture_BCHW))

            pixels_MP, *columns = in_batches(function, rows, device_of(system))
            return pixels_MP, looks(observers, columns)

        sets = {"generated": observe(lambda noise: next(iter(system.sample({asked: noise}).values())), noise_NZ)}
        notes = []
        if job.run.config.data.split in dataset.splits:
            others = people_of(dataset.split(job.run.config.data.split), system, len(photos), [])
            if others is not None:
                sets["trained"] = observe(to_picture, others[0])
        else:
            notes.append(
                f"this data set has no split {job.run.config.data.split!r}, so the row for its photos is missing"
            )
        real_pixels_MP, real = observe(to_picture, photos)
        width = max((look.emb_MD.shape[1] for look in real.values()), default=0)
        if len(photos) <= width:
            notes.append(
                f"{len(photos)} people are few for {width} features: compare the Frechet distance only with that of "
                "the photos of people seen in training"
            )
        by: dict[str, dict[str, Any]] = {who: {"lines": {}} for who in (*real, "pixels")}
        each: dict[str, dict[str, NDArray[np.float64]]] = {}
        for line, (pixels_MP, each_look) in sets.items():
            own = {"made": pixels_MP, "real": real_pixels_MP}
            by["pixels"]["lines"][line] = metrics.pixel_variety(**own)
            if line == "generated":
                each["pixels"] = metrics.pixel_variety_shares(**own)
            for who, one in each_look.items():
                picture = metrics.picture_distance(one.features_MP, real[who].features_MP)
                by[who]["lines"][line] = {
                    "frechet": metrics.frechet_distance(one.emb_MD, real[who].emb_MD),
                    "picture": picture.as_dict(),
                    "variety_identity": metrics.identity_variety(one.emb_MD, real[who].emb_MD),
                }
                if line == "generated":
                    shares = metrics.identity_variety_shares(one.emb_MD, real[who].emb_MD)
                    each[who] = picture.each | {"variety_identity": shares}
        result = {
            "what": SPLITS[name],
            "people": len(photos),
            "left_out": summary_of(left_out),
            "by": by,
            "notes": notes,
        }
        meters = by["pixels"]["lines"]["generated"] | first_observer(result)[1]["lines"]["generated"]
        result["verdict"] = metrics.mode_collapse_verdict(meters)
        return result, of_each(people.tolist(), each)

    def show(self, name: str, result: Mapping[str, Any], console: Console) -> None:
        """Print the tables of a split, one for each observer and one for the pixels."""
        split = result["splits"][name]
        of = f"{name}: {split['what']}, {split['people']} people and as many pictures"
        for by, observed in split["by"].items():
            pixels = by == "pixels"
            table = Table(title=f"{of}; {BY[by]}", title_justify="left")
            table.add_column("compared with photos of these people")
            for column in ("variety", "to the nearest") if pixels else _COLUMNS:
                table.add_column(column, justify="right")
            for line, numbers in observed["lines"].items():
                picture = numbers.get("picture") or {}
                values = (
                    [number(numbers[key], 2) for key in ("variety", "variety_nearest")]
                    if pixels
                    else [
                        number(numbers["frechet"], 3),
                        number(picture.get("nearest"), 2),
                        number(picture.get("energy"), 3),
                        *[share(picture.get(name)) for name in ("precision", "recall")],
                        number(numbers["variety_identity"], 2),
                    ]
                )
                table.add_row(self.title(line, observed), *values, style="bold" if line == "generated" else None)
            console.print(table)
        print_remarks(split, console)

    def title(self, line: str, observed: Mapping[str, Any]) -> str:
        return {"generated": "generated (this run)", "trained": "photos of people seen in training"}[line]
