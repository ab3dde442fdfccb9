"""A label and noise in, a gray picture out."""

import torch
import torch.nn.functional as F
from torch import Tensor

from toys.toy import LABELS, SIDE, Toy
from v2f.data.transforms import ClassNumber, NoiseVector, Photo
from v2f.system import Batch, Kind, Label, Noise, Picture, Transform, to_picture


class LabelPicture(Toy):
    protocol = "labelled_pictures"
    sizes = (len(LABELS) + 2, SIDE * SIDE)

    def asks(self) -> dict[str, Kind]:
        return {"kind": Label(LABELS), "z": Noise(2)}

    def makes(self) -> dict[str, Kind]:
        return {"picture": Picture(SIDE, channels=1)}

    def transforms(self) -> dict[str, Transform]:
        return {"kind": ClassNumber("label", LABELS), "z": NoiseVector(2), "image": Photo(SIDE, channels=1)}

    def inputs(self, batch: Batch) -> Tensor:
        return torch.cat([F.one_hot(batch["kind"], len(LABELS)).to(batch["z"]), batch["z"]], 1)

    def target(self, batch: Batch) -> Tensor:
        return to_picture(batch["image"], like=batch["z"]).flatten(1)

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        return {"picture": self.made(batch).unflatten(1, (1, SIDE, SIDE)).detach()}
