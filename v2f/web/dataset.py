"""Two self-contained pages about a data set: its statistics with plots, and a contact sheet with audio players.

data set --prepare.stats--> statistics -----> stats.html
         --chosen samples, unchanged--> show.html
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from v2f import __version__
from v2f.data.manifest import Dataset, open_dataset
from v2f.data.sample import Sample
from v2f.errors import V2FError
from v2f.prepare import share, stats
from v2f.prepare.names import person
from v2f.prepare.yields import YIELD
from v2f.storage import store
from v2f.web.page import Histogram, data_uri, environment, histogram, number

WIDTH, HEIGHT = 320, 44  # of a waveform
_COLUMNS = 160


def stats_page(root: str, output: str, limit: int | None = None) -> stats.Stats:
    """Measure the data set under ``root`` (``limit`` samples of it), write the page, print the table."""
    dataset = open_dataset(root)
    found = stats.measure(dataset, limit)
    plots, alike = _plots(found)
    page = (
        environment()
        .get_template("stats.html.j2")
        .render(
            dataset=dataset,
            stats=found,
            whole=found.whole,
            plots=plots,
            alike=alike,
            left_out=_left_out(dataset),
            recipe=json.dumps(dataset.manifest.provenance, indent=1, ensure_ascii=False),
            spread=stats.spread,
            version=__version__,
        )
    )
    store.write_bytes(output, page.encode())
    for line in stats.lines(found):
        print(line)
    print(f"  page: {output}")
    return found


def is_synthetic(dataset: Dataset) -> bool:
    """Whether a program made the people or pictures of a data set."""
    return not {"world_hash", "shapes_hash", "things_hash"}.isdisjoint(dataset.manifest.provenance)


def _redrawn(dataset: Dataset) -> bool:
    """Whether pSp drew the photos, as far as the recipe in the manifest tells."""
    recipe = dataset.manifest.provenance.get("recipe")
    group = recipe.get(recipe.get("source")) if isinstance(recipe, dict) else None
    psp = group.get("psp") if isinstance(group, dict) else None
    return isinstance(psp, dict) and psp.get("pictures") is True


def _plots(found: stats.Stats) -> tuple[list[Histogram], list[tuple[str, str]]]:
    """Histograms of what varies, and title and value of what is the same for all samples."""
    whole = found.whole
    seconds = whole.seconds_of_each
    long = bool(seconds) and float(np.median(seconds)) >= 120
    values: list[tuple[str, str, Sequence[float]]] = [
        ("length of a clip", "s", whole.seconds_N),
        ("clips of a person", "", whole.clips_of_each),
        ("photos in a sample", "", whole.photos_N),
        ("shorter side of a photo", "px", whole.side_M),
        ("size of a sample", "KiB", [size / 1024 for size in whole.bytes_N]),  # samples are multiples of half of one
    ]
    if not found.is_sampled:
        voice = [each / 60 for each in seconds] if long else seconds
        values.insert(2, ("voice of a person", "minutes" if long else "s", voice))
    values = [each for each in values if len(each[2])]  # what no sample has is not drawn
    drawn = [histogram(title, unit, each) for title, unit, each in values if min(each) < max(each)]
    alike = [(title, f"{number(each[0])} {unit}".strip()) for title, unit, each in values if min(each) == max(each)]
    return drawn, alike


def _left_out(dataset: Dataset) -> Mapping[str, Any] | None:
    """The report of what packing left out, if it is stored beside the data."""
    path = store.join(dataset.root, YIELD)
    if not store.exists(path):
        return None
    try:
        report = json.loads(store.read_bytes(path))
        return {
            "kept": int(report["kept"]["samples"]),
            "reasons": {str(reason): int(count) for reason, count in report["left_out"]["reasons"].items()},
            "photos": {str(reason): int(count) for reason, count in report["rejected_photos"].items()},
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise V2FError(f"{path}: this is not a yield report; restore it or remove it") from error


# ---------------------------------------------------------------------------------------- contact sheet


@dataclass(frozen=True)
class Card:
    """One sample of the sheet. Photos and sound are data URIs of the stored bytes, empty if it has none."""

    key: str
    identity: str
    split: str
    photos: list[str]
    originals: list[str]
    """Each photo before pSp redrew it, if that was kept."""
    sound: str
    wave: str
    words: str
    more: str


def show(root: str, output: str, count: int = 24, split: str | None = None, identity: str | None = None) -> list[Card]:
    """Write a page with ``count`` samples, chosen pseudo-randomly (always the same) from as many people as possible;
    only of ``split`` or ``identity``, if given. It also names the samples that cannot be used."""
    dataset = open_dataset(root)
    rows = _chosen(dataset, count, split, identity)
    broken: list[str] = []
    cards = []
    for row, sample in stats.read_samples(dataset, rows, broken):
        try:
            name = dataset.manifest.shards[dataset.index.shard[row]].name
            cards.append(_card(sample, f"{name}, byte {dataset.index.offset[row]}"))
        except V2FError as error:
            broken.append(str(error))
    page = (
        environment()
        .get_template("show.html.j2")
        .render(
            dataset=dataset,
            cards=cards,
            broken=broken,
            which=f"of {identity}" if identity is not None else f"of the split {split}" if split is not None else "",
            synthetic=is_synthetic(dataset),
            redrawn=_redrawn(dataset),
            width=WIDTH,
            height=HEIGHT,
            version=__version__,
        )
    )
    store.write_bytes(output, page.encode())
    unusable = f"; {len(broken)} cannot be used, the first: {broken[0]}" if broken else ""
    print(f"{output}: {len(cards)} of {len(dataset.index.key)} samples of {root}{unusable}")
    return cards


def _chosen(dataset: Dataset, count: int, split: str | None, identity: str | None) -> npt.NDArray[np.int64]:
    """Rows of the index, sorted: one sample of each person in turn, until there are ``count``."""
    if count < 1:
        raise V2FError(f"a sheet shows at least one sample, but {count} were requested")
    index, manifest = dataset.index, dataset.manifest
    rows = np.arange(len(index.key))
    if split is not None:
        of = dataset.split(split)  # or an error that lists the splits
        rows = rows[of.first : of.first + of.samples]
    if identity is not None:
        numbers = [number for number, name in enumerate(manifest.identities) if person(name) == person(identity)]
        if not numbers:
            raise V2FError(f"{dataset.root}: it has nobody called {identity!r}")
        rows = rows[np.isin(index.identity[rows], numbers)]
        if not len(rows):
            raise V2FError(f"{dataset.root}: {identity!r} is not in the split {split}")
    ranked = sorted(rows.tolist(), key=lambda row: share(bytes(index.key[row]).decode("ascii", "replace")))
    turn: dict[int, int] = {}
    place = {}
    for row in ranked:
        who = int(index.identity[row])
        place[row] = turn[who] = turn.get(who, -1) + 1
    return np.sort(np.array(sorted(ranked, key=lambda row: place[row])[:count], dtype=np.int64))


def _card(sample: Sample, where: str) -> Card:
    wav_T = sample.waveform() if sample.has_audio else None
    sizes = [
        sample.photo(number).shape for number in range(sample.photo_count)
    ]  # decoding checks that a browser can show it
    seen = ", ".join(sorted({f"{width} × {height} px" for height, width, _ in sizes}))
    for at in range(len(sample.original_names)):
        sample.original(at)
    meta = {name: value for name, value in sample.meta.items() if name not in ("identity", "split")}
    extras = [name for name, has in (("codes", sample.has_codes), ("embedding", sample.has_embedding)) if has]
    heard = []
    if wav_T is not None:
        heard = [f"{len(wav_T) / sample.sample_rate:.2f} s", f"{sample.sample_rate / 1000:g} kHz"]
    arrays = [f"{name} {'×'.join(map(str, sample.array(name).shape))}" for name in sample.array_names]
    parts = [*heard, seen, *extras, *arrays]
    return Card(
        key=sample.key,
        identity=sample.identity,
        split=str(sample.meta["split"]),
        photos=_pictures(sample, sample.photo_names),
        originals=_pictures(sample, sample.original_names),
        sound="" if wav_T is None else data_uri(sample.member(sample.audio_name), sample.audio_name),
        wave="" if wav_T is None else wave(wav_T),
        words=" · ".join(filter(None, parts)),
        more=json.dumps({"where": where, **meta}, indent=1, ensure_ascii=False),
    )


def _pictures(sample: Sample, names: Sequence[str]) -> list[str]:
    return [data_uri(sample.member(name), name.rpartition(".")[2]) for name in names]


def wave(wav_T: Sequence[float] | npt.NDArray[np.float32]) -> str:
    """The outline of a clip as an SVG path in a box of WIDTH x HEIGHT, scaled to its loudest sample."""
    array = np.asarray(wav_T, float)
    edges = np.linspace(0, len(array), min(_COLUMNS, len(array)) + 1).astype(int)[:-1]
    scale = HEIGHT / 2 / max(float(np.abs(array).max()), 1e-9)
    top, bottom = np.maximum.reduceat(array, edges), np.minimum.reduceat(array, edges)
    across = (np.arange(len(edges)) + 0.5) * WIDTH / len(edges)
    points = [*zip(across, top, strict=True), *zip(across[::-1], bottom[::-1], strict=True)]
    return "M" + "L".join(f"{x:.1f} {HEIGHT / 2 - scale * y:.1f}" for x, y in points) + "Z"
