"""The voice encoder ``ecapa``: read from a file of its layout, frozen, thawed, or trained from random weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from encoders.small import ENCODERS
from systems.small import SMALL
from torch import Tensor

from bench.ecapa_reference import uniform
from bench.random_weights import ecapa
from v2f import encoders
from v2f.config import build
from v2f.encoders.ecapa import ECAPAConfig, ECAPAEncoder
from v2f.engine import Engine
from v2f.errors import V2FError
from v2f.nn import statistics
from v2f.nn.batchnorm import GhostBatchNorm, ghost_norms
from v2f.nn.ecapa import ECAPA
from v2f.system import trained
from v2f.systems.voice_styled_face import VoiceStyledFace

BATCH: dict[str, Any] = {
    "wav": 0.3 * uniform(5, 4, 6400).float(),
    "image": torch.zeros(4, 3, 64, 64, dtype=torch.uint8),
    "slot": torch.arange(4),
    "weight": torch.ones(4),
    "identity": torch.arange(4),
    "key": list("abcd"),
}


def config_of(**keys: Any) -> ECAPAConfig:
    return build(ECAPAConfig, {**ENCODERS["ecapa"], **keys}, "test")


def encoder_of(**keys: Any) -> ECAPAEncoder:
    torch.manual_seed(0)
    encoder = encoders.build(config_of(**keys), "nowhere").encoder
    assert isinstance(encoder, ECAPAEncoder)
    return encoder


def system_of(**keys: Any) -> VoiceStyledFace:
    """A system without a loss that needs the picture: W-norm, and the style loss."""
    rates = {"mapping": 1e-3} | ({"thawed": 1e-2} if keys.get("thaw") else {})
    terms = dict.fromkeys(SMALL["voice_styled_face"]["losses"], 0.0) | {"w_norm": 1.0, "style": 1.0}
    values = {
        **SMALL["voice_styled_face"],
        "encoder": {**ENCODERS["ecapa"], **keys},
        "mapping": {"convs": 1, "width": 8},
        "losses": terms,
        "optimizer": {"lr": rates},
        "ema": None,
    }
    torch.manual_seed(0)
    return VoiceStyledFace(build(VoiceStyledFace.Config, values, "test"))


def stepped(system: VoiceStyledFace) -> set[str]:
    """The tensors of the encoder's net that a step changes."""
    engine = Engine("fp32", "ddp")
    engine.wrap(system, share=4, micro_batch=None)
    system.train()
    before = {name: tensor.clone() for name, tensor in system.encoder.state_dict().items()}
    (phase,) = system.phases()
    assert not engine.step(phase, BATCH, 0, micro_batch=2, seen=0, total=100).skipped
    after = system.encoder.state_dict()
    return {name.removeprefix("net.") for name in before if not torch.equal(before[name], after[name])}


def test_the_published_net_is_a_vector_or_frames_and_is_frozen(tmp_path: Path) -> None:
    torch.save(ecapa(), tmp_path / "embedding_model.ckpt")
    config = build(ECAPAConfig, {"net": "ecapa"}, "test")
    encoder, digest = config.load(str(tmp_path))
    assert digest is not None
    assert encoder.trained() == {}
    assert not any(p.requires_grad for p in encoder.parameters())
    (vector,) = encoder(BATCH["wav"][:1])
    assert (vector.shape, encoder.channels) == ((1, 192, 1), (192,))
    frames, _ = build(ECAPAConfig, {"net": "ecapa", "output": "frames"}, "test").load(str(tmp_path))
    assert [x.shape for x in frames(BATCH["wav"][:1])] == [(1, 1024, 41)] * 3
    assert frames.channels == (1024,) * 3
    assert not any("mfa" in name for name in frames.state_dict())


def test_a_net_of_other_sizes_loads_with_its_sizes_in_the_configuration(tmp_path: Path) -> None:
    config = config_of(random=False, output="vector", file=str(tmp_path / "own.ckpt"))
    torch.manual_seed(3)
    net = config.create()
    torch.save(net.state_dict(), tmp_path / "own.ckpt")
    encoder, _ = config.load("nowhere")
    assert isinstance(encoder, ECAPAEncoder)
    expected = net.eval()(encoder.front(BATCH["wav"]))
    torch.testing.assert_close(encoder(BATCH["wav"])[0][:, :, 0], expected)
    with pytest.raises(V2FError, match=r"system\.encoder: .*own\.ckpt: .*SpeechBrain's ECAPA-TDNN .*expected \[20"):
        config_of(random=False, channels=20, file=str(tmp_path / "own.ckpt")).load("nowhere")
    with pytest.raises(V2FError, match=r"system\.encoder: .*no such folder; get ecapa-voxceleb from https://"):
        config_of(random=False).load(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("output", ["vector", "frames"])
def test_a_clip_has_the_same_maps_in_every_batch_and_mode(output: str) -> None:
    encoder = encoder_of(output=output).double()
    wav = BATCH["wav"].double()
    together = encoder.eval()(wav)
    encoder.train()
    for i in range(4):
        for alone, whole in zip(encoder(wav[i : i + 1]), together, strict=True):
            torch.testing.assert_close(alone, whole[i : i + 1], rtol=0, atol=1e-12)


def test_bf16_gives_the_same_maps_but_for_its_rounding() -> None:
    for output in ("vector", "frames"):
        encoder = encoder_of(output=output)
        full = encoder(BATCH["wav"])
        with torch.autocast("cpu", torch.bfloat16):
            rounded = encoder(BATCH["wav"])
        for one, other in zip(full, rounded, strict=True):
            torch.testing.assert_close(other.float(), one, rtol=0, atol=0.05 * float(one.abs().max()))


@pytest.mark.parametrize(
    ("keys", "moves"),
    [
        ({}, ()),
        ({"thaw": 1}, ("2.",)),
        ({"thaw": 2}, ("1.", "2.")),
        ({"thaw": 1, "output": "vector"}, ("mfa.", "asp.", "asp_bn.", "fc.")),
        ({"thaw": 2, "output": "vector"}, ("blocks.2.", "mfa.", "asp.", "asp_bn.", "fc.")),
        ({"thaw": "all", "random": False}, ("0.", "1.", "2.")),
    ],
    ids=str,
)
def test_a_step_moves_the_thawed_blocks_and_no_statistics(
    keys: dict[str, Any], moves: tuple[str, ...], tmp_path: Path
) -> None:
    if keys.get("random") is False:
        torch.save(ECAPA(config_of()).state_dict(), tmp_path / "own.ckpt")
        keys = {**keys, "file": str(tmp_path / "own.ckpt")}
    system = system_of(**keys)
    moved = stepped(system)
    assert {name for name in moved if "running" in name or "tracked" in name} == set()
    assert all(name.startswith(moves) for name in moved) if moves else moved == set()
    assert all(any(name.startswith(start) for name in moved) for start in moves)
    assert set(trained(system)) == {"mapping", *(["thawed"] if moves else [])}


def test_random_weights_wholly_trained_have_ghost_batch_norms_that_follow_the_data() -> None:
    system = system_of(thaw="all")
    norms = ghost_norms(system.encoder)
    assert norms
    assert all(norm.training for norm in norms)
    moved = stepped(system)
    assert {name for name, _ in system.encoder.net.named_buffers()} <= moved
    system.eval()
    assert not any(norm.training for norm in norms)
    assert not ghost_norms(encoder_of(thaw=2))


def test_wholly_trained_from_random_weights_the_gradient_does_not_depend_on_micro_batches() -> None:
    def gradient(parts: int) -> tuple[Tensor, list[Tensor]]:
        encoder = encoder_of(thaw="all").double()
        for wav in BATCH["wav"].double().chunk(parts):
            (sum(x.square().mean() for x in encoder(wav)) / parts).backward()
        statistics.commit(encoder, statistics.collect(encoder))
        kept = [norm.running_var for norm in encoder.net.modules() if isinstance(norm, GhostBatchNorm)]
        return torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None]), kept

    (whole, kept), (halves, kept_of_halves) = gradient(1), gradient(2)
    torch.testing.assert_close(halves, whole, rtol=0, atol=1e-9 * float(whole.abs().max()))
    torch.testing.assert_close(kept_of_halves, kept, rtol=1e-9, atol=0)


def test_weighted_maps_start_as_the_mean_of_the_depths() -> None:
    maps, mixed = encoder_of()(BATCH["wav"]), encoder_of(weighted=True)
    assert set(mixed.trained()) == {"layers"}
    for one in mixed(BATCH["wav"]):
        torch.testing.assert_close(one, sum(maps) / 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"output": "vector", "weighted": True}, "weighted is a sum over several depths"),
        ({"depths": [1, 0]}, r"depths \[1, 0\]: name blocks from 0 to 2 in ascending order"),
        ({"depths": [1, 3]}, r"depths \[1, 3\]: name blocks from 0 to 2"),
        ({"bn_group": 1}, "bn_group"),
        ({"kernel": 3}, "unknown key 'kernel'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_line(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(V2FError, match=message) as caught:
        config_of(**keys)
    assert "\n" not in str(caught.value)


def test_more_blocks_than_there_are_cannot_be_thawed() -> None:
    with pytest.raises(V2FError, match=r"system\.encoder\.thaw: 5, but ecapa has 4 blocks"):
        encoder_of(thaw=5, output="vector")


def test_an_exported_graph_gives_the_same_vector_for_any_batch() -> None:
    encoder = encoder_of(output="vector").eval()
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        graph = torch.export.export(encoder, (BATCH["wav"][:2],), dynamic_shapes=({0: batch},)).module()
        for one, other in zip(graph(BATCH["wav"]), encoder(BATCH["wav"]), strict=True):
            torch.testing.assert_close(one, other)
