"""Several streams of samples, read side by side: each an order of its own over its own set, all at one position.

    step g --stream s--> slots [g B_s, (g+1) B_s) --order, keyed by (seed, s)--> samples of its set --Loader--> batch[s]

The orders of two streams know nothing of each other, so who of the one meets whom of the other is left to chance; and
as each is a pure function of (data, seed, name), so are the pairs (promise 1). A system that reads one stream has the
one without a name: its seed, fingerprints and batches are those of its loader.

Shape letters: N samples of a split.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from v2f.data.loader import Batch, Loader
from v2f.data.manifest import Ints, Samples
from v2f.data.mix import identities


def stream_seed(seed: int, name: str) -> int:
    """The seed of a stream's order and of what its transforms draw; the run's own for the stream without a name.

    It has 32 bits, one word of a key, however large the run's is: see :func:`v2f.keyed.keyed_rng`.
    """
    digest = hashlib.sha256(f"stream 1|{seed}|{name}".encode()).digest()
    return int.from_bytes(digest[:4], "little") if name else seed


def joint_fingerprint(streams: Mapping[str, str]) -> str:
    """Of streams together, by the fingerprint of each; whichever of them is named first."""
    if "" in streams:
        return streams[""]
    text = "|".join(["streams 1", *(f"{name}={streams[name]}" for name in sorted(streams))])
    return hashlib.sha256(text.encode()).hexdigest()


def joint_people(sets: Iterable[Samples]) -> dict[str, int]:
    """Numbers of all people of the data sets that the ``sets`` are of: a name is one person wherever it stands."""
    return {name: i for i, name in enumerate(sorted({name for samples in sets for name in identities(samples)}))}


def numbered(samples: Samples, people: Mapping[str, int]) -> Ints:
    """``identity_N`` of a set by the numbers of ``people``, int64 [N]."""
    number_I = np.array([people[name] for name in identities(samples)], dtype=np.int64)
    return number_I[samples.identity_N]


def side_by_side(streams: Mapping[str, Iterable[Batch]]) -> Iterator[Batch]:
    """Batches of streams as a system gets them: each under its stream's name, or as they are those of the one without a
    name; until the shortest ends."""
    for batches in zip(*streams.values(), strict=False):
        named: Batch = dict(zip(streams, batches, strict=True))
        yield named.get("", named)


class Streams:
    """The loaders of a system's streams by name, those of one position, as one endless iterable of batches.

    Each has workers of its own; :meth:`close`, or leaving a ``with`` block, ends all.
    """

    def __init__(self, loaders: Mapping[str, Loader]) -> None:
        assert loaders.keys() == {""} or not loaders.keys() & {"", "slot"}, "a batch tells streams by their names"
        self.loaders = dict(loaders)

    @property
    def fingerprint(self) -> str:
        """Of the orders together."""
        return joint_fingerprint({name: loader.order.fingerprint for name, loader in self.loaders.items()})

    @property
    def bytes_read(self) -> int:
        """Bytes asked of the store so far by this rank."""
        return sum(loader.bytes_read for loader in self.loaders.values())

    @property
    def requests(self) -> int:
        """Reads asked of the store so far by this rank."""
        return sum(loader.requests for loader in self.loaders.values())

    @property
    def quarantined(self) -> dict[str, list[int]]:
        """The numbers of the samples of each stream's set that cannot be used, as far as they were met."""
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
