"""A data set with everything that the toys read: a sound, a photo, a label and an array of integers in each sample."""

import numpy as np

from toys.toy import FRAMES, LABELS, RATE
from v2f.data.encoding import encode
from v2f.data.manifest import ArrayKind, Dataset
from v2f.data.shards import write_manifest, write_shard
from v2f.keyed import keyed_rng

PEOPLE = {"train": range(12), "valid": range(12, 18), "test": range(18, 27)}


def make_data(root: str) -> Dataset:
    """Two samples of each person; sound and photo are functions of the label, with some noise."""
    rows = []
    for split, people in PEOPLE.items():
        samples = []
        for person in people:
            for take in range(2):
                rng, label = keyed_rng(5, person, take), person % len(LABELS)
                tone_T = 0.5 * np.sin(2 * np.pi * (200 + 300 * label) * np.arange(FRAMES) / RATE)
                wav_T = (tone_T + 0.02 * rng.standard_normal(FRAMES)).astype(np.float32)
                photo = np.full((16, 16, 3), 40 + 80 * label) + rng.integers(-20, 21, size=(16, 16, 3))
                key, identity = f"{split}-{person:02d}-{take}", f"id{person:02d}"
                members = encode(
                    key,
                    wav_T,
                    RATE,
                    [photo.astype(np.uint8)],
                    identity=identity,
                    split=split,
                    source="toys",
                    extra={"label": LABELS[label]},
                    arrays={"tokens": rng.integers(0, 5, size=8)},
                )
                samples.append((key, identity, members))
        rows.append(write_shard(root, f"{split}-00000.tar", split, samples))
    arrays = {"tokens": ArrayKind(dtype="int64", shape=[8])}
    return write_manifest(root, rows, {"recipe": {"source": "toys"}}, arrays=arrays)
