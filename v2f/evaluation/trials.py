"""A list of speaker verification trials in VoxCeleb's format, matched with the samples of a data set.

    1 id10270/5r0dWxy17C8/00001.wav id10270/x6uYqmx31kE/00001.wav     1: the same person, 0: different people

A name is the key of a sample, or the path of the file that VoxCeleb's converter made it from, at any depth:
``wav/id10270/x6uYqmx31kE/00001.wav`` is the sample ``id10270-x6uYqmx31kE-00001``.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from v2f.data.manifest import Dataset
from v2f.errors import V2FError
from v2f.metrics import Trials
from v2f.storage import store


@dataclass(frozen=True)
class ListedTrials:
    """The trials of a list whose clips a data set has."""

    trials: Trials
    """Between ``samples``."""
    samples: list[int]
    """Numbers of the clips in the whole data set."""
    missing: list[str]
    """A line for each trial that names a clip which the data set does not have."""
    sha256: str
    """Of the file."""


def read_trials(path: str, dataset: Dataset) -> ListedTrials:
    """The trials in the file ``path`` between clips of ``dataset``, of any split.

    V2FError for a line of another format, a trial that contradicts the people in the manifest, and a list of which the
    data set has no trial.
    """
    content = store.read_bytes(path)
    sample_of = {bytes(key).decode("ascii"): number for number, key in enumerate(dataset.index.key)}
    rows: dict[int, int] = {}
    pairs: list[tuple[int, int, bool]] = []
    missing = []
    for line, same, names in _lines(path, content):
        found = [next((sample_of[key] for key in _keys(name) if key in sample_of), None) for name in names]
        if None in found:
            missing.append(f"line {line}: {names[found.index(None)]}")
            continue
        one, other = (int(each) for each in found if each is not None)
        people = [dataset.manifest.identities[dataset.index.identity[each]] for each in (one, other)]
        if same != (people[0] == people[1]):
            raise V2FError(
                f"{path}: line {line} says {int(same)}, but its clips are of {people[0]} and {people[1]} in "
                f"{dataset.root}; correct the line"
            )
        pairs.append((rows.setdefault(one, len(rows)), rows.setdefault(other, len(rows)), same))
    if not pairs:
        raise V2FError(f"{path}: {dataset.root} has the clips of none of its {len(missing)} trials")
    one_T, other_T, same_T = (np.array(column) for column in zip(*pairs, strict=True))
    return ListedTrials(Trials(one_T, other_T, same_T), list(rows), missing, hashlib.sha256(content).hexdigest())


def _lines(path: str, content: bytes) -> Iterator[tuple[int, bool, tuple[str, str]]]:
    """Number, label and names of each line that is not empty."""
    for number, line in enumerate(content.splitlines(), start=1):
        words = line.decode("utf-8", "replace").split()
        if not words:
            continue
        if len(words) != 3 or words[0] not in ("0", "1"):
            raise V2FError(f"{path}: line {number} is no trial; write `1 CLIP CLIP` (the same person) or `0 CLIP CLIP`")
        yield number, words[0] == "1", (words[1], words[2])


def _keys(name: str) -> list[str]:
    """The keys that a clip of this name may have."""
    *folders, file = name.split("/")
    parts = [*folders, file.rpartition(".")[0] or file]
    return [name, "-".join(parts[-3:])]
