"""The systems: the only table of their names. One file a system; no system imports another."""

from v2f.system import System
from v2f.systems.voice_styled_face import VoiceStyledFace

SYSTEMS: dict[str, type[System]] = {"voice_styled_face": VoiceStyledFace}
