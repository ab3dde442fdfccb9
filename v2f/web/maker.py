"""A run or pipeline that makes something other than a face from a voice, as the served page uses it.

    recording, photo, video, label --given.batch_of--> batch --sample--> picture, sound, label --> HTML, all inside

Nothing is written.

Shape letters: T samples.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from v2f import generate, latent
from v2f.data import media
from v2f.data.sample import MAX_SECONDS
from v2f.errors import V2FError
from v2f.given import GIVEN_AS, Given, labeled
from v2f.pipeline import Opened
from v2f.roles import Labeling
from v2f.system import Generative, Kind, Label, Picture, Sound, Video, of_kind
from v2f.web.page import data_uri


@dataclass(frozen=True)
class Thing:
    """One output: a data URI, or scores by name."""

    name: str
    kind: str
    uri: str = ""
    scores: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Made:
    """What was made of an input, and the metadata in its files."""

    things: list[Thing]
    notes: dict[str, str]


class Maker:
    """A run or pipeline that makes outputs from what a visitor gives."""

    def __init__(self, run: Opened, which: str | int = "latest", system: Generative | None = None) -> None:
        """Load the checkpoint ``which`` (see :meth:`v2f.runs.run.Run.checkpoint`), or use ``system``, which was loaded
        from it; on a GPU if there is one. V2FError if a page can offer no input for it, or show none of its outputs."""
        self.run, self.step = run, run.step_of(which)
        system = run.system(which=which) if system is None else system
        self.system = system.to("cuda" if torch.cuda.is_available() else "cpu")
        for name, kind in self.system.asks().items():
            if type(kind) not in GIVEN_AS:
                raise V2FError(f"{run.path}: its system asks for {name} ({type(kind).__name__}), which no page offers")
        if not any(isinstance(kind, Picture | Sound | Label) for kind in self.system.makes().values()):
            raise V2FError(f"{run.path}: its system makes {', '.join(self.system.makes())}, which no page can show")

    @property
    def asked(self) -> dict[str, Kind]:
        """The widgets of the page: field of :class:`v2f.given.Given` -> kind; see :attr:`instead` for those of which
        one is enough, and a photo to restyle may be left out."""
        asked = {GIVEN_AS[type(kind)]: kind for kind in self.system.asks().values()}
        if latent.restyles(self.system):
            asked["photo"] = of_kind(self.system.makes(), Picture)[0][1]
        return {**self.instead, **asked}

    @property
    def instead(self) -> dict[str, Kind]:
        """The widgets of which one is enough, the label's included; empty if all that is asked for is needed."""
        if not isinstance(self.system, Labeling):
            return {}
        looks = self.system.looks
        label = of_kind(self.system.asks(), Label)[0][1]
        return {"photo": looks, "video": Video(looks.size, self.system.frames), "label": label}

    def make(self, given: Given, max_seconds: float = MAX_SECONDS) -> Made:
        """The outputs for an input. ``max_seconds``: longest recording or video. V2FError if the input cannot be
        used."""
        given, share_of = labeled(self.system, given, max_seconds)
        made = generate.make(self.system, given, max_seconds)
        notes = generate.provenance(self.run, self.system, given, step=self.step)
        things = []
        for name, kind in self.system.makes().items():
            if isinstance(kind, Sound) and given.video is not None:
                things.append(_video(name, given.video, made[name], kind, notes))
            things += _things(name, kind, made[name], notes)
        if share_of is not None:
            things.append(Thing("label found", "label", scores=_ranked(share_of)))
        return Made(things, notes)


def _things(name: str, kind: Kind, made: Tensor, notes: Mapping[str, str]) -> list[Thing]:
    """What a page shows of an output; nothing for a kind that it cannot show."""
    if isinstance(kind, Picture):
        return [Thing(name, "picture", data_uri(media.png(made, notes), "png"))]
    if isinstance(kind, Sound):
        content = media.wav(made.flatten().float().cpu().numpy(), kind.rate, notes)
        return [Thing(name, "sound", data_uri(content, "wav"))]
    if isinstance(kind, Label):
        return [Thing(name, "label", scores=_ranked(generate.shares(kind, made)))]
    return []


def _video(name: str, video: str | bytes, sound: Tensor, kind: Sound, notes: Mapping[str, str]) -> Thing:
    """The video with its sound: an MP4, or Matroska for pictures that an MP4 cannot hold."""
    file = io.BytesIO()
    try:
        generate.with_sound(video, file, ".mp4", sound, kind, notes)
    except media.MisfitError:
        generate.with_sound(video, file := io.BytesIO(), ".mkv", sound, kind, notes)
        return Thing(name, "video", data_uri(file.getbuffer(), "mkv"))
    return Thing(name, "video", data_uri(file.getbuffer(), "mp4"))


def _ranked(share_of: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """The ten most likely labels."""
    return tuple(sorted(share_of.items(), key=lambda each: -each[1])[:10])
