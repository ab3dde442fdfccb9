"""A voice and noise in, a picture out."""

import torch
from torch import Tensor

from toys.toy import FRAMES, RATE, SECONDS, SIDE, Seeing, Toy
from v2f.data.transforms import NoiseVector, Photo, Waveform
from v2f.system import Batch, Kind, Noise, Picture, Sound, Transform, to_picture


class VoiceNoisePicture(Toy, Seeing):
    protocol = "faces_of_voices"
    sizes = (FRAMES + 3, 3 * SIDE * SIDE)

    def asks(self) -> dict[str, Kind]:
        return {"z": Noise(3), "wav": Sound(RATE, SECONDS, voice=True)}

    def makes(self) -> dict[str, Kind]:
        return {"face": Picture(SIDE)}

    def transforms(self) -> dict[str, Transform]:
        return {"wav": Waveform(SECONDS, RATE), "z": NoiseVector(3), "image": Photo(SIDE)}

    def inputs(self, batch: Batch) -> Tensor:
        return torch.cat([batch["wav"], batch["z"]], 1)

    def target(self, batch: Batch) -> Tensor:
        return to_picture(batch["image"], like=batch["wav"]).flatten(1)

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        return {"face": self.made(batch).unflatten(1, (3, SIDE, SIDE)).detach()}
