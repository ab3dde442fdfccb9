"""The vectors that the package resemblyzer computes of sounds of ours, and a mel: to compare v2f's GE2E with them.

    pip install --no-deps resemblyzer==0.1.4; pip install librosa==0.11.0
    python bench/ge2e_vectors.py tests/nn/ge2e.npz

The sounds are clips of the synthetic world's voices, and noise, at several lengths; one voice is too quiet for the
package, which then raises its level. They are made anew wherever they are needed: the file has no sound in it. The
script prints how far v2f's vectors are from them.

Letters: N sounds, T samples, F frames, M mel bands, P partials, E width of a vector.
"""

import argparse
import datetime
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from v2f.keyed import keyed_rng
from v2f.nn.ge2e import RATE, raised
from v2f.weights import GE2EWeights, read
from v2f.weights.catalogue import CATALOGUE
from v2f.world.people import World
from v2f.world.voices import render_voices

SECONDS = (0.9, 1.6, 2.3, 6.0)
QUIET = 0.01  # factor of the last sound; -30 dB of full scale is the least that the package expects
_STREAM = 0x6E2E


def sounds(seconds: float) -> npt.NDArray[np.float32]:
    """Two voices, noise, and the first voice again, now quiet: [N,T]."""
    world, ids = World(), np.arange(2)
    voices_NT = render_voices(world.voice(ids), world.clip(ids, np.zeros_like(ids)), ids, seconds, RATE)
    integers_T = keyed_rng(_STREAM).integers(-3000, 3001, voices_NT.shape[1])
    noise_T = integers_T.astype(np.float32) / 32768
    return np.stack([*voices_NT, noise_T, QUIET * voices_NT[0]])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="FILE.npz")
    out = parser.parse_args().out
    from resemblyzer import VoiceEncoder, audio

    encoder = VoiceEncoder("cpu", verbose=False)
    path = CATALOGUE["ge2e-resemblyzer"].installed()
    assert path is not None, "its module was imported"
    ours, far = read(GE2EWeights(net="ge2e"), path)[0], 0.0
    arrays = {"mel FM": audio.wav_to_mel_spectrogram(sounds(SECONDS[0])[0])}
    for seconds in SECONDS:
        found = []
        for wav_T in sounds(seconds):
            wav_T = audio.normalize_volume(wav_T, audio.audio_norm_target_dBFS, increase_only=True)
            found.append(encoder.embed_utterance(wav_T, return_partials=True))
        with torch.no_grad():
            own_NE = ours(raised(torch.from_numpy(sounds(seconds)), audio.audio_norm_target_dBFS)).numpy()
        arrays[f"{seconds} s: vectors NE"] = np.stack([vector_E for vector_E, *_ in found])
        far = max(far, float(np.abs(own_NE - arrays[f"{seconds} s: vectors NE"]).max()))
        arrays[f"{seconds} s: partials NPE"] = np.stack([part_PE for _, part_PE, _ in found])
        arrays[f"{seconds} s: starts P"] = np.array([part.start for part in found[0][2]])
    versions = [f"{name} {version(name)}" for name in ("resemblyzer", "librosa", "torch", "numpy")]
    about = f"{datetime.date.today()}, Python {platform.python_version()}, {', '.join(versions)}"
    np.savez_compressed(out, about=np.array(about), **arrays)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB; v2f's differ by up to {far:.1e}; {about}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
