"""``v2f shards stats``: statistics of a data set.

    index -> samples, people, clips per person, bytes: exact
    shards -> each sample's JSON and the headers of its photos -> lengths, sides, formats: of all samples, or a part

Shape letters: N samples (``seconds_N``, ``identity_N``: those with audio), M photos of all of them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from v2f.data.manifest import Dataset
from v2f.data.sample import CODES, EMBEDDING, Sample
from v2f.errors import V2FError
from v2f.storage import store

Ints = npt.NDArray[np.int64]


@dataclass
class Measurements:
    """One split, or the whole. From the index: ``samples``, ``people``, ``clips_of_each`` person, ``bytes_N``. The rest
    is measured, on the samples that ``photos_N`` counts."""

    samples: int
    people: int
    clips_of_each: list[int]
    bytes_N: list[int]
    seconds_N: list[float] = field(default_factory=list)
    identity_N: list[str] = field(default_factory=list)
    photos_N: list[int] = field(default_factory=list)
    side_M: list[int] = field(default_factory=list)
    """The shorter side of each photo in pixels."""
    kinds: "Counter[str]" = field(default_factory=Counter)
    """Number of members by extension."""
    rates: "Counter[int]" = field(default_factory=Counter)
    sources: "Counter[str]" = field(default_factory=Counter)

    @classmethod
    def of(cls, dataset: Dataset, rows: Ints) -> "Measurements":
        clips = np.bincount(dataset.index.identity[rows])
        clips = clips[clips > 0]
        return cls(len(rows), len(clips), clips.tolist(), dataset.index.length[rows].tolist())

    def add(self, sample: Sample) -> None:
        sides = [min(sample.photo_size(number)) for number in range(sample.photo_count)]
        if sample.has_audio:
            self.seconds_N.append(sample.seconds)
            self.identity_N.append(sample.identity)
            self.kinds[sample.audio_name] += 1
            self.rates[sample.sample_rate] += 1
        self.photos_N.append(sample.photo_count)
        self.side_M += sides
        self.kinds.update(name.rpartition(".")[2] for name in sample.photo_names)
        self.kinds.update(f"original {name.rpartition('.')[2]}" for name in sample.original_names)
        self.kinds.update([CODES] * sample.has_codes + [EMBEDDING] * sample.has_embedding)
        self.kinds.update(f"{name}.npy" for name in sample.array_names)
        self.sources[str(sample.meta["source"])] += 1

    @property
    def hours(self) -> float:
        """Hours of sound; extrapolated if only a part of the samples was measured."""
        return sum(self.seconds_N) / max(1, len(self.photos_N)) * self.samples / 3600

    @property
    def seconds_of_each(self) -> list[float]:
        """Seconds of each person's voice in the measured samples."""
        seconds_of: dict[str, float] = defaultdict(float)
        for identity, seconds in zip(self.identity_N, self.seconds_N, strict=True):
            seconds_of[identity] += seconds
        return list(seconds_of.values())


@dataclass
class Stats:
    """The statistics of a data set; ``broken`` has a line for each sample that could not be measured."""

    dataset: Dataset
    whole: Measurements
    splits: dict[str, Measurements]
    broken: list[str] = field(default_factory=list)

    @property
    def measured(self) -> int:
        """The number of samples that were read."""
        return len(self.whole.photos_N) + len(self.broken)

    @property
    def is_sampled(self) -> bool:
        return self.measured < self.whole.samples

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.dataset.manifest.shards)


def measure(dataset: Dataset, limit: int | None = None) -> Stats:
    """Measure all samples, or ``limit`` of them, spread evenly. V2FError if none of them can be used."""
    count = len(dataset.index.key)
    everything = np.arange(count)
    parts = {name: Measurements.of(dataset, everything[_rows(dataset, name)]) for name in dataset.splits}
    stats = Stats(dataset, Measurements.of(dataset, everything), parts)
    rows = np.unique(np.linspace(0, count - 1, min(limit or count, count)).astype(np.int64))
    found = read_samples(dataset, rows, stats.broken)
    for row, sample in tqdm(found, total=len(rows), unit="sample", desc=f"measuring {dataset.root}", disable=None):
        try:
            for part in (stats.whole, parts[dataset.manifest.shards[dataset.index.shard[row]].split]):
                part.add(sample)
        except V2FError as error:
            stats.broken.append(str(error))
    if not stats.whole.photos_N:
        raise V2FError(f"{dataset.root}: none of its samples can be used, the first: {stats.broken[0]}")
    return stats


def _rows(dataset: Dataset, split: str) -> slice:
    """The rows of a split in the index."""
    of = dataset.split(split)
    return slice(of.first, of.first + of.samples)


def read_samples(dataset: Dataset, rows: Ints, broken: list[str]) -> Iterator[tuple[int, Sample]]:
    """The samples of sorted ``rows`` of the index with a correct checksum; for every other one, a line is added to
    ``broken``.

    A shard is read as a whole if more than a quarter of its samples are needed.
    """
    index = dataset.index
    for number in np.unique(index.shard[rows]).tolist():
        shard = dataset.manifest.shards[number]
        path = dataset.place(number)
        mine = rows[index.shard[rows] == number].tolist()
        content: bytes | None = None
        try:
            if 4 * len(mine) > shard.samples:
                content = store.read_bytes(path)
        except V2FError as error:
            broken += [f"sample {_key(dataset, row)}: {error}" for row in mine]
            continue
        for row in mine:
            key, offset, length = _key(dataset, row), int(index.offset[row]), int(index.length[row])
            try:
                raw = store.read_range(path, offset, length) if content is None else content[offset : offset + length]
                if crc32(raw) != index.crc32[row]:
                    raise V2FError(f"sample {key}: its checksum differs ({shard.name}, byte {offset})")
                yield row, Sample.from_tar(key, dataset.in_our_schema(row, raw))
            except V2FError as error:
                broken.append(str(error))


def _key(dataset: Dataset, row: int) -> str:
    return bytes(dataset.index.key[row]).decode("ascii", "replace")


def lines(stats: Stats) -> list[str]:
    """The statistics as text."""
    whole, about = stats.whole, "about " if stats.is_sampled else ""

    def hours(of: Measurements) -> str:
        return f", {about}{of.hours:.2f} hours" if whole.seconds_N else ""

    said = [
        f"{stats.dataset.root}: {whole.samples:,} samples of {whole.people:,} people{hours(whole)}, "
        f"{stats.bytes / 1e6:,.0f} MB in {len(stats.dataset.manifest.shards)} shards"
    ]
    if stats.is_sampled:
        said.append(f"  hours, seconds, photos and files are measured on {stats.measured:,} samples, spread evenly")
    for name, of in stats.splits.items():
        said.append(f"  {name}: {of.samples:,} samples of {of.people:,} people{hours(of)}")
        seconds = f"; seconds of a clip {spread(of.seconds_N)}" if whole.seconds_N else ""
        said.append(f"    {'clips' if seconds else 'samples'} of a person {spread(of.clips_of_each)}{seconds}")
        if whole.side_M:
            said.append(f"    photos a sample {spread(of.photos_N)}; shorter side {spread(of.side_M)} px")
    said.append("  files: " + ", ".join(f"{count:,} {kind}" for kind, count in whole.kinds.most_common()))
    said.append("  sources: " + ", ".join(f"{count:,} {source}" for source, count in whole.sources.most_common()))
    if stats.broken:
        said.append(f"  {len(stats.broken)} samples cannot be used, the first: {stats.broken[0]}")
    return said


def spread(values: Sequence[float]) -> str:
    """The only value; or the median and the 5th to 95th percentile (if these are equal, the minimum to the maximum)."""
    if not len(values):
        return "–"
    low, middle, high = np.percentile(np.asarray(values, float), [5, 50, 95], method="inverted_cdf")
    if low == high:
        low, high = min(values), max(values)
    return _short(middle) if low == high else f"{_short(middle)} ({_short(low)} to {_short(high)})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
