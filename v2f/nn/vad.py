"""Voice activity detection by energy: the frames of a clip that are silent are dropped.

    log-mel [B,M,F] -> level of each frame -> speech [B,F]: frames near one that is loud enough
    log-mel, speech -> the frames of speech, one after the other, and again from the first one, until there are F

The document that ``voice_gan`` follows, and Wen's code, use WebRTC's detector, a trained model of 20 ms of sound. This
one only knows the level: it drops pauses, but keeps noises that are as loud as speech. In return it needs no package,
runs on a GPU, and gives the same frames in training, in ``v2f generate`` and on the page, because it is a part of the
model. It draws no random numbers and has no gradient. The result for a clip does not depend on the rest of its batch.

Letters: B batch, M mel bands, F frames.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

HANGOVER = 5  # frames before and after a loud one that are speech as well: the soft ends of words


def speech(log_BMF: Tensor, below: float) -> Tensor:
    """Which frames of a log-mel (natural logarithms of power) are speech, bool [B,F]; at least one of each clip.

    A frame is loud if its power is at most ``below`` dB below that of the clip's loudest frame. Loud frames and
    :data:`HANGOVER` frames on each side of them are speech.
    """
    level_BF = log_BMF.logsumexp(dim=1)
    loud_BF = level_BF >= level_BF.amax(dim=1, keepdim=True) - below * math.log(10) / 10
    near_BF = F.max_pool1d(loud_BF.to(log_BMF.dtype), 2 * HANGOVER + 1, stride=1, padding=HANGOVER)
    return near_BF > 0


def repeated(x_BMF: Tensor, speech_BF: Tensor) -> Tensor:
    """The frames of speech in their order, repeated from the first one to the old length: [B,M,F]."""
    frames = x_BMF.shape[2]
    place_F = torch.arange(frames, device=x_BMF.device)
    order_BF = torch.where(speech_BF, place_F, place_F + frames).argsort(dim=1)  # speech first
    turn_BF = place_F % speech_BF.sum(dim=1, keepdim=True)
    return x_BMF.gather(2, order_BF.gather(1, turn_BF)[:, None].expand_as(x_BMF))
