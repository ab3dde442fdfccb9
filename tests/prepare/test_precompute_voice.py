"""`v2f shards precompute --voice`: features of a frozen voice encoder in the shards, and training from them."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders import published
from systems.small import SMALL

from v2f.cli import main
from v2f.config import build, dump_yaml
from v2f.data.encoding import encode
from v2f.data.loader import Loader, read_split
from v2f.data.manifest import Dataset, open_dataset
from v2f.data.order import Order
from v2f.data.sample import Sample
from v2f.data.shards import write_manifest, write_shard
from v2f.data.transforms import StoredVoice, Waveform
from v2f.encoders import ForeignEncoder
from v2f.engine import Engine
from v2f.errors import V2FError
from v2f.prepare import voice_features
from v2f.prepare.pack import load_recipe, pack
from v2f.prepare.parts import Part
from v2f.prepare.precompute import load, precompute
from v2f.prepare.remove import remove
from v2f.prepare.verify import verify
from v2f.runs.config import RunConfig
from v2f.runs.run import Run, build_system
from v2f.storage import store
from v2f.system import Batch
from v2f.systems.voice_styled_face import VoiceStyledFace
from v2f.training.trainer import fit

RECIPE = Path(__file__).parents[2] / "shards" / "quickstart.yaml"
SECONDS = SMALL["voice_styled_face"]["seconds"]
DEPTHS = [0, 1, 3]
SHAPE = (3, 16, 39)  # depths, channels, frames of 0.4 s
Values = Callable[..., dict[str, Any]]


def packed(out: Path, seconds: float) -> Dataset:
    people = ["train.people=8", "valid.people=3", "test.people=3", "seen.people=2", "photos=2", f"seconds={seconds}"]
    return pack(load_recipe(str(RECIPE), [f"out={out}", *(f"synthetic.{each}" for each in people)]))


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nets")
    published.write(folder, "unispeech_sat", published.small("unispeech_sat").state_dict())
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Clips exactly as long as what the encoder hears."""
    return packed(tmp_path_factory.mktemp("plain") / "shards", SECONDS)


def asked(nets: Path, *more: str) -> list[str]:
    return [f"path={nets}", "encoder.net=unispeech_sat", f"encoder.depths={DEPTHS}", f"seconds={SECONDS}", *more]


@pytest.fixture(scope="module")
def heard(nets: Path, plain: Dataset) -> Dataset:
    dataset = precompute(plain.root, f"{plain.root}-voice", load(asked(nets, "workers=1", "batch=5"), voice=True))
    assert dataset is not None
    return dataset


def samples(dataset: Dataset) -> dict[str, Sample]:
    index, found = dataset.index, {}
    for row, key in enumerate(bytes(each).decode() for each in index.key):
        raw = store.read_range(dataset.shard_path(row), int(index.offset[row]), int(index.length[row]))
        found[key] = Sample.from_tar(key, raw)
    return found


def system(run_values: Values, nets: Path, **encoder: Any) -> VoiceStyledFace:
    built = build_system(build(RunConfig, values(run_values, nets, **encoder), "test"))
    assert isinstance(built, VoiceStyledFace)
    return built.eval()


def values(run_values: Values, nets: Path, **encoder: Any) -> dict[str, Any]:
    own = {"net": "unispeech_sat", "depths": DEPTHS, **encoder}
    modules = ("layers", "mapping") if own.get("weighted") else ("mapping",)
    optimizer = SMALL["voice_styled_face"]["optimizer"] | {"lr": dict.fromkeys(modules, 1e-3)}
    small = SMALL["voice_styled_face"] | {"encoder": own, "optimizer": optimizer, "frozen": {"path": str(nets)}}
    return run_values() | {"system": small}


def batches(system: VoiceStyledFace, dataset: Dataset) -> list[Batch]:
    split = dataset.split("train")
    order = Order.for_batches(split.shard_sizes, seed=0, batch=8, data="the same of both", window=8)
    with Loader(split, order, system.streams()[""], batch=8, seed=5) as loader:
        return [batch for batch, _ in zip(loader, range(3), strict=False)]


def test_every_sample_gains_the_features_of_its_clip(
    run_values: Values, nets: Path, plain: Dataset, heard: Dataset
) -> None:
    net = system(run_values, nets).encoder
    assert isinstance(net, ForeignEncoder)
    before = samples(plain)
    for key, sample in samples(heard).items():
        assert sample.meta == before[key].meta
        features_KCT = sample.array("voice")
        assert (features_KCT.dtype, features_KCT.shape) == (np.float16, SHAPE)
        wav_T = torch.from_numpy(Waveform(SECONDS)(before[key], None))
        expected_KCT = net.features(wav_T[None])[0].numpy()
        np.testing.assert_allclose(features_KCT, expected_KCT, rtol=1e-3, atol=1e-3)
    assert verify(heard.root) == []
    assert str(heard.manifest.arrays["voice"]) == "float16 [3, 16, 39]"
    about = heard.manifest.provenance["precomputed"]
    assert about["of"] == plain.fingerprint
    voice = about["voice"]
    assert (voice["net"], voice["depths"], voice["seconds"], voice["sample_rate"]) == (
        *("unispeech_sat", DEPTHS, SECONDS, 16_000),
    )
    assert voice["normalize"] is False
    assert voice["architecture"]["num_hidden_layers"] == 3
    assert len(voice["sha256"]) == 64


@pytest.mark.parametrize("weighted", [False, True])
def test_training_from_stored_features_is_training_from_the_waves(
    run_values: Values, nets: Path, plain: Dataset, heard: Dataset, weighted: bool
) -> None:
    """To float16 rounding, where every clip is as long as the window."""
    reading = system(run_values, nets, precomputed=True, weighted=weighted)
    hearing = system(run_values, nets, weighted=weighted)
    hearing.load_state_dict(reading.state_dict())
    run: list[int] = []
    reading.encoder.net.register_forward_hook(lambda *_: run.append(1))
    pairs = list(zip(batches(reading, heard), batches(hearing, plain), strict=True))
    for stored, waves in pairs[:1]:
        assert (stored.keys() - waves.keys(), waves.keys() - stored.keys()) == ({"voice_features"}, {"wav"})
        assert torch.equal(stored["image"], waves["image"])
        assert reading.meters([stored]) == pytest.approx(hearing.meters([waves]), rel=1e-2, abs=1e-3)
        made, expected = reading.sample(stored), hearing.sample(waves)
        for name in expected:
            torch.testing.assert_close(made[name], expected[name], rtol=0, atol=5e-3)
    losses = []
    for number, each in enumerate((reading, hearing)):
        engine = Engine("fp32")
        engine.wrap(each, share=8, micro_batch=None)
        (phase,) = each.phases()
        steps = (
            engine.step(phase, pair[number], step, micro_batch=None, seen=8 * step, total=100)
            for step, pair in enumerate(pairs)
        )
        losses.append([{name: float(value) for name, value in step.losses.items()} for step in steps])
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-3)
    assert losses[0][-1] == pytest.approx(losses[1][-1], rel=1e-2)  # Adam enlarges the difference
    assert losses[0][-1] != pytest.approx(losses[0][0], rel=1e-2)
    assert not run


def test_a_run_trains_and_validates_on_features_and_then_hears_any_wave(
    run_values: Values, nets: Path, plain: Dataset, heard: Dataset
) -> None:
    told = values(run_values, nets, precomputed=True)
    told["data"] = told["data"] | {"path": heard.root}
    trained = Run.open(fit(build(RunConfig, told, "test"))).system()
    (stored,) = read_split(heard.split("test"), trained.streams()[""], 99)
    (waves,) = read_split(plain.split("test"), trained.transforms(), 99)  # which has no features
    assert {*stored} ^ {*waves} == {"voice_features", "wav"}
    torch.testing.assert_close(trained.sample(stored)["face"], trained.sample(waves)["face"], rtol=0, atol=5e-3)


def test_clips_of_another_length_are_heard_as_in_evaluation(
    run_values: Values, nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The middle of a longer one, a shorter one repeated; a longer one has other windows, too, which is said."""
    net = system(run_values, nets).encoder
    assert isinstance(net, ForeignEncoder)
    for seconds in (0.3, 0.7):
        source = packed(tmp_path / f"{seconds}", seconds)
        dataset = precompute(source.root, f"{source.root}-voice", load(asked(nets, "workers=1")))
        assert dataset is not None
        (batch,) = read_split(source.split("valid"), {"wav": Waveform(SECONDS)}, 99)
        (stored,) = read_split(
            dataset.split("valid"), {"voice": StoredVoice(dataset.manifest.provenance["precomputed"]["voice"])}, 99
        )
        torch.testing.assert_close(stored["voice"].float(), net.features(batch["wav"]), rtol=1e-3, atol=1e-3)
    assert "Training on the waves would draw another window of a longer clip each time" in capsys.readouterr().out


def test_the_cost_is_told_before_it_starts(
    nets: Path, plain: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count, each = len(plain.index.key), 2 * int(np.prod(SHAPE))
    out = str(tmp_path / "d")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 0, 10**5))  # type: ignore[attr-defined]
    with pytest.raises(V2FError, match=rf"{out}: it needs .* MB, and its disk has 0\.1 MB free; choose .* --yes$"):
        precompute(plain.root, out, load(asked(nets)))
    told = capsys.readouterr().out
    assert "3 depths of 16 channels x 39 frames (98 Hz) in float16: 0.00 MB a clip" in told
    assert f"{count * each / 1e6:.1f} MB for {count} clips" in told
    assert not Path(out).exists()
    command = ["shards", "precompute", plain.root, *asked(nets, "workers=1"), "--voice", "--out", out]
    assert main(command) == 1
    assert main([*command, "--yes"]) == 0
    told = capsys.readouterr().out
    assert "starting anyway (--yes)" in told
    assert "min for the other" in told


def test_the_cost_of_the_published_nets_is_that_of_the_documents() -> None:
    """12 depths of 768 at 50 Hz over 6 s: 5.5 MB a clip, 2.8 TB for half a million."""
    kind = voice_features.ArrayKind(dtype="float16", shape=[12, 768, 299])
    assert voice_features.size(kind) == 5_511_168
    assert voice_features._bytes(500_000 * voice_features.size(kind)) == "2.8 TB"


def test_parts_on_several_machines_are_the_same_bytes(
    nets: Path, plain: Dataset, heard: Dataset, tmp_path: Path
) -> None:
    out, config = str(tmp_path / "d"), load(asked(nets, "workers=1", "batch=5"))
    assert precompute(plain.root, out, config, Part(1, 2)) is None
    assert precompute(plain.root, out, config, Part(0, 2)) is None
    dataset = precompute(plain.root, out, config)
    assert dataset is not None
    assert dataset.fingerprint == heard.fingerprint
    remove(out, [dataset.manifest.identities[0]])
    assert verify(out, [dataset.manifest.identities[0]]) == []
    with pytest.raises(V2FError, match=r"has its voice\.npy already; set encoder=null to keep it"):
        precompute(plain.root + "-voice", str(tmp_path / "e"), config)


def test_features_and_embeddings_are_added_one_after_the_other(nets: Path, heard: Dataset, tmp_path: Path) -> None:
    both = precompute(heard.root, str(tmp_path / "d"), load(["identity.net=stand_in", "workers=1"]))
    assert both is not None
    assert both.manifest.arrays == heard.manifest.arrays
    made = both.manifest.provenance["precomputed"]
    assert made["voice"] == heard.manifest.provenance["precomputed"]["voice"]
    assert verify(both.root) == []


def test_voices_need_no_photos_and_photos_no_voices(nets: Path, tmp_path: Path) -> None:
    about: dict[str, Any] = {"identity": "p0", "split": "train", "source": "test"}
    voice = encode("a", np.full(6400, 0.1), 16000, extra={"label": "x"}, **about)
    photo = encode("a", photos_HWC=[np.zeros((16, 16, 3), np.uint8)], **about)
    for name, members in (("voice", voice), ("photo", photo)):
        root = str(tmp_path / name)
        write_manifest(root, [write_shard(root, "train-00000.tar", "train", [("a", "p0", members)])], {})
    dataset = precompute(str(tmp_path / "voice"), str(tmp_path / "d"), load(asked(nets, "workers=1")))
    assert dataset is not None
    assert samples(dataset)["a"].array("voice").shape == SHAPE
    with pytest.raises(V2FError, match="photo: not every sample has audio, but a voice encoder needs it"):
        precompute(str(tmp_path / "photo"), str(tmp_path / "e"), load(asked(nets)))


def test_the_recipe_of_a_run_names_the_encoder(run_values: Values, nets: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "run.yaml"
    recipe.write_text(dump_yaml(build(RunConfig, values(run_values, nets, precomputed=True), "test")))
    config = load([], str(recipe), voice=True)
    assert config.encoder is not None
    assert (config.encoder.net, config.seconds, config.identity) == ("unispeech_sat", SECONDS, None)
    assert load([], str(recipe)).encoder is None


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ([], "--voice: name the encoder, encoder.net=unispeech_sat for example, or a --recipe that has one"),
        (["encoder.net=waveform"], "waveform is trained in the run, so its features change"),
        (["encoder.net=wavlm", "encoder.thaw=2"], "thaw and random change the features"),
        (["encoder.net=wavlm", "encoder.random=true"], "thaw and random change the features"),
        (["encoder.net=wavlm", "path=nowhere"], "get wavlm-base from https://"),
    ],
)
def test_a_wrong_encoder_is_one_clear_line(
    plain: Dataset, tmp_path: Path, assignments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["shards", "precompute", plain.root, *assignments, "--voice", "--out", str(tmp_path / "d")]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": [1, 3]}, r"depths \[0, 1, 3\]\) than system\.encoder \(depths \[1, 3\]\)"),
        ({"normalize": True}, r"normalize False\) than system\.encoder \(normalize True\)"),
    ],
)
def test_features_of_another_encoder_are_refused_in_one_line(
    run_values: Values, nets: Path, plain: Dataset, heard: Dataset, change: dict[str, Any], message: str
) -> None:
    other = system(run_values, nets, precomputed=True, **change)
    with pytest.raises(V2FError, match=message) as caught:
        batches(other, heard)
    assert "\n" not in str(caught.value)
    same = system(run_values, nets, precomputed=True)
    for key, value in (("sha256", "0" * 64), ("seconds", 3.0)):
        voice = heard.manifest.provenance["precomputed"]["voice"] | {key: value}
        provenance = heard.manifest.provenance | {"precomputed": {"voice": voice}}
        foreign = replace(heard, manifest=heard.manifest.model_copy(update={"provenance": provenance}))
        with pytest.raises(V2FError, match=rf"of another encoder \({key} {str(value)[:9]}"):
            batches(same, foreign)
    with pytest.raises(V2FError, match=r"holds no voice features; write them with `v2f shards precompute --voice`"):
        batches(same, plain)
    assert open_dataset(heard.root).manifest == heard.manifest
