"""A voice in, a picture out."""

from torch import Tensor

from toys.toy import FRAMES, RATE, SECONDS, SIDE, Seeing, Toy
from v2f.data.transforms import Photo, Waveform
from v2f.system import Batch, Kind, Picture, Sound, Transform, to_picture


class VoicePicture(Toy, Seeing):
    protocol = "faces_of_voices"
    sizes = (FRAMES, 3 * SIDE * SIDE)

    def asks(self) -> dict[str, Kind]:
        return {"wav": Sound(RATE, SECONDS, voice=True)}

    def makes(self) -> dict[str, Kind]:
        return {"face": Picture(SIDE)}

    def transforms(self) -> dict[str, Transform]:
        return {"wav": Waveform(SECONDS, RATE), "image": Photo(SIDE)}

    def inputs(self, batch: Batch) -> Tensor:
        return batch["wav"]

    def target(self, batch: Batch) -> Tensor:
        return to_picture(batch["image"], like=batch["wav"]).flatten(1)

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        return {"face": self.made(batch).unflatten(1, (3, SIDE, SIDE)).detach()}
