"""The converter of :mod:`v2f.world.things`: dogs, cats, bells and engines, each sample a sound and a picture.

A sample is a take of a thing; the thing is its identity. Its JSON has the ``class`` and all ``factors`` of sound and
picture; the manifest names the classes (``provenance.classes``).

Shape letters: N samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from v2f.config import Config
from v2f.data.encoding import encode
from v2f.data.sample import AudioFormat, PhotoFormat
from v2f.errors import V2FError
from v2f.prepare import Item, LeftOut, Made, Plan
from v2f.world import scenes, sounds, things

# first numbers of things, so that changing their count does not change a thing; multiples of the number of classes
_FIRST = {"train": 0, "valid": 8_000_000, "test": 9_000_000}
_MOST = {"train": 8_000_000, "valid": 1_000_000, "test": 1_000_000}


class Things(Config):
    """The number of things, and of takes of each."""

    things: int = Field(ge=0)
    takes: int = Field(1, ge=1, le=10_000)


class ThingsConfig(Config):
    """How many things and takes of each split; a quarter of the things is of each class."""

    seed: int = Field(0, ge=0, lt=2**32, description="another seed has things with other factors")
    train: Things
    valid: Things = Things(things=0)
    test: Things = Things(things=0)
    seen: Things = Field(Things(things=0), description="the first things of train, in takes that are not in train")
    seconds: float = Field(1.8, ge=0.1, le=60.0)
    sample_rate: int = Field(4000, ge=1000, le=48_000, description="Hz")
    size: int = Field(64, ge=32, le=1024, description="side of a picture in pixels")
    audio: AudioFormat = "flac"
    photo: PhotoFormat = "png"


@dataclass(frozen=True)
class SoundingThings:
    """Renders takes of sounding things."""

    config: ThingsConfig

    def plan(self) -> Plan:
        config = self.config
        for split, most in _MOST.items():
            count = getattr(config, split).things
            if count > most:
                raise V2FError(f"things.{split}.things: at most {most}, got {count}")
        if config.seen.things > config.train.things:
            raise V2FError(
                f"things.seen.things: {config.seen.things}, but only {config.train.things} things are trained on"
            )
        items = [
            _item(split, first + number, take)
            for split, first in _FIRST.items()
            for number in range(getattr(config, split).things)
            for take in range(getattr(config, split).takes)
        ]
        unseen = range(config.train.takes, config.train.takes + config.seen.takes)
        items += [_item("seen", number, take) for number in range(config.seen.things) for take in unseen]
        about = {"things_version": things.VERSION, "things_hash": things.things_hash()}
        return Plan(items, provenance={"classes": {"class": list(things.CLASSES)}, **about})

    def inputs(self, item: Item) -> list[str]:
        return []

    def make(self, items: Sequence[Item]) -> list[Made | LeftOut]:
        config = self.config
        key_N2 = np.array([item.what for item in items], dtype=np.int64)
        ids, takes = key_N2.T
        class_N = things.classes(ids)
        heard_NF = things.sound_factors(ids, takes, config.seed)
        seen_NF = things.picture_factors(ids, takes, config.seed)
        wav_NT = sounds.render_sounds(class_N, heard_NF, key_N2, config.seconds, config.sample_rate, config.seed)
        photo_NHW3 = scenes.render_things(class_N, seen_NF, config.size)
        made: list[Made | LeftOut] = []
        for n, item in enumerate(items):
            extra: dict[str, Any] = {
                "class": things.CLASSES[class_N[n]],
                "factors": {"sound": _named(things.SOUND, heard_NF[n]), "picture": _named(things.PICTURE, seen_NF[n])},
                "thing": int(ids[n]),
                "take": int(takes[n]),
                "world": {"version": things.VERSION, "hash": things.recorded_hash(), "seed": config.seed},
            }
            members = encode(
                item.key,
                wav_NT[n],
                config.sample_rate,
                [photo_NHW3[n]],
                identity=item.identity,
                split=item.split,
                source="things",
                extra=extra,
                audio_format=config.audio,
                photo_format=config.photo,
            )
            made.append(Made(item, members, config.seconds))
        return made


def _item(split: str, thing: int, take: int) -> Item:
    identity = f"t{thing:07d}"
    return Item(f"{identity}-{take:03d}", split, identity, f"thing {thing}, take {take}", (thing, take))


def _named(names: Sequence[str], values: NDArray[np.float64]) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in zip(names, values, strict=True)}
