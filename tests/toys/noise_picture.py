"""Noise in, a picture out."""

from torch import Tensor

from toys.toy import SIDE, Seeing, Toy
from v2f.data.transforms import NoiseVector, Photo
from v2f.system import Batch, Kind, Noise, Picture, Transform, to_picture


class NoisePicture(Toy, Seeing):
    protocol = "pictures_from_noise"
    sizes = (5, 3 * SIDE * SIDE)

    def asks(self) -> dict[str, Kind]:
        return {"z": Noise(5)}

    def makes(self) -> dict[str, Kind]:
        return {"face": Picture(SIDE)}

    def transforms(self) -> dict[str, Transform]:
        return {"z": NoiseVector(5), "image": Photo(SIDE)}

    def inputs(self, batch: Batch) -> Tensor:
        return batch["z"]

    def target(self, batch: Batch) -> Tensor:
        return to_picture(batch["image"], like=batch["z"]).flatten(1)

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        return {"face": self.made(batch).unflatten(1, (3, SIDE, SIDE)).detach()}
