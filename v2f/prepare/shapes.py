"""The converter of the primitive monochrome pictures of :mod:`v2f.world.shapes`: digits with a label and known factors.

A sample is one gray picture without sound, and an identity of its own. Its JSON has its ``label`` and its ``factors``;
the manifest names the classes (``provenance.classes``).

Shape letters: N samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from v2f.config import Config
from v2f.data.encoding import encode
from v2f.errors import V2FError
from v2f.prepare import Item, LeftOut, Made, Plan
from v2f.world import shapes

# first numbers of pictures, so that changing their count does not change a picture
_FIRST = {"train": 0, "valid": 80_000_000, "test": 90_000_000}
_MOST = {"train": 80_000_000, "valid": 10_000_000, "test": 10_000_000}


class ShapesConfig(Config):
    """How many pictures of each split; a tenth of them is of each class."""

    seed: int = Field(0, ge=0, lt=2**32, description="another seed has pictures with other factors")
    train: int = Field(ge=0)
    valid: int = Field(0, ge=0)
    test: int = Field(0, ge=0)
    size: int = Field(28, ge=16, le=256, description="side of a picture in pixels")
    photo: Literal["png", "jpg"] = "png"


@dataclass(frozen=True)
class Shapes:
    """Draws the pictures."""

    config: ShapesConfig

    def plan(self) -> Plan:
        items = []
        for split, most in _MOST.items():
            count = getattr(self.config, split)
            if count > most:
                raise V2FError(f"shapes.{split}: at most {most}, got {count}")
            items += [_item(split, _FIRST[split] + number) for number in range(count)]
        about = {"shapes_version": shapes.VERSION, "shapes_hash": shapes.shapes_hash()}
        return Plan(items, provenance={"classes": {"label": list(shapes.CLASSES)}, **about})

    def inputs(self, item: Item) -> list[str]:
        return []

    def make(self, items: Sequence[Item]) -> list[Made | LeftOut]:
        config = self.config
        id_N = np.array([item.what for item in items], dtype=np.int64)
        class_N, factor_NF = shapes.classes(id_N), shapes.factors(id_N, config.seed)
        picture_NHW1 = shapes.render_shapes(class_N, factor_NF, config.size)
        made: list[Made | LeftOut] = []
        for n, item in enumerate(items):
            found = [round(value, 6) for value in factor_NF[n].tolist()]
            extra: dict[str, Any] = {
                "label": shapes.CLASSES[class_N[n]],
                "factors": {"shape": dict(zip(shapes.NAMES, found, strict=True))},
                "number": int(id_N[n]),
                "world": {"version": shapes.VERSION, "hash": shapes.recorded_hash(), "seed": config.seed},
            }
            members = encode(
                item.key,
                photos_HWC=[picture_NHW1[n]],
                identity=item.identity,
                split=item.split,
                source="shapes",
                extra=extra,
                photo_format=config.photo,
            )
            made.append(Made(item, members, 0.0))
        return made


def _item(split: str, number: int) -> Item:
    return Item(f"s{number:08d}", split, f"s{number:08d}", f"picture {number}", number)
