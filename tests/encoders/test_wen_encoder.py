"""The voice encoder wen: its front end, its published weights, and the training from the start."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpora import voice
from encoders.small import ENCODERS
from torch import Tensor

from bench.random_weights import wen_embedding
from v2f import encoders
from v2f.config import build
from v2f.encoders.wen import WenConfig, WenEncoder
from v2f.errors import V2FError
from v2f.nn import vad
from v2f.runs.config import RunConfig
from v2f.runs.run import build_system
from v2f.system import trained
from v2f.weights import Requirements, WenWeights

RATE = 16_000


def config(**values: Any) -> WenConfig:
    return build(WenConfig, {"net": "wen", **values}, "test")


def small(**values: Any) -> WenEncoder:
    torch.manual_seed(0)
    encoder = encoders.build(config(**ENCODERS["wen"] | values), "weights").encoder
    assert isinstance(encoder, WenEncoder)
    return encoder.eval()


def said(person: int = 3, pause: float = 0.0, level: float = 1.0) -> Tensor:
    """A second of a voice of the synthetic world, with a pause of so many seconds in the middle: [1,T]."""
    wav_T = torch.from_numpy(voice(person)).float()
    return level * torch.cat([wav_T[:8000], torch.zeros(round(pause * RATE)), wav_T[8000:]])[None]


def written_out(wav_T: np.ndarray) -> np.ndarray:
    """Log-mel as Wen's code makes it, from its formulas: frames from the beginning, pre-emphasis of 0.97, a Hamming
    window of 400, a Fourier transform of 1,024, triangles of area one with their edges on its frequencies."""
    mel = lambda f: 2595 * np.log10(1 + f / 700)  # noqa: E731
    edge = 700 * (10 ** (np.linspace(mel(20.0), mel(7200.0), 66) / 2595) - 1) / (RATE / 1024)
    k, edge = np.arange(513)[:, None], np.round(edge)
    left, center, right = edge[:-2], edge[1:-1], edge[2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        bank = np.where(k < center, (k - left) / (center - left), (right - k) / (right - center)).clip(0)
    bank *= (k > left) & (k < right)
    emphasized = wav_T - 0.97 * np.concatenate([[0.0], wav_T[:-1]])
    starts = range(0, len(wav_T) - 400 + 1, 160)
    frames = np.stack([emphasized[start : start + 400] for start in starts]) * np.hamming(400)
    return np.log((np.abs(np.fft.rfft(frames, 1024)) ** 2 @ bank).clip(1e-12)).T


def test_the_front_end_hears_nearly_what_wens_code_hears() -> None:
    """They differ in window, centering and pre-emphasis; without the detector of speech."""
    ours_MF = small(silence=None).frames(said())[0].double().numpy()
    theirs_MF = written_out(voice(3).astype(np.float64))
    count = theirs_MF.shape[
        1
    ]  # the n-th frame of theirs is centered 12.5 ms after the n-th of ours, which is 1.25 more
    agree_M = [np.corrcoef(*pair)[0, 1] for pair in zip(ours_MF[:, 1 : count + 1], theirs_MF, strict=True)]
    assert np.median(agree_M) > 0.98


def test_the_length_of_a_pause_and_the_level_hardly_matter() -> None:
    encoder, deaf = small(), small(silence=None)
    deaf.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        short, longer, quiet, other = (
            encoder(wav)[0] for wav in (said(3, 0.1), said(3, 0.6), said(3, 0.1, level=0.05), said(23, 0.1))
        )
        without = deaf(said(3, 0.1))[0] - deaf(said(3, 0.6))[0]
    assert float((short - longer).norm()) < 0.7 * float(without.norm())
    assert float((short - quiet).norm()) < 0.5 * float((short - other).norm())
    frames = encoder.frames(said(3, 0.6))[0]
    count = int(vad.speech(encoder.front(said(3, 0.6)), 35.0).sum())
    assert count < frames.shape[1] - 30, "of 0.6 s of silence, little more than its edges is heard"
    torch.testing.assert_close(frames[:, count:], frames[:, : frames.shape[1] - count])


def test_a_clip_is_heard_alone_and_in_training_as_in_evaluation() -> None:
    encoder = small(**ENCODERS["wen_trained"])
    clips = [said(3, 0.2), said(4, 0.2, 0.1), said(5, 0.2), torch.zeros(1, said(3, 0.2).shape[1])]
    heard = encoder.frames(torch.cat(clips))
    assert heard.isfinite().all()
    assert torch.equal(heard, encoder.train().frames(torch.cat(clips)))
    for row, clip in enumerate(clips):
        torch.testing.assert_close(encoder.frames(clip)[0], heard[row], rtol=1e-5, atol=1e-5)


def test_published_weights_are_found_filled_strictly_and_frozen(tmp_path: Path) -> None:
    torch.save(wen_embedding(), tmp_path / "voice_embedding.pth")
    built = encoders.build(config(), str(tmp_path))
    assert built.checksums.keys() == {"encoder"}
    assert built.encoder(torch.randn(2, 8000))[0].shape == (2, 64, 1)
    assert built.encoder.trained() == {}
    assert not any(parameter.requires_grad for parameter in built.encoder.parameters())
    found = encoders.with_encoder(Requirements(), config()).user_weights
    assert found == {"encoder": WenWeights(net="wen")}
    with pytest.raises(V2FError, match=r"system\.encoder: .*get wen-voice-embedding from https://github"):
        encoders.build(config(), str(tmp_path / "none"))
    with pytest.raises(V2FError, match=r"'model\.0\.weight' has the shape \[256, 64, 3\], expected \[6, 64, 3\]"):
        encoders.build(config(widths=[6, 384, 576, 864]), str(tmp_path))


def test_what_is_thawed_or_trained_from_the_start_is_what_is_saved() -> None:
    for values, parts in (
        ({}, ()),
        ({"thaw": 1}, ("thawed",)),
        ({"thaw": "all"}, ("encoder",)),
    ):
        chosen = config(**ENCODERS["wen"] | values)
        assert encoders.trained(chosen) == parts
        assert tuple(encoders.build(chosen, "none").encoder.trained()) == parts
    last = encoders.build(config(**ENCODERS["wen"] | {"thaw": 1}), "none").encoder.trained()["thawed"]
    assert [name for name, _ in last.named_parameters()] == ["0.0.weight", "0.0.bias"]
    with pytest.raises(V2FError, match="weighted is a sum over several depths"):
        config(random=True, weighted=True)
    with pytest.raises(V2FError, match="the published weights know normalized bands only: set normalize to bands"):
        config(normalize="clip")


def test_speaker_recognition_trains_it_as_its_encoder(run_values: Callable[..., dict[str, Any]]) -> None:
    values = run_values("speaker_recognition")
    rates = {"lr": {"encoder": 1e-3, "head": 1e-3}}
    values["system"] |= {"encoder": ENCODERS["wen_trained"], "heads": "last", "optimizer": rates}
    modules = trained(build_system(build(RunConfig, values, "test")))
    assert modules.keys() == {"encoder", "head"}
    assert isinstance(modules["encoder"], WenEncoder)
