"""A toy system of each kind: one file a toy, one line in the table."""

from toys.label_picture import LabelPicture
from toys.label_sound import LabelSound
from toys.noise_picture import NoisePicture
from toys.photo_sound import PhotoSound
from toys.tokens_tokens import TokensTokens
from toys.toy import Toy
from toys.voice_embedding import VoiceEmbedding
from toys.voice_label import VoiceLabel
from toys.voice_noise_picture import VoiceNoisePicture
from toys.voice_picture import VoicePicture

TOYS: dict[str, type[Toy]] = {
    "voice_picture": VoicePicture,
    "voice_noise_picture": VoiceNoisePicture,
    "noise_picture": NoisePicture,
    "label_picture": LabelPicture,
    "label_sound": LabelSound,
    "photo_sound": PhotoSound,
    "voice_label": VoiceLabel,
    "voice_embedding": VoiceEmbedding,
    "tokens_tokens": TokensTokens,
}
