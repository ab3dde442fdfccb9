"""A voice in, an embedding out: three numbers that say which of the people in train it is."""

import torch
from torch import Tensor

from toys.toy import FRAMES, RATE, SECONDS, Toy
from v2f.data.transforms import PersonNumber, Waveform
from v2f.system import Batch, Embedding, Kind, Sound, Transform


class VoiceEmbedding(Toy):
    protocol = "speakers"
    sizes = (FRAMES, 3)

    def asks(self) -> dict[str, Kind]:
        return {"wav": Sound(RATE, SECONDS, voice=True)}

    def makes(self) -> dict[str, Kind]:
        return {"embedding": Embedding(3)}

    def transforms(self) -> dict[str, Transform]:
        return {"wav": Waveform(SECONDS, RATE), "person": PersonNumber()}

    def inputs(self, batch: Batch) -> Tensor:
        return batch["wav"]

    def target(self, batch: Batch) -> Tensor:
        person_B1 = batch["person"][:, None].to(batch["wav"])
        return torch.cat([torch.sin(person_B1 * turn) for turn in (1.0, 2.0, 3.0)], 1)

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        return {"embedding": self.made(batch).detach()}
