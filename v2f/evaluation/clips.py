"""A split as a system that draws faces of voices sees it: the face of each clip, and what is known about each person.

    split --voices--> system --> faces --observers--> embeddings and features of each clip
          --photos, metadata, factors of synthetic people--> the same of each person

Shape letters: N people, M clips, B batch, D embedding width, P features, L styles, X inputs, F factors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from v2f import metrics
from v2f.config import build
from v2f.data.loader import read_usable
from v2f.data.manifest import Dataset, Split
from v2f.data.sample import Sample
from v2f.data.transforms import Factors, NoiseVector, Photo, Waveform, square
from v2f.errors import V2FError
from v2f.evaluation.observers import BATCH, Look, Looks, Name, Observer, in_batches, looks, seen
from v2f.evaluation.protocol import Job, no_usable_sample
from v2f.system import Noise, Picture, Sound, Styled, System, device_of, of_kind, to_picture
from v2f.world import world_hash
from v2f.world.people import World, WorldConfig

METADATA = ("gender", "nationality")
"""Fields of a sample's JSON that describe its person: what VoxCeleb publishes."""

_BYTES = 64  # of a field of the metadata


@dataclass(frozen=True)
class OtherPhoto:
    """The sample's last photo, uint8 [3, size, size], cropped as :class:`Photo` crops the first."""

    size: int

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> NDArray[np.uint8]:
        return square(sample.photo(sample.photo_count - 1), self.size).transpose(2, 0, 1)


@dataclass(frozen=True)
class Told:
    """A text in the sample's JSON as UTF-8, uint8 [64], cut or padded with zeros; all zeros if there is none. Only for
    evaluation, which compares groups of people."""

    field: str

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> NDArray[np.uint8]:
        value = sample.meta.get(self.field)
        text = value.encode()[:_BYTES] if isinstance(value, str) else b""
        return np.frombuffer(text.ljust(_BYTES, b"\0"), np.uint8)


@dataclass
class Draws:
    """Several faces of each clip, as one observer sees them."""

    mean_M: list[NDArray[np.float32]] = field(default_factory=list)
    """The mean embedding."""
    chosen_M: list[NDArray[np.float32]] = field(default_factory=list)
    """The embedding that is nearest to the mean."""
    chosen_N: list[NDArray[np.float32]] = field(default_factory=list)
    """Features of that face, of each person's first clip."""
    spread_M: list[float] = field(default_factory=list)
    """The mean of 1 - cos over pairs of draws."""

    def add(self, looks: Sequence[Look], rows: Sequence[int]) -> None:
        """The draws of a batch of clips; ``rows`` are the first clips of people."""
        emb_KBD = np.stack([one.emb_MD for one in looks])
        mean_BD = metrics.mean_embedding(emb_KBD)
        chosen_B, each_B = metrics.nearest_draw(emb_KBD, mean_BD), np.arange(len(mean_BD))
        self.mean_M.extend(mean_BD)
        self.chosen_M.extend(emb_KBD[chosen_B, each_B])
        self.chosen_N.extend(looks[int(chosen_B[row])].features_MP[row] for row in rows)
        self.spread_M.extend(metrics.spread(emb_KBD).tolist())


@dataclass
class Clips:
    """A split as the system sees it. ``*_M``: a row per clip; ``*_N``: a row per person, in order of first clips."""

    names: list[int] = field(default_factory=list)
    """Each person's number in the manifest."""
    person_M: list[int] = field(default_factory=list)
    face_M: dict[Name, list[NDArray[np.float32]]] = field(default_factory=dict)
    """Observer -> identity embeddings of the faces made from clips."""
    drawn_N: dict[Name, list[NDArray[np.float32]]] = field(default_factory=dict)
    """Observer -> features of the face made from each person's first clip."""
    draws: dict[Name, Draws] = field(default_factory=dict)
    """Observer -> several faces of each clip, if several are drawn."""
    w_M: list[NDArray[np.float32]] = field(default_factory=list)
    photo_N: list[NDArray[np.uint8]] = field(default_factory=list)
    """The gallery's photos."""
    other_N: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    """Person -> another photo, if there is one."""
    voice_N: list[NDArray[np.float32]] = field(default_factory=list)
    """Voice factors, on synthetic data."""
    built_N: list[NDArray[np.float32]] = field(default_factory=list)
    """Face factors, on synthetic data."""
    told_N: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in METADATA})
    """Field of the metadata -> each person's value; empty if unknown."""
    left_out: list[str] = field(default_factory=list)
    """A line for each sample that could not be used."""


def heard_and_drawn(system: System) -> tuple[str, Sound, str, Picture]:
    """The voice that a system takes and the picture that it makes from it: two names, each with its kind.

    V2FError if the system takes anything else but noise, or makes no picture.
    """
    heard = [(name, sound) for name, sound in of_kind(system.asks(), Sound) if sound.voice]
    drawn = of_kind(system.makes(), Picture)
    others = [kind for kind in system.asks().values() if not isinstance(kind, Sound | Noise)]
    if len(heard) != 1 or others or not drawn:
        asks, makes = _names_of(system.asks()), _names_of(system.makes())
        raise V2FError(f"no face from a voice: this system asks for {asks}, and makes {makes}")
    return *heard[0], *drawn[0]


def _names_of(kinds: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({type(kind).__name__})" for name, kind in kinds.items()) or "nothing"


Makes = Callable[[Mapping[str, Tensor]], tuple[Looks, NDArray[np.float32]]]
"""What a system asks for, by name -> what the observers see of the faces made of it, and the faces' codes [M, L, D], of
width 0 if there are none."""


def gather(job: Job, split: Split) -> Clips:
    """Everything that the evaluation needs of a split, in one pass over its samples, for a system that draws faces."""
    hears, sound, _, drawn = heard_and_drawn(job.system)
    photo = Photo(drawn.size, drawn.share)
    return gather_made(job, split, hears, sound, photo, lambda given: _faces(job.system, job.observers, given))


def gather_made(job: Job, split: Split, hears: str, sound: Sound, photo: Photo, makes: Makes) -> Clips:
    """The same for a system that takes the voice ``hears``; ``makes`` says what it makes, ``photo`` reads a photo."""
    # not what only the losses need, such as codes: another data set may not have that
    transforms: dict[str, Any] = {"wav": Waveform(sound.seconds, sound.rate), "image": photo}
    transforms["other"] = OtherPhoto(photo.size)
    widths = {name: kind.width for name, kind in of_kind(job.system.asks(), Noise)}
    transforms |= {name: NoiseVector(width * job.draws) for name, width in widths.items()}
    if isinstance(world_of(split.dataset), World):
        transforms |= {"voice": Factors("voice"), "built": Factors("face")}
    told = {f"told_{name}": Told(name) for name in METADATA}
    transforms |= told
    clips, people = Clips(), dict[int, int]()
    batches = read_usable(split, transforms, BATCH, clips.left_out, limit=job.limit)
    steps = -(-(split.samples if job.limit is None else min(job.limit, split.samples)) // BATCH)
    what, console = f"{split.name}: faces", job.console
    for batch in track(batches, what, total=steps, console=console, disable=console.quiet, transient=True):
        seen_K = []
        for draw in range(job.draws):
            noise = {name: batch[name][:, draw * width : (draw + 1) * width] for name, width in widths.items()}
            seen_K.append(makes({hears: batch["wav"], **noise}))
        seen_B, w_B = seen_K[0]
        firsts: list[int] = []
        for by, one in seen_B.items():
            clips.face_M.setdefault(by, []).extend(one.emb_MD)
        clips.w_M.extend(w_B)
        for row, name in enumerate(batch["identity"].tolist()):
            if name not in people:
                people[name] = len(people)
                firsts.append(row)
                clips.names.append(name)
                clips.photo_N.append(batch["image"][row].numpy())
                for by, one in seen_B.items():
                    clips.drawn_N.setdefault(by, []).append(one.features_MP[row])
                if "voice" in batch:
                    clips.voice_N.append(batch["voice"][row].numpy())
                    clips.built_N.append(batch["built"][row].numpy())
                for key, one_told in told.items():
                    text = batch[key][row].numpy().tobytes().rstrip(b"\0")
                    clips.told_N[one_told.field].append(text.decode(errors="ignore"))
            person = people[name]
            clips.person_M.append(person)
            for other in (batch["other"][row].numpy(), batch["image"][row].numpy()):
                if person not in clips.other_N and not np.array_equal(other, clips.photo_N[person]):
                    clips.other_N[person] = other
        for by in seen_B if job.draws > 1 else ():
            clips.draws.setdefault(by, Draws()).add([one[by] for one, _ in seen_K], firsts)
    if not clips.person_M:
        raise no_usable_sample(split.dataset.root, split.name, clips.left_out)
    return clips


def world_of(dataset: Dataset) -> World | str:
    """The synthetic world of the people, or the reason why there are no upper bounds."""
    provenance = dataset.manifest.provenance
    if "world_hash" not in provenance:
        return "real people: what a voice reveals about them is unknown, so there is no upper bound U1 or U2"
    if provenance["world_hash"] != world_hash():
        return (
            f"these people are from version {provenance['world_version']} of the world, which this program does not "
            "have: no upper bound U1 or U2; pack the data again"
        )
    return World(build(WorldConfig, provenance["recipe"]["synthetic"]["world"], f"{dataset.root}: world"))


def _faces(
    system: System, observers: Sequence[Observer], given: Mapping[str, Tensor]
) -> tuple[Looks, NDArray[np.float32]]:
    """What a system that draws faces makes (:data:`Makes`)."""
    widths = [value.shape[1] for value in given.values()]

    def function(row_BX: Tensor) -> tuple[Tensor, ...]:
        batch = dict(zip(given, row_BX.split(widths, 1), strict=True))
        if isinstance(system, Styled):
            w = system.styles(batch)
            return (*seen(observers, system.face(w)), w)
        made = next(iter(system.sample(batch).values()))
        return (*seen(observers, made), row_BX.new_zeros(len(row_BX), 0))

    *columns, w_M = in_batches(function, torch.cat(list(given.values()), 1), device_of(system))
    return looks(observers, columns), w_M


def through_generator(system: Styled, observers: Sequence[Observer], photo_MCHW: NDArray[np.uint8]) -> Looks:
    """What the observers see of photos that were inverted and generated again."""

    def function(img_BCHW: Tensor) -> tuple[Tensor, ...]:
        return seen(observers, system.face(system.invert(to_picture(img_BCHW))))

    return looks(observers, in_batches(function, torch.from_numpy(photo_MCHW), device_of(system)))


def codes_of(system: Styled, photo_MCHW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """w+ [M, L, D] of photos."""
    (w_MLD,) = in_batches(
        lambda img: (system.invert(to_picture(img)),), torch.from_numpy(photo_MCHW), device_of(system)
    )
    return w_MLD
