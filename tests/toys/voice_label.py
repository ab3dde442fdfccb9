"""A voice in, a label out."""

import torch.nn.functional as F
from torch import Tensor

from toys.toy import FRAMES, LABELS, RATE, SECONDS, Toy
from v2f.data.transforms import ClassNumber, Waveform
from v2f.system import Batch, Kind, Label, Sound, Transform


class VoiceLabel(Toy):
    sizes = (FRAMES, len(LABELS))

    def asks(self) -> dict[str, Kind]:
        return {"wav": Sound(RATE, SECONDS, voice=True)}

    def makes(self) -> dict[str, Kind]:
        return {"kind": Label(LABELS)}

    def transforms(self) -> dict[str, Transform]:
        return {"wav": Waveform(SECONDS, RATE), "label": ClassNumber("label", LABELS)}

    def inputs(self, batch: Batch) -> Tensor:
        return batch["wav"]

    def target(self, batch: Batch) -> Tensor:
        return F.one_hot(batch["label"], len(LABELS)).to(batch["wav"])

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        return {"kind": self.made(batch).detach()}
