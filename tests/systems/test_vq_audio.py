"""VQ-VAE-2 on sound: its size, its variants, and one function on any number of ranks and after a resume."""

import copy
from typing import Any

import pytest
import torch
from systems.small import SMALL

from v2f.config import build, read_yaml
from v2f.engine import Engine
from v2f.errors import V2FError
from v2f.nn.codebook import EMACodebook
from v2f.nn.statistics import Turn, begin, collect, commit
from v2f.recipes import SHIPPED
from v2f.system import Batch, part_of
from v2f.systems.vq_audio import VQAudio

B, T = 8, 400


def system(**changes: Any) -> VQAudio:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return VQAudio(build(VQAudio.Config, SMALL["vq_audio"] | changes, "test"))


def batch(step: int) -> Batch:
    """Tones and noise; one slot weighs 0."""
    rng = torch.Generator().manual_seed(step)
    pitch_B1 = 100 + 400 * torch.rand(B, 1, generator=rng, dtype=torch.float64) * (1 + step % 4)
    wav_BT = 0.3 * torch.sin(2 * torch.pi * pitch_B1 * torch.arange(T) / 4000)
    wav_BT = wav_BT + 0.1 * torch.randn(B, T, generator=rng, dtype=torch.float64)
    weight_B = torch.ones(B)
    weight_B[step % B] = 0
    return {"wav": wav_BT, "slot": torch.arange(step * B, (step + 1) * B), "weight": weight_B}


def books(one: VQAudio) -> list[EMACodebook]:
    return [book for book in one.net.codebooks.values() if isinstance(book, EMACodebook)]


# --------------------------------------------------------------------------------------------------- the network


def recipe(name: str) -> VQAudio:
    return VQAudio(
        build(VQAudio.Config, read_yaml(str(SHIPPED / "launch" / "recipes" / f"{name}.yaml"))["system"], name)
    )


def test_the_documents_network_has_its_parameters_and_lengths():
    with torch.device("meta"):
        one = recipe("vq-audio")
    assert sum(p.numel() for p in one.parameters()) == 580_641
    assert [(name, level.length, level.vocabulary) for name, level in one.levels.items()] == [
        ("top", 900, 2048),
        ("bottom", 3600, 2048),
    ]
    assert one.bits == 11 * (1 / 8 + 1 / 32)


@pytest.mark.parametrize("name", ["sounds-vq", "sounds-vq-flat", "sounds-vq-mel"])
def test_the_small_recipes_have_the_same_rate(name):
    one = recipe(name)
    assert one.sound.frames == 7200
    assert list(one.levels) == (["bottom"] if "flat" in name else ["top", "bottom"])
    assert one.levels["bottom"].length == 900
    assert one.bits == pytest.approx(1.375 if "flat" in name else 1.71875)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"top": None},
        {"kernel": 3, "seconds": 0.0803},  # a length that no stride divides
        {"signal": {"kind": "mel", "bands": 8, "window": 16.0, "hop": 2.0, "iterations": 4}, "spectral": 0.0},
    ],
)
def test_a_sound_is_coded_at_the_lengths_that_are_promised_and_restored_at_its_own(changes):
    one = system(**changes)
    wav_BT = batch(0)["wav"][:, : one.sound.frames].float()
    codes = one.encode(wav_BT)
    assert {name: number.shape for name, number in codes.items()} == {
        name: (B, level.length) for name, level in one.levels.items()
    }
    assert all(number.dtype == torch.int64 for number in codes.values())
    made = one.decode(codes)
    assert made.shape == (B, 1, one.sound.frames)
    assert torch.equal(one.sample({"wav": wav_BT})["sound"], made)
    strides = one.config.strides
    part = {name: number[:, : 2 * max(strides.values()) // strides[name]] for name, number in codes.items()}
    assert one.decode(part).shape == (B, 1, 2 * max(strides.values()) * one.signal.hop)


def test_a_spectrogram_sounds_like_the_wave():
    one = system(
        seconds=1.0, signal={"kind": "mel", "bands": 32, "window": 32.0, "hop": 1.0, "iterations": 64}, spectral=0.0
    )
    wav_BT = 0.3 * torch.sin(2 * torch.pi * 300 * torch.arange(4000) / 4000)[None]
    made_BT = one.signal.wave(one.signal(wav_BT))
    power_F = torch.fft.rfft(made_BT[0]).abs().square()
    assert power_F[280:320].sum() > 0.9 * power_F.sum()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signal": {"kind": "mel"}}, "spectral and relative compare waves"),
        ({"signal": {"kind": "mel", "hop": 0.3}, "spectral": 0.0}, "signal.hop must be whole samples"),
        ({"windows": [1024]}, "windows: 1024 samples do not fit into 0.1 s"),
        ({"optimizer": {"lr": {"net": 1e-3}}}, "optimizer.lr names net"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(changes, message):
    with pytest.raises(V2FError, match=message):
        system(**changes)


def test_a_collapsed_codebook_is_named():
    one = system()
    meters = one.meters([batch(0)])
    assert meters["perplexity_top"] == 1  # no step was taken
    assert "CODEBOOK COLLAPSE: the top codes" in str(one.verdict(meters, {}))
    assert one.verdict(meters | {"perplexity_top": 6.0, "perplexity_bottom": 9.0}, {}) is None


def test_codes_by_gradient_have_a_codebook_term():
    one = system(codebook={"width": 4, "learned": "gradient"})
    losses = one.double().loss("coding", batch(0), 0)
    c = one.config
    total = losses["reconstruction"] + c.spectral * losses["spectral"]
    for level in one.levels:
        assert torch.equal(losses[f"codebook_{level}"], losses[f"commitment_{level}"])
        total = total + (1 + c.beta) * losses[f"codebook_{level}"]
    torch.testing.assert_close(losses["total"], total)
    losses["total"].backward()
    assert all(p.grad is not None for p in one.parameters())


# ----------------------------------------------------------------------------------------------- ranks and resumes


def stepped(ones: list[VQAudio], at: int) -> None:
    """A step of plain descent of equal systems that each see a part of the batch, as ranks do."""
    whole = batch(at)
    for number, one in enumerate(ones):
        begin(one, Turn(seed=3, step=at, slot=at * B, slots=B))
        one.zero_grad()
        one.loss("coding", part_of(whole, number, len(ones)), at)["total"].backward()
    found = [collect(one) for one in ones]
    sums = {name: torch.stack([each[name] for each in found]).sum(0) for name in found[0]}
    grads = [torch.stack([p.grad for p in ps]).mean(0) for ps in zip(*(o.parameters() for o in ones), strict=True)]
    for one in ones:
        commit(one, sums)
        with torch.no_grad():
            for parameter, grad in zip(one.parameters(), grads, strict=True):
                parameter -= 0.05 * grad


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_take_the_step_of_one_process_revivals_included(ranks):
    first = system().double().train()
    one, several = [first], [copy.deepcopy(first) for _ in range(ranks)]
    for at in range(6):
        stepped(one, at)
        stepped(several, at)
    assert all(book.revived >= 1 for book in books(first))
    for name, tensor in first.state_dict().items():
        for other in several:
            torch.testing.assert_close(other.state_dict()[name], tensor, rtol=0, atol=1e-9)


def trained(micro: int | None, first: int = 0, last: int = 6, start: Any = None) -> tuple[dict[str, Any], VQAudio]:
    """All tensors after some steps of the engine, in float64."""
    engine, one = Engine("fp64", "ddp"), system()
    engine.wrap(one, share=B, micro_batch=micro, seed=3)
    one.train()
    if start is not None:
        engine.load(one, start, "here")
    (phase,) = one.phases()
    for at in range(first, last):
        engine.step(phase, batch(at), at, micro_batch=micro, seen=at * B, total=6 * B)
    return engine.copy(one, engine.sizes(one)), one


def test_accumulation_changes_nothing_and_a_resume_amid_revivals_goes_on_bit_for_bit():
    whole, one = trained(None)
    assert all(book.revived >= 1 for book in books(one))
    accumulated, _ = trained(2)
    assert max(float((t.double() - accumulated[name].double()).abs().max()) for name, t in whole.items()) <= 1e-9
    saved, half = trained(None, last=3)
    assert any(book.dead_K.any() for book in books(half)), "codes wait for their revival when it is saved"
    resumed, _ = trained(None, first=3, start={name: tensor.clone() for name, tensor in saved.items()})
    assert [name for name, tensor in whole.items() if not torch.equal(tensor, resumed[name])] == []
