"""Several streams of samples, read side by side: each has its own order over its own set, and all are at one position.

    step g --stream s--> slots [g B_s, (g+1) B_s) --order, keyed by (seed, s)--> samples of its set --Loader--> batch[s]

The orders of two streams are independent, so their samples are paired at random; and because each order is a pure
function of (data, seed, name), so are the pairs. A system with one stream uses the stream without a name, whose seed,
fingerprint and batches are those of its loader.

Shape letters: N samples of a split.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from v2f.data.loader import Batch, Loader
from v2f.data.manifest import Ints, Samples
from v2f.data.mix import identities
from v2f.data.transforms import PersonNumber, Transform


def stream_seed(seed: int, name: str) -> int:
    """The seed of a stream's order and transforms; the run's seed for the stream without a name.

    It has 32 bits, one word of a key, whatever the size of the run's seed: see :func:`v2f.keyed.keyed_rng`.
    """
    digest = hashlib.sha256(f"stream 1|{seed}|{name}".encode()).digest()
    return int.from_bytes(digest[:4], "little") if name else seed


def joint_fingerprint(streams: Mapping[str, str]) -> str:
    """The fingerprint of several streams, from theirs by name, independent of the order of the names."""
    if "" in streams:
        return streams[""]
    text = "|".join(["streams 1", *(f"{name}={streams[name]}" for name in sorted(streams))])
    return hashlib.sha256(text.encode()).hexdigest()


def joint_people(sets: Iterable[Samples]) -> dict[str, int]:
    """Numbers for all people of the data sets of ``sets``; equal names are the same person."""
    return {name: i for i, name in enumerate(sorted({name for samples in sets for name in identities(samples)}))}


def numbered(samples: Samples, people: Mapping[str, int]) -> Ints:
    """``identity_N`` of a set in the numbering of ``people``, int64 [N]."""
    number_I = np.array([people[name] for name in identities(samples)], dtype=np.int64)
    return number_I[samples.identity_N]


def numbered_alike(
    reads: Mapping[str, Mapping[str, Transform]], sets: Mapping[str, Samples]
) -> dict[str, dict[str, Transform]]:
    """What is read of each stream, with :class:`PersonNumber` bound to the training data of all streams, so that a
    person has one number in all of them; ``sets``: the training samples of each stream."""
    datasets = {dataset.fingerprint: dataset for samples in sets.values() for dataset in samples.datasets}
    every = list(datasets.values())
    return {
        stream: {name: each.bind(every) if isinstance(each, PersonNumber) else each for name, each in own.items()}
        for stream, own in reads.items()
    }


def side_by_side(streams: Mapping[str, Iterable[Batch]]) -> Iterator[Batch]:
    """Batches as a system gets them: by stream name, or for the stream without a name as they are; until the shortest
    stream ends."""
    for batches in zip(*streams.values(), strict=False):
        named: Batch = dict(zip(streams, batches, strict=True))
        yield named.get("", named)


class Streams:
    """The loaders of a system's streams by name, all at one position, as one endless iterable of batches.

    Each has its own workers; :meth:`close` or the end of a ``with`` block ends all of them.
    """

    def __init__(self, loaders: Mapping[str, Loader]) -> None:
        assert loaders.keys() == {""} or not loaders.keys() & {"", "slot"}, "a batch identifies streams by their names"
        self.loaders = dict(loaders)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of all orders together."""
        return joint_fingerprint({name: loader.order.fingerprint for name, loader in self.loaders.items()})

    @property
    def bytes_read(self) -> int:
        """Bytes that this rank has requested from the store so far."""
        return sum(loader.bytes_read for loader in self.loaders.values())

    @property
    def requests(self) -> int:
        """Reads that this rank has requested from the store so far."""
        return sum(loader.requests for loader in self.loaders.values())

    @property
    def quarantined(self) -> dict[str, list[int]]:
        """For each stream, the numbers of the samples that turned out to be unusable so far."""
        return {name: loader.quarantine.numbers for name, loader in self.loaders.items()}

    def __iter__(self) -> Iterator[Batch]:
        return side_by_side({name: iter(loader) for name, loader in self.loaders.items()})

    def close(self) -> None:
        """End all iterations and their workers."""
        for loader in self.loaders.values():
            loader.close()

    def __enter__(self) -> "Streams":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
