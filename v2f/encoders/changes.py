"""How a voice is changed in training before an encoder hears it."""

from pydantic import Field

from v2f.config import Config
from v2f.data.augment import Augment, Change, Gain, Shift
from v2f.data.transforms import Waveform


class VoiceChanges(Config):
    """Small changes that leave the person as they are; 0: not at all."""

    gain: float = Field(0.0, ge=0, le=60, description="up to so many decibels louder or quieter")
    shift: float = Field(0.0, ge=0, description="up to so many seconds later; its end comes in at its start")

    def of(self, wav: Waveform) -> Augment:
        """What reads the voice and changes it."""
        changes: list[Change] = []
        if self.gain:
            changes.append(Gain((-self.gain, self.gain)))
        if self.shift:
            changes.append(Shift((0.0, self.shift)))
        return Augment(wav, tuple(changes))
