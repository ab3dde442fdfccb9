"""What the served page compares a voice with: voices and faces of people whom the run was not trained on.

    valid or test split --one clip per person--> faces, codes w+, sounds
        --> the usual distance of two faces of one person, and of two people
        --> what a voice does not determine of a face
        --> which sounds are known

It is measured once, when the page starts. Nothing is trained and nothing is written.

Shape letters: N people, T samples, L styles, D style width, S features of a sound.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v2f import generate
from v2f.data.loader import read_usable
from v2f.data.manifest import open_dataset
from v2f.data.transforms import StoredCodes
from v2f.errors import V2FError
from v2f.evaluation.observers import Observer, observers_of
from v2f.runs.run import Run
from v2f.system import Styled, System, device_of, to_picture
from v2f.web.spectrum import log_mel

PEOPLE = 256
_LEAST = 8  # people; statistics of fewer mean nothing
_BATCH = 32
_AUDIBLE_DB = (
    -60.0
)  # relative to the loudest band; quieter frames are pauses, which depend on the room and not on the voice


@dataclass(frozen=True)
class Reference:
    """Statistics of ``people`` people of ``split``. The distance of two faces is 1 - cos of identity embeddings."""

    split: str
    people: int
    halves_N: NDArray[np.float64] | None
    """Distance of the faces of the first and the second half of a person's clip; None if no identity net is there."""
    strangers: float | None
    """Median distance of the faces of two people's clips."""
    settled: float | None
    """Share of the variance of the reference codes w+ that the codes made from voices explain; None without codes."""
    residual_NLD: Tensor | None
    """Reference code minus the code made from the voice, centered: what the voice does not determine."""
    sound_NS: NDArray[np.float64]
    """Standardized features of the sounds."""
    sound_mean_S: NDArray[np.float64]
    sound_scale_S: NDArray[np.float64]
    sound_N: NDArray[np.float64]
    """Distance of each sound to the nearest other one."""

    def how_far(self, wav_T: NDArray[np.float32], rate: int) -> float:
        """The distance of a clip's sound to the nearest known one."""
        there_S = (sound(wav_T, rate) - self.sound_mean_S) / self.sound_scale_S
        return float(np.linalg.norm(self.sound_NS - there_S, axis=1).min())

    def others(self, w_LD: Tensor, count: int, rng: np.random.Generator) -> Tensor | None:
        """Codes [count, L, D] around the one that a voice gives, drawn from the normal distribution that has the
        covariance of what voices leave open: people who could have such a voice, none of them a real one."""
        if self.residual_NLD is None:
            return None
        people = len(self.residual_NLD)
        # Weights of N(0, 1 / (N - 1)) on the centered residuals have exactly their covariance, of whatever rank.
        weight_KN = rng.standard_normal((count, people), dtype=np.float32) / np.sqrt(people - 1, dtype=np.float32)
        return w_LD + torch.einsum("kn,nld->kld", torch.from_numpy(weight_KN).to(w_LD.device), self.residual_NLD)


def sound(wav_T: NDArray[np.float32], rate: int) -> NDArray[np.float64]:
    """How a clip sounds, whatever is said and however loud: mean and spread of each mel band in dB over the frames that
    are no pause, the overall level taken off; [S]."""
    mel_MF = log_mel(wav_T, rate).astype(np.float64)
    said_MF = mel_MF[:, mel_MF.max(0) >= _AUDIBLE_DB]
    mean_M = said_MF.mean(1)
    return np.concatenate([mean_M - mean_M.mean(), said_MF.std(1)])


def distance(one_NE: NDArray[np.float64], other_NE: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 - cos, row by row."""
    lengths = np.linalg.norm(one_NE, axis=-1) * np.linalg.norm(other_NE, axis=-1)
    return 1 - (one_NE * other_NE).sum(-1) / np.maximum(lengths, 1e-12)


def observer_of(run: Run, system: System) -> Observer | None:
    """Whose identity embeddings say how far faces are apart: the referee's, where there is one; None: nobody's."""
    return next(iter(observers_of(run, system)[0]), None)


@torch.no_grad()
def identities(observer: Observer | None, img_NCHW: Tensor) -> NDArray[np.float64] | None:
    """Identity embeddings [N, E] of pictures in [-1, 1]; None: nobody looks."""
    if observer is None:
        return None
    parts = [observer.look(part)[0] for part in img_NCHW.split(_BATCH)]
    return np.asarray(torch.cat(parts).double().cpu().numpy(), dtype=np.float64)


def halves(wav_T: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The first and the second half of a clip, which are compared to see how much depends on what was said; each has
    half of its energy, so that a pause at one end is no half."""
    energy_T = np.cumsum(wav_T.astype(np.float64) ** 2)
    middle = int(np.searchsorted(energy_T, energy_T[-1] / 2))
    middle = min(max(middle, len(wav_T) // 16), len(wav_T) - len(wav_T) // 16)
    return [wav_T[:middle], wav_T[middle:]]


def measure(run: Run, system: System, observer: Observer | None, people: int = PEOPLE) -> Reference:
    """The statistics of up to ``people`` people whom ``run`` was not trained on. V2FError if its data set is missing or
    has too few of them."""
    dataset = open_dataset(run.config.data.home)
    sizes = {name: dataset.manifest.splits[name].people for name in ("valid", "test") if name in dataset.splits}
    if not sizes or max(sizes.values()) < _LEAST:
        raise V2FError(f"{dataset.root}: no split valid or test with at least {_LEAST} people")
    name = max(sizes, key=lambda name: sizes[name])
    split, hears = dataset.split(name), generate.voice_input(run, system)
    read = system.transforms()
    asks_codes = isinstance(system, Styled) and "image" in read
    wanted = {key: read[key] for key in ("wav", "image") if key == "wav" or asks_codes}
    wanted |= {key: each for key, each in read.items() if isinstance(each, StoredCodes)}
    firsts = np.sort(np.unique(split.identity_N, return_index=True)[1])[:people]
    whole, first, second, sounds = [], [], [], []
    residual: list[Tensor] = []
    codes: list[Tensor] = []
    for batch in read_usable(split, wanted, _BATCH, [], samples=firsts.tolist()):
        wav_N = list(batch["wav"].numpy())
        w_NLD, face_N3HW = generate.faces_of(system, wav_N, hears.frames)
        halved = generate.faces_of(system, [half for wav_T in wav_N for half in halves(wav_T)], hears.frames)[1]
        sounds += [sound(wav_T, hears.sample_rate) for wav_T in wav_N]
        faces, parts = identities(observer, face_N3HW), identities(observer, halved)
        if faces is not None and parts is not None:
            whole.append(faces)
            first.append(parts[0::2])
            second.append(parts[1::2])
        reference_NLD = _codes(system, batch) if isinstance(system, Styled) and asks_codes else None
        if reference_NLD is not None and w_NLD is not None:
            codes.append(reference_NLD)
            residual.append(reference_NLD - w_NLD)
    if len(sounds) < _LEAST:
        raise V2FError(f"{dataset.root}: {len(sounds)} samples of {name} can be used, {_LEAST} are needed")
    sound_NS = np.stack(sounds)
    mean_S, scale_S = sound_NS.mean(0), np.maximum(sound_NS.std(0), 1e-3)
    sound_NS = (sound_NS - mean_S) / scale_S
    return Reference(
        split=name,
        people=len(sounds),
        halves_N=distance(np.concatenate(first), np.concatenate(second)) if whole else None,
        strangers=_strangers(np.concatenate(whole)) if whole else None,
        settled=_settled(torch.cat(codes), torch.cat(residual)) if codes else None,
        residual_NLD=_centred(torch.cat(residual)) if residual else None,
        sound_NS=sound_NS,
        sound_mean_S=mean_S,
        sound_scale_S=scale_S,
        sound_N=_nearest(sound_NS),
    )


def _codes(system: Styled, batch: dict[str, Any]) -> Tensor | None:
    """The codes w+ [N, L, D] of the photos, from the shards or from the run's own net."""
    there = device_of(system)
    batch = {key: value.to(there) if isinstance(value, Tensor) else value for key, value in batch.items()}
    with torch.no_grad():
        codes: Tensor | None = system.reference_codes(batch, to_picture(batch["image"]))
    return codes


def _strangers(emb_NE: NDArray[np.float64]) -> float:
    unit_NE = emb_NE / np.maximum(np.linalg.norm(emb_NE, axis=1, keepdims=True), 1e-12)
    apart_NN = 1 - unit_NE @ unit_NE.T
    return float(np.median(apart_NN[~np.eye(len(apart_NN), dtype=bool)]))


def _centred(residual_NLD: Tensor) -> Tensor:
    return residual_NLD - residual_NLD.mean(0)


def _settled(codes_NLD: Tensor, residual_NLD: Tensor) -> float:
    """1 - sum |c - w|^2 / sum |c - mean c|^2, not below 0."""
    return max(0.0, 1 - float(residual_NLD.square().sum() / _centred(codes_NLD).square().sum().clamp_min(1e-12)))


def _nearest(row_NS: NDArray[np.float64]) -> NDArray[np.float64]:
    apart_NN = np.sqrt(np.maximum(((row_NS[:, None] - row_NS[None]) ** 2).sum(-1), 0.0))
    np.fill_diagonal(apart_NN, np.inf)
    return np.asarray(apart_NN.min(1))
