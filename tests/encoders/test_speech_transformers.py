"""UniSpeech-SAT and WavLM as voice encoders: transformers' own features, and the promises where they are trained."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import published
from encoders.small import ENCODERS, SPEECH
from pydantic import TypeAdapter
from systems.small import SMALL
from torch import Tensor

from v2f import encoders
from v2f.config import build
from v2f.data.loader import read_split
from v2f.data.manifest import open_dataset
from v2f.encoders import EncoderConfig
from v2f.encoders.speech_transformers import SpeechEncoder
from v2f.errors import V2FError
from v2f.runs import checkpoint
from v2f.runs.config import RunConfig
from v2f.runs.run import Run, build_system, check_weights
from v2f.systems.voice_styled_face import VoiceStyledFace
from v2f.training.trainer import fit

KIND = pytest.mark.parametrize("kind", ["unispeech_sat", "wavlm"])


def encoder(kind: str, **values: Any) -> SpeechEncoder:
    torch.manual_seed(5)
    config = TypeAdapter(EncoderConfig).validate_python(ENCODERS[kind] | values)
    built = encoders.build(config, values.pop("folder", "weights")).encoder
    assert isinstance(built, SpeechEncoder)
    return built


def waves(count: int = 3, samples: int = 1600) -> Tensor:
    return 0.3 * torch.randn(count, samples, generator=torch.Generator().manual_seed(2))


@KIND
def test_the_maps_are_the_hidden_states_of_transformers(tmp_path: Path, kind: str) -> None:
    theirs = published.small(kind).eval()
    published.write(tmp_path, kind, theirs.state_dict())
    with torch.no_grad():
        states = theirs(waves(), output_hidden_states=True).hidden_states
    own = TypeAdapter(EncoderConfig).validate_python({"net": kind, "depths": [0, 1, 3]})
    built = encoders.build(own, str(tmp_path))
    maps = built.encoder(waves())
    assert built.encoder.channels == (16, 16, 16)
    for found, depth in zip(maps, (0, 1, 3), strict=True):
        assert found.shape == (3, 16, 9)
        torch.testing.assert_close(found, states[depth].transpose(1, 2), rtol=0, atol=1e-6)
    shallow = encoders.build(own.model_copy(update={"depths": [0, 2]}), str(tmp_path)).encoder
    assert len(shallow.net.layers) == 2  # what nobody reads is not kept
    torch.testing.assert_close(shallow(waves())[1], states[2].transpose(1, 2), rtol=0, atol=1e-6)


@KIND
def test_learned_weights_make_three_maps_of_all_depths(kind: str) -> None:
    """As SUPERB weighs depths: a softmax, at first the mean."""
    net = encoder(kind, weighted=True)
    assert net.layers is not None
    assert set(net.trained()) == {"layers"}
    features_BKCT = net.features(waves())
    for found in net(waves()):
        torch.testing.assert_close(found, features_BKCT.mean(dim=1))
    with torch.no_grad():
        net.layers.logits.copy_(torch.eye(3) * 30)
    for depth, found in enumerate(net(waves())):
        torch.testing.assert_close(found, features_BKCT[:, depth])


@KIND
@pytest.mark.parametrize(
    "settings", [{}, {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}], ids=["", "large"]
)
def test_a_thawed_net_draws_nothing_and_sees_one_voice_at_a_time(kind: str, settings: dict[str, Any]) -> None:
    net = encoder(kind, thaw="all", architecture=SPEECH | settings).double().train()
    for module in net.trained().values():
        module.train()
    wav_BT = waves().double()
    together = net.features(wav_BT)
    assert torch.equal(together, net.features(wav_BT))
    alone = torch.cat([net.features(wav_1T[None]) for wav_1T in wav_BT])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    assert together.dtype == torch.float64
    together.square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.trained()["thawed"].parameters())


@KIND
def test_gradients_reach_the_thawed_layers_only(kind: str) -> None:
    net = encoder(kind, thaw=2)
    sum(each.square().sum() for each in net(waves())).backward()  # type: ignore[union-attr]
    with_gradient = {name for name, parameter in net.net.named_parameters() if parameter.grad is not None}
    wanted = {
        name
        for name, _ in net.net.named_parameters()
        if name.startswith(("net.encoder.layers.1.", "net.encoder.layers.2."))
    }
    assert with_gradient == wanted == {n for n, p in net.net.named_parameters() if p.requires_grad}
    frozen = encoder(kind)
    assert not frozen.trained()
    assert not frozen(waves())[0].requires_grad


@KIND
def test_bf16_is_close_to_float32(kind: str) -> None:
    net = encoder(kind)
    exact = net.features(waves())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net.features(waves())
    assert (rounded.float() - exact).norm() < 0.03 * exact.norm()


@KIND
def test_a_wave_is_normalized_where_it_is_asked_for(kind: str) -> None:
    net, plain = encoder(kind, normalize=True), encoder(kind)
    loud = 2.5 * waves() + 0.1
    torch.testing.assert_close(net.features(loud), net.features(waves()), rtol=1e-4, atol=1e-5)
    shifted = (waves() - waves().mean(1, keepdim=True)) / waves().std(1, correction=0, keepdim=True)
    torch.testing.assert_close(net.features(waves()), plain.features(shifted), rtol=1e-4, atol=1e-5)
    assert net.settings != plain.settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depths": [1, 4]}, r"system\.encoder\.depths: 4, but wavlm has 3 layers"),
        ({"thaw": 4}, r"system\.encoder\.thaw: 4, but wavlm has 3 blocks"),
        ({"depths": [1], "thaw": 2}, r"system\.encoder\.thaw: 2, but wavlm has 1 blocks"),
        ({"depths": [3, 1]}, r"depths \[3, 1\]: name each once, shallow ones first"),
        ({"depths": [0]}, r"at least one above 0"),
        ({"precomputed": True}, r"only features of a frozen net from a file can be stored"),
    ],
)
def test_what_does_not_fit_the_net_is_said(values: dict[str, Any], message: str) -> None:
    with pytest.raises((V2FError, ValueError), match=message):
        encoder("wavlm", **values)


def test_a_wave_that_is_too_short_is_one_line() -> None:
    with pytest.raises(V2FError, match=r"expected waves of shape \[batch, 165 samples or more\], got \[2, 164\]"):
        encoder("wavlm")(waves(2, 164))
    assert encoder("wavlm")(waves(2, 165))[0].shape[2] == 1


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.models.wavlm", None)
    with pytest.raises(V2FError, match=r"wavlm needs the package transformers: pip install 'v2f\[transformers\]'"):
        encoder("wavlm")


def values_of(run_values: Any, encoder: dict[str, Any], *modules: str, **train: Any) -> dict[str, Any]:
    values: dict[str, Any] = run_values(**train)
    optimizer = SMALL["voice_styled_face"]["optimizer"] | {"lr": dict.fromkeys((*modules, "mapping"), 1e-3)}
    values["system"] = SMALL["voice_styled_face"] | {"encoder": encoder, "optimizer": optimizer}
    return values


@pytest.mark.parametrize(("kind", "thaw"), [("unispeech_sat", 1), ("wavlm", "all")])
def test_a_training_system_gives_the_same_loss_twice_and_saves_what_it_trains(
    run_values: Any, kind: str, thaw: int | str
) -> None:
    own = ENCODERS[kind] | {"thaw": thaw, "weighted": True}
    config = build(RunConfig, values_of(run_values, own, "thawed", "layers", steps=2), "test")
    system = build_system(config).train()
    (batch,) = read_split(open_dataset(config.data.path).split("valid"), system.transforms(), 6)
    first, second = (system.loss("supervised", batch, 0)["total"] for _ in range(2))
    assert torch.equal(first, second)
    tensors, _ = checkpoint.load(checkpoint.latest(f"{fit(config)}/checkpoints"))
    saved = {name.split("/")[1].split(".")[0] for name in tensors if name.startswith("model/")}
    assert saved == {"thawed", "layers", "mapping"}
    averaged = Run.open(config.folder).system()
    assert averaged.sample(batch)["face"].isfinite().all()


def test_a_run_is_not_continued_with_a_net_that_computes_otherwise(run_values: Any, tmp_path: Path) -> None:
    """What files beside the weights say is part of the net, though it is not in the weights' checksum."""
    path = published.write(tmp_path / "nets", "wavlm", published.small("wavlm").state_dict())
    own = {"net": "wavlm", "depths": [1, 3], "file": str(path)}
    config = build(RunConfig, values_of(run_values, own), "test")
    state = {"weights": dict(build_system(config).weights)}
    assert state["weights"].keys() == {"encoder", "encoder.settings"}
    check_weights(build_system(config), state, "here")
    (path.parent / "preprocessor_config.json").write_text('{"do_normalize": true}')
    changed = build_system(config)
    assert isinstance(changed, VoiceStyledFace)
    with pytest.raises(V2FError, match=r"system\.encoder: the settings beside its file have the SHA-256"):
        check_weights(changed, state, "here")
