"""The page of a run that makes something else than a face of a voice: what is given goes in, what is made comes out.

    recording, photo, video, label --generate.batch_of--> batch --sample--> picture, sound, label --> HTML, all inside

Nothing is written; a file that was uploaded is removed as soon as it was read.

Shape letters: T samples.
"""

from dataclasses import dataclass
from typing import Any

import torch

from v2f import generate, media
from v2f.errors import V2FError
from v2f.generate import Given
from v2f.run import Run
from v2f.system import Kind, Label, Noise, Picture, Sound, Video
from v2f.web.page import data_uri

WIDGETS: dict[type[Kind], str] = {Sound: "voice", Picture: "photo", Video: "video", Label: "label", Noise: "seed"}
"""The kinds that a visitor can give, and the field of :class:`v2f.generate.Given` that takes each."""


@dataclass(frozen=True)
class Thing:
    """One thing that was made: a data URI, or scores by name."""

    name: str
    kind: str
    uri: str = ""
    scores: tuple[tuple[str, float], ...] = ()


class Maker:
    """A run that makes things of what it is given."""

    def __init__(self, run: Run, which: str | int = "latest") -> None:
        """Loads the checkpoint ``which`` (see :meth:`Run.checkpoint`), on a GPU where there is one. V2FError where it
        asks for what nobody can give on a page, or makes nothing that a page can show."""
        self.run, self.step = run, run.step_of(which)
        self.system = run.system(which=which).to("cuda" if torch.cuda.is_available() else "cpu")
        for name, kind in self.system.asks().items():
            if type(kind) not in WIDGETS:
                raise V2FError(f"{run.path}: its system asks for {name} ({type(kind).__name__}): no page has that")
        if not any(isinstance(kind, Picture | Sound | Label) for kind in self.system.makes().values()):
            raise V2FError(f"{run.path}: its system makes {', '.join(self.system.makes())}: no page shows that")

    @property
    def asked(self) -> dict[str, Kind]:
        """The widgets of the page: field of :class:`v2f.generate.Given` -> kind."""
        return {WIDGETS[type(kind)]: kind for kind in self.system.asks().values()}

    def make(self, given: Given) -> list[Thing]:
        """What is made of what is given; V2FError in one line where it cannot be used."""
        with torch.no_grad():
            made = self.system.sample(generate.batch_of(self.system, given))
        notes = generate.provenance(self.run, self.system, step=self.step)
        things = []
        for name, kind in self.system.makes().items():
            one = made[name][0]
            if not one.isfinite().all():
                raise V2FError("what the system made is not finite; its training has diverged")
            if isinstance(kind, Picture):
                things.append(Thing(name, "picture", data_uri(media.png(one, notes), "png")))
            elif isinstance(kind, Sound):
                sound_T = one.flatten().float().cpu().numpy()
                content = media.wav(sound_T, kind.rate, notes)
                things.append(Thing(name, "sound", data_uri(content, "wav")))
            elif isinstance(kind, Label):
                share_K = one.float().softmax(0).tolist()
                ranked: list[Any] = sorted(zip(kind.names, share_K, strict=True), key=lambda each: -each[1])
                things.append(Thing(name, "label", scores=tuple(ranked[:10])))
        return things
