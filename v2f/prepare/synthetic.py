"""The converter of the synthetic world: people who are reproducible from the recipe alone.

One sample is one clip and ``photos`` photos of a person. Clip c has the photos from c * photos on, so that a person's
samples show different photos. With ``labels``, each sample has those labels of its person (:mod:`v2f.world.labels`),
and people who lack one are skipped. Does not import torch, so that packing processes start fast.

Shape letters: N samples, P photos.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from v2f.config import Config
from v2f.data.encoding import encode
from v2f.data.sample import AudioFormat, PhotoFormat
from v2f.errors import V2FError
from v2f.prepare import Item, LeftOut, Made, Plan
from v2f.world import recorded_hash, world_hash
from v2f.world.labels import Label, bands, classes, labels_of
from v2f.world.people import CLIP, FACE, PHOTO, VERSION, VOICE, World, WorldConfig
from v2f.world.portraits import render_portraits

# first numbers of people, so that changing their count does not change a person
_FIRST = {"train": 0, "valid": 8_000_000, "test": 9_000_000}
_MOST = {"train": 8_000_000, "valid": 1_000_000, "test": 1_000_000}


class Crowd(Config):
    """The number of people, and of clips per person."""

    people: int = Field(ge=0)
    clips: int = Field(1, ge=1, le=10_000)


class SyntheticConfig(Config):
    """Which people of which world, and how many clips and photos of each."""

    world: WorldConfig = WorldConfig()
    train: Crowd
    valid: Crowd = Crowd(people=0)
    test: Crowd = Crowd(people=0)
    seen: Crowd = Field(Crowd(people=0), description="the first people of train, with clips that are not in train")
    photos: int = Field(1, ge=1, le=100, description="photos of the person in each sample")
    seconds: float = Field(2.0, ge=0.1, le=60.0)
    size: int = Field(64, ge=32, le=1024, description="side of a photo in pixels")
    audio: AudioFormat = "flac"
    photo: PhotoFormat = "png"
    labels: list[Label] = Field([], description="labels that each sample has; people without one of them are skipped")


SAMPLE_RATE = 16000


@dataclass(frozen=True)
class Synthetic:
    """Renders synthetic people."""

    config: SyntheticConfig

    def plan(self) -> Plan:
        config = self.config
        for split, most in _MOST.items():
            people = getattr(config, split).people
            if people > most:
                raise V2FError(f"synthetic.{split}.people: at most {most}, got {people}")
        if config.seen.people > config.train.people:
            raise V2FError(
                f"synthetic.seen.people: {config.seen.people}, but only {config.train.people} people are trained on"
            )
        items = []
        for split in _FIRST:
            clips = range(getattr(config, split).clips)
            items += [_item(split, person, clip) for person in self._people(split) for clip in clips]
        unseen = range(config.train.clips, config.train.clips + config.seen.clips)
        items += [_item("seen", i, clip) for i in self._people("train")[: config.seen.people] for clip in unseen]
        about: dict[str, Any] = {"world_version": VERSION, "world_hash": world_hash()}
        if config.labels:
            about["classes"] = {label: list(classes(label)) for label in config.labels}
            about["bands"] = {label: bands(label) for label in config.labels}
        return Plan(items, provenance=about)

    def _people(self, split: str) -> list[int]:
        """The numbers of a split's people: the first ones that have all the labels."""
        config, first, most = self.config, _FIRST[split], _MOST[split]
        wanted = getattr(config, split).people
        if not config.labels:
            return list(range(first, first + wanted))
        found: list[int] = []
        world, step = World(config.world), 4096
        for start in range(first, first + most, step):
            if len(found) >= wanted:
                break
            id_N = np.arange(start, min(start + step, first + most))
            named = zip(*(labels_of(label, world.face(id_N)) for label in config.labels), strict=True)
            found += [int(i) for i, each in zip(id_N, named, strict=True) if None not in each]
        if len(found) < wanted:
            raise V2FError(f"synthetic.{split}.people: {wanted}, but only {len(found)} people have all the labels")
        return found[:wanted]

    def inputs(self, item: Item) -> list[str]:
        return []

    def make(self, items: Sequence[Item]) -> list[Made | LeftOut]:
        from v2f.world.voices import render_voices  # imported late: it imports scipy.signal

        config, world = self.config, World(self.config.world)
        id_N = np.array([item.what[0] for item in items], dtype=np.int64)
        number_N = np.array([item.what[1] for item in items], dtype=np.int64)
        voice_NV, face_NF, clip_NC = world.voice(id_N), world.face(id_N), world.clip(id_N, number_N)
        named = {label: labels_of(label, face_NF) for label in config.labels}
        key_N = np.array([_content(config.world.seed, *item.what) for item in items], dtype=np.int64)
        wav_NT = render_voices(voice_NV, clip_NC, key_N, config.seconds, SAMPLE_RATE)
        photo_NP = number_N[:, None] * config.photos + np.arange(config.photos)
        owner_M = np.repeat(id_N, config.photos)
        nuisance_MP = world.photo(owner_M, photo_NP.reshape(-1))
        photo_MHWC = render_portraits(np.repeat(face_NF, config.photos, axis=0), nuisance_MP, config.size)
        photo_NPHWC = photo_MHWC.reshape(len(items), config.photos, *photo_MHWC.shape[1:])
        nuisance_NPP = nuisance_MP.reshape(len(items), config.photos, -1)
        made: list[Made | LeftOut] = []
        for n, item in enumerate(items):
            extra: dict[str, Any] = {
                **{label: values[n] for label, values in named.items()},
                "factors": {
                    "voice": _named(VOICE, voice_NV[n]),
                    "face": _named(FACE, face_NF[n]),
                    "clip": _named(CLIP, clip_NC[n]),
                    "photos": [_named(PHOTO, nuisance) for nuisance in nuisance_NPP[n]],
                },
                "person": int(id_N[n]),
                "clip": int(number_N[n]),
                "photos": photo_NP[n].tolist(),
                "world": {"version": VERSION, "hash": recorded_hash(), **config.world.model_dump()},
            }
            members = encode(
                item.key,
                wav_NT[n],
                SAMPLE_RATE,
                list(photo_NPHWC[n]),
                identity=item.identity,
                split=item.split,
                source="synthetic",
                extra=extra,
                audio_format=config.audio,
                photo_format=config.photo,
            )
            made.append(Made(item, members, config.seconds))
        return made


def _item(split: str, person: int, clip: int) -> Item:
    identity = f"p{person:07d}"
    return Item(f"{identity}-{clip:03d}", split, identity, f"person {person}, clip {clip}", (person, clip))


def _content(seed: int, person: int, clip: int) -> int:
    """The seed of the words and the noise of a clip, below 2**63."""
    return int.from_bytes(sha256(f"{seed}/{person}/{clip}".encode()).digest()[:8], "big") >> 1


def _named(names: Sequence[str], values: npt.NDArray[np.float32]) -> dict[str, Any]:
    return {name: round(float(value), 6) for name, value in zip(names, values, strict=True)}
