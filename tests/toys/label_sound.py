"""A label in, a sound out."""

import torch.nn.functional as F
from torch import Tensor

from toys.toy import FRAMES, LABELS, RATE, SECONDS, Toy
from v2f.data.transforms import ClassNumber, Waveform
from v2f.system import Batch, Kind, Label, Sound, Transform


class LabelSound(Toy):
    protocol = "labelled_sounds"
    sizes = (len(LABELS), FRAMES)

    def asks(self) -> dict[str, Kind]:
        return {"kind": Label(LABELS)}

    def makes(self) -> dict[str, Kind]:
        return {"sound": Sound(RATE, SECONDS)}

    def transforms(self) -> dict[str, Transform]:
        return {"kind": ClassNumber("label", LABELS), "wav": Waveform(SECONDS, RATE)}

    def inputs(self, batch: Batch) -> Tensor:
        return F.one_hot(batch["kind"], len(LABELS)).to(self.net.weight)

    def target(self, batch: Batch) -> Tensor:
        return batch["wav"]

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        return {"sound": self.made(batch)[:, None].detach()}
