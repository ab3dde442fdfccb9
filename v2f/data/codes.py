"""The codes of a sound, as ``v2f shards precompute --tokens`` stores them: one array of integers for each level.

Shape letters: T codes of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from v2f.data.sample import Sample
from v2f.errors import V2FError

if TYPE_CHECKING:
    from v2f.data.manifest import Dataset

ARRAY = "codes_{level}"
"""The name of the array that has the codes of a level."""


@dataclass(frozen=True)
class StoredTokens:
    """The stored codes of a ``level``, int64 [T]: ``length`` codes, each below ``vocabulary``."""

    level: str
    length: int
    vocabulary: int

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> npt.NDArray[np.int64]:
        values = sample.array(ARRAY.format(level=self.level))
        if values.dtype.kind not in "iu" or values.shape != (self.length,):
            found = f"{values.dtype} {list(values.shape)}"
            raise V2FError(f"sample {sample.key}: its {self.level} codes are {found}, not {self.length} integers")
        if values.min() < 0 or values.max() >= self.vocabulary:
            raise V2FError(
                f"sample {sample.key}: its {self.level} codes are {values.min()} to {values.max()}, the system knows "
                f"codes below {self.vocabulary}"
            )
        return values.astype(np.int64)

    def bind(self, datasets: "Sequence[Dataset]") -> "StoredTokens":
        for dataset in datasets:
            kind: Any = dataset.manifest.arrays.get(ARRAY.format(level=self.level))
            if kind is None:
                raise V2FError(
                    f"{dataset.root}: its samples have no {self.level} codes; write them with `v2f shards precompute "
                    "--tokens RUN`"
                )
            if kind.shape != [self.length] or np.dtype(kind.dtype).kind not in "iu":
                raise V2FError(
                    f"{dataset.root}: the {self.level} codes of a sample are {kind}, the system takes {self.length} "
                    "integers; set its length to that of the data"
                )
        return self
