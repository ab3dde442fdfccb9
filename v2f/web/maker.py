"""A run that makes something other than a face from a voice, as the served page uses it.

    recording, photo, video, label --generate.batch_of--> batch --sample--> picture, sound, label --> HTML, all inside

Nothing is written.

Shape letters: T samples.
"""

from dataclasses import dataclass

import torch

from v2f import generate, latent
from v2f.data import media
from v2f.data.sample import MAX_SECONDS
from v2f.errors import V2FError
from v2f.generate import Given
from v2f.runs.run import Run
from v2f.system import Kind, Label, Picture, Sound, System, of_kind
from v2f.web.page import data_uri


@dataclass(frozen=True)
class Thing:
    """One output: a data URI, or scores by name."""

    name: str
    kind: str
    uri: str = ""
    scores: tuple[tuple[str, float], ...] = ()


class Maker:
    """A run that makes outputs from what a visitor gives."""

    def __init__(self, run: Run, which: str | int = "latest", system: System | None = None) -> None:
        """Load the checkpoint ``which`` (see :meth:`Run.checkpoint`), or use ``system``, which was loaded from it; on a
        GPU if there is one. V2FError if a page can offer no input for it, or show none of its outputs."""
        self.run, self.step = run, run.step_of(which)
        system = run.system(which=which) if system is None else system
        self.system = system.to("cuda" if torch.cuda.is_available() else "cpu")
        for name, kind in self.system.asks().items():
            if type(kind) not in generate.GIVEN_AS:
                raise V2FError(f"{run.path}: its system asks for {name} ({type(kind).__name__}), which no page offers")
        if not any(isinstance(kind, Picture | Sound | Label) for kind in self.system.makes().values()):
            raise V2FError(f"{run.path}: its system makes {', '.join(self.system.makes())}, which no page can show")

    @property
    def asked(self) -> dict[str, Kind]:
        """The widgets of the page: field of :class:`v2f.generate.Given` -> kind; a photo to restyle may be left out."""
        asked = {generate.GIVEN_AS[type(kind)]: kind for kind in self.system.asks().values()}
        if latent.restyles(self.system):
            asked["photo"] = of_kind(self.system.makes(), Picture)[0][1]
        return asked

    def make(self, given: Given, max_seconds: float = MAX_SECONDS) -> list[Thing]:
        """The outputs for an input. ``max_seconds``: longest recording. V2FError if the input cannot be used."""
        made = generate.make(self.system, given, max_seconds)
        notes = generate.provenance(self.run, self.system, given, step=self.step)
        things = []
        for name, kind in self.system.makes().items():
            one = made[name]
            if isinstance(kind, Picture):
                things.append(Thing(name, "picture", data_uri(media.png(one, notes), "png")))
            elif isinstance(kind, Sound):
                sound_T = one.flatten().float().cpu().numpy()
                content = media.wav(sound_T, kind.rate, notes)
                things.append(Thing(name, "sound", data_uri(content, "wav")))
            elif isinstance(kind, Label):
                ranked = sorted(generate.shares(kind, one).items(), key=lambda each: -each[1])
                things.append(Thing(name, "label", scores=tuple(ranked[:10])))
        return things
