"""Codes of two levels added to a data set, as ``v2f shards precompute --tokens`` adds those of a coder."""

import numpy as np

from v2f.data.codes import ARRAY
from v2f.data.encoding import encode_array
from v2f.data.manifest import ArrayKind, Dataset
from v2f.data.shards import write_manifest, write_shard
from v2f.data.tar import split_members
from v2f.keyed import keyed_rng
from v2f.storage import store

CODES, TOP, EACH = 16, 3, 4
LENGTHS = {"top": TOP, "bottom": TOP * EACH}


def codes(number: int) -> dict[str, np.ndarray]:
    """Top codes drawn at random, and bottom codes that count up from each of them."""
    top_T = keyed_rng(0xC0DE, number).integers(0, CODES, TOP)
    bottom_T = (top_T[:, None] + np.arange(EACH)).ravel() % CODES
    return {
        ARRAY.format(level="top"): top_T.astype(np.uint16),
        ARRAY.format(level="bottom"): bottom_T.astype(np.uint16),
    }


def with_codes(source: Dataset, root: str) -> Dataset:
    """A copy of ``source`` at ``root``, whose samples have codes."""
    rows, index = [], source.index
    for number, shard in enumerate(source.manifest.shards):
        content = memoryview(store.read_bytes(store.join(source.root, shard.name)))
        samples = []
        for row in np.flatnonzero(index.shard == number):
            key, start = bytes(index.key[row]).decode(), int(index.offset[row])
            raw = content[start : start + int(index.length[row])]
            members = {name: bytes(member) for name, member in split_members(key, raw).items()}
            members |= {f"{name}.npy": encode_array(key, name, values) for name, values in codes(int(row)).items()}
            samples.append((key, source.manifest.identities[index.identity[row]], members))
        rows.append(write_shard(root, shard.name, shard.split, samples))
    arrays = {ARRAY.format(level=level): ArrayKind(dtype="uint16", shape=[length]) for level, length in LENGTHS.items()}
    return write_manifest(root, rows, source.manifest.provenance, arrays=source.manifest.arrays | arrays)
