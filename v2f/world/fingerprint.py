"""What identifies a version of the world: a hash of what it draws, so that only a change of people counts.

A few people, portraits and clips are hashed. Rounding makes the hash the same on all CPUs:

- factors are rounded to 1/100; they depend on the library's logarithm in the last bits only;
- portraits are drawn from factors rounded to 1/8, which makes them exact (see :mod:`v2f.world.portraits`);
- clips pass Fourier transforms, whose last bits differ. Each clip is projected on random signs (a Johnson-Lindenstrauss
  sketch, so that a change of any sample moves every number), and these projections are rounded to 1/100.

A test keeps all numbers away from the edges of their rounding steps, by far more than CPUs differ.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from v2f.world.people import FACTORS, VERSION, World, WorldConfig, split_mix
from v2f.world.portraits import render_portraits
from v2f.world.voices import render_voices

PROJECTIONS = 64  # of each clip
LEVEL = 0.08  # about a clip's RMS, so that projections are about N(0, 1)
STEP = 0.01


def outputs_hash() -> str:
    """SHA-256 (hex) of the version, the factors' names and the rounded outputs; takes about a second."""
    digest = hashlib.sha256(repr((VERSION, [(factor.name, factor.group) for factor in FACTORS])).encode())
    for name, values in outputs():
        whole = values if values.dtype == np.uint8 else np.rint(values / STEP).astype("<i4")
        digest.update(f"\0{name} {whole.dtype} {whole.shape}\0".encode() + np.ascontiguousarray(whole).tobytes())
    return digest.hexdigest()


def outputs() -> Iterator[tuple[str, np.ndarray]]:
    """The outputs by name, not rounded yet: factors and projections of clips as floats, portraits as uint8."""
    ids, numbers = np.array([0, 1, 12_345, 9_000_000]), np.array([0, 3, 1, 0])
    for name, world in (("default", World()), ("weak link", World(WorldConfig(seed=7, link=0.6, visible=4)))):
        voice_NV = world.voice(ids)
        yield f"{name}: voice", voice_NV
        yield f"{name}: face", world.face(ids)
        yield f"{name}: photo", world.photo(ids, numbers)
        yield f"{name}: clip", world.clip(ids, numbers)
        yield f"{name}: expected face", world.expected_face(voice_NV)
        yield f"{name}: posterior face", world.posterior_face(voice_NV, draws=2, key=1)
        yield f"{name}: any photo", world.any_photo(people=2, draws=2, key=1)
    world, ids = World(), np.arange(24)
    face_NF, photo_NP = _eighths(world.face(ids)), _eighths(world.photo(ids, ids % 3))
    yield "portraits of 64 px", render_portraits(face_NF, photo_NP, 64)
    yield "portraits of 100 px", render_portraits(face_NF[:2], photo_NP[:2], 100)
    voice_NV, clip_NC = _eighths(world.voice(ids[:6])), _eighths(world.clip(ids[:6], ids[:6]))
    yield "clips at 16 kHz", projected(render_voices(voice_NV, clip_NC, ids[:6], seconds=2.0))
    yield "clips at 8 kHz", projected(render_voices(voice_NV[:2], clip_NC[:2], ids[6:8], 1.0, sample_rate=8000))


def _eighths(values: np.ndarray) -> np.ndarray:
    return np.rint(values * 8) / 8


def projected(wav_NT: np.ndarray) -> np.ndarray:
    """Projections [N,P] of clips [N,T] on signs that are a pure function of (sample, projection)."""
    samples = wav_NT.shape[1]
    counter_TP = np.arange(samples, dtype=np.uint64)[:, None] * np.uint64(PROJECTIONS) + np.arange(
        PROJECTIONS, dtype=np.uint64
    )
    sign_TP = (split_mix(counter_TP) >> np.uint64(63)).astype(np.float64) * 2 - 1
    return wav_NT.astype(np.float64) @ sign_TP / (LEVEL * samples**0.5)
