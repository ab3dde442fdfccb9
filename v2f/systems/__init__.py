"""The table of systems, the only one. One file per system; no system imports another."""

from v2f.system import System
from v2f.systems.code_transformer import CodeTransformer
from v2f.systems.conditional import Conditional
from v2f.systems.face_gan import FaceGAN
from v2f.systems.picture_recognition import PictureRecognition
from v2f.systems.sound_recognition import SoundRecognition
from v2f.systems.speaker_recognition import SpeakerRecognition
from v2f.systems.voice_draws import VoiceDraws
from v2f.systems.voice_gan import VoiceGAN
from v2f.systems.voice_identity import VoiceIdentity
from v2f.systems.voice_styled_face import VoiceStyledFace
from v2f.systems.vq_audio import VQAudio

SYSTEMS: dict[str, type[System]] = {
    "code_transformer": CodeTransformer,
    "conditional": Conditional,
    "face_gan": FaceGAN,
    "picture_recognition": PictureRecognition,
    "sound_recognition": SoundRecognition,
    "speaker_recognition": SpeakerRecognition,
    "voice_draws": VoiceDraws,
    "voice_gan": VoiceGAN,
    "voice_identity": VoiceIdentity,
    "voice_styled_face": VoiceStyledFace,
    "vq_audio": VQAudio,
}
