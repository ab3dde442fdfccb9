"""A photo in, a sound out."""

from torch import Tensor

from toys.toy import FRAMES, RATE, SECONDS, SIDE, Toy
from v2f.data.transforms import Photo, Waveform
from v2f.system import Batch, Kind, Picture, Sound, Transform, to_picture


class PhotoSound(Toy):
    sizes = (3 * SIDE * SIDE, FRAMES)

    def asks(self) -> dict[str, Kind]:
        return {"image": Picture(SIDE)}

    def makes(self) -> dict[str, Kind]:
        return {"sound": Sound(RATE, SECONDS)}

    def transforms(self) -> dict[str, Transform]:
        return {"image": Photo(SIDE), "wav": Waveform(SECONDS, RATE)}

    def inputs(self, batch: Batch) -> Tensor:
        return to_picture(batch["image"]).to(self.net.weight).flatten(1)

    def target(self, batch: Batch) -> Tensor:
        return batch["wav"]

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        return {"sound": self.made(batch)[:, None].detach()}
