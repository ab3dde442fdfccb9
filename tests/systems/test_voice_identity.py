"""Voices among face identities: the terms, what is read of the shards, and where the trained parts go next."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from systems.reading import fixed, training
from systems.small import SMALL

from v2f.config import build
from v2f.data.manifest import open_dataset
from v2f.engine import Engine
from v2f.errors import V2FError
from v2f.nn import losses
from v2f.prepare.precompute import load, precompute
from v2f.runs.config import RunConfig
from v2f.runs.run import Run, build_system, start_from
from v2f.system import System, to_picture, trained
from v2f.systems.voice_draws import VoiceDraws
from v2f.systems.voice_identity import VoiceIdentity
from v2f.systems.voice_styled_face import VoiceStyledFace
from v2f.training.trainer import fit

Values = Callable[..., dict[str, Any]]
STORED = {"codes": {"net": "precomputed"}, "embeddings": {"net": "precomputed"}}


@pytest.fixture(scope="session")
def stored(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny shards with what the nets say of each photo."""
    out = str(tmp_path_factory.mktemp("stored") / "shards")
    precompute(tiny_shards, out, load(["identity.net=stand_in", "codes.net=stand_in", "workers=1"]))
    return out


def built(values: dict[str, Any], **system: Any) -> Any:
    values["system"] |= system
    return build_system(build(RunConfig, values, "test")).eval()


def batch_of(system: System, data: str) -> dict[str, Any]:
    with training(open_dataset(data).split("train"), system, 8) as streams:
        return next(iter(streams))


def test_the_terms_are_those_of_the_papers(run_values: Values, tiny_shards: str) -> None:
    system = built(run_values("voice_identity"))
    assert isinstance(system, VoiceIdentity)
    batch = batch_of(system, tiny_shards)
    with torch.no_grad():
        found = system.loss("supervised", batch, 0)
        photo, maps = to_picture(batch["image"]), system.encoder(batch["wav"])
        voice_BE, face_BE = system.head(maps), system.identity(photo)
        codes_BLD = system.codes(photo)
        style_B = losses.style(system.mean_style + system.mapping(maps), codes_BLD)
    torch.testing.assert_close(voice_BE.norm(dim=1), torch.ones(8))
    torch.testing.assert_close(found["cosine"], (1 - (voice_BE * face_BE).sum(dim=1)).mean())
    torch.testing.assert_close(found["style"], style_B.mean())
    pairs = (voice_BE @ face_BE.T / 0.1).unflatten(0, (4, 2)).unflatten(2, (4, 2))
    group = torch.stack([pairs[at, :, at] for at in range(4)])  # [4,2,2]: the groups of two
    own = torch.stack([group.log_softmax(2), group.mT.log_softmax(2)]).diagonal(dim1=2, dim2=3)
    alone = (batch["identity"].unflatten(0, (4, 2))).diff().ne(0)[:, 0]
    torch.testing.assert_close(found["contrast"], -(own.mean(dim=(0, 2)) * alone).mean())
    total = found["cosine"] + 0.3 * found["contrast"] + 0.5 * found["style"]
    torch.testing.assert_close(found["total"], total)


def test_what_the_shards_hold_takes_the_place_of_photo_and_nets(
    run_values: Values, tiny_shards: str, stored: str
) -> None:
    by_nets, by_shards = built(run_values("voice_identity")), built(run_values("voice_identity"), frozen=STORED)
    for name, module in trained(by_shards).items():  # a net that is not there has drawn no first weights
        module.load_state_dict(trained(by_nets)[name].state_dict())
    assert by_nets.streams()[""].keys() == {"wav", "image"}
    assert by_shards.streams()[""].keys() == {"wav", "embedding", "codes"}
    with torch.no_grad():
        one = by_nets.loss("supervised", next(fixed(open_dataset(tiny_shards).split("valid"), by_nets, 6)), 0)
        other = by_shards.loss("supervised", next(fixed(open_dataset(stored).split("valid"), by_shards, 6)), 0)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=2e-3, atol=2e-3)  # they are stored in float16
    with pytest.raises(V2FError, match="it holds no identity embeddings"):
        batch_of(by_shards, tiny_shards)


def test_what_is_not_trained_is_not_there(run_values: Values) -> None:
    values = run_values("voice_identity")
    del values["system"]["optimizer"]
    plain = built(values, losses={"cosine": 1.0, "contrast": 0.0})
    assert plain.phases()[0].modules.keys() == {"encoder", "head"}
    assert "codes" not in plain.transforms()
    for losses_, told in (
        ({"cosine": 0.0, "contrast": 0.0, "style": 0.5}, "the embedding is not trained"),
        ({"style": 0.0}, "optimizer.lr names mapping"),
    ):
        with pytest.raises(V2FError, match=told):
            built(run_values("voice_identity"), losses=losses_)


@pytest.fixture(scope="module")
def aligned(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of two steps."""
    out = str(tmp_path_factory.mktemp("aligned") / "run")
    values = {
        "name": "aligned",
        "out": out,
        "system": SMALL["voice_identity"],
        "data": {"path": tiny_shards, "batch": 8, "workers": 0, "window": 8, "partitions": 4},
        "train": {"steps": 2, "threads": 1, "log_every": 1, "validate_samples": 6},
        "tracking": {"uri": None},
    }
    return fit(build(RunConfig, values, "test"))


def test_the_second_stage_starts_from_the_parts_of_the_first(aligned: str, run_values: Values) -> None:
    values = run_values("voice_styled_face", steps=1)
    values["system"] |= {"encoder": SMALL["voice_identity"]["encoder"], "mapping": SMALL["voice_identity"]["mapping"]}
    values["init_from"] = [{"run": aligned, "module": name} for name in ("encoder", "mapping")]
    config, first = build(RunConfig, values, "test"), Run.open(aligned).system()
    second = build_system(config).eval()
    start_from(config, second, Engine("fp32"))
    assert isinstance(second, VoiceStyledFace)
    assert isinstance(first, VoiceIdentity)
    wav_BT = 0.1 * torch.randn(2, 6400, generator=torch.Generator().manual_seed(1))
    assert first.mapping is not None
    with torch.no_grad():
        torch.testing.assert_close(
            second.styles({"wav": wav_BT}) - first.mean_style, first.mapping(first.encoder(wav_BT))
        )


def test_draws_take_encoder_and_head_of_the_run_as_they_are(aligned: str, run_values: Values) -> None:
    parts = {name: {"net": "run", "path": aligned, "module": name} for name in ("encoder", "head")}
    values = run_values("voice_draws", steps=2)
    values["system"] |= parts | {"optimizer": {"lr": {"flow": 1e-3}}}
    first, folder = Run.open(aligned).system(), fit(build(RunConfig, values, "test"))
    second = Run.open(folder).system()
    assert isinstance(second, VoiceDraws)
    assert second.phases()[0].modules.keys() == {"flow"}
    assert {"encoder", "head"} <= second.weights.keys()
    wav_BT = 0.1 * torch.randn(2, 6400, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        embedding_BE = first.sample({"wav": wav_BT})["embedding"]
        torch.testing.assert_close(second.condition({"wav": wav_BT})[:, -embedding_BE.shape[1] :], embedding_BE)
    values["system"]["head"] = parts["encoder"]
    with pytest.raises(V2FError, match="is a WaveformEncoder, not the head of a voice"):
        build_system(build(RunConfig, values, "test"))
    values["system"] |= {"head": parts["head"], "encoder": SMALL["voice_identity"]["encoder"]}
    with pytest.raises(V2FError, match=r"set encoder\.net to run"):
        build(RunConfig, values, "test")
